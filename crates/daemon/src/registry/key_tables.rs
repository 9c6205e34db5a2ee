//! The calls of the registry about key-encryption keys: what is relied on of a provider's table of them, and who needs one.

use rusqlite::{OptionalExtension as _, params};
use sealvol_control::api::VolumeName;
use sealvol_control::key_ref::KeyRef;
use sealvol_control::keychild::TableState;

use super::database::{Database, Result};
use super::rows::{self, signed};

impl Database {
    /// The newest state that was seen of a provider's table.
    pub(crate) fn key_table(&mut self, provider: &str) -> Result<Option<TableState>> {
        let sql = "SELECT database, changes, mac FROM key_tables WHERE provider = ?1";
        let found = self.connection.query_row(sql, [provider], |row| {
            Ok(TableState {
                database: row.get(0)?,
                version: row.get::<_, i64>(1)?.try_into().unwrap_or(0),
                mac: row.get(2)?,
            })
        });
        Ok(found.optional()?)
    }

    /// A provider's table was seen in this state. One of the same database that is older than what was seen before changes
    /// nothing: children answer in any order. What is relied on now.
    pub(crate) fn saw_key_table(
        &mut self,
        provider: &str,
        seen: &TableState,
    ) -> Result<TableState> {
        self.connection.execute(
            "INSERT INTO key_tables (provider, database, changes, mac) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (provider) DO UPDATE SET database = ?2, changes = ?3, mac = ?4
             WHERE database <> ?2 OR changes < ?3",
            params![provider, seen.database, signed(seen.version)?, seen.mac],
        )?;
        Ok(self.key_table(provider)?.unwrap_or_else(|| seen.clone()))
    }

    /// The volumes that have data keys under that key, by name; and those that are being made under it.
    pub(crate) fn volumes_of_key(&mut self, key: &KeyRef, id: &str) -> Result<Vec<VolumeName>> {
        let sql = "SELECT name FROM volumes JOIN data_keys ON volume = id WHERE provider = ?1 AND key_id = ?2
                   UNION SELECT name FROM volumes WHERE state = 'creating' AND key = ?3
                   ORDER BY name";
        let mut statement = self.connection.prepare(sql)?;
        let found =
            statement.query_map(params![key.provider(), id, key.to_string()], rows::name)?;
        Ok(found.collect::<rusqlite::Result<_>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(database: &str, version: u64) -> TableState {
        TableState {
            database: database.to_owned(),
            version,
            mac: vec![u8::try_from(version).unwrap_or(0); 32],
        }
    }

    #[test]
    fn the_newest_state_of_a_table_is_kept_over_restarts() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("registry.db");
        let mut registry = Database::open(&path).expect("made");
        assert_eq!(registry.key_table("local").expect("read"), None);
        for (seen, relied_on) in [
            (state("a", 3), state("a", 3)),
            (state("a", 2), state("a", 3)),
            (state("a", 4), state("a", 4)),
            // Another database was accepted, or made where there was none.
            (state("b", 1), state("b", 1)),
        ] {
            let now = registry.saw_key_table("local", &seen).expect("written");
            assert_eq!(now, relied_on, "after {seen:?}");
        }
        drop(registry);
        let mut registry = Database::open(&path).expect("there");
        assert_eq!(
            registry.key_table("local").expect("read"),
            Some(state("b", 1))
        );
        assert_eq!(registry.key_table("other").expect("read"), None);
    }

    #[test]
    fn a_registry_of_version_7_takes_tables_of_keys() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("registry.db");
        let earlier = Database::open(&path).expect("made");
        let version_7 = "DROP TABLE key_tables; DROP TABLE key_set_members; DROP TABLE key_sets; DROP TABLE wraps; DROP TABLE tombstones;
            ALTER TABLE layers DROP COLUMN former_parents; PRAGMA user_version = 7";
        earlier
            .connection
            .execute_batch(version_7)
            .expect("as version 7 left it");
        drop(earlier);
        let mut registry = Database::open(&path).expect("taken over");
        registry
            .saw_key_table("local", &state("a", 1))
            .expect("written");
    }
}
