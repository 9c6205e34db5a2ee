//! `key create`, `key list`, `key show`.

use sealvol_control::api;
use sealvol_control::key_ref::KeyRef;
use sealvol_control::keychild::{KeyDescription, KeyState};

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
        let description = self.keys.create(caller, &key).await?;
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
        Ok(described(key.provider(), &description))
    }
}

fn described(provider: &str, description: &KeyDescription) -> api::Key {
    api::Key {
        key: format!("{provider}:{}", description.name),
        key_id: description.key_id.clone(),
        version: description
            .versions
            .last()
            .map_or(0, |version| version.version),
        state: match description.state {
            KeyState::Enabled => "enabled",
            KeyState::Disabled => "disabled",
        }
        .to_owned(),
    }
}
