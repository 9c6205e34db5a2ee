//! A full disk (rule R10): the write that meets it is refused, nothing else happens.

use std::sync::Arc;

use sealvol_crypto::UnitSize;
use sealvol_store::Operation;
use sealvol_store::fault::{Failure, Fault, Outcome, When};
use sealvol_volume::{BLOCK, Volume, VolumeError, Zeroing};

use crate::rig::{Disk, Machine, Random};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 40 << 30;

fn block(fill: u8) -> Vec<u8> {
    vec![fill; 4096]
}

fn machine() -> (Machine, Arc<Volume<Disk>>) {
    let mut machine = Machine::new(5, SIZE, UnitSize::B4096);
    let volume = machine.open().unwrap();
    machine.write(&volume, 0, &block(1)).unwrap();
    (machine, volume)
}

fn is_no_space<T>(result: Result<T, VolumeError>) -> bool {
    matches!(result, Err(VolumeError::NoSpace))
}

#[test]
fn a_full_disk_refuses_the_write_that_meets_it_and_loses_nothing() {
    let (mut machine, volume) = machine();
    machine.disk.set_capacity(Some(machine.disk.used()));
    assert!(
        is_no_space(machine.write(&volume, BLOCK, &block(2))),
        "no space for the data"
    );
    assert!(
        is_no_space(machine.write(&volume, 70 * MIB, &block(2))),
        "no space for the map page"
    );
    assert!(
        is_no_space(machine.write(&volume, 20 << 30, &block(2))),
        "no space for the directory page"
    );
    let zeroed = Arc::clone(&volume);
    let zeros = machine
        .executor
        .run(async move { zeroed.zero(MIB, BLOCK, Zeroing::Allocated, false).await });
    assert!(is_no_space(zeros));
    machine.write(&volume, 0, &block(3)).unwrap();
    machine.flush(&volume).unwrap();
    assert_eq!(volume.failed(), None);
    for offset in [BLOCK, 70 * MIB, 20 << 30, MIB] {
        assert_eq!(machine.read(&volume, offset, 4096).unwrap(), block(0));
    }
    machine.disk.set_capacity(None);
    for offset in [BLOCK, 70 * MIB, 20 << 30] {
        machine.write(&volume, offset, &block(4)).unwrap();
    }
    machine.flush(&volume).unwrap();
    machine.restart();
    let volume = machine.open().unwrap();
    assert_eq!(machine.read(&volume, 0, 4096).unwrap(), block(3));
    for offset in [BLOCK, 70 * MIB, 20 << 30] {
        assert_eq!(machine.read(&volume, offset, 4096).unwrap(), block(4));
    }
}

#[test]
fn a_durable_first_write_that_meets_a_full_disk_stops_nothing() {
    let (mut machine, volume) = machine();
    machine.disk.set_capacity(Some(machine.disk.used()));
    let write = machine.start_write(&volume, BLOCK, &block(2), true);
    assert!(is_no_space(machine.executor.finish(&write)));
    assert_eq!(volume.failed(), None);
    assert!(machine.registry.losses().is_empty());
}

#[test]
fn trimming_makes_the_space_that_the_next_write_needs() {
    let (mut machine, volume) = machine();
    machine.flush(&volume).unwrap();
    machine.disk.set_capacity(Some(machine.disk.used()));
    assert!(is_no_space(machine.write(&volume, BLOCK, &block(2))));
    machine.trim(&volume, 0, BLOCK).unwrap();
    machine.flush(&volume).unwrap();
    machine.executor.idle();
    machine.write(&volume, BLOCK, &block(2)).unwrap();
    machine.flush(&volume).unwrap();
}

#[test]
fn a_commit_and_a_detach_never_meet_a_full_disk() {
    for seed in 0..20 {
        let random = Random::new(seed);
        let mut machine = Machine::new(seed, SIZE, UnitSize::B512);
        let volume = machine.open().unwrap();
        let mut written = Vec::new();
        machine
            .disk
            .set_capacity(Some(machine.disk.used() + 40 * BLOCK));
        for _ in 0..40 {
            let offset = random.below(SIZE / (16 * MIB)) * 16 * MIB + random.below(8) * BLOCK;
            match machine.write(&volume, offset, &block(6)) {
                Ok(()) => written.push(offset),
                Err(error) => assert!(matches!(error, VolumeError::NoSpace), "{error}"),
            }
            if random.chance(1, 4) {
                machine.flush(&volume).unwrap();
            }
        }
        assert!(written.len() < 40, "the disk was never full");
        machine.close(volume).unwrap();
        let unmet = machine.disk.journal().into_iter().filter(|record| {
            record.outcome == Outcome::Failed && !matches!(record.operation, Operation::Allocate)
        });
        assert!(
            unmet
                .into_iter()
                .all(|record| record.path.ends_with("data"))
        );
        machine.restart();
        let volume = machine.open().unwrap();
        for offset in written {
            assert_eq!(machine.read(&volume, offset, 4096).unwrap(), block(6));
        }
    }
}

#[test]
fn growing_on_a_full_disk_is_refused_and_the_volume_goes_on() {
    let (mut machine, volume) = machine();
    machine.disk.inject(
        When::operation(Operation::Allocate).file("meta"),
        Fault::Fail(Failure::NoSpace),
    );
    let grown = Arc::clone(&volume);
    assert!(is_no_space(
        machine
            .executor
            .run(async move { grown.grow(60 << 30).await })
    ));
    assert_eq!((volume.size(), volume.failed()), (SIZE, None));
    machine.write(&volume, BLOCK, &block(2)).unwrap();
    machine.close(volume).unwrap();
    let volume = machine.open().unwrap();
    let grown = Arc::clone(&volume);
    machine
        .executor
        .run(async move { grown.grow(60 << 30).await })
        .unwrap();
    assert_eq!(machine.read(&volume, BLOCK, 4096).unwrap(), block(2));
}
