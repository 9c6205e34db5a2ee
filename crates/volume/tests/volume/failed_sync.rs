//! A failed sync is for ever (rule R6).

use std::sync::Arc;

use sealvol_crypto::UnitSize;
use sealvol_store::Operation;
use sealvol_store::fault::{Failure, Fault, Hold, Outcome, Record, When};
use sealvol_volume::{BLOCK, LostStep, Volume, VolumeError, Zeroing};

use crate::rig::{Disk, Machine};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 40 << 30;

fn block(fill: u8) -> Vec<u8> {
    vec![fill; 4096]
}

/// A machine with version 1 in block 0, flushed, and an unflushed write in a page and directory that are new.
fn machine() -> (Machine, Arc<Volume<Disk>>) {
    let mut machine = Machine::new(3, SIZE, UnitSize::B4096);
    let volume = machine.open().unwrap();
    machine.write(&volume, 0, &block(1)).unwrap();
    machine.flush(&volume).unwrap();
    machine.write(&volume, 20 << 30, &block(2)).unwrap();
    (machine, volume)
}

fn is_failed<T>(result: Result<T, VolumeError>) -> bool {
    matches!(result, Err(VolumeError::Failed(_)))
}

/// Everything that must hold once the volume has lost something in `step`.
fn check_stopped(machine: &mut Machine, volume: &Arc<Volume<Disk>>, step: LostStep) {
    assert_eq!(volume.failed().map(|loss| loss.step), Some(step));
    let losses = machine.registry.losses();
    assert_eq!(
        losses.iter().map(|loss| loss.step).collect::<Vec<_>>(),
        [step]
    );
    machine.disk.forget_journal();
    assert!(
        is_failed(machine.flush(volume)),
        "a later flush was answered well"
    );
    assert!(is_failed(machine.write(volume, 0, &block(8))));
    let durable = machine.start_write(volume, 0, &block(8), true);
    assert!(is_failed(machine.executor.finish(&durable)));
    assert!(is_failed(machine.trim(volume, 0, BLOCK)));
    for how in [Zeroing::MayFree, Zeroing::Allocated] {
        let zeroed = Arc::clone(volume);
        assert!(is_failed(
            machine
                .executor
                .run(async move { zeroed.zero(0, BLOCK, how, true).await })
        ));
    }
    let grown = Arc::clone(volume);
    assert!(is_failed(
        machine
            .executor
            .run(async move { grown.grow(SIZE + MIB).await })
    ));
    assert_eq!(
        machine.read(volume, 0, 4096).unwrap(),
        block(1),
        "reads go on"
    );
    let generation = machine.registry.pins().generation;
    assert!(
        is_failed(machine.close(Arc::clone(volume))),
        "detached as if it were whole"
    );
    machine.executor.idle();
    let changed = machine
        .disk
        .journal()
        .into_iter()
        .filter(|record| record.operation != Operation::Read);
    assert_eq!(
        changed.count(),
        0,
        "something was written or synced after the loss"
    );
    assert_eq!(machine.registry.pins().generation, generation);
}

/// Makes the next operation of this kind fail once, flushes, and checks that the volume has stopped.
fn fail_once(when: When, step: LostStep) {
    for fault in [
        Fault::Fail(Failure::Io),
        Fault::FailPartly(Failure::Io),
        Fault::Fail(Failure::NoSpace),
    ] {
        let (mut machine, volume) = machine();
        machine.disk.inject(when.clone(), fault);
        assert!(is_failed(machine.flush(&volume)));
        check_stopped(&mut machine, &volume, step);
    }
}

#[test]
fn a_failed_data_sync_stops_the_volume() {
    fail_once(
        When::operation(Operation::Sync).file("data"),
        LostStep::DataSync,
    );
}

#[test]
fn a_failed_sync_of_map_pages_stops_the_volume() {
    fail_once(
        When::operation(Operation::Sync).file("meta"),
        LostStep::MapSync,
    );
}

#[test]
fn a_failed_sync_of_directory_pages_stops_the_volume() {
    fail_once(
        When::operation(Operation::Sync).file("meta").nth(2),
        LostStep::MapSync,
    );
}

#[test]
fn a_failed_write_of_a_map_page_stops_the_volume() {
    fail_once(
        When::operation(Operation::Write)
            .file("meta")
            .range(64 * MIB..u64::MAX),
        LostStep::MapWrite,
    );
}

#[test]
fn a_failed_write_of_a_directory_page_stops_the_volume() {
    fail_once(
        When::operation(Operation::Write)
            .file("meta")
            .range(MIB..64 * MIB),
        LostStep::MapWrite,
    );
}

#[test]
fn a_failed_superblock_write_stops_the_volume() {
    for slot in [0, 256 * 1024] {
        fail_once(
            When::operation(Operation::Write)
                .file("meta")
                .range(slot..slot + 1),
            LostStep::SuperblockWrite,
        );
    }
}

#[test]
fn a_failed_superblock_sync_stops_the_volume() {
    for nth in [3, 4] {
        fail_once(
            When::operation(Operation::Sync).file("meta").nth(nth),
            LostStep::SuperblockWrite,
        );
    }
}

#[test]
fn a_failed_durable_write_stops_the_volume() {
    let (mut machine, volume) = machine();
    machine.flush(&volume).unwrap();
    machine.disk.inject(
        When::operation(Operation::Write).file("data"),
        Fault::Fail(Failure::Io),
    );
    let write = machine.start_write(&volume, 20 << 30, &block(3), true);
    assert!(is_failed(machine.executor.finish(&write)));
    check_stopped(&mut machine, &volume, LostStep::DataSync);
}

#[test]
fn a_failed_volatile_write_is_answered_and_nothing_more() {
    let (mut machine, volume) = machine();
    machine.disk.inject(
        When::operation(Operation::Write).file("data"),
        Fault::Fail(Failure::Io),
    );
    let result = machine.write(&volume, MIB, &block(3));
    assert!(matches!(result, Err(VolumeError::Store(_))), "{result:?}");
    assert_eq!(volume.failed(), None);
    machine.write(&volume, MIB, &block(4)).unwrap();
    machine.flush(&volume).unwrap();
    assert_eq!(machine.read(&volume, MIB, 4096).unwrap(), block(4));
}

#[test]
fn a_loss_is_recorded_before_anyone_hears_of_it() {
    let (mut machine, volume) = machine();
    machine.registry.record_slowly(200);
    machine.disk.inject(
        When::operation(Operation::Sync).file("data"),
        Fault::Fail(Failure::Io),
    );
    let early = machine.start_flush(&volume);
    machine.executor.until(|| volume.failed().is_some());
    let late = [
        machine.start_flush(&volume),
        machine.start_write(&volume, 0, &block(9), false),
    ];
    let registry = Arc::clone(&machine.registry);
    machine.executor.until(|| {
        let recorded = !registry.losses().is_empty();
        let answered = early.is_done() || late.iter().any(|request| request.is_done());
        assert!(recorded || !answered, "answered before the record");
        recorded
    });
    for request in std::iter::once(&early).chain(&late) {
        assert!(is_failed(machine.executor.finish(request)));
    }
}

#[test]
fn no_flush_ends_well_while_a_durable_write_records_its_loss() {
    let (mut machine, volume) = machine();
    machine.flush(&volume).unwrap();
    machine.write(&volume, MIB, &block(5)).unwrap();
    machine.registry.record_slowly(1000);
    machine.disk.inject(
        When::operation(Operation::Write).file("data"),
        Fault::Fail(Failure::Io),
    );
    let durable = machine.start_write(&volume, 20 << 30, &block(3), true);
    let failed = |record: &Record| record.outcome == Outcome::Failed;
    let disk = machine.disk.clone();
    machine.executor.until(|| disk.journal().iter().any(failed));
    let flush = machine.start_flush(&volume);
    assert!(
        is_failed(machine.executor.finish(&flush)),
        "the sync succeeds, the kernel has told its error already"
    );
    assert!(is_failed(machine.executor.finish(&durable)));
}

#[test]
fn a_sync_counts_only_when_durable_writes_beside_it_went_well() {
    let (mut machine, volume) = machine();
    machine.flush(&volume).unwrap();
    machine.write(&volume, MIB, &block(5)).unwrap();
    // The kernel tells the durable write of a loss, but that is not back yet when the sync says that all is well.
    machine.disk.inject(
        When::operation(Operation::Write).file("data"),
        Fault::Fail(Failure::Io),
    );
    let gate = machine
        .disk
        .hold(When::operation(Operation::Write).file("data"), Hold::After);
    let durable = machine.start_write(&volume, 20 << 30, &block(3), true);
    machine.executor.idle();
    assert_eq!(gate.held(), 1);
    machine.disk.forget_journal();
    let flush = machine.start_flush(&volume);
    machine.executor.idle();
    assert!(
        !flush.is_done(),
        "answered although the durable write may have been told of its loss"
    );
    gate.release();
    assert!(is_failed(machine.executor.finish(&flush)));
    assert!(is_failed(machine.executor.finish(&durable)));
    machine.executor.idle();
    let journal = machine.disk.journal();
    assert!(
        !journal
            .iter()
            .any(|record| record.operation == Operation::Write),
        "map pages after a loss: {journal:?}"
    );
}

#[test]
fn a_failed_sync_while_growing_stops_the_volume_and_what_waits_behind_it() {
    for (file, step) in [("data", LostStep::DataSync), ("meta", LostStep::MapSync)] {
        let (mut machine, volume) = machine();
        let when = When::operation(Operation::Sync).file(file);
        machine.disk.inject(when.clone(), Fault::Fail(Failure::Io));
        let gate = machine.disk.hold(when, Hold::Before);
        let grown = Arc::clone(&volume);
        let grow = machine
            .executor
            .start(async move { grown.grow(SIZE + MIB).await });
        machine.executor.idle();
        let flush = machine.start_flush(&volume);
        machine.executor.idle();
        machine.disk.forget_journal();
        gate.release();
        assert!(is_failed(machine.executor.finish(&grow)));
        assert!(is_failed(machine.executor.finish(&flush)));
        machine.executor.idle();
        assert!(
            machine.disk.journal().is_empty(),
            "a commit went on after the loss"
        );
        check_stopped(&mut machine, &volume, step);
    }
}

#[test]
fn a_grow_that_waited_behind_a_failed_commit_changes_nothing() {
    let (mut machine, volume) = machine();
    let when = When::operation(Operation::Sync).file("data");
    machine.disk.inject(when.clone(), Fault::Fail(Failure::Io));
    let gate = machine.disk.hold(when, Hold::Before);
    let flush = machine.start_flush(&volume);
    machine.executor.idle();
    let grown = Arc::clone(&volume);
    let grow = machine
        .executor
        .start(async move { grown.grow(SIZE + MIB).await });
    machine.executor.idle();
    machine.disk.forget_journal();
    gate.release();
    assert!(is_failed(machine.executor.finish(&flush)));
    assert!(is_failed(machine.executor.finish(&grow)));
    let journal = machine.disk.journal();
    assert!(journal.is_empty(), "{journal:?}");
    check_stopped(&mut machine, &volume, LostStep::DataSync);
}

#[test]
fn a_failed_superblock_write_while_opening_is_recorded() {
    let (mut machine, volume) = machine();
    machine.close(volume).unwrap();
    machine.disk.inject(
        When::operation(Operation::Sync).file("meta"),
        Fault::Fail(Failure::Io),
    );
    let result = machine.open().map(|_| ());
    assert!(is_failed(result));
    assert_eq!(machine.registry.losses()[0].step, LostStep::SuperblockWrite);
}

#[test]
fn a_registry_that_can_not_pin_refuses_the_volume() {
    let (mut machine, volume) = machine();
    machine.close(volume).unwrap();
    machine.registry.fail_pins(true);
    assert!(matches!(machine.open(), Err(VolumeError::Registry(_))));
    machine.registry.fail_pins(false);
    let volume = machine.open().unwrap();
    assert_eq!(machine.read(&volume, 20 << 30, 4096).unwrap(), block(2));
}

#[test]
fn what_no_commit_brought_to_disk_is_still_read_after_a_loss() {
    let directory_page = When::operation(Operation::Write)
        .file("meta")
        .range(MIB..64 * MIB);
    for when in [
        When::operation(Operation::Sync).file("data"),
        When::operation(Operation::Sync).file("meta"),
        When::operation(Operation::Write).file("meta"),
        directory_page,
    ] {
        let mut machine = Machine::new(3, SIZE, UnitSize::B4096);
        // Nothing stays that can go.
        machine.registry.bound_cache(0);
        let volume = machine.open().unwrap();
        // Two map pages in each of two directories, on disk; then again, so that the directories on disk lag behind.
        let old = [0, 100 * MIB, 17 << 30, 18 << 30];
        for fill in 0..2 {
            for offset in old {
                let at = offset + u64::from(fill) * BLOCK;
                machine.write(&volume, at, &block(fill + 1)).unwrap();
            }
            machine.flush(&volume).unwrap();
        }
        let new = [64 * MIB, 1 << 30, 19 << 30, 36 << 30];
        for offset in new {
            machine.write(&volume, offset, &block(3)).unwrap();
        }
        machine.disk.inject(when, Fault::Fail(Failure::Io));
        assert!(is_failed(machine.flush(&volume)));
        for _ in 0..3 {
            for offset in old {
                let found = machine.read(&volume, offset, 8192).unwrap();
                assert_eq!(found, [block(1), block(2)].concat(), "at {offset}");
            }
            for offset in new {
                let found = machine.read(&volume, offset, 4096).unwrap();
                assert_eq!(found, block(3), "at {offset}");
            }
        }
    }
}
