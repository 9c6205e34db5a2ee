//! Snapshots: what they hold, how they are seen, and what is refused; cut while clients write, and while nobody has the key.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use sealvol_tests::daemon::Daemon;
use sealvol_tests::pattern;
use sealvol_tests::peer::{Address, BLOCK, Peer, command, request};
use sealvol_tests::place::Place;
use sealvol_tests::programs::{run, wait_for};

fn address(daemon: &Daemon<'_>) -> Address {
    Address::from(daemon.socket().as_path())
}

fn write(daemon: &Daemon<'_>, name: &str, offset: u64, data: &[u8]) {
    let mut peer = Peer::open(&address(daemon), name).expect("attached");
    peer.write(offset, data).expect("written");
}

/// A whole export, as nbdcopy reads it.
fn content(daemon: &Daemon<'_>, place: &Place, name: &str) -> Vec<u8> {
    let file = place.file("copy");
    let _ = std::fs::remove_file(&file);
    let file_name = file.to_str().expect("UTF-8");
    run("nbdcopy", &[&daemon.uri(name), file_name]).succeeded();
    std::fs::read(&file).expect("the copy")
}

fn snapshot(daemon: &Daemon<'_>, names: &[&str]) {
    let mut arguments = vec!["snapshot", "create"];
    arguments.extend(names);
    daemon.sealvol(&arguments).succeeded();
}

#[test]
fn a_snapshot_reads_as_its_volume_did_and_the_volume_goes_on() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon.volume("v", "4M");
    let (before, after) = (pattern::bytes(1, 1 << 20), pattern::bytes(2, 64 << 10));
    write(&daemon, "v", 0, &before);
    snapshot(&daemon, &["v@monday"]);
    write(&daemon, "v", 512 << 10, &after);
    let mut peer = Peer::open(&address(&daemon), "v").expect("attached");
    let zeros = request(command::WRITE_ZEROES, 0, 1, 4096, 8192);
    peer.call(&zeros).expect("zeroed");
    drop(peer);

    let uri = daemon.attach("v@monday");
    assert_eq!(uri, daemon.uri("v@monday"));
    let mut expected = before;
    expected.resize(4 << 20, 0);
    assert!(
        content(&daemon, &place, "v@monday") == expected,
        "the snapshot"
    );
    expected[512 << 10..(512 << 10) + after.len()].copy_from_slice(&after);
    expected[4096..4096 + 8192].fill(0);
    assert!(content(&daemon, &place, "v") == expected, "the volume");
    let info = run("nbdinfo", &["--json", &uri]).succeeded().json();
    assert_eq!(info["exports"][0]["is_read_only"], true, "{info}");

    // The same after the daemon has stopped and started, both attached again.
    daemon.stop();
    let daemon = Daemon::start(&place);
    let shown = wait_for("the snapshot's export", || {
        let shown = daemon.sealvol_json(&["snapshot", "show", "v@monday"]);
        (shown["state"] == "attached").then_some(shown)
    });
    assert_eq!(shown["size"], 4 << 20);
    assert!(
        content(&daemon, &place, "v") == expected,
        "the volume again"
    );

    snapshot(&daemon, &["v@tuesday"]);
    let shown = daemon.sealvol_json(&["snapshot", "show", "v@tuesday", "--extents"]);
    assert_eq!(shown["previous"], "v@monday");
    assert_eq!(shown["depth"], 2);
    let extents = serde_json::json!([
        { "offset": 4096, "length": 8192, "zero": true },
        { "offset": 512 << 10, "length": 64 << 10, "zero": false },
    ]);
    assert_eq!(shown["changes"]["extents"], extents);
    let own = |name| daemon.sealvol_json(&["snapshot", "show", name])["own_bytes"].clone();
    let (first, second) = (own("v@monday").as_u64(), own("v@tuesday").as_u64());
    assert!(first >= Some(1 << 20), "{first:?}");
    assert!(
        second >= Some(64 << 10) && second < Some(1 << 20),
        "{second:?}"
    );

    let volume = daemon.sealvol_json(&["volume", "show", "v"]);
    assert_eq!(volume["depth"], 3);
    let layer = |number: usize| &volume["layers"][number];
    assert_eq!(
        (&layer(1)["snapshot"], &layer(1)["sealed"]),
        (&"tuesday".into(), &true.into())
    );
    assert_eq!(
        (&layer(0)["sealed"], &layer(2)["snapshot"]),
        (&false.into(), &"monday".into())
    );
    assert_eq!(
        layer(0)["data_key"],
        layer(2)["data_key"],
        "a snapshot needs no key"
    );
    let names = |list: &serde_json::Value| {
        let all = list["snapshots"].as_array().expect("a list").iter();
        all.map(|snapshot| snapshot["name"].clone())
            .collect::<Vec<_>>()
    };
    let list = daemon.sealvol_json(&["snapshot", "list", "v"]);
    assert_eq!(names(&list), ["v@monday", "v@tuesday"]);
    daemon.detach("v@monday");
    daemon
        .sealvol(&["snapshot", "delete", "v@monday"])
        .succeeded();
    assert_eq!(
        names(&daemon.sealvol_json(&["snapshot", "list"])),
        ["v@tuesday"]
    );
    assert!(
        content(&daemon, &place, "v") == expected,
        "its layer is kept"
    );
    daemon.stop();
    let audit = std::fs::read_to_string(place.state().join("audit.log")).expect("the audit log");
    for operation in ["snapshot", "delete-snapshot"] {
        let record = audit.lines().find(|line| {
            line.contains(&format!("\"operation\":\"{operation}\"")) && line.contains("v@monday")
        });
        assert!(record.is_some(), "{operation}: {audit}");
    }
}

#[test]
fn a_snapshot_under_load_is_a_prefix_of_what_one_writer_wrote() {
    const BLOCKS: u64 = 64;
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon.volume("v", "64M");
    let address = address(&daemon);
    // Another client keeps four connections busy with everything, beside the blocks that are looked at.
    let fio = format!("--uri={}", daemon.uri("v"));
    let load = std::thread::spawn(move || {
        run(
            "fio",
            &[
                "--name=load",
                "--ioengine=nbd",
                &fio,
                "--numjobs=4",
                "--offset=8M",
                "--offset_increment=8M",
                "--size=8M",
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
            ],
        )
        .succeeded();
    });
    let (stop, sent, acknowledged) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let mut seen = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut peer = Peer::open(&address, "v").expect("attached");
            for version in 1.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                sent.store(version, Ordering::SeqCst);
                let offset = version % BLOCKS * BLOCK as u64;
                let mut bytes = request(command::WRITE, command::FUA, 1, offset, 4096).to_vec();
                bytes.extend(version.to_le_bytes().repeat(BLOCK / 8));
                peer.call(&bytes).expect("written durably");
                acknowledged.store(version, Ordering::SeqCst);
            }
        });
        for number in 0..6_u64 {
            let enough = acknowledged.load(Ordering::SeqCst) + 20;
            wait_for("the writer", || {
                (acknowledged.load(Ordering::SeqCst) > enough).then_some(())
            });
            let before = acknowledged.load(Ordering::SeqCst);
            snapshot(&daemon, &[&format!("v@s{number}")]);
            seen.push((before, sent.load(Ordering::SeqCst)));
        }
        stop.store(true, Ordering::SeqCst);
    });
    load.join().expect("fio verified what it wrote");
    for (number, (before, after)) in seen.into_iter().enumerate() {
        let name = format!("v@s{number}");
        daemon.attach(&name);
        let mut peer = Peer::open(&address, &name).expect("attached");
        let data = peer
            .read(0, u32::try_from(BLOCKS).expect("small") * 4096)
            .expect("read");
        let versions: Vec<u64> = data
            .chunks_exact(BLOCK)
            .map(|block| {
                let version = u64::from_le_bytes(block[..8].try_into().expect("eight bytes"));
                assert!(
                    block == version.to_le_bytes().repeat(BLOCK / 8),
                    "a torn block"
                );
                version
            })
            .collect();
        let last = versions.iter().copied().max().expect("blocks");
        assert!(
            (before..=after).contains(&last),
            "{name}: {last} of {before} to {after}"
        );
        for (block, version) in (0..).zip(versions) {
            // The newest version of the block that the last one in the snapshot allows.
            let expected = last
                .checked_sub(block)
                .map_or(0, |since| last - since % BLOCKS);
            assert_eq!(
                version, expected,
                "{name}: block {block}, when {last} is in it"
            );
        }
    }
    daemon.stop();
}

#[test]
fn a_group_is_cut_at_one_moment() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon.volume("a", "1M");
    daemon.volume("b", "1M");
    let address = address(&daemon);
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut a = Peer::open(&address, "a").expect("attached");
            let mut b = Peer::open(&address, "b").expect("attached");
            for version in 1_u64.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let bytes = version.to_le_bytes().repeat(BLOCK / 8);
                // Each is sent when the one before it was acknowledged: what is in `b` is in `a`.
                a.write(0, &bytes).expect("written");
                b.write(0, &bytes).expect("written");
                done.store(version, Ordering::SeqCst);
            }
        });
        for number in 0..12_u64 {
            let enough = done.load(Ordering::SeqCst) + 3;
            wait_for("the writer", || {
                (done.load(Ordering::SeqCst) > enough).then_some(())
            });
            let names = [format!("b@s{number}"), format!("a@s{number}")];
            snapshot(&daemon, &[&names[0], &names[1]]);
        }
        stop.store(true, Ordering::SeqCst);
    });
    for number in 0..12 {
        let version = |volume: &str| {
            let name = format!("{volume}@s{number}");
            daemon.attach(&name);
            let mut peer = Peer::open(&address, &name).expect("attached");
            let block = peer.read(0, 4096).expect("read");
            u64::from_le_bytes(block[..8].try_into().expect("eight bytes"))
        };
        let (a, b) = (version("a"), version("b"));
        assert!(
            a == b || a == b + 1,
            "snapshot {number}: {a} in a, {b} in b"
        );
    }
    daemon.stop();
}

#[test]
fn a_snapshot_needs_nobody_with_the_key_and_is_sealed_by_the_next_attach() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon.volume("v", "2M");
    let first = pattern::bytes(1, 256 << 10);
    write(&daemon, "v", 0, &first);
    daemon.detach("v");
    let audit = || std::fs::read_to_string(place.state().join("audit.log")).expect("the log");
    let unwraps = || audit().matches("\"operation\":\"unwrap\"").count();
    let before = unwraps();
    let made = daemon.sealvol(&["snapshot", "create", "v@s"]).succeeded();
    assert!(made.stdout.contains("sealed by the next attach"), "{made}");
    assert_eq!(unwraps(), before, "no key was asked for");
    daemon
        .sealvol(&["volume", "resize", "v", "--size", "4M"])
        .succeeded();
    snapshot(&daemon, &["v@t"]);

    let shown = |name| daemon.sealvol_json(&["snapshot", "show", name]);
    assert_eq!(
        (&shown("v@s")["state"], &shown("v@s")["size"]),
        (&"pending".into(), &(2 << 20).into())
    );
    assert_eq!(
        (&shown("v@t")["state"], &shown("v@t")["size"]),
        (&"pending".into(), &(4 << 20).into())
    );
    // The newer one, of which the older one is a part, before the volume itself.
    daemon.attach("v@t");
    let mut expected = first;
    expected.resize(4 << 20, 0);
    assert!(content(&daemon, &place, "v@t") == expected, "the snapshot");
    assert_eq!(shown("v@s")["state"], "completed");
    daemon.attach("v");
    assert!(content(&daemon, &place, "v") == expected, "the volume");
    write(&daemon, "v", 0, &[7; 4096]);
    assert!(
        content(&daemon, &place, "v@t") == expected,
        "the snapshot still"
    );
    daemon.attach("v@s");
    assert!(
        content(&daemon, &place, "v@s") == expected[..2 << 20],
        "the first one"
    );
    // A volume that nobody ever had the key of.
    daemon
        .sealvol(&["volume", "create", "empty", "--size", "1M"])
        .succeeded();
    snapshot(&daemon, &["empty@s"]);
    daemon.attach("empty@s");
    assert!(
        content(&daemon, &place, "empty@s") == vec![0; 1 << 20],
        "nothing"
    );
    daemon.attach("empty");
    write(&daemon, "empty", 0, &[7; 4096]);
    assert!(
        content(&daemon, &place, "empty@s") == vec![0; 1 << 20],
        "nothing still"
    );
    daemon.stop();
}

#[test]
fn deep_stacks_read_right() {
    const SNAPSHOTS: u64 = 24;
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon.volume("v", "2M");
    let mut expected = vec![0; 2 << 20];
    let mut states = Vec::new();
    for number in 0..SNAPSHOTS {
        for piece in 0..4_u64 {
            // Sectors of blocks that lower layers have, and whole blocks.
            let len = if piece % 2 == 0 { 4096 } else { 20_480 };
            let data = pattern::bytes(number << 8 | piece, len);
            let at = usize::try_from((number * 7 + piece * 131) % 480 * 4096).expect("small");
            write(&daemon, "v", at as u64, &data);
            expected[at..at + len].copy_from_slice(&data);
        }
        snapshot(&daemon, &[&format!("v@s{number}")]);
        states.push(expected.clone());
    }
    let check = |daemon: &Daemon<'_>| {
        assert!(content(daemon, &place, "v") == expected, "the volume");
        for number in [0, 1, SNAPSHOTS / 2, SNAPSHOTS - 1] {
            let name = format!("v@s{number}");
            let state = &states[usize::try_from(number).expect("small")];
            assert!(content(daemon, &place, &name) == *state, "{name}");
        }
    };
    for number in [0, 1, SNAPSHOTS / 2, SNAPSHOTS - 1] {
        daemon.attach(&format!("v@s{number}"));
    }
    check(&daemon);
    daemon.stop();
    let daemon = Daemon::start(&place);
    check(&daemon);
    daemon.detach("v");
    daemon.attach("v");
    check(&daemon);
    let volume = daemon.sealvol_json(&["volume", "show", "v"]);
    assert_eq!(volume["depth"], SNAPSHOTS + 1);
    daemon.stop();
}

#[test]
fn what_cannot_be_is_refused_by_name_and_leaves_nothing() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon.volume("v", "1M");
    daemon.volume("w", "1M");
    snapshot(&daemon, &["v@s"]);
    let layers = || {
        std::fs::read_dir(place.state().join("layers"))
            .expect("there")
            .count()
    };
    let before = layers();
    let refused = |arguments: &[&str], code, words: &[&str]| {
        daemon.sealvol(arguments).failed_with(code, words);
    };
    refused(
        &["snapshot", "create", "v@s"],
        5,
        &["v@s", "already", "another name"],
    );
    refused(
        &["snapshot", "create", "none@s"],
        4,
        &["none", "volume list"],
    );
    refused(
        &["snapshot", "create", "w@s", "v@s"],
        5,
        &["v@s", "already"],
    );
    refused(
        &["snapshot", "create", "w@s", "w@t"],
        2,
        &["two snapshots of volume w"],
    );
    refused(
        &["snapshot", "show", "v@none"],
        4,
        &["v@none", "snapshot list"],
    );
    refused(&["snapshot", "delete", "v@none"], 4, &["v@none"]);
    refused(&["volume", "attach", "v@none"], 4, &["v@none"]);
    refused(&["volume", "detach", "v@s"], 5, &["v@s", "not attached"]);
    refused(
        &["volume", "attach", "v@s", "--accept-loss"],
        2,
        &["v@s", "newest layer"],
    );
    refused(&["snapshot", "create", "v"], 2, &["VOLUME@SNAPSHOT"]);
    let list = daemon.sealvol_json(&["snapshot", "list", "w"]);
    assert_eq!(
        list["snapshots"].as_array().map(Vec::len),
        Some(0),
        "of a group all or none"
    );
    daemon.attach("v@s");
    refused(&["volume", "attach", "v@s"], 5, &["v@s", "attached"]);
    refused(&["snapshot", "delete", "v@s"], 5, &["v@s", "detach"]);
    let mut peer = Peer::open(&address(&daemon), "v@s").expect("attached");
    let error = peer.write(0, &[1; 4096]).expect_err("it is read-only");
    drop((peer, error));
    daemon.detach("v");
    refused(
        &["volume", "delete", "v", "--snapshots"],
        5,
        &["v@s", "attached"],
    );
    daemon.detach("v@s");
    refused(&["volume", "delete", "v"], 5, &["snapshots", "--snapshots"]);
    refused(
        &["snapshot", "show", "v@s", "--extents"],
        5,
        &["v@s", "attach it"],
    );
    daemon
        .sealvol(&["volume", "attach", "v", "--read-only"])
        .succeeded();
    refused(&["snapshot", "create", "v@t"], 5, &["read-only"]);
    daemon.detach("v");
    assert_eq!(layers(), before, "nothing stays of what was refused");
    daemon
        .sealvol(&["volume", "delete", "v", "--snapshots"])
        .succeeded();
    daemon.detach("w");
    daemon.sealvol(&["volume", "delete", "w"]).succeeded();
    assert_eq!(layers(), 0, "every layer is gone");
    daemon.stop();
}
