//! The states of one map page: looking a block up, finding a run, entering blocks.

use divan::{Bencher, black_box};

use crate::block_state::BlockState;
use crate::cells::Cells;

/// Looks one block up.
#[divan::bench]
fn look_up(bencher: Bencher<'_, '_>) {
    let cells = Cells::uniform(BlockState::Data);
    bencher.bench(|| cells.get(black_box(1234)));
}

/// Finds how far a run reaches, of so many blocks.
#[divan::bench(args = [1, 64, 256, 16_384])]
fn run(bencher: Bencher<'_, '_>, blocks: usize) {
    let cells = Cells::uniform(BlockState::Data);
    bencher.bench(|| cells.run(black_box(0..blocks)));
}

/// Enters so many blocks.
#[divan::bench(args = [1, 64, 256])]
fn enter(bencher: Bencher<'_, '_>, blocks: usize) {
    let cells = Cells::uniform(BlockState::Absent);
    bencher.bench(|| cells.set(black_box(5..5 + blocks), BlockState::Data));
}

/// Copies a page, as a commit does before it packs it, and as loading one ends.
#[divan::bench]
fn copy(bencher: Bencher<'_, '_>) {
    let cells = Cells::uniform(BlockState::Data);
    bencher.bench(|| Cells::of_words(black_box(&cells).words()));
}
