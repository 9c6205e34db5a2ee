//! The calls of the registry about volumes whose key is watched while they are attached.
//!
//! A volume without a row here is held: nothing becomes of it before its next attach. A row goes with its volume.

use rusqlite::{OptionalExtension as _, Row, params};
use sealvol_control::api::{Enforcement, VolumeName};
use sealvol_volume::VolumeId;

use super::database::{Database, Result};

impl Database {
    /// How a volume's key is watched, if it is.
    pub(crate) fn enforcement(&mut self, volume: VolumeId) -> Result<Option<Enforcement>> {
        let found = self.connection.query_row(
            "SELECT every, grace, away FROM enforcements WHERE volume = ?1",
            [volume.to_string()],
            |row| enforcement(row, 0),
        );
        Ok(found.optional()?)
    }

    /// All volumes whose key is watched, attached or not.
    pub(crate) fn enforcements(&mut self) -> Result<Vec<(VolumeName, Enforcement)>> {
        let mut statement = self.connection.prepare(
            "SELECT name, every, grace, away FROM enforcements JOIN volumes ON volume = id ORDER BY name",
        )?;
        let rows = statement.query_map([], |row| {
            let name: String = row.get(0)?;
            Ok((name, enforcement(row, 1)?))
        })?;
        let rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
        // A name that is none is not in there; nobody else writes the registry.
        let named = |(name, found): (String, _)| Some((name.parse().ok()?, found));
        Ok(rows.into_iter().filter_map(named).collect())
    }

    /// The volume's key is to be watched so, or not any more.
    pub(crate) fn set_enforcement(
        &mut self,
        volume: VolumeId,
        enforcement: Option<Enforcement>,
    ) -> Result<()> {
        let volume = volume.to_string();
        let Some(found) = enforcement else {
            let gone = "DELETE FROM enforcements WHERE volume = ?1";
            self.connection.execute(gone, [volume])?;
            return Ok(());
        };
        self.connection.execute(
            "INSERT INTO enforcements (volume, every, grace, away) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (volume) DO UPDATE SET every = ?2, grace = ?3, away = ?4",
            params![
                volume,
                found.every_seconds,
                found.grace_seconds,
                found.away_seconds
            ],
        )?;
        Ok(())
    }

    /// No snapshot of the volume is attached any more.
    pub(crate) fn set_snapshots_detached(&mut self, volume: VolumeId) -> Result<()> {
        self.connection.execute(
            "UPDATE snapshots SET attached = 0 WHERE volume = ?1",
            [volume.to_string()],
        )?;
        Ok(())
    }

    /// The key service has been away for so long.
    pub(crate) fn set_away(&mut self, volume: VolumeId, seconds: u32) -> Result<()> {
        self.connection.execute(
            "UPDATE enforcements SET away = ?2 WHERE volume = ?1",
            params![volume.to_string(), seconds],
        )?;
        Ok(())
    }
}

fn enforcement(row: &Row<'_>, first: usize) -> rusqlite::Result<Enforcement> {
    Ok(Enforcement {
        every_seconds: row.get(first)?,
        grace_seconds: row.get(first + 1)?,
        away_seconds: row.get(first + 2)?,
    })
}
