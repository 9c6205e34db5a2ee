//! What a fuzzer does with bytes. The crate's property tests run the same functions on random
//! bytes, so they are compiled and checked without a fuzzer too.
//!
//! Each function states what must hold for any input, and panics if it does not.

use sealvol_nbd::client::{Chunk, Message};
use sealvol_nbd::handshake::MEMORY_HELD_MAX;
use sealvol_nbd::wire::{PAYLOAD_MAX, REQUEST_HEADER_LEN, STRING_MAX};
use sealvol_nbd::{
    Capabilities, Command, Errno, ExportInfo, ExportListing, Extents, HandshakeEvent, Parsed,
    Refusal, RefusalReason, Request, ServerHandshake, Session, Transmission, reply,
};

/// A client says `data`, `step` bytes at a time. Returns what the server made of it: the events and
/// all it sent.
///
/// # Panics
/// If the server holds more memory than it promises, stops without a reason, or lets through a
/// name that is no string of the protocol.
pub(crate) fn handshake(data: &[u8], step: usize) -> (Vec<HandshakeEvent>, Vec<u8>) {
    let mut server = ServerHandshake::new();
    let mut events = Vec::new();
    let mut sent = server.take_output();
    let mut rest = data;
    while !rest.is_empty() {
        let offered = &rest[..rest.len().min(step.max(1))];
        let consumed = server.receive(offered);
        assert!(
            server.memory_held() <= MEMORY_HELD_MAX,
            "{} bytes held",
            server.memory_held()
        );
        sent.extend_from_slice(&server.take_output());
        let event = server.poll();
        assert!(
            consumed > 0 && consumed <= offered.len(),
            "{consumed} of {}",
            offered.len()
        );
        rest = &rest[consumed..];
        if let Some(event) = event {
            answer(&mut server, &event);
            events.push(event);
            sent.extend_from_slice(&server.take_output());
            events.extend(server.poll());
        }
        if events.last().is_some_and(is_last) {
            assert_eq!(
                server.receive(rest),
                0,
                "an ended handshake consumes nothing"
            );
            break;
        }
    }
    (events, sent)
}

fn is_last(event: &HandshakeEvent) -> bool {
    matches!(
        event,
        HandshakeEvent::Transmission(_) | HandshakeEvent::Close(_)
    )
}

/// The server of these tests: it has the exports `disk` (writable) and `image` (read-only).
pub(crate) fn answer(server: &mut ServerHandshake, event: &HandshakeEvent) {
    match event {
        HandshakeEvent::List => server.answer_list(Ok(["disk", "image"]
            .map(|name| ExportListing {
                name: name.to_owned(),
                description: "a test".to_owned(),
            })
            .to_vec())),
        HandshakeEvent::Info { name, .. } => {
            assert!(
                name.len() <= STRING_MAX && !name.contains('\0'),
                "{name:?} is no string"
            );
            server.answer_info(export(name));
        }
        HandshakeEvent::Transmission(_) | HandshakeEvent::Close(_) => {}
    }
}

/// What that server knows about an export.
pub(crate) fn export(name: &str) -> Result<ExportInfo, Refusal> {
    match name {
        "disk" | "image" => Ok(ExportInfo {
            size: 1 << 20,
            read_only: name == "image",
            description: "a test".to_owned(),
            can: Capabilities::ALL,
        }),
        _ => Err(Refusal::new(
            RefusalReason::Unknown,
            "there is no such export",
        )),
    }
}

/// A client says `data` in a session that `terms` describes.
///
/// # Panics
/// If the gate lets an invalid request through, or a reply cannot be read back.
pub(crate) fn transmission(data: &[u8], terms: u16) {
    let gate = Transmission::new(session(terms));
    let mut out = Vec::new();
    let mut rest = data;
    loop {
        let parsed = gate.parse(rest);
        out.clear();
        let payload = match parsed {
            Parsed::NeedMore => {
                assert!(rest.len() < REQUEST_HEADER_LEN);
                return;
            }
            Parsed::Disconnect | Parsed::Fatal(_) => return,
            Parsed::Empty { cookie } => {
                reply::success(&mut out, gate.session(), cookie);
                0
            }
            Parsed::Refused {
                cookie,
                errno,
                payload,
                message,
            } => {
                assert!(payload <= PAYLOAD_MAX);
                reply::error(&mut out, gate.session(), cookie, errno, message);
                payload
            }
            Parsed::Request(request) => {
                assert_valid(&request, gate.session());
                encode_a_reply(&mut out, gate.session(), &request);
                if request.command == Command::Write {
                    request.length
                } else {
                    0
                }
            }
        };
        assert_readable(&out, gate.session().structured);
        let next = REQUEST_HEADER_LEN + payload as usize;
        rest = rest.get(next..).unwrap_or_default();
    }
}

/// A session with each term on or off by its bit.
pub(crate) fn session(terms: u16) -> Session {
    let on = |bit: u16| terms & (1 << bit) != 0;
    let structured = on(8);
    Session {
        export: "disk".to_owned(),
        size: if on(11) { u64::MAX } else { 1 << 20 },
        read_only: on(9),
        can: Capabilities {
            flush: on(0),
            fua: on(1),
            trim: on(2),
            write_zeroes: on(3),
            fast_zero: on(4),
            multi_conn: on(5),
            cache: on(6),
            df: on(7),
        },
        structured,
        allocation_context: (structured && on(10)).then_some(1),
    }
}

/// What every volume may rely on.
fn assert_valid(request: &Request, session: &Session) {
    let end = request.offset.checked_add(u64::from(request.length));
    assert!(
        end.is_some_and(|end| end <= session.size),
        "{request:?} leaves the export"
    );
    assert!(
        !(session.read_only && request.command.writes()),
        "{request:?} writes to read-only"
    );
    assert!(
        session.can.fua || !request.fua,
        "{request:?} has FUA that was not offered"
    );
    let is_flush = request.command == Command::Flush;
    assert_eq!(request.length == 0, is_flush, "{request:?} is empty");
    let offered = match request.command {
        Command::Read { df } => {
            request.length <= PAYLOAD_MAX && (!df || (session.structured && session.can.df))
        }
        Command::Write => request.length <= PAYLOAD_MAX,
        Command::Flush => session.can.flush && request.offset == 0,
        Command::Trim => session.can.trim,
        Command::Cache => session.can.cache,
        Command::WriteZeroes { fast, .. } => {
            session.can.write_zeroes && (!fast || session.can.fast_zero)
        }
        Command::BlockStatus { .. } => session.allocation_context.is_some(),
    };
    assert!(offered, "{request:?} was not offered");
}

fn encode_a_reply(out: &mut Vec<u8>, session: &Session, request: &Request) {
    let Request {
        cookie,
        offset,
        length,
        ..
    } = *request;
    match request.command {
        Command::Read { .. } if session.structured => {
            reply::offset_hole(out, cookie, offset, length, false);
            reply::error_offset(out, cookie, Errno::EIO, "lost", offset, true);
        }
        Command::BlockStatus { .. } => {
            let mut extents = Extents::default();
            extents.start(request);
            for piece in 0.. {
                if !extents.push(u64::from(length / 3) + 1, piece % 2) {
                    break;
                }
            }
            let covered: u32 = extents.as_slice().iter().map(|extent| extent.len).sum();
            assert!(covered <= length);
            let context_id = session.allocation_context.expect("the gate asks for it");
            reply::block_status(out, cookie, context_id, extents.as_slice());
        }
        _ => reply::success(out, session, cookie),
    }
}

/// The bytes are whole messages that the client side understands.
fn assert_readable(out: &[u8], structured: bool) {
    let mut unread = out;
    let mut done = false;
    while !unread.is_empty() {
        assert!(!done, "a message follows the last one");
        match Message::read_from(&mut unread).expect("a reply must be readable") {
            Message::Simple { .. } => done = true,
            Message::Chunk {
                done: last, chunk, ..
            } => {
                assert!(structured, "a chunk without structured replies");
                assert!(!matches!(chunk, Chunk::None) || last);
                done = last;
            }
        }
    }
    assert!(done, "a reply without an end");
}
