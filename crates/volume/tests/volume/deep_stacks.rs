//! Stacks of which it is kept what their lower layers say: nobody ever reads anything else than without it.

use std::sync::Arc;

use sealvol_crypto::UnitSize;
use sealvol_store::fault::{Hold, When};
use sealvol_store::{Access, Directory, Durability, IoBuf, Operation, Store};
use sealvol_volume::{BLOCK, LayerId, META_FILE, Volume, view};

use crate::rig::{Disk, Random, Tower, key, seeds};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 64 * MIB;
const SIZE: u64 = 2 * PAGE;
/// Blocks in use, on both sides of the border between two pages of the map.
const BLOCKS: u64 = 200;
const FIRST: u64 = PAGE / BLOCK - BLOCKS / 2;
/// Layers at which a volume is made to stand alone again.
const HIGHEST: usize = 6;

fn block(fill: u8) -> Vec<u8> {
    vec![fill; 4096]
}

fn byte_of(block: u64) -> u64 {
    (FIRST + block) * BLOCK
}

fn checked(tower: &mut Tower, volume: &Arc<Volume<Disk>>, model: &[u8], first: u64, blocks: u64) {
    let len = usize::try_from(blocks * BLOCK).unwrap();
    let bytes = tower.read(volume, byte_of(first), len).unwrap();
    for (at, found) in (first..).zip(bytes.chunks(4096)) {
        let fill = model[usize::try_from(at).unwrap()];
        assert!(
            found == block(fill),
            "block {at} is {}, not {fill}",
            found[0]
        );
    }
}

#[test]
fn writes_trims_snapshots_merges_and_cut_overs_are_seen_in_a_deep_stack_at_once() {
    let mut merged = [0; 2];
    for seed in seeds(8) {
        let mut tower = Tower::new(seed, UnitSize::B4096);
        let random = Random::new(seed);
        let id = tower.volume(SIZE);
        let volume = tower.open(id).unwrap();
        let mut model = vec![0_u8; usize::try_from(BLOCKS).unwrap()];
        // What each snapshot held: its layer, and the model then.
        let mut snapshots: Vec<(LayerId, Vec<u8>)> = Vec::new();
        for operation in 0..600_u64 {
            let at = random.below(BLOCKS);
            let blocks = (1 + random.below(70)).min(BLOCKS - at);
            match random.below(22) {
                0..=5 => {
                    let fill = u8::try_from(1 + operation % 255).unwrap();
                    tower.write(&volume, byte_of(at), &block(fill)).unwrap();
                    model[usize::try_from(at).unwrap()] = fill;
                }
                6 => {
                    let blocks = blocks.min(3);
                    tower.trim(&volume, byte_of(at), blocks * BLOCK).unwrap();
                    for trimmed in at..at + blocks {
                        model[usize::try_from(trimmed).unwrap()] = 0;
                    }
                }
                7 if volume.layers().len() < HIGHEST => {
                    let number = u8::try_from(operation % 200).unwrap();
                    let sealed = tower.snapshot(&volume, key(number)).unwrap();
                    snapshots.push((sealed.id(), model.clone()));
                }
                7 => {
                    tower.copy_up(&volume).unwrap();
                    tower.cut_over(&volume).unwrap();
                    snapshots.clear();
                }
                // What is kept of the stack before is of no use to the one after.
                8 if volume.layers().len() > 1 => {
                    let below = volume.layers().len() - 1;
                    let depth = 1 + random.index(below);
                    let dying = volume.layers()[depth].id();
                    tower.merge(&volume, dying).unwrap();
                    snapshots.retain(|(layer, _)| *layer != dying);
                    merged[usize::from(depth > 1)] += 1;
                }
                9 if !snapshots.is_empty() => {
                    let (layer, held) = &snapshots[random.index(snapshots.len())];
                    let mut layers = volume.layers();
                    layers.retain({
                        let mut below = false;
                        move |found| {
                            below |= found.id() == *layer;
                            below
                        }
                    });
                    layers.reverse();
                    let seen = tower.executor.run(async move { view(layers).await });
                    checked(&mut tower, &seen.unwrap(), held, at, blocks);
                }
                _ => checked(&mut tower, &volume, &model, at, blocks),
            }
        }
        checked(&mut tower, &volume, &model, 0, BLOCKS);
        tower.close(volume).unwrap();
        let volume = tower.open(id).unwrap();
        checked(&mut tower, &volume, &model, 0, BLOCKS);
    }
    // One seed alone may see none of a kind.
    if std::env::var_os("SEALVOL_SEED").is_none() {
        assert!(merged.iter().all(|merges| *merges > 20), "{merged:?}");
    }
}

/// A volume of `layers` layers, each of which has one block of its own: layer `n` (from the bottom) has block `n`.
fn of_layers(layers: u8) -> (Tower, Arc<Volume<Disk>>) {
    let mut tower = Tower::new(1, UnitSize::B4096);
    let id = tower.volume(SIZE);
    let volume = tower.open(id).unwrap();
    for number in 0..layers {
        if number > 0 {
            tower.snapshot(&volume, key(number)).unwrap();
        }
        let offset = byte_of(u64::from(number));
        tower.write(&volume, offset, &block(number + 1)).unwrap();
    }
    (tower, volume)
}

#[test]
fn a_write_that_ends_in_the_old_top_after_the_cut_is_read_whoever_looked_meanwhile() {
    let (mut tower, volume) = of_layers(3);
    let old = volume.top().id();
    let into_old = When::operation(Operation::Write).file(&format!("{old}/data"));
    let gate = tower.disk.hold(into_old.always(), Hold::Before);
    let late = tower.start_write(&volume, byte_of(10), &block(9), false);
    tower.executor.idle();
    assert_eq!(gate.held(), 1);
    let snapshot = tower.start_snapshot(&volume, key(7)).unwrap();
    tower.executor.idle();
    assert_eq!(volume.layers().len(), 4, "the cut is made");
    // Its neighbours and itself are looked up through all layers while it is on its way.
    assert_eq!(tower.read(&volume, byte_of(10), 4096).unwrap(), block(0));
    assert_eq!(tower.read(&volume, byte_of(1), 4096).unwrap(), block(2));
    gate.release();
    tower.executor.finish(&late).unwrap();
    assert_eq!(tower.read(&volume, byte_of(10), 4096).unwrap(), block(9));
    tower.executor.finish(&snapshot).unwrap();
    for _ in 0..2 {
        assert_eq!(tower.read(&volume, byte_of(10), 4096).unwrap(), block(9));
    }
}

#[test]
fn a_block_is_read_although_its_neighbour_needs_a_damaged_page_further_down() {
    let (mut tower, volume) = of_layers(4);
    let id = volume.top().params().volume;
    let lowest = tower.stack(id)[0];
    tower.close(volume).unwrap();
    tower.restart();
    let directory = tower.disk.directory(&lowest.to_string());
    tower.executor.run(async move {
        let meta = directory.open(META_FILE, Access::Writable).await.unwrap();
        // Both places of the first map page.
        let nothing = IoBuf::zeroed(2 * 4096);
        let (_, written) = meta.write_at(nothing, 64 * MIB, Durability::Durable).await;
        written.unwrap();
    });
    let volume = tower.open(id).unwrap();
    for number in 1..4_u8 {
        let offset = byte_of(u64::from(number));
        let read = tower.read(&volume, offset, 4096).unwrap();
        assert_eq!(read, block(number + 1), "layer {number} has it");
    }
    let below = tower.read(&volume, byte_of(50), 4096);
    assert!(below.is_err(), "only the damaged page knows of it");
}
