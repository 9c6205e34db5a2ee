//! Backups, made by the real key child and restored by the real program: what comes back, into which files, and what is refused;
//! and by OpenSSL and Python, without either.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use sealvol_control::keychild::{
    Call, CallResult, Descriptors, Done, FailureClass, KeyFailure, MasterKey, MasterKeyForm,
    Origin, Principal, Right,
};
use sealvol_control::pem;
use sealvol_crypto::VolumeKey;

use crate::place::{Place, child, context, generate, memory, program, set_mode, unwrap};
use crate::recovery::{
    Case, Pair, back_up, content, empty_file, failed, openssl, pair, restore, run, said, succeeded,
    without_counters,
};
use crate::secrecy::{contains, forms};

const USAGE: i32 = 2;
const REFUSED: i32 = 3;
const CONFLICT: i32 = 5;

fn refusal(result: CallResult) -> KeyFailure {
    result.expect_err("the call is refused")
}

fn mode(path: &Path) -> u32 {
    path.metadata().expect("there").mode() & 0o7777
}

fn files_in(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).expect("a directory").flatten();
    let mut names: Vec<_> = names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn what_was_wrapped_before_opens_with_what_is_restored() {
    let place = Place::with_default_key().await;
    let blob = place.generate("default", &context("1")).await.blob;
    let before = place
        .unwrap(unwrap("default", &blob, &context("1")))
        .await
        .expect("unwrapped");
    let case = Case::of(place, None).await;
    // The disk of the host is gone.
    fs::remove_dir_all(case.place.database().parent().expect("a directory")).expect("gone");

    let told = case.restored();
    for word in [
        &case.made.database,
        &case.made.sha256,
        &case.made.recovery_key,
    ] {
        assert!(told.contains(word), "{word}: {told}");
    }
    assert_eq!(
        (mode(&case.database()), mode(&case.master_key())),
        (0o600, 0o600)
    );
    let directory = case.database().parent().expect("a directory").to_owned();
    assert_eq!(mode(&directory), 0o700);
    assert_eq!(files_in(&directory), ["local.db", "local.master"]);
    let path = case.master_key();
    let after = case.afterwards(MasterKey::File { path });
    let again = after
        .unwrap(unwrap("default", &blob, &context("1")))
        .await
        .expect("unwrapped");
    assert_eq!(before.commitment(), again.commitment());
    // It is the same table: whoever relied on it goes on.
    let answer = after.answer(Right::Attach, vec![Call::ListKeys]).await;
    let table = answer.table.expect("a table");
    assert_eq!(
        (table.database, table.version),
        (case.made.database, case.made.changes)
    );
}

#[tokio::test]
async fn nothing_that_is_there_is_written_over() {
    let case = Case::with_default_key().await;
    case.restored();
    let before = [case.database(), case.master_key()].map(|path| fs::read(path).expect("there"));
    case.is_refused(CONFLICT, &["local.db", "is there already"]);
    let after = [case.database(), case.master_key()].map(|path| fs::read(path).expect("there"));
    assert!(before == after);

    fs::remove_file(case.database()).expect("removed");
    fs::write(case.master_key(), [1; 32]).expect("another key");
    case.is_refused(CONFLICT, &["local.master", "another key in it"]);
    assert_eq!(fs::read(case.master_key()).expect("there"), [1; 32]);
    assert!(!case.database().exists());
    fs::write(case.master_key(), [1; 31]).expect("no key");
    case.is_refused(REFUSED, &["31 bytes"]);
    fs::remove_file(case.master_key()).expect("removed");

    // SQLite would take such a file for the journal of what is put beside it.
    for ending in ["-journal", "-wal"] {
        let left = PathBuf::from(format!("{}{ending}", case.database().display()));
        fs::write(&left, "of another database").expect("written");
        case.is_refused(CONFLICT, &[ending, "former database"]);
        fs::remove_file(left).expect("removed");
    }
    assert!(files_in(case.database().parent().expect("a directory")).is_empty());
    case.restored();
}

#[tokio::test]
async fn a_restore_that_was_cut_short_is_done_again() {
    let case = Case::with_default_key().await;
    case.restored();
    // Cut short between the two files, and in the middle of either.
    fs::remove_file(case.database()).expect("removed");
    for path in [case.database(), case.master_key()] {
        fs::write(format!("{}.new", path.display()), "half").expect("written");
    }
    let told = case.restored();
    assert!(told.contains("there already, the same"), "{told}");
    assert!(case.database().exists());

    for path in [case.database(), case.master_key()] {
        fs::remove_file(path).expect("removed");
    }
    let told = case.restored();
    assert!(told.contains("local.master: restored"), "{told}");
    let directory = case.database().parent().expect("a directory").to_owned();
    assert_eq!(files_in(&directory), ["local.db", "local.master"]);

    // Two at once do not take turns with each other's files.
    fs::remove_file(case.database()).expect("removed");
    let held = File::open(&directory).expect("opened");
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).expect("locked");
    case.is_refused(CONFLICT, &["another restore"]);
    drop(held);
    case.restored();
}

#[tokio::test]
async fn a_restore_that_is_killed_at_any_time_is_done_again() {
    let case = Case::with_default_key().await;
    let expected = without_counters(&case.place.database());
    let (mut before, mut after) = (0, 0);
    for milliseconds in 0..60 {
        let mut running = Command::new(program())
            .args(case.words())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it runs");
        let mut input = running.stdin.take().expect("piped");
        input.write_all(pair().private.as_bytes()).expect("taken");
        drop(input);
        thread::sleep(Duration::from_millis(milliseconds));
        let _ = running.kill();
        running.wait().expect("its end");
        if case.database().exists() {
            after += 1;
        } else {
            before += 1;
            case.restored();
        }
        assert!(without_counters(&case.database()) == expected);
        assert_eq!(fs::read(case.master_key()).expect("there").len(), 32);
        for path in [case.database(), case.master_key()] {
            fs::remove_file(path).expect("removed");
        }
    }
    println!("killed before the end: {before}, too late: {after}");
    assert!(before > 0);
}

#[tokio::test]
async fn a_check_opens_everything_and_writes_nothing() {
    let case = Case::with_default_key().await;
    let check = |key: &str, input: &str| {
        let mut words = ["restore", "--check", "--recovery-key", key, "--backup"]
            .map(str::to_owned)
            .to_vec();
        words.push(case.backup.display().to_string());
        restore(&words, input.as_bytes())
    };
    let told = succeeded(&check("-", &pair().private));
    assert!(
        told.contains("1 keys with 1 versions") && told.contains("Nothing was written"),
        "{told}"
    );
    assert!(files_in(case.target.path()).is_empty());

    // A file with a key is believed only if nobody else could have read it.
    let key = case.place.directory.path().join("recovery.pem");
    fs::write(&key, &pair().private).expect("written");
    let named = key.display().to_string();
    set_mode(&key, 0o640);
    failed(&check(&named, ""), REFUSED, &["UnsafePlace", "0640"]);
    set_mode(&key, 0o400);
    succeeded(&check(&named, ""));

    let encrypted = openssl(
        &["pkey", "-aes256", "-passout", "pass:horse"],
        pair().private.as_bytes(),
    );
    let encrypted = String::from_utf8(encrypted).expect("PEM");
    failed(&check("-", &encrypted), REFUSED, &["openssl pkey -in"]);
    failed(&check("-", &pair().public), REFUSED, &["private RSA key"]);
    let stranger = Pair::new();
    failed(
        &check("-", &stranger.private),
        REFUSED,
        &["recovery key", &case.made.recovery_key],
    );
    let backup = fs::read(&case.backup).expect("there");
    for (content, words) in [
        (&backup[..backup.len() - 1], "was changed"),
        (&backup[..600], "cut off"),
        (&b"PK"[..], "not a backup"),
    ] {
        fs::write(&case.backup, content).expect("written");
        failed(&check("-", &pair().private), REFUSED, &[words]);
    }
    let no_file = [
        "restore",
        "--check",
        "--recovery-key",
        "-",
        "--backup",
        "/nonexistent",
    ];
    failed(
        &restore(&no_file.map(str::to_owned), b""),
        1,
        &["/nonexistent"],
    );
    let usage = restore(&["restore".to_owned()], b"");
    assert_eq!(usage.status.code(), Some(USAGE));
    assert!(said(&usage).contains("--backup <FILE>"), "{}", said(&usage));
}

#[tokio::test]
async fn the_backup_of_a_passphrase_opens_with_it_or_without_it() {
    let mut place = Place::empty();
    place.master_key = MasterKey::Passphrase;
    let path = place.directory.path().join("passphrase");
    fs::write(&path, "correct horse\n").expect("written");
    let passphrase = File::open(&path).expect("opened");
    let call = async |place: &Place, right, call| {
        let batch = place.batch(right, vec![call]);
        let answer = child()
            .call_with_passphrase(&batch, passphrase.as_fd())
            .await;
        answer.expect("the child replies")
    };
    let create = Call::CreateKey {
        name: "default".to_owned(),
        origin: Origin::Local,
    };
    call(&place, Right::Administer, create).await.results[0]
        .as_ref()
        .expect("created");
    let mut made = call(&place, Right::Create, generate("default", &context("1"))).await;
    let Ok(Done::Generate(wrapped)) = made.results.remove(0) else {
        panic!("no key was generated");
    };
    let case = Case::of(place, Some(&passphrase)).await;
    assert_eq!(case.made.master_key, MasterKeyForm::Passphrase);
    let read = unwrap("default", &wrapped.blob, &context("1"));

    // As before, by the passphrase: no master key is written anywhere.
    let mut words = case.words();
    words.truncate(words.len() - 2);
    let told = succeeded(&restore(&words, pair().private.as_bytes()));
    assert!(told.contains("same passphrase"), "{told}");
    assert!(!case.master_key().exists());
    let after = case.afterwards(MasterKey::Passphrase);
    let mut answer = call(&after, Right::Attach, read.clone()).await;
    answer.results.remove(0).expect("unwrapped");
    let before = VolumeKey::read_from(&memory(), &mut answer.keys).expect("a key");

    // For whoever has lost it: the master key becomes a file.
    fs::remove_file(case.database()).expect("removed");
    case.restored();
    let path = case.master_key();
    let after = case.afterwards(MasterKey::File { path });
    let key = after.unwrap(read).await.expect("unwrapped");
    assert_eq!(key.commitment(), before.commitment());
    // That is a change of the table, and counted as one.
    let answer = after.answer(Right::Attach, vec![Call::ListKeys]).await;
    assert_eq!(
        answer.table.expect("a table").version,
        case.made.changes + 1
    );
}

#[tokio::test]
async fn a_backup_of_a_credential_needs_a_place_for_the_master_key() {
    let mut place = Place::empty();
    let directory = place.directory.path().to_owned();
    fs::write(directory.join("master"), [7; 32]).expect("written");
    place.master_key = MasterKey::Credential {
        directory,
        name: "master".to_owned(),
    };
    place.create_key("default").await.expect("created");
    let case = Case::of(place, None).await;
    let mut words = case.words();
    words.truncate(words.len() - 2);
    let output = restore(&words, pair().private.as_bytes());
    failed(&output, USAGE, &["--master-key PATH"]);
    assert!(!case.database().exists());
    case.restored();
    assert_eq!(fs::read(case.master_key()).expect("there"), [7; 32]);
}

#[tokio::test]
async fn only_whoever_may_administer_has_a_backup_made_and_only_of_this_kind_of_service() {
    let place = Place::with_default_key().await;
    let recovery_key = pair().public_der();
    for right in [Right::Attach, Right::Create] {
        let recovery_key = recovery_key.clone();
        let refused = place.refusal(right, Call::Backup { recovery_key }).await;
        assert_eq!(
            refused,
            (
                FailureClass::NotPermitted,
                "AccessDeniedException".to_owned()
            )
        );
    }
    // A policy is about the use of a key.
    let policy = r#"{"version":1,"statements":[{"uids":[1],"actions":["administer"]}]}"#;
    let set = Call::SetPolicy {
        key: "default".to_owned(),
        policy: Some(policy.to_owned()),
        bypass_lockout_check: true,
    };
    place.call(Right::Administer, set).await.expect("set");
    let mut batch = place.batch(
        Right::Administer,
        vec![Call::Backup {
            recovery_key: recovery_key.clone(),
        }],
    );
    batch.principal = Principal::Uid(2);
    let sink = empty_file();
    let descriptors = Descriptors {
        passphrase: None,
        sink: Some(sink.as_fd()),
    };
    let answer = child()
        .call_with(&batch, descriptors)
        .await
        .expect("replies");
    answer.results[0].as_ref().expect("made");

    // What it is written to has to come, and to take it.
    let call = Call::Backup {
        recovery_key: recovery_key.clone(),
    };
    let failure = refusal(place.call(Right::Administer, call).await);
    assert!(failure.message.contains("did not come"), "{failure}");
    let full = File::options()
        .write(true)
        .open("/dev/full")
        .expect("opened");
    let failure = refusal(back_up(&place, &full, None, &recovery_key).await);
    assert!(failure.message.contains("cannot be written"), "{failure}");
    let mut sink = empty_file();
    let failure = refusal(back_up(&place, &sink, None, b"no key").await);
    assert_eq!(failure.class, FailureClass::CallerBug);
    assert!(failure.message.contains("recovery key"), "{failure}");
    assert!(content(&mut sink).is_empty());
}

#[tokio::test]
async fn no_secret_is_in_a_backup_or_in_what_is_said_of_it() {
    let place = Place::with_default_key().await;
    let blob = place.generate("default", &context("1")).await.blob;
    let mut answer = place
        .answer(Right::Attach, vec![unwrap("default", &blob, &context("1"))])
        .await;
    let mut volume_key = [0; 64];
    answer.keys.read_exact(&mut volume_key).expect("a key");
    let case = Case::of(place, None).await;
    let told = case.restore();
    let refused = case.restore();
    let backup = fs::read(&case.backup).expect("there");
    let master = fs::read(case.place.master_key_file()).expect("there");
    let private = pem::decode(pair().private.as_bytes(), "PRIVATE KEY").expect("a key");
    let made = format!("{:?}", case.made).into_bytes();
    let texts = [&backup, &made, &told.stdout, &told.stderr, &refused.stderr];
    for secret in [&master[..], &volume_key[..32], &private[600..632]] {
        for form in forms(secret) {
            for text in texts {
                assert!(!contains(text, &form), "a secret is where it must not be");
            }
        }
    }
    // Neither names nor sealed material can be read without the recovery key; what is said of itself can.
    let sealed = fs::read(case.place.database()).expect("there");
    assert!(contains(&sealed, b"default") && !contains(&backup, b"default"));
    assert!(contains(&sealed, b"SQLite format 3") && !contains(&backup, b"SQLite format 3"));
    let id = uuid::Uuid::parse_str(&case.made.database).expect("an id");
    assert!(
        contains(&backup, id.as_bytes()),
        "the search finds what is there"
    );
}

#[tokio::test]
async fn other_implementations_open_a_backup() {
    let case = Case::with_default_key().await;
    let directory = case.place.directory.path();
    let key = directory.join("recovery.pem");
    fs::write(&key, &pair().private).expect("written");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/open_backup.py");
    let python = |option: &str, key: &Path, name: &str| {
        let [database, master] =
            ["db", "master"].map(|end| directory.join(format!("{name}.{end}")));
        let mut command = Command::new("python3");
        command
            .arg("-B")
            .arg(&script)
            .arg("--backup")
            .arg(&case.backup);
        command
            .arg(option)
            .arg(key)
            .arg("--database")
            .arg(&database);
        let output = run(command.arg("--master-key").arg(&master), b"");
        assert!(output.status.success(), "{}", said(&output));
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(told["database"], case.made.database);
        assert_eq!(told["changes"], case.made.changes);
        assert_eq!(told["recovery_key"], case.made.recovery_key);
        let theirs = fs::read(master).expect("there");
        assert!(theirs == fs::read(case.place.master_key_file()).expect("there"));
        assert!(without_counters(&database) == without_counters(&case.place.database()));
    };
    python("--recovery-key", &key, "by-recovery-key");

    // The recovery key is elsewhere, and the encrypted key of the backup is brought to it.
    let backup = fs::read(&case.backup).expect("there");
    let length = usize::from(u16::from_be_bytes([backup[6], backup[7]]));
    let encrypted = &backup[72..72 + length];
    let words = [
        "pkeyutl",
        "-decrypt",
        "-inkey",
        key.to_str().expect("UTF-8"),
    ];
    let options = [
        "-pkeyopt",
        "rsa_padding_mode:oaep",
        "-pkeyopt",
        "rsa_oaep_md:sha256",
        "-pkeyopt",
        "rsa_mgf1_md:sha256",
    ];
    let backup_key = openssl(&[&words[..], &options].concat(), encrypted);
    let file = directory.join("backup.key");
    fs::write(&file, &backup_key).expect("written");
    python("--backup-key", &file, "by-backup-key");
    let mut words = case.words();
    words[1] = "--backup-key".to_owned();
    failed(&restore(&words, &backup_key[..31]), REFUSED, &["32 bytes"]);
    failed(
        &restore(&words, &[1; 32]),
        REFUSED,
        &["opened by another key"],
    );
    assert!(!case.database().exists());
    succeeded(&restore(&words, &backup_key));
}

#[test]
fn a_backup_is_of_one_moment_whatever_is_changed_meanwhile() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().expect("a runtime")
    };
    let place = runtime().block_on(Place::with_default_key());
    let create = async || {
        for number in 0..12 {
            let created = place.create_key(&format!("key-{number}")).await;
            created.expect("created");
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| runtime().block_on(create()));
        let backup = place.directory.path().join("keys.backup");
        let words = ["restore", "--check", "--recovery-key", "-", "--backup"];
        let mut words = words.map(str::to_owned).to_vec();
        words.push(backup.display().to_string());
        for _ in 0..6 {
            let mut sink = empty_file();
            let recovery_key = pair().public_der();
            let made = back_up(&place, &sink, None, &recovery_key);
            runtime().block_on(made).expect("made");
            fs::write(&backup, content(&mut sink)).expect("written");
            let told = succeeded(&restore(&words, pair().private.as_bytes()));
            assert!(!told.contains("damaged"), "{told}");
        }
    });
}
