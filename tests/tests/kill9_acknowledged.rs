//! The daemon is killed under load, again and again: what it acknowledged is there when it is back, flushed or not, for the page
//! cache dies with the machine and not with the daemon.
//!
//! In the same way, while another hand makes snapshots all the time: killed in the middle of one, the volume comes back with
//! everything that was acknowledged, and each snapshot that was told of is there. And while another hand gives the volume one key
//! after the other: killed in the middle of a re-key, the next daemon goes on with it, and it ends right. And while both do so, with
//! snapshots deleted in between, so that merges are under way as well. Each snapshot holds what it may hold, the same each time.
//!
//! `SEALVOL_ROUNDS` kills so many times (10 if it is not set), `SEALVOL_SEED` repeats the choices of a run; what the scheduler
//! does to them can't be repeated.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::load::{Choices, Cut, Record, Survives, Writer};
use sealvol_tests::outcome::Outcome;
use sealvol_tests::peer::Address;
use sealvol_tests::place::Place;

const NAME: &str = "loaded";
const WRITERS: u64 = 4;
/// Blocks that one writer has for itself.
const SHARE: u64 = 1024;
/// Snapshots that are made in one life of the daemon, and that are left when the next one begins: a stack has 128 layers at most.
const SNAPSHOTS_A_LIFE: u64 = 20;
const SNAPSHOTS_LEFT: usize = 12;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect(variable))
}

/// Makes snapshots until the daemon is gone; those that were told of, and what each may hold.
fn snapshots(
    daemon: &Daemon<'_>,
    record: &Record,
    round: u64,
    killed: &AtomicBool,
    told: &AtomicU64,
) -> Vec<(String, Cut)> {
    let mut made = Vec::new();
    for number in 0..SNAPSHOTS_A_LIFE {
        let name = format!("{NAME}@r{round}.{number}");
        let mut cut = record.before_cut();
        let outcome = daemon.sealvol(&["snapshot", "create", &name]);
        if killed.load(Ordering::SeqCst) || outcome.code != Some(0) {
            // It may be there or not; that it was refused while the daemon lived is a failure.
            let refused = outcome.code != Some(0) && !killed.load(Ordering::SeqCst);
            assert!(!refused || is_gone(&outcome), "{outcome}");
            break;
        }
        record.after_cut(&mut cut);
        made.push((name, cut));
        told.fetch_add(1, Ordering::SeqCst);
    }
    made
}

/// Whether a command failed because the daemon was killed under it.
fn is_gone(outcome: &Outcome) -> bool {
    let words = ["sock", "answer broke off", "cannot be read"];
    words.iter().any(|word| outcome.stderr.contains(word))
}

/// Gives the volume another key, again and again, until the daemon is gone; how many times it was told that this is done.
fn rekeys(daemon: &Daemon<'_>, killed: &AtomicBool, told: &AtomicU64) -> u64 {
    let mut done = 0;
    loop {
        let outcome = daemon.sealvol(&["volume", "rekey", NAME, "--wait"]);
        if killed.load(Ordering::SeqCst) {
            return done;
        }
        match outcome.code {
            Some(0) => {
                done += 1;
                told.fetch_add(1, Ordering::SeqCst);
            }
            // The last daemon's goes on.
            Some(5) => std::thread::sleep(Duration::from_millis(5)),
            // It was killed between that look and this.
            _ => {
                assert!(is_gone(&outcome), "{outcome}");
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
    Everything,
}

impl Meanwhile {
    fn snapshots(self) -> bool {
        matches!(self, Self::Snapshots | Self::Everything)
    }

    fn rekeys(self) -> bool {
        matches!(self, Self::Rekeys | Self::Everything)
    }
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
    let record = Record::new(WRITERS, SHARE);
    let mut choices = Choices(seed);
    let (mut made, mut rekeyed, mut judged) = (Vec::new(), 0, 0);
    for round in 0..rounds {
        let (killed, told) = (AtomicBool::new(false), AtomicU64::new(0));
        let life = Duration::from_millis(20 + choices.below(300));
        let enough = record.acknowledged() + 100;
        std::thread::scope(|scope| {
            for share in 0..WRITERS {
                let seed = choices.below(u64::MAX);
                let writer = Writer::connect(&record, &address, NAME, share, seed);
                let writer = writer.expect("the volume is attached again");
                scope.spawn(|| writer.run().expect_err("the daemon was killed"));
            }
            sealvol_tests::programs::wait_for("the load", || {
                (record.acknowledged() > enough).then_some(())
            });
            let cutter = meanwhile
                .snapshots()
                .then(|| scope.spawn(|| snapshots(&daemon, &record, round, &killed, &told)));
            let locksmith = meanwhile
                .rekeys()
                .then(|| scope.spawn(|| rekeys(&daemon, &killed, &told)));
            // Every other life is long enough for one of them at least, however busy this machine is.
            if round % 2 == 1 && meanwhile != Meanwhile::Nothing {
                sealvol_tests::programs::wait_for("what goes on meanwhile", || {
                    (told.load(Ordering::SeqCst) > 0).then_some(())
                });
            }
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
        judge(&record, &address, round);
        judged += judge_snapshots(&daemon, &record, &mut made, &mut choices);
    }
    println!(
        "{rounds} kills, {} blocks and {} flushes acknowledged, {judged} snapshots judged, {rekeyed} re-keys between two kills",
        record.acknowledged(),
        record.flushes()
    );
    assert!(!meanwhile.snapshots() || rounds < 2 || judged > 0);
    daemon.stop();
    let daemon = Daemon::start(&place);
    judge(&record, &address, rounds);
    if meanwhile.rekeys() {
        assert!(wait_for_jobs(&daemon) > 0, "no re-key began");
        judge(&record, &address, rounds);
        judge_snapshots(&daemon, &record, &mut made, &mut choices);
    }
    if meanwhile == Meanwhile::Rekeys {
        let volume = daemon.sealvol_json(&["volume", "show", NAME]);
        assert_eq!(volume["depth"], 1, "{volume}");
        assert_eq!(place.layer_files("data").len(), 1, "layers stay behind");
        assert_eq!(place.layer_files("meta").len(), 1, "layers stay behind");
    }
    daemon.stop();
}

fn judge(record: &Record, address: &Address, round: u64) {
    let judged = record.judge(address, NAME, Survives::Answered);
    judged.unwrap_or_else(|error| panic!("round {round}: {error}"));
}

/// Every snapshot that was told of is there; the newest, which was cut in the middle, is whole, and some hold what they should.
/// If there are many, some go, and the daemon merges what they leave. How many were judged.
fn judge_snapshots(
    daemon: &Daemon<'_>,
    record: &Record,
    made: &mut Vec<(String, Cut)>,
    choices: &mut Choices,
) -> u64 {
    let listed = daemon.sealvol_json(&["snapshot", "list", NAME]);
    let listed = listed["snapshots"].as_array().expect("a list");
    for (name, _) in &*made {
        let found = listed.iter().find(|snapshot| snapshot["name"] == **name);
        assert!(found.is_some(), "{name} is gone");
    }
    if let Some(newest) = listed.last().and_then(|newest| newest["name"].as_str()) {
        daemon.attach(newest);
        daemon.detach(newest);
        if !made.iter().any(|(name, _)| name == newest) {
            daemon.sealvol(&["snapshot", "delete", newest]).succeeded();
        }
    }
    let mut judged = 0;
    let last = made.len().saturating_sub(1);
    for (at, (name, cut)) in made.iter_mut().enumerate() {
        if at == last || choices.below(6) == 0 {
            daemon.attach(name);
            let held = record.judge_cut(&daemon.address(), name, cut);
            held.unwrap_or_else(|error| panic!("{error}"));
            daemon.detach(name);
            judged += 1;
        }
    }
    while made.len() > SNAPSHOTS_LEFT {
        let at = usize::try_from(choices.below(made.len() as u64)).expect("small");
        let (name, _) = made.swap_remove(at);
        daemon.sealvol(&["snapshot", "delete", &name]).succeeded();
    }
    judged
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

#[test]
fn acknowledged_writes_and_snapshots_outlive_a_daemon_killed_in_the_middle_of_everything() {
    kill_again_and_again("4096", Meanwhile::Everything);
}
