//! Rewraps: the same data keys under another key, while the volume is in use or not; nothing is left of the former copies, and a
//! daemon that is killed anywhere leaves a volume that can be attached.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::pattern;
use sealvol_tests::peer::Peer;
use sealvol_tests::place::Place;
use sealvol_tests::programs::wait_for;
use sealvol_tests::superblock::{SLOTS, read_slot};
use serde_json::Value;

fn show(daemon: &Daemon<'_>, name: &str) -> Value {
    daemon.sealvol_json(&["volume", "show", name])
}

fn text(value: &Value) -> String {
    value.as_str().expect("text").to_owned()
}

fn key_id(daemon: &Daemon<'_>, key: &str) -> String {
    text(&daemon.sealvol_json(&["key", "show", key])["key_id"])
}

fn metas(place: &Place, volume: &Value) -> Vec<PathBuf> {
    let layers = volume["layers"].as_array().expect("layers").iter();
    let meta = |layer: &Value| {
        place
            .state()
            .join("layers")
            .join(text(&layer["id"]))
            .join("meta")
    };
    layers.map(meta).collect()
}

/// How often each slot of a superblock names a key, as the id of what wraps one of its records.
fn named(meta: &Path, key: &str) -> [usize; 2] {
    SLOTS.map(|slot| {
        let slot = read_slot(meta, slot);
        let found = slot
            .windows(key.len())
            .filter(|part| *part == key.as_bytes());
        found.count()
    })
}

/// A volume `v` with a snapshot below it and `c`, a clone of that, all attached, and a key `local:other`.
fn family(daemon: &Daemon<'_>) -> Vec<u8> {
    daemon
        .sealvol(&["key", "create", "local:other"])
        .succeeded();
    daemon.volume("v", "4M");
    let mut content = pattern::bytes(1, 1 << 20);
    daemon.write("v", 0, &content);
    daemon.sealvol(&["snapshot", "create", "v@s"]).succeeded();
    daemon
        .sealvol(&["volume", "create", "c", "--from-snapshot", "v@s"])
        .succeeded();
    daemon.attach("c");
    // What the source wrote to before the clone is merged with its new top.
    wait_for("the merge", || {
        (show(daemon, "v")["depth"] == 2).then_some(())
    });
    content.resize(4 << 20, 0);
    content
}

#[test]
fn a_rewrap_changes_the_key_of_a_volume_in_use_and_none_of_its_blocks() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let content = family(&daemon);
    let [old, new] = ["local:default", "local:other"].map(|key| key_id(&daemon, key));
    let shown = show(&daemon, "v");
    let before = std::fs::read(metas(&place, &shown)[1].with_file_name("data")).expect("there");
    let mut peer = Peer::open(&daemon.address(), "v").expect("attached");
    let done = daemon.sealvol_json(&["key", "rewrap", "v", "--key", "local:other"]);
    let done = &done["rewrapped"][0];
    assert_eq!(
        (&done["name"], &done["key"]),
        (&"v".into(), &"local:other".into())
    );
    assert_eq!(
        (&done["key_id"], &done["key_version"]),
        (&new.as_str().into(), &1.into())
    );
    // The present top's, and that of the layer that the clone stands on too.
    assert_eq!(done["data_keys"], 2);
    assert_eq!(
        done["before"],
        serde_json::json!([format!("local:{old} version 1")])
    );
    let sealed: Vec<_> = shown["layers"].as_array().expect("layers")[1..]
        .iter()
        .collect();
    let left: Vec<_> = sealed.iter().map(|layer| layer["id"].clone()).collect();
    assert_eq!(
        done["layers_left"],
        Value::Array(left),
        "they are being read"
    );
    assert_eq!(done["volumes_left"], serde_json::json!(["c"]));

    peer.write(2 << 20, &[3; 4096]).expect("it goes on");
    drop(peer);
    let mut of_v = content.clone();
    of_v[2 << 20..(2 << 20) + 4096].fill(3);
    let metas = metas(&place, &shown);
    assert_eq!(
        (named(&metas[0], &old), named(&metas[0], &new)),
        ([0, 0], [2, 2])
    );
    assert_eq!(named(&metas[1], &new), [0, 0]);
    let now = show(&daemon, "v");
    assert_eq!(
        (&now["key"], &now["key_id"]),
        (&"local:other".into(), &new.as_str().into())
    );
    for (number, layer) in shown["layers"]
        .as_array()
        .expect("layers")
        .iter()
        .enumerate()
    {
        assert_eq!(
            now["layers"][number]["data_key"], layer["data_key"],
            "the same data keys"
        );
    }
    assert_eq!(
        show(&daemon, "c")["key_id"],
        old.as_str(),
        "the clone is as it was"
    );

    // With nobody reading them the sealed layers follow. `c` holds one of them open.
    for name in ["v", "c"] {
        daemon.detach(name);
    }
    let done = daemon.sealvol_json(&["key", "rewrap", "--all", "--key", "local:other"]);
    let done = done["rewrapped"].as_array().expect("a list");
    assert_eq!(done.len(), 2);
    for rewrapped in done {
        assert_eq!(rewrapped["layers_left"], serde_json::json!([]));
        assert_eq!(
            rewrapped["volumes_left"],
            serde_json::json!([]),
            "{rewrapped}"
        );
    }
    for meta in &metas {
        assert_eq!(named(meta, &old), [0, 0], "{}", meta.display());
    }
    let data = std::fs::read(metas[1].with_file_name("data")).expect("there");
    assert!(data == before, "no block has changed");
    daemon.stop();
    let daemon = Daemon::start(&place);
    for (name, expected) in [("v", &of_v), ("c", &content), ("v@s", &content)] {
        daemon.attach(name);
        assert!(daemon.content(name) == *expected, "{name}");
    }
    daemon.stop();
    let records = place.audit();
    let of_v = |record: &&Value| record["operation"] == "rewrap" && record["volume"] == shown["id"];
    let rewraps: Vec<&Value> = records.iter().filter(of_v).collect();
    assert_eq!(rewraps.len(), 4, "two keys, twice");
    assert_eq!(rewraps[0]["key"], "local:other");
    assert_eq!(rewraps[0]["from"], format!("local:{old}"));
    assert_eq!(rewraps[0]["context"]["sealvol:volume"], shown["id"]);
}

#[test]
fn what_cannot_be_rewrapped_stays_as_it_is() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let content = family(&daemon);
    let old = key_id(&daemon, "local:default");
    let meta = metas(&place, &show(&daemon, "v")).remove(0);
    let (slots, slot) = (SLOTS.map(|slot| read_slot(&meta, slot)), |slot| {
        read_slot(&meta, slot)
    });
    let refused = |arguments: &[&str], code, words: &[&str]| {
        let mut all = vec!["key", "rewrap"];
        all.extend(arguments);
        daemon.sealvol(&all).failed_with(code, words);
        assert!(SLOTS.map(slot) == slots, "{arguments:?}");
    };
    refused(&["none"], 4, &["none", "volume list"]);
    refused(&["v", "--key", "local:none"], 4, &["v", "local:none"]);
    refused(&["v", "--key", "aws:k"], 4, &["aws"]);
    refused(&["v", "--key", "nocolon"], 2, &["PROVIDER:KEY"]);
    refused(&[], 2, &["--all"]);
    refused(&["v", "--all"], 2, &["--all"]);
    refused(&["--all", "--key", "local:none"], 4, &["2 of 2"]);
    assert_eq!(show(&daemon, "v")["key_id"], old.as_str());
    daemon.detach("v");
    daemon
        .sealvol(&["volume", "attach", "v", "--read-only"])
        .succeeded();
    daemon
        .sealvol(&["key", "rewrap", "v"])
        .failed_with(5, &["v", "read-only"]);
    daemon.detach("v");
    daemon.attach("v");
    assert!(daemon.content("v") == content, "the volume");
    // One that nobody ever had the key of.
    daemon
        .sealvol(&["volume", "create", "new", "--size", "1M"])
        .succeeded();
    daemon
        .sealvol(&["key", "rewrap", "new", "--key", "local:other"])
        .succeeded();
    daemon.attach("new");
    assert!(daemon.content("new") == vec![0; 1 << 20], "the new one");
    daemon.stop();
}

#[test]
fn a_daemon_killed_while_it_rewraps_leaves_a_volume_that_can_be_attached() {
    const ROUNDS: u64 = 14;
    let place = Place::new();
    let mut daemon = Daemon::start(&place);
    let mut content = family(&daemon);
    let keys = ["local:default", "local:other"];
    let ids = keys.map(|key| key_id(&daemon, key));
    let top = metas(&place, &show(&daemon, "v")).remove(0);
    let (mut after, mut both) = (0, 0);
    for round in 0..ROUNDS {
        // In use and not, by turns.
        let attached = round % 2 == 0;
        if !attached {
            daemon.detach("v");
        }
        let from = show(&daemon, "v")["key_id"].clone();
        let to = usize::from(from == ids[0].as_str());
        let arguments = ["key", "rewrap", "v", "--key", keys[to]];
        std::thread::scope(|scope| {
            let command = scope.spawn(|| daemon.sealvol(&arguments));
            // From before its first step to after its last one.
            std::thread::sleep(Duration::from_millis(16 + round * 4));
            daemon.kill_now();
            command.join().expect("it ended");
        });
        drop(daemon);
        let copies = ids.each_ref().map(|id| named(&top, id));
        both += u32::from(copies.iter().all(|slots| *slots != [0, 0]));
        daemon = Daemon::start(&place);
        wait_for("the daemon", || {
            // What a killed daemon was starting may hold its sockets for a moment more.
            let shown = daemon.sealvol(&["--json", "volume", "show", "v"]);
            let state = || text(&shown.json()["state"]);
            (shown.code == Some(0) && (state() == "attached") == attached).then_some(())
        });
        if !attached {
            daemon.attach("v");
        }
        after += u32::from(show(&daemon, "v")["key_id"] == ids[to].as_str());
        assert!(daemon.content("v") == content, "after round {round}");
        let byte = u8::try_from(round).expect("a byte");
        daemon.write("v", 2 << 20, &[byte; 4096]);
        content[2 << 20..(2 << 20) + 4096].fill(byte);
    }
    println!("{after} rewraps of {ROUNDS} counted, {both} left old and new copies");
    // Once more does what is left, and the former copies go.
    daemon
        .sealvol(&["key", "rewrap", "v", "--key", keys[1]])
        .succeeded();
    assert_eq!(
        (named(&top, &ids[0]), named(&top, &ids[1])),
        ([0, 0], [2, 2])
    );
    daemon.kill();
    let daemon = Daemon::start(&place);
    wait_for("the volume", || {
        (show(&daemon, "v")["state"] == "attached").then_some(())
    });
    assert!(daemon.content("v") == content, "at the end");
    daemon.stop();
}
