//! Layers whose files are being made: written down before the first file is there, so that a start knows what to remove of one
//! that never came into use, or is in use no more. Its superblock holds wrapped keys of the whole stack: left behind, it would outlive their destruction.

use rusqlite::{Transaction, params};
use sealvol_volume::LayerId;

use super::database::{Database, Result, insert_layer};
use super::rows::{self, Backing, LayerRow};

impl Database {
    /// The files of these layers are about to be made.
    pub(crate) fn begin_layers(&mut self, layers: &[LayerRow]) -> Result<()> {
        let transaction = self.connection.transaction()?;
        for layer in layers {
            let (backing, path) = layer.backing.columns();
            transaction.execute(
                "INSERT INTO new_layers (id, backing, backing_path) VALUES (?1, ?2, ?3)",
                params![layer.id.to_string(), backing, path],
            )?;
        }
        Ok(transaction.commit()?)
    }

    /// An ephemeral volume begins anew: its one layer is this one, whose files are complete, and those of the former one are to
    /// go. What was lost of that is not missed.
    pub(crate) fn begin_anew(&mut self, new: &LayerRow) -> Result<()> {
        let transaction = self.connection.transaction()?;
        let volume = new.volume.to_string();
        transaction.execute(
            "INSERT INTO new_layers SELECT layers.id, layers.backing, layers.backing_path
             FROM layers JOIN volumes ON layers.id = top WHERE volumes.id = ?1",
            [&volume],
        )?;
        transaction.execute(
            "DELETE FROM layers WHERE id = (SELECT top FROM volumes WHERE id = ?1)",
            [&volume],
        )?;
        insert_layer(&transaction, new)?;
        is_in_use(&transaction, new.id)?;
        transaction.execute(
            "UPDATE volumes SET top = ?2, loss = NULL WHERE id = ?1",
            params![volume, new.id.to_string()],
        )?;
        Ok(transaction.commit()?)
    }

    /// The layers that never came into use, and where their files are, as far as there are any.
    pub(crate) fn new_layers(&mut self) -> Result<Vec<(LayerId, Backing)>> {
        let sql = "SELECT id, backing, backing_path FROM new_layers";
        let mut statement = self.connection.prepare(sql)?;
        let rows = statement.query_map([], |row| {
            Ok((rows::parsed(row, 0)?, rows::backing(row, 1)?))
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Nothing is left of these layers, which never came into use.
    pub(crate) fn forget_new_layers(&mut self, layers: &[LayerId]) -> Result<()> {
        let transaction = self.connection.transaction()?;
        for &layer in layers {
            is_in_use(&transaction, layer)?;
        }
        Ok(transaction.commit()?)
    }
}

/// The layer is registered as one of a stack, or gone.
pub(super) fn is_in_use(transaction: &Transaction<'_>, layer: LayerId) -> Result<()> {
    transaction.execute("DELETE FROM new_layers WHERE id = ?1", [layer.to_string()])?;
    Ok(())
}
