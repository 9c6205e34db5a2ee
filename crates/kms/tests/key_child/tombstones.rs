//! Tombstones: what was shredded is refused by every call, under every key, and no other volume's; where one can't be put, nothing
//! has changed.

use std::fs;
use std::os::unix::fs::FileExt as _;

use sealvol_control::keychild::{
    Call, Context, FailureClass, KeyChange, Right, TableState, Tombstones,
};

use crate::place::{Place, change, context, generate, rewrap, tombstone, unwrap};

/// A context as the daemon makes them.
fn bound(volume: &str, data_key: &str) -> Context {
    let pairs = [
        ("sealvol:volume", volume),
        ("sealvol:data-key", data_key),
        ("sealvol:params", "the same of many"),
    ];
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

fn gone() -> (FailureClass, String) {
    (FailureClass::GoneForEver, "VolumeShredded".to_owned())
}

impl Place {
    async fn bury(&self, volumes: &[&str], data_keys: &[&str]) -> Option<TableState> {
        let put = vec![tombstone(volumes, data_keys)];
        let mut answer = self.answer(Right::Administer, put).await;
        answer.results.remove(0).expect("put");
        answer.table
    }

    async fn rewrapped(&self, blob: &[u8], from: &Context, to: &Context) -> Vec<u8> {
        let asked = rewrap(("default", blob, from), ("default", to));
        match self.call(Right::Create, asked).await {
            Ok(sealvol_control::keychild::Done::Rewrap(new)) => new.blob,
            other => panic!("rewrap: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_shredded_volume_is_refused_under_every_key_whatever_its_state() {
    let place = Place::with_default_key().await;
    let (v, other) = (bound("v", "1"), bound("w", "2"));
    let blob = place.generate("default", &v).await.blob;
    let second = place.generate("default", &bound("v", "3")).await.blob;
    let others = place.generate("default", &other).await.blob;
    place.bury(&["v"], &[]).await;
    // Also under a key that comes later, and under a later version of the same.
    place.create_key("later").await.expect("created");
    place.change("default", KeyChange::Rotate).await.unwrap();
    let check = Call::Check {
        key: "default".to_owned(),
        wrapped: blob.clone(),
        context: v.clone(),
    };
    for (right, call) in [
        (Right::Attach, unwrap("default", &blob, &v)),
        (Right::Attach, unwrap("default", &second, &bound("v", "3"))),
        (Right::Attach, check),
        (Right::Create, generate("default", &v)),
        (Right::Create, generate("later", &bound("v", "new"))),
        (
            Right::Create,
            rewrap(("default", &blob, &v), ("default", &other)),
        ),
        (
            Right::Administer,
            rewrap(("default", &others, &other), ("later", &v)),
        ),
    ] {
        assert_eq!(place.refusal(right, call.clone()).await, gone(), "{call:?}");
    }
    let failure = place
        .call(Right::Attach, unwrap("default", &blob, &v))
        .await;
    let failure = failure.expect_err("refused");
    assert!(
        failure.message.contains("volume v was shredded"),
        "{failure}"
    );
    // It goes before the key's state, which may change again.
    place.change("default", KeyChange::Disable).await.unwrap();
    assert_eq!(
        place
            .refusal(Right::Attach, unwrap("default", &blob, &v))
            .await,
        gone()
    );
    place.change("default", KeyChange::Enable).await.unwrap();
    place
        .unwrap(unwrap("default", &others, &other))
        .await
        .expect("another volume's");
}

#[tokio::test]
async fn a_shredded_data_key_is_refused_to_the_clones_that_have_copies_of_it() {
    let place = Place::with_default_key().await;
    let (source, clone) = (bound("v", "1"), bound("clone", "1"));
    let blob = place.generate("default", &source).await.blob;
    let copy = place.rewrapped(&blob, &source, &clone).await;
    let own = place.generate("default", &bound("clone", "2")).await.blob;
    place.bury(&["v"], &["1"]).await;
    for (blob, context) in [(&blob, &source), (&copy, &clone)] {
        let refusal = place
            .refusal(Right::Attach, unwrap("default", blob, context))
            .await;
        assert_eq!(refusal, gone());
    }
    place
        .unwrap(unwrap("default", &own, &bound("clone", "2")))
        .await
        .expect("the clone's own key");

    // The other way round: the clone goes, and its source keeps what they share.
    let place = Place::with_default_key().await;
    let blob = place.generate("default", &source).await.blob;
    let copy = place.rewrapped(&blob, &source, &clone).await;
    place.bury(&["clone"], &["2"]).await;
    let refusal = place
        .refusal(Right::Attach, unwrap("default", &copy, &clone))
        .await;
    assert_eq!(refusal, gone());
    place
        .unwrap(unwrap("default", &blob, &source))
        .await
        .expect("the source's");
}

#[tokio::test]
async fn what_stands_is_put_again_without_a_change() {
    let place = Place::with_default_key().await;
    let first = place.bury(&["v"], &["1"]).await;
    let before = fs::read(place.database()).unwrap();
    let again = place.bury(&["v"], &["1"]).await;
    assert_eq!(again, first);
    assert_eq!(fs::read(place.database()).unwrap(), before);
    // What is missing of it is put.
    let more = place.bury(&["v"], &["1", "2"]).await;
    assert_ne!(more, first);
    let refusal = place
        .refusal(Right::Create, generate("default", &bound("w", "2")))
        .await;
    assert_eq!(refusal, gone());
}

#[tokio::test]
async fn it_outlives_the_keys_and_whoever_may_not_use_one_does_not_learn_of_it() {
    let place = Place::with_default_key().await;
    let v = bound("v", "1");
    place.bury(&["v"], &[]).await;
    let policy = r#"{"version":1,"statements":[{"uids":[1],"actions":["create"]}]}"#;
    let set = Call::SetPolicy {
        key: "default".to_owned(),
        policy: Some(policy.to_owned()),
        bypass_lockout_check: true,
    };
    place.call(Right::Administer, set).await.expect("set");
    for (uid, told) in [(1, "VolumeShredded"), (2, "AccessDeniedException")] {
        let call = generate("default", &v);
        let refused = place.call_as(uid, Right::Create, call).await;
        assert_eq!(refused.expect_err("refused").provider_error, told);
    }
    // Nor does he need leave to use a key, whoever may administer: it is the database that is told.
    let put = tombstone(&["w"], &[]);
    let done = place.call_as(3, Right::Administer, put).await;
    done.expect("put");
    let schedule = KeyChange::ScheduleDeletion { days: 7 };
    let done = place.call(Right::Administer, change("default", schedule));
    done.await.expect("scheduled");
    place.create_key("later").await.expect("created");
    let refusal = place.refusal(Right::Create, generate("later", &v)).await;
    assert_eq!(refusal, gone());
}

#[tokio::test]
async fn what_names_nothing_is_refused() {
    let place = Place::with_default_key().await;
    let long = "x".repeat(65);
    let many = Call::Tombstone(Tombstones {
        volumes: (0..=Tombstones::IDS_MAX).map(|id| id.to_string()).collect(),
        data_keys: Vec::new(),
    });
    for call in [
        tombstone(&[""], &[]),
        tombstone(&["v"], &[&long]),
        tombstone(&["v", ""], &["1"]),
        many,
    ] {
        let (class, _) = place.refusal(Right::Administer, call).await;
        assert_eq!(class, FailureClass::CallerBug);
    }
    place.generate("default", &bound("v", "1")).await;
    let most = Call::Tombstone(Tombstones {
        volumes: (0..Tombstones::IDS_MAX)
            .map(|id| format!("{id:036}"))
            .collect(),
        data_keys: Vec::new(),
    });
    place.call(Right::Administer, most).await.expect("put");
    place.generate("default", &bound("v", "1")).await;
}

#[tokio::test]
async fn where_it_cannot_be_put_nothing_has_changed() {
    let place = Place::with_default_key().await;
    let v = context("1");
    let blob = place.generate("default", &v).await.blob;
    let put = || tombstone(&["1"], &["2"]);
    // A write version that SQLite does not know: it only reads such a file, whoever asks, root too.
    let file = fs::File::options()
        .write(true)
        .open(place.database())
        .unwrap();
    file.write_at(&[3], 18).unwrap();
    let before = fs::read(place.database()).unwrap();
    let refusal = place.refusal(Right::Administer, put()).await;
    assert_eq!(refusal.0, FailureClass::Transient, "{refusal:?}");
    assert_eq!(fs::read(place.database()).unwrap(), before);
    file.write_at(&[1], 18).unwrap();
    place
        .unwrap(unwrap("default", &blob, &v))
        .await
        .expect("as before");

    let elsewhere = place.database().with_extension("away");
    fs::rename(place.database(), &elsewhere).unwrap();
    let refusal = place.refusal(Right::Administer, put()).await;
    assert_eq!(refusal.1, "NoDatabase");
    assert!(!place.database().exists(), "and none is made");
    fs::rename(&elsewhere, place.database()).unwrap();
    place
        .unwrap(unwrap("default", &blob, &v))
        .await
        .expect("as before");
    // One that stands is found where nothing can be written, so that what was cut short can be ended.
    place.bury(&["1"], &["2"]).await;
    file.write_at(&[3], 18).unwrap();
    place.bury(&["1"], &["2"]).await;
}

#[tokio::test]
async fn a_table_from_a_backup_gets_them_again_in_the_step_that_accepts_it() {
    let place = Place::with_default_key().await;
    let v = context("1");
    let blob = place.generate("default", &v).await.blob;
    let old = fs::read(place.database()).unwrap();
    let newest = place.bury(&["1"], &[]).await.expect("a table");
    fs::write(place.database(), &old).unwrap();
    let accept = sealvol_control::keychild::Batch {
        relied_on: Some(newest.clone()),
        ..place.batch(
            Right::Administer,
            vec![Call::AcceptTable, tombstone(&["1"], &[])],
        )
    };
    let answer = crate::place::child().call(&accept).await.expect("a reply");
    assert!(
        answer.results.iter().all(Result::is_ok),
        "{:?}",
        answer.results
    );
    assert!(answer.table.expect("a table").version > newest.version);
    let refusal = place
        .refusal(Right::Attach, unwrap("default", &blob, &v))
        .await;
    assert_eq!(refusal, gone());
}
