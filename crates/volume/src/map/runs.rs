//! Runs: neighbouring blocks in one state, the form in which a map answers, and a stack of them.

use crate::page::BlockState;

/// Neighbouring blocks in one state, said by one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// First block, counted from the start of the volume.
    pub(crate) first: u64,
    /// Number of blocks.
    pub(crate) blocks: u64,
    pub(crate) state: BlockState,
    /// How many layers lie above the one that says so. What no layer has counts as said by the top.
    pub(crate) depth: u32,
}

/// Runs in ascending order without gaps. One run, the usual answer, needs no allocation.
#[derive(Default, Debug)]
pub(crate) struct Runs {
    first: Option<Run>,
    rest: Vec<Run>,
}

impl Runs {
    /// Appends blocks that follow the last run, joining what the same layer says to be in the same state.
    pub(crate) fn push(&mut self, run: Run) {
        match self.rest.last_mut().or(self.first.as_mut()) {
            Some(last) if (last.state, last.depth) == (run.state, run.depth) => {
                debug_assert_eq!(last.first + last.blocks, run.first);
                last.blocks += run.blocks;
            }
            Some(_) => self.rest.push(run),
            None => self.first = Some(run),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Run> + '_ {
        self.first.iter().chain(&self.rest).copied()
    }

    /// Whether every block has this state.
    pub(crate) fn all(&self, state: BlockState) -> bool {
        self.iter().all(|run| run.state == state)
    }

    /// Whether some block has this state.
    pub(crate) fn any(&self, state: BlockState) -> bool {
        self.iter().any(|run| run.state == state)
    }

    /// The one layer that holds all the data of the range, by its depth; `None` if there are several, or no data.
    pub(crate) fn data_depth(&self) -> Option<u32> {
        let mut data = self.iter().filter(|run| run.state == BlockState::Data);
        let depth = data.next()?.depth;
        data.all(|run| run.depth == depth).then_some(depth)
    }

    /// The state of the first block and of the last one.
    ///
    /// # Panics
    ///
    /// If there is no run.
    pub(crate) fn edges(&self) -> (BlockState, BlockState) {
        let first = self.first.expect("a resolved range has at least one block");
        (first.state, self.rest.last().unwrap_or(&first).state)
    }
}
