//! The largest volumes, and storms of attaches and detaches. Root, for a file system with files of 64 TiB, and because a process
//! that cannot be dumped shows its descriptors to nobody else.

use std::sync::atomic::{AtomicU64, Ordering};

use sealvol_tests::crowd::{each, keys, locked_bytes};
use sealvol_tests::daemon::Daemon;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::pattern;
use sealvol_tests::peer::{Address, BLOCK, Peer, command, request};
use sealvol_tests::place::{Place, needs_root};
use sealvol_tests::programs::wait_for;
use sealvol_tests::resident::now_kib;

const LARGEST: u64 = 64 << 40;

#[test]
fn a_volume_of_64_tebibytes_is_used_at_both_ends_and_takes_no_memory_for_its_size() {
    let place = Place::with_small_state("64M");
    let daemon = Daemon::start(&place);
    daemon.volume("small", "64M");
    let before = now_kib(daemon.pid());
    daemon.volume("large", "64T");
    let address = Address::from(daemon.socket().as_path());
    let ends = [0, LARGEST / 2 - BLOCK as u64, LARGEST - BLOCK as u64];
    let mut peer = Peer::open(&address, "large").expect("served");
    for (offset, seed) in ends.into_iter().zip(0..) {
        peer.write(offset, &pattern::bytes(seed, BLOCK))
            .expect("written");
    }
    let beyond = peer
        .write(LARGEST, &pattern::bytes(9, BLOCK))
        .expect_err("beyond the end");
    assert_eq!(
        beyond.raw_os_error(),
        Some(28),
        "ENOSPC, as the protocol says: {beyond}"
    );
    peer.flush().expect("durable");
    let zeros = request(command::WRITE_ZEROES, 0, 1, LARGEST - (1 << 30), 1 << 29);
    peer.call(&zeros).expect("zeroed");
    drop(peer);
    let grown = now_kib(daemon.pid()) - before;
    println!("{grown} KiB more for an attached volume of 64 TiB");
    assert!(grown < 16 << 10, "{grown} KiB");
    daemon.detach("large");
    daemon.attach("large");
    let map = daemon.sealvol_json(&["volume", "map", "large"]);
    let runs = map["runs"].as_array().expect("runs");
    let states: Vec<_> = runs
        .iter()
        .map(|run| run["state"].as_str().expect("a state"))
        .collect();
    assert_eq!(
        states,
        ["data", "absent", "data", "absent", "data"],
        "zeroing what was never written changes nothing"
    );
    daemon.kill();

    let daemon = Daemon::start(&place);
    let mut peer = Peer::open(&address, "large").expect("served");
    for (offset, seed) in ends.into_iter().zip(0..) {
        assert_eq!(
            peer.read(offset, 4096).expect("read"),
            pattern::bytes(seed, BLOCK)
        );
    }
    assert_eq!(
        peer.read(LARGEST - (1 << 30), 4096).expect("read"),
        [0; BLOCK]
    );
    drop(peer);
    daemon.detach("large");
    daemon.sealvol(&["volume", "delete", "large"]).succeeded();
    daemon.stop();
}

/// How many descriptors the daemon has open.
fn descriptors(daemon: &Daemon<'_>) -> usize {
    needs_root("look at the descriptors of a process that cannot be dumped");
    std::fs::read_dir(format!("/proc/{}/fd", daemon.pid().as_raw_nonzero()))
        .expect("its descriptors")
        .count()
}

/// Asserts that the outcome is success, or a conflict that says which of `words` it is about.
#[track_caller]
fn done_or_conflict(outcome: Outcome, words: &[&str]) -> bool {
    if outcome.code == Some(0) {
        return true;
    }
    let told = words.iter().any(|word| outcome.stderr.contains(word));
    assert!(outcome.code == Some(5) && told, "{outcome}");
    false
}

#[test]
fn storms_of_attaches_and_detaches_end_in_order_and_leave_nothing_behind() {
    const VOLUMES: usize = 6;
    const STORMERS: u64 = 12;
    const TURNS: u64 = 12;
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let address = Address::from(daemon.socket().as_path());
    let names: Vec<_> = (0..VOLUMES).map(|number| format!("v{number}")).collect();
    each(&names, |name| {
        daemon
            .sealvol(&["volume", "create", name, "--size", "64M"])
            .succeeded();
    });
    // Once, so that what stays open for good is there: workers' rings, the registry's log.
    each(&names, |name| {
        daemon.attach(name);
        Peer::served(&address, name);
        daemon.detach(name);
    });
    let (open, locked) = (descriptors(&daemon), locked_bytes(&daemon));
    assert_eq!(keys(&daemon), 0);

    // What each stormer wrote last to its own block of each volume, as far as it was answered.
    let written: Vec<Vec<AtomicU64>> = (0..STORMERS)
        .map(|_| (0..VOLUMES).map(|_| AtomicU64::new(0)).collect())
        .collect();
    let [attached, detached, conflicts] = [0; 3].map(AtomicU64::new);
    let count = |done: bool, counter: &AtomicU64| {
        let counter = if done { counter } else { &conflicts };
        counter.fetch_add(1, Ordering::Relaxed);
    };
    std::thread::scope(|scope| {
        for (own, stormer) in written.iter().zip(0..STORMERS) {
            let (daemon, names, address) = (&daemon, &names, &address);
            let (attached, detached, count) = (&attached, &detached, &count);
            scope.spawn(move || {
                for turn in 1..=TURNS {
                    // Half of them all want the same volume at a time, the others go their own ways.
                    let at =
                        usize::try_from(turn + stormer % 2 * stormer).expect("small") % VOLUMES;
                    let name = names[at].as_str();
                    let outcome = daemon.sealvol(&["volume", "attach", name]);
                    count(done_or_conflict(outcome, &["it is attached"]), attached);
                    let offset = stormer * 4 * BLOCK as u64 + (1 << 20);
                    let content = pattern::bytes(stormer << 32 | turn, BLOCK);
                    let work = Peer::open(address, name).and_then(|mut peer| {
                        peer.write(offset, &content)?;
                        own[at].store(turn, Ordering::Relaxed);
                        assert_eq!(peer.read(offset, 4096)?, content);
                        Ok(())
                    });
                    // An error says that somebody else has detached it.
                    drop(work);
                    let detach: &[&str] = match (turn + stormer) % 3 {
                        0 => &["volume", "detach", name, "--force"],
                        _ => &["volume", "detach", name],
                    };
                    let outcome = daemon.sealvol(detach);
                    count(
                        done_or_conflict(outcome, &["it is not attached", "clients are connected"]),
                        detached,
                    );
                }
            });
        }
    });
    let [attached, detached, conflicts] =
        [attached, detached, conflicts].map(AtomicU64::into_inner);
    println!("{attached} attached, {detached} detached, {conflicts} in conflict");
    assert!(conflicts > 0, "nobody met anybody");
    each(&names, |name| {
        done_or_conflict(
            daemon.sealvol(&["volume", "detach", name]),
            &["it is not attached"],
        );
    });

    assert_eq!(keys(&daemon), 0, "keys in locked memory");
    assert_eq!(locked_bytes(&daemon), locked, "bytes of locked memory");
    wait_for("connections and threads of the storm to be gone", || {
        (descriptors(&daemon) <= open).then_some(())
    });
    for (name, at) in names.iter().zip(0..) {
        daemon.attach(name);
        let mut peer = Peer::open(&address, name).expect("served");
        for (own, stormer) in written.iter().zip(0..STORMERS) {
            let turn = own[at].load(Ordering::Relaxed);
            if turn == 0 {
                continue;
            }
            let offset = stormer * 4 * BLOCK as u64 + (1 << 20);
            let read = peer.read(offset, 4096).expect("read");
            // A later write that was not answered may have reached the volume all the same.
            let possible =
                (turn..=TURNS).any(|turn| read == pattern::bytes(stormer << 32 | turn, BLOCK));
            assert!(
                possible,
                "what stormer {stormer} wrote to {name} in turn {turn} is gone"
            );
        }
    }
    daemon.stop();
}
