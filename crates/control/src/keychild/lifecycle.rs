//! The life of a key: its states, what changes them, and what a provider's table of keys is known by.

use serde::{Deserialize, Serialize};

use super::import::Origin;
use super::message::{KeyDescription, base64_text};

/// Whether a key can be used, in the words of AWS KMS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyState {
    /// Refuses every use until it is enabled again.
    Disabled,
    /// Wraps and unwraps.
    Enabled,
    /// Refuses every use; is destroyed when its waiting period is over, unless that is cancelled.
    PendingDeletion,
    /// Has no material, or none that has not expired: refuses every use until it is imported.
    PendingImport,
}

impl KeyState {
    /// Every state.
    pub const ALL: [Self; 4] = [
        Self::Enabled,
        Self::Disabled,
        Self::PendingDeletion,
        Self::PendingImport,
    ];

    /// The state in one word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Enabled => "enabled",
            Self::PendingDeletion => "pending-deletion",
            Self::PendingImport => "pending-import",
        }
    }
}

/// Days that a key waits for its destruction: the least, the most, and what holds if nothing is said.
pub const DELETION_WINDOW: std::ops::RangeInclusive<u32> = 7..=30;

/// Days between two automatic rotations.
pub const ROTATION_PERIOD: std::ops::RangeInclusive<u32> = 90..=2560;

/// How often a key can be rotated on demand.
pub const ROTATIONS_ON_DEMAND_MAX: usize = 25;

/// What a provider with a life of keys tells of one, beside its versions. Times are seconds since 1970 (UTC).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lifecycle {
    /// Days between two automatic rotations; none: it is not rotated by itself.
    pub rotation_days: Option<u32>,
    /// When it is to be rotated next.
    pub next_rotation: Option<u64>,
    /// When it is to be destroyed, if it is pending deletion: not before, and not before the host has run as long.
    pub deletion: Option<u64>,
    /// Where its material comes from.
    #[serde(default)]
    pub origin: Origin,
    /// When its imported material expires.
    #[serde(default)]
    pub material_expires: Option<u64>,
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum KeyChange {
    /// Take back [`Self::ScheduleDeletion`]: the key is disabled then.
    CancelDeletion,
    /// Destroy its imported material now: the key is pending import until the same material is imported again.
    DeleteMaterial,
    /// Destroy the key: refused unless it is pending deletion and its waiting period is over.
    Destroy,
    /// Refuse every use until it is enabled.
    Disable,
    /// Allow its use again.
    Enable,
    /// Give it a new version now; the versions before it go on to unwrap what they wrapped.
    Rotate,
    /// Refuse every use, and destroy it when the waiting period is over.
    ScheduleDeletion {
        /// Days to wait: within [`DELETION_WINDOW`].
        days: u32,
    },
    /// Rotate it every so many days from now on, or not any more.
    SetRotation {
        /// Within [`ROTATION_PERIOD`]; none: not any more.
        days: Option<u32>,
    },
}

impl KeyChange {
    /// The change in one word, as messages have it.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::CancelDeletion => "CancelKeyDeletion",
            Self::DeleteMaterial => "DeleteImportedKeyMaterial",
            Self::Destroy => "DestroyKey",
            Self::Disable => "DisableKey",
            Self::Enable => "EnableKey",
            Self::Rotate => "RotateKeyOnDemand",
            Self::ScheduleDeletion { .. } => "ScheduleKeyDeletion",
            Self::SetRotation { days: Some(_) } => "EnableKeyRotation",
            Self::SetRotation { days: None } => "DisableKeyRotation",
        }
    }
}

/// Most aliases of one key.
pub const ALIASES_MAX: usize = 50;

/// What every name of an alias begins with.
pub const ALIAS_PREFIX: &str = "alias/";

/// A change of one alias: a second name of a key, which may come to mean another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum AliasChange {
    /// Make it.
    Create {
        /// Name or id of the key that it is to mean.
        key: String,
    },
    /// Take it away; its key stays as it is.
    Delete,
    /// Have it mean another key.
    Update {
        /// Name or id of that key.
        key: String,
    },
}

impl AliasChange {
    /// The change in one word, as messages have it.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Create { .. } => "CreateAlias",
            Self::Delete => "DeleteAlias",
            Self::Update { .. } => "UpdateAlias",
        }
    }
}

/// An alias that was changed, and the keys it is about, by their ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AliasChanged {
    /// What it means now; none: it is gone.
    pub key_id: Option<String>,
    /// What it meant before.
    pub former: Option<String>,
}

/// What was due: answered to a `Tend`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tended {
    /// Keys whose imported material has expired and is destroyed, as they are now.
    #[serde(default)]
    pub expired: Vec<KeyDescription>,
    /// Keys that were rotated, as they are now.
    pub rotated: Vec<KeyDescription>,
    /// Keys whose waiting period is over: to be destroyed by [`KeyChange::Destroy`], once that is on record.
    pub due: Vec<KeyDescription>,
}

/// What a provider's table of keys is known by: the daemon keeps the newest that it has seen, and the provider refuses to go on
/// from an older one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableState {
    /// Id of the database.
    pub database: String,
    /// Counts its changes.
    pub version: u64,
    /// What authenticates it.
    #[serde(with = "base64_text")]
    pub mac: Vec<u8>,
}
