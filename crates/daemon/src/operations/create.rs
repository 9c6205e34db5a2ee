//! `volume create`.
//!
//! In this order, so that a crash leaves nothing half made: registry (*creating*) → data key,
//! generated wrapped → layer, durable → registry (*available*). What is found *creating* at the next
//! start is undone; so is what fails on the way.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sealvol_control::api::{self, KeySetName, VolumeName};
use sealvol_control::key_ref::KeyRef;
use sealvol_control::keychild::{Right, Wrapped};
use sealvol_crypto::{Commitment, UnitSize, VolumeKey};
use sealvol_volume::{DataKeyId, LayerId, LayerParams, VolumeId, WrappedKey, check_size};

use super::context;
use super::ephemeral::no_key;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::keys::Subject;
use crate::place::{Place, examine_backing, is_same_device};
use crate::registry::{Backing, NewVolume, WrappedBy};
use crate::rights::Caller;
use crate::timestamp;

impl Daemon {
    pub(crate) async fn create_volume(
        self: &Arc<Self>,
        caller: Caller,
        request: api::CreateVolume,
        given: Option<VolumeKey>,
    ) -> Result<api::Volume, Error> {
        // All that is needed of it: whoever attaches brings it again.
        let given = given.map(|key| key.commitment());
        if request.ephemeral && request.from_snapshot.is_some() {
            let cause = "an ephemeral volume begins empty: it is no clone";
            return Err(Error::BadRequest(cause.to_owned()));
        }
        if let Some(snapshot) = request.from_snapshot.clone() {
            if given.is_some() {
                let cause = "a clone has a key of a key service: none is to be given";
                return Err(Error::BadRequest(cause.to_owned()));
            }
            return self.clone_volume(caller, request, &snapshot, None).await;
        }
        if request.fresh_key.is_some() {
            let cause = "a fresh key is for clones: it names no snapshot to begin as";
            return Err(Error::BadRequest(cause.to_owned()));
        }
        let named = request.key.is_some() || request.key_set.is_some();
        if request.ephemeral && (named || request.layers_dir.is_some()) {
            let cause = "an ephemeral volume has no key that somebody wraps, and no further layers";
            return Err(Error::BadRequest(cause.to_owned()));
        }
        let _turn = self.turn(&request.name).await;
        let new = self.check_create(caller, &request).await?;
        match (new.key.is_provided(), given) {
            (true, None) => return Err(Error::KeyNotGiven(new.name)),
            (false, Some(_)) => {
                let (name, key) = (new.name, new.key);
                return Err(Error::KeyNotTaken { name, key });
            }
            (true, Some(_)) | (false, None) => {}
        }
        self.begin_create(&new, request.key_set).await?;
        let place = Place::of(&new.backing, new.layer, &self.state.layers());
        let made = if new.ephemeral {
            let made = self.make_ephemeral_files(&new, &place).await;
            made.map(|()| Vec::new())
        } else if let Some(commitment) = given {
            let made = self.make_provided_layer(caller, &new, &place, commitment);
            made.await.map(|by| vec![(new.data_key, by)])
        } else {
            let made = self.make_layer(caller, &new, &place).await;
            made.map(|by| vec![(new.data_key, by)])
        };
        match made {
            Ok(keys) => {
                let id = new.id;
                self.registry
                    .call(move |registry| registry.finish_create(id, &keys))
                    .await?;
                tracing::info!(volume = %new.name, id = %new.id, size = new.size, "created");
                self.show_volume(&new.name).await
            }
            Err(error) => {
                self.undo_create(&new, &place).await;
                Err(error)
            }
        }
    }

    /// Registers it, and in the same moment where it belongs.
    pub(super) async fn begin_create(
        &self,
        new: &NewVolume,
        key_set: Option<KeySetName>,
    ) -> Result<(), Error> {
        let new = new.clone();
        self.registry
            .call(move |registry| {
                registry.begin_create(&new)?;
                match &key_set {
                    // Before it exists for anybody else: a start that finds it so undoes it whole.
                    Some(set) => registry.join_key_set(new.id, set),
                    None => Ok(()),
                }
            })
            .await?;
        Ok(())
    }

    pub(super) async fn check_create(
        &self,
        caller: Caller,
        request: &api::CreateVolume,
    ) -> Result<NewVolume, Error> {
        let name = request.name.clone();
        let size = request.size.ok_or_else(no_size)?;
        check_size(size).map_err(Error::volume(&name))?;
        let sector_size = UnitSize::try_from(request.sector_size.unwrap_or(DEFAULT_SECTOR_SIZE))
            .map_err(|error| Error::BadRequest(error.to_string()))?;
        let key = if request.ephemeral {
            no_key()?
        } else {
            let named = self.named_key(request.key.as_deref(), request.key_set.as_ref());
            let key = named.await?.unwrap_or_default();
            if key.is_provided() {
                key
            } else {
                self.keys.resolve(key).await?
            }
        };
        let backing = match &request.backing {
            None => Backing::State,
            Some(path) => {
                let backing = examine_backing(&name, path, size)?;
                self.check_backing(caller, &backing)?;
                self.check_device(&backing).await?;
                backing
            }
        };
        let layers_dir = match &request.layers_dir {
            None => None,
            Some(path) => Some(self.check_layers_dir(caller, &name, path, size)?),
        };
        Ok(NewVolume {
            id: VolumeId::random(),
            name,
            created: timestamp::now(),
            size,
            sector_size,
            key,
            backing,
            layers_dir,
            layer: LayerId::random(),
            parent: None,
            data_key: DataKeyId::random(),
            ephemeral: request.ephemeral,
        })
    }

    /// Whoever may only create puts volumes where the configuration says (by path component, so
    /// `/srv/vol` does not allow `/srv/volumes`); an administrator anywhere.
    fn check_backing(&self, caller: Caller, backing: &Backing) -> Result<(), Error> {
        let (Backing::Directory(path) | Backing::Device(path)) = backing else {
            return Ok(());
        };
        let configured = self
            .config
            .backing
            .iter()
            .any(|root| path.starts_with(root));
        if configured || self.config.rights.hold(caller, Right::Administer) {
            Ok(())
        } else {
            Err(Error::BackingNotAllowed {
                path: path.clone(),
                uid: caller.uid,
            })
        }
    }

    /// The directory for further layers as it is really called.
    fn check_layers_dir(
        &self,
        caller: Caller,
        name: &VolumeName,
        path: &Path,
        size: u64,
    ) -> Result<PathBuf, Error> {
        let backing = examine_backing(name, path, size)?;
        self.check_backing(caller, &backing)?;
        match backing {
            Backing::Directory(path) => Ok(path),
            Backing::State | Backing::Device(_) => Err(Error::Backing {
                path: path.to_owned(),
                cause: "further layers go into a directory".to_owned(),
            }),
        }
    }

    /// A device carries one volume, attached or not.
    pub(super) async fn check_device(&self, backing: &Backing) -> Result<(), Error> {
        let Backing::Device(path) = backing else {
            return Ok(());
        };
        for row in self.registry.call(|registry| registry.volumes()).await? {
            // A clone may stand on a layer there whose own volume is deleted.
            let layers = self.stack(&row, row.top).await?;
            let mut taken = layers.iter().map(|layer| &layer.backing);
            if taken
                .any(|taken| matches!(taken, Backing::Device(taken) if is_same_device(taken, path)))
            {
                let path = path.clone();
                return Err(Error::BackingTaken {
                    path,
                    volume: row.name,
                });
            }
        }
        Ok(())
    }

    pub(super) async fn make_layer(
        &self,
        caller: Caller,
        new: &NewVolume,
        place: &Place,
    ) -> Result<WrappedBy, Error> {
        let (by, key) = self.own_key(caller, new).await?;
        self.make_files(new, place, &[key]).await?;
        Ok(by)
    }

    /// The data key of a new volume's first layer, generated wrapped. The registry is committed to it from here on, if the key
    /// child has made it: a wrap that anybody could have made (RSA) must not be taken for it by the first attach.
    pub(super) async fn own_key(
        &self,
        caller: Caller,
        new: &NewVolume,
    ) -> Result<(WrappedBy, WrappedKey), Error> {
        let subject = Subject {
            id: new.id,
            name: new.name.clone(),
            context: context(new.id, new.data_key, new.sector_size),
        };
        let wrapped = self.keys.generate(caller, &subject, &new.key).await?;
        if let Some(commitment) = wrapped.commitment.map(Commitment) {
            let layer = new.layer;
            self.registry
                .call(move |registry| registry.commit_to(layer, commitment))
                .await?;
        }
        Ok(as_record(new.data_key, &new.key, wrapped))
    }

    /// The files of a new volume's first layer, durable, with these wrapped keys: its own first.
    pub(super) async fn make_files(
        &self,
        new: &NewVolume,
        place: &Place,
        keys: &[WrappedKey],
    ) -> Result<(), Error> {
        let params = LayerParams {
            volume: new.id,
            layer: new.layer,
            parent: new.parent,
            size: new.size,
            sector_size: new.sector_size,
        };
        let directory = place.make().map_err(Error::store(&new.name))?;
        sealvol_volume::create(&directory, place.has_data_file(), &params, keys)
            .await
            .map_err(Error::volume(&new.name))
    }

    /// What stays behind is found *creating* at the next start, and undone then.
    pub(super) async fn undo_create(&self, new: &NewVolume, place: &Place) {
        if let Err(error) = place.remove().await {
            tracing::warn!(volume = %new.name, %error, "files of the failed creation stay for now");
            return;
        }
        let (id, layer) = (new.id, new.layer);
        if let Err(error) = self
            .registry
            .call(move |registry| registry.forget(id, &[layer]))
            .await
        {
            tracing::warn!(volume = %new.name, %error, "the failed creation stays registered for now");
        }
    }
}

/// A data key as a key service wrapped it: what the registry says of it, and its record in a superblock.
pub(super) fn as_record(
    data_key: DataKeyId,
    key: &KeyRef,
    wrapped: Wrapped,
) -> (WrappedBy, WrappedKey) {
    let by = WrappedBy {
        provider: key.provider().to_owned(),
        key_id: wrapped.key_id,
        key_version: wrapped.key_version,
    };
    let record = WrappedKey {
        data_key,
        provider: by.provider.clone(),
        key_id: by.key_id.clone(),
        key_version: by.key_version,
        blob: wrapped.blob,
    };
    (by, record)
}

fn no_size() -> Error {
    Error::BadRequest("it names no size".to_owned())
}

/// Fewest cipher calls a byte, and the page size that guests write by.
const DEFAULT_SECTOR_SIZE: u32 = 4096;
