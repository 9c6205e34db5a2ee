//! What the registry promises: order of states, monotony, and that it comes back as it was.

use super::*;
use crate::limits::Limits;
use crate::registry::{Registry, RowState};

fn new_volume(name: &str) -> NewVolume {
    NewVolume {
        id: VolumeId::random(),
        name: name.parse().expect("a name"),
        created: "2026-02-03T04:05:06Z".into(),
        size: 1 << 30,
        sector_size: UnitSize::B512,
        key: "local:default".parse().expect("a key"),
        backing: Backing::Device("/dev/vdb".into()),
        layers_dir: None,
        layer: LayerId::random(),
        parent: None,
        data_key: DataKeyId::random(),
        ephemeral: false,
    }
}

fn by(version: u32) -> WrappedBy {
    WrappedBy {
        provider: "local".into(),
        key_id: "0d7c".into(),
        key_version: version,
    }
}

struct Fixture {
    folder: tempfile::TempDir,
    database: Database,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let database = Database::open(&folder.path().join("registry.db")).expect("opened");
        Self { folder, database }
    }

    fn with_volume(name: &str) -> (Self, NewVolume) {
        let mut fixture = Self::new();
        let new = new_volume(name);
        fixture.database.begin_create(&new).expect("registered");
        fixture
            .database
            .finish_create(new.id, &[(new.data_key, by(3))])
            .expect("available");
        (fixture, new)
    }

    fn row(&mut self, name: &VolumeName) -> VolumeRow {
        self.database
            .volume(name)
            .expect("read")
            .expect("registered")
    }

    fn top(&mut self, new: &NewVolume) -> LayerRow {
        self.database.stack(new.layer).expect("read").remove(0)
    }

    fn wrapped_by(&mut self, new: &NewVolume) -> WrappedBy {
        let keys = self.database.data_keys(new.id).expect("read");
        keys[&new.data_key].clone()
    }

    fn reopened(self) -> Self {
        let Self { folder, database } = self;
        drop(database);
        let database = Database::open(&folder.path().join("registry.db")).expect("opened again");
        Self { folder, database }
    }
}

#[test]
fn a_volume_exists_only_when_its_layer_is_complete() {
    let mut fixture = Fixture::new();
    let new = new_volume("v");
    fixture.database.begin_create(&new).expect("registered");
    let mut fixture = fixture.reopened();
    assert_eq!(fixture.row(&new.name).state, RowState::Creating);
    fixture
        .database
        .finish_create(new.id, &[(new.data_key, by(3))])
        .expect("available");
    let mut fixture = fixture.reopened();
    let row = fixture.row(&new.name);
    assert_eq!(row.state, RowState::Available);
    assert_eq!((row.id, row.size, row.top), (new.id, new.size, new.layer));
    assert_eq!(
        (row.sector_size, row.backing),
        (new.sector_size, new.backing.clone())
    );
    assert_eq!(
        (row.key, row.attached, row.loss),
        (new.key.clone(), None, None)
    );
    let layer = fixture.top(&new);
    assert_eq!((layer.data_key, layer.size), (new.data_key, new.size));
    assert_eq!(layer.backing, new.backing);
    assert_eq!(fixture.wrapped_by(&new), by(3));
    assert_eq!(
        (layer.commitment, layer.generation, layer.bound),
        (None, 0, false)
    );
}

#[test]
fn a_layer_is_committed_to_a_key_before_it_is_opened_and_to_no_other_one_later() {
    let mut fixture = Fixture::new();
    let (new, made) = (new_volume("v"), Commitment([7; 32]));
    fixture.database.begin_create(&new).expect("registered");
    fixture
        .database
        .commit_to(new.layer, made)
        .expect("committed");
    fixture
        .database
        .finish_create(new.id, &[(new.data_key, by(3))])
        .expect("available");
    let mut fixture = fixture.reopened();
    let other = Commitment([8; 32]);
    fixture
        .database
        .commit_to(new.layer, other)
        .expect("ignored");
    let top = fixture.top(&new);
    assert_eq!(
        (top.commitment, top.generation, top.bound),
        (Some(made), 0, false)
    );
}

#[test]
fn a_name_is_taken_from_the_beginning_of_the_creation() {
    let mut fixture = Fixture::new();
    fixture
        .database
        .begin_create(&new_volume("v"))
        .expect("registered");
    let second = fixture.database.begin_create(&new_volume("v"));
    assert!(matches!(second, Err(RegistryError::NameTaken(name)) if name == "v"));
    assert_eq!(fixture.database.volumes().expect("read").len(), 1);
}

#[test]
fn an_adopted_volume_is_there_with_its_pins_in_one_step() {
    let mut fixture = Fixture::new();
    let new = new_volume("v");
    let commitment = Commitment([7; 32]);
    fixture
        .database
        .adopt(&new, &by(3), 9, Some(commitment))
        .expect("registered");
    let mut fixture = fixture.reopened();
    assert_eq!(fixture.row(&new.name).state, RowState::Available);
    let top = fixture.top(&new);
    assert_eq!((top.generation, top.bound), (9, true));
    assert_eq!(top.commitment, Some(commitment));
    assert_eq!(fixture.wrapped_by(&new), by(3));
    // Under another name it is the same volume, and nothing of the attempt stays.
    let twice = NewVolume {
        name: "w".parse().expect("a name"),
        ..new
    };
    fixture
        .database
        .adopt(&twice, &by(3), 9, None)
        .expect_err("its id is taken");
    assert_eq!(fixture.database.volumes().expect("read").len(), 1);
}

#[test]
fn generations_only_grow_and_a_commitment_stays() {
    let (mut fixture, new) = Fixture::with_volume("v");
    let (first, other) = (Commitment([1; 32]), Commitment([2; 32]));
    fixture
        .database
        .pin(new.layer, 7, new.size, first, [9; 16])
        .expect("pinned");
    fixture
        .database
        .pin(new.layer, 5, new.size, other, [9; 16])
        .expect("pinned");
    let layer = fixture.reopened().top(&new);
    assert_eq!(
        (layer.generation, layer.commitment, layer.bound),
        (7, Some(first), true)
    );
}

#[test]
fn sizes_only_grow() {
    let (mut fixture, new) = Fixture::with_volume("v");
    fixture
        .database
        .set_size(new.id, new.size + 4096)
        .expect("set");
    fixture
        .database
        .set_size(new.id, 4096)
        .expect("nothing to do");
    assert_eq!(fixture.row(&new.name).size, new.size + 4096);
    fixture
        .database
        .pin(new.layer, 1, new.size + 8192, Commitment([1; 32]), [9; 16])
        .expect("pinned");
    assert_eq!(fixture.row(&new.name).size, new.size + 8192);
}

#[test]
fn an_attached_volume_is_found_attached_after_a_restart() {
    let (mut fixture, new) = Fixture::with_volume("v");
    let attached = Attached {
        read_only: true,
        direct: true,
        allow: vec![0, 107],
        by: 1000,
    };
    fixture
        .database
        .set_attached(new.id, &attached)
        .expect("set");
    let mut fixture = fixture.reopened();
    assert_eq!(fixture.row(&new.name).attached, Some(attached));
    fixture.database.set_detached(new.id).expect("set");
    assert_eq!(fixture.row(&new.name).attached, None);
}

#[test]
fn the_first_loss_stays_until_it_is_accepted() {
    let (mut fixture, new) = Fixture::with_volume("v");
    fixture
        .database
        .record_loss(new.layer, "first")
        .expect("recorded");
    fixture
        .database
        .record_loss(new.layer, "second")
        .expect("recorded");
    let mut fixture = fixture.reopened();
    assert_eq!(fixture.row(&new.name).loss.as_deref(), Some("first"));
    fixture.database.accept_loss(new.id).expect("accepted");
    assert_eq!(fixture.row(&new.name).loss, None);
}

#[test]
fn a_forgotten_volume_leaves_nothing() {
    let (mut fixture, new) = Fixture::with_volume("v");
    fixture.database.begin_delete(new.id).expect("begun");
    let mut fixture = fixture.reopened();
    assert_eq!(fixture.row(&new.name).state, RowState::Deleting);
    let layers = fixture.database.layers_of_none_but(new.id).expect("read");
    assert_eq!(layers.len(), 1);
    fixture
        .database
        .forget(new.id, &[new.layer])
        .expect("forgotten");
    assert!(fixture.database.volumes().expect("read").is_empty());
    assert!(fixture.database.stack(new.layer).expect("read").is_empty());
    fixture
        .database
        .begin_create(&new_volume("v"))
        .expect("the name is free again");
}

/// The tables of version 2, with a volume that was attached and is under version 3 of its key. Of version 1, without `direct`.
const VERSION_2: &str = "
    CREATE TABLE volumes (
        id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE,
        state TEXT NOT NULL CHECK (state IN ('creating', 'available', 'deleting')), created TEXT NOT NULL,
        size INTEGER NOT NULL CHECK (size > 0), sector_size INTEGER NOT NULL CHECK (sector_size IN (512, 4096)),
        key TEXT NOT NULL, backing TEXT NOT NULL CHECK (backing IN ('state', 'directory', 'device')),
        backing_path TEXT NOT NULL, top TEXT NOT NULL,
        attached INTEGER NOT NULL DEFAULT 0 CHECK (attached IN (0, 1)),
        read_only INTEGER NOT NULL DEFAULT 0 CHECK (read_only IN (0, 1)),
        direct INTEGER NOT NULL DEFAULT 0 CHECK (direct IN (0, 1)),
        allow TEXT NOT NULL DEFAULT '[]', attached_by INTEGER NOT NULL DEFAULT 0, loss TEXT
    ) STRICT;
    CREATE TABLE layers (
        id TEXT PRIMARY KEY, volume TEXT NOT NULL REFERENCES volumes (id), parent TEXT, data_key TEXT NOT NULL,
        provider TEXT NOT NULL, key_id TEXT NOT NULL, key_version INTEGER NOT NULL,
        commitment BLOB CHECK (length(commitment) = 32), generation INTEGER NOT NULL DEFAULT 0,
        bound INTEGER NOT NULL DEFAULT 0 CHECK (bound IN (0, 1)), boot BLOB CHECK (length(boot) = 16)
    ) STRICT;
    CREATE INDEX layers_by_volume ON layers (volume);
    INSERT INTO volumes (id, name, state, created, size, sector_size, key, backing, backing_path, top, attached, read_only,
                         direct, allow, attached_by)
        VALUES ('00112233-4455-4677-8899-aabbccddeeff', 'v', 'available', '2026-02-03T04:05:06Z', 1048576, 512,
                'local:default', 'directory', '/srv', '10112233-4455-4677-8899-aabbccddeeff', 1, 1, 1, '[7]', 3);
    INSERT INTO layers (id, volume, data_key, provider, key_id, key_version, commitment, generation, bound)
        VALUES ('10112233-4455-4677-8899-aabbccddeeff', '00112233-4455-4677-8899-aabbccddeeff',
                '20112233-4455-4677-8899-aabbccddeeff', 'local', '0d7c', 3, zeroblob(32), 9, 1);
    PRAGMA application_id = 0x73767267;
    PRAGMA user_version = 2";

#[test]
fn a_registry_of_an_earlier_version_is_taken_over() {
    for version in [1, 2, 3] {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("registry.db");
        let earlier = Connection::open(&path).expect("made");
        earlier
            .execute_batch(VERSION_2)
            .expect("as version 2 left it");
        if version == 1 {
            earlier
                .execute_batch("ALTER TABLE volumes DROP COLUMN direct; PRAGMA user_version = 1")
                .expect("as version 1 left it");
        }
        if version == 3 {
            earlier
                .execute_batch(
                    "ALTER TABLE volumes ADD COLUMN iops INTEGER CHECK (iops > 0);
                     ALTER TABLE volumes ADD COLUMN bandwidth INTEGER CHECK (bandwidth > 0);
                     ALTER TABLE volumes ADD COLUMN burst_seconds INTEGER NOT NULL DEFAULT 1
                         CHECK (burst_seconds >= 0);
                     UPDATE volumes SET iops = 500;
                     PRAGMA user_version = 3",
                )
                .expect("as version 3 left it");
        }
        drop(earlier);
        let database = Database::open(&path).expect("taken over");
        let mut fixture = Fixture { folder, database }.reopened();
        let row = fixture.row(&"v".parse().expect("a name"));
        let attached = Attached {
            read_only: true,
            direct: version > 1,
            allow: vec![7],
            by: 3,
        };
        assert_eq!((row.attached, row.layers_dir), (Some(attached), None));
        let limits = Limits {
            iops: (version == 3).then_some(500),
            ..Limits::default()
        };
        assert_eq!(row.limits, limits);
        let layers = fixture.database.stack(row.top).expect("read");
        assert_eq!(layers.len(), 1);
        let layer = &layers[0];
        assert_eq!((layer.volume, layer.parent), (row.id, None));
        assert_eq!((layer.size, layer.sealed), (1 << 20, false));
        assert_eq!(layer.backing, Backing::Directory("/srv".into()));
        assert_eq!((layer.generation, layer.bound), (9, true));
        assert_eq!(layer.commitment, Some(Commitment([0; 32])));
        let keys = fixture.database.data_keys(row.id).expect("read");
        assert_eq!(keys[&layer.data_key], by(3));
        assert!(fixture.database.snapshots(row.id).expect("read").is_empty());
    }
}

#[test]
fn a_registry_without_ephemeral_volumes_is_taken_over_with_all_that_is_in_it() {
    let (fixture, new) = Fixture::with_volume("v");
    let earlier = &fixture.database.connection;
    earlier
        .execute_batch(
            "ALTER TABLE volumes DROP COLUMN ephemeral; ALTER TABLE layers DROP COLUMN former_parents;
             DROP TABLE key_tables; DROP TABLE key_set_members; DROP TABLE key_sets; DROP TABLE wraps; DROP TABLE tombstones; PRAGMA user_version = 6",
        )
        .expect("as version 6 left it");
    let mut fixture = fixture.reopened();
    assert!(!fixture.row(&new.name).ephemeral);
    let ephemeral = NewVolume {
        ephemeral: true,
        ..new_volume("e")
    };
    fixture.database.begin_create(&ephemeral).expect("made");
    let mut fixture = fixture.reopened();
    assert!(fixture.row(&ephemeral.name).ephemeral);
}

#[test]
fn a_registry_that_knows_of_no_merge_down_is_taken_over_with_its_layers() {
    let (fixture, new) = Fixture::with_volume("v");
    let earlier = &fixture.database.connection;
    earlier
        .execute_batch(
            "ALTER TABLE layers DROP COLUMN former_parents;
             DROP TABLE key_set_members; DROP TABLE key_sets; DROP TABLE wraps; DROP TABLE tombstones; PRAGMA user_version = 8",
        )
        .expect("as version 8 left it");
    let mut fixture = fixture.reopened();
    let top = fixture.top(&new);
    assert_eq!((top.id, top.former_parents), (new.layer, vec![]));
}

#[test]
fn limits_are_there_after_a_restart_until_they_are_lifted() {
    let (mut fixture, new) = Fixture::with_volume("v");
    assert_eq!(fixture.row(&new.name).limits, Limits::default());
    let limits = Limits {
        iops: Some(3000),
        bandwidth: Some(125 << 20),
        burst_seconds: 0,
    };
    fixture.database.set_limits(new.id, limits).expect("set");
    let mut fixture = fixture.reopened();
    assert_eq!(fixture.row(&new.name).limits, limits);
    let none = Limits::default();
    fixture.database.set_limits(new.id, none).expect("set");
    assert_eq!(fixture.row(&new.name).limits, none);
}

#[test]
fn what_is_no_registry_or_a_later_one_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let foreign = folder.path().join("foreign.db");
    let other = Connection::open(&foreign).expect("made");
    other.execute_batch("CREATE TABLE t (x)").expect("made");
    drop(other);
    assert!(
        matches!(Database::open(&foreign), Err(RegistryError::Foreign(path)) if path == foreign)
    );

    let newer = folder.path().join("newer.db");
    let database = Database::open(&newer).expect("made");
    database
        .connection
        .pragma_update(None, "user_version", 99)
        .expect("set");
    drop(database);
    let refused = Database::open(&newer);
    assert!(matches!(
        refused,
        Err(RegistryError::NewerSchema { found: 99, .. })
    ));

    let garbage = folder.path().join("garbage.db");
    std::fs::write(&garbage, [0x5a; 8192]).expect("written");
    assert!(matches!(
        Database::open(&garbage),
        Err(RegistryError::Sqlite(_))
    ));
}

#[test]
fn text_that_is_no_id_is_an_error_and_no_panic() {
    let (mut fixture, new) = Fixture::with_volume("v");
    fixture
        .database
        .connection
        .execute("UPDATE volumes SET top = 'x'", [])
        .expect("damaged");
    let read = fixture.database.volume(&new.name);
    assert!(matches!(read, Err(RegistryError::Sqlite(_))));
}

#[tokio::test]
async fn a_call_is_carried_out_though_nobody_waits() {
    let folder = tempfile::tempdir().expect("a folder");
    let registry = Registry::open(&folder.path().join("registry.db")).expect("opened");
    let new = new_volume("v");
    let name = new.name.clone();
    let abandoned = registry.call(move |database| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        database.begin_create(&new)
    });
    let abandoned = tokio::time::timeout(std::time::Duration::from_millis(1), abandoned).await;
    assert!(abandoned.is_err(), "its caller has gone");
    let found = registry
        .call(move |database| database.volume(&name))
        .await
        .expect("read");
    assert!(found.is_some());
}
