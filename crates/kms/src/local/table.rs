//! What the database says of its keys, read whole, and the message that its MAC covers.
//!
//! What always holds: the message names every row and column that [`COVERED`] lists, so that none can be changed, left out,
//! doubled or moved to another place without another message; it is made from what is stored, never from what was meant to be.

use std::collections::BTreeSet;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension as _, Row};
use sealvol_control::keychild::{KeyState, KeyVersion};

use super::clock::{Deadline, Now, Reading};
use super::schema::COVERED;

/// The keys, and the state that authenticates them.
pub(super) struct Table {
    /// Counts the changes.
    pub(super) changes: u64,
    /// Milliseconds that the host was seen to run.
    pub(super) counted: u64,
    /// The clocks when that was counted.
    pub(super) seen: Reading,
    /// What is stored as MAC of the rest.
    pub(super) mac: Vec<u8>,
    /// What the MAC is to be of.
    pub(super) message: Vec<u8>,
    /// By name.
    pub(super) keys: Vec<Key>,
    /// The pairs of encryption contexts that are refused for ever.
    tombstones: BTreeSet<(String, String)>,
}

/// A named key.
pub(super) struct Key {
    pub(super) id: [u8; 16],
    pub(super) name: String,
    pub(super) state: KeyState,
    /// Its material is gone already, or about to go; told as pending deletion.
    pub(super) destroying: bool,
    /// Seconds since 1970.
    pub(super) created: u64,
    pub(super) rotation: Option<Rotation>,
    /// When its waiting period is over.
    pub(super) deletion: Option<Deadline>,
    /// Ascending.
    pub(super) versions: Vec<Version>,
    /// Other names of it, sorted.
    pub(super) aliases: Vec<String>,
    /// Its material is imported.
    pub(super) external: Option<External>,
    /// How material for it can be imported now.
    pub(super) import_key: Option<ImportKey>,
    /// Who may use it; none: whoever may ask.
    pub(super) policy: Option<String>,
}

/// The material of a key whose material is imported.
pub(super) struct External {
    pub(super) material: Material,
    /// Of the first material that was imported; no other one is taken any more.
    pub(super) fingerprint: Option<[u8; 32]>,
    pub(super) expires: Option<Deadline>,
}

/// Whether imported material is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Material {
    /// Overwritten; the file may still hold what it was.
    Going,
    Imported,
    None,
}

/// The pair of keys that material is imported by, without the private one.
pub(super) struct ImportKey {
    pub(super) id: [u8; 16],
    pub(super) algorithm: String,
    pub(super) expires: Deadline,
}

/// How a key is rotated by itself.
#[derive(Clone, Copy)]
pub(super) struct Rotation {
    pub(super) days: u32,
    pub(super) next: Deadline,
}

/// A version of a key, without its material.
pub(super) struct Version {
    pub(super) told: KeyVersion,
    pub(super) cause: Cause,
}

/// Why there is a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    Automatic,
    Created,
    OnDemand,
}

impl Cause {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Automatic => "automatic",
            Self::Created => "created",
            Self::OnDemand => "on-demand",
        }
    }
}

impl Key {
    /// What the state is at a time: without material that has not expired it is pending import, unless it is pending deletion.
    fn settle(&mut self, now: &Now) {
        let Some(external) = &self.external else {
            return;
        };
        // A use is refused by either clock: that harms nothing, and the material is there when the clock is right again.
        let expired = external.expires.is_some_and(|expires| expires.is_due(now));
        let usable = external.material == Material::Imported && !expired;
        if !usable && self.state != KeyState::PendingDeletion {
            self.state = KeyState::PendingImport;
        }
    }

    /// Whether its imported material is to be destroyed by now: what can't be undone takes both clocks.
    pub(super) fn is_material_due(&self, now: &Now) -> bool {
        self.external.as_ref().is_some_and(|external| {
            let expired = external.expires.is_some_and(|expires| expires.is_over(now));
            external.material == Material::Going
                || external.material == Material::Imported && expired
        })
    }

    /// The number of the version that wraps.
    pub(super) fn latest(&self) -> Option<u32> {
        self.versions.last().map(|last| last.told.version)
    }
}

impl Table {
    /// Brings the states of the keys to a time.
    pub(super) fn settle(&mut self, now: &Now) {
        for key in &mut self.keys {
            key.settle(now);
        }
    }

    /// Whether a pair of an encryption context is refused for ever.
    pub(super) fn is_buried(&self, (name, value): (&str, &str)) -> bool {
        let pair = (name.to_owned(), value.to_owned());
        self.tombstones.contains(&pair)
    }

    /// Reads everything. Callers hold a transaction, so that it is one state.
    pub(super) fn load(connection: &Connection) -> rusqlite::Result<Self> {
        let format = format(connection)?;
        let message = message(connection, format)?;
        let mut keys: Vec<Key> = connection
            .prepare_cached(
                "SELECT id, name, state, created, rotation_days, rotate_wall, rotate_counted, \
                 delete_wall, delete_counted FROM keys ORDER BY name",
            )?
            .query_map([], key)?
            .collect::<rusqlite::Result<_>>()?;
        let mut versions = connection.prepare_cached(
            "SELECT version, created, cause FROM versions WHERE key_id = ?1 ORDER BY version",
        )?;
        for key in &mut keys {
            key.versions = versions
                .query_map([key.id], version)?
                .collect::<rusqlite::Result<_>>()?;
        }
        if format >= 3 {
            read_aliases(connection, &mut keys)?;
        }
        if format >= 4 {
            read_imports(connection, &mut keys)?;
        }
        if format >= 5 {
            read_policies(connection, &mut keys)?;
        }
        let tombstones = if format >= 6 {
            read_tombstones(connection)?
        } else {
            BTreeSet::new()
        };
        connection.query_row(
            "SELECT changes, counted, seen_boot, seen_running, seen_wall, mac FROM meta",
            [],
            |row| {
                Ok(Self {
                    changes: number(row, 0)?,
                    counted: number(row, 1)?,
                    seen: Reading {
                        boot: row.get(2)?,
                        running: number(row, 3)?,
                        wall: number(row, 4)?,
                    },
                    mac: row.get(5)?,
                    message,
                    keys,
                    tombstones,
                })
            },
        )
    }
}

/// Version of the database's format.
pub(super) fn format(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("SELECT format FROM meta", [], |row| row.get(0))
}

fn read_aliases(connection: &Connection, keys: &mut [Key]) -> rusqlite::Result<()> {
    let mut of_key =
        connection.prepare_cached("SELECT name FROM aliases WHERE key_id = ?1 ORDER BY name")?;
    for key in keys {
        let names = of_key.query_map([key.id], |row| row.get(0))?;
        key.aliases = names.collect::<rusqlite::Result<_>>()?;
    }
    Ok(())
}

fn read_imports(connection: &Connection, keys: &mut [Key]) -> rusqlite::Result<()> {
    let mut external = connection.prepare_cached(
        "SELECT material, fingerprint, expires_wall, expires_counted FROM external_keys WHERE key_id = ?1",
    )?;
    let mut import_key = connection.prepare_cached(
        "SELECT id, algorithm, expires_wall, expires_counted FROM import_keys WHERE key_id = ?1",
    )?;
    for key in keys {
        let found = external.query_row([key.id], |row| {
            Ok(External {
                material: match row.get_ref(0)?.as_str()? {
                    "imported" => Material::Imported,
                    "going" => Material::Going,
                    _ => Material::None,
                },
                fingerprint: row.get(1)?,
                expires: deadline(row, 2)?,
            })
        });
        key.external = found.optional()?;
        let found = import_key.query_row([key.id], |row| {
            let expires = deadline(row, 2)?;
            Ok(ImportKey {
                id: row.get(0)?,
                algorithm: row.get(1)?,
                expires: expires.unwrap_or(Deadline::PAST),
            })
        });
        key.import_key = found.optional()?;
    }
    Ok(())
}

fn read_policies(connection: &Connection, keys: &mut [Key]) -> rusqlite::Result<()> {
    let mut policy = connection.prepare_cached("SELECT policy FROM policies WHERE key_id = ?1")?;
    for key in keys {
        key.policy = policy.query_row([key.id], |row| row.get(0)).optional()?;
    }
    Ok(())
}

fn read_tombstones(connection: &Connection) -> rusqlite::Result<BTreeSet<(String, String)>> {
    let mut all = connection.prepare_cached("SELECT name, value FROM tombstones")?;
    let found = all.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    found.collect()
}

/// Each table's name and number of rows, then each column: a letter for its kind, its length, its bytes. Numbers are u64 and
/// i64, big-endian.
fn message(connection: &Connection, format: i64) -> rusqlite::Result<Vec<u8>> {
    let mut message = Vec::new();
    for (_, table, columns) in COVERED.iter().filter(|(since, ..)| *since <= format) {
        let count = format!("SELECT count(*) FROM {table}");
        let rows: i64 = connection.query_row(&count, [], |row| row.get(0))?;
        put(&mut message, b't', table.as_bytes());
        put(&mut message, b'i', &rows.to_be_bytes());
        let mut statement = connection.prepare_cached(columns)?;
        let width = statement.column_count();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            for column in 0..width {
                match row.get_ref(column)? {
                    ValueRef::Null => put(&mut message, b'n', &[]),
                    ValueRef::Integer(value) => put(&mut message, b'i', &value.to_be_bytes()),
                    ValueRef::Real(value) => put(&mut message, b'r', &value.to_be_bytes()),
                    ValueRef::Text(value) => put(&mut message, b't', value),
                    ValueRef::Blob(value) => put(&mut message, b'b', value),
                }
            }
        }
    }
    Ok(message)
}

fn put(message: &mut Vec<u8>, kind: u8, value: &[u8]) {
    message.push(kind);
    message.extend_from_slice(&(value.len() as u64).to_be_bytes());
    message.extend_from_slice(value);
}

fn key(row: &Row<'_>) -> rusqlite::Result<Key> {
    let state = match row.get_ref(2)?.as_str()? {
        "enabled" => KeyState::Enabled,
        "pending-deletion" | "destroying" => KeyState::PendingDeletion,
        "pending-import" => KeyState::PendingImport,
        // Whatever else may stand there: a key is used only if the database says that it may be.
        _ => KeyState::Disabled,
    };
    let rotation = row.get::<_, Option<u32>>(4)?.zip(deadline(row, 5)?);
    Ok(Key {
        id: row.get(0)?,
        name: row.get(1)?,
        state,
        destroying: row.get_ref(2)?.as_str()? == "destroying",
        created: number(row, 3)?,
        rotation: rotation.map(|(days, next)| Rotation { days, next }),
        deletion: deadline(row, 7)?,
        versions: Vec::new(),
        aliases: Vec::new(),
        external: None,
        import_key: None,
        policy: None,
    })
}

fn version(row: &Row<'_>) -> rusqlite::Result<Version> {
    let cause = match row.get_ref(2)?.as_str()? {
        "automatic" => Cause::Automatic,
        "on-demand" => Cause::OnDemand,
        _ => Cause::Created,
    };
    Ok(Version {
        told: KeyVersion {
            version: row.get(0)?,
            created: number(row, 1)?,
        },
        cause,
    })
}

/// The two columns of a deadline, from `column` on.
fn deadline(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Deadline>> {
    let (wall, counted): (Option<i64>, Option<i64>) = (row.get(column)?, row.get(column + 1)?);
    Ok(wall.zip(counted).map(|(wall, counted)| Deadline {
        wall: wall.try_into().unwrap_or(0),
        counted: counted.try_into().unwrap_or(0),
    }))
}

fn number(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(column)?.try_into().unwrap_or(0))
}

/// For a column: times and counts fit for millions of years.
pub(super) fn signed(number: u64) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}
