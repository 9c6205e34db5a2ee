//! A directory on the fault disk.

use std::path::Path;
use std::sync::Arc;

use super::cache::Cache;
use super::disk::{Begun, FaultFile, Shared, path_of, platter_name};
use super::extents::Extents;
use super::namespace::FileId;
use super::plan::Fault;
use super::store::{FaultStore, failure};
use crate::name::path_in;
use crate::{Access, Directory, MemoryDirectory, Operation, Place, StoreError};

/// A directory of a [`FaultDisk`](super::FaultDisk).
pub struct FaultDirectory<D: Directory = MemoryDirectory> {
    disk: Arc<Shared<D>>,
    name: String,
    path: Arc<Path>,
    boot: u64,
}

impl<D: Directory> Clone for FaultDirectory<D> {
    fn clone(&self) -> Self {
        let (name, path) = (self.name.clone(), Arc::clone(&self.path));
        Self {
            disk: Arc::clone(&self.disk),
            name,
            path,
            boot: self.boot,
        }
    }
}

impl<D: Directory> FaultDirectory<D> {
    pub(super) fn new(disk: Arc<Shared<D>>, name: &str, boot: u64) -> Self {
        Self {
            disk,
            name: name.to_owned(),
            path: path_of(name),
            boot,
        }
    }

    async fn begin(&self, place: Box<Place>) -> Result<Begun, StoreError> {
        self.disk.begin(self.boot, place, false).await
    }

    fn handle(
        &self,
        file: &Arc<FaultFile<D>>,
        access: Access,
        place: &Place,
    ) -> Result<FaultStore<D>, StoreError> {
        let Some(share) = file.sharing.admit(access) else {
            return Err(StoreError::Locked {
                at: Box::new(place.clone()),
            });
        };
        let (disk, file) = (Arc::clone(&self.disk), Arc::clone(file));
        Ok(FaultStore::new(
            disk,
            file,
            Arc::clone(&place.path),
            share,
            self.boot,
        ))
    }

    async fn create_as(
        &self,
        begun: &Begun,
        name: &str,
        len: u64,
    ) -> Result<FaultStore<D>, StoreError> {
        let id = self.disk.state().new_file_id();
        let platter = Arc::new(self.disk.platter.create(&platter_name(id), 0).await?);
        let mut cache = Cache::clean(0, Extents::default());
        // Even its length is durable only after a sync.
        cache.grow(begun.id, len);
        let file = Arc::new(FaultFile::new(platter, cache));
        let is_new = {
            let mut state = self.disk.state();
            let is_new = state.names.create(begun.id, &self.name, name, id);
            if is_new {
                state.files.insert(id, Arc::clone(&file));
            }
            is_new
        };
        if !is_new {
            self.disk.platter.remove(&platter_name(id)).await?;
            return Err(StoreError::AlreadyExists {
                at: begun.place.clone(),
            });
        }
        self.handle(&file, Access::Writable, &begun.place)
    }

    /// Gives the space of a file back that lost its name.
    async fn forget(&self, id: Option<FileId>) {
        let file = id.and_then(|id| self.disk.state().files.get(&id).cloned());
        if let Some(file) = file {
            let bytes = file.cache.lock().await.allocated().bytes();
            self.disk.state().give_space(bytes);
        }
    }
}

/// Whether a directory operation with this fault happens; in flight as the power goes, it may.
fn happens(fault: Option<Fault>) -> bool {
    matches!(fault, None | Some(Fault::CutPower))
}

/// The result of an operation that has happened, unless the plan has it otherwise.
fn unless_failed<T>(begun: &Begun, result: Result<T, StoreError>) -> Result<T, StoreError> {
    match begun.fault {
        Some(fault) => Err(failure(fault, &begun.place)),
        None => result,
    }
}

impl<D: Directory> Directory for FaultDirectory<D> {
    type File = FaultStore<D>;

    async fn create(&self, name: &str, len: u64) -> Result<FaultStore<D>, StoreError> {
        let path = path_in(&self.path, name, Operation::Create)?;
        let begun = self
            .begin(Place::new(Operation::Create, &path, 0, len))
            .await?;
        let result = if happens(begun.fault) {
            self.create_as(&begun, name, len)
                .await
                .and_then(|file| unless_failed(&begun, Ok(file)))
        } else {
            unless_failed(
                &begun,
                Err(StoreError::NotFound {
                    at: begun.place.clone(),
                }),
            )
        };
        self.disk.end(begun, result).await
    }

    async fn open(&self, name: &str, access: Access) -> Result<FaultStore<D>, StoreError> {
        let path = path_in(&self.path, name, Operation::Open)?;
        let begun = self.begin(Place::whole(Operation::Open, &path)).await?;
        let file = {
            let state = self.disk.state();
            let id = state.names.find(&self.name, name);
            id.and_then(|id| state.files.get(&id).cloned())
        };
        let opened = match file {
            Some(file) => self.handle(&file, access, &begun.place),
            None => Err(StoreError::NotFound {
                at: begun.place.clone(),
            }),
        };
        let result = unless_failed(&begun, opened);
        self.disk.end(begun, result).await
    }

    async fn rename(&self, from: &str, to: &str) -> Result<(), StoreError> {
        let path = path_in(&self.path, from, Operation::Rename)?;
        path_in(&self.path, to, Operation::Rename)?;
        let begun = self.begin(Place::whole(Operation::Rename, &path)).await?;
        let mut result = Ok(());
        if happens(begun.fault) {
            let (replaced, renamed) = {
                let mut state = self.disk.state();
                let replaced = state.names.find(&self.name, to).filter(|_| from != to);
                (replaced, state.names.rename(begun.id, &self.name, from, to))
            };
            if renamed {
                self.forget(replaced).await;
            } else {
                result = Err(StoreError::NotFound {
                    at: begun.place.clone(),
                });
            }
        }
        let result = unless_failed(&begun, result);
        self.disk.end(begun, result).await
    }

    async fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = path_in(&self.path, name, Operation::Remove)?;
        let begun = self.begin(Place::whole(Operation::Remove, &path)).await?;
        let mut result = Ok(());
        if happens(begun.fault) {
            let (id, removed) = {
                let mut state = self.disk.state();
                let id = state.names.find(&self.name, name);
                (id, state.names.remove(begun.id, &self.name, name))
            };
            if removed {
                self.forget(id).await;
            } else {
                result = Err(StoreError::NotFound {
                    at: begun.place.clone(),
                });
            }
        }
        let result = unless_failed(&begun, result);
        self.disk.end(begun, result).await
    }

    async fn list(&self) -> Result<Vec<String>, StoreError> {
        let begun = self
            .begin(Place::whole(Operation::List, &self.path))
            .await?;
        let names = self.disk.state().names.list(&self.name);
        let result = unless_failed(&begun, Ok(names));
        self.disk.end(begun, result).await
    }

    async fn sync(&self) -> Result<(), StoreError> {
        let begun = self
            .begin(Place::whole(Operation::SyncDirectory, &self.path))
            .await?;
        if begun.fault.is_none() {
            self.disk.state().names.sync(&self.name, &begun.covers);
            self.disk.remove_unreachable().await?;
        }
        let result = unless_failed(&begun, Ok(()));
        self.disk.end(begun, result).await
    }
}
