//! Directory and map pages as bytes (FORMAT.md, sections 3.2 and 3.3).
//!
//! Always: a page that decodes carries the layer, index and MAC that were asked for.
//! Never: I/O, and never a decision about which of two places counts; `map/load.rs` makes it.

use sealvol_crypto::{SectorCipher, constant_time_eq};

use crate::bytes::{put, u32_at, u64_at};
use crate::geometry::{DIRECTORY_PAGES, PAGE_BLOCKS, PAGE_LEN, index};
use crate::ids::LayerId;

const PAYLOAD: usize = 64;
const TRITS_PER_BYTE: usize = 5;

/// What a layer says of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockState {
    /// Nothing: the layer below decides; zeros if there is none.
    Absent,
    /// The block reads as zeros.
    Zero,
    /// The block's sectors are in the layer's data.
    Data,
}

impl BlockState {
    pub(crate) fn from_bits(bits: u64) -> Self {
        match bits {
            0 => Self::Absent,
            1 => Self::Zero,
            _ => Self::Data,
        }
    }

    pub(crate) fn bits(self) -> u64 {
        match self {
            Self::Absent => 0,
            Self::Zero => 1,
            Self::Data => 2,
        }
    }
}

/// Which kind of page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageKind {
    Directory,
    Map,
}

impl PageKind {
    fn magic(self) -> [u8; 4] {
        match self {
            Self::Directory => *b"SVDP",
            Self::Map => *b"SVMP",
        }
    }
}

/// Who a page is: what its header must say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageName {
    pub(crate) kind: PageKind,
    pub(crate) layer: LayerId,
    pub(crate) index: u64,
}

/// Why the bytes in a place are not the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageFault {
    /// Never written, or only partly: the other place serves.
    Torn,
    /// Intact, but not made with the layer's key, or another page's: refused for good.
    Tampered,
}

/// Puts header, checksum and MAC around a payload that `fill` writes.
pub(crate) fn seal(
    name: PageName,
    sequence: u64,
    cipher: &SectorCipher,
    page: &mut [u8],
    fill: impl FnOnce(&mut [u8]),
) {
    assert_eq!(page.len(), PAGE_LEN);
    page.fill(0);
    put(page, 0, &name.kind.magic());
    put(page, 8, &name.layer.0);
    put(page, 24, &name.index.to_le_bytes());
    put(page, 32, &sequence.to_le_bytes());
    fill(&mut page[PAYLOAD..]);
    let checksum = crc32c::crc32c(page);
    let mac = cipher.map_mac(&[page]);
    put(page, 40, &checksum.to_le_bytes());
    put(page, 48, &mac);
}

/// Checks a page; its sequence. The payload then is `payload(page)`.
pub(crate) fn open(name: PageName, cipher: &SectorCipher, page: &[u8]) -> Result<u64, PageFault> {
    assert_eq!(page.len(), PAGE_LEN);
    let mut bare = [0; PAGE_LEN];
    bare.copy_from_slice(page);
    bare[40..44].fill(0);
    bare[48..64].fill(0);
    if page[..4] != name.kind.magic() || crc32c::crc32c(&bare) != u32_at(page, 40) {
        return Err(PageFault::Torn);
    }
    let genuine = constant_time_eq(&page[48..64], &cipher.map_mac(&[&bare]));
    let same = page[8..24] == name.layer.0 && u64_at(page, 24) == name.index;
    if !genuine || !same {
        return Err(PageFault::Tampered);
    }
    Ok(u64_at(page, 32))
}

/// What lies behind the header.
pub(crate) fn payload(page: &[u8]) -> &[u8] {
    &page[PAYLOAD..]
}

/// Packs block states into the payload of a map page.
pub(crate) fn pack_states(mut state: impl FnMut(usize) -> BlockState, payload: &mut [u8]) {
    let blocks = index(PAGE_BLOCKS);
    for (byte, first) in payload.iter_mut().zip((0..blocks).step_by(TRITS_PER_BYTE)) {
        let last = (first + TRITS_PER_BYTE).min(blocks);
        *byte = (first..last).rev().fold(0, |sum, block| {
            sum * 3
                + match state(block) {
                    BlockState::Absent => 0,
                    BlockState::Zero => 1,
                    BlockState::Data => 2,
                }
        });
    }
}

/// Unpacks the payload of a map page; `None` if a byte is none that packing makes.
pub(crate) fn unpack_states(payload: &[u8], mut set: impl FnMut(usize, BlockState)) -> Option<()> {
    let blocks = index(PAGE_BLOCKS);
    for (&byte, first) in payload.iter().zip((0..blocks).step_by(TRITS_PER_BYTE)) {
        let mut rest = byte;
        for block in first..first + TRITS_PER_BYTE {
            let state = BlockState::from_bits(u64::from(rest % 3));
            rest /= 3;
            if block < blocks {
                set(block, state);
            } else if state != BlockState::Absent {
                return None;
            }
        }
        if rest != 0 {
            return None;
        }
    }
    Some(())
}

/// What a directory page says of one map page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DirectoryEntry {
    /// Every block of the page has this state; no map page is read.
    Uniform(BlockState),
    /// The map page must be read; it has this sequence (exactly, or at least).
    Paged { sequence: u64 },
}

impl DirectoryEntry {
    const SEQUENCE: u64 = (1 << 62) - 1;

    pub(crate) fn from_bits(bits: u64) -> Self {
        match bits >> 62 {
            3 => Self::Paged {
                sequence: bits & Self::SEQUENCE,
            },
            state => Self::Uniform(BlockState::from_bits(state)),
        }
    }

    pub(crate) fn bits(self) -> u64 {
        match self {
            Self::Uniform(state) => state.bits() << 62,
            Self::Paged { sequence } => 3 << 62 | sequence & Self::SEQUENCE,
        }
    }
}

/// Writes directory entries (as bits) into a payload.
pub(crate) fn pack_entries(mut entry: impl FnMut(usize) -> u64, payload: &mut [u8]) {
    for (at, field) in payload
        .chunks_exact_mut(8)
        .take(index(DIRECTORY_PAGES))
        .enumerate()
    {
        field.copy_from_slice(&entry(at).to_le_bytes());
    }
}

/// Reads directory entries (as bits) from a payload.
pub(crate) fn unpack_entries(payload: &[u8], mut set: impl FnMut(usize, u64)) {
    for (at, field) in payload
        .chunks_exact(8)
        .take(index(DIRECTORY_PAGES))
        .enumerate()
    {
        set(at, u64_at(field, 0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_states_come_back() {
        let pattern = |block: usize| BlockState::from_bits((block * 7 / 3 % 3) as u64);
        let mut payload = vec![0; PAGE_LEN - PAYLOAD];
        pack_states(pattern, &mut payload);
        assert_eq!(payload[0], sum_of_first_five(pattern));
        unpack_states(&payload, |block, state| assert_eq!(state, pattern(block))).unwrap();
    }

    fn sum_of_first_five(pattern: impl Fn(usize) -> BlockState) -> u8 {
        let weights = [1, 3, 9, 27, 81];
        let states = (0..5).map(|block| u8::try_from(pattern(block).bits()).unwrap());
        states
            .zip(weights)
            .map(|(state, weight)| state * weight)
            .sum()
    }

    #[test]
    fn bytes_that_packing_never_makes_are_refused() {
        let mut payload = vec![0; PAGE_LEN - PAYLOAD];
        payload[100] = 243;
        assert_eq!(unpack_states(&payload, |_, _| ()), None);
        payload[100] = 242;
        assert_eq!(unpack_states(&payload, |_, _| ()), Some(()));
        // The last byte holds four entries: 16,384 = 5 * 3,276 + 4.
        payload[3276] = 81;
        assert_eq!(unpack_states(&payload, |_, _| ()), None);
    }

    #[test]
    fn directory_entries_come_back() {
        for entry in [
            DirectoryEntry::Uniform(BlockState::Absent),
            DirectoryEntry::Uniform(BlockState::Zero),
            DirectoryEntry::Uniform(BlockState::Data),
            DirectoryEntry::Paged { sequence: 1 },
            DirectoryEntry::Paged {
                sequence: (1 << 62) - 1,
            },
        ] {
            assert_eq!(DirectoryEntry::from_bits(entry.bits()), entry);
        }
        assert_eq!(DirectoryEntry::Uniform(BlockState::Absent).bits(), 0);
    }
}
