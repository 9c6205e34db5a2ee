//! `snapshot create`, `snapshot delete`: what is written to a volume until now is sealed, and a new top put on it.
//!
//! ```text
//!   new tops, complete and durable ─▶ audit log ─▶ registry names them, in one step ─▶ the cut ─▶ old tops sealed ─▶ answer
//!   (no call to the key service)                   (from here on a restart goes on with them)
//! ```
//! What always holds:
//! - a volume that is not attached needs no key for it: its present top is sealed by whoever attaches it next, and nothing
//!   is written to it until then;
//! - of a group all volumes are cut or none; nothing stays behind of a snapshot that was refused;
//! - a new top carries the wrapped keys of every layer below it, the one of its own first.

use std::sync::Arc;

use sealvol_control::api::{self, SnapshotRef, VolumeName};
use sealvol_crypto::{Commitment, SectorCipher};
use sealvol_store::{Access, FileStore};
use sealvol_volume::{
    DataKeyId, LayerId, LayerParams, LayerParts, Volume, VolumeError, WrappedKey, snapshot_all,
};

use super::stack::{Opening, about};
use crate::audit::{Operation, Record};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::exports::Export;
use crate::host::Accepted;
use crate::registry::{Backing, LayerRow, NewTop, VolumeRow, WrappedBy};
use crate::rights::Caller;
use crate::timestamp;

/// One volume that is to get another top.
pub(super) struct Cut {
    /// What the records call it.
    pub(super) operation: Operation,
    row: VolumeRow,
    /// If it is attached, or a job has it open.
    open: Option<Arc<Volume<FileStore>>>,
    pub(super) top: NewTop,
    /// Of the new top: its own first.
    keys: Vec<WrappedKey>,
    /// The new top's data key at work, if that is new and the volume attached.
    cipher: Option<Arc<SectorCipher>>,
}

/// A data key that a new top is to have instead of the present one's.
pub(super) struct FreshKey {
    pub(super) id: DataKeyId,
    pub(super) by: WrappedBy,
    pub(super) wrapped: WrappedKey,
    /// Of the key, as far as anybody here has seen it.
    pub(super) commitment: Option<Commitment>,
    /// At work, as far as the key service was asked for it: of an attached volume always.
    pub(super) cipher: Option<Arc<SectorCipher>>,
}

impl Daemon {
    pub(crate) async fn create_snapshots(
        &self,
        caller: Caller,
        request: api::CreateSnapshots,
    ) -> Result<api::SnapshotList, Error> {
        let mut names = request.snapshots;
        names.sort();
        if names.is_empty() {
            return Err(Error::BadRequest("it names no snapshot".to_owned()));
        }
        if let Some(pair) = names
            .windows(2)
            .find(|pair| pair[0].volume == pair[1].volume)
        {
            let cause = format!("it names two snapshots of volume {}", pair[0].volume);
            return Err(Error::BadRequest(cause));
        }
        let mut turns = Vec::new();
        for name in &names {
            turns.push(self.turn(&name.volume).await);
        }
        let mut cuts = Vec::new();
        for name in &names {
            let row = self.registered(&name.volume).await?;
            self.check_not_being_copied(&row).await?;
            cuts.push(self.plan_cut(row, Some(name), None).await?);
        }
        self.cut(caller, cuts).await?;
        let mut snapshots = Vec::new();
        for name in &names {
            snapshots.push(self.show_snapshot(name).await?);
        }
        Ok(api::SnapshotList { snapshots })
    }

    /// What putting a new top on a volume takes. The caller has its turn.
    pub(super) async fn plan_cut(
        &self,
        row: VolumeRow,
        snapshot: Option<&SnapshotRef>,
        fresh: Option<FreshKey>,
    ) -> Result<Cut, Error> {
        let open = self.open_by_anybody(&row);
        let layers = self.stack(&row, row.top).await?;
        let backing = self.check_place_for_top(&row, &layers)?;
        if let Some(name) = snapshot {
            self.check_snapshot_free(&row, name).await?;
        }
        let (old, mut keys) = (&layers[0], self.wrapped_keys(&row).await?);
        let (data_key, by, commitment, cipher) = match fresh {
            Some(fresh) => {
                keys.insert(0, fresh.wrapped);
                (fresh.id, Some(fresh.by), fresh.commitment, fresh.cipher)
            }
            None => (old.data_key, None, old.commitment, None),
        };
        let layer = LayerRow {
            id: LayerId::random(),
            volume: row.id,
            parent: Some(old.id),
            size: row.size,
            backing,
            data_key,
            sealed: false,
            commitment,
            generation: 0,
            bound: false,
            boot: None,
            former_parents: Vec::new(),
        };
        let top = NewTop {
            layer,
            sealed: old.id,
            snapshot: snapshot.map(|name| (name.name.clone(), name.to_string(), timestamp::now())),
            data_key: by,
            key: None,
            job: None,
        };
        Ok(Cut {
            operation: Operation::Snapshot,
            row,
            open,
            top,
            keys,
            cipher,
        })
    }

    /// Whether a volume can have another top now, and where it goes. `layers` is its stack.
    pub(super) fn check_place_for_top(
        &self,
        row: &VolumeRow,
        layers: &[LayerRow],
    ) -> Result<Backing, Error> {
        let export = self.exports.get(row.name.as_str());
        self.check_cuttable(row, export.as_deref())?;
        if layers.len() >= LAYERS_MAX {
            return Err(Error::TooManyLayers {
                name: row.name.clone(),
                layers: layers.len(),
            });
        }
        let backing = row.next_backing();
        backing.ok_or_else(|| Error::NoPlaceForLayers(row.name.clone()))
    }

    fn check_cuttable(&self, row: &VolumeRow, export: Option<&Export>) -> Result<(), Error> {
        Self::check_not_ephemeral(row, "a snapshot would outlive its key")?;
        if let Some(loss) = &row.loss {
            return Err(Error::LossRecorded {
                name: row.name.clone(),
                loss: loss.clone(),
            });
        }
        let Some(export) = export else {
            return Ok(());
        };
        if let Some(loss) = export.volume.failed() {
            return Err(Error::volume(&row.name)(VolumeError::Failed(loss)));
        }
        if export.read_only {
            return Err(Error::volume(&row.name)(VolumeError::ReadOnly));
        }
        Ok(())
    }

    async fn check_snapshot_free(&self, row: &VolumeRow, name: &SnapshotRef) -> Result<(), Error> {
        let (id, wanted) = (row.id, name.name.clone());
        let taken = self
            .registry
            .call(move |registry| registry.snapshot(id, &wanted))
            .await?;
        match taken {
            Some(_) => Err(crate::registry::RegistryError::SnapshotTaken(name.to_string()).into()),
            None => Ok(()),
        }
    }

    /// Puts new tops on volumes, all at one moment. The caller has the turn of each.
    pub(super) async fn cut(&self, caller: Caller, cuts: Vec<Cut>) -> Result<(), Error> {
        let made = self.make_tops(caller, &cuts).await;
        let switched = match made {
            Ok(()) => self.switch(&cuts).await,
            Err(error) => Err((error, Registered::No)),
        };
        let Err((error, registered)) = switched else {
            for cut in &cuts {
                let (sealed, top) = (cut.top.sealed, cut.top.layer.id);
                tracing::info!(volume = %cut.row.name, %sealed, %top, "another top was put on it");
            }
            return Ok(());
        };
        self.record_refusal(caller, &cuts, &error).await;
        if registered != Registered::AndCut {
            self.undo(&cuts, registered).await;
        }
        Err(error)
    }

    /// The files of the new tops, and the records of what is about to be.
    pub(super) async fn make_tops(&self, caller: Caller, cuts: &[Cut]) -> Result<(), Error> {
        let layers: Vec<LayerRow> = cuts.iter().map(|cut| cut.top.layer.clone()).collect();
        self.registry
            .call(move |registry| registry.begin_layers(&layers))
            .await?;
        for cut in cuts {
            let (name, place) = (&cut.row.name, self.place_of(&cut.top.layer));
            let params = LayerParams {
                volume: cut.row.id,
                layer: cut.top.layer.id,
                parent: cut.top.layer.parent,
                size: cut.row.size,
                sector_size: cut.row.sector_size,
            };
            let directory = place.make().map_err(Error::store(name))?;
            sealvol_volume::create(&directory, true, &params, &cut.keys)
                .await
                .map_err(Error::volume(name))?;
        }
        for cut in cuts {
            let (sealed, top) = (cut.top.sealed, cut.top.layer.id);
            let record = Record {
                name: Some(cut.name()),
                result: format!("ok: layer {sealed} is sealed, layer {top} put on it"),
                ..about(&cut.row, cut.operation, caller)
            };
            let written = self.audit.append(record).await;
            written.map_err(|source| Error::Audit {
                path: self.audit.path().to_owned(),
                source,
            })?;
        }
        Ok(())
    }

    /// Registers the new tops and makes the cut, of those volumes that are open.
    async fn switch(&self, cuts: &[Cut]) -> Result<(), (Error, Registered)> {
        let tops: Vec<NewTop> = cuts.iter().map(|cut| cut.top.clone()).collect();
        self.registry
            .call(move |registry| registry.put_tops(&tops))
            .await
            .map_err(|error| (error.into(), Registered::No))?;
        let mut attached: Vec<(Arc<Volume<FileStore>>, LayerParts<FileStore>)> = Vec::new();
        for cut in cuts {
            let Some(volume) = &cut.open else { continue };
            let parts = self.top_parts(cut, volume).await;
            let parts = parts.map_err(|error| (error, Registered::Yes))?;
            attached.push((Arc::clone(volume), parts));
        }
        let result = snapshot_all(attached).await;
        let was_cut = self.share_sealed(cuts).await;
        // A failure after the cut concerns one of the volumes; its own state says which.
        result.map(|_| ()).map_err(|error| {
            let registered = if was_cut {
                Registered::AndCut
            } else {
                Registered::Yes
            };
            (Error::volume(failed_name(cuts))(error), registered)
        })
    }

    /// What the new top of an attached volume is opened with.
    async fn top_parts(
        &self,
        cut: &Cut,
        volume: &Volume<FileStore>,
    ) -> Result<LayerParts<FileStore>, Error> {
        let attached = cut.row.attached.as_ref();
        let opening = Opening {
            caller: Self::itself(),
            row: &cut.row,
            direct: attached.is_some_and(|attached| attached.direct),
            writable: true,
            accepted: Accepted::Nothing,
        };
        let layer = &cut.top.layer;
        let files = self.open_files(opening, layer, Access::Writable).await?;
        let cipher = cut.cipher.clone();
        let cipher = cipher.unwrap_or_else(|| volume.top().cipher());
        Ok(self.parts(opening, layer, files, &cipher))
    }

    /// Enters the old tops of those volumes that were cut among the layers that others may stand on. Whether any was.
    async fn share_sealed(&self, cuts: &[Cut]) -> bool {
        let mut open = self.open_layers.lock().await;
        let mut was_cut = false;
        for cut in cuts {
            let Some(volume) = &cut.open else { continue };
            let layers = volume.layers();
            if layers[0].id() == cut.top.layer.id {
                open.insert(layers[1].id(), Arc::downgrade(&layers[1]));
                was_cut = true;
            }
        }
        was_cut
    }

    async fn record_refusal(&self, caller: Caller, cuts: &[Cut], error: &Error) {
        for cut in cuts {
            let record = Record {
                name: Some(cut.name()),
                result: error.to_string(),
                ..about(&cut.row, cut.operation, caller)
            };
            if let Err(error) = self.audit.append(record).await {
                tracing::error!(volume = %cut.row.name, %error, "the refusal could not be recorded");
            }
        }
    }

    /// Everything as it was before.
    pub(super) async fn undo(&self, cuts: &[Cut], registered: Registered) {
        if registered == Registered::Yes {
            let tops: Vec<NewTop> = cuts.iter().map(|cut| cut.top.clone()).collect();
            let taken_back = self
                .registry
                .call(move |registry| registry.take_tops_back(&tops))
                .await;
            if let Err(error) = taken_back {
                // The next attach goes on with the new tops: nothing is lost, and the snapshots are there then.
                tracing::error!(%error, "a snapshot that was not made stays registered");
                return;
            }
        }
        let mut gone = Vec::new();
        for cut in cuts {
            match self.remove_with_keys(&self.place_of(&cut.top.layer)).await {
                Ok(()) => gone.push(cut.top.layer.id),
                Err(error) => {
                    tracing::warn!(volume = %cut.row.name, %error, "files of a layer that was not used stay until the next start");
                }
            }
        }
        let forgotten = self
            .registry
            .call(move |registry| registry.forget_new_layers(&gone))
            .await;
        if let Err(error) = forgotten {
            tracing::warn!(%error, "the next start looks for files that are gone");
        }
    }

    pub(crate) async fn delete_snapshot(
        &self,
        caller: Caller,
        name: SnapshotRef,
    ) -> Result<api::SnapshotDeleted, Error> {
        let _turn = self.turn(&name.volume).await;
        let _steady = self.merges.steady().await;
        let (row, snapshot) = self.registered_snapshot(&name).await?;
        if snapshot.attached.is_some() || self.exports.get(&name.to_string()).is_some() {
            return Err(Error::SnapshotAttached(name));
        }
        let record = Record {
            name: Some(name.to_string()),
            ..about(&row, Operation::DeleteSnapshot, caller)
        };
        let written = self.audit.append(record).await;
        written.map_err(|source| Error::Audit {
            path: self.audit.path().to_owned(),
            source,
        })?;
        let layer = snapshot.layer;
        self.registry
            .call(move |registry| registry.hide_snapshot(layer))
            .await?;
        let fate = self.fate_of(layer).await?;
        tracing::info!(snapshot = %name, %layer, ?fate, "deleted");
        self.merges.want();
        Ok(api::SnapshotDeleted { name, layer: fate })
    }
}

impl Cut {
    /// What the records call it.
    fn name(&self) -> String {
        let snapshot = self.top.snapshot.as_ref();
        snapshot.map_or_else(|| self.row.name.to_string(), |(_, full, _)| full.clone())
    }
}

/// How far new tops have come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Registered {
    No,
    Yes,
    /// Volumes write to them: they stay, whatever failed after that.
    AndCut,
}

/// The volume that a failed cut is told of: the first that has lost data, or the first at all.
fn failed_name(cuts: &[Cut]) -> &VolumeName {
    let lost = |cut: &&Cut| {
        cut.open
            .as_ref()
            .is_some_and(|volume| volume.failed().is_some())
    };
    let cut = cuts.iter().find(lost).unwrap_or(&cuts[0]);
    &cut.row.name
}

/// A read may have to look through all of them, and a superblock holds the keys of all of them.
pub(super) const LAYERS_MAX: usize = 128;
