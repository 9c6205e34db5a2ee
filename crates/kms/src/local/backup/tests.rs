//! A backup is opened whole or refused: every byte of it, its end, and the keys that it is opened by.

use std::fs;
use std::io::{Read as _, Seek as _};
use std::path::Path;
use std::sync::OnceLock;

use aws_lc_rs::encoding::Pkcs8V1Der;
use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};
use sealvol_control::keychild::{
    KeyChange, LocalService, MasterKey, Origin, Principal, Right, TableState,
};
use sealvol_crypto::locked::Policy;
use tempfile::TempDir;

use super::format::WRAPPED_AT;
use super::recovery_key::NotOpened;
use super::*;
use crate::local::Opening;

/// A recovery pair: private and public half, in DER.
struct Pair {
    private: Vec<u8>,
    public: Vec<u8>,
}

impl Pair {
    fn of(size: KeySize) -> Self {
        let key = PrivateDecryptingKey::generate(size).expect("a pair");
        let private: Pkcs8V1Der<'_> = key.as_der().expect("PKCS #8");
        let public: PublicKeyX509Der<'_> = key.public_key().as_der().expect("a public key");
        Self {
            private: private.as_ref().to_vec(),
            public: public.as_ref().to_vec(),
        }
    }
}

/// One for all tests of a process: making it takes a while.
fn pair() -> &'static Pair {
    static PAIR: OnceLock<Pair> = OnceLock::new();
    PAIR.get_or_init(|| Pair::of(KeySize::Rsa3072))
}

fn memory() -> Arc<KeyMemory> {
    KeyMemory::new(Policy::default()).expect("locked memory")
}

/// The provider in a directory, with what a backup is written to.
fn local(directory: &Path, sink: Option<File>, relied_on: Option<&TableState>) -> Local {
    let service = LocalService {
        database: directory.join("keys.db"),
        master_key: MasterKey::File {
            path: directory.join("master"),
        },
        create: true,
    };
    let opening = Opening {
        name: "local",
        service: &service,
        create: true,
        passphrase: None,
        data_keys: None,
        sink,
        relied_on,
        accept_table: false,
        principal: Principal::Daemon,
        right: Right::Administer,
        clock: Box::new(SystemClock),
    };
    Local::open(opening, &memory()).expect("opened")
}

async fn with_keys() -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let local = local(directory.path(), None, None);
    for name in ["first", "second"] {
        let created = local.create_key(name, Origin::Local).await;
        created.expect("created");
    }
    let rotated = local.change_key("first", &KeyChange::Rotate).await;
    rotated.expect("rotated");
    let pending = local.create_key("pending", Origin::External).await;
    pending.expect("created");
    directory
}

fn back_up(directory: &Path) -> (BackupMade, Vec<u8>) {
    let sink = tempfile::tempfile().expect("a file");
    let handle = sink.try_clone().expect("a second descriptor");
    let made = local(directory, Some(handle), None).back_up(&pair().public);
    (made.expect("made"), content(sink))
}

fn content(mut file: File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().expect("rewound");
    file.read_to_end(&mut bytes).expect("read");
    bytes
}

/// A database without what SQLite counts when it copies one: its changes, and those of its schema.
fn without_counters(image: &[u8]) -> Vec<u8> {
    let mut image = image.to_vec();
    for counter in [24..28, 40..44, 92..100] {
        image[counter].fill(0);
    }
    image
}

fn key_of(parts: &Parts<'_>) -> Result<KeyEncryptionKey, NotOpened> {
    let (wrapped, recovery_key) = (parts.wrapped, &parts.header.recovery_key);
    recovery_key::unwrap(&pair().private, wrapped, recovery_key, &memory())
}

fn opened(backup: &[u8]) -> Opened {
    let parts = Parts::of(backup).expect("a backup");
    let key = key_of(&parts).expect("its key");
    open(&parts, &key, &memory(), Path::new("backup")).unwrap_or_else(|error| panic!("{error}"))
}

/// Whether a backup that was changed gives nothing, be it at its form, its key or its sealed parts.
fn is_refused(changed: &[u8]) -> bool {
    let Ok(parts) = Parts::of(changed) else {
        return true;
    };
    match key_of(&parts) {
        Ok(key) => {
            let opened = open(&parts, &key, &memory(), Path::new("backup"));
            matches!(opened.map(drop), Err(OpenError::Bad(BadBackup::Changed)))
        }
        Err(NotOpened::Changed | NotOpened::OtherKey(_)) => true,
        Err(other) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_backup_has_the_database_and_the_master_key_as_they_were() {
    let directory = with_keys().await;
    let (made, backup) = back_up(directory.path());
    assert_eq!(
        (made.bytes, made.master_key),
        (backup.len() as u64, Form::Raw)
    );
    assert_eq!(made.sha256, hex(&sha256(&[&backup])));
    assert_eq!(made.recovery_key, hex(&sha256(&[&pair().public])));

    let mut opened = opened(&backup);
    assert_eq!((opened.keys, opened.versions), (3, 4));
    assert_eq!(opened.header.changes, made.changes);
    assert!(opened.damaged(&memory()).expect("looked at").is_empty());
    let mut master = Vec::new();
    opened.master.write_to(&mut master).expect("written");
    assert_eq!(master, fs::read(directory.path().join("master")).unwrap());
    let file = fs::read(directory.path().join("keys.db")).unwrap();
    let image = opened.image().unwrap();
    assert!(without_counters(&image) == without_counters(&file));
    opened.make_raw().expect("it is so already");
    assert!(opened.image().unwrap() == image);
    assert!(opened.is_master(&opened.master).unwrap());
    let other = KeyEncryptionKey::generate(&memory()).unwrap();
    assert!(!opened.is_master(&other).unwrap());
}

#[tokio::test]
async fn a_byte_that_was_changed_anywhere_is_refused() {
    let directory = with_keys().await;
    let (_, backup) = back_up(directory.path());
    let sealed_at = WRAPPED_AT + 384;
    let image_at = sealed_at + 105;
    // Each byte of what has fields; of the encrypted key and of the image some, and their ends.
    let ends = [
        WRAPPED_AT,
        sealed_at - 1,
        backup.len() - 17,
        backup.len() - 1,
    ];
    let places = (0..WRAPPED_AT)
        .chain((WRAPPED_AT..sealed_at).step_by(17))
        .chain(sealed_at..image_at + 57)
        .chain((image_at..backup.len()).step_by(997))
        .chain(ends);
    for at in places {
        let mut changed = backup.clone();
        changed[at] ^= 0x10;
        assert!(is_refused(&changed), "byte {at}");
    }
    assert!(!is_refused(&backup), "nothing else was wrong");
}

#[tokio::test]
async fn what_is_cut_off_or_goes_on_is_refused() {
    let directory = with_keys().await;
    let (_, backup) = back_up(directory.path());
    for length in [
        0,
        3,
        4,
        71,
        72,
        300,
        456,
        500,
        561,
        620,
        backup.len() / 2,
        backup.len() - 1,
    ] {
        assert!(is_refused(&backup[..length]), "{length} bytes");
    }
    for added in [&[0][..], &[0; 16], &backup] {
        assert!(is_refused(&[&backup, added].concat()));
    }
}

#[tokio::test]
async fn another_recovery_key_and_the_key_of_another_backup_open_nothing() {
    let directory = with_keys().await;
    let ((_, backup), (_, other)) = (back_up(directory.path()), back_up(directory.path()));
    assert!(backup != other, "each has a key of its own");
    let (parts, other) = (Parts::of(&backup).unwrap(), Parts::of(&other).unwrap());
    let key = key_of(&other).expect("its key");
    let opened = open(&parts, &key, &memory(), Path::new("backup"));
    assert!(matches!(
        opened.map(drop),
        Err(OpenError::Bad(BadBackup::Changed))
    ));
    // Parts of two backups make no third one.
    let sealed_at = WRAPPED_AT + 384;
    let mixed = [&backup[..sealed_at + 105], other.image].concat();
    assert!(is_refused(&mixed));

    let stranger = Pair::of(KeySize::Rsa3072);
    let refused = recovery_key::unwrap(
        &stranger.private,
        parts.wrapped,
        &parts.header.recovery_key,
        &memory(),
    );
    let found = sha256(&[&stranger.public]);
    assert!(matches!(refused, Err(NotOpened::OtherKey(other)) if other == found));
    let no_key = recovery_key::unwrap(b"x", parts.wrapped, &parts.header.recovery_key, &memory());
    assert!(matches!(no_key, Err(NotOpened::NoKey)));
}

#[test]
fn a_key_that_is_too_short_or_no_key_encrypts_nothing() {
    let short = Pair::of(KeySize::Rsa2048).public;
    let longer = [&pair().public[..], &[0]].concat();
    for der in [&short[..], &longer, &pair().private, b"", b"no key"] {
        let refused = RecoveryKey::from_der(der).map(drop);
        assert!(matches!(refused, Err(Refusal::BadRecoveryKey { .. })));
    }
    let sound = RecoveryKey::from_der(&pair().public).map(|key| *key.fingerprint());
    assert_eq!(sound.ok(), Some(sha256(&[&pair().public])));
}

#[tokio::test]
async fn a_table_that_is_not_the_one_that_was_proved_is_not_backed_up() {
    let directory = with_keys().await;
    let sink = tempfile::tempfile().expect("a file");
    let former = fs::read(directory.path().join("keys.db")).unwrap();
    let handle = sink.try_clone().expect("a second descriptor");
    let service = local(directory.path(), Some(handle), None);
    let changed = service.change_key("second", &KeyChange::Disable).await;
    changed.expect("disabled");
    // Somebody puts the former file in its place, and somebody writes into it.
    fs::write(directory.path().join("keys.db"), former).unwrap();
    let refused = service.back_up(&pair().public);
    assert!(matches!(refused, Err(Refusal::TableRolledBack { .. })));
    let connection = rusqlite::Connection::open(directory.path().join("keys.db")).unwrap();
    connection
        .execute("UPDATE keys SET state = 'disabled'", [])
        .unwrap();
    let refused = service.back_up(&pair().public);
    assert!(matches!(refused, Err(Refusal::TableChanged { .. })));
    assert!(content(sink).is_empty(), "nothing was written");
}

#[tokio::test]
async fn a_version_that_was_damaged_already_is_told() {
    let directory = with_keys().await;
    let connection = rusqlite::Connection::open(directory.path().join("keys.db")).unwrap();
    let sql = "UPDATE versions SET sealed = zeroblob(105) WHERE version = 2";
    assert_eq!(connection.execute(sql, []).unwrap(), 1);
    let (_, backup) = back_up(directory.path());
    let damaged = opened(&backup).damaged(&memory()).expect("looked at");
    assert_eq!(damaged, ["first version 2"]);
}
