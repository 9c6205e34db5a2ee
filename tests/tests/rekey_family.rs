//! `volume rekey --with-snapshots`: a whole family under another key, each layer as it was; and then the old key opens nothing.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use sealvol_tests::daemon::Daemon;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::pattern;
use sealvol_tests::place::Place;
use sealvol_tests::programs::{check, client, wait_for};
use serde_json::Value;

const NAMES: [&str; 3] = ["v@a", "v@b", "v@c"];

fn path(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

fn show(daemon: &Daemon<'_>, name: &str) -> Value {
    daemon.sealvol_json(&["volume", "show", name])
}

/// The plain data key of the volume's one layer, by the tool that knows only the formats.
fn plain_key(place: &Place) -> PathBuf {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/plain-key");
    let (keys, out) = (place.state().join("keys"), place.file("old.key"));
    let mut command = client("/usr/bin/python3");
    command.arg(tool).arg("--with-holes");
    for (option, path) in [
        ("--meta", place.layer_files("meta").remove(0)),
        ("--database", keys.join("local.db")),
        ("--master-key-file", keys.join("local.master")),
        ("--out", out.clone()),
    ] {
        command.arg(option).arg(path);
    }
    Outcome::of(&mut command).succeeded();
    out
}

/// How many blocks of all layers are known content under the old key.
fn blocks_under_old_key(place: &Place) -> u64 {
    let data = place.layer_files("data");
    let (key, known) = (place.file("old.key"), place.file("known"));
    let mut arguments = vec![path(&key), path(&known)];
    arguments.extend(data.iter().map(|file| path(file)));
    let counted = check("blocks_under_key.py", &arguments);
    counted.stdout.trim().parse().expect("a number")
}

/// Bytes of data in each layer of the family, the smallest first.
fn sizes(place: &Place) -> Vec<u64> {
    let data = place.layer_files("data");
    let mut sizes: Vec<u64> = data
        .iter()
        .map(|file| file.metadata().expect("a layer").blocks() * 512)
        .collect();
    sizes.sort_unstable();
    sizes
}

/// A volume `v` of 16 MiB, attached, and what its three snapshots and it hold. The old key is in a file.
fn family(daemon: &Daemon<'_>, place: &Place) -> Vec<Vec<u8>> {
    daemon.volume("v", "16M");
    let mut content = pattern::bytes(1, 12 << 20);
    daemon.write("v", 0, &content);
    content.resize(16 << 20, 0);
    std::fs::write(place.file("known"), &content).expect("written");
    daemon.detach("v");
    plain_key(place);
    daemon.attach("v");
    let mut held = Vec::new();
    for (number, name) in (0..).zip(NAMES) {
        daemon.sealvol(&["snapshot", "create", name]).succeeded();
        held.push(content.clone());
        let at = (2 + 3 * number) << 20;
        let newer = pattern::bytes(7 + number as u64, 1 << 20);
        daemon.write("v", at as u64, &newer);
        content[at..at + (1 << 20)].copy_from_slice(&newer);
        // And a zero that hides what is below it.
        daemon.write("v", (13 << 20) + at as u64 / 8, &[0; 4096]);
    }
    held.push(content);
    held
}

fn check_all(daemon: &Daemon<'_>, held: &[Vec<u8>]) {
    assert!(daemon.content("v") == held[3], "the volume");
    for (name, held) in NAMES.iter().zip(held) {
        daemon.attach(name);
        assert!(daemon.content(name) == *held, "{name}");
        daemon.detach(name);
    }
}

fn begin(daemon: &Daemon<'_>, more: &[&str]) -> String {
    let arguments = ["volume", "rekey", "v", "--with-snapshots"];
    daemon.sealvol_json(&[&arguments, more].concat())["id"].to_string()
}

/// Watches the job to its good end; what came of it.
fn finish(daemon: &Daemon<'_>, id: &str) -> Value {
    let watched = daemon.sealvol(&["job", "watch", id]).succeeded();
    let last = watched.stdout.lines().last().expect("a last word");
    let last: Value = serde_json::from_str(last).expect("JSON");
    last["result"]["rekey"].clone()
}

#[test]
fn a_family_is_under_another_key_and_the_old_one_opens_nothing() {
    for attached in [true, false] {
        let place = Place::new();
        let daemon = Daemon::start(&place);
        let held = family(&daemon, &place);
        let before = sizes(&place);
        assert_ne!(blocks_under_old_key(&place), 0);
        if !attached {
            daemon.detach("v");
        }
        let result = finish(&daemon, &begin(&daemon, &[]));
        assert_eq!(result["old_keys_open"], serde_json::json!([]), "{result}");
        assert_eq!(blocks_under_old_key(&place), 0);
        if !attached {
            daemon.attach("v");
        }
        assert_eq!(show(&daemon, "v")["depth"], 1);
        check_all(&daemon, &held);
        // Of the sealed layers each is as large as it was: nothing was flattened but the volume itself.
        let after = sizes(&place);
        assert_eq!(after.len(), 4);
        assert_eq!(after[..2], before[..2], "{before:?} {after:?}");
        assert_eq!(after[2], before[3], "{before:?} {after:?}");
        let old = result["old_data_keys"].as_array().expect("keys");
        let new = show(&daemon, "v")["layers"][0]["data_key"].clone();
        assert!(!old.contains(&new));
        // The family goes on as any: snapshots, clones, merges.
        daemon
            .sealvol(&["volume", "create", "c", "--from-snapshot", "v@b"])
            .succeeded();
        daemon.attach("c");
        assert!(daemon.content("c") == held[1], "a clone of it");
        daemon.stop();
        let daemon = Daemon::start(&place);
        wait_for("the volume", || {
            (show(&daemon, "v")["state"] == "attached").then_some(())
        });
        check_all(&daemon, &held);
        daemon.stop();
    }
}

#[test]
fn a_family_that_is_cut_short_goes_on_and_a_reader_of_a_snapshot_holds_it() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let held = family(&daemon, &place);
    daemon.attach("v@b");
    let id = begin(&daemon, &["--rate", "6M"]);
    let in_the_snapshots = |daemon: &Daemon<'_>| {
        wait_for("the copies of the layers", || {
            let job = daemon.sealvol_json(&["job", "show", &id]);
            assert_ne!(job["state"], "done", "it was faster than its rate");
            (show(daemon, "v")["depth"] == 1 && place.layer_files("data").len() > 5).then_some(())
        });
    };
    in_the_snapshots(&daemon);
    daemon.kill();
    let daemon = Daemon::start(&place);
    wait_for("both exports", || {
        let snapshot = daemon.sealvol_json(&["snapshot", "show", "v@b"]);
        let both = snapshot["state"] == "attached" && show(&daemon, "v")["state"] == "attached";
        both.then_some(())
    });
    assert!(daemon.content("v@b") == held[1], "meanwhile");
    let waits = wait_for("the job to wait for the reader", || {
        let job = daemon.sealvol_json(&["job", "show", &id]);
        (job["state"] == "waiting").then_some(job)
    });
    let reason = waits["reason"].to_string();
    assert!(
        reason.contains("v@b") && reason.contains("attached"),
        "{reason}"
    );
    daemon.detach("v@b");
    let result = finish(&daemon, &id);
    assert_eq!(result["old_keys_open"], serde_json::json!([]), "{result}");
    assert_eq!(blocks_under_old_key(&place), 0);
    assert_eq!(place.layer_files("data").len(), 4);
    check_all(&daemon, &held);
    daemon.stop();
}

#[test]
fn a_clone_keeps_its_key_and_a_cancelled_family_its_snapshots() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let held = family(&daemon, &place);
    daemon
        .sealvol(&["volume", "create", "c", "--from-snapshot", "v@b"])
        .succeeded();
    let id = begin(&daemon, &["--rate", "6M"]);
    wait_for("the copies of the layers", || {
        (show(&daemon, "v")["depth"] == 1 && place.layer_files("data").len() > 6).then_some(())
    });
    // One that is deleted meanwhile takes nothing with it.
    daemon.sealvol(&["snapshot", "delete", "v@c"]).succeeded();
    let cancelled = daemon.sealvol_json(&["job", "cancel", &id]);
    assert_eq!(cancelled["state"], "cancelled", "{cancelled}");
    assert!(daemon.content("v") == held[3]);
    for (name, held) in NAMES.iter().zip(&held).take(2) {
        daemon.attach(name);
        assert!(daemon.content(name) == *held, "{name}");
        daemon.detach(name);
    }
    let result = finish(&daemon, &begin(&daemon, &[]));
    let opened = result["old_keys_open"].as_array().expect("a list");
    assert!(!opened.is_empty());
    for opened in opened {
        assert_eq!(opened["name"], "c", "{result}");
    }
    daemon.attach("c");
    assert!(daemon.content("c") == held[1], "the clone");
    for (name, held) in NAMES.iter().zip(&held).take(2) {
        daemon.attach(name);
        assert!(daemon.content(name) == *held, "{name}");
        daemon.detach(name);
    }
    daemon.detach("c");
    daemon.sealvol(&["volume", "delete", "c"]).succeeded();
    wait_for("what only the clone stood on to go", || {
        (place.layer_files("data").len() == 3).then_some(())
    });
    assert_eq!(blocks_under_old_key(&place), 0);
    daemon.stop();
}
