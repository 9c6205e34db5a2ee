//! Messages about backups of a key service. A backup itself goes to the caller's descriptor
//! ([`key_handover`](crate::key_handover)).

use serde::{Deserialize, Serialize};

use crate::keychild::MasterKeyForm;

/// Ask for a backup of a provider's keys, to be written to the descriptor that comes with the call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackUpKeys {
    /// The public key of the RSA pair whose private key is to open it, in PEM (RFC 7468).
    pub recovery_key: String,
}

/// A backup that was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyBackup {
    /// The provider.
    pub provider: String,
    /// Id of its database.
    pub database: String,
    /// How many changes of it the backup has.
    pub changes: u64,
    /// How its master key comes about: `raw` or `passphrase`; the backup has the key itself.
    pub master_key: MasterKeyForm,
    /// SHA-256 of the recovery key (SubjectPublicKeyInfo, DER), in hexadecimal digits.
    pub recovery_key: String,
    /// Bytes that were written.
    pub bytes: u64,
    /// SHA-256 of them, in hexadecimal digits.
    pub sha256: String,
}
