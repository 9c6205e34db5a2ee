//! A file on the fault disk.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::SECTOR;
use super::cache::Cache;
use super::disk::{Begun, FaultFile, Shared};
use super::extents::BLOCK;
use super::plan::{Failure, Fault};
use crate::sharing::Share;
use crate::{
    Access, Directory, Durability, IoBuf, MemoryDirectory, Operation, Place, Store, StoreError,
};

/// A file on a [`FaultDisk`](super::FaultDisk).
///
/// A clone is the same open file, and counts as the same opener.
pub struct FaultStore<D: Directory = MemoryDirectory> {
    open: Arc<OpenFaultFile<D>>,
}

struct OpenFaultFile<D: Directory> {
    disk: Arc<Shared<D>>,
    file: Arc<FaultFile<D>>,
    path: Arc<Path>,
    share: Share,
    boot: u64,
}

impl<D: Directory> Clone for FaultStore<D> {
    fn clone(&self) -> Self {
        Self {
            open: Arc::clone(&self.open),
        }
    }
}

impl<D: Directory> FaultStore<D> {
    pub(super) fn new(
        disk: Arc<Shared<D>>,
        file: Arc<FaultFile<D>>,
        path: Arc<Path>,
        share: Share,
        boot: u64,
    ) -> Self {
        Self {
            open: Arc::new(OpenFaultFile {
                disk,
                file,
                path,
                share,
                boot,
            }),
        }
    }
}

impl<D: Directory> OpenFaultFile<D> {
    fn at(&self, operation: Operation, offset: u64, len: u64) -> Box<Place> {
        Place::new(operation, &self.path, offset, len)
    }

    fn check(&self, operation: Operation, offset: u64, len: u64) -> Result<(), StoreError> {
        if operation != Operation::Read && self.share.access() == Access::ReadOnly {
            return Err(StoreError::ReadOnly {
                at: self.at(operation, offset, len),
            });
        }
        let end = self.file.len.load(Ordering::Acquire);
        if offset.checked_add(len).is_none_or(|past| past > end) {
            return Err(StoreError::PastEnd {
                at: self.at(operation, offset, len),
                end,
            });
        }
        Ok(())
    }

    async fn begin(
        &self,
        operation: Operation,
        offset: u64,
        len: u64,
        durable: bool,
    ) -> Result<Begun, StoreError> {
        self.disk
            .begin(self.boot, self.at(operation, offset, len), durable)
            .await
    }

    async fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), StoreError> {
        self.check(Operation::Read, offset, buf.len() as u64)?;
        let begun = self
            .begin(Operation::Read, offset, buf.len() as u64, false)
            .await?;
        let result = match begun.fault {
            Some(fault) => Err(failure(fault, &begun.place)),
            None => {
                self.file
                    .cache
                    .lock()
                    .await
                    .read(&*self.file.platter, offset, buf)
                    .await
            }
        };
        self.disk.end(begun, result).await
    }

    async fn write(
        &self,
        buf: &[u8],
        offset: u64,
        durability: Durability,
    ) -> Result<(), StoreError> {
        let len = buf.len() as u64;
        self.check(Operation::Write, offset, len)?;
        let durable = durability == Durability::Durable;
        let begun = self.begin(Operation::Write, offset, len, durable).await?;
        let result = self.write_as(&begun, buf, offset, durable).await;
        self.disk.end(begun, result).await
    }

    async fn write_as(
        &self,
        begun: &Begun,
        buf: &[u8],
        offset: u64,
        durable: bool,
    ) -> Result<(), StoreError> {
        let mut cache = self.file.cache.lock().await;
        if let Some(fault) = begun.fault {
            self.write_and_fail(&mut cache, begun, fault, (buf, offset), durable)
                .await?;
            return Err(failure(fault, &begun.place));
        }
        self.write_what_fits(&mut cache, begun, buf, offset).await?;
        if durable {
            let range = (offset, buf.len() as u64);
            cache
                .write_through(&*self.file.platter, range, || true)
                .await?;
        }
        Ok(())
    }

    /// What a write leaves that fails.
    async fn write_and_fail(
        &self,
        cache: &mut Cache,
        begun: &Begun,
        fault: Fault,
        (buf, offset): (&[u8], u64),
        durable: bool,
    ) -> Result<(), StoreError> {
        let platter = &*self.file.platter;
        let mut chance = self.disk.state().chance();
        match fault {
            // In flight as the power goes: any of it may be there.
            Fault::CutPower => cache.write(platter, begun.id, offset, buf).await,
            // The page cache has it, then the disk fails on parts of it.
            Fault::Fail(_) | Fault::FailPartly(_) if durable => {
                self.write_what_fits(cache, begun, buf, offset).await?;
                let range = (offset, buf.len() as u64);
                cache
                    .write_through(platter, range, || chance.chance(1, 2))
                    .await
            }
            Fault::Fail(_) => Ok(()),
            Fault::FailPartly(_) if chance.chance(1, 2) => {
                let short = chance.index(buf.len() + 1);
                self.write_what_fits(cache, begun, &buf[..short], offset)
                    .await
            }
            Fault::FailPartly(_) => {
                for (at, sector) in sectors(offset, buf) {
                    if chance.chance(1, 2) {
                        self.write_what_fits(cache, begun, sector, at).await?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Writes as much from the start of `buf` as there is space for.
    async fn write_what_fits(
        &self,
        cache: &mut Cache,
        begun: &Begun,
        buf: &[u8],
        offset: u64,
    ) -> Result<(), StoreError> {
        let mut fits = buf.len();
        {
            let mut state = self.disk.state();
            let free = state.free();
            while cache.space_missing(offset, fits as u64) > free {
                let end = offset + fits as u64;
                let in_last_block = (end - 1) % BLOCK + 1;
                fits = fits.saturating_sub(usize::try_from(in_last_block).expect("a block"));
            }
            state.take_space(cache.space_missing(offset, fits as u64));
        }
        cache
            .write(&*self.file.platter, begun.id, offset, &buf[..fits])
            .await?;
        if fits < buf.len() {
            return Err(StoreError::NoSpace {
                at: begun.place.clone(),
            });
        }
        Ok(())
    }

    async fn sync(&self) -> Result<(), StoreError> {
        let begun = self.begin(Operation::Sync, 0, 0, false).await?;
        let mut cache = self.file.cache.lock().await;
        let result = match begun.fault {
            None => cache.sync(&*self.file.platter, &begun.covers).await,
            Some(fault @ Fault::CutPower) => Err(failure(fault, &begun.place)),
            Some(fault) => {
                let mut chance = self.disk.state().chance();
                let lost = cache
                    .fail_sync(&*self.file.platter, &begun.covers, &mut chance)
                    .await;
                lost.and_then(|()| Err(failure(fault, &begun.place)))
            }
        };
        drop(cache);
        self.disk.end(begun, result).await
    }

    async fn punch(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.check(Operation::Punch, offset, len)?;
        let begun = self.begin(Operation::Punch, offset, len, false).await?;
        let mut cache = self.file.cache.lock().await;
        let mut chance = self.disk.state().chance();
        let punched = match begun.fault {
            None | Some(Fault::CutPower) => len,
            Some(Fault::FailPartly(_)) => chance.below(len / SECTOR + 1) * SECTOR,
            Some(Fault::Fail(_)) => 0,
        };
        let freed = cache
            .punch(&*self.file.platter, begun.id, offset, punched)
            .await;
        drop(cache);
        let result = freed.and_then(|bytes| {
            self.disk.state().give_space(bytes);
            begun
                .fault
                .map_or(Ok(()), |fault| Err(failure(fault, &begun.place)))
        });
        self.disk.end(begun, result).await
    }

    async fn allocate(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.check(Operation::Allocate, offset, len)?;
        let begun = self.begin(Operation::Allocate, offset, len, false).await?;
        let mut cache = self.file.cache.lock().await;
        let result = match begun.fault {
            Some(fault) => Err(failure(fault, &begun.place)),
            None => {
                let mut state = self.disk.state();
                let missing = cache.space_missing(offset, len);
                if missing > state.free() {
                    Err(StoreError::NoSpace {
                        at: begun.place.clone(),
                    })
                } else {
                    state.take_space(missing);
                    cache.allocate(begun.id, offset, len);
                    Ok(())
                }
            }
        };
        drop(cache);
        self.disk.end(begun, result).await
    }

    async fn grow(&self, len: u64) -> Result<(), StoreError> {
        self.check(Operation::Grow, 0, 0)?;
        let begun = self.begin(Operation::Grow, 0, len, false).await?;
        let mut cache = self.file.cache.lock().await;
        let current = cache.len();
        let result = match begun.fault {
            Some(fault @ (Fault::Fail(_) | Fault::FailPartly(_))) => {
                Err(failure(fault, &begun.place))
            }
            _ if len < current => Err(StoreError::Shrink {
                at: begun.place.clone(),
                current,
            }),
            _ => {
                cache.grow(begun.id, len);
                self.file.len.store(len, Ordering::Release);
                Ok(())
            }
        };
        drop(cache);
        self.disk.end(begun, result).await
    }

    async fn discard_cache(&self) -> Result<(), StoreError> {
        let begun = self.begin(Operation::DiscardCache, 0, 0, false).await?;
        let result = match begun.fault {
            Some(fault) => Err(failure(fault, &begun.place)),
            None => {
                self.file
                    .cache
                    .lock()
                    .await
                    .discard_clean(&*self.file.platter)
                    .await
            }
        };
        self.disk.end(begun, result).await
    }
}

impl<D: Directory> Store for FaultStore<D> {
    async fn read_at(&self, mut buf: IoBuf, offset: u64) -> (IoBuf, Result<(), StoreError>) {
        let result = self.open.read(&mut buf, offset).await;
        (buf, result)
    }

    async fn write_at(
        &self,
        buf: IoBuf,
        offset: u64,
        durability: Durability,
    ) -> (IoBuf, Result<(), StoreError>) {
        let result = self.open.write(&buf, offset, durability).await;
        (buf, result)
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.open.sync().await
    }

    async fn punch(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.open.punch(offset, len).await
    }

    async fn allocate(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.open.allocate(offset, len).await
    }

    fn len(&self) -> u64 {
        self.open.file.len.load(Ordering::Acquire)
    }

    async fn grow(&self, len: u64) -> Result<(), StoreError> {
        self.open.grow(len).await
    }

    fn access(&self) -> &'static str {
        "a disk that fails by seed (a model)"
    }

    async fn discard_cache(&self) -> Result<(), StoreError> {
        self.open.discard_cache().await
    }
}

/// The error that a fault is seen as.
pub(super) fn failure(fault: Fault, at: &Place) -> StoreError {
    let at = Box::new(at.clone());
    match fault {
        Fault::Fail(Failure::Io) | Fault::FailPartly(Failure::Io) => {
            StoreError::io(at, Errno::IO.into())
        }
        Fault::Fail(Failure::NoSpace) | Fault::FailPartly(Failure::NoSpace) => {
            StoreError::NoSpace { at }
        }
        Fault::CutPower => StoreError::PowerLost { at },
    }
}

/// Cuts a write where sectors meet.
fn sectors(offset: u64, buf: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let mut at = offset;
    let mut rest = buf;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let to_boundary = usize::try_from(SECTOR - at % SECTOR).expect("a sector is small");
        let (sector, others) = rest.split_at(to_boundary.min(rest.len()));
        let start = at;
        at += sector.len() as u64;
        rest = others;
        Some((start, sector))
    })
}
