//! Opening files and block devices, locked, and only of the kind that was asked for.
//!
//! Whoever writes a store can put anything into it. So a symbolic link is not followed, a FIFO
//! does not block the open, and what is opened is looked at before it is used.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock};

use rustix::fs::{CWD, FileType, Mode, OFlags, SeekFrom, fstat, ftruncate, open, openat, seek};
use rustix::io::{Errno, retry_on_intr};

use super::lock::{Lock, lock};
use super::medium::{Medium, file_system_name};
use super::{FileStore, OpenFile, errno};
use crate::pool::Lane;
use crate::{Access, Caching, Operation, Place, StoreError};

/// Flags of every open: `NONBLOCK` has no effect on files and disks, and keeps others from
/// blocking.
const ALWAYS: OFlags = OFlags::CLOEXEC
    .union(OFlags::NOCTTY)
    .union(OFlags::NONBLOCK);

impl FileStore {
    /// Opens a regular file and locks it. Blocks the calling thread for as long as the file system
    /// takes.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if it is open elsewhere, [`StoreError::NotFound`],
    /// [`StoreError::WrongType`] also for a symbolic link, [`StoreError::NotDirect`] if direct
    /// access was asked for and cannot be had.
    pub fn open_file(
        path: impl AsRef<Path>,
        access: Access,
        caching: Caching,
    ) -> Result<Self, StoreError> {
        let path: Arc<Path> = path.as_ref().into();
        let flags = flags_of(access, caching) | OFlags::NOFOLLOW;
        let fd = open_at(&CWD, &path, &path, flags, Operation::Open)?;
        Self::regular(fd, path, access, caching, Operation::Open)
    }

    /// Opens a block device, claims it (`O_EXCL`: whether or not for writing, no mount, no other
    /// claim, no second node of it) and locks it. Symbolic links are followed: device names are
    /// often links. Blocks the calling thread.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if it is claimed or mounted, [`StoreError::NotFound`],
    /// [`StoreError::WrongType`], [`StoreError::NotDirect`].
    pub fn open_block_device(
        path: impl AsRef<Path>,
        access: Access,
        caching: Caching,
    ) -> Result<Self, StoreError> {
        let path: Arc<Path> = path.as_ref().into();
        let at = || Place::whole(Operation::Open, &path);
        // Without O_EXCL first: on anything but a block device its meaning is undefined.
        let looked_at = open_at(&CWD, &path, &path, OFlags::PATH, Operation::Open)?;
        expect_type(&looked_at, FileType::BlockDevice, &at())?;
        let flags = flags_of(access, caching) | OFlags::EXCL;
        let fd = match retry_on_intr(|| open(&*path, flags, Mode::empty())) {
            Ok(fd) => fd,
            Err(Errno::BUSY) => return Err(StoreError::Locked { at: at() }),
            Err(Errno::INVAL) if caching == Caching::Direct => {
                return Err(not_direct(at(), "block device"));
            }
            Err(errno) => return Err(errno::into_error(at(), errno, "block device")),
        };
        expect_type(&fd, FileType::BlockDevice, &at())?;
        take_lock(&fd, access, &at())?;
        let len =
            device_len(&fd).map_err(|errno| errno::into_error(at(), errno, "block device"))?;
        let medium = Medium::of_block_device(&fd, caching)
            .map_err(|errno| unreachable_so(at(), errno, caching, "block device"))?;
        Ok(Self::over(fd, path, access, medium, len))
    }

    /// Locks and looks at a regular file that was just opened or created.
    pub(super) fn regular(
        fd: OwnedFd,
        path: Arc<Path>,
        access: Access,
        caching: Caching,
        operation: Operation,
    ) -> Result<Self, StoreError> {
        let at = || Place::whole(operation, &path);
        expect_type(&fd, FileType::RegularFile, &at())?;
        take_lock(&fd, access, &at())?;
        let file_system = file_system_name(&fd);
        let medium = Medium::of_file(&fd, caching)
            .map_err(|errno| unreachable_so(at(), errno, caching, file_system))?;
        let size = fstat(&fd)
            .map_err(|errno| errno::into_error(at(), errno, file_system))?
            .st_size;
        let len = size
            .try_into()
            .expect("the kernel has no files of negative size");
        Ok(Self::over(fd, path, access, medium, len))
    }

    fn over(fd: OwnedFd, path: Arc<Path>, access: Access, medium: Medium, len: u64) -> Self {
        let (len, unsynced) = (AtomicU64::new(len), AtomicU64::new(0));
        let file = Arc::new(OpenFile {
            fd,
            path,
            access,
            medium,
            len,
            unsynced,
            syncing: Mutex::default(),
            mapping: OnceLock::new(),
        });
        Self {
            file,
            lane: Arc::new(Lane::default()),
        }
    }
}

/// The flags that `access` and `caching` ask for.
pub(super) fn flags_of(access: Access, caching: Caching) -> OFlags {
    let mode = match access {
        Access::ReadOnly => OFlags::RDONLY,
        Access::Writable => OFlags::RDWR,
    };
    let direct = match caching {
        Caching::PageCache => OFlags::empty(),
        Caching::Direct => OFlags::DIRECT,
    };
    mode | direct | ALWAYS
}

/// Why what was opened cannot be reached as `caching` says.
fn unreachable_so(
    at: Box<Place>,
    errno: Errno,
    caching: Caching,
    file_system: &'static str,
) -> StoreError {
    match (errno, caching) {
        (Errno::INVAL, Caching::Direct) => not_direct(at, file_system),
        _ => errno::into_error(at, errno, file_system),
    }
}

fn not_direct(at: Box<Place>, file_system: &'static str) -> StoreError {
    StoreError::NotDirect { at, file_system }
}

/// Opens `name`, relative to `directory`; `path` is what errors call it.
pub(super) fn open_at(
    directory: &impl AsFd,
    name: &Path,
    path: &Arc<Path>,
    flags: OFlags,
    operation: Operation,
) -> Result<OwnedFd, StoreError> {
    let owner_only = Mode::RUSR | Mode::WUSR;
    retry_on_intr(|| openat(directory, name, flags | OFlags::CLOEXEC, owner_only)).map_err(
        |errno| {
            let at = Place::whole(operation, path);
            let wanted = "a regular file";
            match errno {
                Errno::LOOP => StoreError::WrongType {
                    at,
                    found: "a symbolic link",
                    wanted,
                },
                Errno::ISDIR => StoreError::WrongType {
                    at,
                    found: "a directory",
                    wanted,
                },
                Errno::NXIO => StoreError::WrongType {
                    at,
                    found: "a socket or absent device",
                    wanted,
                },
                Errno::INVAL if flags.contains(OFlags::DIRECT) => {
                    not_direct(at, file_system_name(directory))
                }
                _ => errno::into_error(at, errno, "this file system"),
            }
        },
    )
}

fn expect_type(fd: &OwnedFd, wanted: FileType, at: &Place) -> Result<(), StoreError> {
    let status =
        fstat(fd).map_err(|errno| errno::into_error(Box::new(at.clone()), errno, "fstat"))?;
    let found = FileType::from_raw_mode(status.st_mode);
    if found == wanted {
        return Ok(());
    }
    let at = Box::new(at.clone());
    Err(StoreError::WrongType {
        at,
        found: type_name(found),
        wanted: type_name(wanted),
    })
}

fn type_name(file_type: FileType) -> &'static str {
    match file_type {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        _ => "something unknown",
    }
}

fn take_lock(fd: &OwnedFd, access: Access, at: &Place) -> Result<(), StoreError> {
    let at = Box::new(at.clone());
    match lock(fd, access) {
        Ok(Lock::Taken) => Ok(()),
        Ok(Lock::Refused) => Err(StoreError::Locked { at }),
        Err(source) => Err(StoreError::io(at, source)),
    }
}

/// The length of a block device in bytes. Moves the file position, which nothing here uses.
pub(super) fn device_len(fd: &OwnedFd) -> Result<u64, Errno> {
    seek(fd, SeekFrom::End(0))
}

/// The length in bytes of the largest file that can lie in `directory`, by trying with a file
/// without a name. `None` if the file system has no such files.
pub(super) fn largest_file_in(directory: &impl AsFd) -> Option<u64> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let nameless = openat(directory, ".", flags, Mode::RUSR | Mode::WUSR).ok()?;
    let (mut fits, mut too_large) = (0, i64::MAX.unsigned_abs() + 1);
    while too_large - fits > 1 {
        let middle = fits + (too_large - fits) / 2;
        match retry_on_intr(|| ftruncate(&nameless, middle)) {
            Ok(()) => fits = middle,
            Err(_) => too_large = middle,
        }
    }
    Some(fits)
}

/// [`largest_file_in`] for a directory by path.
pub(super) fn largest_file_beside(directory: &Path) -> Option<u64> {
    let here = if directory.as_os_str().is_empty() {
        Path::new(".")
    } else {
        directory
    };
    let fd = open(
        here,
        OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok()?;
    largest_file_in(&fd)
}
