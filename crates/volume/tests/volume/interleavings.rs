//! What must come before what: one named test for each order that keeps data (rules R1 and R2), with operations of
//! the disk held at the point in question.

use std::sync::Arc;

use sealvol_crypto::UnitSize;
use sealvol_store::Operation;
use sealvol_store::fault::{Hold, Record, When};
use sealvol_volume::{BLOCK, BlockState, Volume};

use crate::rig::{Disk, Machine};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 200 * MIB;

fn machine() -> (Machine, Arc<Volume<Disk>>) {
    of_sectors(UnitSize::B4096)
}

fn of_sectors(sector_size: UnitSize) -> (Machine, Arc<Volume<Disk>>) {
    let mut machine = Machine::new(1, SIZE, sector_size);
    let volume = machine.open().unwrap();
    (machine, volume)
}

fn block(fill: u8) -> Vec<u8> {
    vec![fill; 4096]
}

fn data_sync() -> When {
    When::operation(Operation::Sync).file("data")
}

fn meta_write() -> When {
    When::operation(Operation::Write).file("meta")
}

/// Records of one kind of operation on one file.
fn records(machine: &Machine, operation: Operation, file: &str) -> Vec<Record> {
    let mut records = machine.disk.journal();
    records.retain(|record| record.operation == operation && record.path.ends_with(file));
    records
}

/// Where map and directory pages lie in `meta`.
fn is_map_page(record: &Record) -> bool {
    record.offset >= 64 * MIB
}

fn is_directory_page(record: &Record) -> bool {
    (MIB..64 * MIB).contains(&record.offset)
}

/// Cuts the power, restarts, opens: what is there now.
fn after_a_crash(machine: &mut Machine) -> Arc<Volume<Disk>> {
    machine.restart();
    machine.open().unwrap()
}

fn state_of(machine: &mut Machine, volume: &Arc<Volume<Disk>>, offset: u64) -> BlockState {
    let volume = Arc::clone(volume);
    machine
        .executor
        .run(async move { volume.extents(offset, BLOCK, 1).await.unwrap()[0].state })
}

#[test]
fn a_flush_never_joins_a_sync_that_has_started() {
    let (mut machine, volume) = machine();
    machine.write(&volume, 0, &block(1)).unwrap();
    machine.disk.forget_journal();
    let gate = machine.disk.hold(data_sync(), Hold::Before);
    let first = machine.start_flush(&volume);
    machine.executor.idle();
    assert_eq!(gate.held(), 1);
    // Answered while the sync is under way: only the next sync covers it.
    machine.write(&volume, MIB, &block(2)).unwrap();
    let late = [machine.start_flush(&volume), machine.start_flush(&volume)];
    machine.executor.idle();
    assert!(!first.is_done() && late.iter().all(|flush| !flush.is_done()));
    assert_eq!(
        records(&machine, Operation::Sync, "data").len(),
        1,
        "the second sync waits for the first"
    );
    gate.release();
    machine.executor.finish(&first).unwrap();
    for flush in &late {
        machine.executor.finish(flush).unwrap();
    }
    let syncs = records(&machine, Operation::Sync, "data");
    assert_eq!(syncs.len(), 2, "both late flushes share one sync");
    let written = records(&machine, Operation::Write, "data");
    assert!(written.iter().all(|write| write.ended_before(&syncs[1])));
    let volume = after_a_crash(&mut machine);
    assert_eq!(machine.read(&volume, MIB, 4096).unwrap(), block(2));
}

#[test]
fn a_late_flush_is_not_answered_by_the_end_of_an_earlier_commit() {
    let (mut machine, volume) = machine();
    machine.write(&volume, 0, &block(1)).unwrap();
    let first_gate = machine.disk.hold(data_sync(), Hold::Before);
    let second_gate = machine.disk.hold(data_sync().nth(2), Hold::Before);
    let first = machine.start_flush(&volume);
    machine.executor.idle();
    machine.write(&volume, 0, &block(2)).unwrap();
    let late = machine.start_flush(&volume);
    machine.executor.idle();
    first_gate.release();
    machine.executor.idle();
    assert!(first.is_done());
    assert!(
        !late.is_done(),
        "answered by a sync that began before it came"
    );
    second_gate.release();
    machine.executor.finish(&late).unwrap();
}

#[test]
fn a_write_that_completes_during_the_data_sync_belongs_to_the_next_commit() {
    let (mut machine, volume) = machine();
    machine.write(&volume, 0, &block(1)).unwrap();
    let gate = machine.disk.hold(data_sync(), Hold::Before);
    let flush = machine.start_flush(&volume);
    machine.executor.idle();
    machine.write(&volume, MIB, &block(2)).unwrap();
    gate.release();
    machine.executor.finish(&flush).unwrap();
    // The same page, but the entry of the second write must not be in what the first commit wrote.
    let volume = after_a_crash(&mut machine);
    assert_eq!(state_of(&mut machine, &volume, 0), BlockState::Data);
    assert_eq!(state_of(&mut machine, &volume, MIB), BlockState::Absent);
    assert_eq!(machine.read(&volume, MIB, 4096).unwrap(), block(0));
}

#[test]
fn an_entry_is_published_after_its_bytes_are_written() {
    let (mut machine, volume) = machine();
    let gate = machine
        .disk
        .hold(When::operation(Operation::Write).file("data"), Hold::Before);
    let write = machine.start_write(&volume, 0, &block(1), false);
    machine.executor.idle();
    assert_eq!(gate.held(), 1);
    assert_eq!(state_of(&mut machine, &volume, 0), BlockState::Absent);
    assert_eq!(
        machine.read(&volume, 0, 4096).unwrap(),
        block(0),
        "bytes that nobody wrote"
    );
    // A commit now must not carry the entry.
    machine.flush(&volume).unwrap();
    gate.release();
    machine.executor.finish(&write).unwrap();
    assert_eq!(machine.read(&volume, 0, 4096).unwrap(), block(1));
    let volume = after_a_crash(&mut machine);
    assert_eq!(state_of(&mut machine, &volume, 0), BlockState::Absent);
}

#[test]
fn a_commit_syncs_and_writes_in_the_order_that_the_format_names() {
    let (mut machine, volume) = machine();
    machine.write(&volume, 0, &block(1)).unwrap();
    machine.write(&volume, 70 * MIB, &block(1)).unwrap();
    machine.disk.forget_journal();
    machine.flush(&volume).unwrap();
    let data_syncs = records(&machine, Operation::Sync, "data");
    let syncs = records(&machine, Operation::Sync, "meta");
    let writes = records(&machine, Operation::Write, "meta");
    let maps: Vec<_> = writes.iter().filter(|write| is_map_page(write)).collect();
    let directories: Vec<_> = writes
        .iter()
        .filter(|write| is_directory_page(write))
        .collect();
    let slots: Vec<_> = writes.iter().filter(|write| write.offset < MIB).collect();
    assert_eq!(
        (data_syncs.len(), maps.len(), directories.len(), slots.len()),
        (1, 2, 1, 2)
    );
    let synced_between = |before: &Record, after: &Record| {
        syncs
            .iter()
            .any(|sync| before.ended_before(sync) && sync.ended_before(after))
    };
    for map in maps {
        assert!(
            data_syncs[0].ended_before(map),
            "a map page before the data is synced"
        );
        assert!(
            synced_between(map, directories[0]),
            "the directory before its pages are synced"
        );
    }
    assert!(
        synced_between(directories[0], slots[0]),
        "the superblock before the directory is synced"
    );
    assert!(
        synced_between(slots[0], slots[1]),
        "the second slot before the first is synced"
    );
    assert!(syncs.iter().any(|sync| slots[1].ended_before(sync)));
    machine.write(&volume, 0, &block(2)).unwrap();
    machine.disk.forget_journal();
    machine.flush(&volume).unwrap();
    let nothing_dirty: Vec<_> = machine
        .disk
        .journal()
        .iter()
        .map(|record| record.operation)
        .collect();
    assert_eq!(
        nothing_dirty,
        [Operation::Sync],
        "no page of the map changed"
    );
}

#[test]
fn a_stalled_commit_stops_neither_reads_nor_writes() {
    let (mut machine, volume) = machine();
    machine.write(&volume, 0, &block(1)).unwrap();
    for when in [data_sync(), meta_write()] {
        machine.write(&volume, MIB, &block(7)).unwrap();
        machine.trim(&volume, MIB, BLOCK).unwrap();
        let gate = machine.disk.hold(when, Hold::Before);
        let flush = machine.start_flush(&volume);
        machine.executor.idle();
        assert_eq!(gate.held(), 1);
        machine.write(&volume, 0, &block(2)).unwrap();
        machine.write(&volume, 130 * MIB, &block(3)).unwrap();
        machine.trim(&volume, 130 * MIB, BLOCK).unwrap();
        assert_eq!(machine.read(&volume, 0, 4096).unwrap(), block(2));
        assert_eq!(machine.read(&volume, 130 * MIB, 4096).unwrap(), block(0));
        assert!(!flush.is_done());
        gate.release();
        machine.executor.finish(&flush).unwrap();
    }
}

#[test]
fn what_is_written_after_trim_and_flush_survives_the_late_punch() {
    let (mut machine, volume) = machine();
    machine.write(&volume, 0, &block(1)).unwrap();
    machine.write(&volume, BLOCK, &block(2)).unwrap();
    machine.flush(&volume).unwrap();
    // A read keeps the punch waiting.
    let read_gate = machine
        .disk
        .hold(When::operation(Operation::Read).file("data"), Hold::After);
    let reader = Arc::clone(&volume);
    let read = machine
        .executor
        .start(async move { reader.read(MIB / 2, 1).await.map(|_| ()) });
    machine.executor.finish(&read).unwrap();
    let reader = Arc::clone(&volume);
    let read = machine
        .executor
        .start(async move { reader.read(0, 4096).await.map(|_| ()) });
    machine.executor.idle();
    assert_eq!(read_gate.held(), 1);
    machine.trim(&volume, 0, 2 * BLOCK).unwrap();
    machine.flush(&volume).unwrap();
    machine.executor.idle();
    assert!(
        records(&machine, Operation::Punch, "data").is_empty(),
        "punched under a read"
    );
    machine.write(&volume, 0, &block(9)).unwrap();
    read_gate.release();
    machine.executor.finish(&read).unwrap();
    machine.executor.idle();
    let punches = records(&machine, Operation::Punch, "data");
    assert_eq!(
        punches
            .iter()
            .map(|punch| (punch.offset, punch.len))
            .collect::<Vec<_>>(),
        [(BLOCK, BLOCK)]
    );
    assert_eq!(machine.read(&volume, 0, 4096).unwrap(), block(9));
    machine.flush(&volume).unwrap();
    let volume = after_a_crash(&mut machine);
    assert_eq!(
        machine.read(&volume, 0, 8192).unwrap(),
        [block(9), block(0)].concat()
    );
}

#[test]
fn a_write_waits_for_the_punch_of_its_block_and_is_not_hit_by_it() {
    let (mut machine, volume) = machine();
    machine.write(&volume, 0, &block(1)).unwrap();
    machine.trim(&volume, 0, BLOCK).unwrap();
    let gate = machine
        .disk
        .hold(When::operation(Operation::Punch).file("data"), Hold::Before);
    machine.flush(&volume).unwrap();
    machine.executor.idle();
    assert_eq!(gate.held(), 1);
    let write = machine.start_write(&volume, 0, &block(2), true);
    machine.executor.idle();
    assert!(!write.is_done(), "written while its space is being freed");
    gate.release();
    machine.executor.finish(&write).unwrap();
    let volume = after_a_crash(&mut machine);
    assert_eq!(machine.read(&volume, 0, 4096).unwrap(), block(2));
}

#[test]
fn a_read_that_resolved_before_the_trim_sees_whole_old_bytes() {
    for hold in [Hold::Before, Hold::After] {
        let (mut machine, volume) = machine();
        machine.write(&volume, 0, &block(1)).unwrap();
        machine.flush(&volume).unwrap();
        let gate = machine
            .disk
            .hold(When::operation(Operation::Read).file("data"), hold);
        let reader = Arc::clone(&volume);
        let read = machine.executor.start(async move {
            reader
                .read(0, 4096)
                .await
                .unwrap()
                .bytes()
                .map(<[u8]>::to_vec)
        });
        machine.executor.idle();
        assert_eq!(gate.held(), 1);
        machine.trim(&volume, 0, BLOCK).unwrap();
        machine.flush(&volume).unwrap();
        machine.executor.idle();
        gate.release();
        // Punched under it, it would be the decryption of zeros.
        assert_eq!(machine.executor.finish(&read), Some(block(1)));
        machine.executor.idle();
        assert_eq!(
            records(&machine, Operation::Punch, "data").len(),
            1,
            "the space is freed after all"
        );
    }
}

#[test]
fn a_trim_is_durable_before_its_space_is_freed() {
    let (mut machine, volume) = machine();
    machine.write(&volume, 0, &block(1)).unwrap();
    machine.flush(&volume).unwrap();
    machine.trim(&volume, 0, BLOCK).unwrap();
    machine.executor.idle();
    assert!(
        records(&machine, Operation::Punch, "data").is_empty(),
        "punched before any commit"
    );
    machine.disk.forget_journal();
    machine.flush(&volume).unwrap();
    machine.executor.idle();
    let punch = records(&machine, Operation::Punch, "data").pop().unwrap();
    let writes = records(&machine, Operation::Write, "meta");
    let last = writes.last().unwrap();
    let synced = records(&machine, Operation::Sync, "meta");
    assert!(
        synced
            .iter()
            .any(|sync| last.ended_before(sync) && sync.ended_before(&punch))
    );
}

#[test]
fn a_durable_write_over_data_is_one_operation_and_leaves_its_neighbours_alone() {
    let (mut machine, volume) = machine();
    for at in 0..3 {
        machine.write(&volume, at * BLOCK, &block(1)).unwrap();
    }
    machine.flush(&volume).unwrap();
    machine.write(&volume, 0, &block(2)).unwrap();
    machine.disk.forget_journal();
    let write = machine.start_write(&volume, BLOCK, &block(3), true);
    machine.executor.finish(&write).unwrap();
    let journal = machine.disk.journal();
    assert_eq!(journal.len(), 1, "{journal:?}");
    assert!(journal[0].durable);
    machine.write(&volume, 2 * BLOCK, &block(4)).unwrap();
    let volume = after_a_crash(&mut machine);
    assert_eq!(machine.read(&volume, BLOCK, 4096).unwrap(), block(3));
    for neighbour in [0, 2 * BLOCK] {
        let found = machine.read(&volume, neighbour, 4096).unwrap();
        assert!(found.iter().all(|byte| [1, 2, 4].contains(byte)));
    }
}

#[test]
fn a_durable_write_waits_for_a_commit_while_its_block_is_data_in_memory_only() {
    let (mut machine, volume) = machine();
    machine.write(&volume, 0, &block(1)).unwrap();
    let write = machine.start_write(&volume, 0, &block(2), true);
    machine.executor.finish(&write).unwrap();
    let volume = after_a_crash(&mut machine);
    assert_eq!(machine.read(&volume, 0, 4096).unwrap(), block(2));
}

#[test]
fn a_durable_first_write_beside_unflushed_ones_survives() {
    let (mut machine, volume) = machine();
    machine.write(&volume, 0, &block(1)).unwrap();
    let write = machine.start_write(&volume, 130 * MIB, &block(2), true);
    machine.executor.finish(&write).unwrap();
    let volume = after_a_crash(&mut machine);
    assert_eq!(machine.read(&volume, 130 * MIB, 4096).unwrap(), block(2));
}

#[test]
fn a_first_write_of_512_bytes_leaves_zeros_around_it_also_after_a_crash() {
    for (sector_size, offset) in [
        (UnitSize::B512, 1536),
        (UnitSize::B4096, 1536),
        (UnitSize::B4096, 0),
    ] {
        let (mut machine, volume) = of_sectors(sector_size);
        // Old bytes in the file below: a block that was used, trimmed and not yet punched.
        machine.write(&volume, 0, &block(7)).unwrap();
        machine.flush(&volume).unwrap();
        machine.trim(&volume, 0, BLOCK).unwrap();
        machine.write(&volume, offset, &[5; 512]).unwrap();
        machine.write(&volume, MIB + offset, &[6; 512]).unwrap();
        let mut expected = vec![0; 4096];
        let at = usize::try_from(offset).unwrap();
        expected[at..at + 512].fill(5);
        assert_eq!(machine.read(&volume, 0, 4096).unwrap(), expected);
        machine.flush(&volume).unwrap();
        let volume = after_a_crash(&mut machine);
        assert_eq!(machine.read(&volume, 0, 4096).unwrap(), expected);
        expected[at..at + 512].fill(6);
        assert_eq!(machine.read(&volume, MIB, 4096).unwrap(), expected);
    }
}

#[test]
fn requests_to_one_new_block_follow_each_other() {
    let (mut machine, volume) = of_sectors(UnitSize::B512);
    let gate = machine
        .disk
        .hold(When::operation(Operation::Write).file("data"), Hold::Before);
    let first = machine.start_write(&volume, 0, &[1; 512], false);
    machine.executor.idle();
    let second = machine.start_write(&volume, 512, &[2; 512], false);
    machine.executor.idle();
    assert!(!second.is_done(), "its padding would overwrite the first");
    gate.release();
    machine.executor.finish(&first).unwrap();
    machine.executor.finish(&second).unwrap();
    let found = machine.read(&volume, 0, 1024).unwrap();
    assert_eq!(found, [[1; 512], [2; 512]].concat());
}
