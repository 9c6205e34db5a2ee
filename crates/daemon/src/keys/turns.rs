//! Whose turn it is to ask a key service, and how long anybody waits.
//!
//! What always holds:
//! - no more than [`AT_ONCE`] batches are out at a provider at a time; the others wait in the order in which they came;
//! - while the provider serves others, waiting for a turn takes nothing from a batch's time, nor does being told to ask less
//!   often: a thousand volumes that are attached at once all get their keys, however few calls in a second there are for them;
//! - when nobody has been served for a whole deadline, whoever waits gives up, so an outage is told to all within one.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

/// Batches at a provider at once. Each is a process; more of them would wait for each other's processor, and a service that is
/// asked too often would hear from more of them at once.
const AT_ONCE: usize = 8;

/// The turns of each provider.
#[derive(Debug)]
pub(super) struct Turns(BTreeMap<String, Lane>);

impl Turns {
    pub(super) fn new<'a>(providers: impl Iterator<Item = &'a String>) -> Self {
        Self(providers.map(|name| (name.clone(), Lane::new())).collect())
    }

    /// Those of a provider, if it is configured.
    pub(super) fn of(&self, provider: &str) -> Option<&Lane> {
        self.0.get(provider)
    }
}

/// The turns of one provider.
#[derive(Debug)]
pub(super) struct Lane {
    room: Semaphore,
    /// When it last did what it was asked, or refused it for good.
    served: Mutex<Instant>,
}

impl Lane {
    fn new() -> Self {
        Self {
            room: Semaphore::new(AT_ONCE),
            served: Mutex::new(Instant::now()),
        }
    }

    /// Waits for a turn, which ends with what is returned; none if nobody is served any more.
    pub(super) async fn turn(
        &self,
        asked: Instant,
        deadline: Duration,
    ) -> Option<SemaphorePermit<'_>> {
        let mut turn = pin!(self.room.acquire());
        loop {
            let until = self.until(asked, deadline);
            if let Ok(turn) = timeout_at(until, turn.as_mut()).await {
                return turn.ok();
            }
            // Others may have been served meanwhile.
            if self.until(asked, deadline) <= until {
                return None;
            }
        }
    }

    /// When a batch that was asked for then gives up, as long as nothing but its turn and the service's limit is in its way.
    pub(super) fn until(&self, asked: Instant, deadline: Duration) -> Instant {
        asked.max(*self.served()) + deadline
    }

    /// That the provider did what it was asked.
    pub(super) fn has_served(&self) {
        *self.served() = Instant::now();
    }

    fn served(&self) -> MutexGuard<'_, Instant> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        runtime.expect("a runtime").block_on(test);
    }

    async fn all_taken(lane: &Lane) -> Vec<SemaphorePermit<'_>> {
        let mut turns = Vec::new();
        for _ in 0..AT_ONCE {
            let turn = lane.turn(Instant::now(), Duration::from_secs(60)).await;
            turns.push(turn.expect("there is room"));
        }
        turns
    }

    #[test]
    fn who_waits_gives_up_when_nobody_is_served_and_not_before() {
        run(async {
            let lane = Lane::new();
            let deadline = Duration::from_secs(1);
            let mut turns = all_taken(&lane).await;
            assert!(lane.turn(Instant::now(), deadline).await.is_none());

            // It waits on while others are served, far over its own time.
            let served = async {
                for _ in 0..8 {
                    tokio::time::sleep(deadline / 4).await;
                    lane.has_served();
                }
                drop(turns.pop());
            };
            let (turn, ()) = tokio::join!(lane.turn(Instant::now(), deadline), served);
            assert!(turn.is_some());
        });
    }

    #[test]
    fn turns_are_taken_in_the_order_in_which_they_were_asked_for() {
        run(async {
            let lane = Lane::new();
            let mut held = all_taken(&lane).await;
            let order = Mutex::new(Vec::new());
            let wait = async |number: usize| {
                let turn = lane.turn(Instant::now(), Duration::from_secs(60)).await;
                order.lock().expect("no panic").push(number);
                drop(turn);
            };
            // One, which each who waits hands on to the next.
            let free = async { held.truncate(AT_ONCE - 1) };
            tokio::join!(wait(1), wait(2), wait(3), free);
            assert_eq!(*order.lock().expect("no panic"), [1, 2, 3]);
        });
    }
}
