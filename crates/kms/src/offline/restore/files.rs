//! The files that a restore makes.
//!
//! What always holds: a file is written under another name (`NAME.new`), synced, and gets its own name only if nothing has it; its
//! directory is one where only its owner can change something. Who restores into a directory keeps others from doing the same
//! until the end, so that what one has written half is never taken for whole by another.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;
use sealvol_crypto::KeyError;
use sealvol_crypto::locked::KeyMemory;

use super::RestoreError;
use crate::local::backup::Opened;
use crate::local::{master_key, place};

/// Keeps others from restoring into the directory of `path` for as long as the value lives.
pub(super) fn lock(path: &Path) -> Result<File, RestoreError> {
    let directory = place::trusted_directory(path)?;
    let of_directory = |source| RestoreError::File {
        path: directory.clone(),
        source,
    };
    let file = File::open(&directory).map_err(of_directory)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(RestoreError::UnderWay { path: directory }),
        Err(errno) => Err(of_directory(errno.into())),
    }
}

/// Refuses a database's place where one is, or a journal, which SQLite would take for a part of what is put there.
pub(super) fn check_free(database: &Path) -> Result<(), RestoreError> {
    for (ending, what) in [
        ("", ""),
        ("-journal", ", left by a former database"),
        ("-wal", ", left by a former database"),
    ] {
        let path = with_ending(database, ending);
        if path.symlink_metadata().is_ok() {
            return Err(exists(path, what));
        }
    }
    Ok(())
}

fn exists(path: PathBuf, what: &'static str) -> RestoreError {
    RestoreError::Exists {
        path,
        what,
        next_step: "Move it away, or name another place",
    }
}

/// Makes the master key file; false if it is there already, with the same key in it: from a restore that was cut short.
pub(super) fn put_master_key(
    path: &Path,
    opened: &Opened,
    memory: &Arc<KeyMemory>,
) -> Result<bool, RestoreError> {
    if path.symlink_metadata().is_ok() {
        let there = master_key::read_file(path, memory)?;
        return if opened.is_master(&there)? {
            Ok(false)
        } else {
            Err(exists(path.to_owned(), ", with another key in it"))
        };
    }
    put(path, |file| {
        opened.master.write_to(file).map_err(|error| match error {
            KeyError::Write(source) => source,
            other => io::Error::other(other),
        })
    })?;
    Ok(true)
}

/// Makes a file with mode 0600 and what `write` writes to it.
pub(super) fn put(
    path: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), RestoreError> {
    let directory = place::trusted_directory(path)?;
    let path = directory.join(path.file_name().unwrap_or_default());
    let new = with_ending(&path, ".new");
    let written = remove(&new).and_then(|()| {
        let mut file = place::create_private(&new)?;
        write(&mut file)?;
        file.sync_all()?;
        Ok(renameat_with(
            CWD,
            &new,
            CWD,
            &path,
            RenameFlags::NOREPLACE,
        )?)
    });
    if let Err(source) = written {
        // It failed for a reason that is told; what was begun may hold a key.
        let _ = remove(&new);
        return Err(if source.kind() == io::ErrorKind::AlreadyExists {
            exists(path, "")
        } else {
            RestoreError::File { path, source }
        });
    }
    Ok(place::sync_directory(&directory)?)
}

/// Of a restore that was cut short, if there was one.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(ending);
    path.into()
}
