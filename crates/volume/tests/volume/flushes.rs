//! Which flushes touch the disk: all that have something to bring there, and no other (rule R1).

use std::sync::Arc;

use sealvol_crypto::UnitSize;
use sealvol_store::Operation;
use sealvol_store::fault::{Hold, When};
use sealvol_volume::{BLOCK, Volume, Zeroing};

use crate::rig::{Disk, Machine};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 200 * MIB;

fn block(fill: u8) -> Vec<u8> {
    vec![fill; 4096]
}

/// A machine with version 1 in the first two blocks, flushed.
fn machine() -> (Machine, Arc<Volume<Disk>>) {
    let mut machine = Machine::new(7, SIZE, UnitSize::B512);
    let volume = machine.open().unwrap();
    machine.write(&volume, 0, &[1; 8192]).unwrap();
    machine.flush(&volume).unwrap();
    machine.disk.forget_journal();
    (machine, volume)
}

/// Cuts the power and opens what is there then.
fn after_a_power_cut(machine: &mut Machine, volume: Arc<Volume<Disk>>) -> Arc<Volume<Disk>> {
    drop(volume);
    machine.restart();
    machine.open().unwrap()
}

/// Operations of the disk since the journal was last forgotten.
fn operations(machine: &Machine, operation: Operation) -> usize {
    let journal = machine.disk.journal();
    let same = journal
        .iter()
        .filter(|record| record.operation == operation);
    same.count()
}

#[test]
fn a_flush_after_which_nothing_was_written_touches_no_disk() {
    let (mut machine, volume) = machine();
    for _ in 0..3 {
        machine.flush(&volume).unwrap();
    }
    machine.read(&volume, 0, 4096).unwrap();
    machine.flush(&volume).unwrap();
    assert_eq!(operations(&machine, Operation::Sync), 0);
    assert_eq!(operations(&machine, Operation::Write), 0);
}

#[test]
fn every_kind_of_change_is_brought_to_disk_by_the_next_flush() {
    type Change = fn(&mut Machine, &Arc<Volume<Disk>>);
    let changes: [(&str, Change); 6] = [
        ("overwrites a block", |machine, volume| {
            machine.write(volume, 0, &block(2)).unwrap();
        }),
        ("overwrites a sector", |machine, volume| {
            machine.write(volume, 512, &[2; 512]).unwrap();
        }),
        ("overwrites a part of a sector", |machine, volume| {
            machine.write(volume, 700, &[2; 10]).unwrap();
        }),
        ("writes a new block", |machine, volume| {
            machine.write(volume, MIB, &block(2)).unwrap();
        }),
        ("trims a block", |machine, volume| {
            machine.trim(volume, 0, BLOCK).unwrap();
        }),
        ("writes zeros that stay allocated", |machine, volume| {
            let zeroed = Arc::clone(volume);
            machine
                .executor
                .run(async move { zeroed.zero(0, BLOCK, Zeroing::Allocated, false).await })
                .unwrap();
        }),
    ];
    for (what, change) in changes {
        let (mut machine, volume) = machine();
        change(&mut machine, &volume);
        let all = |machine: &mut Machine, volume: &Arc<Volume<Disk>>| {
            machine.read(volume, 0, 2 << 20).unwrap()
        };
        let before = all(&mut machine, &volume);
        machine.disk.forget_journal();
        machine.flush(&volume).unwrap();
        assert_ne!(operations(&machine, Operation::Sync), 0, "who {what}");
        let volume = after_a_power_cut(&mut machine, volume);
        assert!(all(&mut machine, &volume) == before, "who {what}");
    }
}

#[test]
fn what_was_overwritten_during_a_sync_is_for_the_next_flush() {
    let (mut machine, volume) = machine();
    machine.write(&volume, 0, &block(2)).unwrap();
    let held = When::operation(Operation::Sync).file("data");
    let gate = machine.disk.hold(held, Hold::Before);
    let first = machine.start_flush(&volume);
    machine.executor.idle();
    machine.write(&volume, 4096, &block(3)).unwrap();
    gate.release();
    machine.executor.finish(&first).unwrap();
    machine.disk.forget_journal();
    machine.flush(&volume).unwrap();
    assert_eq!(operations(&machine, Operation::Sync), 1);
    let volume = after_a_power_cut(&mut machine, volume);
    assert_eq!(machine.read(&volume, 4096, 4096).unwrap(), block(3));
}

#[test]
fn the_first_flush_brings_to_disk_what_a_process_that_died_had_overwritten() {
    let (mut machine, volume) = machine();
    machine.write(&volume, 0, &block(2)).unwrap();
    drop(volume);
    machine.kill();
    let volume = machine.open().unwrap();
    machine.flush(&volume).unwrap();
    let volume = after_a_power_cut(&mut machine, volume);
    assert_eq!(machine.read(&volume, 0, 4096).unwrap(), block(2));
}

#[test]
fn what_is_trimmed_while_the_map_is_written_is_freed_by_the_next_flush() {
    let (mut machine, volume) = machine();
    machine.trim(&volume, 0, BLOCK).unwrap();
    let held = When::operation(Operation::Write).file("meta");
    let gate = machine.disk.hold(held, Hold::Before);
    let first = machine.start_flush(&volume);
    machine.executor.idle();
    assert_eq!(gate.held(), 1);
    machine.trim(&volume, 4096, BLOCK).unwrap();
    gate.release();
    machine.executor.finish(&first).unwrap();
    machine.flush(&volume).unwrap();
    machine.executor.idle();
    machine.flush(&volume).unwrap();
    machine.executor.idle();
    let journal = machine.disk.journal();
    let punched = journal
        .iter()
        .filter(|record| record.operation == Operation::Punch)
        .map(|record| record.len)
        .sum::<u64>();
    assert_eq!(punched, 2 * BLOCK);
}
