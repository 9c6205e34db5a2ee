//! How many requests and bytes a second a volume takes: one limit for all its connections, on whatever worker they are.
//!
//! Counted as EBS counts: a request of up to 256 KiB is one, a larger one is one for each 256 KiB begun; bytes are those that
//! are read or written. A FLUSH is not counted, nor what the daemon does by itself.
//!
//! Always: a request is held back before it is begun, by whoever read it from the socket, so nothing is buffered beyond what a
//! connection holds anyway; connections that wait get their turns in the order in which they came, one request each; who
//! goes away while it waits takes nothing. A change of the limits is met by those that wait already.
//! Never: a refusal. Without a limit a request costs one relaxed load.

mod bucket;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sealvol_nbd::{Command, Request};
use tokio::sync::Notify;

use bucket::Bucket;

/// What counts as one operation at most.
const OPERATION: u64 = 256 * 1024;
/// The least that a bucket holds: the timer is no finer than a millisecond, and what ran over must not be lost.
const LEAST_BURST: Duration = Duration::from_millis(10);

/// Limits as they are set and registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Operations a second.
    pub(crate) iops: Option<u64>,
    /// Bytes a second.
    pub(crate) bandwidth: Option<u64>,
    /// So many seconds' worth can be saved up while less is used, and then be used at once.
    pub(crate) burst_seconds: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            iops: None,
            bandwidth: None,
            burst_seconds: 1,
        }
    }
}

impl Limits {
    fn capacity(self, rate: u64) -> u64 {
        let burst = Duration::from_secs(self.burst_seconds.into()).max(LEAST_BURST);
        let units = u128::from(rate) * burst.as_millis() / 1000;
        u64::try_from(units).unwrap_or(u64::MAX)
    }
}

/// What one request counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cost {
    operations: u64,
    bytes: u64,
}

impl Cost {
    /// That of what is counted by its bytes alone; none of nothing.
    pub(crate) fn of_bytes(bytes: u64) -> Option<Self> {
        (bytes > 0).then_some(Self {
            operations: 0,
            bytes,
        })
    }

    /// None if it is not counted.
    pub(crate) fn of(request: &Request) -> Option<Self> {
        let length = u64::from(request.length);
        match request.command {
            Command::Flush => None,
            Command::Read { .. } | Command::Write | Command::WriteZeroes { no_hole: true, .. } => {
                Some(Self {
                    operations: length.div_ceil(OPERATION).max(1),
                    bytes: length,
                })
            }
            // They move no data.
            Command::BlockStatus { .. }
            | Command::Cache
            | Command::Trim
            | Command::WriteZeroes { no_hole: false, .. } => Some(Self {
                operations: 1,
                bytes: 0,
            }),
        }
    }
}

/// The limits of one volume at work.
pub(crate) struct Limiter {
    limited: AtomicBool,
    /// Held for some arithmetic, never across a wait.
    buckets: Mutex<Buckets>,
    /// Whoever has to wait queues here; the first one watches the buckets.
    turn: tokio::sync::Mutex<()>,
    changed: Notify,
    origin: Instant,
}

struct Buckets {
    operations: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Limiter {
    pub(crate) fn new(limits: Limits) -> Self {
        let limiter = Self {
            limited: AtomicBool::new(false),
            buckets: Mutex::new(Buckets {
                operations: None,
                bytes: None,
            }),
            turn: tokio::sync::Mutex::default(),
            changed: Notify::new(),
            origin: Instant::now(),
        };
        limiter.set(limits);
        limiter
    }

    /// Changes the limits, for those that wait too.
    pub(crate) fn set(&self, limits: Limits) {
        let now = self.origin.elapsed();
        let bucket = |rate: Option<u64>, earlier: &Option<Bucket>| {
            let rate = rate?;
            let capacity = limits.capacity(rate);
            Some(match earlier {
                Some(earlier) => earlier.changed(rate, capacity, now),
                None => Bucket::new(rate, capacity),
            })
        };
        let mut buckets = self.buckets();
        buckets.operations = bucket(limits.iops, &buckets.operations);
        buckets.bytes = bucket(limits.bandwidth, &buckets.bytes);
        let limited = buckets.operations.is_some() || buckets.bytes.is_some();
        self.limited.store(limited, Ordering::Relaxed);
        drop(buckets);
        self.changed.notify_waiters();
    }

    /// Lets a request go now, if the limits allow it and nobody waits before it.
    pub(crate) fn try_pass(&self, cost: impl FnOnce() -> Option<Cost>) -> Result<(), Cost> {
        if !self.limited.load(Ordering::Relaxed) {
            return Ok(());
        }
        let Some(cost) = cost() else {
            return Ok(());
        };
        // Fails while others wait: the lock goes from one to the next.
        let Ok(_turn) = self.turn.try_lock() else {
            return Err(cost);
        };
        self.take(cost).map_err(|_| cost)
    }

    /// Waits until a request may go. Who gives up waiting has taken nothing.
    pub(crate) async fn pass(&self, cost: Cost) {
        let _turn = self.turn.lock().await;
        loop {
            // Before the look at the buckets, so that no change in between is missed.
            let changed = self.changed.notified();
            let Err(wait) = self.take(cost) else {
                return;
            };
            let _ = tokio::time::timeout(wait, changed).await;
        }
    }

    /// Takes from both buckets or from none; then how long it takes until it is worth another look.
    fn take(&self, cost: Cost) -> Result<(), Duration> {
        let now = self.origin.elapsed();
        let mut buckets = self.buckets();
        let Buckets { operations, bytes } = &mut *buckets;
        let mut both = [(operations, cost.operations), (bytes, cost.bytes)];
        let waits = both.iter().filter_map(|(bucket, units)| {
            let bucket = bucket.as_ref().filter(|_| *units > 0)?;
            Some(bucket.wait(*units, now))
        });
        let wait = waits.max().unwrap_or_default();
        if !wait.is_zero() {
            return Err(wait);
        }
        for (bucket, units) in &mut both {
            if let Some(bucket) = bucket {
                bucket.take(*units, now);
            }
        }
        Ok(())
    }

    fn buckets(&self) -> MutexGuard<'_, Buckets> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn request(command: Command, length: u32) -> Request {
        Request {
            cookie: 1,
            command,
            offset: 0,
            length,
            fua: false,
        }
    }

    fn one() -> Cost {
        Cost {
            operations: 1,
            bytes: 4096,
        }
    }

    fn iops(iops: u64) -> Limits {
        Limits {
            iops: Some(iops),
            ..Limits::default()
        }
    }

    #[test]
    fn requests_are_counted_in_pieces_of_256_kibibytes() {
        for (length, operations) in [
            (512, 1),
            (4096, 1),
            (256 << 10, 1),
            ((256 << 10) + 512, 2),
            (1 << 20, 4),
        ] {
            let cost = Cost::of(&request(Command::Write, length)).expect("counted");
            assert_eq!((cost.operations, cost.bytes), (operations, length.into()));
        }
        assert_eq!(Cost::of(&request(Command::Flush, 0)), None);
        let trim = Cost::of(&request(Command::Trim, 1 << 30)).expect("counted");
        assert_eq!((trim.operations, trim.bytes), (1, 0));
    }

    #[test]
    fn without_a_limit_nothing_is_even_counted() {
        let limiter = Limiter::new(Limits::default());
        let passed = limiter.try_pass(|| unreachable!("there is nothing to count for"));
        assert_eq!(passed, Ok(()));
    }

    #[test]
    fn the_least_burst_is_there_without_any() {
        let none = Limits {
            burst_seconds: 0,
            ..Limits::default()
        };
        assert_eq!(none.capacity(10_000), 100);
        assert_eq!(none.capacity(5), 0, "the bucket makes it one");
        let limits = Limits {
            burst_seconds: 30,
            ..none
        };
        assert_eq!(limits.capacity(10_000), 300_000);
        assert_eq!(limits.capacity(u64::MAX), u64::MAX);
    }

    #[test]
    fn both_limits_hold_and_a_refused_one_takes_from_neither() {
        let limiter = Limiter::new(Limits {
            iops: Some(1),
            bandwidth: Some(8192),
            burst_seconds: 4,
        });
        // Eight blocks of bytes, four operations.
        let passed = (0..10).filter(|_| limiter.try_pass(|| Some(one())).is_ok());
        assert_eq!(passed.count(), 4);
        let buckets = limiter.buckets();
        let bytes = buckets.bytes.as_ref().expect("a limit");
        let left = bytes.wait(4 * 4096, limiter.origin.elapsed());
        assert_eq!(left, Duration::ZERO, "bytes of the refused ones are there");
    }

    #[tokio::test]
    async fn who_waits_is_served_in_turn_and_who_leaves_takes_nothing() {
        let limiter = Arc::new(Limiter::new(iops(50)));
        while limiter.try_pass(|| Some(one())).is_ok() {}
        let (order, mut passed) = tokio::sync::mpsc::unbounded_channel();
        for number in 0..5 {
            let (limiter, order) = (Arc::clone(&limiter), order.clone());
            let waiting = tokio::spawn(async move {
                limiter.pass(one()).await;
                let _ = order.send(number);
            });
            tokio::task::yield_now().await;
            if number == 2 {
                waiting.abort();
            }
        }
        drop(order);
        assert!(
            limiter.try_pass(|| Some(one())).is_err(),
            "nobody overtakes who waits"
        );
        let mut seen = Vec::new();
        while let Some(number) = passed.recv().await {
            seen.push(number);
        }
        assert_eq!(seen, [0, 1, 3, 4]);
    }

    #[tokio::test]
    async fn a_change_is_met_by_who_waits_already() {
        let limiter = Arc::new(Limiter::new(iops(1)));
        let large = Cost {
            operations: 1_000_000,
            bytes: 0,
        };
        assert_eq!(limiter.try_pass(|| Some(large)), Ok(()), "it was full");
        let waiting = tokio::spawn({
            let limiter = Arc::clone(&limiter);
            async move { limiter.pass(one()).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "it waits for days");
        limiter.set(Limits::default());
        waiting.await.expect("it passed");
    }
}
