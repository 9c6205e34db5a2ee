//! The primitives of the crate's `sync.rs`, under the scheduler. An [`Event`] and an [`AsyncMutex`] do what the documentation
//! of the real ones promises, step by step and nothing more.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

pub(crate) use shuttle::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
pub(crate) use shuttle::sync::{Mutex, MutexGuard};
pub(crate) use std::sync::PoisonError;

/// Wakes all that listen when it is notified.
#[derive(Default)]
pub(crate) struct Event(Mutex<Listeners>);

#[derive(Default)]
struct Listeners {
    next: u64,
    /// Those that were not notified yet.
    waiting: Vec<(u64, Option<Waker>)>,
}

/// Hears of every notification from its making on.
pub(crate) struct Listener<'a> {
    event: &'a Event,
    number: u64,
}

impl Event {
    pub(crate) fn listen(&self) -> Listener<'_> {
        let mut listeners = self.0.lock().unwrap();
        listeners.next += 1;
        let number = listeners.next;
        listeners.waiting.push((number, None));
        Listener {
            event: self,
            number,
        }
    }

    pub(crate) fn notify(&self, how_many: usize) {
        assert_eq!(how_many, usize::MAX, "all of them are woken, always");
        let woken = std::mem::take(&mut self.0.lock().unwrap().waiting);
        for (_, waker) in woken {
            waker.into_iter().for_each(Waker::wake);
        }
    }
}

impl Future for Listener<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut listeners = self.event.0.lock().unwrap();
        let mut waiting = listeners.waiting.iter_mut();
        match waiting.find(|(number, _)| *number == self.number) {
            Some((_, waker)) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
            None => Poll::Ready(()),
        }
    }
}

impl Drop for Listener<'_> {
    fn drop(&mut self) {
        let mut listeners = self.event.0.lock().unwrap();
        listeners
            .waiting
            .retain(|(number, _)| *number != self.number);
    }
}

/// Makes a listener with this name.
macro_rules! listener {
    ($event:expr => $name:ident) => {
        let $name = $event.listen();
    };
}
pub(crate) use listener;

/// A mutex that is waited for asynchronously.
#[derive(Default)]
pub(crate) struct AsyncMutex<T> {
    taken: Mutex<bool>,
    free: Event,
    _of: std::marker::PhantomData<T>,
}

pub(crate) struct AsyncMutexGuard<'a, T>(&'a AsyncMutex<T>);

impl<T> AsyncMutex<T> {
    pub(crate) async fn lock(&self) -> AsyncMutexGuard<'_, T> {
        loop {
            listener!(self.free => free);
            if !std::mem::replace(&mut *self.taken.lock().unwrap(), true) {
                return AsyncMutexGuard(self);
            }
            free.await;
        }
    }
}

impl<T> Drop for AsyncMutexGuard<'_, T> {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap() = false;
        self.0.free.notify(usize::MAX);
    }
}
