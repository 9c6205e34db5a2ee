//! Volumes of several layers: which one a block is read from, what a first write takes along, what a trim hides, and which
//! layers do not make a stack.

use std::sync::Arc;

use sealvol_crypto::UnitSize;
use sealvol_store::{Access as FileAccess, Operation};
use sealvol_volume::{
    Access, BLOCK, BlockState, LayerId, Volume, VolumeError, VolumeId, Zeroing, open, open_sealed,
    view,
};

use crate::rig::{Disk, Random, Tower, key, seeds};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 200 * MIB;
const SECTORS: [UnitSize; 2] = [UnitSize::B512, UnitSize::B4096];

fn block(fill: u8) -> Vec<u8> {
    vec![fill; 4096]
}

/// A volume, open, whose layers below the top are each under a key of their own. Layer `n` (from the bottom, the
/// top being the last) has `layers[n]`: pairs of a block's number and what fills it; 0 trims it.
fn tower(sector_size: UnitSize, layers: &[&[(u64, u8)]]) -> (Tower, Arc<Volume<Disk>>) {
    let mut tower = Tower::new(1, sector_size);
    let id = tower.volume(SIZE);
    let volume = tower.open(id).unwrap();
    for (number, blocks) in (1..).zip(layers) {
        for &(at, fill) in *blocks {
            if fill == 0 {
                tower.trim(&volume, at * BLOCK, BLOCK).unwrap();
            } else {
                tower.write(&volume, at * BLOCK, &block(fill)).unwrap();
            }
        }
        if usize::from(number) < layers.len() {
            tower.snapshot(&volume, key(number)).unwrap();
        }
    }
    (tower, volume)
}

fn fills(tower: &mut Tower, volume: &Arc<Volume<Disk>>, blocks: u64) -> Vec<u8> {
    let len = usize::try_from(blocks * BLOCK).unwrap();
    let bytes = tower.read(volume, 0, len).unwrap();
    let fill = |block: &[u8]| {
        assert!(block.iter().all(|byte| *byte == block[0]), "{block:?}");
        block[0]
    };
    bytes.chunks(4096).map(fill).collect()
}

/// Closes, and opens again from what is on the disk.
fn reopened(tower: &mut Tower, volume: Arc<Volume<Disk>>) -> Arc<Volume<Disk>> {
    let id = volume.top().params().volume;
    tower.close(volume).unwrap();
    tower.restart();
    tower.open(id).unwrap()
}

#[test]
fn a_block_is_read_from_the_topmost_layer_that_has_it() {
    for sector_size in SECTORS {
        let (mut tower, volume) = tower(
            sector_size,
            &[
                &[(0, 1), (1, 1), (2, 1), (3, 1), (6, 1)],
                &[(1, 2), (3, 0), (4, 2)],
                &[(2, 3), (4, 0), (6, 3), (6, 0)],
            ],
        );
        let expected = [1, 2, 3, 0, 0, 0, 0, 0];
        assert_eq!(fills(&mut tower, &volume, 8), expected);
        let states: Vec<_> = {
            let volume = Arc::clone(&volume);
            tower.executor.run(async move {
                let extents = volume.extents(0, 8 * BLOCK, 20).await.unwrap();
                extents
                    .iter()
                    .map(|extent| (extent.len / BLOCK, extent.state))
                    .collect()
            })
        };
        let (absent, zero, data) = (BlockState::Absent, BlockState::Zero, BlockState::Data);
        assert_eq!(
            states,
            [(3, data), (2, zero), (1, absent), (1, zero), (1, absent)]
        );
        let volume = reopened(&mut tower, volume);
        assert_eq!(fills(&mut tower, &volume, 8), expected);
        assert_eq!(
            tower.read(&volume, 4096 - 3, 6).unwrap(),
            [1, 1, 1, 2, 2, 2]
        );
    }
}

#[test]
fn the_map_names_the_layer_that_decides() {
    let (mut tower, volume) = tower(
        UnitSize::B4096,
        &[&[(0, 1), (1, 1), (2, 1)], &[(1, 2)], &[(2, 0)]],
    );
    let layers: Vec<LayerId> = volume.layers().iter().map(|layer| layer.id()).collect();
    let map = {
        let volume = Arc::clone(&volume);
        tower
            .executor
            .run(async move { volume.map(0, 10).await.unwrap() })
    };
    let found: Vec<_> = map.iter().map(|run| (run.len / BLOCK, run.layer)).collect();
    assert_eq!(
        found,
        [
            (1, Some(layers[2])),
            (1, Some(layers[1])),
            (1, Some(layers[0])),
            (SIZE / BLOCK - 3, None)
        ]
    );
}

#[test]
fn a_run_of_one_layer_is_one_store_call_however_many_lie_above() {
    let (mut tower, volume) = tower(UnitSize::B4096, &[&[]]);
    tower.write(&volume, 0, &vec![7; 1 << 20]).unwrap();
    for _ in 0..5 {
        tower.snapshot(&volume, key(1)).unwrap();
    }
    tower.disk.forget_journal();
    assert_eq!(
        tower.read(&volume, 4096, 1 << 19).unwrap(),
        vec![7; 1 << 19]
    );
    let journal = tower.disk.journal();
    assert_eq!(journal.len(), 1, "{journal:?}");
    assert_eq!((journal[0].offset, journal[0].len), (4096, 1 << 19));
}

#[test]
fn a_first_write_takes_the_rest_of_its_block_along_from_below() {
    for sector_size in SECTORS {
        let mut layers: [&[(u64, u8)]; 3] =
            [&[(0, 1), (1, 1), (2, 1), (3, 1)], &[(1, 2)], &[(2, 0)]];
        for top in [&[][..], &[(0, 9)][..]] {
            layers[2] = &[(2, 0)];
            let (mut tower, volume) = tower(sector_size, &layers);
            for &(at, fill) in top {
                tower.write(&volume, at * BLOCK, &block(fill)).unwrap();
            }
            let mut model: Vec<u8> = [if top.is_empty() { 1 } else { 9 }, 2, 0, 1, 0]
                .into_iter()
                .flat_map(block)
                .collect();
            // Whole sectors, parts of one, across blocks of different layers, and in the middle of each.
            let writes = [
                (512, 512),
                (4096 + 100, 30),
                (2 * 4096 + 4000, 200),
                (3 * 4096 + 3584, 512),
                (4 * 4096 + 17, 1),
                (4096 - 8, 16),
                (2 * 4096 - 512, 1024),
            ];
            for (number, (offset, len)) in (0x80..).zip(writes) {
                tower.write(&volume, offset, &vec![number; len]).unwrap();
                let at = usize::try_from(offset).unwrap();
                model[at..at + len].fill(number);
                assert!(
                    tower.read(&volume, 0, model.len()).unwrap() == model,
                    "{offset} {len}"
                );
            }
            let volume = reopened(&mut tower, volume);
            assert!(tower.read(&volume, 0, model.len()).unwrap() == model);
        }
    }
}

#[test]
fn what_is_trimmed_stays_hidden_and_what_has_nothing_below_stays_absent() {
    let (mut tower, volume) = tower(UnitSize::B4096, &[&[(0, 1), (1, 1), (2, 1)], &[(1, 2)]]);
    tower.trim(&volume, 0, SIZE).unwrap();
    assert_eq!(fills(&mut tower, &volume, 4), [0; 4]);
    let volume = reopened(&mut tower, volume);
    assert_eq!(fills(&mut tower, &volume, 4), [0; 4]);
    let states = {
        let volume = Arc::clone(&volume);
        tower
            .executor
            .run(async move { volume.extents(0, MIB, 9).await.unwrap() })
    };
    assert_eq!(
        (states[0].len, states[0].state),
        (3 * BLOCK, BlockState::Zero)
    );
    assert_eq!(states[1].state, BlockState::Absent);
}

#[test]
fn zeros_in_a_part_of_a_block_leave_the_rest_as_it_lies_below() {
    for how in [Zeroing::MayFree, Zeroing::Allocated] {
        let (mut tower, volume) = tower(UnitSize::B512, &[&[(0, 1), (1, 1), (2, 1)], &[]]);
        let zeroed = Arc::clone(&volume);
        tower
            .executor
            .run(async move { zeroed.zero(100, 2 * BLOCK, how, false).await })
            .unwrap();
        let mut model: Vec<u8> = [1, 1, 1].into_iter().flat_map(block).collect();
        model[100..100 + 8192].fill(0);
        let volume = reopened(&mut tower, volume);
        assert!(tower.read(&volume, 0, model.len()).unwrap() == model);
    }
}

#[test]
fn what_lies_past_the_end_of_a_lower_layer_reads_as_zeros_once_the_volume_has_grown() {
    let (mut tower, volume) = tower(UnitSize::B4096, &[&[(SIZE / BLOCK - 1, 1)], &[]]);
    let grown = Arc::clone(&volume);
    tower
        .executor
        .run(async move { grown.grow(2 * SIZE).await })
        .unwrap();
    let offset = SIZE - BLOCK;
    let expected = [block(1), block(0)].concat();
    assert_eq!(tower.read(&volume, offset, 8192).unwrap(), expected);
    tower.write(&volume, SIZE + 100, &[5; 10]).unwrap();
    tower.snapshot(&volume, key(2)).unwrap();
    let volume = reopened(&mut tower, volume);
    assert_eq!(tower.read(&volume, offset, 8192).unwrap()[..4096], block(1));
    let found = tower.read(&volume, SIZE + 99, 12).unwrap();
    assert_eq!(found, [&[0][..], &[5; 10], &[0]].concat());
}

#[test]
fn a_stack_of_a_thousand_layers_reads_and_writes() {
    let mut tower = Tower::new(3, UnitSize::B4096);
    let id = tower.volume(SIZE);
    let volume = tower.open(id).unwrap();
    for number in 0..1000_u64 {
        let fill = number.to_le_bytes()[0] | 1;
        let at = if number % 100 == 0 {
            1 + number / 100
        } else {
            0
        };
        tower.write(&volume, at * BLOCK, &block(fill)).unwrap();
        tower.snapshot(&volume, key(0)).unwrap();
    }
    let expected: Vec<u8> = std::iter::once(999_u64)
        .chain((0..10).map(|hundred| hundred * 100))
        .map(|number| number.to_le_bytes()[0] | 1)
        .collect();
    assert_eq!(fills(&mut tower, &volume, 11), expected);
    tower.write(&volume, 10, &[200; 5]).unwrap();
    tower.close(volume).unwrap();
    let volume = tower.open(id).unwrap();
    assert_eq!(volume.layers().len(), 1001);
    assert_eq!(tower.read(&volume, 10, 6).unwrap()[4..], [200, expected[0]]);
    assert_eq!(
        tower.read(&volume, BLOCK, 4096).unwrap(),
        block(expected[1])
    );
}

/// A closed volume of three layers.
fn closed() -> (Tower, VolumeId) {
    let (mut tower, volume) = tower(UnitSize::B4096, &[&[(0, 1)], &[(1, 2)], &[(2, 3)]]);
    let id = volume.top().params().volume;
    tower.close(volume).unwrap();
    tower.restart();
    tower.disk.forget_journal();
    (tower, id)
}

/// The error of opening it, after which nothing is written.
fn refused(tower: &mut Tower, id: VolumeId) -> VolumeError {
    let Err(error) = tower.open(id) else {
        panic!("it was opened");
    };
    let journal = tower.disk.journal();
    let wrote = |record: &&sealvol_store::fault::Record| record.operation == Operation::Write;
    assert!(journal.iter().find(wrote).is_none(), "after {error}");
    error
}

#[test]
fn layers_that_do_not_follow_each_other_are_refused() {
    type Change = fn(&mut Tower, VolumeId);
    let changes: [(&str, Change); 4] = [
        ("its parent is not the layer below it", |tower, id| {
            let stack = tower.stack(id).to_vec();
            tower.change_stack(id, vec![stack[0], stack[2]]);
        }),
        ("its parent is missing", |tower, id| {
            let stack = tower.stack(id)[1..].to_vec();
            tower.change_stack(id, stack);
        }),
        ("sector size", |tower, id| {
            let top = tower.stack(id)[2];
            let pins = |pins: &mut sealvol_volume::Pins| {
                pins.params.sector_size = UnitSize::B512;
            };
            tower.registry(top).change_pins(pins);
        }),
        ("larger", |tower, id| {
            let top = tower.stack(id)[2];
            tower
                .registry(top)
                .change_pins(|pins| pins.params.size = SIZE - MIB);
        }),
    ];
    for (wanted, change) in changes {
        let (mut tower, id) = closed();
        change(&mut tower, id);
        let error = refused(&mut tower, id);
        let fits =
            matches!(&error, VolumeError::BrokenStack { cause, .. } if cause.contains(wanted));
        assert!(fits, "{wanted}: {error}");
    }
}

#[test]
fn a_superblock_with_another_parent_than_the_registry_says_is_refused() {
    let (mut tower, id) = closed();
    let stack = tower.stack(id).to_vec();
    tower
        .registry(stack[2])
        .change_pins(|pins| pins.params.parent = Some(stack[0]));
    tower.change_stack(id, vec![stack[0], stack[2]]);
    let error = refused(&mut tower, id);
    assert!(
        matches!(
            error,
            VolumeError::Mismatch {
                field: "parent",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_layer_whose_files_are_missing_is_refused_by_name() {
    let (mut tower, id) = closed();
    let lowest = tower.stack(id)[0];
    let directory = tower.disk.directory(&lowest.to_string());
    tower.executor.run(async move {
        use sealvol_store::Directory as _;
        directory.remove("meta").await.unwrap();
    });
    let error = refused(&mut tower, id);
    assert!(error.to_string().contains("meta"), "{error}");
}

#[test]
fn a_sealed_layer_is_never_opened_for_writing() {
    let (mut tower, id) = closed();
    let lowest = tower.stack(id)[0];
    let parts = tower.parts(lowest, FileAccess::Writable);
    let opened = tower
        .executor
        .run(async move { open(Vec::new(), parts.await?, Access::Writable).await });
    assert!(matches!(opened, Err(VolumeError::Sealed { layer }) if layer == lowest));
    let parts = tower.parts(lowest, FileAccess::ReadOnly);
    let volume = tower
        .executor
        .run(async move { open(Vec::new(), parts.await?, Access::ReadOnly).await })
        .unwrap();
    assert_eq!(tower.read(&volume, 0, 4096).unwrap(), block(1));
    let wrote = tower.write(&volume, 0, &block(9));
    assert!(matches!(wrote, Err(VolumeError::ReadOnly)));
    let journal = tower.disk.journal();
    assert!(
        journal
            .iter()
            .all(|record| record.operation != Operation::Write)
    );
}

#[test]
fn a_layer_that_is_not_sealed_stands_below_no_other() {
    let (mut tower, id) = closed();
    let top = tower.stack(id)[2];
    let parts = tower.parts(top, FileAccess::Writable);
    let opened = tower
        .executor
        .run(async move { open_sealed(&[], parts.await?).await.map(|_| ()) });
    assert!(matches!(opened, Err(VolumeError::NotSealed { layer }) if layer == top));
    let volume = tower.open(id).unwrap();
    let mut layers = volume.layers();
    layers.reverse();
    let seen = tower
        .executor
        .run(async move { view(layers).await.map(|_| ()) });
    assert!(matches!(seen, Err(VolumeError::NotSealed { .. })));
}

#[test]
fn random_stacks_read_and_write_like_an_array_of_bytes() {
    const LEN: usize = 24 * 4096;
    for seed in seeds(20) {
        let random = Random::new(seed);
        let mut tower = Tower::new(seed, random.pick(&SECTORS));
        let id = tower.volume(SIZE);
        let mut volume = tower.open(id).unwrap();
        let mut model = vec![0; LEN];
        for round in 0..80_u8 {
            let first = random.index(LEN - 1);
            let unit = random.pick(&[1, 1, 512, 4096]);
            let first = first / unit * unit;
            let len = (1 + random.index(3 * 4096)).next_multiple_of(unit);
            let len = len.min(LEN - first);
            let (offset, bytes) = (first as u64, len as u64);
            match random.below(10) {
                0..=4 => {
                    let fill = vec![round | 1; len];
                    tower.write(&volume, offset, &fill).unwrap();
                    model[first..first + len].copy_from_slice(&fill);
                }
                5 => {
                    tower.trim(&volume, offset, bytes).unwrap();
                    let from = first.next_multiple_of(4096);
                    let to = ((first + len) / 4096 * 4096).max(from);
                    model[from..to].fill(0);
                }
                6 => {
                    let how = random.pick(&[Zeroing::MayFree, Zeroing::Allocated]);
                    let zeroed = Arc::clone(&volume);
                    tower
                        .executor
                        .run(async move { zeroed.zero(offset, bytes, how, false).await })
                        .unwrap();
                    model[first..first + len].fill(0);
                }
                7 => {
                    tower
                        .snapshot(&volume, key(random.below(3).to_le_bytes()[0]))
                        .unwrap();
                }
                8 if random.chance(1, 3) => volume = reopened(&mut tower, volume),
                _ => tower.flush(&volume).unwrap(),
            }
            let found = tower.read(&volume, 0, LEN).unwrap();
            assert!(found == model, "round {round}");
        }
    }
}
