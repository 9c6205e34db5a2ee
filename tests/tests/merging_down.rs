//! Merging down: deleting the oldest of many snapshots of a large volume moves what the next one holds, and not the volume; and what
//! everybody reads stays what it was, whatever they stand on and whatever is killed meanwhile.

use std::time::Duration;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::pattern;
use sealvol_tests::peer::{Address, Peer};
use sealvol_tests::place::Place;
use sealvol_tests::programs::{run, wait_for};

const MIB: usize = 1 << 20;
/// What the volume held when its first snapshot was made.
const BASE: usize = 64 * MIB;
/// What changes from one snapshot to the next.
const CHANGED: usize = 2 * MIB;

fn write(daemon: &Daemon<'_>, name: &str, offset: usize, data: &[u8]) {
    let mut peer = Peer::open(&Address::from(daemon.socket().as_path()), name).expect("attached");
    for (at, piece) in data.chunks(MIB).enumerate() {
        peer.write((offset + at * MIB) as u64, piece)
            .expect("written");
    }
}

fn read(daemon: &Daemon<'_>, name: &str) -> Vec<u8> {
    let mut peer = Peer::open(&Address::from(daemon.socket().as_path()), name).expect("attached");
    let mut found = Vec::new();
    for at in (0..BASE).step_by(MIB) {
        found.extend(peer.read(at as u64, 1 << 20).expect("read"));
    }
    found
}

/// A snapshot's, which nobody has attached.
fn held_by(daemon: &Daemon<'_>, snapshot: &str) -> Vec<u8> {
    daemon.attach(snapshot);
    let found = read(daemon, snapshot);
    daemon.detach(snapshot);
    found
}

/// The snapshots from this one on hold what they held.
fn check_from(daemon: &Daemon<'_>, held: &[Vec<u8>], first: usize) {
    for (number, content) in held.iter().enumerate().skip(first) {
        assert!(held_by(daemon, &format!("v@s{number}")) == *content);
    }
}

fn layer_of(daemon: &Daemon<'_>, snapshot: &str) -> String {
    let shown = daemon.sealvol_json(&["snapshot", "show", snapshot]);
    shown["layer"].as_str().expect("an id").to_owned()
}

/// Bytes that each merge moved which this daemon has ended so, in their order.
fn moved(daemon: &Daemon<'_>, direction: &str) -> Vec<usize> {
    let log = daemon.log();
    let merges = log
        .lines()
        .filter(|line| line.contains(&format!("merged {direction}")));
    let words = merges.map(|line| line.split("moved=").nth(1).expect("how much"));
    let number = |word: &str| word.split_whitespace().next()?.parse().ok();
    words.map(|word| number(word).expect("a number")).collect()
}

fn wait_for_layers(place: &Place, wanted: usize) {
    wait_for("the layers to go", || {
        let layers = std::fs::read_dir(place.state().join("layers")).expect("there");
        (layers.count() == wanted).then_some(())
    });
}

/// Makes a snapshot, and after it a change: what the volume holds then.
fn snapshot_and_change(daemon: &Daemon<'_>, number: usize, content: &mut [u8], len: usize) {
    daemon
        .sealvol(&["snapshot", "create", &format!("v@s{number}")])
        .succeeded();
    // Half of it over what the change before it wrote.
    let at = number * len / 2 % (BASE - len);
    let changed = pattern::bytes(number as u64 + 10, len);
    write(daemon, "v", at, &changed);
    content[at..at + len].copy_from_slice(&changed);
}

#[test]
fn deleting_the_oldest_of_many_snapshots_moves_what_the_next_one_holds() {
    const SNAPSHOTS: usize = 6;
    let place = Place::new();
    let mut daemon = Daemon::start(&place);
    daemon.volume("v", "128M");
    let mut content = pattern::bytes(1, BASE);
    write(&daemon, "v", 0, &content);
    let mut held = Vec::new();
    for number in 0..SNAPSHOTS {
        held.push(content.clone());
        snapshot_and_change(&daemon, number, &mut content, CHANGED);
    }
    let base = layer_of(&daemon, "v@s0");
    // Clones stand on a snapshot that is to go down: one that nobody opens before it has, and one in use.
    for clone in ["idle", "used"] {
        let from = ["volume", "create", clone, "--from-snapshot", "v@s3"];
        daemon.sealvol(&from).succeeded();
    }
    daemon.attach("used");
    write(&daemon, "used", BASE, &pattern::bytes(5, MIB));
    // The volume got another top for the clones, and its layer below goes up into it: what is written has no other way.
    let layers = SNAPSHOTS + 3;
    wait_for_layers(&place, layers);
    assert_eq!(moved(&daemon, "up").len(), 1);

    let fio = format!("--uri={}", daemon.uri("v"));
    let load = std::thread::spawn(move || {
        let arguments = [
            "--name=load",
            "--ioengine=nbd",
            &fio,
            "--offset=96M",
            "--size=32M",
            "--rw=randwrite",
            "--bsrange=512-64k",
            "--blockalign=512",
            "--iodepth=16",
            "--fsync=32",
            "--loops=2",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--do_verify=1",
            "--verify_state_save=0",
        ];
        run("fio", &arguments).succeeded();
    });
    for gone in 0..3 {
        let oldest = format!("v@s{gone}");
        daemon.sealvol(&["snapshot", "delete", &oldest]).succeeded();
        check_from(&daemon, &held, gone + 1);
        wait_for_layers(&place, layers - gone - 1);
        // The layer that held almost everything stayed, and is what was the next oldest.
        assert_eq!(layer_of(&daemon, &format!("v@s{}", gone + 1)), base);
        check_from(&daemon, &held, gone + 1);
        assert!(read(&daemon, "used") == held[3]);
    }
    load.join().expect("fio verified what it wrote");
    let down = moved(&daemon, "down");
    // One that somebody interrupted counts what it moved after that.
    assert!(
        down.len() == 3 && down.iter().all(|&moved| moved <= CHANGED),
        "{down:?}"
    );
    assert_eq!(moved(&daemon, "up").len(), 1);

    for _ in 0..2 {
        daemon.stop();
        daemon = Daemon::start(&place);
        assert!(read(&daemon, "v") == content);
        assert!(read(&daemon, "used") == held[3]);
        check_from(&daemon, &held, 3);
    }
    // Its superblock names a layer that is long gone.
    daemon.attach("idle");
    assert!(read(&daemon, "idle") == held[3]);
    daemon.stop();
}

#[test]
fn a_snapshot_that_is_attached_goes_down_and_is_read_on() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon.volume("v", "128M");
    let mut content = pattern::bytes(1, BASE);
    write(&daemon, "v", 0, &content);
    let mut held = Vec::new();
    for number in 0..3 {
        held.push(content.clone());
        snapshot_and_change(&daemon, number, &mut content, CHANGED);
    }
    let base = layer_of(&daemon, "v@s0");
    daemon.attach("v@s1");
    let mut client =
        Peer::open(&Address::from(daemon.socket().as_path()), "v@s1").expect("attached");
    daemon.sealvol(&["snapshot", "delete", "v@s0"]).succeeded();
    // One that was connected before it, and one that connects after it.
    wait_for_layers(&place, 3);
    for at in (0..BASE).step_by(MIB) {
        let found = client.read(at as u64, 1 << 20).expect("read");
        assert!(found == held[1][at..at + MIB], "at {at}");
    }
    assert!(read(&daemon, "v@s1") == held[1]);
    drop(client);
    assert_eq!(layer_of(&daemon, "v@s1"), base);
    let changes = daemon.sealvol(&["snapshot", "show", "v@s1", "--extents"]);
    changes.succeeded();
    daemon.detach("v@s1");
    check_from(&daemon, &held, 1);
    assert!(read(&daemon, "v") == content);
    assert_eq!(moved(&daemon, "down"), [CHANGED]);
    daemon.stop();
}

#[test]
fn a_merge_down_that_is_killed_begins_again_and_loses_nothing() {
    const HALF: usize = BASE / 4;
    let place = Place::new();
    let mut daemon = Daemon::start(&place);
    daemon.volume("v", "128M");
    let mut content = pattern::bytes(1, BASE);
    write(&daemon, "v", 0, &content);
    let mut held = content.clone();
    snapshot_and_change(&daemon, 0, &mut content, HALF);
    let base = layer_of(&daemon, "v@s0");
    for round in 1..6 {
        let before = std::mem::replace(&mut held, content.clone());
        snapshot_and_change(&daemon, round, &mut content, HALF);
        let (oldest, next) = (format!("v@s{}", round - 1), format!("v@s{round}"));
        assert!(held_by(&daemon, &oldest) == before, "round {round}");
        daemon.sealvol(&["snapshot", "delete", &oldest]).succeeded();
        std::thread::sleep(Duration::from_millis(25 * (round as u64 - 1)));
        daemon.kill();
        daemon = Daemon::start(&place);
        assert!(read(&daemon, "v") == content, "round {round}");
        assert!(held_by(&daemon, &next) == held, "round {round}");
        wait_for_layers(&place, 2);
        assert!(read(&daemon, "v") == content, "round {round}, merged");
        assert!(held_by(&daemon, &next) == held, "round {round}, merged");
        assert_eq!(layer_of(&daemon, &next), base, "round {round}");
        assert_eq!(moved(&daemon, "up"), [0; 0]);
    }
    daemon.stop();
}
