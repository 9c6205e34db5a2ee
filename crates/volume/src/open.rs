//! Opening: what must hold before a byte is served or written, and what a layer says while it is open.
//!
//! Always: what the store says is believed only after the superblock's MAC was checked with the key that the
//! registry is committed to; nothing is written before that. A layer that is open for writing is marked
//! "not clean" on disk before its first write. The layers of a stack fit each other before any of it is written.
//! Never: a call to a key service; the key comes in, already unwrapped, and is wiped when nobody holds the layer any more.

use std::sync::Arc;

use sealvol_crypto::{Commitment, SectorCipher};
use sealvol_store::Store;

use crate::create::slot_allocations;
use crate::error::{Loss, LostStep, VolumeError};
use crate::geometry::{self, directories, meta_len};
use crate::host::{Change, Host};
use crate::ids::LayerId;
use crate::layer::Layer;
use crate::slots::{self, Slots};
use crate::stack::{check_chain, linked};
use crate::superblock::{LayerParams, Superblock};
use crate::volume::Volume;

/// Sequences that one opening may use (FORMAT.md, section 3.4).
pub(crate) const SEQUENCES_PER_OPEN: u64 = 1 << 36;
const SEQUENCE_END: u64 = 1 << 62;

/// What the registry is sure of: what the store says has to agree with it.
#[derive(Clone, Debug)]
pub struct Pins {
    /// Identity, geometry; the size may be larger than the superblock's (a grow that is to be folded in).
    pub params: LayerParams,
    /// The key that the layer is bound to; `None` if nobody has seen it: before the first attach, of a key that its service made.
    pub commitment: Option<Commitment>,
    /// The highest superblock generation relied on.
    pub generation: u64,
    /// Whether the superblock has a MAC. One that the registry calls unbound has an empty map.
    pub bound: bool,
    /// What it stood on before: layers that were handed down, each into the one below it, and so at last into its parent. The
    /// superblock may still name one of them.
    pub former_parents: Vec<LayerId>,
}

impl Pins {
    /// What a layer stands on whose superblock names this parent.
    fn stands_on(&self, found: Option<LayerId>) -> Option<LayerId> {
        match found {
            Some(found) if self.former_parents.contains(&found) => self.params.parent,
            found => found,
        }
    }
}

/// What an opening may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing is written, not even a repair.
    ReadOnly,
    /// Reads and writes.
    Writable,
}

/// All that one layer is opened with.
pub struct LayerParts<S> {
    /// Its ciphertext.
    pub data: S,
    /// Its superblock, directory and map.
    pub meta: S,
    /// Its data key at work. Layers under the same data key are given the same one: a key is in memory once.
    pub cipher: Arc<SectorCipher>,
    /// What the registry is sure of.
    pub pins: Pins,
    /// Its surroundings: what the volume asks of them is about this layer.
    pub host: Arc<dyn Host>,
}

/// Opens a volume: a top on sealed layers, which are given the lowest first (none: a volume of one layer).
///
/// # Errors
///
/// Everything that [`VolumeError`] calls `Stop` or `Refuse` for what the stores hold; nothing was written then.
/// [`VolumeError::BrokenStack`] if the layers do not follow each other, [`VolumeError::Sealed`] if the top is to be
/// written and never may. Store errors; [`VolumeError::Registry`] if the host could not pin the new generation.
pub async fn open<S: Store>(
    below: Vec<Arc<Layer<S>>>,
    top: LayerParts<S>,
    access: Access,
) -> Result<Arc<Volume<S>>, VolumeError> {
    open_as(below, top, access, Rollback::Refuse).await
}

/// Opens a volume although its top is older than what was relied on: the operator accepts that what was written since is gone.
/// Everything else must hold as for [`open`].
///
/// Opened for writing, the layer goes on above the generations and sequences that the lost one may have used, so neither
/// its superblock nor a page of its map is ever taken for one of this layer. Opened for reading, nothing changes.
///
/// # Errors
///
/// As [`open`], but [`VolumeError::RolledBack`].
pub async fn open_rolled_back<S: Store>(
    below: Vec<Arc<Layer<S>>>,
    top: LayerParts<S>,
    access: Access,
) -> Result<Arc<Volume<S>>, VolumeError> {
    open_as(below, top, access, Rollback::Accept).await
}

/// Opens a sealed layer, to stand below others in any number of volumes, on these, the lowest first. Nothing of it is written
/// but by a merge, which changes nothing of what it reads as.
///
/// # Errors
///
/// As [`open`]; [`VolumeError::NotSealed`] if it is not, and then [`finish_sealing`] is what it needs.
pub async fn open_sealed<S: Store>(
    below: &[Arc<Layer<S>>],
    parts: LayerParts<S>,
) -> Result<Arc<Layer<S>>, VolumeError> {
    let layer = open_layer(parts, &ids_of(below), Access::ReadOnly, Rollback::Refuse).await?;
    if !layer.is_sealed() {
        return Err(VolumeError::NotSealed { layer: layer.id() });
    }
    Ok(Arc::new(layer))
}

/// Opens a layer that the registry has put another one on, and seals it if that was not done yet: because the snapshot
/// that did so was cut short, or was made while nobody had the key. What a killed process acknowledged in it is taken
/// over first. Its stores are open for writing; `below` is what lies below it, the lowest first.
///
/// # Errors
///
/// As [`open`]; [`VolumeError::Failed`] if its data was or is now lost.
pub async fn finish_sealing<S: Store>(
    below: Vec<Arc<Layer<S>>>,
    parts: LayerParts<S>,
) -> Result<Arc<Layer<S>>, VolumeError> {
    let slots = slots::read(&parts.meta).await?;
    if parts.pins.bound && slots.serving.sealed {
        let layer = open_sealed(&below, parts).await?;
        // Power that went in the middle of it left one slot as it was, and the registry without the news.
        if slots.repair.is_some() {
            slots::write(layer.map.meta(), &*layer.head.lock().await, slots.spare).await?;
        }
        layer.pin().await?;
        return Ok(layer);
    }
    let volume = open(below, parts, Access::Writable).await?;
    volume.settle(true).await?;
    Ok(volume.top())
}

/// A volume over sealed layers that are open already, the lowest first: for reading what a snapshot holds, while others
/// stand on it.
///
/// # Errors
///
/// [`VolumeError::BrokenStack`] if the layers do not follow each other; [`VolumeError::NotSealed`].
///
/// # Panics
///
/// If there is no layer.
pub async fn view<S: Store>(layers: Vec<Arc<Layer<S>>>) -> Result<Arc<Volume<S>>, VolumeError> {
    let mut below = layers;
    let top = below.pop().expect("a volume has a layer at least");
    below.reverse();
    let below = match top.params().parent {
        Some(_) => linked(top.params().parent, &below),
        None => Vec::new(),
    };
    check_chain(&top.params(), &params_of(&below))?;
    if !top.is_sealed() {
        return Err(VolumeError::NotSealed { layer: top.id() });
    }
    let volume = Volume::new(top, below.into_boxed_slice(), Access::ReadOnly);
    Ok(Arc::new(volume))
}

/// What becomes of a superblock that is older than the registry says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rollback {
    Refuse,
    Accept,
}

async fn open_as<S: Store>(
    below: Vec<Arc<Layer<S>>>,
    top: LayerParts<S>,
    access: Access,
    rollback: Rollback,
) -> Result<Arc<Volume<S>>, VolumeError> {
    let below: Vec<_> = below.into_iter().rev().collect();
    let below = linked(top.pins.params.parent, &below);
    check_chain(&top.pins.params, &params_of(&below))?;
    let layer = open_layer(top, &ids_of(&below), access, rollback).await?;
    // Under the superblock's MAC: it was cut over or merged with, and the registry did not hear of it.
    let below = match layer.params.parent {
        Some(_) => linked(layer.params.parent, &below),
        None => Vec::new(),
    };
    let volume = Volume::new(Arc::new(layer), below.into_boxed_slice(), access);
    Ok(Arc::new(volume))
}

/// Opens a layer whatever its parent is.
///
/// # Errors
///
/// As [`open`].
pub(crate) async fn open_alone<S: Store>(
    parts: LayerParts<S>,
    access: Access,
) -> Result<Layer<S>, VolumeError> {
    open_layer(parts, &[], access, Rollback::Refuse).await
}

/// Opens a layer that is to be the top of these, the nearest first.
///
/// # Errors
///
/// As [`open`].
pub(crate) async fn open_top<S: Store>(
    below: &[Arc<Layer<S>>],
    parts: LayerParts<S>,
    access: Access,
) -> Result<Arc<Layer<S>>, VolumeError> {
    check_chain(&parts.pins.params, &params_of(below))?;
    open_layer(parts, &ids_of(below), access, Rollback::Refuse)
        .await
        .map(Arc::new)
}

fn ids_of<S: Store>(layers: &[Arc<Layer<S>>]) -> Vec<LayerId> {
    layers.iter().map(|layer| layer.id()).collect()
}

fn params_of<S: Store>(layers: &[Arc<Layer<S>>]) -> Vec<LayerParams> {
    layers.iter().map(|layer| layer.params()).collect()
}

/// `below`: the layers that the registry has below it, in whatever order.
async fn open_layer<S: Store>(
    parts: LayerParts<S>,
    below: &[LayerId],
    access: Access,
    rollback: Rollback,
) -> Result<Layer<S>, VolumeError> {
    let LayerParts {
        data,
        meta,
        cipher,
        pins,
        host,
    } = parts;
    let Slots {
        serving,
        spare,
        repair,
        ..
    } = checked_slots(&meta, &pins, below, &cipher, rollback).await?;
    let serving = if pins.bound {
        serving
    } else {
        serving.unbound(pins.params, pins.generation)
    };
    if serving.sealed && access == Access::Writable {
        let layer = serving.params.layer;
        return Err(VolumeError::Sealed { layer });
    }
    check_lengths(&data, &meta, serving.params.size)?;

    // None, unless a rollback was accepted.
    let lost = pins.generation.saturating_sub(serving.generation);
    let session = next_session(&serving, lost)?;
    let adopted = take_over(&serving, session, access, &*host)?;
    let head = match access {
        Access::ReadOnly => serving.clone(),
        Access::Writable => {
            match begin_writing(&data, &meta, &serving, spare, session, &pins, &cipher).await {
                Ok(head) => head,
                Err(failed) => return Err(failed.into_error(serving.params.layer, &*host).await),
            }
        }
    };
    sealvol_crypto::clear_residue();
    let endless = access == Access::ReadOnly && !head.clean;
    let exact_from = if endless { u64::MAX } else { head.exact_from };
    let repaired = repair.filter(|_| access == Access::Writable);
    let parent = pins.stands_on(head.params.parent);
    let layer = Layer::new(
        (data, meta),
        parent,
        cipher,
        host,
        head,
        exact_from,
        repaired,
    );
    if access == Access::Writable {
        layer.apply(&adopted).await?;
        layer.pin().await?;
    }
    Ok(layer)
}

/// The slots, once they agree with the registry.
async fn checked_slots<S: Store>(
    meta: &S,
    pins: &Pins,
    below: &[LayerId],
    cipher: &SectorCipher,
    rollback: Rollback,
) -> Result<Slots, VolumeError> {
    let slots = slots::read(meta).await?;
    let checked = if rollback == Rollback::Accept {
        let generation = pins.generation.min(slots.serving.generation);
        let pins = Pins {
            generation,
            ..pins.clone()
        };
        check_slots(&slots, &pins, below, cipher)
    } else {
        check_slots(&slots, pins, below, cipher)
    };
    sealvol_crypto::clear_residue();
    checked.map(|()| slots)
}

/// What an opening that never closed left in the working state, now part of this session's (rule R8).
fn take_over(
    serving: &Superblock,
    session: u64,
    access: Access,
    host: &dyn Host,
) -> Result<Vec<Change>, VolumeError> {
    // What a merge brings to a sealed layer is acknowledged to nobody.
    let adopted = if serving.clean || serving.sealed {
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
pub(crate) fn next_session(serving: &Superblock, lost: u64) -> Result<u64, VolumeError> {
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
    below: &[LayerId],
    cipher: &SectorCipher,
) -> Result<(), VolumeError> {
    let found = &slots.serving;
    if pins
        .commitment
        .is_some_and(|commitment| commitment != cipher.commitment())
    {
        return Err(VolumeError::WrongKey);
    }
    check_identity(&found.params, pins, below)?;
    check_generation(found, pins)?;
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

pub(crate) fn check_generation(found: &Superblock, pins: &Pins) -> Result<(), VolumeError> {
    if found.generation < pins.generation {
        return Err(VolumeError::RolledBack {
            found: found.generation,
            pinned: pins.generation,
        });
    }
    Ok(())
}

pub(crate) fn check_identity(
    found: &LayerParams,
    pins: &Pins,
    below: &[LayerId],
) -> Result<(), VolumeError> {
    let pinned = &pins.params;
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
    // A layer that was cut over has none, and one that was merged with stands on a lower one, whatever the registry says:
    // only whoever has the key takes a parent away. What was handed down only the registry knows.
    let taken_away = found.parent.is_none_or(|parent| below.contains(&parent));
    if pins.stands_on(found.parent) != pinned.parent && !(pins.bound && taken_away) {
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
    head.params.parent = pins.stands_on(head.params.parent);
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
pub(crate) async fn lengthen<S: Store>(data: &S, meta: &S, size: u64) -> Result<(), StepFailed> {
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
pub(crate) struct StepFailed {
    pub(crate) cause: VolumeError,
    pub(crate) lost: Option<LostStep>,
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
