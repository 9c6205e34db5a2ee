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

/// Connections in transmission at once, each of which may hold [`SURE`] and a little more.
const CONNECTIONS_MAX: usize = 4096;

/// What all connections of an engine hold.
#[derive(Default)]
pub(super) struct Memory {
    bytes: AtomicUsize,
    connections: AtomicUsize,
}

/// What one connection holds.
pub(super) struct Held {
    all: Arc<Memory>,
    own: Cell<usize>,
}

impl Held {
    /// Counts a connection in; `None` if there are [`CONNECTIONS_MAX`].
    pub(super) fn new(all: Arc<Memory>) -> Option<Self> {
        let others = all.connections.fetch_add(1, Ordering::Relaxed);
        let held = Self {
            all,
            own: Cell::new(0),
        };
        (others < CONNECTIONS_MAX).then_some(held)
    }

    pub(super) fn add(&self, bytes: usize) {
        self.own.set(self.own.get() + bytes);
        self.all.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn sub(&self, bytes: usize) {
        self.own.set(self.own.get() - bytes);
        self.all.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Whether the connection is to begin nothing new.
    pub(super) fn is_full(&self) -> bool {
        let own = self.own.get();
        own >= CONNECTION_MAX || own >= SURE && self.all.bytes.load(Ordering::Relaxed) >= TOTAL_MAX
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.sub(self.own.get());
        self.all.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_sure_of_one_piece_whatever_the_others_hold() {
        let all = Arc::new(Memory::default());
        let greedy: Vec<_> = (0..40)
            .map(|_| Held::new(Arc::clone(&all)).unwrap())
            .collect();
        for held in &greedy {
            while !held.is_full() {
                held.add(1 << 20);
            }
        }
        assert!(all.bytes.load(Ordering::Relaxed) < TOTAL_MAX + 40 * (SURE + (1 << 20)));
        let late = Held::new(Arc::clone(&all)).unwrap();
        assert!(!late.is_full());
        late.add(SURE);
        assert!(late.is_full());
        drop(greedy);
        assert!(!late.is_full());
    }

    #[test]
    fn there_is_a_limit_of_connections_and_who_leaves_makes_room() {
        let all = Arc::new(Memory::default());
        let mut held: Vec<_> = (0..CONNECTIONS_MAX)
            .map(|_| Held::new(Arc::clone(&all)).unwrap())
            .collect();
        assert!(Held::new(Arc::clone(&all)).is_none());
        held.pop();
        assert!(Held::new(all).is_some());
    }
}
