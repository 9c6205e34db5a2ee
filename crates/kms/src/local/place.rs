//! The files of the `local` provider: what they must be before they are believed, and how they are
//! made.
//!
//! What always holds: a secret is read from, and keys are kept in, files that no other user can read
//! or write, in a directory where no other user can put something else in their place. A symbolic
//! link is not followed at the end of a path.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::process::geteuid;

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
