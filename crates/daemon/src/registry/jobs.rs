//! The calls of the registry about jobs, each one transaction.
//!
//! What always holds: a volume has one job at most that has not ended; a job begins in the same step as what makes it
//! necessary, and what it has left to destroy is written down in the step that makes it nobody's any more.

use std::collections::HashSet;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};
use sealvol_control::api::{JobResult, JobState, Opened, VolumeName};
use sealvol_volume::{DataKeyId, LayerId, VolumeId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::database::{Database, Result};
use super::merges::set_parent;
use super::rows::{LayerRow, parsed, signed, unsigned};
use super::stacks::{heads, stack};
use crate::jobs::{JobId, Work};

/// A job to be.
#[derive(Clone, Debug)]
pub(crate) struct NewJob {
    /// What it works on.
    pub volume: VolumeId,
    /// The volume's name.
    pub name: VolumeName,
    /// What it does.
    pub work: Work,
    /// Bytes to be done.
    pub total: u64,
    /// User id that asked for it.
    pub by: u32,
    /// RFC 3339, UTC.
    pub created: String,
}

/// A job as registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JobRow {
    /// Never comes twice.
    pub id: JobId,
    /// What it works on.
    pub volume: VolumeId,
    /// The volume's name.
    pub name: VolumeName,
    /// What it does, and what of it must not be forgotten.
    pub work: Work,
    /// How it is.
    pub state: JobState,
    /// Why it waits or has failed.
    pub reason: Option<String>,
    /// User id that asked for it.
    pub by: u32,
    /// RFC 3339, UTC.
    pub created: String,
    /// The same.
    pub ended: Option<String>,
    /// Bytes.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
    /// What came of it.
    pub result: Option<JobResult>,
}

/// How a job ends.
#[derive(Clone, Debug)]
pub(crate) struct JobEnd {
    /// One that has ended.
    pub state: JobState,
    /// Why it has failed.
    pub reason: Option<String>,
    /// What came of it.
    pub result: Option<JobResult>,
    /// RFC 3339, UTC.
    pub at: String,
}

const COLUMNS: &str =
    "id, volume, name, work, state, reason, caller, created, ended, done, total, result";

impl Database {
    /// All jobs, the oldest first.
    pub(crate) fn jobs(&mut self) -> Result<Vec<JobRow>> {
        let sql = format!("SELECT {COLUMNS} FROM jobs ORDER BY id");
        let mut statement = self.connection.prepare(&sql)?;
        let rows = statement.query_map([], job)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The job with that number.
    pub(crate) fn job(&mut self, id: JobId) -> Result<Option<JobRow>> {
        job_with(&self.connection, id)
    }

    /// The job of a volume that has not ended.
    pub(crate) fn job_of(&mut self, volume: VolumeId) -> Result<Option<JobRow>> {
        job_of(&self.connection, volume)
    }

    /// How a job is, and how far it has come.
    pub(crate) fn set_job(
        &mut self,
        id: JobId,
        state: JobState,
        reason: Option<&str>,
        done: u64,
        total: u64,
    ) -> Result<()> {
        self.connection.execute(
            "UPDATE jobs SET state = ?2, reason = ?3, done = ?4, total = ?5 WHERE id = ?1",
            params![
                signed(id.0)?,
                state.to_string(),
                reason,
                signed(done)?,
                signed(total)?
            ],
        )?;
        Ok(())
    }

    /// What a job does has changed.
    pub(crate) fn set_work(&mut self, id: JobId, work: &Work) -> Result<()> {
        write_work(&self.connection, id, work)
    }

    /// A job has ended. The oldest that have are forgotten.
    pub(crate) fn end_job(&mut self, id: JobId, end: &JobEnd) -> Result<()> {
        let transaction = self.connection.transaction()?;
        end_job(&transaction, id, end)?;
        Ok(transaction.commit()?)
    }

    /// The volume's top has no parent any more, durably. The layers that nobody stands on any more, from the top down: the
    /// job of the volume has them to destroy from now on. It is told even if no job knows of it.
    pub(crate) fn record_cut_over(&mut self, volume: VolumeId) -> Result<Vec<LayerRow>> {
        let transaction = self.connection.transaction()?;
        let top: String = transaction.query_row(
            "SELECT top FROM volumes WHERE id = ?1",
            [volume.to_string()],
            |row| row.get(0),
        )?;
        let layers = match top.parse() {
            Ok(top) => stack(&transaction, top)?,
            Err(_) => Vec::new(),
        };
        set_parent(&transaction, &top, None)?;
        let own = layers.first().map(|layer| layer.data_key);
        let needed = needed(&transaction)?;
        let mut orphans: Vec<LayerRow> = layers.into_iter().skip(1).collect();
        let mut old_keys: Vec<DataKeyId> = orphans.iter().map(|layer| layer.data_key).collect();
        old_keys.retain(|&key| Some(key) != own);
        orphans.retain(|layer| !needed.contains(&layer.id));
        if let Some(row) = job_of(&transaction, volume)? {
            let ids: Vec<LayerId> = orphans.iter().map(|layer| layer.id).collect();
            let mut work = row.work;
            work.has_cut_over(&old_keys, &ids);
            write_work(&transaction, row.id, &work)?;
        }
        transaction.commit()?;
        Ok(orphans)
    }

    /// Layers by their ids, as far as they are registered.
    pub(crate) fn layers(&mut self, ids: &[LayerId]) -> Result<Vec<LayerRow>> {
        let mut layers = Vec::new();
        for id in ids {
            layers.extend(stack(&self.connection, *id)?.into_iter().next());
        }
        Ok(layers)
    }

    /// The data keys that a volume needs: for its own stack, and for its snapshots.
    pub(crate) fn keys_needed(&mut self, volume: VolumeId) -> Result<HashSet<DataKeyId>> {
        let owner = volume.to_string();
        let mut keys = HashSet::new();
        for head in heads(&self.connection)?
            .iter()
            .filter(|head| head.owner == owner)
        {
            let layers = stack(&self.connection, head.top)?;
            keys.extend(layers.iter().map(|layer| layer.data_key));
        }
        Ok(keys)
    }

    /// What stands on a layer under one of these data keys: volumes and snapshots by name, in their order.
    pub(crate) fn opened_by(&mut self, keys: &[DataKeyId]) -> Result<Vec<Opened>> {
        let mut opened = Vec::new();
        for head in heads(&self.connection)? {
            let layers = stack(&self.connection, head.top)?;
            let mut found: Vec<DataKeyId> = Vec::new();
            for layer in layers.iter().filter(|layer| keys.contains(&layer.data_key)) {
                if !found.contains(&layer.data_key) {
                    found.push(layer.data_key);
                }
            }
            opened.extend(found.into_iter().map(|key| Opened {
                name: head.name.clone(),
                data_key: key.to_string(),
            }));
        }
        opened.sort_by(|a, b| (&a.name, &a.data_key).cmp(&(&b.name, &b.data_key)));
        Ok(opened)
    }

    /// The files of these layers are gone, and the volume's superblock has no copy of any other data key than these. With that
    /// a job has ended.
    pub(crate) fn finish_rekey(
        &mut self,
        volume: VolumeId,
        gone: &[LayerId],
        keys: &HashSet<DataKeyId>,
        job: (JobId, &JobEnd),
    ) -> Result<()> {
        let transaction = self.connection.transaction()?;
        for layer in gone {
            let layer = layer.to_string();
            transaction.execute("DELETE FROM layers WHERE id = ?1", [&layer])?;
            // What is left of a snapshot that was deleted while its layer was needed.
            transaction.execute(
                "DELETE FROM snapshots WHERE layer = ?1 AND deleted = 1",
                [&layer],
            )?;
        }
        let registered: Vec<String> = transaction
            .prepare("SELECT data_key FROM data_keys WHERE volume = ?1")?
            .query_map([volume.to_string()], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        for key in registered {
            if key.parse().is_ok_and(|key| !keys.contains(&key)) {
                transaction.execute(
                    "DELETE FROM data_keys WHERE volume = ?1 AND data_key = ?2",
                    params![volume.to_string(), key],
                )?;
            }
        }
        end_job(&transaction, job.0, job.1)?;
        Ok(transaction.commit()?)
    }
}

/// Begins a job.
pub(super) fn insert_job(transaction: &Transaction<'_>, new: &NewJob) -> Result<()> {
    transaction.execute(
        "INSERT INTO jobs (volume, name, work, state, caller, created, total)
         VALUES (?1, ?2, ?3, 'running', ?4, ?5, ?6)",
        params![
            new.volume.to_string(),
            new.name.as_str(),
            text(&new.work)?,
            new.by,
            new.created,
            signed(new.total)?,
        ],
    )?;
    Ok(())
}

pub(super) fn job_with(connection: &Connection, id: JobId) -> Result<Option<JobRow>> {
    let sql = format!("SELECT {COLUMNS} FROM jobs WHERE id = ?1");
    let row = connection.query_row(&sql, [signed(id.0)?], job);
    Ok(row.optional()?)
}

/// What a job does has changed.
pub(super) fn write_work(connection: &Connection, id: JobId, work: &Work) -> Result<()> {
    connection.execute(
        "UPDATE jobs SET work = ?2 WHERE id = ?1",
        params![signed(id.0)?, text(work)?],
    )?;
    Ok(())
}

pub(super) fn job_of(connection: &Connection, volume: VolumeId) -> Result<Option<JobRow>> {
    let sql = format!("SELECT {COLUMNS} FROM jobs WHERE volume = ?1 AND ended IS NULL");
    let row = connection.query_row(&sql, [volume.to_string()], job);
    Ok(row.optional()?)
}

fn end_job(transaction: &Transaction<'_>, id: JobId, end: &JobEnd) -> Result<()> {
    let result = end.result.as_ref().map(text).transpose()?;
    transaction.execute(
        "UPDATE jobs SET state = ?2, reason = ?3, result = ?4, ended = ?5 WHERE id = ?1",
        params![
            signed(id.0)?,
            end.state.to_string(),
            end.reason,
            result,
            end.at
        ],
    )?;
    transaction.execute(
        "DELETE FROM jobs WHERE ended IS NOT NULL AND id <= (SELECT max(id) FROM jobs) - ?1",
        [ENDED_KEPT],
    )?;
    Ok(())
}

/// The layers that a volume or a snapshot stands on.
pub(super) fn needed(connection: &Connection) -> Result<HashSet<LayerId>> {
    let mut needed = HashSet::new();
    for head in heads(connection)? {
        needed.extend(stack(connection, head.top)?.iter().map(|layer| layer.id));
    }
    Ok(needed)
}

fn job(row: &Row<'_>) -> rusqlite::Result<JobRow> {
    let result: Option<String> = row.get(11)?;
    Ok(JobRow {
        id: JobId(unsigned(row, 0)?),
        volume: parsed(row, 1)?,
        name: parsed(row, 2)?,
        work: message(3, row.get_ref(3)?.as_str()?)?,
        state: match row.get_ref(4)?.as_str()? {
            "running" => JobState::Running,
            "waiting" => JobState::Waiting,
            "done" => JobState::Done,
            "cancelled" => JobState::Cancelled,
            _ => JobState::Failed,
        },
        reason: row.get(5)?,
        by: row.get(6)?,
        created: row.get(7)?,
        ended: row.get(8)?,
        done: unsigned(row, 9)?,
        total: unsigned(row, 10)?,
        result: result.map(|text| message(11, &text)).transpose()?,
    })
}

fn text<T: Serialize>(message: &T) -> rusqlite::Result<String> {
    serde_json::to_string(message)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

fn message<T: DeserializeOwned>(column: usize, text: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
    })
}

/// Of the jobs that have ended, the last so many numbers are kept.
const ENDED_KEPT: i64 = 1000;

#[cfg(test)]
#[path = "jobs_tests.rs"]
mod tests;
