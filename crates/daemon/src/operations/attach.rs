//! `volume attach`: from the registry to an export.
//!
//! ```text
//! registry ─▶ files, locked ─▶ wrapped keys ─▶ key child ─▶ locked memory ─▶ commitments ─▶ volume::open ─▶ export
//! ```
//! What a volume and a snapshot have in common is in `stack.rs`.
//!
//! What always holds: nothing is written to the layer before the key has proved to be the pinned one
//! and the superblock has agreed with the registry; the encryption context comes from the registry;
//! whatever fails on the way leaves no key in memory and no lock on a file, and a record with its cause in the audit log.

use std::sync::Arc;

use sealvol_control::api::{self, VolumeName};
use sealvol_crypto::VolumeKey;
use sealvol_store::FileStore;
use sealvol_volume::{Volume, open_rolled_back, read_keys, read_layer};

use super::stack::{Opening, about, discard_caches};
use crate::audit::{Operation, Record};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::exports::Export;
use crate::host::Accepted;
use crate::place::Files;
use crate::registry::{Attached, LayerRow, VolumeRow};
use crate::rights::Caller;

impl Daemon {
    pub(crate) async fn attach_volume(
        &self,
        caller: Caller,
        name: VolumeName,
        request: api::AttachVolume,
        given: Option<VolumeKey>,
    ) -> Result<api::Volume, Error> {
        let _turn = self.turn(&name).await;
        let row = self.registered(&name).await?;
        self.check_not_being_copied(&row).await?;
        if self.exports.get(name.as_str()).is_some() {
            return Err(Error::Attached(name));
        }
        let attached = Attached {
            read_only: request.read_only,
            direct: request.direct,
            allow: self.allowed(caller, request.allow),
            by: caller.uid,
        };
        let steady = self.merges.steady().await;
        let gate = self.ephemeral_gate.read().await;
        if row.ephemeral && *gate {
            return Err(Error::Stopping);
        }
        let volume = self
            .open_volume(
                caller,
                &row,
                &attached,
                Accepts {
                    loss: request.accept_loss,
                    rollback: request.accept_rollback,
                },
                given,
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
        drop((steady, gate));
        self.merges.want();
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
        let _steady = self.merges.steady().await;
        let volume = self
            .open_volume(Self::itself(), &row, &attached, Accepts::default(), None)
            .await?;
        self.serve(&row, volume, attached);
        self.merges.want();
        Ok(())
    }

    /// Who may open the export: those named, else those configured, else the caller and root.
    pub(super) fn allowed(&self, caller: Caller, named: Option<Vec<u32>>) -> Vec<u32> {
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
        given: Option<VolumeKey>,
    ) -> Result<Arc<Volume<FileStore>>, Error> {
        let opened = self
            .open_checked(caller, row, attached, accepts, given)
            .await;
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
        given: Option<VolumeKey>,
    ) -> Result<Arc<Volume<FileStore>>, Error> {
        let name = &row.name;
        if row.ephemeral {
            if given.is_some() {
                Self::check_not_ephemeral(
                    row,
                    "its key is made in memory, and none is to be given",
                )?;
            }
            // Whatever was lost of it is gone anyway.
            return self.open_ephemeral(caller, row, attached).await;
        }
        if let Some(loss) = row.loss.clone().filter(|_| !accepts.loss) {
            return Err(Error::LossRecorded {
                name: name.clone(),
                loss,
            });
        }
        let layers = self.stack(row, row.top).await?;
        let layer = &layers[0];
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
        let opening = Opening {
            caller,
            row,
            direct: attached.direct,
            writable: !attached.read_only,
            accepted: Accepted::Nothing,
        };
        let files = self.open_files(opening, layer, store_access).await?;
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
        let older = accepts.rollback && self.accept_rollback(caller, row, layer, &files).await?;
        let wrapped = read_keys(&files.meta).await.map_err(Error::volume(name))?;
        let mut ciphers = self.load_keys(opening, &layers, &wrapped, given).await?;
        // What was accepted for the top says nothing of what lies below, but for a loss.
        let opening = Opening {
            accepted,
            ..opening
        };
        let below = self.open_below(opening, &layers[1..], &mut ciphers).await?;
        let opening = Opening {
            accepted: if older { Accepted::Rollback } else { accepted },
            ..opening
        };
        let top = self.parts(opening, layer, files, &ciphers[&layer.data_key]);
        let opened = if older {
            open_rolled_back(below, top, access).await
        } else {
            sealvol_volume::open(below, top, access).await
        };
        let volume = opened.map_err(Error::volume(name))?;
        if layers.len() > 1 && volume.layers().len() == 1 {
            // It was cut over, and the registry did not hear of it.
            self.record_cut_over(row).await?;
        }
        self.note_parents(&volume, &layers).await?;
        if let Some(repaired) = volume.repaired() {
            self.record_repair(caller, row, repaired).await;
        }
        if row.loss.is_some() {
            let id = row.id;
            self.registry
                .call(move |registry| registry.accept_loss(id))
                .await?;
        }
        Ok(volume)
    }

    /// That a slot of the superblock was written anew from the other one.
    async fn record_repair(&self, caller: Caller, row: &VolumeRow, repaired: &str) {
        let name = &row.name;
        tracing::warn!(volume = %name, repaired, "the superblock was repaired");
        let record = Record {
            result: format!("superblock: {repaired}; the other slot served"),
            ..about(row, Operation::Repair, caller)
        };
        if let Err(error) = self.audit.append(record).await {
            tracing::error!(volume = %name, %error, "the repair could not be recorded");
        }
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
        self.jobs.volume_changed(row.id);
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

/// Whether the record of the key's use says it already, or no record can be written.
pub(super) fn is_recorded(error: &Error) -> bool {
    matches!(
        error,
        Error::Key { .. } | Error::KeyChild { .. } | Error::Audit { .. }
    )
}
