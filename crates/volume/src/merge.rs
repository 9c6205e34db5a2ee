//! Merging (rule R9): a layer that nobody asks for any more goes, and its only child takes over what it holds.
//!
//! ```text
//!   child  a D a Z a a      copy up what    child  D D a Z a z      its superblock     child  D D a Z a z
//!   dying  D D a D a z   ─▶ only the     ─▶ dying  D D a D a z   ─▶ names what is   ─▶ below  ...
//!   below  ...              dying one says  below  ...              below as parent        (dying: its files may go)
//! ```
//! The child is the top of a volume in use, or a sealed layer that any number of volumes and snapshots stand on: then it is
//! opened for writing once more, while they read it, by whoever merges and by nobody else.
//!
//! Always:
//! - what anybody reads through the child never changes: a block is entered in it only with what the dying layer says, and the
//!   dying layer stays whole and in its place until the child's superblock, which names another parent, is durable;
//! - the engine is copying up (`copy_up.rs`), and the child's map the cursor: a merge that ends anywhere, by a power cut too,
//!   goes on from what is on disk. A superblock whose parent lies further down than the registry says is what a merge leaves
//!   that the registry did not hear of, and [`open`](crate::open) goes by it;
//! - a sealed child says "sealed" all the time, so that it is opened as such after a power cut, and "clean" only when the digest
//!   of its map is under its superblock's MAC again, with the next content generation;
//! - nothing that fails in a sealed child is a loss: all that it was to take over is still below it. Like a failed sync it is for
//!   ever: no merge goes on with what is open then, since what it changed in memory may never come to disk.
//!
//! Never: a second child, another reader of the dying layer alone, two merges of neighbours at once: whoever calls sees to it,
//! only the registry knows. A key that is destroyed or a file that is removed: whoever calls does that, once the registry has
//! the new parent and no volume stands on the old one ([`Volume::leave_out`]).

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sealvol_crypto::Commitment;
use sealvol_store::Store;

use crate::copy_up::{CopiedUp, Pace, Scope};
use crate::error::{Loss, LostStep, VolumeError};
use crate::host::{Damage, Host, Task};
use crate::ids::LayerId;
use crate::layer::Layer;
use crate::map::MapCache;
use crate::open::{Access, SEQUENCES_PER_OPEN, next_session};
use crate::slots;
use crate::volume::Volume;

/// A merge under way.
pub struct Merge<S> {
    /// The volume that the child is the top of; if the child is sealed, one that no client sees.
    volume: Arc<Volume<S>>,
    scope: Scope,
    child: Arc<Layer<S>>,
}

impl<S: Store> Merge<S> {
    /// Begins, or goes on with, the merge of a layer of an open volume with the one above it, which is its only child. A sealed child's
    /// stores are open for writing.
    ///
    /// # Errors
    ///
    /// [`VolumeError::NotNearest`] if no layer of the volume lies on it; [`VolumeError::NotSealed`] if it is not sealed yet: flush, and try
    /// again; [`VolumeError::ReadOnly`]; [`VolumeError::Failed`], or, of a sealed child, [`VolumeError::MergeStopped`]; store errors, and those of loading map pages.
    pub async fn begin(volume: &Arc<Volume<S>>, dying: LayerId) -> Result<Self, VolumeError> {
        let layers = volume.layers();
        let at = layers.iter().position(|layer| layer.id() == dying);
        let at = at
            .filter(|&at| at > 0)
            .ok_or(VolumeError::NotNearest { layer: dying })?;
        if !layers[at].is_sealed() {
            return Err(VolumeError::NotSealed { layer: dying });
        }
        let (scope, child) = (Scope::Nearest(dying), Arc::clone(&layers[at - 1]));
        if !child.is_sealed() {
            if at > 1 {
                // A snapshot that is not on disk yet.
                return Err(VolumeError::NotSealed { layer: child.id() });
            }
            volume.check_writable().await?;
            let volume = Arc::clone(volume);
            return Ok(Self {
                volume,
                scope,
                child,
            });
        }
        if let Some(loss) = child.unmergeable.get() {
            return Err(VolumeError::MergeStopped(loss.clone()));
        }
        let own = Volume::new(Arc::clone(&child), layers[at..].into(), Access::Writable);
        let host = Arc::new(Unacknowledged {
            host: Arc::clone(&child.host),
            unmergeable: Arc::clone(&child.unmergeable),
        });
        let merge = Self {
            volume: Arc::new(own.hosted(host)),
            scope,
            child,
        };
        merge.open_again().await?;
        Ok(merge)
    }

    /// Opens a sealed child for writing once more, while it is read: what is written from here on has sequences of its own.
    async fn open_again(&self) -> Result<(), VolumeError> {
        let child = &self.child;
        let mut head = child.head.lock().await;
        let meta = child.map.meta();
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
        let written = child.write_head(&mut head, next).await;
        drop(head);
        if let Err(cause) = written {
            let lost = self.volume.lose(child, LostStep::SuperblockWrite, &cause);
            return Err(self.stopped(lost.await));
        }
        child.map.begin_writing(sequence, exact_from);
        child.pin().await
    }

    /// What stops a merge with a sealed child loses nothing.
    fn stopped(&self, error: VolumeError) -> VolumeError {
        match error {
            VolumeError::Failed(loss) if self.child.is_sealed() => VolumeError::MergeStopped(loss),
            other => other,
        }
    }

    /// The layer that stays.
    #[must_use]
    pub fn child(&self) -> LayerId {
        self.child.id()
    }

    /// Bytes that are still to be copied.
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
        step.await.map_err(|error| self.stopped(error))
    }

    /// The child stands on what lies below the dying layer: durable when it returns. Other volumes that are open have to
    /// [`leave it out`](Volume::leave_out) before its files go.
    ///
    /// # Errors
    ///
    /// [`VolumeError::LeftBelow`] if something is not copied yet; [`VolumeError::NotNearest`]; [`VolumeError::Failed`]; those of loading
    /// map pages.
    pub async fn finish(&self) -> Result<(), VolumeError> {
        let taken = self.volume.take_away(self.scope).await;
        taken.map(drop).map_err(|error| self.stopped(error))
    }

    /// Leaves it as it is, to be begun again another time: a sealed child is clean again.
    ///
    /// # Errors
    ///
    /// [`VolumeError::MergeStopped`]. Nothing is lost by leaving out this call.
    pub async fn pause(&self) -> Result<(), VolumeError> {
        if !self.child.is_sealed() {
            return Ok(());
        }
        let settled = self.settle().await;
        settled.map_err(|error| self.stopped(error))
    }

    async fn settle(&self) -> Result<(), VolumeError> {
        self.volume.commit().await?;
        if let Err(loss) = self.volume.settle_layer(&self.child, true).await {
            return Err(self.volume.record(loss).await);
        }
        self.child.pin().await
    }
}

impl<S: Store> Volume<S> {
    /// Goes on without a layer that was merged with the one above it: whether it had it. Nobody reads that layer through this volume when it returns.
    ///
    /// # Errors
    ///
    /// [`VolumeError::NotNearest`] if the layer above still stands on it.
    pub async fn leave_out(self: &Arc<Self>, layer: LayerId) -> Result<bool, VolumeError> {
        let _shape = self.shape.lock().await;
        let old = self.stack.load_full();
        let Some(at) = old.below.iter().position(|lower| lower.id() == layer) else {
            return Ok(false);
        };
        let above = old.layer(u32::try_from(at).unwrap_or(u32::MAX));
        if above.params().parent == Some(layer) {
            return Err(VolumeError::NotNearest { layer });
        }
        let mut below = old.below.to_vec();
        below.remove(at);
        self.stand_on(&old, &below).await;
        Ok(true)
    }
}

/// The surroundings of a merge whose child no client writes to: nothing of it was ever acknowledged, so there is nothing to
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
