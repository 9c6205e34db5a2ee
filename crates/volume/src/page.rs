//! Directory and map pages as bytes (FORMAT.md, sections 3.2 and 3.3).
//!
//! Always: a page that decodes carries the layer, index and MAC that were asked for.
//! Never: I/O, and never a decision about which of two places counts; `map/load.rs` makes it.

use sealvol_crypto::{SectorCipher, constant_time_eq};

pub(crate) use crate::block_state::{BlockState, STATE_BITS, WORD_BLOCKS};
use crate::bytes::{put, u32_at, u64_at};
use crate::geometry::{DIRECTORY_PAGES, PAGE_BLOCKS, PAGE_LEN, index};
use crate::ids::LayerId;

const PAYLOAD: usize = 64;
const TRITS_PER_BYTE: usize = 5;

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

const WORD_BITS: usize = WORD_BLOCKS * STATE_BITS;
/// Bits of the states that make one byte of a map page.
const BYTE_BITS: usize = STATE_BITS * TRITS_PER_BYTE;
/// Bytes of a map page that carry states; the last of them has room for one more.
const STATES_LEN: usize = 3_277;
const _: () = assert!(STATES_LEN as u64 == PAGE_BLOCKS.div_ceil(TRITS_PER_BYTE as u64));

/// The byte of a map page for the five states in ten bits. A commit packs every page that it writes: by the block that
/// would be most of what it costs.
const PACKED: [u8; 1 << BYTE_BITS] = {
    let mut table = [0; 1 << BYTE_BITS];
    let mut bits = 0;
    while bits < table.len() {
        let (mut at, mut byte) = (TRITS_PER_BYTE, 0);
        while at > 0 {
            at -= 1;
            byte = byte * 3
                + match bits >> (at * STATE_BITS) & 3 {
                    0 => 0,
                    1 => 1,
                    _ => 2,
                };
        }
        table[bits] = byte;
        bits += 1;
    }
    table
};

/// The ten bits of states for each byte that packing makes.
const UNPACKED: [u16; 243] = {
    let mut table = [0; 243];
    let mut byte = 0;
    while byte < table.len() {
        let (mut at, mut rest) = (0, byte);
        while at < TRITS_PER_BYTE {
            let state = match rest % 3 {
                0 => 0,
                1 => 1,
                _ => 2,
            };
            table[byte] |= state << (at * STATE_BITS);
            rest /= 3;
            at += 1;
        }
        byte += 1;
    }
    table
};

/// Packs block states, a word at a time, into the payload of a map page.
pub(crate) fn pack_states(mut words: impl Iterator<Item = u64>, payload: &mut [u8]) {
    // Of the last word, what is not packed yet.
    let (mut rest, mut count) = (0, 0);
    for byte in &mut payload[..STATES_LEN] {
        let mut states = rest;
        if count < BYTE_BITS {
            let word = words.next().unwrap_or(0);
            states |= word << count;
            rest = word >> (BYTE_BITS - count);
            count += WORD_BITS;
        } else {
            rest >>= BYTE_BITS;
        }
        count -= BYTE_BITS;
        *byte = PACKED[index(states % PACKED.len() as u64)];
    }
}

/// Unpacks the payload of a map page, giving its words in their order; `None` if a byte is none that packing makes.
pub(crate) fn unpack_states(payload: &[u8], mut word: impl FnMut(u64)) -> Option<()> {
    let (mut bits, mut count) = (0, 0);
    for &byte in &payload[..STATES_LEN] {
        let states = u64::from(*UNPACKED.get(usize::from(byte))?);
        bits |= states << count;
        count += BYTE_BITS;
        if count >= WORD_BITS {
            word(bits);
            count -= WORD_BITS;
            bits = states >> (BYTE_BITS - count);
        }
    }
    // What is left is behind the last block.
    (bits == 0).then_some(())
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

    fn words(state: impl Fn(usize) -> BlockState) -> Vec<u64> {
        let blocks: Vec<usize> = (0..index(PAGE_BLOCKS)).collect();
        let word = |blocks: &[usize]| {
            let states = blocks.iter().rev();
            states.fold(0, |word, &block| word << STATE_BITS | state(block).bits())
        };
        blocks.chunks(WORD_BLOCKS).map(word).collect()
    }

    #[test]
    fn packed_states_come_back() {
        let pattern = |block: usize| BlockState::from_bits((block * 7 / 3 % 3) as u64);
        let mut payload = vec![0; PAGE_LEN - PAYLOAD];
        let packed = words(pattern);
        pack_states(packed.iter().copied(), &mut payload);
        for (at, &byte) in payload[..STATES_LEN].iter().enumerate() {
            assert_eq!(
                byte,
                sum_of_five(|block| at * 5 + block, pattern),
                "byte {at}"
            );
        }
        assert!(payload[STATES_LEN..].iter().all(|&byte| byte == 0));
        let mut back = Vec::new();
        unpack_states(&payload, |word| back.push(word)).unwrap();
        assert_eq!(back, packed);
    }

    /// FORMAT.md, section 3.3, block by block.
    fn sum_of_five(block: impl Fn(usize) -> usize, state: impl Fn(usize) -> BlockState) -> u8 {
        let blocks = (0..5)
            .map(block)
            .take_while(|&block| block < index(PAGE_BLOCKS));
        let states = blocks.map(|block| u8::try_from(state(block).bits()).unwrap());
        states
            .zip([1, 3, 9, 27, 81])
            .map(|(state, weight)| state * weight)
            .sum()
    }

    #[test]
    fn bytes_that_packing_never_makes_are_refused() {
        let mut payload = vec![0; PAGE_LEN - PAYLOAD];
        payload[100] = 243;
        assert_eq!(unpack_states(&payload, |_| ()), None);
        payload[100] = 242;
        assert_eq!(unpack_states(&payload, |_| ()), Some(()));
        // The last byte holds four entries: 16,384 = 5 * 3,276 + 4.
        payload[3276] = 81;
        assert_eq!(unpack_states(&payload, |_| ()), None);
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
