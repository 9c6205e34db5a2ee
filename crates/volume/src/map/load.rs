//! Bringing directory and map pages from `meta` into memory.
//!
//! Always: one loader at a time, and it looks again whether the page is resident after its turn came, so that
//! an old content never takes the place of a page that was changed, written and dropped meanwhile. Only a page
//! that the level above vouches for is read: a directory that the root names, a map page that its directory calls paged.
//! A page that can't be trusted is on record (`damage.rs`) before anybody is answered with an error for it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use sealvol_store::{IoBuf, Store};

use super::{Cells, Directory, Map, Page};
use crate::error::VolumeError;
use crate::geometry::{
    DIRECTORY_PAGES, DIRECTORY_SPAN, PAGE_BLOCKS, PAGE_LEN, PAGE_SPAN, Place, directory_offset,
    index, page_offset,
};
use crate::page::{
    self, DirectoryEntry, PageFault, PageKind, PageName, WORD_BLOCKS, payload, unpack_entries,
    unpack_states,
};

impl<S: Store> Map<S> {
    /// The directory entry of a page, loading the directory if need be.
    pub(super) async fn load_entry(&self, number: u64) -> Result<DirectoryEntry, VolumeError> {
        Ok(self
            .directory(number / DIRECTORY_PAGES)
            .await?
            .entry(number))
    }

    /// Makes a map page resident, with space for it allocated.
    pub(super) async fn load_page(&self, number: u64) -> Result<Arc<Page>, VolumeError> {
        let directory = self.directory(number / DIRECTORY_PAGES).await?;
        let _turn = self.loading.lock().await;
        if let Some(page) = self.resident(number) {
            return Ok(page);
        }
        let page = match directory.entry(number) {
            DirectoryEntry::Uniform(state) => {
                self.allocate_page(&directory, number).await?;
                Page::new(number, Cells::uniform(state), Place::Second)
            }
            DirectoryEntry::Paged { sequence } => {
                let read = self.read_page(number, sequence).await;
                self.damages.on_record(read).await?
            }
        };
        let page = Arc::new(page);
        self.tables
            .pages
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(number, Arc::clone(&page));
        self.cache.page_added();
        Ok(page)
    }

    /// Space for both places of a page, and of its directory page (rule R10).
    async fn allocate_page(&self, directory: &Directory, number: u64) -> Result<(), VolumeError> {
        let both = 2 * PAGE_LEN as u64;
        if !directory.allocated.load(Ordering::Acquire) {
            self.meta
                .allocate(directory_offset(directory.number, Place::First), both)
                .await?;
            directory.allocated.store(true, Ordering::Release);
        }
        self.meta
            .allocate(page_offset(number, Place::First), both)
            .await?;
        Ok(())
    }

    pub(super) async fn directory(&self, number: u64) -> Result<Arc<Directory>, VolumeError> {
        if let Some(directory) = self.resident_directory(number) {
            return Ok(directory);
        }
        let _turn = self.loading.lock().await;
        if let Some(directory) = self.resident_directory(number) {
            return Ok(directory);
        }
        let root = self
            .newest_root
            .read()
            .unwrap_or_else(PoisonError::into_inner)[index(number)];
        let entries: Box<[AtomicU64]> = (0..DIRECTORY_PAGES).map(|_| AtomicU64::new(0)).collect();
        let mut place = Place::Second;
        if root != 0 {
            let name = self.name(PageKind::Directory, number);
            let read = self
                .read_places(name, |place| directory_offset(number, place), root)
                .await;
            let (buf, found, _) = self.damages.on_record(read).await?;
            unpack_entries(payload(&buf), |at, bits| {
                entries[at].store(bits, Ordering::Relaxed)
            });
            place = found;
        }
        let directory = Arc::new(Directory {
            number,
            entries,
            place: Mutex::new(place),
            changed: AtomicBool::new(false),
            stale: AtomicBool::new(false),
            allocated: AtomicBool::new(root != 0),
        });
        self.tables
            .directories
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(number, Arc::clone(&directory));
        self.cache.directory_added();
        Ok(directory)
    }

    async fn read_page(&self, number: u64, sequence: u64) -> Result<Page, VolumeError> {
        let name = self.name(PageKind::Map, number);
        let (buf, place, _) = self
            .read_places(name, |place| page_offset(number, place), sequence)
            .await?;
        let mut words = Vec::with_capacity(index(PAGE_BLOCKS) / WORD_BLOCKS);
        unpack_states(payload(&buf), |word| words.push(word))
            .ok_or_else(|| damaged(name, "the page's MAC is good but its entries are not"))?;
        let cells = Cells::of_words(words.into_iter());
        Ok(Page::new(number, cells, place))
    }

    /// Reads both places of a page; the one that counts. `entry` is what the level above says of its sequence.
    async fn read_places(
        &self,
        name: PageName,
        offset: impl Fn(Place) -> u64,
        entry: u64,
    ) -> Result<(IoBuf, Place, u64), VolumeError> {
        let mut best: Option<(IoBuf, Place, u64)> = None;
        for place in Place::BOTH {
            let buf = IoBuf::for_overwrite(PAGE_LEN);
            let (buf, result) = self.meta.read_at(buf, offset(place)).await;
            result?;
            match page::open(name, &self.cipher, &buf) {
                Ok(sequence) if best.as_ref().is_none_or(|(_, _, other)| *other < sequence) => {
                    best = Some((buf, place, sequence));
                }
                Ok(_) | Err(PageFault::Torn) => {}
                Err(PageFault::Tampered) => {
                    return Err(damaged(
                        name,
                        "a page with a good checksum has a bad MAC: tampered with",
                    ));
                }
            }
        }
        // The key's residue: this may run on a thread that is no worker.
        sealvol_crypto::clear_residue();
        let best = best.ok_or_else(|| damaged(name, "both places of a page are damaged"))?;
        let exact_from = self.exact_from.load(Ordering::Acquire);
        if entry >= exact_from && best.2 != entry {
            return Err(damaged(
                name,
                "a page is not the one that the layer was closed with: rolled back",
            ));
        }
        if entry < exact_from && !(entry..exact_from).contains(&best.2) {
            return Err(damaged(
                name,
                "a page is older than the level above says: damaged or rolled back",
            ));
        }
        Ok(best)
    }

    fn resident_directory(&self, number: u64) -> Option<Arc<Directory>> {
        self.tables
            .directories
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&number)
            .cloned()
    }

    pub(super) fn name(&self, kind: PageKind, index: u64) -> PageName {
        PageName {
            kind,
            layer: self.layer,
            index,
        }
    }
}

fn damaged(name: PageName, cause: &'static str) -> VolumeError {
    let span = match name.kind {
        PageKind::Directory => DIRECTORY_SPAN,
        PageKind::Map => PAGE_SPAN,
    };
    VolumeError::DamagedMap {
        offset: name.index * span,
        end: (name.index + 1) * span,
        cause,
    }
}
