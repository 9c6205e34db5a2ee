//! What becomes of keys themselves in AWS KMS: told, listed, made and changed, by the `create` credential.

use std::collections::BTreeMap;

use aws_sdk_kms::primitives::DateTime;
use aws_sdk_kms::types::{
    KeyManagerType, KeyMetadata, KeySpec, KeyState as State, KeyUsageType, OriginType,
};
use sealvol_control::keychild::{
    FailureClass, KeyChange, KeyDescription, KeyState, KeyVersion, Lifecycle, Origin,
};

use super::{AwsKms, VERSION};
use crate::Refusal;
use crate::role::Role;

/// Days between two rotations if nobody said. [AWS KMS API reference, EnableKeyRotation]
const USUAL_PERIOD: i32 = 365;

/// Days that a key waits which was made for nothing.
const LEAST_WINDOW: i32 = 7;

impl AwsKms {
    pub(super) async fn change(
        &self,
        key: &str,
        change: &KeyChange,
    ) -> Result<KeyDescription, Refusal> {
        let client = self.client(Role::Create).await?;
        let id = self.resolved(key).await?;
        let days = |days: u32| i32::try_from(days).ok();
        /// Each call has a type of its own.
        macro_rules! ask {
            ($asked:expr) => {
                $asked
                    .key_id(&id)
                    .send()
                    .await
                    .map(drop)
                    .map_err(|error| self.refused(key, error))
            };
        }
        match change {
            // The service does it by itself when the waiting period is over.
            KeyChange::Destroy => Err(Refusal::Unsupported {
                call: change.as_str(),
            }),
            KeyChange::CancelDeletion => ask!(client.cancel_key_deletion()),
            KeyChange::DeleteMaterial => ask!(client.delete_imported_key_material()),
            KeyChange::Disable => ask!(client.disable_key()),
            KeyChange::Enable => ask!(client.enable_key()),
            KeyChange::Rotate => ask!(client.rotate_key_on_demand()),
            KeyChange::ScheduleDeletion { days: window } => ask!(
                client
                    .schedule_key_deletion()
                    .set_pending_window_in_days(days(*window))
            ),
            KeyChange::SetRotation { days: Some(period) } => ask!(
                client
                    .enable_key_rotation()
                    .set_rotation_period_in_days(days(*period))
            ),
            KeyChange::SetRotation { days: None } => ask!(client.disable_key_rotation()),
        }?;
        self.tell(&id).await
    }

    pub(super) async fn make(&self, name: &str) -> Result<KeyDescription, Refusal> {
        let alias = self.named(name)?;
        if !alias.starts_with("alias/") {
            return Err(Refusal::BadKeyName {
                name: name.to_owned(),
                reason: "a new key gets an alias; AWS KMS chooses its id",
            });
        }
        match self.metadata(&alias).await {
            Ok(_) => {
                return Err(Refusal::KeyExists {
                    key: self.reference(&alias),
                });
            }
            Err(Refusal::Remote(remote)) if remote.class == FailureClass::GoneForEver => {}
            Err(other) => return Err(other),
        }
        let client = self.client(Role::Create).await?;
        let made = client
            .create_key()
            .description("sealvol")
            .key_spec(KeySpec::SymmetricDefault)
            .key_usage(KeyUsageType::EncryptDecrypt)
            .send()
            .await;
        let made = made.map_err(|error| self.refused(&alias, error))?;
        let id = made.key_metadata.map(|key| key.key_id);
        let id = id.ok_or_else(|| self.nonsense("an answer that describes no key"))?;
        let asked = client.create_alias().alias_name(&alias).target_key_id(&id);
        if let Err(error) = asked.send().await {
            // A key that nobody knows by a name was made for nothing. That it stays where this fails, too, costs a few cents.
            let asked = client.schedule_key_deletion().key_id(&id);
            let _ = asked.pending_window_in_days(LEAST_WINDOW).send().await;
            return Err(self.refused(&alias, error));
        }
        self.tell(&alias).await
    }

    pub(super) async fn tell(&self, key: &str) -> Result<KeyDescription, Refusal> {
        let asked = self.named(key)?;
        let found = self.metadata(&asked).await?;
        let aliases = match self.aliases(Some(&found.key_id)).await {
            Ok(mut aliases) => aliases.remove(&found.key_id),
            // A credential that may not ask for aliases knows the key as it was called.
            Err(Refusal::Remote(remote)) if remote.class == FailureClass::NotPermitted => asked
                .strip_prefix("alias/")
                .map(|name| vec![name.to_owned()]),
            Err(other) => return Err(other),
        };
        self.described(found, aliases.unwrap_or_default()).await
    }

    pub(super) async fn tell_all(&self) -> Result<Vec<KeyDescription>, Refusal> {
        let client = self.client(Role::Create).await?;
        let mut aliases = self.aliases(None).await?;
        let (mut keys, mut next) = (Vec::new(), None);
        loop {
            let page = client.list_keys().set_marker(next).send().await;
            let page = page.map_err(|error| self.refused("*", error))?;
            for key in page.keys.unwrap_or_default() {
                let Some(id) = key.key_id else { continue };
                match self.metadata(&id).await {
                    Ok(key) if wraps(&key) => {
                        let of_key = aliases.remove(&id).unwrap_or_default();
                        keys.push(self.described(key, of_key).await?);
                    }
                    Ok(_) => {}
                    // The account has keys of others, too.
                    Err(Refusal::Remote(remote)) if remote.class == FailureClass::NotPermitted => {}
                    Err(other) => return Err(other),
                }
            }
            next = page.next_marker.filter(|_| page.truncated);
            if next.is_none() {
                break;
            }
        }
        keys.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(keys)
    }

    async fn metadata(&self, key: &str) -> Result<KeyMetadata, Refusal> {
        let client = self.client(Role::Create).await?;
        let asked = client.describe_key().key_id(key).send().await;
        let described = asked.map_err(|error| self.refused(key, error))?;
        let metadata = described.key_metadata;
        metadata.ok_or_else(|| self.nonsense("an answer that describes no key"))
    }

    /// A key by its id: what changes keys takes no alias, and no key of another account.
    async fn resolved(&self, key: &str) -> Result<String, Refusal> {
        let asked = self.named(key)?;
        Ok(self.metadata(&asked).await?.key_id)
    }

    /// By key id: the aliases that mean it, sorted. Of one key, or of all.
    async fn aliases(&self, of: Option<&str>) -> Result<BTreeMap<String, Vec<String>>, Refusal> {
        let client = self.client(Role::Create).await?;
        let mut aliases = BTreeMap::new();
        let mut next = None;
        loop {
            let asked = client
                .list_aliases()
                .set_key_id(of.map(str::to_owned))
                .set_marker(next);
            let page = asked.send().await;
            let page = page.map_err(|error| self.refused(of.unwrap_or("*"), error))?;
            for alias in page.aliases.unwrap_or_default() {
                let (Some(name), Some(key)) = (alias.alias_name, alias.target_key_id) else {
                    continue;
                };
                let Some(name) = name
                    .strip_prefix("alias/")
                    .filter(|name| !name.starts_with("aws/"))
                else {
                    continue;
                };
                let of_key: &mut Vec<String> = aliases.entry(key).or_default();
                of_key.push(name.to_owned());
                of_key.sort();
            }
            next = page.next_marker.filter(|_| page.truncated);
            if next.is_none() {
                return Ok(aliases);
            }
        }
    }

    /// When it is rotated by itself. What the credential may not ask is not told.
    async fn rotation(&self, key: &KeyMetadata) -> Result<Lifecycle, Refusal> {
        let mut told = Lifecycle {
            deletion: key.deletion_date.as_ref().and_then(seconds),
            material_expires: key.valid_to.as_ref().and_then(seconds),
            origin: match key.origin {
                Some(OriginType::External) => Origin::External,
                _ => Origin::default(),
            },
            ..Lifecycle::default()
        };
        if key.key_state != Some(State::Enabled) {
            return Ok(told);
        }
        let client = self.client(Role::Create).await?;
        let asked = client.get_key_rotation_status().key_id(&key.key_id);
        match asked.send().await {
            Ok(status) if status.key_rotation_enabled => {
                let days = status.rotation_period_in_days.unwrap_or(USUAL_PERIOD);
                told.rotation_days = days.try_into().ok();
                told.next_rotation = status.next_rotation_date.as_ref().and_then(seconds);
                Ok(told)
            }
            Ok(_) => Ok(told),
            Err(error) => match self.refused(&key.key_id, error) {
                Refusal::Remote(remote) if remote.class != FailureClass::Transient => Ok(told),
                away => Err(away),
            },
        }
    }

    async fn described(
        &self,
        key: KeyMetadata,
        aliases: Vec<String>,
    ) -> Result<KeyDescription, Refusal> {
        let created = key.creation_date.as_ref().and_then(seconds);
        let created = created.unwrap_or_default();
        let lifecycle = self.rotation(&key).await?;
        let algorithm = key.key_spec.as_ref().map_or("", KeySpec::as_str).to_owned();
        Ok(KeyDescription {
            name: aliases.first().unwrap_or(&key.key_id).clone(),
            state: state(key.key_state.as_ref()),
            key_id: self.answered(&key.key_id, key.arn)?,
            created,
            versions: vec![KeyVersion {
                version: VERSION,
                created,
            }],
            algorithm,
            lifecycle,
            creates_without_plaintext: true,
            aliases,
        })
    }
}

/// Whether a key can wrap, and is a customer's.
fn wraps(key: &KeyMetadata) -> bool {
    key.key_spec == Some(KeySpec::SymmetricDefault)
        && key.key_usage == Some(KeyUsageType::EncryptDecrypt)
        && key.key_manager != Some(KeyManagerType::Aws)
}

/// A key that is being made, or whose key store is away, can't be used just as a disabled one can't.
fn state(state: Option<&State>) -> KeyState {
    match state {
        Some(State::Enabled | State::Updating) => KeyState::Enabled,
        Some(State::PendingDeletion | State::PendingReplicaDeletion) => KeyState::PendingDeletion,
        Some(State::PendingImport) => KeyState::PendingImport,
        _ => KeyState::Disabled,
    }
}

fn seconds(time: &DateTime) -> Option<u64> {
    time.secs().try_into().ok()
}
