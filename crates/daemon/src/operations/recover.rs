//! What a start does about what the last run left unfinished: half-made volumes are undone, half-deleted ones finished. What was
//! attached is attached again in `attach_again.rs`.
//!
//! What no registry row names is never touched: it may be all that is left of a lost registry.

use sealvol_control::key_ref::KeyRef;
use sealvol_control::keychild::{Origin, Service};
use sealvol_store::StoreError;
use sealvol_volume::{VolumeError, destroy_keys};

use crate::control::reply;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::place::Place;
use crate::registry::{RowState, VolumeRow};
use crate::working_state::WorkingState;

impl Daemon {
    /// Undoes half-made and finishes half-deleted volumes.
    ///
    /// # Errors
    /// When the registry cannot be read. A volume whose files cannot be removed now is left for the
    /// next start.
    pub(crate) async fn clean_up(&self) -> Result<(), Error> {
        for row in self.registry.call(|registry| registry.volumes()).await? {
            if row.state == RowState::Available {
                continue;
            }
            if let Err(error) = self.clean_up_one(&row).await {
                tracing::warn!(volume = %row.name, %error, "cannot be cleaned up now");
                let message = format!("{error}. It is tried again at the next start");
                self.failures.set(row.name.as_str(), message);
            }
        }
        self.remove_layers_of_nobody().await?;
        let ended = "the daemon ended while it was attached";
        for name in self.discard_all_ephemeral(ended).await? {
            let message = format!(
                "{ended}, and its key with it: what it held is gone. Attach it, it is empty"
            );
            self.failures.set(name.as_str(), message);
        }
        self.remove_unused_layers().await
    }

    /// Removes what is left of layers that were made for a cut which never came to pass.
    async fn remove_unused_layers(&self) -> Result<(), Error> {
        let found = self.registry.call(|registry| registry.new_layers()).await?;
        let mut gone = Vec::new();
        for (layer, backing) in found {
            let place = Place::of(&backing, layer, &self.state.layers());
            match self.remove_with_keys(&place).await {
                Ok(()) => gone.push(layer),
                Err(error) => {
                    tracing::warn!(%layer, %error, "files of a layer that was not used stay")
                }
            }
        }
        self.registry
            .call(move |registry| registry.forget_new_layers(&gone))
            .await?;
        Ok(())
    }

    /// Destroys the wrapped keys in a layer's superblock, those of its whole stack, and then its files. What is gone already is no error.
    pub(super) async fn remove_with_keys(&self, place: &Place) -> Result<(), VolumeError> {
        let destroyed = match place.directory() {
            Ok(directory) => destroy_keys(&directory).await,
            Err(error) => Err(error.into()),
        };
        match destroyed {
            Ok(()) | Err(VolumeError::Store(StoreError::NotFound { .. })) => {}
            Err(error) => return Err(error),
        }
        Ok(place.remove().await?)
    }

    async fn clean_up_one(&self, row: &VolumeRow) -> Result<(), Error> {
        let layers = self.layers_of_none_but(row).await?;
        self.remove_volume(row, layers).await?;
        // A temporary volume was in use when the daemon died. What is not there need not go.
        let _ = WorkingState::new(&self.working_dir, row.top, self.boot).end();
        tracing::info!(volume = %row.name, state = ?row.state, "cleaned up after an interruption");
        Ok(())
    }

    /// Makes the key `default` of each embedded key service that has no database yet.
    pub(crate) async fn make_first_keys(&self) {
        for provider in self.keys.providers() {
            let Service::Local(local) = &provider.service else {
                continue;
            };
            if !local.create || local.database.exists() {
                continue;
            }
            match self.make_first_key(&provider.name).await {
                Ok(key) => tracing::info!(%key, "made the first key of the embedded key service"),
                Err(error) => {
                    tracing::error!(provider = provider.name, %error, "no first key");
                    self.failures.set(&provider.name, reply::in_words(&error));
                }
            }
        }
    }

    async fn make_first_key(&self, provider: &str) -> Result<KeyRef, Error> {
        let key = KeyRef::new(provider, FIRST_KEY)?;
        self.check_key_database(&key).await?;
        self.keys
            .create(Self::itself(), &key, Origin::Local)
            .await?;
        Ok(key)
    }

    /// Refuses to have a key made where that would begin a new database in place of a lost one.
    pub(crate) async fn check_key_database(&self, key: &KeyRef) -> Result<(), Error> {
        let Some(path) = self.keys.missing_database(key.provider()) else {
            return Ok(());
        };
        let rows = self.registry.call(|registry| registry.volumes()).await?;
        match rows
            .into_iter()
            .find(|row| row.key.provider() == key.provider())
        {
            Some(row) => Err(Error::KeyDatabaseLost {
                path,
                volume: row.name,
            }),
            None => Ok(()),
        }
    }
}

/// The key that is there without being asked for.
const FIRST_KEY: &str = "default";
