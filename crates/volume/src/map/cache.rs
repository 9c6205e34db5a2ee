//! The page cache of map pages: one for all volumes of a daemon, bounded.
//!
//! Always: the bound holds but for pages that can't go: those with changes that are not on disk, and those somebody is
//! looking at. A volume commits early while the cache is over its bound, so that the first kind goes too. A page that was
//! used since the cache last looked at it gets a second chance.
//! Never: a wait, and never two maps locked at once: any thread may bring about the eviction of another volume's pages.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use super::resolved::{RESOLVED_BYTES, ResolvedPages};
use super::{Directory, Page};

/// What a page counts, in bytes: its states and what is around them.
const PAGE_BYTES: usize = 4096 + 256;
/// What a directory page counts.
const DIRECTORY_BYTES: usize = 2048 + 256;
/// What stacks say may take the bound divided by this.
const RESOLVED_SHARE: usize = 4;
/// One eviction makes room for several pages, because it looks at all of them.
const BATCH: usize = 16;

/// The bound, and whose pages count against it. Shared by all volumes that are opened with it.
pub struct MapCache {
    bound: usize,
    resident: AtomicUsize,
    tables: Mutex<Vec<Weak<Tables>>>,
    /// How much of it is what stacks say, and of which.
    resolved: AtomicUsize,
    stacks: Mutex<Vec<Weak<ResolvedPages>>>,
}

/// The resident pages of one map.
#[derive(Default)]
pub(super) struct Tables {
    pub(super) pages: RwLock<HashMap<u64, Arc<Page>>>,
    pub(super) directories: RwLock<HashMap<u64, Arc<Directory>>>,
}

impl MapCache {
    /// A cache of `bytes` bytes: 64 MiB hold the map of 1 TiB of scattered blocks.
    #[must_use]
    pub fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            bound: bytes,
            resident: AtomicUsize::new(0),
            tables: Mutex::default(),
            resolved: AtomicUsize::new(0),
            stacks: Mutex::default(),
        })
    }

    /// Bytes resident now.
    #[must_use]
    pub fn resident(&self) -> usize {
        self.resident.load(Ordering::Relaxed)
    }

    /// Whether more is resident than should be.
    pub(super) fn is_over(&self) -> bool {
        self.resident() > self.bound
    }

    pub(super) fn register(&self, tables: &Arc<Tables>) {
        let mut all = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|tables| tables.strong_count() > 0);
        all.push(Arc::downgrade(tables));
    }

    pub(super) fn register_resolved(&self, pages: &Arc<ResolvedPages>) {
        let mut all = self.stacks.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|pages| pages.strong_count() > 0);
        all.push(Arc::downgrade(pages));
    }

    pub(super) fn resolved_added(&self) {
        let before = self.resolved.fetch_add(RESOLVED_BYTES, Ordering::Relaxed);
        let most = self.bound / RESOLVED_SHARE;
        if before + RESOLVED_BYTES > most {
            self.evict_resolved(most - most / BATCH);
        }
        self.added(RESOLVED_BYTES);
    }

    /// A stack is gone, with everything that was kept of it.
    pub(super) fn resolved_removed(&self, pages: &ResolvedPages) {
        self.resolved_freed(pages.clear());
    }

    pub(super) fn resolved_freed(&self, bytes: usize) {
        self.resolved.fetch_sub(bytes, Ordering::Relaxed);
        self.resident.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Frees what stacks say until no more than `goal` bytes are left of it.
    fn evict_resolved(&self, goal: usize) {
        let all = self
            .stacks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        // Two rounds: the first takes away the second chances.
        for _ in 0..2 {
            for pages in all.iter().filter_map(Weak::upgrade) {
                let resolved = self.resolved.load(Ordering::Relaxed);
                if resolved <= goal {
                    return;
                }
                self.resolved_freed(pages.evict(resolved - goal));
            }
        }
    }

    pub(super) fn page_added(&self) {
        self.added(PAGE_BYTES);
    }

    pub(super) fn directory_added(&self) {
        self.added(DIRECTORY_BYTES);
    }

    fn added(&self, bytes: usize) {
        let before = self.resident.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > self.bound {
            self.evict();
        }
    }

    /// Frees a part of the bound, from all volumes in turn.
    fn evict(&self) {
        let goal = self.bound - self.bound / BATCH;
        // What can be made anew without I/O goes first.
        let over = self.resident().saturating_sub(goal);
        self.evict_resolved(self.resolved.load(Ordering::Relaxed).saturating_sub(over));
        // Two rounds: the first takes away the second chances.
        for _ in 0..2 {
            let all = self
                .tables
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            for tables in all.iter().filter_map(Weak::upgrade) {
                let resident = self.resident();
                if resident <= goal {
                    return;
                }
                let freed = tables.evict(resident - goal);
                self.resident.fetch_sub(freed, Ordering::Relaxed);
            }
        }
    }

    /// A map is gone, with everything in it.
    pub(super) fn removed(&self, tables: &Tables) {
        // Taken out, and not only counted: another thread may be about to evict from the same tables, and what is
        // subtracted twice makes the cache look full for ever.
        let pages =
            std::mem::take(&mut *tables.pages.write().unwrap_or_else(PoisonError::into_inner));
        let directories = std::mem::take(
            &mut *tables
                .directories
                .write()
                .unwrap_or_else(PoisonError::into_inner),
        );
        let bytes = pages.len() * PAGE_BYTES + directories.len() * DIRECTORY_BYTES;
        self.resident.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Tables {
    /// Drops what nobody holds, that is on disk and was not used lately, until `wanted` bytes are free; how many are.
    fn evict(&self, wanted: usize) -> usize {
        let mut freed = 0;
        // Nobody can take a reference while a table is locked for writing, so a count of one is final.
        self.pages
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, page| {
                let goes = freed < wanted && Arc::strong_count(page) == 1 && page.may_go();
                freed += if goes { PAGE_BYTES } else { 0 };
                !goes
            });
        self.directories
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, directory| {
                let goes =
                    freed < wanted && Arc::strong_count(directory) == 1 && directory.may_go();
                freed += if goes { DIRECTORY_BYTES } else { 0 };
                !goes
            });
        freed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Place;
    use crate::map::Cells;
    use crate::page::BlockState;

    #[test]
    fn what_a_map_had_is_subtracted_once_when_it_goes_during_an_eviction() {
        let cache = MapCache::new(1 << 20);
        let tables = Arc::new(Tables::default());
        cache.register(&tables);
        for number in 0..3 {
            let cells = Cells::uniform(BlockState::Absent);
            let page = Arc::new(Page::new(number, cells, Place::First));
            tables.pages.write().unwrap().insert(number, page);
            cache.page_added();
        }
        // An eviction has the tables in its hands while the map is dropped.
        let evicting = Arc::clone(&tables);
        cache.removed(&tables);
        for _ in 0..2 {
            let freed = evicting.evict(usize::MAX);
            cache.resident.fetch_sub(freed, Ordering::Relaxed);
        }
        assert_eq!(cache.resident(), 0);
    }
}
