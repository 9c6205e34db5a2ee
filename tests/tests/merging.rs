//! Merging: what deleted snapshots leave goes into the layers above, while clients write, and its space comes back.

use std::path::Path;
use std::time::Duration;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::pattern;
use sealvol_tests::peer::{Address, Peer};
use sealvol_tests::place::Place;
use sealvol_tests::programs::{run, wait_for};

const MIB: usize = 1 << 20;

fn write(daemon: &Daemon<'_>, name: &str, offset: u64, data: &[u8]) {
    let mut peer = Peer::open(&Address::from(daemon.socket().as_path()), name).expect("attached");
    for (at, piece) in data.chunks(MIB).enumerate() {
        peer.write(offset + (at * MIB) as u64, piece)
            .expect("written");
    }
}

fn read(daemon: &Daemon<'_>, name: &str, len: usize) -> Vec<u8> {
    let mut peer = Peer::open(&Address::from(daemon.socket().as_path()), name).expect("attached");
    let mut found = Vec::new();
    for at in (0..len).step_by(MIB) {
        let piece = len.min(at + MIB) - at;
        let piece = u32::try_from(piece).expect("small");
        found.extend(peer.read(at as u64, piece).expect("read"));
    }
    found
}

fn snapshot(daemon: &Daemon<'_>, name: &str) {
    daemon.sealvol(&["snapshot", "create", name]).succeeded();
}

/// Deletes a snapshot; what becomes of its layer.
fn delete(daemon: &Daemon<'_>, name: &str) -> String {
    let deleted = daemon.sealvol_json(&["snapshot", "delete", name]);
    deleted["layer"].as_str().expect("a word").to_owned()
}

fn depth(daemon: &Daemon<'_>, name: &str) -> u64 {
    let shown = daemon.sealvol_json(&["volume", "show", name]);
    shown["depth"].as_u64().expect("a number")
}

fn wait_for_depth(daemon: &Daemon<'_>, name: &str, wanted: u64) {
    wait_for("the merge", || {
        (depth(daemon, name) == wanted).then_some(())
    });
}

/// Layer directories, and the bytes that their files take.
fn layers(place: &Place) -> (usize, u64) {
    let layers = place.state().join("layers");
    let directories: Vec<_> = std::fs::read_dir(layers)
        .expect("there")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    let taken = |directory: &Path| {
        let files = ["data", "meta"].map(|name| directory.join(name).symlink_metadata());
        let blocks =
            files.map(|file| file.map_or(0, |file| std::os::unix::fs::MetadataExt::blocks(&file)));
        blocks.iter().sum::<u64>() * 512
    };
    let bytes = directories.iter().map(|directory| taken(directory)).sum();
    (directories.len(), bytes)
}

fn wait_for_layers(place: &Place, wanted: usize) {
    wait_for("the layers to go", || {
        (layers(place).0 == wanted).then_some(())
    });
}

#[test]
fn deleting_every_snapshot_leaves_one_layer_and_gives_the_space_of_the_others_back() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon.volume("v", "64M");
    let mut content = Vec::new();
    for number in 0..4 {
        content = pattern::bytes(number, 8 * MIB);
        write(&daemon, "v", 0, &content);
        snapshot(&daemon, &format!("v@s{number}"));
    }
    let last = pattern::bytes(9, 4 * MIB);
    write(&daemon, "v", 6 * MIB as u64, &last);
    content.truncate(6 * MIB);
    content.extend(&last);
    let (count, before) = layers(&place);
    assert_eq!(count, 5);
    assert!(before > 36 * MIB as u64, "{before}");
    for number in [1, 3, 0, 2] {
        assert_eq!(delete(&daemon, &format!("v@s{number}")), "merging");
    }
    wait_for_depth(&daemon, "v", 1);
    wait_for_layers(&place, 1);
    let (_, after) = layers(&place);
    assert!(after < 12 * MIB as u64, "{before}, then {after}");
    assert!(read(&daemon, "v", content.len()) == content);
    // Stopped and started, and detached and attached.
    daemon.stop();
    let daemon = Daemon::start(&place);
    assert!(read(&daemon, "v", content.len()) == content);
    daemon.detach("v");
    daemon.attach("v");
    assert!(read(&daemon, "v", content.len()) == content);
    assert_eq!(depth(&daemon, "v"), 1);
    daemon.stop();
}

#[test]
fn snapshots_deleted_in_any_order_under_load_leave_every_survivor_whole() {
    const LEN: usize = 4 * MIB;
    let place = Place::new();
    let mut daemon = Daemon::start(&place);
    daemon.volume("v", "64M");
    let fio = format!("--uri={}", daemon.uri("v"));
    let load = std::thread::spawn(move || {
        let arguments = [
            "--name=load",
            "--ioengine=nbd",
            &fio,
            "--offset=32M",
            "--size=32M",
            "--rw=randwrite",
            "--bsrange=512-64k",
            "--blockalign=512",
            "--iodepth=16",
            "--fsync=32",
            "--loops=3",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--do_verify=1",
            "--verify_state_save=0",
        ];
        run("fio", &arguments).succeeded();
    });
    let mut now = vec![0; LEN];
    let mut survivors = Vec::new();
    let mut next = 0;
    for (delete_from, made) in [(1, 3), (0, 2), (2, 2), (0, 1), (1, 1)] {
        for _ in 0..made {
            let data = pattern::bytes(next, 3 * MIB / 2);
            let at =
                usize::try_from(next).expect("small") * 700_416 % (LEN - data.len()) / 512 * 512;
            write(&daemon, "v", at as u64, &data);
            now[at..at + data.len()].copy_from_slice(&data);
            let name = format!("v@s{next}");
            snapshot(&daemon, &name);
            survivors.push((name, now.clone()));
            next += 1;
        }
        let (gone, _) = survivors.remove(delete_from);
        delete(&daemon, &gone);
        for (name, content) in &survivors {
            daemon.attach(name);
            assert!(read(&daemon, name, LEN) == *content, "{name}");
        }
        wait_for_depth(&daemon, "v", 1 + survivors.len() as u64);
        for (name, content) in &survivors {
            assert!(read(&daemon, name, LEN) == *content, "{name}, merged");
            daemon.detach(name);
        }
    }
    load.join().expect("fio verified what it wrote");
    for _ in 0..2 {
        assert!(read(&daemon, "v", LEN) == now);
        for (name, content) in &survivors {
            daemon.attach(name);
            assert!(read(&daemon, name, LEN) == *content, "{name}, at the end");
            daemon.detach(name);
        }
        daemon.stop();
        daemon = Daemon::start(&place);
    }
    wait_for_layers(&place, 1 + survivors.len());
    daemon.stop();
}

#[test]
fn what_is_deleted_while_nobody_has_the_key_is_merged_after_the_next_attach() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon.volume("v", "16M");
    let content = pattern::bytes(1, 2 * MIB);
    write(&daemon, "v", 0, &content);
    snapshot(&daemon, "v@s");
    daemon.detach("v");
    snapshot(&daemon, "v@t");
    for name in ["v@s", "v@t"] {
        let deleted = daemon.sealvol(&["snapshot", "delete", name]).succeeded();
        assert!(deleted.stdout.contains("attached for writing"), "{deleted}");
    }
    assert_eq!(depth(&daemon, "v"), 3);
    daemon
        .sealvol(&["volume", "attach", "v", "--read-only"])
        .succeeded();
    assert!(read(&daemon, "v", content.len()) == content);
    daemon.detach("v");
    assert_eq!(depth(&daemon, "v"), 3);
    daemon.attach("v");
    wait_for_depth(&daemon, "v", 1);
    wait_for_layers(&place, 1);
    assert!(read(&daemon, "v", content.len()) == content);
    daemon.stop();
}

#[test]
fn a_merge_that_is_cut_short_by_a_detach_or_a_kill_goes_on_with_the_next_attach() {
    const LEN: usize = 48 * MIB;
    let place = Place::new();
    let mut daemon = Daemon::start(&place);
    daemon.volume("v", "64M");
    let mut content = pattern::bytes(1, LEN);
    write(&daemon, "v", 0, &content);
    for (round, killed) in [(0, false), (1, true), (2, false), (3, true), (4, true)] {
        snapshot(&daemon, &format!("v@a{round}"));
        let changed = pattern::bytes(round + 2, MIB);
        let at = usize::try_from(round).expect("small") * 5 * MIB;
        write(&daemon, "v", at as u64, &changed);
        content[at..at + MIB].copy_from_slice(&changed);
        snapshot(&daemon, &format!("v@b{round}"));
        // Into a sealed layer, then into the top.
        let order = if round % 2 == 0 {
            ["a", "b"]
        } else {
            ["b", "a"]
        };
        for name in order {
            delete(&daemon, &format!("v@{name}{round}"));
        }
        std::thread::sleep(Duration::from_millis(20 * round));
        if killed {
            daemon.kill();
            daemon = Daemon::start(&place);
        } else {
            daemon.detach("v");
            daemon.attach("v");
        }
        assert!(read(&daemon, "v", LEN) == content, "round {round}");
        wait_for_depth(&daemon, "v", 1);
        wait_for_layers(&place, 1);
        assert!(read(&daemon, "v", LEN) == content, "round {round}, merged");
    }
    daemon.stop();
}
