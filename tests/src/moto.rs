//! AWS KMS and IAM as moto keeps them, in memory on loopback, with [`gate`](crate::kms_gate) before it for what moto leaves out.
//!
//! It needs nothing of this crate but the gate, so that the tests of other crates can include both files.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::kms_gate::Gate;

/// The region that it plays.
pub const REGION: &str = "eu-west-1";

/// A service without keys. It ends with the value.
#[derive(Debug)]
pub struct Moto {
    directory: TempDir,
    process: Child,
    port: u16,
    gate: Gate,
}

impl Moto {
    /// Starts one: a second.
    ///
    /// # Panics
    /// If it is not installed, or does not come up.
    #[must_use]
    pub fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        // Another process may take a port before the server does.
        for _ in 0..5 {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let port = listener.local_addr().expect("its port").port();
            drop(listener);
            let mut process = serve(directory.path(), port);
            if comes_up(&mut process, port) {
                let moto = Self {
                    gate: Gate::before(port),
                    directory,
                    process,
                    port,
                };
                moto.check_callers(true);
                return moto;
            }
            let _ = process.kill();
            let _ = process.wait();
        }
        let log = std::fs::read_to_string(directory.path().join("log")).unwrap_or_default();
        panic!("moto does not come up: {log}");
    }

    /// What the service does beside what moto does.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Where moto itself is asked, without what it leaves out.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Makes a symmetric key with an alias and gives its ARN.
    ///
    /// # Panics
    /// If it cannot.
    #[must_use]
    pub fn make_key(&self, alias: &str) -> String {
        let made = self.admin("CreateKey", &json!({ "KeyUsage": "ENCRYPT_DECRYPT" }));
        let text = |field: &str| {
            made["KeyMetadata"][field]
                .as_str()
                .expect("text")
                .to_owned()
        };
        let (id, arn) = (text("KeyId"), text("Arn"));
        let named = json!({ "AliasName": format!("alias/{alias}"), "TargetKeyId": id });
        self.admin("CreateAlias", &named);
        arn
    }

    /// Asks KMS as its administrator.
    ///
    /// # Panics
    /// If it refuses.
    #[track_caller]
    pub fn admin(&self, call: &str, body: &Value) -> Value {
        self.check_callers(false);
        let (status, answer) = self.ask_kms(call, body);
        self.check_callers(true);
        assert_eq!(status, 200, "{call} {body}: {answer}");
        serde_json::from_str(&answer).unwrap_or(Value::Null)
    }

    /// A private file with an access key of a new user that has this policy, as the AWS command line keeps it. The policy's
    /// resources must be `*`: moto looks at actions only.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn credentials(&self, user: &str, policy: &Value) -> PathBuf {
        self.iam(&[("Action", "CreateUser"), ("UserName", user)]);
        let text = policy.to_string();
        self.iam(&[
            ("Action", "PutUserPolicy"),
            ("UserName", user),
            ("PolicyName", "the"),
            ("PolicyDocument", &text),
        ]);
        let made = self.iam(&[("Action", "CreateAccessKey"), ("UserName", user)]);
        let [id, secret] = ["AccessKeyId", "SecretAccessKey"].map(|name| {
            let begin = format!("<{name}>");
            let rest = made.split(&begin).nth(1);
            let text = rest.and_then(|rest| rest.split('<').next());
            text.unwrap_or_else(|| panic!("no {name}: {made}"))
        });
        let path = self.directory.path().join(format!("{user}.credentials"));
        let text =
            format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
        std::fs::write(&path, text).expect("written");
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&path, private).expect("private");
        path
    }

    /// Kills it as a power cut would. What it kept is gone.
    ///
    /// # Panics
    /// If it had ended already.
    pub fn kill(&mut self) {
        assert!(self.process.try_wait().expect("its status").is_none());
        self.process.kill().expect("SIGKILL");
        self.process.wait().expect("its end");
    }

    /// Whether signatures and policies count from now on.
    fn check_callers(&self, whether: bool) {
        let free = if whether { "0" } else { "1000000000" };
        let (status, answer) = ask(self.port, "/moto-api/reset-auth", "", free);
        assert_eq!(status, 200, "{answer}");
    }

    fn ask_kms(&self, call: &str, body: &Value) -> (u16, String) {
        let headers = format!(
            "X-Amz-Target: TrentService.{call}\r\nContent-Type: application/x-amz-json-1.1\r\n{}",
            scope("kms")
        );
        ask(self.gate.port(), "/", &headers, &body.to_string())
    }

    #[track_caller]
    fn iam(&self, form: &[(&str, &str)]) -> String {
        let fields = form
            .iter()
            .map(|(name, value)| format!("{name}={}", encoded(value)));
        let body = fields.collect::<Vec<_>>().join("&") + "&Version=2010-05-08";
        let headers = format!(
            "Content-Type: application/x-www-form-urlencoded\r\n{}",
            scope("iam")
        );
        self.check_callers(false);
        let (status, answer) = ask(self.port, "/", &headers, &body);
        self.check_callers(true);
        assert_eq!(status, 200, "{form:?}: {answer}");
        answer
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.directory.path().join("log"));
            eprintln!("--- moto ---\n{}---", log.unwrap_or_default());
        }
    }
}

/// By which moto knows the service and the region that are asked.
fn scope(service: &str) -> String {
    format!(
        "Authorization: AWS4-HMAC-SHA256 Credential=administrator/20260101/{REGION}/{service}/aws4_request, \
         SignedHeaders=host, Signature=0\r\n"
    )
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// Its interpreter, where tools/install-packages puts it.
fn program() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let cache = cache.or(home).expect("a home directory");
    let program = cache.join("sealvol/moto-5.2.5/bin/python");
    assert!(
        program.exists(),
        "{} is not there: run tools/install-packages first, as tools/test does",
        program.display()
    );
    program
}

/// Starts the server, to be killed by the kernel should this thread end without its `Drop`.
fn serve(directory: &Path, port: u16) -> Child {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(directory.join("log"))
        .expect("a log");
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(program())
        .args([
            "-m",
            "moto.server",
            "-H",
            "127.0.0.1",
            "-p",
            &port.to_string(),
        ])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", directory)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a second descriptor"))
        .stderr(log)
        .spawn()
        .expect("setpriv is installed")
}

/// Whether it answers, before it ends.
fn comes_up(process: &mut Child, port: u16) -> bool {
    for _ in 0..3000 {
        if process.try_wait().expect("its status").is_some() {
            return false;
        }
        if ask(port, "/moto-api/reset-auth", "", "0").0 == 200 {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

/// One question over a connection of its own, as HTTP/1.0: the answer ends with the connection. Status 0 if there is none.
fn ask(port: u16, path: &str, headers: &str, body: &str) -> (u16, String) {
    let question = format!(
        "POST {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let exchange = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.write_all(question.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().unwrap_or_default();
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status.unwrap_or(0), body.to_owned())
}
