//! How a key service refuses, by class; and what can go wrong with the child itself.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::frame::FrameError;

/// What kind of refusal it is: decides what the daemon does, whatever the provider calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// The call itself is wrong: rejected, a retry gives the same.
    CallerBug,
    /// The key is destroyed or never was, or the volume was shredded: the ciphertext is kept, the volume cannot be attached.
    GoneForEver,
    /// The key exists and cannot be used now (disabled, pending deletion, its master key not at
    /// hand): no retry, the volume stays available.
    KeyUnusable,
    /// The caller may not: no retry.
    NotPermitted,
    /// Outage, overload, timeout: retry with backoff. Never taken for a revocation.
    Transient,
    /// Wrong key, wrong context, or somebody changed the wrapped key: never retried, an alarm.
    WrongKeyOrTamper,
}

impl FailureClass {
    /// What the daemon is to do.
    #[must_use]
    pub fn fault(self) -> Fault {
        match self {
            Self::Transient => Fault::Retry,
            Self::WrongKeyOrTamper => Fault::Stop,
            Self::CallerBug | Self::GoneForEver | Self::KeyUnusable | Self::NotPermitted => {
                Fault::Refuse
            }
        }
    }

    /// The class in words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CallerBug => "caller bug",
            Self::GoneForEver => "gone for ever",
            Self::KeyUnusable => "key unusable",
            Self::NotPermitted => "not permitted",
            Self::Transient => "transient",
            Self::WrongKeyOrTamper => "wrong key or tamper",
        }
    }
}

/// What is to be done about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Say no; somebody has to change something first.
    Refuse,
    /// Try again later.
    Retry,
    /// Integrity is in doubt: refuse and raise an alarm.
    Stop,
}

/// A refusal by the key service, or by the child on its behalf. Never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message} ({provider_error}); {next_step}")]
#[serde(deny_unknown_fields)]
pub struct KeyFailure {
    /// What kind it is.
    pub class: FailureClass,
    /// The provider's own name for it, for example `DisabledException`.
    pub provider_error: String,
    /// What was refused, and why.
    pub message: String,
    /// What to do now.
    pub next_step: String,
    /// In so many seconds, and not before, the key service wants to be asked again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u32>,
}

impl KeyFailure {
    /// Whether the key service says that the key may not be used: not that it can't be asked, or can't do its work for want
    /// of its own files.
    #[must_use]
    pub fn is_revocation(&self) -> bool {
        let of_the_key = match self.class {
            FailureClass::GoneForEver
            | FailureClass::KeyUnusable
            | FailureClass::NotPermitted
            | FailureClass::WrongKeyOrTamper => true,
            FailureClass::CallerBug | FailureClass::Transient => false,
        };
        of_the_key && !OF_THE_SERVICE.contains(&self.provider_error.as_str())
    }
}

/// What the embedded key service calls it when its own files are the trouble: that says nothing about any key.
const OF_THE_SERVICE: [&str; 11] = [
    "DatabaseDamaged",
    "MasterKeyUnavailable",
    "NewerFormat",
    "NoDatabase",
    "NoDirectory",
    "OtherDatabase",
    "SealedKeyDamaged",
    "TableChanged",
    "TableRolledBack",
    "UnsafePlace",
    "WrongMasterKey",
];

/// What a provider calls it when the key child got no locked memory. Of the class [`FailureClass::Transient`], because it
/// says nothing about the key; but no repetition helps before the operator raises a limit.
pub const LOCKED_MEMORY_UNAVAILABLE: &str = "LockedMemoryUnavailable";

/// What a provider calls it when the server that answers is not proved to be the key service. Of the class
/// [`FailureClass::Transient`], because it says nothing about the key; but no repetition helps.
pub const UNTRUSTED_SERVER: &str = "UntrustedServer";

/// What a provider calls it when a token takes no PIN any more, or would not after another wrong one. Of the class
/// [`FailureClass::Transient`], because it says nothing about the key; but no repetition helps.
pub const PIN_LOCKED: &str = "CKR_PIN_LOCKED";

impl KeyFailure {
    /// Whether the same call may succeed a little later, without anybody changing anything here.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        let lasting = [LOCKED_MEMORY_UNAVAILABLE, PIN_LOCKED, UNTRUSTED_SERVER];
        self.class == FailureClass::Transient && !lasting.contains(&self.provider_error.as_str())
    }
}

/// Why a batch has no reply. Calls that reached the provider may have taken effect all the same.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyChildError {
    /// The reply is not one to this batch.
    #[error("key child {}: bad reply: {reason}; is it of the same version as the daemon?{}", program.display(), said(stderr))]
    BadReply {
        /// The program.
        program: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What it wrote to standard error.
        stderr: String,
    },
    /// The child ended before it replied, or failed afterwards.
    #[error("key child {}: ended with {status}{}", program.display(), said(stderr))]
    ChildDied {
        /// The program.
        program: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to standard error.
        stderr: String,
    },
    /// There is no such program.
    #[error("key child {}: no such program; install it beside the daemon or name its path in the configuration", program.display())]
    NoProgram {
        /// The program.
        program: PathBuf,
    },
    /// The socket to it failed.
    #[error("key child {}: its message socket: {source}", program.display())]
    Socket {
        /// The program.
        program: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It could not be started.
    #[error("key child {}: cannot be started: {source}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It took too long and was killed.
    #[error("key child {}: no reply within {} ms, killed; see whether the key service answers{}", program.display(), deadline.as_millis(), said(stderr))]
    TimedOut {
        /// The program.
        program: PathBuf,
        /// The time it had.
        deadline: Duration,
        /// What it wrote to standard error.
        stderr: String,
    },
    /// The batch has more calls than one child takes.
    #[error(
        "key child: {calls} calls in a batch; at most {} are possible",
        super::message::CALLS_MAX
    )]
    TooManyCalls {
        /// The number of calls.
        calls: usize,
    },
    /// The batch cannot be sent.
    #[error("key child: the batch cannot be sent: {0}")]
    Unsendable(#[source] FrameError),
}

impl KeyChildError {
    /// The class, so that callers treat the child's failures like the provider's.
    ///
    /// Nothing here is ever a revocation: a child that dies says nothing about the key.
    #[must_use]
    pub fn class(&self) -> FailureClass {
        match self {
            Self::TooManyCalls { .. } | Self::Unsendable(_) => FailureClass::CallerBug,
            Self::BadReply { .. }
            | Self::ChildDied { .. }
            | Self::NoProgram { .. }
            | Self::Socket { .. }
            | Self::Spawn { .. }
            | Self::TimedOut { .. } => FailureClass::Transient,
        }
    }

    /// What is to be done: [`Fault::Refuse`] where a retry gives the same until somebody mends the
    /// installation, else [`Fault::Retry`].
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::BadReply { .. }
            | Self::NoProgram { .. }
            | Self::TooManyCalls { .. }
            | Self::Unsendable(_) => Fault::Refuse,
            Self::ChildDied { .. }
            | Self::Socket { .. }
            | Self::Spawn { .. }
            | Self::TimedOut { .. } => Fault::Retry,
        }
    }
}

/// What the child said, as the end of a message.
fn said(stderr: &str) -> String {
    if stderr.is_empty() {
        String::new()
    } else {
        format!("; it said: {stderr}")
    }
}
