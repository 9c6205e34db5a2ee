//! Stores that somebody else wrote: what is refused, with what error, and that nothing is written before.

use std::sync::Arc;

use sealvol_crypto::UnitSize;
use sealvol_store::{Directory, Operation};
use sealvol_volume::{Access, BLOCK, DATA_FILE, LayerId, META_FILE, Volume, VolumeError, VolumeId};

use crate::rig::{Disk, Machine, OTHER_KEY, params};

const GIB: u64 = 1 << 30;
const SIZE: u64 = 20 * GIB;
const SLOT: u64 = 256 * 1024;
const SLOTS: [u64; 2] = [0, SLOT];
const DIRECTORY: u64 = 1 << 20;
const MAP: u64 = 64 << 20;
/// A map page's or directory page's two places.
const PLACES: usize = 8192;

fn block(fill: u8) -> Vec<u8> {
    vec![fill; 4096]
}

/// A layer with version 1 in blocks 0 and 2 of two map pages and of a second directory, detached cleanly.
fn machine() -> Machine {
    let mut machine = Machine::new(11, SIZE, UnitSize::B4096);
    let volume = machine.open().unwrap();
    for offset in WRITTEN {
        machine.write(&volume, offset, &block(1)).unwrap();
    }
    machine.close(volume).unwrap();
    machine
}

const WRITTEN: [u64; 4] = [0, 2 * BLOCK, 64 << 20, 17 * GIB];

/// Opens it in both ways; both are refused with nothing written. The error of the writable one.
fn refused(machine: &mut Machine) -> VolumeError {
    machine.disk.forget_journal();
    let mut last = None;
    for access in [Access::ReadOnly, Access::Writable] {
        last = machine.open_as(access).err();
        assert!(last.is_some(), "opened {access:?}");
    }
    assert_untouched(machine);
    last.unwrap()
}

/// Nothing but opening and reading happened since the journal was forgotten.
fn assert_untouched(machine: &Machine) {
    for record in machine.disk.journal() {
        assert!(
            matches!(record.operation, Operation::Open | Operation::Read),
            "{record:?}"
        );
    }
}

/// Changes a slot and makes its checksum right, as whoever has the store but no key can.
fn change_slot(machine: &mut Machine, slot: u64, change: impl FnOnce(&mut [u8])) {
    let mut bytes = machine.raw(META_FILE, slot, usize::try_from(SLOT).unwrap());
    change(&mut bytes);
    let used = usize::try_from(u32::from_le_bytes(bytes[140..144].try_into().unwrap())).unwrap();
    bytes[144..148].fill(0);
    let checksum = crc32c::crc32c(&bytes[..used.min(bytes.len())]);
    bytes[144..148].copy_from_slice(&checksum.to_le_bytes());
    machine.patch(META_FILE, slot, &bytes);
}

fn both_slots(machine: &mut Machine) -> Vec<u8> {
    machine.raw(META_FILE, 0, usize::try_from(2 * SLOT).unwrap())
}

fn is_damaged<T>(result: &Result<T, VolumeError>) -> bool {
    matches!(result, Err(VolumeError::DamagedMap { .. }))
}

/// The range answers with errors, all the rest is served, and the range stays as it is.
fn damaged_in(machine: &mut Machine, range: std::ops::Range<u64>) {
    for access in [Access::ReadOnly, Access::Writable] {
        let volume = machine.open_as(access).unwrap();
        for offset in WRITTEN {
            let read = machine.read(&volume, offset, 4096);
            if range.contains(&offset) {
                assert!(is_damaged(&read), "{offset}: {read:?}");
            } else {
                assert_eq!(read.unwrap(), block(1), "at {offset}");
            }
        }
        if access == Access::Writable {
            let meta = machine.disk.journal().len();
            assert!(is_damaged(&machine.write(
                &volume,
                range.start + 5 * BLOCK,
                &block(9)
            )));
            assert!(is_damaged(&machine.trim(&volume, range.start, 64 << 20)));
            assert!(
                machine.disk.journal()[meta..]
                    .iter()
                    .all(|record| record.operation == Operation::Read)
            );
            let outside = if range.contains(&0) {
                17 * GIB + BLOCK
            } else {
                BLOCK
            };
            machine.write(&volume, outside, &block(8)).unwrap();
            machine.flush(&volume).unwrap();
        }
    }
}

#[test]
fn another_key_than_the_one_committed_to_is_refused() {
    let mut machine = machine();
    machine.key = OTHER_KEY;
    assert!(matches!(refused(&mut machine), VolumeError::WrongKey));
    // A registry that forgot the commitment still has the superblock's MAC between it and the wrong key.
    machine.registry.change_pins(|pins| pins.commitment = None);
    assert!(matches!(
        refused(&mut machine),
        VolumeError::Tampered { .. }
    ));
}

#[test]
fn the_superblock_of_another_layer_is_refused() {
    type Change = fn(&mut sealvol_volume::LayerParams);
    let changes: [(&str, Change); 3] = [
        ("volume id", |params| params.volume = VolumeId([9; 16])),
        ("layer id", |params| params.layer = LayerId([9; 16])),
        ("sector size", |params| params.sector_size = UnitSize::B512),
    ];
    for (wanted, change) in changes {
        let mut machine = machine();
        machine
            .registry
            .change_pins(|pins| change(&mut pins.params));
        let error = refused(&mut machine);
        assert!(
            matches!(error, VolumeError::Mismatch { field, .. } if field == wanted),
            "{wanted}: {error}"
        );
    }
}

#[test]
fn every_bit_under_the_mac_is() {
    let mut machine = machine();
    let intact = both_slots(&mut machine);
    let root = 256..256 + 16;
    for at in (0..128).chain(root) {
        for bit in if (8..16).contains(&at) {
            0..8
        } else {
            at % 8..at % 8 + 1
        } {
            for slots in [&SLOTS[..], &SLOTS[1..]] {
                for &slot in slots {
                    change_slot(&mut machine, slot, |bytes| bytes[at] ^= 1 << bit);
                }
                let one = slots.len() == 1;
                if at < 8 && one {
                    // No magic, no superblock: the other slot serves.
                    drop(machine.open_as(Access::ReadOnly).unwrap());
                } else {
                    let error = refused(&mut machine);
                    let fits = match error {
                        VolumeError::NoSuperblock { .. } => at < 8,
                        VolumeError::NewerFormat { .. } => (8..12).contains(&at),
                        VolumeError::Mismatch { .. } => (16..76).contains(&at),
                        VolumeError::RolledBack { .. } => (80..88).contains(&at),
                        VolumeError::Tampered { .. } => at >= 8,
                        _ => false,
                    };
                    assert!(fits, "byte {at} bit {bit}: {error}");
                }
                machine.patch(META_FILE, 0, &intact);
            }
        }
    }
    machine.open().unwrap();
}

#[test]
fn what_was_bound_can_not_be_made_unbound() {
    let mut machine = machine();
    for slot in SLOTS {
        change_slot(&mut machine, slot, |bytes| {
            bytes[12] &= !4;
            bytes[160..192].fill(0);
        });
    }
    assert!(matches!(
        refused(&mut machine),
        VolumeError::Tampered { .. }
    ));
}

#[test]
fn a_newer_version_is_told_from_damage() {
    for slots in [&SLOTS[..], &SLOTS[..1], &SLOTS[1..]] {
        let mut machine = machine();
        for &slot in slots {
            change_slot(&mut machine, slot, |bytes| bytes[8] = 2);
        }
        assert!(matches!(
            refused(&mut machine),
            VolumeError::NewerFormat { version: 2 }
        ));
    }
}

#[test]
fn two_torn_slots_are_refused() {
    let mut machine = machine();
    for slot in SLOTS {
        machine.patch(META_FILE, slot + 200, &[0xff]);
    }
    assert!(matches!(
        refused(&mut machine),
        VolumeError::NoSuperblock { .. }
    ));
}

#[test]
fn one_torn_slot_is_served_around_and_repaired() {
    for slot in SLOTS {
        let mut machine = machine();
        machine.patch(META_FILE, slot + 130, &[0xff; 8]);
        machine.disk.forget_journal();
        let volume = machine.open_as(Access::ReadOnly).unwrap();
        assert_eq!(
            volume.repaired(),
            None,
            "nothing is repaired without the right to write"
        );
        assert_eq!(machine.read(&volume, 0, 4096).unwrap(), block(1));
        assert_untouched(&machine);
        drop(volume);
        machine.disk.forget_journal();
        let volume = machine.open().unwrap();
        assert!(volume.repaired().is_some());
        let journal = machine.disk.journal();
        let first = journal
            .iter()
            .find(|record| record.operation == Operation::Write)
            .unwrap();
        assert_eq!(
            first.offset, slot,
            "the slot that serves is not touched while the other one is torn"
        );
        drop(volume);
        let slots = both_slots(&mut machine);
        assert!(slots[..4096] == slots[slots.len() / 2..][..4096]);
    }
}

#[test]
fn an_older_slot_is_brought_up_to_the_newer_one() {
    for slot in SLOTS {
        let mut machine = machine();
        let before = machine.raw(META_FILE, slot, 4096);
        let volume = machine.open().unwrap();
        machine.write(&volume, BLOCK, &block(3)).unwrap();
        machine.close(volume).unwrap();
        machine.patch(META_FILE, slot, &before);
        let volume = machine.open().unwrap();
        assert!(volume.repaired().is_some());
        assert_eq!(machine.read(&volume, BLOCK, 4096).unwrap(), block(3));
        drop(volume);
        let slots = both_slots(&mut machine);
        assert!(slots[..4096] == slots[slots.len() / 2..][..4096]);
    }
}

#[test]
fn superblocks_older_than_the_registry_are_refused() {
    let mut machine = machine();
    let before = both_slots(&mut machine);
    let volume = machine.open().unwrap();
    machine.close(volume).unwrap();
    let after = both_slots(&mut machine);
    machine.patch(META_FILE, 0, &before);
    assert!(matches!(
        refused(&mut machine),
        VolumeError::RolledBack { .. }
    ));
    // One older, one torn.
    machine.patch(META_FILE, 0, &after);
    machine.patch(META_FILE, 0, &before[..4096]);
    machine.patch(META_FILE, SLOT + 100, &[0xff; 8]);
    assert!(matches!(
        refused(&mut machine),
        VolumeError::RolledBack { .. }
    ));
}

#[test]
fn a_good_checksum_with_a_bad_mac_is_refused_whichever_slot_has_it() {
    for slot in SLOTS {
        let mut machine = machine();
        change_slot(&mut machine, slot, |bytes| bytes[170] ^= 1);
        assert!(matches!(
            refused(&mut machine),
            VolumeError::Tampered { .. }
        ));
    }
}

/// Puts a file of `len` bytes with the same start in the place of one.
fn cut(machine: &mut Machine, file: &'static str, len: u64, start: &[u8]) {
    let directory = machine.directory();
    machine.executor.run(async move {
        directory.remove(file).await.unwrap();
        directory.create(file, len).await.unwrap();
    });
    machine.patch(
        file,
        0,
        &start[..start.len().min(usize::try_from(len).unwrap())],
    );
}

#[test]
fn truncated_files_are_refused() {
    let mut machine = machine();
    cut(&mut machine, DATA_FILE, SIZE - BLOCK, &[]);
    assert!(matches!(
        refused(&mut machine),
        VolumeError::Truncated { file: "data", .. }
    ));
    let slots = both_slots(&mut machine);
    for len in [
        MAP + 8192 * (SIZE >> 26) - 1,
        MAP,
        2 * SLOT,
        2 * SLOT - 1,
        4096,
        0,
    ] {
        cut(&mut machine, META_FILE, len, &slots);
        let error = refused(&mut machine);
        let file = if len < MAP { "meta" } else { "data" };
        assert!(
            matches!(error, VolumeError::Truncated { .. }),
            "{file}: {error}"
        );
    }
    cut(&mut machine, DATA_FILE, SIZE, &[]);
    assert!(matches!(
        refused(&mut machine),
        VolumeError::Truncated { file: "meta", .. }
    ));
}

#[test]
fn a_torn_map_page_answers_with_errors_for_its_range_only() {
    let mut machine = machine();
    // Only one place was ever written; its entry is exact, so nothing older may stand in.
    machine.patch(META_FILE, MAP + 1000, &[0xff; 512]);
    damaged_in(&mut machine, 0..64 << 20);
}

#[test]
fn a_torn_map_page_falls_back_to_its_previous_content_after_a_crash() {
    let mut machine = machine();
    let volume = machine.open().unwrap();
    machine.write(&volume, 4 * BLOCK, &block(4)).unwrap();
    machine.flush(&volume).unwrap();
    machine.write(&volume, 6 * BLOCK, &block(6)).unwrap();
    machine.flush(&volume).unwrap();
    drop(volume);
    machine.restart();
    let places = machine.raw(META_FILE, MAP, PLACES);
    let sequence =
        |place: usize| u64::from_le_bytes(places[place + 32..place + 40].try_into().unwrap());
    let newest = if sequence(0) > sequence(4096) {
        0
    } else {
        4096
    };
    machine.patch(META_FILE, MAP + newest + 1024, &[0xff; 512]);
    let volume = machine.open().unwrap();
    assert_eq!(machine.read(&volume, 4 * BLOCK, 4096).unwrap(), block(4));
    assert_eq!(machine.read(&volume, 6 * BLOCK, 4096).unwrap(), block(0));
    machine.write(&volume, 8 * BLOCK, &block(8)).unwrap();
    machine.close(volume).unwrap();
    let volume = machine.open().unwrap();
    assert_eq!(machine.read(&volume, 8 * BLOCK, 4096).unwrap(), block(8));
}

/// Changes a page and makes its checksum right.
fn change_page(machine: &mut Machine, offset: u64, change: impl FnOnce(&mut [u8])) {
    let mut page = machine.raw(META_FILE, offset, 4096);
    change(&mut page);
    let mut bare = page.clone();
    bare[40..44].fill(0);
    bare[48..64].fill(0);
    page[40..44].copy_from_slice(&crc32c::crc32c(&bare).to_le_bytes());
    machine.patch(META_FILE, offset, &page);
}

#[test]
fn a_map_page_with_a_good_checksum_and_a_bad_mac_is_refused_though_the_other_place_is_good() {
    for at in [8, 24, 32, 48, 64, 3000, 4095] {
        let mut machine = machine();
        change_page(&mut machine, MAP, |page| page[at] ^= 1);
        damaged_in(&mut machine, 0..64 << 20);
        let mut machine = self::machine();
        let good = machine.raw(META_FILE, MAP, 4096);
        machine.patch(META_FILE, MAP + 4096, &good);
        change_page(&mut machine, MAP + 4096, |page| page[at] ^= 1);
        damaged_in(&mut machine, 0..64 << 20);
    }
}

#[test]
fn map_pages_that_were_swapped_are_refused() {
    let mut machine = machine();
    let first = machine.raw(META_FILE, MAP, PLACES);
    let second = machine.raw(META_FILE, MAP + 8192, PLACES);
    machine.patch(META_FILE, MAP, &second);
    machine.patch(META_FILE, MAP + 8192, &first);
    damaged_in(&mut machine, 0..128 << 20);
}

#[test]
fn a_map_page_of_another_layer_is_refused() {
    let mut other = params(SIZE, UnitSize::B4096);
    other.layer = LayerId([0x77; 16]);
    let mut other = Machine::bare(12, other);
    other.create().unwrap();
    let volume = other.open().unwrap();
    other.write(&volume, 0, &block(1)).unwrap();
    other.close(volume).unwrap();
    let page = other.raw(META_FILE, MAP, PLACES);
    let mut machine = machine();
    machine.patch(META_FILE, MAP, &page);
    damaged_in(&mut machine, 0..64 << 20);
}

#[test]
fn an_old_map_page_is_refused_after_a_clean_detach() {
    let mut machine = machine();
    let page = machine.raw(META_FILE, MAP, PLACES);
    let directory = machine.raw(META_FILE, DIRECTORY, PLACES);
    let volume = machine.open().unwrap();
    machine.trim(&volume, 2 * BLOCK, BLOCK).unwrap();
    machine.close(volume).unwrap();
    let now = machine.raw(META_FILE, MAP, PLACES);
    assert_ne!(page, now);
    machine.patch(META_FILE, MAP, &page);
    damaged_in(&mut machine, 0..64 << 20);
    // With the directory page that vouched for it: the root of the superblock does not vouch for that one.
    machine.patch(META_FILE, DIRECTORY, &directory);
    machine.restart();
    let volume = machine.open_as(Access::ReadOnly).unwrap();
    // That detach was not clean, so a directory page may be older than it could be, but never than the root says.
    assert!(is_damaged(&machine.read(&volume, 2 * BLOCK, 4096)));
}

#[test]
fn a_damaged_directory_page_answers_with_errors_for_its_range_only() {
    let mut machine = machine();
    machine.patch(META_FILE, DIRECTORY + 2000, &[0xff; 16]);
    damaged_in(&mut machine, 0..16 * GIB);
    let mut machine = self::machine();
    change_page(&mut machine, DIRECTORY + 8192, |page| page[64] ^= 1);
    damaged_in(&mut machine, 16 * GIB..SIZE);
}

#[test]
fn nothing_that_the_meta_of_a_layer_says_that_was_never_bound_is_believed() {
    let mut machine = Machine::new(13, SIZE, UnitSize::B4096);
    for slot in SLOTS {
        change_slot(&mut machine, slot, |bytes| {
            bytes[12] = 1 | 2 | 4;
            bytes[80..88].fill(0xff);
            bytes[96..104].fill(0xff);
            bytes[120..128].fill(0xff);
            bytes[256..272].fill(0x11);
        });
    }
    machine.patch(META_FILE, DIRECTORY, &vec![0x5a; PLACES]);
    machine.patch(META_FILE, MAP, &vec![0x5a; PLACES]);
    let volume = machine.open_as(Access::ReadOnly).unwrap();
    assert_eq!(machine.read(&volume, 0, 4096).unwrap(), block(0));
    drop(volume);
    let volume = machine.open().unwrap();
    assert!(volume.generation() < 10, "the generation was believed");
    for offset in [0, 17 * GIB] {
        assert_eq!(machine.read(&volume, offset, 4096).unwrap(), block(0));
        machine.write(&volume, offset, &block(2)).unwrap();
    }
    machine.close(volume).unwrap();
    let volume = machine.open().unwrap();
    assert_eq!(machine.read(&volume, 17 * GIB, 4096).unwrap(), block(2));
}

#[test]
fn a_layer_that_was_never_bound_can_not_be_larger_than_the_registry_says() {
    let mut machine = Machine::new(14, SIZE, UnitSize::B4096);
    machine
        .registry
        .change_pins(|pins| pins.params.size = SIZE - BLOCK);
    assert!(matches!(
        refused(&mut machine),
        VolumeError::Mismatch { field: "size", .. }
    ));
}

#[test]
fn a_read_only_volume_is_never_written() {
    let mut machine = machine();
    let unclean = |machine: &mut Machine| {
        let volume = machine.open().unwrap();
        machine.write(&volume, BLOCK, &block(7)).unwrap();
        machine.flush(&volume).unwrap();
        drop(volume);
        machine.restart();
    };
    for crash in [false, true] {
        if crash {
            unclean(&mut machine);
        }
        machine.disk.forget_journal();
        let pins = machine.registry.pins();
        let volume: Arc<Volume<Disk>> = machine.open_as(Access::ReadOnly).unwrap();
        for offset in WRITTEN {
            assert_eq!(machine.read(&volume, offset, 4096).unwrap(), block(1));
        }
        assert_eq!(
            machine.read(&volume, BLOCK, 4096).unwrap(),
            block(if crash { 7 } else { 0 })
        );
        assert!(matches!(
            machine.write(&volume, 0, &block(2)),
            Err(VolumeError::ReadOnly)
        ));
        assert!(matches!(
            machine.trim(&volume, 0, BLOCK),
            Err(VolumeError::ReadOnly)
        ));
        let grown = Arc::clone(&volume);
        let grow = machine
            .executor
            .run(async move { grown.grow(SIZE + BLOCK).await });
        assert!(matches!(grow, Err(VolumeError::ReadOnly)));
        machine.flush(&volume).unwrap();
        machine.close(volume).unwrap();
        machine.executor.idle();
        assert_untouched(&machine);
        assert_eq!(machine.registry.pins().generation, pins.generation);
    }
}
