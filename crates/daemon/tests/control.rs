//! `sealvold` as a process, asked over its control socket. There is no key child beside the test's
//! daemon, so this is about everything that comes before a key is used.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sealvol_control::api::{self, ErrorKind};
use sealvol_control::client::{Client, ClientError};

/// A daemon in a folder of its own; killed when dropped.
struct Daemon {
    folder: tempfile::TempDir,
    child: Child,
}

impl Daemon {
    fn start() -> Self {
        Self::start_with("key-child = \"/nonexistent/sealvol-keys\"\n")
    }

    fn start_with(config: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("sealvold.toml"), config).expect("written");
        let log = std::fs::File::create(folder.path().join("log")).expect("made");
        let child = command(folder.path()).stderr(log).spawn().expect("started");
        let daemon = Self { folder, child };
        let since = Instant::now();
        while UnixStream::connect(daemon.path("run/nbd.sock")).is_err() {
            assert!(
                since.elapsed() < Duration::from_secs(20),
                "{}",
                daemon.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        daemon
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn client(&self) -> Client {
        Client::new(self.path("run/control.sock"))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Sends `request` as it is, and gives the whole answer.
    fn raw(&self, request: &str) -> String {
        let mut socket = UnixStream::connect(self.path("run/control.sock")).expect("connected");
        // The daemon may answer, and close, before it has read all of it.
        let _ = socket.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealvold"));
    command
        .arg("--config")
        .arg(folder.join("sealvold.toml"))
        .arg("--state-dir")
        .arg(folder.join("state"))
        .arg("--runtime-dir")
        .arg(folder.join("run"))
        .stdin(Stdio::null());
    command
}

/// Runs a daemon that is not to come up.
fn refused(command: &mut Command) -> Output {
    let mut child = command
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let since = Instant::now();
    while child.try_wait().expect("its state").is_none() {
        if since.elapsed() > Duration::from_secs(20) {
            let _ = child.kill();
            panic!("the daemon came up");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().expect("its output")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn kind(error: &ClientError) -> ErrorKind {
    error.kind()
}

#[tokio::test]
async fn status_tells_protection_and_what_waits_for_the_operator() {
    let daemon = Daemon::start();
    let status = daemon.client().status().await.expect("answered");
    assert_eq!(status.pid, daemon.child.id());
    assert_eq!(status.state, "ready");
    assert!(status.selftest.passed && !status.selftest.tests.is_empty());
    assert!(["secretmem", "mlock"].contains(&status.key_memory.protection.as_str()));
    assert_eq!(status.key_memory.keys, 0);
    let failure = status.failures.first().expect("the key child is missing");
    assert_eq!(failure.subject, "local");
    assert!(
        failure.message.contains("/nonexistent/sealvol-keys"),
        "{}",
        failure.message
    );
    assert!(daemon.client().selftest().await.expect("answered").passed);
}

#[tokio::test]
async fn a_creation_that_fails_leaves_nothing() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let request = api::CreateVolume {
        name: "v".parse().expect("a name"),
        size: Some(1 << 20),
        key: None,
        key_set: None,
        sector_size: None,
        backing: None,
        layers_dir: None,
        from_snapshot: None,
        fresh_key: None,
        ephemeral: false,
    };
    for _ in 0..2 {
        let error = client
            .create_volume(&request)
            .await
            .expect_err("no key child");
        assert_eq!(kind(&error), ErrorKind::Failed, "{error}");
    }
    assert!(client.volumes().await.expect("answered").volumes.is_empty());
    let layers = std::fs::read_dir(daemon.path("state/layers"))
        .expect("there")
        .count();
    assert_eq!(layers, 0);
    let audit = std::fs::read_to_string(daemon.path("state/audit.log")).expect("there");
    let tried = audit
        .lines()
        .filter(|line| line.contains(r#""operation":"generate""#))
        .count();
    assert_eq!(
        tried, 2,
        "each use of a key that was tried is recorded: {audit}"
    );
}

#[tokio::test]
async fn requests_are_refused_before_a_key_is_used() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let good = api::CreateVolume {
        name: "v".parse().expect("a name"),
        size: Some(1 << 20),
        key: None,
        key_set: None,
        sector_size: None,
        backing: None,
        layers_dir: None,
        from_snapshot: None,
        fresh_key: None,
        ephemeral: false,
    };
    let key = |text: &str| Some(text.to_owned());
    for (request, expected) in [
        (
            api::CreateVolume {
                size: Some(4097),
                ..good.clone()
            },
            ErrorKind::Usage,
        ),
        (
            api::CreateVolume {
                size: None,
                ..good.clone()
            },
            ErrorKind::Usage,
        ),
        (
            api::CreateVolume {
                from_snapshot: "none@s".parse().ok(),
                fresh_key: None,
                ..good.clone()
            },
            ErrorKind::NotFound,
        ),
        (
            api::CreateVolume {
                size: Some(0),
                ..good.clone()
            },
            ErrorKind::Usage,
        ),
        (
            api::CreateVolume {
                size: Some(1 << 60),
                ..good.clone()
            },
            ErrorKind::Usage,
        ),
        (
            api::CreateVolume {
                sector_size: Some(1024),
                ..good.clone()
            },
            ErrorKind::Usage,
        ),
        (
            api::CreateVolume {
                key: key("nocolon"),
                ..good.clone()
            },
            ErrorKind::Usage,
        ),
        (
            api::CreateVolume {
                key: key("aws:k"),
                ..good.clone()
            },
            ErrorKind::NotFound,
        ),
        (
            api::CreateVolume {
                backing: Some("/dev/null".into()),
                ..good.clone()
            },
            ErrorKind::Usage,
        ),
    ] {
        let error = client.create_volume(&request).await.expect_err("refused");
        assert_eq!(kind(&error), expected, "{request:?}: {error}");
    }
    let name = good.name;
    let unknown = [
        client.volume(&name).await.expect_err("unknown"),
        client.volume_map(&name).await.expect_err("unknown"),
        client
            .attach_volume(&name, &api::AttachVolume::default())
            .await
            .expect_err("unknown"),
        client
            .detach_volume(&name, &api::DetachVolume::default())
            .await
            .expect_err("unknown"),
        client
            .delete_volume(&name, &api::DeleteVolume::default())
            .await
            .expect_err("unknown"),
        client
            .resize_volume(&name, &api::ResizeVolume { size: 8192 })
            .await
            .expect_err("unknown"),
    ];
    for error in unknown {
        assert_eq!(kind(&error), ErrorKind::NotFound, "{error}");
    }
    let audit = std::fs::read_to_string(daemon.path("state/audit.log")).unwrap_or_default();
    assert!(
        !audit.contains("generate") && !audit.contains("unwrap"),
        "{audit}"
    );
}

#[test]
fn what_curl_would_get_is_json_with_a_kind() {
    let daemon = Daemon::start();
    let get = |path: &str| daemon.raw(&format!("GET {path} HTTP/1.0\r\n\r\n"));
    assert!(get("/v1/volumes").starts_with("HTTP/1.0 200 OK\r\n"));
    assert!(get("/v1/volumes").ends_with(r#"{"volumes":[]}"#));
    let missing = get("/v1/nothing");
    assert!(missing.starts_with("HTTP/1.0 404 "), "{missing}");
    assert!(
        missing.contains(r#"{"error":{"kind":"not-found""#),
        "{missing}"
    );
    let body = r#"{"name":"v","size":4096,"shape":"round"}"#;
    let length = body.len();
    let odd = daemon.raw(&format!(
        "POST /v1/volumes HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}"
    ));
    assert!(
        odd.starts_with("HTTP/1.0 400 ") && odd.contains("shape"),
        "{odd}"
    );
}

#[test]
fn what_is_read_of_a_request_is_bounded() {
    let daemon = Daemon::start();
    let long = "x".repeat(api::BODY_BYTES_MAX + 1);
    let length = long.len();
    let answer = daemon.raw(&format!(
        "POST /v1/volumes HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{long}"
    ));
    assert!(answer.starts_with("HTTP/1.0 400 "), "{answer}");
    let answer = daemon.raw(&format!("GET /v1/status HTTP/1.0\r\nX: {long}\r\n\r\n"));
    assert!(!answer.contains(" 200 "), "{answer}");
    assert!(
        daemon
            .raw("GET /v1/status HTTP/1.0\r\n\r\n")
            .contains(" 200 "),
        "and it lives on"
    );
}

#[tokio::test]
async fn whoever_holds_no_right_learns_nothing() {
    let strangers = "key-child = \"/nonexistent/sealvol-keys\"\n[rights]\ncreate = { uids = [4294967294] }\n\
                     attach = { uids = [4294967294] }\nadminister = { uids = [4294967294] }\n";
    let daemon = Daemon::start_with(strangers);
    let client = daemon.client();
    let name = "v".parse().expect("a name");
    let errors = [
        client.status().await.expect_err("a stranger"),
        client.volumes().await.expect_err("a stranger"),
        client.volume(&name).await.expect_err("a stranger"),
    ];
    for error in errors {
        assert_eq!(kind(&error), ErrorKind::Refused);
        assert!(error.to_string().contains("holds no right"), "{error}");
    }
    assert!(
        daemon
            .raw("GET /v1/nothing HTTP/1.0\r\n\r\n")
            .contains(" 403 ")
    );
}

#[tokio::test]
async fn each_right_opens_its_own_calls_only() {
    let uid = rustix::process::geteuid().as_raw();
    let config = format!(
        "key-child = \"/nonexistent/sealvol-keys\"\n[rights]\ncreate = {{ uids = [4294967294] }}\n\
         attach = {{ uids = [{uid}] }}\nadminister = {{ uids = [4294967294] }}\n"
    );
    let daemon = Daemon::start_with(&config);
    let client = daemon.client();
    client
        .volumes()
        .await
        .expect("whoever holds a right may look");
    let name: api::VolumeName = "v".parse().expect("a name");
    let create = api::CreateVolume {
        name: name.clone(),
        size: Some(4096),
        key: None,
        key_set: None,
        sector_size: None,
        backing: None,
        layers_dir: None,
        from_snapshot: None,
        fresh_key: None,
        ephemeral: false,
    };
    let refused = [
        client.create_volume(&create).await.expect_err("create"),
        client
            .delete_volume(&name, &api::DeleteVolume::default())
            .await
            .expect_err("administer"),
        client
            .resize_volume(&name, &api::ResizeVolume { size: 4096 })
            .await
            .expect_err("administer"),
        client
            .create_key(&api::CreateKey {
                key: "local:k".into(),
                origin: sealvol_control::keychild::Origin::Local,
            })
            .await
            .expect_err("administer"),
        client.selftest().await.expect_err("administer"),
    ];
    for error in refused {
        assert_eq!(kind(&error), ErrorKind::Refused, "{error}");
        assert!(
            error.to_string().contains("does not hold the right"),
            "{error}"
        );
    }
    let attach = client
        .attach_volume(&name, &api::AttachVolume::default())
        .await;
    assert_eq!(
        kind(&attach.expect_err("there is none")),
        ErrorKind::NotFound
    );
}

#[test]
fn a_stop_ends_well_and_leaves_no_socket() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = Daemon::start();
        let run = daemon.path("run");
        assert_eq!(
            std::fs::metadata(&run).expect("there").mode() & 0o7777,
            0o750
        );
        kill_process(Pid::from_child(&daemon.child), signal).expect("signalled");
        assert_eq!(
            daemon.child.wait().expect("ended").code(),
            Some(0),
            "{}",
            daemon.log()
        );
        assert!(!run.join("control.sock").exists() && !run.join("nbd.sock").exists());
        let log = std::fs::metadata(daemon.path("state/registry.db-wal"));
        assert_eq!(
            log.map_or(0, |log| log.len()),
            0,
            "the registry is one file"
        );
    }
}

#[test]
fn a_second_daemon_on_the_state_directory_is_refused() {
    let daemon = Daemon::start();
    let mut second = Command::new(env!("CARGO_BIN_EXE_sealvold"));
    second
        .arg("--state-dir")
        .arg(daemon.path("state"))
        .arg("--runtime-dir")
        .arg(daemon.path("run2"));
    let output = refused(&mut second);
    assert_eq!(output.status.code(), Some(5), "{}", said(&output));
    assert!(
        said(&output).contains(&format!("pid {}", daemon.child.id())),
        "{}",
        said(&output)
    );
    assert!(!daemon.path("run2").exists(), "nothing was made");
}

#[test]
fn a_second_daemon_on_the_sockets_is_refused() {
    let daemon = Daemon::start();
    let mut second = Command::new(env!("CARGO_BIN_EXE_sealvold"));
    second
        .arg("--state-dir")
        .arg(daemon.path("state2"))
        .arg("--runtime-dir")
        .arg(daemon.path("run"));
    let output = refused(&mut second);
    assert_eq!(output.status.code(), Some(5), "{}", said(&output));
    assert!(
        daemon
            .raw("GET /v1/status HTTP/1.0\r\n\r\n")
            .contains(" 200 "),
        "the first lives on"
    );
}

#[test]
fn what_cannot_be_trusted_stops_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("sealvold.toml");
    std::fs::write(&config, "").expect("written");
    std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o666)).expect("set");
    let output = refused(&mut command(folder.path()));
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(
        said(&output).contains("others may write it"),
        "{}",
        said(&output)
    );

    std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o600)).expect("set");
    let state = folder.path().join("state");
    std::fs::create_dir(&state).expect("made");
    std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o777)).expect("set");
    let output = refused(&mut command(folder.path()));
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));

    let mut tcp = command(folder.path());
    std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o700)).expect("set");
    let output = refused(tcp.arg("--listen").arg("nbd://127.0.0.1:0"));
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(
        said(&output).contains("--insecure-plaintext-tcp"),
        "{}",
        said(&output)
    );
}

#[test]
fn a_damaged_registry_stops_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("sealvold.toml"), "").expect("written");
    let state = folder.path().join("state");
    std::fs::create_dir(&state).expect("made");
    std::fs::write(state.join("registry.db"), [0x5a; 8192]).expect("written");
    let output = refused(&mut command(folder.path()));
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("registry"), "{}", said(&output));
}
