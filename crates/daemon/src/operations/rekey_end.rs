//! The end of a re-key: what the old data keys opened and nobody needs is destroyed, and what they still open is told.
//!
//! What always holds:
//! - nothing of a layer that a volume or a snapshot stands on is touched, and no key that one of them needs;
//! - the record of it is in the audit log before the first key is destroyed;
//! - wrapped keys are overwritten in both slots, durably, before the files that held them go: what a file system or a disk
//!   keeps of those is of no use;
//! - each step may be done again: whatever stopped it, the next one begins with the first.

use std::collections::HashSet;

use sealvol_control::api;
use sealvol_volume::{DataKeyId, InvalidId, WrappedKey, replace_keys};

use super::pins;
use super::stack::about;
use crate::audit::{Operation, Record};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::jobs::{Job, Rekey, Step};
use crate::registry::{JobEnd, LayerRow, VolumeRow};
use crate::timestamp;

impl Daemon {
    /// Destroys what a re-key made superfluous. The caller has the volume's turn.
    pub(super) async fn end_rekey(
        &self,
        job: &Job,
        work: &Rekey,
        row: &VolumeRow,
    ) -> Result<Step, Error> {
        let no_merge = self.merges.hold().await;
        let internal = |error: InvalidId| Error::Internal(error.to_string());
        let old_keys = work.old_key_ids().map_err(internal)?;
        let orphans = work.layers_to_destroy().map_err(internal)?;
        let (id, keys) = (row.id, old_keys.clone());
        let (layers, needed, opened) = self
            .registry
            .call(move |registry| {
                Ok((
                    registry.layers(&orphans)?,
                    registry.keys_needed(id)?,
                    registry.opened_by(&keys)?,
                ))
            })
            .await?;
        let top = self.stack(row, row.top).await?.swap_remove(0);
        self.record_end(row, work, &layers, &opened).await?;
        self.keep_keys(row, &top, &needed).await?;
        for layer in &layers {
            self.destroy_layer(row, layer).await?;
        }
        drop(no_merge);
        let data_key = top.data_key.to_string();
        let result = match self.fix_copy(job, work, row).await? {
            Some(snapshot) => api::JobResult::SnapshotCopy(api::Copied {
                snapshot,
                data_key,
                source_data_keys: work.old_keys.clone(),
            }),
            None => api::JobResult::Rekey(api::Rekeyed {
                data_key,
                old_data_keys: work.old_keys.clone(),
                layers_removed: work.to_destroy.len(),
                old_keys_open: opened,
            }),
        };
        let (job, gone) = (
            job.id,
            layers.iter().map(|layer| layer.id).collect::<Vec<_>>(),
        );
        let end = JobEnd {
            state: api::JobState::Done,
            reason: None,
            result: Some(result.clone()),
            at: timestamp::now(),
        };
        self.registry
            .call(move |registry| registry.finish_rekey(id, &gone, &needed, (job, &end)))
            .await?;
        // What lay between a snapshot and the layers that went may have one child now.
        self.merges.want();
        Ok(Step::Done(Some(result)))
    }

    async fn record_end(
        &self,
        row: &VolumeRow,
        work: &Rekey,
        layers: &[LayerRow],
        opened: &[api::Opened],
    ) -> Result<(), Error> {
        let names: Vec<&str> = opened.iter().map(|opened| opened.name.as_str()).collect();
        let still = if names.is_empty() {
            "nothing".to_owned()
        } else {
            names.join(", ")
        };
        let old = work.old_keys.join(", ");
        let layers: Vec<String> = layers.iter().map(|layer| layer.id.to_string()).collect();
        let layers = layers.join(", ");
        let result = format!(
            "ok: its blocks are under another data key; of {old} the wrapped copies in layers [{layers}] are destroyed, \
             and what they still open is: {still}"
        );
        let record = Record {
            key: Some(row.key.to_string()),
            result,
            ..about(row, Operation::Rekey, Self::itself())
        };
        let written = self.audit.append(record).await;
        written.map_err(|source| Error::Audit {
            path: self.audit.path().to_owned(),
            source,
        })
    }

    /// Leaves in the top's superblock the wrapped keys that the volume and its snapshots need.
    async fn keep_keys(
        &self,
        row: &VolumeRow,
        top: &LayerRow,
        needed: &HashSet<DataKeyId>,
    ) -> Result<(), Error> {
        let volume = self.open_by_anybody(row);
        let wrapped = self.wrapped_keys(row).await?;
        let count = wrapped.len();
        let kept: Vec<WrappedKey> = wrapped
            .into_iter()
            .filter(|key| needed.contains(&key.data_key))
            .collect();
        if kept.len() == count {
            return Ok(());
        }
        let replaced = match volume {
            Some(volume) => volume.replace_keys(&kept).await,
            None => {
                let directory = self.place_of(top).directory();
                let directory = directory.map_err(Error::store(&row.name))?;
                replace_keys(&directory, &pins(row, top), &kept).await
            }
        };
        replaced.map_err(Error::volume(&row.name))
    }

    /// Destroys the wrapped keys of a layer, and then its files. What is gone already is no error.
    async fn destroy_layer(&self, row: &VolumeRow, layer: &LayerRow) -> Result<(), Error> {
        let gone = self.remove_with_keys(&self.place_of(layer)).await;
        gone.map_err(Error::volume(&row.name))?;
        tracing::info!(volume = %row.name, layer = %layer.id, "its keys are destroyed, its files gone");
        Ok(())
    }
}
