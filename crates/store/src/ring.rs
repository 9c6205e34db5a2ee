//! io_uring for threads that serve requests: one ring a thread, many operations in a system call.
//!
//! A thread that has an event loop becomes a [`Worker`]. From then on what the stores of this
//! crate have for a ring goes through that of the polling thread; operations are collected, and
//! [`turn`] submits them together and wakes whoever waits for one that has completed. Other
//! threads need nothing: there the stores use the threads of this crate.
//!
//! ```text
//!   begin ─▶ collected ─▶ turn: submitted ─▶ kernel ─▶ turn: landed, its waiter is woken ─▶ polled
//!                 (also when many are)          └─▶ the worker's descriptor becomes readable
//! ```
//! A worker calls [`submit`] before it sleeps, and [`turn`] when its descriptor has become readable.
//! Watched edge-triggered nobody has to read from that (it is an eventfd); else it is read empty
//! first.
//!
//! What always holds:
//!
//! * An operation that was begun is done, also when nobody waits for it any more; its buffer and
//!   its file belong to the ring until then. A worker that ends waits for all of them.
//! * Each waiter is woken by its own completion, on whichever thread it polls.
//! * No waker is called, cloned or dropped while anything of this module is borrowed or locked.
//!
//! Never: a wait in [`submit`] or [`turn`], and a ring for a thread that has nothing for it.

use std::cell::{Cell, RefCell};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, write};

use crate::IoBuf;
use crate::sys::{File, Queue, Transfer};

/// Operations that are submitted without waiting for [`turn`]: the disk works on them while the
/// worker prepares the next. Measured on a virtio disk, 4 KiB at depth 32: batches of 1 to 4 are
/// alike, those of 16 and 32 lose 10 to 20 %.
const BATCH: usize = 4;
/// Entries of the submission queue.
const QUEUE: u32 = 64;
/// Operations of one ring in flight; what goes beyond is done on the threads of this crate.
const IN_FLIGHT_MAX: u32 = 512;

thread_local! {
    static HERE: RefCell<Option<Ring>> = const { RefCell::new(None) };
    /// Memory for the wakers of one turn.
    static WAKERS: Cell<Vec<Waker>> = const { Cell::new(Vec::new()) };
}

/// A thread that submits and reaps, until this is dropped: then it waits for everything in flight.
/// Its descriptor becomes readable, each time anew, when completions arrive.
pub struct Worker {
    event: Arc<OwnedFd>,
    _stays: PhantomData<*const ()>,
}

impl Worker {
    /// Makes the calling thread a worker. The ring itself is made with the first operation for it;
    /// where the kernel refuses one, the thread works like any other.
    ///
    /// # Errors
    /// If there is no descriptor left.
    ///
    /// # Panics
    /// If the thread is a worker already.
    pub fn start() -> io::Result<Self> {
        let event = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        HERE.with_borrow_mut(|here| {
            assert!(here.is_none(), "this thread is a worker already");
            *here = Some(Ring {
                event: Arc::clone(&event),
                queue: None,
                refused: false,
                landing: Arc::default(),
            });
        });
        Ok(Self {
            event,
            _stays: PhantomData,
        })
    }
}

impl AsFd for Worker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl AsRawFd for Worker {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // A thread that is ending has dropped its ring already, or will.
        let ring = HERE.try_with(|here| here.borrow_mut().take());
        drop(ring);
    }
}

/// Submits what was begun on this thread. Does not wait; does nothing on a thread that is no
/// worker, and next to nothing if there is nothing.
pub fn submit() {
    // A thread that is ending has no ring any more.
    let _ = HERE.try_with(|here| {
        if let Some(ring) = &mut *here.borrow_mut() {
            ring.submit();
        }
    });
}

/// [`submit`], and wakes whoever waits for what has completed.
pub fn turn() {
    let mut wakers = WAKERS.take();
    // A thread that is ending has no ring any more.
    let _ = HERE.try_with(|here| {
        if let Some(ring) = &mut *here.borrow_mut() {
            ring.turn(&mut wakers);
        }
    });
    for waker in wakers.drain(..) {
        waker.wake();
    }
    WAKERS.set(wakers);
}

/// Whether this process may have rings at all. Found out once.
pub fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        eventfd(0, EventfdFlags::CLOEXEC)
            .is_ok_and(|event| Queue::new(1, IN_FLIGHT_MAX, event.as_fd()).is_ok())
    })
}

/// Begins an operation on this thread's ring, for all of `buf` but the first `done` bytes; `offset`
/// is that of the first. Gives the buffer back if there is no ring, or it is full.
pub(crate) fn begin(
    transfer: Transfer,
    file: impl FnOnce() -> File,
    offset: u64,
    buf: IoBuf,
    done: usize,
) -> Result<Flight, IoBuf> {
    let mut given = Some(buf);
    // A thread that is ending has no ring any more.
    let begun = HERE.try_with(|here| {
        let mut here = here.borrow_mut();
        let (ring, buf) = (here.as_mut()?, given.take()?);
        match ring.begin(transfer, file, offset, buf, done) {
            Ok(flight) => Some(flight),
            Err(buf) => {
                given = Some(buf);
                None
            }
        }
    });
    match (begun, given) {
        (Ok(Some(flight)), _) => Ok(flight),
        (_, given) => Err(given.unwrap_or_else(|| IoBuf::zeroed(0))),
    }
}

struct Ring {
    event: Arc<OwnedFd>,
    queue: Option<Queue>,
    /// The kernel gave no queue: it is not asked again.
    refused: bool,
    landing: Arc<Landing>,
}

impl Ring {
    fn begin(
        &mut self,
        transfer: Transfer,
        file: impl FnOnce() -> File,
        offset: u64,
        buf: IoBuf,
        done: usize,
    ) -> Result<Flight, IoBuf> {
        let Some(queue) = opened(&mut self.queue, &mut self.refused, &self.event) else {
            return Err(buf);
        };
        if queue.in_flight() >= IN_FLIGHT_MAX as usize {
            return Err(buf);
        }
        let slot = locked(&self.landing.slots).reserve();
        if let Err(buf) = queue.push(slot, transfer, file(), offset, buf, done) {
            // Full, because the kernel takes nothing at the moment.
            locked(&self.landing.slots).release(slot);
            return Err(buf);
        }
        let flight = Flight {
            landing: Arc::clone(&self.landing),
            slot,
            is_over: false,
        };
        if queue.pushed() >= BATCH {
            // If the kernel cannot take it now, the next turn tries again.
            let _ = queue.submit();
        }
        Ok(flight)
    }

    fn submit(&mut self) {
        let Some(queue) = &mut self.queue else {
            return;
        };
        if queue.submit().is_err() {
            // The kernel is out of memory, or wants its completions taken first. Nothing else
            // might wake this thread, so it does it itself and tries again.
            let _ = write(&self.event, &1u64.to_ne_bytes());
        }
    }

    fn turn(&mut self, wakers: &mut Vec<Waker>) {
        self.submit();
        let (Some(queue), landing) = (&mut self.queue, &self.landing) else {
            return;
        };
        queue.reap(|slot, buf, result| {
            let waker = locked(&landing.slots).land(slot, buf, result);
            wakers.extend(waker);
        });
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let Some(queue) = &mut self.queue else {
            return;
        };
        let (landing, mut wakers) = (&self.landing, Vec::new());
        let finished = queue.finish(|slot, buf, result| {
            wakers.extend(locked(&landing.slots).land(slot, buf, result));
        });
        if finished.is_err() {
            wakers.extend(locked(&landing.slots).lose());
        }
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// The queue, made now if this is its first use.
fn opened<'a>(
    queue: &'a mut Option<Queue>,
    refused: &mut bool,
    event: &OwnedFd,
) -> Option<&'a mut Queue> {
    if queue.is_none() && !*refused {
        *queue = Queue::new(QUEUE, IN_FLIGHT_MAX, event.as_fd()).ok();
        *refused = queue.is_none();
    }
    queue.as_mut()
}

/// Where operations of one ring are waited for.
#[derive(Default)]
struct Landing {
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    slots: Vec<Slot>,
    free: Vec<usize>,
}

enum Slot {
    Free,
    Flying(Option<Waker>),
    /// Nobody waits for it any more.
    Abandoned,
    Landed(IoBuf, Result<usize, Errno>),
    /// The ring broke: the buffer is gone.
    Lost,
}

impl Slots {
    fn reserve(&mut self) -> usize {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::Free);
            self.slots.len() - 1
        });
        self.slots[slot] = Slot::Flying(None);
        slot
    }

    fn release(&mut self, slot: usize) {
        self.slots[slot] = Slot::Free;
        self.free.push(slot);
    }

    /// Notes a completion; returns who is to be woken.
    fn land(&mut self, slot: usize, buf: IoBuf, result: Result<usize, Errno>) -> Option<Waker> {
        match std::mem::replace(&mut self.slots[slot], Slot::Landed(buf, result)) {
            Slot::Flying(waker) => waker,
            // Only a flying operation lands: it was abandoned.
            _ => {
                self.release(slot);
                None
            }
        }
    }

    /// Gives up everything that is flying; returns who is to be woken.
    fn lose(&mut self) -> Vec<Waker> {
        let mut wakers = Vec::new();
        for slot in &mut self.slots {
            if let Slot::Flying(waker) = slot {
                wakers.extend(waker.take());
                *slot = Slot::Lost;
            }
        }
        wakers
    }
}

/// An operation in flight: ready with its buffer, and the bytes that were moved or the error.
pub(crate) struct Flight {
    landing: Arc<Landing>,
    slot: usize,
    is_over: bool,
}

impl Future for Flight {
    type Output = (IoBuf, Result<usize, Errno>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        assert!(!self.is_over, "a flight was polled after it was over");
        let waker = context.waker().clone();
        let mut slots = locked(&self.landing.slots);
        let slot = &mut slots.slots[self.slot];
        if let Slot::Flying(waiting) = slot {
            // Dropped once nothing is locked any more: a waker may own another flight.
            let before = waiting.replace(waker);
            drop(slots);
            drop(before);
            return Poll::Pending;
        }
        let landed = std::mem::replace(slot, Slot::Free);
        slots.release(self.slot);
        drop(slots);
        self.is_over = true;
        Poll::Ready(match landed {
            Slot::Landed(buf, result) => (buf, result),
            _ => (IoBuf::zeroed(0), Err(Errno::IO)),
        })
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let mut slots = locked(&self.landing.slots);
        let before = std::mem::replace(&mut slots.slots[self.slot], Slot::Abandoned);
        if !matches!(before, Slot::Flying(_)) {
            slots.release(self.slot);
        }
        drop(slots);
        // May hold a waker, which may own another flight.
        drop(before);
    }
}

/// Locks a mutex under which nothing can panic but by a mistake in this file.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
