//! An Azure Key Vault of our own on loopback, `tests/clients/key_vault.py`: made from the published REST reference, since the real
//! one is not to be had here.
//!
//! It needs nothing of this crate but `certificates` and `plain_http`, so that the tests of other crates can include the files.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::certificates::{certify, secret_file};
use crate::plain_http;

/// Of the directory that knows the applications.
pub const TENANT: &str = "11111111-2222-3333-4444-555555555555";

/// A vault, the authority that gives tokens for it, and a metadata service. They end with the value.
#[derive(Debug)]
pub struct KeyVault {
    directory: TempDir,
    process: Child,
    /// Its end is the server's.
    _stdin: ChildStdin,
    tls: u16,
    plain: u16,
}

impl KeyVault {
    /// Starts them: a third of a second.
    ///
    /// # Panics
    /// If they do not come up.
    #[must_use]
    pub fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        certify(directory.path());
        let script = Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .map(|above| above.join("tests/clients/key_vault.py"))
            .find(|script| script.exists())
            .expect("the server's script");
        let mut process = Command::new("/usr/bin/python3")
            .arg("-B")
            .arg(script)
            .args(["server.pem", "server.key", ADMIN])
            .current_dir(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is installed");
        let stdin = process.stdin.take().expect("a pipe");
        let mut said = String::new();
        BufReader::new(process.stdout.take().expect("a pipe"))
            .read_line(&mut said)
            .expect("a line");
        let ports: Value = serde_json::from_str(&said).expect("the server's ports");
        let port = |name: &str| {
            let port = ports[name].as_u64().expect("a port");
            u16::try_from(port).expect("a port")
        };
        let (tls, plain) = (port("tls"), port("plain"));
        Self {
            directory,
            process,
            _stdin: stdin,
            tls,
            plain,
        }
    }

    /// Where vault and authority are. The certificate is for `localhost` alone.
    #[must_use]
    pub fn address(&self) -> String {
        format!("https://localhost:{}", self.tls)
    }

    /// The port of [`Self::address`].
    #[must_use]
    pub fn tls_port(&self) -> u16 {
        self.tls
    }

    /// Where the metadata service is.
    #[must_use]
    pub fn metadata(&self) -> String {
        format!("http://127.0.0.1:{}", self.plain)
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

    /// Does what an operator does in the portal.
    ///
    /// # Panics
    /// If it is refused.
    #[track_caller]
    pub fn operate(&self, what: &str, body: &Value) -> Value {
        let path = format!("/test/{what}");
        let (status, answer) =
            plain_http::ask(self.plain, &[("X-Admin", ADMIN)], "POST", &path, body);
        assert_eq!(status, 200, "{what}: {answer}");
        answer
    }

    /// Makes a key, or another version of one, and gives the id of the version.
    ///
    /// # Panics
    /// If it cannot.
    pub fn make_key(&self, name: &str) -> String {
        let made = self.operate("create", &json!({ "key": name }));
        made["key"]["kid"].as_str().expect("an id").to_owned()
    }

    /// An application with these permissions; a private file with its secret.
    #[must_use]
    pub fn application(&self, client_id: &str, permissions: &[&str]) -> PathBuf {
        let secret = format!("~secret of+{client_id}&=%");
        let secret = secret.replace(' ', "-");
        let known = json!({ "client-id": client_id, "secret": secret, "tenant": TENANT });
        self.operate("application", &known);
        self.permit(client_id, permissions);
        secret_file(self.directory.path(), client_id, &secret)
    }

    /// Gives an identity these permissions, and takes all others from it.
    pub fn permit(&self, client_id: &str, permissions: &[&str]) {
        let body = json!({ "client-id": client_id, "permissions": permissions });
        self.operate("permissions", &body);
    }

    /// Kills it as a power cut would; nobody answers from here on.
    ///
    /// # Panics
    /// If it does not go away.
    pub fn kill(&self) {
        let process = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(process, rustix::process::Signal::KILL).expect("SIGKILL");
        let gone = (0..500).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            std::net::TcpStream::connect(("127.0.0.1", self.tls)).is_err()
        });
        assert!(gone, "the vault goes on");
    }
}

impl Drop for KeyVault {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the test shows to be the operator.
const ADMIN: &str = "test";
