//! Requests that meet in one block, one map page or one commit: whose turn it is, and what the other finds then (rules R1 and R2).

use std::sync::Arc;

use sealvol_crypto::UnitSize;
use sealvol_store::Operation;
use sealvol_store::fault::{Hold, When};
use sealvol_volume::{BLOCK, Volume};

use crate::rig::{Disk, Machine};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 200 * MIB;

fn machine() -> (Machine, Arc<Volume<Disk>>) {
    let mut machine = Machine::new(1, SIZE, UnitSize::B4096);
    let volume = machine.open().unwrap();
    (machine, volume)
}

fn block(fill: u8) -> Vec<u8> {
    vec![fill; 4096]
}

fn sync_of(file: &str) -> When {
    When::operation(Operation::Sync).file(file)
}

fn data_write() -> When {
    When::operation(Operation::Write).file("data")
}

/// Punches so far: offset and length.
fn punches(machine: &Machine) -> Vec<(u64, u64)> {
    let mut journal = machine.disk.journal();
    journal.retain(|record| record.operation == Operation::Punch);
    journal
        .iter()
        .map(|record| (record.offset, record.len))
        .collect()
}

/// Cuts the power, restarts, opens: what is there now.
fn after_a_crash(machine: &mut Machine) -> Arc<Volume<Disk>> {
    machine.restart();
    machine.open().unwrap()
}

#[test]
fn a_durable_write_waits_for_the_commit_that_brings_its_block_to_disk() {
    for file in ["data", "meta"] {
        let (mut machine, volume) = machine();
        machine.write(&volume, 0, &block(1)).unwrap();
        let gate = machine.disk.hold(sync_of(file), Hold::Before);
        let flush = machine.start_flush(&volume);
        machine.executor.idle();
        assert_eq!(gate.held(), 1);
        let durable = machine.start_write(&volume, 0, &block(2), true);
        machine.executor.idle();
        assert!(!durable.is_done(), "its block is on no disk: {file}");
        gate.release();
        machine.executor.finish(&durable).unwrap();
        machine.executor.finish(&flush).unwrap();
        let volume = after_a_crash(&mut machine);
        assert_eq!(machine.read(&volume, 0, 4096).unwrap(), block(2));
    }
}

#[test]
fn a_durable_write_waits_for_a_commit_of_its_own_when_its_block_came_during_one() {
    let (mut machine, volume) = machine();
    machine.write(&volume, 0, &block(1)).unwrap();
    let gate = machine.disk.hold(sync_of("data"), Hold::Before);
    let flush = machine.start_flush(&volume);
    machine.executor.idle();
    machine.write(&volume, MIB, &block(2)).unwrap();
    gate.release();
    machine.executor.finish(&flush).unwrap();
    let durable = machine.start_write(&volume, MIB, &block(3), true);
    machine.executor.finish(&durable).unwrap();
    let volume = after_a_crash(&mut machine);
    assert_eq!(machine.read(&volume, MIB, 4096).unwrap(), block(3));
}

#[test]
fn an_overwrite_that_waited_for_a_trim_of_its_block_is_a_first_write() {
    let (mut machine, volume) = machine();
    machine.write(&volume, 0, &block(1)).unwrap();
    machine.flush(&volume).unwrap();
    let gate = machine.disk.hold(data_write(), Hold::Before);
    let first = machine.start_write(&volume, 0, &block(2), false);
    machine.executor.idle();
    let trimmed = Arc::clone(&volume);
    let trim = machine
        .executor
        .start(async move { trimmed.trim(0, BLOCK, false).await });
    machine.executor.idle();
    // It finds data, and waits behind the trim.
    let second = machine.start_write(&volume, 0, &block(3), false);
    machine.executor.idle();
    assert!(!trim.is_done() && !second.is_done());
    gate.release();
    for write in [first, second] {
        machine.executor.finish(&write).unwrap();
    }
    machine.executor.finish(&trim).unwrap();
    assert_eq!(machine.read(&volume, 0, 4096).unwrap(), block(3));
    machine.flush(&volume).unwrap();
    machine.executor.idle();
    assert_eq!(punches(&machine), []);
    let volume = after_a_crash(&mut machine);
    assert_eq!(machine.read(&volume, 0, 4096).unwrap(), block(3));
}

#[test]
fn requests_that_load_one_page_at_once_share_it() {
    let (mut machine, volume) = machine();
    let gate = machine.disk.hold(
        When::operation(Operation::Allocate).file("meta"),
        Hold::Before,
    );
    let writes =
        [(0, 1), (MIB, 2)].map(|(at, fill)| machine.start_write(&volume, at, &block(fill), false));
    machine.executor.idle();
    assert_eq!(gate.held(), 1, "one of them loads");
    gate.release();
    for write in &writes {
        machine.executor.finish(write).unwrap();
    }
    for crash in [false, true] {
        let volume = if crash {
            machine.flush(&volume).unwrap();
            after_a_crash(&mut machine)
        } else {
            Arc::clone(&volume)
        };
        assert_eq!(machine.read(&volume, 0, 4096).unwrap(), block(1));
        assert_eq!(machine.read(&volume, MIB, 4096).unwrap(), block(2));
    }
}

#[test]
fn what_is_trimmed_during_a_commit_is_freed_by_the_next() {
    let (mut machine, volume) = machine();
    machine.write(&volume, 0, &block(1)).unwrap();
    machine.flush(&volume).unwrap();
    let gate = machine.disk.hold(sync_of("data"), Hold::Before);
    let flush = machine.start_flush(&volume);
    machine.executor.idle();
    machine.trim(&volume, 0, BLOCK).unwrap();
    gate.release();
    machine.executor.finish(&flush).unwrap();
    machine.executor.idle();
    assert_eq!(punches(&machine), [], "on disk the block is data");
    machine.flush(&volume).unwrap();
    machine.executor.idle();
    assert_eq!(punches(&machine), [(0, BLOCK)]);
}

#[test]
fn what_is_trimmed_is_freed_when_its_commit_is_over() {
    for step in [
        sync_of("data"),
        When::operation(Operation::Write).file("meta"),
        sync_of("meta"),
    ] {
        let (mut machine, volume) = machine();
        machine.write(&volume, 0, &block(1)).unwrap();
        machine.flush(&volume).unwrap();
        machine.trim(&volume, 0, BLOCK).unwrap();
        let gate = machine.disk.hold(step, Hold::Before);
        let flush = machine.start_flush(&volume);
        machine.executor.idle();
        assert_eq!(gate.held(), 1);
        assert_eq!(punches(&machine), [], "on disk the block is data");
        gate.release();
        machine.executor.finish(&flush).unwrap();
        machine.executor.idle();
        assert_eq!(punches(&machine), [(0, BLOCK)]);
    }
}

#[test]
fn a_punch_that_waited_for_a_write_leaves_it_alone() {
    let (mut machine, volume) = machine();
    machine.write(&volume, 0, &block(1)).unwrap();
    machine.flush(&volume).unwrap();
    machine.trim(&volume, 0, BLOCK).unwrap();
    let gate = machine.disk.hold(data_write(), Hold::Before);
    let write = machine.start_write(&volume, 0, &block(9), false);
    machine.executor.idle();
    assert_eq!(gate.held(), 1);
    // Now the block is zero on disk, and its punch waits for the write.
    machine.flush(&volume).unwrap();
    machine.executor.idle();
    gate.release();
    machine.executor.finish(&write).unwrap();
    machine.executor.idle();
    assert_eq!(punches(&machine), []);
    assert_eq!(machine.read(&volume, 0, 4096).unwrap(), block(9));
    machine.flush(&volume).unwrap();
    let volume = after_a_crash(&mut machine);
    assert_eq!(machine.read(&volume, 0, 4096).unwrap(), block(9));
}

#[test]
fn a_grown_volume_is_used_once_its_superblock_is_durable() {
    let (mut machine, volume) = machine();
    let slot = When::operation(Operation::Write).file("meta").range(0..1);
    let gate = machine.disk.hold(slot, Hold::Before);
    let grown = Arc::clone(&volume);
    let grow = machine
        .executor
        .start(async move { grown.grow(2 * SIZE).await });
    machine.executor.idle();
    assert_eq!(gate.held(), 1);
    assert_eq!(
        volume.size(),
        SIZE,
        "a power cut now leaves the old superblock"
    );
    gate.release();
    machine.executor.finish(&grow).unwrap();
    assert_eq!(volume.size(), 2 * SIZE);
    machine.write(&volume, 2 * SIZE - BLOCK, &block(2)).unwrap();
    machine.flush(&volume).unwrap();
    let volume = after_a_crash(&mut machine);
    let found = machine.read(&volume, 2 * SIZE - BLOCK, 4096);
    assert_eq!(found.unwrap(), block(2));
}
