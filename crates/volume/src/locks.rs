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
use std::task::{Context, Poll, Waker};

use crate::sync::{Event, Mutex, MutexGuard, PoisonError, listener};

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
        let (woken, graces) = {
            let mut state = self.state();
            state.held.retain(|claim| claim.id != id);
            state.waiting.retain(|(claim, _)| claim.id != id);
            (state.grant(), state.graces)
        };
        // Not under the mutex: whoever is woken takes it at once, and what a waker does is not this file's to know.
        woken.into_iter().for_each(Waker::wake);
        if graces > 0 {
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
