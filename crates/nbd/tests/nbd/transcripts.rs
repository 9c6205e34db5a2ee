//! Whole handshakes, byte for byte, written down from the protocol document and not from the
//! crate's constants: a wrong constant cannot hide in both.

use sealvol_nbd::{CloseReason, HandshakeEvent, Session};

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
