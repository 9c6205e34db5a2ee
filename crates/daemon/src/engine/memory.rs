//! How much memory the connections hold, each and all together.
//!
//! Counted: received bytes that are being written, zeros that take space while they are, read data on its way to a client,
//! replies that wait. Not counted: the receive buffer (256 KiB, only while bytes are in it) and a connection's own few KiB.
//!
//! Always: a connection begins nothing new while it holds [`CONNECTION_MAX`], or more than [`SURE`] while all
//! together hold [`TOTAL_MAX`]. So the whole is bounded by `TOTAL_MAX` and, for each connection, `SURE` + the receive buffer +
//! the last request begun (at most [`READ_WHOLE_MAX`](crate::export)); and each connection goes on whatever the others hold.
//! Never: a wait for another connection. Who is at its bound waits for its own requests to end or its own client to read.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What one connection may hold, in bytes: enough for sixteen requests of 1 MiB.
const CONNECTION_MAX: usize = 16 << 20;
/// What each connection may hold even if all together hold too much: one piece.
const SURE: usize = 256 << 10;
/// What all connections may hold beyond that.
const TOTAL_MAX: usize = 512 << 20;

/// What all connections of an engine hold.
#[derive(Default)]
pub(super) struct Memory(AtomicUsize);

/// What one connection holds.
pub(super) struct Held {
    all: Arc<Memory>,
    own: Cell<usize>,
}

impl Held {
    pub(super) fn new(all: Arc<Memory>) -> Self {
        Self {
            all,
            own: Cell::new(0),
        }
    }

    pub(super) fn add(&self, bytes: usize) {
        self.own.set(self.own.get() + bytes);
        self.all.0.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn sub(&self, bytes: usize) {
        self.own.set(self.own.get() - bytes);
        self.all.0.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Whether the connection is to begin nothing new.
    pub(super) fn is_full(&self) -> bool {
        let own = self.own.get();
        own >= CONNECTION_MAX || own >= SURE && self.all.0.load(Ordering::Relaxed) >= TOTAL_MAX
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.sub(self.own.get());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_sure_of_one_piece_whatever_the_others_hold() {
        let all = Arc::new(Memory::default());
        let greedy: Vec<_> = (0..40).map(|_| Held::new(Arc::clone(&all))).collect();
        for held in &greedy {
            while !held.is_full() {
                held.add(1 << 20);
            }
        }
        assert!(all.0.load(Ordering::Relaxed) < TOTAL_MAX + 40 * (SURE + (1 << 20)));
        let late = Held::new(Arc::clone(&all));
        assert!(!late.is_full());
        late.add(SURE);
        assert!(late.is_full());
        drop(greedy);
        assert!(!late.is_full());
    }
}
