//! Replies on their way out: one send carries many of them.
//!
//! Always: bytes leave in the order in which they were pushed; a reply is pushed whole, in one step, or streamed, and
//! then whatever else is pushed meanwhile waits behind it: replies never interleave. What waits is counted, and
//! whoever pushes more than a little waits for room first.
//! Never: a copy of read data: it goes from the buffer it was decrypted in to the socket.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::rc::Rc;

use sealvol_volume::ReadData;
use tokio::sync::{Mutex, MutexGuard, Notify};

use super::memory::Held;
use super::socket::Stream;

/// Buffers in one send: what the kernel takes at once (`UIO_MAXIOV` is 1024).
const PARTS_MAX: usize = 256;

/// A piece of what is to be sent.
enum Part {
    Bytes(Vec<u8>),
    Read(Rc<ReadData>, Range<usize>),
}

impl Part {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            // A part is made only of a range that holds data.
            Self::Read(data, range) => data.bytes().map_or(&[], |bytes| &bytes[range.clone()]),
        }
    }
}

/// The replies of one connection that were not sent yet.
pub(crate) struct Outbox {
    parts: RefCell<VecDeque<Part>>,
    /// Replies that wait for the end of a streamed one.
    behind: RefCell<VecDeque<Part>>,
    streaming: Cell<bool>,
    turn: Mutex<()>,
    /// Bytes of the first part that were sent.
    sent: Cell<usize>,
    /// Bytes in `parts` that were not sent.
    waiting: Cell<usize>,
    held: Rc<Held>,
    filled: Notify,
    emptied: Notify,
    broken: Cell<bool>,
    broke: Notify,
}

impl Outbox {
    pub(super) fn new(held: Rc<Held>) -> Self {
        Self {
            parts: RefCell::default(),
            behind: RefCell::default(),
            streaming: Cell::new(false),
            turn: Mutex::new(()),
            sent: Cell::new(0),
            waiting: Cell::new(0),
            held,
            filled: Notify::new(),
            emptied: Notify::new(),
            broken: Cell::new(false),
            broke: Notify::new(),
        }
    }

    /// Appends small bytes made by `encode` to what is waiting.
    pub(crate) fn push(&self, encode: impl FnOnce(&mut Vec<u8>)) {
        let streaming = self.streaming.get();
        self.push_bytes(streaming, encode);
    }

    /// Appends a range of what was read.
    pub(crate) fn push_read(&self, data: &Rc<ReadData>, range: Range<usize>) {
        self.push_part(self.streaming.get(), Part::Read(Rc::clone(data), range));
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

    /// Waits until there is room for more.
    pub(crate) async fn room(&self) {
        while self.waiting.get() > 0 && self.held.is_full() && !self.broken.get() {
            self.filled.notify_one();
            self.emptied.notified().await;
        }
    }

    /// Says that what was pushed can go out, if nobody is about to send anyway.
    pub(super) fn wake(&self) {
        self.filled.notify_one();
    }

    /// Whether there is something that the client has not taken yet.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.get() > 0
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
        while self.waiting.get() > 0 && !self.broken.get() {
            self.filled.notify_one();
            self.emptied.notified().await;
        }
    }

    /// Sends as much as the socket takes now; whether that was all.
    pub(super) fn send(&self, stream: &Stream) -> io::Result<bool> {
        while self.waiting.get() > 0 {
            let written = {
                let parts = self.parts.borrow();
                let mut slices = [IoSlice::new(&[]); PARTS_MAX];
                let mut count = 0;
                for (slice, part) in slices.iter_mut().zip(parts.iter()) {
                    let skip = if count == 0 { self.sent.get() } else { 0 };
                    *slice = IoSlice::new(&part.bytes()[skip..]);
                    count += 1;
                }
                stream.try_write(&slices[..count])
            };
            match written {
                Ok(len) => self.advance(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => {
                    self.give_up();
                    return Err(error);
                }
            }
        }
        Ok(true)
    }

    /// The writer of a connection: sends whatever could not be sent at once. Ends with the connection.
    pub(super) async fn run(&self, stream: &Stream) -> io::Result<()> {
        loop {
            while self.waiting.get() > 0 {
                stream.writable().await?;
                self.send(stream)?;
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
        for queue in [&self.parts, &self.behind] {
            for part in queue.borrow_mut().drain(..) {
                self.held.sub(part.bytes().len());
            }
        }
        self.waiting.set(0);
        self.sent.set(0);
        self.emptied.notify_waiters();
        self.filled.notify_one();
        self.broke.notify_one();
    }

    fn push_bytes(&self, behind: bool, encode: impl FnOnce(&mut Vec<u8>)) {
        if self.broken.get() {
            return;
        }
        let queue = if behind { &self.behind } else { &self.parts };
        let mut parts = queue.borrow_mut();
        if !matches!(parts.back(), Some(Part::Bytes(_))) {
            parts.push_back(Part::Bytes(Vec::with_capacity(512)));
        }
        let Some(Part::Bytes(bytes)) = parts.back_mut() else {
            return;
        };
        let before = bytes.len();
        encode(bytes);
        self.count(behind, bytes.len() - before);
    }

    fn push_part(&self, behind: bool, part: Part) {
        if self.broken.get() {
            return;
        }
        self.count(behind, part.bytes().len());
        let queue = if behind { &self.behind } else { &self.parts };
        queue.borrow_mut().push_back(part);
    }

    fn count(&self, behind: bool, bytes: usize) {
        self.held.add(bytes);
        if !behind {
            self.waiting.set(self.waiting.get() + bytes);
        }
    }

    fn advance(&self, len: usize) {
        self.waiting.set(self.waiting.get() - len);
        let mut parts = self.parts.borrow_mut();
        let mut sent = self.sent.get() + len;
        while let Some(first) = parts.front() {
            let whole = first.bytes().len();
            if sent < whole {
                break;
            }
            sent -= whole;
            self.held.sub(whole);
            parts.pop_front();
        }
        self.sent.set(sent);
        self.emptied.notify_waiters();
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
        self.outbox.push_bytes(false, encode);
    }

    /// As [`Outbox::push_read`].
    pub(crate) fn push_read(&self, data: &Rc<ReadData>, range: Range<usize>) {
        let part = Part::Read(Rc::clone(data), range);
        self.outbox.push_part(false, part);
    }
}

impl Drop for Streamed<'_> {
    fn drop(&mut self) {
        self.outbox.streaming.set(false);
        let behind = std::mem::take(&mut *self.outbox.behind.borrow_mut());
        let bytes: usize = behind.iter().map(|part| part.bytes().len()).sum();
        self.outbox.waiting.set(self.outbox.waiting.get() + bytes);
        self.outbox.parts.borrow_mut().extend(behind);
        self.outbox.filled.notify_one();
    }
}
