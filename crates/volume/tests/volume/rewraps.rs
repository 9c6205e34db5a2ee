//! Wrapped keys that are replaced: at every instant one slot has all of the old or all of the new, and what was taken out is gone.

use sealvol_crypto::UnitSize;
use sealvol_store::{Access, Directory};
use sealvol_volume::{
    DataKeyId, META_FILE, VolumeError, VolumeId, WrappedKey, read_keys, replace_keys,
};

use crate::rig::{Machine, wrapped_keys};

const SLOT: u64 = 256 * 1024;

/// A copy of the layer's data key that is as long as its number says, and full of it.
fn copy(number: u8) -> WrappedKey {
    WrappedKey {
        provider: "other".into(),
        key_id: format!("key-{number}"),
        blob: vec![number; 36 * usize::from(number)],
        ..wrapped_keys().remove(0)
    }
}

fn machine(seed: u64) -> Machine {
    let mut machine = Machine::new(seed, 20 << 30, UnitSize::B4096);
    let volume = machine.open().unwrap();
    machine.write(&volume, 0, &[9; 4096]).unwrap();
    machine.close(volume).unwrap();
    machine
}

fn keys(machine: &mut Machine) -> Vec<WrappedKey> {
    let directory = machine.directory();
    machine.executor.run(async move {
        let meta = directory.open(META_FILE, Access::ReadOnly).await.unwrap();
        read_keys(&meta).await.unwrap()
    })
}

fn replace(machine: &mut Machine, keys: Vec<WrappedKey>) -> Result<(), VolumeError> {
    let (directory, pins) = (machine.directory(), machine.registry.pins());
    machine
        .executor
        .run(async move { replace_keys(&directory, &pins, &keys).await })
}

/// How many bytes of a copy's blob are anywhere in the slots.
fn left_of(machine: &mut Machine, number: u8) -> usize {
    let slots = machine.raw(META_FILE, 0, usize::try_from(2 * SLOT).unwrap());
    let longest = slots
        .chunk_by(|one, next| one == next)
        .filter(|run| run[0] == number);
    longest.map(<[u8]>::len).max().unwrap_or(0)
}

#[test]
fn a_rewrap_can_be_cut_anywhere() {
    for nth in 1.. {
        let mut cut = false;
        for seed in 0..8 {
            let mut machine = machine(seed + nth * 1000);
            let old = keys(&mut machine);
            let both = [copy(0xaa), old[0].clone()].to_vec();
            machine.disk.cut_power_at(nth);
            let done = replace(&mut machine, both.clone()).is_ok()
                && replace(&mut machine, vec![copy(0xaa)]).is_ok();
            cut |= !machine.disk.is_powered();
            machine.restart();
            let found = keys(&mut machine);
            assert!(
                [&old, &both, &vec![copy(0xaa)]].contains(&&found),
                "after {nth}"
            );
            assert!(!done || found == [copy(0xaa)]);
            let volume = machine.open().unwrap();
            assert_eq!(machine.read(&volume, 0, 4096).unwrap(), [9; 4096]);
            machine.close(volume).unwrap();
            assert_eq!(keys(&mut machine), found, "opening and closing keeps them");
        }
        if !cut {
            assert!(nth > 8);
            break;
        }
    }
}

#[test]
fn a_key_that_was_taken_out_is_in_neither_slot() {
    for nth in 1..=5 {
        let mut machine = machine(nth);
        let both = vec![copy(0x11), copy(0xaa), copy(0x99)];
        replace(&mut machine, both).unwrap();
        assert!(left_of(&mut machine, 0xaa) > 6000);
        machine.disk.cut_power_at(nth);
        let shorter = replace(&mut machine, vec![copy(0x11)]);
        machine.restart();
        if shorter.is_err() {
            replace(&mut machine, vec![copy(0x11)]).unwrap();
        }
        for gone in [0xaa, 0x99] {
            assert!(left_of(&mut machine, gone) < 16, "cut at {nth}");
        }
        assert!(left_of(&mut machine, 0x11) > 600);
    }
}

#[test]
fn a_rewrap_of_a_volume_in_use_is_there_when_it_is_closed() {
    let mut machine = machine(1);
    let volume = machine.open().unwrap();
    machine.write(&volume, 4096, &[8; 4096]).unwrap();
    for keys in [vec![copy(7), wrapped_keys().remove(0)], vec![copy(7)]] {
        let volume = volume.clone();
        machine
            .executor
            .run(async move { volume.replace_keys(&keys).await })
            .unwrap();
    }
    machine.write(&volume, 17 << 30, &[6; 4096]).unwrap();
    machine.flush(&volume).unwrap();
    machine.close(volume).unwrap();
    machine.restart();
    assert_eq!(keys(&mut machine), [copy(7)]);
    let volume = machine.open().unwrap();
    assert_eq!(machine.read(&volume, 4096, 4096).unwrap(), [8; 4096]);
}

#[test]
fn keys_that_do_not_open_the_layer_or_of_another_layer_change_nothing() {
    let mut machine = machine(1);
    let before = keys(&mut machine);
    let other = WrappedKey {
        data_key: DataKeyId([0x77; 16]),
        ..copy(5)
    };
    let refused = replace(&mut machine, vec![other]);
    assert!(matches!(refused, Err(VolumeError::WrappedKeys { .. })));
    let pins = machine.registry.pins();
    machine
        .registry
        .change_pins(|pins| pins.params.volume = VolumeId([9; 16]));
    let refused = replace(&mut machine, vec![copy(5)]);
    assert!(matches!(refused, Err(VolumeError::Mismatch { .. })));
    machine.registry.change_pins(|found| {
        *found = pins;
        found.generation += 1;
    });
    let refused = replace(&mut machine, vec![copy(5)]);
    assert!(matches!(refused, Err(VolumeError::RolledBack { .. })));
    assert_eq!(keys(&mut machine), before);
}

#[test]
fn a_rewrap_that_meets_a_full_disk_changes_nothing_and_the_volume_goes_on() {
    let mut machine = machine(1);
    let before = keys(&mut machine);
    // More than is allocated when a layer is created, and more than a slot holds.
    let many = |count: u8| (1..=count).map(|_| copy(0xaa)).collect::<Vec<_>>();
    let volume = machine.open().unwrap();
    machine.disk.set_capacity(Some(machine.disk.used()));
    for (count, fits) in [(8, true), (60, false)] {
        let (volume, keys) = (volume.clone(), many(count));
        let refused = machine
            .executor
            .run(async move { volume.replace_keys(&keys).await });
        match refused {
            Err(VolumeError::NoSpace) => assert!(fits),
            Err(VolumeError::WrappedKeys { .. }) => assert!(!fits),
            other => panic!("{count} copies: {other:?}"),
        }
    }
    machine.write(&volume, 0, &[8; 4096]).unwrap();
    machine.flush(&volume).unwrap();
    machine.close(volume).unwrap();
    let refused = replace(&mut machine, many(8));
    assert!(matches!(refused, Err(VolumeError::NoSpace)), "{refused:?}");
    assert_eq!(keys(&mut machine), before);
    machine.disk.set_capacity(None);
    replace(&mut machine, many(8)).unwrap();
    let volume = machine.open().unwrap();
    assert_eq!(machine.read(&volume, 0, 4096).unwrap(), [8; 4096]);
    machine.close(volume).unwrap();
}
