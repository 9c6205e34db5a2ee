//! Tombstones: what a key service refuses for ever, wherever a wrapped copy of it comes from.
//!
//! What always holds: a tombstone is about pairs of encryption contexts that name volumes and data keys, and about no pair that
//! other volumes share; there is no message that takes one back.

use serde::{Deserialize, Serialize};

/// The pair of an encryption context that names the volume.
pub const CONTEXT_VOLUME: &str = "sealvol:volume";

/// The pair of an encryption context that names the data key.
pub const CONTEXT_DATA_KEY: &str = "sealvol:data-key";

/// Most bytes of an id in a tombstone: a UUID has 36.
const ID_MAX: usize = 64;

/// What is to be refused for ever: every encryption context with one of these in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tombstones {
    /// Volumes, whatever the data key.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// Data keys, whatever the volume: a clone was given copies of them that are bound to its own id.
    #[serde(default)]
    pub data_keys: Vec<String>,
}

impl Tombstones {
    /// Most ids in one call, so that its message is far from the longest that is possible.
    pub const IDS_MAX: usize = 8192;

    /// The pairs, by name and value, those of the volumes first.
    pub fn pairs(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let volumes = self.volumes.iter().map(|id| (CONTEXT_VOLUME, id.as_str()));
        let data_keys = self.data_keys.iter();
        volumes.chain(data_keys.map(|id| (CONTEXT_DATA_KEY, id.as_str())))
    }

    /// Whether these can be ids of anything, and are not too many.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn check(&self) -> Result<(), &'static str> {
        if self
            .pairs()
            .any(|(_, id)| id.is_empty() || id.len() > ID_MAX)
        {
            return Err("tombstones name volumes and data keys by ids of 1 to 64 bytes");
        }
        if self.pairs().count() > Self::IDS_MAX {
            return Err("tombstones: at most 8192 ids are possible in one call");
        }
        Ok(())
    }
}
