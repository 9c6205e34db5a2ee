//! Merging: what is read never changes, whoever reads, whatever is cut, killed or fails meanwhile.

use std::sync::Arc;

use sealvol_crypto::UnitSize;
use sealvol_store::fault::{Failure, Fault, Hold, When};
use sealvol_store::{Access as FileAccess, Directory as _, IoBuf, Operation, Store as _};
use sealvol_volume::{
    BLOCK, BlockState, LayerId, META_FILE, Merge, Unpaced, Volume, VolumeError, VolumeId, view,
};

use crate::rig::{Disk, Handle, Tower, key, seeds};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const SIZE: u64 = 200 * MIB;

pub(crate) fn block(fill: u8) -> Vec<u8> {
    vec![fill; 4096]
}

/// What `four_layers` reads as, by layer from the lowest: byte offset, and the fill seen from each of the four.
const CONTENT: [(u64, [u8; 4]); 11] = [
    (0, [1, 1, 1, 1]),
    (BLOCK, [2, 12, 12, 12]),
    (2 * BLOCK, [3, 0, 0, 0]),
    (3 * BLOCK, [4, 4, 24, 24]),
    (4 * BLOCK, [5, 0, 25, 25]),
    (5 * BLOCK, [0, 16, 0, 0]),
    (6 * BLOCK, [7, 17, 17, 37]),
    (70 * MIB, [0, 18, 18, 18]),
    (100 * MIB, [0, 0, 21, 21]),
    (120 * MIB, [10, 10, 10, 10]),
    (SIZE - BLOCK, [9, 19, 19, 0]),
];

/// A volume of three sealed layers and a top: the lowest two under one data key, the others under others.
pub(crate) fn four_layers(
    seed: u64,
    sector_size: UnitSize,
) -> (Tower, VolumeId, Arc<Volume<Disk>>) {
    let mut tower = Tower::new(seed, sector_size);
    let id = tower.volume(SIZE);
    let volume = tower.open(id).unwrap();
    for layer in 0..4 {
        for (offset, fills) in CONTENT {
            let before = if layer == 0 { 0 } else { fills[layer - 1] };
            match fills[layer] {
                same if same == before => {}
                0 => tower.trim(&volume, offset, BLOCK).unwrap(),
                fill => tower.write(&volume, offset, &block(fill)).unwrap(),
            }
        }
        if layer < 3 {
            let under = [0, 1, 2][layer];
            tower.snapshot(&volume, key(under)).unwrap();
        }
    }
    (tower, id, volume)
}

/// The content as it is seen from the layer that was the `at`th, from the lowest.
pub(crate) fn check(tower: &mut Tower, volume: &Arc<Volume<Disk>>, at: usize) {
    for (offset, fills) in CONTENT {
        let found = tower.read(volume, offset, 4096).unwrap();
        assert!(found == block(fills[at]), "{} at {offset}", found[0]);
    }
}

/// The stack from one of a volume's layers down, as a snapshot shows it.
pub(crate) fn snapshot_of(
    tower: &mut Tower,
    volume: &Arc<Volume<Disk>>,
    layer: LayerId,
) -> Arc<Volume<Disk>> {
    let mut layers = volume.layers();
    layers.retain({
        let mut seen = false;
        move |found| {
            seen |= found.id() == layer;
            seen
        }
    });
    layers.reverse();
    tower
        .executor
        .run(async move { view(layers).await })
        .unwrap()
}

/// The layer that decides a block.
pub(crate) fn decides(
    tower: &mut Tower,
    volume: &Arc<Volume<Disk>>,
    offset: u64,
) -> Option<LayerId> {
    let volume = Arc::clone(volume);
    let map = async move { volume.map(offset, 1).await.unwrap()[0] };
    tower.executor.run(map).layer
}

/// Eight bytes of a layer's first superblock slot.
pub(crate) fn field(tower: &mut Tower, layer: LayerId, at: u64) -> u64 {
    let directory = tower.disk.directory(&layer.to_string());
    tower.executor.run(async move {
        let meta = directory
            .open(META_FILE, FileAccess::ReadOnly)
            .await
            .unwrap();
        let (bytes, result) = meta.read_at(IoBuf::zeroed(8), at).await;
        result.unwrap();
        u64::from_le_bytes(bytes[..].try_into().unwrap())
    })
}

pub(crate) fn data_of(layer: LayerId, operation: Operation) -> When {
    When::operation(operation).file(&format!("{layer}/data"))
}

#[test]
fn a_layer_is_merged_with_the_top_of_a_volume_in_use_and_with_a_sealed_one() {
    for sector_size in [UnitSize::B512, UnitSize::B4096] {
        for at in 0..3 {
            let (mut tower, id, volume) = four_layers(1, sector_size);
            let stack = tower.stack(id).to_vec();
            tower.merge(&volume, stack[at]).unwrap();
            assert_eq!(tower.stack(id).len(), 3);
            check(&mut tower, &volume, 3);
            for other in (0..3).filter(|&other| other != at) {
                let snapshot = snapshot_of(&mut tower, &volume, stack[other]);
                check(&mut tower, &snapshot, other);
            }
            tower.write(&volume, 8 * BLOCK + 9, &[7; 9]).unwrap();
            tower.close(volume).unwrap();
            tower.restart();
            let volume = tower.open(id).unwrap();
            assert_eq!(volume.layers().len(), 3);
            check(&mut tower, &volume, 3);
            assert_eq!(tower.read(&volume, 8 * BLOCK + 8, 2).unwrap(), [0, 7]);
            for other in (0..3).filter(|&other| other != at) {
                let snapshot = snapshot_of(&mut tower, &volume, stack[other]);
                check(&mut tower, &snapshot, other);
            }
        }
    }
}

#[test]
fn layers_are_merged_in_whatever_order_until_the_top_stands_alone() {
    for order in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        let (mut tower, id, mut volume) = four_layers(1, UnitSize::B4096);
        let stack = tower.stack(id).to_vec();
        for (number, at) in order.into_iter().enumerate() {
            tower.merge(&volume, stack[at]).unwrap();
            check(&mut tower, &volume, 3);
            for &other in &order[number + 1..] {
                let snapshot = snapshot_of(&mut tower, &volume, stack[other]);
                check(&mut tower, &snapshot, other);
            }
            if number == 1 {
                tower.close(volume).unwrap();
                tower.restart();
                volume = tower.open(id).unwrap();
            }
        }
        assert_eq!(volume.layers().len(), 1);
        tower.close(volume).unwrap();
        tower.restart();
        let volume = tower.open(id).unwrap();
        check(&mut tower, &volume, 3);
    }
}

#[test]
fn a_clone_and_a_snapshot_go_on_while_the_layer_below_theirs_is_merged() {
    let (mut tower, id, volume) = four_layers(1, UnitSize::B4096);
    let stack = tower.stack(id).to_vec();
    tower.close(volume).unwrap();
    // Opened again, so that the clone finds the layers that they share.
    let volume = tower.open(id).unwrap();
    let clone = tower.clone_of(id, 2, key(7)).unwrap();
    let copy = tower.open(clone).unwrap();
    let snapshot = snapshot_of(&mut tower, &volume, stack[1]);
    tower.write(&copy, 9 * BLOCK, &block(50)).unwrap();
    let gate = tower
        .disk
        .hold(data_of(stack[0], Operation::Read).nth(2), Hold::Before);
    let merge = tower.start_merge(&volume, stack[0]);
    tower.executor.idle();
    assert_eq!(gate.held(), 1, "in the middle of it");
    check(&mut tower, &copy, 1);
    tower.write(&copy, 10 * BLOCK + 7, &[51]).unwrap();
    gate.release();
    tower.executor.finish(&merge).unwrap();
    // Those that did not hear of it yet read what they read before.
    check(&mut tower, &copy, 1);
    check(&mut tower, &snapshot, 1);
    let gone = stack[0];
    for other in [&copy, &snapshot] {
        let other = Arc::clone(other);
        let left = async move { other.leave_out(gone).await.unwrap() };
        assert!(tower.executor.run(left));
    }
    tower.merged(&volume, stack[0]);
    check(&mut tower, &copy, 1);
    check(&mut tower, &snapshot, 1);
    assert_eq!(tower.stack(clone).len(), 2);
    tower.close(copy).unwrap();
    tower.close(volume).unwrap();
    drop(snapshot);
    tower.restart();
    let copy = tower.open(clone).unwrap();
    check(&mut tower, &copy, 1);
    assert_eq!(tower.read(&copy, 9 * BLOCK, 4096).unwrap(), block(50));
    let volume = tower.open(id).unwrap();
    check(&mut tower, &volume, 3);
}

#[test]
fn a_volume_leaves_out_only_what_is_merged() {
    let (mut tower, id, volume) = four_layers(1, UnitSize::B4096);
    let stack = tower.stack(id).to_vec();
    let leave_out = |tower: &mut Tower, layer| {
        let volume = Arc::clone(&volume);
        tower
            .executor
            .run(async move { volume.leave_out(layer).await })
    };
    for layer in &stack[..3] {
        let left = leave_out(&mut tower, *layer);
        assert!(matches!(left, Err(VolumeError::NotNearest { .. })));
    }
    assert!(!leave_out(&mut tower, LayerId::random()).unwrap());
    assert_eq!(volume.layers().len(), 4);
}

#[test]
fn a_block_that_is_zero_in_the_layer_that_goes_hides_what_lies_below_it() {
    for at in [1, 2] {
        let (mut tower, id, volume) = four_layers(1, UnitSize::B4096);
        let stack = tower.stack(id).to_vec();
        // Zero in the second layer over data, and in the third over data of the second.
        let offset = [0, 2 * BLOCK, 5 * BLOCK][at];
        assert_eq!(decides(&mut tower, &volume, offset), Some(stack[at]));
        tower.merge(&volume, stack[at]).unwrap();
        assert_eq!(decides(&mut tower, &volume, offset), Some(stack[at + 1]));
        check(&mut tower, &volume, 3);
    }
}

#[test]
fn nothing_is_given_up_while_something_is_left_to_copy() {
    for at in [1, 2] {
        let (mut tower, id, volume) = four_layers(1, UnitSize::B4096);
        let stack = tower.stack(id).to_vec();
        let (merged, dying) = (Arc::clone(&volume), stack[at]);
        let ended = tower.executor.run(async move {
            let merge = Merge::begin(&merged, dying).await.unwrap();
            merge.step(0, 1, &Unpaced).await.unwrap();
            assert!(merge.left().await.unwrap() > 0);
            merge.finish().await
        });
        let left = [0, 70 * MIB, 100 * MIB][at];
        assert!(
            matches!(ended, Err(VolumeError::LeftBelow { offset }) if offset == left),
            "{ended:?}"
        );
        assert_eq!(volume.layers().len(), 4);
        check(&mut tower, &volume, 3);
        tower.merge(&volume, stack[at]).unwrap();
        check(&mut tower, &volume, 3);
    }
}

#[test]
fn a_client_that_writes_or_trims_while_a_chunk_is_merged_has_its_way() {
    for hold in [Hold::Before, Hold::After] {
        let (mut tower, id, volume) = four_layers(1, UnitSize::B512);
        let stack = tower.stack(id).to_vec();
        let gate = tower.disk.hold(data_of(stack[2], Operation::Read), hold);
        let merge = tower.start_merge(&volume, stack[2]);
        tower.executor.idle();
        assert_eq!(gate.held(), 1);
        let part = tower.start_write(&volume, 3 * BLOCK + 512, &[60; 512], false);
        let trimmed = Arc::clone(&volume);
        let trim: Handle<Result<(), VolumeError>> = tower
            .executor
            .start(async move { trimmed.trim(4 * BLOCK, BLOCK, false).await });
        tower.executor.idle();
        assert!(!part.is_done() && !trim.is_done());
        gate.release();
        for done in [&part, &trim] {
            tower.executor.finish(done).unwrap();
        }
        tower.executor.finish(&merge).unwrap();
        tower.merged(&volume, stack[2]);
        tower.flush(&volume).unwrap();
        drop(volume);
        tower.restart();
        let volume = tower.open(id).unwrap();
        let mixed = [vec![24; 512], vec![60; 512], vec![24; 3072]].concat();
        assert_eq!(tower.read(&volume, 3 * BLOCK, 4096).unwrap(), mixed);
        assert_eq!(tower.read(&volume, 4 * BLOCK, 4096).unwrap(), block(0));
        assert_eq!(tower.read(&volume, 6 * BLOCK, 4096).unwrap(), block(37));
    }
}

#[test]
fn a_snapshot_in_the_middle_of_a_merge_ends_it_and_it_begins_anew() {
    for seed in seeds(10) {
        let (mut tower, id, volume) = four_layers(seed, UnitSize::B4096);
        let stack = tower.stack(id).to_vec();
        tower.most = 2;
        let merge = tower.start_merge(&volume, stack[2]);
        tower.executor.steps(5 * seed);
        tower.snapshot(&volume, key(2)).unwrap();
        tower.write(&volume, 9 * BLOCK, &block(70)).unwrap();
        match tower.executor.finish(&merge) {
            Ok(()) => tower.merged(&volume, stack[2]),
            Err(VolumeError::NotNearest { .. }) => tower.merge(&volume, stack[2]).unwrap(),
            Err(error) => panic!("{error}"),
        }
        check(&mut tower, &volume, 3);
        drop(volume);
        tower.restart();
        let volume = tower.open(id).unwrap();
        assert_eq!(volume.layers().len(), 4);
        check(&mut tower, &volume, 3);
        let snapshot = snapshot_of(&mut tower, &volume, stack[3]);
        check(&mut tower, &snapshot, 3);
    }
}

#[test]
fn a_snapshot_is_made_while_a_layer_that_was_merged_is_not_left_out_yet() {
    for dying in [0, 1] {
        let (mut tower, id, volume) = four_layers(1, UnitSize::B4096);
        let stack = tower.stack(id).to_vec();
        let merge = tower.start_merge(&volume, stack[dying]);
        tower.executor.finish(&merge).unwrap();
        tower.snapshot(&volume, key(2)).unwrap();
        tower.write(&volume, 9 * BLOCK, &block(70)).unwrap();
        tower.merged(&volume, stack[dying]);
        tower.flush(&volume).unwrap();
        assert_eq!(volume.layers().len(), 4);
        check(&mut tower, &volume, 3);
        let snapshot = snapshot_of(&mut tower, &volume, stack[3]);
        check(&mut tower, &snapshot, 3);
        drop((volume, snapshot));
        tower.restart();
        let volume = tower.open(id).unwrap();
        check(&mut tower, &volume, 3);
        assert_eq!(tower.read(&volume, 9 * BLOCK, 4096).unwrap(), block(70));
    }
}

#[test]
fn an_entry_of_a_sealed_layer_comes_after_the_sync_of_what_it_names() {
    let (mut tower, id, volume) = four_layers(1, UnitSize::B4096);
    let stack = tower.stack(id).to_vec();
    let gate = tower
        .disk
        .hold(data_of(stack[1], Operation::Sync), Hold::Before);
    let merge = tower.start_merge(&volume, stack[0]);
    tower.executor.idle();
    assert_eq!(gate.held(), 1);
    assert_eq!(decides(&mut tower, &volume, 0), Some(stack[0]));
    gate.release();
    tower.executor.finish(&merge).unwrap();
    tower.merged(&volume, stack[0]);
    assert_eq!(decides(&mut tower, &volume, 0), Some(stack[1]));
}

#[test]
fn what_fails_in_a_sealed_layer_is_nobodys_loss() {
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
            let when = When::operation(operation).file(&format!("{}/{file}", stack[1]));
            tower.disk.inject(when.nth(nth), Fault::Fail(Failure::Io));
            let merge = tower.start_merge(&volume, stack[0]);
            let ended = tower.executor.finish(&merge);
            check(&mut tower, &volume, 3);
            let snapshot = snapshot_of(&mut tower, &volume, stack[1]);
            check(&mut tower, &snapshot, 1);
            assert_eq!(volume.failed(), None);
            if ended.is_err() {
                assert!(matches!(
                    ended,
                    Err(VolumeError::MergeStopped(_) | VolumeError::Store(_))
                ));
                let again = tower.start_merge(&volume, stack[0]);
                let again = tower.executor.finish(&again);
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
            // Not the same process again, and not the same cache.
            tower.restart();
            let volume = tower.open(id).unwrap();
            check(&mut tower, &volume, 3);
            if ended.is_err() {
                tower.merge(&volume, stack[0]).ok();
                check(&mut tower, &volume, 3);
            }
            assert_eq!(tower.read(&volume, 9 * BLOCK, 4096).unwrap(), block(80));
        }
    }
}

#[test]
fn what_a_merge_brought_to_a_sealed_layer_is_not_brought_again_after_a_pause_or_a_kill() {
    for (paused, killed) in [(true, false), (true, true), (false, true), (false, false)] {
        let (mut tower, id, volume) = four_layers(1, UnitSize::B4096);
        let stack = tower.stack(id).to_vec();
        let clean = 1 << 33;
        let merged = Arc::clone(&volume);
        let dying = stack[0];
        let (before, after) = tower.executor.run(async move {
            let merge = Merge::begin(&merged, dying).await.unwrap();
            let before = merge.left().await.unwrap();
            merge.step(0, 1, &Unpaced).await.unwrap();
            let after = merge.left().await.unwrap();
            if paused {
                merge.pause().await.unwrap();
            }
            (before, after)
        });
        assert!(after < before && after > 0);
        tower.flush(&volume).unwrap();
        drop(volume);
        if killed {
            tower.kill();
        } else {
            tower.restart();
        }
        let flags = field(&mut tower, stack[1], 8) & clean;
        assert_eq!(flags, if paused { clean } else { 0 });
        let volume = tower.open(id).unwrap();
        check(&mut tower, &volume, 3);
        let merged = Arc::clone(&volume);
        let left = async move {
            let merge = Merge::begin(&merged, dying).await.unwrap();
            merge.left().await.unwrap()
        };
        assert_eq!(tower.executor.run(left), after);
        tower.merge(&volume, stack[0]).unwrap();
        check(&mut tower, &volume, 3);
        drop(volume);
        tower.restart();
        assert_eq!(field(&mut tower, stack[1], 8) & clean, clean);
    }
}

#[test]
fn what_was_merged_has_the_next_content_generation() {
    let (mut tower, id, volume) = four_layers(1, UnitSize::B4096);
    let stack = tower.stack(id).to_vec();
    tower.close(volume).unwrap();
    for (merged, generations) in [(None, [0, 0]), (Some(0), [1, 0]), (Some(2), [1, 1])] {
        let volume = tower.open(id).unwrap();
        if let Some(at) = merged {
            tower.merge(&volume, stack[at]).unwrap();
        }
        tower.close(volume).unwrap();
        tower.restart();
        let found = [1, 3].map(|at| field(&mut tower, stack[at], 88));
        assert_eq!(found, generations);
    }
}

#[test]
fn a_merge_that_the_registry_did_not_hear_of_is_found_at_the_next_opening() {
    for at in 0..3 {
        let (mut tower, id, volume) = four_layers(1, UnitSize::B4096);
        let stack = tower.stack(id).to_vec();
        tower.flush(&volume).unwrap();
        let merge = tower.start_merge(&volume, stack[at]);
        tower.executor.finish(&merge).unwrap();
        drop(volume);
        tower.restart();
        let volume = tower.open(id).unwrap();
        let layers: Vec<LayerId> = volume.layers().iter().map(|layer| layer.id()).collect();
        assert_eq!(layers.len(), 3);
        assert!(!layers.contains(&stack[at]));
        check(&mut tower, &volume, 3);
        tower.merged(&volume, stack[at]);
        tower.close(volume).unwrap();
        tower.restart();
        let volume = tower.open(id).unwrap();
        check(&mut tower, &volume, 3);
    }
}

#[test]
fn a_merge_can_be_cut_anywhere() {
    for at in 0..3 {
        let mut changes = 0;
        for nth in 1.. {
            let mut cut = false;
            for seed in 0..3 {
                let (mut tower, id, volume) = four_layers(seed + nth * 1000, UnitSize::B4096);
                tower.flush(&volume).unwrap();
                let stack = tower.stack(id).to_vec();
                tower.disk.cut_power_at(nth);
                let merge = tower.start_merge(&volume, stack[at]);
                let done = tower.executor.finish(&merge).is_ok();
                cut |= !tower.disk.is_powered();
                drop(volume);
                tower.restart();
                let volume = tower.open(id).unwrap();
                let gone = volume.layers().len() == 3;
                assert!(!done || gone, "it was answered");
                check(&mut tower, &volume, 3);
                if gone {
                    tower.merged(&volume, stack[at]);
                } else {
                    tower.merge(&volume, stack[at]).unwrap();
                }
                check(&mut tower, &volume, 3);
                for other in (0..3).filter(|&other| other != at) {
                    let snapshot = snapshot_of(&mut tower, &volume, stack[other]);
                    check(&mut tower, &snapshot, other);
                }
                tower.close(volume).unwrap();
                tower.restart();
                let volume = tower.open(id).unwrap();
                check(&mut tower, &volume, 3);
            }
            if !cut {
                break;
            }
            changes = nth;
        }
        assert!(changes >= 8, "{changes}");
    }
}

#[test]
fn a_merge_can_be_cut_twice() {
    let opening = 9;
    for first in 1..opening {
        for second in 1..opening {
            let seed = first * 100 + second;
            let (mut tower, id, mut volume) = four_layers(seed, UnitSize::B4096);
            tower.flush(&volume).unwrap();
            let stack = tower.stack(id).to_vec();
            for nth in [first, second] {
                tower.disk.cut_power_at(nth);
                let merge = tower.start_merge(&volume, stack[0]);
                drop(tower.executor.finish(&merge));
                drop(volume);
                tower.restart();
                volume = tower.open(id).unwrap();
            }
            drop(volume);
            tower.restart();
            let volume = tower.open(id).unwrap();
            check(&mut tower, &volume, 3);
            if volume.layers().len() == 4 {
                tower.merge(&volume, stack[0]).unwrap();
            }
            check(&mut tower, &volume, 3);
        }
    }
}

#[test]
fn a_merge_can_be_killed_anywhere() {
    for at in [0, 2] {
        for steps in (0..300).step_by(7) {
            let (mut tower, id, volume) = four_layers(steps, UnitSize::B4096);
            tower.close(volume).unwrap();
            tower.most = 1;
            let volume = tower.open(id).unwrap();
            let stack = tower.stack(id).to_vec();
            let merge = tower.start_merge(&volume, stack[at]);
            tower.executor.steps(steps);
            drop((merge, volume));
            tower.kill();
            let volume = tower.open(id).unwrap();
            check(&mut tower, &volume, 3);
            if volume.layers().len() == 4 {
                tower.merge(&volume, stack[at]).unwrap();
            }
            check(&mut tower, &volume, 3);
        }
    }
}

#[test]
fn a_layer_without_a_child_or_not_sealed_yet_is_not_merged() {
    let (mut tower, id, volume) = four_layers(1, UnitSize::B4096);
    let stack = tower.stack(id).to_vec();
    for layer in [stack[3], LayerId::random()] {
        let begun = tower.start_merge(&volume, layer);
        let ended = tower.executor.finish(&begun);
        assert!(matches!(ended, Err(VolumeError::NotNearest { .. })));
    }
    let snapshot = snapshot_of(&mut tower, &volume, stack[2]);
    let read_only = tower.start_merge(&snapshot, stack[2]);
    let ended = tower.executor.finish(&read_only);
    assert!(matches!(ended, Err(VolumeError::NotNearest { .. })));
    let gate = tower
        .disk
        .hold(data_of(stack[3], Operation::Sync), Hold::Before);
    let cut = tower.start_snapshot(&volume, key(2)).unwrap();
    tower.executor.idle();
    assert_eq!(gate.held(), 1);
    let early = tower.start_merge(&volume, stack[3]);
    let ended = tower.executor.finish(&early);
    assert!(
        matches!(ended, Err(VolumeError::NotSealed { .. })),
        "{ended:?}"
    );
    gate.release();
    tower.executor.finish(&cut).unwrap();
    tower.merge(&volume, stack[3]).unwrap();
    check(&mut tower, &volume, 3);
    let zero = decides(&mut tower, &volume, 5 * BLOCK);
    assert_eq!(zero, Some(stack[2]));
    assert_eq!(BlockState::Zero, {
        let volume = Arc::clone(&volume);
        let map = async move { volume.map(5 * BLOCK, 1).await.unwrap()[0] };
        tower.executor.run(map).state
    });
}
