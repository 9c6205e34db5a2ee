//! Reading a volume, and what it says of its blocks.
//!
//! Always: a read enters its epoch before it looks at the map (rule R2); it works with one stack to its end.
//! Never: a call to a key service; a store call for a block that is not `data`.
//!
//! A read that races a write to the same sector sees old or new bytes in 16-byte cipher blocks, as the store's own
//! racing reads and writes do; a read that races nothing sees what was written last.

use std::ops::Range;
use std::sync::Arc;

use sealvol_store::{IoBuf, Store};

use crate::error::VolumeError;
use crate::geometry::{BLOCK, PAGE_SPAN, blocks_touched, index};
use crate::layer::Layer;
use crate::map::Runs;
use crate::page::BlockState;
use crate::stack::Stack;
use crate::volume::Volume;

/// Map pages that one answer about extents looks at.
const EXTENT_PAGES_MAX: u64 = 16;

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
        let stack = self.stack.load();
        let runs = stack.resolve(blocks_touched(offset, len as u64)).await?;
        if !runs.any(BlockState::Data) {
            return Ok(ReadData {
                len,
                content: Content::Zeros,
            });
        }
        let unit = self.unit();
        let first = offset / unit * unit;
        let end = (offset + len as u64).next_multiple_of(unit);
        // A lower layer may end before the volume does.
        let layer = runs
            .data_depth()
            .map(|depth| stack.layer(depth))
            .filter(|layer| end <= layer.size());
        let (buf, runs) = match layer {
            Some(layer) => (read_one(layer, &runs, first..end).await?, runs),
            None => read_several(&stack, first..end).await?,
        };
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
        let top = self.top();
        let changed = top.map.has_changes() || top.punches.has_marked();
        if changed || self.switch_to_finish().is_some() {
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
        let stack = self.stack.load();
        let runs = stack.resolve(blocks_touched(offset, end - offset)).await?;
        let mut extents: Vec<Extent> = Vec::new();
        for run in runs.iter() {
            let from = (run.first * BLOCK).max(offset);
            let to = ((run.first + run.blocks) * BLOCK).min(end);
            let full = extents.len() == extents_max;
            match extents.last_mut() {
                Some(last) if last.state == run.state => last.len += to - from,
                _ if full => break,
                _ => extents.push(Extent {
                    len: to - from,
                    state: run.state,
                }),
            }
        }
        Ok(extents)
    }
}

/// Reads whole sectors whose data lies in one layer, in one store call.
async fn read_one<S: Store>(
    layer: &Layer<S>,
    runs: &Runs,
    bytes: Range<u64>,
) -> Result<IoBuf, VolumeError> {
    let buf = IoBuf::for_overwrite(index(bytes.end - bytes.start));
    // Holes between data are read too and then overwritten: one call is cheaper than several.
    let (mut buf, result) = if runs.all(BlockState::Data) {
        layer.data.read_written(buf, bytes.start).await
    } else {
        layer.data.read_at(buf, bytes.start).await
    };
    result?;
    for run in runs.iter() {
        let from = (run.first * BLOCK).max(bytes.start);
        let to = ((run.first + run.blocks) * BLOCK).min(bytes.end);
        let part = &mut buf[index(from - bytes.start)..index(to - bytes.start)];
        if run.state == BlockState::Data {
            layer.decrypt(from, part);
        } else {
            part.fill(0);
        }
    }
    Ok(buf)
}

/// Reads whole sectors whose data lies in several layers, in a store call a run.
async fn read_several<S: Store>(
    stack: &Stack<S>,
    bytes: Range<u64>,
) -> Result<(IoBuf, Runs), VolumeError> {
    let mut buf = IoBuf::zeroed(index(bytes.end - bytes.start));
    let runs = stack.read_plain(bytes.start, &mut buf).await?;
    Ok((buf, runs))
}
