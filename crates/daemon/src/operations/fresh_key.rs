//! A new data key for the next top of a volume that exists: generated wrapped, and at work if the volume is attached.
//!
//! What always holds: the key service makes it, under the key that the volume is under; of a volume that is not attached nobody
//! sees it at a clone. Where one is needed: at a clone, so that no data key has writable layers in two volumes, and at a re-key.

use std::sync::Arc;

use sealvol_control::key_ref::KeyRef;
use sealvol_crypto::{Commitment, VolumeKey};
use sealvol_volume::{DataKeyId, VolumeError};

use super::context;
use super::create::as_record;
use super::snapshot::FreshKey;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::keys::{Subject, WrappedCopy};
use crate::registry::VolumeRow;
use crate::rights::Caller;

impl Daemon {
    /// A new data key for a volume, wrapped under `key`.
    pub(super) async fn fresh_key(
        &self,
        caller: Caller,
        row: &VolumeRow,
        key: &KeyRef,
    ) -> Result<FreshKey, Error> {
        let attached = self.exports.get(row.name.as_str()).is_some();
        self.make_fresh_key(caller, row, key, attached).await
    }

    /// One that the key service has given back once, so that a volume can depend on it whose blocks nobody else will have.
    pub(super) async fn proved_key(
        &self,
        caller: Caller,
        row: &VolumeRow,
        key: &KeyRef,
    ) -> Result<FreshKey, Error> {
        self.make_fresh_key(caller, row, key, true).await
    }

    async fn make_fresh_key(
        &self,
        caller: Caller,
        row: &VolumeRow,
        key: &KeyRef,
        unwrapped: bool,
    ) -> Result<FreshKey, Error> {
        let id = DataKeyId::random();
        let subject = Subject {
            id: row.id,
            name: row.name.clone(),
            context: context(row.id, id, row.sector_size),
        };
        let wrapped = self.keys.generate(caller, &subject, key).await?;
        let mut commitment = wrapped.commitment.map(Commitment);
        let (by, wrapped) = as_record(id, key, wrapped);
        let cipher = if unwrapped {
            let memory = self.memory.ready()?;
            let copy = WrappedCopy {
                subject,
                // By the resolved id: a name may have come to mean another key.
                key: KeyRef::new(&by.provider, &by.key_id)?,
                blob: wrapped.blob.clone(),
            };
            let mut keys = self.keys.unwrap_all(caller, vec![copy], &memory).await?;
            let key = keys.remove(0);
            let found = key.commitment();
            if commitment.is_some_and(|made| made != found) {
                return Err(Error::volume(&row.name)(VolumeError::WrongKey));
            }
            commitment = Some(found);
            Some(Arc::new(VolumeKey::expand(key)))
        } else {
            None
        };
        Ok(FreshKey {
            id,
            by,
            wrapped,
            commitment,
            cipher,
        })
    }
}
