//! `volume flatten`: one layer in place of several, and with `--materialise` no block without data.
//!
//! One call does a bounded part, while the volume is attached and in use. Nothing remembers a flattening that is under
//! way but the volume's map: who asks again, after whatever went wrong, goes on where data is missing.
//!
//! What always holds: a pass does not begin unless there is space for all of it.

use sealvol_control::api::{self, VolumeName};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::exports::Export;
use crate::registry::VolumeRow;

use std::sync::Arc;

impl Daemon {
    /// What materialising would take now.
    pub(crate) async fn flatten_plan(&self, name: &VolumeName) -> Result<api::FlattenPlan, Error> {
        let row = self.registered(name).await?;
        Self::check_not_ephemeral(
            &row,
            "nobody gets the key that would read it without sealvol",
        )?;
        let export = self.exported(name)?;
        self.plan(&row, &export).await
    }

    /// A part of flattening, as [`api::FlattenVolume`] says.
    pub(crate) async fn flatten_volume(
        &self,
        name: &VolumeName,
        request: api::FlattenVolume,
    ) -> Result<api::Flattened, Error> {
        let _turn = self.turn(name).await;
        let row = self.registered(name).await?;
        let layers = self.stack(&row, row.top).await?.len();
        if !request.materialise {
            return Ok(api::Flattened {
                layers,
                written: 0,
                next: None,
            });
        }
        Self::check_not_ephemeral(
            &row,
            "nobody gets the key that would read it without sealvol",
        )?;
        let export = self.exported(name)?;
        if request.from == 0 {
            let plan = self.plan(&row, &export).await?;
            if let Some(free) = plan.free.filter(|&free| free < plan.zeros) {
                return Err(Error::NoRoom {
                    name: name.clone(),
                    needed: plan.zeros,
                    free,
                });
            }
            tracing::info!(volume = %name, zeros = plan.zeros, "materialising");
        }
        let bytes_max = request.bytes_max.unwrap_or(BYTES_MAX).min(BYTES_MAX);
        let done = export
            .volume
            .materialise(request.from, bytes_max)
            .await
            .map_err(Error::volume(name))?;
        Ok(api::Flattened {
            layers,
            written: done.written,
            next: done.next,
        })
    }

    async fn plan(&self, row: &VolumeRow, export: &Export) -> Result<api::FlattenPlan, Error> {
        let layers = self.stack(row, row.top).await?;
        let free = self.place_of(&layers[0]).free().map_err(|error| {
            Error::Internal(format!("the space for volume {}: {error}", row.name))
        })?;
        let zeros = export.volume.holes().await;
        Ok(api::FlattenPlan {
            size: export.volume.size(),
            zeros: zeros.map_err(Error::volume(&row.name))?,
            free,
        })
    }

    fn exported(&self, name: &VolumeName) -> Result<Arc<Export>, Error> {
        self.exports
            .get(name.as_str())
            .ok_or_else(|| Error::NotAttached(name.clone()))
    }
}

/// One call's part: a second or less on most disks, so that a detach or a stop waits no longer.
const BYTES_MAX: u64 = 64 << 20;
