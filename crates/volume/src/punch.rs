//! Which zeroed blocks still hold space, and when it may be given back (rule R2).
//!
//! ```text
//!   zero, trim             commit copies the map      commit is durable       reads of before are over
//!  ───────────▶ marked ───────────────────▶ committing ───────────▶ ready ───────────▶ running ──▶ punched
//!                  └────────── a write to the block cancels it, wherever it is ───────────┘
//! ```
//!
//! Always: a block in any stage is `zero` in memory (its mark is set and cancelled under the block's exclusive
//! lock); a block in `ready` or `running` is `zero` on disk too. A punch takes its piece under the exclusive
//! lock, after all reads that could have resolved to the old bytes have ended.
//! Never: a punch of a block that was written after it was marked.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use event_listener::{Event, listener};
use rangemap::RangeSet;

/// Runs of blocks that may wait: about 4 MiB of memory.
const RUNS_MAX: usize = 65_536;

/// The blocks that wait for their space to be freed, by stage.
#[derive(Default)]
pub(crate) struct Punches {
    stages: Mutex<Stages>,
    /// False: all stages are empty, so that a first write need not take the mutex.
    any: AtomicBool,
    ended: Event,
}

#[derive(Default)]
struct Stages {
    marked: RangeSet<u64>,
    committing: RangeSet<u64>,
    ready: RangeSet<u64>,
    running: RangeSet<u64>,
    /// Whether somebody works on `running`.
    busy: bool,
}

impl Punches {
    /// The blocks became zero in memory. Call under their exclusive lock.
    pub(crate) fn mark(&self, blocks: Range<u64>) {
        let mut stages = self.stages();
        // Under the mutex: `start_round` clears the flag under it, when all stages are empty.
        self.any.store(true, Ordering::SeqCst);
        stages.marked.insert(blocks);
    }

    /// Whether something waits for the next commit.
    pub(crate) fn has_marked(&self) -> bool {
        self.any.load(Ordering::SeqCst) && !self.stages().marked.is_empty()
    }

    /// Whether so many runs wait that whoever wants to add one should wait too.
    pub(crate) fn is_crowded(&self) -> bool {
        let mut stages = self.stages();
        stages.all().iter().map(|stage| stage.len()).sum::<usize>() > RUNS_MAX
    }

    /// The blocks are about to be written. Call under their exclusive lock.
    pub(crate) fn cancel(&self, blocks: &Range<u64>) {
        if !self.any.load(Ordering::SeqCst) {
            return;
        }
        let mut stages = self.stages();
        for stage in stages.all() {
            stage.remove(blocks.clone());
        }
    }

    /// A commit is about to copy the map: what is marked by now is in its copies.
    pub(crate) fn commit_begins(&self) {
        let mut stages = self.stages();
        let marked = std::mem::take(&mut stages.marked);
        stages.committing.extend(marked);
    }

    /// The commit is durable. True if the caller is to run the punches: nobody else does.
    pub(crate) fn commit_done(&self) -> bool {
        let mut stages = self.stages();
        let committing = std::mem::take(&mut stages.committing);
        stages.ready.extend(committing);
        let work = !stages.ready.is_empty() && !stages.busy;
        stages.busy |= work;
        work
    }

    /// Takes all that is ready to be run after the next grace; false (and no longer busy) if nothing is.
    pub(crate) fn start_round(&self) -> bool {
        let mut stages = self.stages();
        let ready = std::mem::take(&mut stages.ready);
        stages.running.extend(ready);
        if stages.running.is_empty() {
            stages.busy = false;
            self.ended.notify(usize::MAX);
            if stages.all().iter().all(|stage| stage.is_empty()) {
                self.any.store(false, Ordering::SeqCst);
            }
            return false;
        }
        true
    }

    /// A piece of this round, at most `blocks_max` long, still to be locked and taken.
    pub(crate) fn next_piece(&self, blocks_max: u64) -> Option<Range<u64>> {
        let first = self.stages().running.first()?.clone();
        Some(first.start..first.end.min(first.start + blocks_max))
    }

    /// What is left of a piece, now that it is locked. It leaves the list.
    pub(crate) fn take(&self, piece: &Range<u64>) -> Vec<Range<u64>> {
        let mut stages = self.stages();
        let left: Vec<_> = stages
            .running
            .overlapping(piece)
            .map(|run| run.start.max(piece.start)..run.end.min(piece.end))
            .collect();
        stages.running.remove(piece.clone());
        left
    }

    /// Waits until nobody runs punches.
    pub(crate) async fn idle(&self) {
        loop {
            listener!(self.ended => ended);
            if !self.stages().busy {
                return;
            }
            ended.await;
        }
    }

    fn stages(&self) -> MutexGuard<'_, Stages> {
        self.stages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stages {
    fn all(&mut self) -> [&mut RangeSet<u64>; 4] {
        [
            &mut self.marked,
            &mut self.committing,
            &mut self.ready,
            &mut self.running,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_cancels_a_punch_in_every_stage() {
        for stage in 0..4 {
            let punches = Punches::default();
            punches.mark(10..20);
            if stage > 0 {
                punches.commit_begins();
            }
            if stage > 1 {
                assert!(punches.commit_done());
            }
            if stage > 2 {
                assert!(punches.start_round());
            }
            punches.cancel(&(12..15));
            if stage < 1 {
                punches.commit_begins();
            }
            if stage < 2 {
                assert!(punches.commit_done());
            }
            if stage < 3 {
                assert!(punches.start_round());
            }
            assert_eq!(punches.take(&(0..100)), [10..12, 15..20]);
            assert!(!punches.start_round());
        }
    }

    #[test]
    fn what_is_marked_during_a_commit_waits_for_the_next() {
        let punches = Punches::default();
        punches.mark(0..1);
        punches.commit_begins();
        punches.mark(5..6);
        assert!(punches.commit_done());
        assert!(punches.start_round());
        assert_eq!(punches.take(&(0..100)).first(), Some(&(0..1)));
        assert!(!punches.start_round());
        punches.commit_begins();
        assert!(punches.commit_done());
        assert!(punches.start_round());
        assert_eq!(punches.next_piece(1000), Some(5..6));
    }

    #[test]
    fn pieces_are_bounded_and_one_worker_runs_them() {
        let punches = Punches::default();
        punches.mark(0..100);
        punches.commit_begins();
        assert!(punches.commit_done());
        assert!(!punches.commit_done(), "a second worker");
        assert!(punches.start_round());
        assert_eq!(punches.next_piece(64), Some(0..64));
        assert_eq!(punches.take(&(0..64)).first(), Some(&(0..64)));
        assert_eq!(punches.next_piece(64), Some(64..100));
    }
}
