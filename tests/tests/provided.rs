//! Volumes whose data key is given by whoever attaches them: what another key, a half one or none brings about, and that the key
//! is nowhere when they are not attached.

use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use sealvol_tests::daemon::Daemon;
use sealvol_tests::evidence::files_with;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::pattern;
use sealvol_tests::place::Place;
use sealvol_tests::programs::{self, wait_for};
use serde_json::json;

const SIZE: &str = "8M";

struct Fixture {
    place: Place,
    key: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        let place = Place::new();
        let key = place.file("key");
        // Letters, so that it can be searched for as text.
        let bytes = pattern::bytes(7, 64).into_iter();
        let letters: Vec<u8> = bytes.map(|byte| b'a' + byte % 26).collect();
        std::fs::write(&key, letters).expect("written");
        Self { place, key }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.place.file(name);
        std::fs::write(&path, bytes).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    }

    fn key(&self) -> &str {
        self.key.to_str().expect("UTF-8")
    }

    /// Makes `v`, attaches it and writes something, which is given; it stays attached.
    fn volume(&self, daemon: &Daemon<'_>) -> Vec<u8> {
        create(daemon, "v", &["--key-file", self.key()]).succeeded();
        attach(daemon, "v", self.key()).succeeded();
        let mut content = pattern::bytes(1, 1 << 20);
        daemon.write("v", 0, &content);
        content.resize(8 << 20, 0);
        content
    }
}

fn create(daemon: &Daemon<'_>, name: &str, more: &[&str]) -> Outcome {
    let create = [
        "volume",
        "create",
        name,
        "--size",
        SIZE,
        "--key",
        "provided:",
    ];
    daemon.sealvol(&[&create, more].concat())
}

fn attach(daemon: &Daemon<'_>, name: &str, key: &str) -> Outcome {
    daemon.sealvol(&["volume", "attach", name, "--key-file", key])
}

#[test]
fn a_volume_opens_with_the_key_of_its_creation_and_with_no_other_one() {
    let fixture = Fixture::new();
    let daemon = Daemon::start(&fixture.place);
    create(&daemon, "v", &[]).failed_with(2, &["v", "was not", "--key-file"]);
    let content = fixture.volume(&daemon);
    assert_eq!(daemon.content("v"), content);
    let shown = daemon.sealvol(&["volume", "show", "v"]).succeeded();
    assert!(
        shown.stdout.contains("provided: (given at each attach)"),
        "{shown}"
    );
    daemon.detach("v");

    let whole = std::fs::read(&fixture.key).expect("a key");
    let mut other = whole.clone();
    other[63] ^= 1;
    let twice = [&whole[..32], &whole[..32]].concat();
    for (name, bytes, code, words) in [
        ("wrong", &other[..], 3, &["v", "commitment differs"][..]),
        ("short", &whole[..63], 2, &["63 of 64 bytes"]),
        ("empty", &[], 2, &["0 of 64 bytes"]),
        (
            "long",
            &[&whole[..], b"\n"].concat(),
            2,
            &["more than the 64 bytes"],
        ),
        ("equal", &twice, 2, &["halves are equal"]),
    ] {
        let file = fixture.file(name, bytes);
        attach(&daemon, "v", &file).failed_with(code, words);
        if code == 2 {
            create(&daemon, "w", &["--key-file", &file]).failed_with(code, words);
        }
        let served = programs::run("nbdinfo", &["--size", &daemon.uri("v")]);
        assert_ne!(served.code, Some(0), "{name}: it is served");
    }
    daemon
        .sealvol(&["volume", "attach", "v"])
        .failed_with(2, &["v", "was not", "--key-file"]);
    attach(&daemon, "v", "/nonexistent").failed_with(2, &["/nonexistent"]);
    attach(&daemon, "nothing", fixture.key()).failed_with(4, &["nothing"]);
    // One that a key service has the key of takes none.
    daemon.volume("l", "4M");
    daemon.detach("l");
    attach(&daemon, "l", fixture.key()).failed_with(2, &["local:default", "none is to be given"]);

    attach(&daemon, "v", fixture.key()).succeeded();
    assert_eq!(daemon.content("v"), content);
    let records = fixture.place.audit();
    let given: Vec<_> = records
        .iter()
        .filter(|record| record["operation"] == "provided-key")
        .collect();
    assert_eq!(
        given.len(),
        3,
        "one at the creation, one at each attach: {records:?}"
    );
    let refused = |record: &&serde_json::Value| {
        record["operation"] == "attach" && record["result"].to_string().contains("commitment")
    };
    assert_eq!(records.iter().filter(refused).count(), 1, "{records:?}");
}

#[test]
fn a_key_comes_by_a_pipe_or_a_descriptor_and_one_that_never_comes_is_not_waited_for_without_end() {
    let fixture = Fixture::new();
    let daemon = Daemon::start(&fixture.place);
    let shell = |line: &str| {
        let sealvol = programs::ours("sealvol");
        let socket = fixture.place.runtime().join("control.sock");
        let line = line.replace("sealvol", sealvol.to_str().expect("UTF-8"));
        let output = Command::new("sh")
            .args(["-c", &line])
            .env("SEALVOL_CONTROL", socket)
            .env("KEY", &fixture.key)
            .stdin(Stdio::null())
            .output()
            .expect("sh is installed");
        assert!(
            output.status.success() && output.status.signal().is_none(),
            "{line}: {output:?}"
        );
    };
    shell("sealvol volume create v --size 4M --key provided: --key-file - < $KEY");
    shell("cat $KEY | sealvol volume attach v --key-file -");
    daemon.detach("v");
    shell("sealvol volume attach v --key-fd 7 7< $KEY");
    daemon.detach("v");
    shell("(head -c 10 $KEY; sleep 1; tail -c 54 $KEY) | sealvol volume attach v --key-file -");
    daemon.detach("v");
    // 11 s of silence are too long; the daemon goes on.
    shell("! sleep 11 | sealvol volume attach v --key-file -");
    attach(&daemon, "v", fixture.key()).succeeded();
}

#[test]
fn snapshots_work_with_the_key_and_what_would_take_another_one_is_refused() {
    let fixture = Fixture::new();
    let daemon = Daemon::start(&fixture.place);
    let content = fixture.volume(&daemon);
    daemon
        .sealvol(&["snapshot", "create", "v@attached"])
        .succeeded();
    daemon.write("v", 0, &[9; 4096]);
    daemon.detach("v");
    daemon
        .sealvol(&["snapshot", "create", "v@detached"])
        .succeeded();
    daemon
        .sealvol(&["volume", "attach", "v@attached"])
        .failed_with(2, &["v", "was not"]);
    for name in ["v@attached", "v@detached"] {
        attach(&daemon, name, fixture.key()).succeeded();
    }
    assert_eq!(daemon.content("v@attached"), content);
    attach(&daemon, "v", fixture.key()).succeeded();
    daemon.write("v", 0, &[8; 4096]);
    let mut later = content.clone();
    later[..4096].fill(9);
    assert_eq!(daemon.content("v@detached"), later);
    daemon
        .sealvol(&["volume", "resize", "v", "--size", "16M"])
        .succeeded();

    for (command, words) in [
        (
            &["volume", "rekey", "v", "--key", "local:default"][..],
            &["old key and the new"][..],
        ),
        (&["volume", "rekey", "v"], &["old key and the new"]),
        (
            &["key", "rewrap", "v", "--key", "local:default"],
            &["nobody wraps it"],
        ),
        (
            &["volume", "create", "c", "--from-snapshot", "v@detached"],
            &["two"],
        ),
        (
            &[
                "volume",
                "create",
                "c",
                "--from-snapshot",
                "v@detached",
                "--key",
                "local:default",
            ],
            &["two"],
        ),
        (
            &[
                "snapshot",
                "copy",
                "v@detached",
                "c@s",
                "--key",
                "local:default",
            ],
            &["two"],
        ),
        (&["volume", "on-revoke", "v", "enforce"], &["revoke"]),
    ] {
        daemon
            .sealvol(command)
            .failed_with(5, &[&["v", "given at each attach"], words].concat());
    }
    daemon.sealvol(&["key", "rewrap", "--all"]).succeeded();
    // Nor does a volume with a key of a key service come under one that is given.
    daemon.volume("l", "4M");
    daemon.sealvol(&["snapshot", "create", "l@s"]).succeeded();
    for command in [
        &[
            "volume",
            "create",
            "c",
            "--from-snapshot",
            "l@s",
            "--key",
            "provided:",
        ][..],
        &["volume", "rekey", "l", "--key", "provided:"],
        &["key", "rewrap", "l", "--key", "provided:"],
    ] {
        let refused = daemon.sealvol(command);
        assert!(matches!(refused.code, Some(2 | 4)), "{refused}");
        assert!(refused.stderr.contains("provided"), "{refused}");
    }

    for name in ["v@attached", "v@detached", "v"] {
        daemon.detach(name);
    }
    daemon
        .sealvol(&["volume", "delete", "v", "--shred", "--snapshots"])
        .failed_with(5, &["v", "destroy yours"]);
    daemon
        .sealvol(&["snapshot", "delete", "v@attached"])
        .succeeded();
    attach(&daemon, "v", fixture.key()).succeeded();
    wait_for("the merge of what nobody needs", || {
        let layers = &daemon.sealvol_json(&["volume", "show", "v"])["layers"];
        (layers.as_array().expect("layers").len() == 2).then_some(())
    });
    daemon.detach("v");
    daemon
        .sealvol(&["volume", "delete", "v", "--snapshots"])
        .succeeded();
}

#[test]
fn a_start_says_that_the_key_has_to_be_given_and_no_file_log_or_argument_has_it() {
    let fixture = Fixture::new();
    let daemon = Daemon::start(&fixture.place);
    let content = fixture.volume(&daemon);
    daemon.sealvol(&["snapshot", "create", "v@s"]).succeeded();
    daemon.stop();
    let daemon = Daemon::start(&fixture.place);
    wait_for("the volume to be told as not served", || {
        let status = daemon.sealvol_json(&["status"]);
        status["failures"]
            .to_string()
            .contains("--key-file")
            .then_some(())
    });
    let other = fixture.file("other", &pattern::bytes(8, 64));
    attach(&daemon, "v", &other).failed_with(3, &["commitment differs"]);
    attach(&daemon, "v", fixture.key()).succeeded();
    assert_eq!(daemon.content("v"), content);
    assert_eq!(daemon.sealvol_json(&["status"])["failures"], json!([]));
    // Killed, it goes on from what it had acknowledged, as any other.
    daemon.write("v", 4096, &[3; 4096]);
    daemon.kill();
    let daemon = Daemon::start(&fixture.place);
    attach(&daemon, "v", fixture.key()).succeeded();
    let mut content = content;
    content[4096..8192].fill(3);
    assert_eq!(daemon.content("v"), content);
    daemon.detach("v");
    let doctor = daemon.sealvol(&["doctor"]);
    assert!(!doctor.stdout.contains("not configured"), "{doctor}");
    daemon.stop();

    let key = std::fs::read_to_string(&fixture.key).expect("a key");
    let hex: String = key.bytes().map(|byte| format!("{byte:02x}")).collect();
    let places = [
        fixture.place.state(),
        fixture.place.log(),
        fixture.place.runtime(),
    ];
    let places: Vec<_> = places.iter().map(PathBuf::as_path).collect();
    for half in [&key[..32], &key[32..], &hex[..64], &hex[64..]] {
        let found = files_with(half, &places);
        assert!(found.is_empty(), "{found:?}");
    }
    // The search finds what is there.
    assert!(!files_with(&key[..32], &[fixture.place.root()]).is_empty());
}
