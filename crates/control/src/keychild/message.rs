//! What the daemon and the key child say to each other: one [`Batch`] in, one [`Reply`] out.
//!
//! No message holds a plaintext key (imported material is encrypted to a key that only the provider has), a passphrase or a credential: keys travel on the key socket,
//! secrets of the provider by file descriptor or by a file that the child opens itself. So messages
//! may be printed and logged.

use std::collections::BTreeMap;
use std::path::PathBuf;

use base64ct::{Base64, Encoding};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::KeyFailure;
use super::aws_kms::AwsKmsService;
use super::azure::AzureService;
use super::backup::BackupMade;
use super::import::{ImportParameters, Origin, WrappingAlgorithm, WrappingKeySpec};
use super::lifecycle::{
    AliasChange, AliasChanged, KeyChange, KeyState, Lifecycle, TableState, Tended,
};
use super::master_key::MasterKey;
use super::pkcs11::Pkcs11Service;
use super::policy::Principal;
use super::tombstone::Tombstones;
use super::tpm2::Tpm2Service;
use super::transit::TransitService;

/// Version of these messages. Daemon and child come from one build; another number is refused.
pub const PROTOCOL_VERSION: u32 = 1;

/// Most calls in a batch. The keys of a whole batch must fit the buffer of the key socket (212,992
/// bytes by default, of which each key takes less than 1 KiB), for the daemon reads them only after
/// the reply.
pub const CALLS_MAX: usize = 64;

/// Most bytes of a wrapped key: the size of an AWS KMS ciphertext blob, and of the superblock field.
pub const WRAPPED_MAX: usize = 6144;

/// Work for one child: calls to one provider under one right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// What the caller of the control API may do; the child refuses calls beyond it.
    pub right: Right,
    /// In whose name: what the policy of a key is asked about.
    pub principal: Principal,
    /// The one provider that is used.
    pub provider: Provider,
    /// Refuse to hold keys in `mlock` memory where `memfd_secret` is missing.
    #[serde(default)]
    pub require_secretmem: bool,
    /// At most [`CALLS_MAX`], carried out in order; each succeeds or fails by itself.
    pub calls: Vec<Call>,
    /// The newest table of keys that the daemon has seen of this provider: an older one is refused.
    #[serde(default)]
    pub relied_on: Option<TableState>,
}

/// The three rights of the control API, as the key child enforces them.
///
/// | call | `Create` | `Attach` | `Administer` |
/// |---|---|---|---|
/// | `Generate` | yes | no | no |
/// | `Check`, `Unwrap` | no | yes | no |
/// | `Rewrap` | yes | no | yes |
/// | `CreateKey`, `Change`, `ChangeAlias`, `ImportParameters`, `ImportMaterial`, `Policy`, `SetPolicy`, `Tend`, `AcceptTable`, `Backup`, `Tombstone`, `ExtendAudit` | no | no | yes |
/// | `Describe`, `ListKeys` | yes | yes | yes |
///
/// So whoever creates a volume never sees its key, and whoever attaches one cannot make another. The policy of a key, if it has
/// one, has to allow the principal the same right for that key besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Right {
    /// Manage keys.
    Administer,
    /// Use volumes that exist.
    Attach,
    /// Make volumes.
    Create,
}

impl Right {
    /// Whether this right covers `call`.
    #[must_use]
    pub fn permits(self, call: &Call) -> bool {
        match call {
            Call::AcceptTable
            | Call::Backup { .. }
            | Call::Change { .. }
            | Call::ChangeAlias { .. }
            | Call::CreateKey { .. }
            | Call::ExtendAudit { .. }
            | Call::ImportMaterial { .. }
            | Call::ImportParameters { .. }
            | Call::Policy { .. }
            | Call::SetPolicy { .. }
            | Call::Tend
            | Call::Tombstone(_) => self == Self::Administer,
            Call::Describe { .. } | Call::ListKeys => true,
            Call::Generate { .. } => self == Self::Create,
            Call::Rewrap { .. } => self != Self::Attach,
            Call::Check { .. } | Call::Unwrap { .. } => self == Self::Attach,
        }
    }
}

/// A provider as it is configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// The name that key references use for it.
    pub name: String,
    /// What it is.
    pub service: Service,
}

/// The kinds of key service, each with its configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Service {
    /// AWS Key Management Service.
    AwsKms(AwsKmsService),
    /// An Azure Key Vault.
    AzureKv(AzureService),
    /// Keys in an SQLite file on this host, sealed by a master key.
    Local(LocalService),
    /// A token that a PKCS #11 module reaches.
    Pkcs11(Pkcs11Service),
    /// Keys sealed in a TPM 2.0.
    Tpm2(Tpm2Service),
    /// The transit engine of an OpenBao or HashiCorp Vault server.
    Transit(TransitService),
}

impl Service {
    /// What the child finds in its environment; never a secret.
    pub fn environment(&self) -> impl Iterator<Item = (&String, &String)> {
        self.modules_environment().into_iter().flatten()
    }

    /// That of the module that this service, or the one that wraps its master key, loads.
    fn modules_environment(&self) -> Option<&BTreeMap<String, String>> {
        match self {
            Self::Pkcs11(service) => Some(&service.environment),
            Self::Local(service) => service.asks()?.service.modules_environment(),
            Self::AwsKms(_) | Self::AzureKv(_) | Self::Tpm2(_) | Self::Transit(_) => None,
        }
    }
}

/// Configuration of the `local` provider. Paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LocalService {
    /// The SQLite file. Its directory must be writable by its owner alone.
    pub database: PathBuf,
    /// Where the key comes from that seals all others.
    pub master_key: MasterKey,
    /// Make what is missing (the database, and a master key in a file) on the first
    /// [`Call::CreateKey`] under [`Right::Administer`]. Never replaces a master key: where there is
    /// a database, the master key it was made with is needed.
    #[serde(default)]
    pub create: bool,
}

/// Pairs that a wrapped key is bound to: not secret, logged, and needed again in full to unwrap.
pub type Context = BTreeMap<String, String>;

/// One call to a key service. `key` is a key's name or id in the provider's own words, or an alias, unless it is to be changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Call {
    /// Go on from the table of keys as it is, although the daemon has seen a newer one. The first call of its batch.
    AcceptTable,
    /// Write all keys with the master key, encrypted to a recovery key, to the descriptor that came with the batch.
    Backup {
        /// The public key of an RSA pair: SubjectPublicKeyInfo in DER (RFC 5280).
        #[serde(with = "base64_text")]
        recovery_key: Vec<u8>,
    },
    /// Change a key.
    Change {
        /// The key.
        key: String,
        /// How.
        change: KeyChange,
    },
    /// Change an alias. Keys are named by name or id here, never by another alias.
    ChangeAlias {
        /// Its name, with [`ALIAS_PREFIX`](super::ALIAS_PREFIX).
        alias: String,
        /// How.
        change: AliasChange,
    },
    /// Unwrap a volume key and forget it: whether it could be unwrapped now.
    Check {
        /// The key-encryption key it is wrapped under.
        key: String,
        /// What [`Wrapped::blob`] held.
        #[serde(with = "base64_text")]
        wrapped: Vec<u8>,
        /// What it is bound to.
        context: Context,
    },
    /// Make a key-encryption key. One of that name that exists is a conflict, not a success.
    CreateKey {
        /// Its name.
        name: String,
        /// Where its material comes from.
        #[serde(default)]
        origin: Origin,
    },
    /// Tell state, versions and age of a key.
    Describe {
        /// The key.
        key: String,
    },
    /// Extend the index that is kept for heads of the audit log.
    ExtendAudit {
        /// By what.
        #[serde(with = "base64_text")]
        extension: Vec<u8>,
    },
    /// Make a volume key and return it wrapped. Its plaintext leaves the child in no form.
    Generate {
        /// The key-encryption key.
        key: String,
        /// What the wrapped key is bound to.
        context: Context,
    },
    /// Take in the material of a key of [`Origin::External`]. It is encrypted; nobody can give a bare key.
    ImportMaterial {
        /// The key.
        key: String,
        /// The material, encrypted to the public key of [`Call::ImportParameters`].
        #[serde(with = "base64_text")]
        material: Vec<u8>,
        /// The token that came with that key.
        #[serde(with = "base64_text")]
        token: Vec<u8>,
        /// When it is to expire, in seconds since 1970 (UTC); none: never.
        expires: Option<u64>,
    },
    /// Make a pair of keys by which material can be imported. The private one leaves the child in no form.
    ImportParameters {
        /// The key that the material is for.
        key: String,
        /// Which pair.
        spec: WrappingKeySpec,
        /// How the material will be encrypted.
        algorithm: WrappingAlgorithm,
    },
    /// Tell all keys.
    ListKeys,
    /// Tell the policy of a key.
    Policy {
        /// The key.
        key: String,
    },
    /// Wrap the same volume key under another key, key version or context. Its plaintext leaves
    /// the child in no form.
    Rewrap {
        /// The key it is wrapped under.
        key: String,
        /// The wrapped key.
        #[serde(with = "base64_text")]
        wrapped: Vec<u8>,
        /// What it is bound to.
        old_context: Context,
        /// The key that is to wrap it.
        new_key: String,
        /// What it is to be bound to.
        new_context: Context,
    },
    /// Give a key another policy, or none: then the right of the caller decides alone.
    SetPolicy {
        /// The key.
        key: String,
        /// What [`Policy`](super::Policy) understands; none: no policy.
        policy: Option<String>,
        /// Also if the caller could not set another one after it.
        bypass_lockout_check: bool,
    },
    /// Do what is due by now (automatic rotation), tell what else is, and count the time that the host has run.
    Tend,
    /// Refuse volumes and data keys for ever. What is refused already stays so: that is no failure.
    Tombstone(Tombstones),
    /// Put the plaintext of a wrapped key on the key socket.
    Unwrap {
        /// The key it must be wrapped under; another one is refused even where it would open it.
        key: String,
        /// The wrapped key.
        #[serde(with = "base64_text")]
        wrapped: Vec<u8>,
        /// What it must be bound to.
        context: Context,
    },
}

/// The child's answer to a [`Batch`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reply {
    /// How the child was confined.
    pub confinement: Confinement,
    /// One result for each call, in order.
    pub results: Vec<CallResult>,
    /// What the provider's table of keys is known by now; none if it has no such table, or was not opened.
    #[serde(default)]
    pub table: Option<TableState>,
}

/// What became of a call.
pub type CallResult = Result<Done, KeyFailure>;

/// A call that succeeded, by the name of the call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Done {
    /// The table counts from here on.
    AcceptTable,
    /// It is written, whole.
    Backup(BackupMade),
    /// The key as it is now; as it was, if it is destroyed.
    Change(KeyDescription),
    /// The alias as it is now.
    ChangeAlias(AliasChanged),
    /// It could be.
    Check {
        /// Id of the key that opened it.
        key_id: String,
        /// Version of that key.
        key_version: u32,
    },
    /// The new key.
    CreateKey(KeyDescription),
    /// The key.
    Describe(KeyDescription),
    /// Where the index stands.
    ExtendAudit {
        /// Before that; none if nothing ever went in.
        #[serde(with = "base64_text")]
        before: Vec<u8>,
        /// Since then.
        #[serde(with = "base64_text")]
        after: Vec<u8>,
    },
    /// The new volume key, wrapped.
    Generate(Wrapped),
    /// The key as it is now.
    ImportMaterial(KeyDescription),
    /// Public key and token.
    ImportParameters(ImportParameters),
    /// All keys, by name.
    ListKeys(Vec<KeyDescription>),
    /// The policy; none: there is none.
    Policy(Option<String>),
    /// The same volume key, wrapped anew.
    Rewrap(Wrapped),
    /// The policy is set.
    SetPolicy,
    /// What was due.
    Tend(Tended),
    /// They stand, durably.
    Tombstone,
    /// The plaintext is the next 64 bytes on the key socket.
    Unwrap {
        /// Id of the key that opened it.
        key_id: String,
        /// Version of that key.
        key_version: u32,
    },
}

impl Done {
    /// Whether this answers a call of that kind.
    #[must_use]
    pub fn answers(&self, call: &Call) -> bool {
        matches!(
            (self, call),
            (Self::AcceptTable, Call::AcceptTable)
                | (Self::Backup(_), Call::Backup { .. })
                | (Self::Change(_), Call::Change { .. })
                | (Self::ChangeAlias(_), Call::ChangeAlias { .. })
                | (Self::Check { .. }, Call::Check { .. })
                | (Self::CreateKey(_), Call::CreateKey { .. })
                | (Self::Describe(_), Call::Describe { .. })
                | (Self::ExtendAudit { .. }, Call::ExtendAudit { .. })
                | (Self::Generate(_), Call::Generate { .. })
                | (Self::ImportMaterial(_), Call::ImportMaterial { .. })
                | (Self::ImportParameters(_), Call::ImportParameters { .. })
                | (Self::ListKeys(_), Call::ListKeys)
                | (Self::Policy(_), Call::Policy { .. })
                | (Self::Rewrap(_), Call::Rewrap { .. })
                | (Self::SetPolicy, Call::SetPolicy { .. })
                | (Self::Tend(_), Call::Tend)
                | (Self::Tombstone, Call::Tombstone(_))
                | (Self::Unwrap { .. }, Call::Unwrap { .. })
        )
    }
}

/// A wrapped volume key, and what wrapped it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wrapped {
    /// Id of the key-encryption key: the resolved name, for names may come to mean another key.
    pub key_id: String,
    /// Version of that key.
    pub key_version: u32,
    /// Opaque to all but the provider; at most [`WRAPPED_MAX`] bytes.
    #[serde(with = "base64_text")]
    pub blob: Vec<u8>,
    /// The commitment of the volume key that is wrapped, where the child has seen the key. Not secret.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "commitment_text"
    )]
    pub commitment: Option<[u8; 32]>,
}

/// What may be told of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyDescription {
    /// The provider's own lasting id.
    pub key_id: String,
    /// The name.
    pub name: String,
    /// Whether it can be used.
    pub state: KeyState,
    /// The versions that exist, ascending; the last one wraps.
    pub versions: Vec<KeyVersion>,
    /// When the key was made, in seconds since 1970 (UTC).
    pub created: u64,
    /// What wraps, for example `AES-256-GCM`.
    pub algorithm: String,
    /// Whether a new data key is made wrapped by the key service itself, so that its plaintext is nowhere else.
    pub creates_without_plaintext: bool,
    /// Its aliases, sorted.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Rotation and deletion; empty where the provider has none of it or tells nothing.
    #[serde(default)]
    pub lifecycle: Lifecycle,
}

/// A version of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyVersion {
    /// Its number, from 1.
    pub version: u32,
    /// When it was made, in seconds since 1970 (UTC).
    pub created: u64,
}

/// How the child was confined: told by `status` and the audit record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confinement {
    /// What the kernel enforces of the file system and network rules.
    pub landlock: Landlock,
    /// Where the child held keys: `secretmem` or `mlock`; nothing if it came to hold none.
    pub protection: Option<String>,
}

/// How much of the child's landlock rules the kernel enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Landlock {
    /// All.
    Full,
    /// Nothing: the kernel has no landlock or it is switched off.
    None,
    /// What this kernel knows of them.
    Partial,
}

/// Bytes as standard Base64 with padding (RFC 4648, section 4).
pub(super) mod base64_text {
    use super::{Base64, Deserialize, Deserializer, Encoding, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(
        bytes: &[u8],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_str(&Base64::encode_string(bytes))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        Base64::decode_vec(&text).map_err(|_| serde::de::Error::custom("not Base64"))
    }
}

/// A commitment as [`base64_text`], or nothing.
mod commitment_text {
    use super::{Base64, Deserialize, Deserializer, Encoding, Serializer};

    pub(super) fn serialize<S: Serializer>(
        commitment: &Option<[u8; 32]>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match commitment {
            Some(bytes) => to.serialize_some(&Base64::encode_string(bytes)),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<[u8; 32]>, D::Error> {
        let text: Option<String> = Option::deserialize(from)?;
        let decoded = text.map(|text| Base64::decode_vec(&text).map(<[u8; 32]>::try_from));
        match decoded {
            None => Ok(None),
            Some(Ok(Ok(bytes))) => Ok(Some(bytes)),
            Some(_) => Err(serde::de::Error::custom("not a commitment in Base64")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(text: &str) -> Result<Service, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_provider_is_configured_in_these_words() {
        for (text, master_key) in [
            (
                r#"{"file":{"path":"/var/lib/sealvol/local/master.key"}}"#,
                MasterKey::File {
                    path: "/var/lib/sealvol/local/master.key".into(),
                },
            ),
            (
                r#"{"credential":{"directory":"/run/credentials/x","name":"master"}}"#,
                MasterKey::Credential {
                    directory: "/run/credentials/x".into(),
                    name: "master".to_owned(),
                },
            ),
            (r#""passphrase""#, MasterKey::Passphrase),
        ] {
            let text = format!(r#"{{"type":"local","database":"/k.db","master-key":{text}}}"#);
            let local = LocalService {
                database: "/k.db".into(),
                master_key,
                create: false,
            };
            assert_eq!(service(&text), Ok(Service::Local(local)));
        }
    }

    #[test]
    fn a_commitment_of_another_length_is_refused() {
        let wrapped = Wrapped {
            key_id: "k".to_owned(),
            key_version: 1,
            blob: vec![1],
            commitment: Some([7; 32]),
        };
        let text = serde_json::to_string(&wrapped).unwrap();
        assert_eq!(serde_json::from_str::<Wrapped>(&text).unwrap(), wrapped);
        for other in ["\"\"", "\"AAAA\"", "\"*\"", "7"] {
            let said = Base64::encode_string(&[7; 32]);
            let text = text.replace(&format!("{said:?}"), other);
            assert!(serde_json::from_str::<Wrapped>(&text).is_err(), "{text}");
        }
        let unseen = Wrapped {
            commitment: None,
            ..wrapped
        };
        let text = serde_json::to_string(&unseen).unwrap();
        assert!(!text.contains("commitment"), "{text}");
        assert_eq!(serde_json::from_str::<Wrapped>(&text).unwrap(), unseen);
    }

    #[test]
    fn a_word_that_means_nothing_is_refused() {
        let sound = r#""type":"local","database":"/k.db","master-key":"passphrase""#;
        assert!(service(&format!("{{{sound}}}")).is_ok());
        let added = format!(r#"{sound},"crate":true"#);
        for text in [
            added,
            sound.replace("local", "lokal"),
            sound.replace("phrase", "word"),
        ] {
            assert!(service(&format!("{{{text}}}")).is_err(), "{text}");
        }
    }
}
