//! `key alias create`, `list`, `update` and `delete`.

use sealvol_control::api;
use sealvol_control::key_ref::KeyRef;
use sealvol_control::keychild::AliasChange;

use crate::daemon::Daemon;
use crate::error::Error;
use crate::rights::Caller;

impl Daemon {
    pub(crate) async fn create_alias(
        &self,
        caller: Caller,
        request: api::CreateAlias,
    ) -> Result<api::Alias, Error> {
        let alias: KeyRef = request.alias.parse()?;
        let key = key_of_same_provider(&alias, &request.key)?;
        self.change_alias(caller, alias, AliasChange::Create { key })
            .await
    }

    pub(crate) async fn update_alias(
        &self,
        caller: Caller,
        alias: &str,
        request: api::UpdateAlias,
    ) -> Result<api::Alias, Error> {
        let alias: KeyRef = alias.parse()?;
        let key = key_of_same_provider(&alias, &request.key)?;
        self.change_alias(caller, alias, AliasChange::Update { key })
            .await
    }

    pub(crate) async fn delete_alias(
        &self,
        caller: Caller,
        alias: &str,
    ) -> Result<api::Alias, Error> {
        self.change_alias(caller, alias.parse()?, AliasChange::Delete)
            .await
    }

    pub(crate) async fn list_aliases(
        &self,
        provider: Option<&str>,
    ) -> Result<api::AliasList, Error> {
        let keys = self.list_keys(provider).await?.keys;
        let of_key = |key: api::Key| {
            let (name, id) = (key.key, key.key_id);
            key.aliases.into_iter().map(move |alias| api::Alias {
                alias,
                key: name.clone(),
                key_id: id.clone(),
                former: None,
            })
        };
        let mut aliases: Vec<_> = keys.into_iter().flat_map(of_key).collect();
        aliases.sort_by(|a, b| a.alias.cmp(&b.alias));
        Ok(api::AliasList { aliases })
    }

    /// Puts the key in the place of an alias, if one is named for a volume: it is asked once what it means.
    pub(super) async fn resolve_asked(&self, key: &mut Option<String>) -> Result<(), Error> {
        if let Some(asked) = key {
            *asked = self.keys.resolve(asked.parse()?).await?.to_string();
        }
        Ok(())
    }

    async fn change_alias(
        &self,
        caller: Caller,
        alias: KeyRef,
        change: AliasChange,
    ) -> Result<api::Alias, Error> {
        let word = change.as_str();
        let changed = self.keys.change_alias(caller, &alias, change).await?;
        let (means, former) = (changed.key_id, changed.former);
        tracing::info!(%alias, change = word, key_id = means, "alias changed");
        let key_id = means.clone().or_else(|| former.clone()).unwrap_or_default();
        let key = KeyRef::new(alias.provider(), &key_id)?;
        let name = self.keys.describe(&key).await?.name;
        Ok(api::Alias {
            alias: alias.to_string(),
            key: format!("{}:{name}", alias.provider()),
            key_id,
            former: former.filter(|_| means.is_some()),
        })
    }
}

/// The key that an alias is to mean, in its provider's words.
fn key_of_same_provider(alias: &KeyRef, key: &str) -> Result<String, Error> {
    let key: KeyRef = key.parse()?;
    if key.provider() == alias.provider() {
        return Ok(key.key().to_owned());
    }
    let cause = format!(
        "{alias} means a key of {} only, not {key}",
        alias.provider()
    );
    Err(Error::BadRequest(cause))
}
