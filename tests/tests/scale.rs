//! Many volumes on one daemon, and many clients of one volume. What it takes is asserted, how long it takes is printed.
//!
//! `SEALVOL_VOLUMES=1000 cargo nextest run -p sealvol-tests -E 'binary(scale)' --no-capture` is the full form.

use std::time::{Duration, Instant};

use sealvol_tests::crowd::{each, keys, locked_bytes};
use sealvol_tests::daemon::Daemon;
use sealvol_tests::pattern;
use sealvol_tests::peer::{Address, BLOCK, Peer};
use sealvol_tests::place::Place;
use sealvol_tests::resident::{locked_kib, now_kib};

/// What a daemon may have in memory without any volume, in KiB.
const FIXED: u64 = 64 << 10;
/// What an idle volume may add to it: a thousand of them stay far below 1 GiB.
const PER_VOLUME: u64 = 64;
/// Locked for a key, in bytes.
const SLOT: u64 = 1 << 10;
/// By which locked memory grows.
const ARENA: u64 = 256 << 10;
/// The limit of locked memory that a process has unless somebody raised it.
const MEMLOCK: u64 = 8 << 20;

/// As many volumes as the environment asks for.
fn volumes() -> Vec<String> {
    let count =
        std::env::var("SEALVOL_VOLUMES").map_or(64, |count| count.parse().expect("a number"));
    (0..count).map(|number| format!("v{number}")).collect()
}

/// Asserts what attached idle volumes may take, and prints what they take.
#[track_caller]
fn within_bounds(daemon: &Daemon<'_>, volumes: u64) {
    let (resident, locked) = (now_kib(daemon.pid()), locked_bytes(daemon));
    let everything_locked = locked_kib(daemon.pid());
    println!(
        "{volumes} volumes: {resident} KiB resident, {locked} bytes locked for {} keys, VmLck {everything_locked} KiB",
        keys(daemon)
    );
    let bound = FIXED + volumes * PER_VOLUME;
    assert!(resident <= bound, "{resident} KiB, more than {bound}");
    let bound = (volumes * SLOT).next_multiple_of(ARENA).max(ARENA);
    assert!(locked <= bound, "{locked} bytes locked, more than {bound}");
    assert!(
        everything_locked << 10 <= MEMLOCK,
        "VmLck {everything_locked} KiB"
    );
    assert_eq!(keys(daemon), volumes, "keys in locked memory");
}

/// Writes to every fourth volume or finds what was written.
fn used(daemon: &Daemon<'_>, names: &[String], use_it: impl Fn(&mut Peer, &[u8])) {
    let address = Address::from(daemon.socket().as_path());
    for (name, seed) in names.iter().zip(0..).step_by(4) {
        let mut peer = Peer::open(&address, name).expect("served");
        use_it(&mut peer, &pattern::bytes(seed, BLOCK));
    }
}

#[test]
fn idle_volumes_take_little_memory_and_all_come_back_after_a_restart() {
    let names = volumes();
    let count = u64::try_from(names.len()).expect("a count");
    let place = Place::new();
    let daemon = Daemon::start(&place);
    within_bounds(&daemon, 0);
    let began = Instant::now();
    each(&names, |name| {
        daemon
            .sealvol(&["volume", "create", name, "--size", "1G"])
            .succeeded();
    });
    println!("created in {:?}", began.elapsed());
    let began = Instant::now();
    each(&names, |name| {
        daemon.attach(name);
    });
    println!("attached in {:?}", began.elapsed());
    within_bounds(&daemon, count);
    used(&daemon, &names, |peer, content| {
        peer.write(0, content).expect("written");
        peer.flush().expect("durable");
    });

    let began = Instant::now();
    daemon.stop();
    println!("stopped in {:?}", began.elapsed());
    let began = Instant::now();
    let daemon = Daemon::start(&place);
    // It answers before it has attached them all, and takes NBD clients after.
    while keys(&daemon) < count {
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("started and attached again in {:?}", began.elapsed());
    within_bounds(&daemon, count);
    used(&daemon, &names, |peer, content| {
        assert_eq!(peer.read(0, 4096).expect("read"), content);
    });

    let began = Instant::now();
    each(&names, |name| daemon.detach(name));
    println!("detached in {:?}", began.elapsed());
    assert_eq!(keys(&daemon), 0, "keys in locked memory");
    daemon.stop();
}

#[test]
fn every_one_of_256_connections_at_work_on_one_volume_gets_what_it_wrote() {
    const CONNECTIONS: u64 = 256;
    const BLOCKS: u64 = 16;
    const TURNS: u64 = 4;
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon.volume("crowded", "1G");
    let address = Address::from(daemon.socket().as_path());
    let peers: Vec<_> = (0..CONNECTIONS)
        .map(|_| Peer::open(&address, "crowded").expect("served"))
        .collect();
    let start = std::sync::Barrier::new(peers.len());
    // Each has every 256th block, so that neighbours share map pages and range locks are asked for side by side.
    let offset = |number: u64, block: u64| (block * CONNECTIONS + number) * BLOCK as u64;
    let seed = |number: u64, block: u64, turn: u64| (number << 32) + (block << 16) + turn;
    std::thread::scope(|scope| {
        for (mut peer, number) in peers.into_iter().zip(0..) {
            let start = &start;
            std::thread::Builder::new()
                .stack_size(128 << 10)
                .spawn_scoped(scope, move || {
                    start.wait();
                    for turn in 0..TURNS {
                        for block in 0..BLOCKS {
                            let content = pattern::bytes(seed(number, block, turn), BLOCK);
                            peer.write(offset(number, block), &content)
                                .expect("written");
                        }
                        if number % 8 == turn {
                            peer.flush().expect("durable");
                        }
                        for block in 0..BLOCKS {
                            let read = peer.read(offset(number, block), 4096).expect("read");
                            let expected = pattern::bytes(seed(number, block, turn), BLOCK);
                            assert!(
                                read == expected,
                                "block {block} of client {number} in turn {turn}"
                            );
                        }
                    }
                })
                .expect("a thread");
        }
    });
    daemon.kill();

    let daemon = Daemon::start(&place);
    let mut peer = Peer::open(&address, "crowded").expect("served");
    for number in 0..CONNECTIONS {
        for block in 0..BLOCKS {
            let read = peer.read(offset(number, block), 4096).expect("read");
            let expected = pattern::bytes(seed(number, block, TURNS - 1), BLOCK);
            assert!(
                read == expected,
                "block {block} of client {number} after a kill"
            );
        }
    }
    drop(peer);
    daemon.stop();
}
