//! What the layers below a top say, block by block: kept, so that a look-up in a deep stack does not look into each layer again.
//!
//! Always:
//! - it belongs to one list of layers below, every one of them sealed: what they say never changes, so nothing in here is ever
//!   wrong. Changes of the top need not be known here, for the top is asked first; another list of layers (snapshot, cut-over,
//!   merge) begins with nothing. While a merge brings what one of them says to the one above it, the one that is kept here says
//!   the same, and stays whole until the list is another one;
//! - its pages count against the page cache and are at most a quarter of it; they go before map pages do, since making
//!   them anew costs no I/O.
//!
//! Never: a wait, I/O, or a layer that is not sealed (`stack.rs` sees to it); long ranges, which a walk through the maps finds by
//! the word.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{MapCache, Run, Runs};
use crate::geometry::{PAGE_BLOCKS, by_page, index};
use crate::page::BlockState;

/// What one page counts, in bytes.
pub(super) const RESOLVED_BYTES: usize = 16_384 + 256;
/// Blocks of the longest range that is kept: 1 MiB, as much as most requests ask for.
const LONGEST: u64 = 256;
/// How deep a layer may lie that a code can name.
const DEEPEST: usize = 127;
/// Blocks that are looked up together when one of them is not known: two words of each map.
const TOGETHER: u64 = 64;
/// A block that nobody has looked up yet.
const UNKNOWN: u8 = 0;
/// No layer says anything.
const NOTHING: u8 = 1;

/// What is known of the blocks below one top.
pub(crate) struct Resolved {
    pages: Arc<ResolvedPages>,
    cache: Arc<MapCache>,
}

/// By page number.
#[derive(Default)]
pub(super) struct ResolvedPages(RwLock<HashMap<u64, Arc<ResolvedPage>>>);

struct ResolvedPage {
    /// By block: [`UNKNOWN`], [`NOTHING`], or who says what.
    codes: Box<[AtomicU8]>,
    /// Looked at since the cache last thought of dropping it.
    used: AtomicBool,
}

impl Resolved {
    /// For so many layers below a top; `None` where it would save nothing, or can't name them all.
    pub(crate) fn of(below: usize, cache: &Arc<MapCache>) -> Option<Self> {
        if !(2..=DEEPEST).contains(&below) {
            return None;
        }
        let pages = Arc::default();
        cache.register_resolved(&pages);
        Some(Self {
            pages,
            cache: Arc::clone(cache),
        })
    }

    /// Whether a range is short enough to be kept.
    pub(crate) fn takes(blocks: &Range<u64>) -> bool {
        blocks.end - blocks.start <= LONGEST
    }

    /// Appends what is known of a range; false, and nothing appended, if a block of it is not known.
    pub(crate) fn look_up(&self, blocks: Range<u64>, runs: &mut Runs) -> bool {
        let mut found = Runs::default();
        for (number, within) in by_page(blocks) {
            let Some(page) = self.page(number) else {
                return false;
            };
            let first = number * PAGE_BLOCKS + within.start as u64;
            for (block, code) in (first..).zip(&page.codes[within]) {
                let code = code.load(Ordering::Acquire);
                if code == UNKNOWN {
                    return false;
                }
                found.push(decoded(block, code));
            }
        }
        found.iter().for_each(|run| runs.push(run));
        true
    }

    /// What is to be found when a part of a range is not known: its neighbours come along, not beyond `end`.
    pub(crate) fn around(blocks: &Range<u64>, end: u64) -> Finding {
        let end = blocks.end.next_multiple_of(TOGETHER).min(end);
        Finding::new(blocks.start / TOGETHER * TOGETHER..end)
    }

    /// Keeps what was found in the layers below.
    pub(crate) fn keep(&self, found: &Finding) {
        let mut codes = found.codes.iter();
        for (number, within) in by_page(found.blocks()) {
            let page = self.page_to_fill(number);
            for (known, &code) in page.codes[within].iter().zip(&mut codes) {
                known.store(code, Ordering::Release);
            }
        }
    }

    fn page(&self, number: u64) -> Option<Arc<ResolvedPage>> {
        let pages = self.pages.read();
        let page = pages.get(&number)?;
        if !page.used.load(Ordering::Relaxed) {
            page.used.store(true, Ordering::Relaxed);
        }
        Some(Arc::clone(page))
    }

    fn page_to_fill(&self, number: u64) -> Arc<ResolvedPage> {
        if let Some(page) = self.page(number) {
            return page;
        }
        let codes = (0..PAGE_BLOCKS).map(|_| AtomicU8::new(UNKNOWN)).collect();
        let page = Arc::new(ResolvedPage {
            codes,
            used: AtomicBool::new(true),
        });
        // Counted first, so that an eviction never takes away what is not counted yet.
        self.cache.resolved_added();
        let kept = Arc::clone(
            self.pages
                .write()
                .entry(number)
                .or_insert_with(|| Arc::clone(&page)),
        );
        if !Arc::ptr_eq(&kept, &page) {
            self.cache.resolved_freed(RESOLVED_BYTES);
        }
        kept
    }
}

impl Drop for Resolved {
    fn drop(&mut self) {
        self.cache.resolved_removed(&self.pages);
    }
}

impl ResolvedPages {
    fn read(&self) -> RwLockReadGuard<'_, HashMap<u64, Arc<ResolvedPage>>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<u64, Arc<ResolvedPage>>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops what was not used lately until `wanted` bytes are free; how many are.
    pub(super) fn evict(&self, wanted: usize) -> usize {
        let mut freed = 0;
        self.write().retain(|_, page| {
            let goes = freed < wanted && !page.used.swap(false, Ordering::Relaxed);
            freed += if goes { RESOLVED_BYTES } else { 0 };
            !goes
        });
        freed
    }

    /// Drops all; how many bytes that were.
    pub(super) fn clear(&self) -> usize {
        // Taken out, so that an eviction on another thread does not count them once more.
        std::mem::take(&mut *self.write()).len() * RESOLVED_BYTES
    }
}

/// Blocks that are being looked up, layer by layer from the top down.
pub(crate) struct Finding {
    first: u64,
    codes: Vec<u8>,
    /// How many blocks no layer has said anything about.
    left: usize,
}

impl Finding {
    pub(crate) fn new(blocks: Range<u64>) -> Self {
        let left = index(blocks.end - blocks.start);
        Self {
            first: blocks.start,
            codes: vec![NOTHING; left],
            left,
        }
    }

    pub(crate) fn blocks(&self) -> Range<u64> {
        self.first..self.first + self.codes.len() as u64
    }

    /// Whether the next layer can say nothing any more.
    pub(crate) fn is_done(&self) -> bool {
        self.left == 0
    }

    /// What the next layer says of these blocks; `depth` is its own.
    pub(crate) fn enter(&mut self, said: &Runs, depth: usize) {
        for run in said.iter() {
            let Some(code) = coded(run.state, depth) else {
                continue;
            };
            let from = index(run.first - self.first);
            for known in &mut self.codes[from..from + index(run.blocks)] {
                if *known == NOTHING {
                    *known = code;
                    self.left -= 1;
                }
            }
        }
    }

    /// Appends what was found of a part of the blocks.
    pub(crate) fn push_to(&self, blocks: &Range<u64>, runs: &mut Runs) {
        let part = index(blocks.start - self.first)..index(blocks.end - self.first);
        for (block, &code) in (blocks.start..).zip(&self.codes[part]) {
            runs.push(decoded(block, code));
        }
    }
}

/// 2 and more: twice the depth, and one more for data. `None` of what a layer says nothing about.
fn coded(state: BlockState, depth: usize) -> Option<u8> {
    let depth = u8::try_from(depth).expect("a stack that is kept is not deeper");
    match state {
        BlockState::Absent => None,
        BlockState::Zero => Some(depth * 2),
        BlockState::Data => Some(depth * 2 + 1),
    }
}

fn decoded(block: u64, code: u8) -> Run {
    let (state, depth) = match code {
        NOTHING => (BlockState::Absent, 0),
        _ if code.is_multiple_of(2) => (BlockState::Zero, code / 2),
        _ => (BlockState::Data, code / 2),
    };
    Run {
        first: block,
        blocks: 1,
        state,
        depth: u32::from(depth),
    }
}
