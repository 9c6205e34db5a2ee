//! `volume adopt`: a volume registered again from its layer, when the registry that knew it is lost.
//!
//! ```text
//! superblock, untrusted ─▶ context from what it says ─▶ unwrap under the key that the operator names
//!                                                          ─▶ its MAC ─▶ audit log ─▶ registry
//! ```
//! What always holds: only a configured key service is asked, and only for the key that the operator names; the volume's
//! id, sector size and data key are those for which that key was wrapped, everything else is what the MAC under the data
//! key covers; nothing is written to the layer; the audit log says what was trusted before the registry does.
//!
//! What nothing here can tell: whether the layer is the newest state of the volume. Whoever could write the store could put
//! an older copy there.
//!
//! A layer without MAC was never attached for writing. It is adopted only if no byte of `data` was ever written: such a layer
//! is opened with an empty map, so one whose MAC somebody has taken away would lose all that it holds.

use std::path::{Path, PathBuf};

use sealvol_control::api::{self, VolumeName};
use sealvol_control::key_ref::KeyRef;
use sealvol_crypto::VolumeKey;
use sealvol_store::{Access, Caching, Directory as _};
use sealvol_volume::{
    FoundLayer, LayerId, META_FILE, Pins, VolumeError, WrappedKey, read_layer, verify_layer,
};

use super::context;
use crate::audit::{Operation, Record};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::keys::{Subject, WrappedCopy};
use crate::place::{Files, Place, examine_backing};
use crate::registry::{Backing, NewVolume, WrappedBy};
use crate::rights::Caller;
use crate::timestamp;

impl Daemon {
    pub(crate) async fn adopt_volume(
        &self,
        caller: Caller,
        name: VolumeName,
        request: api::AdoptVolume,
    ) -> Result<api::Adopted, Error> {
        let _turn = self.turn(&name).await;
        let adopted = self.adopt(caller, &name, &request).await;
        if let Err(error) = &adopted {
            let record = Record {
                name: Some(name.to_string()),
                key: Some(request.key.clone()),
                result: format!("{}: {error}", request.layer_dir.display()),
                ..Record::of(Operation::Adopt, caller)
            };
            if let Err(error) = self.audit.append(record).await {
                tracing::error!(volume = %name, %error, "the refusal could not be recorded");
            }
        }
        adopted
    }

    async fn adopt(
        &self,
        caller: Caller,
        name: &VolumeName,
        request: &api::AdoptVolume,
    ) -> Result<api::Adopted, Error> {
        let key: KeyRef = request.key.parse()?;
        if key.is_provided() {
            let cause = "a volume whose key is given at each attach can't be adopted: nothing here proves its key";
            return Err(Error::BadRequest(cause.to_owned()));
        }
        let key = self.keys.resolve(key).await?;
        let (layer, parent) = layer_directory(&request.layer_dir)?;
        let backing = self.backing_of(name, layer, parent, request).await?;
        let place = Place::of(&backing, layer, &self.state.layers());
        let files = place
            .open(Access::ReadOnly, Caching::PageCache)
            .await
            .map_err(Error::store(name))?;
        let found = read_layer(&files.meta).await.map_err(Error::volume(name))?;
        self.check_adoptable(name, request, layer, &place, &found)
            .await?;
        let (by, pins) = self
            .prove(caller, name, &key, request, &found, &files)
            .await?;
        let new = NewVolume {
            id: found.params.volume,
            name: name.clone(),
            created: timestamp::now(),
            size: found.params.size,
            sector_size: found.params.sector_size,
            key,
            backing,
            layers_dir: None,
            layer,
            parent: None,
            data_key: found.data_key,
            ephemeral: false,
        };
        self.record_adoption(caller, &new, &by, &found).await?;
        drop(files);
        let registered = new.clone();
        self.registry
            .call(move |registry| {
                registry.adopt(&registered, &by, pins.generation, pins.commitment)
            })
            .await?;
        tracing::warn!(volume = %name, id = %new.id, layer = %layer, "adopted from its layer");
        Ok(api::Adopted {
            volume: self.show_volume(name).await?,
            authenticated: found.bound,
            generation: found.generation,
            clean: found.clean,
            forgeable: self.keys.wraps_by_public_key(new.key.provider()),
        })
    }

    /// The backing that has the layer's directory where it is.
    async fn backing_of(
        &self,
        name: &VolumeName,
        layer: LayerId,
        parent: PathBuf,
        request: &api::AdoptVolume,
    ) -> Result<Backing, Error> {
        let in_state = self
            .state
            .layers()
            .canonicalize()
            .is_ok_and(|own| own == parent);
        let Some(device) = &request.device else {
            return Ok(if in_state {
                Backing::State
            } else {
                Backing::Directory(parent)
            });
        };
        if !in_state {
            let cause = format!(
                "the metadata of a volume on a device belongs below {}",
                self.state.layers().display()
            );
            return Err(not_adoptable(&request.layer_dir, cause));
        }
        let directory = Place::of(&Backing::State, layer, &self.state.layers())
            .directory()
            .map_err(Error::store(name))?;
        let meta = directory
            .open(META_FILE, Access::ReadOnly)
            .await
            .map_err(Error::store(name))?;
        let said = read_layer(&meta).await.map_err(Error::volume(name))?;
        let backing = examine_backing(name, device, said.params.size)?;
        self.check_device(&backing).await?;
        Ok(backing)
    }

    async fn check_adoptable(
        &self,
        name: &VolumeName,
        request: &api::AdoptVolume,
        layer: LayerId,
        place: &Place,
        found: &FoundLayer,
    ) -> Result<(), Error> {
        let refuse = |cause: &str| Err(not_adoptable(&request.layer_dir, cause.to_owned()));
        if found.params.layer != layer {
            return Err(Error::volume(name)(VolumeError::Mismatch {
                field: "layer id",
                found: found.params.layer.to_string(),
                expected: layer.to_string(),
            }));
        }
        if let Some(parent) = found.params.parent {
            return refuse(&format!(
                "it is one of several layers: it stands on layer {parent}, as what has snapshots or is a clone does, \
                 and only a volume of one layer can be adopted"
            ));
        }
        if found.sealed {
            return refuse(
                "it is one of several layers: it is sealed, so another one stands on it",
            );
        }
        if found.ephemeral {
            return refuse(
                "it was an ephemeral volume's: its data key was in memory only, and is gone",
            );
        }
        let rows = self.registry.call(|registry| registry.volumes()).await?;
        if let Some(row) = rows.into_iter().find(|row| row.id == found.params.volume) {
            return Err(Error::Registered {
                id: row.id,
                name: row.name,
            });
        }
        if !found.bound {
            let empty = place.data_is_empty();
            let empty = empty.map_err(|error| not_adoptable(&request.layer_dir, error.to_string()));
            if !empty? {
                return refuse(
                    "its superblock has no MAC, so it was never attached, and yet its data is not known to be empty; \
                     what it holds would be lost",
                );
            }
        }
        Ok(())
    }

    /// Unwraps the layer's key and has it prove the superblock.
    async fn prove(
        &self,
        caller: Caller,
        name: &VolumeName,
        key: &KeyRef,
        request: &api::AdoptVolume,
        found: &FoundLayer,
        files: &Files,
    ) -> Result<(WrappedBy, Pins), Error> {
        let memory = self.memory.ready()?;
        let key_id = self.keys.describe(key).await?.key_id;
        let wrapped = wrapped_by(name, key, &key_id, &request.layer_dir, found)?;
        let by = WrappedBy {
            provider: wrapped.provider.clone(),
            key_id: wrapped.key_id.clone(),
            key_version: wrapped.key_version,
        };
        let (volume, sector_size) = (found.params.volume, found.params.sector_size);
        let subject = Subject {
            id: volume,
            name: name.clone(),
            context: context(volume, found.data_key, sector_size),
        };
        let resolved = KeyRef::new(&by.provider, &by.key_id)?;
        let copy = WrappedCopy {
            subject,
            key: resolved,
            blob: wrapped.blob.clone(),
        };
        let mut keys = self.keys.unwrap_all(caller, vec![copy], &memory).await?;
        let cipher = VolumeKey::expand(keys.remove(0));
        let pins = verify_layer(&files.data, &files.meta, &cipher, found)
            .await
            .map_err(Error::volume(name))?;
        Ok((by, pins))
    }

    async fn record_adoption(
        &self,
        caller: Caller,
        new: &NewVolume,
        by: &WrappedBy,
        found: &FoundLayer,
    ) -> Result<(), Error> {
        let proof = if found.bound {
            "its MAC is good"
        } else {
            "it has no MAC and is empty"
        };
        let record = Record {
            volume: Some(new.id.to_string()),
            name: Some(new.name.to_string()),
            key: Some(new.key.to_string()),
            key_version: Some(by.key_version),
            context: context(new.id, new.data_key, new.sector_size),
            result: format!(
                "ok: layer {}, {} bytes, generation {}, {proof}",
                new.layer, new.size, found.generation
            ),
            ..Record::of(Operation::Adopt, caller)
        };
        let written = self.audit.append(record).await;
        written.map_err(|source| Error::Audit {
            path: self.audit.path().to_owned(),
            source,
        })
    }
}

/// The layer that a directory says it is, and where it lies.
fn layer_directory(path: &Path) -> Result<(LayerId, PathBuf), Error> {
    let refuse = |cause: String| not_adoptable(path, cause);
    if !path.is_absolute() {
        return Err(refuse("the path is not absolute".to_owned()));
    }
    let real = path
        .canonicalize()
        .map_err(|error| refuse(error.to_string()))?;
    let id = real.file_name().and_then(|name| name.to_str());
    let layer = id.and_then(|text| text.parse().ok());
    let parent = real.parent().filter(|parent| parent.to_str().is_some());
    match (layer, parent) {
        (Some(layer), Some(parent)) => Ok((layer, parent.to_owned())),
        _ => Err(refuse(
            "a layer's directory is called by the layer's id, in a place whose path is UTF-8"
                .to_owned(),
        )),
    }
}

/// The copy of the layer's data key that the named key wrapped.
fn wrapped_by<'a>(
    name: &VolumeName,
    key: &KeyRef,
    key_id: &str,
    path: &Path,
    found: &'a FoundLayer,
) -> Result<&'a WrappedKey, Error> {
    let mut copies = found
        .keys
        .iter()
        .filter(|copy| copy.data_key == found.data_key)
        .peekable();
    let Some(first) = copies.peek().copied() else {
        return Err(Error::NoWrappedKey(name.clone()));
    };
    let named = |copy: &&WrappedKey| copy.provider == key.provider() && copy.key_id == key_id;
    copies.find(named).ok_or_else(|| {
        let cause = format!(
            "it says that the key {}:{} wraps its data key, not {key} ({key_id})",
            first.provider, first.key_id
        );
        not_adoptable(path, cause)
    })
}

fn not_adoptable(path: &Path, cause: String) -> Error {
    Error::NotAdoptable {
        path: path.to_owned(),
        cause,
    }
}
