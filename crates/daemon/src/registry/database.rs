//! The calls of the registry, each one transaction.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension as _, Transaction, named_params, params};
use sealvol_control::api::VolumeName;
use sealvol_control::key_ref::KeyRef;
use sealvol_crypto::{Commitment, UnitSize};
use sealvol_volume::{DataKeyId, LayerId, VolumeId};

use super::jobs::{NewJob, insert_job};
use super::rows::{self, Attached, Backing, LayerRow, VolumeRow, WrappedBy, signed};
use super::shredding::{forget_wraps, remember_wrap};
use super::stacks::{NewTop, put_tops};
use super::{RegistryError, schema};
use crate::limits::Limits;
use crate::working_state::BootId;

pub(super) type Result<T> = std::result::Result<T, RegistryError>;

/// The registry, for the thread that owns it.
#[derive(Debug)]
pub(crate) struct Database {
    pub(super) connection: Connection,
}

/// A volume to be.
#[derive(Clone, Debug)]
pub(crate) struct NewVolume {
    /// New.
    pub id: VolumeId,
    /// Must be free.
    pub name: VolumeName,
    /// RFC 3339, UTC.
    pub created: String,
    /// Bytes.
    pub size: u64,
    /// Data unit of the cipher.
    pub sector_size: UnitSize,
    /// The key that wraps its data key.
    pub key: KeyRef,
    /// Where the ciphertext goes.
    pub backing: Backing,
    /// Where further layers go, if not there.
    pub layers_dir: Option<PathBuf>,
    /// Its first layer of its own.
    pub layer: LayerId,
    /// The layer of another volume that it stands on, for a clone.
    pub parent: Option<LayerId>,
    /// The data key of its first layer.
    pub data_key: DataKeyId,
    /// That key is in memory only, while the volume is attached.
    pub ephemeral: bool,
}

impl Database {
    pub(super) fn open(path: &Path) -> Result<Self> {
        Ok(Self {
            connection: schema::open(path)?,
        })
    }

    /// All volumes, by name.
    pub(crate) fn volumes(&mut self) -> Result<Vec<VolumeRow>> {
        let sql = format!("SELECT {} FROM volumes ORDER BY name", rows::VOLUME_COLUMNS);
        let mut statement = self.connection.prepare(&sql)?;
        let rows = statement.query_map([], rows::volume)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The volume of that name.
    pub(crate) fn volume(&mut self, name: &VolumeName) -> Result<Option<VolumeRow>> {
        let sql = format!(
            "SELECT {} FROM volumes WHERE name = ?1",
            rows::VOLUME_COLUMNS
        );
        let row = self
            .connection
            .query_row(&sql, [name.as_str()], rows::volume);
        Ok(row.optional()?)
    }

    /// Registers a volume in the state *creating*.
    pub(crate) fn begin_create(&mut self, new: &NewVolume) -> Result<()> {
        let transaction = self.connection.transaction()?;
        insert(&transaction, new)?;
        Ok(transaction.commit()?)
    }

    /// Registers a volume whose layer is complete and was proved by its key, as far as it has a MAC.
    pub(crate) fn adopt(
        &mut self,
        new: &NewVolume,
        by: &WrappedBy,
        generation: u64,
        commitment: Option<Commitment>,
    ) -> Result<()> {
        let transaction = self.connection.transaction()?;
        insert(&transaction, new)?;
        insert_data_key(&transaction, new.id, new.data_key, by)?;
        transaction.execute(
            "UPDATE layers SET generation = ?2, commitment = ?3, bound = ?4 WHERE id = ?1",
            params![
                new.layer.to_string(),
                signed(generation)?,
                commitment.map(|commitment| commitment.0),
                commitment.is_some(),
            ],
        )?;
        transaction.execute(
            "UPDATE volumes SET state = 'available' WHERE id = ?1",
            [new.id.to_string()],
        )?;
        Ok(transaction.commit()?)
    }

    /// The volume's data key is wrapped by that key; the volume stays in its state.
    pub(crate) fn set_wrapped(
        &mut self,
        volume: VolumeId,
        data_key: DataKeyId,
        by: &WrappedBy,
    ) -> Result<()> {
        let transaction = self.connection.transaction()?;
        insert_data_key(&transaction, volume, data_key, by)?;
        Ok(transaction.commit()?)
    }

    /// Another key than the one of `commitment` is never taken for the data key of this layer, which nobody has opened yet.
    pub(crate) fn commit_to(&mut self, layer: LayerId, commitment: Commitment) -> Result<()> {
        self.connection.execute(
            "UPDATE layers SET commitment = coalesce(commitment, ?2) WHERE id = ?1",
            params![layer.to_string(), commitment.0],
        )?;
        Ok(())
    }

    /// The layer is complete on disk, with these data keys, wrapped so: the volume exists from here on.
    pub(crate) fn finish_create(
        &mut self,
        volume: VolumeId,
        keys: &[(DataKeyId, WrappedBy)],
    ) -> Result<()> {
        self.finish_clone(volume, keys, None, &[])
    }

    /// [`Self::finish_create`], and in the same step the job begins that copies what the volume shares into it, and further
    /// tops are put on it.
    pub(crate) fn finish_clone(
        &mut self,
        volume: VolumeId,
        keys: &[(DataKeyId, WrappedBy)],
        job: Option<&NewJob>,
        tops: &[NewTop],
    ) -> Result<()> {
        let transaction = self.connection.transaction()?;
        for (data_key, by) in keys {
            insert_data_key(&transaction, volume, *data_key, by)?;
        }
        transaction.execute(
            "UPDATE volumes SET state = 'available' WHERE id = ?1",
            [volume.to_string()],
        )?;
        if let Some(job) = job {
            insert_job(&transaction, job)?;
        }
        put_tops(&transaction, tops)?;
        Ok(transaction.commit()?)
    }

    /// The files of the volume are about to go.
    pub(crate) fn begin_delete(&mut self, volume: VolumeId) -> Result<()> {
        self.connection.execute(
            "UPDATE volumes SET state = 'deleting', attached = 0 WHERE id = ?1",
            [volume.to_string()],
        )?;
        Ok(())
    }

    /// The files of these layers, of which nobody else has need, are gone, or were never complete: forget them and the volume.
    pub(crate) fn forget(&mut self, volume: VolumeId, layers: &[LayerId]) -> Result<()> {
        let transaction = self.connection.transaction()?;
        for layer in layers {
            transaction.execute("DELETE FROM layers WHERE id = ?1", [layer.to_string()])?;
        }
        for table in ["snapshots", "data_keys"] {
            let sql = format!("DELETE FROM {table} WHERE volume = ?1");
            transaction.execute(&sql, [volume.to_string()])?;
        }
        transaction.execute("DELETE FROM volumes WHERE id = ?1", [volume.to_string()])?;
        forget_wraps(&transaction)?;
        Ok(transaction.commit()?)
    }

    /// The volume is attached so, also after a restart, until it is detached.
    pub(crate) fn set_attached(&mut self, volume: VolumeId, attached: &Attached) -> Result<()> {
        let allow = serde_json::to_string(&attached.allow).unwrap_or_else(|_| "[]".to_owned());
        self.connection.execute(
            "UPDATE volumes SET attached = 1, read_only = ?2, allow = ?3, attached_by = ?4,
             direct = ?5 WHERE id = ?1",
            params![
                volume.to_string(),
                attached.read_only,
                allow,
                attached.by,
                attached.direct
            ],
        )?;
        Ok(())
    }

    /// The volume is not attached any more.
    pub(crate) fn set_detached(&mut self, volume: VolumeId) -> Result<()> {
        self.connection.execute(
            "UPDATE volumes SET attached = 0 WHERE id = ?1",
            [volume.to_string()],
        )?;
        Ok(())
    }

    /// The volume is to have this size; it never becomes smaller.
    pub(crate) fn set_size(&mut self, volume: VolumeId, size: u64) -> Result<()> {
        self.connection.execute(
            "UPDATE volumes SET size = max(size, ?2) WHERE id = ?1",
            params![volume.to_string(), signed(size)?],
        )?;
        Ok(())
    }

    /// The volume is to have these limits, attached or not.
    pub(crate) fn set_limits(&mut self, volume: VolumeId, limits: Limits) -> Result<()> {
        let rate = |rate: Option<u64>| rate.map(signed).transpose();
        self.connection.execute(
            "UPDATE volumes SET iops = ?2, bandwidth = ?3, burst_seconds = ?4 WHERE id = ?1",
            params![
                volume.to_string(),
                rate(limits.iops)?,
                rate(limits.bandwidth)?,
                limits.burst_seconds
            ],
        )?;
        Ok(())
    }

    /// From now on a superblock of the layer below `generation`, and another key than the one of
    /// `commitment`, are refused.
    pub(crate) fn pin(
        &mut self,
        layer: LayerId,
        generation: u64,
        size: u64,
        commitment: Commitment,
        boot: BootId,
    ) -> Result<()> {
        let transaction = self.connection.transaction()?;
        transaction.execute(
            "UPDATE layers SET generation = max(generation, ?2),
                 commitment = coalesce(commitment, ?3), bound = 1, boot = ?4, size = max(size, ?5)
             WHERE id = ?1",
            params![
                layer.to_string(),
                signed(generation)?,
                commitment.0,
                boot,
                signed(size)?
            ],
        )?;
        transaction.execute(
            "UPDATE volumes SET size = max(size, ?2) WHERE top = ?1",
            params![layer.to_string(), signed(size)?],
        )?;
        Ok(transaction.commit()?)
    }

    /// Records a failed sync (rule R6) for every volume that stands on the layer. The first one stays: it is the one that
    /// lost something.
    pub(crate) fn record_loss(&mut self, layer: LayerId, loss: &str) -> Result<()> {
        self.connection.execute(
            "WITH RECURSIVE above (id) AS (
                 SELECT ?1 UNION SELECT layers.id FROM layers JOIN above ON layers.parent = above.id
             )
             UPDATE volumes SET loss = coalesce(loss, ?2) WHERE top IN above",
            params![layer.to_string(), loss],
        )?;
        Ok(())
    }

    /// The operator accepts the loss.
    pub(crate) fn accept_loss(&mut self, volume: VolumeId) -> Result<()> {
        self.connection.execute(
            "UPDATE volumes SET loss = NULL WHERE id = ?1",
            [volume.to_string()],
        )?;
        Ok(())
    }

    /// Moves everything into the database file and empties its log.
    pub(crate) fn checkpoint(&mut self) -> Result<()> {
        let done = self
            .connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        Ok(done?)
    }
}

/// A volume in the state *creating*, and its layer.
fn insert(transaction: &Transaction<'_>, new: &NewVolume) -> Result<()> {
    let (backing, path) = new.backing.columns();
    let inserted = transaction.execute(
            "INSERT INTO volumes
                 (id, name, state, created, size, sector_size, key, backing, backing_path, top, layers_dir, ephemeral)
             VALUES (:id, :name, 'creating', :created, :size, :sector_size, :key, :backing, :path, :top,
                     :layers_dir, :ephemeral)
             ON CONFLICT (name) DO NOTHING",
            named_params! {
                ":id": new.id.to_string(),
                ":name": new.name.as_str(),
                ":created": new.created,
                ":size": signed(new.size)?,
                ":sector_size": rows::sector_bytes(new.sector_size),
                ":key": new.key.to_string(),
                ":backing": backing,
                ":path": path,
                ":top": new.layer.to_string(),
                ":ephemeral": new.ephemeral,
                ":layers_dir": new.layers_dir.as_ref().map(|path| path.to_string_lossy()),
            },
        )?;
    if inserted == 0 {
        return Err(RegistryError::NameTaken(new.name.to_string()));
    }
    let layer = LayerRow {
        id: new.layer,
        volume: new.id,
        parent: new.parent,
        size: new.size,
        backing: new.backing.clone(),
        data_key: new.data_key,
        sealed: false,
        commitment: None,
        generation: 0,
        bound: false,
        boot: None,
        former_parents: Vec::new(),
    };
    insert_layer(transaction, &layer)
}

/// A layer that is about to be made, or is complete and was never open.
pub(super) fn insert_layer(transaction: &Transaction<'_>, layer: &LayerRow) -> Result<()> {
    let (backing, path) = layer.backing.columns();
    transaction.execute(
        "INSERT INTO layers (id, volume, parent, size, backing, backing_path, data_key, commitment)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            layer.id.to_string(),
            layer.volume.to_string(),
            layer.parent.map(|parent| parent.to_string()),
            signed(layer.size)?,
            backing,
            path,
            layer.data_key.to_string(),
            layer.commitment.map(|commitment| commitment.0),
        ],
    )?;
    Ok(())
}

/// What wraps a data key for a volume.
pub(super) fn insert_data_key(
    transaction: &Transaction<'_>,
    volume: VolumeId,
    data_key: DataKeyId,
    by: &WrappedBy,
) -> Result<()> {
    transaction.execute(
        "INSERT INTO data_keys (volume, data_key, provider, key_id, key_version)
         VALUES (?1, ?2, ?3, ?4, ?5)",
        params![
            volume.to_string(),
            data_key.to_string(),
            by.provider,
            by.key_id,
            by.key_version
        ],
    )?;
    remember_wrap(transaction, volume, data_key, by)
}

#[cfg(test)]
#[path = "database_tests.rs"]
mod tests;
