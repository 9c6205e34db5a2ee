//! The daemon's parts, together: what every operation works on.
//!
//! What always holds:
//! - operations on one volume take turns; those on different volumes run beside each other;
//! - an operation that has begun is carried to its end, whether or not its caller waits, and the
//!   daemon stops only after it;
//! - no key is loaded before the self-tests have passed, and none after they have failed.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use sealvol_control::api::{self, VolumeName};
use sealvol_control::keychild::Right;
use sealvol_crypto::locked::{KeyMemory, Policy};
use sealvol_volume::MapCache;
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedMutexGuard, OwnedRwLockReadGuard, RwLock};

use crate::audit::Audit;
use crate::bench::Benches;
use crate::config::Config;
use crate::error::Error;
use crate::exports::Exports;
use crate::jobs::Jobs;
use crate::keys::Keys;
use crate::operations::{Merges, OpenLayers};
use crate::registry::{Registry, VolumeRow};
use crate::revocation::Revocation;
use crate::rights::Caller;
use crate::state_dir::StateDir;
use crate::working_state::BootId;

/// Memory for the maps of all volumes: 64 MiB hold those of 1 TiB of scattered blocks.
const MAP_CACHE: usize = 64 << 20;

/// Everything.
pub(crate) struct Daemon {
    pub(crate) config: Config,
    pub(crate) state: StateDir,
    pub(crate) registry: Registry,
    pub(crate) audit: Audit,
    pub(crate) keys: Keys,
    pub(crate) exports: Arc<Exports>,
    /// Where background tasks of volumes run, and operations.
    pub(crate) runtime: Handle,
    /// The Unix socket that the URIs of exports name.
    pub(crate) nbd_socket: PathBuf,
    /// What is listened on, as URIs.
    pub(crate) listening: Vec<String>,
    /// The maps of all volumes, as far as they are in memory.
    pub(crate) map_cache: Arc<MapCache>,
    /// Below the runtime directory: the working states of volumes.
    pub(crate) working_dir: PathBuf,
    /// This boot.
    pub(crate) boot: BootId,
    /// When the daemon started, RFC 3339.
    pub(crate) started: String,
    /// Layers that never change again, each open once.
    pub(crate) open_layers: OpenLayers,
    /// What becomes of the layers of deleted snapshots.
    pub(crate) merges: Merges,
    pub(crate) memory: Memory,
    /// What went wrong and waits for the operator, by volume or part.
    pub(crate) failures: Failures,
    /// Measurements of `bench`.
    pub(crate) benches: Benches,
    /// Work that goes on by itself.
    pub(crate) jobs: Jobs,
    /// The keys that are watched.
    pub(crate) revocation: Revocation,
    /// Held shared while an ephemeral volume is being attached; true once the daemon was told to stop.
    pub(crate) ephemeral_gate: RwLock<bool>,
    /// Somebody with the right to told it to stop.
    pub(crate) told_to_stop: Notify,
    turns: Turns,
    /// Held shared by every operation; taken when the daemon stops, and true from then on.
    stopping: Arc<RwLock<bool>>,
}

/// What [`Daemon`] is made of, beside what it makes itself.
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) state: StateDir,
    pub(crate) registry: Registry,
    pub(crate) audit: Audit,
    pub(crate) keys: Keys,
    pub(crate) exports: Arc<Exports>,
    pub(crate) nbd_socket: PathBuf,
    pub(crate) listening: Vec<String>,
    pub(crate) working_dir: PathBuf,
    pub(crate) boot: BootId,
}

/// Leave to carry out one operation; the daemon does not stop before it is dropped.
pub(crate) type Leave = OwnedRwLockReadGuard<bool>;

impl Daemon {
    pub(crate) fn new(parts: Parts, runtime: Handle) -> Self {
        let policy = Policy {
            require_secretmem: parts.config.require_secretmem,
        };
        Self {
            config: parts.config,
            state: parts.state,
            registry: parts.registry,
            audit: parts.audit,
            keys: parts.keys,
            exports: parts.exports,
            runtime,
            map_cache: MapCache::new(MAP_CACHE),
            working_dir: parts.working_dir,
            boot: parts.boot,
            nbd_socket: parts.nbd_socket,
            listening: parts.listening,
            started: crate::timestamp::now(),
            open_layers: OpenLayers::default(),
            merges: Merges::default(),
            memory: Memory {
                policy,
                inner: Mutex::default(),
            },
            failures: Failures::default(),
            benches: Benches::default(),
            jobs: Jobs::default(),
            revocation: Revocation::default(),
            ephemeral_gate: RwLock::default(),
            told_to_stop: Notify::new(),
            turns: Turns::default(),
            stopping: Arc::default(),
        }
    }

    /// The daemon as a caller of its own key services.
    pub(crate) fn itself() -> Caller {
        Caller {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            pid: Some(rustix::process::getpid().as_raw_nonzero().get()),
        }
    }

    /// Refuses a caller without `right`.
    pub(crate) fn require(&self, caller: Caller, right: Right) -> Result<(), Error> {
        if self.config.rights.hold(caller, right) {
            Ok(())
        } else {
            Err(Error::Forbidden {
                uid: caller.uid,
                right,
            })
        }
    }

    /// Refuses a caller without any right.
    pub(crate) fn require_any(&self, caller: Caller) -> Result<(), Error> {
        if self.config.rights.may_look(caller) {
            Ok(())
        } else {
            Err(Error::Stranger(caller.uid))
        }
    }

    /// Leave to begin an operation, unless the daemon is stopping.
    pub(crate) async fn leave(&self) -> Result<Leave, Error> {
        let leave = Arc::clone(&self.stopping).read_owned().await;
        if *leave {
            Err(Error::Stopping)
        } else {
            Ok(leave)
        }
    }

    /// Waits for the operations that have begun; none begins any more. Jobs rest.
    pub(crate) async fn end_operations(&self) {
        self.benches.stop();
        self.jobs.stop().await;
        *self.stopping.write().await = true;
    }

    /// Waits for its turn with the volume of that name. What is not exported then nobody has open: a job that had it open
    /// opens it again when its own turn comes.
    pub(crate) async fn turn(&self, name: &VolumeName) -> OwnedMutexGuard<()> {
        let turn = self.job_turn(name).await;
        self.close_opened(name).await;
        turn
    }

    /// [`Self::turn`] for a job, which leaves open what it has opened.
    pub(crate) async fn job_turn(&self, name: &VolumeName) -> OwnedMutexGuard<()> {
        self.turns.of(name).lock_owned().await
    }

    /// The registered volume of that name; one that is half made or half deleted is none.
    pub(crate) async fn registered(&self, name: &VolumeName) -> Result<VolumeRow, Error> {
        let wanted = name.clone();
        let row = self
            .registry
            .call(move |registry| registry.volume(&wanted))
            .await?;
        row.filter(|row| row.state == crate::registry::RowState::Available)
            .ok_or_else(|| Error::NoSuchVolume(name.clone()))
    }
}

/// Locked memory, and whether the algorithms that work in it give the right answers.
pub(crate) struct Memory {
    policy: Policy,
    inner: Mutex<MemoryState>,
}

#[derive(Default)]
struct MemoryState {
    memory: Option<Arc<KeyMemory>>,
    selftest: Option<api::SelfTest>,
}

impl Memory {
    /// Memory for a key, with passed self-tests.
    ///
    /// # Errors
    /// When memory cannot be locked (tried again each time: the operator may have raised the limit)
    /// or a self-test has failed (for ever).
    pub(crate) fn ready(&self) -> Result<Arc<KeyMemory>, Error> {
        let mut inner = lock(&self.inner);
        let memory = self.locked(&mut inner)?;
        let report = inner.selftest.get_or_insert_with(|| run_selftest(&memory));
        match &report.failure {
            None => Ok(memory),
            Some(failure) => Err(Error::SelfTest(failure.clone())),
        }
    }

    /// Runs the self-tests now, again if they ran before. Once failed they stay so.
    pub(crate) fn selftest(&self) -> Result<api::SelfTest, Error> {
        let mut inner = lock(&self.inner);
        let memory = self.locked(&mut inner)?;
        let report = run_selftest(&memory);
        if inner.selftest.as_ref().is_none_or(|earlier| earlier.passed) {
            inner.selftest = Some(report.clone());
        }
        Ok(report)
    }

    /// The memory if there is some, and the last self-test if one ran.
    pub(crate) fn look(&self) -> (Option<Arc<KeyMemory>>, Option<api::SelfTest>) {
        let inner = lock(&self.inner);
        (inner.memory.clone(), inner.selftest.clone())
    }

    fn locked(&self, inner: &mut MemoryState) -> Result<Arc<KeyMemory>, Error> {
        if let Some(memory) = &inner.memory {
            return Ok(Arc::clone(memory));
        }
        let memory = KeyMemory::new(self.policy).map_err(|e| Error::KeyMemory(Arc::new(e)))?;
        Ok(Arc::clone(inner.memory.insert(memory)))
    }
}

fn run_selftest(memory: &Arc<KeyMemory>) -> api::SelfTest {
    match sealvol_crypto::selftest::run(memory) {
        Ok(report) => {
            let tests = report.tests.iter().map(|&name| name.to_owned()).collect();
            api::SelfTest {
                passed: true,
                tests,
                failure: None,
            }
        }
        Err(error) => {
            tracing::error!(%error, "self-test failed: no key is loaded, nothing is served");
            let failure = Some(error.to_string());
            api::SelfTest {
                passed: false,
                tests: Vec::new(),
                failure,
            }
        }
    }
}

/// What waits for the operator, by subject.
#[derive(Default)]
pub(crate) struct Failures(Mutex<BTreeMap<String, String>>);

impl Failures {
    pub(crate) fn set(&self, subject: &str, message: String) {
        lock(&self.0).insert(subject.to_owned(), message);
    }

    pub(crate) fn clear(&self, subject: &str) {
        lock(&self.0).remove(subject);
    }

    pub(crate) fn of(&self, subject: &str) -> Option<String> {
        lock(&self.0).get(subject).cloned()
    }

    pub(crate) fn all(&self) -> Vec<api::Failure> {
        let failures = lock(&self.0);
        let failure = |(subject, message): (&String, &String)| api::Failure {
            subject: subject.clone(),
            message: message.clone(),
        };
        failures.iter().map(failure).collect()
    }
}

/// Operations on one volume, one after the other.
#[derive(Default)]
struct Turns(Mutex<HashMap<VolumeName, Weak<tokio::sync::Mutex<()>>>>);

impl Turns {
    fn of(&self, name: &VolumeName) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = lock(&self.0);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(name).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        turns.insert(name.clone(), Arc::downgrade(&turn));
        turn
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn operations_on_one_volume_take_turns() {
        let turns = Turns::default();
        let name = |text: &str| text.parse::<VolumeName>().expect("a name");
        let first = turns.of(&name("a")).lock_owned().await;
        assert!(turns.of(&name("a")).try_lock().is_err());
        assert!(turns.of(&name("b")).try_lock().is_ok());
        drop(first);
        assert!(turns.of(&name("a")).try_lock().is_ok());
        assert!(
            lock(&turns.0).len() <= 2,
            "turns that nobody holds are forgotten"
        );
    }
}
