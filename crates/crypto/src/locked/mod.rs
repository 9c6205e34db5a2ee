//! Memory for keys: locked, kept out of swap, core dumps and children, wiped on release.
//!
//! ```text
//!   KeyMemory ── arena ── arena ── …       an arena: 256 KiB locked, grown one by one, never moved
//!                  │
//!      guard │ slot slot slot … slot │ guard     a slot: 1 KiB, one key with all that is made of it
//! ```
//!
//! What always holds: all arenas have the same [`Protection`], chosen when the first one is made
//! and shown to the operator; a slot is all zeros when it is handed out and wiped when it comes
//! back; the locked bytes are the arenas and nothing else, so that 4,000 keys take 4 MiB of the
//! default RLIMIT_MEMLOCK of 8 MiB.
//!
//! It never falls back from locked memory to unlocked memory: without it there is no key.

mod sys;

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Resource, getrlimit};

pub(crate) use sys::{Placed, SLOT_BYTES, Slot};
use sys::{Region, RegionError};

/// Bytes by which the locked memory grows: 256 keys. Large enough for few mappings, small enough
/// for a process that holds a handful of keys under a small limit.
const ARENA_BYTES: usize = 256 * 1024;

/// How the kernel protects the memory that keys lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// `mlock(2)` with `MADV_DONTDUMP` and `MADV_WIPEONFORK`: not swapped, not dumped, not
    /// inherited; readable by root and by whoever may trace the process.
    Mlock,
    /// `memfd_secret(2)`: in addition unreachable for other processes and for the kernel's own
    /// direct map; not written by hibernation (which it prevents).
    SecretMem,
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mlock => "mlock",
            Self::SecretMem => "secretmem",
        })
    }
}

/// What the operator demands of key memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Refuse to hold keys in memory that is merely `mlock`ed.
    pub require_secretmem: bool,
}

/// Why there is no memory for a key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockedError {
    /// The process may not lock as many bytes.
    #[error(
        "cannot lock {wanted} more bytes of memory for keys: RLIMIT_MEMLOCK is {limit} and {locked} \
         bytes hold keys already; raise the limit with LimitMEMLOCK= in the systemd unit or with \
         `ulimit -l` before the start"
    )]
    MemlockLimit {
        /// Bytes of the arena that did not fit.
        wanted: usize,
        /// Bytes in the arenas so far.
        locked: usize,
        /// The limit in force.
        limit: MemlockLimit,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The policy demands secret memory and the kernel gives none.
    #[error(
        "secret memory is required and memfd_secret(2) is refused ({source}); boot with \
         secretmem.enable=1, name memfd_secret in the SystemCallFilter= of the unit, or do without \
         the requirement"
    )]
    SecretMemRequired {
        /// What the kernel answered.
        source: io::Error,
    },
    /// A system call failed for a reason that no setting of ours explains.
    #[error("cannot map {wanted} bytes of memory for keys: {call} failed: {source}")]
    Map {
        /// Bytes of the arena.
        wanted: usize,
        /// The call that failed.
        call: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
}

/// The soft RLIMIT_MEMLOCK of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemlockLimit(Option<u64>);

impl fmt::Display for MemlockLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(bytes) => write!(f, "{bytes} bytes"),
            None => f.write_str("unlimited"),
        }
    }
}

/// All locked memory of a process.
pub struct KeyMemory {
    protection: Protection,
    arenas: Mutex<Vec<Arc<Region>>>,
}

impl KeyMemory {
    /// Locks a first arena: secret memory where the kernel has it, else `mlock`ed memory.
    ///
    /// Only a kernel without `memfd_secret` (or a seccomp filter that refuses it) leads to the
    /// fallback; a limit that is too low never does, since the fallback has the same limit.
    ///
    /// # Errors
    /// [`LockedError::SecretMemRequired`] when the policy refuses the fallback, else that memory
    /// cannot be locked.
    pub fn new(policy: Policy) -> Result<Arc<Self>, LockedError> {
        let (protection, first) = match Region::secret(ARENA_BYTES) {
            Ok(region) => (Protection::SecretMem, region),
            Err(RegionError::NoSecretMemory(source)) if policy.require_secretmem => {
                return Err(LockedError::SecretMemRequired { source });
            }
            Err(RegionError::NoSecretMemory(_)) => {
                let region = Region::locked(ARENA_BYTES).map_err(|error| describe(error, 0))?;
                (Protection::Mlock, region)
            }
            Err(error) => return Err(describe(error, 0)),
        };
        Ok(Arc::new(Self {
            protection,
            arenas: Mutex::new(vec![Arc::new(first)]),
        }))
    }

    /// How the memory is protected.
    pub fn protection(&self) -> Protection {
        self.protection
    }

    /// Bytes that count against RLIMIT_MEMLOCK.
    pub fn locked_bytes(&self) -> usize {
        locked_bytes(&self.arenas())
    }

    /// Slots that hold a key, each 1 KiB.
    pub fn slots_in_use(&self) -> usize {
        self.arenas().iter().map(|arena| arena.slots_taken()).sum()
    }

    /// A slot of zeros; locks one more arena when all slots are in use.
    pub(crate) fn slot(&self) -> Result<Slot, LockedError> {
        let mut arenas = self.arenas();
        if let Some(slot) = arenas.iter().find_map(Region::take) {
            return Ok(slot);
        }
        let arena = match self.protection {
            Protection::Mlock => Region::locked(ARENA_BYTES),
            Protection::SecretMem => Region::secret(ARENA_BYTES),
        };
        let arena = Arc::new(arena.map_err(|error| describe(error, locked_bytes(&arenas)))?);
        let slot = arena
            .take()
            .expect("a new arena has free slots, and the list is locked");
        arenas.push(arena);
        Ok(slot)
    }

    fn arenas(&self) -> MutexGuard<'_, Vec<Arc<Region>>> {
        // The list is whole at every point where a holder could panic.
        self.arenas.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn locked_bytes(arenas: &[Arc<Region>]) -> usize {
    arenas.iter().map(|arena| arena.len()).sum()
}

fn describe(error: RegionError, locked: usize) -> LockedError {
    match error {
        RegionError::LockLimit(source) => LockedError::MemlockLimit {
            wanted: ARENA_BYTES,
            locked,
            limit: MemlockLimit(getrlimit(Resource::Memlock).current),
            source,
        },
        RegionError::Call { call, source } => LockedError::Map {
            wanted: ARENA_BYTES,
            call,
            source,
        },
        RegionError::NoSecretMemory(source) => LockedError::Map {
            wanted: ARENA_BYTES,
            call: "memfd_secret",
            source,
        },
    }
}

#[cfg(test)]
mod slots;
