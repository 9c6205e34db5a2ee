//! Merging down: what a child holds goes into the layer below it, which takes its place. What is read never changes, whoever reads,
//! whatever fails meanwhile, and whatever superblocks still say.

use std::sync::Arc;

use sealvol_crypto::UnitSize;
use sealvol_store::Operation;
use sealvol_store::fault::{Failure, Fault, Hold, Outcome, When};
use sealvol_volume::{BLOCK, LayerId, Merge, Sides, Unpaced, Volume, VolumeError, VolumeId};

use crate::merge::{MIB, SIZE, block, check, data_of, decides, field, four_layers, snapshot_of};
use crate::rig::{Disk, Tower, key};

/// The parent that a layer's first superblock slot names, in part.
fn named_parent(tower: &mut Tower, layer: LayerId) -> [u8; 8] {
    field(tower, layer, 48).to_le_bytes()
}

fn start_of(layer: LayerId) -> [u8; 8] {
    layer.0[..8].try_into().unwrap()
}

/// Everybody reads what they read before the layer above `stack[0]` went down into it.
pub(crate) fn check_all(tower: &mut Tower, volume: &Arc<Volume<Disk>>, stack: &[LayerId]) {
    check(tower, volume, 3);
    // The child's snapshot is the layer that took its place.
    for (layer, at) in [(stack[0], 1), (stack[2], 2)] {
        let snapshot = snapshot_of(tower, volume, layer);
        check(tower, &snapshot, at);
    }
}

fn ids(volume: &Arc<Volume<Disk>>) -> Vec<LayerId> {
    volume
        .layers()
        .iter()
        .rev()
        .map(|layer| layer.id())
        .collect()
}

/// After a power cut.
fn reopened(tower: &mut Tower, id: VolumeId, volume: Arc<Volume<Disk>>) -> Arc<Volume<Disk>> {
    drop(volume);
    tower.restart();
    tower.open(id).unwrap()
}

fn without(stack: &[LayerId], at: usize) -> Vec<LayerId> {
    let mut left = stack.to_vec();
    left.remove(at);
    left
}

#[test]
fn what_the_child_holds_goes_down_and_everybody_reads_what_they_read() {
    for sector_size in [UnitSize::B512, UnitSize::B4096] {
        let (mut tower, id, volume) = four_layers(1, sector_size);
        let stack = tower.stack(id).to_vec();
        tower.merge_down(&volume, stack[0]).unwrap();
        assert_eq!(ids(&volume), without(&stack, 1));
        assert_eq!(tower.stack(id), without(&stack, 1));
        check_all(&mut tower, &volume, &stack);
        tower.write(&volume, 8 * BLOCK + 9, &[7; 9]).unwrap();
        tower.close(volume).unwrap();
        tower.restart();
        let volume = tower.open(id).unwrap();
        check_all(&mut tower, &volume, &stack);
        assert_eq!(tower.read(&volume, 8 * BLOCK + 8, 2).unwrap(), [0, 7]);
        // And what took its place goes up as any other.
        tower.merge(&volume, stack[0]).unwrap();
        check(&mut tower, &volume, 3);
        tower.close(volume).unwrap();
        tower.restart();
        let volume = tower.open(id).unwrap();
        assert_eq!(ids(&volume), [stack[2], stack[3]]);
        check(&mut tower, &volume, 3);
    }
}

#[test]
fn the_sides_of_a_merge_are_what_each_direction_moves() {
    let (mut tower, id, volume) = four_layers(1, UnitSize::B4096);
    let stack = tower.stack(id).to_vec();
    let sides = |tower: &mut Tower, dying| {
        let volume = Arc::clone(&volume);
        tower
            .executor
            .run(async move { Merge::sides(&volume, dying).await })
    };
    // Of the lowest: blocks 0, 3 and that at 120 MiB are only there, 1, 5, 6, at 70 MiB and the last one in the second.
    let found = sides(&mut tower, stack[0]).unwrap();
    let expected = Sides {
        up: 3 * BLOCK,
        down: 5 * BLOCK,
        fresh: 2 * BLOCK,
    };
    assert_eq!(found, expected);
    let top = sides(&mut tower, stack[3]);
    assert!(matches!(top, Err(VolumeError::NotNearest { .. })));
}

#[test]
fn what_the_child_says_and_no_other_block_is_written() {
    let (mut tower, id, volume) = four_layers(1, UnitSize::B4096);
    let stack = tower.stack(id).to_vec();
    tower.flush(&volume).unwrap();
    tower.disk.forget_journal();
    tower.merge_down(&volume, stack[0]).unwrap();
    let data = format!("{}/data", stack[0]);
    let mut written: Vec<u64> = Vec::new();
    for record in tower.disk.journal() {
        let name = record.path.to_string_lossy().into_owned();
        if record.operation == Operation::Write && record.outcome == Outcome::Done {
            assert!(!name.ends_with("/data") || name.ends_with(&data), "{name}");
            if name.ends_with(&data) {
                let blocks = record.offset..record.offset + record.len;
                written.extend(blocks.step_by(4096));
            }
        }
    }
    written.sort_unstable();
    let expected = [BLOCK, 5 * BLOCK, 6 * BLOCK, 70 * MIB, SIZE - BLOCK];
    assert_eq!(written, expected);
}

#[test]
fn clones_and_snapshots_go_on_while_what_they_stand_on_goes_down() {
    let (mut tower, id, volume) = four_layers(1, UnitSize::B4096);
    let stack = tower.stack(id).to_vec();
    tower.close(volume).unwrap();
    let volume = tower.open(id).unwrap();
    let clones = [tower.clone_of(id, 2, key(7)), tower.clone_of(id, 2, key(8))];
    let [open, closed] = clones.map(Result::unwrap);
    let copy = tower.open(open).unwrap();
    let snapshot = snapshot_of(&mut tower, &volume, stack[2]);
    let itself = snapshot_of(&mut tower, &volume, stack[1]);
    tower.write(&copy, 9 * BLOCK, &block(50)).unwrap();
    let gate = tower
        .disk
        .hold(data_of(stack[1], Operation::Read).nth(2), Hold::Before);
    let merge = tower.start_merge_down(&volume, stack[0]);
    tower.executor.idle();
    assert_eq!(gate.held(), 1, "in the middle of it");
    check(&mut tower, &copy, 1);
    tower.write(&copy, 10 * BLOCK + 7, &[51]).unwrap();
    gate.release();
    let merge = tower.executor.finish(&merge).unwrap();
    // Those that did not hear of it yet read what they read before.
    let all = [(&copy, 1), (&itself, 1), (&snapshot, 2), (&volume, 3)];
    for (seen, at) in all {
        check(&mut tower, seen, at);
    }
    tower.merged_down(&all.map(|(seen, _)| seen), merge);
    for (seen, at) in all {
        check(&mut tower, seen, at);
    }
    assert_eq!(ids(&itself), [stack[0]]);
    let tops = [open, closed].map(|clone| tower.stack(clone)[1]);
    assert_eq!(tower.stack(closed), [stack[0], tops[1]]);
    tower.close(copy).unwrap();
    tower.close(volume).unwrap();
    drop((snapshot, itself));
    tower.restart();
    // The superblock that was written names what it stands on by now; the others name what is gone.
    assert_eq!(named_parent(&mut tower, tops[0]), start_of(stack[0]));
    assert_eq!(named_parent(&mut tower, stack[2]), start_of(stack[1]));
    assert_eq!(named_parent(&mut tower, tops[1]), start_of(stack[1]));
    let copy = tower.open(open).unwrap();
    check(&mut tower, &copy, 1);
    assert_eq!(tower.read(&copy, 9 * BLOCK, 4096).unwrap(), block(50));
    // One that was never opened.
    let other = tower.open(closed).unwrap();
    check(&mut tower, &other, 1);
    let volume = tower.open(id).unwrap();
    check(&mut tower, &volume, 3);
    drop((copy, other, volume));
    tower.restart();
    assert_eq!(named_parent(&mut tower, tops[1]), start_of(stack[0]));
}

#[test]
fn a_superblock_may_name_what_was_handed_down_and_nothing_else() {
    let (mut tower, id, volume) = four_layers(1, UnitSize::B4096);
    let stack = tower.stack(id).to_vec();
    tower.merge_down(&volume, stack[0]).unwrap();
    tower.close(volume).unwrap();
    tower.restart();
    let pins = tower.registry(stack[2]).pins();
    assert_eq!(pins.former_parents, [stack[1]]);
    for former in [vec![], vec![LayerId::random()]] {
        tower
            .registry(stack[2])
            .change_pins(|pins| pins.former_parents = former);
        let refused = tower.open(id).map(drop);
        assert!(
            matches!(
                refused,
                Err(VolumeError::Mismatch {
                    field: "parent",
                    ..
                })
            ),
            "{refused:?}"
        );
    }
    tower
        .registry(stack[2])
        .change_pins(|pins| pins.former_parents = vec![LayerId::random(), stack[1]]);
    let volume = tower.open(id).unwrap();
    check_all(&mut tower, &volume, &stack);
}

#[test]
fn a_volume_leaves_the_child_out_only_once_the_registry_knows() {
    let (mut tower, id, volume) = four_layers(1, UnitSize::B4096);
    let stack = tower.stack(id).to_vec();
    let merge = tower.start_merge_down(&volume, stack[0]);
    let merge = tower.executor.finish(&merge).unwrap();
    let (left, gone) = (Arc::clone(&volume), stack[1]);
    let left = async move { left.leave_out(gone).await };
    let refused = tower.executor.run(left);
    assert!(matches!(refused, Err(VolumeError::NotNearest { .. })));
    assert_eq!(volume.layers().len(), 4);
    tower.merged_down(&[&volume], merge);
    assert_eq!(volume.layers().len(), 3);
    check_all(&mut tower, &volume, &stack);
}

#[test]
fn a_snapshot_is_made_while_a_layer_that_was_handed_down_is_not_left_out_yet() {
    let (mut tower, id, volume) = four_layers(1, UnitSize::B4096);
    let stack = tower.stack(id).to_vec();
    let merge = tower.start_merge_down(&volume, stack[0]);
    let merge = tower.executor.finish(&merge).unwrap();
    let gone = tower.hand_down(stack[0]);
    tower.snapshot(&volume, key(2)).unwrap();
    tower.leave_out_handed_down(&[], &merge, gone);
    tower.snapshot(&volume, key(2)).unwrap();
    tower.write(&volume, 9 * BLOCK, &block(70)).unwrap();
    check(&mut tower, &volume, 3);
    tower.leave_out_handed_down(&[&volume], &merge, gone);
    drop(merge);
    tower.remove(&[gone]);
    tower.flush(&volume).unwrap();
    drop(volume);
    tower.restart();
    let volume = tower.open(id).unwrap();
    assert_eq!(volume.layers().len(), 5);
    check_all(&mut tower, &volume, &stack);
    assert_eq!(tower.read(&volume, 9 * BLOCK, 4096).unwrap(), block(70));
}

#[test]
fn a_layer_is_left_out_while_the_superblock_above_it_is_being_written() {
    let mut tower = Tower::new(6, UnitSize::B4096);
    let id = tower.volume(40 << 30);
    let volume = tower.open(id).unwrap();
    for (at, fill) in [(0, 1), (BLOCK, 2)] {
        tower.write(&volume, at, &block(fill)).unwrap();
        tower.snapshot(&volume, key(0)).unwrap();
    }
    let [lowest, gone, top] = tower.stack(id).try_into().unwrap();
    let merge = tower.start_merge_down(&volume, lowest);
    let merge = tower.executor.finish(&merge).unwrap();
    assert_eq!(tower.hand_down(lowest), gone);
    // A new directory page is to be in it.
    let superblock = When::operation(Operation::Write).file(&format!("{top}/meta"));
    let gate = tower
        .disk
        .hold(superblock.range(0..512 << 10), Hold::Before);
    tower.write(&volume, 20 << 30, &block(3)).unwrap();
    let flush = tower.start_flush(&volume);
    tower.executor.idle();
    assert_eq!(gate.held(), 1);
    tower.leave_out_handed_down(&[&volume], &merge, gone);
    gate.release();
    tower.executor.finish(&flush).unwrap();
    drop(merge);
    tower.remove(&[gone]);
    tower.snapshot(&volume, key(0)).unwrap();
    let mut volume = volume;
    for _ in 0..2 {
        for (at, fill) in [(0, 1), (BLOCK, 2), (20 << 30, 3)] {
            assert_eq!(tower.read(&volume, at, 4096).unwrap(), block(fill), "{at}");
        }
        volume = reopened(&mut tower, id, volume);
    }
}

#[test]
fn what_lies_on_a_layer_goes_down_again_and_again() {
    let mut tower = Tower::new(4, UnitSize::B4096);
    let id = tower.volume(SIZE);
    let volume = tower.open(id).unwrap();
    let mut content = [0; 24];
    for round in 0..6u8 {
        for at in 0..4 {
            let at = usize::from(round) * 3 + at;
            content[at] = round * 20 + 1;
            tower
                .write(&volume, at as u64 * BLOCK, &block(content[at]))
                .unwrap();
        }
        tower.snapshot(&volume, key(0)).unwrap();
    }
    let lowest = tower.stack(id)[0];
    let top = *tower.stack(id).last().unwrap();
    for left in (2..7).rev() {
        tower.merge_down(&volume, lowest).unwrap();
        assert_eq!(volume.layers().len(), left);
    }
    // The top's superblock names a layer that went down last.
    assert_eq!(tower.registry(top).pins().former_parents.len(), 1);
    tower.flush(&volume).unwrap();
    let mut volume = volume;
    for _ in 0..2 {
        for (at, &fill) in content.iter().enumerate() {
            let found = tower.read(&volume, at as u64 * BLOCK, 4096).unwrap();
            assert!(found == block(fill), "{at}");
        }
        volume = reopened(&mut tower, id, volume);
    }
}

#[test]
fn it_is_not_merged_down_under_another_key_nor_before_it_is_sealed() {
    let (mut tower, id, volume) = four_layers(1, UnitSize::B4096);
    let stack = tower.stack(id).to_vec();
    let begin = |tower: &mut Tower, dying| {
        let begun = tower.start_merge_down(&volume, dying);
        tower.executor.finish(&begun).map(drop)
    };
    let found = begin(&mut tower, stack[1]);
    assert!(matches!(found, Err(VolumeError::OtherDataKey { layer }) if layer == stack[2]));
    let found = begin(&mut tower, stack[2]);
    assert!(matches!(found, Err(VolumeError::NotSealed { layer }) if layer == stack[3]));
    for layer in [stack[3], LayerId::random()] {
        let found = begin(&mut tower, layer);
        assert!(matches!(found, Err(VolumeError::NotNearest { .. })));
    }
    check(&mut tower, &volume, 3);
}

#[test]
fn an_entry_comes_after_the_sync_of_what_it_names() {
    let (mut tower, id, volume) = four_layers(1, UnitSize::B4096);
    let stack = tower.stack(id).to_vec();
    let gate = tower
        .disk
        .hold(data_of(stack[0], Operation::Sync), Hold::Before);
    let merge = tower.start_merge_down(&volume, stack[0]);
    tower.executor.idle();
    assert_eq!(gate.held(), 1);
    let lowest = snapshot_of(&mut tower, &volume, stack[0]);
    assert_eq!(decides(&mut tower, &lowest, 5 * BLOCK), None);
    gate.release();
    let merge = tower.executor.finish(&merge).unwrap();
    assert_eq!(decides(&mut tower, &lowest, 5 * BLOCK), Some(stack[0]));
    tower.merged_down(&[&volume], merge);
    check_all(&mut tower, &volume, &stack);
}

#[test]
fn space_of_what_became_zero_is_freed_when_nobody_is_on_the_way_to_it() {
    let (mut tower, id, volume) = four_layers(1, UnitSize::B4096);
    let stack = tower.stack(id).to_vec();
    tower.flush(&volume).unwrap();
    tower.executor.idle();
    tower.disk.forget_journal();
    let merge = tower.start_merge_down(&volume, stack[0]);
    let merge = tower.executor.finish(&merge).unwrap();
    tower.executor.idle();
    let punched = |tower: &Tower| {
        let file = format!("{}/data", stack[0]);
        let journal = tower.disk.journal().into_iter();
        let punches = journal.filter(|record| record.operation == Operation::Punch);
        let of_layer = punches.filter(|record| record.path.ends_with(&file));
        of_layer
            .map(|record| (record.offset, record.len))
            .collect::<Vec<_>>()
    };
    assert_eq!(punched(&tower), Vec::<(u64, u64)>::new());
    let before = tower.disk.used();
    tower.merged_down(&[&volume], merge);
    let expected: Vec<(u64, u64)> = [2, 4].map(|at| (at * BLOCK, BLOCK)).into();
    assert_eq!(punched(&tower), expected);
    assert!(tower.disk.used() < before);
    check_all(&mut tower, &volume, &stack);
}

#[test]
fn a_trim_that_is_still_to_free_its_space_takes_nothing_of_what_goes_down() {
    let mut tower = Tower::new(3, UnitSize::B4096);
    let id = tower.volume(SIZE);
    let volume = tower.open(id).unwrap();
    tower.write(&volume, 0, &vec![1; 64 * 4096]).unwrap();
    tower.flush(&volume).unwrap();
    let lowest = tower.stack(id)[0];
    // A read that is under way keeps the space from being freed, and no snapshot from being made.
    let gate = tower
        .disk
        .hold(data_of(lowest, Operation::Read), Hold::Before);
    let reader = Arc::clone(&volume);
    let read = async move { reader.read(40 * BLOCK, 4096).await.map(drop) };
    let read = tower.executor.start(read);
    tower.executor.idle();
    assert_eq!(gate.held(), 1);
    tower.trim(&volume, 0, 32 * BLOCK).unwrap();
    tower.flush(&volume).unwrap();
    tower.snapshot(&volume, key(0)).unwrap();
    tower.write(&volume, 4 * BLOCK, &block(2)).unwrap();
    tower.snapshot(&volume, key(0)).unwrap();
    let merge = tower.start_merge_down(&volume, lowest);
    tower.executor.idle();
    gate.release();
    tower.executor.finish(&read).unwrap();
    let merge = tower.executor.finish(&merge).unwrap();
    tower.executor.idle();
    tower.merged_down(&[&volume], merge);
    assert_eq!(tower.read(&volume, 4 * BLOCK, 4096).unwrap(), block(2));
    assert_eq!(tower.read(&volume, 3 * BLOCK, 4096).unwrap(), block(0));
}

#[test]
fn a_layer_takes_the_size_of_what_goes_down_into_it() {
    let mut tower = Tower::new(3, UnitSize::B4096);
    let id = tower.volume(SIZE);
    let volume = tower.open(id).unwrap();
    tower.write(&volume, SIZE - BLOCK, &block(1)).unwrap();
    let lowest = tower.snapshot(&volume, key(0)).unwrap().id();
    let grown = Arc::clone(&volume);
    tower
        .executor
        .run(async move { grown.grow(20 << 30).await })
        .unwrap();
    for at in [0, 18 << 30] {
        tower.write(&volume, at, &block(2)).unwrap();
    }
    tower.snapshot(&volume, key(0)).unwrap();
    tower.merge_down(&volume, lowest).unwrap();
    tower.flush(&volume).unwrap();
    let mut volume = volume;
    for _ in 0..2 {
        let snapshot = snapshot_of(&mut tower, &volume, lowest);
        assert_eq!(snapshot.size(), 20 << 30);
        for seen in [&volume, &snapshot] {
            for (at, fill) in [(0, 2), (SIZE - BLOCK, 1), (SIZE, 0), (18 << 30, 2)] {
                assert_eq!(tower.read(seen, at, 4096).unwrap(), block(fill), "{at}");
            }
        }
        drop(snapshot);
        volume = reopened(&mut tower, id, volume);
    }
}

#[test]
fn what_fails_in_the_layer_that_stays_is_nobodys_loss() {
    let faults: [(&str, Operation); 4] = [
        ("data", Operation::Write),
        ("data", Operation::Sync),
        ("meta", Operation::Write),
        ("meta", Operation::Sync),
    ];
    for (file, operation) in faults {
        for nth in 1..9 {
            let (mut tower, id, volume) = four_layers(nth, UnitSize::B4096);
            let stack = tower.stack(id).to_vec();
            let when = When::operation(operation).file(&format!("{}/{file}", stack[0]));
            tower.disk.inject(when.nth(nth), Fault::Fail(Failure::Io));
            let merge = tower.start_merge_down(&volume, stack[0]);
            let ended = tower.executor.finish(&merge).map(drop);
            check(&mut tower, &volume, 3);
            let snapshot = snapshot_of(&mut tower, &volume, stack[1]);
            check(&mut tower, &snapshot, 1);
            assert_eq!(volume.failed(), None);
            if ended.is_err() {
                assert!(matches!(
                    ended,
                    Err(VolumeError::MergeStopped(_) | VolumeError::Store(_))
                ));
                let again = tower.start_merge_down(&volume, stack[0]);
                let again = tower.executor.finish(&again).map(drop);
                let stopped = matches!(ended, Err(VolumeError::MergeStopped(_)));
                assert!(again.is_ok() != stopped, "{ended:?}, then {again:?}");
                check(&mut tower, &volume, 3);
            }
            for layer in &stack {
                assert!(tower.registry(*layer).losses().is_empty());
            }
            tower.write(&volume, 9 * BLOCK, &block(80)).unwrap();
            tower.flush(&volume).unwrap();
            drop((volume, snapshot));
            tower.restart();
            let volume = tower.open(id).unwrap();
            check(&mut tower, &volume, 3);
            tower.merge_down(&volume, stack[0]).unwrap();
            check_all(&mut tower, &volume, &stack);
            assert_eq!(tower.read(&volume, 9 * BLOCK, 4096).unwrap(), block(80));
        }
    }
}

#[test]
fn a_disk_that_fills_up_in_the_middle_loses_nothing() {
    for room in (0..40).map(|pages| pages * 4096) {
        let (mut tower, id, volume) = four_layers(room + 1, UnitSize::B4096);
        let stack = tower.stack(id).to_vec();
        tower.flush(&volume).unwrap();
        tower.executor.idle();
        tower.disk.set_capacity(Some(tower.disk.used() + room));
        let merge = tower.start_merge_down(&volume, stack[0]);
        let ended = tower.executor.finish(&merge);
        let fits = ended.is_ok();
        assert!(
            fits || matches!(ended, Err(VolumeError::NoSpace)),
            "{room}: {:?}",
            ended.err()
        );
        drop(ended);
        assert_eq!(volume.failed(), None);
        check(&mut tower, &volume, 3);
        let snapshot = snapshot_of(&mut tower, &volume, stack[1]);
        check(&mut tower, &snapshot, 1);
        drop(snapshot);
        if room % 8192 == 0 {
            drop(volume);
            tower.restart();
        } else {
            tower.close(volume).unwrap();
        }
        tower.disk.set_capacity(None);
        let volume = tower.open(id).unwrap();
        check(&mut tower, &volume, 3);
        tower.merge_down(&volume, stack[0]).unwrap();
        check_all(&mut tower, &volume, &stack);
        for layer in &stack {
            assert!(tower.registry(*layer).losses().is_empty());
        }
    }
}

/// Begins a merge down, makes one step of it and leaves it, paused or not. Where the next one would go on.
fn begun(
    tower: &mut Tower,
    volume: &Arc<Volume<Disk>>,
    dying: LayerId,
    paused: bool,
) -> (u64, u64) {
    let volume = Arc::clone(volume);
    tower.executor.run(async move {
        let merge = Merge::begin_down(&volume, dying).await.unwrap();
        let from = merge.from();
        merge.step(from, 1, &Unpaced).await.unwrap();
        let to = merge.from();
        if paused {
            merge.pause().await.unwrap();
        }
        (from, to)
    })
}

#[test]
fn it_goes_on_where_it_was_as_long_as_the_layer_is_open_and_an_opening_begins_again() {
    for paused in [true, false] {
        let (mut tower, id, volume) = four_layers(1, UnitSize::B4096);
        let stack = tower.stack(id).to_vec();
        let clean = 1 << 33;
        let (from, first) = begun(&mut tower, &volume, stack[0], paused);
        assert!(from == 0 && first > 0 && first < SIZE);
        let (from, second) = begun(&mut tower, &volume, stack[0], paused);
        assert!(from == first && second > first);
        check(&mut tower, &volume, 3);
        tower.flush(&volume).unwrap();
        drop(volume);
        tower.restart();
        let flags = field(&mut tower, stack[0], 8) & clean;
        assert_eq!(flags, if paused { clean } else { 0 });
        let volume = tower.open(id).unwrap();
        check(&mut tower, &volume, 3);
        assert_eq!(begun(&mut tower, &volume, stack[0], paused), (0, first));
        tower.merge_down(&volume, stack[0]).unwrap();
        check_all(&mut tower, &volume, &stack);
        drop(volume);
        tower.restart();
        assert_eq!(field(&mut tower, stack[0], 8) & clean, clean);
        assert_eq!(field(&mut tower, stack[0], 88), 1, "content generation");
    }
}

#[test]
fn nothing_is_given_up_while_a_part_was_not_brought_down() {
    let (mut tower, id, volume) = four_layers(1, UnitSize::B4096);
    let stack = tower.stack(id).to_vec();
    let (merged, dying) = (Arc::clone(&volume), stack[0]);
    let (ended, reached) = tower.executor.run(async move {
        let merge = Merge::begin_down(&merged, dying).await.unwrap();
        merge.step(0, 1, &Unpaced).await.unwrap();
        // A part that follows none counts for nothing.
        merge.step(100 * MIB, u64::MAX, &Unpaced).await.unwrap();
        (merge.finish().await, merge.from())
    });
    assert!(matches!(ended, Err(VolumeError::LeftBelow { offset }) if offset == reached));
    assert!(reached < 70 * MIB);
    check(&mut tower, &volume, 3);
    tower.merge_down(&volume, stack[0]).unwrap();
    check_all(&mut tower, &volume, &stack);
}

#[test]
fn what_was_brought_down_of_a_child_that_changed_since_is_brought_again() {
    let mut tower = Tower::new(3, UnitSize::B4096);
    let id = tower.volume(SIZE);
    let volume = tower.open(id).unwrap();
    for fill in 1..4 {
        for at in [0, 80 * MIB] {
            tower.write(&volume, at, &block(fill)).unwrap();
        }
        tower.snapshot(&volume, key(0)).unwrap();
    }
    let stack = tower.stack(id).to_vec();
    begun(&mut tower, &volume, stack[0], true);
    // What lies on the child goes down into it meanwhile: it says 3 where it said 2.
    tower.merge_down(&volume, stack[1]).unwrap();
    tower.merge_down(&volume, stack[0]).unwrap();
    assert_eq!(tower.stack(id), [stack[0], stack[3]]);
    let mut volume = volume;
    for _ in 0..2 {
        for at in [0, 80 * MIB] {
            assert_eq!(tower.read(&volume, at, 4096).unwrap(), block(3));
        }
        volume = reopened(&mut tower, id, volume);
    }
}

#[test]
fn what_was_begun_down_may_end_up() {
    for paused in [true, false] {
        for cut in [true, false] {
            let (mut tower, id, mut volume) = four_layers(1, UnitSize::B4096);
            let stack = tower.stack(id).to_vec();
            tower.flush(&volume).unwrap();
            begun(&mut tower, &volume, stack[0], paused);
            if cut {
                drop(volume);
                tower.restart();
                volume = tower.open(id).unwrap();
            }
            tower.merge(&volume, stack[0]).unwrap();
            check(&mut tower, &volume, 3);
            let snapshot = snapshot_of(&mut tower, &volume, stack[1]);
            check(&mut tower, &snapshot, 1);
        }
    }
}
