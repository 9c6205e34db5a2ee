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
        layer: LayerId::random(),
        data_key: DataKeyId::random(),
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
            .finish_create(new.id, new.layer, &by(3))
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
        self.database
            .layers(new.id, new.layer)
            .expect("read")
            .remove(0)
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
        .finish_create(new.id, new.layer, &by(3))
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
    assert_eq!((layer.data_key, layer.wrapped_by), (new.data_key, by(3)));
    assert_eq!(
        (layer.commitment, layer.generation, layer.bound),
        (None, 0, false)
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
    assert_eq!((top.commitment, top.wrapped_by), (Some(commitment), by(3)));
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
    fixture.database.forget(new.id).expect("forgotten");
    assert!(fixture.database.volumes().expect("read").is_empty());
    assert!(
        fixture
            .database
            .layers(new.id, new.layer)
            .expect("read")
            .is_empty()
    );
    fixture
        .database
        .begin_create(&new_volume("v"))
        .expect("the name is free again");
}

#[test]
fn a_registry_of_version_1_is_taken_over() {
    let (fixture, new) = Fixture::with_volume("v");
    let connection = &fixture.database.connection;
    connection
        .execute_batch(
            "UPDATE volumes SET attached = 1, read_only = 1, allow = '[7]', attached_by = 3;
             ALTER TABLE volumes DROP COLUMN iops;
             ALTER TABLE volumes DROP COLUMN bandwidth;
             ALTER TABLE volumes DROP COLUMN burst_seconds;
             ALTER TABLE volumes DROP COLUMN direct;
             PRAGMA user_version = 1",
        )
        .expect("as version 1 left it");
    let mut fixture = fixture.reopened();
    let attached = Attached {
        read_only: true,
        direct: false,
        allow: vec![7],
        by: 3,
    };
    assert_eq!(fixture.row(&new.name).attached, Some(attached));
    let direct = Attached {
        direct: true,
        ..fixture.row(&new.name).attached.expect("attached")
    };
    fixture.database.set_attached(new.id, &direct).expect("set");
    assert_eq!(fixture.reopened().row(&new.name).attached, Some(direct));
}

#[test]
fn a_registry_of_version_2_is_taken_over_without_limits() {
    let (fixture, new) = Fixture::with_volume("v");
    let connection = &fixture.database.connection;
    connection
        .execute_batch(
            "ALTER TABLE volumes DROP COLUMN iops;
             ALTER TABLE volumes DROP COLUMN bandwidth;
             ALTER TABLE volumes DROP COLUMN burst_seconds;
             PRAGMA user_version = 2",
        )
        .expect("as version 2 left it");
    let mut fixture = fixture.reopened();
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
