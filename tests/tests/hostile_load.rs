//! Many clients that each hold as much as they can: the daemon's memory stays under a bound that follows from what it promises,
//! and the next ordinary client is served.

use std::time::{Duration, Instant};

use sealvol_tests::daemon::Daemon;
use sealvol_tests::pattern;
use sealvol_tests::peer::{Address, BLOCK, LENGTH_MAX, PAYLOAD_MAX, Peer, command, request};
use sealvol_tests::place::Place;
use sealvol_tests::programs::wait_for;
use sealvol_tests::resident::{now_kib, peak_kib, processor_time};

const NAME: &str = "target";
const CONNECTIONS: u64 = 256;

// As in crates/daemon/src/engine/memory.rs, in KiB.
const TOTAL_MAX: u64 = 512 << 10;
const CONNECTION_MAX: u64 = 16 << 10;
const SURE: u64 = 256;
const RECEIVE_BUFFER: u64 = 256;
const LAST_REQUEST: u64 = 1 << 10;
/// Program, key memory, map pages, buffers kept for reuse (32 MiB a worker, and as much for the pool), and what the allocator
/// does not give back.
const FIXED: u64 = 192 << 10;

/// The most that all connections of these tests may make the daemon hold, in KiB.
const BOUND: u64 = TOTAL_MAX + CONNECTIONS * (SURE + RECEIVE_BUFFER + LAST_REQUEST) + FIXED;

fn start<'a>(place: &'a Place, size: &str) -> (Daemon<'a>, Address) {
    let daemon = Daemon::start(place);
    daemon.volume(NAME, size);
    let address = Address::from(daemon.socket().as_path());
    (daemon, address)
}

fn open_many(address: &Address) -> Vec<Peer> {
    (0..CONNECTIONS)
        .map(|_| Peer::open(address, NAME).expect("served"))
        .collect()
}

/// Waits until the daemon has nothing more to do for whoever is there or was.
fn at_rest(daemon: &Daemon<'_>) {
    wait_for("the daemon to come to rest", || {
        let before = processor_time(daemon.pid());
        std::thread::sleep(Duration::from_millis(300));
        (processor_time(daemon.pid()) - before < Duration::from_millis(30)).then_some(())
    });
}

/// Asserts the bound (in KiB) and that an ordinary client is served, with the crowd there and after it has left.
#[track_caller]
fn survived(daemon: Daemon<'_>, address: &Address, bound: u64, crowd: Vec<Peer>) {
    at_rest(&daemon);
    Peer::served(address, NAME);
    let with = now_kib(daemon.pid());
    drop(crowd);
    Peer::served(address, NAME);
    at_rest(&daemon);
    let (after, peak) = (now_kib(daemon.pid()), peak_kib(daemon.pid()));
    println!(
        "KiB with the crowd: {with}, after it: {after}, at most: {peak}, bound: {}",
        bound
    );
    assert!(peak < bound, "{peak} KiB, more than {}", bound);
    daemon.stop();
}

#[test]
fn half_sent_writes_hold_no_more_than_a_receive_buffer_each() {
    let place = Place::new();
    let (daemon, address) = start(&place, "1G");
    let mut crowd = open_many(&address);
    let payload = pattern::bytes(1, (PAYLOAD_MAX / 2) as usize + 1000 * 8);
    for (peer, turn) in crowd.iter_mut().zip(0..) {
        // All of them on the same range, so that the disk does not become the test.
        let offset = (32 << 20) + (turn % 4) * u64::from(PAYLOAD_MAX);
        peer.send(&request(command::WRITE, 0, 1, offset, PAYLOAD_MAX))
            .expect("taken");
        // The first sixteen send half of it, the others their first half MiB.
        let part = if turn < 16 {
            payload.len()
        } else {
            (512 << 10) + 1000
        };
        peer.send(&payload[..part]).expect("taken");
    }
    survived(
        daemon,
        &address,
        CONNECTIONS * RECEIVE_BUFFER + FIXED,
        crowd,
    );
}

/// 256 connections, each with 256 requests of 32 MiB whose replies nobody reads.
fn unread(place: &Place, content: bool, open: impl Fn(&Address) -> Peer) {
    let (daemon, address) = start(place, "64M");
    if content {
        let mut peer = Peer::open(&address, NAME).expect("served");
        peer.write(0, &pattern::bytes(1, PAYLOAD_MAX as usize))
            .expect("written");
    }
    let mut crowd: Vec<_> = (0..CONNECTIONS).map(|_| open(&address)).collect();
    let reads = request(command::READ, 0, 1, 0, PAYLOAD_MAX).repeat(256);
    for peer in &mut crowd {
        peer.send(&reads).expect("taken");
    }
    survived(daemon, &address, BOUND, crowd);
}

#[test]
fn unread_simple_replies_full_of_zeros_hold_no_more_than_their_share() {
    unread(&Place::new(), false, |address| {
        Peer::open(address, NAME).expect("served")
    });
}

#[test]
fn unread_simple_replies_full_of_data_hold_no_more_than_their_share() {
    unread(&Place::new(), true, |address| {
        Peer::open(address, NAME).expect("served")
    });
}

#[test]
fn unread_structured_replies_hold_no_more_than_their_share() {
    unread(&Place::new(), true, |address| {
        Peer::open_structured(address, NAME).expect("served")
    });
}

/// Each byte comes out of a buffer of its own.
#[test]
fn unread_replies_of_a_byte_hold_no_more_than_their_share() {
    let place = Place::new();
    let (daemon, address) = start(&place, "64M");
    let mut peer = Peer::open(&address, NAME).expect("served");
    peer.write(0, &pattern::bytes(1, BLOCK)).expect("written");
    drop(peer);
    let mut crowd: Vec<_> = (0..CONNECTIONS / 8)
        .map(|_| Peer::open(&address, NAME).expect("served"))
        .collect();
    let reads = request(command::READ, 0, 1, 0, 1).repeat(100_000);
    let mut sent = vec![0; crowd.len()];
    // The kernel takes some of the replies; on, until the daemon takes no more.
    wait_for("the daemon to take no more", || {
        let before = sent.clone();
        for (peer, sent) in crowd.iter_mut().zip(&mut sent) {
            *sent += peer.stuff(&reads[*sent..]).expect("taken");
        }
        at_rest(&daemon);
        (sent == before).then_some(())
    });
    // Each is ahead by little more than it is sure of.
    let bound = crowd.len() as u64 * (SURE + RECEIVE_BUFFER + LAST_REQUEST) + FIXED;
    survived(daemon, &address, bound, crowd);
}

#[test]
fn unread_block_status_replies_hold_no_more_than_their_share() {
    let place = Place::new();
    let (daemon, address) = start(&place, "64M");
    // Every other block: the longest answer that there is.
    let mut peer = Peer::open(&address, NAME).expect("served");
    let block = pattern::bytes(1, BLOCK);
    for number in 0..4096 {
        peer.write(number * 2 * BLOCK as u64, &block)
            .expect("written");
    }
    drop(peer);
    let mut crowd: Vec<_> = (0..CONNECTIONS)
        .map(|_| Peer::open_structured(&address, NAME).expect("served"))
        .collect();
    let asks = request(command::BLOCK_STATUS, 0, 1, 0, 64 << 20).repeat(1024);
    for peer in &mut crowd {
        peer.stuff(&asks).expect("taken");
    }
    survived(daemon, &address, BOUND, crowd);
}

/// Floods the largest range there is with `kind` from eight connections, with others served meanwhile; then they leave.
fn flood_ranges(size: &str, span: u64, kind: u16, flags: u16) {
    let place = Place::new();
    let (daemon, address) = start(&place, size);
    let mut crowd: Vec<_> = (0..8)
        .map(|_| Peer::open(&address, NAME).expect("served"))
        .collect();
    let offsets = (0..256).map(|turn| (turn << 32) % (span - u64::from(LENGTH_MAX)));
    let flood: Vec<u8> = offsets
        .flat_map(|offset| request(kind, flags, 1, offset, LENGTH_MAX))
        .collect();
    for peer in &mut crowd {
        peer.send(&flood).expect("taken");
    }
    let mut ordinary = Peer::open(&address, NAME).expect("served");
    let content = pattern::bytes(2, BLOCK);
    for _ in 0..20 {
        ordinary.read(0, 4096).expect("served");
        Peer::open(&address, NAME)
            .expect("served")
            .write(0, &content)
            .expect("written");
    }
    let began = Instant::now();
    drop(crowd);
    at_rest(&daemon);
    println!("at rest {:?} after the flood left", began.elapsed());
    Peer::served(&address, NAME);
    let peak = peak_kib(daemon.pid());
    println!("KiB at most: {peak}");
    assert!(peak < 8 * CONNECTION_MAX + FIXED, "{peak} KiB");
    daemon.stop();
}

#[test]
fn a_flood_of_zeroes_over_everything_is_bounded() {
    flood_ranges("15T", 15 << 40, command::WRITE_ZEROES, 0);
}

#[test]
fn a_flood_of_trims_over_everything_is_bounded() {
    flood_ranges("15T", 15 << 40, command::TRIM, 0);
}

#[test]
fn a_flood_of_zeroes_that_take_space_ends_with_who_sent_it() {
    flood_ranges("4G", 4 << 30, command::WRITE_ZEROES, command::NO_HOLE);
}
