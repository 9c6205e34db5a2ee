//! The tables, and how a registry is opened and recognised.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::RegistryError;

/// Version of the tables, in SQLite's `user_version`.
pub(super) const VERSION: i64 = 3;

/// SQLite's `application_id` of a registry: `svrg`.
const APPLICATION_ID: i64 = 0x7376_7267;

/// Sizes fit SQLite's signed 64-bit integers: a volume has at most 2^46 bytes, a generation counts
/// attaches and detaches.
const TABLES: &str = "
    CREATE TABLE volumes (
        id           TEXT PRIMARY KEY,
        name         TEXT NOT NULL UNIQUE,
        state        TEXT NOT NULL CHECK (state IN ('creating', 'available', 'deleting')),
        created      TEXT NOT NULL,
        size         INTEGER NOT NULL CHECK (size > 0),
        sector_size  INTEGER NOT NULL CHECK (sector_size IN (512, 4096)),
        key          TEXT NOT NULL,
        backing      TEXT NOT NULL CHECK (backing IN ('state', 'directory', 'device')),
        backing_path TEXT NOT NULL,
        top          TEXT NOT NULL,
        attached     INTEGER NOT NULL DEFAULT 0 CHECK (attached IN (0, 1)),
        read_only    INTEGER NOT NULL DEFAULT 0 CHECK (read_only IN (0, 1)),
        direct       INTEGER NOT NULL DEFAULT 0 CHECK (direct IN (0, 1)),
        allow        TEXT NOT NULL DEFAULT '[]',
        attached_by  INTEGER NOT NULL DEFAULT 0,
        loss         TEXT,
        iops         INTEGER CHECK (iops > 0),
        bandwidth    INTEGER CHECK (bandwidth > 0),
        burst_seconds INTEGER NOT NULL DEFAULT 1 CHECK (burst_seconds >= 0)
    ) STRICT;
    CREATE TABLE layers (
        id           TEXT PRIMARY KEY,
        volume       TEXT NOT NULL REFERENCES volumes (id),
        parent       TEXT,
        data_key     TEXT NOT NULL,
        provider     TEXT NOT NULL,
        key_id       TEXT NOT NULL,
        key_version  INTEGER NOT NULL,
        commitment   BLOB CHECK (length(commitment) = 32),
        generation   INTEGER NOT NULL DEFAULT 0,
        bound        INTEGER NOT NULL DEFAULT 0 CHECK (bound IN (0, 1)),
        boot         BLOB CHECK (length(boot) = 16)
    ) STRICT;
    CREATE INDEX layers_by_volume ON layers (volume);
";

/// What makes version 2 of version 1.
const TO_VERSION_2: &str =
    "ALTER TABLE volumes ADD COLUMN direct INTEGER NOT NULL DEFAULT 0 CHECK (direct IN (0, 1))";

/// What makes version 3 of version 2.
const TO_VERSION_3: &str = "
    ALTER TABLE volumes ADD COLUMN iops INTEGER CHECK (iops > 0);
    ALTER TABLE volumes ADD COLUMN bandwidth INTEGER CHECK (bandwidth > 0);
    ALTER TABLE volumes ADD COLUMN burst_seconds INTEGER NOT NULL DEFAULT 1 CHECK (burst_seconds >= 0);
";

pub(super) fn open(path: &Path) -> Result<Connection, RegistryError> {
    // SQLite would make the file by the umask; the registry is nobody else's business.
    let made = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path);
    made.map_err(|error| {
        rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN),
            Some(format!("{}: {error}", path.display())),
        )
    })?;
    let mut connection = Connection::open(path)?;
    // Exclusive: one daemon owns it, and write-ahead logging then needs no shared memory.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    migrate(&mut connection, path)?;
    Ok(connection)
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), RegistryError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let pragma = |name| transaction.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (application, version) = (pragma("application_id")?, pragma("user_version")?);
    let tables: i64 =
        transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    match (application, version) {
        (0, 0) if tables == 0 => {
            transaction.execute_batch(TABLES)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", VERSION)?;
        }
        (APPLICATION_ID, VERSION) => {}
        (APPLICATION_ID, 1 | 2) => {
            if version == 1 {
                transaction.execute_batch(TO_VERSION_2)?;
            }
            transaction.execute_batch(TO_VERSION_3)?;
            transaction.pragma_update(None, "user_version", VERSION)?;
        }
        (APPLICATION_ID, found) => {
            return Err(RegistryError::NewerSchema {
                path: path.to_owned(),
                found,
            });
        }
        _ => return Err(RegistryError::Foreign(path.to_owned())),
    }
    Ok(transaction.commit()?)
}
