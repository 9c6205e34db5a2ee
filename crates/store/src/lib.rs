//! Ciphertext in and out: the places where a volume's bytes lie.
//!
//! A [`Store`] is one array of bytes with a length: a file, a block device, a model in memory. A
//! [`Directory`] names several of them. Everything above this crate (layers, maps, superblocks)
//! is written against the two traits, so the same code runs on a disk and on a model that loses
//! power in the middle of it.
//!
//! | module | is |
//! |---|---|
//! | [`FileStore`], [`FileDirectory`] | files and block devices of this host, locked while open |
//! | [`MemoryStore`], [`MemoryDirectory`] | sparse memory, always ready at once: the model for tests |
//! | [`fault`] | a disk over any of them that tears writes, fails, stalls and loses power, by seed |
//! | [`ring`] | io_uring for threads with an event loop; without it everything works, by threads |
//! | [`IoBuf`] | the aligned, recycled memory that goes in and comes back |
//!
//! # When is a write durable
//!
//! * When [`Store::write_at`] with [`Durability::Durable`] has returned `Ok`; or
//! * when a [`Store::sync`] that was *called after the write returned* has returned `Ok`. A sync
//!   that had started before covers nothing of it.
//!
//! Until then a crash may keep any part of it, in units of a 512-byte sector, before or after any
//! other write. Punching, allocating and growing are covered by `sync` in the same way. A file
//! that was created, renamed or removed is so after a crash only once [`Directory::sync`] has
//! returned `Ok`; syncing the file itself is not enough.
//!
//! **A sync that failed is for ever.** The kernel reports a lost write once; the next sync of the
//! same file succeeds, and the page cache goes on showing what the disk does not have. Nothing
//! here retries or remembers: whoever calls must, and must count a failed durable write as a
//! failed sync, because the kernel may have handed it the loss of an earlier write.
//!
//! # What always holds
//!
//! * The crate is given ciphertext and cannot see a key.
//! * The first file of a memory file system that holds data installs a handler of SIGBUS for the process; what is not
//!   about such a file, the handler from before gets.
//! * No future of it needs a particular executor. On the inline path it is ready when first
//!   polled and allocates nothing; otherwise threads of this crate complete it.
//! * A buffer is owned by the operation from call to completion and then comes back, also with an
//!   error. Dropping a future early is memory-safe; whether its operation happened is then unknown.

mod buf;
mod error;
pub mod fault;
mod file;
mod mapped;
mod memory;
mod name;
mod pool;
pub mod ring;
mod sharing;
mod sys;

pub use buf::{ALIGNMENT, IoBuf};
pub use error::{Operation, Place, StoreError};
pub use file::{FileDirectory, FileStore};
pub use memory::{MemoryDirectory, MemoryStore};
pub use pool::before_new_threads;

/// What a file may be used for while it is open, and with whom it is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads only; any number of such openers, none of the other kind.
    ReadOnly,
    /// Reads and writes; the only opener.
    Writable,
}

/// Whether the page cache stands between a file and its disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Caching {
    /// It does.
    #[default]
    PageCache,
    /// `O_DIRECT` (`open(2)`): every byte goes between the disk and the caller's memory. Writes are
    /// whole units ([`FileStore::write_unit`]); reads can be of any bytes. Two openers of one file
    /// that differ in this do not reliably see each other's writes. Memory file systems have no
    /// disk, so there it makes no difference.
    Direct,
}

/// Whether a write is on stable storage when it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Not before the next [`Store::sync`].
    Volatile,
    /// On return, as with `RWF_DSYNC` (`pwritev2(2)`): the bytes and what is needed to find them.
    /// Says nothing about other writes, though a failure may be about one of them.
    Durable,
}

/// An array of bytes that survives this process: ciphertext in and out.
///
/// Offsets and lengths are bytes. The order of overlapping operations in flight at once is open:
/// whoever needs one waits. Every operation fails with [`StoreError::PastEnd`] if it reaches
/// beyond [`len`](Self::len); none grows the store but [`grow`](Self::grow).
#[expect(
    clippy::len_without_is_empty,
    reason = "the length of a device, not of a collection"
)]
pub trait Store: Send + Sync + 'static {
    /// Fills the whole of `buf` from `offset`. What was never written, or was punched, reads as
    /// zeros. On error the content of the buffer is unspecified.
    fn read_at(
        &self,
        buf: IoBuf,
        offset: u64,
    ) -> impl Future<Output = (IoBuf, Result<(), StoreError>)> + Send;

    /// Writes the whole of `buf` at `offset`; later reads see it. On error any part of it may
    /// have been written.
    fn write_at(
        &self,
        buf: IoBuf,
        offset: u64,
        durability: Durability,
    ) -> impl Future<Output = (IoBuf, Result<(), StoreError>)> + Send;

    /// As [`read_at`](Self::read_at), of a range that was written, and nothing of it punched since. A store may then go a way
    /// that would take up space for what was not.
    fn read_written(
        &self,
        buf: IoBuf,
        offset: u64,
    ) -> impl Future<Output = (IoBuf, Result<(), StoreError>)> + Send {
        self.read_at(buf, offset)
    }

    /// As [`write_at`](Self::write_at), of such a range.
    fn overwrite_at(
        &self,
        buf: IoBuf,
        offset: u64,
        durability: Durability,
    ) -> impl Future<Output = (IoBuf, Result<(), StoreError>)> + Send {
        self.write_at(buf, offset, durability)
    }

    /// Makes durable everything that completed before this call (`fdatasync(2)`).
    fn sync(&self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Gives the space of a range back; it reads as zeros afterwards.
    ///
    /// # Errors
    /// [`StoreError::Unsupported`] where space cannot be given back; the content is then
    /// unchanged, so a caller who only wants the space may go on.
    fn punch(&self, offset: u64, len: u64) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Makes sure that there is space for a range, so that writing to it cannot meet
    /// [`StoreError::NoSpace`]; the content is unchanged.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`], and [`StoreError::Unsupported`] where no such promise can be had.
    fn allocate(
        &self,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// The length in bytes.
    fn len(&self) -> u64;

    /// Makes the store `len` bytes long; what is new reads as zeros on a file. A block device is
    /// grown by whoever provides it: here its new size is only looked up.
    ///
    /// # Errors
    /// [`StoreError::Shrink`] if it is longer already, [`StoreError::TooLarge`] if the file
    /// system or device cannot hold it.
    fn grow(&self, len: u64) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// How the bytes are reached, in words for an operator.
    fn access(&self) -> &'static str;

    /// Forgets what the page cache holds of this file, so that reads show what is really on the
    /// disk. For one caller: the operator has accepted a loss and the volume is to go on from
    /// what is left. Not for a store that others write to at the time.
    fn discard_cache(&self) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// A flat set of named stores.
///
/// A name is one path component: not empty, no `/`, no NUL, not `.` or `..`, at most 255 bytes.
pub trait Directory: Send + Sync + 'static {
    /// What the names stand for.
    type File: Store;

    /// Makes a new file of `len` bytes that reads as zeros, open for writing and locked.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`]; [`StoreError::TooLarge`] names the limit of the file
    /// system, and leaves no file behind.
    fn create(
        &self,
        name: &str,
        len: u64,
    ) -> impl Future<Output = Result<Self::File, StoreError>> + Send;

    /// Opens a file and locks it as `access` says until it is dropped.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Locked`], [`StoreError::WrongType`].
    fn open(
        &self,
        name: &str,
        access: Access,
    ) -> impl Future<Output = Result<Self::File, StoreError>> + Send;

    /// Gives a file another name, replacing whatever had that name, in one step.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    fn rename(&self, from: &str, to: &str) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Removes a name. Whoever has the file open can go on using it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    fn remove(&self, name: &str) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// The names of the files, sorted by bytes.
    fn list(&self) -> impl Future<Output = Result<Vec<String>, StoreError>> + Send;

    /// Makes durable every create, rename and remove that completed before this call.
    fn sync(&self) -> impl Future<Output = Result<(), StoreError>> + Send;
}
