//! What is told of a backup of a key service. The backup itself stands in no message: it goes to a descriptor.

use serde::{Deserialize, Serialize};

/// How the master key of a key service comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MasterKeyForm {
    /// Derived from a passphrase.
    Passphrase,
    /// 32 bytes in a file or credential.
    Raw,
}

impl MasterKeyForm {
    /// The form in one word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passphrase => "passphrase",
            Self::Raw => "raw",
        }
    }
}

/// A backup that was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupMade {
    /// Id of the database.
    pub database: String,
    /// How many changes of it the backup has.
    pub changes: u64,
    /// How its master key came about; the backup has the key itself.
    pub master_key: MasterKeyForm,
    /// SHA-256 of the recovery key (SubjectPublicKeyInfo, DER), in hexadecimal digits.
    pub recovery_key: String,
    /// Bytes that were written.
    pub bytes: u64,
    /// SHA-256 of them, in hexadecimal digits.
    pub sha256: String,
}
