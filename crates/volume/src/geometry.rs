//! Sizes and the arithmetic between bytes, blocks, pages and directory pages (FORMAT.md, section 1).
//!
//! A *block* is 4096 bytes whatever the sector size: the unit of the presence map. A *page* is the
//! map of 16,384 blocks (64 MiB), a *directory page* covers 256 pages (16 GiB).

use std::ops::Range;

use sealvol_crypto::UnitSize;

use crate::error::VolumeError;
use crate::ids::VolumeId;

/// Bytes in a block, the unit of the presence map.
pub const BLOCK: u64 = 4096;
/// The largest volume: 64 TiB.
pub const MAX_SIZE: u64 = 1 << 46;

/// Blocks that one map page describes.
pub(crate) const PAGE_BLOCKS: u64 = 16_384;
/// Bytes of the volume that one map page describes.
pub(crate) const PAGE_SPAN: u64 = PAGE_BLOCKS * BLOCK;
/// Map pages that one directory page describes.
pub(crate) const DIRECTORY_PAGES: u64 = 256;
/// Bytes of the volume that one directory page describes.
pub(crate) const DIRECTORY_SPAN: u64 = DIRECTORY_PAGES * PAGE_SPAN;

/// Reserved length of one superblock slot in `meta`.
pub(crate) const SLOT_SPACE: u64 = 256 * 1024;
/// Length of a directory or map page on disk.
pub(crate) const PAGE_LEN: usize = 4096;
const DIRECTORY_AREA: u64 = 1024 * 1024;
const MAP_AREA: u64 = 64 * 1024 * 1024;

/// One of the two places of a page, written alternately.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    First,
    Second,
}

impl Place {
    pub(crate) const BOTH: [Self; 2] = [Self::First, Self::Second];

    pub(crate) fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    fn offset(self) -> u64 {
        match self {
            Self::First => 0,
            Self::Second => PAGE_LEN as u64,
        }
    }
}

/// Where a directory page lies in `meta`.
pub(crate) fn directory_offset(directory: u64, place: Place) -> u64 {
    DIRECTORY_AREA + directory * 2 * PAGE_LEN as u64 + place.offset()
}

/// Where a map page lies in `meta`.
pub(crate) fn page_offset(page: u64, place: Place) -> u64 {
    MAP_AREA + page * 2 * PAGE_LEN as u64 + place.offset()
}

/// Length of `meta` for a volume of `size` bytes.
pub(crate) fn meta_len(size: u64) -> u64 {
    MAP_AREA + size.div_ceil(PAGE_SPAN) * 2 * PAGE_LEN as u64
}

/// Number of directory pages of a volume of `size` bytes.
pub(crate) fn directories(size: u64) -> u64 {
    size.div_ceil(DIRECTORY_SPAN)
}

/// A number of things in memory, as an index. Everything that is indexed was bounded before.
///
/// # Panics
///
/// On a machine whose addresses have fewer bits than the number, which Linux on 64 bits is not.
pub(crate) fn index(number: u64) -> usize {
    usize::try_from(number).expect("sealvol runs on 64-bit machines, where every u64 index fits")
}

/// The blocks that `len` bytes at `offset` touch.
pub(crate) fn blocks_touched(offset: u64, len: u64) -> Range<u64> {
    offset / BLOCK..(offset + len).div_ceil(BLOCK)
}

/// The blocks that lie wholly within `len` bytes at `offset`; empty if none does.
pub(crate) fn blocks_within(offset: u64, len: u64) -> Range<u64> {
    let first = offset.div_ceil(BLOCK);
    let end = (offset + len) / BLOCK;
    first..end.max(first)
}

/// Splits a range of blocks where map pages meet: `(page, blocks within that page)`.
pub(crate) fn by_page(blocks: Range<u64>) -> impl Iterator<Item = (u64, Range<usize>)> {
    let mut next = blocks.start;
    std::iter::from_fn(move || {
        if next >= blocks.end {
            return None;
        }
        let page = next / PAGE_BLOCKS;
        let end = blocks.end.min((page + 1) * PAGE_BLOCKS);
        let within = index(next - page * PAGE_BLOCKS)..index(end - page * PAGE_BLOCKS);
        next = end;
        Some((page, within))
    })
}

/// Whether a volume can have this size.
///
/// # Errors
///
/// [`VolumeError::InvalidSize`] unless `size` is a multiple of 4096 from 4096 to [`MAX_SIZE`].
pub fn check_size(size: u64) -> Result<(), VolumeError> {
    if size == 0 || size > MAX_SIZE || !size.is_multiple_of(BLOCK) {
        return Err(VolumeError::InvalidSize { size });
    }
    Ok(())
}

/// SHA-256 of the parameters that never change: the value of `sealvol:params` in the encryption
/// context (FORMAT.md, section 5).
#[must_use]
pub fn params_digest(volume: VolumeId, sector_size: UnitSize) -> [u8; 32] {
    sealvol_crypto::sha256(&[
        b"sealvol params v1\0",
        &volume.0,
        &sector_size_number(sector_size).to_le_bytes(),
    ])
}

/// A sector size in bytes, as it stands on disk.
pub(crate) fn sector_size_number(sector_size: UnitSize) -> u32 {
    match sector_size {
        UnitSize::B512 => 512,
        UnitSize::B4096 => 4096,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_no_volume_can_have_are_refused() {
        for size in [0, 1, 4095, 4097, MAX_SIZE + BLOCK, u64::MAX] {
            assert!(
                matches!(check_size(size), Err(VolumeError::InvalidSize { .. })),
                "{size}"
            );
        }
        for size in [BLOCK, 1 << 30, MAX_SIZE] {
            check_size(size).unwrap();
        }
    }

    #[test]
    fn ranges_split_where_pages_meet() {
        let parts: Vec<_> = by_page(PAGE_BLOCKS - 1..2 * PAGE_BLOCKS + 3).collect();
        assert_eq!(parts, [(0, 16_383..16_384), (1, 0..16_384), (2, 0..3)]);
        assert_eq!(by_page(5..5).count(), 0);
    }

    #[test]
    fn areas_of_the_largest_volume_do_not_meet() {
        let last = directories(MAX_SIZE) - 1;
        assert!(2 * SLOT_SPACE <= directory_offset(0, Place::First));
        assert!(directory_offset(last, Place::Second) < page_offset(0, Place::First));
        assert_eq!(
            meta_len(MAX_SIZE),
            page_offset(MAX_SIZE / PAGE_SPAN - 1, Place::Second) + PAGE_LEN as u64
        );
    }

    #[test]
    fn partial_blocks_are_touched_but_not_within() {
        assert_eq!(blocks_touched(4095, 2), 0..2);
        assert!(blocks_within(4095, 2).is_empty());
        assert_eq!(blocks_within(1, 8191), 1..2);
        assert_eq!(blocks_within(0, 8192), 0..2);
        assert!(blocks_within(100, 10).is_empty());
    }
}
