//! What the threads of a volume share, run under chosen schedules: before each step on a mutex, an atomic or a wake-up, a
//! scheduler decides which thread goes on.
//!
//! The sources are the crate's own, included with `sync.rs` of this directory in place of the crate's. Two ways to choose: at
//! random, and by priorities that change at a few points (PCT: a bug that needs few switches at the right places is met with
//! a known chance). A thread that waits for ever is a deadlock, a wait that spins runs out of steps: both end the test. What is
//! not tried: orderings weaker than `SeqCst` count as that; nothing between two steps.
//!
//! `SEALVOL_SEED` draws other schedules, `SEALVOL_ROUNDS` so many times as many. A failure prints its schedule.

mod commits;
mod epochs;
mod map_cells;
mod range_locks;
mod sync;

#[path = "../../src/block_state.rs"]
pub mod block_state;
#[path = "../../src/map/cells.rs"]
mod cells;
#[path = "../../src/epoch.rs"]
mod epoch;
#[path = "../../src/commit/joins.rs"]
mod joins;
#[path = "../../src/locks.rs"]
mod locks;

/// What the included sources take from the crate's `error.rs`.
mod error {
    pub(crate) use sealvol_volume::{Loss, VolumeError};
}

/// What they take from `geometry.rs`; a page has three words here, so that a schedule is short.
mod geometry {
    pub(crate) const PAGE_BLOCKS: u64 = 96;

    pub(crate) fn index(number: u64) -> usize {
        usize::try_from(number).unwrap()
    }
}

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, MaxSteps, Runner};

const SCHEDULES: usize = 1500;
/// At how many points a schedule by priorities changes its mind, at most.
const CHANGES: usize = 4;

/// Runs a test under many schedules of both kinds.
fn under_schedules(test: fn()) {
    let number = |name| std::env::var(name).ok().map(|text| text.parse().unwrap());
    let seed = number("SEALVOL_SEED").unwrap_or(0x5ea1_u64);
    let rounds = SCHEDULES * number("SEALVOL_ROUNDS").map_or(1, geometry::index);
    for ran in [
        run(RandomScheduler::new_from_seed(seed, rounds), test),
        run(PctScheduler::new_from_seed(seed, CHANGES, rounds), test),
    ] {
        assert_eq!(ran, rounds);
    }
}

fn run(scheduler: impl Scheduler + 'static, test: fn()) -> usize {
    let mut config = Config::new();
    config.max_steps = MaxSteps::FailAfter(20_000);
    // What it warns of stands in this file's documentation.
    config.silence_warnings = true;
    Runner::new(scheduler, config).run(test)
}

/// Lets others go on, if the scheduler wants it.
fn perhaps_others() {
    shuttle::thread::yield_now();
}
