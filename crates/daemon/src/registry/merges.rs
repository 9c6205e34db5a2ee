//! The calls of the registry about layers that go, each one transaction.
//!
//! What always holds: a layer is due to be merged only if exactly one other, over all volumes, stands on it, and no volume and
//! no snapshot is that layer; its row stays until its files are gone.

use sealvol_volume::LayerId;

use super::database::{Database, Result};
use super::rows::{self, LayerRow};

impl Database {
    /// Layers that nobody asks for any more and that are to be merged with their only child, the lowest ones last. Not those
    /// on a device, which is what their volume was put on; nor those that a re-key copies, or copied until it was cancelled:
    /// a merge would go on with what somebody stopped.
    pub(crate) fn due_merges(&mut self) -> Result<Vec<LayerRow>> {
        self.layers_where(
            "backing <> 'device'
             AND (SELECT count(*) FROM layers AS child
                  WHERE child.parent = layers.id AND child.id IN (SELECT id FROM needed)) = 1
             AND id NOT IN (SELECT top FROM volumes)
             AND id NOT IN (SELECT layer FROM snapshots WHERE deleted = 0)
             AND NOT EXISTS (SELECT 1 FROM jobs WHERE (ended IS NULL OR state = 'cancelled') AND instr(work, layers.id) > 0)
             ORDER BY rowid DESC",
        )
    }

    /// Layers that no volume and no snapshot stands on: what a merge leaves. What a job has to destroy is the job's.
    pub(crate) fn layers_of_nobody(&mut self) -> Result<Vec<LayerRow>> {
        self.layers_where(
            "id NOT IN (SELECT id FROM needed)
             AND NOT EXISTS (SELECT 1 FROM jobs WHERE ended IS NULL AND instr(work, layers.id) > 0)",
        )
    }

    /// The layer's superblock says that it stands on this one.
    pub(crate) fn set_parent(&mut self, layer: LayerId, parent: Option<LayerId>) -> Result<()> {
        self.connection.execute(
            "UPDATE layers SET parent = ?2 WHERE id = ?1",
            rusqlite::params![layer.to_string(), parent.map(|parent| parent.to_string())],
        )?;
        Ok(())
    }

    /// The files of a layer that nobody stands on are gone.
    pub(crate) fn forget_layer(&mut self, layer: LayerId) -> Result<()> {
        let transaction = self.connection.transaction()?;
        for (table, column) in [("snapshots", "layer"), ("layers", "id")] {
            let sql = format!("DELETE FROM {table} WHERE {column} = ?1");
            transaction.execute(&sql, [layer.to_string()])?;
        }
        Ok(transaction.commit()?)
    }

    fn layers_where(&mut self, condition: &str) -> Result<Vec<LayerRow>> {
        let columns = rows::LAYER_COLUMNS;
        let sql = format!("{NEEDED} SELECT {columns} FROM layers WHERE {condition}");
        let mut statement = self.connection.prepare(&sql)?;
        let rows = statement.query_map([], rows::layer)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}

/// What volumes and snapshots stand on.
const NEEDED: &str = "WITH RECURSIVE needed (id) AS (
    SELECT top FROM volumes
    UNION SELECT layer FROM snapshots WHERE deleted = 0
    UNION SELECT parent FROM layers JOIN needed ON layers.id = needed.id WHERE parent IS NOT NULL
)";
