//! Reading and writing a volume: every path between plaintext and a layer's data.
//!
//! Always:
//! - an entry becomes `data` only after its store write completed, and before the reply (rule R1);
//! - the first write to a block writes the whole block, the rest of it encrypted zeros, under its exclusive lock;
//! - a read enters its epoch before it looks at the map (rule R2);
//! - plaintext is sealed before it waits for anything, so a caller's buffer is free when `prepare_write` returns.
//!
//! Never: a call to a key service; a store call for a block that is not `data`.
//!
//! A read that races a write to the same sector sees old or new bytes in 16-byte cipher blocks, as the store's own
//! racing reads and writes do; a read that races nothing sees what was written last.

use std::future::poll_fn;
use std::ops::Range;
use std::sync::Arc;
use std::task::Poll;

use sealvol_store::{Durability, IoBuf, Store};

use crate::error::{LostStep, VolumeError};
use crate::geometry::{BLOCK, PAGE_SPAN, blocks_touched, blocks_within, by_page, index};
use crate::host::Change;
use crate::locks::Mode;
use crate::map::{Prepared, Runs};
use crate::page::BlockState;
use crate::volume::Volume;

/// Zeros that keep their space are written in pieces of this size.
const ZERO_PIECE: u64 = 256 * 1024;
/// Blocks that one punch frees: 16 MiB, so that a write waits for one call at most.
const PUNCH_BLOCKS_MAX: u64 = 4096;
/// Map pages that one answer about extents looks at.
const EXTENT_PAGES_MAX: u64 = 16;

/// How zeros are to lie on the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroing {
    /// Space may be given back.
    MayFree,
    /// Space is taken, so that a later write can't meet a full disk (NBD's NO_HOLE): encrypted zeros.
    Allocated,
}

/// What was read.
pub struct ReadData {
    len: usize,
    content: Content,
}

enum Content {
    Zeros,
    Plain {
        buf: IoBuf,
        start: usize,
        runs: Runs,
        offset: u64,
    },
}

impl ReadData {
    /// Length in bytes.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "a read of nothing never gets here"
    )]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The bytes; `None` if all of them are zeros because no block of the range holds data.
    #[must_use]
    pub fn bytes(&self) -> Option<&[u8]> {
        match &self.content {
            Content::Zeros => None,
            Content::Plain { buf, start, .. } => Some(&buf[*start..*start + self.len]),
        }
    }

    /// The range in parts, in order: which bytes of it, and whether they hold data; what does not reads as zeros.
    #[must_use]
    pub fn parts(&self) -> Vec<(Range<usize>, bool)> {
        let Content::Plain { runs, offset, .. } = &self.content else {
            return vec![(0..self.len, false)];
        };
        let end = offset + self.len as u64;
        let mut parts: Vec<(Range<usize>, bool)> = Vec::new();
        for run in runs.iter() {
            let from = index((run.first * BLOCK).max(*offset) - offset);
            let to = index(((run.first + run.blocks) * BLOCK).min(end) - offset);
            let data = run.state == BlockState::Data;
            match parts.last_mut() {
                Some((last, same)) if *same == data => last.end = to,
                _ => parts.push((from..to, data)),
            }
        }
        parts
    }

    /// Whether every block of the range holds data.
    #[must_use]
    pub fn is_all_data(&self) -> bool {
        matches!(&self.content, Content::Plain { runs, .. } if runs.all(BlockState::Data))
    }
}

/// Neighbouring bytes in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes.
    pub len: u64,
    /// State of the blocks.
    pub state: BlockState,
}

impl<S: Store> Volume<S> {
    /// Reads `len` bytes.
    ///
    /// # Errors
    ///
    /// [`VolumeError::OutOfRange`], [`VolumeError::DamagedMap`], store errors.
    pub async fn read(&self, offset: u64, len: usize) -> Result<ReadData, VolumeError> {
        self.check_range(offset, len as u64)?;
        let _reading = self.epochs.enter();
        let runs = self.map.resolve(blocks_touched(offset, len as u64)).await?;
        if !runs.any(BlockState::Data) {
            return Ok(ReadData {
                len,
                content: Content::Zeros,
            });
        }
        let unit = self.unit();
        let first = offset / unit * unit;
        let end = (offset + len as u64).next_multiple_of(unit);
        let buf = IoBuf::for_overwrite(index(end - first));
        // Holes between data are read too and then overwritten: one call is cheaper than several.
        let (mut buf, result) = self.data.read_at(buf, first).await;
        result?;
        self.open_runs(&runs, first, &mut buf);
        Ok(ReadData {
            len,
            content: Content::Plain {
                buf,
                start: index(offset - first),
                runs,
                offset,
            },
        })
    }

    /// Decrypts what is data and clears what is not. `first` is the volume offset of `bytes`.
    fn open_runs(&self, runs: &Runs, first: u64, bytes: &mut [u8]) {
        let end = first + bytes.len() as u64;
        for run in runs.iter() {
            let from = (run.first * BLOCK).max(first);
            let to = ((run.first + run.blocks) * BLOCK).min(end);
            let part = &mut bytes[index(from - first)..index(to - first)];
            if run.state == BlockState::Data {
                self.cipher
                    .decrypt_in_place(self.params.sector_size, from / self.unit(), part);
            } else {
                part.fill(0);
            }
        }
    }

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
        let mut bytes = IoBuf::for_overwrite(plain.len());
        let sealed =
            offset.is_multiple_of(self.unit()) && (plain.len() as u64).is_multiple_of(self.unit());
        if sealed {
            let first = offset / self.unit();
            self.cipher
                .encrypt(self.params.sector_size, first, plain, &mut bytes);
        } else {
            bytes.copy_from_slice(plain);
        }
        Ok(PreparedWrite {
            volume: Arc::clone(self),
            offset,
            bytes,
            sealed,
        })
    }

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

    /// Makes every write durable that was answered before this call, on whatever connection.
    ///
    /// # Errors
    ///
    /// [`VolumeError::Failed`] if a sync has ever failed.
    pub async fn flush(self: &Arc<Self>) -> Result<(), VolumeError> {
        match self.check_writable().await {
            Err(VolumeError::ReadOnly) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.commit().await,
        }
    }

    /// Commits if there is something that only a commit brings to disk: for a host that calls it now and then, so that a
    /// client which never flushes loses as little as on a disk with a cache, and trimmed space is freed.
    ///
    /// # Errors
    ///
    /// As [`Self::flush`].
    pub async fn write_back(self: &Arc<Self>) -> Result<(), VolumeError> {
        if self.map.has_changes() {
            self.flush().await
        } else {
            Ok(())
        }
    }

    /// The states of a range from its start on, at most `extents_max` of them. The answer may end before the
    /// range does; it is never empty unless the range is.
    ///
    /// # Errors
    ///
    /// As a read.
    pub async fn extents(
        &self,
        offset: u64,
        len: u64,
        extents_max: usize,
    ) -> Result<Vec<Extent>, VolumeError> {
        self.check_range(offset, len)?;
        let bound = (offset / PAGE_SPAN + EXTENT_PAGES_MAX) * PAGE_SPAN;
        let end = (offset + len).min(bound);
        let runs = self
            .map
            .resolve(blocks_touched(offset, end - offset))
            .await?;
        let clip = |run: crate::map::Run| {
            let from = (run.first * BLOCK).max(offset);
            let to = ((run.first + run.blocks) * BLOCK).min(end);
            Extent {
                len: to - from,
                state: run.state,
            }
        };
        Ok(runs.iter().map(clip).take(extents_max).collect())
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

    /// Zeros in a part of one block. A block that holds no data has them already.
    async fn zero_edge(self: &Arc<Self>, offset: u64, len: u64) -> Result<(), VolumeError> {
        if len == 0 {
            return Ok(());
        }
        let mut at = offset;
        for block in blocks_touched(offset, len) {
            let next = (offset + len).min((block + 1) * BLOCK);
            if self
                .map
                .resolve(block..block + 1)
                .await?
                .any(BlockState::Data)
            {
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
            // Without a layer below, absent reads as zeros already: nothing to do for what holds no data.
            let hides = self.params.parent.is_some();
            let needed =
                |runs: &Runs| runs.any(BlockState::Data) || hides && runs.any(BlockState::Absent);
            if needed(&self.map.resolve(blocks.clone()).await?) {
                self.commit_if_crowded().await?;
                self.wait_for_punches().await?;
                let prepared = self.map.prepare(blocks.clone()).await?;
                let turn = self.locks.lock(blocks, Mode::Exclusive).await;
                let mut remembered = true;
                for run in prepared.runs().iter() {
                    let range = run.first..run.first + run.blocks;
                    if run.state == BlockState::Data || hides && run.state == BlockState::Absent {
                        self.map.set(&prepared.part(&range), BlockState::Zero);
                        remembered &= self.remember(&range, BlockState::Zero);
                    }
                    if run.state == BlockState::Data {
                        self.punches.mark(range);
                    }
                }
                drop(turn);
                if !remembered {
                    self.commit().await?;
                }
            }
            yield_now().await;
        }
        Ok(())
    }

    /// Bounds the list of punches: a client that trims every second block of a large volume waits for them.
    async fn wait_for_punches(self: &Arc<Self>) -> Result<(), VolumeError> {
        if self.punches.is_crowded() {
            self.commit().await?;
            self.punches.idle().await;
        }
        Ok(())
    }

    /// Frees the space of what is zero on disk (rule R2). One task at a time.
    pub(crate) async fn run_punches(self: Arc<Self>) {
        while self.punches.start_round() {
            self.epochs.grace().await;
            while let Some(piece) = self.punches.next_piece(PUNCH_BLOCKS_MAX) {
                let _turn = self.locks.lock(piece.clone(), Mode::Exclusive).await;
                for run in self.punches.take(&piece) {
                    let (offset, len) = (run.start * BLOCK, (run.end - run.start) * BLOCK);
                    // A store that can't free space keeps it: nobody reads these bytes.
                    let _ = self.data.punch(offset, len).await;
                }
            }
        }
    }

    /// Puts a change where it survives this process (rule R8). False: there is no room, and a commit must make it
    /// durable before it is acknowledged. Call under the blocks' exclusive lock.
    pub(crate) fn remember(&self, blocks: &Range<u64>, state: BlockState) -> bool {
        let change = Change {
            first: blocks.start,
            blocks: blocks.end - blocks.start,
            state,
        };
        self.host.remember(change).is_ok()
    }

    /// Bounds what is dirty in memory: a client that never flushes meets a commit all the same.
    pub(crate) async fn commit_if_crowded(self: &Arc<Self>) -> Result<(), VolumeError> {
        if self.map.wants_commit() {
            self.commit().await
        } else {
            Ok(())
        }
    }

    pub(crate) fn check_range(&self, offset: u64, len: u64) -> Result<(), VolumeError> {
        let end = offset.saturating_add(len);
        if end > self.size() {
            return Err(VolumeError::OutOfRange {
                offset,
                end,
                size: self.size(),
            });
        }
        Ok(())
    }

    fn unit(&self) -> u64 {
        self.params.sector_size.bytes() as u64
    }
}

/// A write whose bytes are the volume's already.
#[must_use = "nothing is written before `run`"]
pub struct PreparedWrite<S> {
    volume: Arc<Volume<S>>,
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
    pub async fn run(self, fua: bool) -> Result<(), VolumeError> {
        let volume = Arc::clone(&self.volume);
        volume.check_writable().await?;
        if self.bytes.is_empty() {
            return Ok(());
        }
        volume.commit_if_crowded().await?;
        let blocks = blocks_touched(self.offset, self.bytes.len() as u64);
        let prepared = volume.map.prepare(blocks.clone()).await?;
        let durable = if self.sealed && prepared.runs().all(BlockState::Data) {
            match self.overwrite(blocks.clone(), &prepared, fua).await? {
                Ok(durable) => durable,
                Err(unwritten) => unwritten.first_write(blocks, &prepared).await?,
            }
        } else {
            self.first_write(blocks, &prepared).await?
        };
        if fua && !durable {
            volume.commit().await
        } else {
            Ok(())
        }
    }

    /// Whole sectors over blocks that are data: nothing in the map changes. Whether it is durable; or the write
    /// again, if a block stopped being data before its turn came.
    async fn overwrite(
        self,
        blocks: Range<u64>,
        prepared: &Prepared,
        fua: bool,
    ) -> Result<Result<bool, Self>, VolumeError> {
        let volume = Arc::clone(&self.volume);
        let _turn = volume.locks.lock(blocks, Mode::Shared).await;
        if !prepared.runs().all(BlockState::Data) {
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
        let (_, result) = volume
            .data
            .write_at(self.bytes, self.offset, durability)
            .await;
        match result {
            Ok(()) => Ok(Ok(durable)),
            // The kernel may have reported with it that an earlier write is lost.
            Err(cause) if durable => Err(volume.lose(LostStep::DataSync, &cause.into()).await),
            Err(cause) => Err(cause.into()),
        }
    }

    /// Everything else: under the exclusive lock, made whole, written, then entered in the map.
    async fn first_write(
        self,
        blocks: Range<u64>,
        prepared: &Prepared,
    ) -> Result<bool, VolumeError> {
        let volume = Arc::clone(&self.volume);
        let turn = volume.locks.lock(blocks.clone(), Mode::Exclusive).await;
        let runs = prepared.runs();
        let (offset, bytes) = if self.sealed {
            self.pad_sealed(&runs)
        } else {
            self.complete_plain(&runs).await?
        };
        let (_, result) = volume
            .data
            .write_at(bytes, offset, Durability::Volatile)
            .await;
        result?;
        if !runs.all(BlockState::Data) {
            volume.punches.cancel(&blocks);
            volume.map.set(prepared, BlockState::Data);
            if !volume.remember(&blocks, BlockState::Data) {
                drop(turn);
                volume.commit().await?;
            }
        }
        Ok(false)
    }

    /// Ciphertext, with encrypted zeros around it where a block holds no data yet.
    fn pad_sealed(self, runs: &Runs) -> (u64, IoBuf) {
        let (first, end) = self.whole(runs);
        let tail = self.offset + self.bytes.len() as u64;
        if (first, end) == (self.offset, tail) {
            return (self.offset, self.bytes);
        }
        let volume = &self.volume;
        let mut buf = IoBuf::zeroed(index(end - first));
        let (head, rest) = buf.split_at_mut(index(self.offset - first));
        let (middle, rest) = rest.split_at_mut(self.bytes.len());
        let sector_size = volume.params.sector_size;
        volume
            .cipher
            .encrypt_in_place(sector_size, first / volume.unit(), head);
        middle.copy_from_slice(&self.bytes);
        volume
            .cipher
            .encrypt_in_place(sector_size, tail / volume.unit(), rest);
        (first, buf)
    }

    /// Plaintext, completed to whole sectors (to whole blocks where a block holds no data yet) and sealed.
    async fn complete_plain(self, runs: &Runs) -> Result<(u64, IoBuf), VolumeError> {
        let volume = &self.volume;
        let unit = volume.unit();
        let tail = self.offset + self.bytes.len() as u64;
        let (first, end) = self.whole(runs);
        let mut buf = IoBuf::zeroed(index(end - first));
        let (first_state, last_state) = runs.edges();
        if first_state == BlockState::Data && first != self.offset {
            self.fetch(first, first, &mut buf).await?;
        }
        let last = end - unit;
        let fetched = first_state == BlockState::Data && first != self.offset && last == first;
        if last_state == BlockState::Data && end != tail && !fetched {
            self.fetch(last, first, &mut buf).await?;
        }
        let at = index(self.offset - first);
        buf[at..at + self.bytes.len()].copy_from_slice(&self.bytes);
        volume
            .cipher
            .encrypt_in_place(volume.params.sector_size, first / unit, &mut buf);
        Ok((first, buf))
    }

    /// Puts the plaintext of the sector at `sector` to its place in `buf`, which begins at `first`.
    async fn fetch(&self, sector: u64, first: u64, buf: &mut IoBuf) -> Result<(), VolumeError> {
        let volume = &self.volume;
        let unit = volume.unit();
        let (mut old, result) = volume
            .data
            .read_at(IoBuf::for_overwrite(index(unit)), sector)
            .await;
        result?;
        volume
            .cipher
            .decrypt_in_place(volume.params.sector_size, sector / unit, &mut old);
        let at = index(sector - first);
        buf[at..at + old.len()].copy_from_slice(&old);
        Ok(())
    }

    /// The range that must be written: to sector borders where the block holds data, else to block borders.
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
