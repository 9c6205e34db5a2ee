//! Runs: neighbouring blocks in one state, the form in which the map answers.

use crate::page::BlockState;

/// Neighbouring blocks in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// First block, counted from the start of the volume.
    pub(crate) first: u64,
    /// Number of blocks.
    pub(crate) blocks: u64,
    pub(crate) state: BlockState,
}

/// Runs in ascending order without gaps. One run, the usual answer, needs no allocation.
#[derive(Default, Debug)]
pub(crate) struct Runs {
    first: Option<Run>,
    rest: Vec<Run>,
}

impl Runs {
    /// Appends blocks that follow the last run, joining what has the same state.
    pub(crate) fn push(&mut self, run: Run) {
        match self.rest.last_mut().or(self.first.as_mut()) {
            Some(last) if last.state == run.state => {
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
