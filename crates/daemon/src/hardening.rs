//! What the process gives up before it holds a key, and what it makes sure of.

use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};
use sealvol_crypto::HardenError;

/// Called first thing, before any thread: no core dumps, no tracing by the same user, private files, no round keys in the registers
/// that a new thread inherits from a worker.
///
/// # Errors
/// When the kernel refuses; the daemon then does not start.
pub(crate) fn harden() -> Result<(), HardenError> {
    sealvol_crypto::harden_process()?;
    sealvol_store::before_new_threads(sealvol_crypto::clear_residue);
    umask(Mode::RWXG | Mode::RWXO);
    Ok(())
}

/// Lets the process open as many files as it may: each connection is one, each attached volume two.
pub(crate) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    if let Err(error) = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    ) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
