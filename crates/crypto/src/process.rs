//! What a process that holds keys does first: no core dumps, not traceable by its own user.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Why the process could not be hardened.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} before keys are held: {source}; refusing to go on")]
pub struct HardenError {
    what: &'static str,
    source: io::Error,
}

/// Forbids core dumps and tracing by other processes of the same user: PR_SET_DUMPABLE 0 and
/// RLIMIT_CORE 0 (soft and hard).
///
/// Call it first thing in `main`: `execve` makes a process dumpable again.
///
/// # Errors
/// When the kernel refuses either; the caller must not go on.
pub fn harden_process() -> Result<(), HardenError> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|errno| HardenError {
        what: "make the process undumpable (PR_SET_DUMPABLE)",
        source: errno.into(),
    })?;
    setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )
    .map_err(|errno| HardenError {
        what: "forbid core dumps (RLIMIT_CORE)",
        source: errno.into(),
    })
}
