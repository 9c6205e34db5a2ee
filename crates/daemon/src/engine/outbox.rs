//! Replies on their way out: one send carries many of them.
//!
//! Always: bytes leave in the order in which they were pushed; a reply is pushed whole, in one step, so that
//! replies never interleave. What waits is bounded by whoever pushes ([`Outbox::room`]).
//! Never: a copy of read data: it goes from the buffer it was decrypted in to the socket.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::rc::Rc;

use sealvol_volume::ReadData;
use tokio::sync::Notify;

use super::socket::Stream;

/// Bytes waiting beyond which nothing new is begun.
pub(super) const WAITING_MAX: usize = 4 << 20;
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
#[derive(Default)]
pub(crate) struct Outbox {
    parts: RefCell<VecDeque<Part>>,
    /// Bytes of the first part that were sent.
    sent: Cell<usize>,
    waiting: Cell<usize>,
    filled: Notify,
    emptied: Notify,
    broken: Cell<bool>,
}

impl Outbox {
    /// Appends small bytes made by `encode` to what is waiting.
    pub(crate) fn push(&self, encode: impl FnOnce(&mut Vec<u8>)) {
        let mut parts = self.parts.borrow_mut();
        if !matches!(parts.back(), Some(Part::Bytes(_))) {
            parts.push_back(Part::Bytes(Vec::with_capacity(512)));
        }
        let Some(Part::Bytes(bytes)) = parts.back_mut() else {
            return;
        };
        let before = bytes.len();
        encode(bytes);
        self.waiting.set(self.waiting.get() + bytes.len() - before);
    }

    /// Appends a range of what was read.
    pub(crate) fn push_read(&self, data: &Rc<ReadData>, range: Range<usize>) {
        self.waiting.set(self.waiting.get() + range.len());
        self.parts
            .borrow_mut()
            .push_back(Part::Read(Rc::clone(data), range));
    }

    /// Says that what was pushed can go out, if nobody is about to send anyway.
    pub(super) fn wake(&self) {
        self.filled.notify_one();
    }

    /// Waits until there is room for more.
    pub(crate) async fn room(&self) {
        while self.waiting.get() > WAITING_MAX && !self.broken.get() {
            self.emptied.notified().await;
        }
    }

    pub(super) fn is_crowded(&self) -> bool {
        self.waiting.get() > WAITING_MAX && !self.broken.get()
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
        while self.waiting.get() > 0 && !self.broken.get() {
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
            self.filled.notified().await;
            if self.broken.get() {
                return Ok(());
            }
        }
    }

    /// Nothing more can be sent: what waits is dropped, and whoever waits goes on.
    pub(super) fn give_up(&self) {
        self.broken.set(true);
        self.parts.borrow_mut().clear();
        self.waiting.set(0);
        self.sent.set(0);
        self.emptied.notify_waiters();
        self.emptied.notify_one();
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
            parts.pop_front();
        }
        self.sent.set(sent);
        self.emptied.notify_waiters();
    }
}
