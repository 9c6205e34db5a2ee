//! A sparse array of bytes: pages that were written, zeros elsewhere.

use std::collections::BTreeMap;
use std::ops::Range;

const PAGE: u64 = 4096;

type Page = [u8; 4096];

/// Content of one file. Callers keep ranges within `len`.
#[derive(Default)]
pub(super) struct Sparse {
    /// Bytes; what lies beyond is never in `pages`.
    pub(super) len: u64,
    pages: BTreeMap<u64, Box<Page>>,
}

impl Sparse {
    pub(super) fn read(&self, offset: u64, mut to: &mut [u8]) {
        for (page, within) in pieces(offset, to.len() as u64) {
            let (piece, rest) = to.split_at_mut(within.len());
            match self.pages.get(&page) {
                Some(bytes) => piece.copy_from_slice(&bytes[within]),
                None => piece.fill(0),
            }
            to = rest;
        }
    }

    pub(super) fn write(&mut self, offset: u64, mut from: &[u8]) {
        for (page, within) in pieces(offset, from.len() as u64) {
            let (piece, rest) = from.split_at(within.len());
            let bytes = self.pages.entry(page).or_insert_with(|| Box::new([0; _]));
            bytes[within].copy_from_slice(piece);
            from = rest;
        }
    }

    /// Frees whole pages and zeroes the parts of others, whatever the length of the range.
    pub(super) fn punch(&mut self, offset: u64, len: u64) {
        let end = offset + len;
        let first_whole = offset.div_ceil(PAGE);
        let past_whole = (end / PAGE).max(first_whole);
        let whole: Vec<u64> = self
            .pages
            .range(first_whole..past_whole)
            .map(|(&page, _)| page)
            .collect();
        for page in whole {
            self.pages.remove(&page);
        }
        let head = offset..end.min(first_whole * PAGE);
        let tail = head.end.max(past_whole * PAGE)..end;
        for edge in [head, tail] {
            for (page, within) in pieces(edge.start, edge.end.saturating_sub(edge.start)) {
                if let Some(bytes) = self.pages.get_mut(&page) {
                    bytes[within].fill(0);
                }
            }
        }
    }

    pub(super) fn allocated(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }
}

/// The pages that a range touches, each with the part of it that is in the range.
fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (u64, Range<usize>)> {
    let end = offset + len;
    let mut next = offset;
    std::iter::from_fn(move || {
        if next == end {
            return None;
        }
        let page = next / PAGE;
        let start = next % PAGE;
        let stop = (end - page * PAGE).min(PAGE);
        next = page * PAGE + stop;
        Some((page, index(start)..index(stop)))
    })
}

/// A position within a page, which fits any `usize`.
#[expect(clippy::cast_possible_truncation, reason = "at most PAGE")]
fn index(within_page: u64) -> usize {
    within_page as usize
}
