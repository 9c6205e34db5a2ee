//! What is asked of a database and its master key before a key of it is used: is it the right master key, is the table whole and
//! not older than what was relied on, is it of the present format.
//!
//! What always holds: nothing is written into a database that fails one of these; a table of an earlier format is proved by that
//! format's MAC before it is brought to the present one.

use std::path::Path;
use std::sync::Arc;

use rusqlite::{Transaction, params};
use sealvol_control::keychild::TableState;
use sealvol_crypto::locked::KeyMemory;
use sealvol_crypto::wrap::WrapError;
use sealvol_crypto::{KeyEncryptionKey, constant_time_eq};

use super::clock::{self, Now};
use super::database::{Database, Meta};
use super::master_key::Source;
use super::table::{self, Table, signed};
use super::{CHECK_VERSION, Use, context, id_text, key_error, new_id, schema};
use crate::Refusal;

/// A new database's `meta`: its check value is a throw-away key that only the master key opens.
pub(super) fn new_meta(
    source: &Source<'_>,
    memory: &Arc<KeyMemory>,
) -> Result<(Meta, KeyEncryptionKey), Refusal> {
    let id = new_id();
    let (master, form) = source.read_or_make(memory)?;
    let check = KeyEncryptionKey::generate(memory).map_err(key_error)?;
    let master_check = master.seal(&check, &context(&id, Use::MasterCheck), &id, CHECK_VERSION);
    let meta = Meta {
        format: schema::FORMAT,
        id,
        form,
        master_check,
    };
    Ok((meta, master))
}

pub(super) fn check_master(
    master: &KeyEncryptionKey,
    meta: &Meta,
    database: &Path,
    memory: &Arc<KeyMemory>,
) -> Result<(), Refusal> {
    let path = || database.to_owned();
    match master.open(
        memory,
        &meta.master_check,
        &context(&meta.id, Use::MasterCheck),
    ) {
        Ok(_) => Ok(()),
        Err(WrapError::Refused) => Err(Refusal::WrongMasterKey { path: path() }),
        Err(WrapError::Locked(error)) => Err(error.into()),
        Err(error) => Err(Refusal::DatabaseDamaged {
            path: path(),
            reason: format!("check value of the master key: {error}"),
        }),
    }
}

/// Refuses a table that is older than the one relied on, or another one of the same age; `None` is one that had no MAC yet.
pub(super) fn check_relied_on(
    database: &Database,
    meta: &Meta,
    table: Option<&Table>,
    relied_on: Option<&TableState>,
) -> Result<(), Refusal> {
    let Some(relied_on) = relied_on else {
        return Ok(());
    };
    let path = || database.path().to_owned();
    let found = id_text(&meta.id);
    if found != relied_on.database {
        return Err(Refusal::OtherDatabase {
            path: path(),
            found,
            expected: relied_on.database.clone(),
        });
    }
    let changes = table.map_or(0, |table| table.changes);
    let same = table.is_some_and(|table| table.mac == relied_on.mac);
    if changes > relied_on.version || changes == relied_on.version && same {
        return Ok(());
    }
    Err(Refusal::TableRolledBack {
        path: path(),
        found: changes,
        expected: relied_on.version,
    })
}

/// Brings a database of an earlier format to the present one. What format 1 says was not authenticated: it is believed now, once.
pub(super) fn migrate(
    database: &Database,
    master: &KeyEncryptionKey,
    meta: &Meta,
    relied_on: Option<&TableState>,
    reading: clock::Reading,
) -> Result<(), Refusal> {
    let fault = |error| database.fault(error);
    let transaction = database.write()?;
    let format = table::format(&transaction).map_err(fault)?;
    if format == schema::FORMAT {
        return Ok(()); // another child was first
    }
    let counted = if format == 1 {
        check_relied_on(database, meta, None, relied_on)?;
        0
    } else {
        let table = Table::load(&transaction).map_err(fault)?;
        verify(database, master, &meta.id, &table)?;
        check_relied_on(database, meta, Some(&table), relied_on)?;
        table.counted + reading.since(&table.seen)
    };
    for (_, step) in schema::STEPS.iter().filter(|(from, _)| *from >= format) {
        transaction.execute_batch(step).map_err(fault)?;
    }
    let now = Now {
        wall: reading.wall / 1000,
        counted,
        reading,
    };
    transaction
        .execute("UPDATE meta SET format = ?1", [schema::FORMAT])
        .map_err(fault)?;
    close_table(&transaction, master, &meta.id, &now).map_err(fault)?;
    transaction.commit().map_err(fault)
}

/// Refuses a table that was changed by somebody without the master key.
pub(super) fn verify(
    database: &Database,
    master: &KeyEncryptionKey,
    id: &[u8; 16],
    table: &Table,
) -> Result<(), Refusal> {
    if constant_time_eq(&master.table_mac(id, &table.message), &table.mac) {
        return Ok(());
    }
    Err(Refusal::TableChanged {
        path: database.path().to_owned(),
    })
}

/// Counts a change and authenticates the table as it is stored now.
pub(super) fn close_table(
    transaction: &Transaction<'_>,
    master: &KeyEncryptionKey,
    id: &[u8; 16],
    now: &Now,
) -> rusqlite::Result<Table> {
    transaction.execute(
        "UPDATE meta SET changes = changes + 1, counted = ?1, seen_boot = ?2, seen_running = ?3, seen_wall = ?4",
        params![
            signed(now.counted),
            now.reading.boot,
            signed(now.reading.running),
            signed(now.reading.wall)
        ],
    )?;
    let mut table = Table::load(transaction)?;
    table.mac = master.table_mac(id, &table.message).to_vec();
    transaction.execute("UPDATE meta SET mac = ?1", [&table.mac])?;
    Ok(table)
}
