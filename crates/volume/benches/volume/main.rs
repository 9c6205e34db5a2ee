//! What the parts of the data path cost that every request goes through, on one machine in one run.
//!
//!     cargo bench -p sealvol-volume                      all of it
//!     cargo bench -p sealvol-volume -- range_locks       one subject
//!
//! Range locks, epochs and map cells are the crate's own sources, included; stacks are whole volumes. Only ratios within a run
//! mean anything; what follows from them stands in ARCHITECTURE.md.

mod map_cells;
mod range_locks;
mod stacks;
mod tower;

#[path = "../../src/block_state.rs"]
pub mod block_state;
#[path = "../../src/map/cells.rs"]
mod cells;
#[path = "../../src/epoch.rs"]
mod epoch;
#[path = "../../src/locks.rs"]
mod locks;
#[path = "../../src/sync.rs"]
mod sync;

/// What the included sources take from the crate's `geometry.rs`.
mod geometry {
    pub(crate) const PAGE_BLOCKS: u64 = 16_384;

    pub(crate) fn index(number: u64) -> usize {
        usize::try_from(number).unwrap()
    }
}

use std::pin::pin;
use std::task::{Context, Poll, Waker};

fn main() {
    divan::main();
}

/// The result of a future that has nothing to wait for.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it waits"),
    }
}

/// Numbers that look like chance and are the same in each run.
struct Scattered(u64);

impl Scattered {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % end
    }
}
