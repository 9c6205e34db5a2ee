//! Bringing changes of the map to disk: the map's part of a commit and of a clean detach.
//!
//! Always: a page is written to the place that does not hold its newest content on disk, so that a torn
//! write leaves the previous one. What is written is a copy that was made before the data sync
//! (rule R1): a page on disk never carries an entry newer than the last data sync.
//! Never: a sync. The order of writes and syncs is `commit.rs`'s.
//!
//! One commit, close or grow at a time calls in here.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use sealvol_store::{Durability, IoBuf, Store};

use super::{Directory, Map, Page, STALE_MAX};
use crate::error::VolumeError;
use crate::geometry::{
    DIRECTORY_PAGES, PAGE_BLOCKS, PAGE_LEN, directory_offset, index, page_offset,
};
use crate::page::{self, BlockState, DirectoryEntry, PageKind, pack_entries, pack_states};

/// Copies of the pages that had changes when a commit began.
pub(crate) struct Batch(Vec<PageCopy>);

struct PageCopy {
    page: Arc<Page>,
    /// The page's `changes` before it was copied: at least these are in the copy.
    changes: u64,
    content: Content,
}

enum Content {
    Uniform(BlockState),
    /// The sealed page; the buffer is taken when it is written.
    Paged {
        sequence: u64,
        buf: Option<IoBuf>,
    },
}

/// What writing directory pages did.
#[derive(Default)]
pub(crate) struct Written {
    /// Directory pages that the root on disk does not name yet, with their sequences.
    pub(crate) new: Vec<(u64, u64)>,
    /// Whether anything was written, and a sync is due.
    pub(crate) any: bool,
}

impl Batch {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<S: Store> Map<S> {
    /// Copies every page with changes. Changes made from here on belong to the next commit.
    pub(crate) fn copy_dirty(&self) -> Batch {
        let dirty = {
            let mut dirty = self.dirty.lock().unwrap_or_else(PoisonError::into_inner);
            self.dirty_len.store(0, Ordering::Relaxed);
            std::mem::take(&mut *dirty)
        };
        Batch(dirty.into_iter().map(|page| self.copy(page)).collect())
    }

    fn copy(&self, page: Arc<Page>) -> PageCopy {
        // In this order: what changes after `queued` is cleared queues the page again, and `changes` is
        // read before the cells, so that it never counts a change that the copy lacks.
        page.queued.store(false, Ordering::SeqCst);
        let changes = page.changes.load(Ordering::SeqCst);
        let (state, run) = page.cells.run(0..index(PAGE_BLOCKS));
        let content = if run == index(PAGE_BLOCKS) {
            Content::Uniform(state)
        } else {
            let sequence = self.next_sequence();
            let mut buf = IoBuf::for_overwrite(PAGE_LEN);
            let name = self.name(PageKind::Map, page.number);
            page::seal(name, sequence, &self.cipher, &mut buf, |payload| {
                pack_states(page.cells.words(), payload);
            });
            Content::Paged {
                sequence,
                buf: Some(buf),
            }
        };
        PageCopy {
            page,
            changes,
            content,
        }
    }

    /// Writes the copies that are not uniform; whether there were any, and a sync is due.
    pub(crate) async fn write_pages(&self, batch: &mut Batch) -> Result<bool, VolumeError> {
        let mut any = false;
        for copy in &mut batch.0 {
            let Content::Paged { buf, .. } = &mut copy.content else {
                continue;
            };
            let Some(buf) = buf.take() else { continue };
            let place = copy
                .page
                .place
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .other();
            let offset = page_offset(copy.page.number, place);
            let (_, result) = self.meta.write_at(buf, offset, Durability::Volatile).await;
            result?;
            *copy
                .page
                .place
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = place;
            any = true;
        }
        Ok(any)
    }

    /// Enters what was written into the directory pages in memory.
    pub(crate) async fn enter_directories(&self, batch: &Batch) -> Result<(), VolumeError> {
        for copy in &batch.0 {
            let number = copy.page.number;
            let directory = self.directory(number / DIRECTORY_PAGES).await?;
            let entry = match copy.content {
                Content::Uniform(state) => DirectoryEntry::Uniform(state),
                Content::Paged { sequence, .. } => DirectoryEntry::Paged { sequence },
            };
            let before = directory.entry(number);
            if before == entry {
                continue;
            }
            directory.set_entry(number, entry);
            match (before, entry) {
                (DirectoryEntry::Paged { .. }, DirectoryEntry::Paged { .. }) => {
                    directory.stale.store(true, Ordering::Release);
                }
                _ => directory.changed.store(true, Ordering::Release),
            }
        }
        Ok(())
    }

    /// Writes the directory pages whose states changed; with `stale`, or if they have become many, also those whose
    /// sequences did.
    pub(crate) async fn write_directories(&self, stale: bool) -> Result<Written, VolumeError> {
        let directories: Vec<Arc<Directory>> = {
            let resident = self
                .tables
                .directories
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            resident.values().cloned().collect()
        };
        let is_stale = |directory: &&Arc<Directory>| directory.stale.load(Ordering::Acquire);
        let stale = stale || directories.iter().filter(is_stale).count() > STALE_MAX;
        let mut written = Written::default();
        for directory in directories {
            let changed = directory.changed.load(Ordering::Acquire);
            let due = changed || stale && directory.stale.load(Ordering::Acquire);
            if !due {
                continue;
            }
            let sequence = self.write_directory(&directory).await?;
            // Only now: until then, and for ever if the write failed, the cache must not drop it.
            directory.changed.store(false, Ordering::Release);
            directory.stale.store(false, Ordering::Release);
            written.any = true;
            let root = self.root.read().unwrap_or_else(PoisonError::into_inner);
            if root[index(directory.number)] == 0 {
                written.new.push((directory.number, sequence));
            }
        }
        Ok(written)
    }

    async fn write_directory(&self, directory: &Directory) -> Result<u64, VolumeError> {
        let sequence = self.next_sequence();
        let mut buf = IoBuf::for_overwrite(PAGE_LEN);
        let name = self.name(PageKind::Directory, directory.number);
        page::seal(name, sequence, &self.cipher, &mut buf, |payload| {
            pack_entries(|at| directory.entries[at].load(Ordering::Acquire), payload);
        });
        let place = directory
            .place
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .other();
        let offset = directory_offset(directory.number, place);
        let (_, result) = self.meta.write_at(buf, offset, Durability::Volatile).await;
        result?;
        *directory
            .place
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = place;
        self.newest_root
            .write()
            .unwrap_or_else(PoisonError::into_inner)[index(directory.number)] = sequence;
        Ok(sequence)
    }

    /// The copies are durable: their pages are, up to what was copied.
    pub(crate) fn settle(&self, batch: &Batch) {
        for copy in &batch.0 {
            copy.page.durable.store(copy.changes, Ordering::Release);
        }
    }

    /// The superblock on disk has this root now.
    pub(crate) fn root_written(&self, root: &[u64]) {
        root.clone_into(&mut self.root.write().unwrap_or_else(PoisonError::into_inner));
        // After a grow it is longer.
        self.newest_root
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .resize(root.len(), 0);
    }

    /// The root that names every directory page as it is on disk.
    pub(crate) fn exact_root(&self) -> Vec<u64> {
        self.newest_root
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
