//! Merging (rule R9): a layer that nobody asks for any more goes, and what it holds goes into its only child; or, if that is the
//! smaller side, what its child holds goes into it, and it takes the child's place.
//!
//! ```text
//!   up     child  a D a Z a a      copy up what    child  D D a Z a z      its superblock     child  D D a Z a z
//!          dying  D D a D a z   ─▶ only the     ─▶ dying  D D a D a z   ─▶ names what is   ─▶ below  ...
//!          below  ...              dying one says  below  ...              below as parent        (dying: its files may go)
//!
//!   down   child  a D a Z a a      copy down all   child  a D a Z a a      the registry: who
//!          dying  D d a d a z   ─▶ that the     ─▶ dying  D D a Z a z   ─▶ stood on the     ─▶ dying  D D a Z a z
//!          below  ...              child says      below  ...              child stands on it     (child: its files may go)
//! ```
//! Up, the child is the top of a volume in use, or a sealed layer that any number of volumes and snapshots stand on. Down, it is a
//! sealed layer under the same data key. The sealed layer that stays is opened for writing once more, while others read it, by
//! whoever merges and by nobody else.
//!
//! Always:
//! - what anybody reads through the child never changes. Up: a block is entered in it only with what the dying layer says, and the
//!   dying layer stays whole and in its place until the child's superblock, which names another parent, is durable. Down: only
//!   blocks change of which the child says something, and whoever reads the dying layer asks the child first; the child
//!   stays whole, and in its place until the registry, once the other one is durable, has nobody stand on it;
//! - the engine is copying up (`copy_up.rs`). Up, the child's map is the cursor: a merge that ends anywhere, by a power cut too,
//!   goes on from what is on disk. Down, both may have data of a block: how far it has come is known as long as the layer is
//!   open, and an opening begins again. Either way it may go on in the other direction: what was brought down is hidden;
//! - up, a superblock whose parent lies further down than the registry says is what a merge leaves that the registry did not hear of,
//!   and [`open`](crate::open) goes by it. Down, the registry is told first: superblocks of the child's children name it until
//!   they are written for another reason, and the registry says so (`Pins::former_parents`);
//! - a sealed layer says "sealed" all the time, so that it is opened as such after a power cut, and "clean" only when the digest
//!   of its map is under its superblock's MAC again, with the next content generation;
//! - nothing that fails in a sealed layer is a loss: all that it was to take over is still in the other one. Like a failed sync it is
//!   for ever: no merge goes on with what is open then, since what it changed in memory may never come to disk.
//!
//! Never: a second child, another reader of the dying layer alone, two merges of neighbours at once: whoever calls sees to it,
//! only the registry knows. A key that is destroyed or a file that is removed: whoever calls does that, once the registry has
//! nobody stand on the layer and no volume does ([`Volume::leave_out`]).

use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Duration;

use sealvol_crypto::Commitment;
use sealvol_store::Store;

use crate::copy_up::{CopiedUp, Pace, Scope};
use crate::error::{Loss, LostStep, VolumeError};
use crate::geometry::{BLOCK, PAGE_BLOCKS};
use crate::host::{Damage, Host, Task};
use crate::ids::LayerId;
use crate::layer::{Layer, Reached};
use crate::map::{MapCache, Run};
use crate::open::{Access, SEQUENCES_PER_OPEN, next_session};
use crate::page::BlockState;
use crate::slots;
use crate::volume::Volume;
use crate::zero::{PUNCH_BLOCKS_MAX, yield_now};

/// A merge under way.
pub struct Merge<S> {
    /// The volume whose top is written to: the one that the child is the top of, or one that no client sees, of a sealed layer.
    volume: Arc<Volume<S>>,
    scope: Scope,
    /// The layer that is written to.
    stays: Arc<Layer<S>>,
    /// The child, if that is what goes.
    down: Option<Arc<Layer<S>>>,
}

/// Bytes that a merge would move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sides {
    /// Up: what the child lacks.
    pub up: u64,
    /// Down: what the child holds.
    pub down: u64,
    /// Of that, what takes space that the layer below does not have yet.
    pub fresh: u64,
}

impl<S: Store> Merge<S> {
    /// Begins, or goes on with, the merge of a layer of an open volume with the one above it, which is its only child, up into that. The
    /// stores of a sealed child are open for writing.
    ///
    /// # Errors
    ///
    /// [`VolumeError::NotNearest`] if no layer of the volume lies on it; [`VolumeError::NotSealed`] if it is not sealed yet: flush, and try
    /// again; [`VolumeError::ReadOnly`]; [`VolumeError::Failed`], or, of a sealed child, [`VolumeError::MergeStopped`]; store errors, and those of loading map pages.
    pub async fn begin(volume: &Arc<Volume<S>>, dying: LayerId) -> Result<Self, VolumeError> {
        let Pair {
            child,
            child_is_top,
            from,
        } = Pair::of(volume, dying)?;
        let scope = Scope::Nearest(dying);
        if child.is_sealed() {
            return Self::write_to_sealed(child, &from, scope, None).await;
        }
        if !child_is_top {
            // A snapshot that is not on disk yet.
            return Err(VolumeError::NotSealed { layer: child.id() });
        }
        volume.check_writable().await?;
        Ok(Self {
            volume: Arc::clone(volume),
            scope,
            stays: child,
            down: None,
        })
    }

    /// The same, down: what the child holds goes into the layer, which then takes its place. Its stores are open for writing; the child
    /// is sealed and under the same data key.
    ///
    /// # Errors
    ///
    /// As [`Self::begin`]; [`VolumeError::OtherDataKey`]; [`VolumeError::NoSpace`], and nothing has changed then.
    pub async fn begin_down(volume: &Arc<Volume<S>>, dying: LayerId) -> Result<Self, VolumeError> {
        let Pair { child, from, .. } = Pair::of(volume, dying)?;
        let stays = Arc::clone(&from[0]);
        if !child.is_sealed() {
            return Err(VolumeError::NotSealed { layer: child.id() });
        }
        let keys = [&stays, &child].map(|layer| layer.cipher.commitment());
        if keys[0] != keys[1] || stays.params.volume != child.params.volume {
            return Err(VolumeError::OtherDataKey { layer: child.id() });
        }
        // Of what was trimmed while it was a top: it is not to be freed after it was written again.
        stays.punches.idle().await;
        let (scope, source) = (Scope::Over(child.id()), [Arc::clone(&child)]);
        let merge = Self::write_to_sealed(stays, &source, scope, Some(child)).await?;
        if let Err(error) = merge.volume.grow(source[0].size()).await {
            merge.pause().await?;
            return Err(merge.stopped(error));
        }
        Ok(merge)
    }

    /// Opens a sealed layer for writing once more, over what is to be brought into it.
    async fn write_to_sealed(
        stays: Arc<Layer<S>>,
        source: &[Arc<Layer<S>>],
        scope: Scope,
        down: Option<Arc<Layer<S>>>,
    ) -> Result<Self, VolumeError> {
        if let Some(loss) = stays.unmergeable.get() {
            return Err(VolumeError::MergeStopped(loss.clone()));
        }
        let own = Volume::new(Arc::clone(&stays), source.into(), Access::Writable);
        let host = Arc::new(Unacknowledged {
            host: Arc::clone(&stays.host),
            unmergeable: Arc::clone(&stays.unmergeable),
        });
        let merge = Self {
            volume: Arc::new(own.hosted(host)),
            scope,
            stays,
            down,
        };
        merge.open_again().await?;
        Ok(merge)
    }

    /// What merging a layer of an open volume with the one above it would move, in each direction.
    ///
    /// # Errors
    ///
    /// [`VolumeError::NotNearest`], [`VolumeError::NotSealed`]; those of loading map pages.
    pub async fn sides(volume: &Volume<S>, dying: LayerId) -> Result<Sides, VolumeError> {
        let Pair { child, from, .. } = Pair::of(volume, dying)?;
        let mut sides = Sides::default();
        let mut pages = Pages::of(&child);
        while let Some(runs) = pages.next().await? {
            for run in runs {
                let data = data_in(&from[0], &run).await?;
                match run.state {
                    BlockState::Absent => sides.up += data,
                    BlockState::Zero => {}
                    BlockState::Data => {
                        sides.down += run.blocks * BLOCK;
                        sides.fresh += run.blocks * BLOCK - data;
                    }
                }
            }
        }
        Ok(sides)
    }

    /// Opens a sealed layer for writing once more, while it is read: what is written from here on has sequences of its own.
    async fn open_again(&self) -> Result<(), VolumeError> {
        let stays = &self.stays;
        let mut head = stays.head.lock().await;
        let meta = stays.map.meta();
        let mut next = head.clone();
        if !head.clean {
            next.exact_from = head.sequence_base + SEQUENCES_PER_OPEN;
        }
        next.sequence_base = next_session(&head, 0)?;
        next.clean = false;
        let (sequence, exact_from) = (next.sequence_base, next.exact_from);
        // Power that went in the middle of writing it left one slot as it was: never write the one that serves first.
        let slots = slots::read(meta).await?;
        if slots.repair.is_some() {
            slots::write(meta, &head, slots.spare).await?;
        }
        let written = stays.write_head(&mut head, next).await;
        drop(head);
        if let Err(cause) = written {
            let lost = self.volume.lose(stays, LostStep::SuperblockWrite, &cause);
            return Err(self.stopped(lost.await));
        }
        stays.map.begin_writing(sequence, exact_from);
        stays.pin().await
    }

    /// What stops a merge into a sealed layer loses nothing.
    fn stopped(&self, error: VolumeError) -> VolumeError {
        match error {
            VolumeError::Failed(loss) if self.stays.is_sealed() => VolumeError::MergeStopped(loss),
            other => other,
        }
    }

    /// The layer that stays.
    #[must_use]
    pub fn stays(&self) -> LayerId {
        self.stays.id()
    }

    /// The child, if that is what goes.
    #[must_use]
    pub fn goes_down(&self) -> Option<LayerId> {
        self.down.as_ref().map(|child| child.id())
    }

    /// From which byte on there is something to do: where the first step begins.
    #[must_use]
    pub fn from(&self) -> u64 {
        let Some(child) = &self.down else {
            return 0;
        };
        let reached = self.stays.reached.lock();
        let reached = reached.unwrap_or_else(PoisonError::into_inner);
        let of_child = |reached: &&Reached| {
            reached.child == child.id() && reached.generation == child.generation()
        };
        reached
            .as_ref()
            .filter(of_child)
            .map_or(0, |reached| reached.to)
    }

    fn has_reached(&self, child: &Layer<S>, to: u64) {
        let reached = self.stays.reached.lock();
        *reached.unwrap_or_else(PoisonError::into_inner) = Some(Reached {
            child: child.id(),
            generation: child.generation(),
            to,
        });
    }

    /// Bytes that are still to be copied; down, as many as if nothing was yet.
    ///
    /// # Errors
    ///
    /// Those of loading map pages; [`VolumeError::NotNearest`].
    pub async fn left(&self) -> Result<u64, VolumeError> {
        self.volume.left_of(self.scope).await
    }

    /// Copies a part, as [`Volume::copy_up`] does.
    ///
    /// # Errors
    ///
    /// As [`Volume::copy_up`]; [`VolumeError::NotNearest`] if a snapshot came between the two layers: the merge is to be begun anew.
    pub async fn step(
        &self,
        from: u64,
        bytes_max: u64,
        pace: &dyn Pace,
    ) -> Result<CopiedUp, VolumeError> {
        let step = self
            .volume
            .bring_up(self.scope, from..u64::MAX, bytes_max, pace);
        let step = step.await.map_err(|error| self.stopped(error))?;
        // It ended with a commit: what it brought is on disk, and so is what the steps before it brought.
        if let Some(child) = &self.down
            && from <= self.from()
        {
            let to = step.next.unwrap_or_else(|| child.size());
            self.has_reached(child, to.max(self.from()));
        }
        Ok(step)
    }

    /// Up: the child stands on what lies below the dying layer. Down: the dying layer says all that its child says; now the registry is to
    /// have those stand on it that stand on the child, and then [`Self::hand_down`] is to be called. Durable when it returns.
    /// Other volumes that are open have to [`leave out`](Volume::leave_out) what goes before its files go.
    ///
    /// # Errors
    ///
    /// [`VolumeError::LeftBelow`] if something is not copied yet; [`VolumeError::NotNearest`]; [`VolumeError::Failed`]; those of loading
    /// map pages.
    pub async fn finish(&self) -> Result<(), VolumeError> {
        let finished = match &self.down {
            None => self.volume.take_away(self.scope).await.map(drop),
            Some(child) => self.finish_down(child).await,
        };
        finished.map_err(|error| self.stopped(error))
    }

    async fn finish_down(&self, child: &Layer<S>) -> Result<(), VolumeError> {
        let reached = self.from();
        if reached < child.size() {
            return Err(VolumeError::LeftBelow { offset: reached });
        }
        let mut pages = Pages::of(child);
        while let Some(runs) = pages.next().await? {
            for run in runs {
                let blocks = run.first..run.first + run.blocks;
                if run.state != BlockState::Absent
                    && !self.stays.map.resolve(blocks).await?.all(run.state)
                {
                    // Whatever the reason: from the beginning.
                    self.has_reached(child, 0);
                    let offset = run.first * BLOCK;
                    return Err(VolumeError::LeftBelow { offset });
                }
            }
        }
        let parent = self.stays.params().parent;
        self.volume.commit().await?;
        self.volume
            .switch_parent(&self.stays, parent, self.scope)
            .await?;
        self.stays.pin().await
    }

    /// The registry has nobody stand any more on the child that was merged down. These sealed layers are open: those that stood on it
    /// stand on the other one from now on, and the tops of volumes when they [leave it out](Volume::leave_out).
    pub fn hand_down(&self, open: &[Arc<Layer<S>>]) {
        let Some(child) = &self.down else { return };
        child.hand_down();
        for layer in open {
            layer.steps_over(child);
        }
    }

    /// Frees the space of what became zero in the layer that stays. Every volume has left the child out: nobody is on the way to what
    /// lay there.
    ///
    /// # Errors
    ///
    /// Those of loading map pages.
    pub async fn free(&self) -> Result<(), VolumeError> {
        let Some(child) = &self.down else {
            return Ok(());
        };
        let mut pages = Pages::of(child);
        while let Some(runs) = pages.next().await? {
            for run in runs.iter().filter(|run| run.state == BlockState::Zero) {
                let end = run.first + run.blocks;
                let mut at = run.first;
                while at < end {
                    let blocks = (end - at).min(PUNCH_BLOCKS_MAX);
                    // A store that can't free space keeps it.
                    let _ = self.stays.data.punch(at * BLOCK, blocks * BLOCK).await;
                    at += blocks;
                }
            }
        }
        Ok(())
    }

    /// Leaves it as it is, to be begun again another time: a sealed layer is clean again.
    ///
    /// # Errors
    ///
    /// [`VolumeError::MergeStopped`]. Nothing is lost by leaving out this call.
    pub async fn pause(&self) -> Result<(), VolumeError> {
        if !self.stays.is_sealed() {
            return Ok(());
        }
        let settled = self.settle().await;
        settled.map_err(|error| self.stopped(error))
    }

    async fn settle(&self) -> Result<(), VolumeError> {
        self.volume.commit().await?;
        if let Err(loss) = self.volume.settle_layer(&self.stays, true).await {
            return Err(self.volume.record(loss).await);
        }
        self.stays.pin().await
    }
}

impl<S: Store> Volume<S> {
    /// Goes on without a layer that was merged with the one above it, or went down into the one below it: whether it had it. Nobody
    /// reads that layer through this volume when it returns. A snapshot that was that layer is the one below.
    ///
    /// # Errors
    ///
    /// [`VolumeError::NotNearest`] if the layer above still stands on it.
    pub async fn leave_out(self: &Arc<Self>, layer: LayerId) -> Result<bool, VolumeError> {
        let _shape = self.shape.lock().await;
        let old = self.stack.load_full();
        if old.top.id() == layer {
            let below = old.below.split_first();
            let Some((top, below)) = below.filter(|_| old.top.is_handed_down()) else {
                return Ok(false);
            };
            self.stand_on(&old, top, below).await;
            return Ok(true);
        }
        let Some(at) = old.below.iter().position(|lower| lower.id() == layer) else {
            return Ok(false);
        };
        let above = old.layer(u32::try_from(at).unwrap_or(u32::MAX));
        if !above.steps_over(&old.below[at]) {
            return Err(VolumeError::NotNearest { layer });
        }
        let mut below = old.below.to_vec();
        below.remove(at);
        self.stand_on(&old, &old.top, &below).await;
        Ok(true)
    }
}

/// A layer of an open volume, and its child.
struct Pair<S> {
    child: Arc<Layer<S>>,
    /// Whether that is the top.
    child_is_top: bool,
    /// The layer, and what lies below it, the nearest first.
    from: Vec<Arc<Layer<S>>>,
}

impl<S: Store> Pair<S> {
    /// # Errors
    ///
    /// [`VolumeError::NotNearest`] if no layer of the volume lies on it; [`VolumeError::NotSealed`] if it is not sealed yet.
    fn of(volume: &Volume<S>, dying: LayerId) -> Result<Self, VolumeError> {
        let mut layers = volume.layers();
        let at = layers.iter().position(|layer| layer.id() == dying);
        let at = at
            .filter(|&at| at > 0)
            .ok_or(VolumeError::NotNearest { layer: dying })?;
        if !layers[at].is_sealed() {
            return Err(VolumeError::NotSealed { layer: dying });
        }
        let from = layers.split_off(at);
        Ok(Self {
            child: layers.swap_remove(at - 1),
            child_is_top: at == 1,
            from,
        })
    }
}

/// What a layer says, page by page.
struct Pages<'a, S> {
    layer: &'a Layer<S>,
    at: u64,
}

impl<'a, S: Store> Pages<'a, S> {
    fn of(layer: &'a Layer<S>) -> Self {
        Self { layer, at: 0 }
    }

    async fn next(&mut self) -> Result<Option<Vec<Run>>, VolumeError> {
        let end = self.layer.blocks().min(self.at + PAGE_BLOCKS);
        if self.at == end {
            return Ok(None);
        }
        let runs = self.layer.map.resolve(self.at..end).await?;
        self.at = end;
        yield_now().await;
        Ok(Some(runs.iter().collect()))
    }
}

/// Bytes of data that a layer has of a run of another one.
async fn data_in<S: Store>(layer: &Layer<S>, run: &Run) -> Result<u64, VolumeError> {
    let end = (run.first + run.blocks).min(layer.blocks());
    if run.first >= end {
        return Ok(0);
    }
    let runs = layer.map.resolve(run.first..end).await?;
    let data = runs.iter().filter(|run| run.state == BlockState::Data);
    Ok(data.map(|run| run.blocks * BLOCK).sum())
}

/// The surroundings of a merge into a layer that no client writes to: nothing of it was ever acknowledged, so there is nothing to
/// remember, and no loss.
struct Unacknowledged {
    host: Arc<dyn Host>,
    unmergeable: Arc<OnceLock<Loss>>,
}

impl Host for Unacknowledged {
    fn spawn(&self, task: Task<()>) {
        self.host.spawn(task);
    }

    fn map_cache(&self) -> Arc<MapCache> {
        self.host.map_cache()
    }

    /// What it changed in memory may never come to disk: nothing more is brought to this opening of the layer.
    fn record_loss(&self, loss: Loss) -> Task<()> {
        let _ = self.unmergeable.set(loss);
        Box::pin(async {})
    }

    fn record_damage(&self, damage: Damage) -> Task<()> {
        self.host.record_damage(damage)
    }

    fn pin(
        &self,
        generation: u64,
        size: u64,
        commitment: Commitment,
    ) -> Task<Result<(), VolumeError>> {
        self.host.pin(generation, size, commitment)
    }

    fn now(&self) -> Duration {
        self.host.now()
    }
}
