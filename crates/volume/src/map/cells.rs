//! The states of one map page in memory: two bits a block, changed and read without a lock.
//!
//! Always: a block's state changes in one atomic step, so that a reader sees the old state or the new
//! one, never something else. Who may change which block is the range locks' business, not this file's.

use std::ops::Range;

use crate::block_state::{BlockState, STATE_BITS as BITS, WORD_BLOCKS as PER_WORD};
use crate::geometry::{PAGE_BLOCKS, index};
use crate::sync::{AtomicU64, Ordering};

/// 16,384 block states.
pub(crate) struct Cells(Box<[AtomicU64]>);

impl Cells {
    /// All blocks in one state.
    pub(crate) fn uniform(state: BlockState) -> Self {
        let words = index(PAGE_BLOCKS) / PER_WORD;
        Self((0..words).map(|_| AtomicU64::new(word_of(state))).collect())
    }

    /// The states as words, from the first block on.
    pub(crate) fn of_words(words: impl Iterator<Item = u64>) -> Self {
        let cells = Self(words.map(AtomicU64::new).collect());
        assert_eq!(cells.0.len(), index(PAGE_BLOCKS) / PER_WORD);
        cells
    }

    /// The words, each as it is when it is asked for.
    pub(crate) fn words(&self) -> impl Iterator<Item = u64> {
        self.0.iter().map(|word| word.load(Ordering::Acquire))
    }

    pub(crate) fn get(&self, block: usize) -> BlockState {
        let word = self.0[block / PER_WORD].load(Ordering::Acquire);
        BlockState::from_bits(word >> (block % PER_WORD * BITS) & 3)
    }

    /// Sets a range of blocks, each in one step.
    pub(crate) fn set(&self, blocks: Range<usize>, state: BlockState) {
        let mut first = blocks.start;
        while first < blocks.end {
            let end = blocks.end.min((first / PER_WORD + 1) * PER_WORD);
            let mask = mask(first % PER_WORD, end - first);
            let value = word_of(state) & mask;
            let change = |word| Some(word & !mask | value);
            // The closure never gives up, so neither does fetch_update.
            let _ =
                self.0[first / PER_WORD].fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
            first = end;
        }
    }

    /// How many blocks from `blocks.start` on have the state of the first one.
    pub(crate) fn run(&self, blocks: Range<usize>) -> (BlockState, usize) {
        let state = self.get(blocks.start);
        let mut next = blocks.start + 1;
        while next < blocks.end {
            let whole = next.is_multiple_of(PER_WORD) && next + PER_WORD <= blocks.end;
            if whole && self.0[next / PER_WORD].load(Ordering::Acquire) == word_of(state) {
                next += PER_WORD;
            } else if self.get(next) == state {
                next += 1;
            } else {
                break;
            }
        }
        (state, next - blocks.start)
    }
}

/// A word whose 32 blocks all have this state.
fn word_of(state: BlockState) -> u64 {
    state.bits() * 0x5555_5555_5555_5555
}

fn mask(first: usize, count: usize) -> u64 {
    let ones = if count == PER_WORD {
        u64::MAX
    } else {
        (1 << (count * BITS)) - 1
    };
    ones << (first * BITS)
}
