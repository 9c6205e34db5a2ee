//! File descriptors over Unix sockets (`SCM_RIGHTS`, unix(7)): how a secret gets from one process to another without being in a
//! message, and how a process is told where to write what it cannot open itself.
//!
//! What always holds: at most [`AT_ONCE`] are taken in, and they are closed on exec.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Most descriptors in a message.
pub const AT_ONCE: usize = 2;

/// Sends `bytes` with `descriptors`, of which [`AT_ONCE`] fit; returns how many bytes went. On a fresh socket a few bytes do not
/// block.
///
/// # Errors
/// When the socket fails, or there are too many.
pub fn send(
    socket: &UnixStream,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !rights.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many file descriptors for a message"));
    }
    Ok(sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut rights,
        SendFlags::NOSIGNAL,
    )?)
}

/// Receives bytes, how many is returned, and the descriptors that came with them, in their order.
///
/// # Errors
/// When the socket fails.
pub fn receive(socket: &UnixStream, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    // The kernel closes what does not fit.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(
            socket,
            &mut [IoSliceMut::new(bytes)],
            &mut rights,
            RecvFlags::CMSG_CLOEXEC,
        )
    })
    .map_err(io::Error::from)?;
    let mut taken = Vec::new();
    for message in rights.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            taken.extend(descriptors);
        }
    }
    Ok((received.bytes, taken))
}
