//! A client's socket, Unix or TCP, seen as one thing.

use std::io::{self, IoSlice};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use rustix::net::sockopt::{set_socket_keepalive, set_socket_send_buffer_size, set_tcp_keepidle};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

/// A TCP peer that says nothing for so long is asked whether it is there.
const IDLE: Duration = Duration::from_secs(60);

/// What the kernel may hold of replies on a Unix socket: two pieces of a long read (it gives at most `net.core.wmem_max`).
/// A TCP socket finds its own size.
const SEND_BUFFER: usize = 512 * 1024;

/// An accepted connection that no runtime owns yet.
pub enum Socket {
    /// On a Unix socket.
    Unix(StdUnixStream),
    /// Over TCP.
    Tcp(std::net::TcpStream),
}

/// The same, owned by a worker's runtime.
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    /// Takes the socket over to this thread's runtime.
    pub(super) fn new(socket: Socket) -> io::Result<Self> {
        match socket {
            Socket::Unix(stream) => {
                stream.set_nonblocking(true)?;
                // Room for the next piece while the client takes the last one; asked for, not insisted on.
                set_socket_send_buffer_size(&stream, SEND_BUFFER)?;
                Ok(Self::Unix(UnixStream::from_std(stream)?))
            }
            Socket::Tcp(stream) => {
                stream.set_nonblocking(true)?;
                // Replies are batched here; holding back the last one would only add delay.
                stream.set_nodelay(true)?;
                // A peer that vanished would else stay connected for ever.
                set_socket_keepalive(&stream, true)?;
                set_tcp_keepidle(&stream, IDLE)?;
                Ok(Self::Tcp(TcpStream::from_std(stream)?))
            }
        }
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.ready(Interest::READABLE).await.map(drop),
            Self::Tcp(stream) => stream.ready(Interest::READABLE).await.map(drop),
        }
    }

    pub(super) async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.writable().await,
            Self::Tcp(stream) => stream.writable().await,
        }
    }

    /// Whether the other end is closed, so that nothing that is sent can arrive. A TCP client that closed in good order is not
    /// known to have before something is sent to it.
    pub(super) async fn is_hung_up(&self) -> bool {
        let either = Interest::READABLE | Interest::WRITABLE;
        let ready = async {
            match self {
                Self::Unix(stream) => stream.ready(either).await,
                Self::Tcp(stream) => stream.ready(either).await,
            }
        };
        // Neither readable nor writable is not closed either.
        match tokio::time::timeout(Duration::ZERO, ready).await {
            Ok(Ok(ready)) => ready.is_write_closed(),
            Ok(Err(_)) => true,
            Err(_) => false,
        }
    }

    pub(super) fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.try_read(buf),
            Self::Tcp(stream) => stream.try_read(buf),
        }
    }

    pub(super) fn try_write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.try_write_vectored(parts),
            Self::Tcp(stream) => stream.try_write_vectored(parts),
        }
    }
}
