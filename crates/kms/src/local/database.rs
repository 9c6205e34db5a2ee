//! The SQLite file of the `local` provider: tables, transactions, and what their errors mean.
//!
//! What always holds:
//! - a change is on stable storage, directory entry of the journal included, when it is answered
//!   (rollback journal, `synchronous = EXTRA`);
//! - writers exclude each other from the start of their transaction (`BEGIN IMMEDIATE`), so two
//!   children that make the same key cannot both succeed;
//! - a copy is of one moment, whatever others write meanwhile;
//! - whoever finds the tables finds the whole of them and the row of `meta`: one transaction makes all;
//! - the file holds key material in sealed form only. This module sees no other form.
//!
//! The format is described in `LOCAL.md`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{
    Connection, ErrorCode, MAIN_DB, OpenFlags, OptionalExtension, Row, Transaction,
    TransactionBehavior, params,
};
use sealvol_crypto::{Argon2Params, MIN_SALT_BYTES};

use super::place;
use super::schema::{FORMAT, SCHEMA};
use super::table::{Table, signed};
use crate::Refusal;

/// `PRAGMA application_id`: "SVKS".
const APPLICATION_ID: i64 = 0x5356_4b53;

/// How long a child waits for another one's transaction. Each takes milliseconds; making a database
/// with a passphrase takes an Argon2id run.
const BUSY: Duration = Duration::from_secs(5);

/// How the master key comes about, as the database states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MasterKeyForm {
    /// Argon2id of a passphrase.
    Passphrase {
        salt: [u8; MIN_SALT_BYTES],
        costs: Argon2Params,
    },
    /// 32 bytes from a file or credential.
    Raw,
}

/// The one row of `meta`, as far as every format has it.
pub(super) struct Meta {
    pub(super) format: i64,
    pub(super) id: [u8; 16],
    pub(super) form: MasterKeyForm,
    pub(super) master_check: Vec<u8>,
}

pub(super) struct Database {
    connection: Connection,
    path: PathBuf,
}

impl Database {
    /// Opens the file at `path`; makes an empty one first if `create`.
    pub(super) fn open(path: &Path, create: bool) -> Result<Self, Refusal> {
        let directory = place::trusted_directory(path)?;
        // SQLite is told to follow no link, and means all parts of a path by that.
        let path = &directory.join(path.file_name().unwrap_or_default());
        if create {
            // Made here and not by SQLite, which would make it readable as far as the umask allows.
            match place::create_private(path) {
                Ok(_) => place::sync_directory(&directory)?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(Refusal::system(path, source)),
            }
        }
        match place::open_to_read(path) {
            Ok((_, found)) => place::check_private(path, &found)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Refusal::NoDatabase {
                    path: path.to_owned(),
                });
            }
            Err(source) => return Err(Refusal::system(path, source)),
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let fault = |error| fault(path, error);
        let connection = Connection::open_with_flags(path, flags).map_err(fault)?;
        connection.busy_timeout(BUSY).map_err(fault)?;
        connection
            .execute_batch(
                "PRAGMA journal_mode = DELETE; PRAGMA synchronous = EXTRA; \
                 PRAGMA foreign_keys = ON; PRAGMA secure_delete = ON; \
                 PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF;",
            )
            .map_err(fault)?;
        Ok(Self {
            connection,
            path: path.to_owned(),
        })
    }

    /// Everything in it at one moment, in memory.
    pub(super) fn copy(&self) -> Result<Self, Refusal> {
        let fault = |error| self.fault(error);
        let mut connection = Connection::open_in_memory().map_err(fault)?;
        let copied = Backup::new(&self.connection, &mut connection)
            .and_then(|all| all.step(-1))
            .map_err(fault)?;
        if copied != StepResult::Done {
            return Err(Refusal::DatabaseBusy {
                path: self.path.clone(),
            });
        }
        Ok(Self {
            connection,
            path: self.path.clone(),
        })
    }

    /// The database that [`Self::image`] gave, in memory. `path` is what messages call it.
    pub(super) fn of_image(image: &[u8], path: &Path) -> Result<Self, Refusal> {
        let fault = |error| fault(path, error);
        let mut connection = Connection::open_in_memory().map_err(fault)?;
        connection
            .deserialize_read_exact(MAIN_DB, image, image.len(), false)
            .map_err(fault)?;
        connection
            .execute_batch(
                "PRAGMA cell_size_check = ON; PRAGMA foreign_keys = ON; PRAGMA secure_delete = ON; \
                 PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF;",
            )
            .map_err(fault)?;
        Ok(Self {
            connection,
            path: path.to_owned(),
        })
    }

    /// Of one in memory, the bytes that its file would have.
    pub(super) fn image(&mut self) -> Result<Vec<u8>, Refusal> {
        match self.connection.serialize(MAIN_DB) {
            Ok(image) => Ok(image.to_vec()),
            Err(error) => Err(fault(&self.path, error)),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The row of `meta`; `None` if the file is still empty.
    pub(super) fn meta(&self) -> Result<Option<Meta>, Refusal> {
        // One view for all it looks at: else a file that another child makes a database of
        // meanwhile looks like none of ours.
        let _view = Transaction::new_unchecked(&self.connection, TransactionBehavior::Deferred)
            .map_err(|error| self.fault(error))?;
        self.meta_in_transaction()
    }

    fn meta_in_transaction(&self) -> Result<Option<Meta>, Refusal> {
        let id: i64 = self
            .connection
            .query_row("PRAGMA application_id", [], |row| row.get(0))
            .map_err(|error| self.fault(error))?;
        if id != APPLICATION_ID {
            return if id == 0 && self.is_empty()? {
                Ok(None)
            } else {
                Err(Refusal::ForeignDatabase {
                    path: self.path.clone(),
                })
            };
        }
        let format: i64 = self
            .connection
            .query_row("SELECT format FROM meta", [], |row| row.get(0))
            .map_err(|error| self.fault(error))?;
        if format > FORMAT {
            let path = self.path.clone();
            return Err(Refusal::NewerFormat {
                path,
                found: format,
                known: FORMAT,
            });
        }
        self.connection
            .query_row(
                "SELECT id, master_check, master_key, argon2_salt, argon2_memory, argon2_passes, \
                 argon2_lanes, format FROM meta",
                [],
                read_meta,
            )
            .map(Some)
            .map_err(|error| self.fault(error))
    }

    /// Makes tables and `meta` in one transaction, unless another child has made them by now.
    /// `seal` runs inside it: it makes the master key where that is asked for. `finish` comes last in it.
    pub(super) fn initialise<T>(
        &self,
        created: u64,
        seal: impl FnOnce() -> Result<(Meta, T), Refusal>,
        finish: impl FnOnce(&Transaction<'_>, &Meta, T) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let transaction = self.write()?;
        if self.meta_in_transaction()?.is_some() {
            return Ok(());
        }
        let (meta, sealing) = seal()?;
        self.insert_meta(&transaction, &meta, created)
            .map_err(|error| self.fault(error))?;
        finish(&transaction, &meta, sealing)?;
        transaction.commit().map_err(|error| self.fault(error))
    }

    fn insert_meta(
        &self,
        transaction: &Transaction<'_>,
        meta: &Meta,
        created: u64,
    ) -> rusqlite::Result<()> {
        for tables in SCHEMA {
            transaction.execute_batch(tables)?;
        }
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        let (form, salt, costs) = match meta.form {
            MasterKeyForm::Passphrase { salt, costs } => ("passphrase", Some(salt), Some(costs)),
            MasterKeyForm::Raw => ("raw", None, None),
        };
        transaction.execute(
            "INSERT INTO meta (one, format, id, created, master_key, argon2_salt, argon2_memory, \
             argon2_passes, argon2_lanes, master_check) VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![
                FORMAT,
                meta.id,
                signed(created),
                form,
                salt,
                costs.map(|costs| costs.memory_kib),
                costs.map(|costs| costs.iterations),
                costs.map(|costs| costs.parallelism),
                meta.master_check,
            ],
        )?;
        Ok(())
    }

    /// Everything that is said of the keys, at one moment.
    pub(super) fn table(&self) -> Result<Table, Refusal> {
        let view = Transaction::new_unchecked(&self.connection, TransactionBehavior::Deferred)
            .map_err(|error| self.fault(error))?;
        Table::load(&view).map_err(|error| self.fault(error))
    }

    /// Another number whenever another connection has changed the database.
    pub(super) fn data_version(&self) -> Result<i64, Refusal> {
        self.connection
            .query_row("PRAGMA data_version", [], |row| row.get(0))
            .map_err(|error| self.fault(error))
    }

    /// Takes what was overwritten or deleted out of the file, and looks whether these bytes are gone.
    ///
    /// `secure_delete` overwrites what a row took, but not the copies that stay between the rows of a page when SQLite moves them:
    /// so everything is written into a new image. There is no write-ahead log; the rollback journal is gone with its transaction.
    pub(super) fn erase(&self, deleted: &[Vec<u8>]) -> Result<(), Refusal> {
        self.connection
            .execute_batch("VACUUM")
            .map_err(|error| self.fault(error))?;
        for ending in ["", "-journal", "-wal"] {
            let mut path = self.path.clone().into_os_string();
            path.push(ending);
            let path = PathBuf::from(path);
            let content = match std::fs::read(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(|source| Refusal::system(&path, source))?,
            };
            // All zeros is what an earlier attempt left in their place.
            let mut sealed = deleted
                .iter()
                .filter(|sealed| sealed.iter().any(|&byte| byte != 0));
            if sealed.any(|sealed| content.windows(sealed.len()).any(|part| part == sealed)) {
                return Err(Refusal::MaterialLeft { path });
            }
        }
        Ok(())
    }

    /// The sealed material of a version.
    pub(super) fn sealed(&self, id: &[u8; 16], version: u32) -> Result<Option<Vec<u8>>, Refusal> {
        self.connection
            .query_row(
                "SELECT sealed FROM versions WHERE key_id = ?1 AND version = ?2",
                params![id, version],
                |row| row.get(0),
            )
            .optional()
            .map_err(|error| self.fault(error))
    }

    pub(super) fn write(&self) -> Result<Transaction<'_>, Refusal> {
        Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)
            .map_err(|error| self.fault(error))
    }

    fn is_empty(&self) -> Result<bool, Refusal> {
        self.connection
            .query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| {
                row.get(0)
            })
            .map_err(|error| self.fault(error))
    }

    pub(super) fn fault(&self, error: rusqlite::Error) -> Refusal {
        fault(&self.path, error)
    }
}

/// What an error of SQLite means for the caller.
fn fault(path: &Path, error: rusqlite::Error) -> Refusal {
    let path = path.to_owned();
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Refusal::DatabaseBusy { path },
        Some(ErrorCode::NotADatabase) => Refusal::ForeignDatabase { path },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::Unknown) => Refusal::DatabaseDamaged {
            path,
            reason: error.to_string(),
        },
        Some(_) => Refusal::Database {
            path,
            source: error,
        },
        // Not from SQLite: a row is missing or holds something that the schema does not allow.
        None => Refusal::DatabaseDamaged {
            path,
            reason: error.to_string(),
        },
    }
}

fn read_meta(row: &Row<'_>) -> rusqlite::Result<Meta> {
    let form = match row.get::<_, String>(2)?.as_str() {
        "raw" => MasterKeyForm::Raw,
        _ => MasterKeyForm::Passphrase {
            salt: row.get(3)?,
            costs: Argon2Params {
                memory_kib: row.get(4)?,
                iterations: row.get(5)?,
                parallelism: row.get(6)?,
            },
        },
    };
    Ok(Meta {
        format: row.get(7)?,
        id: row.get(0)?,
        master_check: row.get(1)?,
        form,
    })
}
