//! A volume's `meta` file as somebody sees it who can write it and knows the format (crates/volume/FORMAT.md) but no key.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Where the two slots are.
pub const SLOTS: [u64; 2] = [0, 262_144];

/// Where map page 0 is.
const MAP: u64 = 64 << 20;

/// Bytes of the two places of a page, and of one.
const PLACES: usize = 8192;
const PLACE: usize = 4096;

/// Bytes reserved for a slot.
const SLOT_LEN: usize = 262_144;

/// Fields by their offset in a slot.
pub mod field {
    /// Format version, 4 bytes.
    pub const VERSION: usize = 8;
    /// Volume id, 16 bytes.
    pub const VOLUME: usize = 16;
    /// Size in bytes, 8 bytes.
    pub const SIZE: usize = 64;
    /// Sector size, 4 bytes.
    pub const SECTOR_SIZE: usize = 72;
    /// Generation, 8 bytes.
    pub const GENERATION: usize = 80;
    /// Used length of the slot, 4 bytes.
    const USED: usize = 140;
    /// Checksum over the used length, 4 bytes.
    const CHECKSUM: usize = 144;
    /// Message authentication code, 32 bytes.
    pub const MAC: usize = 160;

    pub(super) fn used(slot: &[u8]) -> usize {
        let bytes = slot[USED..USED + 4].try_into().expect("four bytes");
        u32::from_le_bytes(bytes) as usize
    }

    pub(super) fn checksum(slot: &mut [u8]) -> &mut [u8] {
        &mut slot[CHECKSUM..CHECKSUM + 4]
    }
}

/// Changes one slot as `edit` says and, if `reseal`, gives it a good checksum again.
///
/// # Panics
/// If the file is not there or has no slot.
pub fn edit_slot(meta: &Path, slot: u64, reseal: bool, edit: impl Fn(&mut [u8])) {
    let file = File::options()
        .read(true)
        .write(true)
        .open(meta)
        .expect("a meta file");
    let mut bytes = vec![0; SLOT_LEN];
    file.read_exact_at(&mut bytes, slot).expect("a slot");
    edit(&mut bytes);
    if reseal {
        let used = field::used(&bytes);
        field::checksum(&mut bytes).fill(0);
        let checksum = crc32c::crc32c(&bytes[..used]);
        field::checksum(&mut bytes).copy_from_slice(&checksum.to_le_bytes());
    }
    file.write_all_at(&bytes, slot).expect("a written slot");
    file.sync_all().expect("a synced slot");
}

/// [`edit_slot`] on both.
pub fn edit_both(meta: &Path, reseal: bool, edit: impl Fn(&mut [u8])) {
    for slot in SLOTS {
        edit_slot(meta, slot, reseal, &edit);
    }
}

/// The used bytes of one slot.
///
/// # Panics
/// If the file is not there or has no slot.
pub fn read_slot(meta: &Path, slot: u64) -> Vec<u8> {
    let mut bytes = vec![0; SLOT_LEN];
    File::open(meta)
        .expect("a meta file")
        .read_exact_at(&mut bytes, slot)
        .expect("a slot");
    bytes.truncate(field::used(&bytes));
    bytes
}

/// Both places of a map page.
///
/// # Panics
/// If the file is not there or too short.
pub fn read_page(meta: &Path, page: u64) -> Vec<u8> {
    let mut bytes = vec![0; PLACES];
    File::open(meta)
        .expect("a meta file")
        .read_exact_at(&mut bytes, MAP + PLACES as u64 * page)
        .expect("a page");
    bytes
}

/// Puts these bytes in both places of a map page.
///
/// # Panics
/// If the file cannot be written.
pub fn write_page(meta: &Path, page: u64, places: &[u8]) {
    let file = File::options().write(true).open(meta).expect("a meta file");
    file.write_all_at(places, MAP + PLACES as u64 * page)
        .expect("a written page");
}

/// Changes a map page, wherever it was written, and, if `reseal`, gives it a good checksum again.
///
/// # Panics
/// If the page was never written.
pub fn edit_page(meta: &Path, page: u64, reseal: bool, edit: impl Fn(&mut [u8])) {
    let mut places = read_page(meta, page);
    let mut edited = 0;
    for place in places.chunks_exact_mut(PLACE) {
        if !place.starts_with(b"SVMP") {
            continue;
        }
        edit(place);
        if reseal {
            let mut bare = place.to_vec();
            bare[40..44].fill(0);
            bare[48..64].fill(0);
            place[40..44].copy_from_slice(&crc32c::crc32c(&bare).to_le_bytes());
        }
        edited += 1;
    }
    assert!(edited > 0, "map page {page} was never written");
    write_page(meta, page, &places);
}
