//! From a request to a reply: the one place where NBD meets a volume, and where a volume's errors become errnos.
//!
//! Always: a reply is pushed whole. A READ whose reply can't be taken back once it has begun (a simple one, or one
//! that may not be split) is begun only when all its data is there, unless it is so long that it is streamed. CACHE never decrypts: a volume has no plaintext cache.
//! Never: a range check; the gate of `sealvol_nbd` has made it, and the volume makes its own.

use std::rc::Rc;

use sealvol_nbd::wire::{NBD_STATE_HOLE, NBD_STATE_ZERO};
use sealvol_nbd::{Command, Errno, Extents, Request, Session, reply};
use sealvol_volume::{BLOCK, BlockState, ReadData, VolumeError, Zeroing};

use crate::engine::Outbox;
use crate::exports::Export;

/// A longer read is made in pieces of this size, so that the first is sent while the next is read.
const READ_PIECE: u64 = 256 * 1024;
/// A reply that can't be split is begun when all its data is there, so that a failure is an error reply; beyond this
/// length it is streamed, and a failure can only close the connection.
pub(crate) const READ_WHOLE_MAX: usize = 1 << 20;

/// Zeros that take space are written in steps of this size; after each it is seen whether the client is still there.
const ZEROES_STEP: u64 = 32 << 20;

/// What a request other than WRITE holds in memory while it waits for the store.
pub(crate) fn held_by(request: &Request) -> usize {
    let length = request.length as usize;
    match request.command {
        Command::Read { .. } => READ_WHOLE_MAX.min(length),
        // A piece of zeros, and the same as ciphertext.
        Command::WriteZeroes { no_hole: true, .. } => (512 * 1024).min(2 * length),
        _ => 0,
    }
}

/// Why a request failed, as the client is told.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) errno: Errno,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn of(error: &VolumeError) -> Self {
        let errno = errno(error);
        if errno == Errno::EIO {
            tracing::error!(%error, "request failed");
        }
        Self {
            errno,
            message: error.to_string(),
        }
    }
}

/// The errno of a volume's error.
fn errno(error: &VolumeError) -> Errno {
    match error {
        VolumeError::NoSpace => Errno::ENOSPC,
        VolumeError::ReadOnly | VolumeError::Sealed { .. } => Errno::EPERM,
        VolumeError::InvalidSize { .. }
        | VolumeError::LeftBelow { .. }
        | VolumeError::OutOfRange { .. }
        | VolumeError::Shrink { .. } => Errno::EINVAL,
        VolumeError::BadCopy { .. }
        | VolumeError::BrokenStack { .. }
        | VolumeError::DamagedMap { .. }
        | VolumeError::Failed(_)
        | VolumeError::MergeStopped(_)
        | VolumeError::Mismatch { .. }
        | VolumeError::NewerFormat { .. }
        | VolumeError::NoSuperblock { .. }
        | VolumeError::NotNearest { .. }
        | VolumeError::NotSealed { .. }
        | VolumeError::OtherDataKey { .. }
        | VolumeError::Registry(_)
        | VolumeError::RolledBack { .. }
        | VolumeError::Store(_)
        | VolumeError::Tampered { .. }
        | VolumeError::Truncated { .. }
        | VolumeError::WorkingState(_)
        | VolumeError::WorkingStateLost { .. }
        | VolumeError::WrappedKeys { .. }
        | VolumeError::WrongKey => Errno::EIO,
    }
}

/// Whose requests are answered, with what and to where.
#[derive(Clone, Copy)]
pub(crate) struct Serving<'a> {
    pub(crate) export: &'a Export,
    pub(crate) session: &'a Session,
    pub(crate) outbox: &'a Outbox,
}

/// Does what a request other than WRITE asks for, and pushes the reply.
pub(crate) async fn answer(serving: Serving<'_>, request: Request) {
    let Serving {
        export,
        session,
        outbox,
        ..
    } = serving;
    let volume = &export.volume;
    let (offset, len) = (request.offset, u64::from(request.length));
    let result = match request.command {
        Command::Read { df } if session.structured && !df => {
            return read_split(serving, request).await;
        }
        Command::Read { .. } if request.length as usize <= READ_WHOLE_MAX => {
            return read_whole(serving, request).await;
        }
        Command::Read { .. } => return read_streamed(serving, request).await,
        Command::BlockStatus { .. } => {
            return block_status(serving, request).await;
        }
        Command::Flush => volume.flush().await,
        Command::Trim => volume.trim(offset, len, request.fua).await,
        Command::WriteZeroes { no_hole, fast } => {
            let whole_blocks = offset.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK);
            if fast && (no_hole || !whole_blocks) {
                let message = "zeroing this would take as long as writing zeros";
                outbox.push(|out| {
                    reply::error(out, session, request.cookie, Errno::ENOTSUP, message);
                });
                return;
            }
            if no_hole {
                zero_allocated(export, outbox, request).await
            } else {
                volume
                    .zero(offset, len, Zeroing::MayFree, request.fua)
                    .await
            }
        }
        // Nothing is kept in plaintext, so there is nothing to fill. WRITE never comes here.
        Command::Cache | Command::Write => Ok(()),
    };
    match result {
        Ok(()) => outbox.push(|out| reply::success(out, session, request.cookie)),
        Err(error) => push_error(serving, request.cookie, &error),
    }
}

/// Zeros that take space: up to 4 GiB are written for 28 bytes of request, so they end with the client that asked.
async fn zero_allocated(
    export: &Export,
    outbox: &Outbox,
    request: Request,
) -> Result<(), VolumeError> {
    let end = request.offset + u64::from(request.length);
    let mut at = request.offset;
    while at < end && !outbox.is_broken() {
        let next = end.min((at / ZEROES_STEP + 1) * ZEROES_STEP);
        let fua = request.fua && next == end;
        export
            .volume
            .zero(at, next - at, Zeroing::Allocated, fua)
            .await?;
        at = next;
    }
    Ok(())
}

/// A read that is made piece by piece.
struct Pieces<'a> {
    serving: Serving<'a>,
    at: u64,
    end: u64,
}

impl<'a> Pieces<'a> {
    fn new(serving: Serving<'a>, request: &Request) -> Self {
        Self {
            serving,
            at: request.offset,
            end: request.offset + u64::from(request.length),
        }
    }

    /// The next piece, made once the client has taken enough of what came before; `None` after the last, or if nobody is
    /// there to take it.
    async fn next(&mut self) -> Option<Result<ReadData, VolumeError>> {
        self.serving.outbox.room().await;
        if self.is_last() || self.serving.outbox.is_broken() {
            return None;
        }
        let from = self.at;
        self.at = self.end.min((from / READ_PIECE + 1) * READ_PIECE);
        let len = usize::try_from(self.at - from).unwrap_or(usize::MAX);
        Some(self.serving.export.volume.read(from, len).await)
    }

    /// Whether the piece that [`Self::next`] gave was the last.
    fn is_last(&self) -> bool {
        self.at == self.end
    }
}

/// A READ that may be answered in chunks: each piece leaves when it is there, holes as holes.
async fn read_split(serving: Serving<'_>, request: Request) {
    let mut pieces = Pieces::new(serving, &request);
    loop {
        let at = pieces.at;
        match pieces.next().await {
            Some(Ok(data)) => {
                let data = Rc::new(data);
                push_chunks(serving.outbox, request.cookie, at, &data, pieces.is_last());
            }
            Some(Err(error)) => return push_error(serving, request.cookie, &error),
            None => return,
        }
        serving.outbox.send_some();
    }
}

/// Content chunks for a piece; the last one of the reply is marked.
fn push_chunks(outbox: &Outbox, cookie: u64, offset: u64, data: &Rc<ReadData>, ends: bool) {
    if data.is_all_data() {
        return push_data(outbox, cookie, offset, data, 0..data.len(), ends);
    }
    let parts = data.parts();
    let last = parts.len() - 1;
    for (number, (range, is_data)) in parts.into_iter().enumerate() {
        let done = ends && number == last;
        if is_data {
            push_data(outbox, cookie, offset, data, range, done);
        } else {
            let start = offset + range.start as u64;
            outbox.push(|out| reply::offset_hole(out, cookie, start, length(range.len()), done));
        }
    }
}

fn push_data(
    outbox: &Outbox,
    cookie: u64,
    offset: u64,
    data: &Rc<ReadData>,
    range: std::ops::Range<usize>,
    done: bool,
) {
    let start = offset + range.start as u64;
    outbox.push(|out| reply::offset_data_header(out, cookie, start, length(range.len()), done));
    outbox.push_read(data, range);
}

/// A READ that is answered in one: nothing is pushed before everything is there.
async fn read_whole(serving: Serving<'_>, request: Request) {
    let Serving {
        session, outbox, ..
    } = serving;
    let mut pieces = Pieces::new(serving, &request);
    // Room for one, as most reads need.
    let (mut first, mut rest) = (None, Vec::new());
    while let Some(piece) = pieces.next().await {
        match piece {
            Ok(data) if first.is_none() => first = Some(Rc::new(data)),
            Ok(data) => rest.push(Rc::new(data)),
            Err(error) => return push_error(serving, request.cookie, &error),
        }
    }
    if !pieces.is_last() {
        return;
    }
    let all = || first.iter().chain(&rest);
    let (cookie, offset) = (request.cookie, request.offset);
    if session.structured && all().all(|data| data.bytes().is_none()) {
        outbox.push(|out| reply::offset_hole(out, cookie, offset, request.length, true));
        return;
    }
    outbox.push(|out| read_header(out, session, &request));
    for data in all() {
        if data.bytes().is_some() {
            outbox.push_read(data, 0..data.len());
        } else {
            outbox.push_zeros(data.len());
        }
    }
}

/// The same for a long READ, in bounded memory: once its header is pushed there is no way back.
async fn read_streamed(serving: Serving<'_>, request: Request) {
    let Serving {
        session, outbox, ..
    } = serving;
    let mut pieces = Pieces::new(serving, &request);
    let mut streamed = None;
    while let Some(piece) = pieces.next().await {
        let data = match piece {
            Ok(data) => Rc::new(data),
            Err(error) if streamed.is_none() => {
                return push_error(serving, request.cookie, &error);
            }
            Err(error) => {
                tracing::error!(%error, "a read failed after its reply had begun: connection closed");
                return outbox.give_up();
            }
        };
        let reply = match &streamed {
            Some(reply) => reply,
            None => {
                let reply = outbox.stream().await;
                reply.push(|out| read_header(out, session, &request));
                streamed.insert(reply)
            }
        };
        if data.bytes().is_some() {
            reply.push_read(&data, 0..data.len());
        } else {
            reply.push_zeros(data.len());
        }
        outbox.send_some();
    }
}

/// The header of a reply whose data follows in one.
fn read_header(out: &mut Vec<u8>, session: &Session, request: &Request) {
    if session.structured {
        reply::offset_data_header(out, request.cookie, request.offset, request.length, true);
    } else {
        reply::read_simple_header(out, request.cookie);
    }
}

async fn block_status(serving: Serving<'_>, request: Request) {
    let Serving {
        export,
        session,
        outbox,
        ..
    } = serving;
    let (offset, len) = (request.offset, u64::from(request.length));
    let mut extents = Extents::default();
    extents.start(&request);
    match export
        .volume
        .extents(offset, len, sealvol_nbd::extents::EXTENTS_MAX)
        .await
    {
        Ok(found) => {
            for extent in found {
                let flags = match extent.state {
                    BlockState::Data => 0,
                    BlockState::Absent | BlockState::Zero => NBD_STATE_HOLE | NBD_STATE_ZERO,
                };
                if !extents.push(extent.len, flags) {
                    break;
                }
            }
            // The gate lets BLOCK_STATUS through only with a context.
            let context = session.allocation_context.unwrap_or_default();
            outbox.push(|out| {
                reply::block_status(out, request.cookie, context, extents.as_slice());
            });
        }
        Err(error) => push_error(serving, request.cookie, &error),
    }
}

fn push_error(serving: Serving<'_>, cookie: u64, error: &VolumeError) {
    let failure = Failure::of(error);
    serving.outbox.push(|out| {
        reply::error(
            out,
            serving.session,
            cookie,
            failure.errno,
            &failure.message,
        );
    });
}

/// A length within one request, whose own is 32 bits.
fn length(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
