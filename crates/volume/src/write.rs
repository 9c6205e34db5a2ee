//! Writing: from plaintext to a layer's data and map.
//!
//! Always:
//! - an entry becomes `data` only after its store write completed, and before the reply (rule R1);
//! - the first write to a block in the top writes the whole block, the rest of it as the layers below have it (encrypted zeros
//!   if none does), under its exclusive lock;
//! - the layer that a write goes to is decided under its range lock (`stack.rs`);
//! - plaintext is sealed before it waits for anything, so a caller's buffer is free when `prepare_write` returns.
//!
//! Never: a call to a key service.

use std::ops::Range;
use std::sync::Arc;

use sealvol_store::{Durability, IoBuf, Store};

use crate::error::{LostStep, VolumeError};
use crate::geometry::{BLOCK, blocks_touched, index};
use crate::locks::Mode;
use crate::map::{Prepared, Runs};
use crate::page::BlockState;
use crate::stack::Stack;
use crate::volume::Volume;

impl<S: Store> Volume<S> {
    /// Takes over the bytes of a write: sealed at once if they are whole sectors. Nothing is written before
    /// [`PreparedWrite::run`].
    ///
    /// # Errors
    ///
    /// [`VolumeError::OutOfRange`].
    pub fn prepare_write(
        self: &Arc<Self>,
        offset: u64,
        plain: &[u8],
    ) -> Result<PreparedWrite<S>, VolumeError> {
        self.check_range(offset, plain.len() as u64)?;
        let stack = self.stack.load_full();
        let mut bytes = IoBuf::for_overwrite(plain.len());
        let sealed =
            offset.is_multiple_of(self.unit()) && (plain.len() as u64).is_multiple_of(self.unit());
        if sealed {
            let first = offset / self.unit();
            stack
                .top
                .cipher
                .encrypt(self.sector_size(), first, plain, &mut bytes);
        } else {
            bytes.copy_from_slice(plain);
        }
        Ok(PreparedWrite {
            volume: Arc::clone(self),
            stack,
            offset,
            bytes,
            sealed,
        })
    }
}

/// A write whose bytes are the volume's already.
#[must_use = "nothing is written before `run`"]
pub struct PreparedWrite<S> {
    volume: Arc<Volume<S>>,
    /// Whose top it is for, and is sealed for.
    stack: Arc<Stack<S>>,
    offset: u64,
    /// Ciphertext if `sealed`, else plaintext that needs neighbours to become whole sectors.
    bytes: IoBuf,
    sealed: bool,
}

impl<S: Store> PreparedWrite<S> {
    /// Writes. With `fua` it is durable when this returns.
    ///
    /// # Errors
    ///
    /// [`VolumeError::NoSpace`], [`VolumeError::ReadOnly`], [`VolumeError::Failed`], [`VolumeError::DamagedMap`], store errors.
    pub async fn run(mut self, fua: bool) -> Result<(), VolumeError> {
        let volume = Arc::clone(&self.volume);
        volume.check_writable().await?;
        if self.bytes.is_empty() {
            return Ok(());
        }
        let blocks = blocks_touched(self.offset, self.bytes.len() as u64);
        let durable = loop {
            volume.commit_if_crowded(&self.stack.top).await?;
            let prepared = self.stack.top.map.prepare(blocks.clone()).await?;
            let tried = if self.sealed && prepared.runs().all(BlockState::Data) {
                self.overwrite(blocks.clone(), &prepared, fua).await?
            } else {
                self.first_write(blocks.clone(), &prepared).await?
            };
            match tried {
                Ok(durable) => break durable,
                Err(unwritten) => self = unwritten.renewed().await,
            }
        };
        if fua && !durable {
            volume.commit().await
        } else {
            Ok(())
        }
    }

    /// The same write for the stack that is open now.
    async fn renewed(mut self) -> Self {
        let stack = self.volume.next_stack().await;
        let (old, new) = (&self.stack.top, &stack.top);
        if self.sealed && !Arc::ptr_eq(&old.cipher, &new.cipher) {
            old.decrypt(self.offset, &mut self.bytes);
            new.encrypt(self.offset, &mut self.bytes);
            sealvol_crypto::clear_residue();
        }
        self.stack = stack;
        self
    }

    /// Whole sectors over blocks that are data: nothing in the map changes. Whether it is durable; or the write
    /// again, if a block stopped being data before its turn came, or another top took the place of this one.
    async fn overwrite(
        self,
        blocks: Range<u64>,
        prepared: &Prepared,
        fua: bool,
    ) -> Result<Result<bool, Self>, VolumeError> {
        let volume = Arc::clone(&self.volume);
        let _turn = volume.locks.lock(blocks, Mode::Shared).await;
        if self.stack.is_closed() || !prepared.runs().all(BlockState::Data) {
            return Ok(Err(self));
        }
        let durable = fua && prepared.all_data_on_disk();
        // A commit that hears nothing from its sync waits for this write and hears it then.
        let _heard = durable.then(|| volume.durable_writes.enter());
        let durability = if durable {
            Durability::Durable
        } else {
            Durability::Volatile
        };
        let top = &self.stack.top;
        let written = top.overwrite_data(self.bytes, self.offset, durability);
        match written.await {
            Ok(()) => Ok(Ok(durable)),
            // The kernel may have reported with it that an earlier write is lost.
            Err(cause) if durable => Err(volume.lose(top, LostStep::DataSync, &cause).await),
            Err(cause) => Err(cause),
        }
    }

    /// Everything else: under the exclusive lock, made whole, written, then entered in the map.
    async fn first_write(
        self,
        blocks: Range<u64>,
        prepared: &Prepared,
    ) -> Result<Result<bool, Self>, VolumeError> {
        let volume = Arc::clone(&self.volume);
        let turn = volume.locks.lock(blocks.clone(), Mode::Exclusive).await;
        if self.stack.is_closed() {
            return Ok(Err(self));
        }
        let runs = prepared.runs();
        let stack = Arc::clone(&self.stack);
        let top = &stack.top;
        let (offset, bytes) = self.complete(&runs).await?;
        top.write_data(bytes, offset).await?;
        if !runs.all(BlockState::Data) {
            top.punches.cancel(&blocks);
            top.map.set(prepared, BlockState::Data);
            if !top.remember(&blocks, BlockState::Data) {
                drop(turn);
                volume.commit().await?;
            }
        }
        Ok(Ok(false))
    }

    /// The ciphertext of all that must be written, and where: to whole sectors, and to whole blocks where the top does not hold
    /// them yet, completed with what the volume has there now.
    async fn complete(self, runs: &Runs) -> Result<(u64, IoBuf), VolumeError> {
        let (first, end) = self.whole(runs);
        let tail = self.offset + self.bytes.len() as u64;
        if self.sealed && (first, end) == (self.offset, tail) {
            return Ok((self.offset, self.bytes));
        }
        let unit = self.volume.unit();
        let mut buf = IoBuf::zeroed(index(end - first));
        let before = first..self.offset.next_multiple_of(unit);
        let after = tail / unit * unit..end;
        if !before.is_empty() && !after.is_empty() && after.start < before.end {
            // One sector, or one block, on both sides.
            self.fetch(first..end, runs, first, &mut buf).await?;
        } else {
            self.fetch(before, runs, first, &mut buf).await?;
            self.fetch(after, runs, first, &mut buf).await?;
        }
        let top = &self.stack.top;
        let (from, to) = (index(self.offset - first), index(tail - first));
        buf[from..to].copy_from_slice(&self.bytes);
        if self.sealed {
            top.encrypt(first, &mut buf[..from]);
            top.encrypt(tail, &mut buf[to..]);
        } else {
            top.encrypt(first, &mut buf);
        }
        Ok((first, buf))
    }

    /// Puts the plaintext of whole sectors in the first or last block of the write to their place in `buf`, which holds zeros
    /// and begins at `first`.
    async fn fetch(
        &self,
        sectors: Range<u64>,
        runs: &Runs,
        first: u64,
        buf: &mut IoBuf,
    ) -> Result<(), VolumeError> {
        let stack = &self.stack;
        let (at_first, at_last) = runs.edges();
        let state = if sectors.start == first {
            at_first
        } else {
            at_last
        };
        let known_zeros =
            state == BlockState::Zero || state == BlockState::Absent && stack.below.is_empty();
        if sectors.is_empty() || known_zeros {
            return Ok(());
        }
        let (from, to) = (index(sectors.start - first), index(sectors.end - first));
        stack
            .read_plain(sectors.start, &mut buf[from..to])
            .await
            .map(drop)
    }

    /// The range that must be written: to sector borders where the top holds the block, else to block borders.
    fn whole(&self, runs: &Runs) -> (u64, u64) {
        let unit = self.volume.unit();
        let border = |state| {
            if state == BlockState::Data {
                unit
            } else {
                BLOCK
            }
        };
        let (first, last) = runs.edges();
        let end = self.offset + self.bytes.len() as u64;
        (
            self.offset / border(first) * border(first),
            end.next_multiple_of(border(last)),
        )
    }
}
