//! Encoders of replies. Each appends to a buffer of the caller's and allocates nothing else.
//!
//! Which kind of reply a request may get:
//! - without structured replies: simple replies only;
//! - with them: READ and BLOCK_STATUS get chunks only (an error too), everything else gets a simple
//!   reply for success and an error chunk, which can carry a text, for failure.
//!
//! **After [`read_simple_header`] there is no way back.** It says that the read succeeded and that
//! its data follows; a client that never gets the data cannot find the next reply. So without
//! structured replies, read first and encode the header when the data is at hand; if it fails
//! later, close the connection. A chunk header does allow it: fill up the announced length (with
//! zeroes), send [`error_offset`] or [`error_chunk`], and go on. For the same reason a content chunk
//! is encoded as `done` only when its data is at hand.
//!
//! Never does: sending, deciding which error a failure of a volume is, splitting a reply.

use crate::errno::Errno;
use crate::export::Session;
use crate::extents::{EXTENTS_MAX, Extent};
use crate::option_reply::presentable;
use crate::wire::{
    NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_BLOCK_STATUS, NBD_REPLY_TYPE_ERROR,
    NBD_REPLY_TYPE_ERROR_OFFSET, NBD_REPLY_TYPE_NONE, NBD_REPLY_TYPE_OFFSET_DATA,
    NBD_REPLY_TYPE_OFFSET_HOLE, NBD_SIMPLE_REPLY_MAGIC, NBD_STRUCTURED_REPLY_MAGIC,
};

/// The request failed: an error chunk with a text if structured replies are negotiated, else a
/// simple reply. Right for every command, unless content of this reply has gone out already in
/// a simple reply.
pub fn error(out: &mut Vec<u8>, session: &Session, cookie: u64, errno: Errno, message: &str) {
    if session.structured {
        error_chunk(out, cookie, errno, message);
    } else {
        simple(out, cookie, Err(errno));
    }
}

/// The request succeeded and has no content: right for every command but a READ of some bytes and
/// BLOCK_STATUS.
pub fn success(out: &mut Vec<u8>, session: &Session, cookie: u64) {
    if session.structured {
        none_done(out, cookie);
    } else {
        simple(out, cookie, Ok(()));
    }
}

/// A simple reply without data. With structured replies negotiated it must not answer a READ.
pub fn simple(out: &mut Vec<u8>, cookie: u64, result: Result<(), Errno>) {
    let error = result.err().map_or(0, Errno::code);
    out.extend_from_slice(&NBD_SIMPLE_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&error.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
}

/// The simple reply to a READ that succeeded; exactly as many bytes as the request's length must
/// follow, whatever happens (see the module's documentation).
pub fn read_simple_header(out: &mut Vec<u8>, cookie: u64) {
    simple(out, cookie, Ok(()));
}

/// `NBD_REPLY_TYPE_OFFSET_DATA`: `len` bytes of data must follow, read from `offset` of the export.
///
/// # Panics
/// If `len` is zero, or so large that no 32-bit length holds the chunk: a READ that passed the gate
/// asks for 1 to 2^25 bytes.
pub fn offset_data_header(out: &mut Vec<u8>, cookie: u64, offset: u64, len: u32, done: bool) {
    assert!(len > 0, "a content chunk describes at least one byte");
    let payload = len
        .checked_add(8)
        .expect("a content chunk is at most 2^32-9 bytes long");
    chunk(out, NBD_REPLY_TYPE_OFFSET_DATA, cookie, payload, done);
    out.extend_from_slice(&offset.to_be_bytes());
}

/// `NBD_REPLY_TYPE_OFFSET_HOLE`: `len` bytes from `offset` of the export read as zeroes. Not for a
/// READ with `df`, unless it is the only content chunk.
///
/// # Panics
/// If `len` is zero.
pub fn offset_hole(out: &mut Vec<u8>, cookie: u64, offset: u64, len: u32, done: bool) {
    assert!(len > 0, "a content chunk describes at least one byte");
    chunk(out, NBD_REPLY_TYPE_OFFSET_HOLE, cookie, 8 + 4, done);
    out.extend_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
}

/// `NBD_REPLY_TYPE_NONE`: the reply ends, successfully unless an error chunk came before.
pub fn none_done(out: &mut Vec<u8>, cookie: u64) {
    chunk(out, NBD_REPLY_TYPE_NONE, cookie, 0, true);
}

/// `NBD_REPLY_TYPE_ERROR`: the request failed as a whole, and the reply ends. The message is cut to
/// 4096 bytes.
pub fn error_chunk(out: &mut Vec<u8>, cookie: u64, errno: Errno, message: &str) {
    let message = Message::new(message);
    chunk(
        out,
        NBD_REPLY_TYPE_ERROR,
        cookie,
        4 + 2 + u32::from(message.len),
        true,
    );
    message.push(out, errno);
}

/// `NBD_REPLY_TYPE_ERROR_OFFSET`: the request failed at `offset` of the export. The message is cut
/// to 4096 bytes.
pub fn error_offset(
    out: &mut Vec<u8>,
    cookie: u64,
    errno: Errno,
    message: &str,
    offset: u64,
    done: bool,
) {
    let message = Message::new(message);
    chunk(
        out,
        NBD_REPLY_TYPE_ERROR_OFFSET,
        cookie,
        4 + 2 + u32::from(message.len) + 8,
        done,
    );
    message.push(out, errno);
    out.extend_from_slice(&offset.to_be_bytes());
}

/// `NBD_REPLY_TYPE_BLOCK_STATUS` for one context, which ends the reply. The extents follow one
/// another from the request's offset; [`Extents`](crate::extents::Extents) collects such a list.
/// They may cover less than was asked for.
///
/// # Panics
/// If there are no extents or more than [`EXTENTS_MAX`], or one is empty.
pub fn block_status(out: &mut Vec<u8>, cookie: u64, context_id: u32, extents: &[Extent]) {
    assert!(
        !extents.is_empty(),
        "a block status has at least one extent"
    );
    assert!(
        extents.len() <= EXTENTS_MAX,
        "a block status has at most {EXTENTS_MAX} extents"
    );
    // At most 8 * EXTENTS_MAX, so it fits.
    let payload = 4 + u32::try_from(8 * extents.len()).unwrap_or(u32::MAX);
    chunk(out, NBD_REPLY_TYPE_BLOCK_STATUS, cookie, payload, true);
    out.extend_from_slice(&context_id.to_be_bytes());
    for extent in extents {
        assert!(extent.len > 0, "an extent describes at least one byte");
        out.extend_from_slice(&extent.len.to_be_bytes());
        out.extend_from_slice(&extent.flags.to_be_bytes());
    }
}

fn chunk(out: &mut Vec<u8>, kind: u16, cookie: u64, payload: u32, done: bool) {
    let flags = if done { NBD_REPLY_FLAG_DONE } else { 0 };
    out.extend_from_slice(&NBD_STRUCTURED_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&payload.to_be_bytes());
}

/// A text that fits an error chunk, with its length.
struct Message<'a> {
    text: &'a str,
    len: u16,
}

impl<'a> Message<'a> {
    fn new(text: &'a str) -> Self {
        let text = presentable(text);
        // At most 4096, so it fits.
        Self {
            text,
            len: u16::try_from(text.len()).unwrap_or(u16::MAX),
        }
    }

    fn push(&self, out: &mut Vec<u8>, errno: Errno) {
        out.extend_from_slice(&errno.code().to_be_bytes());
        out.extend_from_slice(&self.len.to_be_bytes());
        out.extend_from_slice(self.text.as_bytes());
    }
}
