//! Where the `local` provider's master key comes from, and how one is made.
//!
//! What always holds:
//! - the key goes from its source straight into locked memory;
//! - a file is read only if nobody else could have read or written it; it is made whole or not at
//!   all (written under another name, synced, renamed), and never written over;
//! - whether the key is the right one is not decided here: the database has a check value.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, RenameFlags};
use sealvol_control::keychild::MasterKey;
use sealvol_crypto::locked::KeyMemory;
use sealvol_crypto::{
    Argon2Params, KEY_ENCRYPTION_KEY_BYTES, KeyEncryptionKey, KeyError, MIN_SALT_BYTES,
    PassphraseError, random,
};

use super::database::MasterKeyForm;
use super::place;
use crate::Refusal;

/// The configured source, with what came along for it.
pub(super) struct Source<'a> {
    pub(super) configured: &'a MasterKey,
    pub(super) passphrase: Option<&'a OwnedFd>,
}

impl Source<'_> {
    /// The master key of a database that says how its key comes about.
    pub(super) fn read(
        &self,
        form: MasterKeyForm,
        memory: &Arc<KeyMemory>,
    ) -> Result<KeyEncryptionKey, Refusal> {
        match (self.configured, form) {
            (MasterKey::File { path }, MasterKeyForm::Raw) => read_file(path, memory),
            (MasterKey::Credential { directory, name }, MasterKeyForm::Raw) => {
                read_credential(&credential_path(directory, name)?, memory)
            }
            (MasterKey::Passphrase, MasterKeyForm::Passphrase { salt, costs }) => {
                self.derive(&salt, costs, memory)
            }
            (MasterKey::Passphrase, MasterKeyForm::Raw) => Err(Refusal::MasterKeyKind {
                sealed_by: "a key from a file or credential",
                configured: "a passphrase",
            }),
            (_, MasterKeyForm::Passphrase { .. }) => Err(Refusal::MasterKeyKind {
                sealed_by: "a passphrase",
                configured: "a file or credential",
            }),
        }
    }

    /// The master key for a new database: an existing one is taken, a missing file is made.
    pub(super) fn read_or_make(
        &self,
        memory: &Arc<KeyMemory>,
    ) -> Result<(KeyEncryptionKey, MasterKeyForm), Refusal> {
        let form = match self.configured {
            MasterKey::File { path } => {
                make_file(path, memory)?;
                MasterKeyForm::Raw
            }
            MasterKey::Credential { .. } => MasterKeyForm::Raw,
            MasterKey::Passphrase => {
                let mut salt = [0; MIN_SALT_BYTES];
                random(&mut salt);
                MasterKeyForm::Passphrase {
                    salt,
                    costs: Argon2Params::RECOMMENDED,
                }
            }
        };
        Ok((self.read(form, memory)?, form))
    }

    fn derive(
        &self,
        salt: &[u8],
        costs: Argon2Params,
        memory: &Arc<KeyMemory>,
    ) -> Result<KeyEncryptionKey, Refusal> {
        let descriptor = self.passphrase.ok_or(Refusal::NoPassphrase)?;
        let mut source = FromTheBeginning {
            descriptor: descriptor.as_fd(),
            offset: 0,
        };
        KeyEncryptionKey::from_passphrase(memory, &mut source, salt, costs).map_err(|error| {
            match error {
                PassphraseError::Key(KeyError::Locked(error)) => Refusal::LockedMemory(error),
                error => Refusal::Passphrase {
                    reason: error.to_string(),
                },
            }
        })
    }
}

/// The file of a systemd credential.
pub(super) fn credential_path(directory: &Path, name: &str) -> Result<PathBuf, Refusal> {
    let path = directory.join(name);
    // A name with a slash, or `..`, would leave the directory.
    if place::parent(&path)? == directory && path.file_name().is_some_and(|file| file == name) {
        Ok(path)
    } else {
        Err(Refusal::NoFilePath { path })
    }
}

pub(crate) fn read_file(path: &Path, memory: &Arc<KeyMemory>) -> Result<KeyEncryptionKey, Refusal> {
    place::trusted_directory(path)?;
    let (file, found) = place::open_to_read(path).map_err(|error| missing(path, error))?;
    place::check_private(path, &found)?;
    read_whole(path, file, found.len(), memory)
}

/// systemd owns the directory and keeps others out of it; it may give the file to root and let the
/// service in by an access control list, so owner and mode are not ours to judge.
fn read_credential(path: &Path, memory: &Arc<KeyMemory>) -> Result<KeyEncryptionKey, Refusal> {
    let (file, found) = place::open_to_read(path).map_err(|error| missing(path, error))?;
    if !found.is_file() {
        let reason = "is not a regular file".to_owned();
        return Err(Refusal::UnsafePlace {
            path: path.to_owned(),
            reason,
        });
    }
    read_whole(path, file, found.len(), memory)
}

fn read_whole(
    path: &Path,
    mut file: File,
    bytes: u64,
    memory: &Arc<KeyMemory>,
) -> Result<KeyEncryptionKey, Refusal> {
    if bytes != KEY_ENCRYPTION_KEY_BYTES as u64 {
        return Err(Refusal::MasterKeyLength {
            path: path.to_owned(),
            bytes,
        });
    }
    KeyEncryptionKey::read_from(memory, &mut file).map_err(|error| key_error(path, error))
}

/// Makes the file unless it is there. Callers hold the write lock of the database, so that there is
/// one maker at a time.
fn make_file(path: &Path, memory: &Arc<KeyMemory>) -> Result<(), Refusal> {
    if path.symlink_metadata().is_ok() {
        return Ok(());
    }
    let directory = place::trusted_directory(path)?;
    let system = |source| Refusal::system(path, source);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = directory.join(name);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(system(error)),
        _ => {}
    }
    let mut file = place::create_private(&new).map_err(system)?;
    KeyEncryptionKey::generate(memory)
        .and_then(|key| key.write_to(&mut file))
        .map_err(|error| key_error(path, error))?;
    file.sync_all().map_err(system)?;
    rustix::fs::renameat_with(CWD, &new, CWD, path, RenameFlags::NOREPLACE)
        .map_err(|errno| system(errno.into()))?;
    place::sync_directory(&directory)
}

fn missing(path: &Path, source: io::Error) -> Refusal {
    Refusal::MasterKeyMissing {
        path: path.to_owned(),
        source,
    }
}

fn key_error(path: &Path, error: KeyError) -> Refusal {
    match error {
        KeyError::Locked(error) => Refusal::LockedMemory(error),
        KeyError::Read(source) | KeyError::Write(source) => Refusal::system(path, source),
        error => Refusal::system(path, io::Error::other(error)),
    }
}

/// Reads a file from its beginning without moving its offset, which other children share; what
/// cannot be read so (a pipe) is read as it comes.
struct FromTheBeginning<'a> {
    descriptor: BorrowedFd<'a>,
    offset: u64,
}

impl Read for FromTheBeginning<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match rustix::io::pread(self.descriptor, &mut *buffer, self.offset) {
            Err(rustix::io::Errno::SPIPE) => rustix::io::read(self.descriptor, buffer),
            other => other,
        }?;
        self.offset += read as u64;
        Ok(read)
    }
}
