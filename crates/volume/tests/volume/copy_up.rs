//! Copying up and cutting over: clients in between, power cuts, kills, stores that lie; and exact copies of one layer.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use sealvol_crypto::UnitSize;
use sealvol_store::fault::{Hold, When};
use sealvol_store::{Access as FileAccess, Operation};
use sealvol_volume::{
    BLOCK, Pace, Task, Unpaced, Volume, VolumeError, VolumeId, Zeroing, open_copy, open_sealed,
};

use crate::rig::{Disk, Handle, Tower, key, seeds};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 200 * MIB;

fn block(fill: u8) -> Vec<u8> {
    vec![fill; 4096]
}

/// What `rekeyed` leaves, through the stack: byte offset, fill.
const CONTENT: [(u64, u8); 7] = [
    (0, 1),
    (BLOCK, 2),
    (2 * BLOCK, 0),
    (3 * BLOCK, 4),
    (4 * BLOCK, 0),
    (70 * MIB, 3),
    (SIZE - BLOCK, 5),
];

/// A volume of two sealed layers under two keys, with an empty top under a third.
fn rekeyed(seed: u64, sector_size: UnitSize) -> (Tower, VolumeId, Arc<Volume<Disk>>) {
    let mut tower = Tower::new(seed, sector_size);
    let id = tower.volume(SIZE);
    let volume = tower.open(id).unwrap();
    for (offset, fill) in [
        (0, 1),
        (BLOCK, 9),
        (2 * BLOCK, 9),
        (3 * BLOCK, 4),
        (SIZE - BLOCK, 5),
    ] {
        tower.write(&volume, offset, &block(fill)).unwrap();
    }
    tower.snapshot(&volume, key(1)).unwrap();
    tower.write(&volume, BLOCK, &block(2)).unwrap();
    tower.trim(&volume, 2 * BLOCK, BLOCK).unwrap();
    tower.write(&volume, 70 * MIB, &block(3)).unwrap();
    tower.snapshot(&volume, key(2)).unwrap();
    (tower, id, volume)
}

fn check(tower: &mut Tower, volume: &Arc<Volume<Disk>>, content: &[(u64, u8)]) {
    for &(offset, fill) in content {
        let found = tower.read(volume, offset, 4096).unwrap();
        assert_eq!(found, block(fill), "at {offset}");
    }
}

fn data_of(layer: sealvol_volume::LayerId, operation: Operation) -> When {
    When::operation(operation).file(&format!("{layer}/data"))
}

#[test]
fn a_volume_that_was_copied_up_stands_alone_under_its_new_key() {
    for sector_size in [UnitSize::B512, UnitSize::B4096] {
        let (mut tower, id, volume) = rekeyed(1, sector_size);
        let left = Arc::clone(&volume);
        let left = tower
            .executor
            .run(async move { left.left_below().await.unwrap() });
        assert_eq!(tower.copy_up(&volume).unwrap(), 5 * BLOCK);
        assert_eq!(left, 5 * BLOCK, "what is zero or hidden is not copied");
        let below = tower.cut_over(&volume).unwrap();
        assert_eq!((below.len(), volume.layers().len()), (2, 1));
        tower.remove(&below);
        check(&mut tower, &volume, &CONTENT);
        tower.write(&volume, 5 * BLOCK + 9, &[7; 9]).unwrap();
        tower.close(volume).unwrap();
        tower.restart();
        let volume = tower.open(id).unwrap();
        check(&mut tower, &volume, &CONTENT);
        assert_eq!(tower.read(&volume, 5 * BLOCK + 8, 2).unwrap(), [0, 7]);
    }
}

#[test]
fn a_volume_that_was_cut_over_is_snapshotted_again_while_it_is_in_use() {
    let (mut tower, id, volume) = rekeyed(1, UnitSize::B4096);
    for number in 3..5 {
        tower.copy_up(&volume).unwrap();
        tower.cut_over(&volume).unwrap();
        tower.snapshot(&volume, key(number)).unwrap();
        check(&mut tower, &volume, &CONTENT);
    }
    tower.close(volume).unwrap();
    tower.restart();
    {
        let volume = tower.open(id).unwrap();
        assert_eq!(volume.layers().len(), 2);
        check(&mut tower, &volume, &CONTENT);
    }
}

#[test]
fn a_client_that_writes_zeroes_or_trims_while_a_chunk_is_copied_has_its_way() {
    for hold in [Hold::Before, Hold::After] {
        for operation in [Operation::Read, Operation::Write] {
            let (mut tower, id, volume) = rekeyed(1, UnitSize::B512);
            let stack = tower.stack(id).to_vec();
            let layer = if operation == Operation::Read {
                stack[0]
            } else {
                stack[2]
            };
            // Between the read of the source and the end of the write of the destination.
            let gate = tower.disk.hold(data_of(layer, operation), hold);
            let copy = tower.start_copy_up(&volume);
            tower.executor.idle();
            assert_eq!(gate.held(), 1);
            let whole = tower.start_write(&volume, 0, &block(11), false);
            let part = tower.start_write(&volume, 3 * BLOCK + 512, &[12; 512], false);
            let (zeroed, trimmed) = (Arc::clone(&volume), Arc::clone(&volume));
            let zero: Handle<Result<(), VolumeError>> = tower
                .executor
                .start(async move { zeroed.zero(BLOCK, BLOCK, Zeroing::MayFree, false).await });
            let elsewhere = tower.start_write(&volume, 10 * MIB, &block(13), false);
            tower.executor.idle();
            assert!(!whole.is_done() && !part.is_done() && !zero.is_done());
            assert!(elsewhere.is_done(), "another chunk is nobody's business");
            gate.release();
            for done in [&whole, &part, &zero, &elsewhere] {
                tower.executor.finish(done).unwrap();
            }
            let trim = tower
                .executor
                .start(async move { trimmed.trim(70 * MIB, BLOCK, false).await });
            tower.executor.finish(&trim).unwrap();
            tower.executor.finish(&copy).unwrap();
            let copied = tower.copy_up(&volume).unwrap();
            assert_eq!(copied, 0, "all of it is done");
            tower.cut_over(&volume).unwrap();
            tower.flush(&volume).unwrap();
            drop(volume);
            tower.restart();
            let volume = tower.open(id).unwrap();
            let now = [
                (0, 11),
                (BLOCK, 0),
                (2 * BLOCK, 0),
                (70 * MIB, 0),
                (10 * MIB, 13),
            ];
            check(&mut tower, &volume, &now);
            let mixed = tower.read(&volume, 3 * BLOCK, 4096).unwrap();
            let expected = [vec![4; 512], vec![12; 512], vec![4; 3072]].concat();
            assert_eq!(mixed, expected);
        }
    }
}

#[test]
fn a_client_that_writes_zeroes_or_trims_before_a_chunk_has_its_turn_keeps_what_it_did() {
    let (mut tower, id, volume) = rekeyed(1, UnitSize::B4096);
    let top = tower.stack(id)[2];
    let gate = tower
        .disk
        .hold(data_of(top, Operation::Write).range(0..BLOCK), Hold::Before);
    let write = tower.start_write(&volume, 0, &block(11), false);
    tower.executor.idle();
    assert_eq!(gate.held(), 1);
    let copy = tower.start_copy_up(&volume);
    tower.executor.idle();
    assert!(!copy.is_done(), "it waits for the write");
    gate.release();
    tower.executor.finish(&write).unwrap();
    assert_eq!(tower.executor.finish(&copy).unwrap(), 4 * BLOCK);
    check(&mut tower, &volume, &[(0, 11), (BLOCK, 2), (3 * BLOCK, 4)]);
}

#[test]
fn a_chunk_waits_for_its_pace_with_nothing_locked() {
    struct Slow(Mutex<Vec<u64>>, Arc<Volume<Disk>>);
    impl Pace for Slow {
        fn chunk(&self, bytes: u64) -> Task<()> {
            self.0.lock().unwrap().push(bytes);
            let write = self.1.prepare_write(0, &block(20)).unwrap();
            Box::pin(async move { write.run(false).await.unwrap() })
        }
    }
    let (mut tower, _, volume) = rekeyed(1, UnitSize::B4096);
    let pace = Arc::new(Slow(Mutex::default(), Arc::clone(&volume)));
    let (copied, paced) = (Arc::clone(&volume), Arc::clone(&pace));
    let part = tower
        .executor
        .run(async move { copied.copy_up(0..u64::MAX, u64::MAX, &*paced).await })
        .unwrap();
    assert_eq!(part.next, None);
    assert!(part.copied <= pace.0.lock().unwrap().iter().sum());
    check(&mut tower, &volume, &[(0, 20), (BLOCK, 2), (70 * MIB, 3)]);
}

#[test]
fn parts_of_a_volume_are_copied_side_by_side_and_in_bounded_steps() {
    let mut tower = Tower::new(5, UnitSize::B4096);
    let id = tower.volume(SIZE);
    let volume = tower.open(id).unwrap();
    tower.write(&volume, 0, &vec![7; 8 << 20]).unwrap();
    tower.write(&volume, 100 * MIB, &vec![8; 8 << 20]).unwrap();
    tower.snapshot(&volume, key(1)).unwrap();
    tower.most = 2;
    let parts = [0, 100 * MIB].map(|from| {
        let volume = Arc::clone(&volume);
        tower
            .executor
            .start(async move { volume.copy_up(from..u64::MAX, 3 << 20, &Unpaced).await })
    });
    for (part, from) in parts.iter().zip([0, 100 * MIB]) {
        let done = tower.executor.finish(part).unwrap();
        assert_eq!((done.copied, done.next), (3 << 20, Some(from + (3 << 20))));
    }
    assert_eq!(tower.copy_up(&volume).unwrap(), 10 << 20);
    tower.cut_over(&volume).unwrap();
    assert!(tower.read(&volume, 100 * MIB, 8 << 20).unwrap() == vec![8; 8 << 20]);
}

#[test]
fn nothing_is_cut_over_while_something_is_left_below() {
    let (mut tower, _, volume) = rekeyed(1, UnitSize::B4096);
    let part = Arc::clone(&volume);
    tower
        .executor
        .run(async move { part.copy_up(0..u64::MAX, 1, &Unpaced).await })
        .unwrap();
    let cut = tower.cut_over(&volume);
    assert!(
        matches!(cut, Err(VolumeError::LeftBelow { offset }) if offset == 70 * MIB),
        "{cut:?}"
    );
    assert_eq!(volume.layers().len(), 3);
    check(&mut tower, &volume, &CONTENT);
}

#[test]
fn a_snapshot_during_a_copy_only_makes_it_longer() {
    for seed in seeds(10) {
        let (mut tower, id, volume) = rekeyed(seed, UnitSize::B512);
        tower.most = 2;
        let copy = tower.start_copy_up(&volume);
        tower.executor.steps(7 * seed);
        tower.snapshot(&volume, key(2)).unwrap();
        tower.write(&volume, 9 * BLOCK, &block(6)).unwrap();
        tower.executor.finish(&copy).unwrap();
        tower.copy_up(&volume).unwrap();
        assert_eq!(tower.cut_over(&volume).unwrap().len(), 3);
        drop(volume);
        tower.restart();
        let volume = tower.open(id).unwrap();
        check(&mut tower, &volume, &CONTENT);
    }
}

#[test]
fn what_reads_back_as_something_else_is_not_relied_on() {
    let (mut tower, _, volume) = rekeyed(1, UnitSize::B4096);
    tower.flips.store(true, Ordering::Relaxed);
    let copied = tower.copy_up(&volume);
    assert!(matches!(
        copied,
        Err(VolumeError::BadCopy { offset: 0, .. })
    ));
    check(&mut tower, &volume, &CONTENT);
    tower.flips.store(false, Ordering::Relaxed);
    tower.copy_up(&volume).unwrap();
    tower.cut_over(&volume).unwrap();
    check(&mut tower, &volume, &CONTENT);
}

#[test]
fn layers_are_handed_back_when_nobody_reads_them_any_more() {
    let (mut tower, id, volume) = rekeyed(1, UnitSize::B4096);
    let lowest = tower.stack(id)[0];
    let gate = tower
        .disk
        .hold(data_of(lowest, Operation::Read), Hold::Before);
    let reader = Arc::clone(&volume);
    let read = tower
        .executor
        .start(async move { reader.read(SIZE - BLOCK, 4096).await });
    tower.executor.idle();
    assert_eq!(gate.held(), 1);
    tower.copy_up(&volume).unwrap();
    let cut = Arc::clone(&volume);
    let cut = tower
        .executor
        .start(async move { cut.cut_over().await.map(|layers| layers.len()) });
    tower.executor.idle();
    assert!(!cut.is_done(), "a read is on its way to a layer");
    tower.write(&volume, 0, &block(1)).unwrap();
    gate.release();
    let found = tower.executor.finish(&read).unwrap();
    assert_eq!(found.bytes().unwrap(), block(5));
    assert_eq!(tower.executor.finish(&cut).unwrap(), 2);
}

#[test]
fn a_block_that_a_client_hid_is_hidden_after_a_cut_over_and_a_power_cut() {
    let (mut tower, id, volume) = rekeyed(1, UnitSize::B4096);
    tower.copy_up(&volume).unwrap();
    tower.write(&volume, BLOCK, &block(8)).unwrap();
    tower.write(&volume, 6 * BLOCK, &block(8)).unwrap();
    let below = tower.cut_over(&volume).unwrap();
    drop(volume);
    tower.restart();
    tower.remove(&below);
    let volume = tower.open(id).unwrap();
    check(&mut tower, &volume, &[(0, 1), (BLOCK, 8), (6 * BLOCK, 8)]);
}

#[test]
fn a_write_that_fills_the_last_gap_during_a_cut_over_is_not_relied_on_before_it_is_on_disk() {
    for seed in seeds(10) {
        let (mut tower, id, volume) = rekeyed(seed, UnitSize::B4096);
        for from in [0, 70 * MIB] {
            let part = Arc::clone(&volume);
            let copied = async move { part.copy_up(from..u64::MAX, 1, &Unpaced).await };
            tower.executor.run(copied).unwrap();
        }
        let top = tower.stack(id)[2];
        let gate = tower.disk.hold(data_of(top, Operation::Sync), Hold::Before);
        let cut = Arc::clone(&volume);
        let cut = tower
            .executor
            .start(async move { cut.cut_over().await.map(|_| ()) });
        tower.executor.idle();
        tower.write(&volume, SIZE - BLOCK, &block(8)).unwrap();
        gate.release();
        let cut = tower.executor.finish(&cut);
        assert!(matches!(cut, Err(VolumeError::LeftBelow { .. })), "{cut:?}");
        drop(volume);
        tower.restart();
        let volume = tower.open(id).unwrap();
        let found = tower.read(&volume, SIZE - BLOCK, 4096).unwrap();
        assert!(found == block(5) || found == block(8), "{}", found[0]);
    }
}

#[test]
fn what_is_copied_up_survives_a_kill() {
    for steps in (0..400).step_by(9) {
        let (mut tower, id, volume) = rekeyed(steps, UnitSize::B4096);
        tower.close(volume).unwrap();
        tower.most = 1;
        let volume = tower.open(id).unwrap();
        let copy = tower.start_copy_up(&volume);
        tower.executor.steps(steps);
        let copied = copy.is_done();
        drop((copy, volume));
        tower.kill();
        let volume = tower.open(id).unwrap();
        check(&mut tower, &volume, &CONTENT);
        let left = tower.copy_up(&volume).unwrap();
        assert!(!copied || left == 0);
        tower.cut_over(&volume).unwrap();
        check(&mut tower, &volume, &CONTENT);
    }
    // Not committed yet, and not copied again: the process died with the map's entries in memory alone.
    let (mut tower, id, volume) = rekeyed(1, UnitSize::B4096);
    let top = tower.stack(id)[2];
    let gate = tower.disk.hold(data_of(top, Operation::Sync), Hold::Before);
    let copy = tower.start_copy_up(&volume);
    tower.executor.idle();
    assert_eq!(gate.held(), 1);
    drop((copy, volume));
    tower.kill();
    gate.release();
    let volume = tower.open(id).unwrap();
    assert_eq!(tower.copy_up(&volume).unwrap(), 0);
}

#[test]
fn copying_up_and_cutting_over_can_be_cut_anywhere() {
    let mut changes = 0;
    for nth in 1.. {
        let mut cut = false;
        for seed in 0..4 {
            let (mut tower, id, volume) = rekeyed(seed + nth * 1000, UnitSize::B4096);
            tower.flush(&volume).unwrap();
            tower.disk.cut_power_at(nth);
            // The registry hears of the cut-over only after it is durable.
            let done = tower.copy_up(&volume).is_ok() && {
                let alone = Arc::clone(&volume);
                tower
                    .executor
                    .run(async move { alone.cut_over().await.map(|_| ()) })
                    .is_ok()
            };
            cut |= !tower.disk.is_powered();
            drop(volume);
            tower.restart();
            let volume = tower.open(id).unwrap();
            assert!(!done || volume.layers().len() == 1, "it was answered");
            check(&mut tower, &volume, &CONTENT);
            tower.copy_up(&volume).unwrap();
            let below = tower.cut_over(&volume).unwrap();
            tower.remove(&below);
            tower.close(volume).unwrap();
            tower.restart();
            let volume = tower.open(id).unwrap();
            check(&mut tower, &volume, &CONTENT);
        }
        if !cut {
            break;
        }
        changes = nth;
    }
    assert!(changes >= 12, "{changes}");
}

#[test]
fn an_exact_copy_says_what_its_source_says_under_another_key() {
    for nth in (1..40).step_by(3) {
        let (mut tower, id, volume) = rekeyed(nth, UnitSize::B4096);
        let [lowest, middle, _] = tower.stack(id).to_vec()[..] else {
            panic!("three layers");
        };
        tower.close(volume).unwrap();
        // The middle layer again, under another key, on the same lowest one.
        let copy = tower.layer(id, Some(lowest), SIZE, key(3)).unwrap();
        tower.disk.cut_power_at(nth);
        let mut sealed = false;
        for _ in 0..3 {
            let source = tower.parts(middle, FileAccess::ReadOnly);
            let destination = tower.parts(copy, FileAccess::Writable);
            let opened = tower.executor.run(async move {
                let source = open_sealed(&[], source.await?).await?;
                open_copy(source, destination.await?).await
            });
            let Ok(opened) = opened else {
                sealed |= matches!(opened, Err(VolumeError::Sealed { .. }));
                tower.restart();
                continue;
            };
            let early = Arc::clone(&opened);
            let early = tower
                .executor
                .run(async move { early.seal_copy().await.map(|_| ()) });
            assert!(
                early.is_ok()
                    || !matches!(early, Err(VolumeError::Failed(_)))
                    || !tower.disk.is_powered()
            );
            sealed |= early.is_ok();
            if !sealed && tower.copy_up(&opened).is_ok() {
                let last = Arc::clone(&opened);
                sealed = tower
                    .executor
                    .run(async move { last.seal_copy().await.map(|_| ()) })
                    .is_ok();
            }
            drop(opened);
            tower.restart();
            if sealed {
                break;
            }
        }
        assert!(sealed);
        // In the place of its source, below a new top.
        let top = tower.layer(id, Some(copy), SIZE, key(3)).unwrap();
        tower.change_stack(id, vec![lowest, copy, top]);
        let volume = tower.open(id).unwrap();
        check(&mut tower, &volume, &CONTENT);
        let map = Arc::clone(&volume);
        let map = tower
            .executor
            .run(async move { map.map(0, 9).await.unwrap() });
        let layers: Vec<_> = map[..4].iter().map(|run| run.layer).collect();
        assert_eq!(layers, [Some(lowest), Some(copy), Some(copy), Some(lowest)]);
    }
}
