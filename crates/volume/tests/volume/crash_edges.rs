//! Power cuts at every change of one step: create, open, grow, first directory page, clean detach.

use std::sync::Arc;

use sealvol_crypto::UnitSize;
use sealvol_store::{Access, Directory};
use sealvol_volume::{BLOCK, META_FILE, Volume, VolumeError, destroy_keys, read_keys};

use crate::rig::{Disk, Machine, params, pattern, seeds, wrapped_keys};

/// What different crashes leave is tried so often at each point.
const SEEDS: u64 = 12;
const GIB: u64 = 1 << 30;
const SIZE: u64 = 20 * GIB;

fn block(version: u64, offset: u64) -> Vec<u8> {
    (0..8)
        .flat_map(|piece| pattern(version, offset / 512 + piece))
        .collect()
}

/// A machine whose volume holds version 1 in some blocks, flushed.
fn used(seed: u64) -> (Machine, Arc<Volume<Disk>>) {
    let mut machine = Machine::new(seed, SIZE, UnitSize::B4096);
    let volume = machine.open().unwrap();
    for offset in PLACES {
        machine.write(&volume, offset, &block(1, offset)).unwrap();
    }
    machine.flush(&volume).unwrap();
    (machine, volume)
}

const PLACES: [u64; 3] = [0, (64 << 20) - BLOCK, 3 * GIB];

/// Opens and reads what `used` wrote, then goes on writing, detaches and opens strictly.
fn check_goes_on(machine: &mut Machine) {
    let volume = machine.open().unwrap();
    for offset in PLACES {
        assert_eq!(
            machine.read(&volume, offset, 4096).unwrap(),
            block(1, offset),
            "at {offset}"
        );
    }
    machine
        .write(&volume, 17 * GIB, &block(9, 17 * GIB))
        .unwrap();
    machine.close(volume).unwrap();
    machine.restart();
    let volume = machine.open().unwrap();
    assert_eq!(
        machine.read(&volume, 17 * GIB, 4096).unwrap(),
        block(9, 17 * GIB)
    );
    assert_eq!(machine.read(&volume, 0, 4096).unwrap(), block(1, 0));
    machine.close(volume).unwrap();
}

/// Cuts the power at every change of `step`, from the first on. How many there are.
fn at_every_change(mut step: impl FnMut(&mut Machine, Arc<Volume<Disk>>)) -> u64 {
    for nth in 1.. {
        for seed in 0..SEEDS {
            let (mut machine, volume) = used(seed + nth * 1000);
            machine.disk.cut_power_at(nth);
            step(&mut machine, volume);
            let cut = !machine.disk.is_powered();
            machine.restart();
            check_goes_on(&mut machine);
            if !cut {
                return nth - 1;
            }
        }
    }
    unreachable!("a step has an end")
}

#[test]
fn create_can_be_cut_anywhere_and_done_again() {
    for nth in 1.. {
        for seed in 0..SEEDS {
            let mut machine = Machine::bare(seed + nth * 1000, params(SIZE, UnitSize::B4096));
            machine.disk.cut_power_at(nth);
            let created = machine.create().is_ok();
            machine.restart();
            if !created {
                let directory = machine.directory();
                machine.executor.run(async move {
                    for name in directory.list().await.unwrap() {
                        directory.remove(&name).await.unwrap();
                    }
                });
                machine.create().unwrap();
            }
            let volume = machine.open().unwrap();
            assert_eq!(machine.read(&volume, 0, 4096).unwrap(), vec![0; 4096]);
            machine.close(volume).unwrap();
            if created {
                assert!(nth > 8, "create is more than {nth} changes");
                return;
            }
        }
    }
}

#[test]
fn what_create_made_is_there_after_a_crash() {
    for seed in seeds(40) {
        let mut machine = Machine::new(seed, SIZE, UnitSize::B4096);
        machine.restart();
        assert_eq!(keys_of(&mut machine).unwrap(), wrapped_keys());
        let volume = machine.open().unwrap();
        assert_eq!(machine.read(&volume, 0, 4096).unwrap(), vec![0; 4096]);
        machine.close(volume).unwrap();
    }
}

#[test]
fn a_grow_that_was_answered_is_there_after_a_crash() {
    for seed in seeds(40) {
        let (mut machine, volume) = used(seed);
        machine
            .executor
            .run(async move { volume.grow(40 * GIB).await })
            .unwrap();
        machine.restart();
        check_goes_on(&mut machine);
        assert_eq!(machine.open().unwrap().size(), 40 * GIB);
    }
}

#[test]
fn opening_can_be_cut_anywhere_twice_in_a_row() {
    for (first, second) in (1..=4).flat_map(|first| (1..=4).map(move |second| (first, second))) {
        for seed in 0..SEEDS {
            let (mut machine, volume) = used(seed + first * 1000 + second * 100_000);
            drop(volume);
            machine.restart();
            for nth in [first, second] {
                machine.disk.cut_power_at(nth);
                assert!(
                    machine.open().is_err(),
                    "opening takes four changes, {nth} is one of them"
                );
                machine.restart();
            }
            check_goes_on(&mut machine);
        }
    }
}

#[test]
fn the_first_opening_can_be_cut_anywhere() {
    for nth in 1..=4 {
        for seed in 0..SEEDS {
            let mut machine = Machine::new(seed + nth * 1000, SIZE, UnitSize::B512);
            machine.disk.cut_power_at(nth);
            assert!(machine.open().is_err());
            assert!(
                !machine.registry.pins().bound,
                "bound before it was durable"
            );
            machine.restart();
            let volume = machine.open().unwrap();
            assert!(machine.registry.pins().bound);
            machine.write(&volume, 512, &block(3, 512)).unwrap();
            machine.close(volume).unwrap();
            machine.restart();
            let volume = machine.open().unwrap();
            assert_eq!(machine.read(&volume, 512, 4096).unwrap(), block(3, 512));
        }
    }
}

#[test]
fn growing_can_be_cut_anywhere() {
    let changes = at_every_change(|machine, volume| {
        let grown = Arc::clone(&volume);
        let result = machine
            .executor
            .run(async move { grown.grow(40 * GIB).await });
        assert_eq!(
            result.is_ok(),
            machine.disk.is_powered() && volume.size() == 40 * GIB
        );
        if result.is_ok() {
            assert_eq!(machine.registry.pins().params.size, 40 * GIB);
        }
    });
    assert!(changes >= 10, "{changes}");
}

#[test]
fn a_grow_that_was_recorded_is_folded_in_wherever_the_power_goes() {
    for nth in 1..=12 {
        for seed in 0..SEEDS {
            let (mut machine, volume) = used(seed + nth * 1000);
            machine.close(volume).unwrap();
            machine
                .registry
                .change_pins(|pins| pins.params.size = 33 * GIB);
            machine.disk.cut_power_at(nth);
            drop(machine.open());
            machine.restart();
            check_goes_on(&mut machine);
            let volume = machine.open().unwrap();
            assert_eq!(volume.size(), 33 * GIB);
            machine
                .write(&volume, 33 * GIB - BLOCK, &block(5, 33 * GIB - BLOCK))
                .unwrap();
            machine.flush(&volume).unwrap();
        }
    }
}

#[test]
fn detaching_cleanly_can_be_cut_anywhere() {
    let changes = at_every_change(|machine, volume| {
        for offset in [4 * GIB, BLOCK] {
            if machine.write(&volume, offset, &block(2, offset)).is_err() {
                return;
            }
        }
        if machine.close(volume).is_ok() {
            machine.restart();
            let volume = machine.open().unwrap();
            assert_eq!(
                machine.read(&volume, 4 * GIB, 4096).unwrap(),
                block(2, 4 * GIB)
            );
        }
    });
    assert!(changes >= 10, "{changes}");
}

#[test]
fn the_first_write_of_a_directory_page_can_be_cut_anywhere() {
    let changes = at_every_change(|machine, volume| {
        let offset = 16 * GIB + 5 * BLOCK;
        if machine.write(&volume, offset, &block(4, offset)).is_err()
            || machine.flush(&volume).is_err()
        {
            return;
        }
        // Flushed, so it is there after a crash now.
        drop(volume);
        machine.restart();
        let volume = machine.open().unwrap();
        assert_eq!(
            machine.read(&volume, offset, 4096).unwrap(),
            block(4, offset)
        );
    });
    assert!(changes >= 10, "{changes}");
}

#[test]
fn a_later_write_of_a_directory_page_can_be_cut_anywhere() {
    // Entries far from each other, so that every write of the page changes several sectors and can be torn.
    let pages = [5 * GIB, 9 * GIB, 14 * GIB];
    let changes = at_every_change(|machine, volume| {
        for (at, offset) in pages.into_iter().enumerate() {
            if machine.write(&volume, offset, &block(4, offset)).is_err()
                || machine.flush(&volume).is_err()
            {
                drop(volume);
                machine.restart();
                let volume = machine.open().unwrap();
                for offset in &pages[..at] {
                    let found = machine.read(&volume, *offset, 4096).unwrap();
                    assert_eq!(found, block(4, *offset));
                }
                // So that the caller sees that there was a cut.
                machine.disk.cut_power();
                return;
            }
        }
    });
    assert!(changes >= 15, "{changes}");
}

/// The wrapped keys as the store has them now.
fn keys_of(machine: &mut Machine) -> Result<Vec<sealvol_volume::WrappedKey>, VolumeError> {
    let directory = machine.directory();
    machine.executor.run(async move {
        let meta = directory.open(META_FILE, Access::ReadOnly).await.unwrap();
        read_keys(&meta).await
    })
}

#[test]
fn keys_are_there_until_they_are_destroyed_and_then_in_neither_slot() {
    for nth in 1.. {
        for seed in 0..SEEDS {
            let (mut machine, volume) = used(seed + nth * 1000);
            machine.close(volume).unwrap();
            assert_eq!(keys_of(&mut machine).unwrap(), wrapped_keys());
            machine.disk.cut_power_at(nth);
            let directory = machine.directory();
            let destroyed = machine
                .executor
                .run(async move { destroy_keys(&directory).await })
                .is_ok();
            machine.restart();
            if nth < 3 {
                assert!(!destroyed);
                assert_eq!(
                    keys_of(&mut machine).unwrap(),
                    wrapped_keys(),
                    "one slot is intact until both are to go"
                );
            }
            if destroyed {
                assert!(nth > 4);
                assert!(matches!(
                    keys_of(&mut machine),
                    Err(VolumeError::NoSuperblock { .. })
                ));
                for slot in [0, 256 * 1024] {
                    assert!(
                        machine
                            .raw(META_FILE, slot, 256 * 1024)
                            .iter()
                            .all(|&byte| byte == 0)
                    );
                }
                return;
            }
        }
    }
}

#[test]
fn a_repair_that_is_cut_leaves_the_slot_that_serves() {
    // A write of a slot is torn only if it changes several sectors: a longer root table does.
    const GROWN: u64 = 600 * GIB;
    for torn in [0, 256 * 1024] {
        for nth in 1..=14 {
            // Two sectors that part are rarer than many.
            for seed in 0..4 * SEEDS {
                let (mut machine, volume) = used(seed + nth * 1000);
                machine.close(volume).unwrap();
                machine.patch(META_FILE, torn + 130, &[0xff; 8]);
                machine
                    .registry
                    .change_pins(|pins| pins.params.size = GROWN);
                machine.disk.cut_power_at(nth);
                drop(machine.open());
                machine.restart();
                check_goes_on(&mut machine);
            }
        }
    }
}
