//! Encrypted zeros in place of holes: what is written, what is never overwritten, and what is left when it is cut short.

use std::sync::Arc;

use sealvol_crypto::UnitSize;
use sealvol_store::Operation;
use sealvol_store::fault::{Hold, When};
use sealvol_volume::{BLOCK, Materialised, Volume, VolumeError};

use crate::rig::{Disk, KEY, Machine, cipher};

const MIB: u64 = 1 << 20;
/// Two map pages, the second one short.
const SIZE: u64 = 70 * MIB;

fn block(fill: u8) -> Vec<u8> {
    vec![fill; 4096]
}

fn holes(machine: &mut Machine, volume: &Arc<Volume<Disk>>) -> u64 {
    let volume = Arc::clone(volume);
    machine
        .executor
        .run(async move { volume.holes().await.unwrap() })
}

fn materialise(
    machine: &mut Machine,
    volume: &Arc<Volume<Disk>>,
    from: u64,
    bytes_max: u64,
) -> Result<Materialised, VolumeError> {
    let volume = Arc::clone(volume);
    machine
        .executor
        .run(async move { volume.materialise(from, bytes_max).await })
}

/// A volume with data, a trimmed block, and much that was never written.
fn machine(sector_size: UnitSize) -> (Machine, Arc<Volume<Disk>>) {
    let mut machine = Machine::new(11, SIZE, sector_size);
    let volume = machine.open().unwrap();
    for (offset, fill) in [(0, 1), (3 * BLOCK, 2), (MIB - BLOCK, 3), (68 * MIB, 4)] {
        machine.write(&volume, offset, &block(fill)).unwrap();
    }
    machine.trim(&volume, 3 * BLOCK, BLOCK).unwrap();
    machine.flush(&volume).unwrap();
    (machine, volume)
}

const HELD: [(u64, u8); 3] = [(0, 1), (MIB - BLOCK, 3), (68 * MIB, 4)];

#[test]
fn the_bytes_of_data_alone_are_the_whole_volume() {
    for sector_size in [UnitSize::B512, UnitSize::B4096] {
        let (mut machine, volume) = machine(sector_size);
        let expected = SIZE - HELD.len() as u64 * BLOCK;
        assert_eq!(holes(&mut machine, &volume), expected);
        let all = materialise(&mut machine, &volume, 0, u64::MAX).unwrap();
        let (written, next) = (expected, None);
        assert_eq!(all, Materialised { written, next });
        assert_eq!(holes(&mut machine, &volume), 0);
        machine.close(volume).unwrap();
        let key = cipher(&KEY);
        let mut plain = machine.raw("data", 0, usize::try_from(SIZE).unwrap());
        key.decrypt_in_place(sector_size, 0, &mut plain);
        for (number, found) in plain.chunks(4096).enumerate() {
            let held = HELD
                .iter()
                .find(|(offset, _)| *offset == number as u64 * BLOCK);
            let fill = held.map_or(0, |(_, fill)| *fill);
            assert!(found.iter().all(|&byte| byte == fill), "block {number}");
        }
    }
}

#[test]
fn a_second_run_has_nothing_to_do() {
    let (mut machine, volume) = machine(UnitSize::B4096);
    materialise(&mut machine, &volume, 0, u64::MAX).unwrap();
    machine.disk.forget_journal();
    let again = materialise(&mut machine, &volume, 0, u64::MAX).unwrap();
    assert_eq!(again.written, 0);
    let journal = machine.disk.journal();
    assert!(
        journal
            .iter()
            .all(|record| record.operation != Operation::Write)
    );
}

#[test]
fn a_write_that_comes_during_the_filling_stays() {
    let (mut machine, volume) = machine(UnitSize::B4096);
    let filling = When::operation(Operation::Write).file("data");
    let gate = machine.disk.hold(filling, Hold::Before);
    let filler = Arc::clone(&volume);
    let all = machine
        .executor
        .start(async move { filler.materialise(0, u64::MAX).await });
    machine.executor.idle();
    assert_eq!(gate.held(), 1);
    let write = machine.start_write(&volume, 2 * BLOCK, &block(9), false);
    machine.executor.idle();
    assert!(!write.is_done(), "it waits for the piece under way");
    gate.release();
    machine.executor.finish(&write).unwrap();
    machine.executor.finish(&all).unwrap();
    assert_eq!(
        machine.read(&volume, 2 * BLOCK, 4096).unwrap(),
        block(9),
        "the guest's bytes"
    );
    assert_eq!(holes(&mut machine, &volume), 0);
}

#[test]
fn a_write_that_is_under_way_is_not_filled_over() {
    let (mut machine, volume) = machine(UnitSize::B4096);
    let writing = When::operation(Operation::Write).file("data");
    let gate = machine.disk.hold(writing, Hold::Before);
    let write = machine.start_write(&volume, 2 * BLOCK, &block(9), false);
    machine.executor.idle();
    assert_eq!(gate.held(), 1);
    let filler = Arc::clone(&volume);
    // Resolves the block as a hole, and has to look again when the write has ended.
    let all = machine
        .executor
        .start(async move { filler.materialise(0, u64::MAX).await });
    machine.executor.idle();
    assert!(!all.is_done());
    gate.release();
    machine.executor.finish(&write).unwrap();
    machine.executor.finish(&all).unwrap();
    assert_eq!(machine.read(&volume, 2 * BLOCK, 4096).unwrap(), block(9));
}

#[test]
fn a_punch_that_waits_does_not_free_what_was_filled() {
    let (mut machine, volume) = machine(UnitSize::B4096);
    machine.write(&volume, 5 * BLOCK, &block(5)).unwrap();
    machine.flush(&volume).unwrap();
    machine.trim(&volume, 5 * BLOCK, BLOCK).unwrap();
    machine.disk.forget_journal();
    materialise(&mut machine, &volume, 0, u64::MAX).unwrap();
    machine.executor.idle();
    let journal = machine.disk.journal();
    let punched = |record: &&sealvol_store::fault::Record| record.operation == Operation::Punch;
    assert!(journal.iter().find(punched).is_none(), "a block was freed");
    machine.close(volume).unwrap();
    let mut zeros = machine.raw("data", 5 * BLOCK, 4096);
    assert_ne!(zeros, block(0), "ciphertext is there");
    cipher(&KEY).decrypt_in_place(UnitSize::B4096, 5, &mut zeros);
    assert_eq!(zeros, block(0));
}

#[test]
fn what_was_cut_short_goes_on_where_the_map_says() {
    let (mut machine, volume) = machine(UnitSize::B4096);
    let all = holes(&mut machine, &volume);
    let part = materialise(&mut machine, &volume, 0, 10 * MIB).unwrap();
    assert!(part.written >= 10 * MIB && part.written <= 11 * MIB);
    assert!(part.next.is_some());
    drop(volume);
    machine.restart();
    let volume = machine.open().unwrap();
    assert_eq!(
        holes(&mut machine, &volume),
        all - part.written,
        "each part ends with a commit"
    );
    let rest = materialise(&mut machine, &volume, 0, u64::MAX).unwrap();
    assert_eq!(part.written + rest.written, all);
    for (offset, fill) in HELD {
        assert_eq!(machine.read(&volume, offset, 4096).unwrap(), block(fill));
    }
}

#[test]
fn power_that_goes_in_the_middle_leaves_what_was_there() {
    for steps in (0..400).step_by(37) {
        let (mut machine, volume) = machine(UnitSize::B4096);
        let filler = Arc::clone(&volume);
        machine
            .executor
            .start(async move { filler.materialise(0, u64::MAX).await });
        machine.executor.steps(steps);
        drop(volume);
        machine.restart();
        let volume = machine.open().unwrap();
        for (offset, fill) in HELD.into_iter().chain([(3 * BLOCK, 0), (9 * BLOCK, 0)]) {
            let found = machine.read(&volume, offset, 4096).unwrap();
            assert_eq!(found, block(fill), "{offset} after {steps} steps");
        }
        materialise(&mut machine, &volume, 0, u64::MAX).unwrap();
        assert_eq!(holes(&mut machine, &volume), 0);
    }
}

#[test]
fn a_full_disk_ends_it_and_harms_nothing() {
    let (mut machine, volume) = machine(UnitSize::B4096);
    machine
        .disk
        .set_capacity(Some(machine.disk.used() + 10 * MIB));
    let refused = materialise(&mut machine, &volume, 0, u64::MAX);
    assert!(matches!(refused, Err(VolumeError::NoSpace)), "{refused:?}");
    assert_eq!(volume.failed(), None);
    machine.disk.set_capacity(None);
    materialise(&mut machine, &volume, 0, u64::MAX).unwrap();
    assert_eq!(holes(&mut machine, &volume), 0);
    for (offset, fill) in HELD {
        assert_eq!(machine.read(&volume, offset, 4096).unwrap(), block(fill));
    }
}
