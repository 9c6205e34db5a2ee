//! A real OpenBao server on loopback: TLS for what is tested, and plain HTTP for the test's own administration.
//!
//! It needs nothing of this crate but `certificates` and `plain_http`, so that the tests of other crates can include the files.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::certificates::{certify, secret_file};
use crate::plain_http;

/// A server with the transit engine at `transit`. It ends with the value.
#[derive(Debug)]
pub struct OpenBao {
    directory: TempDir,
    process: Child,
    ports: Ports,
    unseal_key: String,
    root: String,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    tls: u16,
    plain: u16,
    cluster: u16,
}

impl OpenBao {
    /// Starts one, initialised and unsealed, that keeps its data in memory: a quarter of a second.
    ///
    /// # Panics
    /// If it is not installed, or does not come up.
    #[must_use]
    pub fn start() -> Self {
        Self::start_on("inmem", "")
    }

    /// The same with data on disk, by raft, as servers run that matter; it elects itself for two seconds first.
    ///
    /// # Panics
    /// As [`Self::start`].
    #[must_use]
    pub fn start_on_raft() -> Self {
        Self::start_on(
            "raft",
            "path = \"data\"\n  node_id = \"one\"\n  performance_multiplier = 1",
        )
    }

    fn start_on(storage: &str, options: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        certify(directory.path());
        std::fs::create_dir(directory.path().join("data")).expect("a directory");
        // Another process may take a port before the server does.
        for _ in 0..5 {
            let ports = free_ports();
            configure(directory.path(), (storage, options), ports);
            let mut process = serve(directory.path());
            if comes_up(&mut process, ports) {
                let mut server = Self {
                    directory,
                    process,
                    ports,
                    unseal_key: String::new(),
                    root: String::new(),
                };
                server.initialise();
                return server;
            }
            let _ = process.kill();
            let _ = process.wait();
        }
        let log = std::fs::read_to_string(directory.path().join("log")).unwrap_or_default();
        panic!("OpenBao does not come up: {log}");
    }

    fn initialise(&mut self) {
        let init = json!({ "secret_shares": 1, "secret_threshold": 1 });
        let (status, made) = ask(self.ports.plain, "", "PUT", "sys/init", &init);
        assert_eq!(status, 200, "{made}");
        made["keys_base64"][0]
            .as_str()
            .expect("a key")
            .clone_into(&mut self.unseal_key);
        made["root_token"]
            .as_str()
            .expect("a token")
            .clone_into(&mut self.root);
        self.unseal();
        self.admin("POST", "sys/mounts/transit", &json!({ "type": "transit" }));
    }

    /// Where it serves over TLS. The certificate is for `localhost` alone.
    #[must_use]
    pub fn address(&self) -> String {
        format!("https://localhost:{}", self.ports.tls)
    }

    /// The port of [`Self::address`].
    #[must_use]
    pub fn tls_port(&self) -> u16 {
        self.ports.tls
    }

    /// Where it serves in the clear.
    #[must_use]
    pub fn plain_port(&self) -> u16 {
        self.ports.plain
    }

    /// The authority that signed its certificate.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// An authority that did not.
    #[must_use]
    pub fn other_authority(&self) -> PathBuf {
        self.directory.path().join("other-ca.pem")
    }

    /// Asks as its administrator.
    ///
    /// # Panics
    /// If it refuses.
    #[track_caller]
    pub fn admin(&self, method: &str, path: &str, body: &Value) -> Value {
        let (status, answer) = self.ask(&self.root, method, path, body);
        assert!(
            (200..300).contains(&status),
            "{method} {path}: {status} {answer}"
        );
        answer
    }

    /// Asks with a token; gives the HTTP status and the answer.
    #[must_use]
    pub fn ask(&self, token: &str, method: &str, path: &str, body: &Value) -> (u16, Value) {
        ask(self.ports.plain, token, method, path, body)
    }

    /// Makes a key that wraps with a context.
    ///
    /// # Panics
    /// If it cannot.
    pub fn make_key(&self, name: &str) {
        let kind = json!({ "type": "aes256-gcm96", "derived": true });
        self.admin("POST", &format!("transit/keys/{name}"), &kind);
    }

    /// A private file with a token that has this policy.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn token_file(&self, name: &str, policy: &str) -> PathBuf {
        self.admin(
            "PUT",
            &format!("sys/policies/acl/{name}"),
            &json!({ "policy": policy }),
        );
        let made = self.admin(
            "POST",
            "auth/token/create",
            &json!({ "policies": [name], "ttl": "1h" }),
        );
        let token = made["auth"]["client_token"].as_str().expect("a token");
        self.secret_file(&format!("{name}.token"), token)
    }

    /// A private file.
    ///
    /// # Panics
    /// If it cannot be written.
    #[must_use]
    pub fn secret_file(&self, name: &str, secret: &str) -> PathBuf {
        secret_file(self.directory.path(), name, secret)
    }

    /// Takes its own keys out of its memory: from now on it answers 503.
    pub fn seal(&self) {
        self.admin("PUT", "sys/seal", &json!({}));
    }

    /// Gives it its keys again.
    ///
    /// # Panics
    /// If it does not become ready.
    pub fn unseal(&self) {
        let key = json!({ "key": self.unseal_key });
        let (status, answer) = ask(self.ports.plain, "", "PUT", "sys/unseal", &key);
        assert_eq!(status, 200, "{answer}");
        let ready = (0..1500).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            ask(self.ports.plain, "", "GET", "sys/health", &Value::Null).0 == 200
        });
        assert!(ready, "OpenBao is not ready after it was unsealed");
    }

    /// Kills it as a power cut would.
    ///
    /// # Panics
    /// If it had ended already.
    pub fn kill(&mut self) {
        assert!(self.process.try_wait().expect("its status").is_none());
        self.process.kill().expect("SIGKILL");
        self.process.wait().expect("its end");
    }

    /// Starts it again after [`Self::kill`]; it is sealed then.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn restart(&mut self) {
        self.process = serve(self.directory.path());
        assert!(
            comes_up(&mut self.process, self.ports),
            "OpenBao does not come up again"
        );
    }
}

impl Drop for OpenBao {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.directory.path().join("log"));
            eprintln!("--- OpenBao ---\n{}---", log.unwrap_or_default());
        }
    }
}

/// The program, where tools/install-packages puts it.
fn program() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let cache = cache.or(home).expect("a home directory");
    let program = cache.join("sealvol/openbao-2.7.2/bao");
    assert!(
        program.exists(),
        "{} is not there: run tools/install-packages first, as tools/test does",
        program.display()
    );
    program
}

fn free_ports() -> Ports {
    let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
    let [tls, plain, cluster] =
        listeners.map(|listener| listener.local_addr().expect("its port").port());
    Ports {
        tls,
        plain,
        cluster,
    }
}

fn configure(
    directory: &Path,
    (storage, options): (&str, &str),
    Ports {
        tls,
        plain,
        cluster,
    }: Ports,
) {
    let here = directory.display();
    let text = format!(
        r#"
storage "{storage}" {{
  {options}
}}
listener "tcp" {{
  address = "127.0.0.1:{tls}"
  cluster_address = "127.0.0.1:{cluster}"
  tls_cert_file = "{here}/server.pem"
  tls_key_file = "{here}/server.key"
}}
listener "tcp" {{
  address = "127.0.0.1:{plain}"
  cluster_address = "127.0.0.1:{cluster}"
  tls_disable = true
}}
api_addr = "https://localhost:{tls}"
cluster_addr = "https://127.0.0.1:{cluster}"
"#
    );
    std::fs::write(directory.join("bao.hcl"), text).expect("written");
}

/// Starts the server, to be killed by the kernel should this thread end without its `Drop`.
fn serve(directory: &Path) -> Child {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(directory.join("log"))
        .expect("a log");
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(program())
        .args(["server", "-config=bao.hcl"])
        .env("HOME", directory)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a second descriptor"))
        .stderr(log)
        .spawn()
        .expect("setpriv is installed")
}

/// Whether it answers at all, before it ends.
fn comes_up(process: &mut Child, ports: Ports) -> bool {
    for _ in 0..1500 {
        if process.try_wait().expect("its status").is_some() {
            return false;
        }
        if ask(ports.plain, "", "GET", "sys/health", &Value::Null).0 != 0
            && TcpStream::connect(("127.0.0.1", ports.tls)).is_ok()
        {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

/// Status 0 if there is no answer.
fn ask(port: u16, token: &str, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let token = [("X-Vault-Token", token)];
    plain_http::ask(port, &token, method, &format!("/v1/{path}"), body)
}
