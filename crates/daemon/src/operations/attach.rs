//! `volume attach`: from the registry to an export.
//!
//! ```text
//! registry ─▶ files, locked ─▶ wrapped key ─▶ key child ─▶ locked memory ─▶ commitment ─▶ volume::open ─▶ export
//! ```
//! What always holds: nothing is written to the layer before the key has proved to be the pinned one
//! and the superblock has agreed with the registry; the encryption context comes from the registry;
//! whatever fails on the way leaves no key in memory and no lock on a file, and a record with its cause in the audit log.

use std::sync::Arc;

use sealvol_control::api::{self, VolumeName};
use sealvol_control::key_ref::KeyRef;
use sealvol_crypto::{SectorCipher, VolumeKey};
use sealvol_store::{Caching, FileStore, Store as _};
use sealvol_volume::{
    LayerParts, Volume, VolumeError, WrappedKey, open_rolled_back, read_keys, read_layer,
};

use super::{pins, subject};
use crate::audit::{Operation, Record};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::exports::Export;
use crate::host::{Accepted, LayerHost};
use crate::place::{Files, Place};
use crate::registry::{Attached, LayerRow, VolumeRow};
use crate::rights::Caller;
use crate::working_state::WorkingState;

impl Daemon {
    pub(crate) async fn attach_volume(
        &self,
        caller: Caller,
        name: VolumeName,
        request: api::AttachVolume,
    ) -> Result<api::Volume, Error> {
        let _turn = self.turn(&name).await;
        let row = self.registered(&name).await?;
        if self.exports.get(name.as_str()).is_some() {
            return Err(Error::Attached(name));
        }
        let attached = Attached {
            read_only: request.read_only,
            direct: request.direct,
            allow: self.allowed(caller, request.allow),
            by: caller.uid,
        };
        let volume = self
            .open_volume(
                caller,
                &row,
                &attached,
                Accepts {
                    loss: request.accept_loss,
                    rollback: request.accept_rollback,
                },
            )
            .await?;
        let (id, registered) = (row.id, attached.clone());
        let recorded = self
            .registry
            .call(move |registry| registry.set_attached(id, &registered))
            .await;
        if let Err(error) = recorded {
            // Nobody has used it yet: closing only writes the clean mark back.
            let _ = volume.close().await;
            return Err(error.into());
        }
        self.serve(&row, volume, attached);
        self.show_volume(&name).await
    }

    /// Attaches a volume as the registry says it was attached, after a restart.
    pub(crate) async fn attach_again(&self, name: VolumeName) -> Result<(), Error> {
        let _turn = self.turn(&name).await;
        let row = self.registered(&name).await?;
        // Somebody may have attached or detached it while it waited for its turn.
        let served = self.exports.get(name.as_str()).is_some();
        let Some(attached) = row.attached.clone().filter(|_| !served) else {
            return Ok(());
        };
        let volume = self
            .open_volume(Self::itself(), &row, &attached, Accepts::default())
            .await?;
        self.serve(&row, volume, attached);
        Ok(())
    }

    /// Who may open the export: those named, else those configured, else the caller and root.
    fn allowed(&self, caller: Caller, named: Option<Vec<u32>>) -> Vec<u32> {
        let mut allow = named
            .or_else(|| self.config.nbd_allow.clone())
            .unwrap_or_else(|| vec![0, caller.uid]);
        allow.sort_unstable();
        allow.dedup();
        allow
    }

    /// Opens it, or leaves a record of why not.
    pub(super) async fn open_volume(
        &self,
        caller: Caller,
        row: &VolumeRow,
        attached: &Attached,
        accepts: Accepts,
    ) -> Result<Arc<Volume<FileStore>>, Error> {
        let opened = self.open_checked(caller, row, attached, accepts).await;
        if let Err(error) = &opened
            && !is_recorded(error)
        {
            let record = Record {
                key: Some(row.key.to_string()),
                result: error.to_string(),
                ..about(row, Operation::Attach, caller)
            };
            if let Err(error) = self.audit.append(record).await {
                tracing::error!(volume = %row.name, %error, "the refusal could not be recorded");
            }
        }
        opened
    }

    async fn open_checked(
        &self,
        caller: Caller,
        row: &VolumeRow,
        attached: &Attached,
        accepts: Accepts,
    ) -> Result<Arc<Volume<FileStore>>, Error> {
        let name = &row.name;
        if let Some(loss) = row.loss.clone().filter(|_| !accepts.loss) {
            return Err(Error::LossRecorded {
                name: name.clone(),
                loss,
            });
        }
        let layer = self.top_layer(row).await?;
        let place = Place::of(&row.backing, layer.id, &self.state.layers());
        let (store_access, access) = if attached.read_only {
            (
                sealvol_store::Access::ReadOnly,
                sealvol_volume::Access::ReadOnly,
            )
        } else {
            (
                sealvol_store::Access::Writable,
                sealvol_volume::Access::Writable,
            )
        };
        let files = open_files(row, &place, store_access, attached.direct).await?;
        let accepted = match (&row.loss, accepts.loss) {
            (Some(loss), _) => {
                self.record_acceptance(caller, row, Operation::AcceptLoss, loss)
                    .await?;
                discard_caches(row, &files).await?;
                Accepted::RecordedLoss
            }
            (None, true) => {
                let missing = "whatever its working state may lack";
                self.record_acceptance(caller, row, Operation::AcceptLoss, missing)
                    .await?;
                Accepted::MissingState
            }
            (None, false) => Accepted::Nothing,
        };
        let older = accepts.rollback && self.accept_rollback(caller, row, &layer, &files).await?;
        let accepted = if older { Accepted::Rollback } else { accepted };
        let wrapped = wrapped_key(row, &layer, &files).await?;
        let cipher = self.load_key(caller, row, &layer, wrapped).await?;
        let host = Arc::new(LayerHost {
            layer: layer.id,
            registry: self.registry.clone(),
            audit: self.audit.clone(),
            damage: about(row, Operation::Damage, Self::itself()),
            runtime: self.runtime.clone(),
            map_cache: Arc::clone(&self.map_cache),
            working: WorkingState::new(&self.working_dir, layer.id, self.boot),
            boot: self.boot,
            opened_in: layer.boot,
            accepted,
        });
        let pins = pins(row, &layer);
        let Files { data, meta } = files;
        let top = LayerParts {
            data,
            meta,
            cipher: Arc::new(cipher),
            pins,
            host,
        };
        let opened = if older {
            open_rolled_back(Vec::new(), top, access).await
        } else {
            sealvol_volume::open(Vec::new(), top, access).await
        };
        let volume = opened.map_err(Error::volume(name))?;
        if let Some(repaired) = volume.repaired() {
            tracing::warn!(volume = %name, repaired, "the superblock was repaired");
            let record = Record {
                result: format!("superblock: {repaired}; the other slot served"),
                ..about(row, Operation::Repair, caller)
            };
            if let Err(error) = self.audit.append(record).await {
                tracing::error!(volume = %name, %error, "the repair could not be recorded");
            }
        }
        if row.loss.is_some() {
            let id = row.id;
            self.registry
                .call(move |registry| registry.accept_loss(id))
                .await?;
        }
        Ok(volume)
    }

    async fn top_layer(&self, row: &VolumeRow) -> Result<LayerRow, Error> {
        let (id, top) = (row.id, row.top);
        let layers = self
            .registry
            .call(move |registry| registry.layers(id, top))
            .await?;
        let missing =
            || Error::Internal(format!("volume {}: its layer is not registered", row.name));
        layers.into_iter().next().ok_or_else(missing)
    }

    /// Unwraps the data key into locked memory and expands it, if it is the pinned one.
    async fn load_key(
        &self,
        caller: Caller,
        row: &VolumeRow,
        layer: &LayerRow,
        wrapped: WrappedKey,
    ) -> Result<SectorCipher, Error> {
        let memory = self.memory.ready()?;
        // By the resolved id: a name may have come to mean another key.
        let key = KeyRef::new(&layer.wrapped_by.provider, &layer.wrapped_by.key_id)?;
        let subject = subject(row, layer);
        let unwrapped = self
            .keys
            .unwrap(caller, &subject, &key, wrapped.blob, &memory)
            .await?;
        if layer
            .commitment
            .is_some_and(|pinned| pinned != unwrapped.commitment())
        {
            return Err(Error::volume(&row.name)(VolumeError::WrongKey));
        }
        Ok(VolumeKey::expand(unwrapped))
    }

    /// Whether the layer is older than what is relied on; that this is accepted stands in the audit log then.
    async fn accept_rollback(
        &self,
        caller: Caller,
        row: &VolumeRow,
        layer: &LayerRow,
        files: &Files,
    ) -> Result<bool, Error> {
        let found = read_layer(&files.meta)
            .await
            .map_err(Error::volume(&row.name))?
            .generation;
        if found >= layer.generation {
            return Ok(false);
        }
        let what = format!(
            "superblock generation {found} in place of {}",
            layer.generation
        );
        self.record_acceptance(caller, row, Operation::AcceptRollback, &what)
            .await?;
        Ok(true)
    }

    async fn record_acceptance(
        &self,
        caller: Caller,
        row: &VolumeRow,
        operation: Operation,
        what: &str,
    ) -> Result<(), Error> {
        let record = Record {
            result: format!("accepted: {what}"),
            ..about(row, operation, caller)
        };
        let written = self.audit.append(record).await;
        written.map_err(|source| Error::Audit {
            path: self.audit.path().to_owned(),
            source,
        })
    }

    pub(super) fn serve(
        &self,
        row: &VolumeRow,
        volume: Arc<Volume<FileStore>>,
        attached: Attached,
    ) {
        let name = row.name.to_string();
        let description = "encrypted volume".to_owned();
        tracing::info!(volume = %name, read_only = attached.read_only, by = attached.by, "attached");
        self.failures.clear(&name);
        let Attached {
            read_only, allow, ..
        } = attached;
        let export = Export::new(name, description, volume, read_only, allow);
        export.limiter.set(row.limits);
        self.exports.insert(Arc::new(export));
    }
}

/// What the operator accepts with an attach.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Accepts {
    /// Acknowledged writes may be gone.
    loss: bool,
    /// The layer may be older than what was relied on.
    rollback: bool,
}

/// A record about a volume.
fn about(row: &VolumeRow, operation: Operation, caller: Caller) -> Record {
    Record {
        volume: Some(row.id.to_string()),
        name: Some(row.name.to_string()),
        ..Record::of(operation, caller)
    }
}

/// Whether the record of the key's use says it already, or no record can be written.
fn is_recorded(error: &Error) -> bool {
    matches!(
        error,
        Error::Key { .. } | Error::KeyChild { .. } | Error::Audit { .. }
    )
}

/// Opens the layer's files, if they can be reached as was asked for.
async fn open_files(
    row: &VolumeRow,
    place: &Place,
    access: sealvol_store::Access,
    direct: bool,
) -> Result<Files, Error> {
    let caching = if direct {
        Caching::Direct
    } else {
        Caching::PageCache
    };
    let opened = place.open(access, caching).await;
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

/// Forgets what the page cache shows and the disk may not have (rule R6).
async fn discard_caches(row: &VolumeRow, files: &Files) -> Result<(), Error> {
    for store in [&files.meta, &files.data] {
        let discarded = store.discard_cache().await;
        discarded.map_err(Error::store(&row.name))?;
    }
    Ok(())
}

/// The wrapped copy of the layer's data key. The store says so; unwrapping under the registry's
/// context is what proves it.
async fn wrapped_key(
    row: &VolumeRow,
    layer: &LayerRow,
    files: &Files,
) -> Result<WrappedKey, Error> {
    let keys = read_keys(&files.meta)
        .await
        .map_err(Error::volume(&row.name))?;
    let by = &layer.wrapped_by;
    let mut copies = keys
        .into_iter()
        .filter(|key| key.data_key == layer.data_key)
        .peekable();
    let Some(first) = copies.peek() else {
        return Err(Error::NoWrappedKey(row.name.clone()));
    };
    let found = format!("{}:{}", first.provider, first.key_id);
    let ours = copies.find(|key| key.provider == by.provider && key.key_id == by.key_id);
    ours.ok_or_else(|| Error::OtherKey {
        name: row.name.clone(),
        found,
        expected: format!("{}:{}", by.provider, by.key_id),
    })
}
