//! The calls of the registry about the snapshots of a volume that are re-keyed with it, each one transaction.
//!
//! What always holds: a copy of a layer is registered in the step that the job hears of it, so it is the job's from the first
//! moment; all snapshots of a volume go over to the copies in one step, which also writes down what is to be destroyed then.

use rusqlite::params;
use sealvol_volume::{DataKeyId, LayerId, VolumeId};

use super::database::{Database, Result, insert_layer};
use super::jobs::{job_with, needed, write_work};
use super::new_layers::is_in_use;
use super::rows::LayerRow;
use super::stacks::stack;
use crate::jobs::{JobId, LayerCopy};

impl Database {
    /// These layers, whose files are complete, are copies to be: the job's.
    pub(crate) fn begin_copies(
        &mut self,
        job: JobId,
        layers: &[LayerRow],
        copies: Vec<LayerCopy>,
    ) -> Result<()> {
        let transaction = self.connection.transaction()?;
        for layer in layers {
            insert_layer(&transaction, layer)?;
            is_in_use(&transaction, layer.id)?;
        }
        if let Some(row) = job_with(&transaction, job)? {
            let mut work = row.work;
            work.has_begun_copies(copies);
            write_work(&transaction, job, &work)?;
        }
        Ok(transaction.commit()?)
    }

    /// The volume's snapshots stand on the copies of their layers. Layers that nobody stands on any more are the job's to destroy.
    pub(crate) fn switch_family(
        &mut self,
        volume: VolumeId,
        job: JobId,
        copies: &[(LayerId, LayerId)],
    ) -> Result<()> {
        let transaction = self.connection.transaction()?;
        let mut old_keys: Vec<DataKeyId> = Vec::new();
        for (from, to) in copies {
            transaction.execute(
                "UPDATE snapshots SET layer = ?3 WHERE volume = ?1 AND layer = ?2",
                params![volume.to_string(), from.to_string(), to.to_string()],
            )?;
            let layers = stack(&transaction, *from)?;
            let copy = stack(&transaction, *to)?;
            let own = copy.first().map(|layer| layer.data_key);
            let key = layers.first().map(|layer| layer.data_key);
            old_keys.extend(key.filter(|_| key != own));
        }
        let needed = needed(&transaction)?;
        let layers = copies.iter().map(|&(from, _)| from);
        let orphans: Vec<LayerId> = layers.filter(|layer| !needed.contains(layer)).collect();
        if let Some(row) = job_with(&transaction, job)? {
            let mut work = row.work;
            work.has_switched(&old_keys, &orphans);
            write_work(&transaction, job, &work)?;
        }
        Ok(transaction.commit()?)
    }
}
