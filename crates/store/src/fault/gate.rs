//! Holding an operation until the test lets it go.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Where an operation is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// It has reached nothing yet: reads do not see it, a crash cannot keep it.
    Before,
    /// It has happened (a write is in the disk's cache, a sync has done its work), but whoever
    /// waits for it does not know, and no sync that starts meanwhile covers it.
    After,
}

/// Operations that wait until [`release`](Self::release). A clone is the same gate.
#[derive(Clone, Default)]
pub struct Gate {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    open: bool,
    held: usize,
    wakers: Vec<Waker>,
}

impl Gate {
    /// Lets everything go that is held, and whatever comes later.
    pub fn release(&self) {
        let mut state = self.state();
        state.open = true;
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// How many operations are held now.
    #[must_use]
    pub fn held(&self) -> usize {
        self.state().held
    }

    /// Passes when the gate is open.
    pub(super) fn pass(&self) -> Pass<'_> {
        Pass {
            gate: self,
            counted: false,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One operation on its way through a gate.
pub(super) struct Pass<'a> {
    gate: &'a Gate,
    counted: bool,
}

impl Future for Pass<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let gate = self.gate;
        let mut state = gate.state();
        if state.open {
            return Poll::Ready(());
        }
        if !self.counted {
            self.counted = true;
            state.held += 1;
        }
        state.wakers.push(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.counted {
            self.gate.state().held -= 1;
        }
    }
}
