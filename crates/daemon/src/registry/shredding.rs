//! The calls of the registry about shreds: which data keys a volume has had, which keys have wrapped one of them, and what is
//! refused for ever.
//!
//! What always holds: what wrapped a data key is remembered as long as a volume or a layer there is has anything to do with it, also
//! after it was wrapped anew or the volume went on under another data key: copies of the files from then open under the former
//! key. Tombstones are remembered for ever, so that a key database from a backup can be given them again.

use std::collections::{BTreeSet, HashSet};

use rusqlite::{Transaction, params};
use sealvol_control::keychild::{CONTEXT_VOLUME, Tombstones};
use sealvol_volume::{DataKeyId, LayerId, VolumeId};

use super::database::{Database, Result};
use super::rows::{self, WrappedBy};

/// What is to be known of a volume that is to be shredded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShredFacts {
    /// The data keys that it has or had and that no layer is under which stays, by their ids.
    pub(crate) data_keys: BTreeSet<String>,
    /// What wraps or has wrapped one of those for anybody, or any data key for the volume: provider and key id.
    pub(crate) wrapped_by: BTreeSet<(String, String)>,
    /// How many layers stay that were made for it.
    pub(crate) layers_left: usize,
}

impl Database {
    /// What is to be known of a volume with which these layers go.
    pub(crate) fn shred_facts(&mut self, volume: VolumeId, own: &[LayerId]) -> Result<ShredFacts> {
        let volume = volume.to_string();
        let mut data_keys = BTreeSet::new();
        let mut stay = HashSet::new();
        let mut layers_left = 0;
        let sql = "SELECT id, volume, data_key FROM layers";
        let mut statement = self.connection.prepare(sql)?;
        let layers = statement.query_map([], |row| {
            let id: LayerId = rows::parsed(row, 0)?;
            Ok((id, row.get::<_, String>(1)?, row.get::<_, String>(2)?))
        })?;
        for layer in layers {
            let (id, made_for, data_key) = layer?;
            if own.contains(&id) {
                data_keys.insert(data_key);
            } else {
                layers_left += usize::from(made_for == volume);
                stay.insert(data_key);
            }
        }
        let mut wraps = Vec::new();
        let sql = "SELECT volume, data_key, provider, key_id FROM wraps";
        let mut statement = self.connection.prepare(sql)?;
        let found = statement.query_map([], |row| {
            let text = |column| row.get::<_, String>(column);
            Ok((text(0)?, text(1)?, (text(2)?, text(3)?)))
        })?;
        for wrap in found {
            wraps.push(wrap?);
        }
        let had = wraps
            .iter()
            .filter(|(wrapped_for, ..)| *wrapped_for == volume);
        data_keys.extend(had.map(|(_, data_key, _)| data_key.clone()));
        data_keys.retain(|data_key| !stay.contains(data_key));
        let wrapped_by = wraps
            .into_iter()
            .filter(|(wrapped_for, data_key, _)| {
                *wrapped_for == volume || data_keys.contains(data_key)
            })
            .map(|(.., by)| by)
            .collect();
        Ok(ShredFacts {
            data_keys,
            wrapped_by,
            layers_left,
        })
    }

    /// A provider refuses these for ever.
    pub(crate) fn bury(&mut self, provider: &str, tombstones: &Tombstones) -> Result<()> {
        let transaction = self.connection.transaction()?;
        for (name, value) in tombstones.pairs() {
            transaction.execute(
                "INSERT INTO tombstones (provider, name, value) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
                params![provider, name, value],
            )?;
        }
        Ok(transaction.commit()?)
    }

    /// What a provider is to refuse for ever, in parts that are not too large for one call.
    pub(crate) fn buried(&mut self, provider: &str) -> Result<Vec<Tombstones>> {
        let sql = "SELECT name, value FROM tombstones WHERE provider = ?1 ORDER BY name, value";
        let mut statement = self.connection.prepare(sql)?;
        let pairs = statement.query_map([provider], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let pairs: Vec<(String, String)> = pairs.collect::<rusqlite::Result<_>>()?;
        let part = |pairs: &[(String, String)]| {
            let mut part = Tombstones::default();
            for (name, value) in pairs {
                if name == CONTEXT_VOLUME {
                    part.volumes.push(value.clone());
                } else {
                    part.data_keys.push(value.clone());
                }
            }
            part
        };
        Ok(pairs.chunks(Tombstones::IDS_MAX).map(part).collect())
    }
}

/// A key wraps a data key for a volume.
pub(super) fn remember_wrap(
    transaction: &Transaction<'_>,
    volume: VolumeId,
    data_key: DataKeyId,
    by: &WrappedBy,
) -> Result<()> {
    transaction.execute(
        "INSERT INTO wraps (volume, data_key, provider, key_id) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
        params![
            volume.to_string(),
            data_key.to_string(),
            by.provider,
            by.key_id
        ],
    )?;
    Ok(())
}

/// A data key was made for a volume, and nothing was ever written under it.
pub(super) fn forget_unused(
    transaction: &Transaction<'_>,
    volume: VolumeId,
    data_key: DataKeyId,
) -> Result<()> {
    transaction.execute(
        "DELETE FROM wraps WHERE volume = ?1 AND data_key = ?2",
        params![volume.to_string(), data_key.to_string()],
    )?;
    Ok(())
}

/// Volumes or layers are gone: forgets what wrapped data keys that nobody has anything to do with any more.
pub(super) fn forget_wraps(transaction: &Transaction<'_>) -> Result<()> {
    transaction.execute(
        "DELETE FROM wraps WHERE volume NOT IN (SELECT id FROM volumes)
         AND data_key NOT IN (SELECT data_key FROM layers)",
        [],
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {

    use sealvol_crypto::UnitSize;

    use super::*;
    use crate::registry::{Backing, Membership, NewVolume};

    fn new_volume(name: &str, parent: Option<LayerId>) -> NewVolume {
        NewVolume {
            id: VolumeId::random(),
            name: name.parse().expect("a name"),
            created: "2026-02-03T04:05:06Z".into(),
            size: 1 << 30,
            sector_size: UnitSize::B4096,
            key: "local:default".parse().expect("a key"),
            backing: Backing::State,
            layers_dir: None,
            layer: LayerId::random(),
            parent,
            data_key: DataKeyId::random(),
            ephemeral: false,
        }
    }

    fn by(provider: &str, key_id: &str) -> WrappedBy {
        WrappedBy {
            provider: provider.into(),
            key_id: key_id.into(),
            key_version: 1,
        }
    }

    fn open(folder: &tempfile::TempDir) -> Database {
        Database::open(&folder.path().join("registry.db")).expect("opened")
    }

    fn make(database: &mut Database, volume: &NewVolume, keys: &[(DataKeyId, WrappedBy)]) {
        database.begin_create(volume).expect("registered");
        database.finish_create(volume.id, keys).expect("made");
    }

    fn texts(keys: &[DataKeyId]) -> BTreeSet<String> {
        keys.iter().map(ToString::to_string).collect()
    }

    fn pairs(keys: &[(&str, &str)]) -> BTreeSet<(String, String)> {
        let owned = |&(provider, key): &(&str, &str)| (provider.to_owned(), key.to_owned());
        keys.iter().map(owned).collect()
    }

    /// A volume under `local:a`, and a clone that stands on it and was wrapped by `local:b`.
    fn family(database: &mut Database) -> [NewVolume; 2] {
        let source = new_volume("v", None);
        make(database, &source, &[(source.data_key, by("local", "a"))]);
        let clone = new_volume("c", Some(source.layer));
        let keys = [clone.data_key, source.data_key].map(|key| (key, by("local", "b")));
        make(database, &clone, &keys);
        [source, clone]
    }

    #[test]
    fn a_data_key_that_a_layer_is_under_which_stays_is_not_buried() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut database = open(&folder);
        let [source, clone] = family(&mut database);
        let facts = database.shred_facts(clone.id, &[clone.layer]);
        assert_eq!(
            facts.expect("read"),
            ShredFacts {
                data_keys: texts(&[clone.data_key]),
                wrapped_by: pairs(&[("local", "b")]),
                layers_left: 0,
            }
        );
        // The source's layer stays for the clone: so does its data key, and that is told.
        let facts = database.shred_facts(source.id, &[]).expect("read");
        assert_eq!((facts.data_keys, facts.layers_left), (texts(&[]), 1));
        assert_eq!(facts.wrapped_by, pairs(&[("local", "a")]));
    }

    #[test]
    fn what_wrapped_a_data_key_for_a_volume_that_is_gone_is_remembered_as_long_as_a_layer_is_under_it()
     {
        let folder = tempfile::tempdir().expect("a folder");
        let mut database = open(&folder);
        let [source, clone] = family(&mut database);
        database.forget(clone.id, &[clone.layer]).expect("gone");
        let mut database = {
            drop(database);
            open(&folder)
        };
        let facts = database.shred_facts(source.id, &[source.layer]);
        assert_eq!(
            facts.expect("read"),
            ShredFacts {
                data_keys: texts(&[source.data_key]),
                wrapped_by: pairs(&[("local", "a"), ("local", "b")]),
                layers_left: 0,
            }
        );
        database.forget(source.id, &[source.layer]).expect("gone");
        let left = database
            .connection
            .query_row("SELECT count(*) FROM wraps", [], |row| row.get::<_, i64>(0));
        assert_eq!(left.expect("counted"), 0);
    }

    #[test]
    fn what_wrapped_it_before_a_rewrap_is_remembered() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut database = open(&folder);
        let volume = new_volume("v", None);
        let key = volume.data_key;
        make(&mut database, &volume, &[(key, by("bao", "old"))]);
        let named = "bao:new".parse().expect("a key");
        let rewrapped = [(key, by("bao", "new"))];
        database
            .set_rewrapped(volume.id, &named, &rewrapped, &Membership::Leaves)
            .expect("written");
        let facts = database.shred_facts(volume.id, &[volume.layer]);
        let both = pairs(&[("bao", "new"), ("bao", "old")]);
        assert_eq!(facts.expect("read").wrapped_by, both);
    }

    #[test]
    fn tombstones_are_remembered_for_each_provider_in_parts_that_fit_a_call() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut database = open(&folder);
        assert_eq!(database.buried("local").expect("read"), []);
        let one = Tombstones {
            volumes: vec!["v".into()],
            data_keys: vec!["1".into(), "2".into()],
        };
        for _ in 0..2 {
            database.bury("local", &one).expect("written");
        }
        let mut database = {
            drop(database);
            open(&folder)
        };
        assert_eq!(
            database.buried("local").expect("read"),
            std::slice::from_ref(&one)
        );
        assert_eq!(database.buried("other").expect("read"), []);
        let many = Tombstones {
            volumes: (0..Tombstones::IDS_MAX).map(|id| id.to_string()).collect(),
            data_keys: Vec::new(),
        };
        database.bury("local", &many).expect("written");
        let parts = database.buried("local").expect("read");
        assert_eq!(parts.len(), 2);
        assert!(parts.iter().all(|part| part.check().is_ok()));
        let all: usize = parts.iter().map(|part| part.pairs().count()).sum();
        assert_eq!(all, Tombstones::IDS_MAX + 3);
    }

    #[test]
    fn a_registry_of_version_9_knows_what_wraps_now() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut database = open(&folder);
        let volume = new_volume("v", None);
        let key = volume.data_key;
        make(&mut database, &volume, &[(key, by("bao", "k"))]);
        let version_9 = "DROP TABLE wraps; DROP TABLE tombstones; PRAGMA user_version = 9";
        let done = database.connection.execute_batch(version_9);
        done.expect("as version 9 left it");
        drop(database);
        let mut database = open(&folder);
        let facts = database.shred_facts(volume.id, &[volume.layer]);
        let facts = facts.expect("read");
        assert_eq!(facts.wrapped_by, pairs(&[("bao", "k")]));
        assert_eq!(facts.data_keys, texts(&[key]));
    }
}
