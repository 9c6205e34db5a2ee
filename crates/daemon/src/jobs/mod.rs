//! Jobs: work on a volume that goes on after its call was answered, through restarts, until it is done or somebody ends it.
//!
//! | subject | file |
//! |---|---|
//! | what a job is to do, as the registry keeps it | `work.rs` |
//! | the life of a job: step by step, waiting, ending | `run.rs` |
//! | how far it has come | `progress.rs` |
//! | the copying that a step may be | `copying.rs` |
//! | what each kind does in a step | `operations/`, a file a kind |
//!
//! ```text
//!  begun with ──▶ running ──▶ done            a step: a bounded part of the work, with the volume's turn
//!  what makes       │  ▲ └──▶ cancelled       between two steps: pauses, cancelling, the daemon's stop
//!  it necessary     ▼  │
//!                 waiting ───▶ failed          waiting: a reason; tried again after a while, or when something has changed
//! ```
//! What always holds:
//! - a volume has one job at most that has not ended; a restart goes on with it;
//! - where it has come to is not in its row but in what it works on, so that the two never differ;
//! - an error that may pass never ends a job: what it has done stays done, and it goes on from there;
//! - cancelling leaves everything in good order; what a job can't leave so it carries to its end.

pub(crate) mod copying;
mod progress;
mod run;
mod work;

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sealvol_control::api::{self, JobState, VolumeName};
use sealvol_store::FileStore;
use sealvol_volume::{Volume, VolumeId};
use tokio::sync::{Notify, Semaphore, SemaphorePermit, watch};

use crate::limits::Limiter;
use crate::registry::JobRow;
use copying::{Clients, Copiers, Cursor};
use progress::Progress;

pub(crate) use work::{LayerCopy, Rekey, RewrapMember, Work};

/// The number of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct JobId(pub(crate) u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for JobId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// What a step came to.
#[derive(Debug)]
pub(crate) enum Step {
    /// There is more to do.
    More,
    /// That was all.
    Done(Option<api::JobResult>),
}

/// A job that has not ended, at work in this process.
pub(crate) struct Job {
    pub(crate) id: JobId,
    /// What it works on.
    pub(crate) volume: VolumeId,
    pub(crate) name: VolumeName,
    pub(crate) progress: Progress,
    /// Where its copying goes on.
    pub(crate) cursor: tokio::sync::Mutex<Cursor>,
    rate_max: Option<u64>,
    longest_pause: Duration,
    limiter: Option<Limiter>,
    clients: Clients,
    /// Why it waits.
    waits: Mutex<Option<String>>,
    cancelled: AtomicBool,
    /// Something has changed that it may have waited for.
    changed: Notify,
}

impl Job {
    fn new(row: &JobRow) -> Self {
        Self {
            id: row.id,
            volume: row.volume,
            name: row.name.clone(),
            progress: Progress::new(row.done, row.total),
            cursor: tokio::sync::Mutex::default(),
            rate_max: row.work.rate_max(),
            longest_pause: run::longest_pause(&row.work),
            limiter: copying::limiter(row.work.rate_max()),
            clients: Clients::default(),
            waits: Mutex::new(row.reason.clone()),
            cancelled: AtomicBool::new(false),
            changed: Notify::new(),
        }
    }

    /// Whether somebody wants it to end.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    fn waits(&self) -> MutexGuard<'_, Option<String>> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The jobs at work in this process.
pub(crate) struct Jobs {
    working: Mutex<HashMap<JobId, Arc<Job>>>,
    pub(crate) copiers: Copiers,
    /// Volumes that jobs have opened while nobody has them attached.
    opened: Mutex<HashMap<VolumeName, Arc<Volume<FileStore>>>>,
    /// Copies of layers that jobs have opened for volumes of these names.
    copies: Mutex<HashMap<VolumeName, Arc<Volume<FileStore>>>>,
    /// True from the daemon's stop on.
    stopping: watch::Sender<bool>,
    /// None is at work.
    idle: Notify,
    /// Turns to wrap a volume anew for its key set: each starts key children, and a set may have a thousand members.
    rewraps: Semaphore,
}

impl Default for Jobs {
    fn default() -> Self {
        Self {
            working: Mutex::default(),
            copiers: Copiers::default(),
            opened: Mutex::default(),
            copies: Mutex::default(),
            stopping: watch::Sender::default(),
            idle: Notify::default(),
            rewraps: Semaphore::new(REWRAPS_AT_ONCE),
        }
    }
}

impl Jobs {
    /// Enters a job, unless it is at work already or the daemon stops.
    fn enter(&self, row: &JobRow) -> Option<Arc<Job>> {
        let mut working = self.working();
        if *self.stopping.borrow() || working.contains_key(&row.id) {
            return None;
        }
        let job = Arc::new(Job::new(row));
        working.insert(row.id, Arc::clone(&job));
        Some(job)
    }

    fn leave(&self, id: JobId) {
        let mut working = self.working();
        working.remove(&id);
        if working.is_empty() {
            self.idle.notify_waiters();
        }
    }

    fn get(&self, id: JobId) -> Option<Arc<Job>> {
        self.working().get(&id).cloned()
    }

    /// A turn to wrap a volume anew for its key set. None if the job has to look up first: somebody wants it to end, or the daemon
    /// to stop.
    pub(crate) async fn rewrap_turn(&self, job: &Job) -> Option<SemaphorePermit<'_>> {
        let mut stopping = self.stopping.subscribe();
        tokio::select! {
            turn = self.rewraps.acquire() => turn.ok(),
            _ = stopping.wait_for(|stops| *stops) => None,
            () = job.changed.notified() => None,
        }
    }

    /// Something about the volume has changed that a job may wait for.
    pub(crate) fn volume_changed(&self, volume: VolumeId) {
        for job in self.working().values().filter(|job| job.volume == volume) {
            job.changed.notify_one();
        }
    }

    /// Wants the job to end. False if it is not at work here.
    pub(crate) fn cancel(&self, id: JobId) -> bool {
        let Some(job) = self.get(id) else {
            return false;
        };
        job.cancelled.store(true, Ordering::SeqCst);
        job.changed.notify_one();
        true
    }

    /// The volume of that name, if a job has opened it.
    pub(crate) fn opened(&self, name: &VolumeName) -> Option<Arc<Volume<FileStore>>> {
        self.open_volumes().get(name).cloned()
    }

    /// A job has opened the volume, which nobody has attached.
    pub(crate) fn has_opened(&self, name: &VolumeName, volume: &Arc<Volume<FileStore>>) {
        self.open_volumes().insert(name.clone(), Arc::clone(volume));
    }

    /// What a job has opened is not open any more for the next step.
    pub(crate) fn take_opened(&self, name: &VolumeName) -> Option<Arc<Volume<FileStore>>> {
        self.open_volumes().remove(name)
    }

    /// The copy of a layer, if a job has one open for the volume of that name.
    pub(crate) fn copy(&self, name: &VolumeName) -> Option<Arc<Volume<FileStore>>> {
        self.open_copies().get(name).cloned()
    }

    /// A job has opened the copy of a layer for the volume of that name.
    pub(crate) fn has_copy(&self, name: &VolumeName, copy: &Arc<Volume<FileStore>>) {
        self.open_copies().insert(name.clone(), Arc::clone(copy));
    }

    /// The copy of a layer is not open any more for the next step.
    pub(crate) fn take_copy(&self, name: &VolumeName) -> Option<Arc<Volume<FileStore>>> {
        self.open_copies().remove(name)
    }

    fn open_copies(&self) -> MutexGuard<'_, HashMap<VolumeName, Arc<Volume<FileStore>>>> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_volumes(&self) -> MutexGuard<'_, HashMap<VolumeName, Arc<Volume<FileStore>>>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends every job's work, between two steps: the next start goes on with it.
    pub(crate) async fn stop(&self) {
        self.stopping.send_replace(true);
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if self.working().is_empty() {
                return;
            }
            idle.await;
        }
    }

    /// Waits until the job may have ended.
    pub(crate) async fn ended(&self, id: JobId) {
        while self.get(id).is_some() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// A job for whoever asks: as registered, and what is known only here.
    pub(crate) fn describe(&self, row: JobRow) -> api::Job {
        let working = self.get(row.id);
        let reached = working
            .as_ref()
            .map(|job| job.progress.reached(Instant::now()));
        let (state, reason) = match &working {
            Some(job) if !row.state.has_ended() => match job.waits().clone() {
                Some(reason) => (JobState::Waiting, Some(reason)),
                None => (JobState::Running, None),
            },
            _ => (row.state, row.reason),
        };
        api::Job {
            id: row.id.0,
            kind: row.work.kind(),
            volume: row.name,
            state,
            reason,
            by: row.by,
            created: row.created,
            ended: row.ended,
            bytes_done: reached.map_or(row.done, |reached| reached.done),
            bytes_total: reached.map_or(row.total, |reached| reached.total),
            rate: reached
                .filter(|_| state == JobState::Running)
                .and_then(|reached| reached.rate),
            rate_max: row.work.rate_max(),
            result: row.result,
        }
    }

    fn working(&self) -> MutexGuard<'_, HashMap<JobId, Arc<Job>>> {
        self.working.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As many as a key service with a modest limit answers without a pause.
const REWRAPS_AT_ONCE: usize = 4;
/// How often whoever waits for the end of a job looks.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
