//! Named stores in memory.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::{MemoryFile, MemoryStore, locked};
use crate::name::path_in;
use crate::{Access, Directory, Operation, Place, StoreError};

/// A directory in memory. A clone is the same directory.
#[derive(Clone)]
pub struct MemoryDirectory {
    files: Arc<Mutex<BTreeMap<String, MemoryFile>>>,
    path: Arc<Path>,
}

impl MemoryDirectory {
    /// An empty directory.
    #[must_use]
    pub fn new() -> Self {
        Self {
            files: Arc::default(),
            path: Path::new("memory").into(),
        }
    }
}

impl Default for MemoryDirectory {
    fn default() -> Self {
        Self::new()
    }
}

impl Directory for MemoryDirectory {
    type File = MemoryStore;

    async fn create(&self, name: &str, len: u64) -> Result<MemoryStore, StoreError> {
        let path = path_in(&self.path, name, Operation::Create)?;
        let mut files = locked(&self.files);
        if files.contains_key(name) {
            return Err(StoreError::AlreadyExists {
                at: Place::new(Operation::Create, &path, 0, len),
            });
        }
        let file = MemoryFile::default();
        locked(&file.bytes).len = len;
        let store = MemoryStore::open(&file, Access::Writable, path, Operation::Create)?;
        files.insert(name.to_owned(), file);
        Ok(store)
    }

    async fn open(&self, name: &str, access: Access) -> Result<MemoryStore, StoreError> {
        let path = path_in(&self.path, name, Operation::Open)?;
        match locked(&self.files).get(name) {
            Some(file) => MemoryStore::open(file, access, path, Operation::Open),
            None => Err(StoreError::NotFound {
                at: Place::whole(Operation::Open, &path),
            }),
        }
    }

    async fn rename(&self, from: &str, to: &str) -> Result<(), StoreError> {
        let path = path_in(&self.path, from, Operation::Rename)?;
        path_in(&self.path, to, Operation::Rename)?;
        let mut files = locked(&self.files);
        match files.remove(from) {
            Some(file) => {
                files.insert(to.to_owned(), file);
                Ok(())
            }
            None => Err(StoreError::NotFound {
                at: Place::whole(Operation::Rename, &path),
            }),
        }
    }

    async fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = path_in(&self.path, name, Operation::Remove)?;
        match locked(&self.files).remove(name) {
            Some(_) => Ok(()),
            None => Err(StoreError::NotFound {
                at: Place::whole(Operation::Remove, &path),
            }),
        }
    }

    async fn list(&self) -> Result<Vec<String>, StoreError> {
        Ok(locked(&self.files).keys().cloned().collect())
    }

    async fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
