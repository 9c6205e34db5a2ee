//! The tables, and how a registry is opened and recognised.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::RegistryError;

/// Version of the tables, in SQLite's `user_version`.
pub(super) const VERSION: i64 = 10;

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
        burst_seconds INTEGER NOT NULL DEFAULT 1 CHECK (burst_seconds >= 0),
        layers_dir   TEXT,
        ephemeral    INTEGER NOT NULL DEFAULT 0 CHECK (ephemeral IN (0, 1))
    ) STRICT;
";

/// A layer is there as long as a stack or a snapshot needs it, which may be longer than the volume that it was made for.
const STACKS: &str = "
    CREATE TABLE layers (
        id           TEXT PRIMARY KEY,
        volume       TEXT NOT NULL,
        parent       TEXT,
        size         INTEGER NOT NULL CHECK (size > 0),
        backing      TEXT NOT NULL CHECK (backing IN ('state', 'directory', 'device')),
        backing_path TEXT NOT NULL,
        data_key     TEXT NOT NULL,
        sealed       INTEGER NOT NULL DEFAULT 0 CHECK (sealed IN (0, 1)),
        commitment   BLOB CHECK (length(commitment) = 32),
        generation   INTEGER NOT NULL DEFAULT 0,
        bound        INTEGER NOT NULL DEFAULT 0 CHECK (bound IN (0, 1)),
        boot         BLOB CHECK (length(boot) = 16),
        former_parents TEXT NOT NULL DEFAULT '[]'
    ) STRICT;
    CREATE TABLE data_keys (
        volume       TEXT NOT NULL REFERENCES volumes (id),
        data_key     TEXT NOT NULL,
        provider     TEXT NOT NULL,
        key_id       TEXT NOT NULL,
        key_version  INTEGER NOT NULL,
        PRIMARY KEY (volume, data_key)
    ) STRICT;
    CREATE TABLE snapshots (
        layer        TEXT PRIMARY KEY,
        volume       TEXT NOT NULL REFERENCES volumes (id),
        name         TEXT NOT NULL,
        created      TEXT NOT NULL,
        deleted      INTEGER NOT NULL DEFAULT 0 CHECK (deleted IN (0, 1)),
        attached     INTEGER NOT NULL DEFAULT 0 CHECK (attached IN (0, 1)),
        direct       INTEGER NOT NULL DEFAULT 0 CHECK (direct IN (0, 1)),
        allow        TEXT NOT NULL DEFAULT '[]',
        attached_by  INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE UNIQUE INDEX snapshot_names ON snapshots (volume, name) WHERE deleted = 0;
";

/// A job stays when its volume is deleted: as a record. A new layer is there while its files are being made.
const JOBS: &str = "
    CREATE TABLE new_layers (
        id           TEXT PRIMARY KEY,
        backing      TEXT NOT NULL CHECK (backing IN ('state', 'directory', 'device')),
        backing_path TEXT NOT NULL
    ) STRICT;
    CREATE TABLE jobs (
        id           INTEGER PRIMARY KEY AUTOINCREMENT,
        volume       TEXT NOT NULL,
        name         TEXT NOT NULL,
        work         TEXT NOT NULL,
        state        TEXT NOT NULL CHECK (state IN ('running', 'waiting', 'done', 'failed', 'cancelled')),
        reason       TEXT,
        caller       INTEGER NOT NULL,
        created      TEXT NOT NULL,
        ended        TEXT,
        done         INTEGER NOT NULL DEFAULT 0,
        total        INTEGER NOT NULL DEFAULT 0,
        result       TEXT
    ) STRICT;
    CREATE UNIQUE INDEX one_job_for_a_volume ON jobs (volume) WHERE ended IS NULL;
";

/// Volumes whose key is watched while they are attached; times in seconds.
const ENFORCEMENTS: &str = "
    CREATE TABLE enforcements (
        volume       TEXT PRIMARY KEY REFERENCES volumes (id) ON DELETE CASCADE,
        every        INTEGER NOT NULL CHECK (every > 0),
        grace        INTEGER NOT NULL CHECK (grace >= every),
        away         INTEGER NOT NULL DEFAULT 0 CHECK (away >= 0)
    ) STRICT;
";

/// The newest state that was seen of each provider's table of keys.
const KEY_TABLES: &str = "
    CREATE TABLE key_tables (
        provider     TEXT PRIMARY KEY,
        database     TEXT NOT NULL,
        changes      INTEGER NOT NULL CHECK (changes >= 0),
        mac          BLOB NOT NULL
    ) STRICT;
";

/// Keys that volumes share by name, and the volumes that do. A set is not deleted before its members have left it.
const KEY_SETS: &str = "
    CREATE TABLE key_sets (
        name         TEXT PRIMARY KEY,
        key          TEXT NOT NULL,
        on_rotate    INTEGER NOT NULL CHECK (on_rotate IN (0, 1)),
        created      TEXT NOT NULL
    ) STRICT;
    CREATE TABLE key_set_members (
        volume       TEXT PRIMARY KEY REFERENCES volumes (id) ON DELETE CASCADE,
        key_set      TEXT NOT NULL REFERENCES key_sets (name)
    ) STRICT;
";

/// What has ever wrapped a data key, for whom, and what each provider refuses for ever. Neither goes with its volume.
const SHREDDING: &str = "
    CREATE TABLE wraps (
        volume       TEXT NOT NULL,
        data_key     TEXT NOT NULL,
        provider     TEXT NOT NULL,
        key_id       TEXT NOT NULL,
        PRIMARY KEY (volume, data_key, provider, key_id)
    ) STRICT;
    CREATE TABLE tombstones (
        provider     TEXT NOT NULL,
        name         TEXT NOT NULL,
        value        TEXT NOT NULL,
        PRIMARY KEY (provider, name, value)
    ) STRICT;
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

/// What makes version 4 of version 3: layers outlive volumes, and are told apart from the keys that they are under.
const TO_VERSION_4: [&str; 3] = [
    "ALTER TABLE volumes ADD COLUMN layers_dir TEXT;
     DROP INDEX layers_by_volume;
     ALTER TABLE layers RENAME TO layers_2;",
    STACKS,
    "INSERT INTO layers (id, volume, parent, size, backing, backing_path, data_key, commitment, generation, bound, boot)
         SELECT l.id, l.volume, l.parent, v.size, v.backing, v.backing_path, l.data_key, l.commitment, l.generation,
                l.bound, l.boot
         FROM layers_2 l JOIN volumes v ON v.id = l.volume;
     INSERT INTO data_keys SELECT volume, data_key, provider, key_id, key_version FROM layers_2;
     DROP TABLE layers_2;",
];

/// What makes version 7 of version 6: volumes whose key is in memory only.
const TO_VERSION_7: &str = "ALTER TABLE volumes ADD COLUMN ephemeral INTEGER NOT NULL DEFAULT 0 CHECK (ephemeral IN (0, 1))";

/// What makes version 9 of versions 4 to 8: what a layer stood on before that was merged down.
const TO_VERSION_9: &str =
    "ALTER TABLE layers ADD COLUMN former_parents TEXT NOT NULL DEFAULT '[]'";

/// What makes version 10 of version 9: what wrapped before is not known.
const TO_VERSION_10: &str =
    "INSERT INTO wraps SELECT volume, data_key, provider, key_id FROM data_keys";

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
            transaction.execute_batch(STACKS)?;
            transaction.execute_batch(JOBS)?;
            transaction.execute_batch(ENFORCEMENTS)?;
            transaction.execute_batch(KEY_TABLES)?;
            transaction.execute_batch(KEY_SETS)?;
            transaction.execute_batch(SHREDDING)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", VERSION)?;
        }
        (APPLICATION_ID, VERSION) => {}
        (APPLICATION_ID, 1..=9) => {
            if version == 1 {
                transaction.execute_batch(TO_VERSION_2)?;
            }
            if version <= 2 {
                transaction.execute_batch(TO_VERSION_3)?;
            }
            if version <= 3 {
                for step in TO_VERSION_4 {
                    transaction.execute_batch(step)?;
                }
            }
            if version <= 4 {
                transaction.execute_batch(JOBS)?;
            }
            if version <= 5 {
                transaction.execute_batch(ENFORCEMENTS)?;
            }
            if version <= 6 {
                transaction.execute_batch(TO_VERSION_7)?;
            }
            if version <= 7 {
                transaction.execute_batch(KEY_TABLES)?;
            }
            // Before version 4 the table was made just now.
            if (4..=8).contains(&version) {
                transaction.execute_batch(TO_VERSION_9)?;
            }
            if version <= 8 {
                transaction.execute_batch(KEY_SETS)?;
            }
            transaction.execute_batch(SHREDDING)?;
            transaction.execute_batch(TO_VERSION_10)?;
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
