//! Whole handshakes, byte for byte, written down from the protocol document and not from the
//! crate's constants: a wrong constant cannot hide in both.

use sealvol_nbd::{
    CloseReason, Command, Errno, HandshakeEvent, Parsed, RefusalReason, Session, Transmission,
};

use crate::{bodies, hex};

const GREETING: &str = "4e42444d41474943 49484156454f5054 0003";

/// What the server sends after the greeting, and the last event.
fn answers(client: &str) -> (Vec<u8>, HandshakeEvent) {
    let (events, sent) = bodies::handshake(&hex(client), usize::MAX);
    let greeting = hex(GREETING);
    assert_eq!(sent[..greeting.len()], greeting, "greeting");
    (
        sent[greeting.len()..].to_vec(),
        events.last().expect("an event").clone(),
    )
}

fn expect_session(event: HandshakeEvent) -> Session {
    let HandshakeEvent::Transmission(session) = event else {
        panic!("{event:?}")
    };
    session
}

#[test]
fn go_with_every_information_item() {
    let (sent, event) = answers(
        "00000003
         49484156454f5054 00000007 00000010  00000004 6469736b 0003 0003 0001 0002",
    );
    let expected = hex(
        "0003e889045565a9 00000007 00000003 0000000c  0000 0000000000100000 0d6d
         0003e889045565a9 00000007 00000003 00000006  0001 6469736b
         0003e889045565a9 00000007 00000003 00000008  0002 612074657374
         0003e889045565a9 00000007 00000003 0000000e  0003 00000001 00001000 02000000
         0003e889045565a9 00000007 00000001 00000000",
    );
    assert_eq!(sent, expected);
    let session = expect_session(event);
    assert_eq!((session.export.as_str(), session.size), ("disk", 1 << 20));
    assert_eq!(
        (session.structured, session.allocation_context),
        (false, None)
    );
}

#[test]
fn go_with_structured_replies_and_base_allocation() {
    let (sent, event) = answers(
        "00000001
         49484156454f5054 00000008 00000000
         49484156454f5054 0000000a 0000001f
             00000004 6469736b 00000001 0000000f 626173653a616c6c6f636174696f6e
         49484156454f5054 00000007 0000000a  00000004 6469736b 0000",
    );
    let expected = hex("0003e889045565a9 00000008 00000001 00000000
         0003e889045565a9 0000000a 00000004 00000013  00000001 626173653a616c6c6f636174696f6e
         0003e889045565a9 0000000a 00000001 00000000
         0003e889045565a9 00000007 00000003 0000000c  0000 0000000000100000 0ded
         0003e889045565a9 00000007 00000001 00000000");
    assert_eq!(sent, expected);
    let session = expect_session(event);
    assert_eq!(
        (session.structured, session.allocation_context),
        (true, Some(1))
    );
}

#[test]
fn export_name_with_the_reserved_zeroes() {
    let (sent, event) = answers("00000001  49484156454f5054 00000001 00000004 6469736b");
    let mut expected = hex("0000000000100000 0d6d");
    expected.extend([0; 124]);
    assert_eq!(sent, expected);
    assert_eq!(expect_session(event).export, "disk");
}

#[test]
fn export_name_without_the_reserved_zeroes() {
    let (sent, event) = answers("00000003  49484156454f5054 00000001 00000005 696d616765");
    assert_eq!(sent, hex("0000000000100000 050f"));
    assert!(expect_session(event).read_only);
}

#[test]
fn list_then_abort() {
    let (sent, event) = answers(
        "00000003
         49484156454f5054 00000003 00000000
         49484156454f5054 00000002 00000000",
    );
    let expected = hex(
        "0003e889045565a9 00000003 00000002 0000000e  00000004 6469736b 612074657374
         0003e889045565a9 00000003 00000002 0000000f  00000005 696d616765 612074657374
         0003e889045565a9 00000003 00000001 00000000
         0003e889045565a9 00000002 00000001 00000000",
    );
    assert_eq!(sent, expected);
    assert_eq!(event, HandshakeEvent::Close(CloseReason::ClientAborted));
}

#[test]
fn info_of_an_unknown_export_then_starttls() {
    let (sent, _) = answers(
        "00000003
         49484156454f5054 00000006 00000008  00000002 6e6f 0000
         49484156454f5054 00000005 00000000
         49484156454f5054 00000002 00000000",
    );
    let mut expected = hex("0003e889045565a9 00000006 80000006 00000017");
    expected.extend(b"there is no such export");
    expected.extend(hex("0003e889045565a9 00000005 80000001 00000039"));
    expected.extend(b"this server has no TLS on this socket; connect without it");
    expected.extend(hex("0003e889045565a9 00000002 00000001 00000000"));
    assert_eq!(sent, expected);
}

#[test]
fn every_request_and_flag_has_its_number() {
    let read = |df| Command::Read { df };
    let zeroes = |no_hole, fast| Command::WriteZeroes { no_hole, fast };
    let status = |req_one| Command::BlockStatus { req_one };
    let gate = Transmission::new(bodies::session(0b101_1111_1111));
    for (flags_and_type, command, fua) in [
        ("0000 0000", read(false), false),
        ("0004 0000", read(true), false),
        ("0001 0001", Command::Write, true),
        ("0001 0004", Command::Trim, true),
        ("0000 0005", Command::Cache, false),
        ("0000 0006", zeroes(false, false), false),
        ("0002 0006", zeroes(true, false), false),
        ("0010 0006", zeroes(false, true), false),
        ("0000 0007", status(false), false),
        ("0008 0007", status(true), false),
    ] {
        let header =
            format!("25609513 {flags_and_type} 0000000000000007 0000000000001000 00000200");
        let Parsed::Request(request) = gate.parse(&hex(&header)) else {
            panic!("{header}")
        };
        assert_eq!((request.command, request.fua), (command, fua));
        assert_eq!(
            (request.cookie, request.offset, request.length),
            (7, 4096, 512)
        );
    }
    let header = |kind| hex(&format!("25609513 0000 {kind} {}", "0".repeat(40)));
    let Parsed::Request(flush) = gate.parse(&header("0003")) else {
        panic!("no FLUSH")
    };
    assert_eq!(flush.command, Command::Flush);
    assert_eq!(gate.parse(&header("0002")), Parsed::Disconnect);
}

#[test]
fn every_error_has_its_number() {
    let reply_types = [
        (RefusalReason::Policy, 2),
        (RefusalReason::Invalid, 3),
        (RefusalReason::Platform, 4),
        (RefusalReason::TlsRequired, 5),
        (RefusalReason::Unknown, 6),
        (RefusalReason::Shutdown, 7),
        (RefusalReason::TooBig, 9),
    ];
    for (reason, number) in reply_types {
        assert_eq!(reason.reply_type(), (1 << 31) + number, "{reason:?}");
    }
    let errnos = [
        (Errno::EPERM, 1),
        (Errno::EIO, 5),
        (Errno::ENOMEM, 12),
        (Errno::EINVAL, 22),
        (Errno::ENOSPC, 28),
        (Errno::EOVERFLOW, 75),
        (Errno::ENOTSUP, 95),
        (Errno::ESHUTDOWN, 108),
    ];
    for (errno, number) in errnos {
        assert_eq!(errno.code(), number, "{errno:?}");
    }
}
