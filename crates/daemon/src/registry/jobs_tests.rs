//! What the registry promises of jobs: one for a volume, begun and ended with what they are about.

use sealvol_control::api::Rekeyed;
use sealvol_crypto::UnitSize;

use super::*;
use crate::jobs::{LayerCopy, Rekey};
use crate::registry::{Backing, NewTop, NewVolume, RowState, WrappedBy};

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

    fn reopened(self) -> Self {
        let Self { folder, database } = self;
        drop(database);
        let database = Database::open(&folder.path().join("registry.db")).expect("opened again");
        Self { folder, database }
    }

    fn volume(&mut self, name: &str) -> NewVolume {
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
            parent: None,
            data_key: DataKeyId::random(),
            ephemeral: false,
        };
        self.database.begin_create(&new).expect("registered");
        let keys = [(new.data_key, by())];
        self.database.finish_create(new.id, &keys).expect("made");
        new
    }

    /// Puts a top under a new data key on a volume, with a job; what was put.
    fn rekey(&mut self, volume: &NewVolume, sealed: LayerId) -> NewTop {
        let top = top(volume, sealed);
        let tops = std::slice::from_ref(&top);
        self.database.put_tops(tops).expect("put");
        top
    }

    /// A volume that is re-keyed.
    fn with_job(&mut self, name: &str) -> NewVolume {
        let volume = self.volume(name);
        self.rekey(&volume, volume.layer);
        volume
    }

    fn key_of(&mut self, volume: &NewVolume) -> String {
        let row = self.database.volume(&volume.name).expect("read");
        row.expect("registered").key.to_string()
    }
}

fn by() -> WrappedBy {
    WrappedBy {
        provider: "local".into(),
        key_id: "0d7c".into(),
        key_version: 1,
    }
}

fn top(volume: &NewVolume, sealed: LayerId) -> NewTop {
    let layer = LayerRow {
        id: LayerId::random(),
        volume: volume.id,
        parent: Some(sealed),
        size: volume.size,
        backing: Backing::State,
        data_key: DataKeyId::random(),
        sealed: false,
        commitment: None,
        generation: 0,
        bound: false,
        boot: None,
        former_parents: Vec::new(),
    };
    let job = NewJob {
        volume: volume.id,
        name: volume.name.clone(),
        work: Work::Rekey(Rekey {
            rate: Some(5 << 20),
            ..Rekey::default()
        }),
        total: 0,
        by: 1000,
        created: "2026-02-03T04:05:06Z".into(),
    };
    NewTop {
        layer,
        sealed,
        snapshot: None,
        data_key: Some(by()),
        key: Some(("local:other".parse().expect("a key"), volume.key.clone())),
        job: Some(job),
    }
}

fn end(state: JobState) -> JobEnd {
    let result = JobResult::Rekey(Rekeyed {
        data_key: "k".into(),
        old_data_keys: Vec::new(),
        layers_removed: 1,
        old_keys_open: Vec::new(),
    });
    JobEnd {
        state,
        reason: None,
        result: (state == JobState::Done).then_some(result),
        at: "2026-02-03T04:05:07Z".into(),
    }
}

#[test]
fn a_clone_is_there_with_the_job_that_copies_or_not_at_all() {
    let mut fixture = Fixture::new();
    let source = fixture.volume("v");
    let clone = NewVolume {
        id: VolumeId::random(),
        name: "c".parse().expect("a name"),
        layer: LayerId::random(),
        parent: Some(source.layer),
        data_key: DataKeyId::random(),
        ..source.clone()
    };
    fixture.database.begin_create(&clone).expect("registered");
    let keys = [(clone.data_key, by()), (source.data_key, by())];
    let job = top(&clone, source.layer).job.expect("a job");
    // What can't begin: a volume that has one already.
    let taken = NewJob {
        volume: fixture.with_job("w").id,
        ..job.clone()
    };
    let refused = fixture
        .database
        .finish_clone(clone.id, &keys, Some(&taken), &[]);
    refused.expect_err("a second job of a volume");
    let mut fixture = fixture.reopened();
    let row = fixture.database.volume(&clone.name).expect("read");
    assert_eq!(row.expect("registered").state, RowState::Creating);
    let found = fixture.database.data_keys(clone.id).expect("read");
    assert!(found.is_empty(), "nothing of that step stays");
    let begun = fixture
        .database
        .finish_clone(clone.id, &keys, Some(&job), &[]);
    begun.expect("made");
    let mut fixture = fixture.reopened();
    let row = fixture.database.volume(&clone.name).expect("read");
    assert_eq!(row.expect("registered").state, RowState::Available);
    let found = fixture.database.job_of(clone.id).expect("read");
    assert_eq!(found.map(|job| job.name), Some(clone.name));
}

#[test]
fn a_job_begins_with_its_top_and_goes_with_it() {
    let mut fixture = Fixture::new();
    let volume = fixture.volume("v");
    let put = fixture.rekey(&volume, volume.layer);
    assert_eq!(fixture.key_of(&volume), "local:other");
    let mut fixture = fixture.reopened();
    let job = fixture.database.job_of(volume.id).expect("read");
    let job = job.expect("it has begun");
    assert_eq!(
        (job.state, job.by, &job.name, job.work.rate_max()),
        (JobState::Running, 1000, &volume.name, Some(5 << 20))
    );
    assert_eq!(fixture.database.job(job.id).expect("read"), Some(job));
    let tops = [put];
    fixture.database.take_tops_back(&tops).expect("taken back");
    assert_eq!(fixture.key_of(&volume), "local:default");
    assert_eq!(fixture.database.jobs().expect("read"), []);
}

#[test]
fn a_layer_that_never_came_into_use_is_known_until_its_files_are_gone() {
    let mut fixture = Fixture::new();
    let volume = fixture.volume("v");
    let put = top(&volume, volume.layer);
    let known = |fixture: &mut Fixture| fixture.database.new_layers().expect("read");
    let layers = [put.layer.clone()];
    fixture.database.begin_layers(&layers).expect("begun");
    let mut fixture = fixture.reopened();
    assert_eq!(known(&mut fixture), [(put.layer.id, Backing::State)]);
    let tops = [put];
    fixture.database.put_tops(&tops).expect("put");
    assert_eq!(known(&mut fixture), [], "it is in use");
    fixture.database.take_tops_back(&tops).expect("taken back");
    assert_eq!(known(&mut fixture).len(), 1, "its files are to go");
    let gone = [tops[0].layer.id];
    fixture.database.forget_new_layers(&gone).expect("gone");
    assert_eq!(known(&mut fixture), []);
}

#[test]
fn a_volume_has_one_job_that_has_not_ended() {
    let mut fixture = Fixture::new();
    let (volume, other) = (fixture.volume("v"), fixture.volume("w"));
    let put = fixture.rekey(&volume, volume.layer);
    fixture.rekey(&other, other.layer);
    let second = top(&volume, put.layer.id);
    let refused = fixture.database.put_tops(std::slice::from_ref(&second));
    assert!(matches!(
        refused,
        Err(super::super::RegistryError::Sqlite(_))
    ));
    let stack = fixture.database.stack(put.layer.id).expect("read");
    assert_eq!(stack.len(), 2, "nothing of the refused one is there");
    let job = fixture.database.job_of(volume.id).expect("read");
    let job = job.expect("there is one").id;
    fixture
        .database
        .set_job(job, JobState::Waiting, Some("why"), 7, 9)
        .expect("set");
    let waiting = fixture.database.job(job).expect("read").expect("there");
    assert_eq!(
        (
            waiting.state,
            waiting.reason.as_deref(),
            waiting.done,
            waiting.total
        ),
        (JobState::Waiting, Some("why"), 7, 9)
    );
    let cancelled = end(JobState::Cancelled);
    fixture.database.end_job(job, &cancelled).expect("ended");
    assert_eq!(fixture.database.job_of(volume.id).expect("read"), None);
    fixture.database.put_tops(&[second]).expect("another one");
    let jobs = fixture.database.jobs().expect("read");
    assert_eq!(jobs.len(), 3);
    assert!(jobs[2].id > jobs[1].id);
}

#[test]
fn what_nobody_stands_on_after_a_cut_over_is_the_jobs_to_destroy() {
    let mut fixture = Fixture::new();
    let volume = fixture.volume("v");
    // A snapshot on the first layer, another top, and then the re-key.
    let mut plain = top(&volume, volume.layer);
    plain.job = None;
    plain.key = None;
    plain.layer.data_key = volume.data_key;
    plain.data_key = None;
    let snapshot = ("s".parse().expect("a name"), "v@s".into(), "now".into());
    plain.snapshot = Some(snapshot);
    fixture
        .database
        .put_tops(std::slice::from_ref(&plain))
        .expect("put");
    let put = fixture.rekey(&volume, plain.layer.id);

    let orphans = fixture.database.record_cut_over(volume.id).expect("done");
    let ids: Vec<LayerId> = orphans.iter().map(|layer| layer.id).collect();
    assert_eq!(ids, [plain.layer.id], "the snapshot keeps its layer");
    // Told twice, it is the same.
    let again = fixture.database.record_cut_over(volume.id).expect("done");
    assert!(again.is_empty());
    let mut fixture = fixture.reopened();
    let job = fixture.database.job_of(volume.id).expect("read");
    let job = job.expect("not ended");
    let Work::Rekey(work) = &job.work else {
        panic!("another kind: {job:?}")
    };
    assert!(work.cut_over);
    assert_eq!(work.layers_to_destroy().expect("ids"), ids);
    assert_eq!(work.old_key_ids().expect("ids"), [volume.data_key]);
    let stack = fixture.database.stack(put.layer.id).expect("read");
    assert_eq!((stack.len(), stack[0].parent), (1, None));

    let needed = fixture.database.keys_needed(volume.id).expect("read");
    assert_eq!(needed, HashSet::from([volume.data_key, put.layer.data_key]));
    let opened = fixture.database.opened_by(&[volume.data_key]);
    let opened = opened.expect("read");
    assert_eq!(opened.len(), 1);
    assert_eq!(
        (&*opened[0].name, &opened[0].data_key),
        ("v@s", &volume.data_key.to_string())
    );

    let done = end(JobState::Done);
    fixture
        .database
        .finish_rekey(volume.id, &ids, &needed, (job.id, &done))
        .expect("finished");
    assert!(fixture.database.layers(&ids).expect("read").is_empty());
    let keys = fixture.database.data_keys(volume.id).expect("read");
    assert_eq!(keys.len(), 2, "the snapshot's key stays");
    let job = fixture.database.job(job.id).expect("read").expect("kept");
    assert_eq!((job.state, job.result), (JobState::Done, done.result));
}

#[test]
fn keys_that_nobody_needs_are_forgotten_with_their_layers() {
    let mut fixture = Fixture::new();
    let volume = fixture.volume("v");
    let put = fixture.rekey(&volume, volume.layer);
    fixture.database.record_cut_over(volume.id).expect("done");
    let job = fixture.database.job_of(volume.id).expect("read");
    let job = job.expect("not ended").id;
    let needed = fixture.database.keys_needed(volume.id).expect("read");
    let gone = [volume.layer];
    let done = end(JobState::Done);
    fixture
        .database
        .finish_rekey(volume.id, &gone, &needed, (job, &done))
        .expect("finished");
    let keys = fixture.database.data_keys(volume.id).expect("read");
    assert_eq!(keys.keys().collect::<Vec<_>>(), [&put.layer.data_key]);
    let opened = fixture.database.opened_by(&[volume.data_key]);
    assert!(opened.expect("read").is_empty());
}

#[test]
fn of_the_jobs_that_have_ended_the_newest_are_kept() {
    let mut fixture = Fixture::new();
    let volume = fixture.volume("v");
    fixture.rekey(&volume, volume.layer);
    let first = fixture.database.job_of(volume.id).expect("read");
    let first = first.expect("there").id;
    let cancelled = end(JobState::Cancelled);
    fixture.database.end_job(first, &cancelled).expect("ended");
    fixture
        .database
        .connection
        .execute("UPDATE sqlite_sequence SET seq = ?1", [ENDED_KEPT])
        .expect("later");
    let other = fixture.volume("w");
    fixture.rekey(&other, other.layer);
    let second = fixture.database.job_of(other.id).expect("read");
    let second = second.expect("there").id;
    fixture.database.end_job(second, &cancelled).expect("ended");
    assert_eq!(fixture.database.job(first).expect("read"), None);
    assert!(fixture.database.job(second).expect("read").is_some());
}

#[test]
fn a_registry_of_version_4_has_no_jobs_and_takes_them() {
    let fixture = Fixture::new();
    fixture
        .database
        .connection
        .execute_batch(
            "DROP TABLE jobs; DROP TABLE new_layers; DROP TABLE enforcements;
             DROP TABLE key_tables; DROP TABLE key_set_members; DROP TABLE key_sets; DROP TABLE wraps; DROP TABLE tombstones;
             ALTER TABLE layers DROP COLUMN former_parents;
             ALTER TABLE volumes DROP COLUMN ephemeral;
             PRAGMA user_version = 4",
        )
        .expect("as version 4 left it");
    let mut fixture = fixture.reopened();
    assert_eq!(fixture.database.jobs().expect("read"), []);
    let volume = fixture.volume("v");
    fixture.rekey(&volume, volume.layer);
    assert_eq!(fixture.database.jobs().expect("read").len(), 1);
}

#[test]
fn snapshots_go_over_to_copies_in_one_step_and_what_they_leave_is_the_jobs() {
    let mut fixture = Fixture::new();
    let v = fixture.volume("v");
    let mut cut = top(&v, v.layer);
    let name: sealvol_control::api::SnapshotName = "s".parse().expect("a name");
    cut.snapshot = Some((name.clone(), "v@s".into(), v.created.clone()));
    let database = &mut fixture.database;
    database.put_tops(&[cut.clone()]).expect("put");
    assert_eq!(database.record_cut_over(v.id).expect("recorded"), []);
    let job = database.job_of(v.id).expect("read").expect("begun").id;
    let copy = LayerRow {
        id: LayerId::random(),
        parent: None,
        ..cut.layer.clone()
    };
    let copies = [copy.clone()];
    database.begin_layers(&copies).expect("begun");
    let pair = vec![LayerCopy::new(v.layer, copy.id)];
    database.begin_copies(job, &copies, pair).expect("begun");
    assert_eq!(database.new_layers().expect("read"), []);
    assert_eq!(database.layers_of_nobody().expect("read"), []);

    database
        .switch_family(v.id, job, &[(v.layer, copy.id)])
        .expect("switched");
    let snapshot = database.snapshot(v.id, &name).expect("read");
    assert_eq!(snapshot.expect("there").layer, copy.id);
    let Work::Rekey(rekey) = database.job(job).expect("read").expect("there").work else {
        panic!("another kind")
    };
    assert_eq!((rekey.switched, rekey.copies), (true, None));
    assert_eq!(rekey.to_destroy, [v.layer.to_string()]);
    assert!(rekey.old_keys.contains(&v.data_key.to_string()));
    assert_eq!(database.layers_of_nobody().expect("read"), []);
    assert_eq!(database.opened_by(&[v.data_key]).expect("read"), []);
}
