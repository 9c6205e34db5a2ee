//! The audit log: one JSON line for each use of a key, each decision that lowers a guard, and each thing that a store
//! holds and nobody of ours wrote.
//!
//! What always holds: a line is on stable storage before what it tells of has an effect (a key that
//! was unwrapped is not used before its record stands); lines are only ever appended. If the log
//! cannot be written, keys are not used. The file is opened anew for each line, so it may be rotated
//! by renaming.
//!
//! It never holds key bytes, wrapped or not. Its lines are a chain (`sealvol_audit`), which `log.rs` goes on with and
//! `sealvol audit verify` checks.

mod index;
mod log;

use std::collections::BTreeMap;

use serde::Serialize;

pub(crate) use log::{Audit, AuditError};

use crate::rights::Caller;
use crate::timestamp;

/// What happened, for whom, to what, and how it ended.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Record {
    /// RFC 3339, UTC.
    pub time: String,
    /// See [`Operation`].
    pub operation: Operation,
    /// Who asked; the daemon itself when it attaches again after a restart.
    pub caller: Caller,
    /// The volume's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// The volume's name at the time, or the key set's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The key-encryption key, as `PROVIDER:KEY`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The alias that was changed, as `PROVIDER:ALIAS`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// The key that wrapped it before, if it was wrapped anew; that an alias meant before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The policy of a key-encryption key, as it was set; `none`: the rights of the configuration decide alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The recovery key that a backup was encrypted to: SHA-256, in hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_key: Option<String>,
    /// Days: of a waiting period or between two rotations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub days: Option<u32>,
    /// Version of the key-encryption key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_version: Option<u32>,
    /// The encryption context.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub context: BTreeMap<String, String>,
    /// The line of this log that went into the TPM's index.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anchored: Option<String>,
    /// Where the index stood then, in hexadecimal digits.
    #[serde(rename = "tpm-value", skip_serializing_if = "Option::is_none")]
    pub tpm_value: Option<String>,
    /// The protection of the memory that the key came into.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protection: Option<String>,
    /// `ok`, or why not.
    pub result: String,
}

/// What is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Operation {
    /// A loss of acknowledged writes was accepted.
    AcceptLoss,
    /// A table of keys older than, or other than, the one relied on was accepted.
    AcceptKeyTable,
    /// A superblock older than what was relied on was accepted.
    AcceptRollback,
    /// A volume was registered from its layer, or was not.
    Adopt,
    /// A line of this log went into an index of the TPM, which goes forward only.
    Anchor,
    /// The key of the log's next line was lost: the chain begins anew here, with another verification key.
    AuditAnew,
    /// An attach was refused after its key was unwrapped, or before it was asked for.
    Attach,
    /// All keys of a provider, and what seals them, were written for whoever has a recovery key.
    BackUpKeys,
    /// The destruction of a key-encryption key was called off.
    CancelKeyDeletion,
    /// It was tried whether a throw-away key could be unwrapped as a volume's data key would be.
    Check,
    /// A volume was made that stands on layers of another one.
    Clone,
    /// A snapshot is copied into a new volume, or is.
    CopySnapshot,
    /// A key-encryption key got a second name.
    CreateAlias,
    /// A key-encryption key was made.
    CreateKey,
    /// A key set is about to be made.
    CreateKeySet,
    /// A part of a volume's map is damaged or tampered with, and its range answers with errors.
    Damage,
    /// A volume was deleted.
    Delete,
    /// A key set is about to be deleted.
    DeleteKeySet,
    /// A second name of a key-encryption key was taken away.
    DeleteAlias,
    /// The imported material of a key-encryption key was destroyed.
    DeleteKeyMaterial,
    /// A snapshot was deleted.
    DeleteSnapshot,
    /// A key-encryption key is about to be destroyed, its waiting period being over; or was.
    DestroyKey,
    /// A key-encryption key refuses every use from now on.
    DisableKey,
    /// What an ephemeral volume held is gone with its key.
    DiscardEphemeral,
    /// A key-encryption key may be used again.
    EnableKey,
    /// The data key of an ephemeral volume was made in memory; nobody wraps it.
    EphemeralKey,
    /// The imported material of a key-encryption key expired and was destroyed.
    ExpireKeyMaterial,
    /// A data key was generated, wrapped.
    Generate,
    /// A key-encryption key got its material from elsewhere.
    ImportKeyMaterial,
    /// A pair of keys was made by which the material of a key-encryption key can be imported.
    ImportParameters,
    /// A data key that nobody wraps was given: at the creation of a volume, or to attach it.
    ProvidedKey,
    /// The top of a volume was sealed, or is about to be, and another one put on it.
    Snapshot,
    /// A volume gets another data key, or has got it.
    Rekey,
    /// A superblock slot that was torn, or older than the other one, was written anew from that.
    Repair,
    /// A key-encryption key got a new version, asked for or by itself.
    RotateKey,
    /// A volume is detached by force, because its key may not be used any more or nobody says that it may.
    Revoke,
    /// A data key was wrapped anew: under another key, a newer version of it, or for another volume.
    Rewrap,
    /// A key-encryption key is to be destroyed when its waiting period is over.
    ScheduleKeyDeletion,
    /// A key-encryption key has another policy.
    SetKeyPolicy,
    /// A key-encryption key is rotated by itself from now on, or not any more.
    SetKeyRotation,
    /// Wrapped keys are about to be overwritten, and before that key services to refuse a volume for ever; or what they do.
    Shred,
    /// A data key was unwrapped.
    Unwrap,
    /// A key set is about to name that key, and its members to be wrapped by it.
    UpdateKeySet,
    /// A second name of a key-encryption key means another one now.
    UpdateAlias,
}

impl Record {
    /// A record of now that says `ok` and nothing about a volume or key.
    pub(crate) fn of(operation: Operation, caller: Caller) -> Self {
        Self {
            time: timestamp::now(),
            operation,
            caller,
            volume: None,
            name: None,
            key: None,
            alias: None,
            from: None,
            policy: None,
            recovery_key: None,
            days: None,
            key_version: None,
            context: BTreeMap::new(),
            anchored: None,
            tpm_value: None,
            protection: None,
            result: "ok".to_owned(),
        }
    }
}
