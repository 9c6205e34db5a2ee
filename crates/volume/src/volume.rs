//! A volume that is open: what it consists of, how it is grown, settled and closed.
//!
//! Always: one stack at a time, found without a lock; what goes on in an older one ends there. A layer whose last change
//! is on disk is settled (marked clean, or sealed) in one place, [`Volume::settle`].
//! Never: a call to a key service.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use event_listener::{Event, listener};
use sealvol_crypto::UnitSize;
use sealvol_store::Store;

use crate::commit::Commits;
use crate::copy_up::Scope;
use crate::epoch::Epochs;
use crate::error::{Loss, LostStep, VolumeError};
use crate::geometry::{self, MAX_SIZE, check_size, directories};
use crate::host::Host;
use crate::ids::LayerId;
use crate::layer::Layer;
use crate::locks::RangeLocks;
use crate::open::{Access, lengthen};
use crate::page::BlockState;
use crate::slots;
use crate::snapshot::Switch;
use crate::stack::Stack;
use crate::superblock::WrappedKey;
use crate::waits::{Histogram, Waits};
use crate::zero::yield_now;

/// Neighbouring bytes in one state, as `volume map` shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRun {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// What the volume says of them.
    pub state: BlockState,
    /// The layer that decides it; `None` if no layer does.
    pub layer: Option<LayerId>,
}

/// An open volume. See `io.rs` for reading and `write.rs` for writing.
pub struct Volume<S> {
    /// Replaced by snapshots. A request looks once, and works with what it found.
    pub(crate) stack: ArcSwap<Stack<S>>,
    /// A switch to finish before anything is committed.
    switching: Mutex<Option<Switch<S>>>,
    /// The right to change which layers there are, or their size.
    pub(crate) shape: async_lock::Mutex<()>,
    /// Another stack took the place of a closed one.
    pub(crate) switched: Event,
    size: AtomicU64,
    sector_size: UnitSize,
    access: Access,
    /// What copying up brings up.
    scope: Scope,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) locks: RangeLocks,
    pub(crate) epochs: Epochs,
    pub(crate) commits: Commits,
    /// Durable writes under way: the kernel may report to one of them what a sync should have heard.
    pub(crate) durable_writes: Epochs,
    waits: Histogram,
}

impl<S: Store> Volume<S> {
    /// A volume of checked layers: a top on what lies below it, the nearest first.
    pub(crate) fn new(top: Arc<Layer<S>>, below: Box<[Arc<Layer<S>>]>, access: Access) -> Self {
        Self {
            size: AtomicU64::new(top.size()),
            sector_size: top.params.sector_size,
            access,
            scope: Scope::Everything,
            host: Arc::clone(&top.host),
            stack: ArcSwap::from_pointee(Stack::new(top, below)),
            switched: Event::new(),
            switching: Mutex::new(None),
            shape: async_lock::Mutex::new(()),
            locks: RangeLocks::default(),
            epochs: Epochs::default(),
            commits: Commits::default(),
            durable_writes: Epochs::default(),
            waits: Histogram::default(),
        }
    }

    /// The same, for bringing up something else than all that lies below.
    pub(crate) fn copying(self, scope: Scope) -> Self {
        Self { scope, ..self }
    }

    /// The same, with other surroundings than its top's.
    pub(crate) fn hosted(self, host: Arc<dyn Host>) -> Self {
        Self { host, ..self }
    }

    pub(crate) fn scope(&self) -> Scope {
        self.scope
    }

    /// The layer that writes go to.
    #[must_use]
    pub fn top(&self) -> Arc<Layer<S>> {
        Arc::clone(&self.stack.load().top)
    }

    /// Its layers, the top first.
    #[must_use]
    pub fn layers(&self) -> Vec<Arc<Layer<S>>> {
        self.stack.load().layers().cloned().collect()
    }

    /// The stack that changes may begin in, for a request that met a closed one. Its wait is counted.
    pub(crate) async fn next_stack(&self) -> Arc<Stack<S>> {
        let began = self.host.now();
        let stack = self.open_stack().await;
        self.waits.record(self.host.now().saturating_sub(began));
        stack
    }

    /// The same, for what works in the background.
    pub(crate) async fn open_stack(&self) -> Arc<Stack<S>> {
        loop {
            listener!(self.switched => switched);
            let stack = self.stack.load_full();
            if !stack.is_closed() {
                return stack;
            }
            switched.await;
        }
    }

    /// How long requests waited because its layers were changed, since it was opened.
    #[must_use]
    pub fn waits(&self) -> Waits {
        self.waits.seen()
    }

    pub(crate) fn switching(&self) -> MutexGuard<'_, Option<Switch<S>>> {
        self.switching
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// The cipher's data unit.
    #[must_use]
    pub fn sector_size(&self) -> UnitSize {
        self.sector_size
    }

    /// The generation of the top's superblock.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.stack.load().top.generation()
    }

    /// The loss that stopped the volume, if there is one.
    #[must_use]
    pub fn failed(&self) -> Option<Loss> {
        self.commits.lost()
    }

    /// What was repaired when the top was opened, if something was.
    #[must_use]
    pub fn repaired(&self) -> Option<&'static str> {
        self.stack.load().top.repaired()
    }

    /// How the top's store is reached.
    #[must_use]
    pub fn access_path(&self) -> &'static str {
        self.stack.load().top.data.access()
    }

    /// Refuses what a volume that is read-only or has lost data must not do.
    pub(crate) async fn check_writable(&self) -> Result<(), VolumeError> {
        if self.access == Access::ReadOnly {
            return Err(VolumeError::ReadOnly);
        }
        self.commits.check().await
    }

    /// Makes the volume larger, while it is in use.
    ///
    /// # Errors
    ///
    /// [`VolumeError::Shrink`], [`VolumeError::InvalidSize`]; store errors, and then the volume has its old size.
    pub async fn grow(self: &Arc<Self>, size: u64) -> Result<(), VolumeError> {
        self.check_writable().await?;
        check_size(size)?;
        let _shape = self.shape.lock().await;
        let top = self.top();
        let mut head = top.head.lock().await;
        self.commits.check().await?;
        if size < head.params.size {
            return Err(VolumeError::Shrink {
                asked: size,
                size: head.params.size,
            });
        }
        if let Err(failed) = lengthen(&top.data, top.map.meta(), size).await {
            let Some(step) = failed.lost else {
                return Err(failed.cause);
            };
            return Err(self.lose(&top, step, &failed.cause).await);
        }
        let mut next = head.clone();
        next.params.size = size;
        next.root.resize(geometry::index(directories(size)), 0);
        if let Err(cause) = top.write_head(&mut head, next).await {
            return Err(self.lose(&top, LostStep::SuperblockWrite, &cause).await);
        }
        self.size.store(size, Ordering::Release);
        drop(head);
        top.pin().await
    }

    /// [`replace_keys`](crate::replace_keys) for the top, while the volume is in use.
    ///
    /// # Errors
    ///
    /// [`VolumeError::WrappedKeys`]; [`VolumeError::Failed`] if the superblock could not be written.
    pub async fn replace_keys(self: &Arc<Self>, keys: &[WrappedKey]) -> Result<(), VolumeError> {
        self.check_writable().await?;
        let top = self.top();
        let mut head = top.head.lock().await;
        let mut next = head.clone();
        next.replace_keys(keys)?;
        // Before anything is written: a full disk then loses nothing.
        slots::make_room(top.map.meta(), &next).await?;
        if let Err(cause) = slots::write(top.map.meta(), &next, 0).await {
            return Err(self.lose(&top, LostStep::SuperblockWrite, &cause).await);
        }
        *head = next;
        Ok(())
    }

    /// The volume's map, from a byte on: at most `runs_max` runs. An empty answer is the end.
    ///
    /// # Errors
    ///
    /// Those of loading map pages.
    pub async fn map(&self, offset: u64, runs_max: usize) -> Result<Vec<MapRun>, VolumeError> {
        let size = self.size();
        let mut runs: Vec<MapRun> = Vec::new();
        let mut at = offset.min(MAX_SIZE) / geometry::BLOCK * geometry::BLOCK;
        while at < size {
            let end = size.min((at / geometry::PAGE_SPAN + 1) * geometry::PAGE_SPAN);
            let stack = self.stack.load_full();
            let blocks = at / geometry::BLOCK..end / geometry::BLOCK;
            for run in stack.resolve(blocks).await?.iter() {
                let decided = run.state != BlockState::Absent;
                let next = MapRun {
                    offset: run.first * geometry::BLOCK,
                    len: run.blocks * geometry::BLOCK,
                    state: run.state,
                    layer: decided.then(|| stack.layer(run.depth).id()),
                };
                let full = runs.len() == runs_max;
                match runs.last_mut() {
                    Some(last) if (last.state, last.layer) == (next.state, next.layer) => {
                        last.len += next.len
                    }
                    _ if full => return Ok(runs),
                    _ => runs.push(next),
                }
            }
            at = end;
            // An empty 64 TiB volume has a million pages to look at.
            if (at / geometry::PAGE_SPAN).is_multiple_of(1024) {
                yield_now().await;
            }
        }
        Ok(runs)
    }

    /// Commits, puts the digest of the map under the superblock's MAC and marks the layer clean. The last call:
    /// whoever makes it has seen every other one end. The generation that the registry is to rely on.
    ///
    /// # Errors
    ///
    /// [`VolumeError::Failed`] if data was or is now lost; the layer is not marked clean then.
    pub async fn close(self: &Arc<Self>) -> Result<u64, VolumeError> {
        if self.access == Access::Writable {
            self.settle(false).await?;
        }
        Ok(self.generation())
    }

    /// Commits the top and settles it.
    ///
    /// # Errors
    ///
    /// As [`Self::close`].
    pub(crate) async fn settle(self: &Arc<Self>, sealed: bool) -> Result<(), VolumeError> {
        self.commit().await?;
        for layer in self.layers() {
            layer.punches.idle().await;
        }
        let top = self.top();
        if let Err(loss) = self.settle_layer(&top, sealed).await {
            return Err(self.record(loss).await);
        }
        top.pin().await?;
        top.host.end_session();
        Ok(())
    }

    /// What a committed layer is left with: the digest of its map under its superblock's MAC, and the mark that it is
    /// clean, or sealed.
    pub(crate) async fn settle_layer(
        self: &Arc<Self>,
        layer: &Arc<Layer<S>>,
        sealed: bool,
    ) -> Result<(), Loss> {
        let mut head = layer.head.lock().await;
        self.commits.lost().map_or(Ok(()), Err)?;
        let mut next = layer.settled_head(&mut head).await?;
        next.sealed = sealed;
        let written = layer.write_head(&mut head, next).await;
        written.map_err(|cause| layer.loss(LostStep::SuperblockWrite, &cause))
    }

    /// # Errors
    ///
    /// [`VolumeError::OutOfRange`].
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

    /// Bytes in a sector.
    pub(crate) fn unit(&self) -> u64 {
        self.sector_size.bytes() as u64
    }
}
