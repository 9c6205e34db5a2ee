//! `job list`, `job show`, `job cancel`. What the jobs do is in `crate::jobs`.

use sealvol_control::api;

use crate::daemon::Daemon;
use crate::error::Error;
use crate::jobs::JobId;
use crate::registry::VolumeRow;

impl Daemon {
    pub(crate) async fn list_jobs(&self) -> Result<api::JobList, Error> {
        let rows = self.registry.call(|registry| registry.jobs()).await?;
        let jobs = rows.into_iter().map(|row| self.jobs.describe(row));
        Ok(api::JobList {
            jobs: jobs.collect(),
        })
    }

    pub(crate) async fn show_job(&self, id: JobId) -> Result<api::Job, Error> {
        Ok(self.jobs.describe(self.job_row(id).await?))
    }

    /// Ends a job early. What it has done stays, and is in good order.
    pub(crate) async fn cancel_job(&self, id: JobId) -> Result<api::Job, Error> {
        let row = self.job_row(id).await?;
        let refused = |cause| Error::NotCancellable { job: id.0, cause };
        if row.state.has_ended() {
            return Err(refused("it has ended already"));
        }
        if !self.may_be_cancelled(&row) {
            return Err(refused("what is left of it is to destroy the old keys"));
        }
        if !self.jobs.cancel(id) {
            return Err(refused("it broke, and goes on with the next start"));
        }
        self.jobs.ended(id).await;
        self.show_job(id).await
    }

    /// Refuses what would not go with a job that works on the volume.
    pub(super) async fn check_no_job(&self, row: &VolumeRow) -> Result<(), Error> {
        let id = row.id;
        let job = self
            .registry
            .call(move |registry| registry.job_of(id))
            .await?;
        match job {
            None => Ok(()),
            Some(job) => Err(Error::JobUnderWay {
                name: row.name.clone(),
                job: job.id.0,
            }),
        }
    }
}
