//! A provider with a backup, the recovery pair that opens it, and the real program that restores it.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use sealvol_control::keychild::{
    BackupMade, Call, CallResult, Descriptors, Done, MasterKey, Right,
};
use sealvol_control::pem;
use tempfile::TempDir;

use crate::place::{Place, child, program, set_mode};

/// A recovery pair as an operator makes one, in PEM.
pub(crate) struct Pair {
    pub(crate) private: String,
    pub(crate) public: String,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let private = openssl(
            &[
                "genpkey",
                "-algorithm",
                "RSA",
                "-pkeyopt",
                "rsa_keygen_bits:3072",
            ],
            b"",
        );
        let public = openssl(&["pkey", "-pubout"], &private);
        let [private, public] = [private, public].map(|pem| String::from_utf8(pem).expect("PEM"));
        Self { private, public }
    }

    pub(crate) fn public_der(&self) -> Vec<u8> {
        pem::decode(self.public.as_bytes(), "PUBLIC KEY").expect("a public key")
    }
}

/// One for all tests of a process: making it takes a while.
pub(crate) fn pair() -> &'static Pair {
    static PAIR: OnceLock<Pair> = OnceLock::new();
    PAIR.get_or_init(Pair::new)
}

/// What OpenSSL makes of `input`.
pub(crate) fn openssl(words: &[&str], input: &[u8]) -> Vec<u8> {
    let output = run(Command::new("openssl").args(words), input);
    assert!(output.status.success(), "{}", said(&output));
    output.stdout
}

pub(crate) fn run(command: &mut Command, input: &[u8]) -> Output {
    let mut running = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    // It may end before it has read all.
    let _ = running.stdin.take().expect("piped").write_all(input);
    running.wait_with_output().expect("its end")
}

pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A provider that was backed up, and a directory that it is restored into.
pub(crate) struct Case {
    pub(crate) place: Place,
    pub(crate) backup: PathBuf,
    pub(crate) made: BackupMade,
    pub(crate) target: TempDir,
}

impl Case {
    pub(crate) async fn with_default_key() -> Self {
        Self::of(Place::with_default_key().await, None).await
    }

    pub(crate) async fn of(place: Place, passphrase: Option<&File>) -> Self {
        let backup = place.directory.path().join("keys.backup");
        let mut sink = empty_file();
        let made = back_up(&place, &sink, passphrase, &pair().public_der()).await;
        let made = match made {
            Ok(Done::Backup(made)) => made,
            other => panic!("backup: {other:?}"),
        };
        fs::write(&backup, content(&mut sink)).expect("written");
        let target = TempDir::new().expect("a temporary directory");
        Self {
            place,
            backup,
            made,
            target,
        }
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.target.path().join("keys/local.db")
    }

    pub(crate) fn master_key(&self) -> PathBuf {
        self.target.path().join("keys/local.master")
    }

    /// The words of a restore of everything, with the key by standard input.
    pub(crate) fn words(&self) -> Vec<String> {
        let path = |path: &Path| path.display().to_string();
        let mut words = ["restore", "--recovery-key", "-", "--backup"]
            .map(str::to_owned)
            .to_vec();
        words.extend([
            path(&self.backup),
            "--database".to_owned(),
            path(&self.database()),
            "--master-key".to_owned(),
            path(&self.master_key()),
        ]);
        words
    }

    pub(crate) fn restore(&self) -> Output {
        restore(&self.words(), pair().private.as_bytes())
    }

    #[track_caller]
    pub(crate) fn restored(&self) -> String {
        succeeded(&self.restore())
    }

    #[track_caller]
    pub(crate) fn is_refused(&self, code: i32, words: &[&str]) {
        failed(&self.restore(), code, words);
    }

    /// The provider as it is on the host that it was restored on.
    pub(crate) fn afterwards(&self, master_key: MasterKey) -> Place {
        let directory = TempDir::new().expect("a temporary directory");
        fs::create_dir(directory.path().join("local")).expect("made");
        set_mode(&directory.path().join("local"), 0o700);
        let place = Place {
            directory,
            master_key,
        };
        fs::copy(self.database(), place.database()).expect("copied");
        set_mode(&place.database(), 0o600);
        place
    }
}

pub(crate) fn restore(words: &[String], input: &[u8]) -> Output {
    run(Command::new(program()).args(words), input)
}

#[track_caller]
pub(crate) fn succeeded(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", said(output));
    String::from_utf8(output.stdout.clone()).expect("text")
}

#[track_caller]
pub(crate) fn failed(output: &Output, code: i32, words: &[&str]) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.starts_with("sealvol-keys: "), "{said}");
    for word in words {
        assert!(said.contains(word), "{word}: {said}");
    }
}

pub(crate) fn empty_file() -> File {
    tempfile::tempfile().expect("a file")
}

pub(crate) fn content(file: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().expect("rewound");
    file.read_to_end(&mut bytes).expect("read");
    bytes
}

pub(crate) async fn back_up(
    place: &Place,
    sink: &File,
    passphrase: Option<&File>,
    recovery_key: &[u8],
) -> CallResult {
    let recovery_key = recovery_key.to_vec();
    let batch = place.batch(Right::Administer, vec![Call::Backup { recovery_key }]);
    let descriptors = Descriptors {
        passphrase: passphrase.map(AsFd::as_fd),
        sink: Some(sink.as_fd()),
    };
    let answer = child().call_with(&batch, descriptors).await;
    answer.expect("the child replies").results.remove(0)
}

/// A database's file without what SQLite counts when it copies one: its changes, and those of its schema.
pub(crate) fn without_counters(path: &Path) -> Vec<u8> {
    let mut image = fs::read(path).expect("a database");
    for counter in [24..28, 40..44, 92..100] {
        image[counter].fill(0);
    }
    image
}
