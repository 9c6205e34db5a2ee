//! The rows as types, and how they are read: text that is no id or name is an error of the database,
//! never a panic.

use std::path::PathBuf;
use std::str::FromStr;

use rusqlite::Row;
use rusqlite::types::Type;
use sealvol_control::api::{SnapshotName, SnapshotRef, VolumeName};
use sealvol_control::key_ref::KeyRef;
use sealvol_crypto::{Commitment, UnitSize};
use sealvol_volume::{DataKeyId, LayerId, VolumeId};

use crate::limits::Limits;
use crate::working_state::BootId;

/// How far a volume has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowState {
    /// Its layers may be incomplete.
    Creating,
    /// Complete.
    Available,
    /// Its layers may be gone in part.
    Deleting,
}

/// Where the ciphertext of a volume is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// Below the state directory.
    State,
    /// Below another directory.
    Directory(PathBuf),
    /// `data` is this block device; `meta` is below the state directory.
    Device(PathBuf),
}

/// A volume as registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumeRow {
    /// For its whole life.
    pub id: VolumeId,
    /// Unique.
    pub name: VolumeName,
    /// See [`RowState`].
    pub state: RowState,
    /// RFC 3339, UTC.
    pub created: String,
    /// Bytes; more than the top layer says after a grow while detached.
    pub size: u64,
    /// Data unit of the cipher.
    pub sector_size: UnitSize,
    /// The key that was asked for.
    pub key: KeyRef,
    /// See [`Backing`].
    pub backing: Backing,
    /// The writable layer.
    pub top: LayerId,
    /// How it is attached, or is to be again after a restart.
    pub attached: Option<Attached>,
    /// How many requests and bytes a second, attached or not.
    pub limits: Limits,
    /// A failed sync (rule R6), until the operator accepts the loss.
    pub loss: Option<String>,
    /// Where further layers go, if not where the first is.
    pub layers_dir: Option<PathBuf>,
    /// Its data key is in memory only, while it is attached.
    pub ephemeral: bool,
}

impl VolumeRow {
    /// Where another layer would go; none for a volume on a device that has no place for it.
    pub(crate) fn next_backing(&self) -> Option<Backing> {
        match (&self.layers_dir, &self.backing) {
            (Some(directory), _) => Some(Backing::Directory(directory.clone())),
            (None, Backing::Device(_)) => None,
            (None, backing) => Some(backing.clone()),
        }
    }
}

/// How a volume is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attached {
    /// Writes are refused.
    pub read_only: bool,
    /// The store is reached past the page cache.
    pub direct: bool,
    /// User ids that may open the export.
    pub allow: Vec<u32>,
    /// User id that attached it.
    pub by: u32,
}

/// What wraps a data key, as the provider resolved it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WrappedBy {
    /// A configured provider.
    pub provider: String,
    /// The provider's lasting id of the key.
    pub key_id: String,
    /// Version of that key.
    pub key_version: u32,
}

/// A layer as registered: what `volume` takes as pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LayerRow {
    /// Names its directory too.
    pub id: LayerId,
    /// The volume that it was made for, and that its superblock names.
    pub volume: VolumeId,
    /// The layer below.
    pub parent: Option<LayerId>,
    /// Bytes, as its superblock says or is to say.
    pub size: u64,
    /// Where its files are.
    pub backing: Backing,
    /// Its data key.
    pub data_key: DataKeyId,
    /// Its superblock says that it never changes again. A layer below others that is not sealed is to be.
    pub sealed: bool,
    /// Of the data key; none before the first attach, if the key service made the key and nobody else saw it.
    pub commitment: Option<Commitment>,
    /// Highest generation of the superblock that is relied on.
    pub generation: u64,
    /// Its superblock has a MAC.
    pub bound: bool,
    /// The boot in which it was last opened for writing.
    pub boot: Option<BootId>,
    /// Layers that it stood on before, each merged down into the one below it: its superblock may still name one of them.
    pub former_parents: Vec<LayerId>,
}

/// A snapshot as registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotRow {
    /// The newest of its layers.
    pub layer: LayerId,
    /// Its volume.
    pub volume: VolumeId,
    /// Unique among those of the volume that are not deleted.
    pub name: SnapshotName,
    /// RFC 3339, UTC.
    pub created: String,
    /// How it is attached, or is to be again after a restart.
    pub attached: Option<Attached>,
}

pub(super) const VOLUME_COLUMNS: &str = "id, name, state, created, size, sector_size, key, \
     backing, backing_path, top, attached, read_only, allow, attached_by, loss, direct, \
     iops, bandwidth, burst_seconds, layers_dir, ephemeral";

pub(super) fn volume(row: &Row<'_>) -> rusqlite::Result<VolumeRow> {
    let attached = if row.get::<_, bool>(10)? {
        let allow: String = row.get(12)?;
        let allow = serde_json::from_str(&allow).map_err(|error| invalid(12, error))?;
        Some(Attached {
            read_only: row.get(11)?,
            direct: row.get(15)?,
            allow,
            by: row.get(13)?,
        })
    } else {
        None
    };
    let sector_size: u32 = row.get(5)?;
    Ok(VolumeRow {
        id: parsed(row, 0)?,
        name: parsed(row, 1)?,
        state: match row.get_ref(2)?.as_str()? {
            "creating" => RowState::Creating,
            "deleting" => RowState::Deleting,
            _ => RowState::Available,
        },
        created: row.get(3)?,
        size: unsigned(row, 4)?,
        sector_size: UnitSize::try_from(sector_size).map_err(|error| invalid(5, error))?,
        key: parsed(row, 6)?,
        backing: backing(row, 7)?,
        top: parsed(row, 9)?,
        attached,
        limits: Limits {
            iops: rate(row, 16)?,
            bandwidth: rate(row, 17)?,
            burst_seconds: row.get(18)?,
        },
        loss: row.get(14)?,
        layers_dir: row.get::<_, Option<String>>(19)?.map(PathBuf::from),
        ephemeral: row.get(20)?,
    })
}

/// A backing from two columns.
pub(super) fn backing(row: &Row<'_>, first: usize) -> rusqlite::Result<Backing> {
    let path = PathBuf::from(row.get::<_, String>(first + 1)?);
    Ok(match row.get_ref(first)?.as_str()? {
        "device" => Backing::Device(path),
        "directory" => Backing::Directory(path),
        _ => Backing::State,
    })
}

pub(super) const SNAPSHOT_COLUMNS: &str =
    "layer, volume, name, created, attached, direct, allow, attached_by";

pub(super) fn snapshot(row: &Row<'_>) -> rusqlite::Result<SnapshotRow> {
    let attached = if row.get::<_, bool>(4)? {
        let allow: String = row.get(6)?;
        let allow = serde_json::from_str(&allow).map_err(|error| invalid(6, error))?;
        Some(Attached {
            read_only: true,
            direct: row.get(5)?,
            allow,
            by: row.get(7)?,
        })
    } else {
        None
    };
    Ok(SnapshotRow {
        layer: parsed(row, 0)?,
        volume: parsed(row, 1)?,
        name: parsed(row, 2)?,
        created: row.get(3)?,
        attached,
    })
}

pub(super) fn name(row: &Row<'_>) -> rusqlite::Result<VolumeName> {
    parsed(row, 0)
}

pub(super) fn snapshot_ref(row: &Row<'_>) -> rusqlite::Result<SnapshotRef> {
    Ok(SnapshotRef {
        volume: parsed(row, 0)?,
        name: parsed(row, 1)?,
    })
}

pub(super) fn data_key(row: &Row<'_>) -> rusqlite::Result<(DataKeyId, WrappedBy)> {
    let by = WrappedBy {
        provider: row.get(1)?,
        key_id: row.get(2)?,
        key_version: row.get(3)?,
    };
    Ok((parsed(row, 0)?, by))
}

pub(super) const LAYER_COLUMNS: &str = "id, volume, parent, size, backing, backing_path, data_key, \
     sealed, commitment, generation, bound, boot, former_parents";

pub(super) fn layer(row: &Row<'_>) -> rusqlite::Result<LayerRow> {
    let parent: Option<String> = row.get(2)?;
    let former: String = row.get(12)?;
    let former: Vec<String> = serde_json::from_str(&former).map_err(|error| invalid(12, error))?;
    let former = former.iter().map(|text| text.parse());
    Ok(LayerRow {
        id: parsed(row, 0)?,
        volume: parsed(row, 1)?,
        parent: parent
            .map(|text| text.parse().map_err(|e| invalid(2, e)))
            .transpose()?,
        size: unsigned(row, 3)?,
        backing: backing(row, 4)?,
        data_key: parsed(row, 6)?,
        sealed: row.get(7)?,
        commitment: row.get::<_, Option<[u8; 32]>>(8)?.map(Commitment),
        generation: unsigned(row, 9)?,
        bound: row.get(10)?,
        boot: row.get(11)?,
        former_parents: former
            .collect::<Result<_, _>>()
            .map_err(|error| invalid(12, error))?,
    })
}

impl Backing {
    pub(super) fn columns(&self) -> (&'static str, String) {
        match self {
            Self::State => ("state", String::new()),
            Self::Directory(path) => ("directory", path.to_string_lossy().into_owned()),
            Self::Device(path) => ("device", path.to_string_lossy().into_owned()),
        }
    }
}

pub(super) fn sector_bytes(sector_size: UnitSize) -> u32 {
    match sector_size {
        UnitSize::B512 => 512,
        UnitSize::B4096 => 4096,
    }
}

/// An unsigned number as SQLite has it. The registry's numbers stay far below 2^63.
pub(super) fn signed(number: u64) -> rusqlite::Result<i64> {
    i64::try_from(number).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

pub(super) fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    u64::try_from(row.get::<_, i64>(column)?).map_err(|error| invalid(column, error))
}

fn rate(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<u64>> {
    let rate: Option<i64> = row.get(column)?;
    let rate = rate.map(|rate| u64::try_from(rate).map_err(|error| invalid(column, error)));
    rate.transpose()
}

pub(super) fn parsed<T>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    row.get_ref(column)?
        .as_str()?
        .parse()
        .map_err(|error| invalid(column, error))
}

fn invalid(
    column: usize,
    error: impl std::error::Error + Send + Sync + 'static,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
}
