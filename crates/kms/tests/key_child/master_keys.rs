//! A master key from shares, and one that another key service protects: each of them, by a real token, TPM or server.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sealvol_control::keychild::{
    Call, CallResult, FailureClass, KeyFailure, MasterKey, Origin, Right, Service, WrappedMasterKey,
};
use serde_json::Value;

use crate::aws::Aws;
use crate::bao::{self, Bao};
use crate::hsm::Hsm;
use crate::place::{Place, context, generate, program, set_mode, unwrap};
use crate::recovery::Case;
use crate::subject::{Subject, call, class};
use crate::tpm::Tpm;
use crate::vault::Vault;

/// The master key of `place`, wrapped by the key `default` of another service.
fn wrapped_by(outer: &impl Subject, place: &Place, from: Option<PathBuf>) -> MasterKey {
    let provider = outer.provider();
    MasterKey::Wrapped(WrappedMasterKey {
        by: format!("{}:default", provider.name).parse().expect("a key"),
        file: file(place),
        from,
        service: Some(Box::new(provider)),
    })
}

fn file(place: &Place) -> PathBuf {
    place.directory.path().join("local/master.wrapped")
}

/// A provider with the key `default`, whose master key the other service's `default` wraps.
async fn guarded(outer: &impl Subject) -> Place {
    let mut place = Place::empty();
    place.master_key = wrapped_by(outer, &place, None);
    place.create_key("default").await.expect("created");
    place
}

/// Whether what `blob` holds comes out.
async fn opens(place: &Place, blob: &[u8]) -> Result<(), KeyFailure> {
    let call = unwrap("default", blob, &context("1"));
    place.unwrap(call).await.map(drop)
}

/// The same, again as long as the failure may pass, as the daemon does: SoftHSM has some where several begin at once.
async fn opens_in_time(place: &Place, blob: &[u8]) -> Result<(), KeyFailure> {
    for _ in 0..50 {
        match opens(place, blob).await {
            Err(failure) if failure.may_pass() => {}
            done => return done,
        }
    }
    opens(place, blob).await
}

async fn refused(place: &Place) -> KeyFailure {
    let result = place.call(Right::Attach, Call::ListKeys).await;
    let failure = result.expect_err("refused");
    assert!(!failure.next_step.is_empty(), "{failure:?}");
    failure
}

#[track_caller]
fn is(failure: &KeyFailure, class: FailureClass, name: &str, words: &[&str]) {
    let found = (failure.class, failure.provider_error.as_str());
    assert_eq!(found, (class, name), "{failure}");
    for word in words {
        assert!(failure.to_string().contains(word), "{word}: {failure}");
    }
}

fn unavailable(failure: &KeyFailure, words: &[&str]) {
    let class = FailureClass::KeyUnusable;
    is(failure, class, "MasterKeyUnavailable", words);
    assert!(!failure.is_revocation() && !failure.may_pass(), "{failure}");
}

/// Of each kind of service: what it wraps seals a database, and what it refuses is refused in its words.
async fn a_database_stands_and_falls_with_the_key_that_wraps_its_master_key(outer: &impl Subject) {
    let place = guarded(outer).await;
    let blob = place.generate("default", &context("1")).await.blob;
    opens(&place, &blob).await.expect("opened");
    assert!(!place.master_key_file().exists(), "it is in no file");

    outer.disable("default");
    let theirs = call(outer, Right::Create, generate("default", &context("1"))).await;
    let ours = refused(&place).await;
    assert_eq!(ours.class, class(theirs), "{ours}");
    assert!(ours.is_revocation(), "{ours}");
    let by = format!("wrapped by {}:default", outer.provider().name);
    assert!(ours.message.contains(&by), "{ours}");
    outer.enable("default");
    opens(&place, &blob).await.expect("opened again");

    // Nobody makes a master key anew for a database that is there.
    let away = place.directory.path().join("away");
    fs::rename(file(&place), &away).expect("moved");
    unavailable(&refused(&place).await, &["master.wrapped"]);
    let create = Call::CreateKey {
        name: "second".to_owned(),
        origin: Origin::Local,
    };
    let failure = place.call(Right::Administer, create).await;
    unavailable(&failure.expect_err("refused"), &["master.wrapped"]);
    assert!(!file(&place).exists());
    fs::rename(&away, file(&place)).expect("moved back");
    opens(&place, &blob).await.expect("opened again");

    outer.destroy("default");
    let theirs = call(outer, Right::Create, generate("default", &context("1"))).await;
    let ours = refused(&place).await;
    assert_eq!(ours.class, class(theirs), "{ours}");
}

macro_rules! every_service {
    ($($name:ident: $subject:expr),* $(,)?) => {
        $(mod $name {
            use super::*;
            #[tokio::test]
            async fn a_database_stands_and_falls_with_the_key_that_wraps_its_master_key() {
                super::a_database_stands_and_falls_with_the_key_that_wraps_its_master_key(&$subject).await;
            }
        })*
    };
}

every_service!(
    aws: Aws::start(),
    azure: Vault::start(),
    pkcs11: Hsm::start().await,
    pkcs11_without_gcm: Hsm::without_gcm().await,
    tpm2: Tpm::start().await,
    transit: Bao::start(),
);

#[tokio::test]
async fn a_service_that_is_away_is_an_outage_and_no_revocation() {
    let mut tpm = Tpm::start().await;
    let place = guarded(&tpm).await;
    tpm.chip.switch_off();
    let failure = refused(&place).await;
    assert_eq!(failure.class, FailureClass::Transient, "{failure}");
    assert!(
        failure.may_pass() && !failure.is_revocation(),
        "{failure:?}"
    );
    tpm.chip.switch_on();
    place
        .call(Right::Attach, Call::ListKeys)
        .await
        .expect("it is back");

    let bao = Bao::start();
    let mut place = guarded(&bao).await;
    // Nobody listens there; the resolver has nothing to do.
    let away = bao::provider(bao.service_at(9));
    if let MasterKey::Wrapped(wrapped) = &mut place.master_key {
        wrapped.service = Some(Box::new(away));
    }
    let failure = refused(&place).await;
    assert_eq!(failure.class, FailureClass::Transient, "{failure}");
    assert!(failure.message.contains("bao:default"), "{failure}");
}

#[tokio::test]
async fn a_wrong_pin_is_told_by_its_name() {
    let hsm = Hsm::start().await;
    let place = guarded(&hsm).await;
    hsm.token.put_pin("0000-s3cr3t");
    let failure = refused(&place).await;
    assert_eq!(failure.provider_error, "CKR_PIN_INCORRECT", "{failure}");
    assert!(!format!("{failure:?}").contains("s3cr3t"));
    hsm.token.put_pin(hsm.token.pin());
    place
        .call(Right::Attach, Call::ListKeys)
        .await
        .expect("nothing else was wrong");
}

/// The file as JSON, with one field changed.
fn change(place: &Place, field: &str, value: impl Into<Value>) {
    let path = file(place);
    let mut json: Value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("JSON");
    assert!(json.get(field).is_some(), "{field}");
    json[field] = value.into();
    fs::write(&path, json.to_string()).expect("written");
}

#[tokio::test]
async fn what_was_changed_in_the_file_of_a_wrapped_master_key_opens_nothing() {
    let tpm = Tpm::start().await;
    let (place, other) = (guarded(&tpm).await, guarded(&tpm).await);
    let whole = fs::read(file(&place)).expect("read");
    let of_other: Value =
        serde_json::from_slice(&fs::read(file(&other)).expect("read")).expect("JSON");
    let ours: Value = serde_json::from_slice(&whole).expect("JSON");
    let flipped = |field: &str| {
        let text = ours[field].as_str().expect("text");
        let last = text.trim_end_matches('=').len() - 4;
        let changed = if &text[last..=last] == "A" { "B" } else { "A" };
        format!("{}{changed}{}", &text[..last], &text[last + 1..])
    };
    let tampered = |failure: KeyFailure| {
        let class = FailureClass::WrongKeyOrTamper;
        is(&failure, class, "WrongMasterKey", &["backup"]);
        assert!(!failure.is_revocation(), "it says nothing of a key");
    };
    for (field, value) in [
        ("id", of_other["id"].clone()),
        ("data-key", of_other["data-key"].clone()),
        ("sealed", of_other["sealed"].clone()),
        ("data-key", flipped("data-key").into()),
        ("sealed", flipped("sealed").into()),
        ("key", "other".into()),
    ] {
        change(&place, field, value.clone());
        tampered(refused(&place).await);
        fs::write(file(&place), &whole).expect("written");
    }
    // Whole, but of another database.
    fs::copy(file(&other), file(&place)).expect("copied");
    let failure = refused(&place).await;
    let class = FailureClass::WrongKeyOrTamper;
    is(&failure, class, "WrongMasterKey", &["not the master key"]);
    for (field, value) in [
        ("format", Value::from(2)),
        ("data-key", "*".into()),
        ("sealed", 7.into()),
    ] {
        fs::write(file(&place), &whole).expect("written");
        change(&place, field, value);
        unavailable(&refused(&place).await, &["damaged", "backup"]);
    }
    for text in ["", "{}", "\u{fffd}"] {
        fs::write(file(&place), text).expect("written");
        unavailable(&refused(&place).await, &["damaged"]);
    }
    fs::write(file(&place), &whole).expect("written");
    set_mode(&file(&place), 0o640);
    let failure = refused(&place).await;
    is(&failure, FailureClass::NotPermitted, "UnsafePlace", &[]);
    set_mode(&file(&place), 0o600);
    place
        .call(Right::Attach, Call::ListKeys)
        .await
        .expect("nothing else was wrong");
}

#[tokio::test]
async fn a_database_that_has_its_master_key_in_a_file_goes_over_to_another_service_with_all_its_keys()
 {
    let hsm = Hsm::start().await;
    let mut place = Place::with_default_key().await;
    let blob = place.generate("default", &context("1")).await.blob;
    let plain = place.master_key_file();
    let right = fs::read(&plain).expect("read");

    // Another key than the database's is not wrapped, but refused.
    place.master_key = wrapped_by(&hsm, &place, Some(plain.clone()));
    fs::write(&plain, [1; 32]).expect("written");
    let failure = refused(&place).await;
    let class = FailureClass::WrongKeyOrTamper;
    is(&failure, class, "WrongMasterKey", &["not the master key"]);
    assert!(!file(&place).exists());
    fs::write(&plain, &right).expect("written");

    // Several at once, as at the start of a daemon: one of them wraps it, and all go on.
    let batch = || opens_in_time(&place, &blob);
    let (one, two, three, four) = tokio::join!(batch(), batch(), batch(), batch());
    for each in [one, two, three, four] {
        each.expect("opened");
    }
    let first = fs::read(file(&place)).expect("wrapped");
    fs::remove_file(&plain).expect("removed");
    opens(&place, &blob).await.expect("by the token alone");
    assert_eq!(fs::read(file(&place)).expect("read"), first);
    let left = fs::read_dir(file(&place).parent().expect("a directory"));
    assert_eq!(left.expect("listed").count(), 2, "database and wrapped key");
    assert!(!first.windows(32).any(|part| part == right));

    // And the way back, without this program.
    let key = opened_elsewhere(&hsm, &place);
    assert_eq!(key, right);
}

/// By the token's module and Python, after `LOCAL.md`.
fn opened_elsewhere(hsm: &Hsm, place: &Place) -> Vec<u8> {
    let script = |arguments: &[&Path]| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/open_master_key.py");
        let mut python = Command::new("python3");
        let done = python.arg("-B").arg(script).args(arguments).output();
        let done = done.expect("python3 is installed");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{said}");
        done.stdout
    };
    let wrapped = file(place);
    let what: Value =
        serde_json::from_slice(&script(&[Path::new("what"), &wrapped])).expect("JSON");
    let context = what["context"].to_string();
    let blob = format!("{}.data-key", wrapped.display());
    let opened = hsm.operate(&["open", "default", &blob, "--context", &context]);
    assert_eq!(opened.stdout.len(), 64);
    let data_key = place.directory.path().join("data-key");
    fs::write(&data_key, opened.stdout).expect("written");
    script(&[Path::new("open"), &wrapped, &data_key])
}

#[tokio::test]
async fn after_a_crash_between_the_two_files_the_wrapped_master_key_is_taken_for_the_new_database()
{
    let tpm = Tpm::start().await;
    let place = guarded(&tpm).await;
    let wrapped = fs::read(file(&place)).expect("read");
    fs::remove_file(place.database()).expect("removed");
    place.create_key("default").await.expect("created");
    assert_eq!(fs::read(file(&place)).expect("read"), wrapped);
}

#[tokio::test]
async fn the_batch_of_a_local_service_asks_no_local_one_for_its_master_key() {
    let inner = Place::with_default_key().await;
    let mut place = Place::empty();
    place.master_key = wrapped_by(&inner, &place, None);
    let failure = place.create_key("default").await.expect_err("refused");
    assert_eq!(failure.class, FailureClass::CallerBug, "{failure}");
    // And none at all, where the daemon gave none.
    if let MasterKey::Wrapped(wrapped) = &mut place.master_key {
        wrapped.service = None;
    }
    let failure = place.create_key("default").await.expect_err("refused");
    assert_eq!(failure.class, FailureClass::CallerBug, "{failure}");
}

/// A place whose master key is in three shares, of which two are needed.
async fn shared() -> Place {
    let mut place = Place::with_default_key().await;
    let key = place.master_key_file();
    split(&place, &["--master-key", key.to_str().expect("UTF-8")], "s");
    fs::remove_file(key).expect("removed");
    place.master_key = shares(&place, &["s1", "s2", "s3"]);
    place
}

fn shares(place: &Place, names: &[&str]) -> MasterKey {
    let paths = names.iter().map(|name| share(place, name));
    let paths: Vec<PathBuf> = paths.collect();
    MasterKey::Shares(paths.try_into().expect("shares"))
}

/// Each in a directory of its own, as a stick is mounted.
fn share(place: &Place, name: &str) -> PathBuf {
    place.directory.path().join(name).join("share")
}

fn split(place: &Place, from: &[&str], name: &str) {
    let mut command = Command::new(program());
    command.arg("split").args(from).args(["--threshold", "2"]);
    for number in 1..=3 {
        let path = share(place, &format!("{name}{number}"));
        fs::create_dir(path.parent().expect("a directory")).expect("made");
        command.arg("--to").arg(path);
    }
    let done = command.output().expect("it starts");
    assert!(done.status.success(), "{done:?}");
}

async fn listed(place: &Place) -> CallResult {
    place.call(Right::Attach, Call::ListKeys).await
}

#[tokio::test]
async fn as_many_shares_as_are_needed_open_the_database_and_one_less_does_not() {
    let place = shared().await;
    let blob = place.generate("default", &context("1")).await.blob;
    let pull_out = |name: &str| {
        let directory = place.directory.path();
        fs::rename(directory.join(name), directory.join("out")).expect("moved");
    };
    let put_back = |name: &str| {
        let directory = place.directory.path();
        fs::rename(directory.join("out"), directory.join(name)).expect("moved");
    };
    for name in ["s1", "s2", "s3"] {
        pull_out(name);
        opens(&place, &blob).await.expect("two are left");
        put_back(name);
    }
    pull_out("s1");
    // Mounted, and empty.
    let held = fs::read(share(&place, "s3")).expect("read");
    fs::remove_file(share(&place, "s3")).expect("removed");
    let failure = refused(&place).await;
    let words = ["1 share", "2 are needed", "s1", "s3", "plug in or mount"];
    unavailable(&failure, &words);
    assert!(!failure.message.contains("s2"), "{failure}");
    put_back("s1");
    opens(&place, &blob).await.expect("two are there again");
    for name in ["s1", "s2"] {
        fs::remove_file(share(&place, name)).expect("removed");
    }
    let words = ["no share of it is at hand", "s1", "s2", "s3"];
    unavailable(&refused(&place).await, &words);
    fs::write(share(&place, "s3"), held).expect("written");
    set_mode(&share(&place, "s3"), 0o600);
    unavailable(&refused(&place).await, &["1 share"]);
}

#[tokio::test]
async fn a_share_that_does_not_belong_there_is_refused_by_name() {
    let mut place = shared().await;
    split(&place, &["--generate"], "t");
    place.master_key = shares(&place, &["s1", "t1", "s2"]);
    unavailable(&refused(&place).await, &["t1/share", "another set", "s1"]);
    // A whole set of another key: the database knows.
    place.master_key = shares(&place, &["t1", "t2"]);
    let failure = refused(&place).await;
    let class = FailureClass::WrongKeyOrTamper;
    is(&failure, class, "WrongMasterKey", &["not the master key"]);
    // The same key, split again: both sets give it.
    let from = share(&place, "s2");
    let two = share(&place, "s3");
    let from = [&from, &two].map(|path| path.to_str().expect("UTF-8"));
    split(
        &place,
        &["--from-share", from[0], "--from-share", from[1]],
        "r",
    );
    for names in [["r1", "r3"], ["s1", "s3"]] {
        place.master_key = shares(&place, &names);
        listed(&place).await.expect("opened");
    }
    place.master_key = shares(&place, &["s1", "s2"]);
    fs::copy(share(&place, "s1"), share(&place, "s2")).expect("copied");
    unavailable(&refused(&place).await, &["s2/share", "same number", "s1"]);
    let mut damaged = fs::read(share(&place, "s2")).expect("read");
    damaged[70] ^= 1;
    fs::write(share(&place, "s2"), damaged).expect("written");
    unavailable(&refused(&place).await, &["s2/share", "checksum"]);
    fs::copy(share(&place, "s3"), share(&place, "s2")).expect("copied");
    listed(&place).await.expect("opened");
    for mode in [0o640, 0o604] {
        set_mode(&share(&place, "s2"), mode);
        let failure = refused(&place).await;
        is(&failure, FailureClass::NotPermitted, "UnsafePlace", &["s2"]);
    }
    set_mode(&share(&place, "s2"), 0o400);
    set_mode(share(&place, "s2").parent().expect("a directory"), 0o777);
    let failure = refused(&place).await;
    is(&failure, FailureClass::NotPermitted, "UnsafePlace", &["s2"]);
}

#[tokio::test]
async fn a_new_database_is_made_with_a_key_that_only_its_shares_have() {
    let mut place = Place::empty();
    split(&place, &["--generate"], "s");
    place.master_key = shares(&place, &["s1", "s2", "s3"]);
    place.create_key("default").await.expect("created");
    let blob = place.generate("default", &context("1")).await.blob;
    place.master_key = shares(&place, &["s3", "s2"]);
    opens(&place, &blob).await.expect("opened");

    // A database that a passphrase seals is none of theirs, and says so.
    place.master_key = MasterKey::Passphrase;
    let failure = refused(&place).await;
    is(&failure, FailureClass::CallerBug, "MasterKeyKind", &[]);
    let Service::Local(service) = place.provider().service else {
        panic!("another kind")
    };
    assert_eq!(service.master_key, MasterKey::Passphrase);
}

#[tokio::test]
async fn a_backup_has_the_master_key_wherever_it_came_from() {
    let tpm = Tpm::start().await;
    for place in [shared().await, guarded(&tpm).await] {
        let blob = place.generate("default", &context("1")).await.blob;
        let case = Case::of(place, None).await;
        case.restored();
        let path = case.master_key();
        let after = case.afterwards(MasterKey::File { path });
        opens(&after, &blob).await.expect("by the file alone");
    }
}
