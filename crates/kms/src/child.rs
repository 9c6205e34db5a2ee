//! The key child: the process that carries out one batch and exits.
//!
//! ```text
//! harden → fd 0 and 1 are sockets? → no new privileges → receive batch → confine → open the
//! provider (by another one, if that wraps its master key) → carry out → keys to fd 1 → reply to fd 0 → exit
//! ```
//! What always holds: the process is hardened before it reads anything; it is confined to the
//! provider's files and servers, and those of the provider that wraps its master key, before it opens one; keys are written before the reply that announces them; when
//! the daemon goes away it ends at once, whatever it is waiting for.
//!
//! It never writes anything but keys to standard output, and never a key anywhere else.

mod data_keys;
mod provider;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::FileType;
use sealvol_control::key_ref::KeyRef;
use sealvol_control::keychild::frame::{self, FrameError};
use sealvol_control::keychild::{Batch, CALLS_MAX, Call, Confinement, Reply, Right, Service};
use sealvol_crypto::locked::{KeyMemory, Policy};
use sealvol_crypto::{HardenError, KeyError, harden_process};
use tokio::runtime::Runtime;

use crate::batch::{Outcome, carry_out, refuse};
use crate::confinement::{self, Needs};
use crate::local::clock::SystemClock;
use crate::local::{Local, Opening, wrapped};
use crate::{KeyService, Refusal};
use data_keys::Asked;
use provider::Visitor;

/// Why a batch has no reply. The daemon gets the text by standard error.
#[derive(Debug, thiserror::Error)]
enum ChildError {
    #[error("batch: {0}")]
    Batch(FrameError),
    #[error("cannot be confined: {0}")]
    Confine(#[from] landlock::RulesetError),
    #[error(transparent)]
    Harden(#[from] HardenError),
    #[error("keys: {0}")]
    KeySocket(#[from] KeyError),
    #[error("cannot give up new privileges: {0}")]
    NewPrivileges(io::Error),
    #[error(
        "is started by sealvold with sockets as standard input and output; not for use by hand without a command (--help)"
    )]
    NotAChild,
    #[error("reply: {0}")]
    Reply(FrameError),
    #[error("{0}")]
    System(#[from] io::Error),
    #[error("batch: {calls} calls; at most {CALLS_MAX} are possible")]
    TooManyCalls { calls: usize },
}

/// The whole program.
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), ChildError> {
    harden_process()?;
    let (messages, mut keys_out) = sockets()?;
    confinement::forbid_new_privileges().map_err(ChildError::NewPrivileges)?;
    let (batch, mut descriptors): (Batch, _) =
        frame::receive(&messages).map_err(ChildError::Batch)?;
    let writes = |call: &Call| matches!(call, Call::Backup { .. });
    let sink = batch.calls.iter().any(writes).then(|| descriptors.pop());
    let given = Given {
        sink: sink.flatten().map(File::from),
        passphrase: descriptors.pop(),
    };
    if batch.calls.len() > CALLS_MAX {
        return Err(ChildError::TooManyCalls {
            calls: batch.calls.len(),
        });
    }
    let create = may_create(&batch);
    let needs = provider::needs(&batch.provider, create);
    let confined = confinement::confine(needs.as_ref().unwrap_or(&Needs::NOTHING))?;
    let replied = exit_with_daemon(&messages)?;

    let (outcome, protection) = match needs {
        Ok(needs) => execute(&batch, &needs, create, given)?,
        Err(refusal) => (refuse(&refusal, batch.right, &batch.calls), None),
    };
    let Outcome {
        results,
        keys,
        table,
    } = outcome;
    for key in keys {
        key.write_to(&mut keys_out)?;
    }
    replied.store(true, Ordering::Release);
    let confinement = Confinement {
        landlock: confined,
        protection,
    };
    frame::send(
        &messages,
        &Reply {
            confinement,
            results,
            table,
        },
    )
    .map_err(ChildError::Reply)
}

/// What came with the batch.
struct Given {
    passphrase: Option<OwnedFd>,
    /// What a backup is written to.
    sink: Option<File>,
}

/// Message and key socket: descriptors 0 and 1.
fn sockets() -> Result<(UnixStream, UnixStream), ChildError> {
    let socket = |descriptor: &dyn AsFd| {
        let found = rustix::fs::fstat(descriptor.as_fd()).map_err(|_| ChildError::NotAChild)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::Socket {
            return Err(ChildError::NotAChild);
        }
        Ok(UnixStream::from(descriptor.as_fd().try_clone_to_owned()?))
    };
    Ok((socket(&io::stdin())?, socket(&io::stdout())?))
}

/// Whether this batch may make what is missing: the operator asked for a key, and the configuration
/// allows it.
fn may_create(batch: &Batch) -> bool {
    let allowed = match &batch.provider.service {
        Service::Local(service) => service.create,
        Service::Tpm2(_) => true,
        Service::AwsKms(_) | Service::AzureKv(_) | Service::Pkcs11(_) | Service::Transit(_) => {
            false
        }
    };
    allowed
        && batch.right == Right::Administer
        && batch
            .calls
            .iter()
            .any(|call| matches!(call, Call::CreateKey { .. }))
}

/// Ends this process when the other end of `messages` is closed, until the flag that it returns is
/// set: then the daemon has what it wants and may be the first to close.
fn exit_with_daemon(messages: &UnixStream) -> io::Result<Arc<AtomicBool>> {
    let replied = Arc::new(AtomicBool::new(false));
    let (seen, messages) = (Arc::clone(&replied), messages.try_clone()?);
    thread::Builder::new()
        .name("daemon-watch".to_owned())
        .spawn(move || {
            let mut watched = [PollFd::new(&messages, PollFlags::empty())];
            while poll(&mut watched, None) == Err(rustix::io::Errno::INTR) {}
            if !seen.load(Ordering::Acquire) {
                say("the daemon is gone");
                std::process::exit(1);
            }
        })?;
    Ok(replied)
}

/// Opens the provider and carries out the batch.
fn execute(
    batch: &Batch,
    needs: &Needs,
    create: bool,
    given: Given,
) -> io::Result<(Outcome, Option<String>)> {
    let policy = Policy {
        require_secretmem: batch.require_secretmem,
    };
    let memory = match KeyMemory::new(policy) {
        Ok(memory) => memory,
        Err(error) => return Ok((refuse(&error.into(), batch.right, &batch.calls), None)),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let at_work = AtWork {
        batch,
        memory: &memory,
        runtime: &runtime,
    };
    let outcome = match &batch.provider.service {
        Service::Local(service) => {
            let opening = Opening {
                name: &batch.provider.name,
                service,
                create,
                passphrase: given.passphrase.as_ref(),
                data_keys: None,
                sink: given.sink,
                relied_on: batch.relied_on.as_ref(),
                accept_table: batch.right == Right::Administer
                    && batch.calls.first() == Some(&Call::AcceptTable),
                principal: batch.principal,
                right: batch.right,
                clock: Box::new(SystemClock),
            };
            match (service.wrapped_master_key(), service.asks()) {
                (Some(master_key), Some(asked)) => {
                    let by = &master_key.by;
                    let then = OpenLocal {
                        at_work,
                        opening,
                        by,
                    };
                    provider::open(asked, needs, &memory, then)
                }
                _ => at_work.visit(Local::open(opening, &memory)),
            }
        }
        _ => provider::open(&batch.provider, needs, &memory, at_work),
    };
    Ok((outcome, Some(memory.protection().to_string())))
}

/// A batch, and what it is carried out with.
struct AtWork<'a> {
    batch: &'a Batch,
    memory: &'a Arc<KeyMemory>,
    runtime: &'a Runtime,
}

impl Visitor for AtWork<'_> {
    type Output = Outcome;

    /// Carries out the calls.
    fn visit<S: KeyService>(self, opened: Result<S, Refusal>) -> Outcome {
        self.runtime.block_on(carry_out(
            opened.as_ref(),
            self.memory,
            self.batch.right,
            &self.batch.calls,
        ))
    }
}

/// A `local` provider that is opened by another one.
struct OpenLocal<'a> {
    at_work: AtWork<'a>,
    opening: Opening<'a>,
    by: &'a KeyRef,
}

impl Visitor for OpenLocal<'_> {
    type Output = Outcome;

    /// Opens the provider with the one that wraps its master key, and carries out the calls.
    fn visit<S: KeyService>(self, opened: Result<S, Refusal>) -> Outcome {
        let Self {
            at_work,
            opening,
            by,
        } = self;
        let service = match opened {
            Ok(service) => service,
            Err(refusal) => {
                let refusal = wrapped::through(by, refusal);
                return refuse(&refusal, at_work.batch.right, &at_work.batch.calls);
            }
        };
        let asked = Asked {
            service,
            by,
            runtime: at_work.runtime,
            memory: at_work.memory,
        };
        let opening = Opening {
            data_keys: Some(&asked),
            ..opening
        };
        let local = Local::open(opening, at_work.memory);
        at_work.visit(local)
    }
}

/// Tells the daemon. That it does not listen is no reason to fail otherwise.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "sealvol-keys: {text}");
}
