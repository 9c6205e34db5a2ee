//! What a volume needs from whoever runs it: a place for background tasks and a memory outside the layer.
//!
//! This crate has no threads, clock or runtime of its own, so that the same code runs in the daemon and in
//! a simulation.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use sealvol_crypto::Commitment;

use crate::error::{Loss, VolumeError};
use crate::ids::LayerId;
use crate::map::MapCache;
use crate::page::BlockState;

/// A future without a lifetime, as the host runs it.
pub type Task<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Blocks that entered a state: what a commit has not brought to disk yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// First block (4096 bytes each).
    pub first: u64,
    /// Number of blocks.
    pub blocks: u64,
    /// What they are now: never [`BlockState::Absent`].
    pub state: BlockState,
}

/// A part of the map that can't be trusted: its range answers with errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The layer whose map it is.
    pub layer: LayerId,
    /// First byte of the volume that can't be served.
    pub offset: u64,
    /// One past the last.
    pub end: u64,
    /// What was found.
    pub cause: &'static str,
    /// More damage that this opening finds is not told any more.
    pub last: bool,
}

/// The surroundings of a volume, seen from one of its layers: each layer is opened with its own, and what is asked of it is
/// about that layer, but for tasks, cache and time.
///
/// Two of its memories are outside the layer: the *registry*, which survives everything, and the *working state*, which
/// dies with the page cache and not with the process (rule R8). An acknowledged write whose map entry is not on disk yet
/// is in the working state before it is answered, so that whoever opens the volume after this process was killed, in
/// the same boot, can take it over. The methods of the working state have defaults that remember nothing: right for a host
/// whose processes do not die one by one.
pub trait Host: Send + Sync + 'static {
    /// Runs a task to its end, soon, beside everything else.
    fn spawn(&self, task: Task<()>);

    /// The page cache that the volume's map shares with others. The default is one of its own.
    fn map_cache(&self) -> Arc<MapCache> {
        MapCache::new(16 << 20)
    }

    /// Records a loss, of the layer that it names, where the failing store can't lose it. The error that it causes is answered only
    /// after this is done (rule R6).
    fn record_loss(&self, loss: Loss) -> Task<()>;

    /// Records that a part of the map can't be trusted, once for each in an opening; the error is answered only after
    /// this is done. The default records nothing.
    fn record_damage(&self, damage: Damage) -> Task<()> {
        let _ = damage;
        Box::pin(async {})
    }

    /// From now on the layer is bound to the key with this commitment, and a superblock older than
    /// `generation` is a rollback.
    ///
    /// # Errors
    ///
    /// [`VolumeError::Registry`] if that can't be recorded.
    fn pin(
        &self,
        generation: u64,
        size: u64,
        commitment: Commitment,
    ) -> Task<Result<(), VolumeError>>;

    /// This layer is the top of its volume from now on, on a layer that is sealed (rule R7): durable in the registry when it
    /// returns. No FLUSH or FUA is answered for what was written to this layer before.
    ///
    /// # Errors
    ///
    /// [`VolumeError::Registry`] if that can't be recorded; the next commit asks again.
    fn head_switched(&self, sealed: LayerId) -> Task<Result<(), VolumeError>> {
        let _ = sealed;
        Box::pin(async { Ok(()) })
    }

    /// The time now, from whatever start: only to tell how long something took. The default stands still.
    fn now(&self) -> Duration {
        Duration::ZERO
    }

    /// Before a layer that was not closed is opened: the changes, in order, that the last session left in the working
    /// state. It has one of these numbers: the second one if it was begun and its superblock never written. Nothing is
    /// forgotten by it.
    ///
    /// # Errors
    ///
    /// [`VolumeError::WorkingStateLost`] if that opening was in this boot and what it left is not there: acknowledged
    /// writes may be missing, and only the operator can accept that.
    fn adopt(&self, sessions: [u64; 2]) -> Result<Vec<Change>, VolumeError> {
        let _ = sessions;
        Ok(Vec::new())
    }

    /// An opening for writing with this session number begins, with these changes not yet on disk. It replaces what
    /// an earlier session left, in one step.
    ///
    /// # Errors
    ///
    /// [`VolumeError::WorkingState`] if that can't be written.
    fn begin_session(&self, session: u64, changes: &[Change]) -> Result<(), VolumeError> {
        let _ = (session, changes);
        Ok(())
    }

    /// A change that is in the map in memory, about to be acknowledged.
    ///
    /// # Errors
    ///
    /// [`VolumeError::WorkingState`] if there is no room; the change must be committed before it is acknowledged.
    fn remember(&self, change: Change) -> Result<(), VolumeError> {
        let _ = change;
        Ok(())
    }

    /// A commit is about to copy the map: what was remembered before is in its copies.
    fn commit_begins(&self) {}

    /// What was remembered before the last [`Self::commit_begins`] is on disk.
    fn commit_done(&self) {}

    /// The layer was closed cleanly: nothing of it is to be adopted.
    fn end_session(&self) {}
}
