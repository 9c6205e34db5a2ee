//! The ceiling of a benchmark: the smallest server over this crate, and a volume that does nothing. Reads are answered from
//! prepared bytes, what is written is dropped, a flush has nothing to do.
//!
//!     cargo run --release --example ceiling -- SOCKET BYTES
//!
//! What it measures is the client, the socket and the machine at that moment: what any server that speaks this protocol code
//! could reach. It shares no code with the daemon's engine, on purpose: a weakness of the engine must not lower the ceiling that
//! the engine is measured against. One thread a connection; one receive brings many requests, and replies leave a few at a time,
//! so that client and server work at once.
//!
//! It answers every export name, checks nobody, and is no part of the product.

use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};

use sealvol_nbd::{
    Capabilities, Command, ExportInfo, Extents, HandshakeEvent, Parsed, Request, ServerHandshake,
    Session, Transmission, reply, wire,
};

/// One receive.
const RECEIVE: usize = 256 * 1024;
/// The bytes that reads are answered with, again and again.
const PREPARED: usize = 1 << 20;
/// Replies that leave in one send, and bytes: more of them make the client wait, fewer cost system calls.
const REPLIES_MAX: usize = 8;
const BYTES_MAX: usize = 1 << 20;

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(Ok(size))) = (arguments.next(), arguments.next().map(|n| n.parse()))
    else {
        eprintln!("usage: ceiling SOCKET BYTES");
        std::process::exit(2);
    };
    // Not all the same: nothing on the way may take it for a hole or compress it.
    let prepared: Vec<u8> = (0..PREPARED)
        .map(|at| u8::try_from(((at * 2_654_435_761) >> 13) & 0xff).unwrap_or_default())
        .collect();
    let prepared: &'static [u8] = prepared.leak();
    for stream in UnixListener::bind(path)?.incoming() {
        let stream = stream?;
        std::thread::spawn(move || {
            if let Err(error) = serve(stream, size, prepared) {
                eprintln!("ceiling: {error}");
            }
        });
    }
    Ok(())
}

fn serve(mut stream: UnixStream, size: u64, prepared: &'static [u8]) -> io::Result<()> {
    let mut inbox = Vec::new();
    let Some(session) = negotiate(&mut stream, size, &mut inbox)? else {
        return Ok(());
    };
    let gate = Transmission::new(session);
    let mut replies = Replies::new(prepared);
    let mut input = vec![0; RECEIVE];
    let mut filled = inbox.len();
    input[..filled].copy_from_slice(&inbox);
    // Payload that is still to come.
    let mut dropping = 0;
    loop {
        let mut at = 0;
        loop {
            let dropped = dropping.min(filled - at);
            (at, dropping) = (at + dropped, dropping - dropped);
            if dropping > 0 {
                break;
            }
            match gate.parse(&input[at..filled]) {
                Parsed::NeedMore => break,
                Parsed::Disconnect => return replies.send(&mut stream),
                Parsed::Fatal(error) => return Err(io::Error::other(error)),
                Parsed::Empty { cookie } => replies.success(gate.session(), cookie),
                Parsed::Refused {
                    cookie,
                    errno,
                    payload,
                    message,
                } => {
                    dropping = payload as usize;
                    reply::error(&mut replies.heads, gate.session(), cookie, errno, message);
                    replies.add(0);
                }
                Parsed::Request(request) => {
                    if request.command == Command::Write {
                        // The reply may leave before the payload is here: nobody looks at it.
                        dropping = request.length as usize;
                    }
                    replies.answer(gate.session(), &request);
                }
            }
            at += wire::REQUEST_HEADER_LEN;
            if replies.are_enough() && dropping <= filled - at {
                replies.send(&mut stream)?;
            }
        }
        input.copy_within(at..filled, 0);
        filled -= at;
        if dropping == 0 {
            replies.send(&mut stream)?;
        }
        match stream.read(&mut input[filled..])? {
            0 => return Ok(()),
            received => filled += received,
        }
    }
}

/// `None` if the client leaves. `left` is what came after the handshake's last byte.
fn negotiate(
    stream: &mut UnixStream,
    size: u64,
    left: &mut Vec<u8>,
) -> io::Result<Option<Session>> {
    let mut handshake = ServerHandshake::new();
    loop {
        stream.write_all(&handshake.take_output())?;
        match handshake.poll() {
            Some(HandshakeEvent::List) => handshake.answer_list(Ok(Vec::new())),
            Some(HandshakeEvent::Info { .. }) => handshake.answer_info(Ok(ExportInfo {
                size,
                read_only: false,
                description: "nothing".to_owned(),
                can: Capabilities::ALL,
            })),
            Some(HandshakeEvent::Transmission(session)) => return Ok(Some(session)),
            Some(HandshakeEvent::Close(_)) => return Ok(None),
            None => {
                let consumed = handshake.receive(left);
                left.drain(..consumed);
                if consumed == 0 {
                    let mut piece = [0; 4096];
                    let received = stream.read(&mut piece)?;
                    if received == 0 {
                        return Ok(None);
                    }
                    left.extend_from_slice(&piece[..received]);
                }
            }
        }
    }
}

/// Replies that wait to be sent together.
struct Replies {
    heads: Vec<u8>,
    /// For each: where its head ends, and how much data follows it.
    ends: Vec<(usize, usize)>,
    data: usize,
    prepared: &'static [u8],
}

impl Replies {
    fn new(prepared: &'static [u8]) -> Self {
        Self {
            heads: Vec::new(),
            ends: Vec::new(),
            data: 0,
            prepared,
        }
    }

    fn success(&mut self, session: &Session, cookie: u64) {
        reply::success(&mut self.heads, session, cookie);
        self.add(0);
    }

    fn answer(&mut self, session: &Session, request: &Request) {
        let (cookie, length) = (request.cookie, request.length);
        match request.command {
            Command::Read { .. } => {
                if session.structured {
                    let offset = request.offset;
                    reply::offset_data_header(&mut self.heads, cookie, offset, length, true);
                } else {
                    reply::read_simple_header(&mut self.heads, cookie);
                }
                self.add(length as usize);
            }
            Command::BlockStatus { .. } => {
                let mut extents = Extents::default();
                extents.start(request);
                extents.push(u64::from(length), 0);
                let context = session.allocation_context.unwrap_or_default();
                reply::block_status(&mut self.heads, cookie, context, extents.as_slice());
                self.add(0);
            }
            _ => self.success(session, cookie),
        }
    }

    fn add(&mut self, data: usize) {
        self.ends.push((self.heads.len(), data));
        self.data += data;
    }

    fn are_enough(&self) -> bool {
        self.ends.len() >= REPLIES_MAX || self.data >= BYTES_MAX
    }

    fn send(&mut self, stream: &mut UnixStream) -> io::Result<()> {
        let mut slices = Vec::with_capacity(2 * self.ends.len());
        let mut start = 0;
        for &(end, mut data) in &self.ends {
            slices.push(IoSlice::new(&self.heads[start..end]));
            start = end;
            while data > 0 {
                let piece = data.min(self.prepared.len());
                slices.push(IoSlice::new(&self.prepared[..piece]));
                data -= piece;
            }
        }
        let mut rest = &mut slices[..];
        while !rest.is_empty() {
            let sent = stream.write_vectored(rest)?;
            IoSlice::advance_slices(&mut rest, sent);
        }
        self.heads.clear();
        self.ends.clear();
        self.data = 0;
        Ok(())
    }
}
