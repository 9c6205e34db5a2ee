//! What the registry promises of stacks: a group is one step, and a layer stays as long as anybody stands on it.

use sealvol_crypto::UnitSize;

use super::*;
use crate::registry::{Backing, NewVolume};

struct Fixture {
    _folder: tempfile::TempDir,
    database: Database,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let database = Database::open(&folder.path().join("registry.db")).expect("opened");
        Self {
            _folder: folder,
            database,
        }
    }

    fn volume(&mut self, name: &str, parent: Option<LayerId>) -> NewVolume {
        let new = NewVolume {
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
        };
        self.database.begin_create(&new).expect("registered");
        let keys = [(new.data_key, by())];
        self.database.finish_create(new.id, &keys).expect("made");
        new
    }

    fn stack_of(&mut self, name: &str) -> Vec<LayerId> {
        let name = name.parse().expect("a name");
        let row = self.database.volume(&name).expect("read");
        let layers = self.database.stack(row.expect("registered").top);
        layers.expect("read").iter().map(|layer| layer.id).collect()
    }

    fn needed_by_none_but(&mut self, volume: &NewVolume) -> Vec<LayerId> {
        let layers = self.database.layers_of_none_but(volume.id);
        layers.expect("read").iter().map(|layer| layer.id).collect()
    }
}

fn by() -> WrappedBy {
    WrappedBy {
        provider: "local".into(),
        key_id: "0d7c".into(),
        key_version: 1,
    }
}

/// A new top for a volume whose top is `sealed`.
fn top(new: &NewVolume, sealed: LayerId, snapshot: &str) -> NewTop {
    let layer = LayerRow {
        id: LayerId::random(),
        volume: new.id,
        parent: Some(sealed),
        size: new.size,
        backing: Backing::Directory("/srv".into()),
        data_key: new.data_key,
        sealed: false,
        commitment: None,
        generation: 0,
        bound: false,
        boot: None,
        former_parents: Vec::new(),
    };
    let names = (
        snapshot.parse().expect("a name"),
        format!("{}@{snapshot}", new.name),
        "2026-02-03T04:05:06Z".to_owned(),
    );
    NewTop {
        layer,
        sealed,
        snapshot: Some(names),
        data_key: None,
        key: None,
        job: None,
    }
}

#[test]
fn a_snapshot_and_the_new_top_come_in_one_step() {
    let mut fixture = Fixture::new();
    let new = fixture.volume("v", None);
    let first = top(&new, new.layer, "s");
    fixture
        .database
        .put_tops(std::slice::from_ref(&first))
        .expect("put");
    assert_eq!(fixture.stack_of("v"), [first.layer.id, new.layer]);
    let layers = fixture.database.stack(first.layer.id).expect("read");
    assert_eq!(layers[0], first.layer);
    let snapshots = fixture.database.snapshots(new.id).expect("read");
    assert_eq!(snapshots.len(), 1);
    assert_eq!(
        (snapshots[0].layer, snapshots[0].name.as_str()),
        (new.layer, "s")
    );
    assert!(!layers[1].sealed);
    fixture.database.set_sealed(new.layer).expect("set");
    assert!(fixture.database.stack(new.layer).expect("read")[0].sealed);
}

#[test]
fn of_a_group_all_tops_are_put_or_none() {
    let mut fixture = Fixture::new();
    let (a, b) = (fixture.volume("a", None), fixture.volume("b", None));
    let taken = top(&b, b.layer, "s");
    fixture
        .database
        .put_tops(std::slice::from_ref(&taken))
        .expect("put");
    let group = [top(&a, a.layer, "s"), top(&b, taken.layer.id, "s")];
    let refused = fixture.database.put_tops(&group);
    assert!(matches!(refused, Err(RegistryError::SnapshotTaken(name)) if name == "b@s"));
    assert_eq!(fixture.stack_of("a"), [a.layer]);
    assert!(fixture.database.snapshots(a.id).expect("read").is_empty());
    assert_eq!(fixture.stack_of("b"), [taken.layer.id, b.layer]);
}

#[test]
fn what_was_not_cut_is_taken_back_without_a_trace() {
    let mut fixture = Fixture::new();
    let new = fixture.volume("v", None);
    let mut first = top(&new, new.layer, "s");
    first.layer.data_key = DataKeyId::random();
    first.data_key = Some(by());
    let tops = [first];
    fixture.database.put_tops(&tops).expect("put");
    assert_eq!(fixture.database.data_keys(new.id).expect("read").len(), 2);
    fixture.database.take_tops_back(&tops).expect("taken back");
    assert_eq!(fixture.stack_of("v"), [new.layer]);
    assert_eq!(fixture.database.data_keys(new.id).expect("read").len(), 1);
    assert!(fixture.database.snapshots(new.id).expect("read").is_empty());
    fixture
        .database
        .put_tops(&tops)
        .expect("as if it had never been");
}

#[test]
fn the_name_of_a_deleted_snapshot_is_free_and_its_layer_stays() {
    let mut fixture = Fixture::new();
    let new = fixture.volume("v", None);
    let first = top(&new, new.layer, "s");
    fixture
        .database
        .put_tops(std::slice::from_ref(&first))
        .expect("put");
    fixture.database.hide_snapshot(new.layer).expect("hidden");
    let name = "s".parse().expect("a name");
    assert_eq!(
        fixture.database.snapshot(new.id, &name).expect("read"),
        None
    );
    let second = top(&new, first.layer.id, "s");
    fixture
        .database
        .put_tops(std::slice::from_ref(&second))
        .expect("put");
    let stack = [second.layer.id, first.layer.id, new.layer];
    assert_eq!(fixture.stack_of("v"), stack);
}

#[test]
fn a_layer_goes_with_the_last_volume_that_stands_on_it() {
    let mut fixture = Fixture::new();
    let source = fixture.volume("source", None);
    let first = top(&source, source.layer, "s");
    fixture
        .database
        .put_tops(std::slice::from_ref(&first))
        .expect("put");
    assert_eq!(
        fixture.needed_by_none_but(&source),
        [first.layer.id, source.layer]
    );
    let clone = fixture.volume("clone", Some(source.layer));
    assert_eq!(fixture.stack_of("clone"), [clone.layer, source.layer]);
    assert_eq!(fixture.needed_by_none_but(&source), [first.layer.id]);
    assert_eq!(fixture.needed_by_none_but(&clone), [clone.layer]);
    fixture.database.begin_delete(source.id).expect("begun");
    fixture
        .database
        .forget(source.id, &[first.layer.id])
        .expect("forgotten");
    assert_eq!(fixture.stack_of("clone"), [clone.layer, source.layer]);
    assert_eq!(
        fixture.needed_by_none_but(&clone),
        [clone.layer, source.layer]
    );
}

#[test]
fn a_loss_stops_every_volume_that_stands_on_the_layer() {
    let mut fixture = Fixture::new();
    let source = fixture.volume("source", None);
    let first = top(&source, source.layer, "s");
    fixture.database.put_tops(&[first]).expect("put");
    fixture.volume("clone", Some(source.layer));
    fixture.volume("other", None);
    fixture
        .database
        .record_loss(source.layer, "a sync failed")
        .expect("recorded");
    let rows = fixture.database.volumes().expect("read");
    let lost: Vec<&str> = rows
        .iter()
        .filter(|row| row.loss.is_some())
        .map(|row| row.name.as_str())
        .collect();
    assert_eq!(lost, ["clone", "source"]);
}

#[test]
fn a_snapshot_is_found_attached_after_a_restart() {
    let mut fixture = Fixture::new();
    let new = fixture.volume("v", None);
    let tops = [top(&new, new.layer, "s")];
    fixture.database.put_tops(&tops).expect("put");
    let attached = Attached {
        read_only: true,
        direct: true,
        allow: vec![0, 107],
        by: 1000,
    };
    fixture
        .database
        .set_snapshot_attached(new.layer, Some(&attached))
        .expect("set");
    let found = fixture.database.snapshots(new.id).expect("read").remove(0);
    assert_eq!(found.attached, Some(attached));
    fixture
        .database
        .set_snapshot_attached(new.layer, None)
        .expect("set");
    let found = fixture.database.snapshots(new.id).expect("read").remove(0);
    assert_eq!(found.attached, None);
}

fn ids(layers: Result<Vec<LayerRow>>) -> Vec<LayerId> {
    let layers = layers.expect("read");
    layers.iter().map(|layer| layer.id).collect()
}

#[test]
fn a_layer_is_due_to_be_merged_when_nobody_asks_for_it_and_one_stands_on_it() {
    let mut fixture = Fixture::new();
    let new = fixture.volume("v", None);
    let first = top(&new, new.layer, "s");
    let second = top(&new, first.layer.id, "t");
    for top in [&first, &second] {
        let tops = std::slice::from_ref(top);
        fixture.database.put_tops(tops).expect("put");
    }
    let due = |fixture: &mut Fixture| ids(fixture.database.due_merges());
    assert_eq!(due(&mut fixture), [], "each is a snapshot or a top");
    fixture.database.hide_snapshot(new.layer).expect("hidden");
    assert_eq!(due(&mut fixture), [new.layer]);
    let clone = fixture.volume("clone", Some(new.layer));
    assert_eq!(due(&mut fixture), [], "two stand on it");
    fixture.database.begin_delete(clone.id).expect("begun");
    fixture
        .database
        .forget(clone.id, &[clone.layer])
        .expect("forgotten");
    fixture
        .database
        .hide_snapshot(first.layer.id)
        .expect("hidden");
    assert_eq!(due(&mut fixture), [first.layer.id, new.layer]);
    assert_eq!(ids(fixture.database.layers_of_nobody()), []);
    let stands_on = |fixture: &mut Fixture, layer| {
        let set = fixture.database.set_parent(second.layer.id, Some(layer));
        set.expect("set");
    };
    stands_on(&mut fixture, new.layer);
    assert_eq!(ids(fixture.database.layers_of_nobody()), [first.layer.id]);
    assert_eq!(due(&mut fixture), [new.layer], "what is to go is no child");
    stands_on(&mut fixture, first.layer.id);
    fixture
        .database
        .set_parent(first.layer.id, None)
        .expect("set");
    assert_eq!(ids(fixture.database.layers_of_nobody()), [new.layer]);
    assert_eq!(fixture.stack_of("v"), [second.layer.id, first.layer.id]);
    fixture.database.forget_layer(new.layer).expect("forgotten");
    assert_eq!(ids(fixture.database.layers_of_nobody()), []);
    assert_eq!(due(&mut fixture), [first.layer.id]);
}

#[test]
fn a_layer_on_a_device_is_never_due_to_be_merged() {
    let mut fixture = Fixture::new();
    let new = fixture.volume("v", None);
    let first = top(&new, new.layer, "s");
    fixture.database.put_tops(&[first]).expect("put");
    fixture.database.hide_snapshot(new.layer).expect("hidden");
    let sql = "UPDATE layers SET backing = 'device', backing_path = '/dev/vdb' WHERE id = ?1";
    let id = new.layer.to_string();
    fixture.database.connection.execute(sql, [id]).expect("set");
    assert_eq!(ids(fixture.database.due_merges()), []);
}

#[test]
fn an_ephemeral_volume_that_begins_anew_leaves_its_former_layer_to_be_removed() {
    let mut fixture = Fixture::new();
    let new = fixture.volume("e", None);
    let other = fixture.volume("v", None);
    let row = |fixture: &mut Fixture| {
        let row = fixture.database.volume(&new.name).expect("read");
        row.expect("registered")
    };
    let database = &mut fixture.database;
    database.record_loss(new.layer, "a sync").expect("recorded");
    let layer = LayerRow {
        parent: None,
        backing: Backing::State,
        data_key: DataKeyId::random(),
        ..top(&new, new.layer, "s").layer
    };
    let layers = [layer.clone()];
    database.begin_layers(&layers).expect("begun");
    database.begin_anew(&layer).expect("begun anew");
    let to_remove = database.new_layers().expect("read");
    assert_eq!(to_remove, [(new.layer, Backing::State)]);
    let found = row(&mut fixture);
    assert_eq!((found.top, found.loss), (layer.id, None));
    assert_eq!(fixture.stack_of("e"), [layer.id]);
    assert_eq!(fixture.stack_of("v"), [other.layer]);
}

/// A volume of three sealed layers and a top: the lowest a snapshot that was deleted, `t` and `u` on it.
fn three_snapshots(fixture: &mut Fixture) -> (NewVolume, [LayerId; 4]) {
    let new = fixture.volume("v", None);
    let mut layers = [new.layer; 4];
    for (at, name) in ["s", "t", "u"].into_iter().enumerate() {
        let top = top(&new, layers[at], name);
        layers[at + 1] = top.layer.id;
        fixture.database.put_tops(&[top]).expect("put");
        fixture.database.set_sealed(layers[at]).expect("set");
    }
    fixture.database.hide_snapshot(layers[0]).expect("hidden");
    (new, layers)
}

#[test]
fn who_stood_on_a_layer_that_went_down_stands_on_the_one_below_in_one_step() {
    let mut fixture = Fixture::new();
    let (new, [lowest, child, upper, top]) = three_snapshots(&mut fixture);
    let clone = fixture.volume("clone", Some(child));
    let found = fixture.database.child_to_go_down(lowest);
    assert_eq!(found.expect("read"), Some(child));
    assert!(fixture.database.hand_down(child, lowest).expect("done"));
    assert_eq!(fixture.stack_of("v"), [top, upper, lowest]);
    assert_eq!(fixture.stack_of("clone"), [clone.layer, lowest]);
    for layer in [upper, clone.layer] {
        let row = fixture.database.stack(layer).expect("read").swap_remove(0);
        assert_eq!(row.former_parents, [child]);
    }
    // The snapshot that was the child is the layer in whose place it came, where it was in the order of time.
    let snapshots = fixture.database.snapshots(new.id).expect("read");
    let found: Vec<(&str, LayerId)> = snapshots
        .iter()
        .map(|row| (row.name.as_str(), row.layer))
        .collect();
    assert_eq!(found, [("t", lowest), ("u", upper)]);
    assert_eq!(ids(fixture.database.layers_of_nobody()), [child]);
    fixture.database.forget_layer(child).expect("forgotten");
    assert_eq!(ids(fixture.database.layers_of_nobody()), []);
    assert_eq!(ids(fixture.database.due_merges()), []);
    // Once more, from what is on it now; and what a superblock says for itself puts an end to what was before.
    fixture.database.hide_snapshot(lowest).expect("hidden");
    fixture.database.begin_delete(clone.id).expect("begun");
    fixture
        .database
        .forget(clone.id, &[clone.layer])
        .expect("forgotten");
    assert!(fixture.database.hand_down(upper, lowest).expect("done"));
    let row = fixture.database.stack(top).expect("read").swap_remove(0);
    assert_eq!(
        (row.parent, row.former_parents),
        (Some(lowest), vec![upper])
    );
    fixture.database.set_parent(top, None).expect("set");
    let row = fixture.database.stack(top).expect("read").swap_remove(0);
    assert_eq!((row.parent, row.former_parents), (None, vec![]));
}

#[test]
fn nothing_goes_down_that_somebody_else_needs_or_that_is_not_the_same() {
    type Change = fn(&mut Fixture, &NewVolume, [LayerId; 4]);
    let changes: [(&str, Change); 9] = [
        ("the lower one has a name", |fixture, _, [lowest, ..]| {
            let sql = "UPDATE snapshots SET deleted = 0 WHERE layer = ?1";
            let id = lowest.to_string();
            fixture.database.connection.execute(sql, [id]).expect("set");
        }),
        ("another one stands on it", |fixture, _, [lowest, ..]| {
            fixture.volume("clone", Some(lowest));
        }),
        ("another data key", |fixture, _, [_, child, ..]| {
            let key = format!("data_key = '{}'", DataKeyId::random());
            change_layer(fixture, &key, child);
        }),
        ("another volume", |fixture, _, [_, child, ..]| {
            let volume = format!("volume = '{}'", VolumeId::random());
            change_layer(fixture, &volume, child);
        }),
        ("the child is not sealed", |fixture, _, [_, child, ..]| {
            change_layer(fixture, "sealed = 0", child);
        }),
        ("the layer is not sealed", |fixture, _, [lowest, ..]| {
            change_layer(fixture, "sealed = 0", lowest);
        }),
        ("a device", |fixture, _, [_, child, ..]| {
            change_layer(fixture, "backing = 'device'", child);
        }),
        ("the child is a top", |fixture, new, [_, child, ..]| {
            let sql = "UPDATE volumes SET top = ?2 WHERE id = ?1";
            let both = params![new.id.to_string(), child.to_string()];
            fixture.database.connection.execute(sql, both).expect("set");
        }),
        ("a job has to do with it", |fixture, new, [_, child, ..]| {
            let sql = "INSERT INTO jobs (volume, name, work, state, caller, created)
                       VALUES (?1, 'v', ?2, 'running', 0, '2026-02-03T04:05:06Z')";
            let both = params![new.id.to_string(), format!("copies {child}")];
            fixture.database.connection.execute(sql, both).expect("set");
        }),
    ];
    for (what, change) in changes {
        let mut fixture = Fixture::new();
        let (new, layers) = three_snapshots(&mut fixture);
        change(&mut fixture, &new, layers);
        let before = (fixture.stack_of("v"), fixture.database.snapshots(new.id));
        let found = fixture.database.child_to_go_down(layers[0]);
        assert_eq!(found.expect("read"), None, "{what}");
        let done = fixture.database.hand_down(layers[1], layers[0]);
        assert!(!done.expect("asked"), "{what}");
        assert_eq!(fixture.stack_of("v"), before.0, "{what}");
        let snapshots = fixture.database.snapshots(new.id).expect("read");
        assert_eq!(snapshots, before.1.expect("read"), "{what}");
    }
    let mut fixture = Fixture::new();
    let (_, layers) = three_snapshots(&mut fixture);
    let other = fixture.database.hand_down(layers[2], layers[0]);
    assert!(!other.expect("asked"), "it is not the child");
    let other = fixture.database.hand_down(LayerId::random(), layers[0]);
    assert!(!other.expect("asked"), "there is none");
}

fn change_layer(fixture: &mut Fixture, what: &str, layer: LayerId) {
    let sql = format!("UPDATE layers SET {what} WHERE id = ?1");
    let id = layer.to_string();
    fixture
        .database
        .connection
        .execute(&sql, [id])
        .expect("set");
}
