//! The key child: starts `sealvol-keys` for one batch of calls to a key service, and reads its reply.
//!
//! ```text
//! daemon                                sealvol-keys (one batch, then exit)
//!   message socket  ──── Batch ────▶  fd 0     [`frame`], [`message`]
//!                   ◀─── Reply ─────
//!   key socket      ◀── 64 B × n ───  fd 1     one plaintext key for each successful `Unwrap`, in order
//!   (pipe)          ◀── text ───────  fd 2     what went wrong, bounded, never a secret
//! ```
//! The sockets stand on descriptors 0 and 1 because those can be set without `unsafe` code between
//! fork and exec. A provider's passphrase comes as a file descriptor with the batch (`SCM_RIGHTS`),
//! and so does the file that a backup is written to; with both, the passphrase comes first.
//!
//! What always holds:
//! - key bytes go through the key socket only, and this module never reads it: it hands the socket
//!   on. They are all in its buffer by the time the reply is here, so reading them does not block.
//! - the child's environment is empty but for what the configuration names for a module that it loads, and its working
//!   directory is `/`;
//! - a child outlives neither its deadline nor the future that waits for it: it is killed.
//!
//! What it never does: retry. Whether to is for the caller to say, by [`FailureClass::fault`] and
//! [`KeyChildError::fault`].

mod aws_kms;
mod azure;
mod backup;
mod failure;
pub mod frame;
mod import;
mod lifecycle;
mod master_key;
pub mod message;
mod pkcs11;
mod policy;
mod remote;
mod tombstone;
mod tpm2;
mod transit;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, Command};

pub use aws_kms::{AwsKmsService, CredentialsFile};
pub use azure::{AzureService, Identity};
pub use backup::{BackupMade, MasterKeyForm};
pub use failure::{
    FailureClass, Fault, KeyChildError, KeyFailure, LOCKED_MEMORY_UNAVAILABLE, PIN_LOCKED,
    UNTRUSTED_SERVER,
};
pub use import::{
    IMPORT_BYTES_MAX, IMPORT_SECONDS, ImportParameters, MATERIAL_DAYS_MAX, Origin,
    WrappingAlgorithm, WrappingKeySpec,
};
pub use lifecycle::{
    ALIAS_PREFIX, ALIASES_MAX, AliasChange, AliasChanged, DELETION_WINDOW, KeyChange, KeyState,
    Lifecycle, ROTATION_PERIOD, ROTATIONS_ON_DEMAND_MAX, TableState, Tended,
};
pub use master_key::{MasterKey, SharePaths, WrappedMasterKey};
pub use message::{
    Batch, CALLS_MAX, Call, CallResult, Confinement, Context, Done, KeyDescription, KeyVersion,
    Landlock, LocalService, PROTOCOL_VERSION, Provider, Reply, Right, Service, WRAPPED_MAX,
    Wrapped,
};
pub use pkcs11::{Pkcs11Service, WrapMechanism};
pub use policy::{POLICY_BYTES_MAX, POLICY_CONTEXT, Policy, PolicyError, Principal};
pub use remote::Address;
pub use tombstone::{CONTEXT_DATA_KEY, CONTEXT_VOLUME, Tombstones};
pub use tpm2::{PcrBank, Tpm2Service};
pub use transit::{Credential, TransitService};

use frame::FrameError;

/// Most bytes of the child's standard error that are kept.
const STDERR_MAX: usize = 4096;

/// How long a killed child may take to be gone before it is left to the runtime to reap.
const REAP: Duration = Duration::from_secs(1);

/// Starts key children. Needs a tokio runtime with I/O and time.
#[derive(Clone, Debug)]
pub struct KeyChild {
    program: PathBuf,
    deadline: Duration,
}

/// What goes with a batch and stands in no message.
#[derive(Clone, Copy, Debug, Default)]
pub struct Descriptors<'a> {
    /// Where the passphrase that [`MasterKey::Passphrase`] asks for is read from.
    pub passphrase: Option<BorrowedFd<'a>>,
    /// What [`Call::Backup`] writes to; given with a batch that has this call, and with no other.
    pub sink: Option<BorrowedFd<'a>>,
}

/// What a batch came to.
#[derive(Debug)]
pub struct Answer {
    /// One result for each call, in order; the kinds match.
    pub results: Vec<CallResult>,
    /// The key socket, read side: 64 bytes for each successful `Unwrap`, in order, then the end.
    /// Blocking, but all bytes are there: the child has exited.
    pub keys: UnixStream,
    /// How the child was confined.
    pub confinement: Confinement,
    /// What the provider's table of keys is known by now.
    pub table: Option<TableState>,
}

impl KeyChild {
    /// Children run `program` (an absolute path) and have `deadline` for their batch.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>, deadline: Duration) -> Self {
        Self {
            program: program.into(),
            deadline,
        }
    }

    /// The same, with another deadline: what is left of one that several attempts share.
    #[must_use]
    pub fn within(&self, deadline: Duration) -> Self {
        Self {
            program: self.program.clone(),
            deadline,
        }
    }

    /// Carries out `batch` in a child of its own.
    ///
    /// # Errors
    /// When there is no reply to it; that a single call fails is in the answer.
    pub async fn call(&self, batch: &Batch) -> Result<Answer, KeyChildError> {
        self.call_with(batch, Descriptors::default()).await
    }

    /// Like [`Self::call`], with the passphrase that [`MasterKey::Passphrase`] asks for.
    ///
    /// A file or memfd is read from its beginning whatever its offset, so it serves any number of
    /// children; a pipe serves one.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn call_with_passphrase(
        &self,
        batch: &Batch,
        passphrase: BorrowedFd<'_>,
    ) -> Result<Answer, KeyChildError> {
        let descriptors = Descriptors {
            passphrase: Some(passphrase),
            sink: None,
        };
        self.call_with(batch, descriptors).await
    }

    /// Like [`Self::call`], with what cannot stand in the batch.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn call_with(
        &self,
        batch: &Batch,
        descriptors: Descriptors<'_>,
    ) -> Result<Answer, KeyChildError> {
        if batch.calls.len() > CALLS_MAX {
            return Err(KeyChildError::TooManyCalls {
                calls: batch.calls.len(),
            });
        }
        let request = frame::encode(batch).map_err(KeyChildError::Unsendable)?;
        let socket = |source| KeyChildError::Socket {
            program: self.program.clone(),
            source,
        };
        let (messages, childs_messages) = UnixStream::pair().map_err(socket)?;
        let (keys, childs_keys) = UnixStream::pair().map_err(socket)?;
        let mut child = self.spawn(batch, childs_messages.into(), childs_keys.into())?;

        let mut stderr = Vec::new();
        let whole = run(&mut child, messages, &request, descriptors, &mut stderr);
        let (reply, status) = match tokio::time::timeout(self.deadline, whole).await {
            Ok(ended) => ended.map_err(socket)?,
            Err(_) => {
                // A child that SIGKILL does not end at once (stuck in the kernel) is reaped later.
                let _ = tokio::time::timeout(REAP, child.kill()).await;
                return Err(KeyChildError::TimedOut {
                    program: self.program.clone(),
                    deadline: self.deadline,
                    stderr: printable(&stderr),
                });
            }
        };
        let Reply {
            confinement,
            results,
            table,
        } = self.judge(batch, reply, status, &stderr)?;
        Ok(Answer {
            results,
            keys,
            confinement,
            table,
        })
    }

    fn spawn(
        &self,
        batch: &Batch,
        messages: OwnedFd,
        keys: OwnedFd,
    ) -> Result<Child, KeyChildError> {
        // The command owns the child's ends, so they are closed here when it goes out of scope;
        // else a child that dies would never be seen as the end of its sockets.
        Command::new(&self.program)
            .env_clear()
            .envs(batch.provider.service.environment())
            .current_dir("/")
            .stdin(Stdio::from(messages))
            .stdout(Stdio::from(keys))
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => KeyChildError::NoProgram {
                    program: self.program.clone(),
                },
                _ => KeyChildError::Spawn {
                    program: self.program.clone(),
                    source,
                },
            })
    }

    /// The reply, if it is one to this batch and the child ended well.
    fn judge(
        &self,
        batch: &Batch,
        reply: Result<Reply, FrameError>,
        status: ExitStatus,
        stderr: &[u8],
    ) -> Result<Reply, KeyChildError> {
        let program = self.program.clone();
        let stderr = printable(stderr);
        if !status.success() {
            return Err(KeyChildError::ChildDied {
                program,
                status,
                stderr,
            });
        }
        let reason = match reply {
            Ok(reply) if answers(&reply, batch) => return Ok(reply),
            Ok(_) => "its results do not belong to the calls".to_owned(),
            Err(error) => error.to_string(),
        };
        Err(KeyChildError::BadReply {
            program,
            reason,
            stderr,
        })
    }

    /// The program that children run.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }
}

/// Talks to the child until it has exited. All three at once: a child that blocks on a full pipe
/// of standard error would never reply.
async fn run(
    child: &mut Child,
    messages: UnixStream,
    request: &[u8],
    descriptors: Descriptors<'_>,
    stderr: &mut Vec<u8>,
) -> io::Result<(Result<Reply, FrameError>, ExitStatus)> {
    let text = child.stderr.take();
    let (reply, (), status) = tokio::join!(
        talk(messages, request, descriptors),
        keep_beginning(text, stderr),
        child.wait()
    );
    Ok((reply, status?))
}

async fn talk(
    messages: UnixStream,
    request: &[u8],
    Descriptors { passphrase, sink }: Descriptors<'_>,
) -> Result<Reply, FrameError> {
    let rights: Vec<_> = passphrase.into_iter().chain(sink).collect();
    let sent = if rights.is_empty() {
        0
    } else {
        frame::send_with_rights(&messages, request, &rights)?
    };
    messages.set_nonblocking(true)?;
    let mut messages = tokio::net::UnixStream::from_std(messages)?;
    messages.write_all(&request[sent..]).await?;
    frame::receive_reply(&mut messages).await
    // The socket is closed here: the child takes that for leave to go if it has not gone yet.
}

/// Reads standard error to its end and keeps the first [`STDERR_MAX`] bytes.
async fn keep_beginning(text: Option<ChildStderr>, kept: &mut Vec<u8>) {
    let Some(mut text) = text else { return };
    let mut piece = [0; 1024];
    // A pipe that fails to read has nothing more to say: what it said so far is what we have.
    while let Ok(read @ 1..) = text.read(&mut piece).await {
        let room = STDERR_MAX.saturating_sub(kept.len());
        kept.extend_from_slice(&piece[..read.min(room)]);
    }
}

fn answers(reply: &Reply, batch: &Batch) -> bool {
    reply.results.len() == batch.calls.len()
        && reply
            .results
            .iter()
            .zip(&batch.calls)
            .all(|(result, call)| match result {
                Ok(done) => done.answers(call),
                Err(_) => true,
            })
}

/// Text of a child for a message: one line, nothing that a terminal obeys.
fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let line = text.trim().replace('\n', "; ");
    line.chars().filter(|c| !c.is_control()).collect()
}
