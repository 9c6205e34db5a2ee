//! `sealvol-keys restore`: brings a key database and its master key back from a backup, on a host where no daemon runs.
//!
//! ```text
//! read backup and key → confine to the target directories → open, prove → master key file → database
//! ```
//! What always holds:
//! - no file is made before the whole backup was opened and its table of keys proved by its MAC;
//! - each file is made whole or not at all, mode 0600, and never in the place of another one. The database comes last: where it is,
//!   the restore is done. One that was cut short is done again, with the master key file that it left;
//! - the master key and the backup's key lie in locked memory only, until the master key is written to its file;
//! - the private recovery key is in ordinary memory, which is wiped, for as long as it takes to decrypt 32 bytes; who does not
//!   want it on this host decrypts them elsewhere (`--backup-key`).
//!
//! It knows nothing of the daemon's registry: whether the database is older than what was relied on is for the daemon to see.

mod arguments;
mod files;

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use sealvol_control::keychild::{FailureClass, KeyFailure, MasterKeyForm};
use sealvol_control::pem;
use sealvol_control::timestamp::rfc3339;
use sealvol_crypto::locked::{KeyMemory, Policy};
use sealvol_crypto::{KeyEncryptionKey, KeyError, TABLE_IMAGE_BYTES_MAX, sha256};
use zeroize::Zeroizing;

use crate::Refusal;
use crate::confinement::{self, Needs};
use crate::local::backup::format::{BadBackup, Parts};
use crate::local::backup::recovery_key::{self, NotOpened};
use crate::local::backup::{self, OpenError, Opened, hex};
use crate::local::{clock, id_text, place};
pub(super) use arguments::Arguments;
use arguments::{KeySource, Target};

/// No backup is longer: the largest image, and what stands before it.
const BACKUP_BYTES_MAX: usize = TABLE_IMAGE_BYTES_MAX + 4096;

/// No file with a private key is longer.
const KEY_FILE_BYTES_MAX: usize = 1 << 16;

/// Why nothing was restored, or not all.
#[derive(Debug, thiserror::Error)]
enum RestoreError {
    #[error("backup {}: {source}. {}", path.display(), next_step(source))]
    Bad { path: PathBuf, source: BadBackup },
    #[error("cannot be confined: {0}. See whether this kernel's landlock works")]
    Confine(#[from] landlock::RulesetError),
    #[error("{}: is there already{what}, and is left alone. {next_step}", path.display())]
    Exists {
        path: PathBuf,
        what: &'static str,
        next_step: &'static str,
    },
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error(
        "{}: is not a private RSA key in PEM (PKCS #8, not encrypted). Decrypt it on the way: openssl pkey -in KEY | \
         sealvol-keys restore --recovery-key - ...",
        path.display()
    )]
    NoPrivateKey { path: PathBuf },
    #[error("{}: {source}. Give the 32 bytes that the backup's key has", path.display())]
    NoBackupKey { path: PathBuf, source: KeyError },
    #[error(
        "backup {}: its database is sealed by a master key of 32 bytes. Say where to put it: --master-key PATH",
        path.display()
    )]
    NoMasterKeyPath { path: PathBuf },
    #[error(
        "backup {}: it was made for the recovery key {expected}, and this one is {found}. Give that one, or a backup for this one",
        path.display()
    )]
    OtherRecoveryKey {
        path: PathBuf,
        expected: String,
        found: String,
    },
    #[error("{}", KeyFailure::from(.0))]
    Refused(#[from] Refusal),
    #[error("{}: another restore is writing there. Wait until it has ended", path.display())]
    UnderWay { path: PathBuf },
}

impl RestoreError {
    /// As the command line's, for scripts.
    fn exit_code(&self) -> u8 {
        match self {
            Self::Confine(_) | Self::File { .. } => 1,
            Self::NoMasterKeyPath { .. } => 2,
            Self::Bad { .. }
            | Self::NoBackupKey { .. }
            | Self::NoPrivateKey { .. }
            | Self::OtherRecoveryKey { .. } => 3,
            Self::Exists { .. } | Self::UnderWay { .. } => 5,
            Self::Refused(refusal) => match refusal.class() {
                FailureClass::Transient => 1,
                FailureClass::CallerBug => 2,
                FailureClass::GoneForEver
                | FailureClass::KeyUnusable
                | FailureClass::NotPermitted
                | FailureClass::WrongKeyOrTamper => 3,
            },
        }
    }
}

fn next_step(bad: &BadBackup) -> &'static str {
    match bad {
        BadBackup::NewerFormat { .. } => "Use the release that made it, or a later one",
        BadBackup::NoBackup => "Name the file that sealvol key backup wrote",
        BadBackup::Changed | BadBackup::NotWhole => {
            "Compare it with its SHA-256 on record, and take another copy or another backup"
        }
    }
}

/// The whole command, in a process that is hardened.
pub(super) fn run(arguments: Arguments) -> ExitCode {
    match carry_out(arguments) {
        Ok(told) => {
            // What was done is done, whoever reads of it.
            let _ = io::stdout().write_all(told.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            super::say(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

fn carry_out(arguments: Arguments) -> Result<String, RestoreError> {
    let source = Source::open(arguments.key())?;
    let target = arguments.target()?;
    let path = &arguments.backup;
    let read = read_backup(path)?;
    let bad = |source| RestoreError::Bad {
        path: path.clone(),
        source,
    };
    let parts = Parts::of(&read).map_err(bad)?;
    confine(target.as_ref())?;
    let memory = KeyMemory::new(Policy::default()).map_err(Refusal::from)?;
    let key = source.key(path, &parts, &memory)?;
    let opened = backup::open(&parts, &key, &memory, path).map_err(|error| match error {
        OpenError::Bad(source) => bad(source),
        OpenError::Refused(refusal) => refusal.into(),
    })?;
    drop(key);
    let mut told = told(path, &read, &opened);
    for damaged in opened.damaged(&memory)? {
        told += &format!("  damaged when it was made, and of no use: key {damaged}\n");
    }
    match target {
        None => told += "Nothing was written\n",
        Some(target) => told += &restore(&target, opened, path, &memory)?,
    }
    Ok(told)
}

/// What the file is, so that it can be compared with what is on record.
fn told(path: &Path, read: &[u8], opened: &Opened) -> String {
    let header = &opened.header;
    format!(
        "Backup {} of database {} at change {}, made {}\n  {} keys with {} versions; master key: {}\n  recovery key: {}\n  \
         sha256: {}\n",
        path.display(),
        id_text(&header.database),
        header.changes,
        rfc3339(header.made),
        opened.keys,
        opened.versions,
        header.form.as_str(),
        hex(&header.recovery_key),
        hex(&sha256(&[read])),
    )
}

fn restore(
    target: &Target,
    mut opened: Opened,
    backup: &Path,
    memory: &Arc<KeyMemory>,
) -> Result<String, RestoreError> {
    let form = opened.header.form;
    match (&target.master_key, form) {
        (Some(_), _) => opened.make_raw()?,
        (None, MasterKeyForm::Passphrase) => {}
        (None, MasterKeyForm::Raw) => {
            return Err(RestoreError::NoMasterKeyPath {
                path: backup.to_owned(),
            });
        }
    }
    let _lock = files::lock(&target.database)?;
    files::check_free(&target.database)?;
    let mut told = String::new();
    if let Some(path) = &target.master_key {
        let made = files::put_master_key(path, &opened, memory)?;
        let how = if made {
            "restored"
        } else {
            "there already, the same"
        };
        told += &format!("Master key {}: {how}\n", path.display());
    } else {
        told += "Master key: comes from the same passphrase as before\n";
    }
    let image = opened.image()?;
    let put = |file: &mut File| file.write_all(&image);
    files::put(&target.database, put)?;
    let owner = rustix::process::geteuid().as_raw();
    told += &format!("Database {}: restored\n", target.database.display());
    told += &format!("They belong to user {owner}, as whom sealvold has to run\n");
    Ok(told)
}

fn read_backup(path: &Path) -> Result<Vec<u8>, RestoreError> {
    let read = File::open(path).and_then(|file| {
        let mut bytes = Vec::new();
        file.take(BACKUP_BYTES_MAX as u64 + 1)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    let read = read.map_err(|source| RestoreError::File {
        path: path.to_owned(),
        source,
    })?;
    if read.len() > BACKUP_BYTES_MAX {
        return Err(RestoreError::Bad {
            path: path.to_owned(),
            source: BadBackup::NoBackup,
        });
    }
    Ok(read)
}

/// The file that a key is read from, open before this process is confined.
enum Source {
    BackupKey(PathBuf, Box<dyn Read>),
    RecoveryKey(PathBuf, Box<dyn Read>),
}

impl Source {
    fn open(key: KeySource<'_>) -> Result<Self, RestoreError> {
        Ok(match key {
            KeySource::BackupKey(path) => Self::BackupKey(path.to_owned(), open_private(path)?),
            KeySource::RecoveryKey(path) => Self::RecoveryKey(path.to_owned(), open_private(path)?),
        })
    }

    /// The backup's key, in locked memory.
    fn key(
        self,
        backup: &Path,
        parts: &Parts<'_>,
        memory: &Arc<KeyMemory>,
    ) -> Result<KeyEncryptionKey, RestoreError> {
        match self {
            Self::BackupKey(path, mut source) => {
                let key = KeyEncryptionKey::read_from(memory, &mut source);
                key.map_err(|source| match source {
                    KeyError::Locked(error) => Refusal::from(error).into(),
                    source => RestoreError::NoBackupKey { path, source },
                })
            }
            Self::RecoveryKey(path, source) => {
                let private_key = read_private_key(path.clone(), source)?;
                let recovery_key = &parts.header.recovery_key;
                let key = recovery_key::unwrap(&private_key, parts.wrapped, recovery_key, memory);
                key.map_err(|error| match error {
                    NotOpened::NoKey => RestoreError::NoPrivateKey { path },
                    NotOpened::OtherKey(found) => RestoreError::OtherRecoveryKey {
                        path: backup.to_owned(),
                        expected: hex(recovery_key),
                        found: hex(&found),
                    },
                    NotOpened::Changed => RestoreError::Bad {
                        path: backup.to_owned(),
                        source: BadBackup::Changed,
                    },
                    NotOpened::Refused(refusal) => refusal.into(),
                })
            }
        }
    }
}

/// A file with a secret in it: standard input, or one that nobody else could have read.
fn open_private(path: &Path) -> Result<Box<dyn Read>, RestoreError> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(io::stdin()));
    }
    let opened = place::open_to_read(path).map_err(|source| RestoreError::File {
        path: path.to_owned(),
        source,
    })?;
    place::check_private(path, &opened.1)?;
    Ok(Box::new(opened.0))
}

/// PKCS #8, in memory that is wiped.
fn read_private_key(
    path: PathBuf,
    source: Box<dyn Read>,
) -> Result<Zeroizing<Vec<u8>>, RestoreError> {
    // Never grown: no former, shorter place of it is left in memory.
    let mut text = Zeroizing::new(Vec::with_capacity(KEY_FILE_BYTES_MAX + 1));
    let read = source
        .take(KEY_FILE_BYTES_MAX as u64)
        .read_to_end(&mut text);
    if let Err(source) = read {
        return Err(RestoreError::File { path, source });
    }
    pem::decode(&text, "PRIVATE KEY")
        .map(Zeroizing::new)
        .ok_or(RestoreError::NoPrivateKey { path })
}

/// What is in a backup is parsed with the target directories in reach, and nothing else.
fn confine(target: Option<&Target>) -> Result<(), RestoreError> {
    let mut needs = Needs::NOTHING;
    // SQLite seeds its own generator there; the clocks are counted by the number of the boot.
    needs
        .files
        .extend(["/dev/urandom".into(), clock::BOOT_ID.into()]);
    if let Some(target) = target {
        for path in [Some(&target.database), target.master_key.as_ref()]
            .into_iter()
            .flatten()
        {
            place::create_directory(path)?;
            needs.directories.push(place::parent(path)?.to_owned());
        }
    }
    confinement::confine(&needs)?;
    Ok(())
}
