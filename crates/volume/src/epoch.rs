//! Read epochs: how a punch knows that no read which resolved to its blocks is still under way (R2).
//!
//! A read enters before it looks at the map and leaves when its store read is done. `grace` waits
//! for every read that entered before it was called; reads that enter later see the map as it is then.

use crate::sync::Ordering::SeqCst;
use crate::sync::{AsyncMutex, AtomicUsize, Event, listener};

/// Readers of one volume, in two halves that take turns.
#[derive(Default)]
pub(crate) struct Epochs {
    half: AtomicUsize,
    readers: [AtomicUsize; 2],
    left: Event,
    /// One grace at a time: punches of two layers may want one at once.
    turn: AsyncMutex<()>,
}

/// A read under way.
pub(crate) struct Reader<'a> {
    epochs: &'a Epochs,
    half: usize,
}

impl Epochs {
    pub(crate) fn enter(&self) -> Reader<'_> {
        loop {
            let half = self.half.load(SeqCst);
            self.readers[half].fetch_add(1, SeqCst);
            let reader = Reader { epochs: self, half };
            // If a grace began in between it may not have seen this reader: enter the other half.
            if self.half.load(SeqCst) == half {
                return reader;
            }
        }
    }

    /// Waits until every read that entered before this call has left.
    pub(crate) async fn grace(&self) {
        let _turn = self.turn.lock().await;
        let old = self.half.load(SeqCst);
        self.half.store(1 - old, SeqCst);
        while self.readers[old].load(SeqCst) != 0 {
            listener!(self.left => left);
            if self.readers[old].load(SeqCst) != 0 {
                left.await;
            }
        }
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        if self.epochs.readers[self.half].fetch_sub(1, SeqCst) == 1 {
            self.epochs.left.notify(usize::MAX);
        }
    }
}
