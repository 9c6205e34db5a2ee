//! `key create`, `key list`, `key show`, and the changes of a key.

use std::sync::Arc;
use std::time::Duration;

use sealvol_control::api;
use sealvol_control::key_ref::KeyRef;
use sealvol_control::keychild::{KeyChange, KeyDescription, Origin};
use sealvol_control::timestamp::rfc3339;
use tokio::time::{MissedTickBehavior, interval};

use crate::control::reply;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::rights::Caller;

impl Daemon {
    pub(crate) async fn create_key(
        &self,
        caller: Caller,
        request: api::CreateKey,
    ) -> Result<api::Key, Error> {
        let key: KeyRef = request.key.parse()?;
        self.check_key_database(&key).await?;
        let description = self.keys.create(caller, &key, request.origin).await?;
        tracing::info!(%key, key_id = description.key_id, "key created");
        Ok(described(key.provider(), &description))
    }

    pub(crate) async fn list_keys(&self, provider: Option<&str>) -> Result<api::KeyList, Error> {
        let providers: Vec<String> = match provider {
            Some(name) => vec![name.to_owned()],
            None => self
                .keys
                .providers()
                .map(|provider| provider.name.clone())
                .collect(),
        };
        let mut keys = Vec::new();
        for provider in providers {
            let listed = self.keys.list(&provider).await?;
            keys.extend(
                listed
                    .iter()
                    .map(|description| described(&provider, description)),
            );
        }
        keys.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(api::KeyList { keys })
    }

    pub(crate) async fn show_key(&self, key: &str) -> Result<api::Key, Error> {
        let key: KeyRef = key.parse()?;
        let description = self.keys.describe(&key).await?;
        self.shown(&key, &description).await
    }

    pub(crate) async fn change_key(
        self: &Arc<Self>,
        caller: Caller,
        key: &str,
        request: api::ChangeKey,
    ) -> Result<api::Key, Error> {
        let key: KeyRef = key.parse()?;
        match request.change {
            KeyChange::Destroy => {
                let cause = "a key is destroyed when its waiting period is over, by nobody's call";
                return Err(Error::BadRequest(cause.to_owned()));
            }
            KeyChange::ScheduleDeletion { .. } if !request.even_if_used => {
                let description = self.keys.describe(&key).await?;
                let volumes = self.volumes_of_key(&key, &description).await?;
                if !volumes.is_empty() {
                    return Err(Error::KeyInUse { key, volumes });
                }
            }
            _ => {}
        }
        let (change, rotates) = (
            request.change.as_str(),
            matches!(request.change, KeyChange::Rotate),
        );
        let description = self.keys.change(caller, &key, request.change).await?;
        tracing::info!(%key, change, state = description.state.as_str(), "key changed");
        if rotates {
            self.bring_up_all(Some(key.provider())).await;
        }
        self.shown(&key, &description).await
    }

    pub(crate) async fn accept_key_table(
        &self,
        caller: Caller,
        provider: &str,
    ) -> Result<api::KeyTable, Error> {
        let name = provider.to_owned();
        let buried = self
            .registry
            .call(move |registry| registry.buried(&name))
            .await?;
        let mut buried = buried.into_iter();
        let first = buried.next().unwrap_or_default();
        let mut table = self.keys.accept_table(caller, provider, first).await?;
        for tombstones in buried {
            table.version = self.keys.bury(caller, provider, tombstones).await?.changes;
        }
        tracing::warn!(provider, changes = table.version, "table of keys accepted");
        Ok(api::KeyTable {
            provider: provider.to_owned(),
            database: table.database,
            changes: table.version,
        })
    }

    /// With the volumes that need it.
    pub(super) async fn shown(
        &self,
        key: &KeyRef,
        description: &KeyDescription,
    ) -> Result<api::Key, Error> {
        let volumes = self.volumes_of_key(key, description).await?;
        Ok(api::Key {
            volumes: Some(volumes),
            ..described(key.provider(), description)
        })
    }

    async fn volumes_of_key(
        &self,
        key: &KeyRef,
        description: &KeyDescription,
    ) -> Result<Vec<api::VolumeName>, Error> {
        let (key, id) = (key.clone(), description.key_id.clone());
        let found = self
            .registry
            .call(move |registry| registry.volumes_of_key(&key, &id));
        Ok(found.await?)
    }

    /// Sees to what comes due, as long as the daemon runs: counts the time that it runs, has keys rotated, destroys those whose
    /// waiting period is over, and has the members of key sets follow.
    pub(crate) async fn tend_keys(self: Arc<Self>) {
        let mut ticks = interval(TEND);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let Ok(leave) = self.leave().await else {
                return;
            };
            let daemon = Arc::clone(&self);
            // A task of its own: what has begun is carried to its end, also when the daemon stops meanwhile.
            let tended = tokio::spawn(async move {
                daemon.tend_all().await;
                drop(leave);
            });
            if let Err(error) = tended.await {
                tracing::error!(%error, "looking after the keys broke off");
            }
        }
    }

    async fn tend_all(self: &Arc<Self>) {
        for provider in self.keys.to_tend() {
            // One that has no keys yet is no failure.
            if self.keys.missing_database(provider).is_some() {
                continue;
            }
            let subject = format!("keys of {provider}");
            match self.tend_provider(provider).await {
                Ok(()) => self.failures.clear(&subject),
                Err(error) => {
                    tracing::error!(provider, %error, "the keys could not be looked after");
                    let next = "It is tried again within the hour";
                    let message = format!("{}. {next}", reply::in_words(&error));
                    self.failures.set(&subject, message);
                }
            }
        }
        self.bring_up_all(None).await;
        self.anchor_audit_log().await;
    }

    async fn tend_provider(&self, provider: &str) -> Result<(), Error> {
        for due in self.keys.tend(Self::itself(), provider).await? {
            let key = KeyRef::new(provider, &due.key_id)?;
            self.keys
                .change(Self::itself(), &key, KeyChange::Destroy)
                .await?;
            tracing::warn!(%key, name = due.name, "destroyed: its waiting period is over");
        }
        Ok(())
    }
}

/// How often the running time is counted: what is lost of it at a restart.
const TEND: Duration = Duration::from_secs(3600);

/// Empty where the key service tells no time.
fn moment(seconds: u64) -> String {
    if seconds == 0 {
        String::new()
    } else {
        rfc3339(seconds)
    }
}

fn described(provider: &str, description: &KeyDescription) -> api::Key {
    let versions = description.versions.iter().map(|version| api::KeyVersion {
        version: version.version,
        created: moment(version.created),
    });
    let versions: Vec<_> = versions.collect();
    let lifecycle = &description.lifecycle;
    let alias = |name: &String| format!("{provider}:{name}");
    api::Key {
        key: format!("{provider}:{}", description.name),
        key_id: description.key_id.clone(),
        version: versions.last().map_or(0, |version| version.version),
        state: description.state.as_str().to_owned(),
        created: moment(description.created),
        versions,
        creates_without_plaintext: description.creates_without_plaintext,
        origin: Some(lifecycle.origin)
            .filter(|origin| *origin == Origin::External)
            .map(|origin| origin.as_str().to_owned()),
        material_expires: lifecycle.material_expires.map(rfc3339),
        rotation_days: lifecycle.rotation_days,
        next_rotation: lifecycle.next_rotation.map(rfc3339),
        deletion: lifecycle.deletion.map(rfc3339),
        aliases: description.aliases.iter().map(alias).collect(),
        volumes: None,
    }
}
