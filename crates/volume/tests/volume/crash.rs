//! Power cuts and killed processes in the middle of random work (rules R1, R2, R3 and R8), several in a row.

use std::sync::{Arc, Mutex};

use sealvol_crypto::UnitSize;
use sealvol_volume::{BLOCK, Volume, VolumeError, Zeroing};

use crate::rig::{Disk, Handle, History, Machine, PIECE, Random, pattern, seeds};

/// Two directory pages; the last map page is half of one, and three blocks.
pub(crate) const SIZE: u64 = (16 << 30) + (32 << 20) + 3 * BLOCK;
const PIECES_A_BLOCK: u64 = BLOCK / PIECE as u64;
pub(crate) const WINDOW: u64 = 12 * PIECES_A_BLOCK;
const OPERATIONS_A_LIFE: u64 = 60;
const LIVES: u64 = 4;

/// Where all the work is: the start, both sides of a page's border, and the end.
pub(crate) const WINDOWS: [u64; 3] = [
    0,
    (64 << 20) / PIECE as u64 - WINDOW / 2,
    SIZE / PIECE as u64 - WINDOW,
];

/// What several requests share.
#[derive(Clone)]
pub(crate) struct Work {
    pub(crate) volume: Arc<Volume<Disk>>,
    pub(crate) history: Arc<Mutex<History>>,
    pub(crate) disk: sealvol_store::fault::FaultDisk,
}

impl Work {
    /// The result of a request; after the power is gone nothing it says counts.
    fn judge<T>(&self, result: Result<T, VolumeError>) -> Option<T> {
        match result {
            Ok(value) if self.disk.is_powered() => Some(value),
            Ok(_) => None,
            Err(error) => {
                assert!(!self.disk.is_powered(), "failed without a cause: {error}");
                None
            }
        }
    }

    async fn write(self, pieces: std::ops::Range<u64>, version: u64, fua: bool) {
        let bytes: Vec<u8> = pieces
            .clone()
            .flat_map(|piece| pattern(version, piece))
            .collect();
        let change = self.history.lock().unwrap().begin(version, pieces.clone());
        let write = self
            .volume
            .prepare_write(pieces.start * PIECE as u64, &bytes)
            .unwrap();
        if self.judge(write.run(fua).await).is_some() {
            self.history.lock().unwrap().end(change, fua);
        }
    }

    async fn zero(self, pieces: std::ops::Range<u64>, how: Zeroing, fua: bool) {
        let change = self.history.lock().unwrap().begin(0, pieces.clone());
        let (offset, len) = (
            pieces.start * PIECE as u64,
            (pieces.end - pieces.start) * PIECE as u64,
        );
        if self
            .judge(self.volume.zero(offset, len, how, fua).await)
            .is_some()
        {
            self.history.lock().unwrap().end(change, fua);
        }
    }

    async fn trim(self, pieces: std::ops::Range<u64>, fua: bool) {
        let first = pieces.start.next_multiple_of(PIECES_A_BLOCK);
        let past = (pieces.end / PIECES_A_BLOCK * PIECES_A_BLOCK).max(first);
        let change = self.history.lock().unwrap().begin(0, first..past);
        let (offset, len) = (
            pieces.start * PIECE as u64,
            (pieces.end - pieces.start) * PIECE as u64,
        );
        if self
            .judge(self.volume.trim(offset, len, fua).await)
            .is_some()
        {
            self.history.lock().unwrap().end(change, fua);
        }
    }

    async fn flush(self) {
        let began = self.history.lock().unwrap().now();
        if self.judge(self.volume.flush().await).is_some() {
            self.history.lock().unwrap().flushed(began);
        }
    }

    async fn read(self, pieces: std::ops::Range<u64>) {
        let began = self.history.lock().unwrap().now();
        let len = usize::try_from(pieces.end - pieces.start).unwrap() * PIECE;
        let Some(read) = self.judge(self.volume.read(pieces.start * PIECE as u64, len).await)
        else {
            return;
        };
        let history = self.history.lock().unwrap();
        for (at, piece) in pieces.enumerate() {
            let found = read
                .bytes()
                .map_or(&[0; PIECE][..], |bytes| &bytes[at * PIECE..][..PIECE]);
            history.check_read(piece, found, began);
        }
    }

    /// A request by chance.
    pub(crate) async fn one(self, random: Random, version: u64) {
        let window = random.pick(&WINDOWS);
        let first = random.below(WINDOW);
        let len = match random.below(4) {
            0 => 1,
            1 => PIECES_A_BLOCK,
            _ => 1 + random.below(3 * PIECES_A_BLOCK),
        };
        let whole_blocks = random.chance(1, 2);
        let align = if whole_blocks { PIECES_A_BLOCK } else { 1 };
        let first = window + first / align * align;
        let past = (first + len.next_multiple_of(align)).min(window + WINDOW);
        let (pieces, fua) = (first..past, random.chance(1, 6));
        match random.below(20) {
            0..=8 => self.write(pieces, version, fua).await,
            9..=11 => self.trim(pieces, fua).await,
            12..=13 => self.zero(pieces, Zeroing::MayFree, fua).await,
            14 => self.zero(pieces, Zeroing::Allocated, fua).await,
            15..=17 => self.flush().await,
            _ => self.read(pieces).await,
        }
    }
}

fn windows() -> impl Iterator<Item = u64> {
    WINDOWS.into_iter().flat_map(|first| first..first + WINDOW)
}

/// Everything in the windows, piece by piece.
fn read_all(machine: &mut Machine, volume: &Arc<Volume<Disk>>) -> Vec<(u64, Vec<u8>)> {
    let mut found = Vec::new();
    for first in WINDOWS {
        let len = usize::try_from(WINDOW).unwrap() * PIECE;
        let bytes = machine.read(volume, first * PIECE as u64, len).unwrap();
        found.extend((first..).zip(bytes.chunks(PIECE).map(<[u8]>::to_vec)));
    }
    found
}

pub(crate) fn version_of(found: &[u8]) -> u64 {
    u64::from_le_bytes(found[..8].try_into().unwrap())
}

/// Works until the power goes, or the operations are used up; requests may be under way when it returns.
fn live(machine: &mut Machine, work: &Work, versions: &mut u64) {
    let mut running: Vec<Handle<()>> = Vec::new();
    for _ in 0..OPERATIONS_A_LIFE {
        *versions += 1;
        let (work, random) = (work.clone(), machine.random.clone());
        running.push(machine.executor.start(work.one(random, *versions)));
        let polls = machine.random.pick(&[0, 3, 20, 100]);
        machine.executor.steps(polls);
        running.retain(|handle| !handle.is_done());
        if running.len() > 6 {
            let at = machine.random.index(running.len());
            machine.executor.finish(&running.swap_remove(at));
        }
        if !machine.disk.is_powered() {
            break;
        }
    }
}

/// Opens after a power cut, with power cuts while it opens.
fn reopen(machine: &mut Machine) -> Arc<Volume<Disk>> {
    loop {
        let cut = machine.random.chance(1, 3);
        if cut {
            machine.disk.cut_power_at(1 + machine.random.below(6));
        }
        match machine.open() {
            Ok(volume) if machine.disk.is_powered() && !cut => return volume,
            Ok(_) => {}
            Err(error) => assert!(!machine.disk.is_powered(), "{error}"),
        }
        machine.restart();
    }
}

/// The process is killed while the disk goes on: everything that was answered is there, flushed or not.
fn after_a_kill(machine: &mut Machine, history: &Mutex<History>) -> Arc<Volume<Disk>> {
    machine.kill();
    history.lock().unwrap().killed();
    let volume = machine.open().unwrap();
    let found = read_all(machine, &volume);
    let mut history = history.lock().unwrap();
    let now = history.now();
    for (piece, bytes) in &found {
        history.check_read(*piece, bytes, now);
    }
    volume
}

/// How many requests were begun.
fn several_lives(seed: u64, sector_size: UnitSize) -> u64 {
    let mut machine = Machine::new(seed, SIZE, sector_size);
    machine.most = machine.random.below(4);
    let history = Arc::new(Mutex::new(History::default()));
    let mut versions = 0;
    let mut volume = machine.open().unwrap();
    for _ in 0..LIVES {
        let killed = machine.random.chance(1, 3);
        if !killed {
            machine.disk.cut_power_at(1 + machine.random.below(150));
        }
        // From a cache that holds next to nothing to one that holds all.
        machine
            .registry
            .bound_cache(machine.random.pick(&[0, 5000, 10_000, 1 << 20]));
        let work = Work {
            volume,
            history: Arc::clone(&history),
            disk: machine.disk.clone(),
        };
        live(&mut machine, &work, &mut versions);
        drop(work);
        if killed {
            volume = after_a_kill(&mut machine, &history);
            continue;
        }
        machine.restart();
        volume = reopen(&mut machine);
        let found = read_all(&mut machine, &volume);
        let mut history = history.lock().unwrap();
        for (piece, bytes) in &found {
            history.check_crashed(*piece, bytes);
        }
        history.settle(
            found
                .iter()
                .map(|(piece, bytes)| (*piece, version_of(bytes))),
        );
    }
    let before = read_all(&mut machine, &volume);
    assert_eq!(before.len(), windows().count());
    let generation = machine.close(volume).unwrap();
    machine.restart();
    let volume = machine.open().unwrap();
    assert_eq!(
        (volume.generation(), volume.repaired()),
        (generation + 1, None)
    );
    assert!(
        read_all(&mut machine, &volume) == before,
        "a clean detach changed what is read"
    );
    versions
}

#[test]
fn flushed_writes_survive_power_cuts_answered_ones_a_kill_and_nothing_unwritten_appears() {
    let mut requests = 0;
    for seed in seeds(250) {
        requests += several_lives(seed, UnitSize::B4096);
        requests += several_lives(seed, UnitSize::B512);
    }
    println!("{requests} requests");
}
