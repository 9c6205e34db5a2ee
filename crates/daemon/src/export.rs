//! From a request to a reply: the one place where NBD meets a volume, and where a volume's errors become errnos.
//!
//! Always: a reply is pushed whole. A READ whose reply can't be taken back once it has begun (a simple one, or one
//! that may not be split) is begun only when all its data is there, unless it is so long that it is streamed. CACHE never decrypts: a volume has no plaintext cache.
//! Never: a range check; the gate of `sealvol_nbd` has made it, and the volume makes its own.

use std::rc::Rc;

use sealvol_nbd::wire::{NBD_STATE_HOLE, NBD_STATE_ZERO};
use sealvol_nbd::{Command, Errno, Extents, Request, Session, reply};
use sealvol_store::Store;
use sealvol_volume::{BLOCK, BlockState, ReadData, Volume, VolumeError, Zeroing};

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
        | VolumeError::Mismatch { .. }
        | VolumeError::NewerFormat { .. }
        | VolumeError::NoSuperblock { .. }
        | VolumeError::NotSealed { .. }
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

/// Does what a request other than WRITE asks for, and pushes the reply.
pub(crate) async fn answer(export: &Export, session: &Session, outbox: &Outbox, request: Request) {
    let volume = &export.volume;
    let (offset, len) = (request.offset, u64::from(request.length));
    let result = match request.command {
        Command::Read { df } if session.structured && !df => {
            return read_split(export, session, outbox, request).await;
        }
        Command::Read { .. } if request.length as usize <= READ_WHOLE_MAX => {
            return read_whole(export, session, outbox, request).await;
        }
        Command::Read { .. } => return read_streamed(export, session, outbox, request).await,
        Command::BlockStatus { .. } => {
            return block_status(export, session, outbox, request).await;
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
        Err(error) => push_error(session, outbox, request.cookie, &error),
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

/// A READ that may be answered in chunks: each piece leaves when it is there, holes as holes.
async fn read_split(export: &Export, session: &Session, outbox: &Outbox, request: Request) {
    let end = request.offset + u64::from(request.length);
    let mut at = request.offset;
    while at < end {
        let next = end.min((at / READ_PIECE + 1) * READ_PIECE);
        if at != request.offset {
            outbox.room().await;
        }
        if outbox.is_broken() {
            return; // nobody is there to take the rest
        }
        match read(&export.volume, at, next).await {
            Ok(data) => push_chunks(outbox, request.cookie, at, &Rc::new(data), next == end),
            Err(error) => return push_error(session, outbox, request.cookie, &error),
        }
        at = next;
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
async fn read_whole(export: &Export, session: &Session, outbox: &Outbox, request: Request) {
    let end = request.offset + u64::from(request.length);
    let mut pieces = Vec::new();
    let mut at = request.offset;
    while at < end {
        let next = end.min((at / READ_PIECE + 1) * READ_PIECE);
        match read(&export.volume, at, next).await {
            Ok(data) => pieces.push(Rc::new(data)),
            Err(error) => return push_error(session, outbox, request.cookie, &error),
        }
        at = next;
    }
    let (cookie, offset) = (request.cookie, request.offset);
    let hole = pieces.iter().all(|data| data.bytes().is_none());
    if session.structured && hole {
        outbox.push(|out| reply::offset_hole(out, cookie, offset, request.length, true));
        return;
    }
    outbox.push(|out| read_header(out, session, &request));
    for data in pieces {
        if data.bytes().is_some() {
            outbox.push_read(&data, 0..data.len());
        } else {
            outbox.push(|out| out.resize(out.len() + data.len(), 0));
        }
    }
}

/// The same for a long READ, in bounded memory: once its header is pushed there is no way back.
async fn read_streamed(export: &Export, session: &Session, outbox: &Outbox, request: Request) {
    let end = request.offset + u64::from(request.length);
    let mut at = request.offset;
    let mut streamed = None;
    while at < end && !outbox.is_broken() {
        let next = end.min((at / READ_PIECE + 1) * READ_PIECE);
        let data = match read(&export.volume, at, next).await {
            Ok(data) => Rc::new(data),
            Err(error) if streamed.is_none() => {
                return push_error(session, outbox, request.cookie, &error);
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
            reply.push(|out| out.resize(out.len() + data.len(), 0));
        }
        outbox.room().await;
        at = next;
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

async fn read<S: Store>(volume: &Volume<S>, from: u64, to: u64) -> Result<ReadData, VolumeError> {
    volume
        .read(from, usize::try_from(to - from).unwrap_or(usize::MAX))
        .await
}

async fn block_status(export: &Export, session: &Session, outbox: &Outbox, request: Request) {
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
        Err(error) => push_error(session, outbox, request.cookie, &error),
    }
}

fn push_error(session: &Session, outbox: &Outbox, cookie: u64, error: &VolumeError) {
    let failure = Failure::of(error);
    outbox.push(|out| reply::error(out, session, cookie, failure.errno, &failure.message));
}

/// A length within one request, whose own is 32 bits.
fn length(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
