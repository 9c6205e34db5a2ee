//! A volume that is open: what it consists of, how it is opened, grown and closed.
//!
//! Always: what the store says is believed only after the superblock's MAC was checked with the key that the
//! registry is committed to; nothing is written before that. A volume that is open for writing is marked
//! "not clean" on disk before its first write and "clean" as the last thing of [`Volume::close`].
//! Never: a call to a key service; the key comes in, already unwrapped, and is wiped when the volume is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sealvol_crypto::{Commitment, SectorCipher, UnitSize};
use sealvol_store::Store;

use crate::commit::Commits;
use crate::epoch::Epochs;
use crate::error::{Loss, LostStep, VolumeError};
use crate::geometry::{self, MAX_SIZE, check_size, directories, meta_len};
use crate::host::{Change, Host};
use crate::ids::LayerId;
use crate::io::yield_now;
use crate::layer::slot_allocations;
use crate::locks::RangeLocks;
use crate::map::Map;
use crate::page::BlockState;
use crate::punch::Punches;
use crate::slots::{self, Slots};
use crate::superblock::{LayerParams, Superblock};

/// Sequences that one opening may use (FORMAT.md, section 3.4).
const SEQUENCES_PER_OPEN: u64 = 1 << 36;
const SEQUENCE_END: u64 = 1 << 62;

/// What the registry is sure of: what the store says has to agree with it.
#[derive(Clone, Debug)]
pub struct Pins {
    /// Identity, geometry; the size may be larger than the superblock's (a grow that is to be folded in).
    pub params: LayerParams,
    /// The key that the layer is bound to; `None` before the first attach.
    pub commitment: Option<Commitment>,
    /// The highest superblock generation relied on.
    pub generation: u64,
    /// Whether the superblock has a MAC. One that the registry calls unbound has an empty map.
    pub bound: bool,
}

/// What an opening may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing is written, not even a repair.
    ReadOnly,
    /// Reads and writes.
    Writable,
}

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

/// An open volume. See `io.rs` for reading and writing.
pub struct Volume<S> {
    pub(crate) params: LayerParams,
    size: AtomicU64,
    access: Access,
    pub(crate) data: S,
    pub(crate) map: Map<S>,
    pub(crate) cipher: Arc<SectorCipher>,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) locks: RangeLocks,
    pub(crate) epochs: Epochs,
    pub(crate) punches: Punches,
    pub(crate) commits: Commits,
    /// Durable writes under way: the kernel may report to one of them what a sync should have heard.
    pub(crate) durable_writes: Epochs,
    /// The superblock on disk, and the right to change it or the map's pages on disk.
    pub(crate) head: async_lock::Mutex<Superblock>,
    generation: AtomicU64,
    repaired: Option<&'static str>,
}

/// Opens a layer's stores as a volume.
///
/// # Errors
///
/// Everything that [`VolumeError`] calls `Stop` or `Refuse` for what the stores hold; nothing was written then.
/// Store errors; [`VolumeError::Registry`] if the host could not pin the new generation.
pub async fn open<S: Store>(
    data: S,
    meta: S,
    cipher: SectorCipher,
    pins: &Pins,
    access: Access,
    host: Arc<dyn Host>,
) -> Result<Arc<Volume<S>>, VolumeError> {
    open_as(data, meta, cipher, pins, access, host, Rollback::Refuse).await
}

/// Opens a layer although it is older than what was relied on: the operator accepts that what was written since is gone.
/// Everything else must hold as for [`open`].
///
/// Opened for writing, the layer goes on above the generations and sequences that the lost one may have used, so neither
/// its superblock nor a page of its map is ever taken for one of this layer. Opened for reading, nothing changes.
///
/// # Errors
///
/// As [`open`], but [`VolumeError::RolledBack`].
pub async fn open_rolled_back<S: Store>(
    data: S,
    meta: S,
    cipher: SectorCipher,
    pins: &Pins,
    access: Access,
    host: Arc<dyn Host>,
) -> Result<Arc<Volume<S>>, VolumeError> {
    open_as(data, meta, cipher, pins, access, host, Rollback::Accept).await
}

/// What becomes of a superblock that is older than the registry says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rollback {
    Refuse,
    Accept,
}

async fn open_as<S: Store>(
    data: S,
    meta: S,
    cipher: SectorCipher,
    pins: &Pins,
    access: Access,
    host: Arc<dyn Host>,
    rollback: Rollback,
) -> Result<Arc<Volume<S>>, VolumeError> {
    let cipher = Arc::new(cipher);
    let slots = slots::read(&meta).await?;
    if rollback == Rollback::Accept {
        let generation = pins.generation.min(slots.serving.generation);
        let pins = Pins {
            generation,
            ..pins.clone()
        };
        check_slots(&slots, &pins, &cipher)?;
    } else {
        check_slots(&slots, pins, &cipher)?;
    }
    sealvol_crypto::clear_residue();
    let Slots {
        serving,
        spare,
        repair,
        ..
    } = slots;
    let serving = if pins.bound {
        serving
    } else {
        serving.unbound(pins.params, pins.generation)
    };
    check_lengths(&data, &meta, serving.params.size)?;

    // None, unless a rollback was accepted.
    let lost = pins.generation.saturating_sub(serving.generation);
    let session = next_session(&serving, lost)?;
    let adopted = take_over(&serving, session, access, &*host)?;
    let head = match access {
        Access::ReadOnly => serving.clone(),
        Access::Writable => {
            match begin_writing(&data, &meta, &serving, spare, session, pins, &cipher).await {
                Ok(head) => head,
                Err(failed) => return Err(failed.into_error(serving.params.layer, &*host).await),
            }
        }
    };
    sealvol_crypto::clear_residue();
    let endless = access == Access::ReadOnly && !head.clean;
    let exact_from = if endless { u64::MAX } else { head.exact_from };
    let volume = Arc::new(Volume {
        params: head.params,
        size: AtomicU64::new(head.params.size),
        access,
        data,
        map: Map::new(
            meta,
            Arc::clone(&cipher),
            head.params.layer,
            exact_from,
            head.root.clone(),
            head.sequence_base.max(1),
            Arc::clone(&host),
        ),
        cipher,
        host,
        locks: RangeLocks::default(),
        epochs: Epochs::default(),
        punches: Punches::default(),
        commits: Commits::default(),
        durable_writes: Epochs::default(),
        generation: AtomicU64::new(head.generation),
        head: async_lock::Mutex::new(head),
        repaired: repair.filter(|_| access == Access::Writable),
    });
    if access == Access::Writable {
        volume.apply(&adopted).await?;
        volume.pin().await?;
    }
    Ok(volume)
}

/// What an opening that never closed left in the working state, now part of this session's (rule R8).
fn take_over(
    serving: &Superblock,
    session: u64,
    access: Access,
    host: &dyn Host,
) -> Result<Vec<Change>, VolumeError> {
    let adopted = if serving.clean {
        Vec::new()
    } else {
        host.adopt([
            serving.sequence_base,
            serving.sequence_base + SEQUENCES_PER_OPEN,
        ])?
    };
    match access {
        Access::Writable => {
            // Before the superblock says so: what a session remembers must never be missing.
            host.begin_session(session, &adopted)?;
            Ok(adopted)
        }
        Access::ReadOnly if adopted.is_empty() => Ok(adopted),
        Access::ReadOnly => Err(VolumeError::WorkingStateLost {
            cause: "only an attach that may write can take it over".into(),
        }),
    }
}

/// The sequence base of an opening, above all that `lost` generations that came after this superblock may have used:
/// each opening raises the generation by one at least, and the base by a fixed step.
fn next_session(serving: &Superblock, lost: u64) -> Result<u64, VolumeError> {
    lost.checked_add(1)
        .and_then(|openings| openings.checked_mul(SEQUENCES_PER_OPEN))
        .and_then(|sequences| sequences.checked_add(serving.sequence_base))
        .filter(|&base| base < SEQUENCE_END)
        .ok_or(VolumeError::Tampered {
            cause: "its sequence base is one that no use reaches",
        })
}

/// Everything that must hold before a byte is written or served.
pub(crate) fn check_slots(
    slots: &Slots,
    pins: &Pins,
    cipher: &SectorCipher,
) -> Result<(), VolumeError> {
    let found = &slots.serving;
    if pins
        .commitment
        .is_some_and(|commitment| commitment != cipher.commitment())
    {
        return Err(VolumeError::WrongKey);
    }
    check_identity(&found.params, &pins.params)?;
    if found.generation < pins.generation {
        return Err(VolumeError::RolledBack {
            found: found.generation,
            pinned: pins.generation,
        });
    }
    if !pins.bound {
        // Never attached: nobody had the key, so there is no MAC to check and no map to believe. What the
        // superblock says of the map is ignored and written anew. A size can only have grown in the registry.
        if found.params.size > pins.params.size {
            return Err(VolumeError::Mismatch {
                field: "size",
                found: found.params.size.to_string(),
                expected: pins.params.size.to_string(),
            });
        }
        return Ok(());
    }
    for superblock in std::iter::once(found).chain(&slots.older) {
        if !superblock.mac_matches(cipher) {
            return Err(VolumeError::Tampered {
                cause: "a good checksum with a bad MAC",
            });
        }
    }
    Ok(())
}

fn check_identity(found: &LayerParams, pinned: &LayerParams) -> Result<(), VolumeError> {
    let differ = |field, found: &dyn ToString, expected: &dyn ToString| {
        Err(VolumeError::Mismatch {
            field,
            found: found.to_string(),
            expected: expected.to_string(),
        })
    };
    let parent = |params: &LayerParams| {
        params
            .parent
            .map_or_else(|| "none".into(), |id| id.to_string())
    };
    if found.volume != pinned.volume {
        return differ("volume id", &found.volume, &pinned.volume);
    }
    if found.layer != pinned.layer {
        return differ("layer id", &found.layer, &pinned.layer);
    }
    if found.parent != pinned.parent {
        return differ("parent", &parent(found), &parent(pinned));
    }
    if found.sector_size != pinned.sector_size {
        let bytes = |params: &LayerParams| params.sector_size.bytes();
        return differ("sector size", &bytes(found), &bytes(pinned));
    }
    Ok(())
}

pub(crate) fn check_lengths<S: Store>(data: &S, meta: &S, size: u64) -> Result<(), VolumeError> {
    for (file, store, expected) in [("data", data, size), ("meta", meta, meta_len(size))] {
        if store.len() < expected {
            return Err(VolumeError::Truncated {
                file,
                found: store.len(),
                expected,
            });
        }
    }
    Ok(())
}

/// Marks the layer as open for writing: durable before anything else is written.
async fn begin_writing<S: Store>(
    data: &S,
    meta: &S,
    serving: &Superblock,
    spare: u64,
    session: u64,
    pins: &Pins,
    cipher: &SectorCipher,
) -> Result<Superblock, StepFailed> {
    let mut head = serving.clone();
    if pins.params.size > head.params.size {
        lengthen(data, meta, pins.params.size).await?;
        head.params.size = pins.params.size;
        head.root
            .resize(geometry::index(directories(pins.params.size)), 0);
    }
    head.generation = head.generation.max(pins.generation) + 1;
    head.sequence_base = session;
    if !head.clean {
        // Not the session's own base: pages of openings that an accepted rollback undid lie between.
        head.exact_from = serving.sequence_base + SEQUENCES_PER_OPEN;
    }
    head.clean = false;
    head.bind(cipher);
    slots::write(meta, &head, spare)
        .await
        .map_err(StepFailed::lost(LostStep::SuperblockWrite))?;
    Ok(head)
}

/// Makes room for a larger volume. Harmless if it is not followed by the superblock that says so.
async fn lengthen<S: Store>(data: &S, meta: &S, size: u64) -> Result<(), StepFailed> {
    let harmless = |cause| StepFailed::from(VolumeError::from(cause));
    if data.len() < size {
        data.grow(size).await.map_err(harmless)?;
    }
    if meta.len() < meta_len(size) {
        meta.grow(meta_len(size)).await.map_err(harmless)?;
    }
    for (offset, len) in slot_allocations(size) {
        meta.allocate(offset, len).await.map_err(harmless)?;
    }
    let lost = |step| move |cause| StepFailed::lost(step)(VolumeError::from(cause));
    data.sync().await.map_err(lost(LostStep::DataSync))?;
    meta.sync().await.map_err(lost(LostStep::MapSync))
}

/// A step of opening or growing that failed: harmlessly, or so that acknowledged data may be lost.
struct StepFailed {
    cause: VolumeError,
    lost: Option<LostStep>,
}

impl StepFailed {
    fn lost(step: LostStep) -> impl FnOnce(VolumeError) -> Self {
        move |cause| Self {
            cause,
            lost: Some(step),
        }
    }

    /// Records a loss, if it is one, and only then makes the error to answer with.
    async fn into_error(self, layer: LayerId, host: &dyn Host) -> VolumeError {
        let Some(step) = self.lost else {
            return self.cause;
        };
        let loss = Loss {
            layer,
            step,
            cause: self.cause.to_string(),
        };
        host.record_loss(loss.clone()).await;
        VolumeError::Failed(loss)
    }
}

impl From<VolumeError> for StepFailed {
    fn from(cause: VolumeError) -> Self {
        Self { cause, lost: None }
    }
}

impl<S: Store> Volume<S> {
    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// The cipher's data unit.
    #[must_use]
    pub fn sector_size(&self) -> UnitSize {
        self.params.sector_size
    }

    /// The superblock's generation.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The loss that stopped the volume, if there is one.
    #[must_use]
    pub fn failed(&self) -> Option<Loss> {
        self.commits.lost()
    }

    /// What was repaired when the volume was opened, if something was.
    #[must_use]
    pub fn repaired(&self) -> Option<&'static str> {
        self.repaired
    }

    /// How its store is reached.
    #[must_use]
    pub fn access_path(&self) -> &'static str {
        self.data.access()
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
        let mut head = self.head.lock().await;
        self.commits.check().await?;
        if size < head.params.size {
            return Err(VolumeError::Shrink {
                asked: size,
                size: head.params.size,
            });
        }
        if let Err(failed) = lengthen(&self.data, self.map.meta(), size).await {
            let Some(step) = failed.lost else {
                return Err(failed.cause);
            };
            return Err(self.lose(step, &failed.cause).await);
        }
        let mut next = head.clone();
        next.params.size = size;
        next.root.resize(geometry::index(directories(size)), 0);
        if let Err(cause) = self.write_head(&mut head, next).await {
            return Err(self.lose(LostStep::SuperblockWrite, &cause).await);
        }
        self.size.store(size, Ordering::Release);
        drop(head);
        self.pin().await
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
            let found = self
                .map
                .resolve(at / geometry::BLOCK..end / geometry::BLOCK)
                .await?;
            for run in found.iter() {
                let layer = (run.state != BlockState::Absent).then_some(self.params.layer);
                let next = MapRun {
                    offset: run.first * geometry::BLOCK,
                    len: run.blocks * geometry::BLOCK,
                    state: run.state,
                    layer,
                };
                let full = runs.len() == runs_max;
                match runs.last_mut() {
                    Some(last) if last.state == next.state => last.len += next.len,
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
        if self.access == Access::ReadOnly {
            return Ok(self.generation());
        }
        self.commit().await?;
        self.punches.idle().await;
        if let Err(loss) = self.mark_clean().await {
            return Err(self.record(loss).await);
        }
        self.pin().await?;
        self.host.end_session();
        Ok(self.generation())
    }

    async fn mark_clean(self: &Arc<Self>) -> Result<(), Loss> {
        let mut head = self.head.lock().await;
        self.commits.lost().map_or(Ok(()), Err)?;
        self.commit_directories(&mut head, true).await?;
        let mut next = head.clone();
        next.root = self.map.exact_root();
        next.clean = true;
        let written = self.write_head(&mut head, next).await;
        written.map_err(|cause| self.loss(LostStep::SuperblockWrite, &cause))
    }

    /// Writes the next superblock to both slots and remembers it.
    pub(crate) async fn write_head(
        &self,
        head: &mut Superblock,
        mut next: Superblock,
    ) -> Result<(), VolumeError> {
        next.generation += 1;
        next.bind(&self.cipher);
        sealvol_crypto::clear_residue();
        slots::write(self.map.meta(), &next, 0).await?;
        self.map.root_written(&next.root);
        self.generation.store(next.generation, Ordering::Release);
        *head = next;
        Ok(())
    }

    /// Enters changes that an earlier opening acknowledged and did not bring to disk.
    async fn apply(&self, changes: &[Change]) -> Result<(), VolumeError> {
        for change in changes {
            let blocks = change.first..change.first + change.blocks;
            self.check_range(
                blocks.start * geometry::BLOCK,
                change.blocks * geometry::BLOCK,
            )?;
            let prepared = self.map.prepare(blocks.clone()).await?;
            self.map.set(&prepared, change.state);
            if change.state == BlockState::Zero {
                self.punches.mark(blocks);
            } else {
                self.punches.cancel(&blocks);
            }
        }
        Ok(())
    }

    pub(crate) async fn pin(&self) -> Result<(), VolumeError> {
        self.host
            .pin(self.generation(), self.size(), self.cipher.commitment())
            .await
    }
}
