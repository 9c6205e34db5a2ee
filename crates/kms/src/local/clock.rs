//! Time, as far as a key's life depends on it, and why a clock that jumps destroys nothing.
//!
//! A waiting period is over when *two* clocks say so: the wall clock, and the time that the host was seen to run. Somebody who
//! sets the wall clock a month ahead, or a battery that has died, moves the one and not the other.
//!
//! # Where the running time comes from
//! The key child lives for one batch, so it can count nothing itself. The database keeps the last [`Reading`] of the clocks
//! and a count of milliseconds. Whoever changes the database, and the daemon by `Tend` once an hour while it runs, takes a
//! new reading and adds [`Reading::since`] the former one:
//!
//! - within one boot, what CLOCK_MONOTONIC went on by. Nobody can set that clock, and it stands still while the host sleeps:
//!   CLOCK_BOOTTIME would add what the hardware clock claims about a sleep;
//! - after a restart, what CLOCK_MONOTONIC shows: that much has passed since the boot, and all of it after the former reading.
//!   What ran between that reading and the end of its boot is lost, at most an hour;
//! - and never more than the wall clock went on by. So a clock that was set back delays a destruction and never hastens one.
//!
//! Nothing is counted twice, since the reading is stored together with the count; the count stands under the table's MAC.
//!
//! A rotation harms nothing when it comes early, so there either clock is enough: a clock that was set back doesn't put it
//! off for ever.
//!
//! When imported key material expires, the key refuses its use as soon as either clock says so, which a clock that is put right
//! takes back; the material is destroyed when both say so.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// Seconds of a day.
pub const DAY: u64 = 86_400;

/// What the host's clocks show at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Random number of this boot.
    pub boot: [u8; 16],
    /// Milliseconds that this boot has run: CLOCK_MONOTONIC.
    pub running: u64,
    /// Milliseconds since 1970: CLOCK_REALTIME.
    pub wall: u64,
}

impl Reading {
    /// Milliseconds that the host was seen to run between `before` and this reading: never more than did pass.
    #[must_use]
    pub fn since(&self, before: &Self) -> u64 {
        let ran = if self.boot == before.boot {
            self.running.saturating_sub(before.running)
        } else {
            self.running
        };
        ran.min(self.wall.saturating_sub(before.wall))
    }
}

/// Where the provider gets the time from: given when it is made, and by nothing else.
pub trait Clock {
    /// What the clocks show now.
    ///
    /// # Errors
    /// When the host does not tell.
    fn read(&self) -> io::Result<Reading>;
}

/// The host's own clocks.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock;

/// Where Linux tells the number of the boot.
pub(crate) const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl Clock for SystemClock {
    fn read(&self) -> io::Result<Reading> {
        let text = std::fs::read_to_string(BOOT_ID)?;
        let boot = uuid::Uuid::try_parse(text.trim()).map_err(io::Error::other)?;
        let running = clock_gettime(ClockId::Monotonic);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        let milliseconds =
            |seconds: u64, nanoseconds: u64| seconds * 1000 + nanoseconds / 1_000_000;
        Ok(Reading {
            boot: boot.into_bytes(),
            running: milliseconds(
                running.tv_sec.try_into().unwrap_or(0),
                running.tv_nsec.try_into().unwrap_or(0),
            ),
            wall: wall.map_or(0, |since| {
                milliseconds(since.as_secs(), since.subsec_nanos().into())
            }),
        })
    }
}

/// Now, by the two clocks that a deadline has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Now {
    /// Seconds since 1970.
    pub(super) wall: u64,
    /// Milliseconds counted since the database was made.
    pub(super) counted: u64,
    /// What the count is as of.
    pub(super) reading: Reading,
}

impl Now {
    /// The deadline of something that begins now and takes so many seconds.
    pub(super) fn after(&self, seconds: u64) -> Deadline {
        Deadline {
            wall: self.wall.saturating_add(seconds),
            counted: self.counted.saturating_add(seconds.saturating_mul(1000)),
        }
    }
}

/// A moment by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deadline {
    /// Seconds since 1970.
    pub(super) wall: u64,
    /// Milliseconds counted since the database was made.
    pub(super) counted: u64,
}

impl Deadline {
    /// One that was over before there was a database.
    pub(super) const PAST: Self = Self {
        wall: 0,
        counted: 0,
    };

    /// Both clocks are past it: for what can't be undone.
    pub(super) fn is_over(&self, now: &Now) -> bool {
        now.wall >= self.wall && now.counted >= self.counted
    }

    /// Either clock is past it: for what does no harm when it is early.
    pub(super) fn is_due(&self, now: &Now) -> bool {
        now.wall >= self.wall || now.counted >= self.counted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(boot: u8, running: u64, wall: u64) -> Reading {
        Reading {
            boot: [boot; 16],
            running,
            wall,
        }
    }

    #[test]
    fn no_more_is_counted_than_did_pass_by_either_clock() {
        let before = at(1, 1_000, 50_000);
        for (now, counted, case) in [
            (at(1, 4_000, 53_000), 3_000, "both go on"),
            (
                at(1, 4_000, 90_000_000),
                3_000,
                "the wall clock jumps ahead",
            ),
            (at(1, 4_000, 50_500), 500, "it goes slower"),
            (at(1, 4_000, 10), 0, "it is set back"),
            (at(2, 700, 90_000_000), 700, "a restart, long off"),
            (
                at(2, 700, 50_100),
                100,
                "a restart, and the clock went back meanwhile",
            ),
            (at(1, 900, 60_000), 0, "a reading older than the last"),
        ] {
            assert_eq!(now.since(&before), counted, "{case}");
        }
    }

    #[test]
    fn the_hosts_clocks_are_read() {
        let (first, second) = (
            SystemClock.read().expect("told"),
            SystemClock.read().expect("told"),
        );
        assert_eq!(first.boot, second.boot);
        assert!(first.running <= second.running && first.running > 0);
        assert!(first.wall > 1_700_000_000_000);
    }
}
