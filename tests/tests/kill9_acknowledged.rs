//! The daemon is killed under load, again and again: what it acknowledged is there when it is back, flushed or not, for the page
//! cache dies with the machine and not with the daemon.
//!
//! In the same way, while another hand makes snapshots all the time: killed in the middle of one, the volume comes back with
//! everything that was acknowledged, and each snapshot that was told of is there. And while another hand gives the volume one key
//! after the other: killed in the middle of a re-key, the next daemon goes on with it, and it ends right.
//!
//! `SEALVOL_ROUNDS` kills so many times (10 if it is not set), `SEALVOL_SEED` repeats the choices of a run; what the scheduler
//! does to them can't be repeated.

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::pattern;
use sealvol_tests::peer::{Address, BLOCK, Peer, command, request};
use sealvol_tests::place::Place;

const NAME: &str = "loaded";
const WRITERS: u64 = 4;
/// Blocks that one writer has for itself.
const SHARE: u64 = 1024;
/// Between the shares: they lie in different map pages.
const STRIDE: u64 = 20 * 1024;
const REQUESTS_IN_FLIGHT: usize = 16;

/// What is known of a block: the newest version that a FLUSH covers, that was acknowledged, that was sent, and that was sent
/// and is zeros. Odd versions are zeros, and so is 0, which nobody wrote.
#[derive(Clone, Copy, Debug, Default)]
struct Versions {
    flushed: u64,
    acknowledged: u64,
    sent: u64,
    zeroed: u64,
}

impl Versions {
    fn next(&mut self, zeros: bool) -> u64 {
        self.sent = self.sent / 2 * 2 + 2 + u64::from(zeros);
        if zeros {
            self.zeroed = self.sent;
        }
        self.sent
    }
}

/// The blocks of all writers, one share after the other.
struct Record {
    blocks: Mutex<Vec<Versions>>,
    acknowledged: AtomicU64,
}

/// Where a block of the record is in the volume.
fn offset(block: u64) -> u64 {
    (block / SHARE * STRIDE + block % SHARE) * BLOCK as u64
}

fn content(block: u64, version: u64) -> Vec<u8> {
    assert!(version.is_multiple_of(2) && version > 0, "zeros");
    let mut bytes = Vec::with_capacity(BLOCK);
    while bytes.len() < BLOCK {
        bytes.extend_from_slice(&block.to_le_bytes());
        bytes.extend_from_slice(&version.to_le_bytes());
    }
    bytes
}

/// Numbers that follow from a seed.
struct Choices(u64);

impl Choices {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 += 1;
        let bytes = pattern::bytes(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d), 8);
        u64::from_le_bytes(bytes.try_into().expect("eight bytes")) % bound
    }
}

/// A request in flight.
enum Sent {
    /// So many blocks from the first on, each with its new version; whether with FUA.
    Written(u64, Vec<u64>, bool),
    /// FLUSH, and what was acknowledged when it was sent.
    Flush(Vec<u64>),
}

struct Writer<'a> {
    record: &'a Record,
    peer: Peer,
    share: u64,
    choices: Choices,
    in_flight: BTreeMap<u64, Sent>,
    /// Blocks whose requests were in flight when their connection ended: they may still come to pass.
    uncertain: Vec<u64>,
    next_cookie: u64,
}

impl Writer<'_> {
    /// Writes until the connection breaks.
    fn run(&mut self, address: &Address) -> io::Result<()> {
        loop {
            if self.choices.below(3000) == 0 {
                self.reconnect(address)?;
            }
            while self.in_flight.len() < REQUESTS_IN_FLIGHT {
                self.send_one()?;
            }
            let (cookie, errno) = self.peer.reply()?;
            assert_eq!(errno, 0, "a request was refused");
            let sent = self.in_flight.remove(&cookie).expect("a cookie of ours");
            self.acknowledge(sent);
        }
    }

    /// Leaves without a word, with requests in flight.
    fn reconnect(&mut self, address: &Address) -> io::Result<()> {
        for sent in std::mem::take(&mut self.in_flight).into_values() {
            if let Sent::Written(first, versions, _) = sent {
                self.uncertain.extend(first..first + versions.len() as u64);
            }
        }
        self.peer = Peer::open(address, NAME)?;
        Ok(())
    }

    fn send_one(&mut self) -> io::Result<()> {
        self.next_cookie += 1;
        let cookie = self.next_cookie;
        if self.choices.below(64) == 0 {
            let blocks = self.record.blocks.lock().expect("no panic");
            let covered = blocks.iter().map(|block| block.acknowledged).collect();
            drop(blocks);
            self.in_flight.insert(cookie, Sent::Flush(covered));
            return self.peer.send(&request(command::FLUSH, 0, cookie, 0, 0));
        }
        let count = match self.choices.below(6) {
            0 => 2,
            1 => 4,
            2 => 16,
            _ => 1,
        };
        let first = self.share * SHARE + self.choices.below(SHARE - count);
        let range = first..first + count;
        let busy = self.in_flight.values().any(|sent| match sent {
            Sent::Written(start, versions, _) => {
                *start < range.end && range.start < start + versions.len() as u64
            }
            Sent::Flush(_) => false,
        });
        if busy || self.uncertain.iter().any(|block| range.contains(block)) {
            return Ok(());
        }
        let zeros = self.choices.below(10) == 0;
        let versions: Vec<u64> = {
            let mut blocks = self.record.blocks.lock().expect("no panic");
            range
                .clone()
                .map(|block| blocks[usize::try_from(block).expect("small")].next(zeros))
                .collect()
        };
        let fua = self.choices.below(50) == 0;
        let flags = if fua { command::FUA } else { 0 };
        let length = u32::try_from(count * BLOCK as u64).expect("small");
        let kind = if zeros {
            command::WRITE_ZEROES
        } else {
            command::WRITE
        };
        let mut bytes = request(kind, flags, cookie, offset(first), length).to_vec();
        if !zeros {
            for (block, version) in range.zip(&versions) {
                bytes.extend(content(block, *version));
            }
        }
        self.in_flight
            .insert(cookie, Sent::Written(first, versions, fua));
        self.peer.send(&bytes)
    }

    fn acknowledge(&self, sent: Sent) {
        let mut blocks = self.record.blocks.lock().expect("no panic");
        match sent {
            Sent::Written(first, versions, fua) => {
                for (block, version) in (first..).zip(&versions) {
                    let block = &mut blocks[usize::try_from(block).expect("small")];
                    block.acknowledged = *version;
                    if fua {
                        block.flushed = *version;
                    }
                }
                let count = versions.len() as u64;
                self.record.acknowledged.fetch_add(count, Ordering::Relaxed);
            }
            Sent::Flush(covered) => {
                for (block, version) in blocks.iter_mut().zip(covered) {
                    block.flushed = block.flushed.max(version);
                }
            }
        }
    }
}

/// Reads everything back and judges it; what was found counts as acknowledged from now on, for it was read.
fn judge(address: &Address, record: &Record, round: u64) {
    let mut peer = Peer::open(address, NAME).expect("the volume is attached again");
    let mut blocks = record.blocks.lock().expect("no panic");
    let mut lost = Vec::new();
    for share in 0..WRITERS {
        let len = u32::try_from(SHARE * BLOCK as u64).expect("small");
        let data = peer.read(offset(share * SHARE), len).expect("read");
        for (found, block) in data.chunks_exact(BLOCK).zip(share * SHARE..) {
            let known = &mut blocks[usize::try_from(block).expect("small")];
            let version = found_version(block, found, *known);
            let version = version.unwrap_or_else(|| {
                panic!("round {round}: block {block} ({known:?}) holds bytes that nobody wrote to it: {:02x?}", &found[..32])
            });
            if version < known.acknowledged {
                lost.push((block, version, *known));
            }
            known.acknowledged = version;
        }
    }
    assert!(
        lost.is_empty(),
        "round {round}: {} blocks lost acknowledged writes, {} of them flushed (block, found, known): {:?}",
        lost.len(),
        lost.iter()
            .filter(|(_, found, known)| *found < known.flushed)
            .count(),
        &lost[..lost.len().min(4)]
    );
}

/// The version that a block holds, the newest that it may be; `None` if it is none that was sent.
fn found_version(block: u64, found: &[u8], known: Versions) -> Option<u64> {
    if found.iter().all(|byte| *byte == 0) {
        return Some(known.zeroed);
    }
    let version = u64::from_le_bytes(found[8..16].try_into().expect("eight bytes"));
    let was_sent = (1..=known.sent).contains(&version) && version.is_multiple_of(2);
    (was_sent && found == content(block, version)).then_some(version)
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect(variable))
}

/// Makes snapshots until the daemon is gone; those that were told of.
fn snapshots(daemon: &Daemon<'_>, round: u64, killed: &AtomicBool) -> Vec<String> {
    let mut made = Vec::new();
    for number in 0.. {
        let name = format!("{NAME}@r{round}.{number}");
        let outcome = daemon.sealvol(&["snapshot", "create", &name]);
        if killed.load(Ordering::SeqCst) || outcome.code != Some(0) {
            // It may be there or not; that it was refused while the daemon lived is a failure.
            let refused = outcome.code != Some(0) && !killed.load(Ordering::SeqCst);
            assert!(!refused || outcome.stderr.contains("sock"), "{outcome}");
            break;
        }
        made.push(name);
    }
    made
}

/// Gives the volume another key, again and again, until the daemon is gone; how many times it was told that this is done.
fn rekeys(daemon: &Daemon<'_>, killed: &AtomicBool) -> u64 {
    let mut done = 0;
    loop {
        let outcome = daemon.sealvol(&["volume", "rekey", NAME, "--wait"]);
        if killed.load(Ordering::SeqCst) {
            return done;
        }
        match outcome.code {
            Some(0) => done += 1,
            // The last daemon's goes on.
            Some(5) => std::thread::sleep(Duration::from_millis(5)),
            // It was killed between that look and this.
            _ => {
                let gone = ["sock", "answer broke off", "cannot be read"];
                assert!(
                    gone.iter().any(|word| outcome.stderr.contains(word)),
                    "{outcome}"
                );
                return done;
            }
        }
    }
}

/// Waits until no job is left; each must have done its work.
fn wait_for_jobs(daemon: &Daemon<'_>) -> usize {
    sealvol_tests::programs::wait_for("the jobs", || {
        let listed = daemon.sealvol_json(&["job", "list"]);
        let jobs = listed["jobs"].as_array().expect("a list");
        let ended = jobs.iter().all(|job| job["state"] == "done");
        let failed = jobs
            .iter()
            .find(|job| job["state"] == "failed" || job["state"] == "cancelled");
        assert_eq!(failed, None, "a job did not do its work");
        ended.then_some(jobs.len())
    })
}

/// What another hand does meanwhile.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Meanwhile {
    Nothing,
    Snapshots,
    Rekeys,
}

fn kill_again_and_again(sector: &str, meanwhile: Meanwhile) {
    let rounds = number("SEALVOL_ROUNDS", 10);
    let seed = number("SEALVOL_SEED", u64::from(std::process::id()));
    println!("SEALVOL_SEED={seed}");
    let place = Place::new();
    let mut daemon = Daemon::start(&place);
    daemon
        .sealvol(&[
            "volume",
            "create",
            NAME,
            "--size",
            "1G",
            "--sector-size",
            sector,
        ])
        .succeeded();
    daemon.attach(NAME);
    let address = Address::from(daemon.socket().as_path());
    let record = Record {
        blocks: Mutex::new(vec![
            Versions::default();
            usize::try_from(WRITERS * SHARE).expect("small")
        ]),
        acknowledged: AtomicU64::new(0),
    };
    let mut choices = Choices(seed);
    let (mut made, mut rekeyed) = (Vec::new(), 0);
    for round in 0..rounds {
        let killed = AtomicBool::new(false);
        let life = Duration::from_millis(20 + choices.below(300));
        let enough = record.acknowledged.load(Ordering::Relaxed) + 100;
        std::thread::scope(|scope| {
            for share in 0..WRITERS {
                let mut writer = Writer {
                    record: &record,
                    peer: Peer::open(&address, NAME).expect("the volume is attached again"),
                    share,
                    choices: Choices(choices.below(u64::MAX)),
                    in_flight: BTreeMap::new(),
                    uncertain: Vec::new(),
                    next_cookie: 0,
                };
                let address = &address;
                scope.spawn(move || writer.run(address).expect_err("the daemon was killed"));
            }
            sealvol_tests::programs::wait_for("the load", || {
                (record.acknowledged.load(Ordering::Relaxed) > enough).then_some(())
            });
            let cutter = (meanwhile == Meanwhile::Snapshots)
                .then(|| scope.spawn(|| snapshots(&daemon, round, &killed)));
            let locksmith =
                (meanwhile == Meanwhile::Rekeys).then(|| scope.spawn(|| rekeys(&daemon, &killed)));
            std::thread::sleep(life);
            killed.store(true, Ordering::SeqCst);
            daemon.kill_now();
            rekeyed += locksmith.map_or(0, |locksmith| locksmith.join().expect("no panic"));
            made.extend(
                cutter
                    .map(|cutter| cutter.join().expect("no panic"))
                    .unwrap_or_default(),
            );
        });
        drop(daemon);
        daemon = Daemon::start(&place);
        judge(&address, &record, round);
        let listed = daemon.sealvol_json(&["snapshot", "list", NAME]);
        let listed = listed["snapshots"].as_array().expect("a list");
        for name in &made {
            let found = listed.iter().find(|snapshot| snapshot["name"] == **name);
            assert!(found.is_some(), "round {round}: {name} is gone");
        }
        if let Some(newest) = listed.last().and_then(|newest| newest["name"].as_str()) {
            // What was cut in the middle is whole, too.
            daemon.attach(newest);
            daemon.detach(newest);
        }
    }
    let acknowledged = record.acknowledged.load(Ordering::Relaxed);
    println!(
        "{rounds} kills, {acknowledged} blocks acknowledged, {rekeyed} re-keys between two kills"
    );
    daemon.stop();
    let daemon = Daemon::start(&place);
    judge(&address, &record, rounds);
    if meanwhile == Meanwhile::Rekeys {
        assert!(wait_for_jobs(&daemon) > 0, "no re-key began");
        judge(&address, &record, rounds);
        let volume = daemon.sealvol_json(&["volume", "show", NAME]);
        assert_eq!(volume["depth"], 1, "{volume}");
        assert_eq!(place.layer_files("data").len(), 1, "layers stay behind");
        assert_eq!(place.layer_files("meta").len(), 1, "layers stay behind");
    }
    daemon.stop();
}

#[test]
fn acknowledged_writes_outlive_a_killed_daemon() {
    kill_again_and_again("4096", Meanwhile::Nothing);
}

#[test]
fn acknowledged_writes_of_small_sectors_outlive_it_too() {
    kill_again_and_again("512", Meanwhile::Nothing);
}

#[test]
fn acknowledged_writes_outlive_a_daemon_killed_in_the_middle_of_snapshots() {
    kill_again_and_again("4096", Meanwhile::Snapshots);
}

#[test]
fn acknowledged_writes_outlive_a_daemon_killed_in_the_middle_of_rekeys() {
    kill_again_and_again("4096", Meanwhile::Rekeys);
}
