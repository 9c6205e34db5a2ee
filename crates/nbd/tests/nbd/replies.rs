//! Replies, byte for byte, written down from the protocol document.

use sealvol_nbd::extents::EXTENTS_MAX;
use sealvol_nbd::wire::{NBD_STATE_HOLE, NBD_STATE_ZERO};
use sealvol_nbd::{Command, Errno, Extent, Extents, Request, reply};

use crate::{bodies, hex};

const COOKIE: u64 = 0x0123_4567_89ab_cdef;

fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    // What is in the buffer stays.
    let mut out = vec![0xee];
    encode(&mut out);
    assert_eq!(out.remove(0), 0xee);
    out
}

#[test]
fn simple_replies() {
    let ok = encoded(|out| reply::simple(out, COOKIE, Ok(())));
    assert_eq!(ok, hex("67446698 00000000 0123456789abcdef"));
    let failed = encoded(|out| reply::simple(out, COOKIE, Err(Errno::ENOSPC)));
    assert_eq!(failed, hex("67446698 0000001c 0123456789abcdef"));
    assert_eq!(encoded(|out| reply::read_simple_header(out, COOKIE)), ok);
}

#[test]
fn content_chunks() {
    let data = encoded(|out| reply::offset_data_header(out, COOKIE, 0x1000, 512, false));
    assert_eq!(
        data,
        hex("668e33ef 0000 0001 0123456789abcdef 00000208  0000000000001000")
    );
    let hole = encoded(|out| reply::offset_hole(out, COOKIE, 0x1000, 512, true));
    assert_eq!(
        hole,
        hex("668e33ef 0001 0002 0123456789abcdef 0000000c  0000000000001000 00000200")
    );
    let none = encoded(|out| reply::none_done(out, COOKIE));
    assert_eq!(none, hex("668e33ef 0001 0000 0123456789abcdef 00000000"));
}

#[test]
fn error_chunks() {
    let error = encoded(|out| reply::error_chunk(out, COOKIE, Errno::EIO, "no"));
    assert_eq!(
        error,
        hex("668e33ef 0001 8001 0123456789abcdef 00000008  00000005 0002 6e6f")
    );
    let at = encoded(|out| reply::error_offset(out, COOKIE, Errno::EIO, "no", 0x1000, false));
    let expected = "668e33ef 0000 8002 0123456789abcdef 00000010
                    00000005 0002 6e6f 0000000000001000";
    assert_eq!(at, hex(expected));
    let silent = encoded(|out| reply::error_chunk(out, COOKIE, Errno::EIO, ""));
    assert_eq!(
        silent,
        hex("668e33ef 0001 8001 0123456789abcdef 00000006  00000005 0000")
    );
}

#[test]
fn the_text_of_an_error_chunk_is_cut_to_a_string() {
    let error = encoded(|out| reply::error_chunk(out, COOKIE, Errno::EIO, &"x".repeat(1 << 17)));
    assert_eq!(error.len(), 20 + 6 + 4096);
}

#[test]
fn a_block_status_chunk() {
    let extents = [
        Extent {
            len: 4096,
            flags: 0,
        },
        Extent {
            len: 8192,
            flags: NBD_STATE_HOLE | NBD_STATE_ZERO,
        },
    ];
    let status = encoded(|out| reply::block_status(out, COOKIE, 1, &extents));
    let expected = "668e33ef 0001 0005 0123456789abcdef 00000014
                    00000001 00001000 00000000 00002000 00000003";
    assert_eq!(status, hex(expected));
}

#[test]
fn errors_and_successes_take_the_form_that_was_negotiated() {
    let (simple, structured) = (bodies::session(0), bodies::session(1 << 8));
    let form = |out: Vec<u8>| hex("67446698") == out[..4];
    assert!(form(encoded(|out| reply::error(
        out,
        &simple,
        COOKIE,
        Errno::EIO,
        "no"
    ))));
    assert!(!form(encoded(|out| reply::error(
        out,
        &structured,
        COOKIE,
        Errno::EIO,
        "no"
    ))));
    assert!(form(encoded(|out| reply::success(out, &simple, COOKIE))));
    assert!(!form(encoded(|out| reply::success(
        out,
        &structured,
        COOKIE
    ))));
}

#[test]
#[should_panic(expected = "at least one extent")]
fn an_empty_block_status_is_never_encoded() {
    reply::block_status(&mut Vec::new(), COOKIE, 1, &[]);
}

#[test]
#[should_panic(expected = "at least one byte")]
fn an_empty_content_chunk_is_never_encoded() {
    reply::offset_data_header(&mut Vec::new(), COOKIE, 0, 0, true);
}

// Collecting extents

fn status_request(length: u32, req_one: bool) -> Request {
    let command = Command::BlockStatus { req_one };
    Request {
        cookie: COOKIE,
        offset: 0,
        length,
        command,
        fua: false,
    }
}

#[test]
fn extents_of_one_status_are_joined_and_cut_to_the_request() {
    let mut extents = Extents::default();
    extents.start(&status_request(10_000, false));
    assert!(extents.push(4096, 0));
    assert!(extents.push(4096, 0));
    assert!(extents.push(0, 1), "a run of nothing adds nothing");
    assert!(!extents.push(u64::MAX, 3));
    assert!(!extents.push(1, 0));
    let expected = [
        Extent {
            len: 8192,
            flags: 0,
        },
        Extent {
            len: 1808,
            flags: 3,
        },
    ];
    assert_eq!(extents.as_slice(), expected);
}

#[test]
fn a_request_for_one_extent_gets_one() {
    let mut extents = Extents::default();
    extents.start(&status_request(u32::MAX, true));
    assert!(extents.push(4096, 3));
    assert!(extents.push(4096, 3));
    assert!(!extents.push(4096, 0));
    assert_eq!(
        extents.as_slice(),
        [Extent {
            len: 8192,
            flags: 3
        }]
    );
    extents.start(&status_request(512, true));
    assert!(!extents.push(4096, 1));
    assert_eq!(extents.as_slice(), [Extent { len: 512, flags: 1 }]);
}

#[test]
fn the_number_of_extents_is_bounded() {
    let mut extents = Extents::default();
    extents.start(&status_request(u32::MAX, false));
    let taken = (0..).take_while(|i| extents.push(4096, i % 2)).count();
    assert_eq!(
        (taken, extents.as_slice().len()),
        (EXTENTS_MAX, EXTENTS_MAX)
    );
    let reply = encoded(|out| reply::block_status(out, COOKIE, 1, extents.as_slice()));
    assert_eq!(reply.len(), 20 + 4 + 8 * EXTENTS_MAX);
}
