//! Clients that leave in the middle, never finish, say noise or flood: whoever is ordinary is served all the same.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sealvol_tests::daemon::Daemon;
use sealvol_tests::pattern;
use sealvol_tests::peer::{
    Address, BLOCK, PAYLOAD_MAX, Peer, client_flags, command, option, option_go, request,
};
use sealvol_tests::place::Place;
use sealvol_tests::programs::wait_for;

const NAME: &str = "target";
/// Handshakes that one worker keeps: `HANDSHAKES_MAX` of `crates/daemon/src/engine/mod.rs`.
const HANDSHAKES_MAX: usize = 256;

/// A daemon with one worker thread, on which all connections meet, and one volume.
fn start(place: &Place, change: impl FnOnce(&mut Command)) -> (Daemon<'_>, Address) {
    let config = place.file("sealvold.toml");
    std::fs::write(&config, "workers = 1\n").expect("a file");
    let mut command = Daemon::command(place);
    command.arg("--config").arg(&config);
    change(&mut command);
    let daemon = Daemon::start_by(place, command).unwrap_or_else(|outcome| panic!("{outcome}"));
    daemon.volume(NAME, "64M");
    let address = Address::from(daemon.socket().as_path());
    (daemon, address)
}

fn tcp_address(daemon: &Daemon<'_>) -> Address {
    let status = daemon.sealvol_json(&["status"]);
    let listening = status["listening"].as_array().expect("a list");
    let port = listening
        .iter()
        .filter_map(|uri| uri.as_str()?.strip_prefix("nbd://"))
        .next()
        .unwrap_or_else(|| panic!("no TCP port: {status}"));
    Address::Tcp(port.parse::<SocketAddr>().expect("an address"))
}

/// All that a client says from its first byte on, with every kind of request in it, and which of its bytes are payload.
fn conversation() -> (Vec<u8>, Vec<Range<usize>>) {
    let block = u32::try_from(BLOCK).expect("small");
    let mut payloads = Vec::new();
    let mut bytes = client_flags().to_vec();
    let mut write = |bytes: &mut Vec<u8>, flags, cookie, offset| {
        bytes.extend(request(command::WRITE, flags, cookie, offset, block));
        payloads.push(bytes.len()..bytes.len() + BLOCK);
        bytes.extend(pattern::bytes(cookie, BLOCK));
    };
    bytes.extend(option(8, &[])); // NBD_OPT_STRUCTURED_REPLY
    bytes.extend(option(3, &[])); // NBD_OPT_LIST
    bytes.extend(option_go(NAME));
    write(&mut bytes, 0, 1, 1 << 20);
    for (kind, flags, cookie, offset, length) in [
        (command::READ, 0, 2, 1 << 20, PAYLOAD_MAX),
        (command::TRIM, command::FUA, 3, 2 << 20, 1 << 20),
        (command::WRITE_ZEROES, command::NO_HOLE, 4, 2 << 20, 1 << 20),
        (command::FLUSH, 0, 5, 0, 0),
    ] {
        bytes.extend(request(kind, flags, cookie, offset, length));
    }
    write(&mut bytes, command::FUA, 6, (1 << 20) + 1);
    (bytes, payloads)
}

/// Leaves after each byte of the conversation; within payloads, after each 64th.
fn leave_after_each_byte(address: &Address) {
    let (bytes, payloads) = conversation();
    let is_skipped =
        |cut: usize| !cut.is_multiple_of(64) && payloads.iter().any(|part| part.contains(&cut));
    for cut in (0..=bytes.len()).filter(|&cut| !is_skipped(cut)) {
        // A reset takes unread bytes with it: once the server is given time to read them, once not.
        for time in [0, 1] {
            let mut peer = Peer::connect(address).expect("accepted");
            peer.send(&bytes[..cut]).expect("taken");
            std::thread::sleep(Duration::from_millis(time));
            peer.reset();
        }
    }
}

#[test]
fn a_client_that_leaves_after_any_byte_harms_nobody_else() {
    let place = Place::new();
    let (daemon, address) = start(&place, |_| {});
    leave_after_each_byte(&address);
    Peer::served(&address, NAME);
    daemon.stop();
}

#[test]
fn a_reset_after_any_byte_harms_nobody_else_over_tcp() {
    let place = Place::new();
    let (daemon, address) = start(&place, |command| {
        command.args(["--listen", "nbd://127.0.0.1:0", "--insecure-plaintext-tcp"]);
    });
    let tcp = tcp_address(&daemon);
    leave_after_each_byte(&tcp);
    Peer::served(&tcp, NAME);
    Peer::served(&address, NAME);
    daemon.stop();
}

/// A byte of a long option at a time: never finished, never wrong.
#[test]
fn handshakes_a_byte_at_a_time_keep_nobody_out() {
    let place = Place::new();
    let (daemon, address) = start(&place, |_| {});
    let mut words = client_flags().to_vec();
    words.extend(option(6, &[b'x'; 60]));
    let mut slow: Vec<Peer> = Vec::new();
    for &byte in &words[..8] {
        for _ in 0..50 {
            slow.push(Peer::connect(&address).expect("accepted"));
        }
        for peer in &mut slow {
            let _ = peer.send(&[byte]); // the oldest are closed by now
        }
        Peer::served(&address, NAME);
    }
    // An ordinary client was the last to come, so one of these gave way to it.
    wait_for("the oldest handshakes to be closed", || {
        let open = slow
            .iter_mut()
            .filter_map(|peer| (!peer.is_closed()).then_some(()));
        (open.count() <= HANDSHAKES_MAX).then_some(())
    });
    let last = slow.last_mut().expect("many");
    assert!(!last.is_closed(), "the youngest handshake is left alone");
    drop(slow);
    Peer::served(&address, NAME);
    daemon.stop();
}

/// Connects ten thousand times, says `words` and stays until five hundred others have come.
fn come_ten_thousand_times(words: impl Fn(u64) -> Vec<u8>) {
    let place = Place::new();
    let (daemon, address) = start(&place, |_| {});
    let mut present = std::collections::VecDeque::new();
    for turn in 0..10_000 {
        let mut peer = Peer::connect(&address).expect("accepted");
        let _ = peer.stuff(&words(turn));
        present.push_back(peer);
        if present.len() > 500 {
            present.pop_front();
        }
        if turn % 1000 == 999 {
            Peer::served(&address, NAME);
        }
    }
    drop(present);
    Peer::served(&address, NAME);
    let peak = sealvol_tests::resident::peak_kib(daemon.pid());
    println!("peak: {peak} KiB");
    // At most 256 handshakes are kept, each a few KiB; what is more lies in the kernel.
    assert!(
        peak < 128 << 10,
        "{peak} KiB for connections that said nothing"
    );
    daemon.stop();
}

#[test]
fn ten_thousand_silent_connections_keep_nobody_out() {
    come_ten_thousand_times(|_| Vec::new());
}

#[test]
fn ten_thousand_connections_with_noise_keep_nobody_out() {
    come_ten_thousand_times(|turn| {
        let mut words = if turn % 2 == 0 {
            client_flags().to_vec()
        } else {
            Vec::new()
        };
        words.extend(pattern::bytes(turn, 512));
        words
    });
}

#[test]
fn noise_between_requests_ends_that_connection_only() {
    let place = Place::new();
    let (daemon, address) = start(&place, |_| {});
    let mut ordinary = Peer::open(&address, NAME).expect("served");
    let content = pattern::bytes(3, BLOCK);
    ordinary.write(8 << 20, &content).expect("written");
    for turn in 0..500 {
        let mut peer = Peer::open(&address, NAME).expect("served");
        let mut words = request(command::READ, 0, 1, 0, 512).to_vec();
        words.extend(pattern::bytes(turn, 64));
        words.extend(request(command::WRITE, 0, 2, 8 << 20, 4096));
        words.extend(pattern::bytes(turn, BLOCK));
        let _ = peer.send(&words); // it may hang up before it has taken everything
        wait_for("the server to hang up", || peer.is_closed().then_some(()));
        assert_eq!(
            ordinary.read(8 << 20, 4096).expect("served"),
            content,
            "bytes behind noise became a write"
        );
    }
    daemon.stop();
}

/// Sends `requests` over and over, and reads the replies, until told to stop; counts the rounds.
fn flood(address: &Address, requests: &[u8], reply: usize, stop: &AtomicBool, rounds: &AtomicU64) {
    let mut sender = Peer::open(address, NAME).expect("served");
    let mut receiver = sender.try_clone().expect("a descriptor");
    std::thread::scope(|scope| {
        scope.spawn(move || while receiver.take(reply).is_ok() {});
        while !stop.load(Ordering::Relaxed) {
            match sender.send(requests) {
                Ok(()) => rounds.fetch_add(1, Ordering::Relaxed),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => panic!("the flood was ended: {error}"),
            };
        }
        sender.disconnect();
    });
}

/// Ends a flood with the test that it is for, whether or not that passes.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Asserts that somebody else is served on the same worker while `requests` flood it.
fn floods_are_shared(requests: &[u8], reply: usize) {
    let place = Place::new();
    let (daemon, address) = start(&place, |_| {});
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _ends = Ends(&stop);
        for _ in 0..2 {
            scope.spawn(|| flood(&address, requests, reply, &stop, &rounds));
        }
        wait_for("the flood to rise", || {
            (rounds.load(Ordering::Relaxed) > 100).then_some(())
        });
        for _ in 0..20 {
            Peer::served(&address, NAME);
        }
        let before = rounds.load(Ordering::Relaxed);
        wait_for("the flood to go on", || {
            (rounds.load(Ordering::Relaxed) > before).then_some(())
        });
    });
    daemon.stop();
}

#[test]
fn a_flood_of_small_reads_leaves_its_worker_to_others_too() {
    floods_are_shared(&request(command::READ, 0, 1, 0, 512).repeat(64), 16 + 512);
}

#[test]
fn a_flood_of_refused_requests_leaves_its_worker_to_others_too() {
    floods_are_shared(&request(99, 0, 1, 0, 512).repeat(256), 16);
}

#[test]
fn a_flood_of_writes_leaves_its_worker_to_others_too() {
    let mut requests = request(command::WRITE, 0, 1, 1 << 20, 256 << 10).to_vec();
    requests.extend(pattern::bytes(1, 256 << 10));
    floods_are_shared(&requests, 16);
}

/// A client with a full outbox, a half-sent request and 256 more behind it: it blocks itself alone.
fn block(address: &Address) -> Peer {
    let mut peer = Peer::open(address, NAME).expect("served");
    let reads = request(command::READ, 0, 1, 0, PAYLOAD_MAX).repeat(256);
    peer.send(&reads).expect("taken");
    peer.stuff(&request(command::WRITE, 0, 1, 0, PAYLOAD_MAX))
        .expect("taken");
    peer
}

#[test]
fn a_client_that_reads_no_reply_delays_nobody_else() {
    let place = Place::new();
    let (daemon, address) = start(&place, |_| {});
    let mut blocked: Vec<Peer> = (0..8).map(|_| block(&address)).collect();
    for _ in 0..20 {
        Peer::served(&address, NAME);
    }
    for peer in &mut blocked {
        // Its replies are still there for it to read.
        assert_eq!(peer.reply().expect("a reply"), (1, 0));
    }
    drop(blocked);
    Peer::served(&address, NAME);
    daemon.stop();
}

#[test]
fn a_detach_by_force_does_not_wait_for_who_reads_no_reply() {
    let place = Place::new();
    let (daemon, address) = start(&place, |_| {});
    let blocked: Vec<Peer> = (0..4).map(|_| block(&address)).collect();
    let began = Instant::now();
    daemon
        .sealvol(&["volume", "detach", NAME, "--force"])
        .succeeded();
    assert!(
        began.elapsed() < Duration::from_secs(25),
        "{:?}",
        began.elapsed()
    );
    drop(blocked);
    daemon.stop();
}

#[test]
fn a_stop_does_not_wait_for_who_reads_no_reply() {
    let place = Place::new();
    let (daemon, address) = start(&place, |_| {});
    let blocked: Vec<Peer> = (0..4).map(|_| block(&address)).collect();
    let began = Instant::now();
    daemon.stop();
    assert!(
        began.elapsed() < Duration::from_secs(25),
        "{:?}",
        began.elapsed()
    );
    drop(blocked);
    drop(Daemon::start(&place));
}
