//! Which blocks of a file take space.

use std::collections::BTreeMap;
use std::ops::Range;

/// The unit of allocation, as on the file systems of today.
pub(super) const BLOCK: u64 = 4096;

/// A set of blocks as runs that neither touch nor overlap.
#[derive(Clone, Default)]
pub(super) struct Extents {
    /// First block to the one past the last.
    runs: BTreeMap<u64, u64>,
}

impl Extents {
    /// Bytes that the set takes.
    pub(super) fn bytes(&self) -> u64 {
        self.runs
            .iter()
            .map(|(start, end)| (end - start) * BLOCK)
            .sum()
    }

    /// Bytes that [`insert`](Self::insert) would add.
    pub(super) fn missing(&self, blocks: &Range<u64>) -> u64 {
        let all = blocks.end.saturating_sub(blocks.start);
        let there: u64 = self
            .overlapping(blocks)
            .map(|run| run.end.min(blocks.end) - run.start.max(blocks.start))
            .sum();
        (all - there) * BLOCK
    }

    /// Adds blocks; returns the bytes that were not in the set.
    pub(super) fn insert(&mut self, blocks: Range<u64>) -> u64 {
        if blocks.is_empty() {
            return 0;
        }
        let added = self.missing(&blocks);
        // Runs that only touch are joined too.
        let wider = blocks.start.saturating_sub(1)..blocks.end + 1;
        let joined: Vec<Range<u64>> = self.overlapping(&wider).collect();
        let start = joined
            .first()
            .map_or(blocks.start, |run| run.start.min(blocks.start));
        let end = joined
            .last()
            .map_or(blocks.end, |run| run.end.max(blocks.end));
        for run in joined {
            self.runs.remove(&run.start);
        }
        self.runs.insert(start, end);
        added
    }

    /// Takes blocks out; returns the bytes that were in the set.
    pub(super) fn remove(&mut self, blocks: &Range<u64>) -> u64 {
        if blocks.is_empty() {
            return 0; // else it would cut a run in two that touch
        }
        let hit: Vec<Range<u64>> = self.overlapping(blocks).collect();
        let mut removed = 0;
        for run in hit {
            self.runs.remove(&run.start);
            if run.start < blocks.start {
                self.runs.insert(run.start, blocks.start);
            }
            if run.end > blocks.end {
                self.runs.insert(blocks.end, run.end);
            }
            removed += (run.end.min(blocks.end) - run.start.max(blocks.start)) * BLOCK;
        }
        removed
    }

    /// Runs with a block in common with `blocks`, ascending.
    fn overlapping(&self, blocks: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let (from, to) = (blocks.start, blocks.end.max(blocks.start));
        let before = self
            .runs
            .range(..from)
            .next_back()
            .filter(move |&(_, &end)| end > from);
        before
            .into_iter()
            .chain(self.runs.range(from..to))
            .map(|(&start, &end)| start..end)
    }
}

/// The blocks that a range of bytes touches: what a write takes.
pub(super) fn touched(offset: u64, len: u64) -> Range<u64> {
    if len == 0 {
        return 0..0;
    }
    offset / BLOCK..(offset + len).div_ceil(BLOCK)
}

/// The blocks that lie wholly in a range of bytes: what a punch gives back.
pub(super) fn covered(offset: u64, len: u64) -> Range<u64> {
    let start = offset.div_ceil(BLOCK);
    start..((offset + len) / BLOCK).max(start)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    use super::*;

    proptest! {
        #[test]
        fn extents_are_a_set_of_blocks(
            steps in prop::collection::vec((any::<bool>(), 0..40u64, 0..12u64), 1..60)
        ) {
            let mut extents = Extents::default();
            let mut set = BTreeSet::new();
            for (insert, start, count) in steps {
                let blocks = start..start + count;
                let there = blocks.clone().filter(|block| set.contains(block)).count() as u64;
                prop_assert_eq!(extents.missing(&blocks), (count - there) * BLOCK);
                if insert {
                    prop_assert_eq!(extents.insert(blocks.clone()), (count - there) * BLOCK);
                    set.extend(blocks);
                } else {
                    prop_assert_eq!(extents.remove(&blocks), there * BLOCK);
                    set.retain(|block| !blocks.contains(block));
                }
                prop_assert_eq!(extents.bytes(), set.len() as u64 * BLOCK);
                let runs: Vec<(u64, u64)> = extents.runs.clone().into_iter().collect();
                prop_assert!(runs.windows(2).all(|pair| pair[0].1 < pair[1].0), "runs touch");
            }
        }
    }
}
