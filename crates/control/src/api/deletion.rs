//! Messages about the end of a volume, and about what a shred proves.

use serde::{Deserialize, Serialize};

use super::VolumeName;

/// Ask to delete a volume that is not attached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteVolume {
    /// Overwrite the wrapped keys first, so that what remains of the ciphertext on the medium
    /// cannot be read with the key-encryption key either; and have the key service refuse every other
    /// copy of them, if it can.
    #[serde(default)]
    pub shred: bool,
    /// Delete nothing, unless every copy of the wrapped keys is refused for ever; with `shred` only.
    #[serde(default)]
    pub require_proof: bool,
    /// Delete its snapshots with it.
    #[serde(default)]
    pub snapshots: bool,
}

/// What became of a [`DeleteVolume`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// The volume that is gone.
    pub name: VolumeName,
    /// Its wrapped keys were overwritten.
    pub shredded: bool,
    /// Layers that other volumes stand on, and that stay.
    pub layers_kept: usize,
    /// Present if it was shredded: what holds of copies that are elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<ShredProof>,
}

/// What a shred proves of copies of a volume's files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShredProof {
    /// No key service opens a copy of the volume's wrapped keys any more, wherever it is.
    pub complete: bool,
    /// Where that is written.
    pub tombstones: Vec<VolumeTombstone>,
    /// What else opens copies, and the one thing that ends it.
    pub ends: Vec<OnlyEnd>,
    /// Layers that were made for the volume and that other volumes stand on: they go on to open what is in them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub layers_left: usize,
}

/// A key service that refuses a volume for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeTombstone {
    /// Its provider.
    pub provider: String,
    /// UUID of its database.
    pub database: String,
    /// The number of the change since which, at the latest, the database says so.
    pub changes: u64,
}

/// A key that opens copies of wrapped keys for as long as it is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnlyEnd {
    /// The key, as `PROVIDER:ID`.
    pub key: String,
    /// Why no tombstone does.
    pub cause: String,
    /// The one thing that ends it.
    pub end: String,
    /// The command that does it, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes it so")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}
