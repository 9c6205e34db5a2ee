//! Directories of this host.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, fsync, ftruncate, mkdir, openat, renameat, statat,
    unlinkat,
};
use rustix::io::{Errno, retry_on_intr};

use super::{FileStore, errno, medium, open as opening};
use crate::name::path_in;
use crate::pool::Lane;
use crate::sys;
use crate::{Access, Caching, Directory, Operation, Place, StoreError};

/// A directory whose regular files are stores.
///
/// Held open: renaming or unmounting it elsewhere does not lead us to another one. Not locked.
#[derive(Clone)]
pub struct FileDirectory {
    open: Arc<OpenDirectory>,
    lane: Arc<Lane>,
    caching: Caching,
    large_extents: Option<&'static str>,
}

/// What a file that grows by random first writes gets its space in, where that can be told: one
/// extent for each 4 KiB makes the file system slow, and large.
const LARGE_EXTENT: u32 = 1 << 20;

struct OpenDirectory {
    fd: OwnedFd,
    path: Arc<Path>,
}

impl FileDirectory {
    /// Opens a directory that exists. Blocks the calling thread.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Io`] if it is not a directory.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path: Arc<Path> = path.as_ref().into();
        let fd = open_directory(&path, Operation::Open)?;
        let open = Arc::new(OpenDirectory { fd, path });
        Ok(Self {
            open,
            lane: Arc::new(Lane::default()),
            caching: Caching::PageCache,
            large_extents: None,
        })
    }

    /// Makes a new directory that only its owner can enter, durably, and opens it. Blocks the
    /// calling thread.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`]; [`StoreError::NotFound`] if its parent is not there.
    pub fn make(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path: Arc<Path> = path.as_ref().into();
        let failed = |errno| {
            errno::into_error(
                Place::whole(Operation::Create, &path),
                errno,
                "this file system",
            )
        };
        mkdir(&*path, Mode::RWXU).map_err(failed)?;
        // "made" has no parent in its path: it lies in the current directory.
        let parent: PathBuf = path.join("..");
        let parent = open_directory(&parent.into(), Operation::Create)?;
        retry_on_intr(|| fsync(&parent)).map_err(failed)?;
        Self::open(&path)
    }

    /// The same directory, whose files are opened from now on as `caching` says.
    #[must_use]
    pub fn caching(mut self, caching: Caching) -> Self {
        self.caching = caching;
        self
    }

    /// The same directory: a file of this name that is created in it gets its space in pieces of
    /// 1 MiB, on file systems that do not do better by themselves (xfs).
    #[must_use]
    pub fn with_large_extents(mut self, name: &'static str) -> Self {
        self.large_extents = Some(name);
        self
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.open.path
    }

    async fn off_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&OpenDirectory) -> T + Send + 'static,
    ) -> T {
        let open = Arc::clone(&self.open);
        self.lane.run(move || work(&open)).await
    }
}

impl Directory for FileDirectory {
    type File = FileStore;

    async fn create(&self, name: &str, len: u64) -> Result<FileStore, StoreError> {
        let path = path_in(&self.open.path, name, Operation::Create)?;
        let large_extents = self.large_extents == Some(name);
        let (name, caching) = (name.to_owned(), self.caching);
        self.off_thread(move |open| {
            let created = open.create(&name, path, len, caching)?;
            if large_extents && created.file.medium.file_system == "xfs" {
                // Without it the file is slower and no less right.
                let _ = sys::hint_extent_size(&created.file.fd, LARGE_EXTENT);
            }
            Ok(created)
        })
        .await
    }

    async fn open(&self, name: &str, access: Access) -> Result<FileStore, StoreError> {
        let path = path_in(&self.open.path, name, Operation::Open)?;
        let (name, caching) = (name.to_owned(), self.caching);
        self.off_thread(move |open| {
            let flags = opening::flags_of(access, caching) | OFlags::NOFOLLOW;
            let fd = opening::open_at(&open.fd, name.as_ref(), &path, flags, Operation::Open)?;
            FileStore::regular(fd, path, access, caching, Operation::Open)
        })
        .await
    }

    async fn rename(&self, from: &str, to: &str) -> Result<(), StoreError> {
        let path = path_in(&self.open.path, from, Operation::Rename)?;
        path_in(&self.open.path, to, Operation::Rename)?;
        let (from, to) = (from.to_owned(), to.to_owned());
        self.off_thread(move |open| {
            retry_on_intr(|| renameat(&open.fd, &*from, &open.fd, &*to))
                .map_err(|errno| open.failed(Operation::Rename, &path, errno))
        })
        .await
    }

    async fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = path_in(&self.open.path, name, Operation::Remove)?;
        let name = name.to_owned();
        self.off_thread(move |open| {
            retry_on_intr(|| unlinkat(&open.fd, &*name, AtFlags::empty()))
                .map_err(|errno| open.failed(Operation::Remove, &path, errno))
        })
        .await
    }

    async fn list(&self) -> Result<Vec<String>, StoreError> {
        self.off_thread(|open| {
            open.list()
                .map_err(|errno| open.failed(Operation::List, &open.path, errno))
        })
        .await
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.off_thread(|open| {
            retry_on_intr(|| fsync(&open.fd))
                .map_err(|errno| open.failed(Operation::SyncDirectory, &open.path, errno))
        })
        .await
    }
}

/// The blocking side.
impl OpenDirectory {
    fn create(
        &self,
        name: &str,
        path: Arc<Path>,
        len: u64,
        caching: Caching,
    ) -> Result<FileStore, StoreError> {
        let flags = opening::flags_of(Access::Writable, caching) | OFlags::CREATE | OFlags::EXCL;
        let opened = opening::open_at(&self.fd, name.as_ref(), &path, flags, Operation::Create);
        if let Err(StoreError::NotDirect { .. }) = opened {
            // The kernel makes the file first and finds that out then.
            let _ = unlinkat(&self.fd, name, AtFlags::empty());
        }
        let fd = opened?;
        if let Err(errno) = retry_on_intr(|| ftruncate(&fd, len)) {
            // The file is nobody's yet. That it cannot be removed is not the error to report.
            let _ = unlinkat(&self.fd, name, AtFlags::empty());
            return Err(self.cannot_be(len, &path, errno));
        }
        FileStore::regular(fd, path, Access::Writable, caching, Operation::Create)
    }

    /// Why a new file could not become `len` bytes long.
    fn cannot_be(&self, len: u64, path: &Arc<Path>, errno: Errno) -> StoreError {
        let at = Place::new(Operation::Create, path, 0, len);
        let file_system = medium::file_system_name(&self.fd);
        if errno == Errno::FBIG || i64::try_from(len).is_err() {
            let limit = opening::largest_file_in(&self.fd);
            return StoreError::TooLarge {
                at,
                limit,
                file_system,
            };
        }
        errno::into_error(at, errno, file_system)
    }

    /// Regular files with names that can be text. Others are not ours.
    fn list(&self) -> Result<Vec<String>, Errno> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else {
                continue;
            };
            let file_type = match entry.file_type() {
                FileType::Unknown => match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(status) => FileType::from_raw_mode(status.st_mode),
                    Err(Errno::NOENT) => continue, // removed since
                    Err(errno) => return Err(errno),
                },
                known => known,
            };
            if file_type == FileType::RegularFile {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn failed(&self, operation: Operation, path: &Arc<Path>, errno: Errno) -> StoreError {
        let at = Place::whole(operation, path);
        errno::into_error(at, errno, medium::file_system_name(&self.fd))
    }
}

fn open_directory(path: &Arc<Path>, operation: Operation) -> Result<OwnedFd, StoreError> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    retry_on_intr(|| openat(CWD, &**path, flags, Mode::empty())).map_err(|errno| {
        errno::into_error(Place::whole(operation, path), errno, "this file system")
    })
}
