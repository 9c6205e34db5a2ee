//! Every change that somebody without the key can make to a slot or to a page of the map, one by one: refused with nothing
//! written, or served exactly as before. Never anything else.

use sealvol_crypto::UnitSize;
use sealvol_store::Operation;
use sealvol_volume::{Access, BLOCK, META_FILE, VolumeError};

use crate::rig::Machine;

/// Two pages of the map.
const SIZE: u64 = 128 << 20;
const SLOTS: [u64; 2] = [0, 256 * 1024];
const MAP: u64 = 64 << 20;
const PAGE: usize = 4096;

fn block(fill: u8) -> Vec<u8> {
    vec![fill; PAGE]
}

/// Data, zeros and blocks that were never written; detached cleanly.
fn machine() -> Machine {
    let mut machine = Machine::new(21, SIZE, UnitSize::B4096);
    let volume = machine.open().unwrap();
    machine.write(&volume, 0, &block(1)).unwrap();
    machine.write(&volume, BLOCK, &block(2)).unwrap();
    machine.trim(&volume, BLOCK, BLOCK).unwrap();
    machine.write(&volume, 64 << 20, &block(3)).unwrap();
    machine.close(volume).unwrap();
    machine
}

/// What it reads: the two written blocks, the trimmed one, one that never was.
const CONTENT: [(u64, u8); 4] = [(0, 1), (BLOCK, 0), (2 * BLOCK, 0), (64 << 20, 3)];

/// Opens it for reading only: an error, or everything as it was. Nothing is written.
fn refused_or_the_same(machine: &mut Machine, case: &str) -> Option<VolumeError> {
    machine.disk.forget_journal();
    let error = match machine.open_as(Access::ReadOnly) {
        Err(error) => Some(error),
        Ok(volume) => {
            for (at, fill) in CONTENT {
                let read = machine.read(&volume, at, PAGE).unwrap();
                assert_eq!(read, block(fill), "{case}: at {at}");
            }
            None
        }
    };
    for record in machine.disk.journal() {
        let looks = matches!(record.operation, Operation::Open | Operation::Read);
        assert!(looks, "{case}: {record:?}");
    }
    error
}

/// Gives the slot a good checksum again, if its length says where it ends.
fn reseal(slot: &mut [u8]) {
    let used = u32::from_le_bytes(slot[140..144].try_into().unwrap()) as usize;
    slot[144..148].fill(0);
    let checksum = crc32c::crc32c(&slot[..used.min(slot.len())]);
    slot[144..148].copy_from_slice(&checksum.to_le_bytes());
}

#[test]
fn no_change_of_a_slot_serves_anything_else() {
    let mut machine = machine();
    let intact = machine.raw(META_FILE, 0, PAGE);
    let used = u32::from_le_bytes(intact[140..144].try_into().unwrap()) as usize;
    let covered = |at: usize| at < 128 || (160..192).contains(&at) || (256..264).contains(&at);
    let mut refused = 0;
    for at in 0..used {
        for mask in [1 << (at % 8), 0xff] {
            for good_checksum in [false, true] {
                for slots in [&SLOTS[..1], &SLOTS[1..], &SLOTS[..]] {
                    let mut changed = intact.clone();
                    changed[at] ^= mask;
                    if good_checksum && !(144..148).contains(&at) {
                        reseal(&mut changed);
                    }
                    for &slot in slots {
                        machine.patch(META_FILE, slot, &changed);
                    }
                    let case = format!("byte {at} ^ {mask:#x} of {slots:?}, {good_checksum}");
                    let error = refused_or_the_same(&mut machine, &case);
                    let both = slots.len() == 2;
                    let sealed = good_checksum && !(144..148).contains(&at);
                    if both && (!sealed || covered(at)) || sealed && at >= 8 && covered(at) {
                        assert!(error.is_some(), "{case}: served");
                    }
                    refused += usize::from(error.is_some());
                    for &slot in slots {
                        machine.patch(META_FILE, slot, &intact);
                    }
                }
            }
        }
    }
    assert!(refused > used, "{refused} of {used} bytes");
    assert!(refused_or_the_same(&mut machine, "nothing changed").is_none());
}

#[test]
fn no_changed_bit_of_a_map_page_is_believed() {
    let mut machine = machine();
    let places = machine.raw(META_FILE, MAP, 2 * PAGE);
    let at = if places[..4] == *b"SVMP" { 0 } else { PAGE };
    let intact = &places[at..at + PAGE];
    assert!(
        places[PAGE - at..][..4] != *b"SVMP",
        "one place was written"
    );
    let place = MAP + at as u64;
    for bit in 0..8 * PAGE {
        for good_checksum in [false, true] {
            let mut page = intact.to_vec();
            page[bit / 8] ^= 1 << (bit % 8);
            if good_checksum {
                let mut bare = page.clone();
                bare[40..44].fill(0);
                bare[48..64].fill(0);
                page[40..44].copy_from_slice(&crc32c::crc32c(&bare).to_le_bytes());
                if page == intact {
                    continue; // a bit of the checksum, mended
                }
            }
            machine.patch(META_FILE, place, &page);
            machine.disk.forget_journal();
            let volume = machine.open_as(Access::ReadOnly).unwrap();
            let read = machine.read(&volume, 0, PAGE);
            assert!(
                matches!(read, Err(VolumeError::DamagedMap { offset: 0, end, .. }) if end == 64 << 20),
                "bit {bit}, good checksum {good_checksum}: {read:?}"
            );
            if bit % 1024 == 0 {
                let rest = machine.read(&volume, 64 << 20, PAGE).unwrap();
                assert_eq!(rest, block(3), "the rest of the volume");
            }
            drop(volume);
            let mut journal = machine.disk.journal().into_iter();
            assert!(journal.all(|r| matches!(r.operation, Operation::Open | Operation::Read)));
        }
    }
    machine.patch(META_FILE, place, intact);
    assert!(refused_or_the_same(&mut machine, "nothing changed").is_none());
}
