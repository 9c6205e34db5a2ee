//! Locks on open files.
//!
//! `fcntl(F_OFD_SETLK)` over the whole file: the lock belongs to the open file description, so it
//! also excludes a second open in this same process, it ends with the last descriptor, and it
//! excludes programs that lock ranges of their images (qemu). A second device node of one block
//! device is not excluded by it; that is what `O_EXCL` is for.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::Access;

/// What came of asking for a lock.
pub(super) enum Lock {
    /// It is held until the file is closed, or [`unlock`].
    Taken,
    /// Somebody else holds one that excludes it.
    Refused,
}

/// Locks `file` as `access` asks for, without waiting.
pub(super) fn lock(file: &OwnedFd, access: Access) -> Result<Lock, std::io::Error> {
    let kind = match access {
        Access::ReadOnly => libc::F_RDLCK,
        Access::Writable => libc::F_WRLCK,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&whole_file(kind))) {
        Ok(_) => Ok(Lock::Taken),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(Lock::Refused),
        Err(errno) => Err(errno.into()),
    }
}

/// Gives the lock up, although the open file description may live on.
///
/// It does for a moment: the kernel tells the end of an operation that a worker thread of its ring did before that thread has let
/// go of the file. Whoever opens the file next would find it locked by nobody.
pub(super) fn unlock(file: &OwnedFd) {
    // It cannot fail for a reason that leaves a lock: the description was locked, or never had one.
    let _ = fcntl(file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_UNLCK)));
}

/// All of a file, however long it becomes.
fn whole_file(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: to_short(kind),
        l_whence: to_short(libc::SEEK_SET),
        l_start: 0,
        l_len: 0,
        l_pid: 0, // must be: the lock has no process
    }
}

/// The constants of `struct flock` are ints in the headers and shorts in the struct.
#[expect(clippy::cast_possible_truncation, reason = "constants below 4")]
fn to_short(constant: i32) -> libc::c_short {
    constant as libc::c_short
}

#[cfg(test)]
mod tests {
    use crate::{Access, Caching, FileStore};

    #[test]
    fn a_dropped_store_locks_nothing_though_the_kernel_still_has_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        std::fs::write(&path, [0; 4096]).unwrap();
        let open = |access| FileStore::open_file(&path, access, Caching::PageCache);
        for access in [Access::Writable, Access::ReadOnly] {
            let store = open(access).unwrap();
            let kept = store.file.fd.try_clone().unwrap();
            assert!(open(Access::Writable).is_err(), "it is open");
            drop(store);
            drop(open(Access::Writable).expect("nobody has it open"));
            drop(kept);
        }
    }
}
