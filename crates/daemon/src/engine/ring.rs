//! The worker's io_uring: where the event loop of a worker thread and the ring of its stores meet.
//!
//! Always: what was begun is submitted before the worker sleeps, and completions wake it. The ring itself is made by the
//! first store that has something for one; where it can't be had, the stores use their threads.
//! Never: a wait for the disk, but at the end for what is still in flight then.

use std::future::Future;
use std::io;

use sealvol_store::ring::{Worker, submit, turn};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Runtime;

/// Call it each time the thread has nothing left to do.
///
/// What has completed meanwhile waits until the thread has looked at its sockets, so that requests which have arrived go
/// to the disk first. (A disk that completes in bursts then has work while its last burst is answered: measured on a virtio
/// disk, 4 KiB reads at depth 32 are 1.2 times as fast as when both are done here.)
pub(super) fn submit_before_sleep() {
    submit();
}

/// This thread as a worker, until it is dropped.
pub(super) struct Watch {
    completions: Option<AsyncFd<Worker>>,
}

impl Watch {
    /// Makes this thread, which runs `runtime`, a worker.
    pub(super) fn start(runtime: &Runtime) -> Self {
        let _inside = runtime.enter();
        let started = Worker::start().and_then(watched);
        if let Err(error) = &started {
            tracing::warn!(%error, "a worker goes without io_uring");
        }
        Self {
            completions: started.ok(),
        }
    }

    /// Runs `work`, and wakes this thread for completions meanwhile.
    pub(super) async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            done = work => done,
            error = self.reap() => {
                unreachable!("the runtime outlives its own work: {error}")
            }
        }
    }

    /// Never ends while the runtime runs.
    async fn reap(&self) -> io::Error {
        let Some(completions) = &self.completions else {
            return std::future::pending().await;
        };
        loop {
            match completions.readable().await {
                Ok(mut ready) => {
                    // Before the reaping: what completes from now on is told anew.
                    ready.clear_ready();
                    turn();
                }
                Err(error) => return error,
            }
        }
    }
}

#[expect(
    deprecated,
    reason = "what replaced it leaves to the caller that the descriptor stays open: a worker owns its own"
)]
fn watched(worker: Worker) -> io::Result<AsyncFd<Worker>> {
    AsyncFd::with_interest(worker, Interest::READABLE)
}
