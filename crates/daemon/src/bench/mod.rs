//! How fast this machine and this daemon are, for `sealvol bench`.
//!
//! | what is measured | file |
//! |---|---|
//! | the cipher, on one core | `cipher.rs` |
//! | one NBD client's load on a volume | `load.rs` |
//! | who was running meanwhile, and so what the limit was | `processor.rs` |
//!
//! Always: one measurement at a time, of a time that was asked for within bounds, on a thread that may block; it ends soon
//! after its caller has gone away or the daemon is told to stop.
//! Never: a volume of anybody else.

pub(crate) mod cipher;
pub(crate) mod load;
mod processor;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use sealvol_control::api::bench::{Bench, MILLISECONDS};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::error::Error;

/// Where measurements are asked for.
#[derive(Default)]
pub(crate) struct Benches {
    turn: Arc<Mutex<()>>,
    stopping: Arc<AtomicBool>,
}

impl Benches {
    /// Leave to measure now.
    ///
    /// # Errors
    /// [`Error::Measuring`] while another one is, [`Error::BadRequest`] for a time out of bounds.
    pub(crate) fn begin(&self, request: &Bench, wanted: Weak<()>) -> Result<Measurement, Error> {
        let milliseconds = request.milliseconds;
        if !MILLISECONDS.contains(&milliseconds) {
            let (low, high) = MILLISECONDS.into_inner();
            return Err(Error::BadRequest(format!(
                "a row can be measured for {low} to {high} milliseconds, not {milliseconds}"
            )));
        }
        let turn = Arc::clone(&self.turn).try_lock_owned();
        Ok(Measurement {
            _turn: turn.map_err(|_| Error::Measuring)?,
            time: Duration::from_millis(milliseconds),
            wanted,
            stopping: Arc::clone(&self.stopping),
        })
    }

    /// Ends the one that goes on; for good.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

/// The one measurement that goes on, as long as this value lives.
pub(crate) struct Measurement {
    _turn: OwnedMutexGuard<()>,
    /// How long each row is measured.
    time: Duration,
    /// Dead when whoever asked has gone away.
    wanted: Weak<()>,
    stopping: Arc<AtomicBool>,
}

impl Measurement {
    /// Asked again and again while it goes on.
    ///
    /// # Errors
    /// [`Error::MeasurementEnded`] when nobody waits for it any more, or the daemon is stopping.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.wanted.strong_count() == 0 || self.stopping.load(Ordering::Relaxed) {
            return Err(Error::MeasurementEnded);
        }
        Ok(())
    }
}

/// So many in that time, as so many a second.
fn per_second(count: u64, elapsed: Duration) -> u64 {
    let nanoseconds = elapsed.as_nanos().max(1);
    u64::try_from(u128::from(count) * 1_000_000_000 / nanoseconds).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(milliseconds: u64) -> Bench {
        Bench { milliseconds }
    }

    #[test]
    fn there_is_one_at_a_time_and_none_of_a_time_out_of_bounds() {
        let benches = Benches::default();
        let caller = Arc::new(());
        let begin = |ms| benches.begin(&ask(ms), Arc::downgrade(&caller));
        assert!(matches!(begin(49), Err(Error::BadRequest(_))));
        assert!(matches!(begin(30_001), Err(Error::BadRequest(_))));
        let first = begin(50).expect("nobody measures");
        assert!(matches!(begin(50), Err(Error::Measuring)));
        drop(first);
        assert!(begin(30_000).is_ok());
    }

    #[test]
    fn it_ends_when_its_caller_goes_away_or_the_daemon_stops() {
        let benches = Benches::default();
        let caller = Arc::new(());
        let measurement = benches
            .begin(&ask(100), Arc::downgrade(&caller))
            .expect("nobody measures");
        assert!(measurement.check().is_ok());
        drop(caller);
        assert!(matches!(measurement.check(), Err(Error::MeasurementEnded)));
        drop(measurement);
        let caller = Arc::new(());
        let measurement = benches
            .begin(&ask(100), Arc::downgrade(&caller))
            .expect("nobody measures");
        benches.stop();
        assert!(measurement.check().is_err());
    }

    #[test]
    fn rates_are_of_a_second() {
        assert_eq!(per_second(10, Duration::from_millis(500)), 20);
        assert_eq!(per_second(1 << 40, Duration::from_secs(2)), 1 << 39);
        assert_eq!(per_second(0, Duration::ZERO), 0);
    }
}
