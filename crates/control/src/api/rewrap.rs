//! Messages about wrapping data keys anew.

use serde::{Deserialize, Serialize};

use super::{KeySetName, VolumeName};

/// Ask to wrap the data keys of a volume anew: the same keys, no block changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewrapVolume {
    /// `PROVIDER:KEY` that is to wrap them, by its newest version; if absent, that of its key set, or its present one. A volume
    /// that is given a key leaves its key set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The key set that it is to be in, whose key is to wrap them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_set: Option<KeySetName>,
}

/// What a [`RewrapVolume`] did, and what the former wrapping still opens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewrapped {
    /// The volume.
    pub name: VolumeName,
    /// `PROVIDER:KEY` that wraps its data keys now, as it was named.
    pub key: String,
    /// The key id that the provider resolved it to.
    pub key_id: String,
    /// Version of that key.
    pub key_version: u32,
    /// How many data keys: its own, and those of the layers that it stands on.
    pub data_keys: usize,
    /// What wrapped them before, as `PROVIDER:ID version N`.
    pub before: Vec<String>,
    /// UUIDs of sealed layers of the volume whose superblocks keep the former copies, since somebody reads them now.
    pub layers_left: Vec<String>,
    /// Other volumes that have copies of these data keys under what wrapped them before.
    pub volumes_left: Vec<VolumeName>,
}
