//! Ephemeral volumes: empty with each attach, whatever is left on the disk; no key service, no wrapped key; and what they hold is
//! never lost without somebody having been told.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use sealvol_tests::daemon::Daemon;
use sealvol_tests::pattern;
use sealvol_tests::place::Place;
use sealvol_tests::programs::wait_for;
use sealvol_tests::superblock::{SLOTS, read_slot};
use serde_json::Value;

const SIZE: usize = 8 << 20;

fn show(daemon: &Daemon<'_>, name: &str) -> Value {
    daemon.sealvol_json(&["volume", "show", name])
}

fn create(daemon: &Daemon<'_>, name: &str) {
    daemon
        .sealvol(&["volume", "create", name, "--size", "8M", "--ephemeral"])
        .succeeded();
}

/// The directory of the volume's one layer.
fn layer(place: &Place, volume: &Value) -> PathBuf {
    assert_eq!(volume["depth"], 1);
    let id = volume["layers"][0]["id"].as_str().expect("an id");
    place.state().join("layers").join(id)
}

/// The first MiB of a layer's ciphertext.
fn ciphertext(layer: &Path) -> Vec<u8> {
    let mut start = vec![0; 1 << 20];
    let file = File::open(layer.join("data")).expect("its data");
    file.read_exact_at(&mut start, 0).expect("read");
    start
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[test]
fn each_attach_begins_empty_under_a_key_that_no_service_and_no_disk_has() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    create(&daemon, "e");
    let shown = show(&daemon, "e");
    assert_eq!(
        (&shown["key"], &shown["ephemeral"]),
        (&"none".into(), &true.into())
    );
    for arguments in [&["volume", "show", "e"][..], &["volume", "list"]] {
        let text = daemon.sealvol(arguments).succeeded().stdout;
        assert!(text.contains("none (ephemeral)"), "{text}");
    }
    // No key service is needed.
    std::fs::rename(place.state().join("keys"), place.file("away")).expect("moved");

    let content = pattern::bytes(1, 1 << 20);
    let mut seen: Vec<(String, String, Vec<u8>)> = Vec::new();
    for round in 0..3 {
        daemon.attach("e");
        assert!(daemon.content("e") == vec![0; SIZE], "round {round}");
        let map = daemon.sealvol_json(&["volume", "map", "e"]);
        assert_eq!(map["runs"][0]["state"], "absent");
        assert_eq!(map["runs"].as_array().map(Vec::len), Some(1));
        daemon.write("e", 0, &content);
        assert!(daemon.content("e")[..1 << 20] == content, "while attached");
        let e = show(&daemon, "e");
        let directory = layer(&place, &e);
        for slot in SLOTS {
            let slot = read_slot(&directory.join("meta"), slot);
            assert_eq!(number(&slot, 12) & 8, 8, "it says that it is ephemeral");
            assert_eq!(number(&slot, 136), 0, "no wrapped key");
            assert_ne!(slot[160..192], [0; 32], "bound to its key by a MAC");
        }
        let of_layer = |field: &str| e["layers"][0][field].as_str().expect("an id").to_owned();
        let (id, key, data) = (of_layer("id"), of_layer("data_key"), ciphertext(&directory));
        for (earlier_id, earlier_key, earlier_data) in &seen {
            assert!(id != *earlier_id && key != *earlier_key);
            let same = data.chunks(16).zip(earlier_data.chunks(16));
            assert_eq!(same.filter(|(one, other)| one == other).count(), 0);
            assert!(!place.state().join("layers").join(earlier_id).exists());
        }
        assert_ne!(data, content);
        seen.push((id, key, data));
        daemon.detach("e");
        assert!(!directory.exists(), "its space is free");
    }
    let id = &show(&daemon, "e")["id"];
    let mut records = place.audit();
    records.retain(|record| record["volume"] == *id);
    let count = |operation: &str| {
        let of = records.iter().filter(|r| r["operation"] == operation);
        of.count()
    };
    assert_eq!((count("ephemeral-key"), count("discard-ephemeral")), (3, 3));
    assert_eq!(
        records.len(),
        6,
        "and nothing of a key service: {records:?}"
    );
    daemon
        .sealvol(&["volume", "delete", "e", "--shred"])
        .succeeded();
    assert!(place.layer_files("data").is_empty());
    daemon.stop();
}

#[test]
fn after_a_kill_nothing_of_it_can_be_reached_even_by_its_own_files() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    create(&daemon, "e");
    daemon.attach("e");
    let content = pattern::bytes(2, 1 << 20);
    daemon.write("e", 0, &content);
    let old = layer(&place, &show(&daemon, "e"));
    daemon.kill();
    let kept = ["meta", "data"].map(|name| (name, std::fs::read(old.join(name)).expect("a file")));
    let daemon = Daemon::start(&place);
    let e = show(&daemon, "e");
    assert_eq!(e["state"], "available", "it is not attached by itself: {e}");
    let status = daemon.sealvol_json(&["status"]);
    let failure = status["failures"].to_string();
    assert!(failure.contains("what it held is gone"), "{failure}");
    assert!(!old.exists(), "nor are its files there");
    // Put back, as its present layer and under its old name.
    for directory in [&layer(&place, &e), &old] {
        std::fs::create_dir_all(directory).expect("a directory");
        for (name, bytes) in &kept {
            std::fs::write(directory.join(name), bytes).expect("put back");
        }
    }
    daemon.attach("e");
    assert!(daemon.content("e") == vec![0; SIZE], "no old block");
    assert_eq!(
        daemon.sealvol_json(&["status"])["failures"],
        serde_json::json!([])
    );
    // And what is put under a block that is written is opened by the new key, to noise.
    daemon.write("e", 0, &vec![7; 1 << 20]);
    daemon.sealvol(&["volume", "detach", "e"]).succeeded();
    daemon.attach("e");
    daemon.write("e", 0, &vec![7; 1 << 20]);
    let data = layer(&place, &show(&daemon, "e")).join("data");
    let file = File::options().write(true).open(data).expect("its data");
    file.write_all_at(&kept[1].1[..1 << 20], 0)
        .expect("replaced");
    let read = daemon.content("e");
    let blocks = read[..1 << 20].chunks(16).zip(content.chunks(16));
    assert_eq!(blocks.filter(|(one, other)| one == other).count(), 0);
    // An adopted layer would need the key, too.
    daemon.detach("e");
    let adopted = daemon.sealvol(&[
        "volume",
        "adopt",
        "x",
        "--layer-dir",
        old.to_str().expect("UTF-8"),
        "--key",
        "local:default",
    ]);
    adopted.failed_with(3, &["ephemeral"]);
    daemon.stop();
}

#[test]
fn a_stop_that_would_lose_what_one_holds_is_refused_unless_told_so() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    for name in ["e", "f", "idle"] {
        create(&daemon, name);
    }
    daemon.volume("v", "8M");
    daemon.write("v", 0, &[5; 4096]);
    for name in ["e", "f"] {
        daemon.attach(name);
    }
    let status = daemon.sealvol_json(&["status"]);
    assert_eq!(status["ephemeral"], serde_json::json!(["e", "f"]));
    let text = daemon.sealvol(&["status"]).succeeded().stdout;
    assert!(text.contains("e, f"), "{text}");
    daemon
        .sealvol(&["stop"])
        .failed_with(5, &["e, f", "--drop-ephemeral"]);
    daemon.write("e", 0, &[1; 4096]);
    assert!(daemon.content("e")[..4096] == [1; 4096], "it goes on");
    daemon.detach("f");
    daemon.sealvol(&["stop"]).failed_with(5, &["gone: e."]);
    let stopping = daemon.sealvol_json(&["stop", "--drop-ephemeral"]);
    assert_eq!(stopping["dropped"], serde_json::json!(["e"]));
    daemon.ended();

    let daemon = Daemon::start(&place);
    wait_for("the other volume", || {
        (show(&daemon, "v")["state"] == "attached").then_some(())
    });
    assert!(daemon.content("v")[..4096] == [5; 4096]);
    assert_eq!(show(&daemon, "e")["state"], "available");
    daemon.attach("e");
    assert!(daemon.content("e") == vec![0; SIZE]);
    // A signal can't be refused: the log and the audit log tell.
    daemon.stop();
    let log = std::fs::read_to_string(place.log().join("sealvold.1.log")).expect("its log");
    assert!(log.contains("what it held is gone"), "{log}");
    let told = place.audit().into_iter().any(|record| {
        record["operation"] == "discard-ephemeral"
            && record["name"] == "e"
            && record["result"].to_string().contains("the daemon stopped")
    });
    assert!(told);
    let daemon = Daemon::start(&place);
    daemon.sealvol(&["stop"]).succeeded();
    daemon.ended();
}

#[test]
fn what_would_outlive_its_key_is_refused() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let bad = |more: &[&str], words: &[&str]| {
        let create = ["volume", "create", "x", "--size", "8M", "--ephemeral"];
        daemon
            .sealvol(&[&create, more].concat())
            .failed_with(2, words);
    };
    bad(&["--key", "local:default"], &["--key"]);
    bad(&["--from-snapshot", "v@s"], &["--from-snapshot"]);
    create(&daemon, "e");
    for attached in [false, true] {
        if attached {
            daemon.attach("e");
        }
        for arguments in [
            &["snapshot", "create", "e@s"][..],
            &["volume", "rekey", "e"],
            &["volume", "flatten", "e", "--materialise"],
            &["key", "rewrap", "e"],
        ] {
            daemon
                .sealvol(arguments)
                .failed_with(5, &["volume e", "ephemeral"]);
        }
    }
    daemon
        .sealvol(&["volume", "create", "c", "--from-snapshot", "e@s"])
        .failed_with(4, &["e@s"]);
    daemon.sealvol(&["key", "rewrap", "--all"]).succeeded();
    let doctor = daemon.sealvol(&["doctor"]);
    assert!(!doctor.stdout.contains("not configured"), "{doctor}");
    // It can be made larger, while it is attached and while not.
    daemon.write("e", (8 << 20) - 4096, &[3; 4096]);
    daemon
        .sealvol(&["volume", "resize", "e", "--size", "12M"])
        .succeeded();
    daemon.write("e", (12 << 20) - 4096, &[4; 4096]);
    let content = daemon.content("e");
    assert_eq!(content.len(), 12 << 20);
    assert!(content[(8 << 20) - 4096..8 << 20] == [3; 4096]);
    daemon.detach("e");
    daemon
        .sealvol(&["volume", "attach", "e", "--read-only"])
        .failed_with(5, &["volume e", "ephemeral"]);
    daemon
        .sealvol(&["volume", "resize", "e", "--size", "16M"])
        .succeeded();
    daemon.attach("e");
    assert!(daemon.content("e") == vec![0; 16 << 20]);
    daemon.stop();
}
