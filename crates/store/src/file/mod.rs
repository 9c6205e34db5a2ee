//! Files and block devices of this host.
//!
//! How one is best reached depends on what it is ([`medium`]); every system call is made by
//! [`transfer`] or here, and data in memory is reached without one ([`mapped`](crate::mapped)). What may block is done on threads of this crate, never by the caller:
//! sync, punch, allocate and grow always, reads that miss the page cache, writes where the kernel
//! may hold the writer back.
//!
//! What always holds:
//!
//! * A writable file is locked exclusively, a read-only one shared, by an open-file-description
//!   lock over all of it ([`lock`]); a block device is claimed with `O_EXCL` besides.
//! * A file ends where it ended when it was opened or grown. If it is found shorter, that is an
//!   error and never zeros.
//! * Nothing is retried but what was interrupted by a signal or came back short.

mod directory;
mod errno;
mod lock;
mod medium;
mod open;
mod transfer;

use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate, fdatasync, ftruncate};
use rustix::io::{Errno, retry_on_intr};

pub use directory::FileDirectory;

use crate::mapped::Mapping;
use crate::pool::Lane;
use crate::sys::{self, Transfer};
use crate::{Access, Durability, IoBuf, Operation, Place, Store, StoreError, ring};
use medium::{Medium, Reads, Writes};

/// Unsynced bytes of a store up to which a write is done by the caller. Beyond it the kernel's
/// dirty throttling may put the writer to sleep, for seconds on a slow disk (it begins at the
/// background threshold, 10 % of free memory: far above this on any host that runs guests).
const INLINE_UNSYNCED_BYTES: u64 = 64 << 20;
/// How long a sync may be under way before writes go to other threads: more than one on a disk that is merely busy, less
/// than the second or more after which a file system's journal is written.
const INLINE_BESIDE_SYNC: Duration = Duration::from_millis(100);

/// A regular file or a block device.
///
/// Locked until dropped; dropping it while an operation runs on a thread of this crate keeps the
/// lock until that has ended.
pub struct FileStore {
    file: Arc<OpenFile>,
    lane: Arc<Lane>,
}

/// The open file itself, shared with operations on other threads.
struct OpenFile {
    fd: OwnedFd,
    path: Arc<Path>,
    access: Access,
    medium: Medium,
    /// Length in bytes; only grows.
    len: AtomicU64,
    /// Bytes written since the last sync that succeeded.
    unsynced: AtomicU64,
    /// Since when a sync has been under way; nothing while there is none.
    syncing: Mutex<Option<Instant>>,
    /// Of a file on a memory file system, made when it is first wanted; nothing inside if there can be none.
    mapping: OnceLock<Option<Mapping>>,
}

impl FileStore {
    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// What offset and length of a write must be multiples of, in bytes: 1 but for direct access.
    #[must_use]
    pub fn write_unit(&self) -> u64 {
        self.file.medium.direct.map_or(1, NonZeroU64::get)
    }

    /// Reads the first `need` bytes of `buf`, of which the first `done` are there, without
    /// holding up the caller: by the ring of this thread if it has one, else on another thread.
    async fn read_away(
        &self,
        mut buf: IoBuf,
        offset: u64,
        mut done: usize,
        need: usize,
    ) -> (IoBuf, Result<(), StoreError>) {
        let (direct, mut by_ring) = (self.file.medium.direct.is_some(), self.file.medium.ring);
        while by_ring {
            let file = || Arc::clone(&self.file) as sys::File;
            match ring::begin(Transfer::Read, file, offset, buf, done) {
                Ok(flight) => {
                    let (back, result) = flight.await;
                    buf = back;
                    match result {
                        Ok(count) if done + count >= need => return (buf, Ok(())),
                        // Short: the rest goes the same way. A direct read is short at the end only.
                        Ok(count) if count > 0 && !direct => done += count,
                        Ok(_) | Err(Errno::INTR | Errno::AGAIN) => by_ring = false,
                        Err(errno) => {
                            let len = need as u64;
                            let failed = self.file.failed(Operation::Read, offset, len, errno);
                            return (buf, Err(failed));
                        }
                    }
                }
                Err(back) => {
                    buf = back;
                    by_ring = false;
                }
            }
        }
        self.off_thread(move |file| {
            let result = file.read(&mut buf, offset, done, need);
            (buf, result)
        })
        .await
    }

    /// Reads directly what does not consist of whole units: the units around it, into other
    /// memory.
    async fn read_around(
        &self,
        mut buf: IoBuf,
        offset: u64,
        unit: NonZeroU64,
    ) -> (IoBuf, Result<(), StoreError>) {
        let lead = usize::try_from(offset % unit).expect("units are at most a page");
        let unit = usize::try_from(unit.get()).expect("units are at most a page");
        let need = lead + buf.len();
        let around = IoBuf::for_overwrite(need.next_multiple_of(unit));
        let (around, result) = self.read_away(around, offset - lead as u64, 0, need).await;
        if result.is_ok() {
            buf.copy_from_slice(&around[lead..need]);
        }
        (buf, result)
    }

    /// Writes whole units past the page cache.
    async fn write_directly(
        &self,
        mut buf: IoBuf,
        offset: u64,
        durability: Durability,
    ) -> (IoBuf, Result<(), StoreError>) {
        let (len, mut done) = (buf.len(), 0);
        if self.file.medium.ring {
            let durable = durability == Durability::Durable;
            let file = || Arc::clone(&self.file) as sys::File;
            match ring::begin(Transfer::Write { durable }, file, offset, buf, 0) {
                Ok(flight) => {
                    let (back, result) = flight.await;
                    buf = back;
                    match result {
                        Ok(count) if count == len => return (buf, Ok(())),
                        Ok(count) => done = count,
                        Err(Errno::INTR | Errno::AGAIN) => {}
                        Err(errno) => {
                            let len = len as u64;
                            let failed = self.file.failed(Operation::Write, offset, len, errno);
                            return (buf, Err(failed));
                        }
                    }
                }
                Err(back) => buf = back,
            }
        }
        self.write_off_thread(buf, offset, done, durability).await
    }

    /// Writes what is missing after the first `done` bytes.
    async fn write_off_thread(
        &self,
        buf: IoBuf,
        offset: u64,
        done: usize,
        durability: Durability,
    ) -> (IoBuf, Result<(), StoreError>) {
        self.off_thread(move |file| {
            let result = file.write(&buf, offset, done, durability);
            (buf, result)
        })
        .await
    }

    /// Runs `work` on a thread that may block.
    async fn off_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&OpenFile) -> T + Send + 'static,
    ) -> T {
        let file = Arc::clone(&self.file);
        self.lane.run(move || work(&file)).await
    }
}

impl Store for FileStore {
    async fn read_at(&self, mut buf: IoBuf, offset: u64) -> (IoBuf, Result<(), StoreError>) {
        let (file, len) = (&*self.file, buf.len());
        if let Err(error) = file.check(Operation::Read, offset, len as u64) {
            return (buf, Err(error));
        }
        let done = match file.medium.reads {
            Reads::Inline => {
                let result = file.read(&mut buf, offset, 0, len);
                return (buf, result);
            }
            Reads::CachedInline => transfer::read_cached(&file.fd, &mut buf, offset),
            Reads::Away => 0,
        };
        if done == len {
            return (buf, Ok(()));
        }
        match file.medium.direct {
            Some(unit) if !is_whole(unit, offset, len) => self.read_around(buf, offset, unit).await,
            _ => self.read_away(buf, offset, done, len).await,
        }
    }

    async fn write_at(
        &self,
        buf: IoBuf,
        offset: u64,
        durability: Durability,
    ) -> (IoBuf, Result<(), StoreError>) {
        let (file, len) = (&*self.file, buf.len());
        if let Err(error) = file.check(Operation::Write, offset, len as u64) {
            return (buf, Err(error));
        }
        if let Some(unit) = file.medium.direct
            && !is_whole(unit, offset, len)
        {
            let at = file.at(Operation::Write, offset, len as u64);
            let unit = unit.get();
            return (buf, Err(StoreError::Unaligned { at, unit }));
        }
        if len == 0 {
            return (buf, Ok(()));
        }
        match file.medium.writes {
            Writes::Ring => self.write_directly(buf, offset, durability).await,
            _ if file.writes_inline(offset, len as u64, durability) => {
                let result = file.write(&buf, offset, 0, durability);
                (buf, result)
            }
            _ => self.write_off_thread(buf, offset, 0, durability).await,
        }
    }

    async fn read_written(&self, mut buf: IoBuf, offset: u64) -> (IoBuf, Result<(), StoreError>) {
        let file = &*self.file;
        let Some(mapping) = file.mapping() else {
            return self.read_at(buf, offset).await;
        };
        let len = buf.len();
        if let Err(error) = file.check(Operation::Read, offset, len as u64) {
            return (buf, Err(error));
        }
        let done = mapping.read(offset, &mut buf);
        let result = if done == len {
            Ok(())
        } else {
            file.read(&mut buf, offset, done, len)
        };
        (buf, result)
    }

    async fn overwrite_at(
        &self,
        buf: IoBuf,
        offset: u64,
        durability: Durability,
    ) -> (IoBuf, Result<(), StoreError>) {
        let file = &*self.file;
        let Some(mapping) = file.mapping() else {
            return self.write_at(buf, offset, durability).await;
        };
        if let Err(error) = file.check(Operation::Write, offset, buf.len() as u64) {
            return (buf, Err(error));
        }
        let done = mapping.write(offset, &buf);
        let result = if done == buf.len() {
            Ok(())
        } else {
            file.write(&buf, offset, done, durability)
        };
        (buf, result)
    }

    async fn sync(&self) -> Result<(), StoreError> {
        if self.file.medium.is_memory {
            return Ok(());
        }
        self.off_thread(OpenFile::sync).await
    }

    async fn punch(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.file.check(Operation::Punch, offset, len)?;
        self.off_thread(move |file| file.punch(offset, len)).await
    }

    async fn allocate(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.file.check(Operation::Allocate, offset, len)?;
        self.off_thread(move |file| file.allocate(offset, len))
            .await
    }

    fn len(&self) -> u64 {
        self.file.len.load(Ordering::Acquire)
    }

    async fn grow(&self, len: u64) -> Result<(), StoreError> {
        self.file.check(Operation::Grow, 0, 0)?;
        self.off_thread(move |file| file.grow(len)).await
    }

    fn access(&self) -> &'static str {
        self.file.medium.in_words()
    }

    async fn discard_cache(&self) -> Result<(), StoreError> {
        if self.file.medium.is_memory {
            return Ok(());
        }
        self.off_thread(OpenFile::discard_cache).await
    }
}

/// No operation is under way any more: each holds on to the file.
impl Drop for OpenFile {
    fn drop(&mut self) {
        lock::unlock(&self.fd);
        if let Some(mapping) = self.mapping.take().flatten() {
            // Of a large file it takes as long as a million pages take to be let go, and this thread may have others to serve.
            drop(Arc::new(Lane::default()).run(move || drop(mapping)));
        }
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether a range consists of whole units.
fn is_whole(unit: NonZeroU64, offset: u64, len: usize) -> bool {
    offset.is_multiple_of(unit.get()) && (len as u64).is_multiple_of(unit.get())
}

/// The blocking side: each call does the whole of an operation that was checked before.
impl OpenFile {
    fn at(&self, operation: Operation, offset: u64, len: u64) -> Box<Place> {
        Place::new(operation, &self.path, offset, len)
    }

    /// Whether `operation` may be done to this range at all.
    fn check(&self, operation: Operation, offset: u64, len: u64) -> Result<(), StoreError> {
        if operation != Operation::Read && self.access == Access::ReadOnly {
            return Err(StoreError::ReadOnly {
                at: self.at(operation, offset, len),
            });
        }
        let end = self.len.load(Ordering::Acquire);
        if offset.checked_add(len).is_none_or(|past| past > end) {
            return Err(StoreError::PastEnd {
                at: self.at(operation, offset, len),
                end,
            });
        }
        Ok(())
    }

    /// The mapping by which it is reached where it holds data, if it is pages in memory anyway.
    fn mapping(&self) -> Option<&Mapping> {
        if !self.medium.is_memory {
            return None;
        }
        let map = || {
            let len = self.len.load(Ordering::Acquire);
            Mapping::of(&self.fd, len, self.access == Access::Writable)
        };
        self.mapping.get_or_init(map).as_ref()
    }

    /// Whether the caller can make this write itself without being held up.
    fn writes_inline(&self, offset: u64, len: u64, durability: Durability) -> bool {
        match self.medium.writes {
            Writes::Inline => true,
            Writes::OffThread | Writes::Ring => false,
            Writes::InlineWhileFewUnsynced => {
                durability == Durability::Volatile
                    && self.unsynced.load(Ordering::Relaxed).saturating_add(len)
                        <= INLINE_UNSYNCED_BYTES
                    && !self.sync_takes_long()
                    && transfer::edges_are_cached(&self.fd, offset, len)
            }
        }
    }

    /// A disk that does not answer: a file system's journal then waits for it, and a write that only changes a time in the
    /// inode waits for the journal.
    fn sync_takes_long(&self) -> bool {
        self.syncing()
            .is_some_and(|since| since.elapsed() > INLINE_BESIDE_SYNC)
    }

    fn syncing(&self) -> MutexGuard<'_, Option<Instant>> {
        self.syncing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what is missing of the first `need` bytes of `buf` after the first `done`.
    fn read(
        &self,
        buf: &mut [u8],
        offset: u64,
        done: usize,
        need: usize,
    ) -> Result<(), StoreError> {
        let read = match self.medium.direct {
            None => transfer::read_all(&self.fd, &mut buf[done..need], offset + done as u64),
            Some(unit) => transfer::read_directly(&self.fd, buf, offset, need, unit),
        };
        match read {
            Ok(None) => Ok(()),
            Ok(Some(end)) => {
                let at = self.at(Operation::Read, offset, need as u64);
                Err(StoreError::Truncated { at, end })
            }
            Err(errno) => Err(self.failed(Operation::Read, offset, need as u64, errno)),
        }
    }

    /// Writes what is missing of `buf` after the first `done` bytes.
    fn write(
        &self,
        buf: &[u8],
        offset: u64,
        done: usize,
        durability: Durability,
    ) -> Result<(), StoreError> {
        let (rest, len) = (&buf[done..], buf.len() as u64);
        let durable = durability == Durability::Durable && !self.medium.is_memory;
        if !durable {
            // Counted before, and also if it fails: a part may have been written.
            self.unsynced
                .fetch_add(rest.len() as u64, Ordering::Relaxed);
        }
        transfer::write_all(&self.fd, rest, offset + done as u64, durable)
            .map_err(|errno| self.failed(Operation::Write, offset, len, errno))
    }

    fn sync(&self) -> Result<(), StoreError> {
        let covered = self.unsynced.load(Ordering::Relaxed);
        // Of two at once the one that ends first is taken for both: it says that the disk answers.
        self.syncing().get_or_insert_with(Instant::now);
        let synced = retry_on_intr(|| fdatasync(&self.fd));
        *self.syncing() = None;
        synced.map_err(|errno| self.failed(Operation::Sync, 0, 0, errno))?;
        // Two syncs at once may both count the same bytes: never below zero.
        let _ = self
            .unsynced
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |unsynced| {
                Some(unsynced.saturating_sub(covered))
            });
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        self.fallocate(Operation::Punch, how, offset, len)
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        if self.medium.is_block_device {
            return Ok(()); // all of a device is there
        }
        self.fallocate(Operation::Allocate, FallocateFlags::KEEP_SIZE, offset, len)
    }

    fn fallocate(
        &self,
        operation: Operation,
        how: FallocateFlags,
        offset: u64,
        len: u64,
    ) -> Result<(), StoreError> {
        if len == 0 {
            return Ok(()); // fallocate(2) refuses it
        }
        retry_on_intr(|| fallocate(&self.fd, how, offset, len))
            .map_err(|errno| self.failed(operation, offset, len, errno))
    }

    fn grow(&self, len: u64) -> Result<(), StoreError> {
        let current = self.len.load(Ordering::Acquire);
        if len < current {
            return Err(StoreError::Shrink {
                at: self.at(Operation::Grow, 0, len),
                current,
            });
        }
        if self.medium.is_block_device {
            let found = open::device_len(&self.fd)
                .map_err(|errno| self.failed(Operation::Grow, 0, len, errno))?;
            if found < len {
                let at = self.at(Operation::Grow, 0, len);
                let file_system = self.medium.file_system;
                return Err(StoreError::TooLarge {
                    at,
                    limit: Some(found),
                    file_system,
                });
            }
            self.len.fetch_max(found, Ordering::AcqRel);
        } else if len > current {
            retry_on_intr(|| ftruncate(&self.fd, len))
                .map_err(|errno| self.cannot_be(len, errno))?;
            self.len.fetch_max(len, Ordering::AcqRel);
        }
        Ok(())
    }

    /// Why the file could not become `len` bytes long.
    fn cannot_be(&self, len: u64, errno: Errno) -> StoreError {
        let too_large = errno == Errno::FBIG || i64::try_from(len).is_err();
        if !too_large {
            return self.failed(Operation::Grow, 0, len, errno);
        }
        let at = self.at(Operation::Grow, 0, len);
        let limit = self.path.parent().and_then(open::largest_file_beside);
        StoreError::TooLarge {
            at,
            limit,
            file_system: self.medium.file_system,
        }
    }

    fn discard_cache(&self) -> Result<(), StoreError> {
        // Dirty pages are not dropped, so they are written out first. If that fails they are clean
        // afterwards all the same: that is the loss which the operator has accepted.
        let _ = retry_on_intr(|| fdatasync(&self.fd));
        let to_the_end: Option<NonZeroU64> = None;
        fadvise(&self.fd, 0, to_the_end, Advice::DontNeed)
            .map_err(|errno| self.failed(Operation::DiscardCache, 0, 0, errno))
    }

    fn failed(&self, operation: Operation, offset: u64, len: u64, errno: Errno) -> StoreError {
        errno::into_error(
            self.at(operation, offset, len),
            errno,
            self.medium.file_system,
        )
    }
}
