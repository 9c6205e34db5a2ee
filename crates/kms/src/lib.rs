//! Key services, and the child process that runs them.
//!
//! A key service holds key-encryption keys and wraps volume keys with them. [`KeyService`] is what
//! each provider implements; [`local`] is the one that is always there, [`transit`] asks an OpenBao
//! or Vault server, [`aws_kms`] AWS KMS, `azure` an Azure Key Vault, [`pkcs11`] a hardware token, [`tpm2`] a TPM. They run in `sealvol-keys`,
//! a child of the daemon that carries out one batch of calls and exits ([`child`]): the daemon links
//! none of this.
//!
//! # How is a key refused?
//!
//! A provider fails with a [`Refusal`]: a variant by cause, with the provider's own error name (those
//! of AWS KMS, where it has one for the cause). The daemon acts on its class only:
//!
//! | class | causes here | what the daemon does |
//! |---|---|---|
//! | key unusable | key disabled, pending deletion or pending import; master key, enough shares of it, passphrase or database not at hand or damaged | no retry; the volume stays available |
//! | not permitted | the caller's right, the key's policy for the caller, or the credential's policy does not cover the call; rotated on demand too often; a file that others can read or write | no retry |
//! | wrong key or tamper | wrapped key, context, key material or table of keys changed, or an older table; wrapped under another key; wrong master key | never retries; alarm |
//! | gone for ever | no such key; a volume that was shredded | keeps the ciphertext |
//! | transient | database busy, I/O error, no locked memory; a server that is away, sealed, overloaded, or not who it should be | retries with backoff where that can help; never a revocation |
//! | caller bug | malformed name, context, wrapped key or policy; key exists; material, or a token of an import, that is not taken | rejects |
//!
//! What always holds:
//! - no call returns plaintext but [`KeyService::unwrap`], and that into locked memory;
//! - a wrapped key is unwrapped by the key it names *and* that the caller asked for, never another;
//! - no message, error or log of this crate holds a key byte.

pub mod aws_kms;
mod azure;
pub mod batch;
pub mod child;
mod confinement;
mod credential;
mod http;
pub mod local;
pub mod offline;
pub mod pkcs11;
mod refusal;
mod role;
pub mod tpm2;
pub mod transit;

use std::future::Future;
use std::sync::Arc;

use sealvol_control::keychild::{
    AliasChange, AliasChanged, BackupMade, ImportParameters, KeyChange, KeyDescription, Origin,
    TableState, Tended, Tombstones, Wrapped, WrappingAlgorithm, WrappingKeySpec,
};
use sealvol_crypto::locked::KeyMemory;
use sealvol_crypto::{EncryptionContext, VolumeKey};

pub use refusal::Refusal;

/// A key service. Callers set the deadline: the child is killed when its time is over.
///
/// `key` is a key's name or id in the provider's own words, or an alias of it, unless it is to be changed.
pub trait KeyService {
    /// Says that the table of keys counts from here on, although the caller has seen a newer one: it was opened so.
    ///
    /// # Errors
    /// When the service keeps no such table, or was not opened so.
    fn accept_table(&self) -> Result<(), Refusal> {
        Err(Refusal::Unsupported {
            call: "AcceptTable",
        })
    }

    /// Writes all keys with what seals them, encrypted to a recovery key (SubjectPublicKeyInfo), to the file that came with the
    /// batch.
    fn back_up(&self, _recovery_key: &[u8]) -> impl Future<Output = Result<BackupMade, Refusal>> {
        async { Err(Refusal::Unsupported { call: "Backup" }) }
    }

    /// Makes, moves or removes an alias of a key, whole or not at all.
    fn change_alias(
        &self,
        _alias: &str,
        change: &AliasChange,
    ) -> impl Future<Output = Result<AliasChanged, Refusal>> {
        let call = change.as_str();
        async move { Err(Refusal::Unsupported { call }) }
    }

    /// Changes a key, whole or not at all.
    fn change_key(
        &self,
        _key: &str,
        change: &KeyChange,
    ) -> impl Future<Output = Result<KeyDescription, Refusal>> {
        let call = change.as_str();
        async move { Err(Refusal::Unsupported { call }) }
    }

    /// Makes a key-encryption key with its first version, whole or not at all.
    fn create_key(
        &self,
        name: &str,
        origin: Origin,
    ) -> impl Future<Output = Result<KeyDescription, Refusal>>;

    /// Tells state, versions and age of a key; answered in every state.
    fn describe(&self, key: &str) -> impl Future<Output = Result<KeyDescription, Refusal>>;

    /// Extends the index that heads of the audit log go into; gives its value before (empty if nothing ever went in) and after.
    fn extend_audit(
        &self,
        _extension: &[u8],
    ) -> impl Future<Output = Result<(Vec<u8>, Vec<u8>), Refusal>> {
        async {
            Err(Refusal::Unsupported {
                call: "ExtendAudit",
            })
        }
    }

    /// Makes a volume key and wraps it under the latest version of `key`. Nobody gets its plaintext.
    fn generate(
        &self,
        key: &str,
        context: &EncryptionContext,
    ) -> impl Future<Output = Result<Wrapped, Refusal>>;

    /// Takes in the material of a key of [`Origin::External`], encrypted to the key of [`KeyService::import_parameters`].
    fn import_key_material(
        &self,
        _key: &str,
        _material: &[u8],
        _token: &[u8],
        _expires: Option<u64>,
    ) -> impl Future<Output = Result<KeyDescription, Refusal>> {
        async {
            Err(Refusal::Unsupported {
                call: "ImportKeyMaterial",
            })
        }
    }

    /// Makes a pair of keys by which material for a key can be imported.
    fn import_parameters(
        &self,
        _key: &str,
        _spec: WrappingKeySpec,
        _algorithm: WrappingAlgorithm,
    ) -> impl Future<Output = Result<ImportParameters, Refusal>> {
        async {
            Err(Refusal::Unsupported {
                call: "GetParametersForImport",
            })
        }
    }

    /// Tells all keys, by name.
    fn list_keys(&self) -> impl Future<Output = Result<Vec<KeyDescription>, Refusal>>;

    /// The policy of a key, as text.
    fn policy(&self, _key: &str) -> impl Future<Output = Result<Option<String>, Refusal>> {
        let call = "GetKeyPolicy";
        async move { Err(Refusal::Unsupported { call }) }
    }

    /// Wraps the same volume key under the latest version of another (or the same) key. Nobody gets
    /// its plaintext.
    fn rewrap(
        &self,
        from: &WrappedUnder<'_>,
        key: &str,
        context: &EncryptionContext,
    ) -> impl Future<Output = Result<Wrapped, Refusal>>;

    /// Gives a key another policy, or none.
    fn set_policy(
        &self,
        _key: &str,
        _policy: Option<&str>,
        _bypass_lockout_check: bool,
    ) -> impl Future<Output = Result<(), Refusal>> {
        let call = "PutKeyPolicy";
        async move { Err(Refusal::Unsupported { call }) }
    }

    /// What the table of keys is known by, if the service keeps one here.
    fn table_state(&self) -> Option<TableState> {
        None
    }

    /// Does what is due; nothing, where the service sees to that itself.
    fn tend(&self) -> impl Future<Output = Result<Tended, Refusal>> {
        async { Ok(Tended::default()) }
    }

    /// Refuses volumes and data keys for ever, durably, where the service keeps such a list.
    fn tombstone(&self, _tombstones: &Tombstones) -> impl Future<Output = Result<(), Refusal>> {
        async { Err(Refusal::Unsupported { call: "Tombstone" }) }
    }

    /// The volume key, in a slot of `memory`.
    fn unwrap(
        &self,
        wrapped: &WrappedUnder<'_>,
        memory: &Arc<KeyMemory>,
    ) -> impl Future<Output = Result<Unwrapped, Refusal>>;
}

/// A wrapped volume key with what the caller claims of it. All three must fit.
#[derive(Clone, Copy, Debug)]
pub struct WrappedUnder<'a> {
    /// The key it is wrapped under.
    pub key: &'a str,
    /// What [`Wrapped::blob`] held.
    pub blob: &'a [u8],
    /// What it is bound to.
    pub context: &'a EncryptionContext,
}

/// A volume key, and what opened it.
pub struct Unwrapped {
    /// The key, in locked memory.
    pub volume_key: VolumeKey,
    /// Id of the key-encryption key.
    pub key_id: String,
    /// Version of that key.
    pub key_version: u32,
}
