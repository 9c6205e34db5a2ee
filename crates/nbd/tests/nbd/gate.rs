//! What the gate makes of each request: one test a row of the table in `transmission.rs`.

use sealvol_nbd::client::RawRequest;
use sealvol_nbd::wire::*;
use sealvol_nbd::{Command, Errno, Error, Parsed, PeerMisbehaved, Request, Session, Transmission};

use crate::{bodies, hex};

const SIZE: u64 = 1 << 40;
const MAX: u32 = u32::MAX;
/// All commands that have a range, with the error for one past the end.
const RANGED: [(u16, Errno); 6] = [
    (NBD_CMD_READ, Errno::EINVAL),
    (NBD_CMD_WRITE, Errno::ENOSPC),
    (NBD_CMD_TRIM, Errno::EINVAL),
    (NBD_CMD_CACHE, Errno::EINVAL),
    (NBD_CMD_WRITE_ZEROES, Errno::ENOSPC),
    (NBD_CMD_BLOCK_STATUS, Errno::EINVAL),
];

/// Everything offered and negotiated.
fn session() -> Session {
    Session {
        size: SIZE,
        ..bodies::session(0b101_1111_1111)
    }
}

fn parse(session: &Session, kind: u16, flags: u16, offset: u64, length: u32) -> Parsed {
    let request = RawRequest {
        flags,
        kind,
        cookie: 7,
        offset,
        length,
    };
    Transmission::new(session.clone()).parse(&request.encode())
}

#[track_caller]
fn expect_request(parsed: Parsed) -> Request {
    match parsed {
        Parsed::Request(request) => request,
        parsed => panic!("{parsed:?}"),
    }
}

/// The error and how much payload is to be dropped.
#[track_caller]
fn expect_refusal(parsed: Parsed) -> (Errno, u32) {
    match parsed {
        Parsed::Refused {
            cookie: 7,
            errno,
            payload,
            message,
        } if !message.is_empty() => (errno, payload),
        parsed => panic!("{parsed:?}"),
    }
}

#[test]
fn a_header_is_parsed_byte_for_byte() {
    let bytes = hex("25609513 0001 0001 0123456789abcdef 0000000000001000 00000200 ffff");
    let gate = Transmission::new(session());
    for short in 0..REQUEST_HEADER_LEN {
        assert_eq!(gate.parse(&bytes[..short]), Parsed::NeedMore);
    }
    let expected = Request {
        cookie: 0x0123_4567_89ab_cdef,
        offset: 4096,
        length: 512,
        command: Command::Write,
        fua: true,
    };
    assert_eq!(gate.parse(&bytes), Parsed::Request(expected));
}

#[test]
fn a_bad_magic_is_fatal() {
    for magic in [0x1256_0953_u32, 0x21e4_1c71, 0] {
        let mut bytes = RawRequest::default().encode();
        bytes[..4].copy_from_slice(&magic.to_be_bytes());
        let error = Error::from(PeerMisbehaved::SentRequestWithBadMagic { magic });
        assert_eq!(
            Transmission::new(session()).parse(&bytes),
            Parsed::Fatal(error)
        );
    }
}

#[test]
fn disc_disconnects_whatever_else_it_says() {
    assert_eq!(parse(&session(), NBD_CMD_DISC, 0, 0, 0), Parsed::Disconnect);
    assert_eq!(
        parse(&session(), NBD_CMD_DISC, 0xffff, 1, 1),
        Parsed::Disconnect
    );
}

#[test]
fn the_payload_limit_is_for_reads_and_writes_only() {
    for kind in [NBD_CMD_READ, NBD_CMD_WRITE] {
        assert_eq!(
            expect_request(parse(&session(), kind, 0, 0, 32 << 20)).length,
            32 << 20
        );
    }
    for kind in [
        NBD_CMD_TRIM,
        NBD_CMD_WRITE_ZEROES,
        NBD_CMD_CACHE,
        NBD_CMD_BLOCK_STATUS,
    ] {
        assert_eq!(
            expect_request(parse(&session(), kind, 0, 0, MAX)).length,
            MAX
        );
    }
}

#[test]
fn a_write_over_the_payload_limit_is_fatal_even_if_it_would_be_refused() {
    let length = (32 << 20) + 1;
    let error = Parsed::Fatal(PeerMisbehaved::AnnouncedTooLongPayload { length }.into());
    assert_eq!(parse(&session(), NBD_CMD_WRITE, 0, 0, length), error);
    assert_eq!(
        parse(&session(), NBD_CMD_WRITE, 0xffff, u64::MAX, length),
        error
    );
    let read_only = Session {
        read_only: true,
        ..session()
    };
    assert_eq!(parse(&read_only, NBD_CMD_WRITE, 0, 0, length), error);
}

#[test]
fn a_read_over_the_payload_limit_is_refused_in_words_the_client_knows() {
    let length = (32 << 20) + 1;
    let read = |session: &Session| expect_refusal(parse(session, NBD_CMD_READ, 0, 0, length));
    assert_eq!(read(&session()), (Errno::EOVERFLOW, 0));
    let simple = Session {
        structured: false,
        allocation_context: None,
        ..session()
    };
    assert_eq!(read(&simple), (Errno::EINVAL, 0));
}

#[test]
fn a_refused_write_still_has_its_payload_dropped() {
    let read_only = Session {
        read_only: true,
        ..session()
    };
    for (parsed, errno) in [
        (
            parse(&session(), NBD_CMD_WRITE, 0, SIZE, 512),
            Errno::ENOSPC,
        ),
        (
            parse(&session(), NBD_CMD_WRITE, 1 << 15, 0, 512),
            Errno::EINVAL,
        ),
        (parse(&read_only, NBD_CMD_WRITE, 0, 0, 512), Errno::EPERM),
    ] {
        assert_eq!(expect_refusal(parsed), (errno, 512));
    }
    assert_eq!(
        expect_refusal(parse(&session(), 99, 0, 0, 512)),
        (Errno::EINVAL, 0)
    );
}

#[test]
fn past_the_end_is_enospc_for_what_writes_and_einval_for_the_rest() {
    for (kind, errno) in RANGED {
        assert_eq!(
            expect_request(parse(&session(), kind, 0, SIZE - 512, 512)).length,
            512
        );
        for (offset, length) in [(SIZE - 511, 512), (SIZE, 1), (SIZE + 1, 1)] {
            let refusal = expect_refusal(parse(&session(), kind, 0, offset, length));
            assert_eq!(refusal.0, errno, "command {kind} at {offset}");
        }
    }
}

#[test]
fn a_range_that_overflows_64_bits_is_past_the_end() {
    let huge = Session {
        size: u64::MAX,
        ..session()
    };
    for (kind, errno) in RANGED {
        let refusal = expect_refusal(parse(&huge, kind, 0, u64::MAX - 4, 8));
        assert_eq!(refusal.0, errno, "command {kind}");
    }
}

#[test]
fn zero_length_succeeds_without_effect() {
    for kind in [
        NBD_CMD_READ,
        NBD_CMD_WRITE,
        NBD_CMD_TRIM,
        NBD_CMD_CACHE,
        NBD_CMD_WRITE_ZEROES,
    ] {
        for offset in [0, SIZE] {
            assert_eq!(
                parse(&session(), kind, 0, offset, 0),
                Parsed::Empty { cookie: 7 }
            );
        }
        expect_refusal(parse(&session(), kind, 0, SIZE + 1, 0));
    }
}

#[test]
fn block_status_of_no_bytes_is_einval_for_it_has_no_answer() {
    let refusal = expect_refusal(parse(&session(), NBD_CMD_BLOCK_STATUS, 0, 0, 0));
    assert_eq!(refusal, (Errno::EINVAL, 0));
}

#[test]
fn block_status_without_a_selected_context_is_einval() {
    let session = Session {
        allocation_context: None,
        ..session()
    };
    let refusal = expect_refusal(parse(&session, NBD_CMD_BLOCK_STATUS, 0, 0, 512));
    assert_eq!(refusal, (Errno::EINVAL, 0));
}

#[test]
fn what_writes_to_a_read_only_export_is_eperm() {
    // Nothing that writes is announced for it, which makes no difference.
    for terms in [0b101_1111_1111, 0b101_0000_0000] {
        let session = Session {
            read_only: true,
            ..bodies::session(terms)
        };
        for kind in [NBD_CMD_WRITE, NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES] {
            for length in [0, 512] {
                let refusal = expect_refusal(parse(&session, kind, 0, 0, length));
                assert_eq!(refusal.0, Errno::EPERM, "command {kind}");
            }
        }
        expect_request(parse(&session, NBD_CMD_READ, 0, 0, 512));
    }
}

#[test]
fn flush_carries_neither_offset_nor_length() {
    let flush = expect_request(parse(&session(), NBD_CMD_FLUSH, 0, 0, 0));
    assert_eq!(flush.command, Command::Flush);
    for (offset, length) in [(1, 0), (0, 1)] {
        let refusal = expect_refusal(parse(&session(), NBD_CMD_FLUSH, 0, offset, length));
        assert_eq!(refusal, (Errno::EINVAL, 0));
    }
}

#[test]
fn fua_is_valid_on_every_command_if_it_was_offered() {
    let mut session = session();
    for kind in RANGED.map(|(kind, _)| kind) {
        assert!(expect_request(parse(&session, kind, NBD_CMD_FLAG_FUA, 0, 512)).fua);
    }
    assert!(expect_request(parse(&session, NBD_CMD_FLUSH, NBD_CMD_FLAG_FUA, 0, 0)).fua);
    session.can.fua = false;
    let refusal = expect_refusal(parse(&session, NBD_CMD_READ, NBD_CMD_FLAG_FUA, 0, 512));
    assert_eq!(refusal.0, Errno::EINVAL);
}

#[test]
fn each_flag_is_valid_on_its_own_command_only() {
    let own = |kind| match kind {
        NBD_CMD_READ => NBD_CMD_FLAG_DF,
        NBD_CMD_WRITE_ZEROES => NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
        NBD_CMD_BLOCK_STATUS => NBD_CMD_FLAG_REQ_ONE,
        _ => 0,
    };
    for (kind, _) in RANGED {
        for bit in 1..16 {
            let flag = 1 << bit;
            let parsed = parse(&session(), kind, flag, 0, 512);
            if own(kind) & flag != 0 {
                expect_request(parsed);
            } else {
                assert_eq!(
                    expect_refusal(parsed).0,
                    Errno::EINVAL,
                    "command {kind}, bit {bit}"
                );
            }
        }
    }
}

#[test]
fn the_flags_of_a_command_arrive() {
    let command = |kind, flags| expect_request(parse(&session(), kind, flags, 0, 512)).command;
    let read = |flags| command(NBD_CMD_READ, flags);
    let zeroes = |flags| command(NBD_CMD_WRITE_ZEROES, flags);
    let status = |flags| command(NBD_CMD_BLOCK_STATUS, flags);
    assert_eq!(read(0), Command::Read { df: false });
    assert_eq!(read(NBD_CMD_FLAG_DF), Command::Read { df: true });
    assert_eq!(
        zeroes(0),
        Command::WriteZeroes {
            no_hole: false,
            fast: false
        }
    );
    let no_hole = zeroes(NBD_CMD_FLAG_NO_HOLE);
    assert_eq!(
        no_hole,
        Command::WriteZeroes {
            no_hole: true,
            fast: false
        }
    );
    let fast = zeroes(NBD_CMD_FLAG_FAST_ZERO);
    assert_eq!(
        fast,
        Command::WriteZeroes {
            no_hole: false,
            fast: true
        }
    );
    assert_eq!(status(0), Command::BlockStatus { req_one: false });
    assert_eq!(
        status(NBD_CMD_FLAG_REQ_ONE),
        Command::BlockStatus { req_one: true }
    );
}

#[test]
fn df_needs_structured_replies() {
    let simple = Session {
        structured: false,
        allocation_context: None,
        ..session()
    };
    let refusal = expect_refusal(parse(&simple, NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, 512));
    assert_eq!(refusal, (Errno::EINVAL, 0));
}

#[test]
fn what_was_not_offered_is_einval() {
    let mut nothing = session();
    nothing.can = bodies::session(0).can;
    for (kind, flags) in [
        (NBD_CMD_TRIM, 0),
        (NBD_CMD_CACHE, 0),
        (NBD_CMD_WRITE_ZEROES, 0),
        (NBD_CMD_READ, NBD_CMD_FLAG_DF),
    ] {
        let refusal = expect_refusal(parse(&nothing, kind, flags, 0, 512));
        assert_eq!(refusal, (Errno::EINVAL, 0), "command {kind}");
    }
    assert_eq!(
        expect_refusal(parse(&nothing, NBD_CMD_FLUSH, 0, 0, 0)).0,
        Errno::EINVAL
    );
    let mut slow = session();
    slow.can.fast_zero = false;
    let fast = parse(&slow, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, 0, 512);
    assert_eq!(expect_refusal(fast).0, Errno::EINVAL);
}

#[test]
fn unknown_commands_are_einval() {
    for kind in [8, 9, u16::MAX] {
        assert_eq!(
            expect_refusal(parse(&session(), kind, 0, 0, 0)).0,
            Errno::EINVAL
        );
    }
}
