//! Stores in memory: the model that files are compared with, and the medium of the fault disk.
//!
//! Every operation is ready when first polled, and durable at once as far as a process that dies
//! loses all of it. Memory is taken per 4 KiB page that was written, so a store of 64 TiB costs
//! what is in it. Locks are those of real files: one writer, or any number of readers.

mod directory;
mod sparse;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use directory::MemoryDirectory;

use crate::sharing::{Share, Sharing};
use crate::{Access, Durability, IoBuf, Operation, Place, Store, StoreError};
use sparse::Sparse;

/// A sparse array of bytes in memory.
///
/// A clone is the same open file: it shows the same bytes and counts as the same opener.
#[derive(Clone)]
pub struct MemoryStore {
    open: Arc<OpenMemoryFile>,
}

/// What a name in a [`MemoryDirectory`] stands for.
#[derive(Clone, Default)]
struct MemoryFile {
    bytes: Arc<Mutex<Sparse>>,
    sharing: Sharing,
}

struct OpenMemoryFile {
    bytes: Arc<Mutex<Sparse>>,
    share: Share,
    path: Arc<Path>,
}

impl MemoryStore {
    /// A writable store of `len` zeros without a name.
    ///
    /// # Panics
    /// Never: nobody else can have it open.
    #[must_use]
    pub fn new(len: u64) -> Self {
        let file = MemoryFile::default();
        locked(&file.bytes).len = len;
        let path = Path::new("memory").into();
        Self::open(&file, Access::Writable, path, Operation::Create).expect("nobody else has it")
    }

    fn open(
        file: &MemoryFile,
        access: Access,
        path: Arc<Path>,
        operation: Operation,
    ) -> Result<Self, StoreError> {
        let Some(share) = file.sharing.admit(access) else {
            return Err(StoreError::Locked {
                at: Place::whole(operation, &path),
            });
        };
        let bytes = Arc::clone(&file.bytes);
        Ok(Self {
            open: Arc::new(OpenMemoryFile { bytes, share, path }),
        })
    }

    /// Bytes of memory that the content takes.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.bytes().allocated()
    }

    fn bytes(&self) -> MutexGuard<'_, Sparse> {
        locked(&self.open.bytes)
    }

    fn at(&self, operation: Operation, offset: u64, len: u64) -> Box<Place> {
        Place::new(operation, &self.open.path, offset, len)
    }

    /// The bytes, if `operation` may be done to this range of them.
    fn checked(
        &self,
        operation: Operation,
        offset: u64,
        len: u64,
    ) -> Result<MutexGuard<'_, Sparse>, StoreError> {
        if operation != Operation::Read && self.open.share.access() == Access::ReadOnly {
            return Err(StoreError::ReadOnly {
                at: self.at(operation, offset, len),
            });
        }
        let bytes = self.bytes();
        if offset.checked_add(len).is_none_or(|end| end > bytes.len) {
            let end = bytes.len;
            return Err(StoreError::PastEnd {
                at: self.at(operation, offset, len),
                end,
            });
        }
        Ok(bytes)
    }
}

impl Store for MemoryStore {
    async fn read_at(&self, mut buf: IoBuf, offset: u64) -> (IoBuf, Result<(), StoreError>) {
        let result = self
            .checked(Operation::Read, offset, buf.len() as u64)
            .map(|bytes| bytes.read(offset, &mut buf));
        (buf, result)
    }

    async fn write_at(
        &self,
        buf: IoBuf,
        offset: u64,
        _durability: Durability,
    ) -> (IoBuf, Result<(), StoreError>) {
        let result = self
            .checked(Operation::Write, offset, buf.len() as u64)
            .map(|mut bytes| bytes.write(offset, &buf));
        (buf, result)
    }

    async fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn punch(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.checked(Operation::Punch, offset, len)
            .map(|mut bytes| bytes.punch(offset, len))
    }

    async fn allocate(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.checked(Operation::Allocate, offset, len).map(drop)
    }

    fn len(&self) -> u64 {
        self.bytes().len
    }

    async fn grow(&self, len: u64) -> Result<(), StoreError> {
        let mut bytes = self.checked(Operation::Grow, 0, 0)?;
        if len < bytes.len {
            let current = bytes.len;
            return Err(StoreError::Shrink {
                at: self.at(Operation::Grow, 0, len),
                current,
            });
        }
        bytes.len = len;
        Ok(())
    }

    fn access(&self) -> &'static str {
        "memory of this process (a model: nothing survives it)"
    }

    async fn discard_cache(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Locks a mutex whose holders only copy bytes, poisoned or not.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
