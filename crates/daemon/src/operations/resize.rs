//! `volume resize`: larger only.
//!
//! Attached, the volume grows under its key. Detached, nobody has the key: `data` is lengthened, so
//! that the store's limits are met now and not at the next attach, and the registry records the size,
//! which the next attach folds into the superblock.

use sealvol_control::api::{self, VolumeName};
use sealvol_store::{Access, Caching, Store as _};
use sealvol_volume::{VolumeError, check_size};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::registry::VolumeRow;

impl Daemon {
    pub(crate) async fn resize_volume(
        &self,
        name: VolumeName,
        request: api::ResizeVolume,
    ) -> Result<api::Volume, Error> {
        let _turn = self.turn(&name).await;
        let row = self.registered(&name).await?;
        self.check_not_being_copied(&row).await?;
        let size = request.size;
        check_size(size).map_err(Error::volume(&name))?;
        if size < row.size {
            let shrink = VolumeError::Shrink {
                asked: size,
                size: row.size,
            };
            return Err(Error::volume(&name)(shrink));
        }
        match self.exports.get(name.as_str()) {
            Some(export) => export
                .volume
                .grow(size)
                .await
                .map_err(Error::volume(&name))?,
            None => self.lengthen(&row, size).await?,
        }
        let id = row.id;
        self.registry
            .call(move |registry| registry.set_size(id, size))
            .await?;
        tracing::info!(volume = %name, size, "resized");
        self.show_volume(&name).await
    }

    async fn lengthen(&self, row: &VolumeRow, size: u64) -> Result<(), Error> {
        let layers = self.stack(row, row.top).await?;
        let files = self
            .place_of(&layers[0])
            .open(Access::Writable, Caching::PageCache)
            .await
            .map_err(Error::store(&row.name))?;
        if files.data.len() < size {
            files
                .data
                .grow(size)
                .await
                .map_err(Error::store(&row.name))?;
        }
        files.data.sync().await.map_err(Error::store(&row.name))
    }
}
