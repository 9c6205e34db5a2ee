//! How the daemon is, and its end: its sockets, its key memory, its self-tests, its audit log.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::VolumeName;

/// The known-answer tests of every algorithm in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfTest {
    /// All of them passed.
    pub passed: bool,
    /// What was tested, in order.
    pub tests: Vec<String>,
    /// The one that failed, and how.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// How the daemon is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Of the daemon.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// `ready`, or `error` when the self-tests failed and nothing is served.
    pub state: String,
    /// When it started.
    pub started: String,
    /// State directory.
    pub state_dir: PathBuf,
    /// Sockets that NBD clients may connect to, as URIs without an export name.
    pub listening: Vec<String>,
    /// See [`AuditStatus`].
    pub audit: AuditStatus,
    /// The protection of key memory in force (`secretmem`, `mlock`), or why there is none.
    pub key_memory: KeyMemoryStatus,
    /// The configured key services, by name.
    pub key_services: Vec<KeyServiceStatus>,
    /// See [`SelfTest`].
    pub selftest: SelfTest,
    /// How many volumes there are, by state.
    pub volumes: BTreeMap<String, usize>,
    /// The ephemeral volumes that are attached: what they hold is gone when the daemon ends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ephemeral: Vec<VolumeName>,
    /// What went wrong and waits for the operator.
    pub failures: Vec<Failure>,
}

/// Memory that holds keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyMemoryStatus {
    /// `secretmem`, `mlock`, or `none`.
    pub protection: String,
    /// Bytes locked now.
    pub locked_bytes: usize,
    /// Keys held now.
    pub keys: usize,
    /// Why there is no protection, and what to change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// A configured key service. Nobody asked it for this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyServiceStatus {
    /// What key references call it.
    pub name: String,
    /// `aws-kms`, `azure-kv`, `local`, `pkcs11`, `tpm2` or `transit`.
    pub kind: String,
    /// Its database, token, device or address.
    pub at: String,
    /// Of a `local` one, where its master key comes from: `file`, `credential`, `passphrase`, the number of its shares, or what
    /// wraps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master_key: Option<String>,
    /// The credential that makes volumes can open them, too: the configuration allows it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub single_credential: bool,
}

/// Something that waits for the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What it is about: a volume's name, or a part of the daemon.
    pub subject: String,
    /// What happened, and the next step.
    pub message: String,
}

/// The daemon's audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditStatus {
    /// The file.
    pub log: PathBuf,
    /// The last record, as `NUMBER:MAC`: kept elsewhere, it shows later whether the log was shortened
    /// or written anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<String>,
    /// The verification key, as long as it lies beside the log, where it protects nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification_key: Option<PathBuf>,
}

/// Ask the daemon to end in good order, as SIGTERM does, but only if nothing is lost by it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// Also if ephemeral volumes are attached: what they hold is gone then. Without it that is refused.
    #[serde(default)]
    pub drop_ephemeral: bool,
}

/// The daemon is about to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopping {
    /// The ephemeral volumes whose content is gone with it.
    pub dropped: Vec<VolumeName>,
}
