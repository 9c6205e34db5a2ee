//! File descriptors over Unix sockets (`SCM_RIGHTS`, unix(7)): how a secret gets from one process to another without being in a
//! message.
//!
//! What always holds: at most one is taken in, and it is closed on exec.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Sends `bytes` with `descriptor`; returns how many went. On a fresh socket a few bytes do not block.
///
/// # Errors
/// When the socket fails.
pub fn send(socket: &UnixStream, bytes: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<usize> {
    let descriptors = [descriptor.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    rights.push(SendAncillaryMessage::ScmRights(&descriptors));
    Ok(sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut rights,
        SendFlags::NOSIGNAL,
    )?)
}

/// Receives bytes, how many is returned, and the descriptor that came with them, if one did.
///
/// # Errors
/// When the socket fails.
pub fn receive(socket: &UnixStream, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    // Room for one: the kernel closes what does not fit.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
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
    let descriptor = rights.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok((received.bytes, descriptor))
}
