//! Volumes whose data key is given by whoever attaches them (`provided:`), as customer-provided keys of object stores are.
//!
//! ```text
//!   create, with the key: its commitment ─▶ registry; the key is wiped
//!   attach, with the key: its commitment is the pinned one? ─▶ record ─▶ layers
//! ```
//! What always holds:
//! - the key is in locked memory while the volume is attached, and nowhere of ours at any other time: no key service is asked,
//!   and no superblock, registry or log has a copy of it, wrapped or not;
//! - another key than the one at creation is refused before a layer is opened;
//! - a start attaches none again: it says that the key has to be given;
//! - a volume has one data key, so what gives a volume another one, or stands on two, is refused.

use std::sync::Arc;

use sealvol_control::key_ref::KeyRef;
use sealvol_crypto::locked::KeyMemory;
use sealvol_crypto::{Commitment, VolumeKey};
use sealvol_volume::{DataKeyId, VolumeError, WrappedKey};

use super::context;
use super::stack::{Ciphers, about};
use crate::audit::{Operation, Record};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::place::Place;
use crate::registry::{LayerRow, NewVolume, VolumeRow, WrappedBy};
use crate::rights::Caller;

impl Daemon {
    /// Refuses what takes a key that a key service wraps.
    pub(super) fn check_not_provided(row: &VolumeRow, what: &'static str) -> Result<(), Error> {
        if row.key.is_provided() {
            let name = row.name.clone();
            return Err(Error::Provided { name, what });
        }
        Ok(())
    }

    /// The first layer of a volume whose key has this commitment.
    pub(super) async fn make_provided_layer(
        &self,
        caller: Caller,
        new: &NewVolume,
        place: &Place,
        commitment: Commitment,
    ) -> Result<WrappedBy, Error> {
        let layer = new.layer;
        self.registry
            .call(move |registry| registry.commit_to(layer, commitment))
            .await?;
        let record = Record {
            volume: Some(new.id.to_string()),
            name: Some(new.name.to_string()),
            key: Some(new.key.to_string()),
            context: context(new.id, new.data_key, new.sector_size),
            ..Record::of(Operation::ProvidedKey, caller)
        };
        self.append(record).await?;
        let (by, record) = nobody_wraps(new.data_key);
        self.make_files(new, place, &[record]).await?;
        Ok(by)
    }

    /// The key that was given, at work, if it is the volume's.
    pub(super) async fn given_key(
        &self,
        caller: Caller,
        row: &VolumeRow,
        layers: &[LayerRow],
        given: Option<VolumeKey>,
        memory: &Arc<KeyMemory>,
    ) -> Result<Ciphers, Error> {
        let key = given.ok_or_else(|| Error::KeyNotGiven(row.name.clone()))?;
        let found = key.commitment();
        // Each layer has one from its beginning: one without is none of ours.
        if layers.iter().any(|layer| layer.commitment != Some(found)) {
            return Err(Error::volume(&row.name)(VolumeError::WrongKey));
        }
        let data_key = layers[0].data_key;
        let record = Record {
            key: Some(row.key.to_string()),
            context: context(row.id, data_key, row.sector_size),
            protection: Some(memory.protection().to_string()),
            ..about(row, Operation::ProvidedKey, caller)
        };
        self.append(record).await?;
        let cipher = Arc::new(key.expand());
        let ids = layers.iter().map(|layer| layer.data_key);
        Ok(ids.map(|id| (id, Arc::clone(&cipher))).collect())
    }

    async fn append(&self, record: Record) -> Result<(), Error> {
        let written = self.audit.append(record).await;
        written.map_err(|source| Error::Audit {
            path: self.audit.path().to_owned(),
            source,
        })
    }
}

/// What stands for a wrapped key where there is none: in the registry, and in a superblock.
fn nobody_wraps(data_key: DataKeyId) -> (WrappedBy, WrappedKey) {
    let provider = KeyRef::provided().provider().to_owned();
    let record = WrappedKey {
        data_key,
        provider: provider.clone(),
        key_id: String::new(),
        key_version: 0,
        blob: Vec::new(),
    };
    let by = WrappedBy {
        provider,
        key_id: String::new(),
        key_version: 0,
    };
    (by, record)
}
