//! The extents of one BLOCK_STATUS answer, collected so that the answer keeps the protocol's rules.
//!
//! Always holds: the extents follow one another from the request's offset, none is empty,
//! neighbours differ, together they are no longer than the request, and there are at most
//! [`EXTENTS_MAX`] (or one, if the client asked for one). An answer that stops early is valid: the
//! client asks again for the rest.

use crate::transmission::{Command, Request};

/// Most extents of one answer: 32 KiB of reply. The protocol's own limit is 2^20, but a client that
/// wants more asks again, and the answer to one small request should stay small.
pub const EXTENTS_MAX: usize = 4096;

/// A run of bytes with one status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, never zero in a reply.
    pub len: u32,
    /// `NBD_STATE_HOLE`, `NBD_STATE_ZERO`.
    pub flags: u32,
}

/// Collects the extents of an answer. Reused for the next request, it allocates nothing new.
#[derive(Debug, Default)]
pub struct Extents {
    extents: Vec<Extent>,
    extents_max: usize,
    /// Bytes of the request that no extent covers yet.
    left: u32,
}

impl Extents {
    /// Starts over for this request.
    pub fn start(&mut self, request: &Request) {
        self.extents.clear();
        let req_one = matches!(request.command, Command::BlockStatus { req_one: true });
        self.extents_max = if req_one { 1 } else { EXTENTS_MAX };
        self.left = request.length;
    }

    /// Adds the run of `len` bytes that follows what is covered, cut to the request, and tells
    /// whether there is room for more.
    pub fn push(&mut self, len: u64, flags: u32) -> bool {
        let len = u32::try_from(len).map_or(self.left, |len| len.min(self.left));
        if len == 0 {
            return self.left > 0;
        }
        let full = self.extents.len() == self.extents_max;
        match self.extents.last_mut() {
            Some(last) if last.flags == flags => last.len += len,
            _ if full => return false,
            _ => self.extents.push(Extent { len, flags }),
        }
        self.left -= len;
        self.left > 0
    }

    /// The extents so far; what [`reply::block_status`](crate::reply::block_status) encodes.
    #[must_use]
    pub fn as_slice(&self) -> &[Extent] {
        &self.extents
    }
}
