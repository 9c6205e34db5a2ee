//! Calls about key-encryption keys: the keys, their aliases, import and policies, key sets.

use std::os::fd::BorrowedFd;

use hyper::Method;

use super::{Client, ClientError, NoFields, escaped};
use crate::api::{self, KeySetName};

impl Client {
    /// The keys of a provider, or of all.
    pub async fn keys(&self, provider: Option<&str>) -> Result<api::KeyList, ClientError> {
        let query = provider.map(|name| format!("?provider={}", escaped(name)));
        self.get(&format!("{}{}", api::KEYS, query.unwrap_or_default()))
            .await
    }

    /// One key.
    pub async fn key(&self, key: &str) -> Result<api::Key, ClientError> {
        self.get(&format!("{}/{}", api::KEYS, escaped(key))).await
    }

    /// A new key-encryption key.
    pub async fn create_key(&self, request: &api::CreateKey) -> Result<api::Key, ClientError> {
        self.send(Method::POST, api::KEYS, request).await
    }

    /// Another state, version or rotation of a key.
    pub async fn change_key(
        &self,
        key: &str,
        request: &api::ChangeKey,
    ) -> Result<api::Key, ClientError> {
        let path = format!("{}/{}/change", api::KEYS, escaped(key));
        self.send(Method::POST, &path, request).await
    }

    /// A public key to encrypt key material to, and a token.
    pub async fn import_parameters(
        &self,
        key: &str,
        request: &api::GetImportParameters,
    ) -> Result<api::ImportParameters, ClientError> {
        let path = format!("{}/{}/import-parameters", api::KEYS, escaped(key));
        self.send(Method::POST, &path, request).await
    }

    /// Encrypted key material for a key.
    pub async fn import_key_material(
        &self,
        key: &str,
        request: &api::ImportMaterial,
    ) -> Result<api::Key, ClientError> {
        let path = format!("{}/{}/import", api::KEYS, escaped(key));
        self.send(Method::POST, &path, request).await
    }

    /// The policy of a key.
    pub async fn key_policy(&self, key: &str) -> Result<api::KeyPolicy, ClientError> {
        self.get(&format!("{}/{}/policy", api::KEYS, escaped(key)))
            .await
    }

    /// Another policy for a key, or none.
    pub async fn set_key_policy(
        &self,
        key: &str,
        request: &api::SetKeyPolicy,
    ) -> Result<api::KeyPolicy, ClientError> {
        let path = format!("{}/{}/policy", api::KEYS, escaped(key));
        self.send(Method::POST, &path, request).await
    }

    /// Goes on from a provider's table of keys that is older than the one relied on.
    pub async fn accept_key_table(&self, provider: &str) -> Result<api::KeyTable, ClientError> {
        let path = format!("{}/{}/accept-table", api::KEYS, escaped(provider));
        self.send(Method::POST, &path, &NoFields {}).await
    }

    /// Has a provider's keys and master key written to `to`, a regular file, encrypted to a recovery key.
    pub async fn back_up_keys(
        &self,
        provider: &str,
        request: &api::BackUpKeys,
        to: BorrowedFd<'_>,
    ) -> Result<api::KeyBackup, ClientError> {
        let path = format!("{}/{}/backup", api::KEYS, escaped(provider));
        self.send_with_descriptor(&path, request, to).await
    }

    /// The key sets.
    pub async fn key_sets(&self) -> Result<api::KeySetList, ClientError> {
        self.get(api::KEY_SETS).await
    }

    /// One key set.
    pub async fn key_set(&self, name: &KeySetName) -> Result<api::KeySet, ClientError> {
        self.get(&format!("{}/{name}", api::KEY_SETS)).await
    }

    /// A new key set.
    pub async fn create_key_set(
        &self,
        request: &api::CreateKeySet,
    ) -> Result<api::KeySet, ClientError> {
        self.send(Method::POST, api::KEY_SETS, request).await
    }

    /// Another key for a key set, or another time to wrap anew.
    pub async fn update_key_set(
        &self,
        name: &KeySetName,
        request: &api::UpdateKeySet,
    ) -> Result<api::KeySet, ClientError> {
        let path = format!("{}/{name}/update", api::KEY_SETS);
        self.send(Method::POST, &path, request).await
    }

    /// Deletes a key set without members.
    pub async fn delete_key_set(&self, name: &KeySetName) -> Result<api::KeySet, ClientError> {
        let path = format!("{}/{name}", api::KEY_SETS);
        self.send(Method::DELETE, &path, &NoFields {}).await
    }

    /// The aliases of a provider's keys, or of all.
    pub async fn aliases(&self, provider: Option<&str>) -> Result<api::AliasList, ClientError> {
        let query = provider.map(|name| format!("?provider={}", escaped(name)));
        self.get(&format!("{}{}", api::ALIASES, query.unwrap_or_default()))
            .await
    }

    /// A new alias.
    pub async fn create_alias(
        &self,
        request: &api::CreateAlias,
    ) -> Result<api::Alias, ClientError> {
        self.send(Method::POST, api::ALIASES, request).await
    }

    /// Another key for an alias.
    pub async fn update_alias(
        &self,
        alias: &str,
        request: &api::UpdateAlias,
    ) -> Result<api::Alias, ClientError> {
        let path = format!("{}/{}", api::ALIASES, escaped(alias));
        self.send(Method::POST, &path, request).await
    }

    /// Takes an alias away.
    pub async fn delete_alias(&self, alias: &str) -> Result<api::Alias, ClientError> {
        let path = format!("{}/{}", api::ALIASES, escaped(alias));
        self.send(Method::DELETE, &path, &NoFields {}).await
    }
}
