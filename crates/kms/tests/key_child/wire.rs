//! The child against a caller that is no daemon: whatever comes in, it ends with one clear line.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use sealvol_control::keychild::{Call, PROTOCOL_VERSION, Right, frame};

use crate::place::{Place, context, generate, program, unwrap};

struct Raw {
    child: Child,
    messages: UnixStream,
    keys: UnixStream,
}

fn start() -> Raw {
    start_as(None)
}

fn start_as(user: Option<u32>) -> Raw {
    let (messages, childs_messages) = UnixStream::pair().unwrap();
    let (keys, childs_keys) = UnixStream::pair().unwrap();
    let mut command = Command::new(program());
    command
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(childs_messages)))
        .stdout(Stdio::from(OwnedFd::from(childs_keys)))
        .stderr(Stdio::piped());
    if let Some(user) = user {
        command.uid(user);
    }
    Raw {
        child: command.spawn().unwrap(),
        messages,
        keys,
    }
}

/// What the child says when it gets these bytes and then the end.
fn said_to(bytes: &[u8]) -> String {
    let mut raw = start();
    // The child may refuse, and go, before it has read all.
    let _ = raw.messages.write_all(bytes);
    raw.messages.shutdown(Shutdown::Write).unwrap();
    let mut keys = Vec::new();
    raw.keys.read_to_end(&mut keys).unwrap();
    let Output { status, stderr, .. } = raw.child.wait_with_output().unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(
        said.starts_with("sealvol-keys: ") && said.trim().lines().count() == 1,
        "{said}"
    );
    assert!(!said.contains("panicked"), "{said}");
    assert!(keys.is_empty(), "no key goes out");
    said
}

fn header(version: u32, length: u32) -> Vec<u8> {
    [version.to_be_bytes(), length.to_be_bytes()].concat()
}

#[test]
fn a_batch_cut_off_anywhere_is_refused() {
    let batch = Place::empty().batch(Right::Attach, vec![Call::ListKeys]);
    let whole = frame::encode(&batch).unwrap();
    for length in [0, 1, 7, 8, 9, whole.len() - 1] {
        let said = said_to(&whole[..length]);
        assert!(said.contains("ends early"), "{length} bytes: {said}");
    }
}

#[test]
fn an_oversized_batch_is_refused_by_its_length_alone() {
    for length in [(1 << 20) + 1, u32::MAX] {
        let said = said_to(&header(PROTOCOL_VERSION, length));
        assert!(said.contains("at most 1048576"), "{said}");
    }
}

#[test]
fn another_version_is_refused_by_name() {
    let said = said_to(&header(PROTOCOL_VERSION + 1, 2));
    assert!(
        said.contains(&format!("version {}", PROTOCOL_VERSION + 1)),
        "{said}"
    );
}

#[test]
fn garbage_is_refused() {
    let nested = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
    let wrong_type =
        br#"{"right":"attach","provider":{"name":"local","service":{"type":"none"}},"calls":[]}"#;
    for json in [&b""[..], b"{}", b"null", &[0xff; 64], &nested, wrong_type] {
        let length = u32::try_from(json.len()).unwrap();
        let said = said_to(&[header(PROTOCOL_VERSION, length), json.to_vec()].concat());
        assert!(said.contains("not understood"), "{said}");
    }
}

#[test]
fn a_wrapped_key_that_is_no_base64_is_refused_without_being_repeated() {
    let batch = Place::empty().batch(Right::Attach, vec![unwrap("k", b"wrapped", &context("1"))]);
    let json = serde_json::to_string(&batch)
        .unwrap()
        .replace("d3JhcHBlZA==", "not*base64");
    let frame = [
        header(PROTOCOL_VERSION, u32::try_from(json.len()).unwrap()),
        json.into(),
    ]
    .concat();
    let said = said_to(&frame);
    assert!(
        said.contains("not Base64") && !said.contains("not*base64"),
        "{said}"
    );
}

#[test]
fn too_many_calls_are_refused() {
    let batch = Place::empty().batch(Right::Attach, vec![Call::ListKeys; 65]);
    let said = said_to(&frame::encode(&batch).unwrap());
    assert!(said.contains("at most 64"), "{said}");
}

#[test]
fn started_by_hand_it_says_what_it_is() {
    for stdin in [Stdio::null(), Stdio::piped()] {
        let output = Command::new(program()).stdin(stdin).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(
            said.contains("started by sealvold") && said.contains("not for use by hand"),
            "{said}"
        );
        assert!(output.stdout.is_empty());
    }
}

/// A child at work on a batch that the locked database keeps it from ending.
async fn stuck(place: &Place) -> (Raw, rusqlite::Connection) {
    let connection = rusqlite::Connection::open(place.database()).unwrap();
    connection.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let mut raw = start();
    let batch = place.batch(Right::Create, vec![generate("default", &context("1"))]);
    raw.messages
        .write_all(&frame::encode(&batch).unwrap())
        .unwrap();
    wait_until_confined(&raw.child);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(
        raw.child.try_wait().unwrap(),
        None,
        "it waits for the database"
    );
    (raw, connection)
}

/// What the child does last before it reads its batch can be seen from outside.
fn wait_until_confined(child: &Child) {
    let patience = Instant::now();
    while !read_proc(child, "status").contains("NoNewPrivs:\t1\n") {
        assert!(
            patience.elapsed() < Duration::from_secs(10),
            "{}",
            read_proc(child, "status")
        );
        thread::sleep(Duration::from_millis(1));
    }
}

fn proc(child: &Child) -> PathBuf {
    Path::new("/proc").join(child.id().to_string())
}

fn read_proc(child: &Child, file: &str) -> String {
    fs::read_to_string(proc(child).join(file)).unwrap()
}

#[test]
fn the_child_leaves_no_core_and_cannot_be_traced_by_its_user() {
    // Only a user that is not root can be told from the owner of what is not dumpable: root.
    let user = match rustix::process::geteuid().as_raw() {
        0 => 65534,
        user => user,
    };
    let mut raw = start_as(Some(user));
    wait_until_confined(&raw.child);
    let limits = read_proc(&raw.child, "limits");
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(
        core.split_whitespace().collect::<Vec<_>>()[4..6],
        ["0", "0"],
        "{core}"
    );
    let status = read_proc(&raw.child, "status");
    assert!(
        status.contains(&format!("Uid:\t{user}\t")),
        "it runs as that user: {status}"
    );
    assert_eq!(
        proc(&raw.child).join("mem").metadata().unwrap().uid(),
        0,
        "it is not dumpable"
    );
    raw.child.kill().unwrap();
    raw.child.wait().unwrap();
}

#[tokio::test]
async fn when_the_daemon_goes_away_the_child_ends_at_once() {
    let place = Place::with_default_key().await;
    let (mut raw, _lock) = stuck(&place).await;
    drop((raw.messages, raw.keys));
    let gone = Instant::now();
    let status = raw.child.wait().unwrap();
    assert!(
        gone.elapsed() < Duration::from_secs(3),
        "it does not wait for the database any more"
    );
    assert_eq!(status.code(), Some(1));
}
