//! What becomes of an attached volume when its key is revoked.

use serde::{Deserialize, Serialize};

/// Asks for one of the two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "kebab-case", deny_unknown_fields)]
pub enum OnRevoke {
    /// Nothing, until the next attach, which is refused: as EBS volumes keep working while they stay
    /// attached.
    Hold,
    /// The key service is asked again and again; once it says that the key may not be used any more,
    /// the volume is detached by force and its key wiped: as Azure disks fail.
    Enforce {
        /// Seconds from one question to the next.
        every_seconds: u32,
        /// Seconds for which the key service may be away before that counts as a revocation.
        grace_seconds: u32,
    },
}

/// A volume whose key is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enforcement {
    /// Seconds from one question to the next.
    pub every_seconds: u32,
    /// Seconds for which the key service may be away.
    pub grace_seconds: u32,
    /// Seconds for which it has been away, up to the last question.
    pub away_seconds: u32,
}
