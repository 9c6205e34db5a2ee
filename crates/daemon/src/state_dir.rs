//! The state directory: what the daemon trusts, and the lock that makes it the only one there.
//!
//! ```text
//! lock           flock by the running daemon; holds its process id
//! registry.db    volumes and layers
//! audit.*        one JSON line for each use of a key, and the keys of their chain
//! keys/          the embedded key service
//! layers/ID/     meta and data of one layer
//! ```
//! What always holds: the directory belongs to the daemon's user and nobody else may write it; one
//! daemon at a time holds its lock, until its process is gone.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use thiserror::Error;

/// A state directory that this process holds.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    /// Locked as long as it is open.
    _lock: File,
}

/// Why a directory cannot be used.
#[derive(Debug, Error)]
pub enum StateDirError {
    /// It cannot be made or read.
    #[error("{}: {source}. Make it a directory that the daemon's user owns", path.display())]
    Unusable {
        /// The directory or a file in it.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Somebody else could change what is in it.
    #[error(
        "{}: {cause}, so what is in it cannot be trusted. Let the daemon's user own it, mode 0700",
        path.display()
    )]
    Untrusted {
        /// The directory.
        path: PathBuf,
        /// Whom it would trust.
        cause: String,
    },
    /// Another daemon runs on it.
    #[error(
        "{}: another sealvold (pid {pid}) runs on this state directory. Stop it, or use another --state-dir",
        path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The other's process id, as it wrote it.
        pid: String,
    },
}

impl StateDir {
    /// Makes the directory if it is missing (mode 0700), checks it and locks it.
    ///
    /// # Errors
    /// When it cannot be trusted or another daemon holds it.
    pub(crate) fn hold(path: &Path) -> Result<Self, StateDirError> {
        make_private(path)?;
        make_private(&path.join("keys"))?;
        make_private(&path.join("layers"))?;
        Ok(Self {
            path: path.to_owned(),
            _lock: lock(path)?,
        })
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The registry's file.
    pub(crate) fn registry(&self) -> PathBuf {
        self.path.join("registry.db")
    }

    /// The directory of the layers that were given no other place.
    pub(crate) fn layers(&self) -> PathBuf {
        self.path.join("layers")
    }
}

fn make_private(path: &Path) -> Result<(), StateDirError> {
    let unusable = |source| StateDirError::Unusable {
        path: path.to_owned(),
        source,
    };
    let untrusted = |cause| StateDirError::Untrusted {
        path: path.to_owned(),
        cause,
    };
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(unusable(error)),
    }
    let metadata = std::fs::metadata(path).map_err(unusable)?;
    if !metadata.is_dir() {
        return Err(unusable(io::ErrorKind::NotADirectory.into()));
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(untrusted(format!("user {} owns it", metadata.uid())));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(untrusted(format!(
            "others may write it (mode {:04o})",
            metadata.mode() & 0o7777
        )));
    }
    Ok(())
}

/// Takes the lock of `directory` and writes our process id into it.
///
/// An flock belongs to the open file, so the second daemon is refused whoever started it, and the
/// lock is gone with the process however it ends. The file itself stays: removing it would let two
/// daemons lock two files of the same name.
fn lock(directory: &Path) -> Result<File, StateDirError> {
    let path = directory.join("lock");
    let unusable = |source| StateDirError::Unusable {
        path: path.clone(),
        source,
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(unusable)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            // Who it is only helps the operator: not to know is no further failure.
            let _ = (&file).take(32).read_to_string(&mut pid);
            let pid = if pid.trim().is_empty() {
                "unknown"
            } else {
                pid.trim()
            }
            .to_owned();
            return Err(StateDirError::InUse {
                path: directory.to_owned(),
                pid,
            });
        }
        Err(error) => return Err(unusable(error.into())),
    }
    file.set_len(0).map_err(unusable)?;
    file.rewind().map_err(unusable)?;
    writeln!(file, "{}", std::process::id()).map_err(unusable)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_second_daemon_is_refused_by_the_first_ones_pid() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state");
        let held = StateDir::hold(&path).expect("free");
        let second = StateDir::hold(&path).expect_err("taken");
        let pid = std::process::id().to_string();
        assert!(matches!(&second, StateDirError::InUse { pid: named, .. } if *named == pid));
        assert!(
            second.to_string().contains(&format!("pid {pid}")),
            "{second}"
        );
        drop(held);
        StateDir::hold(&path).expect("free again");
    }

    #[test]
    fn a_new_directory_is_private() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state");
        let held = StateDir::hold(&path).expect("free");
        for made in [path.clone(), held.layers(), path.join("keys")] {
            let mode = std::fs::metadata(&made).expect("there").mode() & 0o7777;
            assert_eq!(mode, 0o700, "{}", made.display());
        }
    }

    #[test]
    fn a_directory_that_others_may_write_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        for mode in [0o770, 0o707, 0o1777] {
            std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(mode))
                .expect("set");
            let error = StateDir::hold(folder.path()).expect_err("not to be trusted");
            assert!(matches!(error, StateDirError::Untrusted { .. }), "{mode:o}");
        }
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))
            .expect("set");
        StateDir::hold(folder.path()).expect("others may only look");
    }
}
