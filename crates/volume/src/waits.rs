//! How long requests waited for a cut: a histogram whose buckets grow with what is in them.
//!
//! Always: what is counted is the time from when a change met a stack that was closed until there was an open one, by the host's
//! clock. A request that meets no closed stack costs nothing. The buckets are so narrow that a time is told to a quarter.
//! Never: a wait of what works in the background.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets to a doubling.
const STEPS: u64 = 4;
/// Up to 2^38 nanoseconds, four and a half minutes; the last bucket has what is longer.
const BUCKETS: usize = 4 * 37;

/// How long requests waited for snapshots and other changes of a volume's layers, since it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waits {
    /// How many waited.
    pub count: u64,
    /// The longest.
    pub longest: Duration,
    /// The buckets that are not empty, the shortest first: times up to (to a quarter), and how many.
    pub buckets: Vec<(Duration, u64)>,
}

impl Waits {
    /// The time that so many hundredths of the waits stay within; none if nobody waited.
    #[must_use]
    pub fn percentile(&self, hundredths: u64) -> Duration {
        let wanted = (self.count * hundredths).div_ceil(100);
        let mut seen = 0;
        for &(up_to, count) in &self.buckets {
            seen += count;
            if seen >= wanted {
                return up_to.min(self.longest);
            }
        }
        self.longest
    }
}

/// Where they are counted.
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    longest: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            longest: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    pub(crate) fn record(&self, waited: Duration) {
        let nanos = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(nanos)].fetch_add(1, Ordering::Relaxed);
        self.longest.fetch_max(nanos, Ordering::Relaxed);
    }

    pub(crate) fn seen(&self) -> Waits {
        let counts = self
            .buckets
            .iter()
            .map(|bucket| bucket.load(Ordering::Relaxed));
        let buckets: Vec<_> = counts
            .enumerate()
            .filter(|(_, count)| *count > 0)
            .map(|(bucket, count)| (Duration::from_nanos(end(bucket)), count))
            .collect();
        Waits {
            count: buckets.iter().map(|(_, count)| count).sum(),
            longest: Duration::from_nanos(self.longest.load(Ordering::Relaxed)),
            buckets,
        }
    }
}

/// The bucket of a time: the first ones have one value each, then there are [`STEPS`] to each doubling.
fn bucket(nanos: u64) -> usize {
    let number = match nanos {
        0..STEPS => nanos,
        _ => {
            let doublings = u64::from(nanos.ilog2() - STEPS.ilog2());
            STEPS * doublings + (nanos >> doublings)
        }
    };
    usize::try_from(number).map_or(BUCKETS - 1, |number| number.min(BUCKETS - 1))
}

/// The longest time of a bucket.
fn end(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < STEPS {
        return bucket;
    }
    let doublings = bucket / STEPS - 1;
    ((bucket % STEPS + STEPS + 1) << doublings) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_lies_in_its_bucket_and_a_bucket_is_a_quarter_wide() {
        let mut before = 0;
        for at in 0..BUCKETS - 1 {
            let (first, last) = (if at == 0 { 0 } else { before + 1 }, end(at));
            assert_eq!((bucket(first), bucket(last)), (at, at));
            assert!(last - first <= first / 4, "{first} to {last}");
            before = last;
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert!(before > 200_000_000_000, "{before}");
    }

    #[test]
    fn percentiles_and_the_longest_are_told() {
        let histogram = Histogram::default();
        assert_eq!(histogram.seen().percentile(99), Duration::ZERO);
        for micros in 1..=200 {
            histogram.record(Duration::from_micros(micros));
        }
        let waits = histogram.seen();
        assert_eq!(waits.count, 200);
        assert_eq!(waits.longest, Duration::from_micros(200));
        let half = waits.percentile(50).as_nanos();
        assert!((100_000..125_000).contains(&half), "{half}");
        assert_eq!(waits.percentile(100), waits.longest);
    }
}
