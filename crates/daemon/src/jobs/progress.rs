//! How far a job has come, and how fast it goes: for people to look at, never for a decision.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that are done, of how many, and when.
#[derive(Debug)]
pub(crate) struct Progress(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    done: u64,
    total: u64,
    /// What was done in this process, at some moments of the last seconds.
    moments: VecDeque<(Instant, u64)>,
    worked: u64,
}

/// What a job has done and what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    /// Bytes.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
    /// Bytes a second; none if nothing was done in the last seconds.
    pub rate: Option<u64>,
}

impl Progress {
    pub(crate) fn new(done: u64, total: u64) -> Self {
        Self(Mutex::new(State {
            done,
            total,
            ..State::default()
        }))
    }

    /// So many more bytes are done.
    pub(crate) fn add(&self, bytes: u64, now: Instant) {
        let mut state = self.state();
        state.done += bytes;
        state.total = state.total.max(state.done);
        state.worked += bytes;
        let worked = state.worked;
        // The first one is where the rate is counted from.
        if state.moments.is_empty() {
            state.moments.push_back((now, worked));
        }
        match state.moments.back() {
            Some(&(last, _)) if now.saturating_duration_since(last) < STEP => {}
            _ => state.moments.push_back((now, worked)),
        }
        state.forget_before(now);
    }

    /// So many bytes are left: what is done and what there is follow from it.
    pub(crate) fn set_left(&self, left: u64) {
        let mut state = self.state();
        state.total = state.done + left;
    }

    pub(crate) fn reached(&self, now: Instant) -> Reached {
        let mut state = self.state();
        state.forget_before(now);
        let rate = state.moments.front().and_then(|&(since, before)| {
            let elapsed = now.saturating_duration_since(since);
            let bytes = u128::from(state.worked - before);
            let rate = (bytes * 1000).checked_div(elapsed.as_millis())?;
            u64::try_from(rate).ok().filter(|&rate| rate > 0)
        });
        Reached {
            done: state.done,
            total: state.total,
            rate,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget_before(&mut self, now: Instant) {
        while let Some(&(moment, _)) = self.moments.front()
            && now.saturating_duration_since(moment) > WINDOW
        {
            self.moments.pop_front();
        }
    }
}

/// A rate is that of the last seconds.
const WINDOW: Duration = Duration::from_secs(5);
/// Moments nearer to each other than this are one.
const STEP: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_seconds() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let progress = Progress::new(1 << 20, 10 << 20);
        assert_eq!(progress.reached(at(0)).rate, None);
        for tenth in 0..=10 {
            progress.add(100, at(tenth * 100));
        }
        let reached = progress.reached(at(1000));
        assert_eq!(
            (reached.done, reached.total, reached.rate),
            ((1 << 20) + 1100, 10 << 20, Some(1000))
        );
        assert_eq!(progress.reached(at(60_000)).rate, None, "it stands still");
    }

    #[test]
    fn what_is_done_is_never_more_than_there_is() {
        let progress = Progress::new(0, 4096);
        progress.add(8192, Instant::now());
        let reached = progress.reached(Instant::now());
        assert_eq!((reached.done, reached.total), (8192, 8192));
        progress.set_left(4096);
        assert_eq!(progress.reached(Instant::now()).total, 12_288);
    }
}
