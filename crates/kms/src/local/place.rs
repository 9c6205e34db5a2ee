//! The files of the `local` provider: what they must be before they are believed, and how they are
//! made.
//!
//! What always holds: a secret is read from, and keys are kept in, files that no other user can read
//! or write, in a directory where no other user can put something else in their place. A symbolic
//! link is not followed at the end of a path.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, OFlags, RenameFlags};
use rustix::process::geteuid;
use uuid::Uuid;

use crate::Refusal;

/// The directory of `path` with all links resolved, after a check that only its owner (us or root)
/// can change what is in it.
pub(crate) fn trusted_directory(path: &Path) -> Result<PathBuf, Refusal> {
    let directory = parent(path)?;
    let directory = directory
        .canonicalize()
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Refusal::NoDirectory {
                path: directory.to_owned(),
            },
            _ => Refusal::system(directory, source),
        })?;
    let found = directory
        .metadata()
        .map_err(|source| Refusal::system(&directory, source))?;
    let owner = found.uid();
    if owner != geteuid().as_raw() && owner != 0 {
        return Err(unsafe_place(&directory, format!("belongs to user {owner}")));
    }
    if found.mode() & 0o022 != 0 {
        let reason = format!(
            "has mode {:04o}: others can write in it",
            found.mode() & 0o7777
        );
        return Err(unsafe_place(&directory, reason));
    }
    Ok(directory)
}

/// Makes the directory of `path` with mode 0700 if it is not there; not those above it.
pub(crate) fn create_directory(path: &Path) -> Result<(), Refusal> {
    let directory = parent(path)?;
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => directory.parent().map_or(Ok(()), sync_directory),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(Refusal::system(directory, source)),
    }
}

/// The directory that an absolute path to a file names.
pub(crate) fn parent(path: &Path) -> Result<&Path, Refusal> {
    match path.parent() {
        Some(directory) if path.is_absolute() && path.file_name().is_some() => Ok(directory),
        _ => Err(Refusal::NoFilePath {
            path: path.to_owned(),
        }),
    }
}

/// Opens a file for reading and tells what it is. Never blocks on a FIFO, never follows a link.
pub(crate) fn open_to_read(path: &Path) -> io::Result<(File, Metadata)> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    let found = file.metadata()?;
    Ok((file, found))
}

/// Checks that a file is regular, ours, and closed to everybody else.
pub(crate) fn check_private(path: &Path, found: &Metadata) -> Result<(), Refusal> {
    if !found.is_file() {
        return Err(unsafe_place(path, "is not a regular file".to_owned()));
    }
    let (owner, us) = (found.uid(), geteuid().as_raw());
    if owner != us {
        return Err(unsafe_place(
            path,
            format!("belongs to user {owner}, not to user {us}"),
        ));
    }
    if found.mode() & 0o077 != 0 {
        let reason = format!(
            "has mode {:04o}: others have access to it",
            found.mode() & 0o7777
        );
        return Err(unsafe_place(path, reason));
    }
    Ok(())
}

/// Makes an empty file with mode 0600; an error of kind `AlreadyExists` if there is one.
pub(crate) fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Makes a file with mode 0600, whole or not at all: `write` fills it under another name. Durable when this returns; an error of
/// kind `AlreadyExists` if there is one.
pub(crate) fn make_whole(
    path: &Path,
    write: impl FnOnce(&mut File) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let directory = trusted_directory(path)?;
    let mut id = [0; 16];
    sealvol_crypto::random(&mut id);
    let new = directory.join(format!(".{}.new", Uuid::from_bytes(id)));
    let path = &directory.join(path.file_name().unwrap_or_default());
    let system = |source| Refusal::system(path, source);
    let mut file = create_private(&new).map_err(system)?;
    let made = write(&mut file)
        .and_then(|()| file.sync_all().map_err(system))
        .and_then(|()| {
            rustix::fs::renameat_with(CWD, &new, CWD, path, RenameFlags::NOREPLACE)
                .map_err(|errno| system(errno.into()))
        });
    if made.is_err() {
        // What is left of it would be there for ever otherwise; the error is the one that is told.
        let _ = fs::remove_file(&new);
    }
    made?;
    sync_directory(&directory)
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(directory: &Path) -> Result<(), Refusal> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| Refusal::system(directory, source))
}

fn unsafe_place(path: &Path, reason: String) -> Refusal {
    Refusal::UnsafePlace {
        path: path.to_owned(),
        reason,
    }
}
