//! The calls of the registry about stacks, snapshots and data keys, each one transaction.
//!
//! What always holds: a layer is registered as long as a volume or a snapshot stands on it; a snapshot and the new top of
//! its volume come in one step, for all volumes of a group.

use std::collections::{BTreeSet, HashMap, HashSet};

use rusqlite::{Connection, OptionalExtension as _, Transaction, params};
use sealvol_control::api::{SnapshotName, SnapshotRef, VolumeName};
use sealvol_control::key_ref::KeyRef;
use sealvol_volume::{DataKeyId, LayerId, VolumeId};

use super::RegistryError;
use super::database::{Database, Result, insert_data_key, insert_layer};
use super::jobs::{NewJob, insert_job};
use super::key_sets::{Membership, set_membership};
use super::new_layers::is_in_use;
use super::rows::{self, Attached, LayerRow, SnapshotRow, WrappedBy};
use super::shredding::{forget_unused, remember_wrap};

/// A layer that is to be the top of a volume, on its present top.
#[derive(Clone, Debug)]
pub(crate) struct NewTop {
    /// The layer. Its files are complete.
    pub layer: LayerRow,
    /// The present top.
    pub sealed: LayerId,
    /// What the present top is called from now on, for messages its full name, and when it was made; none if no snapshot
    /// was asked for.
    pub snapshot: Option<(SnapshotName, String, String)>,
    /// What wraps the layer's data key, if that is new.
    pub data_key: Option<WrappedBy>,
    /// The key that the volume is under from now on, by its name, and the one before; none if that stays.
    pub key: Option<(KeyRef, KeyRef)>,
    /// The job that begins with it.
    pub job: Option<NewJob>,
}

impl Database {
    /// The layers from one down to the lowest.
    pub(crate) fn stack(&mut self, top: LayerId) -> Result<Vec<LayerRow>> {
        stack(&self.connection, top)
    }

    /// What wraps the data keys of a volume.
    pub(crate) fn data_keys(&mut self, volume: VolumeId) -> Result<HashMap<DataKeyId, WrappedBy>> {
        let sql = "SELECT data_key, provider, key_id, key_version FROM data_keys WHERE volume = ?1";
        let mut statement = self.connection.prepare(sql)?;
        let rows = statement.query_map([volume.to_string()], rows::data_key)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// From now on these copies of the volume's data keys count, and new ones are made under that key; and so it is in a key set,
    /// or in none.
    pub(crate) fn set_rewrapped(
        &mut self,
        volume: VolumeId,
        key: &KeyRef,
        keys: &[(DataKeyId, WrappedBy)],
        membership: &Membership,
    ) -> Result<()> {
        let transaction = self.connection.transaction()?;
        set_membership(&transaction, volume, membership)?;
        for (data_key, by) in keys {
            remember_wrap(&transaction, volume, *data_key, by)?;
        }
        let volume = volume.to_string();
        for (data_key, by) in keys {
            transaction.execute(
                "UPDATE data_keys SET provider = ?3, key_id = ?4, key_version = ?5 WHERE volume = ?1 AND data_key = ?2",
                params![volume, data_key.to_string(), by.provider, by.key_id, by.key_version],
            )?;
        }
        transaction.execute(
            "UPDATE volumes SET key = ?2 WHERE id = ?1",
            params![volume, key.to_string()],
        )?;
        Ok(transaction.commit()?)
    }

    /// Other volumes that have one of these data keys under what is named beside it, by name.
    pub(crate) fn volumes_under(
        &mut self,
        volume: VolumeId,
        keys: &HashMap<DataKeyId, WrappedBy>,
    ) -> Result<Vec<VolumeName>> {
        let sql = "SELECT name FROM volumes JOIN data_keys ON volume = id WHERE volume != ?1 AND data_key = ?2
                   AND provider = ?3 AND key_id = ?4 AND key_version = ?5";
        let mut statement = self.connection.prepare(sql)?;
        let mut names = BTreeSet::new();
        for (data_key, by) in keys {
            let parameters = params![
                volume.to_string(),
                data_key.to_string(),
                by.provider,
                by.key_id,
                by.key_version
            ];
            let found = statement.query_map(parameters, rows::name)?;
            names.extend(found.collect::<rusqlite::Result<Vec<_>>>()?);
        }
        Ok(names.into_iter().collect())
    }

    /// The snapshots of a volume that are not deleted, the oldest first.
    pub(crate) fn snapshots(&mut self, volume: VolumeId) -> Result<Vec<SnapshotRow>> {
        let sql = format!(
            "SELECT {} FROM snapshots WHERE volume = ?1 AND deleted = 0 ORDER BY rowid",
            rows::SNAPSHOT_COLUMNS
        );
        let mut statement = self.connection.prepare(&sql)?;
        let rows = statement.query_map([volume.to_string()], rows::snapshot)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The snapshot of that name that is not deleted.
    pub(crate) fn snapshot(
        &mut self,
        volume: VolumeId,
        name: &SnapshotName,
    ) -> Result<Option<SnapshotRow>> {
        let sql = format!(
            "SELECT {} FROM snapshots WHERE volume = ?1 AND name = ?2 AND deleted = 0",
            rows::SNAPSHOT_COLUMNS
        );
        let row = self.connection.query_row(
            &sql,
            params![volume.to_string(), name.as_str()],
            rows::snapshot,
        );
        Ok(row.optional()?)
    }

    /// What the snapshot is called that this is the newest layer of, if there is one that is not deleted.
    pub(crate) fn snapshot_of_layer(&mut self, layer: LayerId) -> Result<Option<SnapshotRef>> {
        let sql =
            "SELECT volumes.name, snapshots.name FROM snapshots JOIN volumes ON volumes.id = volume
                   WHERE layer = ?1 AND deleted = 0 AND state = 'available'";
        let row = self
            .connection
            .query_row(sql, [layer.to_string()], rows::snapshot_ref);
        Ok(row.optional()?)
    }

    /// All these layers become the tops of their volumes. What is opened from here on is the present top, to be sealed, with
    /// the new one on it, whether or not the cut was made.
    pub(crate) fn put_tops(&mut self, tops: &[NewTop]) -> Result<()> {
        let transaction = self.connection.transaction()?;
        put_tops(&transaction, tops)?;
        Ok(transaction.commit()?)
    }

    /// The cut was not made: everything is as before [`Self::put_tops`], and the files of the new tops are to go.
    pub(crate) fn take_tops_back(&mut self, tops: &[NewTop]) -> Result<()> {
        let transaction = self.connection.transaction()?;
        for top in tops {
            let (layer, sealed) = (top.layer.id.to_string(), top.sealed.to_string());
            transaction.execute(
                "UPDATE volumes SET top = ?2, key = coalesce(?3, key) WHERE top = ?1",
                params![
                    layer,
                    sealed,
                    top.key.as_ref().map(|(_, before)| before.to_string()),
                ],
            )?;
            if let Some(job) = &top.job {
                transaction.execute(
                    "DELETE FROM jobs WHERE volume = ?1 AND ended IS NULL",
                    [job.volume.to_string()],
                )?;
            }
            transaction.execute(
                "INSERT INTO new_layers SELECT id, backing, backing_path FROM layers WHERE id = ?1",
                [&layer],
            )?;
            transaction.execute("DELETE FROM layers WHERE id = ?1", [layer])?;
            if top.data_key.is_some() {
                transaction.execute(
                    "DELETE FROM data_keys WHERE volume = ?1 AND data_key = ?2",
                    params![top.layer.volume.to_string(), top.layer.data_key.to_string()],
                )?;
                forget_unused(&transaction, top.layer.volume, top.layer.data_key)?;
            }
            if top.snapshot.is_some() {
                transaction.execute("DELETE FROM snapshots WHERE layer = ?1", [sealed])?;
            }
        }
        Ok(transaction.commit()?)
    }

    /// The layer's superblock says that it never changes again.
    pub(crate) fn set_sealed(&mut self, layer: LayerId) -> Result<()> {
        self.connection.execute(
            "UPDATE layers SET sealed = 1 WHERE id = ?1",
            [layer.to_string()],
        )?;
        Ok(())
    }

    /// The snapshot is not there any more for whoever asks; its layer stays.
    pub(crate) fn hide_snapshot(&mut self, layer: LayerId) -> Result<()> {
        self.connection.execute(
            "UPDATE snapshots SET deleted = 1, attached = 0 WHERE layer = ?1",
            [layer.to_string()],
        )?;
        Ok(())
    }

    /// The snapshot is attached so, also after a restart, or not any more.
    pub(crate) fn set_snapshot_attached(
        &mut self,
        layer: LayerId,
        attached: Option<&Attached>,
    ) -> Result<()> {
        let allow = attached.and_then(|attached| serde_json::to_string(&attached.allow).ok());
        self.connection.execute(
            "UPDATE snapshots SET attached = ?2, direct = ?3, allow = ?4, attached_by = ?5 WHERE layer = ?1",
            params![
                layer.to_string(),
                attached.is_some(),
                attached.is_some_and(|attached| attached.direct),
                allow.unwrap_or_else(|| "[]".to_owned()),
                attached.map_or(0, |attached| attached.by),
            ],
        )?;
        Ok(())
    }

    /// The layers that only this volume and its snapshots need: they go with it. Volumes that are being deleted need none.
    pub(crate) fn layers_of_none_but(&mut self, volume: VolumeId) -> Result<Vec<LayerRow>> {
        let owner = volume.to_string();
        let (mut own, mut others) = (Vec::new(), HashSet::new());
        for head in heads(&self.connection)? {
            let layers = stack(&self.connection, head.top)?;
            if head.owner == owner {
                own.extend(layers);
            } else if !head.deleting {
                others.extend(layers.iter().map(|layer| layer.id));
            }
        }
        own.retain(|layer| others.insert(layer.id));
        Ok(own)
    }
}

/// [`Database::put_tops`], as a part of another step.
pub(super) fn put_tops(transaction: &Transaction<'_>, tops: &[NewTop]) -> Result<()> {
    for top in tops {
        let volume = top.layer.volume.to_string();
        insert_layer(transaction, &top.layer)?;
        is_in_use(transaction, top.layer.id)?;
        if let Some(by) = &top.data_key {
            insert_data_key(transaction, top.layer.volume, top.layer.data_key, by)?;
        }
        // A grow that nobody with the key has seen is part of what is sealed.
        transaction.execute(
            "UPDATE layers SET size = (SELECT size FROM volumes WHERE id = ?2) WHERE id = ?1",
            params![top.sealed.to_string(), volume],
        )?;
        transaction.execute(
            "UPDATE volumes SET top = ?2, key = coalesce(?3, key) WHERE id = ?1",
            params![
                volume,
                top.layer.id.to_string(),
                top.key.as_ref().map(|(key, _)| key.to_string()),
            ],
        )?;
        if let Some(job) = &top.job {
            insert_job(transaction, job)?;
        }
        let Some((name, full_name, created)) = &top.snapshot else {
            continue;
        };
        let inserted = transaction.execute(
            "INSERT INTO snapshots (layer, volume, name, created) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (volume, name) WHERE deleted = 0 DO NOTHING",
            params![top.sealed.to_string(), volume, name.as_str(), created],
        )?;
        if inserted == 0 {
            return Err(RegistryError::SnapshotTaken(full_name.clone()));
        }
    }
    Ok(())
}

/// Something that stands on layers.
pub(super) struct Head {
    /// Its newest layer.
    pub(super) top: LayerId,
    /// Id of the volume that it is, or is a snapshot of.
    pub(super) owner: String,
    /// `VOLUME` or `VOLUME@SNAPSHOT`.
    pub(super) name: String,
    /// The volume is being deleted.
    pub(super) deleting: bool,
}

/// All volumes, and all snapshots that are not deleted.
pub(super) fn heads(connection: &Connection) -> Result<Vec<Head>> {
    let sql = "SELECT top, id, volumes.name, state FROM volumes
               UNION ALL
               SELECT layer, volume, volumes.name || '@' || snapshots.name, state
               FROM snapshots JOIN volumes ON volumes.id = volume WHERE deleted = 0";
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map([], |row| {
        Ok(Head {
            // One that can't be read is an error: what it stands on must not count as nobody's.
            top: rows::parsed(row, 0)?,
            owner: row.get(1)?,
            name: row.get(2)?,
            deleting: row.get::<_, String>(3)? == "deleting",
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The layers from one down to the lowest.
pub(super) fn stack(connection: &Connection, top: LayerId) -> Result<Vec<LayerRow>> {
    let sql = format!("SELECT {} FROM layers WHERE id = ?1", rows::LAYER_COLUMNS);
    let mut statement = connection.prepare_cached(&sql)?;
    let mut layers: Vec<LayerRow> = Vec::new();
    let mut next = Some(top);
    // A parent that is in the stack already is left for whoever opens it to refuse.
    while let Some(id) = next.filter(|&id| layers.iter().all(|layer| layer.id != id)) {
        let Some(layer) = statement
            .query_row([id.to_string()], rows::layer)
            .optional()?
        else {
            break;
        };
        next = layer.parent;
        layers.push(layer);
    }
    Ok(layers)
}

#[cfg(test)]
#[path = "stacks_tests.rs"]
mod tests;
