//! The smallest event loop that a worker with a ring can have: one future, one descriptor.

use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, ThreadId};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{read, retry_on_intr, write};
use sealvol_store::ring::{Worker, turn};

/// Notes that the future is to be polled; from other threads it makes the worker's own descriptor
/// readable besides.
struct Wakeup {
    woken: AtomicBool,
    event: OwnedFd,
    thread: ThreadId,
}

impl Wake for Wakeup {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        if thread::current().id() != self.thread {
            write(&self.event, &1u64.to_ne_bytes()).expect("an event");
        }
    }
}

/// Runs a future on this thread, which is a worker meanwhile.
pub(crate) fn run<F: Future>(future: F) -> F::Output {
    let worker = Worker::start().expect("a worker");
    let wakeup = Arc::new(Wakeup {
        woken: AtomicBool::new(false),
        event: worker.as_fd().try_clone_to_owned().expect("a descriptor"),
        thread: thread::current().id(),
    });
    let waker = Waker::from(Arc::clone(&wakeup));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        turn();
        while !wakeup.woken.swap(false, Ordering::AcqRel) {
            let mut watched = [PollFd::new(&worker, PollFlags::IN)];
            retry_on_intr(|| poll(&mut watched, None)).expect("something happens");
            read(&worker, &mut [0; 8]).expect("an event");
            turn();
        }
    }
}
