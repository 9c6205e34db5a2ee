//! Zeroing and trimming, and giving back the space of what was zeroed.
//!
//! Always: a block becomes `zero` in the top's map under its exclusive lock, and only if it would read as data otherwise, in
//! whatever layer; its space is given back once that is durable (rule R2, `punch.rs`). Never back to `absent`: that
//! would show what lies below.

use std::future::poll_fn;
use std::ops::Range;
use std::sync::Arc;
use std::task::Poll;

use sealvol_store::{IoBuf, Store};

use crate::error::VolumeError;
use crate::geometry::{BLOCK, PAGE_SPAN, blocks_touched, blocks_within, by_page, index};
use crate::layer::Layer;
use crate::locks::Mode;
use crate::page::BlockState;
use crate::stack::Stack;
use crate::volume::Volume;

/// Zeros that keep their space are written in pieces of this size.
const ZERO_PIECE: u64 = 256 * 1024;
/// Blocks that one punch frees: 16 MiB, so that a write waits for one call at most.
pub(crate) const PUNCH_BLOCKS_MAX: u64 = 4096;

/// How zeros are to lie on the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroing {
    /// Space may be given back.
    MayFree,
    /// Space is taken, so that a later write can't meet a full disk (NBD's NO_HOLE): encrypted zeros.
    Allocated,
}

impl<S: Store> Volume<S> {
    /// Makes a range read as zeros. With `fua` it is durable when this returns.
    ///
    /// # Errors
    ///
    /// As a write.
    pub async fn zero(
        self: &Arc<Self>,
        offset: u64,
        len: u64,
        how: Zeroing,
        fua: bool,
    ) -> Result<(), VolumeError> {
        self.check_range(offset, len)?;
        self.check_writable().await?;
        if how == Zeroing::Allocated {
            self.write_zeros(offset, len).await?;
        } else {
            let within = blocks_within(offset, len);
            if within.is_empty() {
                self.zero_edge(offset, len).await?;
            } else {
                let (first, end) = (within.start * BLOCK, within.end * BLOCK);
                self.zero_edge(offset, first - offset).await?;
                self.zero_blocks(within).await?;
                self.zero_edge(end, offset + len - end).await?;
            }
        }
        if fua { self.commit().await } else { Ok(()) }
    }

    /// Says that a range is no longer needed: its whole blocks read as zeros from now on, and their space is
    /// freed once that is durable. Blocks that are only partly in the range stay.
    ///
    /// # Errors
    ///
    /// As a write.
    pub async fn trim(
        self: &Arc<Self>,
        offset: u64,
        len: u64,
        fua: bool,
    ) -> Result<(), VolumeError> {
        self.check_range(offset, len)?;
        self.check_writable().await?;
        self.zero_blocks(blocks_within(offset, len)).await?;
        if fua { self.commit().await } else { Ok(()) }
    }

    /// Zeros as encrypted data, in pieces.
    async fn write_zeros(self: &Arc<Self>, offset: u64, len: u64) -> Result<(), VolumeError> {
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let next = end.min((at / ZERO_PIECE + 1) * ZERO_PIECE);
            let zeros = IoBuf::zeroed(index(next - at));
            self.prepare_write(at, &zeros)?.run(false).await?;
            yield_now().await;
            at = next;
        }
        Ok(())
    }

    /// Zeros in a part of a block. One that holds no data, in whatever layer, has them already.
    async fn zero_edge(self: &Arc<Self>, offset: u64, len: u64) -> Result<(), VolumeError> {
        if len == 0 {
            return Ok(());
        }
        let mut at = offset;
        for block in blocks_touched(offset, len) {
            let next = (offset + len).min((block + 1) * BLOCK);
            let stack = self.stack.load_full();
            let runs = stack.resolve(block..block + 1).await?;
            if runs.any(BlockState::Data) {
                self.write_zeros(at, next - at).await?;
            }
            at = next;
        }
        Ok(())
    }

    /// Turns whole blocks to `zero`, a map page at a time.
    async fn zero_blocks(self: &Arc<Self>, blocks: Range<u64>) -> Result<(), VolumeError> {
        for (page, within) in by_page(blocks) {
            let first = page * (PAGE_SPAN / BLOCK);
            let blocks = first + within.start as u64..first + within.end as u64;
            let mut stack = self.stack.load_full();
            while !self.zero_page(&stack, blocks.clone()).await? {
                stack = self.next_stack().await;
            }
            yield_now().await;
        }
        Ok(())
    }

    /// The same for blocks of one map page. False: another top takes the place of this one.
    async fn zero_page(
        self: &Arc<Self>,
        stack: &Stack<S>,
        blocks: Range<u64>,
    ) -> Result<bool, VolumeError> {
        // What reads as zeros already stays as it is, whichever layer says so.
        if !stack.resolve(blocks.clone()).await?.any(BlockState::Data) {
            return Ok(true);
        }
        let top = &stack.top;
        self.commit_if_crowded(top).await?;
        self.wait_for_punches(top).await?;
        let prepared = top.map.prepare(blocks.clone()).await?;
        let turn = self.locks.lock(blocks.clone(), Mode::Exclusive).await;
        if stack.is_closed() {
            return Ok(false);
        }
        let mut remembered = true;
        let runs = stack.resolve(blocks).await?;
        for run in runs.iter().filter(|run| run.state == BlockState::Data) {
            let range = run.first..run.first + run.blocks;
            top.map.set(&prepared.part(&range), BlockState::Zero);
            remembered &= top.remember(&range, BlockState::Zero);
            // What a lower layer holds is its own.
            if run.depth == 0 {
                top.punches.mark(range);
            }
        }
        drop(turn);
        if !remembered {
            self.commit().await?;
        }
        Ok(true)
    }

    /// Bounds the list of punches: a client that trims every second block of a large volume waits for them.
    async fn wait_for_punches(self: &Arc<Self>, layer: &Layer<S>) -> Result<(), VolumeError> {
        if layer.punches.is_crowded() {
            self.commit().await?;
            layer.punches.idle().await;
        }
        Ok(())
    }

    /// Frees the space of what is zero on disk in a layer (rule R2). One task a layer at a time.
    pub(crate) async fn run_punches(self: Arc<Self>, layer: Arc<Layer<S>>) {
        while layer.punches.start_round() {
            self.epochs.grace().await;
            while let Some(piece) = layer.punches.next_piece(PUNCH_BLOCKS_MAX) {
                let _turn = self.locks.lock(piece.clone(), Mode::Exclusive).await;
                for run in layer.punches.take(&piece) {
                    let (offset, len) = (run.start * BLOCK, (run.end - run.start) * BLOCK);
                    // A store that can't free space keeps it: nobody reads these bytes.
                    let _ = layer.data.punch(offset, len).await;
                }
            }
        }
    }

    /// Bounds what is dirty in memory: a client that never flushes meets a commit all the same.
    pub(crate) async fn commit_if_crowded(
        self: &Arc<Self>,
        layer: &Layer<S>,
    ) -> Result<(), VolumeError> {
        if layer.map.wants_commit() {
            self.commit().await
        } else {
            Ok(())
        }
    }
}

/// Lets others run before long work goes on.
pub(crate) async fn yield_now() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
