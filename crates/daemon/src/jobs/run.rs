//! The life of a job: one step after the other, until it has ended or the daemon stops.
//!
//! What always holds: a step is an operation like any other, which a stop waits for; nothing of a job is held between
//! two steps; its row says *waiting* before it waits, and *running* before it works again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sealvol_control::api::{JobResult, JobState};
use sealvol_volume::VolumeError;

use super::{Job, JobId, Step, Work};
use crate::control::reply;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::registry::{JobEnd, JobRow};
use crate::timestamp;

impl Daemon {
    /// Goes on with every job that has not ended.
    ///
    /// # Errors
    /// When the registry cannot be read.
    pub(crate) async fn resume_jobs(self: &Arc<Self>) -> Result<(), Error> {
        for row in self.registry.call(|registry| registry.jobs()).await? {
            if !row.state.has_ended() {
                tracing::info!(job = %row.id, volume = %row.name, kind = %row.work.kind(), "goes on");
                self.work_on(&row);
            }
        }
        Ok(())
    }

    /// Has a registered job worked on, if it is not already.
    pub(crate) fn work_on(self: &Arc<Self>, row: &JobRow) {
        let Some(job) = self.jobs.enter(row) else {
            return;
        };
        let daemon = Arc::clone(self);
        // A task of its own in each case: a panic in a step ends the job's work, and nothing else.
        self.runtime.spawn(async move {
            let (id, name) = (job.id, job.name.clone());
            let worker = tokio::spawn({
                let daemon = Arc::clone(&daemon);
                async move { daemon.work(&job).await }
            });
            if let Err(error) = worker.await {
                tracing::error!(job = %id, %error, "a job broke; the next start goes on with it");
            }
            // What it has opened is closed by whoever takes the turn.
            drop(daemon.turn(&name).await);
            daemon.jobs.leave(id);
        });
    }

    async fn work(self: &Arc<Self>, job: &Arc<Job>) {
        let mut stopping = self.jobs.stopping.subscribe();
        let mut pause = FIRST_PAUSE;
        let mut saved = Instant::now();
        loop {
            if *stopping.borrow_and_update() {
                self.save(job).await;
                return;
            }
            match self.step_or_end(job).await {
                Ok(Outcome::Ended) => return,
                Ok(Outcome::More) => {
                    pause = FIRST_PAUSE;
                    if self.goes_on(job).await || saved.elapsed() > SAVED_EVERY {
                        self.save(job).await;
                        saved = Instant::now();
                    }
                }
                Err(Error::Stopping) => {}
                Err(error) => {
                    self.waits(job, &error).await;
                    tokio::select! {
                        _ = stopping.changed() => {}
                        () = job.changed.notified() => {}
                        () = tokio::time::sleep(pause) => {}
                    }
                    pause = (pause * 2).min(job.longest_pause);
                }
            }
        }
    }

    /// One step of a job, or its end. An error is one that may pass.
    async fn step_or_end(self: &Arc<Self>, job: &Arc<Job>) -> Result<Outcome, Error> {
        let _leave = self.leave().await?;
        let row = self.job_row(job.id).await?;
        if job.is_cancelled() && self.may_be_cancelled(&row) {
            let left = what_is_left(&row);
            let mut work = row.work;
            if work.gives_up_copies() {
                let id = job.id;
                self.registry
                    .call(move |registry| registry.set_work(id, &work))
                    .await?;
            }
            self.end(job, JobState::Cancelled, left, None).await?;
            return Ok(Outcome::Ended);
        }
        let step = match &row.work {
            Work::Rekey(rekey) => self.rekey_step(job, rekey).await,
            Work::Rewrap(member) => self.rewrap_step(job, member).await,
        };
        match step {
            Ok(Step::More) => Ok(Outcome::More),
            Ok(Step::Done(result)) => {
                // A kind whose last step has to be one with the end of the job has ended it already.
                if !self.job_row(job.id).await?.state.has_ended() {
                    self.end(job, JobState::Done, None, result).await?;
                }
                self.failures.clear(&subject(job.id));
                tracing::info!(job = %job.id, volume = %job.name, "done");
                Ok(Outcome::Ended)
            }
            Err(error) if may_pass(&error) => Err(error),
            Err(error) => {
                tracing::error!(job = %job.id, volume = %job.name, %error, "failed");
                let reason = reply::in_words(&error);
                self.failures.clear(&subject(job.id));
                self.end(job, JobState::Failed, Some(reason), None).await?;
                Ok(Outcome::Ended)
            }
        }
    }

    pub(crate) async fn job_row(&self, id: JobId) -> Result<JobRow, Error> {
        let row = self.registry.call(move |registry| registry.job(id)).await?;
        row.ok_or(Error::NoSuchJob(id.0))
    }

    /// Whether cancelling leaves everything in good order.
    pub(crate) fn may_be_cancelled(&self, row: &JobRow) -> bool {
        match &row.work {
            // Copies of snapshots' layers are nobody's then, and go.
            Work::Rekey(rekey) => !rekey.cut_over || (rekey.with_snapshots && !rekey.switched),
            // A step is the whole of it, and leaves the volume under one key or the other.
            Work::Rewrap(_) => true,
        }
    }

    async fn end(
        &self,
        job: &Job,
        state: JobState,
        reason: Option<String>,
        result: Option<JobResult>,
    ) -> Result<(), Error> {
        let (id, reached) = (job.id, job.progress.reached(Instant::now()));
        let end = JobEnd {
            state,
            reason,
            result,
            at: timestamp::now(),
        };
        self.registry
            .call(move |registry| {
                registry.set_job(id, JobState::Running, None, reached.done, reached.total)?;
                registry.end_job(id, &end)
            })
            .await?;
        self.failures.clear(&subject(id));
        tracing::info!(job = %id, volume = %job.name, %state, "ended");
        Ok(())
    }

    /// Tells that a job waits, and why.
    async fn waits(&self, job: &Job, error: &Error) {
        let reason = reply::in_words(error);
        if job.waits().as_ref() != Some(&reason) {
            tracing::warn!(job = %job.id, volume = %job.name, reason, "waits");
            self.failures.set(&subject(job.id), reason.clone());
            *job.waits() = Some(reason);
        }
        self.save(job).await;
    }

    /// Tells that a job works again. Whether it did not before.
    async fn goes_on(&self, job: &Job) -> bool {
        let waited = job.waits().take().is_some();
        if waited {
            tracing::info!(job = %job.id, volume = %job.name, "goes on");
            self.failures.clear(&subject(job.id));
        }
        waited
    }

    /// What a job has come to, for those who ask after a restart. It is for people: a registry that does not take it is no reason
    /// to stop.
    async fn save(&self, job: &Job) {
        let reached = job.progress.reached(Instant::now());
        let reason = job.waits().clone();
        let state = match &reason {
            Some(_) => JobState::Waiting,
            None => JobState::Running,
        };
        let id = job.id;
        let saved = self
            .registry
            .call(move |registry| {
                registry.set_job(id, state, reason.as_deref(), reached.done, reached.total)
            })
            .await;
        if let Err(error) = saved {
            tracing::warn!(job = %id, %error, "how far it has come could not be recorded");
        }
    }
}

/// What a job leaves that is cancelled, if somebody has to see to it.
fn what_is_left(row: &JobRow) -> Option<String> {
    let name = &row.name;
    if let Work::Rewrap(member) = &row.work {
        let set = &member.key_set;
        return Some(format!(
            "volume {name} stays under its key for now; while it is in key set {set}, which names another one, that is tried again \
             within the hour. Take it out with `sealvol key rewrap {name} --key KEYREF`, or point the set at the former key"
        ));
    }
    let snapshot = row.work.then_snapshot()?;
    Some(format!(
        "snapshot {name}@{snapshot} was not made; volume {name} is left, a clone that shares layers with its source. \
         Delete it with `sealvol volume delete {name}`, or use it as it is"
    ))
}

enum Outcome {
    More,
    Ended,
}

/// What a failure of a job is listed under.
fn subject(id: JobId) -> String {
    format!("job {id}")
}

/// Whether a job may go on after an error, once somebody has seen to its cause: nearly always. What it has done stays.
fn may_pass(error: &Error) -> bool {
    match error {
        Error::NoSuchVolume(_) | Error::Internal(_) | Error::NoPlaceForLayers(_) => false,
        Error::Volume { source, .. } => !matches!(**source, VolumeError::BrokenStack { .. }),
        _ => true,
    }
}

/// After the first error that may pass.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// What is seen to is gone on with within so long.
pub(super) fn longest_pause(work: &Work) -> Duration {
    match work {
        Work::Rekey(_) => Duration::from_secs(30),
        // Each attempt asks a key service and is a record of the audit log, for every member of a set.
        Work::Rewrap(_) => Duration::from_secs(300),
    }
}
/// How far a job has come is recorded so often.
const SAVED_EVERY: Duration = Duration::from_secs(5);
