//! Messages about key-encryption keys.

use serde::{Deserialize, Serialize};

use super::VolumeName;
use crate::keychild::{KeyChange, Origin};

/// Ask for a new key-encryption key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateKey {
    /// `PROVIDER:KEY`, free until now.
    pub key: String,
    /// Where its material comes from.
    #[serde(default)]
    pub origin: Origin,
}

/// Ask to change a key-encryption key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeKey {
    /// How. A destruction can't be asked for: the daemon sees to it when the waiting period is over.
    pub change: KeyChange,
    /// Schedule a deletion although volumes need the key.
    #[serde(default)]
    pub even_if_used: bool,
}

/// A key-encryption key, described by its provider.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// `PROVIDER:KEY`.
    pub key: String,
    /// The provider's own identifier.
    pub key_id: String,
    /// Its present version.
    pub version: u32,
    /// `enabled`, `disabled`, `pending-deletion` or `pending-import`.
    pub state: String,
    /// When it was made; empty if its key service does not tell.
    #[serde(default)]
    pub created: String,
    /// All its versions, the oldest first.
    #[serde(default)]
    pub versions: Vec<KeyVersion>,
    /// Whether its key service makes new data keys wrapped, so that their plaintext is nowhere else; `false`: the daemon's key
    /// child makes them, in locked memory, and has them wrapped.
    #[serde(default)]
    pub creates_without_plaintext: bool,
    /// `external` if its material is imported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// When its imported material expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub material_expires: Option<String>,
    /// Days between two automatic rotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation_days: Option<u32>,
    /// When it is rotated next by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_rotation: Option<String>,
    /// When its waiting period is over by the calendar; the host has to have run as long, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion: Option<String>,
    /// Its aliases, as `PROVIDER:ALIAS`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// The volumes whose data keys it wraps; only told where one key is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volumes: Option<Vec<VolumeName>>,
}

/// A version of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyVersion {
    /// Its number, from 1.
    pub version: u32,
    /// When it was made.
    pub created: String,
}

/// The keys of one provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyList {
    /// Sorted by reference.
    pub keys: Vec<Key>,
}

/// Ask for another policy of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetKeyPolicy {
    /// The policy, as [`crate::keychild::Policy`] has it, as text; none: the daemon's rights decide alone.
    pub policy: Option<String>,
    /// Also if the caller could not set another one after it.
    #[serde(default)]
    pub bypass_lockout_check: bool,
}

/// The policy of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPolicy {
    /// `PROVIDER:KEY`.
    pub key: String,
    /// The policy; none: the daemon's rights decide alone.
    pub policy: Option<serde_json::Value>,
}

/// Ask for a new alias.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateAlias {
    /// `PROVIDER:alias/NAME`, free until now.
    pub alias: String,
    /// The key that it is to mean: `PROVIDER:KEY` of the same provider.
    pub key: String,
}

/// Ask to have an alias mean another key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateAlias {
    /// `PROVIDER:KEY` of the same provider.
    pub key: String,
}

/// A second name of a key, which may come to mean another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    /// `PROVIDER:alias/NAME`.
    pub alias: String,
    /// The key that it means, or meant if it is deleted, as `PROVIDER:KEY`.
    pub key: String,
    /// The provider's own identifier of that key.
    pub key_id: String,
    /// The key that it meant before it was changed, by that identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former: Option<String>,
}

/// The aliases of one provider, or of all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AliasList {
    /// Sorted by name.
    pub aliases: Vec<Alias>,
}

/// A provider's table of keys, as it is relied on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyTable {
    /// The provider.
    pub provider: String,
    /// UUID of its database.
    pub database: String,
    /// How often it was changed; older states are refused.
    pub changes: u64,
}
