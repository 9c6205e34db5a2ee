//! What a look-up and a read of 4 KiB cost by how many layers a volume has: the first time, and once every block was looked up.

use std::sync::Arc;

use divan::Bencher;
use sealvol_store::{FileDirectory, MemoryDirectory, Store};
use sealvol_volume::{BLOCK, Volume};

use crate::tower::{BLOCKS, Lie, Shape, volume};
use crate::{Scattered, at_once};

const SHAPES: [Shape; 6] = [
    shape(1, Lie::Anywhere),
    shape(10, Lie::Anywhere),
    shape(100, Lie::Anywhere),
    shape(2, Lie::Lowest),
    shape(10, Lie::Lowest),
    shape(100, Lie::Lowest),
];

const fn shape(depth: u64, lie: Lie) -> Shape {
    Shape { depth, lie }
}

fn look_all_up<S: Store>(volume: &Arc<Volume<S>>) {
    for block in 0..BLOCKS {
        at_once(volume.extents(block * BLOCK, BLOCK, 1)).unwrap();
    }
}

/// Who decides a block that nobody has looked up, nor its neighbours, but for the few that are met twice.
#[divan::bench(args = SHAPES, sample_count = 300, sample_size = 1)]
fn first_look_up(bencher: Bencher<'_, '_>, shape: Shape) {
    let volume = volume(shape, |_| MemoryDirectory::new());
    let mut chance = Scattered(7);
    bencher.bench_local(|| {
        let offset = chance.below(BLOCKS) * BLOCK;
        at_once(volume.extents(offset, BLOCK, 1)).unwrap()
    });
}

/// Who decides a block: maps alone, no data.
#[divan::bench(args = SHAPES)]
fn look_up(bencher: Bencher<'_, '_>, shape: Shape) {
    let volume = volume(shape, |_| MemoryDirectory::new());
    look_all_up(&volume);
    let mut chance = Scattered(7);
    bencher.bench_local(|| {
        let offset = chance.below(BLOCKS) * BLOCK;
        at_once(volume.extents(offset, BLOCK, 1)).unwrap()
    });
}

/// A read of one block, from stores in memory.
#[divan::bench(args = SHAPES)]
fn read_from_memory(bencher: Bencher<'_, '_>, shape: Shape) {
    let volume = volume(shape, |_| MemoryDirectory::new());
    look_all_up(&volume);
    let mut chance = Scattered(7);
    bencher.bench_local(|| {
        let offset = chance.below(BLOCKS) * BLOCK;
        at_once(volume.read(offset, 4096)).unwrap()
    });
}

/// A read of one block, from files of a memory file system.
#[divan::bench(args = SHAPES)]
fn read_from_tmpfs(bencher: Bencher<'_, '_>, shape: Shape) {
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    let volume = volume(shape, |layer| {
        let path = root.path().join(layer.to_string());
        std::fs::create_dir(&path).unwrap();
        FileDirectory::open(&path).unwrap()
    });
    look_all_up(&volume);
    let mut chance = Scattered(7);
    bencher.bench_local(|| {
        let offset = chance.below(BLOCKS) * BLOCK;
        at_once(volume.read(offset, 4096)).unwrap()
    });
}
