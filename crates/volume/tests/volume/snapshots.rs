//! Snapshots while requests go on (rule R7): what is in, what is out, what waits for what, and what power cuts and kills leave.

use std::sync::Arc;

use sealvol_crypto::UnitSize;
use sealvol_store::Operation;
use sealvol_store::fault::{Hold, Record, When};
use sealvol_volume::{BLOCK, Layer, Volume, VolumeError, VolumeId, snapshot_all, view};

use crate::rig::{Disk, Handle, Tower, key, seeds};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 200 * MIB;

fn block(fill: u8) -> Vec<u8> {
    vec![fill; 4096]
}

/// A volume with 1 in block 0, flushed.
fn tower(seed: u64) -> (Tower, VolumeId, Arc<Volume<Disk>>) {
    of_sectors(seed, UnitSize::B4096)
}

fn of_sectors(seed: u64, sector_size: UnitSize) -> (Tower, VolumeId, Arc<Volume<Disk>>) {
    let mut tower = Tower::new(seed, sector_size);
    let id = tower.volume(SIZE);
    let volume = tower.open(id).unwrap();
    tower.write(&volume, 0, &block(1)).unwrap();
    tower.flush(&volume).unwrap();
    (tower, id, volume)
}

/// What a snapshot holds at `offset`, seen through its layers.
fn in_snapshot(
    tower: &mut Tower,
    volume: &Arc<Volume<Disk>>,
    sealed: &Arc<Layer<Disk>>,
    offset: u64,
) -> Vec<u8> {
    let mut layers = volume.layers();
    let at = layers
        .iter()
        .position(|layer| layer.id() == sealed.id())
        .unwrap();
    layers.drain(..at);
    layers.reverse();
    let snapshot = tower
        .executor
        .run(async move { view(layers).await })
        .unwrap();
    tower.read(&snapshot, offset, 4096).unwrap()
}

/// Whether it is of a file of this layer.
fn belongs(record: &Record, layer: &str) -> bool {
    record.path.to_string_lossy().contains(layer)
}

fn data_write() -> When {
    When::operation(Operation::Write).file("data")
}

#[test]
fn what_was_answered_before_is_in_and_what_is_sent_after_is_out() {
    let (mut tower, _, volume) = tower(1);
    tower.write(&volume, 0, &block(2)).unwrap();
    tower.write(&volume, MIB, &block(3)).unwrap();
    tower.trim(&volume, 2 * MIB, BLOCK).unwrap();
    let sealed = tower.snapshot(&volume, key(0)).unwrap();
    tower.write(&volume, 0, &block(4)).unwrap();
    tower.write(&volume, 3 * MIB, &block(5)).unwrap();
    tower.trim(&volume, MIB, BLOCK).unwrap();
    for (offset, then, now) in [(0, 2, 4), (MIB, 3, 0), (3 * MIB, 0, 5)] {
        let found = in_snapshot(&mut tower, &volume, &sealed, offset);
        assert_eq!(found, block(then));
        assert_eq!(tower.read(&volume, offset, 4096).unwrap(), block(now));
    }
}

#[test]
fn writes_in_flight_end_in_the_layer_they_began_in_and_nobody_waits_for_them_but_the_snapshot() {
    let (mut tower, id, volume) = tower(1);
    let old = tower.stack(id)[0].to_string();
    let into_old = When::operation(Operation::Write).file(&format!("{old}/data"));
    let gate = tower.disk.hold(into_old.always(), Hold::Before);
    let overwrite = tower.start_write(&volume, 0, &block(2), false);
    let first = tower.start_write(&volume, MIB, &block(3), false);
    tower.executor.idle();
    assert_eq!(gate.held(), 2);
    let snapshot = tower.start_snapshot(&volume, key(1)).unwrap();
    tower.executor.idle();
    assert!(!snapshot.is_done(), "writes are on their way to the layer");
    tower.write(&volume, 2 * MIB, &block(4)).unwrap();
    assert_eq!(tower.read(&volume, 0, 4096).unwrap(), block(1));
    tower.trim(&volume, 3 * MIB, BLOCK).unwrap();
    gate.release();
    tower.executor.finish(&overwrite).unwrap();
    tower.executor.finish(&first).unwrap();
    let sealed = tower.executor.finish(&snapshot).unwrap();
    for (offset, then) in [(0, 2), (MIB, 3), (2 * MIB, 0)] {
        let found = in_snapshot(&mut tower, &volume, &sealed, offset);
        assert_eq!(found, block(then), "at {offset}");
    }
    assert_eq!(tower.read(&volume, 2 * MIB, 4096).unwrap(), block(4));
}

#[test]
fn a_request_that_waits_for_its_turn_during_the_cut_goes_to_the_new_top() {
    for sector_size in [UnitSize::B512, UnitSize::B4096] {
        let (mut tower, _, volume) = of_sectors(1, sector_size);
        let gate = tower.disk.hold(data_write(), Hold::Before);
        let first = tower.start_write(&volume, MIB, &block(3), false);
        tower.executor.idle();
        // Whole sectors, sealed under the old top's key; a part of one; a trim: each waits for the first.
        let whole = tower.start_write(&volume, MIB, &[4; 4096], false);
        let part = tower.start_write(&volume, MIB + 100, &[5; 50], false);
        let (trimmed, volume_too) = (Arc::clone(&volume), Arc::clone(&volume));
        let trim = tower
            .executor
            .start(async move { trimmed.trim(MIB, BLOCK, false).await });
        let filled = tower
            .executor
            .start(async move { volume_too.materialise(MIB, 1).await });
        tower.executor.idle();
        let snapshot = tower.start_snapshot(&volume, key(1)).unwrap();
        tower.executor.idle();
        gate.release();
        tower.executor.finish(&first).unwrap();
        let sealed = tower.executor.finish(&snapshot).unwrap();
        for write in [&whole, &part, &trim] {
            tower.executor.finish(write).unwrap();
        }
        tower.executor.finish(&filled).unwrap();
        let found = in_snapshot(&mut tower, &volume, &sealed, MIB);
        assert_eq!(found, block(3), "what came later is not in the snapshot");
        // Those of the three that met the closed stack; what is materialised is nobody's request.
        assert!((2..=3).contains(&volume.waits().count));
        let found = tower.read(&volume, MIB, 4096).unwrap();
        let fits = |byte: &u8| [0, 4, 5].contains(byte);
        assert!(found.iter().all(fits), "{:?}", &found[..200]);
    }
}

/// A write of block 0 is held; `late` begins behind it, then the cut is made. What block 0 is in the snapshot, and now.
fn behind_a_write(
    late: impl FnOnce(&mut Tower, &Arc<Volume<Disk>>) -> Handle<Result<(), VolumeError>>,
) -> [Vec<u8>; 2] {
    let (mut tower, _, volume) = tower(1);
    let gate = tower.disk.hold(data_write(), Hold::Before);
    let first = tower.start_write(&volume, 0, &[3; 512], false);
    tower.executor.idle();
    let late = late(&mut tower, &volume);
    tower.executor.idle();
    assert!(!late.is_done());
    let snapshot = tower.start_snapshot(&volume, key(1)).unwrap();
    tower.executor.idle();
    gate.release();
    tower.executor.finish(&first).unwrap();
    let sealed = tower.executor.finish(&snapshot).unwrap();
    tower.executor.finish(&late).unwrap();
    let then = in_snapshot(&mut tower, &volume, &sealed, 0);
    [then, tower.read(&volume, 0, 4096).unwrap()]
}

#[test]
fn an_overwrite_that_waits_during_the_cut_is_not_in_the_snapshot() {
    let [then, now] =
        behind_a_write(|tower, volume| tower.start_write(volume, 0, &block(4), false));
    assert_eq!((then[0], then[512]), (3, 1));
    assert_eq!(now, block(4));
}

#[test]
fn a_trim_that_waits_during_the_cut_is_not_in_the_snapshot() {
    let [then, now] = behind_a_write(|tower, volume| {
        let volume = Arc::clone(volume);
        tower
            .executor
            .start(async move { volume.trim(0, BLOCK, false).await })
    });
    assert_eq!((then[0], then[512]), (3, 1));
    assert_eq!(now, block(0));
}

#[test]
fn a_sector_of_a_block_that_another_write_took_along_is_not_lost() {
    // Both wait while the cut is made; whichever comes first takes the other's sector along from below.
    for seed in seeds(20) {
        let (mut tower, _, volume) = of_sectors(seed, UnitSize::B512);
        let gate = tower.disk.hold(data_write(), Hold::Before);
        let first = tower.start_write(&volume, MIB, &block(3), false);
        tower.executor.idle();
        let sectors: Vec<_> = (0..8_u8)
            .map(|sector| {
                let offset = MIB + 512 * u64::from(sector);
                tower.start_write(&volume, offset, &[10 + sector; 512], false)
            })
            .collect();
        tower.executor.steps(seed);
        let snapshot = tower.start_snapshot(&volume, key(1)).unwrap();
        tower.executor.steps(10 * seed);
        gate.release();
        for write in &sectors {
            tower.executor.finish(write).unwrap();
        }
        tower.executor.finish(&first).unwrap();
        tower.executor.finish(&snapshot).unwrap();
        let expected: Vec<u8> = (0..8_u8).flat_map(|sector| [10 + sector; 512]).collect();
        assert_eq!(tower.read(&volume, MIB, 4096).unwrap(), expected);
    }
}

#[test]
fn no_flush_on_the_new_top_is_answered_before_the_head_switch_and_lower_layers_come_first() {
    let (mut tower, id, volume) = tower(1);
    tower.write(&volume, MIB, &block(2)).unwrap();
    let old = tower.stack(id)[0].to_string();
    let sync = When::operation(Operation::Sync).file(&format!("{old}/data"));
    let gate = tower.disk.hold(sync, Hold::Before);
    let snapshot = tower.start_snapshot(&volume, key(0)).unwrap();
    tower.executor.idle();
    assert_eq!(gate.held(), 1);
    let new = tower.stack(id)[1];
    tower.registry(new).record_slowly(50);
    tower.disk.forget_journal();
    tower.write(&volume, 2 * MIB, &block(3)).unwrap();
    let flush = tower.start_flush(&volume);
    let durable = tower.start_write(&volume, 2 * MIB, &block(4), true);
    tower.executor.idle();
    assert!(!flush.is_done() && !durable.is_done());
    gate.release();
    let head = Arc::clone(tower.registry(new));
    tower.executor.until(|| {
        let answered = flush.is_done() || durable.is_done() || snapshot.is_done();
        assert!(
            !answered || head.is_head(),
            "answered before the head was switched"
        );
        answered
    });
    tower.executor.finish(&snapshot).unwrap();
    tower.executor.finish(&flush).unwrap();
    tower.executor.finish(&durable).unwrap();
    let journal = tower.disk.journal();
    let syncs = |layer: String| -> Vec<Record> {
        let mut syncs = journal.clone();
        syncs.retain(|record| record.operation == Operation::Sync && belongs(record, &layer));
        syncs
    };
    let (lower, upper) = (syncs(old), syncs(new.to_string()));
    assert!(lower.len() > 3 && !upper.is_empty());
    for sync in &lower {
        assert!(sync.ended_before(&upper[0]), "{sync:?}");
    }
}

#[test]
fn a_head_switch_that_is_refused_is_asked_for_again_by_the_next_flush() {
    let (mut tower, id, volume) = tower(1);
    let parts = tower.new_top(&volume, key(1)).unwrap();
    let new = tower.stack(id)[1];
    tower.registry(new).refuse_head(true);
    let cut = Arc::clone(&volume);
    let snapshot = tower
        .executor
        .run(async move { cut.snapshot(parts.await?).await });
    assert!(matches!(snapshot, Err(VolumeError::Registry(_))));
    tower.write(&volume, MIB, &block(2)).unwrap();
    for _ in 0..2 {
        let flushed = tower.flush(&volume);
        assert!(matches!(flushed, Err(VolumeError::Registry(_))));
    }
    tower.registry(new).refuse_head(false);
    tower.flush(&volume).unwrap();
    assert!(tower.registry(new).is_head());
    drop(volume);
    tower.restart();
    let volume = tower.open(id).unwrap();
    assert_eq!(tower.read(&volume, MIB, 4096).unwrap(), block(2));
    assert_eq!(tower.read(&volume, 0, 4096).unwrap(), block(1));
}

#[test]
fn what_is_zeroed_in_the_old_top_is_freed_after_it_is_sealed_and_not_in_the_new_one() {
    let (mut tower, id, volume) = tower(1);
    tower.write(&volume, MIB, &block(2)).unwrap();
    tower.flush(&volume).unwrap();
    tower.trim(&volume, MIB, BLOCK).unwrap();
    let sealed = tower.snapshot(&volume, key(0)).unwrap();
    tower.trim(&volume, 0, BLOCK).unwrap();
    tower.flush(&volume).unwrap();
    tower.executor.idle();
    let mut punched = tower.disk.journal();
    punched.retain(|record| record.operation == Operation::Punch);
    assert_eq!(punched.len(), 1, "{punched:?}");
    assert!(belongs(&punched[0], &tower.stack(id)[0].to_string()));
    assert_eq!(punched[0].offset, MIB);
    let found = in_snapshot(&mut tower, &volume, &sealed, 0);
    assert_eq!(found, block(1));
}

#[test]
fn a_new_top_of_another_volume_or_size_or_parent_is_refused_and_nothing_is_cut() {
    let (mut tower, id, volume) = tower(1);
    let other = tower.volume(SIZE);
    let old = tower.stack(id)[0];
    for (owner, parent, size) in [
        (other, Some(old), SIZE),
        (id, None, SIZE),
        (id, Some(tower.stack(other)[0]), SIZE),
        (id, Some(old), SIZE + MIB),
    ] {
        let layer = tower.layer(owner, parent, size, key(0)).unwrap();
        let parts = tower.parts(layer, sealvol_store::Access::Writable);
        let cut = Arc::clone(&volume);
        let snapshot = tower
            .executor
            .run(async move { cut.snapshot(parts.await?).await.map(|_| ()) });
        assert!(matches!(snapshot, Err(VolumeError::BrokenStack { .. })));
        assert_eq!(volume.layers().len(), 1);
        tower.write(&volume, MIB, &block(2)).unwrap();
        tower.flush(&volume).unwrap();
    }
}

#[test]
fn a_clone_under_a_new_key_goes_its_own_way() {
    let (mut tower, id, volume) = tower(1);
    tower.write(&volume, MIB, &block(2)).unwrap();
    tower.snapshot(&volume, key(1)).unwrap();
    let clone = tower.clone_of(id, 1, key(2)).unwrap();
    tower.close(volume).unwrap();
    let volume = tower.open(id).unwrap();
    let copy = tower.open(clone).unwrap();
    tower.write(&volume, 0, &block(3)).unwrap();
    tower.write(&copy, 0, &block(4)).unwrap();
    tower.write(&copy, MIB + 10, &[9; 5]).unwrap();
    assert_eq!(tower.read(&volume, 0, 4096).unwrap(), block(3));
    assert_eq!(tower.read(&copy, 0, 4096).unwrap(), block(4));
    assert_eq!(tower.read(&volume, MIB, 4096).unwrap(), block(2));
    assert_eq!(
        tower.read(&copy, MIB + 9, 7).unwrap(),
        [2, 9, 9, 9, 9, 9, 2]
    );
    let grown = Arc::clone(&copy);
    tower
        .executor
        .run(async move { grown.grow(2 * SIZE).await })
        .unwrap();
    tower.snapshot(&copy, key(2)).unwrap();
    for volume in [volume, copy] {
        tower.close(volume).unwrap();
    }
    tower.restart();
    let copy = tower.open(clone).unwrap();
    assert_eq!(copy.layers().len(), 3);
    assert_eq!(tower.read(&copy, 0, 4096).unwrap(), block(4));
    assert_eq!(tower.read(&copy, 2 * SIZE - 9, 9).unwrap(), [0; 9]);
}

/// Opens after whatever came: each of these blocks is filled with one of these, and all goes on.
fn check_goes_on(tower: &mut Tower, id: VolumeId, expected: &[(u64, &[u8])]) {
    for _ in 0..2 {
        let volume = tower.open(id).unwrap();
        for &(offset, fills) in expected {
            let found = tower.read(&volume, offset, 4096).unwrap();
            let fits = fills.iter().any(|&fill| found == block(fill));
            assert!(fits, "{:?}… at {offset}, not {fills:?}", &found[..9]);
        }
        tower.write(&volume, 9 * MIB, &block(99)).unwrap();
        tower.snapshot(&volume, key(0)).unwrap();
        assert_eq!(tower.read(&volume, 9 * MIB, 4096).unwrap(), block(99));
        tower.close(volume).unwrap();
        tower.restart();
    }
}

#[test]
fn a_snapshot_can_be_cut_anywhere() {
    let mut changes = 0;
    for nth in 1.. {
        let mut cut = false;
        for seed in 0..6 {
            let (mut tower, id, volume) = tower(seed + nth * 1000);
            tower.write(&volume, MIB, &block(2)).unwrap();
            tower.write(&volume, 70 * MIB, &block(3)).unwrap();
            tower.flush(&volume).unwrap();
            tower.write(&volume, 70 * MIB + BLOCK, &block(4)).unwrap();
            tower.disk.cut_power_at(nth);
            let mut expected = vec![(0, &[1][..]), (MIB, &[2, 5]), (70 * MIB, &[3])];
            if tower.snapshot(&volume, key(1)).is_ok() && tower.disk.is_powered() {
                // Everything that was answered before is durable in it.
                expected.push((70 * MIB + BLOCK, &[4]));
                tower.write(&volume, MIB, &block(5)).ok();
                if tower.flush(&volume).is_ok() && tower.disk.is_powered() {
                    expected[1] = (MIB, &[5]);
                }
            }
            cut |= !tower.disk.is_powered();
            drop(volume);
            tower.restart();
            check_goes_on(&mut tower, id, &expected);
        }
        if !cut {
            break;
        }
        changes = nth;
    }
    assert!(changes >= 20, "{changes}");
}

#[test]
fn a_snapshot_that_is_killed_anywhere_loses_nothing_that_was_answered() {
    for seed in seeds(6) {
        for steps in 0.. {
            let (mut tower, id, volume) = tower(seed);
            tower.close(volume).unwrap();
            // So that a kill can come between any two operations of either layer.
            tower.most = 2;
            let volume = tower.open(id).unwrap();
            tower.write(&volume, MIB, &block(2)).unwrap();
            tower.trim(&volume, 0, BLOCK).unwrap();
            let snapshot = tower.start_snapshot(&volume, key(1)).unwrap();
            tower.executor.steps(steps);
            let done = snapshot.is_done();
            // Into whatever is the top by now; or killed at just this step.
            let later = seed % 2 == 0;
            if later {
                tower.write(&volume, 2 * MIB, &block(3)).unwrap();
                tower.trim(&volume, MIB, BLOCK).unwrap();
                tower.write(&volume, 3 * MIB + 5, &[4; 10]).unwrap();
            }
            drop((snapshot, volume));
            tower.kill();
            let volume = tower.open(id).unwrap();
            assert_eq!(volume.layers().len(), 2);
            let expected = if later {
                [(0, 0), (MIB, 0), (2 * MIB, 3)]
            } else {
                [(0, 0), (MIB, 2), (2 * MIB, 0)]
            };
            for (offset, fill) in expected {
                let found = tower.read(&volume, offset, 4096).unwrap();
                assert_eq!(found, block(fill), "at {offset} after {steps}");
            }
            let found = tower.read(&volume, 3 * MIB + 4, 4).unwrap();
            assert_eq!(found, if later { [0, 4, 4, 4] } else { [0; 4] });
            if done {
                assert!(steps > 10, "a snapshot is more than {steps} steps");
                break;
            }
        }
    }
}

#[test]
fn an_end_of_a_snapshot_that_is_cut_itself_is_made_by_the_next_opening() {
    for nth in 1..=16 {
        for seed in 0..6 {
            let (mut tower, id, volume) = tower(seed + nth * 1000);
            let parts = tower.new_top(&volume, key(1)).unwrap();
            let old = tower.stack(id)[0].to_string();
            let sync = When::operation(Operation::Sync).file(&format!("{old}/data"));
            let gate = tower.disk.hold(sync, Hold::Before);
            let cut = Arc::clone(&volume);
            let snapshot = tower
                .executor
                .start(async move { cut.snapshot(parts.await?).await.map(|_| ()) });
            tower.executor.idle();
            assert_eq!(gate.held(), 1);
            tower.write(&volume, MIB, &block(7)).unwrap();
            drop((snapshot, volume));
            tower.kill();
            gate.release();
            tower.disk.cut_power_at(nth);
            drop(tower.open(id));
            tower.restart();
            check_goes_on(&mut tower, id, &[(0, &[1]), (MIB, &[0, 7])]);
        }
    }
}

#[test]
fn a_group_is_cut_at_one_moment() {
    for seed in seeds(20) {
        let mut tower = Tower::new(seed, UnitSize::B4096);
        tower.most = 3;
        let ids = [tower.volume(SIZE), tower.volume(SIZE), tower.volume(SIZE)];
        let volumes = ids.map(|id| tower.open(id).unwrap());
        // One write after the other, each begun when the one before was answered, from volume to volume.
        let writer = {
            let volumes = volumes.clone();
            tower.executor.start(async move {
                for number in 1..=60_u8 {
                    let volume = &volumes[usize::from(number) % 3];
                    let offset = u64::from(number) * BLOCK;
                    let write = volume.prepare_write(offset, &block(number)).unwrap();
                    write.run(number % 7 == 0).await.unwrap();
                }
            })
        };
        tower.executor.steps(10 * seed);
        let mut cuts = Vec::new();
        for volume in &volumes {
            let parts = tower.new_top(volume, key(1)).unwrap();
            cuts.push((Arc::clone(volume), parts));
        }
        let snapshot = tower.executor.start(async move {
            let mut ready = Vec::new();
            for (volume, parts) in cuts {
                ready.push((volume, parts.await?));
            }
            snapshot_all(ready).await
        });
        let sealed = tower.executor.finish(&snapshot).unwrap();
        tower.executor.finish(&writer);
        let mut held = Vec::new();
        for number in 1..=60_u8 {
            let at = usize::from(number) % 3;
            let offset = u64::from(number) * BLOCK;
            let found = in_snapshot(&mut tower, &volumes[at], &sealed[at], offset);
            held.push(found == block(number));
        }
        let first_out = held.iter().position(|held| !held).unwrap_or(60);
        assert!(
            held[first_out..].iter().all(|held| !held),
            "write {} is in, an earlier one is not: {held:?}",
            first_out + 1
        );
    }
}
