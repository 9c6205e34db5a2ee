//! Writers that know of each block which versions it may hold, and whoever judges what is found there after something died.
//!
//! Always: a version is sent once and says which it is and where it belongs, so a block that is old, new, lost, mixed up or back
//! from the dead can be told from each other. Odd versions are zeros, and so is 0, which nobody wrote.
//! Never: a wish that the server be quick; a load ends when its connection does.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use crate::pattern;
use crate::peer::{Address, BLOCK, Peer, command, request};

/// Between the shares of two writers, in blocks: they lie in different map pages.
const STRIDE: u64 = 20 * 1024;
const REQUESTS_IN_FLIGHT: usize = 16;

/// What must be there after something died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survives {
    /// Everything that was answered: the machine, its page cache with it, goes on.
    Answered,
    /// What a FLUSH or FUA covers: the power went.
    Flushed,
}

/// A disk writes a sector whole or not at all, and promises no more.
const SECTOR: usize = 512;
const SECTORS: usize = BLOCK / SECTOR;

/// What is known of a block: what its sectors held when it was last looked at and how many versions were sent until then; and of
/// what was sent since, the newest version that a FLUSH covers and that was acknowledged. The newest that was sent, and that was sent
/// and is zeros.
#[derive(Clone, Copy, Debug, Default)]
struct Versions {
    seen: [u64; SECTORS],
    sent_then: u64,
    flushed: u64,
    acknowledged: u64,
    sent: u64,
    zeroed: u64,
}

/// The versions of a block's sectors.
type Found = [u64; SECTORS];

impl Versions {
    fn next(&mut self, zeros: bool) -> u64 {
        self.sent = self.sent / 2 * 2 + 2 + u64::from(zeros);
        if zeros {
            self.zeroed = self.sent;
        }
        self.sent
    }

    /// The versions that the sectors of a block hold, the newest that they may be.
    ///
    /// # Errors
    /// One is none that was sent since the block was last looked at, nor what the sector held then.
    fn found(&self, block: u64, bytes: &[u8]) -> Result<Found, String> {
        let mut found = self.seen;
        for (held, bytes) in found.iter_mut().zip(bytes.chunks_exact(SECTOR)) {
            let version = if bytes.iter().all(|byte| *byte == 0) {
                self.zeroed
            } else {
                let version = u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes"));
                let was_sent = (1..=self.sent).contains(&version) && version.is_multiple_of(2);
                if !was_sent || bytes != &content(block, version)[..SECTOR] {
                    let start = &bytes[..32];
                    return Err(format!(
                        "block {block} ({self:?}) holds bytes that nobody wrote to it: {start:02x?}"
                    ));
                }
                version
            };
            if version != *held && version <= self.sent_then {
                return Err(format!(
                    "block {block} ({self:?}) holds version {version}, which was gone"
                ));
            }
            *held = version;
        }
        Ok(found)
    }

    /// Whether this may be found, if all that was sent up to version `least` is there.
    fn includes(&self, found: &Found, least: u64) -> bool {
        let since = least > self.sent_then;
        let older = |(found, seen): (&u64, &u64)| *found < if since { least } else { *seen };
        !found.iter().zip(&self.seen).any(older)
    }
}

/// What is known of all blocks, one writer's share after the other.
pub struct Record {
    blocks: Mutex<Vec<Versions>>,
    writers: u64,
    share: u64,
    acknowledged: AtomicU64,
    flushes: AtomicU64,
}

/// What a snapshot may hold, and what it held when it was first looked at.
pub struct Cut {
    blocks: Vec<Versions>,
    held: Option<Vec<Found>>,
}

impl Record {
    /// Nothing is written yet. Each writer has `share` blocks for itself.
    #[must_use]
    pub fn new(writers: u64, share: u64) -> Self {
        let blocks = usize::try_from(writers * share).expect("small");
        Self {
            blocks: Mutex::new(vec![Versions::default(); blocks]),
            writers,
            share,
            acknowledged: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
        }
    }

    fn blocks(&self) -> MutexGuard<'_, Vec<Versions>> {
        self.blocks.lock().expect("no panic")
    }

    /// Blocks whose writes were acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// FLUSHes, and writes with FUA, that were acknowledged so far.
    pub fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Relaxed)
    }

    /// Where a block of the record is in the volume.
    fn offset(&self, block: u64) -> u64 {
        (block / self.share * STRIDE + block % self.share) * BLOCK as u64
    }

    /// Reads everything from an export, block by block in the record's order.
    fn read(&self, address: &Address, export: &str) -> io::Result<Vec<u8>> {
        const PIECE: u64 = 256;
        let piece = PIECE.min(self.share);
        let len = u32::try_from(piece * BLOCK as u64).expect("small");
        let mut peer = Peer::open_patiently(address, export)?;
        let mut bytes = Vec::new();
        for number in 0..self.writers * self.share / piece {
            bytes.extend(peer.read(self.offset(number * piece), len)?);
        }
        Ok(bytes)
    }

    /// Reads everything back and judges it; what was found is there to stay, for it has outlived what died.
    ///
    /// # Errors
    /// Something that must be there is not, something is there that can't be, or it can't be read.
    pub fn judge(&self, address: &Address, export: &str, survives: Survives) -> Result<(), String> {
        let read = self.read(address, export);
        let read = read.map_err(|error| format!("{export} can't be read: {error}"))?;
        let mut blocks = self.blocks();
        let mut lost = Vec::new();
        for ((block, known), bytes) in (0..).zip(&mut *blocks).zip(read.chunks_exact(BLOCK)) {
            let found = known.found(block, bytes)?;
            let least = match survives {
                Survives::Answered => known.acknowledged,
                Survives::Flushed => known.flushed,
            };
            let torn = survives == Survives::Answered && found.iter().any(|part| *part != found[0]);
            if torn || !known.includes(&found, least) {
                lost.push((block, found, *known));
            }
            known.seen = found;
            known.sent_then = known.sent;
        }
        if lost.is_empty() {
            return Ok(());
        }
        let flushed = lost
            .iter()
            .filter(|(_, found, known)| !known.includes(found, known.flushed));
        Err(format!(
            "{} blocks lost acknowledged writes, {} of them flushed (block, found, known): {:?}",
            lost.len(),
            flushed.count(),
            &lost[..lost.len().min(4)]
        ))
    }

    /// What is known now, before a snapshot is asked for.
    pub fn before_cut(&self) -> Cut {
        Cut {
            blocks: self.blocks().clone(),
            held: None,
        }
    }

    /// The snapshot is there: it holds nothing that was sent from now on.
    pub fn after_cut(&self, cut: &mut Cut) {
        for (at_cut, known) in cut.blocks.iter_mut().zip(&*self.blocks()) {
            at_cut.sent = known.sent;
            at_cut.zeroed = known.zeroed;
        }
    }

    /// Reads a snapshot and judges it: it holds everything that was acknowledged before it was asked for, nothing that was sent
    /// after it was there, and the same each time.
    ///
    /// # Errors
    /// It does not, or it can't be read.
    pub fn judge_cut(&self, address: &Address, export: &str, cut: &mut Cut) -> Result<(), String> {
        let read = self.read(address, export);
        let read = read.map_err(|error| format!("{export} can't be read: {error}"))?;
        let mut held = Vec::new();
        for ((block, known), bytes) in (0..).zip(&cut.blocks).zip(read.chunks_exact(BLOCK)) {
            let found = known.found(block, bytes);
            let found = found.map_err(|error| format!("{export}: {error}"))?;
            if !known.includes(&found, known.acknowledged) {
                return Err(format!(
                    "{export}: block {block} ({known:?}) holds {found:?}, older than the snapshot"
                ));
            }
            held.push(found);
        }
        match &cut.held {
            Some(before) if *before != held => Err(format!("{export} changed")),
            _ => {
                cut.held = Some(held);
                Ok(())
            }
        }
    }
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
#[derive(Debug)]
pub struct Choices(pub u64);

impl Choices {
    /// One below `bound`, which is not 0.
    ///
    /// # Panics
    /// If it is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
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

/// Writes, zeroes and flushes in its share of the blocks, on a connection of its own.
pub struct Writer<'a> {
    record: &'a Record,
    address: &'a Address,
    export: &'a str,
    share: u64,
    choices: Choices,
    peer: Peer,
    in_flight: BTreeMap<u64, Sent>,
    /// Blocks whose requests were in flight when their connection ended: they may still come to pass.
    uncertain: Vec<u64>,
    next_cookie: u64,
}

impl<'a> Writer<'a> {
    /// One that is connected.
    ///
    /// # Errors
    /// As [`Peer::open`].
    pub fn connect(
        record: &'a Record,
        address: &'a Address,
        export: &'a str,
        share: u64,
        seed: u64,
    ) -> io::Result<Self> {
        Ok(Self {
            record,
            address,
            export,
            share,
            choices: Choices(seed),
            peer: Peer::open_patiently(address, export)?,
            in_flight: BTreeMap::new(),
            uncertain: Vec::new(),
            next_cookie: 0,
        })
    }

    /// Writes until the connection breaks.
    ///
    /// # Errors
    /// That it broke.
    ///
    /// # Panics
    /// If a request is refused.
    pub fn run(mut self) -> io::Result<()> {
        loop {
            if self.choices.below(3000) == 0 {
                self.reconnect()?;
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
    fn reconnect(&mut self) -> io::Result<()> {
        for sent in std::mem::take(&mut self.in_flight).into_values() {
            if let Sent::Written(first, versions, _) = sent {
                self.uncertain.extend(first..first + versions.len() as u64);
            }
        }
        self.peer = Peer::open_patiently(self.address, self.export)?;
        Ok(())
    }

    fn send_one(&mut self) -> io::Result<()> {
        self.next_cookie += 1;
        let cookie = self.next_cookie;
        if self.choices.below(64) == 0 {
            let covered = self
                .record
                .blocks()
                .iter()
                .map(|block| block.acknowledged)
                .collect();
            self.in_flight.insert(cookie, Sent::Flush(covered));
            return self.peer.send(&request(command::FLUSH, 0, cookie, 0, 0));
        }
        let count = match self.choices.below(6) {
            0 => 2,
            1 => 4,
            2 => 16,
            _ => 1,
        };
        let share = self.record.share;
        let first = self.share * share + self.choices.below(share - count);
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
            let mut blocks = self.record.blocks();
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
        let offset = self.record.offset(first);
        let mut bytes = request(kind, flags, cookie, offset, length).to_vec();
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
        let mut blocks = self.record.blocks();
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
                self.record
                    .flushes
                    .fetch_add(u64::from(fua), Ordering::Relaxed);
            }
            Sent::Flush(covered) => {
                for (block, version) in blocks.iter_mut().zip(covered) {
                    block.flushed = block.flushed.max(version);
                }
                self.record.flushes.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: Versions = Versions {
        seen: [4; SECTORS],
        sent_then: 8,
        flushed: 10,
        acknowledged: 12,
        sent: 15,
        zeroed: 7,
    };

    /// Version `first` in the first half, `last` in the other.
    fn torn(block: u64, first: u64, last: u64) -> Vec<u8> {
        let mut bytes = content(block, first);
        bytes[BLOCK / 2..].copy_from_slice(&content(block, last)[BLOCK / 2..]);
        bytes
    }

    #[test]
    fn a_block_holds_what_it_held_or_what_was_sent_since() {
        for version in [4, 10, 14] {
            assert_eq!(KNOWN.found(5, &content(5, version)), Ok([version; SECTORS]));
        }
        let zeroed = Versions {
            zeroed: 15,
            ..KNOWN
        };
        assert_eq!(zeroed.found(5, &[0; BLOCK]), Ok([15; SECTORS]));
        assert_eq!(
            KNOWN.found(5, &torn(5, 4, 12)),
            Ok([4, 4, 4, 4, 12, 12, 12, 12])
        );
    }

    #[test]
    fn what_was_gone_and_what_nobody_wrote_is_refused() {
        let again = KNOWN.found(5, &content(5, 6)).expect_err("gone");
        assert!(again.contains("version 6, which was gone"), "{again}");
        KNOWN.found(5, &torn(5, 12, 6)).expect_err("half of it");
        KNOWN
            .found(5, &[0; BLOCK])
            .expect_err("zeros that were gone");
        KNOWN.found(5, &content(5, 16)).expect_err("never sent");
        KNOWN
            .found(5, &content(6, 10))
            .expect_err("another block's");
        KNOWN.found(5, &content(5, 10)[1..]).expect_err("shifted");
    }

    #[test]
    fn what_is_older_than_it_must_be_is_seen() {
        for (first, last, includes) in [
            (10, 10, true),
            (10, 14, true),
            (4, 14, false),
            (4, 4, false),
        ] {
            let found = KNOWN.found(5, &torn(5, first, last)).expect("known");
            assert_eq!(KNOWN.includes(&found, KNOWN.flushed), includes, "{found:?}");
        }
        // Nothing was flushed since: what was seen is still there, sector by sector.
        let seen = [4, 4, 4, 4, 6, 6, 6, 6];
        let quiet = Versions {
            seen,
            flushed: 6,
            ..KNOWN
        };
        assert!(quiet.includes(&seen, quiet.flushed));
        let found = quiet.found(5, &torn(5, 10, 6)).expect("known");
        assert!(quiet.includes(&found, quiet.flushed));
    }
}
