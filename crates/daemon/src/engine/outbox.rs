//! Replies on their way out: one send carries many of them.
//!
//! Always: bytes leave in the order in which they were pushed; a reply is pushed whole, in one step, or streamed, and
//! then whatever else is pushed meanwhile waits behind it: replies never interleave. What waits is counted, and
//! whoever pushes more than a little waits for room first. A send goes out as soon as a few replies wait for it, not
//! only at the end of a batch: so the client works on the first of them while the rest are made, and read data leaves
//! while it is in the cache of this core.
//! Never: a copy of read data of a block or more: it goes from the buffer it was decrypted in to the socket.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::rc::Rc;

use sealvol_volume::ReadData;
use tokio::sync::{Mutex, MutexGuard, Notify};

use super::memory::Held;
use super::queue::Queue;
use super::socket::Stream;

/// Buffers in one send (the kernel takes 1024 at most, `UIO_MAXIOV`).
const PARTS_MAX: usize = 64;
/// So many replies that wait, or
const SEND_REPLIES: usize = 8;
/// so many bytes are sent without waiting for the rest of their batch.
const SEND_BYTES: usize = 64 * 1024;
/// While more than this waits for the client, no more read data is made. A Unix socket that was full takes bytes again when
/// three quarters of it are empty: with less to send then, worker and client wait for each other by turns. Measured, 1 MiB reads at
/// depth 8 on one connection against 256 KiB: 512 KiB 1.0, 1 MiB 1.1 to 1.2, 2 MiB 1.05, 4 MiB 1.02 times as fast; alike on four.
const AHEAD_MAX: usize = 1 << 20;

/// The replies of one connection that were not sent yet.
pub(crate) struct Outbox {
    stream: Rc<Stream>,
    queue: RefCell<Queue>,
    /// Replies that wait for the end of a streamed one.
    behind: RefCell<Queue>,
    streaming: Cell<bool>,
    turn: Mutex<()>,
    /// Pushed since the last send.
    replies: Cell<usize>,
    /// The socket takes no more: it is up to the writer, who waits for it.
    blocked: Cell<bool>,
    held: Rc<Held>,
    filled: Notify,
    emptied: Notify,
    broken: Cell<bool>,
    broke: Notify,
}

impl Outbox {
    pub(super) fn new(stream: Rc<Stream>, held: Rc<Held>) -> Self {
        Self {
            stream,
            queue: RefCell::default(),
            behind: RefCell::default(),
            streaming: Cell::new(false),
            turn: Mutex::new(()),
            replies: Cell::new(0),
            blocked: Cell::new(false),
            held,
            filled: Notify::new(),
            emptied: Notify::new(),
            broken: Cell::new(false),
            broke: Notify::new(),
        }
    }

    /// Appends small bytes made by `encode` to what is waiting.
    pub(crate) fn push(&self, encode: impl FnOnce(&mut Vec<u8>)) {
        self.append(self.streaming.get(), |queue| {
            queue.push(encode);
        });
        self.replies.set(self.replies.get() + 1);
    }

    /// Appends a range of what was read.
    pub(crate) fn push_read(&self, data: &Rc<ReadData>, range: Range<usize>) {
        self.append(self.streaming.get(), |queue| queue.push_read(data, range));
    }

    /// Appends zeros.
    pub(crate) fn push_zeros(&self, len: usize) {
        self.append(self.streaming.get(), |queue| queue.push_zeros(len));
    }

    /// Begins a reply that is pushed bit by bit, as room comes; whatever others push meanwhile waits behind it.
    pub(crate) async fn stream(&self) -> Streamed<'_> {
        let turn = self.turn.lock().await;
        self.streaming.set(true);
        Streamed {
            outbox: self,
            _turn: turn,
        }
    }

    /// Sends what was pushed if it is worth a send. Call it between replies.
    pub(crate) fn send_some(&self) {
        let enough = self.replies.get() >= SEND_REPLIES || self.waiting() >= SEND_BYTES;
        if enough && !self.blocked.get() {
            // If it can't be sent now, or never, the writer learns the same.
            let _ = self.send();
        }
    }

    /// Waits until the client has taken enough for more to be made.
    pub(crate) async fn room(&self) {
        while self.is_ahead() && !self.broken.get() {
            self.filled.notify_one();
            self.emptied.notified().await;
        }
    }

    fn is_ahead(&self) -> bool {
        let waiting = self.waiting();
        waiting > AHEAD_MAX || waiting > 0 && self.held.is_full()
    }

    /// Says that what was pushed can go out, if nobody is about to send anyway.
    pub(super) fn wake(&self) {
        self.filled.notify_one();
    }

    /// Whether there is something that the client has not taken yet.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting() > 0
    }

    /// Whether nothing more can be sent, so that there is nobody to read for.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.get()
    }

    /// Completes when something was sent.
    pub(super) async fn progress(&self) {
        self.emptied.notified().await;
    }

    /// Completes when nothing more can be sent.
    pub(super) async fn broke(&self) {
        while !self.broken.get() {
            self.broke.notified().await;
        }
    }

    /// Waits until everything is sent, or can't be.
    pub(super) async fn sent(&self) {
        while self.waiting() > 0 && !self.broken.get() {
            self.filled.notify_one();
            self.emptied.notified().await;
        }
    }

    /// Sends as much as the socket takes now; whether that was all.
    pub(super) fn send(&self) -> io::Result<bool> {
        self.replies.set(0);
        while self.waiting() > 0 {
            let written = {
                let queue = self.queue.borrow();
                let mut slices = [IoSlice::new(&[]); PARTS_MAX];
                let count = queue.slices(&mut slices);
                self.stream.try_write(&slices[..count])
            };
            match written {
                Ok(len) => {
                    self.queue.borrow_mut().advance(len);
                    self.held.sub(len);
                    self.emptied.notify_waiters();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked.set(true);
                    return Ok(false);
                }
                Err(error) => {
                    self.give_up();
                    return Err(error);
                }
            }
        }
        self.blocked.set(false);
        Ok(true)
    }

    /// The writer of a connection: sends whatever could not be sent at once. Ends with the connection.
    pub(super) async fn run(&self) -> io::Result<()> {
        loop {
            while self.waiting() > 0 {
                self.stream.writable().await?;
                self.send()?;
            }
            if self.broken.get() {
                return Ok(());
            }
            self.filled.notified().await;
        }
    }

    /// Nothing more can be sent: what waits is dropped, what is pushed from now on too, and whoever waits goes on.
    pub(crate) fn give_up(&self) {
        self.broken.set(true);
        for queue in [&self.queue, &self.behind] {
            self.held.sub(queue.borrow_mut().clear());
        }
        self.emptied.notify_waiters();
        self.filled.notify_one();
        self.broke.notify_one();
    }

    fn waiting(&self) -> usize {
        self.queue.borrow().waiting()
    }

    fn append(&self, behind: bool, push: impl FnOnce(&mut Queue)) {
        if self.broken.get() {
            return;
        }
        let mut queue = if behind { &self.behind } else { &self.queue }.borrow_mut();
        let before = queue.waiting();
        push(&mut queue);
        self.held.add(queue.waiting() - before);
    }
}

/// A reply that is pushed bit by bit. When it is dropped, what waited behind it follows.
pub(crate) struct Streamed<'a> {
    outbox: &'a Outbox,
    _turn: MutexGuard<'a, ()>,
}

impl Streamed<'_> {
    /// As [`Outbox::push`].
    pub(crate) fn push(&self, encode: impl FnOnce(&mut Vec<u8>)) {
        self.outbox.append(false, |queue| {
            queue.push(encode);
        });
    }

    /// As [`Outbox::push_read`].
    pub(crate) fn push_read(&self, data: &Rc<ReadData>, range: Range<usize>) {
        self.outbox
            .append(false, |queue| queue.push_read(data, range));
    }

    /// As [`Outbox::push_zeros`].
    pub(crate) fn push_zeros(&self, len: usize) {
        self.outbox.append(false, |queue| queue.push_zeros(len));
    }
}

impl Drop for Streamed<'_> {
    fn drop(&mut self) {
        self.outbox.streaming.set(false);
        let mut behind = self.outbox.behind.borrow_mut();
        self.outbox.queue.borrow_mut().append(&mut behind);
        self.outbox.filled.notify_one();
    }
}
