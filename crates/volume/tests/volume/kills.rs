//! The process is killed, the disk and its cache go on: at every step of opening, committing and detaching, what was answered
//! is there (rule R8).

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use sealvol_crypto::UnitSize;
use sealvol_store::Operation;
use sealvol_store::fault::{Hold, When};
use sealvol_volume::{Access, BLOCK, BlockState, Volume, Zeroing};

use crate::rig::{Disk, Machine, Registry, seeds};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 200 * MIB;

fn block(fill: u8) -> Vec<u8> {
    vec![fill; 4096]
}

/// A machine with version 1 in block 0, flushed.
fn machine(seed: u64) -> (Machine, Arc<Volume<Disk>>) {
    let mut machine = Machine::new(seed, SIZE, UnitSize::B4096);
    let volume = machine.open().unwrap();
    machine.write(&volume, 0, &block(1)).unwrap();
    machine.flush(&volume).unwrap();
    (machine, volume)
}

/// Kills the process and lets the next one take over.
fn after_a_kill(machine: &mut Machine) -> Arc<Volume<Disk>> {
    machine.kill();
    machine.open().unwrap()
}

/// What a future that waits for nothing ends with.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it waits"),
    }
}

#[test]
fn an_opening_that_is_killed_anywhere_loses_nothing_that_was_answered() {
    for seed in seeds(8) {
        for steps in 0.. {
            let (mut machine, volume) = machine(seed);
            machine.write(&volume, MIB, &block(2)).unwrap();
            machine.trim(&volume, 0, BLOCK).unwrap();
            drop(volume);
            machine.kill();
            machine.most = 3;
            let open = machine.start_open(Access::Writable);
            machine.executor.steps(steps);
            let opened = open.is_done();
            drop(open);
            let volume = after_a_kill(&mut machine);
            assert_eq!(machine.read(&volume, MIB, 4096).unwrap(), block(2));
            assert_eq!(machine.read(&volume, 0, 4096).unwrap(), block(0));
            if opened {
                assert!(steps > 10, "an opening is more than {steps} steps");
                break;
            }
        }
    }
}

#[test]
fn what_two_killed_processes_in_a_row_acknowledged_is_there() {
    let (mut machine, volume) = machine(1);
    machine.write(&volume, MIB, &block(2)).unwrap();
    drop(volume);
    let volume = after_a_kill(&mut machine);
    machine.write(&volume, 2 * MIB, &block(3)).unwrap();
    drop(volume);
    for _ in 0..3 {
        let volume = after_a_kill(&mut machine);
        assert_eq!(machine.read(&volume, MIB, 4096).unwrap(), block(2));
        assert_eq!(machine.read(&volume, 2 * MIB, 4096).unwrap(), block(3));
    }
}

#[test]
fn a_detach_that_is_killed_anywhere_loses_nothing_that_was_answered() {
    for seed in seeds(8) {
        for steps in 0.. {
            let (mut machine, volume) = machine(seed);
            machine.write(&volume, MIB, &block(2)).unwrap();
            machine.kill();
            machine.most = 3;
            let volume = {
                drop(volume);
                machine.open().unwrap()
            };
            let close = machine.executor.start(async move { volume.close().await });
            machine.executor.steps(steps);
            let closed = close.is_done();
            let volume = after_a_kill(&mut machine);
            assert_eq!(machine.read(&volume, MIB, 4096).unwrap(), block(2));
            if closed {
                assert!(steps > 10, "a detach is more than {steps} steps");
                break;
            }
        }
    }
}

#[test]
fn a_kill_in_the_middle_of_a_commit_loses_nothing_that_was_answered() {
    for (operation, file) in [
        (Operation::Sync, "data"),
        (Operation::Write, "meta"),
        (Operation::Sync, "meta"),
    ] {
        let (mut machine, volume) = machine(1);
        machine.write(&volume, 70 * MIB, &block(2)).unwrap();
        let gate = machine
            .disk
            .hold(When::operation(operation).file(file), Hold::Before);
        let flush = machine.start_flush(&volume);
        machine.executor.idle();
        assert_eq!(gate.held(), 1);
        machine.write(&volume, 140 * MIB, &block(3)).unwrap();
        assert!(!flush.is_done());
        drop(volume);
        machine.kill();
        gate.release();
        let volume = machine.open().unwrap();
        for (offset, fill) in [(0, 1), (70 * MIB, 2), (140 * MIB, 3)] {
            let found = machine.read(&volume, offset, 4096).unwrap();
            assert_eq!(found, block(fill), "{offset}, {operation:?} of {file}");
        }
    }
}

#[test]
fn what_is_answered_during_a_commit_survives_a_kill_after_it() {
    let (mut machine, volume) = machine(1);
    machine.write(&volume, MIB, &block(2)).unwrap();
    let data_sync = When::operation(Operation::Sync).file("data");
    let gate = machine.disk.hold(data_sync, Hold::Before);
    let flush = machine.start_flush(&volume);
    machine.executor.idle();
    machine.write(&volume, 2 * MIB, &block(3)).unwrap();
    machine.trim(&volume, MIB, BLOCK).unwrap();
    gate.release();
    machine.executor.finish(&flush).unwrap();
    drop(volume);
    let volume = after_a_kill(&mut machine);
    assert_eq!(machine.read(&volume, 2 * MIB, 4096).unwrap(), block(3));
    assert_eq!(machine.read(&volume, MIB, 4096).unwrap(), block(0));
}

#[test]
fn a_write_that_comes_as_a_commit_begins_is_in_its_copies_or_stays_remembered() {
    let (mut machine, volume) = machine(1);
    let (weak, times) = (Arc::downgrade(&volume), Mutex::new(0));
    machine.registry.when_commit_begins(move || {
        let mut times = times.lock().unwrap();
        *times += 1;
        if let (Some(volume), 1) = (weak.upgrade(), *times) {
            let write = volume.prepare_write(MIB, &block(2)).unwrap();
            at_once(write.run(false)).unwrap();
        }
    });
    machine.write(&volume, 0, &block(2)).unwrap();
    machine.flush(&volume).unwrap();
    drop(volume);
    let volume = after_a_kill(&mut machine);
    assert_eq!(machine.read(&volume, MIB, 4096).unwrap(), block(2));
}

#[test]
fn what_finds_no_room_to_be_remembered_is_on_disk_before_it_is_answered() {
    for trims in [false, true] {
        let (mut machine, volume) = machine(1);
        for at in 0..Registry::ROOM {
            machine.write(&volume, MIB + at * BLOCK, &block(2)).unwrap();
        }
        if trims {
            machine.trim(&volume, 0, BLOCK).unwrap();
        } else {
            machine.write(&volume, BLOCK, &block(3)).unwrap();
        }
        drop(volume);
        let volume = after_a_kill(&mut machine);
        let expected = if trims { [0, 0] } else { [1, 3] };
        let found = machine.read(&volume, 0, 8192).unwrap();
        assert_eq!(found, expected.map(block).concat());
    }
}

#[test]
fn a_change_is_remembered_once_it_is_in_the_map() {
    let (mut machine, volume) = machine(1);
    let weak = Arc::downgrade(&volume);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let states = Arc::clone(&seen);
    machine.registry.when_remembered(move |change| {
        let volume = weak.upgrade().unwrap();
        let (first, len) = (change.first * BLOCK, change.blocks * BLOCK);
        // A commit that began now would forget the change: its copy of the map must have it.
        let extents = at_once(volume.extents(first, len, 10)).unwrap();
        assert!(
            extents.iter().all(|extent| extent.state == change.state),
            "{change:?} is not in the map yet: {extents:?}"
        );
        states.lock().unwrap().push(change.state);
    });
    machine.write(&volume, MIB, &block(2)).unwrap();
    machine.trim(&volume, 0, BLOCK).unwrap();
    let zeroed = Arc::clone(&volume);
    machine
        .executor
        .run(async move { zeroed.zero(MIB, 2 * BLOCK, Zeroing::Allocated, false).await })
        .unwrap();
    let filled = Arc::clone(&volume);
    machine
        .executor
        .run(async move { filled.materialise(0, 1).await.map(drop) })
        .unwrap();
    let seen = seen.lock().unwrap();
    assert!(
        seen.contains(&BlockState::Zero) && seen.len() > 3,
        "{seen:?}"
    );
}
