//! `volume delete`.
//!
//! With `--shred` the wrapped keys are overwritten in both slots, durably, before anything else. Then
//! registry (*deleting*) → files gone, durably → registry row gone. What is found *deleting* at the
//! next start is finished then.

use sealvol_control::api::{self, VolumeName};
use sealvol_volume::destroy_keys;

use crate::audit::{Operation, Record};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::place::Place;
use crate::registry::VolumeRow;
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
        let place = Place::of(&row.backing, row.top, &self.state.layers());
        let operation = if request.shred {
            Operation::Shred
        } else {
            Operation::Delete
        };
        self.record_delete(caller, &row, operation).await?;
        if request.shred {
            let directory = place.directory().map_err(Error::store(&name))?;
            destroy_keys(&directory)
                .await
                .map_err(Error::volume(&name))?;
        }
        let id = row.id;
        self.registry
            .call(move |registry| registry.begin_delete(id))
            .await?;
        place.remove().await.map_err(Error::store(&name))?;
        self.registry
            .call(move |registry| registry.forget(id))
            .await?;
        self.failures.clear(name.as_str());
        tracing::info!(volume = %name, %id, shredded = request.shred, "deleted");
        Ok(api::Deleted {
            name,
            shredded: request.shred,
        })
    }

    async fn record_delete(
        &self,
        caller: Caller,
        row: &VolumeRow,
        operation: Operation,
    ) -> Result<(), Error> {
        let record = Record {
            volume: Some(row.id.to_string()),
            name: Some(row.name.to_string()),
            key: Some(row.key.to_string()),
            ..Record::of(operation, caller)
        };
        let written = self.audit.append(record).await;
        written.map_err(|source| Error::Audit {
            path: self.audit.path().to_owned(),
            source,
        })
    }
}
