//! The SQLite file of the `local` provider: tables, transactions, and what their errors mean.
//!
//! What always holds:
//! - a change is on stable storage, directory entry of the journal included, when it is answered
//!   (rollback journal, `synchronous = EXTRA`);
//! - writers exclude each other from the start of their transaction (`BEGIN IMMEDIATE`), so two
//!   children that make the same key cannot both succeed;
//! - whoever finds the tables finds the whole of them and the row of `meta`: one transaction makes all;
//! - the file holds key material in sealed form only. This module sees no other form.
//!
//! The format is described in `LOCAL.md`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Row, Transaction, TransactionBehavior,
    params,
};
use sealvol_control::keychild::{KeyState, KeyVersion};
use sealvol_crypto::{Argon2Params, MIN_SALT_BYTES};

use super::place;
use crate::Refusal;

/// `PRAGMA application_id`: "SVKS".
const APPLICATION_ID: i64 = 0x5356_4b53;

/// Version of the format; `LOCAL.md` says what is in it.
const FORMAT: i64 = 1;

/// How long a child waits for another one's transaction. Each takes milliseconds; making a database
/// with a passphrase takes an Argon2id run.
const BUSY: Duration = Duration::from_secs(5);

const SCHEMA: &str = "
CREATE TABLE meta (
    one           INTEGER PRIMARY KEY CHECK (one = 1),
    format        INTEGER NOT NULL,
    id            BLOB NOT NULL CHECK (length(id) = 16),
    created       INTEGER NOT NULL,
    master_key    TEXT NOT NULL CHECK (master_key IN ('raw', 'passphrase')),
    argon2_salt   BLOB,
    argon2_memory INTEGER,
    argon2_passes INTEGER,
    argon2_lanes  INTEGER,
    master_check  BLOB NOT NULL
) STRICT;
CREATE TABLE keys (
    id            BLOB PRIMARY KEY CHECK (length(id) = 16),
    name          TEXT NOT NULL UNIQUE,
    state         TEXT NOT NULL CHECK (state IN ('enabled', 'disabled')),
    created       INTEGER NOT NULL
) STRICT;
CREATE TABLE versions (
    key_id        BLOB NOT NULL REFERENCES keys (id),
    version       INTEGER NOT NULL CHECK (version BETWEEN 1 AND 4294967295),
    created       INTEGER NOT NULL,
    sealed        BLOB NOT NULL,
    PRIMARY KEY (key_id, version)
) STRICT;
";

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

/// The one row of `meta`.
pub(super) struct Meta {
    pub(super) id: [u8; 16],
    pub(super) form: MasterKeyForm,
    pub(super) master_check: Vec<u8>,
}

/// A row of `keys`.
pub(super) struct KeyRow {
    pub(super) id: [u8; 16],
    pub(super) name: String,
    pub(super) state: KeyState,
    pub(super) created: u64,
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
                 argon2_lanes FROM meta",
                [],
                read_meta,
            )
            .map(Some)
            .map_err(|error| self.fault(error))
    }

    /// Makes tables and `meta` in one transaction, unless another child has made them by now.
    /// `seal` runs inside it: it makes the master key where that is asked for.
    pub(super) fn initialise(
        &self,
        seal: impl FnOnce() -> Result<Meta, Refusal>,
    ) -> Result<(), Refusal> {
        let transaction = self.write()?;
        if self.meta_in_transaction()?.is_some() {
            return Ok(());
        }
        let meta = seal()?;
        self.insert_meta(&transaction, &meta)
            .map_err(|error| self.fault(error))?;
        transaction.commit().map_err(|error| self.fault(error))
    }

    fn insert_meta(&self, transaction: &Transaction<'_>, meta: &Meta) -> rusqlite::Result<()> {
        transaction.execute_batch(SCHEMA)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        let (form, salt, costs) = match meta.form {
            MasterKeyForm::Passphrase { salt, costs } => ("passphrase", Some(salt), Some(costs)),
            MasterKeyForm::Raw => ("raw", None, None),
        };
        transaction.execute(
            "INSERT INTO meta VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![
                FORMAT,
                meta.id,
                now(),
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

    /// Adds a key and its first version, or says `false` if there is one of that name.
    pub(super) fn insert_key(
        &self,
        id: &[u8; 16],
        name: &str,
        sealed: &[u8],
    ) -> Result<bool, Refusal> {
        let fault = |error| self.fault(error);
        let transaction = self.write()?;
        if self.find(name)?.is_some() {
            return Ok(false);
        }
        let created = now();
        transaction
            .execute(
                "INSERT INTO keys VALUES (?1, ?2, 'enabled', ?3)",
                params![id, name, created],
            )
            .map_err(fault)?;
        transaction
            .execute(
                "INSERT INTO versions VALUES (?1, 1, ?2, ?3)",
                params![id, created, sealed],
            )
            .map_err(fault)?;
        transaction.commit().map_err(fault)?;
        Ok(true)
    }

    /// The key of that name.
    pub(super) fn find(&self, name: &str) -> Result<Option<KeyRow>, Refusal> {
        self.connection
            .query_row(
                "SELECT id, name, state, created FROM keys WHERE name = ?1",
                [name],
                read_key,
            )
            .optional()
            .map_err(|error| self.fault(error))
    }

    /// The key of that id.
    pub(super) fn find_id(&self, id: &[u8; 16]) -> Result<Option<KeyRow>, Refusal> {
        self.connection
            .query_row(
                "SELECT id, name, state, created FROM keys WHERE id = ?1",
                [id],
                read_key,
            )
            .optional()
            .map_err(|error| self.fault(error))
    }

    /// All keys, by name.
    pub(super) fn keys(&self) -> Result<Vec<KeyRow>, Refusal> {
        let all = || -> rusqlite::Result<Vec<KeyRow>> {
            self.connection
                .prepare("SELECT id, name, state, created FROM keys ORDER BY name")?
                .query_map([], read_key)?
                .collect()
        };
        all().map_err(|error| self.fault(error))
    }

    /// The versions of a key, ascending.
    pub(super) fn versions(&self, id: &[u8; 16]) -> Result<Vec<KeyVersion>, Refusal> {
        let all = || -> rusqlite::Result<Vec<KeyVersion>> {
            self.connection
                .prepare(
                    "SELECT version, created FROM versions WHERE key_id = ?1 ORDER BY version",
                )?
                .query_map([id], |row| {
                    Ok(KeyVersion {
                        version: row.get(0)?,
                        created: seconds(row, 1)?,
                    })
                })?
                .collect()
        };
        all().map_err(|error| self.fault(error))
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

    fn write(&self) -> Result<Transaction<'_>, Refusal> {
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

    fn fault(&self, error: rusqlite::Error) -> Refusal {
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
        id: row.get(0)?,
        master_check: row.get(1)?,
        form,
    })
}

fn read_key(row: &Row<'_>) -> rusqlite::Result<KeyRow> {
    let state = match row.get::<_, String>(2)?.as_str() {
        "enabled" => KeyState::Enabled,
        // Whatever else may stand there: a key is used only if the database says that it may be.
        _ => KeyState::Disabled,
    };
    Ok(KeyRow {
        id: row.get(0)?,
        name: row.get(1)?,
        state,
        created: seconds(row, 3)?,
    })
}

fn seconds(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(column)?.try_into().unwrap_or(0))
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    since.as_secs().try_into().unwrap_or(i64::MAX)
}
