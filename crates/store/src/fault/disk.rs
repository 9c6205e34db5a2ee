//! The disk: power, plan, space, names, and what a restart finds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::lock::Mutex as AsyncMutex;

use super::FaultDirectory;
use super::cache::Cache;
use super::gate::{Gate, Hold};
use super::journal::{Covers, Journal, Outcome, Record};
use super::namespace::{FileId, Namespace};
use super::plan::{Fault, Plan, When};
use super::random::Random;
use crate::sharing::Sharing;
use crate::{Directory, MemoryDirectory, Operation, Place, StoreError};

/// A model of one disk, and of the file system on it. A clone is the same disk.
pub struct FaultDisk<D: Directory = MemoryDirectory> {
    pub(super) shared: Arc<Shared<D>>,
}

pub(super) struct Shared<D: Directory> {
    /// Holds what is durable, each file under its number.
    pub(super) platter: D,
    state: Mutex<State<D>>,
}

pub(super) struct State<D: Directory> {
    /// Counts restarts; handles of another boot are dead.
    boot: u64,
    powered: bool,
    /// The power goes when this many more changes have begun.
    changes_left: Option<u64>,
    changes: u64,
    plan: Plan,
    journal: Journal,
    random: Random,
    capacity: Option<u64>,
    used: u64,
    pub(super) names: Namespace,
    pub(super) files: BTreeMap<FileId, Arc<FaultFile<D>>>,
    next_file: FileId,
}

/// A file on the disk, whatever it is called.
pub(super) struct FaultFile<D: Directory> {
    pub(super) platter: Arc<D::File>,
    pub(super) cache: AsyncMutex<Cache>,
    /// The cache's length, for who cannot wait.
    pub(super) len: AtomicU64,
    pub(super) sharing: Sharing,
}

/// An operation that has begun.
pub(super) struct Begun {
    pub(super) id: u64,
    boot: u64,
    pub(super) place: Box<Place>,
    pub(super) fault: Option<Fault>,
    hold: Option<(Hold, Gate)>,
    /// What it covers, if it is a sync.
    pub(super) covers: Covers,
}

impl<D: Directory> Clone for FaultDisk<D> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl FaultDisk {
    /// An empty disk in memory.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::over(MemoryDirectory::new(), seed)
    }
}

impl<D: Directory> FaultDisk<D> {
    /// An empty disk whose durable content lies in `platter`: an empty directory, in which files
    /// get numbers for names. With a real one, operations are ready when it is.
    #[must_use]
    pub fn over(platter: D, seed: u64) -> Self {
        let state = State {
            boot: 0,
            powered: true,
            changes_left: None,
            changes: 0,
            plan: Plan::default(),
            journal: Journal::default(),
            random: Random::new(seed),
            capacity: None,
            used: 0,
            names: Namespace::default(),
            files: BTreeMap::new(),
            next_file: 0,
        };
        Self {
            shared: Arc::new(Shared {
                platter,
                state: Mutex::new(state),
            }),
        }
    }

    /// A directory of the disk. Directories are there without being made, and durable.
    #[must_use]
    pub fn directory(&self, name: &str) -> FaultDirectory<D> {
        let boot = self.shared.state().boot;
        FaultDirectory::new(Arc::clone(&self.shared), name, boot)
    }

    /// Makes operations fail. Every rule counts the operations that fit it from when it is given;
    /// a restart forgets all rules.
    pub fn inject(&self, when: When, fault: Fault) {
        self.shared.state().plan.inject(when, fault);
    }

    /// Holds operations until the gate is released, or the power is cut.
    #[must_use]
    pub fn hold(&self, when: When, hold: Hold) -> Gate {
        self.shared.state().plan.hold(when, hold)
    }

    /// Sets how much fits, in bytes; `None` is no limit. May be less than what is there.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.shared.state().capacity = bytes;
    }

    /// Bytes of space in use, in whole blocks.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.shared.state().used
    }

    /// How many operations have begun that change what is on the disk or what is durable: all but
    /// open, read, list and discarding the cache. These are the points to crash at.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.shared.state().changes
    }

    /// Cuts the power while the `nth` change from now is in flight; 1 is the next one.
    ///
    /// # Panics
    /// If `nth` is 0.
    pub fn cut_power_at(&self, nth: u64) {
        assert_ne!(nth, 0, "changes are counted from 1");
        self.shared.state().changes_left = Some(nth);
    }

    /// Cuts the power now. Operations that are held are let go, and fail.
    pub fn cut_power(&self) {
        self.shared.state().cut_power();
    }

    /// Whether the power is on.
    #[must_use]
    pub fn is_powered(&self) -> bool {
        self.shared.state().powered
    }

    /// Every operation since the beginning, or since the journal was forgotten.
    #[must_use]
    pub fn journal(&self) -> Vec<Record> {
        self.shared.state().journal.records()
    }

    /// Forgets the records so far.
    pub fn forget_journal(&self) {
        self.shared.state().journal.forget();
    }

    /// Cuts the power and restarts.
    ///
    /// # Errors
    /// As [`restart`](Self::restart).
    pub async fn crash(&self, seed: u64) -> Result<(), StoreError> {
        self.cut_power();
        self.restart(seed).await
    }

    /// Powers the disk on, with what a crash left by this seed. The seed is also that of all later
    /// chance. Power that was on is cut first.
    ///
    /// # Errors
    /// Those of the platter; none over memory.
    pub async fn restart(&self, seed: u64) -> Result<(), StoreError> {
        let mut random = Random::new(seed);
        let files = {
            let mut state = self.shared.state();
            state.cut_power();
            state.names.crash(&mut random);
            std::mem::take(&mut state.files)
        };
        let named = self.shared.state().names.named();
        let mut survivors = BTreeMap::new();
        let mut used = 0;
        for (id, file) in files {
            if !named.contains(&id) {
                self.shared.platter.remove(&platter_name(id)).await?;
                continue;
            }
            let mut cache = file.cache.lock().await;
            cache.crash(&*file.platter, &mut random).await?;
            let surviving = Cache::clean(cache.len(), cache.allocated().clone());
            used += surviving.allocated().bytes();
            // A new file: handles of the last boot keep the old one.
            survivors.insert(
                id,
                Arc::new(FaultFile::new(Arc::clone(&file.platter), surviving)),
            );
        }
        let mut state = self.shared.state();
        state.boot += 1;
        state.powered = true;
        state.random = random;
        state.used = used;
        state.files = survivors;
        Ok(())
    }
}

impl<D: Directory> FaultFile<D> {
    pub(super) fn new(platter: Arc<D::File>, cache: Cache) -> Self {
        let len = AtomicU64::new(cache.len());
        Self {
            platter,
            cache: AsyncMutex::new(cache),
            len,
            sharing: Sharing::default(),
        }
    }
}

impl<D: Directory> Shared<D> {
    pub(super) fn state(&self) -> MutexGuard<'_, State<D>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an operation for a handle of `boot`: notes it, asks the plan, waits at the gate.
    pub(super) async fn begin(
        &self,
        boot: u64,
        place: Box<Place>,
        durable: bool,
    ) -> Result<Begun, StoreError> {
        let mut begun = self.state().begin(boot, place, durable)?;
        if let Some((_, gate)) = begun.hold.take_if(|(hold, _)| *hold == Hold::Before) {
            gate.pass().await;
            self.state().check_power(&begun)?;
        }
        Ok(begun)
    }

    /// Ends an operation with what came of it, once the gate lets it.
    pub(super) async fn end<T>(
        &self,
        begun: Begun,
        result: Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if let Some((_, gate)) = &begun.hold {
            gate.pass().await;
        }
        let mut state = self.state();
        let result = state.check_power(&begun).and(result);
        let outcome = if result.is_ok() {
            Outcome::Done
        } else {
            Outcome::Failed
        };
        state.journal.end(begun.id, outcome);
        result
    }

    /// Removes from the platter what no crash can bring back.
    pub(super) async fn remove_unreachable(&self) -> Result<(), StoreError> {
        let gone: Vec<FileId> = {
            let mut state = self.state();
            let reachable: BTreeSet<FileId> = state.names.reachable();
            let gone = state
                .files
                .keys()
                .copied()
                .filter(|id| !reachable.contains(id))
                .collect();
            state.files.retain(|id, _| reachable.contains(id));
            gone
        };
        for id in gone {
            self.platter.remove(&platter_name(id)).await?;
        }
        Ok(())
    }
}

impl<D: Directory> State<D> {
    fn cut_power(&mut self) {
        self.powered = false;
        self.changes_left = None;
        self.plan.clear();
    }

    fn begin(&mut self, boot: u64, at: Box<Place>, durable: bool) -> Result<Begun, StoreError> {
        if !self.powered || boot != self.boot {
            return Err(StoreError::PowerLost { at });
        }
        let Place {
            operation,
            ref path,
            offset,
            len,
        } = *at;
        let id = self.journal.begin(operation, path, (offset, len), durable);
        let covers = self.journal.covered_by(id);
        let verdict = self.plan.judge(operation, path, offset, len);
        let cut_by_count = self.count(operation);
        let fault = if cut_by_count {
            Some(Fault::CutPower)
        } else {
            verdict.fault
        };
        if fault == Some(Fault::CutPower) {
            self.cut_power();
        }
        Ok(Begun {
            id,
            boot,
            place: at,
            fault,
            hold: verdict.hold,
            covers,
        })
    }

    /// Counts a change; returns whether the power goes with it.
    fn count(&mut self, operation: Operation) -> bool {
        if !changes_disk(operation) {
            return false;
        }
        self.changes += 1;
        let Some(left) = &mut self.changes_left else {
            return false;
        };
        *left -= 1;
        *left == 0
    }

    fn check_power(&self, begun: &Begun) -> Result<(), StoreError> {
        if self.powered && begun.boot == self.boot {
            return Ok(());
        }
        Err(StoreError::PowerLost {
            at: begun.place.clone(),
        })
    }

    /// A sequence of chance for one operation.
    pub(super) fn chance(&mut self) -> Random {
        self.random.fork()
    }

    /// Bytes that are free.
    pub(super) fn free(&self) -> u64 {
        self.capacity
            .map_or(u64::MAX, |capacity| capacity.saturating_sub(self.used))
    }

    pub(super) fn take_space(&mut self, bytes: u64) {
        self.used += bytes;
    }

    /// A file that a crash may have brought back is not counted, so more may be given than taken.
    pub(super) fn give_space(&mut self, bytes: u64) {
        self.used = self.used.saturating_sub(bytes);
    }

    pub(super) fn new_file_id(&mut self) -> FileId {
        self.next_file += 1;
        self.next_file
    }
}

/// What the platter calls a file.
pub(super) fn platter_name(id: FileId) -> String {
    format!("file-{id}")
}

/// Path of something on a disk, for errors, the journal and [`When::file`].
pub(super) fn path_of(directory: &str) -> Arc<Path> {
    Path::new("disk").join(directory).into()
}

fn changes_disk(operation: Operation) -> bool {
    match operation {
        Operation::Allocate
        | Operation::Create
        | Operation::Grow
        | Operation::Punch
        | Operation::Remove
        | Operation::Rename
        | Operation::Sync
        | Operation::SyncDirectory
        | Operation::Write => true,
        Operation::DiscardCache | Operation::List | Operation::Open | Operation::Read => false,
    }
}
