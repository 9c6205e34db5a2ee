//! Ephemeral volumes: their data key is made in memory at attach, and nobody ever has another copy of it.
//!
//! ```text
//!   attach: a new layer, empty ─▶ registry: it is the top, the former one's files go ─▶ a key, made in locked memory ─▶ export
//!   detach, stop: closed, the key wiped ─▶ a new layer, empty, and so on
//! ```
//! What always holds:
//! - no key service is asked for anything, and no superblock, registry or log has a copy of the key, wrapped or not;
//! - each attach begins with nothing: another layer, another data key, a map without entries. Of what an earlier one wrote there
//!   is no block that this one could read, and no key that could open it;
//! - it is never attached again by a start: whoever goes on with it has to know that it is empty;
//! - what would outlive the key is refused: snapshots, and so clones, and what changes or keeps a key.
//!
//! What it does not do: overwrite. Freed ciphertext may stay on the medium; nothing opens it.

use std::sync::Arc;

use sealvol_control::api::{self, VolumeName};
use sealvol_control::key_ref::KeyRef;
use sealvol_crypto::VolumeKey;
use sealvol_store::{Access, FileStore};
use sealvol_volume::{DataKeyId, LayerId, LayerParams, Volume};

use super::stack::{Opening, about};
use crate::audit::{Operation, Record};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::host::Accepted;
use crate::place::Place;
use crate::registry::{Attached, LayerRow, NewVolume, VolumeRow};
use crate::rights::Caller;
use crate::working_state::WorkingState;

impl Daemon {
    /// Refuses what would outlive the key of an ephemeral volume.
    pub(super) fn check_not_ephemeral(row: &VolumeRow, what: &'static str) -> Result<(), Error> {
        if row.ephemeral {
            let name = row.name.clone();
            return Err(Error::Ephemeral { name, what });
        }
        Ok(())
    }

    /// The files of an ephemeral volume's first layer. It is never opened: an attach begins with another one.
    pub(super) async fn make_ephemeral_files(
        &self,
        new: &NewVolume,
        place: &Place,
    ) -> Result<(), Error> {
        let params = LayerParams {
            volume: new.id,
            layer: new.layer,
            parent: None,
            size: new.size,
            sector_size: new.sector_size,
        };
        make_files(&new.name, place, &params, new.data_key).await
    }

    /// Opens an ephemeral volume: empty, under a key that nobody has seen and nobody else will have.
    pub(super) async fn open_ephemeral(
        &self,
        caller: Caller,
        row: &VolumeRow,
        attached: &Attached,
    ) -> Result<Arc<Volume<FileStore>>, Error> {
        if attached.read_only {
            Self::check_not_ephemeral(
                row,
                "it is empty when it is attached, so it is not read-only",
            )?;
        }
        let memory = self.memory.ready()?;
        let (row, layer) = self.begin_anew(row).await?;
        let key = VolumeKey::generate(&memory).map_err(|source| Error::BadKey {
            name: row.name.clone(),
            source,
        })?;
        self.record_ephemeral(&row, Operation::EphemeralKey, caller, "ok".to_owned())
            .await?;
        let cipher = Arc::new(key.expand());
        let opening = Opening {
            caller,
            row: &row,
            direct: attached.direct,
            writable: true,
            accepted: Accepted::Nothing,
        };
        let files = self.open_files(opening, &layer, Access::Writable).await?;
        let top = self.parts(opening, &layer, files, &cipher);
        let opened = sealvol_volume::open(Vec::new(), top, sealvol_volume::Access::Writable).await;
        opened.map_err(Error::volume(&row.name))
    }

    /// Puts an empty layer in the place of the volume's present one, whose files go.
    async fn begin_anew(&self, row: &VolumeRow) -> Result<(VolumeRow, LayerRow), Error> {
        let old = self.stack(row, row.top).await?.swap_remove(0);
        let new = LayerRow {
            id: LayerId::random(),
            size: row.size,
            data_key: DataKeyId::random(),
            commitment: None,
            generation: 0,
            bound: false,
            boot: None,
            former_parents: Vec::new(),
            ..old.clone()
        };
        let layers = [new.clone()];
        self.registry
            .call(move |registry| registry.begin_layers(&layers))
            .await?;
        let params = LayerParams {
            volume: row.id,
            layer: new.id,
            parent: None,
            size: row.size,
            sector_size: row.sector_size,
        };
        let made = make_files(&row.name, &self.place_of(&new), &params, new.data_key).await;
        if let Err(error) = made {
            self.forget_layer(row, &new).await;
            return Err(error);
        }
        let layer = new.clone();
        self.registry
            .call(move |registry| registry.begin_anew(&layer))
            .await?;
        // What a killed daemon wrote down of it is about nothing now. There may be none.
        let _ = WorkingState::new(&self.working_dir, old.id, self.boot).end();
        self.forget_layer(row, &old).await;
        let row = VolumeRow {
            top: new.id,
            loss: None,
            ..row.clone()
        };
        Ok((row, new))
    }

    /// Removes the files of a layer that is no volume's. What stays, the next start removes.
    async fn forget_layer(&self, row: &VolumeRow, layer: &LayerRow) {
        if let Err(error) = self.place_of(layer).remove().await {
            tracing::warn!(volume = %row.name, layer = %layer.id, %error, "its files stay until the next start");
            return;
        }
        let gone = [layer.id];
        let forgotten = self
            .registry
            .call(move |registry| registry.forget_new_layers(&gone))
            .await;
        if let Err(error) = forgotten {
            tracing::warn!(volume = %row.name, %error, "the next start looks for files that are gone");
        }
    }

    /// What the volume held is gone with its key: that is recorded, and the space given back.
    pub(super) async fn discard_ephemeral(&self, row: &VolumeRow, caller: Caller, why: &str) {
        let result = format!("ok: {why}; its key is wiped, and what it held is gone");
        let recorded = self
            .record_ephemeral(row, Operation::DiscardEphemeral, caller, result)
            .await;
        if let Err(error) = recorded {
            tracing::error!(volume = %row.name, %error, "that its content is gone could not be recorded");
        }
        if let Err(error) = self.begin_anew(row).await {
            tracing::warn!(volume = %row.name, %error, "its space is freed by the next attach");
        }
    }

    /// No ephemeral volume is attached any more, whatever the registry says: the daemon stops, or has just started. Those that
    /// were.
    ///
    /// # Errors
    /// When the registry cannot be read or written.
    pub(crate) async fn discard_all_ephemeral(&self, why: &str) -> Result<Vec<VolumeName>, Error> {
        let rows = self.registry.call(|registry| registry.volumes()).await?;
        let mut lost = Vec::new();
        for row in rows {
            if !row.ephemeral || row.attached.is_none() {
                continue;
            }
            let id = row.id;
            self.registry
                .call(move |registry| registry.set_detached(id))
                .await?;
            tracing::warn!(volume = %row.name, why, "an ephemeral volume: what it held is gone");
            self.discard_ephemeral(&row, Self::itself(), why).await;
            lost.push(row.name);
        }
        Ok(lost)
    }

    /// The ephemeral volumes that are attached, by name: a stop loses what they hold.
    pub(super) async fn attached_ephemeral(&self) -> Result<Vec<VolumeName>, Error> {
        let rows = self.registry.call(|registry| registry.volumes()).await?;
        let attached = rows
            .into_iter()
            .filter(|row| row.ephemeral && self.exports.get(row.name.as_str()).is_some());
        Ok(attached.map(|row| row.name).collect())
    }

    /// `stop`: the daemon ends in good order, unless that would lose what somebody still has.
    pub(crate) async fn stop(&self, request: api::Stop) -> Result<api::Stopping, Error> {
        // None is attached between this look and the end.
        let mut stops = self.ephemeral_gate.write().await;
        let dropped = self.attached_ephemeral().await?;
        if !dropped.is_empty() && !request.drop_ephemeral {
            return Err(Error::EphemeralAttached(dropped));
        }
        *stops = true;
        tracing::info!("told to stop");
        self.told_to_stop.notify_one();
        Ok(api::Stopping { dropped })
    }

    async fn record_ephemeral(
        &self,
        row: &VolumeRow,
        operation: Operation,
        caller: Caller,
        result: String,
    ) -> Result<(), Error> {
        let record = Record {
            result,
            ..about(row, operation, caller)
        };
        let written = self.audit.append(record).await;
        written.map_err(|source| Error::Audit {
            path: self.audit.path().to_owned(),
            source,
        })
    }
}

async fn make_files(
    name: &VolumeName,
    place: &Place,
    params: &LayerParams,
    data_key: DataKeyId,
) -> Result<(), Error> {
    let directory = place.make().map_err(Error::store(name))?;
    sealvol_volume::create_ephemeral(&directory, place.has_data_file(), params, data_key)
        .await
        .map_err(Error::volume(name))
}

/// Stands where the registry names the key of other volumes. Whatever provider may be called so, it is never asked.
pub(super) fn no_key() -> Result<KeyRef, Error> {
    Ok(KeyRef::new("none", "ephemeral")?)
}
