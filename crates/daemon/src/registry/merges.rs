//! The calls of the registry about layers that go, each one transaction.
//!
//! What always holds: a layer is due to be merged only if exactly one other, over all volumes, stands on it, and no volume and
//! no snapshot is that layer; its row stays until its files are gone. A merge down takes effect here, in one step, and only if all
//! that it depends on still holds then.

use rusqlite::{Connection, OptionalExtension as _, params};
use sealvol_volume::LayerId;

use super::database::{Database, Result};
use super::rows::{self, LayerRow};

impl Database {
    /// Layers that nobody asks for any more and that are to be merged with their only child, the lowest ones last. Not those
    /// on a device, which is what their volume was put on; nor those that a re-key copies, or copied until it was cancelled:
    /// a merge would go on with what somebody stopped.
    pub(crate) fn due_merges(&mut self) -> Result<Vec<LayerRow>> {
        self.layers_where(&format!("{DUE} ORDER BY rowid DESC"))
    }

    /// The only child of a layer that is due, if that may go down into it: sealed, under the same data key, and of no job.
    pub(crate) fn child_to_go_down(&mut self, dying: LayerId) -> Result<Option<LayerId>> {
        child_to_go_down(&self.connection, dying)
    }

    /// All that a layer's only child says is in that layer, on disk: who stood on the child stands on the layer from now on. False,
    /// and nothing has changed, if that is not to be any more.
    pub(crate) fn hand_down(&mut self, child: LayerId, dying: LayerId) -> Result<bool> {
        let transaction = self.connection.transaction()?;
        if child_to_go_down(&transaction, dying)? != Some(child) {
            return Ok(false);
        }
        let both = params![child.to_string(), dying.to_string()];
        transaction.execute(
            "UPDATE layers SET former_parents = json_insert(former_parents, '$[#]', ?1), parent = ?2 WHERE parent = ?1",
            both,
        )?;
        // What the layer was before is a snapshot that was deleted.
        transaction.execute(
            "DELETE FROM snapshots WHERE layer = ?1",
            [dying.to_string()],
        )?;
        transaction.execute("UPDATE snapshots SET layer = ?2 WHERE layer = ?1", both)?;
        transaction.commit()?;
        Ok(true)
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
        set_parent(&self.connection, &layer.to_string(), parent)
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

/// What a superblock said before is nothing that anybody may go back to: what it stood on then may have gone up into it.
pub(super) fn set_parent(
    connection: &Connection,
    layer: &str,
    parent: Option<LayerId>,
) -> Result<()> {
    connection.execute(
        "UPDATE layers SET parent = ?2, former_parents = '[]' WHERE id = ?1",
        params![layer, parent.map(|parent| parent.to_string())],
    )?;
    Ok(())
}

fn child_to_go_down(connection: &Connection, dying: LayerId) -> Result<Option<LayerId>> {
    let sql = format!(
        "{NEEDED} SELECT child.id FROM layers AS child JOIN layers ON child.parent = layers.id
         WHERE layers.id = ?1 AND child.id IN (SELECT id FROM needed) AND layers.sealed = 1 AND child.sealed = 1
         AND child.volume = layers.volume AND child.data_key = layers.data_key AND child.backing <> 'device'
         AND child.id NOT IN (SELECT top FROM volumes)
         AND NOT EXISTS (SELECT 1 FROM jobs WHERE (ended IS NULL OR state = 'cancelled') AND instr(work, child.id) > 0)
         AND layers.id IN (SELECT id FROM layers WHERE {DUE})"
    );
    let mut statement = connection.prepare(&sql)?;
    let child = statement.query_row([dying.to_string()], |row| rows::parsed(row, 0));
    Ok(child.optional()?)
}

/// Of a row of `layers`: it is to be merged with its only child. See [`Database::due_merges`].
const DUE: &str = "layers.backing <> 'device'
    AND (SELECT count(*) FROM layers AS child
         WHERE child.parent = layers.id AND child.id IN (SELECT id FROM needed)) = 1
    AND layers.id NOT IN (SELECT top FROM volumes)
    AND layers.id NOT IN (SELECT layer FROM snapshots WHERE deleted = 0)
    AND NOT EXISTS (SELECT 1 FROM jobs WHERE (ended IS NULL OR state = 'cancelled') AND instr(work, layers.id) > 0)";

/// What volumes and snapshots stand on.
const NEEDED: &str = "WITH RECURSIVE needed (id) AS (
    SELECT top FROM volumes
    UNION SELECT layer FROM snapshots WHERE deleted = 0
    UNION SELECT parent FROM layers JOIN needed ON layers.id = needed.id WHERE parent IS NOT NULL
)";
