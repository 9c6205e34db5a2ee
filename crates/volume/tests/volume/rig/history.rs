//! Which values a piece of the volume may have, by what was asked and answered when.
//!
//! A piece is 512 bytes, what a disk tears. Every change of one has a version; `pattern` is what a write of that
//! version leaves in it, zeros for version 0. A change is *over* when it was answered. A read may see a
//! change that no other one has surely replaced: none that began after it was over, and was itself over when the
//! read began. A crash may leave a change that no other one has surely and durably replaced.

use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes in a piece.
pub(crate) const PIECE: usize = 512;

/// What a write of `version` leaves in a piece.
pub(crate) fn pattern(version: u64, piece: u64) -> [u8; PIECE] {
    let mut bytes = [0; PIECE];
    if version == 0 {
        return bytes;
    }
    for (at, word) in bytes.chunks_exact_mut(8).enumerate() {
        let value = match at {
            0 => version,
            1 => piece,
            _ => (version ^ piece.rotate_left(32))
                .wrapping_mul(0x9e37_79b9_7f4a_7c15 + 2 * at as u64),
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// One change of some pieces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Change(usize);

struct Made {
    version: u64,
    began: u64,
    over: Option<u64>,
    /// When whoever asked died without an answer: it has happened by then, or never.
    given_up: Option<u64>,
    durable: bool,
}

/// All changes of a volume, by piece.
#[derive(Default)]
pub(crate) struct History {
    clock: u64,
    changes: Vec<Made>,
    pieces: BTreeMap<u64, Vec<usize>>,
}

impl History {
    /// The time now; it goes on with every call.
    pub(crate) fn now(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A write (or, with version 0, a zeroing) of these pieces begins.
    pub(crate) fn begin(&mut self, version: u64, pieces: Range<u64>) -> Change {
        let began = self.now();
        let change = self.changes.len();
        self.changes.push(Made {
            version,
            began,
            over: None,
            given_up: None,
            durable: false,
        });
        for piece in pieces {
            self.pieces.entry(piece).or_default().push(change);
        }
        Change(change)
    }

    /// It was answered; `durable` if that says so.
    pub(crate) fn end(&mut self, change: Change, durable: bool) {
        let now = self.now();
        self.changes[change.0].over = Some(now);
        self.changes[change.0].durable |= durable;
    }

    /// A flush that began at `began` was answered: what was over by then is durable.
    pub(crate) fn flushed(&mut self, began: u64) {
        for change in &mut self.changes {
            change.durable |= change.over.is_some_and(|over| over < began);
        }
    }

    /// Checks a piece that a read found, which began at `began` and has just ended.
    pub(crate) fn check_read(&self, piece: u64, found: &[u8], began: u64) {
        self.check(piece, found, |made| {
            made.over.is_some_and(|over| over < began)
        });
    }

    /// Checks a piece after a crash.
    pub(crate) fn check_crashed(&self, piece: u64, found: &[u8]) {
        self.check(piece, found, |made| made.durable);
    }

    fn check(&self, piece: u64, found: &[u8], replaces: impl Fn(&Made) -> bool) {
        let versions = self.possible(piece, replaces);
        let fits = versions
            .iter()
            .any(|&version| found == pattern(version, piece));
        assert!(
            fits,
            "piece {piece} holds {:?}…, which is none of the versions {versions:?}; changes: {}",
            &found[..16],
            self.describe(piece),
        );
    }

    /// Versions that nothing that `replaces` has surely replaced.
    fn possible(&self, piece: u64, replaces: impl Fn(&Made) -> bool) -> Vec<u64> {
        let made = self.of(piece);
        let last = made
            .iter()
            .filter(|made| replaces(made))
            .map(|made| made.began)
            .max();
        let stands = |made: &&&Made| {
            last.is_none_or(|last| made.over.or(made.given_up).is_none_or(|end| end > last))
        };
        let mut versions: Vec<u64> = made
            .iter()
            .filter(stands)
            .map(|made| made.version)
            .collect();
        if last.is_none() {
            versions.push(0);
        }
        versions
    }

    fn of(&self, piece: u64) -> Vec<&Made> {
        let changes = self.pieces.get(&piece).map_or(&[][..], Vec::as_slice);
        changes
            .iter()
            .map(|&change| &self.changes[change])
            .collect()
    }

    fn describe(&self, piece: u64) -> String {
        let made = self.of(piece);
        let texts = made.iter().map(|made| {
            format!(
                "[v{} {}..{:?}{}]",
                made.version,
                made.began,
                made.over,
                if made.durable { " durable" } else { "" }
            )
        });
        texts.collect()
    }

    /// The process was killed: what was not answered never will be.
    pub(crate) fn killed(&mut self) {
        let now = self.now();
        for change in &mut self.changes {
            if change.over.is_none() {
                change.given_up.get_or_insert(now);
            }
        }
    }

    /// After a crash: what was found is what there is, and is durable.
    pub(crate) fn settle(&mut self, found: impl Iterator<Item = (u64, u64)>) {
        self.changes.clear();
        self.pieces.clear();
        for (piece, version) in found {
            let change = self.begin(version, piece..piece + 1);
            self.end(change, true);
        }
    }
}
