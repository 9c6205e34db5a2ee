//! The power of the machine that runs the daemon is cut, again and again: what a FLUSH or FUA covered is there when it is back, and so
//! is each snapshot that was told of, as of its time; and the file system under it all is whole once its journal was replayed.
//!
//! The machine is a virtual one, its disk keeps what no FLUSH covers in memory only: see `sealvol_tests::machine`. The load comes from
//! here, so what counts as acknowledged is what has arrived outside of the machine. Some cuts come while it recovers from the last.
//!
//! `SEALVOL_ROUNDS` cuts the power so many times (three in all if it is not set), `SEALVOL_SEED` repeats the choices of a run; what two emulated processors do to
//! them can't be repeated.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sealvol_tests::load::{Choices, Cut, Record, Survives, Writer};
use sealvol_tests::machine::{Bench, FileSystem, Machine};
use sealvol_tests::programs::wait_for;

const NAME: &str = "loaded";
const WRITERS: u64 = 3;
const SHARE: u64 = 256;
/// Snapshots that are kept; a stack has 128 layers at most, and the disk half a gigabyte.
const SNAPSHOTS_MOST: usize = 6;

/// What the disk does on FLUSH, once the volume is attached for the first time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Disk {
    /// It keeps what was written before.
    Honest,
    /// It says so, and forgets all the same.
    Liar,
}

/// A volume whose machine loses its power.
struct Campaign {
    bench: Bench,
    disk: Disk,
    choices: Choices,
    record: Record,
    snapshots: Vec<(String, Cut)>,
    cuts_while_recovering: u64,
    snapshots_judged: u64,
    rekeys: u64,
}

impl Campaign {
    fn new(file_system: FileSystem, disk: Disk, seed: u64) -> Self {
        Self {
            bench: Bench::new(file_system),
            disk,
            choices: Choices(seed),
            record: Record::new(WRITERS, SHARE),
            snapshots: Vec::new(),
            cuts_while_recovering: 0,
            snapshots_judged: 0,
            rekeys: 0,
        }
    }

    fn boot(&mut self) -> Machine {
        let seed = self.choices.below(u64::MAX);
        self.bench.boot(seed)
    }

    /// So many cuts, and a look after each; what is wrong, if something is.
    fn run(&mut self, rounds: u64) -> Result<(), String> {
        let mut machine = self.boot();
        machine.ready()?;
        done(&mut machine, &format!("volume create {NAME} --size 1G"))?;
        done(&mut machine, &format!("volume attach {NAME}"))?;
        if self.disk == Disk::Liar {
            machine.switch().lie();
        }
        for round in 0..rounds {
            let forgotten = self.work(machine, round)?;
            println!("round {round}: {forgotten}");
            machine = self.recovered(round)?;
            let judged = self.judge(&mut machine, round + 1 == rounds);
            judged.map_err(|error| {
                format!(
                    "round {round}: {error}\n{}\n{}",
                    machine.told(),
                    machine.console()
                )
            })?;
        }
        machine.cut();
        Ok(())
    }

    /// A machine that is up again; by chance its power is cut before that.
    fn recovered(&mut self, round: u64) -> Result<Machine, String> {
        if self.choices.below(4) == 0 {
            let mut machine = self.boot();
            machine.booted()?;
            std::thread::sleep(Duration::from_millis(self.choices.below(4000)));
            println!("round {round}: while it recovers: {}", machine.cut());
            self.cuts_while_recovering += 1;
        }
        let mut machine = self.boot();
        let ready = machine.ready();
        ready.map_err(|error| format!("round {round}: {error}\n{}", machine.console()))?;
        Ok(machine)
    }

    /// Writers, snapshots and re-keys, until the power is cut at a moment that chance names.
    fn work(&mut self, mut machine: Machine, round: u64) -> Result<String, String> {
        let address = machine.address().clone();
        let off = AtomicBool::new(false);
        let switch = machine.switch();
        let among_writes = self.choices.below(4) > 0;
        let life = Duration::from_millis(300 + self.choices.below(3000));
        let enough = self.record.flushes() + 3;
        let mut made = Vec::new();
        let record = &self.record;
        let rekey = self.choices.below(3) == 0;
        let pause = Duration::from_millis(self.choices.below(400));
        std::thread::scope(|scope| {
            let (off, address) = (&off, &address);
            for share in 0..WRITERS {
                let seed = self.choices.below(u64::MAX);
                let writer = Writer::connect(record, address, NAME, share, seed);
                let writer = writer.map_err(|error| format!("{NAME} is not served: {error}"))?;
                scope.spawn(move || {
                    let ended = writer.run().expect_err("the power was cut");
                    assert!(off.load(Ordering::SeqCst), "the load ended before: {ended}");
                });
            }
            let hand = scope.spawn(|| {
                if rekey && let Err(error) = done(&mut machine, &format!("volume rekey {NAME}")) {
                    assert!(
                        off.load(Ordering::SeqCst) || error.contains("code 5"),
                        "{error}"
                    );
                }
                for number in 0..2 {
                    std::thread::sleep(pause);
                    let name = format!("{NAME}@r{round}.{number}");
                    let mut cut = record.before_cut();
                    if let Err(error) = done(&mut machine, &format!("snapshot create {name}")) {
                        assert!(off.load(Ordering::SeqCst), "{error}");
                        return;
                    }
                    record.after_cut(&mut cut);
                    made.push((name, cut));
                }
            });
            wait_for("flushes", || (record.flushes() > enough).then_some(()));
            std::thread::sleep(life);
            off.store(true, Ordering::SeqCst);
            if among_writes {
                switch.cut_among_writes();
            } else {
                switch.cut();
            }
            hand.join().expect("no panic");
            Ok::<(), String>(())
        })?;
        self.rekeys += u64::from(rekey);
        self.snapshots.extend(made);
        Ok(machine.cut())
    }

    /// Looks at the volume, and at its snapshots: at some of them, or at all.
    fn judge(&mut self, machine: &mut Machine, all: bool) -> Result<(), String> {
        let address = machine.address().clone();
        self.record.judge(&address, NAME, Survives::Flushed)?;
        let listed = done(machine, &format!("snapshot list {NAME}"))?;
        for (name, _) in &self.snapshots {
            let (_, tag) = name.split_once('@').expect("a snapshot's name");
            if !listed
                .split_whitespace()
                .any(|word| word == name || word == tag)
            {
                return Err(format!("{name} is gone: {listed}"));
            }
        }
        let newest = self.snapshots.len().saturating_sub(2);
        for (at, (name, cut)) in self.snapshots.iter_mut().enumerate() {
            if !all && at < newest && self.choices.below(4) > 0 {
                continue;
            }
            done(machine, &format!("volume attach {name} --read-only"))?;
            self.record.judge_cut(&address, name, cut)?;
            done(machine, &format!("volume detach {name}"))?;
            self.snapshots_judged += 1;
        }
        while self.snapshots.len() > SNAPSHOTS_MOST {
            let at = usize::try_from(self.choices.below(SNAPSHOTS_MOST as u64)).expect("small");
            let (name, _) = self.snapshots.remove(at);
            done(machine, &format!("snapshot delete {name}"))?;
        }
        Ok(())
    }
}

/// What `sealvol` printed, if it was content.
fn done(machine: &mut Machine, arguments: &str) -> Result<String, String> {
    let outcome = machine.sealvol(arguments)?;
    match outcome.code {
        Some(0) => Ok(outcome.stdout),
        code => Err(format!(
            "sealvol {arguments}: code {}: {}",
            code.unwrap_or(-1),
            outcome.stdout
        )),
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect(variable))
}

fn cut_again_and_again(file_system: FileSystem, rounds: u64) {
    let seed = number("SEALVOL_SEED", u64::from(std::process::id()));
    println!("SEALVOL_SEED={seed}");
    let rounds = number("SEALVOL_ROUNDS", rounds);
    let mut campaign = Campaign::new(file_system, Disk::Honest, seed);
    let ended = campaign.run(rounds);
    println!(
        "{rounds} cuts and {} while it recovered; {} blocks and {} flushes acknowledged, {} snapshots judged, {} re-keys begun",
        campaign.cuts_while_recovering,
        campaign.record.acknowledged(),
        campaign.record.flushes(),
        campaign.snapshots_judged,
        campaign.rekeys
    );
    ended.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn what_was_flushed_outlives_power_cuts_on_ext4() {
    cut_again_and_again(FileSystem::Ext4, 2);
}

#[test]
fn what_was_flushed_outlives_power_cuts_on_xfs() {
    cut_again_and_again(FileSystem::Xfs, 1);
}

#[test]
fn a_disk_that_lies_is_found_out() {
    let seed = number("SEALVOL_SEED", u64::from(std::process::id()));
    println!("SEALVOL_SEED={seed}");
    let ended = Campaign::new(FileSystem::Ext4, Disk::Liar, seed).run(1);
    let found = ended.expect_err("flushed writes are gone, and nobody saw it");
    println!("found out: {found}");
    assert!(found.contains("of them flushed"), "{found}");
}
