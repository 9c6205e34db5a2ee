//! The stack of layers that a volume is, from the top down: which layer decides a block, and reading through them.
//!
//! ```text
//!   blocks          0 1 2 3 4 5 6 7
//!   depth 0 (top)   a D D a a Z a a        a absent, Z zero, D data: the topmost layer that is not absent decides
//!   depth 1         D D a a D D a a
//!   resolved        1 0 0 · 1 0 · ·        · absent everywhere: zeros
//! ```
//!
//! Always:
//! - every layer but the top is sealed, or about to be and no longer written: what lies below the top never changes what it reads;
//! - a stack is immutable. Another one takes its place as a whole, so that a request sees one stack from its look at the
//!   map to its store call;
//! - a request that changes blocks decides for a stack *after* it has its range lock, and only if the stack is not closed
//!   (`snapshot.rs` closes it): so no change of a block in a lower layer comes after one in a higher layer.
//!
//! Never: I/O for a layer that the maps don't name, for a block or its neighbours. Looking a block up in a layer costs a look into
//! its map in memory (or, once, loading the page); what several layers below the top say is kept (`map/resolved.rs`), from
//! the moment on when the nearest of them is sealed.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sealvol_store::{IoBuf, Store};

use crate::error::VolumeError;
use crate::geometry::{BLOCK, blocks_touched, index};
use crate::ids::LayerId;
use crate::layer::Layer;
use crate::map::{Finding, Resolved, Run, Runs};
use crate::page::BlockState;
use crate::superblock::LayerParams;

/// Layers on each other. See the module.
pub(crate) struct Stack<S> {
    /// The layer that writes go to.
    pub(crate) top: Arc<Layer<S>>,
    /// What lies below it, the nearest first.
    pub(crate) below: Box<[Arc<Layer<S>>]>,
    closed: AtomicBool,
    /// What was found below the top, if there is much to look through.
    resolved: Option<Resolved>,
}

impl<S: Store> Stack<S> {
    /// A stack of a top and what lies below it, the nearest first.
    pub(crate) fn new(top: Arc<Layer<S>>, below: Box<[Arc<Layer<S>>]>) -> Self {
        let resolved = Resolved::of(below.len(), top.map.cache());
        Self {
            top,
            below,
            closed: AtomicBool::new(false),
            resolved,
        }
    }

    /// Whether no change may begin in its top any more. Look at it while you hold the blocks' range lock.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// From now on no change begins in its top.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn layer(&self, depth: u32) -> &Arc<Layer<S>> {
        match depth {
            0 => &self.top,
            _ => &self.below[index(u64::from(depth)) - 1],
        }
    }

    /// All layers, from the top down.
    pub(crate) fn layers(&self) -> impl Iterator<Item = &Arc<Layer<S>>> {
        std::iter::once(&self.top).chain(&self.below)
    }

    /// Who decides each block of a range, and how.
    ///
    /// # Errors
    ///
    /// [`VolumeError::DamagedMap`] or a store error from loading a page of a map.
    pub(crate) async fn resolve(&self, blocks: Range<u64>) -> Result<Runs, VolumeError> {
        let runs = self.top.map.resolve(blocks).await?;
        if self.below.is_empty() || !runs.any(BlockState::Absent) {
            return Ok(runs);
        }
        let Some(resolved) = self.resolved.as_ref().filter(|_| self.is_settled()) else {
            return self.resolve_below(runs).await;
        };
        let mut all = Runs::default();
        for run in runs.iter() {
            let blocks = run.first..run.first + run.blocks;
            if run.state != BlockState::Absent {
                all.push(run);
            } else if !Resolved::takes(&blocks) {
                let mut absent = Runs::default();
                absent.push(run);
                let found = self.resolve_below(absent).await?;
                found.iter().for_each(|run| all.push(run));
            } else if !resolved.look_up(blocks.clone(), &mut all) {
                self.find_below(resolved, &blocks, &mut all).await?;
            }
        }
        Ok(all)
    }

    /// Whether nothing below the top changes any more. After a cut, what began in the old top ends in it; it is sealed when
    /// that has ended.
    fn is_settled(&self) -> bool {
        self.below.first().is_none_or(|nearest| nearest.is_sealed())
    }

    /// Looks through the layers below for blocks and their neighbours, keeps what they say, and appends it.
    async fn find_below(
        &self,
        resolved: &Resolved,
        blocks: &Range<u64>,
        into: &mut Runs,
    ) -> Result<(), VolumeError> {
        let mut found = Resolved::around(blocks, self.top.blocks().max(blocks.end));
        if self.ask_below(&mut found).await.is_ok() {
            resolved.keep(&found);
        } else {
            // It may be a neighbour that can't be looked up.
            found = Finding::new(blocks.clone());
            self.ask_below(&mut found).await?;
        }
        found.push_to(blocks, into);
        Ok(())
    }

    async fn ask_below(&self, found: &mut Finding) -> Result<(), VolumeError> {
        let blocks = found.blocks();
        for (layer, depth) in self.below.iter().zip(1..) {
            // The volume may have grown since the layer was sealed.
            let known = blocks.start..blocks.end.min(layer.blocks());
            if found.is_done() {
                break;
            }
            if !known.is_empty() {
                found.enter(&layer.map.resolve(known).await?, depth);
            }
        }
        Ok(())
    }

    /// What the layer right below the top says of a range, whatever the top says.
    ///
    /// # Errors
    ///
    /// As [`Self::resolve`].
    pub(crate) async fn resolve_nearest(&self, blocks: Range<u64>) -> Result<Runs, VolumeError> {
        let unknown = Run {
            first: blocks.start,
            blocks: blocks.end - blocks.start,
            state: BlockState::Absent,
            depth: 0,
        };
        let mut runs = Runs::default();
        look_into(self.layer(1), 1, unknown, &mut runs).await?;
        Ok(runs)
    }

    /// Looks below for what is absent so far, layer by layer, until nothing is.
    async fn resolve_below(&self, mut runs: Runs) -> Result<Runs, VolumeError> {
        for (layer, depth) in self.below.iter().zip(1..) {
            if !runs.any(BlockState::Absent) {
                break;
            }
            let mut next = Runs::default();
            for run in runs.iter() {
                if run.state == BlockState::Absent {
                    look_into(layer, depth, run, &mut next).await?;
                } else {
                    next.push(run);
                }
            }
            runs = next;
        }
        Ok(runs)
    }

    /// Puts the plaintext of whole sectors from byte `first` on into `plain`, which holds zeros: what is not data stays
    /// as it is. A store call for each run of blocks in one layer.
    ///
    /// # Errors
    ///
    /// As [`Self::resolve`]; store errors.
    pub(crate) async fn read_plain(
        &self,
        first: u64,
        plain: &mut [u8],
    ) -> Result<Runs, VolumeError> {
        let end = first + plain.len() as u64;
        let runs = self
            .resolve(blocks_touched(first, plain.len() as u64))
            .await?;
        for run in runs.iter().filter(|run| run.state == BlockState::Data) {
            let from = (run.first * BLOCK).max(first);
            let to = ((run.first + run.blocks) * BLOCK).min(end);
            let layer = self.layer(run.depth);
            let buf = IoBuf::for_overwrite(index(to - from));
            let (mut buf, result) = layer.data.read_at(buf, from).await;
            result?;
            layer.decrypt(from, &mut buf);
            plain[index(from - first)..index(to - first)].copy_from_slice(&buf);
        }
        Ok(runs)
    }
}

/// What a layer `depth` below the top says of blocks that are absent in all above it.
async fn look_into<S: Store>(
    layer: &Layer<S>,
    depth: u32,
    absent: Run,
    into: &mut Runs,
) -> Result<(), VolumeError> {
    let end = absent.first + absent.blocks;
    // The volume may have grown since the layer was sealed.
    let known = end.min(layer.blocks()).max(absent.first);
    if absent.first < known {
        for run in layer.map.resolve(absent.first..known).await?.iter() {
            let depth = if run.state == BlockState::Absent {
                0
            } else {
                depth
            };
            into.push(Run { depth, ..run });
        }
    }
    if known < end {
        into.push(Run {
            first: known,
            blocks: end - known,
            ..absent
        });
    }
    Ok(())
}

/// What of these layers, the nearest first, a layer with this parent stands on: without those that a merge has taken out
/// from between others, or a cut-over from below. What does not fit at all stays, for [`check_chain`] to refuse.
pub(crate) fn linked<S: Store>(
    parent: Option<LayerId>,
    below: &[Arc<Layer<S>>],
) -> Vec<Arc<Layer<S>>> {
    let mut next = parent;
    let mut stands_on: Vec<Arc<Layer<S>>> = Vec::with_capacity(below.len());
    for (at, layer) in below.iter().enumerate() {
        if next.is_none() && !stands_on.is_empty() {
            break;
        }
        let further_down = &below[at + 1..];
        if next != Some(layer.id()) && further_down.iter().any(|lower| Some(lower.id()) == next) {
            continue;
        }
        next = layer.params().parent;
        stands_on.push(Arc::clone(layer));
    }
    stands_on
}

/// Whether a layer's parameters fit what lies below it (the nearest first).
///
/// # Errors
///
/// [`VolumeError::BrokenStack`] names the layer that does not fit.
pub(crate) fn check_chain(top: &LayerParams, below: &[LayerParams]) -> Result<(), VolumeError> {
    let broken = |layer, cause| Err(VolumeError::BrokenStack { layer, cause });
    let mut layers = HashSet::from([top.layer]);
    let mut left = HashSet::new();
    let mut upper = top;
    for lower in below {
        if !layers.insert(lower.layer) {
            return broken(lower.layer, "it is in the stack twice");
        }
        if upper.parent != Some(lower.layer) {
            return broken(upper.layer, "its parent is not the layer below it");
        }
        if lower.volume != upper.volume {
            // A clone stands on layers of the volume that it was made from, never on its own again.
            left.insert(upper.volume);
            if left.contains(&lower.volume) {
                return broken(lower.layer, "it belongs to a volume further up");
            }
        }
        if lower.sector_size != upper.sector_size {
            return broken(lower.layer, "its sector size is another one");
        }
        if lower.size > upper.size {
            return broken(lower.layer, "it is larger than the layer above it");
        }
        upper = lower;
    }
    if upper.parent.is_some() {
        return broken(upper.layer, "its parent is missing");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use sealvol_crypto::UnitSize;

    use super::*;
    use crate::ids::VolumeId;

    /// Layers of these volumes on each other, the top first.
    fn chain(volumes: &[u8]) -> Vec<LayerParams> {
        (0..)
            .zip(volumes)
            .map(|(number, &volume)| LayerParams {
                volume: VolumeId([volume; 16]),
                layer: LayerId([number; 16]),
                parent: (usize::from(number) + 1 < volumes.len())
                    .then_some(LayerId([number + 1; 16])),
                size: BLOCK * (100 - u64::from(number)),
                sector_size: UnitSize::B4096,
            })
            .collect()
    }

    fn cause(chain: &[LayerParams]) -> Option<(LayerId, &'static str)> {
        match check_chain(&chain[0], &chain[1..]) {
            Err(VolumeError::BrokenStack { layer, cause }) => Some((layer, cause)),
            Err(other) => panic!("{other}"),
            Ok(()) => None,
        }
    }

    #[test]
    fn layers_of_one_volume_and_of_those_that_it_was_cloned_from_are_a_stack() {
        for volumes in [&[1][..], &[1, 1, 1], &[1, 2], &[1, 1, 2, 3, 3]] {
            assert_eq!(cause(&chain(volumes)), None);
        }
        let mut same_size = chain(&[1, 1]);
        same_size[1].size = same_size[0].size;
        assert_eq!(cause(&same_size), None);
    }

    #[test]
    fn gaps_cycles_and_layers_of_others_are_none() {
        type Change = fn(&mut Vec<LayerParams>);
        let changes: [(u8, &str, Change); 7] = [
            (1, "not the layer below", |layers| {
                layers.remove(2);
            }),
            (2, "missing", |layers| {
                layers.pop();
            }),
            (1, "twice", |layers| {
                layers[2].parent = Some(layers[1].layer);
                layers[3] = layers[1];
            }),
            (0, "not the layer below", |layers| layers[0].parent = None),
            (2, "sector size", |layers| {
                layers[2].sector_size = UnitSize::B512;
            }),
            (1, "larger", |layers| layers[1].size = BLOCK * 101),
            (3, "further up", |layers| {
                layers[2].volume = VolumeId([2; 16]);
            }),
        ];
        for (layer, wanted, change) in changes {
            let mut layers = chain(&[1, 1, 1, 1]);
            change(&mut layers);
            let (found, cause) = cause(&layers).expect(wanted);
            assert_eq!(found, LayerId([layer; 16]), "{cause}");
            assert!(cause.contains(wanted), "{cause}");
        }
    }
}
