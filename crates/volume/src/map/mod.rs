//! The presence map of one layer: which blocks are absent, zero or data.
//!
//! ```text
//!   superblock root ──▶ directory pages (16 GiB each) ──▶ map pages (64 MiB each) ──▶ blocks
//! ```
//!
//! Always:
//! - a *resident* page is the truth about its blocks; for any other page the directory entry is, and for
//!   any directory that was never written, "absent" is;
//! - a page becomes resident only once (`load.rs` has one loader at a time), and leaves (`cache.rs`) only while nobody
//!   holds it and it has no change that is not on disk;
//! - a resident page has its space in `meta` (rule R10), so that a commit never meets a full disk;
//! - `changes` of a page grows after each change of a block and before whoever changed it answers; a page whose
//!   `durable` equals its `changes` is on disk as it is in memory.
//!
//! Never: a decision about who may change a block (range locks) or when a change becomes durable (`commit.rs`).

mod cache;
mod cells;
#[cfg(test)]
mod cells_tests;
mod damage;
mod load;
mod resolved;
#[cfg(test)]
mod resolved_tests;
mod runs;
mod write;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use sealvol_crypto::SectorCipher;
use sealvol_store::Store;

use cache::Tables;
use damage::Damages;

pub use cache::MapCache;
pub(crate) use cells::Cells;
pub(crate) use resolved::{Finding, Resolved};
pub(crate) use runs::{Run, Runs};

use crate::error::VolumeError;
use crate::geometry::{DIRECTORY_PAGES, PAGE_BLOCKS, Place, by_page, index};
use crate::host::Host;
use crate::ids::LayerId;
use crate::page::{BlockState, DirectoryEntry};

/// Pages with changes beyond this number make whoever changes the next one commit first.
pub(crate) const DIRTY_MAX: usize = 2048;
/// The same while the cache is over its bound.
const DIRTY_MAX_CROWDED: usize = 64;
/// Directory pages whose sequences on disk lag behind; beyond this number a commit writes them, so that they can
/// leave memory.
const STALE_MAX: usize = 256;

/// The map of one layer.
pub(crate) struct Map<S> {
    meta: S,
    cipher: Arc<SectorCipher>,
    layer: LayerId,
    /// Sequences at or above it are exact, below it floors (FORMAT.md, section 3.4).
    exact_from: AtomicU64,
    /// Sequences of the directory pages, as the superblock on disk has them; 0: never written.
    root: RwLock<Vec<u64>>,
    /// The same, as they are on disk now: what the next superblock that is written for good will say.
    newest_root: RwLock<Vec<u64>>,
    tables: Arc<Tables>,
    cache: Arc<MapCache>,
    damages: Damages,
    /// Pages with changes that no commit has copied yet.
    dirty: Mutex<Vec<Arc<Page>>>,
    /// Its length, changed under its mutex.
    dirty_len: AtomicU64,
    sequence: AtomicU64,
    loading: async_lock::Mutex<()>,
}

/// One resident map page.
pub(crate) struct Page {
    number: u64,
    cells: Cells,
    changes: AtomicU64,
    durable: AtomicU64,
    queued: AtomicBool,
    /// Looked at since the cache last thought of dropping it.
    used: AtomicBool,
    /// Where the newest content on disk lies.
    place: Mutex<Place>,
}

impl Page {
    fn new(number: u64, cells: Cells, place: Place) -> Self {
        Self {
            number,
            cells,
            changes: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            queued: AtomicBool::new(false),
            used: AtomicBool::new(true),
            place: Mutex::new(place),
        }
    }

    /// Whether the cache may drop it: it is on disk, and was not used lately.
    fn may_go(&self) -> bool {
        !self.used.swap(false, Ordering::Relaxed) && self.is_durable()
    }

    fn is_durable(&self) -> bool {
        self.durable.load(Ordering::Acquire) == self.changes.load(Ordering::Acquire)
    }
}

impl<S> Drop for Map<S> {
    fn drop(&mut self) {
        self.cache.removed(&self.tables);
    }
}

/// One resident directory page.
struct Directory {
    number: u64,
    /// [`DirectoryEntry`] as bits.
    entries: Box<[AtomicU64]>,
    place: Mutex<Place>,
    /// A state changed that is not on disk: the next commit writes the page.
    changed: AtomicBool,
    /// A sequence changed that is not on disk: clean detach writes the page.
    stale: AtomicBool,
    /// Space for both places is there.
    allocated: AtomicBool,
}

impl Directory {
    fn entry(&self, page: u64) -> DirectoryEntry {
        let at = index(page % DIRECTORY_PAGES);
        DirectoryEntry::from_bits(self.entries[at].load(Ordering::Acquire))
    }

    /// Whether the cache may drop it: it is on disk as it is here.
    fn may_go(&self) -> bool {
        !self.changed.load(Ordering::Acquire) && !self.stale.load(Ordering::Acquire)
    }

    fn set_entry(&self, page: u64, entry: DirectoryEntry) {
        let at = index(page % DIRECTORY_PAGES);
        self.entries[at].store(entry.bits(), Ordering::Release);
    }
}

impl<S: Store> Map<S> {
    /// A map over `meta`. `root` comes from a superblock whose MAC was checked, or is all zeros.
    /// `sequence` is the first sequence that this opening may use; `host` gives the cache and is told of damage.
    pub(crate) fn new(
        meta: S,
        cipher: Arc<SectorCipher>,
        layer: LayerId,
        exact_from: u64,
        root: Vec<u64>,
        sequence: u64,
        host: Arc<dyn Host>,
    ) -> Self {
        let (tables, cache) = (Arc::default(), host.map_cache());
        cache.register(&tables);
        Self {
            meta,
            cipher,
            layer,
            exact_from: AtomicU64::new(exact_from),
            newest_root: RwLock::new(root.clone()),
            root: RwLock::new(root),
            tables,
            cache,
            damages: Damages::new(layer, host),
            dirty: Mutex::default(),
            dirty_len: AtomicU64::new(0),
            sequence: AtomicU64::new(sequence),
            loading: async_lock::Mutex::new(()),
        }
    }

    /// A sealed layer is opened for writing once more, while it is in use: these are the first sequence that this opening
    /// may use, and from where on sequences are exact.
    pub(crate) fn begin_writing(&self, sequence: u64, exact_from: u64) {
        self.sequence.store(sequence, Ordering::Release);
        self.exact_from.store(exact_from, Ordering::Release);
    }

    pub(crate) fn meta(&self) -> &S {
        &self.meta
    }

    /// The page cache that its pages are in.
    pub(crate) fn cache(&self) -> &Arc<MapCache> {
        &self.cache
    }

    /// The states of a range of blocks.
    ///
    /// # Errors
    ///
    /// [`VolumeError::DamagedMap`] or a store error from loading a page.
    pub(crate) async fn resolve(&self, blocks: Range<u64>) -> Result<Runs, VolumeError> {
        let mut runs = Runs::default();
        for (number, within) in by_page(blocks) {
            if let Some(page) = self.resident(number) {
                push_cells(&page, within, &mut runs);
                continue;
            }
            match self.load_entry(number).await? {
                DirectoryEntry::Uniform(state) => runs.push(Run {
                    first: number * PAGE_BLOCKS + within.start as u64,
                    blocks: within.len() as u64,
                    state,
                    depth: 0,
                }),
                DirectoryEntry::Paged { .. } => {
                    let page = self.load_page(number).await?;
                    push_cells(&page, within, &mut runs);
                }
            }
        }
        Ok(runs)
    }

    /// Makes the pages of a range resident, with their space allocated, so that [`Self::set`] can't fail.
    ///
    /// # Errors
    ///
    /// [`VolumeError::NoSpace`] if `meta` can't grow into its holes; [`VolumeError::DamagedMap`]; store errors.
    pub(crate) async fn prepare(&self, blocks: Range<u64>) -> Result<Prepared, VolumeError> {
        let mut prepared = Prepared::default();
        for (number, within) in by_page(blocks) {
            let page = match self.resident(number) {
                Some(page) => page,
                None => self.load_page(number).await?,
            };
            prepared.push(page, within);
        }
        Ok(prepared)
    }

    /// Changes the state of prepared blocks. Whoever calls holds their exclusive range lock.
    pub(crate) fn set(&self, prepared: &Prepared, state: BlockState) {
        for (page, within) in prepared.iter() {
            page.cells.set(within.clone(), state);
            page.changes.fetch_add(1, Ordering::AcqRel);
            if !page.queued.swap(true, Ordering::AcqRel) {
                let mut dirty = self.dirty.lock().unwrap_or_else(PoisonError::into_inner);
                dirty.push(Arc::clone(page));
                self.dirty_len.store(dirty.len() as u64, Ordering::Relaxed);
            }
        }
    }

    /// Whether a page waits for a commit.
    pub(crate) fn has_changes(&self) -> bool {
        self.dirty_len.load(Ordering::Relaxed) > 0
    }

    /// Whether so many pages wait for a commit that the next change should bring one about.
    pub(crate) fn wants_commit(&self) -> bool {
        let max = if self.cache.is_over() {
            DIRTY_MAX_CROWDED
        } else {
            DIRTY_MAX
        };
        self.dirty_len.load(Ordering::Relaxed) > max as u64
    }

    fn resident(&self, number: u64) -> Option<Arc<Page>> {
        let pages = self
            .tables
            .pages
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let page = pages.get(&number)?;
        if !page.used.load(Ordering::Relaxed) {
            page.used.store(true, Ordering::Relaxed);
        }
        Some(Arc::clone(page))
    }

    fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::AcqRel)
    }
}

/// Pages that are resident and have space, with the blocks in them that are meant.
#[derive(Default)]
pub(crate) struct Prepared {
    first: Option<(Arc<Page>, Range<usize>)>,
    rest: Vec<(Arc<Page>, Range<usize>)>,
}

impl Prepared {
    fn push(&mut self, page: Arc<Page>, within: Range<usize>) {
        if self.first.is_none() {
            self.first = Some((page, within));
        } else {
            self.rest.push((page, within));
        }
    }

    fn iter(&self) -> impl Iterator<Item = &(Arc<Page>, Range<usize>)> {
        self.first.iter().chain(&self.rest)
    }

    /// Only these blocks (volume numbers) of it.
    pub(crate) fn part(&self, blocks: &Range<u64>) -> Self {
        let mut part = Self::default();
        for (page, within) in self.iter() {
            let base = page.number * PAGE_BLOCKS;
            let first = blocks.start.max(base + within.start as u64);
            let end = blocks.end.min(base + within.end as u64);
            if first < end {
                part.push(Arc::clone(page), index(first - base)..index(end - base));
            }
        }
        part
    }

    /// The states as they are now.
    pub(crate) fn runs(&self) -> Runs {
        let mut runs = Runs::default();
        for (page, within) in self.iter() {
            push_cells(page, within.clone(), &mut runs);
        }
        runs
    }

    /// Whether every block is `data` on disk, and not only in memory.
    pub(crate) fn all_data_on_disk(&self) -> bool {
        // Durability first: a change between the two looks can only make the answer "no".
        self.iter().all(|(page, _)| page.is_durable()) && self.runs().all(BlockState::Data)
    }
}

fn push_cells(page: &Page, within: Range<usize>, runs: &mut Runs) {
    let mut at = within.start;
    while at < within.end {
        let (state, len) = page.cells.run(at..within.end);
        runs.push(Run {
            first: page.number * PAGE_BLOCKS + at as u64,
            blocks: len as u64,
            state,
            depth: 0,
        });
        at += len;
    }
}
