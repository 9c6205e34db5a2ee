//! The calls of the registry about key sets, each one transaction.
//!
//! What always holds: a volume is in one set at most; a set that has members is not deleted; the jobs that bring members under
//! another key begin in the step that names that key. A member's own key says what wraps it now: the two differ while its job is
//! not done, and what is left to do is seen from that alone.

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use sealvol_control::api::{KeySetMember, KeySetName, RewrapWhen, VolumeName};
use sealvol_control::key_ref::KeyRef;
use sealvol_volume::VolumeId;

use super::database::{Database, Result};
use super::jobs::{JobRow, NewJob, insert_job, job_of};
use super::rows::{parsed, unsigned};
use crate::jobs::{RewrapMember, Work};

/// A key set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeySetRow {
    /// Its name.
    pub name: KeySetName,
    /// The key that wraps the data keys of its members, or is about to.
    pub key: KeyRef,
    /// When they are wrapped anew by the same key.
    pub rewrap: RewrapWhen,
    /// RFC 3339, UTC.
    pub created: String,
}

/// The newest version of a key, as its provider tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Newest {
    /// The key id that the provider resolved it to.
    pub key_id: String,
    /// Its version.
    pub version: u32,
}

/// Who began the jobs of a set, and when.
#[derive(Clone, Debug)]
pub(crate) struct Begun {
    /// User id.
    pub by: u32,
    /// RFC 3339, UTC.
    pub at: String,
}

/// What becomes of a volume's place in a key set when it is wrapped anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Membership {
    /// Nothing.
    Stays,
    /// It is in none from then on.
    Leaves,
    /// It is in that one.
    Joins(KeySetName),
}

const COLUMNS: &str = "name, key, on_rotate, created";

impl Database {
    /// All key sets, by name.
    pub(crate) fn key_sets(&mut self) -> Result<Vec<KeySetRow>> {
        let sql = format!("SELECT {COLUMNS} FROM key_sets ORDER BY name");
        let mut statement = self.connection.prepare(&sql)?;
        let rows = statement.query_map([], key_set)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The key set of that name.
    pub(crate) fn key_set(&mut self, name: &KeySetName) -> Result<Option<KeySetRow>> {
        let sql = format!("SELECT {COLUMNS} FROM key_sets WHERE name = ?1");
        let row = self.connection.query_row(&sql, [name.as_str()], key_set);
        Ok(row.optional()?)
    }

    /// The key set that a volume is in.
    pub(crate) fn key_set_of(&mut self, volume: VolumeId) -> Result<Option<KeySetRow>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM key_sets JOIN key_set_members ON key_set = name WHERE volume = ?1"
        );
        let row = self
            .connection
            .query_row(&sql, [volume.to_string()], key_set);
        Ok(row.optional()?)
    }

    /// The volumes in a key set, by name.
    pub(crate) fn key_set_members(&mut self, name: &KeySetName) -> Result<Vec<KeySetMember>> {
        let mut statement = self.connection.prepare(
            "SELECT volumes.id, volumes.name, volumes.key,
                    (SELECT min(key_version) FROM data_keys WHERE data_keys.volume = volumes.id)
             FROM volumes JOIN key_set_members ON key_set_members.volume = volumes.id
             WHERE key_set = ?1 AND state = 'available' ORDER BY volumes.name",
        )?;
        let found = statement.query_map([name.as_str()], |row| {
            let member = KeySetMember {
                volume: parsed(row, 1)?,
                key: row.get(2)?,
                key_version: row.get::<_, Option<u32>>(3)?.unwrap_or(0),
                job: None,
            };
            Ok((parsed::<VolumeId>(row, 0)?, member))
        })?;
        let found = found.collect::<rusqlite::Result<Vec<_>>>()?;
        let mut members = Vec::with_capacity(found.len());
        for (id, member) in found {
            let job = job_of(&self.connection, id)?.map(|job| job.id.0);
            members.push(KeySetMember { job, ..member });
        }
        Ok(members)
    }

    /// A new key set. False if there is one of that name.
    pub(crate) fn insert_key_set(&mut self, row: &KeySetRow) -> Result<bool> {
        let inserted = self.connection.execute(
            "INSERT INTO key_sets (name, key, on_rotate, created) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (name) DO NOTHING",
            params![
                row.name.as_str(),
                row.key.to_string(),
                row.rewrap == RewrapWhen::OnRotate,
                row.created
            ],
        )?;
        Ok(inserted == 1)
    }

    /// The key set is as `row` says from now on, and for each member that is under another key a job begins. Those jobs.
    pub(crate) fn update_key_set(&mut self, row: &KeySetRow, begun: &Begun) -> Result<Vec<JobRow>> {
        let transaction = self.connection.transaction()?;
        transaction.execute(
            "UPDATE key_sets SET key = ?2, on_rotate = ?3 WHERE name = ?1",
            params![
                row.name.as_str(),
                row.key.to_string(),
                row.rewrap == RewrapWhen::OnRotate
            ],
        )?;
        let jobs = begin_rewraps(&transaction, &row.name, None, begun)?;
        transaction.commit()?;
        Ok(jobs)
    }

    /// A job begins for each member of the set that is under another key than the set names, or, if `newest` is told, under
    /// another version of it. Those jobs.
    pub(crate) fn bring_up_key_set(
        &mut self,
        name: &KeySetName,
        newest: Option<&Newest>,
        begun: &Begun,
    ) -> Result<Vec<JobRow>> {
        let transaction = self.connection.transaction()?;
        let jobs = begin_rewraps(&transaction, name, newest, begun)?;
        transaction.commit()?;
        Ok(jobs)
    }

    /// The key set is gone. False if it has members, and stays.
    pub(crate) fn delete_key_set(&mut self, name: &KeySetName) -> Result<bool> {
        let deleted = self.connection.execute(
            "DELETE FROM key_sets WHERE name = ?1
             AND NOT EXISTS (SELECT 1 FROM key_set_members WHERE key_set = name)",
            [name.as_str()],
        )?;
        Ok(deleted == 1)
    }

    /// The volume is in that set, or goes on as it is if there is none of that name any more.
    pub(crate) fn join_key_set(&mut self, volume: VolumeId, name: &KeySetName) -> Result<()> {
        set_membership(&self.connection, volume, &Membership::Joins(name.clone()))
    }
}

/// Has a volume be in the key set that is meant.
pub(super) fn set_membership(
    connection: &Connection,
    volume: VolumeId,
    membership: &Membership,
) -> Result<()> {
    match membership {
        Membership::Stays => {}
        Membership::Leaves => {
            let gone = "DELETE FROM key_set_members WHERE volume = ?1";
            connection.execute(gone, [volume.to_string()])?;
        }
        Membership::Joins(name) => {
            connection.execute(
                "INSERT INTO key_set_members (volume, key_set)
                 SELECT ?1, name FROM key_sets WHERE name = ?2
                 ON CONFLICT (volume) DO UPDATE SET key_set = excluded.key_set",
                params![volume.to_string(), name.as_str()],
            )?;
        }
    }
    Ok(())
}

fn begin_rewraps(
    transaction: &rusqlite::Transaction<'_>,
    name: &KeySetName,
    newest: Option<&Newest>,
    begun: &Begun,
) -> Result<Vec<JobRow>> {
    // Without a newest version none is newer.
    let (key_id, version) = newest.map_or(("", 0), |newest| (&newest.key_id, newest.version));
    let members: Vec<(VolumeId, VolumeName)> = transaction
        .prepare(
            "SELECT volumes.id, volumes.name
             FROM key_set_members JOIN key_sets ON key_sets.name = key_set JOIN volumes ON volumes.id = volume
             WHERE key_set = ?1 AND state = 'available'
               AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.volume = volumes.id AND ended IS NULL)
               AND (volumes.key <> key_sets.key
                    OR EXISTS (SELECT 1 FROM data_keys WHERE data_keys.volume = volumes.id
                               AND ?3 > 0 AND (key_id <> ?2 OR key_version < ?3)))
             ORDER BY volumes.name",
        )?
        .query_map(params![name.as_str(), key_id, version], |row| {
            Ok((parsed(row, 0)?, parsed(row, 1)?))
        })?
        .collect::<rusqlite::Result<_>>()?;
    let mut jobs = Vec::with_capacity(members.len());
    for (volume, of) in members {
        let new = NewJob {
            volume,
            name: of,
            work: Work::Rewrap(RewrapMember {
                key_set: name.to_string(),
            }),
            total: 0,
            by: begun.by,
            created: begun.at.clone(),
        };
        insert_job(transaction, &new)?;
        jobs.extend(job_of(transaction, volume)?);
    }
    Ok(jobs)
}

fn key_set(row: &Row<'_>) -> rusqlite::Result<KeySetRow> {
    let on_rotate = unsigned(row, 2)? != 0;
    Ok(KeySetRow {
        name: parsed(row, 0)?,
        key: parsed(row, 1)?,
        rewrap: if on_rotate {
            RewrapWhen::OnRotate
        } else {
            RewrapWhen::Never
        },
        created: row.get(3)?,
    })
}

#[cfg(test)]
mod tests {
    use sealvol_control::api::JobState;
    use sealvol_crypto::UnitSize;
    use sealvol_volume::{DataKeyId, LayerId};

    use super::*;
    use crate::registry::{Backing, JobEnd, NewVolume, WrappedBy};

    fn by(version: u32) -> WrappedBy {
        WrappedBy {
            provider: "local".into(),
            key_id: "id-a".into(),
            key_version: version,
        }
    }

    fn set(key: &str, rewrap: RewrapWhen) -> KeySetRow {
        KeySetRow {
            name: "s".parse().expect("a name"),
            key: key.parse().expect("a key"),
            rewrap,
            created: "2026-02-03T04:05:06Z".into(),
        }
    }

    fn begun() -> Begun {
        Begun {
            by: 7,
            at: "2026-02-03T04:05:06Z".into(),
        }
    }

    fn member(database: &mut Database, name: &str, is_member: bool) -> NewVolume {
        let new = NewVolume {
            id: VolumeId::random(),
            name: name.parse().expect("a name"),
            created: "2026-02-03T04:05:06Z".into(),
            size: 1 << 30,
            sector_size: UnitSize::B4096,
            key: "local:a".parse().expect("a key"),
            backing: Backing::State,
            layers_dir: None,
            layer: LayerId::random(),
            parent: None,
            data_key: DataKeyId::random(),
            ephemeral: false,
        };
        database.begin_create(&new).expect("registered");
        if is_member {
            let name = "s".parse().expect("a name");
            database.join_key_set(new.id, &name).expect("joined");
        }
        let keys = [(new.data_key, by(1))];
        database.finish_create(new.id, &keys).expect("made");
        new
    }

    fn names(jobs: &[JobRow]) -> Vec<&str> {
        jobs.iter().map(|job| job.name.as_str()).collect()
    }

    #[test]
    fn who_is_behind_gets_a_job_and_never_a_second_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut database = Database::open(&folder.path().join("registry.db")).expect("made");
        let name: KeySetName = "s".parse().expect("a name");
        let first = set("local:a", RewrapWhen::Never);
        assert!(database.insert_key_set(&first).expect("written"));
        assert!(
            !database.insert_key_set(&first).expect("read"),
            "its name is taken"
        );
        let volume = member(&mut database, "v", true);
        let _ = member(&mut database, "w", true);
        let _ = member(&mut database, "x", false);
        let all = database.bring_up_key_set(&name, None, &begun());
        assert!(all.expect("read").is_empty(), "they are under its key");

        // A newer version, of which one member hears before the other.
        let newest = |version| Newest {
            key_id: "id-a".into(),
            version,
        };
        let current = database.bring_up_key_set(&name, Some(&newest(1)), &begun());
        assert!(
            current.expect("read").is_empty(),
            "the version that they have"
        );
        let jobs = database.bring_up_key_set(&name, Some(&newest(2)), &begun());
        let jobs = jobs.expect("begun");
        assert_eq!(names(&jobs), ["v", "w"]);
        let again = database.bring_up_key_set(&name, Some(&newest(2)), &begun());
        assert!(again.expect("read").is_empty(), "each has a job");
        let (id, a) = (volume.id, "local:a".parse().expect("a key"));
        let keys = [(volume.data_key, by(2))];
        database
            .set_rewrapped(id, &a, &keys, &Membership::Stays)
            .expect("written");
        for job in &jobs {
            let end = JobEnd {
                state: JobState::Done,
                reason: None,
                result: None,
                at: "2026-02-03T04:05:07Z".into(),
            };
            database.end_job(job.id, &end).expect("ended");
        }
        let jobs = database.bring_up_key_set(&name, Some(&newest(2)), &begun());
        assert_eq!(
            names(&jobs.expect("begun")),
            ["w"],
            "whose job came to nothing"
        );

        // Another key: begun in the step that names it, but for who has a job; by an id of another key everybody is behind.
        let other = set("local:b", RewrapWhen::OnRotate);
        let jobs = database.update_key_set(&other, &begun()).expect("changed");
        assert_eq!(names(&jobs), ["v"]);
        assert_eq!(database.key_set(&name).expect("read"), Some(other));
        assert!(
            !database.delete_key_set(&name).expect("read"),
            "it has members"
        );
    }

    #[test]
    fn a_volume_is_in_one_set_and_takes_its_place_with_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut database = Database::open(&folder.path().join("registry.db")).expect("made");
        for name in ["s", "t"] {
            let row = KeySetRow {
                name: name.parse().expect("a name"),
                ..set("local:a", RewrapWhen::Never)
            };
            assert!(database.insert_key_set(&row).expect("written"));
        }
        let volume = member(&mut database, "v", true);
        let set_of = |database: &mut Database| {
            let found = database.key_set_of(volume.id).expect("read");
            found.map(|row| row.name.to_string())
        };
        assert_eq!(set_of(&mut database).as_deref(), Some("s"));
        let a = "local:a".parse().expect("a key");
        let keys = [(volume.data_key, by(1))];
        let joins = Membership::Joins("t".parse().expect("a name"));
        database
            .set_rewrapped(volume.id, &a, &keys, &joins)
            .expect("written");
        assert_eq!(set_of(&mut database).as_deref(), Some("t"));
        let nowhere = "nowhere".parse().expect("a name");
        database.join_key_set(volume.id, &nowhere).expect("read");
        assert_eq!(
            set_of(&mut database).as_deref(),
            Some("t"),
            "a set that is gone"
        );
        assert!(
            database
                .delete_key_set(&"s".parse().expect("a name"))
                .expect("written")
        );
        let leaves = Membership::Leaves;
        database
            .set_rewrapped(volume.id, &a, &keys, &leaves)
            .expect("written");
        assert_eq!(set_of(&mut database), None);
        database
            .join_key_set(volume.id, &"t".parse().expect("a name"))
            .expect("written");
        database
            .forget(volume.id, &[volume.layer])
            .expect("forgotten");
        assert!(
            database
                .delete_key_set(&"t".parse().expect("a name"))
                .expect("written")
        );
    }
}
