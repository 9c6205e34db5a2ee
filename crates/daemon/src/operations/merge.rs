//! Merging what deleted snapshots leave (rule R9), in the background, one merge at a time.
//!
//! ```text
//!   due? (registry) ─▶ copy up, step by step ─▶ child's superblock ─▶ registry ─▶ other volumes ─▶ keys destroyed, files gone ─▶ row gone
//!                       clients use the volume     └── nobody goes from the registry's layers to an export meanwhile ──┘
//!               or ─▶ copy the child down, ... ─▶ the layer's own superblock ─▶ registry ─▶ other volumes ─▶ ... of the child
//! ```
//! What always holds:
//! - the smaller side moves, if the child is sealed and under the same data key; else what the child lacks;
//! - whoever goes from a snapshot's name to its layer, and on to the registry, holds the layers steady: a merge down may put the
//!   snapshot on another one;
//! - a layer is merged if no volume and no snapshot is it, and exactly one layer, of whatever volume, stands on it; it needs a volume
//!   that is attached for writing: without the key it waits for the next attach;
//! - which merges are due and which files are to go follows from the registry at any time, so nothing else is kept: a daemon that
//!   died anywhere goes on with the next attach, or removes what is left at its start;
//! - a merge begins only where there is room for all that it moves, and some for clients;
//! - whoever detaches does not wait for the end of a merge, only for the end of a step; no merge holds a key longer.
//!
//! It never touches a layer that a snapshot export or several layers stand on, nor a volume's device.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use sealvol_control::api::DeletedLayer;
use sealvol_store::{FileStore, StoreError};
use sealvol_volume::{Layer, LayerId, Merge, Pace, Task, Volume, VolumeError, destroy_keys};
use tokio::sync::{Notify, OwnedMutexGuard, RwLock, RwLockReadGuard};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::exports::Export;
use crate::registry::LayerRow;
use crate::working_state::WorkingState;

/// Bytes between two looks whether somebody waits.
const STEP: u64 = 8 << 20;
/// Bytes that a merge leaves to clients.
const LEFT_FREE: u64 = 64 << 20;
/// What met a full disk or a busy file is tried again so often.
const AGAIN: Duration = Duration::from_secs(30);
/// Whoever still has a merged layer open lets it go within milliseconds.
const LET_GO_WITHIN: Duration = Duration::from_secs(5);

/// The merges of a daemon: who waits for whom.
#[derive(Default)]
pub(crate) struct Merges {
    wanted: Notify,
    /// Held by a merge, from its plan to its end or pause; and by whoever takes away what it may work on.
    turn: Arc<tokio::sync::Mutex<()>>,
    waiting: AtomicUsize,
    ended: AtomicBool,
    /// Held shared from a look at the registry's layers of a volume until its export is there, alone while a layer goes.
    layers: RwLock<()>,
}

/// Somebody waits for a merge to stop.
struct Waits<'a>(&'a AtomicUsize);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// How a merge ended.
#[derive(PartialEq, Eq)]
enum Ended {
    Merged,
    /// Somebody waits for the layers, or they are not neighbours any more: it is to be planned anew.
    Interrupted,
}

impl Merges {
    /// Something changed that may make a merge due.
    pub(crate) fn want(&self) {
        self.wanted.notify_one();
    }

    /// No merge works while this is held.
    pub(crate) async fn hold(&self) -> OwnedMutexGuard<()> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let _waits = Waits(&self.waiting);
        Arc::clone(&self.turn).lock_owned().await
    }

    /// No merge works any more.
    pub(crate) async fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        drop(self.hold().await);
    }

    /// No layer goes while this is held.
    pub(crate) async fn steady(&self) -> RwLockReadGuard<'_, ()> {
        self.layers.read().await
    }

    fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0 || self.has_ended()
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }
}

impl Daemon {
    /// Merges whatever becomes due, as long as the daemon runs.
    pub(crate) async fn run_merges(self: Arc<Self>) {
        while !self.merges.has_ended() {
            let all = self.merge_all_due().await;
            let wanted = self.merges.wanted.notified();
            match all {
                Ok(true) => wanted.await,
                // Something is left that may go better another time.
                Ok(false) => drop(tokio::time::timeout(AGAIN, wanted).await),
                Err(error) => {
                    tracing::warn!(%error, "layers of deleted snapshots are not merged now");
                    drop(tokio::time::timeout(AGAIN, wanted).await);
                }
            }
        }
    }

    /// Whether everything that could be merged now is.
    async fn merge_all_due(&self) -> Result<bool, Error> {
        let mut failed = HashSet::new();
        let mut all = true;
        loop {
            let _turn = Arc::clone(&self.merges.turn).lock_owned().await;
            if self.merges.has_ended() {
                return Ok(true);
            }
            all &= self.remove_layers_of_nobody().await?;
            let Some((volume, dying)) = self.next_merge(&failed).await? else {
                return Ok(all && failed.is_empty());
            };
            let layer = dying.id;
            match self.merge(volume, dying).await {
                Ok(Ended::Merged | Ended::Interrupted) => {}
                Err(error) => {
                    tracing::warn!(%layer, %error, "cannot be merged now");
                    failed.insert(layer);
                }
            }
        }
    }

    /// A layer that is due, and a volume in use that has it below its only child.
    async fn next_merge(
        &self,
        failed: &HashSet<LayerId>,
    ) -> Result<Option<(Arc<Volume<FileStore>>, LayerRow)>, Error> {
        let due = self.registry.call(|registry| registry.due_merges()).await?;
        let exports = self.exports.all();
        for layer in due {
            if failed.contains(&layer.id) || !layer.sealed {
                continue;
            }
            let on_it = exports
                .iter()
                .find(|export| is_writable_with(export, layer.id));
            if let Some(export) = on_it {
                return Ok(Some((Arc::clone(&export.volume), layer)));
            }
        }
        Ok(None)
    }

    async fn merge(&self, volume: Arc<Volume<FileStore>>, dying: LayerRow) -> Result<Ended, Error> {
        let failed = of_layer(dying.id);
        let merge = self.begin_merge(&volume, dying.id).await?;
        let pace = HalfTheTime::default();
        let mut moved = 0;
        loop {
            let mut next = Some(merge.from());
            while let Some(from) = next {
                if self.merges.is_waited_for() {
                    merge.pause().await.map_err(failed)?;
                    return Ok(Ended::Interrupted);
                }
                let step = match merge.step(from, STEP, &pace).await {
                    Ok(step) => step,
                    Err(VolumeError::NotNearest { .. }) => return Ok(Ended::Interrupted),
                    Err(error) => return Err(failed(error)),
                };
                moved += step.copied;
                next = step.next;
            }
            let alone = self.merges.layers.write().await;
            match merge.finish().await {
                Ok(()) => {}
                Err(VolumeError::LeftBelow { .. }) => continue,
                Err(VolumeError::NotNearest { .. }) => return Ok(Ended::Interrupted),
                Err(error) => return Err(failed(error)),
            }
            let (layer, into) = (dying.id, merge.stays());
            match merge.goes_down() {
                None => {
                    self.registry
                        .call(move |registry| registry.set_parent(into, dying.parent))
                        .await?;
                    tracing::info!(%layer, %into, moved, "merged up, with the layer above it");
                }
                Some(child) => {
                    if !self.hand_down(&merge, child).await? {
                        return Ok(Ended::Interrupted);
                    }
                    tracing::info!(layer = %child, %into, moved, "merged down, with the layer below it");
                    drop(alone);
                    merge.free().await.map_err(failed)?;
                }
            }
            drop((merge, volume));
            self.remove_layers_of_nobody().await?;
            return Ok(Ended::Merged);
        }
    }

    /// Begins a merge in the direction in which less moves, if there is room for it.
    async fn begin_merge(
        &self,
        volume: &Arc<Volume<FileStore>>,
        dying: LayerId,
    ) -> Result<Merge<FileStore>, Error> {
        let failed = of_layer(dying);
        let child = self
            .registry
            .call(move |registry| registry.child_to_go_down(dying))
            .await?;
        if child.is_some() {
            let sides = Merge::sides(volume, dying).await.map_err(failed)?;
            if sides.down < sides.up {
                if !self.has_room(dying, sides.fresh).await? {
                    return Err(failed(VolumeError::NoSpace));
                }
                return Merge::begin_down(volume, dying).await.map_err(failed);
            }
        }
        let merge = Merge::begin(volume, dying).await.map_err(failed)?;
        let left = merge.left().await.map_err(failed)?;
        if !self.has_room(merge.stays(), left).await? {
            merge.pause().await.map_err(failed)?;
            return Err(failed(VolumeError::NoSpace));
        }
        Ok(merge)
    }

    /// All that a child says is in the layer below it: registry, then everybody who is open, go on without it. False: the layers
    /// are not any more what they were. Nobody goes from the registry's layers to an export meanwhile.
    async fn hand_down(&self, merge: &Merge<FileStore>, child: LayerId) -> Result<bool, Error> {
        let into = merge.stays();
        let handed_down = self
            .registry
            .call(move |registry| registry.hand_down(child, into))
            .await?;
        if !handed_down {
            return Ok(false);
        }
        let open: Vec<Arc<Layer<FileStore>>> = {
            let open = self.open_layers.lock().await;
            open.values().filter_map(Weak::upgrade).collect()
        };
        merge.hand_down(&open);
        for export in self.exports.all() {
            // All of them stand on what the registry says now.
            let _ = export.volume.leave_out(child).await;
        }
        Ok(true)
    }

    /// Whether a layer can take so many bytes more, and clients go on writing.
    async fn has_room(&self, layer: LayerId, bytes: u64) -> Result<bool, Error> {
        let rows = self.registry.call(move |registry| registry.stack(layer));
        let rows = rows.await?;
        let free = rows.first().map(|row| self.place_of(row).free());
        // Whoever can't tell has no small disk either.
        let free = free.and_then(Result::ok).flatten().unwrap_or(u64::MAX);
        Ok(free >= bytes.saturating_add(LEFT_FREE))
    }

    /// Destroys the keys and removes the files of layers that nobody stands on. Whether all of them are gone.
    ///
    /// # Errors
    /// When the registry cannot be read. A layer that cannot be removed now is left for another time.
    pub(crate) async fn remove_layers_of_nobody(&self) -> Result<bool, Error> {
        let rows = self
            .registry
            .call(|registry| registry.layers_of_nobody())
            .await?;
        let mut all = true;
        for row in rows {
            for export in self.exports.all() {
                // One that still stands on it says so, and then it is not removed: its files are locked.
                let _ = export.volume.leave_out(row.id).await;
            }
            if let Err(error) = self.remove_layer(&row).await {
                tracing::warn!(layer = %row.id, %error, "a layer that was merged stays for now");
                all = false;
            }
        }
        Ok(all)
    }

    async fn remove_layer(&self, row: &LayerRow) -> Result<(), Error> {
        let failed = of_layer(row.id);
        let place = self.place_of(row);
        let since = Instant::now();
        loop {
            let destroyed = match place.directory() {
                Ok(directory) => destroy_keys(&directory).await,
                Err(error) => Err(error.into()),
            };
            match destroyed {
                Ok(()) | Err(VolumeError::Store(StoreError::NotFound { .. })) => break,
                Err(VolumeError::Store(StoreError::Locked { .. }))
                    if since.elapsed() < LET_GO_WITHIN =>
                {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(error) => return Err(failed(error)),
            }
        }
        place.remove().await.map_err(|error| failed(error.into()))?;
        // It may have been the top of a volume when its daemon died. What is not there need not go.
        let _ = WorkingState::new(&self.working_dir, row.id, self.boot).end();
        let layer = row.id;
        self.registry
            .call(move |registry| registry.forget_layer(layer))
            .await?;
        tracing::info!(%layer, "its keys are destroyed and its files are gone");
        Ok(())
    }

    /// What becomes of the layer of a snapshot that was just deleted.
    pub(super) async fn fate_of(&self, layer: LayerId) -> Result<DeletedLayer, Error> {
        let due = self.registry.call(|registry| registry.due_merges()).await?;
        let Some(row) = due.into_iter().find(|row| row.id == layer) else {
            return Ok(DeletedLayer::Needed);
        };
        let exports = self.exports.all();
        let now = row.sealed && exports.iter().any(|export| is_writable_with(export, layer));
        Ok(if now {
            DeletedLayer::Merging
        } else {
            DeletedLayer::WaitsForAttach
        })
    }

    /// Tells the registry what the layers of a volume that was just opened stand on, if it did not hear of a merge.
    pub(super) async fn note_parents(
        &self,
        volume: &Volume<FileStore>,
        rows: &[LayerRow],
    ) -> Result<(), Error> {
        for layer in volume.layers() {
            let (id, parent) = (layer.id(), layer.params().parent);
            let known = rows.iter().find(|row| row.id == id);
            if known.is_some_and(|row| row.parent != parent) {
                tracing::info!(layer = %id, ?parent, "stands on another layer than was known");
                self.registry
                    .call(move |registry| registry.set_parent(id, parent))
                    .await?;
            }
        }
        Ok(())
    }
}

fn of_layer(layer: LayerId) -> impl Fn(VolumeError) -> Error + Copy {
    move |source| Error::Layer { layer, source }
}

/// Whether an export may be written to and stands on a layer.
fn is_writable_with(export: &Export, layer: LayerId) -> bool {
    let writable = !export.read_only && export.volume.failed().is_none();
    let layers = export.volume.layers();
    writable && layers.iter().skip(1).any(|lower| lower.id() == layer)
}

/// Leaves half of the time to others: waits before each chunk for as long as the one before it took.
#[derive(Default)]
struct HalfTheTime(Mutex<Option<Instant>>);

impl Pace for HalfTheTime {
    fn chunk(&self, _bytes: u64) -> Task<()> {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let worked = since.map_or(Duration::ZERO, |since: Instant| since.elapsed());
        let waits = worked.min(WAIT_MAX);
        *since = Some(Instant::now() + waits);
        Box::pin(tokio::time::sleep(waits))
    }
}

/// A stall of the disk is not made twice as long.
const WAIT_MAX: Duration = Duration::from_millis(200);
