//! `snapshot copy`: what a snapshot holds, in a new volume and a snapshot of it, that need nothing of the source.
//!
//! ```text
//!   under the source's key:  a clone, and its snapshot, in one step of the registry              no data moves
//!   under another one:       a clone with a data key of its own, and a job that copies all it shares ─▶ what was inherited
//!                            is destroyed ─▶ its snapshot ─▶ the end
//! ```
//! What always holds:
//! - the source stays as it is, but for an empty top under another data key (see `clone.rs`);
//! - until the copy is there its volume is nobody's: it can't be attached, snapshotted, resized or rewrapped;
//! - whatever stops it, the job goes on from what the layers say; the snapshot is made once, and last;
//! - a copy under another key has no block and no wrapped key of its source, and that key never opened one of it.

use std::sync::Arc;

use sealvol_control::api::{self, SnapshotRef};
use sealvol_control::key_ref::KeyRef;
use sealvol_volume::DataKeyId;

use super::clone::CopyOf;
use super::rekey::check_rate;
use super::snapshot::Registered;
use super::stack::about;
use crate::audit::{Operation, Record};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::jobs::{Job, Rekey};
use crate::registry::{LayerRow, NewTop, NewVolume, VolumeRow};
use crate::rights::Caller;

impl Daemon {
    pub(crate) async fn copy_snapshot(
        self: &Arc<Self>,
        caller: Caller,
        from: SnapshotRef,
        request: api::CopySnapshot,
    ) -> Result<api::SnapshotCopy, Error> {
        check_rate(request.rate)?;
        let to = request.to;
        let clone = api::CreateVolume {
            name: to.volume.clone(),
            size: None,
            key_set: None,
            key: request.key,
            sector_size: None,
            backing: None,
            layers_dir: None,
            from_snapshot: Some(from.clone()),
            fresh_key: None,
            ephemeral: false,
        };
        let copy = CopyOf {
            to: to.clone(),
            rate: request.rate,
        };
        let volume = self.clone_volume(caller, clone, &from, Some(copy)).await?;
        let (job, snapshot) = match volume.job {
            Some(id) => (Some(self.show_job(crate::jobs::JobId(id)).await?), None),
            None => (None, Some(self.show_snapshot(&to).await?)),
        };
        Ok(api::SnapshotCopy {
            from,
            to,
            key: volume.key,
            job,
            snapshot,
        })
    }

    /// Whether a copy of these layers of a volume, under the key that was asked for, may share them: if that key wraps the data
    /// keys of all of them already.
    pub(super) async fn may_share(
        &self,
        row: &VolumeRow,
        layers: &[LayerRow],
        asked: Option<&str>,
    ) -> Result<bool, Error> {
        let key: KeyRef = match asked {
            Some(key) => key.parse()?,
            None => row.key.clone(),
        };
        let resolved = self.keys.describe(&key).await?;
        let id = row.id;
        let by = self
            .registry
            .call(move |registry| registry.data_keys(id))
            .await?;
        let wraps = |data_key: &DataKeyId| {
            by.get(data_key)
                .is_some_and(|by| by.provider == key.provider() && by.key_id == resolved.key_id)
        };
        Ok(layers.iter().all(|layer| wraps(&layer.data_key)))
    }

    /// The top that a clone gets at once if it is the copy of a snapshot: what is below it is the copy. The registry is yet to
    /// hear of it, and of the clone.
    pub(super) async fn snapshot_clone(
        &self,
        caller: Caller,
        new: &NewVolume,
        copy: Option<&CopyOf>,
    ) -> Result<Vec<NewTop>, Error> {
        let Some(copy) = copy else {
            return Ok(Vec::new());
        };
        let name = new.name.clone();
        let row = self
            .registry
            .call(move |registry| registry.volume(&name))
            .await?;
        let row = row.ok_or_else(|| Error::NoSuchVolume(new.name.clone()))?;
        let mut cut = self.plan_cut(row, Some(&copy.to), None).await?;
        cut.operation = Operation::CopySnapshot;
        let cuts = [cut];
        if let Err(error) = self.make_tops(caller, &cuts).await {
            self.undo(&cuts, Registered::No).await;
            return Err(error);
        }
        let [cut] = cuts;
        Ok(vec![cut.top])
    }

    /// The last but one step of a copy: its blocks are its own, and nothing of its source's keys is left. Its snapshot is made,
    /// unless it is there already. The snapshot's name; none for a re-key.
    pub(super) async fn fix_copy(
        &self,
        job: &Job,
        work: &Rekey,
        row: &VolumeRow,
    ) -> Result<Option<String>, Error> {
        let Some(name) = &work.then_snapshot else {
            return Ok(None);
        };
        let to = SnapshotRef {
            volume: row.name.clone(),
            name: name.parse()?,
        };
        // Open, so that the snapshot is sealed at once, also one that a killed daemon has cut.
        self.volume_of_job(job, work, row).await?;
        let (id, wanted) = (row.id, to.name.clone());
        let there = self
            .registry
            .call(move |registry| registry.snapshot(id, &wanted))
            .await?;
        if there.is_none() {
            let cut = self.plan_cut(row.clone(), Some(&to), None).await?;
            self.cut(Self::itself(), vec![cut]).await?;
        }
        self.record_copy(row, work, &to).await?;
        Ok(Some(to.to_string()))
    }

    async fn record_copy(
        &self,
        row: &VolumeRow,
        work: &Rekey,
        to: &SnapshotRef,
    ) -> Result<(), Error> {
        let record = Record {
            name: Some(to.to_string()),
            key: Some(row.key.to_string()),
            result: format!(
                "ok: its blocks are under a data key of its own; it has no copy of {}",
                work.old_keys.join(", ")
            ),
            ..about(row, Operation::CopySnapshot, Self::itself())
        };
        let written = self.audit.append(record).await;
        written.map_err(|source| Error::Audit {
            path: self.audit.path().to_owned(),
            source,
        })
    }

    /// Refuses what is not to be done with a volume before it is the copy of a snapshot that it is to be.
    pub(super) async fn check_not_being_copied(&self, row: &VolumeRow) -> Result<(), Error> {
        let id = row.id;
        let job = self
            .registry
            .call(move |registry| registry.job_of(id))
            .await?;
        match job {
            Some(job) if job.work.then_snapshot().is_some() => Err(Error::JobUnderWay {
                name: row.name.clone(),
                job: job.id.0,
            }),
            _ => Ok(()),
        }
    }
}
