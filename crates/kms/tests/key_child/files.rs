//! Database and master key: what is made, what is believed, and what is refused before any use.

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::time::Duration;

use sealvol_control::keychild::{
    Call, Done, FailureClass, KeyChild, KeyChildError, KeyFailure, MasterKey, Origin, Right,
};

use crate::place::{Place, child, context, generate, program, set_mode, unwrap};

fn refused(class: FailureClass, name: &str) -> (FailureClass, String) {
    (class, name.to_owned())
}

fn unsafe_place() -> (FailureClass, String) {
    refused(FailureClass::NotPermitted, "UnsafePlace")
}

#[tokio::test]
async fn files_are_made_on_the_first_create_key_and_closed_to_others() {
    let place = Place::empty();
    let missing = refused(FailureClass::KeyUnusable, "NoDirectory");
    assert_eq!(place.refusal(Right::Attach, Call::ListKeys).await, missing);
    let missing = refused(FailureClass::KeyUnusable, "NoDatabase");
    fs::create_dir(place.database().parent().unwrap()).unwrap();
    set_mode(place.database().parent().unwrap(), 0o700);
    assert_eq!(
        place
            .refusal(Right::Create, generate("default", &context("1")))
            .await,
        missing
    );
    assert_eq!(
        place.refusal(Right::Administer, Call::ListKeys).await,
        missing
    );
    assert!(!place.database().exists() && !place.master_key_file().exists());

    place.create_key("default").await.unwrap();
    for file in [place.database(), place.master_key_file()] {
        assert_eq!(
            file.metadata().unwrap().mode() & 0o7777,
            0o600,
            "{}",
            file.display()
        );
    }
    assert_eq!(place.master_key_file().metadata().unwrap().len(), 32);
    let left: Vec<_> = fs::read_dir(place.database().parent().unwrap())
        .unwrap()
        .collect();
    assert_eq!(left.len(), 2, "nothing else is left behind: {left:?}");
}

#[tokio::test]
async fn nothing_is_made_where_the_configuration_does_not_allow_it() {
    let place = Place::empty();
    let mut batch = place.batch(
        Right::Administer,
        vec![Call::CreateKey {
            name: "default".to_owned(),
            origin: Origin::Local,
        }],
    );
    let sealvol_control::keychild::Service::Local(service) = &mut batch.provider.service else {
        unreachable!("a place has a local provider");
    };
    service.create = false;
    let failure = child()
        .call(&batch)
        .await
        .unwrap()
        .results
        .remove(0)
        .unwrap_err();
    assert!(
        !place.database().exists() && !place.master_key_file().exists(),
        "{failure}"
    );
}

#[tokio::test]
async fn a_wrong_master_key_is_recognised_before_anything_else() {
    let place = Place::with_default_key().await;
    let ctx = context("1");
    let blob = place.generate("default", &ctx).await.blob;
    let right = fs::read(place.master_key_file()).unwrap();
    let mut wrong = right.clone();
    wrong[31] ^= 1;
    fs::write(place.master_key_file(), wrong).unwrap();
    let wrong = refused(FailureClass::WrongKeyOrTamper, "WrongMasterKey");
    for (rights, call) in [
        (Right::Attach, unwrap("default", &blob, &ctx)),
        (Right::Create, generate("default", &ctx)),
        (
            Right::Administer,
            Call::CreateKey {
                name: "new".to_owned(),
                origin: Origin::Local,
            },
        ),
        (
            Right::Attach,
            Call::Describe {
                key: "nothing".to_owned(),
            },
        ),
    ] {
        assert_eq!(place.refusal(rights, call.clone()).await, wrong, "{call:?}");
    }
    fs::write(place.master_key_file(), right).unwrap();
    place
        .unwrap(unwrap("default", &blob, &ctx))
        .await
        .expect("the right one works again");
}

#[tokio::test]
async fn a_lost_master_key_is_not_made_anew() {
    let place = Place::with_default_key().await;
    fs::remove_file(place.master_key_file()).unwrap();
    let unavailable = refused(FailureClass::KeyUnusable, "MasterKeyUnavailable");
    let create = Call::CreateKey {
        name: "new".to_owned(),
        origin: Origin::Local,
    };
    assert_eq!(place.refusal(Right::Administer, create).await, unavailable);
    assert!(!place.master_key_file().exists());
}

#[tokio::test]
async fn a_master_key_without_its_database_is_taken_for_a_new_one() {
    // As after a crash between the two; a stray file of an interrupted attempt is no obstacle.
    let place = Place::empty();
    fs::create_dir(place.database().parent().unwrap()).unwrap();
    set_mode(place.database().parent().unwrap(), 0o700);
    fs::write(place.master_key_file(), [7; 32]).unwrap();
    set_mode(&place.master_key_file(), 0o400);
    fs::write(place.master_key_file().with_extension("key.new"), [1; 5]).unwrap();
    fs::write(place.database(), "").unwrap();
    set_mode(&place.database(), 0o600);
    place.create_key("default").await.unwrap();
    assert_eq!(fs::read(place.master_key_file()).unwrap(), [7; 32]);
}

#[tokio::test]
async fn files_and_directories_open_to_others_are_refused() {
    let place = Place::with_default_key().await;
    let directory = place.database().parent().unwrap().to_owned();
    let list = || place.refusal(Right::Attach, Call::ListKeys);
    for file in [place.master_key_file(), place.database()] {
        for mode in [0o640, 0o604, 0o620, 0o602, 0o610] {
            set_mode(&file, mode);
            assert_eq!(list().await, unsafe_place(), "{} {mode:o}", file.display());
        }
        set_mode(&file, 0o600);
    }
    for mode in [0o720, 0o702, 0o1777] {
        set_mode(&directory, mode);
        assert_eq!(list().await, unsafe_place(), "directory {mode:o}");
    }
    set_mode(&directory, 0o700);
    place
        .call(Right::Attach, Call::ListKeys)
        .await
        .expect("nothing else was wrong");
}

#[tokio::test]
async fn the_master_key_is_a_regular_file_of_exactly_32_bytes() {
    let place = Place::with_default_key().await;
    let (file, list) = (place.master_key_file(), || {
        place.refusal(Right::Attach, Call::ListKeys)
    });
    let key = fs::read(&file).unwrap();
    let unavailable = refused(FailureClass::KeyUnusable, "MasterKeyUnavailable");
    for length in [0, 31, 33, 64] {
        fs::write(&file, vec![1; length]).unwrap();
        assert_eq!(list().await, unavailable, "{length} bytes");
    }
    let elsewhere = place.directory.path().join("elsewhere.key");
    fs::write(&elsewhere, key).unwrap();
    set_mode(&elsewhere, 0o600);
    fs::remove_file(&file).unwrap();
    symlink(&elsewhere, &file).unwrap();
    assert_eq!(list().await, unavailable, "a symbolic link");
    fs::remove_file(&file).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &file,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    assert_eq!(
        list().await,
        unsafe_place(),
        "a FIFO, on which nothing waits"
    );
}

#[tokio::test]
async fn the_path_through_a_link_to_the_directory_works() {
    // So it is with systemd's DynamicUser=: /var/lib/NAME is a link.
    let mut place = Place::with_default_key().await;
    let blob = place.generate("default", &context("1")).await.blob;
    let real = place.directory.path().join("private");
    fs::rename(place.database().parent().unwrap(), &real).unwrap();
    symlink(&real, place.database().parent().unwrap()).unwrap();
    place.master_key = MasterKey::File {
        path: place.master_key_file(),
    };
    place
        .unwrap(unwrap("default", &blob, &context("1")))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_credential_serves_as_master_key() {
    let mut place = Place::with_default_key().await;
    let blob = place.generate("default", &context("1")).await.blob;
    let directory = place.directory.path().join("credentials");
    fs::create_dir(&directory).unwrap();
    fs::rename(place.master_key_file(), directory.join("master")).unwrap();
    place.master_key = MasterKey::Credential {
        directory: directory.clone(),
        name: "master".to_owned(),
    };
    place
        .unwrap(unwrap("default", &blob, &context("1")))
        .await
        .unwrap();

    for name in [
        "../credentials/master",
        "..",
        "",
        "/etc/hostname",
        "sub/master",
    ] {
        let name = name.to_owned();
        place.master_key = MasterKey::Credential {
            directory: directory.clone(),
            name,
        };
        let refusal = place.refusal(Right::Attach, Call::ListKeys).await;
        assert_eq!(refusal.0, FailureClass::CallerBug, "{:?}", place.master_key);
    }
    place.master_key = MasterKey::Credential {
        directory,
        name: "other".to_owned(),
    };
    let unavailable = refused(FailureClass::KeyUnusable, "MasterKeyUnavailable");
    assert_eq!(
        place.refusal(Right::Attach, Call::ListKeys).await,
        unavailable
    );
}

async fn with_passphrase(
    place: &Place,
    right: Right,
    call: Call,
    passphrase: &impl AsFd,
) -> Result<Done, KeyFailure> {
    let batch = place.batch(right, vec![call]);
    let answer = child()
        .call_with_passphrase(&batch, passphrase.as_fd())
        .await
        .unwrap();
    answer.results.into_iter().next().unwrap()
}

fn file_with(text: &str) -> fs::File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[tokio::test]
async fn a_passphrase_serves_as_master_key_and_its_file_serves_many_children() {
    let mut place = Place::empty();
    place.master_key = MasterKey::Passphrase;
    let (right, wrong) = (file_with("correct horse\n"), file_with("incorrect horse\n"));
    let ctx = context("1");
    let create = Call::CreateKey {
        name: "default".to_owned(),
        origin: Origin::Local,
    };
    with_passphrase(&place, Right::Administer, create, &right)
        .await
        .unwrap();
    let Ok(Done::Generate(wrapped)) =
        with_passphrase(&place, Right::Create, generate("default", &ctx), &right).await
    else {
        panic!("generate")
    };
    let call = unwrap("default", &wrapped.blob, &ctx);
    with_passphrase(&place, Right::Attach, call.clone(), &right)
        .await
        .unwrap();

    let (read, write) = std::io::pipe().unwrap();
    (&write).write_all(b"correct horse").unwrap();
    drop(write);
    with_passphrase(&place, Right::Attach, call.clone(), &read)
        .await
        .unwrap();

    let failure = with_passphrase(&place, Right::Attach, call.clone(), &wrong)
        .await
        .unwrap_err();
    assert_eq!(failure.provider_error, "WrongMasterKey");
    assert!(!format!("{failure:?}").contains("horse"));
    let unavailable = refused(FailureClass::KeyUnusable, "MasterKeyUnavailable");
    assert_eq!(
        place.refusal(Right::Attach, call).await,
        unavailable,
        "none came along"
    );
    let failure = with_passphrase(&place, Right::Attach, Call::ListKeys, &file_with("\n"))
        .await
        .unwrap_err();
    assert_eq!(
        failure.provider_error, "MasterKeyUnavailable",
        "an empty one"
    );
}

#[tokio::test]
async fn another_kind_of_master_key_than_the_databases_is_refused() {
    let mut place = Place::with_default_key().await;
    place.master_key = MasterKey::Passphrase;
    let passphrase = file_with("correct horse");
    let failure = with_passphrase(&place, Right::Attach, Call::ListKeys, &passphrase)
        .await
        .unwrap_err();
    assert_eq!(failure.provider_error, "MasterKeyKind");
}

#[tokio::test]
async fn key_material_that_was_changed_or_moved_is_refused() {
    let place = Place::with_default_key().await;
    place.create_key("other").await.unwrap();
    let blob = place.generate("default", &context("1")).await.blob;
    let call = || unwrap("default", &blob, &context("1"));
    let changed = refused(FailureClass::WrongKeyOrTamper, "KeyMaterialChanged");
    let of = |name| format!("(SELECT id FROM keys WHERE name = '{name}')");
    let (mine, others) = (of("default"), of("other"));

    place.sql(&format!(
        "UPDATE versions SET sealed = (SELECT sealed FROM versions WHERE key_id = {others}) \
         WHERE key_id = {mine}"
    ));
    assert_eq!(
        place.refusal(Right::Attach, call()).await,
        changed,
        "another key's material"
    );
    place.sql(&format!(
        "UPDATE versions SET sealed = x'00' WHERE key_id = {mine}"
    ));
    assert_eq!(
        place
            .refusal(Right::Create, generate("default", &context("1")))
            .await,
        changed
    );
}

#[tokio::test]
async fn what_is_no_database_of_ours_or_a_newer_one_is_left_alone() {
    let place = Place::with_default_key().await;
    place.sql("UPDATE meta SET format = 99");
    let newer = refused(FailureClass::KeyUnusable, "NewerFormat");
    assert_eq!(place.refusal(Right::Attach, Call::ListKeys).await, newer);

    let foreign = refused(FailureClass::CallerBug, "ForeignDatabase");
    let create = || Call::CreateKey {
        name: "new".to_owned(),
        origin: Origin::Local,
    };
    for content in [
        &b"something else entirely, longer than a header of SQLite is".repeat(9)[..],
        &[0xff; 4096],
    ] {
        fs::write(place.database(), content).unwrap();
        assert_eq!(place.refusal(Right::Administer, create()).await, foreign);
        assert_eq!(fs::read(place.database()).unwrap(), content);
    }
    fs::remove_file(place.database()).unwrap();
    rusqlite::Connection::open(place.database())
        .unwrap()
        .execute_batch("CREATE TABLE registry (name TEXT)")
        .unwrap();
    set_mode(&place.database(), 0o600);
    assert_eq!(place.refusal(Right::Administer, create()).await, foreign);
}

#[tokio::test]
async fn a_damaged_database_is_refused_and_no_child_panics() {
    let place = Place::with_default_key().await;
    let sound = fs::read(place.database()).unwrap();
    for position in (0..sound.len()).step_by(193) {
        let mut damaged = sound.clone();
        damaged[position..(position + 40).min(sound.len())].fill(0xa5);
        fs::write(place.database(), damaged).unwrap();
        // A reply, whatever is in it: the damage may lie in unused space.
        let answer = place
            .answer(Right::Create, vec![generate("default", &context("1"))])
            .await;
        if let Err(failure) = &answer.results[0] {
            assert_ne!(
                failure.class,
                FailureClass::Transient,
                "at {position}: {failure}"
            );
        }
    }
}

#[tokio::test]
async fn two_children_that_make_the_same_key_at_once_make_one() {
    for _ in 0..20 {
        let place = Place::empty();
        let attempts = tokio::join!(
            place.create_key("default"),
            place.create_key("default"),
            place.create_key("default"),
            place.create_key("other"),
        );
        let made: Vec<_> = [attempts.0, attempts.1, attempts.2].into_iter().collect();
        assert_eq!(
            made.iter().filter(|result| result.is_ok()).count(),
            1,
            "{made:?}"
        );
        for failure in made.into_iter().filter_map(Result::err) {
            assert_eq!(
                failure.provider_error, "AlreadyExistsException",
                "{failure}"
            );
        }
        attempts.3.unwrap();
        let Ok(Done::ListKeys(keys)) = place.call(Right::Attach, Call::ListKeys).await else {
            panic!("the keys are listed")
        };
        assert_eq!(keys.len(), 2);
    }
}

#[tokio::test]
async fn a_child_killed_at_any_time_leaves_what_the_next_one_can_use() {
    let mut killed = 0;
    for quarter_milliseconds in 0..60 {
        let place = Place::empty();
        let create = Call::CreateKey {
            name: "default".to_owned(),
            origin: Origin::Local,
        };
        let child = KeyChild::new(program(), Duration::from_micros(250 * quarter_milliseconds));
        let answer = child
            .call(&place.batch(Right::Administer, vec![create]))
            .await;
        killed += u32::from(answer.is_err());
        let next = place.create_key("default").await;
        if let Err(failure) = next {
            assert_eq!(
                failure.provider_error, "AlreadyExistsException",
                "{failure}"
            );
        }
        let blob = place.generate("default", &context("1")).await.blob;
        place
            .unwrap(unwrap("default", &blob, &context("1")))
            .await
            .unwrap();
    }
    assert!(killed > 3, "only {killed} were killed");
}

#[tokio::test]
async fn a_child_stuck_at_a_locked_database_is_killed_at_its_deadline() {
    let place = Place::with_default_key().await;
    let connection = rusqlite::Connection::open(place.database()).unwrap();
    connection.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let child = KeyChild::new(program(), Duration::from_millis(300));
    let error = child
        .call(&place.batch(Right::Attach, vec![Call::ListKeys]))
        .await
        .unwrap_err();
    assert!(matches!(error, KeyChildError::TimedOut { .. }), "{error}");
    assert_eq!(error.class(), FailureClass::Transient);
}

#[tokio::test]
async fn a_database_that_stays_locked_is_a_transient_failure() {
    let place = Place::with_default_key().await;
    let connection = rusqlite::Connection::open(place.database()).unwrap();
    connection.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let busy = refused(FailureClass::Transient, "DependencyTimeoutException");
    assert_eq!(place.refusal(Right::Attach, Call::ListKeys).await, busy);
}
