//! Range locks: who may change which blocks while a store call is under way.
//!
//! Always: first come, first served (a request waits behind every earlier one that it conflicts
//! with, held or waiting, so nobody starves); a request names all its blocks at once, in one range, so there is no order to
//! get wrong and no deadlock. Shared with shared never conflicts.
//! Never: held across anything but store calls and waits for them; a lock is no place to wait for a client.
//!
//! Shared: whole-sector writes to blocks that are `data` already (overlapping ones land in either order,
//! as on a disk). Exclusive: first writes, read-modify-write, zero, trim, punch.

use std::collections::VecDeque;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use event_listener::{Event, listener};

/// How a range is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Shared,
    Exclusive,
}

/// The locks of one volume, over its block numbers.
#[derive(Default)]
pub(crate) struct RangeLocks {
    state: Mutex<State>,
    released: Event,
}

#[derive(Default)]
struct State {
    next_id: u64,
    /// How many wait in [`RangeLocks::grace`].
    graces: usize,
    held: Vec<Claim>,
    waiting: VecDeque<(Claim, Option<Waker>)>,
}

#[derive(Clone)]
struct Claim {
    id: u64,
    blocks: Range<u64>,
    mode: Mode,
}

impl Claim {
    fn conflicts(&self, other: &Self) -> bool {
        let overlap = self.blocks.start < other.blocks.end && other.blocks.start < self.blocks.end;
        overlap && (self.mode == Mode::Exclusive || other.mode == Mode::Exclusive)
    }
}

impl RangeLocks {
    /// Waits for its turn, then holds `blocks` until the guard is dropped.
    pub(crate) fn lock(&self, blocks: Range<u64>, mode: Mode) -> Lock<'_> {
        Lock {
            locks: self,
            claim: Claim {
                id: 0,
                blocks,
                mode,
            },
            stage: Stage::New,
        }
    }

    /// Waits until whoever holds a lock now has let it go. Those that come later are not waited for.
    pub(crate) async fn grace(&self) {
        let last = {
            let mut state = self.state();
            state.graces += 1;
            state.next_id
        };
        loop {
            listener!(self.released => released);
            {
                let mut state = self.state();
                if state.held.iter().all(|claim| claim.id > last) {
                    state.graces -= 1;
                    return;
                }
            }
            released.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under this mutex panics half-way; its state is whole even if a holder did.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn release(&self, id: u64) {
        let mut state = self.state();
        state.held.retain(|claim| claim.id != id);
        state.waiting.retain(|(claim, _)| claim.id != id);
        for waker in state.grant() {
            waker.wake();
        }
        if state.graces > 0 {
            self.released.notify(usize::MAX);
        }
    }
}

impl State {
    /// Moves every waiting claim whose turn has come to the held ones.
    fn grant(&mut self) -> Vec<Waker> {
        let mut woken = Vec::new();
        let mut at = 0;
        while at < self.waiting.len() {
            let claim = &self.waiting[at].0;
            let blocked = self.held.iter().any(|other| other.conflicts(claim))
                || self
                    .waiting
                    .iter()
                    .take(at)
                    .any(|(other, _)| other.conflicts(claim));
            if blocked {
                at += 1;
                continue;
            }
            if let Some((claim, waker)) = self.waiting.remove(at) {
                self.held.push(claim);
                woken.extend(waker);
            }
        }
        woken
    }
}

/// The wait for a range.
pub(crate) struct Lock<'a> {
    locks: &'a RangeLocks,
    claim: Claim,
    stage: Stage,
}

#[derive(PartialEq)]
enum Stage {
    New,
    Waiting,
    Done,
}

impl<'a> Future for Lock<'a> {
    type Output = Guard<'a>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Guard<'a>> {
        let this = self.get_mut();
        let mut state = this.locks.state();
        if this.stage == Stage::New {
            state.next_id += 1;
            this.claim.id = state.next_id;
            let blocked = state.held.iter().any(|other| other.conflicts(&this.claim))
                || state
                    .waiting
                    .iter()
                    .any(|(other, _)| other.conflicts(&this.claim));
            if blocked {
                state
                    .waiting
                    .push_back((this.claim.clone(), Some(context.waker().clone())));
                this.stage = Stage::Waiting;
                return Poll::Pending;
            }
            state.held.push(this.claim.clone());
        } else if let Some((_, waker)) = state
            .waiting
            .iter_mut()
            .find(|(claim, _)| claim.id == this.claim.id)
        {
            *waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        this.stage = Stage::Done;
        Poll::Ready(Guard {
            locks: this.locks,
            id: this.claim.id,
        })
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        if self.stage == Stage::Waiting {
            self.locks.release(self.claim.id);
        }
    }
}

/// A held range; dropping it lets the next ones in.
pub(crate) struct Guard<'a> {
    locks: &'a RangeLocks,
    id: u64,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.locks.release(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll<'a>(lock: &mut Lock<'a>) -> Option<Guard<'a>> {
        match Pin::new(lock).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(guard) => Some(guard),
            Poll::Pending => None,
        }
    }

    #[test]
    fn shared_ranges_overlap_and_exclusive_ones_do_not() {
        let locks = RangeLocks::default();
        let first = poll(&mut locks.lock(0..10, Mode::Shared)).unwrap();
        let second = poll(&mut locks.lock(5..15, Mode::Shared)).unwrap();
        let mut third = locks.lock(9..10, Mode::Exclusive);
        assert!(poll(&mut third).is_none());
        drop(first);
        assert!(poll(&mut third).is_none());
        drop(second);
        assert!(poll(&mut third).is_some());
    }

    #[test]
    fn a_later_request_does_not_overtake_an_earlier_one_that_it_conflicts_with() {
        let locks = RangeLocks::default();
        let reader = poll(&mut locks.lock(0..1, Mode::Shared)).unwrap();
        let mut writer = locks.lock(0..2, Mode::Exclusive);
        assert!(poll(&mut writer).is_none());
        let mut late = locks.lock(1..2, Mode::Shared);
        assert!(poll(&mut late).is_none(), "overtook the waiting writer");
        assert!(
            poll(&mut locks.lock(2..3, Mode::Exclusive)).is_some(),
            "no conflict, no wait"
        );
        drop(reader);
        let writer = poll(&mut writer).unwrap();
        assert!(poll(&mut late).is_none());
        drop(writer);
        assert!(poll(&mut late).is_some());
    }

    #[test]
    fn a_wait_that_is_given_up_blocks_nobody() {
        let locks = RangeLocks::default();
        let held = poll(&mut locks.lock(0..4, Mode::Shared)).unwrap();
        let mut given_up = locks.lock(0..4, Mode::Exclusive);
        assert!(poll(&mut given_up).is_none());
        let mut behind = locks.lock(3..4, Mode::Shared);
        assert!(poll(&mut behind).is_none());
        drop(given_up);
        assert!(poll(&mut behind).is_some());
        drop(held);
        let state = locks.state();
        assert!(state.held.is_empty() && state.waiting.is_empty());
    }

    #[test]
    fn a_grace_waits_for_those_that_hold_a_lock_and_for_nobody_else() {
        let locks = RangeLocks::default();
        let mut context = Context::from_waker(Waker::noop());
        let held = poll(&mut locks.lock(0..4, Mode::Exclusive)).unwrap();
        let mut behind = locks.lock(0..4, Mode::Shared);
        assert!(poll(&mut behind).is_none());
        let mut grace = std::pin::pin!(locks.grace());
        assert!(grace.as_mut().poll(&mut context).is_pending());
        let late = poll(&mut locks.lock(5..6, Mode::Exclusive)).unwrap();
        assert!(grace.as_mut().poll(&mut context).is_pending());
        drop(held);
        drop(poll(&mut behind).unwrap());
        assert!(grace.as_mut().poll(&mut context).is_ready());
        drop(late);
    }

    #[test]
    fn a_grant_that_nobody_polled_is_given_back() {
        let locks = RangeLocks::default();
        let held = poll(&mut locks.lock(0..4, Mode::Exclusive)).unwrap();
        let mut granted = locks.lock(0..4, Mode::Exclusive);
        assert!(poll(&mut granted).is_none());
        drop(held);
        drop(granted);
        assert!(poll(&mut locks.lock(0..4, Mode::Exclusive)).is_some());
    }
}
