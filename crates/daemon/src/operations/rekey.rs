//! `volume rekey`: another data key for a volume, while it is in use or not.
//!
//! ```text
//!  new data key, wrapped, proved ─▶ new top under it, with the job, in one step of the registry ─▶ the cut      (the call)
//!  copy up, part by part ─▶ cut over: no parent, in both slots ─▶ registry: no parent, what is to be destroyed  (steps of
//!  ─▶ records ─▶ old wrapped keys gone from the top ─▶ from the old layers, their files ─▶ the end              the job)
//! ```
//! What always holds:
//! - the new key is durable, wrapped, in both slots before a byte is encrypted with it, and the key service has given it
//!   back once before anything depends on it; an old one is destroyed only when no block of anybody needs it (rule R5);
//! - whatever stops it, wherever: the volume reads what it held, and the job goes on from what the layers say;
//! - a volume that nobody has attached is opened only by a re-key that was asked for while it was not;
//! - layers that a snapshot or another volume stands on stay as they are, with their keys, and the result says which.
//!
//! What becomes of its snapshots, if they are to be under the new key too, is in `rekey_family.rs`. The old key's end is in `rekey_end.rs`.

use std::sync::Arc;
use std::time::Instant;

use sealvol_control::api::{self, VolumeName};
use sealvol_store::FileStore;
use sealvol_volume::{Volume, VolumeError};

use super::attach::Accepts;
use crate::audit::Operation;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::exports::Export;
use crate::jobs::copying::{CopyError, copy_part};
use crate::jobs::{Job, Rekey, Step, Work};
use crate::registry::{Attached, JobRow, LayerRow, NewJob, VolumeRow};
use crate::rights::Caller;
use crate::timestamp;

impl Daemon {
    pub(crate) async fn rekey_volume(
        self: &Arc<Self>,
        caller: Caller,
        name: VolumeName,
        mut request: api::RekeyVolume,
    ) -> Result<api::Job, Error> {
        check_rate(request.rate)?;
        let _turn = self.turn(&name).await;
        let row = self.registered(&name).await?;
        Self::check_not_ephemeral(&row, "it has another data key with each attach")?;
        let both = "a re-key needs the old key and the new one, for as long as it takes";
        Self::check_not_provided(&row, both)?;
        self.resolve_asked(&mut request.key).await?;
        if let Some(job) = self.unfinished_job(&row).await? {
            return self.go_on_detached(&row, job, &request).await;
        }
        let key = match &request.key {
            Some(key) => {
                let key = key.parse()?;
                self.check_key_of_set(&row, &key).await?;
                key
            }
            None => row.key.clone(),
        };
        let key = self.keys.resolve(key).await?;
        let fresh = self.proved_key(caller, &row, &key).await?;
        let mut cut = self.plan_cut(row.clone(), None, Some(fresh)).await?;
        cut.operation = Operation::Rekey;
        cut.top.key = (key != row.key).then(|| (key, row.key.clone()));
        let detached = row.attached.is_none();
        let old_keys = self.keys_of_stack(&row).await?;
        cut.top.job = Some(NewJob {
            volume: row.id,
            name: name.clone(),
            work: Work::Rekey(Rekey {
                rate: request.rate,
                detached,
                with_snapshots: request.with_snapshots,
                sealed: row.top.to_string(),
                old_keys,
                ..Rekey::default()
            }),
            total: 0,
            by: caller.uid,
            created: timestamp::now(),
        });
        let made = self.cut(caller, vec![cut]).await;
        // A cut that was made and then failed leaves a job, too: it waits until the volume is in order.
        let job = self.unfinished_job(&row).await?;
        if let Some(job) = &job {
            self.work_on(job);
        }
        made?;
        let job = job.ok_or_else(|| Error::Internal("a job began and is not there".to_owned()))?;
        self.show_job(job.id).await
    }

    async fn unfinished_job(&self, row: &VolumeRow) -> Result<Option<JobRow>, Error> {
        let id = row.id;
        let job = self.registry.call(move |registry| registry.job_of(id));
        Ok(job.await?)
    }

    /// A re-key that was begun while the volume was attached, asked for again after it was detached, goes on without.
    async fn go_on_detached(
        &self,
        row: &VolumeRow,
        job: JobRow,
        request: &api::RekeyVolume,
    ) -> Result<api::Job, Error> {
        let same = request
            .key
            .as_ref()
            .is_none_or(|key| *key == row.key.to_string());
        let under_way = Error::JobUnderWay {
            name: row.name.clone(),
            job: job.id.0,
        };
        let Work::Rekey(mut rekey) = job.work else {
            return Err(under_way);
        };
        let more = request.with_snapshots && !rekey.with_snapshots;
        if !same || more || row.attached.is_some() || rekey.detached {
            return Err(under_way);
        }
        rekey.detached = true;
        let (id, work) = (job.id, Work::Rekey(rekey));
        self.registry
            .call(move |registry| registry.set_work(id, &work))
            .await?;
        self.jobs.volume_changed(row.id);
        self.show_job(id).await
    }

    /// Ids of the data keys of a volume's stack, as text.
    async fn keys_of_stack(&self, row: &VolumeRow) -> Result<Vec<String>, Error> {
        let mut keys: Vec<String> = Vec::new();
        for layer in self.stack(row, row.top).await? {
            let key = layer.data_key.to_string();
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        Ok(keys)
    }

    /// A bounded part of a re-key.
    pub(crate) async fn rekey_step(&self, job: &Arc<Job>, work: &Rekey) -> Result<Step, Error> {
        let _turn = self.job_turn(&job.name).await;
        let row = self.registered(&job.name).await?;
        if row.id != job.volume {
            return Err(Error::NoSuchVolume(job.name.clone()));
        }
        if work.cut_over && work.with_snapshots && !work.switched {
            return self.copy_family(job, work, &row).await;
        }
        if work.cut_over {
            return self.end_rekey(job, work, &row).await;
        }
        let done = self.copy_or_cut_over(job, work, &row).await;
        let opened = self.jobs.opened(&job.name);
        if opened.is_some_and(|volume| volume.failed().is_some()) {
            // Only an opening with the operator's consent gets over that.
            self.close_opened(&job.name).await;
        }
        done
    }

    async fn copy_or_cut_over(
        &self,
        job: &Arc<Job>,
        work: &Rekey,
        row: &VolumeRow,
    ) -> Result<Step, Error> {
        let name = &row.name;
        let (volume, export) = self.volume_of_job(job, work, row).await?;
        if volume.layers().len() > 1 {
            let top = self.stack(row, row.top).await?.swap_remove(0);
            self.look_anew(job, row, &top, &volume).await?;
            let all = copy_part(&self.jobs.copiers, job, &volume, export.as_ref()).await;
            let all = all.map_err(|error| match error {
                CopyError::Volume(error) => Error::volume(name)(error),
                broken => Error::Internal(broken.to_string()),
            })?;
            if !all {
                return Ok(Step::More);
            }
            // A merge further down would hold what is to be destroyed.
            let _no_merge = self.merges.hold().await;
            match volume.cut_over().await {
                Ok(_below) => {}
                Err(VolumeError::LeftBelow { offset }) => {
                    // A snapshot came in between, or a part was passed over while somebody wrote there.
                    job.cursor.lock().await.at = offset;
                    return Ok(Step::More);
                }
                Err(error) => return Err(Error::volume(name)(error)),
            }
        }
        self.record_cut_over(row).await?;
        Ok(Step::More)
    }

    /// The volume that a job works on: exported, or opened for it.
    pub(super) async fn volume_of_job(
        &self,
        job: &Job,
        work: &Rekey,
        row: &VolumeRow,
    ) -> Result<(Arc<Volume<FileStore>>, Option<Arc<Export>>), Error> {
        let name = &row.name;
        if let Some(export) = self.exports.get(name.as_str()) {
            if export.read_only {
                return Err(Error::volume(name)(VolumeError::ReadOnly));
            }
            return Ok((Arc::clone(&export.volume), Some(export)));
        }
        if row.attached.is_some() {
            return Err(Error::NotServed(name.clone()));
        }
        if !work.detached {
            return Err(Error::DetachedMeanwhile(name.clone()));
        }
        if let Some(volume) = self.jobs.opened(name) {
            return Ok((volume, None));
        }
        let attached = Attached {
            read_only: false,
            direct: false,
            allow: Vec::new(),
            by: Self::itself().uid,
        };
        let _steady = self.merges.steady().await;
        let volume = self
            .open_volume(Self::itself(), row, &attached, Accepts::default(), None)
            .await?;
        tracing::info!(volume = %name, job = %job.id, "opened for a job");
        self.jobs.has_opened(name, &volume);
        Ok((volume, None))
    }

    /// Looks whether there is room for the next part, and, once for each top that the job meets, for all that is left: a copy that
    /// nobody waits for is not to fill the disk that clients and the registry need.
    pub(super) async fn look_anew(
        &self,
        job: &Job,
        row: &VolumeRow,
        into: &LayerRow,
        volume: &Volume<FileStore>,
    ) -> Result<(), Error> {
        let top = volume.top().id();
        let mut cursor = job.cursor.lock().await;
        let needed = if cursor.top == Some(top) {
            let reached = job.progress.reached(Instant::now());
            cursor.next_part(reached.total - reached.done)
        } else {
            let left = volume.left_below().await;
            let left = left.map_err(Error::volume(&row.name))?;
            job.progress.set_left(left);
            left
        };
        let free = self.place_of(into).free_for_jobs();
        let free = free.map_err(|error| {
            Error::Internal(format!("the space for volume {}: {error}", row.name))
        })?;
        if let Some(free) = free.filter(|&free| free < needed) {
            return Err(Error::NoRoom {
                name: row.name.clone(),
                needed,
                free,
            });
        }
        if cursor.top != Some(top) {
            cursor.at = 0;
            cursor.top = Some(top);
        }
        Ok(())
    }

    /// The volume's top stands alone: what nobody stands on any more is the job's to destroy.
    pub(super) async fn record_cut_over(&self, row: &VolumeRow) -> Result<(), Error> {
        let id = row.id;
        let orphans = self
            .registry
            .call(move |registry| registry.record_cut_over(id))
            .await?;
        tracing::info!(volume = %row.name, layers = orphans.len(), "it stands alone; layers below that nobody needs");
        Ok(())
    }
}

/// Refuses a rate that a job, which works in pieces, can't keep.
pub(super) fn check_rate(rate: Option<u64>) -> Result<(), Error> {
    match rate.filter(|&rate| rate < api::JOB_RATE_MIN) {
        None => Ok(()),
        Some(rate) => Err(Error::BadRequest(format!(
            "a rate of {rate} is below {} bytes a second",
            api::JOB_RATE_MIN
        ))),
    }
}
