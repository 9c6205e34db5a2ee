//! The engine: worker threads that serve NBD connections.
//!
//! One thread per core, each with a single-threaded runtime; a connection stays with the worker that it was given to.
//! Many requests of a connection are in flight at once, replies leave as they are ready, in any order, many in one send.
//!
//! | subject | file |
//! |---|---|
//! | a connection from its first byte to its last | `connection.rs` |
//! | handshake | `handshake.rs` |
//! | requests in: one receive, many requests | `requests.rs` |
//! | replies out: one send, many replies | `outbox.rs`, over the bytes in `queue.rs` |
//! | how much memory connections hold | `memory.rs` |
//! | completions of the disks | `ring.rs` |
//!
//! Always: a request that was begun is brought to its end, whatever becomes of its client; a connection ends only
//! when none of its requests is in flight. Key residue is cleared before a worker sleeps.
//! Never: a call to a key service, a sync or another store call that can block for long on a worker (the store sees to that).

mod connection;
mod handshake;
mod memory;
mod outbox;
mod queue;
mod requests;
mod ring;
mod socket;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot, watch};

pub(crate) use outbox::Outbox;
pub use socket::Socket;

use crate::exports::{Exports, Peer};
use connection::Connection;
use memory::Memory;

/// Handshakes of one worker at once. A client that comes when there are so many has the oldest one closed: who
/// only connects and says nothing can't keep others out.
const HANDSHAKES_MAX: usize = 256;

/// The worker threads.
pub struct Engine {
    workers: Vec<Worker>,
    next: AtomicUsize,
    stop: watch::Sender<bool>,
}

struct Worker {
    connections: mpsc::UnboundedSender<(Socket, Peer)>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts `workers` threads (at least one).
    ///
    /// # Errors
    ///
    /// If a thread or its runtime can't be made.
    pub fn start(workers: usize, exports: &Arc<Exports>) -> io::Result<Self> {
        let (stop, _) = watch::channel(false);
        let share = Share {
            exports: Arc::clone(exports),
            stop: stop.subscribe(),
            memory: Arc::default(),
        };
        let start = |number| start_worker(number, share.clone());
        let workers = (0..workers.max(1)).map(start).collect::<io::Result<_>>()?;
        Ok(Self {
            workers,
            next: AtomicUsize::new(0),
            stop,
        })
    }

    /// Gives a new connection to a worker.
    pub fn serve(&self, socket: Socket, peer: Peer) {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.workers.len();
        if self.workers[turn].connections.send((socket, peer)).is_err() {
            tracing::warn!("a connection came while the engine was stopping: closed");
        }
    }

    /// Answers everything outstanding on every connection, closes them, ends the workers.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        // All are told before any is waited for: they drain at the same time.
        let close = |worker: Worker| worker.thread;
        let threads: Vec<_> = self.workers.drain(..).filter_map(close).collect();
        for thread in threads {
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!("a worker thread panicked");
            }
        }
    }
}

/// What every connection of a worker gets.
#[derive(Clone)]
struct Share {
    exports: Arc<Exports>,
    stop: watch::Receiver<bool>,
    memory: Arc<Memory>,
}

fn start_worker(number: usize, share: Share) -> io::Result<Worker> {
    let (connections, incoming) = mpsc::unbounded_channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .on_thread_park(before_sleep)
        .build()?;
    let thread = std::thread::Builder::new()
        .name(format!("worker-{number}"))
        .spawn(move || {
            let tasks = tokio::task::LocalSet::new();
            let watch = ring::Watch::start(&runtime);
            tasks.block_on(&runtime, watch.during(work(incoming, share)));
            // Connections that still drain.
            runtime.block_on(watch.during(tasks));
        })?;
    Ok(Worker {
        connections,
        thread: Some(thread),
    })
}

/// The last thing that a worker does before it waits: what was begun goes to the disks, what its requests have left of keys in registers
/// goes away. Once for all that it did since it last waited.
fn before_sleep() {
    ring::submit_before_sleep();
    sealvol_crypto::clear_residue();
}

async fn work(mut incoming: mpsc::UnboundedReceiver<(Socket, Peer)>, share: Share) {
    let mut handshakes: VecDeque<oneshot::Sender<()>> = VecDeque::new();
    while let Some((socket, peer)) = incoming.recv().await {
        handshakes.retain(|handshake| !handshake.is_closed());
        if handshakes.len() >= HANDSHAKES_MAX {
            handshakes.pop_front();
        }
        let (handshake, shaking) = oneshot::channel();
        handshakes.push_back(handshake);
        let connection = Connection {
            share: share.clone(),
            peer,
        };
        tokio::task::spawn_local(connection.run(socket, shaking));
    }
}
