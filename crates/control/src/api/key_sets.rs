//! Messages about key sets: a name for a key that many volumes share, and go over to another one together.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{BadVolumeName, VolumeName};

/// The name of a key set, by the same rule as [`VolumeName`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeySetName(VolumeName);

/// A text that cannot be the name of a key set.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "`{0}` cannot be the name of a key set. Use 1 to 64 letters, digits, `.`, `_` or `-`, \
     beginning with a letter or digit"
)]
pub struct BadKeySetName(pub String);

impl KeySetName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl TryFrom<String> for KeySetName {
    type Error = BadKeySetName;

    fn try_from(text: String) -> Result<Self, BadKeySetName> {
        VolumeName::try_from(text)
            .map(Self)
            .map_err(|BadVolumeName(text)| BadKeySetName(text))
    }
}

impl FromStr for KeySetName {
    type Err = BadKeySetName;

    fn from_str(text: &str) -> Result<Self, BadKeySetName> {
        Self::try_from(text.to_owned())
    }
}

impl From<KeySetName> for String {
    fn from(name: KeySetName) -> Self {
        name.0.into()
    }
}

impl fmt::Display for KeySetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// When the members of a set are wrapped anew although the set names the same key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RewrapWhen {
    /// When that key has a newer version.
    OnRotate,
    /// Not at all.
    #[default]
    Never,
}

impl fmt::Display for RewrapWhen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::OnRotate => "on-rotate",
            Self::Never => "never",
        })
    }
}

/// Ask for a new key set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateKeySet {
    /// Its name, free until now.
    pub name: KeySetName,
    /// `PROVIDER:KEY` that wraps the data keys of its members.
    pub key: String,
    /// See [`RewrapWhen`].
    #[serde(default)]
    pub rewrap: RewrapWhen,
}

/// Ask to change a key set. With another key a [`super::Job`] of kind [`super::JobKind::Rewrap`] begins for each member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateKeySet {
    /// `PROVIDER:KEY` that is to wrap them, of the same provider as that of the members; as it is if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// See [`RewrapWhen`]; as it is if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewrap: Option<RewrapWhen>,
}

/// A key set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySet {
    /// Its name.
    pub name: KeySetName,
    /// `PROVIDER:KEY` that wraps the data keys of its members, or is about to.
    pub key: String,
    /// See [`RewrapWhen`].
    pub rewrap: RewrapWhen,
    /// When it was made.
    pub created: String,
    /// The volumes in it, by name.
    pub members: Vec<KeySetMember>,
}

/// A volume in a key set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySetMember {
    /// Its name.
    pub volume: VolumeName,
    /// `PROVIDER:KEY` that wraps its data keys now.
    pub key: String,
    /// The lowest version of that key that wraps one of them.
    pub key_version: u32,
    /// The job that works on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<u64>,
}

/// All key sets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySetList {
    /// Sorted by name.
    pub key_sets: Vec<KeySet>,
}
