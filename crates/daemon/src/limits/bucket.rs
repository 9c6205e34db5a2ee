//! A token bucket whose clock is given from outside: so many units a second, and what was saved up at once.
//!
//! It keeps one number, the moment when it is full again (the generic cell rate algorithm, ITU-T I.371). A request that takes
//! more than a full bucket has is let go when the bucket is full, and leaves a debt that later ones wait for.
//!
//! Always: what is taken in any time `t` is at most `rate * t + capacity`, but for one request that is larger than the capacity
//! itself. Whoever waits as long as it was told, while nobody else takes, can take: nothing starves.
//! Never: a look at a clock.

use std::time::Duration;

const SECOND: u128 = 1_000_000_000;

/// See the module. Times are from an origin that stays the same.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    /// Units a second; at least 1.
    rate: u64,
    /// Units of a full one; at least 1.
    capacity: u64,
    /// In nanoseconds from the origin; in the past, it is full.
    full_at: u128,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(rate: u64, capacity: u64) -> Self {
        Self {
            rate: rate.max(1),
            capacity: capacity.max(1),
            full_at: 0,
        }
    }

    /// The same with another rate and capacity: what is missing in it is still missing, up to all of it.
    pub(super) fn changed(&self, rate: u64, capacity: u64, now: Duration) -> Self {
        let mut changed = Self::new(rate, capacity);
        let empty = now.as_nanos() + changed.time_for(changed.capacity);
        changed.full_at = self.full_at.min(empty);
        changed
    }

    /// How long to wait before `units` can be taken; zero if they can be taken now.
    pub(super) fn wait(&self, units: u64, now: Duration) -> Duration {
        // A bucket that has what is wanted, or all it can have, lacks at most this.
        let may_lack = self.capacity - units.min(self.capacity);
        let slack = u128::from(may_lack) * SECOND / u128::from(self.rate);
        let wait = self.full_at.saturating_sub(now.as_nanos() + slack);
        Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX))
    }

    /// Takes them; [`Self::wait`] was zero.
    pub(super) fn take(&mut self, units: u64, now: Duration) {
        self.full_at = self.full_at.max(now.as_nanos()) + self.time_for(units);
    }

    /// Rounded up: so rounding never gives more than the rate.
    fn time_for(&self, units: u64) -> u128 {
        (u128::from(units) * SECOND).div_ceil(u128::from(self.rate))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Requests as (nanoseconds after the one before, units).
    fn requests(largest: u64) -> impl Strategy<Value = Vec<(u64, u64)>> {
        let pause = prop_oneof![Just(0), 0..1_000_000_u64, 0..5_000_000_000_u64];
        prop::collection::vec((pause, 1..=largest), 1..120)
    }

    /// When each request is let go, if each waits for the one before and for the bucket.
    fn schedule(bucket: &mut Bucket, requests: &[(u64, u64)]) -> Vec<(Duration, u64)> {
        let mut now = Duration::ZERO;
        let mut taken = Vec::new();
        for &(pause, units) in requests {
            now += Duration::from_nanos(pause);
            now += bucket.wait(units, now);
            assert_eq!(bucket.wait(units, now), Duration::ZERO, "it waited as told");
            bucket.take(units, now);
            taken.push((now, units));
        }
        taken
    }

    /// The most that any time between two requests, both included, let go beyond the rate, in units × 10^9.
    fn most_beyond_rate(taken: &[(Duration, u64)], rate: u64) -> i128 {
        let mut most = i128::MIN;
        for (first, &(start, _)) in taken.iter().enumerate() {
            let mut sum = 0;
            for &(end, units) in &taken[first..] {
                sum += i128::from(units);
                let elapsed = i128::try_from((end - start).as_nanos()).expect("short");
                most = most.max(sum * 1_000_000_000 - elapsed * i128::from(rate));
            }
        }
        most
    }

    proptest! {
        #[test]
        fn no_time_sees_more_than_its_rate_and_one_full_bucket(
            rate in 1..2_000_000_u64,
            capacity in 1..100_000_u64,
            requests in requests(1000),
        ) {
            let mut bucket = Bucket::new(rate, capacity);
            let taken = schedule(&mut bucket, &requests);
            let largest = requests.iter().map(|&(_, units)| units).max().unwrap_or(0);
            let bound = i128::from(capacity.max(largest)) * 1_000_000_000;
            // A wait is in whole nanoseconds: up to one of each kind at the start.
            let rounding = i128::from(rate);
            let most = most_beyond_rate(&taken, rate);
            prop_assert!(most <= bound + rounding, "{most} > {bound}");
        }

        #[test]
        fn who_always_asks_gets_the_rate_and_nobody_waits_longer_than_what_is_owed(
            rate in 1..2_000_000_u64,
            capacity in 1..100_000_u64,
            units in prop::collection::vec(1..1000_u64, 1..200),
        ) {
            let requests: Vec<_> = units.iter().map(|&units| (0, units)).collect();
            let mut bucket = Bucket::new(rate, capacity);
            let taken = schedule(&mut bucket, &requests);
            let sum: u64 = units.iter().sum();
            let (end, _) = taken[taken.len() - 1];
            // All of it, at the rate, is the longest that it can take; and one nanosecond of rounding for each.
            let longest = u128::from(sum) * SECOND / u128::from(rate) + units.len() as u128;
            prop_assert!(end.as_nanos() <= longest, "{end:?} for {sum} at {rate}");
        }

        #[test]
        fn a_change_never_makes_anybody_wait_longer_than_a_new_bucket_takes_to_fill(
            before in (1..1000_u64, 1..1000_u64),
            after in (1..1_000_000_u64, 1..1_000_000_u64),
            units in 1..100_000_u64,
        ) {
            let mut bucket = Bucket::new(before.0, before.1);
            let now = Duration::from_secs(1);
            bucket.take(units, now);
            let changed = bucket.changed(after.0, after.1, now);
            let fill = (u128::from(after.1) * SECOND).div_ceil(u128::from(after.0));
            prop_assert!(changed.wait(units, now).as_nanos() <= fill);
            let owed = bucket.full_at;
            prop_assert!(changed.full_at <= owed, "a change adds no debt");
        }
    }

    #[test]
    fn a_full_bucket_is_let_go_at_once_and_then_the_rate_holds() {
        let mut bucket = Bucket::new(100, 50);
        let mut at_once = 0;
        while bucket.wait(1, Duration::ZERO).is_zero() {
            bucket.take(1, Duration::ZERO);
            at_once += 1;
        }
        assert_eq!(at_once, 50);
        assert_eq!(bucket.wait(1, Duration::ZERO), Duration::from_millis(10));
        // A second later it is full again, and no fuller.
        let later = Duration::from_secs(10);
        assert_eq!(bucket.wait(50, later), Duration::ZERO);
        bucket.take(50, later);
        assert_eq!(bucket.wait(50, later), Duration::from_millis(500));
    }

    #[test]
    fn a_request_larger_than_the_bucket_goes_when_it_is_full_and_is_paid_for_afterwards() {
        let mut bucket = Bucket::new(10, 5);
        assert_eq!(bucket.wait(100, Duration::ZERO), Duration::ZERO);
        bucket.take(100, Duration::ZERO);
        assert_eq!(bucket.wait(5, Duration::ZERO), Duration::from_secs(10));
        assert_eq!(bucket.wait(1, Duration::ZERO), Duration::from_millis(9600));
    }
}
