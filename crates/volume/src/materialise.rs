//! Materialising: encrypted zeros in every block that holds no data, so that the bytes of `data` alone are the
//! whole volume, for programs that know nothing of a presence map (dm-crypt).
//!
//! Always:
//! - a block is looked at, written and entered as `data` under its exclusive lock: a newer write of a client is
//!   never overwritten, and a punch that waits for the block is cancelled;
//! - an entry becomes `data` only after its store write completed (rule R1), so the work may stop anywhere: what is
//!   left to do is what the map calls a hole, and that is where the next call goes on;
//! - plain zeros read as zeros before, during and after.
//!
//! Never: a block that the layer below decides. Absent means "as below" there, not "zeros".

use std::ops::Range;
use std::sync::Arc;

use sealvol_store::{IoBuf, Store};

use crate::error::VolumeError;
use crate::geometry::{BLOCK, PAGE_BLOCKS, index};
use crate::locks::Mode;
use crate::page::BlockState;
use crate::stack::Stack;
use crate::volume::Volume;
use crate::zero::yield_now;

/// Blocks that are locked and filled at once: 1 MiB, so that a client's write waits for one store call at most.
const PIECE: u64 = 256;

/// How far a call of [`Volume::materialise`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Materialised {
    /// Bytes of encrypted zeros that it wrote.
    pub written: u64,
    /// Where the next call is to go on; `None` if it has seen the end of the volume.
    pub next: Option<u64>,
}

impl<S: Store> Volume<S> {
    /// Bytes in blocks that hold no data: what [`Self::materialise`] would write now.
    ///
    /// # Errors
    ///
    /// Those of loading map pages.
    pub async fn holes(&self) -> Result<u64, VolumeError> {
        let end = self.size() / BLOCK;
        let mut blocks = 0;
        let mut at = 0;
        while at < end {
            let next = end.min((at / PAGE_BLOCKS + 1) * PAGE_BLOCKS);
            let stack = self.stack.load_full();
            let runs = stack.top.map.resolve(at..next).await?;
            let holes = runs.iter().filter(|run| is_hole(&stack, run.state));
            blocks += holes.map(|run| run.blocks).sum::<u64>();
            yield_now().await;
            at = next;
        }
        Ok(blocks * BLOCK)
    }

    /// Writes encrypted zeros into blocks that hold no data, from byte `from` on (rounded down to a block), until
    /// about `bytes_max` are written (at least one piece of 1 MiB is looked at) or the volume ends; then commits.
    ///
    /// # Errors
    ///
    /// As a write: after [`VolumeError::NoSpace`] the volume goes on, with what was written so far.
    pub async fn materialise(
        self: &Arc<Self>,
        from: u64,
        bytes_max: u64,
    ) -> Result<Materialised, VolumeError> {
        self.check_writable().await?;
        let mut written = 0;
        let mut at = from / BLOCK;
        loop {
            let end = self.size() / BLOCK;
            if at >= end {
                break;
            }
            let page = end.min((at / PAGE_BLOCKS + 1) * PAGE_BLOCKS);
            let stack = self.stack.load_full();
            let runs = stack.top.map.resolve(at..page).await?;
            let hole = runs.iter().find(|run| is_hole(&stack, run.state));
            if let Some(hole) = hole {
                let next = end.min((hole.first / PIECE + 1) * PIECE);
                let Some(filled) = self.fill(&stack, hole.first..next).await? else {
                    drop(self.open_stack().await);
                    continue;
                };
                written += filled;
                at = next;
            } else {
                at = page;
            }
            if written >= bytes_max {
                break;
            }
            yield_now().await;
        }
        self.commit().await?;
        let next = (at < self.size() / BLOCK).then_some(at * BLOCK);
        Ok(Materialised { written, next })
    }

    /// Fills the holes of one piece. How many bytes that took; `None` if the stack was closed.
    async fn fill(
        self: &Arc<Self>,
        stack: &Stack<S>,
        piece: Range<u64>,
    ) -> Result<Option<u64>, VolumeError> {
        let top = &stack.top;
        self.check_writable().await?;
        self.commit_if_crowded(top).await?;
        let prepared = top.map.prepare(piece.clone()).await?;
        let turn = self.locks.lock(piece, Mode::Exclusive).await;
        if stack.is_closed() {
            return Ok(None);
        }
        let mut written = 0;
        let mut remembered = true;
        // Looked at again, now that nobody else can change them.
        let runs = prepared.runs();
        for run in runs.iter().filter(|run| is_hole(stack, run.state)) {
            let blocks = run.first..run.first + run.blocks;
            let offset = run.first * BLOCK;
            let mut zeros = IoBuf::zeroed(index(run.blocks * BLOCK));
            top.encrypt(offset, &mut zeros);
            // This may not be a worker, which does so before it sleeps.
            sealvol_crypto::clear_residue();
            top.write_data(zeros, offset).await?;
            top.punches.cancel(&blocks);
            top.map.set(&prepared.part(&blocks), BlockState::Data);
            remembered &= top.remember(&blocks, BlockState::Data);
            written += run.blocks * BLOCK;
        }
        drop(turn);
        if !remembered {
            self.commit().await?;
        }
        Ok(Some(written))
    }
}

fn is_hole<S>(stack: &Stack<S>, state: BlockState) -> bool {
    match state {
        BlockState::Data => false,
        BlockState::Zero => true,
        BlockState::Absent => stack.below.is_empty(),
    }
}
