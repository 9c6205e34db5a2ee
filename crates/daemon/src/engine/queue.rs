//! Bytes to be sent, in order: small ones that are kept here, ranges of read data, zeros.
//!
//! Always: what was encoded here lies in one buffer that is used again and again; it grows to what waits at once, and what it
//! keeps when nothing waits is little. What waits takes about as much memory as it has bytes: a short read is copied, since
//! the buffer that it was made in is never smaller than a block.
//! Never: a copy of a read of a block or more, or zeros in memory.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;
use std::rc::Rc;

use sealvol_volume::ReadData;

/// Zeros of all parts that are zeros.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
/// A shorter read is copied.
const COPIED_BELOW: usize = 4096;
/// Room for encoded bytes that is kept while nothing waits.
const ROOM_KEPT: usize = 64 * 1024;
/// Sent bytes that stay at the front of the buffer at most, while others wait behind them.
const SENT_KEPT: usize = 16 * 1024;

/// A piece of what is to be sent.
enum Part {
    /// The next so many of the encoded bytes.
    Encoded(usize),
    /// A range that holds data.
    Read(Rc<ReadData>, Range<usize>),
    /// At most [`ZEROS`].
    Zeros(usize),
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Self::Encoded(len) | Self::Zeros(len) => *len,
            Self::Read(_, range) => range.len(),
        }
    }
}

/// What waits to be sent.
#[derive(Default)]
pub(super) struct Queue {
    parts: VecDeque<Part>,
    encoded: Vec<u8>,
    /// Bytes of `encoded` that belong to parts which are gone.
    encoded_gone: usize,
    /// Bytes of the first part that were sent.
    sent: usize,
    /// Bytes that were not sent.
    waiting: usize,
}

impl Queue {
    /// Bytes in it.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Appends what `encode` appends to its argument; how many bytes.
    pub(super) fn push(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> usize {
        let before = self.encoded.len();
        encode(&mut self.encoded);
        let len = self.encoded.len() - before;
        if let Some(Part::Encoded(last)) = self.parts.back_mut() {
            *last += len;
        } else {
            self.parts.push_back(Part::Encoded(len));
        }
        self.waiting += len;
        len
    }

    /// Appends a range of what was read.
    pub(super) fn push_read(&mut self, data: &Rc<ReadData>, range: Range<usize>) {
        if range.len() < COPIED_BELOW {
            // Made only of a range that holds data.
            let bytes = data.bytes().map_or(&[][..], |all| &all[range]);
            self.push(|out| out.extend_from_slice(bytes));
            return;
        }
        self.waiting += range.len();
        self.parts.push_back(Part::Read(Rc::clone(data), range));
    }

    /// Appends zeros.
    pub(super) fn push_zeros(&mut self, len: usize) {
        let mut left = len;
        while left > 0 {
            let piece = left.min(ZEROS.len());
            self.parts.push_back(Part::Zeros(piece));
            left -= piece;
        }
        self.waiting += len;
    }

    /// Moves all of `other`, of which nothing was sent, behind what is here.
    pub(super) fn append(&mut self, other: &mut Self) {
        self.encoded.append(&mut other.encoded);
        self.parts.append(&mut other.parts);
        self.waiting += std::mem::take(&mut other.waiting);
    }

    /// Drops everything; how many bytes were waiting.
    pub(super) fn clear(&mut self) -> usize {
        let waiting = self.waiting;
        *self = Self::default();
        waiting
    }

    /// Points `slices` to what comes first; how many it set.
    pub(super) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut encoded = &self.encoded[self.encoded_gone..];
        let mut skip = self.sent;
        let mut count = 0;
        for (slice, part) in slices.iter_mut().zip(&self.parts) {
            let bytes = match part {
                Part::Encoded(len) => {
                    let (first, rest) = encoded.split_at(*len);
                    encoded = rest;
                    first
                }
                // Made only of a range that holds data.
                Part::Read(data, range) => data.bytes().map_or(&[][..], |all| &all[range.clone()]),
                Part::Zeros(len) => &ZEROS[..*len],
            };
            *slice = IoSlice::new(&bytes[std::mem::take(&mut skip)..]);
            count += 1;
        }
        count
    }

    /// Forgets the first `len` bytes: they are sent.
    pub(super) fn advance(&mut self, len: usize) {
        self.waiting -= len;
        self.sent += len;
        while let Some(first) = self.parts.front() {
            let whole = first.len();
            if self.sent < whole {
                break;
            }
            self.sent -= whole;
            if matches!(first, Part::Encoded(_)) {
                self.encoded_gone += whole;
            }
            self.parts.pop_front();
        }
        // What is appended to the last part must not keep its front alive.
        if let Some(Part::Encoded(left)) = self.parts.front_mut() {
            let gone = std::mem::take(&mut self.sent);
            *left -= gone;
            self.encoded_gone += gone;
        }
        if self.encoded_gone == self.encoded.len() || self.encoded_gone > SENT_KEPT {
            self.encoded.drain(..self.encoded_gone);
            self.encoded_gone = 0;
        }
        if self.waiting == 0 && self.encoded.capacity() > ROOM_KEPT {
            self.encoded.shrink_to(ROOM_KEPT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn front(queue: &Queue, len: usize) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); 64];
        let count = queue.slices(&mut slices);
        let bytes = slices[..count].iter().flat_map(|slice| slice.iter());
        bytes.take(len).copied().collect()
    }

    #[test]
    fn what_is_pushed_leaves_in_order_however_it_is_cut() {
        for step in [1, 7, 65_536, 200_000] {
            let mut queue = Queue::default();
            let mut expected = Vec::new();
            for round in 0..4u8 {
                queue.push(|out| out.extend([round, 1, 2]));
                queue.push(|out| out.extend([round, 3]));
                queue.push_zeros(70_000 * usize::from(round % 2));
                expected.extend([round, 1, 2, round, 3]);
                expected.resize(expected.len() + 70_000 * usize::from(round % 2), 0);
            }
            let mut behind = Queue::default();
            behind.push(|out| out.extend(*b"behind"));
            queue.append(&mut behind);
            assert_eq!(behind.waiting(), 0);
            expected.extend(*b"behind");
            let mut sent: Vec<u8> = Vec::new();
            while queue.waiting() > 0 {
                assert_eq!(queue.waiting(), expected.len() - sent.len());
                let next = front(&queue, step);
                queue.advance(next.len());
                sent.extend(next);
            }
            assert!(sent == expected, "cut at {step}");
        }
    }

    #[test]
    fn a_queue_that_runs_empty_keeps_little_room() {
        let mut queue = Queue::default();
        queue.push(|out| out.resize(1 << 20, 1));
        queue.advance(1 << 20);
        assert!(queue.encoded.capacity() <= ROOM_KEPT);
    }

    #[test]
    fn the_buffer_of_a_queue_that_never_runs_empty_stays_small() {
        let mut queue = Queue::default();
        queue.push(|out| out.extend([0; 16]));
        for _ in 0..100_000 {
            queue.push(|out| out.extend([1; 16]));
            queue.advance(16);
        }
        assert_eq!(queue.waiting(), 16);
        assert!(
            queue.encoded.capacity() < 4 * SENT_KEPT,
            "{}",
            queue.encoded.capacity()
        );
    }
}
