//! `volume delete`.
//!
//! With `--shred` (`shred.rs`) the key service refuses the volume for ever, if it can, and the wrapped keys are overwritten in both
//! slots of each layer, durably, before anything else. Then
//! registry (*deleting*) → files gone, durably → registry row gone. What is found *deleting* at the
//! next start is finished then.
//!
//! What always holds: a layer that another volume stands on stays, and its wrapped keys with it.

use sealvol_control::api::{self, SnapshotRef, VolumeName};

use crate::audit::{Operation, Record};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::registry::{LayerRow, VolumeRow};
use crate::rights::Caller;

impl Daemon {
    pub(crate) async fn delete_volume(
        &self,
        caller: Caller,
        name: VolumeName,
        request: api::DeleteVolume,
    ) -> Result<api::Deleted, Error> {
        let _turn = self.turn(&name).await;
        let row = self.registered(&name).await?;
        if row.attached.is_some() || self.exports.get(name.as_str()).is_some() {
            return Err(Error::Attached(name));
        }
        if request.require_proof && !request.shred {
            let cause = "a proof is required of a shred only: ask for that, too";
            return Err(Error::BadRequest(cause.to_owned()));
        }
        if request.shred {
            let elsewhere = "there is no copy of it here to be destroyed; destroy yours, and delete the volume without --shred";
            Self::check_not_provided(&row, elsewhere)?;
        }
        self.check_no_job(&row).await?;
        let count = self.deletable_snapshots(&row).await?;
        if count > 0 && !request.snapshots {
            return Err(Error::HasSnapshots { name, count });
        }
        let own = self.layers_of_none_but(&row).await?;
        let stack = self.stack(&row, row.top).await?;
        let kept: Vec<&LayerRow> = stack
            .iter()
            .filter(|layer| own.iter().all(|own| own.id != layer.id))
            .collect();
        let shared = kept.iter().filter(|layer| layer.volume == row.id).count();
        if request.shred && shared > 0 {
            return Err(Error::LayersShared {
                name,
                layers: shared,
            });
        }
        let proof = if request.shred {
            let plan = self.plan_shred(&row, &own).await?;
            if request.require_proof {
                plan.check_provable(&row)?;
            }
            let proof = self.bury(caller, &row, plan).await?;
            // An ephemeral one has no wrapped key.
            if !row.ephemeral {
                self.destroy_wrapped_keys(&row, &own).await?;
            }
            Some(proof)
        } else {
            self.record_delete(caller, &row).await?;
            None
        };
        let id = row.id;
        self.registry
            .call(move |registry| registry.begin_delete(id))
            .await?;
        self.remove_volume(&row, own).await?;
        // A layer that a clone stood on may have one child now.
        self.merges.want();
        self.failures.clear(name.as_str());
        tracing::info!(volume = %name, %id, shredded = request.shred, "deleted");
        Ok(api::Deleted {
            name,
            shredded: request.shred,
            layers_kept: kept.len(),
            proof,
        })
    }

    /// How many snapshots would go with the volume, if none of them is in use.
    async fn deletable_snapshots(&self, row: &VolumeRow) -> Result<usize, Error> {
        let id = row.id;
        let snapshots = self
            .registry
            .call(move |registry| registry.snapshots(id))
            .await?;
        for snapshot in &snapshots {
            let name = SnapshotRef {
                volume: row.name.clone(),
                name: snapshot.name.clone(),
            };
            if self.exports.get(&name.to_string()).is_some() {
                return Err(Error::SnapshotAttached(name));
            }
        }
        Ok(snapshots.len())
    }

    /// The layers that go with a volume.
    pub(super) async fn layers_of_none_but(&self, row: &VolumeRow) -> Result<Vec<LayerRow>, Error> {
        let id = row.id;
        let layers = self
            .registry
            .call(move |registry| registry.layers_of_none_but(id));
        Ok(layers.await?)
    }

    /// Removes the files of layers that nobody else needs, the top first, and forgets them with their volume.
    pub(super) async fn remove_volume(
        &self,
        row: &VolumeRow,
        layers: Vec<LayerRow>,
    ) -> Result<(), Error> {
        for layer in &layers {
            let removed = self.place_of(layer).remove().await;
            removed.map_err(Error::store(&row.name))?;
        }
        let id = row.id;
        let layers: Vec<_> = layers.into_iter().map(|layer| layer.id).collect();
        self.registry
            .call(move |registry| registry.forget(id, &layers))
            .await?;
        Ok(())
    }

    async fn record_delete(&self, caller: Caller, row: &VolumeRow) -> Result<(), Error> {
        let record = Record {
            volume: Some(row.id.to_string()),
            name: Some(row.name.to_string()),
            key: Some(row.key.to_string()),
            ..Record::of(Operation::Delete, caller)
        };
        let written = self.audit.append(record).await;
        written.map_err(|source| Error::Audit {
            path: self.audit.path().to_owned(),
            source,
        })
    }
}
