//! Clones: there at once, on layers that they share and under keys that they don't; what they hold when their source goes on, is
//! deleted, or is put into them by whoever writes the store.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use sealvol_tests::daemon::Daemon;
use sealvol_tests::pattern;
use sealvol_tests::peer::{BLOCK, Peer, command, request};
use sealvol_tests::place::Place;
use sealvol_tests::programs::wait_for;
use serde_json::Value;

fn snapshot(daemon: &Daemon<'_>, name: &str) {
    daemon.sealvol(&["snapshot", "create", name]).succeeded();
}

fn clone(daemon: &Daemon<'_>, name: &str, from: &str) {
    daemon
        .sealvol(&["volume", "create", name, "--from-snapshot", from])
        .succeeded();
}

fn show(daemon: &Daemon<'_>, name: &str) -> Value {
    daemon.sealvol_json(&["volume", "show", name])
}

fn delete(daemon: &Daemon<'_>, name: &str) {
    daemon
        .sealvol(&["volume", "delete", name, "--snapshots"])
        .succeeded();
}

fn text(value: &Value) -> String {
    value.as_str().expect("text").to_owned()
}

/// The ciphertext of a volume's layer, counted from the top.
fn data(place: &Place, volume: &Value, layer: usize) -> PathBuf {
    let id = text(&volume["layers"][layer]["id"]);
    place.state().join("layers").join(id).join("data")
}

fn block(file: &PathBuf, number: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    let file = File::open(file).expect("a layer");
    file.read_exact_at(&mut block, number * BLOCK as u64)
        .expect("a block");
    block
}

fn layers(place: &Place) -> usize {
    let layers = place.state().join("layers");
    std::fs::read_dir(layers).expect("there").count()
}

/// A volume of 4 MiB, attached, with a snapshot of its first MiB; and what the snapshot holds.
fn source(daemon: &Daemon<'_>) -> Vec<u8> {
    daemon.volume("v", "4M");
    let mut content = pattern::bytes(1, 1 << 20);
    daemon.write("v", 0, &content);
    snapshot(daemon, "v@s");
    content.resize(4 << 20, 0);
    content
}

#[test]
fn a_clone_is_there_at_once_and_goes_its_own_way_under_its_own_key() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let before = source(&daemon);
    clone(&daemon, "c", "v@s");
    let uri = daemon.attach("c");
    assert_eq!(uri, daemon.uri("c"));
    // An empty layer under the snapshot's key, which the source wrote to before the clone, is merged with its new top.
    let v = wait_for("the merge", || {
        let v = show(&daemon, "v");
        (v["depth"] == 2).then_some(v)
    });
    let c = show(&daemon, "c");
    assert!(daemon.content("c") == before, "the clone");
    let own = data(&place, &c, 0).metadata().expect("there");
    assert_eq!(own.blocks(), 0, "nothing was copied");

    // The same bytes at the same place, and a part of a block that is only below.
    let same = pattern::bytes(2, 64 << 10);
    for name in ["v", "c"] {
        daemon.write(name, 128 << 10, &same);
    }
    daemon.write("c", 4096, &[7; 512]);
    daemon.write("v", 8192, &[8; 4096]);
    let mut of_v = before.clone();
    of_v[128 << 10..192 << 10].copy_from_slice(&same);
    let mut of_c = of_v.clone();
    of_c[4096..4096 + 512].fill(7);
    of_v[8192..8192 + 4096].fill(8);
    let check = |daemon: &Daemon<'_>| {
        assert!(daemon.content("v") == of_v, "the source");
        assert!(daemon.content("c") == of_c, "the clone");
    };
    check(&daemon);
    for number in 32..48 {
        let [one, other] = [&v, &c].map(|volume| block(&data(&place, volume, 0), number));
        assert_ne!(one, other, "the same ciphertext in block {number}");
    }

    assert_eq!((&c["depth"], &c["size"]), (&2.into(), &(4 << 20).into()));
    assert_eq!(c["origin"]["snapshot"], "v@s");
    assert_eq!(c["origin"]["volume"], v["id"]);
    assert_eq!(c["origin"]["layer"], c["layers"][1]["id"]);
    assert_eq!(c["layers"][1]["from_volume"], v["id"]);
    assert_eq!(v["origin"], Value::Null);
    let key = |volume: &Value, layer: usize| text(&volume["layers"][layer]["data_key"]);
    assert_eq!(key(&v, 1), key(&c, 1), "the key of what they share");
    assert_ne!(key(&v, 0), key(&v, 1), "the source writes under another");
    assert_ne!(key(&c, 0), key(&v, 1), "so does the clone");
    assert_ne!(key(&c, 0), key(&v, 0), "and not under the source's");

    daemon.stop();
    let daemon = Daemon::start(&place);
    wait_for("both exports", || {
        let attached = |name| show(&daemon, name)["state"] == "attached";
        (attached("v") && attached("c")).then_some(())
    });
    check(&daemon);
    // A second clone needs no other key of the source, which writes under none that it shares.
    clone(&daemon, "d", "v@s");
    assert_eq!(show(&daemon, "v")["depth"], 2);
    daemon.stop();
    let records = place.audit();
    let of = |operation: &str, volume: &Value| {
        let records = records.iter();
        let of = records
            .filter(|record| record["operation"] == operation && record["volume"] == volume["id"]);
        of.cloned().collect::<Vec<_>>()
    };
    assert_eq!(of("clone", &c).len(), 1);
    assert_eq!(of("generate", &c).len(), 1);
    let rewrapped = of("rewrap", &c);
    assert_eq!(rewrapped.len(), 1);
    assert_eq!(rewrapped[0]["context"]["sealvol:volume"], c["id"]);
    assert_eq!(of("generate", &v).len(), 2, "another one for the source");
}

/// What `name` reads at its start when `from`'s first block, as it lies in the store, was put where `into` has its own.
fn spliced(place: &Place, name: &str, from: &PathBuf, into: &PathBuf) -> Vec<u8> {
    let into = File::options().write(true).open(into).expect("a layer");
    into.write_all_at(&block(from, 0), 0).expect("spliced");
    let daemon = Daemon::start(place);
    daemon.attach(name);
    let mut peer = Peer::open(&daemon.address(), name).expect("attached");
    let read = peer.read(0, 4096).expect("read");
    daemon.stop();
    read
}

#[test]
fn what_the_source_writes_later_is_noise_when_it_is_put_into_the_clone() {
    let secret = pattern::bytes(9, BLOCK);
    for cloned in [false, true] {
        let place = Place::new();
        let daemon = Daemon::start(&place);
        source(&daemon);
        if cloned {
            clone(&daemon, "c", "v@s");
        }
        daemon.write("v", 0, &secret);
        daemon.detach("v");
        let v = show(&daemon, "v");
        let shared = v["layers"].as_array().expect("layers").len() - 1;
        let files = [0, shared].map(|layer| data(&place, &v, layer));
        daemon.stop();
        let name = if cloned { "c" } else { "v@s" };
        let read = spliced(&place, name, &files[0], &files[1]);
        // Without a clone the source goes on under the snapshot's key, and whoever writes the store can do this.
        assert_eq!(read == secret, !cloned, "{name}");
        assert_ne!(read, pattern::bytes(1, BLOCK), "{name} was not changed");
    }
}

#[test]
fn a_clone_needs_neither_its_snapshot_nor_its_source() {
    for volume_first in [false, true] {
        let place = Place::new();
        let daemon = Daemon::start(&place);
        let content = source(&daemon);
        clone(&daemon, "c", "v@s");
        daemon.attach("c");
        daemon.write("c", 2 << 20, &[3; 4096]);
        snapshot(&daemon, "c@t");
        clone(&daemon, "d", "c@t");
        daemon.attach("d");
        let mut expected = content;
        expected[2 << 20..(2 << 20) + 4096].fill(3);
        let check = |daemon: &Daemon<'_>, names: &[&str]| {
            for name in names {
                assert!(daemon.content(name) == expected, "{name}");
            }
        };
        check(&daemon, &["c", "d"]);
        daemon.detach("v");
        daemon
            .sealvol(&["volume", "delete", "v", "--snapshots", "--shred"])
            .failed_with(5, &["v", "other volumes stand", "without --shred"]);
        if !volume_first {
            daemon.sealvol(&["snapshot", "delete", "v@s"]).succeeded();
            assert_eq!(show(&daemon, "c")["origin"].get("snapshot"), None);
        }
        let deleted = daemon.sealvol_json(&["volume", "delete", "v", "--snapshots"]);
        assert_eq!(deleted["layers_kept"], 1);
        check(&daemon, &["c", "d"]);
        daemon.stop();
        let daemon = Daemon::start(&place);
        wait_for("both exports", || {
            let attached = |name| show(&daemon, name)["state"] == "attached";
            (attached("c") && attached("d")).then_some(())
        });
        check(&daemon, &["c", "d"]);
        daemon.kill();
        let daemon = Daemon::start(&place);
        wait_for("the clones", || {
            let attached = |name| show(&daemon, name)["state"] == "attached";
            (attached("c") && attached("d")).then_some(())
        });
        check(&daemon, &["c", "d"]);
        daemon.detach("c");
        delete(&daemon, "c");
        daemon.detach("d");
        daemon.attach("d");
        check(&daemon, &["d"]);
        // Nobody else stands on what it was made from.
        let d = wait_for("the merges", || {
            let d = show(&daemon, "d");
            (d["depth"] == 1).then_some(d)
        });
        assert_eq!(d["origin"].get("snapshot"), None);
        check(&daemon, &["d"]);
        daemon.detach("d");
        delete(&daemon, "d");
        assert_eq!(layers(&place), 0, "every layer is gone with the last clone");
        daemon.stop();
    }
}

#[test]
fn a_clone_may_be_larger_and_its_tail_is_zeros() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let mut expected = source(&daemon);
    let larger = |size: &str, more: &[&str]| {
        let mut arguments = vec!["volume", "create", "c", "--from-snapshot", "v@s"];
        arguments.extend(["--size", size]);
        arguments.extend(more);
        daemon.sealvol(&arguments)
    };
    let before = layers(&place);
    larger("2M", &[]).failed_with(2, &["c", "v@s", "4194304"]);
    larger("8M", &["--sector-size", "512"]).failed_with(2, &["c", "v@s", "4096"]);
    assert_eq!(layers(&place), before, "nothing stays of what was refused");
    larger("8M", &["--sector-size", "4096"]).succeeded();
    daemon.attach("c");
    expected.resize(8 << 20, 0);
    assert!(daemon.content("c") == expected, "the clone");
    daemon.write("c", (4 << 20) - 4096, &[5; 8192]);
    daemon.write("c", (8 << 20) - 100, &[6; 100]);
    expected[(4 << 20) - 4096..(4 << 20) + 4096].fill(5);
    expected[(8 << 20) - 100..].fill(6);
    snapshot(&daemon, "c@t");
    clone(&daemon, "d", "c@t");
    daemon.attach("d");
    for name in ["c", "d"] {
        assert!(daemon.content(name) == expected, "{name}");
    }
    daemon.stop();
}

#[test]
fn clones_of_what_nobody_has_the_key_of_need_no_key_of_it() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let content = source(&daemon);
    daemon.write("v", 2 << 20, &[4; 4096]);
    daemon.detach("v");
    let unwraps = || {
        let records = place.audit();
        let unwraps = records.iter().filter(|r| r["operation"] == "unwrap");
        unwraps.count()
    };
    let before = unwraps();
    // One of a sealed snapshot, and one that is sealed by whoever attaches first: here the clone, and then its source.
    snapshot(&daemon, "v@t");
    clone(&daemon, "of-s", "v@s");
    clone(&daemon, "of-t", "v@t");
    daemon
        .sealvol(&["volume", "create", "empty", "--size", "1M"])
        .succeeded();
    snapshot(&daemon, "empty@s");
    clone(&daemon, "of-empty", "empty@s");
    assert_eq!(unwraps(), before, "no key was asked for");
    let mut newer = content.clone();
    newer[2 << 20..(2 << 20) + 4096].fill(4);
    for (name, expected) in [
        ("of-t", &newer),
        ("of-s", &content),
        ("v", &newer),
        ("v@t", &newer),
        ("of-empty", &vec![0; 1 << 20]),
        ("empty", &vec![0; 1 << 20]),
    ] {
        daemon.attach(name);
        assert!(daemon.content(name) == *expected, "{name}");
    }
    daemon.write("v", 0, &[1; 4096]);
    daemon.write("empty", 0, &[2; 4096]);
    assert!(daemon.content("of-t") == newer, "the clone still");
    assert!(
        daemon.content("of-empty") == vec![0; 1 << 20],
        "nothing still"
    );
    daemon.stop();
}

#[test]
fn what_cannot_be_cloned_is_refused_and_leaves_nothing() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    source(&daemon);
    daemon
        .sealvol(&["key", "create", "local:other"])
        .succeeded();
    let (before, depth) = (layers(&place), show(&daemon, "v")["depth"].clone());
    let refused = |name: &str, from: &str, more: &[&str], code, words: &[&str]| {
        let mut arguments = vec!["volume", "create", name, "--from-snapshot", from];
        arguments.extend(more);
        daemon.sealvol(&arguments).failed_with(code, words);
    };
    refused("c", "none@s", &[], 4, &["none", "volume list"]);
    refused("c", "v@none", &[], 4, &["v@none", "snapshot list"]);
    refused("v", "v@s", &[], 5, &["v", "another name"]);
    refused("c", "v", &[], 2, &["VOLUME@SNAPSHOT"]);
    refused("c", "v@s", &["--key", "local:none"], 4, &["local:none"]);
    refused("c", "v@s", &["--key", "aws:k"], 4, &["aws"]);
    let missing = place.file("missing");
    let missing = missing.to_str().expect("UTF-8");
    refused("c", "v@s", &["--backing", missing], 2, &[missing]);
    daemon.detach("v");
    daemon
        .sealvol(&["volume", "attach", "v", "--read-only"])
        .succeeded();
    refused("c", "v@s", &[], 5, &["v", "read-only"]);
    daemon.detach("v");
    // Everything that it would take from the key service is asked for before anything is changed.
    let keys = place.state().join("keys");
    let away = place.file("away");
    std::fs::rename(&keys, &away).expect("moved");
    let outcome = daemon.sealvol(&["volume", "create", "c", "--from-snapshot", "v@s"]);
    assert_ne!(outcome.code, Some(0), "{outcome}");
    std::fs::rename(&away, &keys).expect("moved back");
    assert_eq!(layers(&place), before, "no files stay");
    assert_eq!(
        show(&daemon, "v")["depth"],
        depth,
        "the source is as it was"
    );
    let volumes = daemon.sealvol_json(&["volume", "list"]);
    assert_eq!(volumes["volumes"].as_array().map(Vec::len), Some(1));
    let failed = |record: &Value| record["operation"] == "clone" && record["result"] != "ok";
    assert!(place.audit().iter().any(failed), "refusals are recorded");
    // Under another key of the same provider: its own data key and those that it inherits.
    daemon
        .sealvol(&[
            "volume",
            "create",
            "c",
            "--from-snapshot",
            "v@s",
            "--key",
            "local:other",
        ])
        .succeeded();
    let other = daemon.sealvol_json(&["key", "show", "local:other"]);
    assert_eq!(show(&daemon, "c")["key_id"], other["key_id"]);
    daemon.attach("c");
    let records = place.audit();
    let c = show(&daemon, "c");
    let mut unwraps = records
        .iter()
        .filter(|record| record["operation"] == "unwrap" && record["volume"] == c["id"])
        .map(|record| text(&record["key"]));
    let key = format!("local:{}", text(&other["key_id"]));
    assert!(unwraps.by_ref().all(|used| used == key));
    daemon.stop();
}

#[test]
fn a_source_under_load_loses_nothing_while_it_is_cloned() {
    const BLOCKS: u64 = 64;
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon.volume("v", "4M");
    let address = daemon.address();
    let (stop, acknowledged) = (AtomicBool::new(false), AtomicU64::new(0));
    let version_at = |last: u64, block: u64| {
        let since = last.checked_sub(block);
        since.map_or(0, |since| last - since % BLOCKS)
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut peer = Peer::open(&address, "v").expect("attached");
            for version in 1_u64.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let offset = version % BLOCKS * BLOCK as u64;
                let mut bytes = request(command::WRITE, command::FUA, 1, offset, 4096).to_vec();
                bytes.extend(version.to_le_bytes().repeat(BLOCK / 8));
                peer.call(&bytes).expect("written durably");
                acknowledged.store(version, Ordering::SeqCst);
            }
        });
        for number in 0..5 {
            let enough = acknowledged.load(Ordering::SeqCst) + 20;
            wait_for("the writer", || {
                (acknowledged.load(Ordering::SeqCst) > enough).then_some(())
            });
            snapshot(&daemon, &format!("v@s{number}"));
            clone(&daemon, &format!("c{number}"), &format!("v@s{number}"));
        }
        stop.store(true, Ordering::SeqCst);
    });
    let last = acknowledged.load(Ordering::SeqCst);
    let versions = |daemon: &Daemon<'_>, name: &str| -> Vec<u64> {
        let content = daemon.content(name);
        let blocks = content.chunks_exact(BLOCK).take(64);
        blocks
            .map(|block| {
                let version = u64::from_le_bytes(block[..8].try_into().expect("eight bytes"));
                assert!(
                    block == version.to_le_bytes().repeat(BLOCK / 8),
                    "a torn block"
                );
                version
            })
            .collect()
    };
    let prefix = |last| (0..BLOCKS).map(|block| version_at(last, block)).collect();
    let check = |daemon: &Daemon<'_>| {
        let expected: Vec<u64> = prefix(last);
        assert_eq!(versions(daemon, "v"), expected, "the source");
        for number in 0..5 {
            let name = format!("c{number}");
            let found = versions(daemon, &name);
            let newest = found.iter().copied().max().expect("blocks");
            let expected: Vec<u64> = prefix(newest);
            assert_eq!(found, expected, "{name}");
        }
    };
    for number in 0..5 {
        daemon.attach(&format!("c{number}"));
    }
    check(&daemon);
    daemon.kill();
    let daemon = Daemon::start(&place);
    wait_for("all exports", || {
        let volumes = daemon.sealvol_json(&["volume", "list"]);
        let volumes = volumes["volumes"].as_array().expect("a list");
        (volumes.iter().all(|v| v["state"] == "attached")).then_some(())
    });
    check(&daemon);
    daemon.stop();
}

#[test]
fn a_daemon_killed_while_it_clones_leaves_a_whole_clone_or_none() {
    const ROUNDS: u8 = 12;
    let place = Place::new();
    let mut daemon = Daemon::start(&place);
    let mut content = source(&daemon);
    let (mut whole, mut none) = (0, 0);
    for round in 0..ROUNDS {
        let (name, from) = (format!("c{round}"), format!("v@r{round}"));
        // With it the source writes under the snapshot's key again, if it does not already.
        snapshot(&daemon, &from);
        let arguments = ["volume", "create", &name, "--from-snapshot", &from];
        std::thread::scope(|scope| {
            let command = scope.spawn(|| daemon.sealvol(&arguments));
            // From before its first step to after its last one.
            std::thread::sleep(std::time::Duration::from_millis(u64::from(round) * 18));
            daemon.kill_now();
            command.join().expect("it ended");
        });
        drop(daemon);
        daemon = Daemon::start(&place);
        wait_for("the source", || {
            // What a killed daemon was starting may hold its sockets for a moment more.
            let shown = daemon.sealvol(&["--json", "volume", "show", "v"]);
            (shown.code == Some(0) && shown.json()["state"] == "attached").then_some(())
        });
        if daemon.sealvol(&["volume", "show", &name]).code == Some(0) {
            whole += 1;
            daemon.attach(&name);
            assert!(daemon.content(&name) == content, "{name}");
            let (v, c) = (show(&daemon, "v"), show(&daemon, &name));
            let key = |volume: &Value, layer: usize| text(&volume["layers"][layer]["data_key"]);
            let inherited = (1..).take_while(|&layer| c["layers"][layer].is_object());
            let mut inherited = inherited.map(|layer| key(&c, layer));
            assert!(
                inherited.all(|shared| shared != key(&v, 0) && shared != key(&c, 0)),
                "a key that is shared is written under"
            );
            daemon.detach(&name);
            delete(&daemon, &name);
        } else {
            none += 1;
        }
        daemon.write("v", 2 << 20, &[round; 4096]);
        content[2 << 20..(2 << 20) + 4096].fill(round);
        assert!(daemon.content("v") == content, "the source");
    }
    println!("{whole} clones were whole, {none} were not there");
    daemon.stop();
}

#[test]
fn a_clone_is_not_adopted_as_if_it_stood_alone() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    source(&daemon);
    clone(&daemon, "c", "v@s");
    daemon.attach("c");
    let c = show(&daemon, "c");
    daemon.stop();
    for name in ["registry.db", "registry.db-wal"] {
        let _ = std::fs::remove_file(place.state().join(name));
    }
    let daemon = Daemon::start(&place);
    let layer = data(&place, &c, 0).with_file_name("");
    let layer = layer.to_str().expect("UTF-8");
    let parent = text(&c["layers"][1]["id"]);
    let refused = daemon.sealvol(&[
        "volume",
        "adopt",
        "c",
        "--layer-dir",
        layer,
        "--key",
        "local:default",
    ]);
    refused.failed_with(3, &["stands on layer", &parent, "is a clone"]);
    daemon.stop();
}
