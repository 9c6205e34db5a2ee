//! Option haggling with one client: drives `sealvol_nbd`'s handshake over a socket.
//!
//! Always: an export that the peer may not open is answered as if it did not exist.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

use sealvol_nbd::{
    Capabilities, CloseReason, ExportInfo, ExportListing, HandshakeEvent, InfoReason,
    ServerHandshake, Session,
};

use super::socket::Stream;
use crate::exports::{Export, Exports, Peer};

/// A handshake that takes longer is not one: the client is closed.
const TIME_MAX: Duration = Duration::from_secs(30);
const READ_MAX: usize = 4096;

/// What a handshake led to.
pub(super) struct Agreed {
    pub(super) session: Session,
    pub(super) export: Arc<Export>,
    /// Bytes that came after the handshake's last.
    pub(super) leftover: Vec<u8>,
}

/// Negotiates; `None` if the client left or was sent away, as the protocol provides.
///
/// # Errors
///
/// The socket's, and `TimedOut`.
pub(super) async fn run(
    stream: &Stream,
    exports: &Exports,
    peer: &Peer,
) -> io::Result<Option<Agreed>> {
    let negotiation = negotiate(stream, exports, peer);
    tokio::time::timeout(TIME_MAX, negotiation)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn negotiate(stream: &Stream, exports: &Exports, peer: &Peer) -> io::Result<Option<Agreed>> {
    let mut handshake = ServerHandshake::new();
    let mut granted: Option<Arc<Export>> = None;
    let mut input = Vec::new();
    loop {
        send(stream, &handshake.take_output()).await?;
        if let Some(event) = handshake.poll() {
            match event {
                HandshakeEvent::List => handshake.answer_list(Ok(list(exports, peer))),
                HandshakeEvent::Info { name, reason } => {
                    let found = exports.lookup(&name, peer);
                    let starts = matches!(reason, InfoReason::Go | InfoReason::ExportName);
                    granted = found.as_ref().ok().filter(|_| starts).cloned();
                    handshake.answer_info(found.map(|export| info(&export)));
                }
                HandshakeEvent::Transmission(session) => {
                    return Ok(granted.map(|export| Agreed {
                        session,
                        export,
                        leftover: input,
                    }));
                }
                HandshakeEvent::Close(reason) => {
                    log_close(&reason, peer);
                    return Ok(None);
                }
            }
            continue;
        }
        let consumed = handshake.receive(&input);
        input.drain(..consumed);
        if consumed == 0 && !receive(stream, &mut input).await? {
            return Ok(None);
        }
    }
}

fn list(exports: &Exports, peer: &Peer) -> Vec<ExportListing> {
    let listing = |(name, description)| ExportListing { name, description };
    exports.list(peer).into_iter().map(listing).collect()
}

fn info(export: &Export) -> ExportInfo {
    ExportInfo {
        size: export.volume.size(),
        read_only: export.read_only,
        description: export.description.clone(),
        can: Capabilities::ALL,
    }
}

fn log_close(reason: &CloseReason, peer: &Peer) {
    match reason {
        CloseReason::ClientAborted => {}
        CloseReason::ExportNameRefused(refusal) => {
            tracing::info!(peer = %peer.description, %refusal, "export refused");
        }
        CloseReason::Failed(error) => {
            tracing::info!(peer = %peer.description, %error, "handshake failed");
        }
    }
}

async fn send(stream: &Stream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(&[IoSlice::new(bytes)]) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// False at the end of the stream.
async fn receive(stream: &Stream, input: &mut Vec<u8>) -> io::Result<bool> {
    let filled = input.len();
    input.resize(filled + READ_MAX, 0);
    let received = loop {
        stream.readable().await?;
        match stream.try_read(&mut input[filled..]) {
            Ok(received) => break received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    };
    input.truncate(filled + received);
    Ok(received > 0)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;

    use tokio::time::{Instant, sleep};

    use super::super::socket::Socket;
    use super::*;

    /// The clock stands still but for who sleeps, so this takes no time.
    #[tokio::test(start_paused = true)]
    async fn a_handshake_of_a_byte_a_second_is_ended_when_its_time_is_over() {
        let (server, mut client) = UnixStream::pair().expect("a socket");
        let stream = Stream::new(Socket::Unix(server)).expect("a runtime");
        let peer = Peer {
            uid: Some(0),
            description: String::new(),
        };
        let slow = async {
            // Client flags, then NBD_OPT_GO with more data than it ever sends.
            let words = b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\x01\0".iter();
            for byte in words.chain(std::iter::repeat(&b'x')) {
                client.write_all(&[*byte]).expect("taken");
                sleep(Duration::from_secs(1)).await;
            }
        };
        let exports = Exports::new();
        let began = Instant::now();
        tokio::select! {
            ended = run(&stream, &exports, &peer) => {
                assert_eq!(ended.err().map(|error| error.kind()), Some(io::ErrorKind::TimedOut));
            }
            () = slow => {}
        }
        assert_eq!(began.elapsed().as_secs(), TIME_MAX.as_secs());
    }
}
