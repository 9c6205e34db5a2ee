//! Why a key service says no: by cause, each with class, the provider's name for it and a next step.

use std::io;
use std::path::{Path, PathBuf};

use sealvol_control::key_ref::KeyRef;
use sealvol_control::keychild::{
    ALIASES_MAX, FailureClass, KeyFailure, LOCKED_MEMORY_UNAVAILABLE, MATERIAL_DAYS_MAX, Origin,
    Right, UNTRUSTED_SERVER, WRAPPED_MAX,
};
use sealvol_crypto::TABLE_IMAGE_BYTES_MAX;
use sealvol_crypto::locked::LockedError;

/// What AWS KMS says where the state of a key does not allow a call.
const INVALID_STATE: &str = "KMSInvalidStateException";

/// A refusal. `key` is a key reference (`PROVIDER:KEY`) throughout.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(
    missing_docs,
    reason = "the message above each variant says what it is"
)]
pub enum Refusal {
    #[error("alias {alias}: exists already")]
    AliasExists { alias: String },
    #[error("{alias}: is an alias; what is changed is a key, by its own name or id")]
    AliasForKey { alias: String },
    #[error("alias {alias:?}: {reason}")]
    BadAliasName { alias: String, reason: &'static str },
    #[error("the backup cannot be written: {source}")]
    BackupNotWritten { source: io::Error },
    #[error(
        "key database {}: has {bytes} bytes, and a backup takes at most {TABLE_IMAGE_BYTES_MAX}",
        path.display()
    )]
    BackupTooLarge { path: PathBuf, bytes: usize },
    #[error("encryption context: {reason}")]
    BadContext { reason: String },
    #[error("key name {name:?}: {reason}")]
    BadKeyName { name: String, reason: &'static str },
    #[error("recovery key: {reason}")]
    BadRecoveryKey { reason: &'static str },
    #[error("provider {provider}: {reason}")]
    Configuration { provider: String, reason: String },
    #[error("credential {}: {reason}", path.display())]
    CredentialMissing { path: PathBuf, reason: String },
    #[error("provider {provider}: its `create` credential {reason}: it must not be able to unwrap")]
    CredentialTooPowerful { provider: String, reason: String },
    #[error("key database {}: {source}", path.display())]
    Database {
        path: PathBuf,
        source: rusqlite::Error,
    },
    #[error("key database {}: another process holds it locked", path.display())]
    DatabaseBusy { path: PathBuf },
    #[error("key database {}: damaged: {reason}", path.display())]
    DatabaseDamaged { path: PathBuf, reason: String },
    #[error("{what}: {found} days; {low} to {high} are possible")]
    DaysOutOfBounds {
        what: &'static str,
        found: u32,
        low: u32,
        high: u32,
    },
    #[error("key {key}: is disabled")]
    Disabled { key: String },
    #[error("key {key}: the import token has expired")]
    ExpiredImportToken { key: String },
    #[error("key material: expires in the past, or more than {MATERIAL_DAYS_MAX} days from now")]
    ExpiryOutOfBounds,
    #[error("{}: is not a key database of sealvol", path.display())]
    ForeignDatabase { path: PathBuf },
    #[error("the pair of keys for an import cannot be made")]
    ImportKeyNotMade,
    #[error(
        "key {key}: the material is not encrypted to the public key of the token by {algorithm}, or was changed"
    )]
    ImportNotDecrypted {
        key: String,
        algorithm: &'static str,
    },
    #[error("key {key}: the material is not taken: {reason}")]
    IncorrectKeyMaterial { key: String, reason: &'static str },
    #[error("key {key}: the import token is not taken: {reason}")]
    InvalidImportToken { key: String, reason: &'static str },
    #[error("key {key}: exists already")]
    KeyExists { key: String },
    #[error(
        "key {key}: the material of its version {version} does not open under the master key, which is the right one"
    )]
    KeyMaterialChanged { key: String, version: u32 },
    #[error("key {key}: is not among the `keys` that provider {provider} is configured for")]
    KeyNotAllowed { key: String, provider: String },
    #[error("cannot hold keys in memory: {0}")]
    LockedMemory(#[from] LockedError),
    #[error("{}: still holds material of a key that was destroyed", path.display())]
    MaterialLeft { path: PathBuf },
    #[error("{reason}")]
    MalformedPolicy { reason: String },
    #[error("the key database is sealed by {sealed_by}, but the configuration names {configured}")]
    MasterKeyKind {
        sealed_by: &'static str,
        configured: &'static str,
    },
    #[error("master key {}: has {bytes} bytes; a master key has exactly 32", path.display())]
    MasterKeyLength { path: PathBuf, bytes: u64 },
    #[error("master key {}: cannot be read: {source}", path.display())]
    MasterKeyMissing { path: PathBuf, source: io::Error },
    #[error("master key, wrapped by {by}: {source}")]
    MasterKeyService { by: KeyRef, source: Box<Self> },
    #[error("key database {}: format {found}, made by a newer release; this one knows formats up to {known}", path.display())]
    NewerFormat {
        path: PathBuf,
        found: i64,
        known: i64,
    },
    #[error("key database {}: there is none", path.display())]
    NoDatabase { path: PathBuf },
    #[error("{}: there is no such directory", path.display())]
    NoDirectory { path: PathBuf },
    #[error("master key: the key service that wraps it did not come with the batch")]
    NoMasterKeyService,
    #[error("{}: is not the absolute path of a file", path.display())]
    NoFilePath { path: PathBuf },
    #[error("master key: the passphrase's file descriptor did not come with the batch")]
    NoPassphrase,
    #[error("the file that the backup is to be written to did not come with the batch")]
    NoSink,
    #[error("key {key}: its waiting period is not over")]
    NotDue { key: String },
    #[error("the master key cannot be split into {reason}")]
    NotSplit { reason: String },
    #[error("AcceptTable: is not the first call of its batch")]
    NotFirst,
    #[error("key {key}: is not pending deletion, but {state}")]
    NotPendingDeletion { key: String, state: &'static str },
    #[error("{call} is not permitted under the right {right:?}")]
    NotPermitted { right: Right, call: &'static str },
    #[error("key database {}: is {found}, not the database {expected} that was used until now", path.display())]
    OtherDatabase {
        path: PathBuf,
        found: String,
        expected: String,
    },
    #[error("master key: the passphrase cannot be read: {reason}")]
    Passphrase { reason: String },
    #[error("key {key}: is pending deletion")]
    PendingDeletion { key: String },
    #[error("key {key}: is pending import")]
    PendingImport { key: String },
    #[error("key {key}: its policy does not allow user {uid} to {}", word(*action))]
    PolicyDenies {
        key: String,
        uid: u32,
        action: Right,
    },
    #[error("key {key}: was rotated on demand as often as is possible")]
    RotatedTooOften { key: String },
    #[error(transparent)]
    Remote(#[from] Remote),
    #[error("sealed key {}: damaged: {reason}", path.display())]
    SealedKeyDamaged { path: PathBuf, reason: String },
    #[error("share {}: {reason}", path.display())]
    ShareUnusable {
        path: PathBuf,
        reason: String,
        next_step: &'static str,
    },
    #[error(
        "master key: the shares {files} do not give the key that they say they are of: one of them was changed by somebody who made its checksum anew"
    )]
    SharesForged { files: String },
    #[error("master key: {reason}")]
    SharesMissing { reason: String },
    #[error("key {key}: {what} was shredded, and is refused for ever")]
    Shredded { key: String, what: String },
    #[error("key service {server}: {reason}")]
    ServerAway { server: String, reason: String },
    #[error("{}: {source}", path.display())]
    System { path: PathBuf, source: io::Error },
    #[error("key database {}: what it says of its keys was changed by somebody without the master key", path.display())]
    TableChanged { path: PathBuf },
    #[error("key database {}: its table of keys is at change {found}; change {expected} of it was relied on", path.display())]
    TableRolledBack {
        path: PathBuf,
        found: u64,
        expected: u64,
    },
    #[error("key {key}: has {ALIASES_MAX} aliases, which are the most that are possible")]
    TooManyAliases { key: String },
    #[error("alias {alias}: does not exist")]
    UnknownAlias { alias: String },
    #[error("key {key}: does not exist")]
    UnknownKey { key: String },
    #[error("key {key}: the wrapped key names version {version} of it, which does not exist here")]
    UnknownVersion { key: String, version: u32 },
    #[error("{call}: this kind of key service does not do it")]
    Unsupported { call: &'static str },
    #[error("{}: {reason}", path.display())]
    UnsafePlace { path: PathBuf, reason: String },
    #[error("key {key}: {reason}")]
    UnsuitableKey {
        key: String,
        reason: String,
        next_step: &'static str,
    },
    #[error("key service {server}: {reason}")]
    UntrustedServer { server: String, reason: String },
    #[error("the volume key cannot be made: {reason}")]
    VolumeKey { reason: String },
    #[error("key {key}: the wrapped key does not open with this key and context: {reason}")]
    WrappedKeyChanged { key: String, reason: String },
    #[error("wrapped key: has {bytes} bytes; at most {WRAPPED_MAX} are possible")]
    WrappedKeyLength { bytes: usize },
    #[error("wrapped master key {}: was changed, or is wrapped by another key: {reason}", path.display())]
    WrappedMasterKeyChanged { path: PathBuf, reason: String },
    #[error("wrapped master key {}: damaged: {reason}", path.display())]
    WrappedMasterKeyDamaged { path: PathBuf, reason: String },
    #[error("key {key}: its id is {asked}, but the wrapped key was wrapped under {found}")]
    WrappedUnderOther {
        key: String,
        asked: String,
        found: String,
    },
    #[error("key {key}: {call} is not possible, the origin of its material being {}", origin.as_str())]
    WrongOrigin {
        key: String,
        call: &'static str,
        origin: Origin,
    },
    #[error("key database {}: this is not the master key it was made with", path.display())]
    WrongMasterKey { path: PathBuf },
}

/// A refusal by a key service elsewhere, which has its own words for it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{subject}: {reason}")]
pub struct Remote {
    /// What it means here.
    pub class: FailureClass,
    /// In the service's own words; never a secret.
    pub said: String,
    /// What it is about.
    pub subject: String,
    /// Who refused, and how.
    pub reason: String,
    /// In so many seconds it wants to be asked again.
    pub retry_after: Option<u32>,
    /// What to do now.
    pub next_step: &'static str,
}

impl Refusal {
    pub(crate) fn system(path: &Path, source: io::Error) -> Self {
        Self::System {
            path: path.to_owned(),
            source,
        }
    }

    /// Class, the provider's own error name, next step: the one table of them.
    fn verdict(&self) -> (FailureClass, &str, &'static str) {
        use FailureClass::{
            CallerBug, GoneForEver, KeyUnusable, NotPermitted, Transient, WrongKeyOrTamper,
        };
        match self {
            Self::AliasExists { .. } => (
                CallerBug,
                "AlreadyExistsException",
                "have it mean another key: sealvol key alias update; or choose another name",
            ),
            Self::AliasForKey { .. } => (
                CallerBug,
                "ValidationException",
                "see which key it means: sealvol key show",
            ),
            Self::BadAliasName { .. } => (
                CallerBug,
                "InvalidAliasNameException",
                "choose another name",
            ),
            Self::BackupNotWritten { .. } => (
                Transient,
                "KMSInternalException",
                "see whether there is space for it, and try again",
            ),
            Self::BackupTooLarge { .. } => (
                KeyUnusable,
                "BackupTooLarge",
                "copy it by SQLite's own tools (crates/kms/LOCAL.md), and keep the master key apart from the copy",
            ),
            Self::BadContext { .. } => (CallerBug, "ValidationException", "correct the context"),
            Self::BadKeyName { .. } => (CallerBug, "ValidationException", "choose another name"),
            Self::BadRecoveryKey { .. } => (
                CallerBug,
                "ValidationException",
                "give the public key of an RSA pair of 3072 or 4096 bits, as the manual has it (docs/key-services.md)",
            ),
            Self::Configuration { .. } => (
                CallerBug,
                "ValidationException",
                "correct the provider in the configuration",
            ),
            Self::CredentialMissing { .. } => (
                Transient,
                "CredentialMissing",
                "put the credential there, and nothing else, mode 0600",
            ),
            Self::CredentialTooPowerful { .. } => (
                NotPermitted,
                "CredentialTooPowerful",
                "give it a policy of its own, as the manual has it (docs/key-services.md), or allow one credential \
                 for everything: single-credential = true",
            ),
            Self::Database { .. } => (
                Transient,
                "KMSInternalException",
                "see whether its disk works and has space",
            ),
            Self::DatabaseBusy { .. } => (Transient, "DependencyTimeoutException", "try again"),
            Self::DatabaseDamaged { .. } => (
                KeyUnusable,
                "DatabaseDamaged",
                "restore the file from a backup",
            ),
            Self::DaysOutOfBounds { .. } => (
                CallerBug,
                "ValidationException",
                "give a number of days between them",
            ),
            Self::Disabled { .. } => (
                KeyUnusable,
                "DisabledException",
                "enable the key: sealvol key enable",
            ),
            Self::ExpiredImportToken { .. } => (
                CallerBug,
                "ExpiredImportTokenException",
                "get another one, and encrypt the material to its public key: sealvol key import-parameters",
            ),
            Self::ExpiryOutOfBounds => (
                CallerBug,
                "ValidationException",
                "give a time within them, or let it not expire",
            ),
            Self::ForeignDatabase { .. } => (
                CallerBug,
                "ForeignDatabase",
                "correct the path in the configuration",
            ),
            Self::ImportKeyNotMade => (Transient, "KMSInternalException", "try again"),
            Self::ImportNotDecrypted { .. } => (
                CallerBug,
                "InvalidCiphertextException",
                "encrypt it to the public key that came with the token",
            ),
            Self::IncorrectKeyMaterial { .. } => (
                CallerBug,
                "IncorrectKeyMaterialException",
                "import the same 32 bytes as at first; for others make another key",
            ),
            Self::InvalidImportToken { .. } => (
                CallerBug,
                "InvalidImportTokenException",
                "give the token that came with the newest public key of this key",
            ),
            Self::KeyExists { .. } => (
                CallerBug,
                "AlreadyExistsException",
                "use it or choose another name",
            ),
            Self::KeyMaterialChanged { .. } => (
                WrongKeyOrTamper,
                "KeyMaterialChanged",
                "find out who changed the key database and restore it from a backup",
            ),
            Self::KeyNotAllowed { .. } => (
                NotPermitted,
                "KeyNotAllowed",
                "use another key, or add it to `keys` in the configuration",
            ),
            Self::LockedMemory(_) => (
                Transient,
                LOCKED_MEMORY_UNAVAILABLE,
                "raise the limit the message names",
            ),
            Self::MaterialLeft { .. } => (
                Transient,
                "MaterialLeft",
                "the key is gone from the table; overwrite and remove what is left of the file's former content",
            ),
            Self::MalformedPolicy { .. } => (
                CallerBug,
                "MalformedPolicyDocumentException",
                "correct the policy (docs/key-services.md)",
            ),
            Self::MasterKeyKind { .. } => (
                CallerBug,
                "MasterKeyKind",
                "correct the master key in the configuration",
            ),
            Self::MasterKeyLength { .. } => (
                KeyUnusable,
                "MasterKeyUnavailable",
                "restore the master key from a backup",
            ),
            Self::MasterKeyMissing { .. } => (
                KeyUnusable,
                "MasterKeyUnavailable",
                "put the master key in its place; without it no key in the database can be used",
            ),
            // What the other service says of its key holds for all that this one seals; of what it was given to open, nothing does.
            Self::MasterKeyService { source, .. } => match source.verdict() {
                (WrongKeyOrTamper, _, _) => (
                    WrongKeyOrTamper,
                    "WrongMasterKey",
                    "restore the file of the wrapped master key from a backup; if nobody changed it, find out which key service answers",
                ),
                verdict => verdict,
            },
            Self::NewerFormat { .. } => (
                KeyUnusable,
                "NewerFormat",
                "use the release that made it, or a later one",
            ),
            Self::NoDatabase { .. } => (
                KeyUnusable,
                "NoDatabase",
                "restore it from a backup, or create a first key: sealvol key create",
            ),
            Self::NoDirectory { .. } => (
                KeyUnusable,
                "NoDirectory",
                "mount or restore it, or create a first key: sealvol key create",
            ),
            Self::NoFilePath { .. } => (
                CallerBug,
                "ValidationException",
                "write an absolute path in the configuration",
            ),
            Self::NoPassphrase => (
                KeyUnusable,
                "MasterKeyUnavailable",
                "give the daemon the passphrase",
            ),
            Self::NoMasterKeyService => (
                CallerBug,
                "ValidationException",
                "use a daemon of the same version as the key child",
            ),
            Self::NoSink => (
                CallerBug,
                "ValidationException",
                "give a file with the call",
            ),
            Self::NotDue { .. } => (KeyUnusable, INVALID_STATE, "wait, or cancel its deletion"),
            Self::NotFirst => (CallerBug, "ValidationException", "ask for it alone"),
            Self::NotPendingDeletion { .. } => (
                KeyUnusable,
                INVALID_STATE,
                "see its state: sealvol key show",
            ),
            Self::NotSplit { .. } => (
                CallerBug,
                "ValidationException",
                "give a threshold and as many files as there are to be shares",
            ),
            Self::NotPermitted { .. } => (
                NotPermitted,
                "AccessDeniedException",
                "ask for the right that covers the call",
            ),
            Self::OtherDatabase { .. } => (
                WrongKeyOrTamper,
                "OtherDatabase",
                "put the former one back; if this one is to be used from now on: sealvol key accept-table",
            ),
            Self::Passphrase { .. } => (
                KeyUnusable,
                "MasterKeyUnavailable",
                "give the daemon the passphrase anew",
            ),
            Self::PendingDeletion { .. } => (
                KeyUnusable,
                INVALID_STATE,
                "take that back: sealvol key cancel-deletion, then sealvol key enable",
            ),
            Self::PendingImport { .. } => (
                KeyUnusable,
                INVALID_STATE,
                "import its material: sealvol key import-parameters, then sealvol key import",
            ),
            Self::PolicyDenies { .. } => (
                NotPermitted,
                "AccessDeniedException",
                "ask whoever administers the key to allow it: sealvol key policy set",
            ),
            Self::RotatedTooOften { .. } => (
                NotPermitted,
                "LimitExceededException",
                "let it rotate by itself: sealvol key rotation; or create another key",
            ),
            Self::Remote(remote) => (remote.class, &remote.said, remote.next_step),
            Self::SealedKeyDamaged { .. } => (
                KeyUnusable,
                "SealedKeyDamaged",
                "restore the file from a backup",
            ),
            Self::ShareUnusable { next_step, .. } => {
                (KeyUnusable, "MasterKeyUnavailable", next_step)
            }
            Self::SharesForged { .. } => (
                WrongKeyOrTamper,
                "WrongMasterKey",
                "find out which one was changed, and give other shares of the set in its place",
            ),
            Self::SharesMissing { .. } => (
                KeyUnusable,
                "MasterKeyUnavailable",
                "plug in or mount what holds them, or name others in the configuration",
            ),
            Self::Shredded { .. } => (
                GoneForEver,
                "VolumeShredded",
                "delete what is there of it: sealvol volume delete --shred; nothing brings it back",
            ),
            Self::ServerAway { .. } => (
                Transient,
                "DependencyTimeoutException",
                "see whether the key service runs, can be reached and is unsealed",
            ),
            Self::System { .. } => (
                Transient,
                "KMSInternalException",
                "remove the cause and try again",
            ),
            Self::TableChanged { .. } => (
                WrongKeyOrTamper,
                "TableChanged",
                "find out who can write the state directory, and restore the file from a backup",
            ),
            Self::TableRolledBack { .. } => (
                WrongKeyOrTamper,
                "TableRolledBack",
                "put the newest copy back; if this is the newest there is: sealvol key accept-table",
            ),
            Self::TooManyAliases { .. } => (
                NotPermitted,
                "LimitExceededException",
                "delete one of them: sealvol key alias delete",
            ),
            Self::UnknownAlias { .. } => (
                GoneForEver,
                "NotFoundException",
                "check the name: sealvol key alias list",
            ),
            Self::UnknownKey { .. } => (
                GoneForEver,
                "NotFoundException",
                "check the name: sealvol key list; a deleted key does not come back",
            ),
            Self::UnknownVersion { .. } | Self::WrappedKeyChanged { .. } => (
                WrongKeyOrTamper,
                "InvalidCiphertextException",
                "the wrapped key was changed, moved from another volume, or is of another key \
                 service: restore the volume's metadata",
            ),
            Self::Unsupported { .. } => (
                CallerBug,
                "UnsupportedOperationException",
                "change the key by its key service's own tools",
            ),
            Self::UnsafePlace { .. } => (
                NotPermitted,
                "UnsafePlace",
                "give it to the daemon's user and take access from all others (chmod go=)",
            ),
            Self::UnsuitableKey { next_step, .. } => {
                (CallerBug, "InvalidKeyUsageException", next_step)
            }
            // It says nothing about the key, but asking again does not help.
            Self::UntrustedServer { .. } => (
                Transient,
                UNTRUSTED_SERVER,
                "see who answers there; if it is the key service, renew its certificate or correct `ca-file` and `address`",
            ),
            Self::VolumeKey { .. } => (Transient, "KMSInternalException", "try again"),
            Self::WrappedKeyLength { .. } => (
                CallerBug,
                "ValidationException",
                "give the wrapped key as the service made it",
            ),
            Self::WrappedMasterKeyChanged { .. } => (
                WrongKeyOrTamper,
                "WrongMasterKey",
                "restore the file from a backup",
            ),
            Self::WrappedMasterKeyDamaged { .. } => (
                KeyUnusable,
                "MasterKeyUnavailable",
                "restore the file from a backup",
            ),
            Self::WrappedUnderOther { .. } => (
                WrongKeyOrTamper,
                "IncorrectKeyException",
                "use the key it was wrapped under; if nobody changed it, the metadata was tampered with",
            ),
            Self::WrongOrigin { .. } => (
                CallerBug,
                "UnsupportedOperationException",
                "for keys with rotation make one whose material is made here; for imported material: --origin external",
            ),
            Self::WrongMasterKey { .. } => (
                WrongKeyOrTamper,
                "WrongMasterKey",
                "give the master key or passphrase of this database",
            ),
        }
    }

    fn retry_after(&self) -> Option<u32> {
        match self {
            Self::MasterKeyService { source, .. } => source.retry_after(),
            Self::Remote(remote) => remote.retry_after,
            _ => None,
        }
    }

    /// The class.
    #[must_use]
    pub fn class(&self) -> FailureClass {
        self.verdict().0
    }
}

fn word(right: Right) -> &'static str {
    match right {
        Right::Administer => "administer it",
        Right::Attach => "attach what it wraps",
        Right::Create => "create under it",
    }
}

impl From<&Refusal> for KeyFailure {
    fn from(refusal: &Refusal) -> Self {
        let (class, provider_error, next_step) = refusal.verdict();
        Self {
            class,
            provider_error: provider_error.to_owned(),
            message: refusal.to_string(),
            next_step: next_step.to_owned(),
            retry_after_s: refusal.retry_after(),
        }
    }
}
