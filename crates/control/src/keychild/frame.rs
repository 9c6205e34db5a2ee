//! How messages stand on the message socket: a version, a length, then JSON.
//!
//! ```text
//! offset 0   u32 big-endian   version of the messages
//! offset 4   u32 big-endian   length of the JSON, at most 1 MiB
//! offset 8   JSON
//! ```
//! File descriptors may come with the header, as `SCM_RIGHTS` (unix(7)): the passphrase of a provider,
//! which may stand in no message, and what a backup is written to.
//!
//! What always holds: nothing is allocated for a length beyond the limit, and at most two file
//! descriptors are taken in.

use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::message::PROTOCOL_VERSION;
use crate::descriptor;

/// Most bytes of JSON in a message.
pub const JSON_MAX: usize = 1 << 20;

const HEADER_LEN: usize = 8;

/// Why a message cannot be sent or understood.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The socket failed.
    #[error("message socket: {0}")]
    Io(#[from] io::Error),
    /// It is no message of this version.
    #[error("message is not understood: {0}")]
    NotUnderstood(#[source] serde_json::Error),
    /// The other side speaks another version.
    #[error("message of version {found}; this program speaks version {PROTOCOL_VERSION} only")]
    OtherVersion {
        /// Its version.
        found: u32,
    },
    /// It is too long.
    #[error("message of {bytes} bytes; at most {JSON_MAX} are possible")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The other side closed the socket in the middle of it.
    #[error("message ends early: {got} of {wanted} bytes")]
    Truncated {
        /// Bytes that came.
        got: usize,
        /// Bytes that were announced.
        wanted: usize,
    },
}

/// A whole message as it goes over the socket.
///
/// # Errors
/// When it is longer than [`JSON_MAX`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let json = serde_json::to_vec(message).map_err(FrameError::NotUnderstood)?;
    let length = u32::try_from(json.len())
        .ok()
        .filter(|_| json.len() <= JSON_MAX)
        .ok_or(FrameError::TooLong { bytes: json.len() })?;
    let mut frame = Vec::with_capacity(HEADER_LEN + json.len());
    frame.extend_from_slice(&PROTOCOL_VERSION.to_be_bytes());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&json);
    Ok(frame)
}

/// Receives a message and the file descriptors that came with it, blocking: the child's side.
///
/// # Errors
/// When the message is truncated, too long, of another version or not understood.
pub fn receive<T: DeserializeOwned>(socket: &UnixStream) -> Result<(T, Vec<OwnedFd>), FrameError> {
    let mut header = [0; HEADER_LEN];
    let (mut got, descriptors) = descriptor::receive(socket, &mut header)?;
    let mut socket = socket;
    while got < HEADER_LEN {
        match socket.read(&mut header[got..]) {
            Ok(0) => {
                return Err(FrameError::Truncated {
                    got,
                    wanted: HEADER_LEN,
                });
            }
            Ok(read) => got += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let length = json_length(header)?;
    let mut json = Vec::with_capacity(length);
    let got = socket.take(length as u64).read_to_end(&mut json)?;
    if got < length {
        return Err(FrameError::Truncated {
            got,
            wanted: length,
        });
    }
    Ok((
        serde_json::from_slice(&json).map_err(FrameError::NotUnderstood)?,
        descriptors,
    ))
}

/// Sends a message, blocking: the child's side.
///
/// # Errors
/// When the message is too long or the socket fails.
pub fn send<T: Serialize>(mut socket: &UnixStream, message: &T) -> Result<(), FrameError> {
    Ok(socket.write_all(&encode(message)?)?)
}

/// Sends the first bytes of `frame` with `descriptors`; returns how many went. On a fresh socket
/// this does not block.
pub(super) fn send_with_rights(
    socket: &UnixStream,
    frame: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    descriptor::send(socket, &frame[..HEADER_LEN.min(frame.len())], descriptors)
}

/// Receives a message: the daemon's side.
pub(super) async fn receive_reply<T: DeserializeOwned>(
    socket: &mut (impl AsyncRead + Unpin),
) -> Result<T, FrameError> {
    let mut header = Vec::with_capacity(HEADER_LEN);
    socket
        .take(HEADER_LEN as u64)
        .read_to_end(&mut header)
        .await?;
    let got = header.len();
    let header = <[u8; HEADER_LEN]>::try_from(header).map_err(|_| FrameError::Truncated {
        got,
        wanted: HEADER_LEN,
    })?;
    let length = json_length(header)?;
    let mut json = Vec::new();
    let got = socket.take(length as u64).read_to_end(&mut json).await?;
    if got < length {
        return Err(FrameError::Truncated {
            got,
            wanted: length,
        });
    }
    serde_json::from_slice(&json).map_err(FrameError::NotUnderstood)
}

fn json_length(header: [u8; HEADER_LEN]) -> Result<usize, FrameError> {
    let [v0, v1, v2, v3, l0, l1, l2, l3] = header;
    let found = u32::from_be_bytes([v0, v1, v2, v3]);
    if found != PROTOCOL_VERSION {
        return Err(FrameError::OtherVersion { found });
    }
    let bytes = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
    if bytes > JSON_MAX {
        Err(FrameError::TooLong { bytes })
    } else {
        Ok(bytes)
    }
}
