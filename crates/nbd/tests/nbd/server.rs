//! A whole server in memory: both machines, driven as a daemon drives them, over a disk that is a
//! vector. The client side reads and writes it like a socket.

use std::collections::VecDeque;
use std::io::{self, Read, Write};

use sealvol_nbd::wire::{NBD_STATE_HOLE, NBD_STATE_ZERO, REQUEST_HEADER_LEN};
use sealvol_nbd::{
    Command, Errno, Extents, HandshakeEvent, Parsed, Request, ServerHandshake, Transmission, reply,
};

use crate::bodies;

/// The block that is either a hole or not.
const BLOCK: usize = 4096;

pub(crate) struct Server {
    phase: Phase,
    inbox: Vec<u8>,
    outbox: VecDeque<u8>,
    disk: Vec<u8>,
    /// A read of this byte fails.
    pub(crate) bad_byte: Option<u64>,
}

enum Phase {
    Handshake(ServerHandshake),
    Transmission(Transmission),
    Closed,
}

impl Server {
    pub(crate) fn new() -> Self {
        let mut handshake = ServerHandshake::new();
        let outbox = handshake.take_output().into();
        let disk = vec![0; 1 << 20];
        let phase = Phase::Handshake(handshake);
        Self {
            phase,
            inbox: Vec::new(),
            outbox,
            disk,
            bad_byte: None,
        }
    }

    /// Does all that can be done with the bytes that have come.
    fn pump(&mut self) {
        while self.step() {}
    }

    fn step(&mut self) -> bool {
        match &mut self.phase {
            Phase::Handshake(handshake) => {
                let consumed = handshake.receive(&self.inbox);
                self.inbox.drain(..consumed);
                let event = handshake.poll();
                if let Some(event) = &event {
                    bodies::answer(handshake, event);
                }
                self.outbox.extend(handshake.take_output());
                match event {
                    Some(HandshakeEvent::Transmission(session)) => {
                        self.phase = Phase::Transmission(Transmission::new(session));
                        true
                    }
                    Some(HandshakeEvent::Close(_)) => {
                        self.phase = Phase::Closed;
                        false
                    }
                    event => consumed > 0 || event.is_some(),
                }
            }
            Phase::Transmission(gate) => {
                let gate = gate.clone();
                self.serve(&gate)
            }
            Phase::Closed => false,
        }
    }

    fn serve(&mut self, gate: &Transmission) -> bool {
        let session = gate.session();
        let mut out = Vec::new();
        let payload = match gate.parse(&self.inbox) {
            Parsed::NeedMore => return false,
            Parsed::Disconnect | Parsed::Fatal(_) => {
                self.phase = Phase::Closed;
                return false;
            }
            Parsed::Empty { cookie } => {
                reply::success(&mut out, session, cookie);
                0
            }
            Parsed::Refused {
                cookie,
                errno,
                payload,
                message,
            } => {
                reply::error(&mut out, session, cookie, errno, message);
                payload as usize
            }
            Parsed::Request(request) => {
                let payload = if request.command == Command::Write {
                    request.length as usize
                } else {
                    0
                };
                if self.inbox.len() < REQUEST_HEADER_LEN + payload {
                    return false;
                }
                self.perform(gate, &request, &mut out);
                payload
            }
        };
        // The client of these tests sends a request and its payload in one piece.
        self.inbox.drain(..REQUEST_HEADER_LEN + payload);
        self.outbox.extend(out);
        true
    }

    fn perform(&mut self, gate: &Transmission, request: &Request, out: &mut Vec<u8>) {
        let session = gate.session();
        let start = usize::try_from(request.offset).expect("a disk of 1 MiB");
        let range = start..start + request.length as usize;
        match request.command {
            Command::Read { df } => return self.read_disk(gate, request, df, out),
            Command::BlockStatus { .. } => {
                let mut extents = Extents::default();
                extents.start(request);
                let mut at = start;
                while at < self.disk.len() {
                    let end = (at / BLOCK + 1) * BLOCK;
                    let hole = self.is_hole(at);
                    let flags = if hole {
                        NBD_STATE_HOLE | NBD_STATE_ZERO
                    } else {
                        0
                    };
                    if !extents.push((end - at) as u64, flags) {
                        break;
                    }
                    at = end;
                }
                let context = session.allocation_context.expect("the gate asks for it");
                return reply::block_status(out, request.cookie, context, extents.as_slice());
            }
            Command::Write => {
                let payload = REQUEST_HEADER_LEN..REQUEST_HEADER_LEN + range.len();
                self.disk[range].copy_from_slice(&self.inbox[payload]);
            }
            Command::Trim | Command::WriteZeroes { .. } => self.disk[range].fill(0),
            Command::Flush | Command::Cache => {}
        }
        reply::success(out, session, request.cookie);
    }

    fn read_disk(&self, gate: &Transmission, request: &Request, df: bool, out: &mut Vec<u8>) {
        let Request {
            cookie,
            offset,
            length,
            ..
        } = *request;
        let start = usize::try_from(offset).expect("a disk of 1 MiB");
        let end = start + length as usize;
        let bad = self
            .bad_byte
            .filter(|&bad| bad >= offset && bad < offset + u64::from(length));
        if !gate.session().structured {
            if bad.is_some() {
                return reply::simple(out, cookie, Err(Errno::EIO));
            }
            reply::read_simple_header(out, cookie);
            return out.extend_from_slice(&self.disk[start..end]);
        }
        let mut at = start;
        while at < end {
            let next = if df {
                end
            } else {
                end.min((at / BLOCK + 1) * BLOCK)
            };
            let (place, len) = (
                at as u64,
                u32::try_from(next - at).expect("within a request"),
            );
            if !df && self.is_hole(at) {
                reply::offset_hole(out, cookie, place, len, false);
            } else {
                reply::offset_data_header(out, cookie, place, len, false);
                out.extend_from_slice(&self.disk[at..next]);
            }
            at = next;
        }
        match bad {
            Some(bad) => reply::error_offset(out, cookie, Errno::EIO, "bad byte", bad, true),
            None => reply::none_done(out, cookie),
        }
    }

    fn is_hole(&self, at: usize) -> bool {
        let block = at / BLOCK * BLOCK;
        self.disk[block..block + BLOCK]
            .iter()
            .all(|&byte| byte == 0)
    }
}

impl Write for Server {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if matches!(self.phase, Phase::Closed) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.inbox.extend_from_slice(bytes);
        self.pump();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Server {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let closed = matches!(self.phase, Phase::Closed);
        if self.outbox.is_empty() && !closed {
            return Err(io::Error::other(
                "the client waits for a server that waits for the client",
            ));
        }
        self.outbox.read(bytes)
    }
}
