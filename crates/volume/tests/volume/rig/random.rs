//! Chance by seed: SplitMix64 (Steele, Lea, Flood 2014), shared by everything in one run.

use std::sync::{Arc, Mutex};

/// A sequence of numbers that follows from its seed. A clone goes on with the same sequence.
#[derive(Clone)]
pub(crate) struct Random(Arc<Mutex<u64>>);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(seed)))
    }

    pub(crate) fn next(&self) -> u64 {
        let mut state = self.0.lock().unwrap();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn below(&self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn index(&self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap()
    }

    /// True `times` in `of` times.
    pub(crate) fn chance(&self, times: u64, of: u64) -> bool {
        self.below(of) < times
    }

    /// One of these.
    pub(crate) fn pick<T: Copy>(&self, from: &[T]) -> T {
        from[self.index(from.len())]
    }
}

/// The seeds of a campaign: `rounds` of them, `SEALVOL_ROUNDS` times as many, or the one in `SEALVOL_SEED`.
/// Each is printed as it begins, so that the last one of a failed test's output replays it.
pub(crate) fn seeds(rounds: u64) -> impl Iterator<Item = u64> {
    let number = |name| {
        std::env::var(name).ok().map(|text: String| {
            text.parse::<u64>()
                .unwrap_or_else(|_| panic!("{name}={text} is no number"))
        })
    };
    let seeds = match number("SEALVOL_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..rounds * number("SEALVOL_ROUNDS").unwrap_or(1),
    };
    seeds.inspect(|seed| println!("replay with SEALVOL_SEED={seed}"))
}
