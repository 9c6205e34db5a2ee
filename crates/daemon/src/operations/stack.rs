//! Opening the layers that lie below a top: what attaching a volume and attaching a snapshot have in common.
//!
//! ```text
//! registry ─▶ wrapped keys from the volume's top ─▶ one batch of the key child for each provider ─▶ layers, the lowest first
//! ```
//! What always holds:
//! - whoever attaches has the key service unwrap every data key of the stack under the volume's own context, also those that
//!   another volume has in memory; in memory a data key is then there once;
//! - a layer that never changes again is open once in the daemon, however many volumes and snapshots stand on it; one
//!   that is to be sealed is sealed here, before anybody reads it as a part of something else;
//! - a layer whose key is not the pinned one is refused before it is opened.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use sealvol_control::key_ref::KeyRef;
use sealvol_crypto::{SectorCipher, VolumeKey};
use sealvol_store::{Access, Caching, FileStore, Store as _};
use sealvol_volume::{
    DataKeyId, Layer, LayerId, LayerParts, Volume, VolumeError, WrappedKey, finish_sealing,
    open_sealed, read_keys,
};

use super::{context, pins};
use crate::audit::{Operation, Record};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::host::{Accepted, LayerHost};
use crate::keys::{Subject, WrappedCopy};
use crate::place::{Files, Place};
use crate::registry::{LayerRow, VolumeRow, WrappedBy};
use crate::rights::Caller;
use crate::working_state::WorkingState;

/// The layers that are open and never change again. Nobody holds a layer by being in here.
pub(crate) type OpenLayers = tokio::sync::Mutex<HashMap<LayerId, Weak<Layer<FileStore>>>>;

/// The data keys of a stack, at work.
pub(super) type Ciphers = HashMap<DataKeyId, Arc<SectorCipher>>;

/// For whom layers are opened, and how.
#[derive(Clone, Copy)]
pub(super) struct Opening<'a> {
    pub(super) caller: Caller,
    pub(super) row: &'a VolumeRow,
    pub(super) direct: bool,
    /// For a volume that may be written: what lies below it may be merged.
    pub(super) writable: bool,
    pub(super) accepted: Accepted,
}

impl Daemon {
    /// The layers from one down to the lowest.
    pub(super) async fn stack(
        &self,
        row: &VolumeRow,
        from: LayerId,
    ) -> Result<Vec<LayerRow>, Error> {
        let layers = self
            .registry
            .call(move |registry| registry.stack(from))
            .await?;
        if layers.is_empty() {
            let cause = format!("volume {}: its layer is not registered", row.name);
            return Err(Error::Internal(cause));
        }
        Ok(layers)
    }

    pub(super) fn place_of(&self, layer: &LayerRow) -> Place {
        Place::of(&layer.backing, layer.id, &self.state.layers())
    }

    /// The wrapped keys that the top of a volume carries: those of its whole stack. They are what the store says; unwrapping
    /// under the registry's context is what proves them.
    pub(super) async fn wrapped_keys(&self, row: &VolumeRow) -> Result<Vec<WrappedKey>, Error> {
        // Its files are locked by this daemon while it is open.
        if let Some(volume) = self.open_by_anybody(row) {
            return Ok(volume.top().wrapped_keys().await);
        }
        let layers = self.stack(row, row.top).await?;
        let files = self
            .place_of(&layers[0])
            .open(Access::ReadOnly, Caching::PageCache)
            .await
            .map_err(Error::store(&row.name))?;
        read_keys(&files.meta)
            .await
            .map_err(Error::volume(&row.name))
    }

    /// What the data key of a volume's top is bound to, and the key that wraps it now.
    pub(crate) async fn wrapped_under(&self, row: &VolumeRow) -> Result<(Subject, KeyRef), Error> {
        let (id, top) = (row.id, row.top);
        let (layers, by) = self
            .registry
            .call(move |registry| Ok((registry.stack(top)?, registry.data_keys(id)?)))
            .await?;
        let data_key = layers.first().map(|layer| layer.data_key);
        let found = data_key.and_then(|data_key| Some((data_key, by.get(&data_key)?)));
        let (data_key, by) = found.ok_or_else(|| {
            Error::Internal(format!(
                "volume {}: its data key is not registered",
                row.name
            ))
        })?;
        let subject = Subject {
            id: row.id,
            name: row.name.clone(),
            context: context(row.id, data_key, row.sector_size),
        };
        Ok((subject, KeyRef::new(&by.provider, &by.key_id)?))
    }

    /// The volume, if it is exported or a job has opened it.
    pub(super) fn open_by_anybody(&self, row: &VolumeRow) -> Option<Arc<Volume<FileStore>>> {
        let export = self.exports.get(row.name.as_str());
        export
            .map(|export| Arc::clone(&export.volume))
            .or_else(|| self.jobs.opened(&row.name))
    }

    /// Unwraps every data key of a stack into locked memory and expands it, if it is the pinned one; or takes the one that was
    /// given, of a volume whose key nobody wraps.
    pub(super) async fn load_keys(
        &self,
        opening: Opening<'_>,
        layers: &[LayerRow],
        wrapped: &[WrappedKey],
        given: Option<VolumeKey>,
    ) -> Result<Ciphers, Error> {
        let Opening { caller, row, .. } = opening;
        let memory = self.memory.ready()?;
        if row.key.is_provided() {
            return self.given_key(caller, row, layers, given, &memory).await;
        }
        if given.is_some() {
            return Err(Error::KeyNotTaken {
                name: row.name.clone(),
                key: row.key.clone(),
            });
        }
        let id = row.id;
        let by = self
            .registry
            .call(move |registry| registry.data_keys(id))
            .await?;
        let mut ids: Vec<DataKeyId> = Vec::new();
        let mut copies = Vec::new();
        for layer in layers {
            if ids.contains(&layer.data_key) {
                continue;
            }
            ids.push(layer.data_key);
            copies.push(wrapped_copy(
                row,
                layer.data_key,
                by.get(&layer.data_key),
                wrapped,
            )?);
        }
        let keys = self.keys.unwrap_all(caller, copies, &memory).await?;
        let mut ciphers = Ciphers::new();
        for (id, key) in ids.into_iter().zip(keys) {
            let of_key = layers.iter().filter(|layer| layer.data_key == id);
            let mut pinned = of_key.filter_map(|layer| layer.commitment);
            if pinned.any(|pinned| pinned != key.commitment()) {
                return Err(Error::volume(&row.name)(VolumeError::WrongKey));
            }
            ciphers.insert(id, Arc::new(VolumeKey::expand(key)));
        }
        Ok(ciphers)
    }

    /// Opens layers that lie below others, given from the top down, and seals those that are not; the lowest first. Keys that are
    /// in memory already take the place of those in `ciphers`.
    pub(super) async fn open_below(
        &self,
        opening: Opening<'_>,
        layers: &[LayerRow],
        ciphers: &mut Ciphers,
    ) -> Result<Vec<Arc<Layer<FileStore>>>, Error> {
        let name = &opening.row.name;
        // One at a time: two volumes that stand on one layer open it once.
        let mut open = self.open_layers.lock().await;
        open.retain(|_, layer| layer.strong_count() > 0);
        // Another volume that stands on them may have sealed one since they were looked up.
        let layers = &match layers.first() {
            Some(nearest) => self.stack(opening.row, nearest.id).await?,
            None => Vec::new(),
        };
        for row in layers {
            let Some(layer) = open.get(&row.id).and_then(Weak::upgrade) else {
                continue;
            };
            let cipher = layer.cipher();
            if let Some(unwrapped) = ciphers.get(&row.data_key)
                && unwrapped.commitment() != cipher.commitment()
            {
                return Err(Error::volume(name)(VolumeError::WrongKey));
            }
            ciphers.insert(row.data_key, cipher);
        }
        let mut below: Vec<Arc<Layer<FileStore>>> = Vec::with_capacity(layers.len());
        for row in layers.iter().rev() {
            if let Some(layer) = open.get(&row.id).and_then(Weak::upgrade) {
                below.push(layer);
                continue;
            }
            let files = self.open_lower(opening, row).await?;
            if opening.accepted == Accepted::RecordedLoss && !row.sealed {
                discard_caches(opening.row, &files).await?;
            }
            let parts = self.parts(opening, row, files, &ciphers[&row.data_key]);
            let opened = if row.sealed {
                open_sealed(&below, parts).await
            } else {
                finish_sealing(below.clone(), parts).await
            };
            let layer = opened.map_err(Error::volume(name))?;
            if !row.sealed {
                let id = row.id;
                self.registry
                    .call(move |registry| registry.set_sealed(id))
                    .await?;
            }
            open.insert(row.id, Arc::downgrade(&layer));
            below.push(layer);
        }
        Ok(below)
    }

    /// Opens the files of a layer below a top. One that is sealed only a merge writes to: if they can't be opened for
    /// writing, it is not merged.
    async fn open_lower(&self, opening: Opening<'_>, layer: &LayerRow) -> Result<Files, Error> {
        if layer.sealed && !opening.writable {
            return self.open_files(opening, layer, Access::ReadOnly).await;
        }
        let opened = self.open_files(opening, layer, Access::Writable).await;
        if opened.is_err() && layer.sealed {
            return self.open_files(opening, layer, Access::ReadOnly).await;
        }
        opened
    }

    /// Opens a layer's files, if they can be reached as was asked for.
    pub(super) async fn open_files(
        &self,
        opening: Opening<'_>,
        layer: &LayerRow,
        access: Access,
    ) -> Result<Files, Error> {
        let Opening { row, direct, .. } = opening;
        let caching = if direct {
            Caching::Direct
        } else {
            Caching::PageCache
        };
        let opened = self.place_of(layer).open(access, caching).await;
        let files = opened.map_err(Error::store(&row.name))?;
        let (unit, sector) = (files.data.write_unit(), row.sector_size.bytes() as u64);
        if unit > sector {
            // Sectors beside the written one would have to be read and written with it, and a write to
            // one of them at the same time could be undone.
            return Err(Error::DirectUnit {
                name: row.name.clone(),
                unit,
                sector,
            });
        }
        Ok(files)
    }

    /// What a layer is opened with.
    pub(super) fn parts(
        &self,
        opening: Opening<'_>,
        layer: &LayerRow,
        files: Files,
        cipher: &Arc<SectorCipher>,
    ) -> LayerParts<FileStore> {
        let host = LayerHost {
            layer: layer.id,
            registry: self.registry.clone(),
            audit: self.audit.clone(),
            damage: about(opening.row, Operation::Damage, Self::itself()),
            runtime: self.runtime.clone(),
            map_cache: Arc::clone(&self.map_cache),
            working: WorkingState::new(&self.working_dir, layer.id, self.boot),
            boot: self.boot,
            opened_in: layer.boot,
            accepted: opening.accepted,
        };
        let Files { data, meta } = files;
        LayerParts {
            data,
            meta,
            cipher: Arc::clone(cipher),
            pins: pins(opening.row, layer),
            host: Arc::new(host),
        }
    }
}

/// A record about a volume.
pub(super) fn about(row: &VolumeRow, operation: Operation, caller: Caller) -> Record {
    Record {
        volume: Some(row.id.to_string()),
        name: Some(row.name.to_string()),
        ..Record::of(operation, caller)
    }
}

/// Forgets what the page cache shows and the disk may not have (rule R6).
pub(super) async fn discard_caches(row: &VolumeRow, files: &Files) -> Result<(), Error> {
    for store in [&files.meta, &files.data] {
        let discarded = store.discard_cache().await;
        discarded.map_err(Error::store(&row.name))?;
    }
    Ok(())
}

/// The copy of a data key that the key wrapped which the registry names.
pub(super) fn wrapped_copy(
    row: &VolumeRow,
    data_key: DataKeyId,
    by: Option<&WrappedBy>,
    wrapped: &[WrappedKey],
) -> Result<WrappedCopy, Error> {
    let by = by.ok_or_else(|| {
        let cause = format!(
            "volume {}: its data key {data_key} is not registered",
            row.name
        );
        Error::Internal(cause)
    })?;
    let mut copies = wrapped
        .iter()
        .filter(|copy| copy.data_key == data_key)
        .peekable();
    let Some(first) = copies.peek().copied() else {
        return Err(Error::NoWrappedKey(row.name.clone()));
    };
    let ours = copies.find(|copy| copy.provider == by.provider && copy.key_id == by.key_id);
    let ours = ours.ok_or_else(|| Error::OtherKey {
        name: row.name.clone(),
        found: format!("{}:{}", first.provider, first.key_id),
        expected: format!("{}:{}", by.provider, by.key_id),
    })?;
    Ok(WrappedCopy {
        subject: Subject {
            id: row.id,
            name: row.name.clone(),
            context: context(row.id, data_key, row.sector_size),
        },
        // By the resolved id: a name may have come to mean another key.
        key: KeyRef::new(&by.provider, &by.key_id)?,
        blob: ours.blob.clone(),
    })
}
