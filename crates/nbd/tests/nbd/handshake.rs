//! What the handshake makes of clients that ask for unusual things, or misbehave.

use sealvol_nbd::client::{info_data, meta_context_data};
use sealvol_nbd::handshake::{
    MEMORY_HELD_MAX, OPTION_LENGTH_MAX, OPTIONS_MAX, OPTIONS_PER_LISTED_EXPORT,
};
use sealvol_nbd::wire::*;
use sealvol_nbd::{
    CloseReason, Error, HandshakeEvent, InfoReason, PeerIncompatible, PeerMisbehaved, Refusal,
    RefusalReason, ServerHandshake, Session,
};

use crate::bodies;

/// What came of a client's bytes.
struct Talk {
    events: Vec<HandshakeEvent>,
    /// Option and reply type of each reply.
    replies: Vec<(u32, u32)>,
    /// The data of the last reply.
    last_data: Vec<u8>,
}

impl Talk {
    fn closed_because(&self) -> &CloseReason {
        match self.events.last() {
            Some(HandshakeEvent::Close(reason)) => reason,
            event => panic!("not closed but {event:?}"),
        }
    }

    fn session(&self) -> &Session {
        match self.events.last() {
            Some(HandshakeEvent::Transmission(session)) => session,
            event => panic!("no transmission but {event:?}"),
        }
    }
}

/// A client that sends these options, after these client flags.
fn talk_with_flags(flags: u32, options: &[(u32, &[u8])]) -> Talk {
    let mut bytes = flags.to_be_bytes().to_vec();
    for (option, data) in options {
        bytes.extend(option_bytes(*option, data));
    }
    let (events, sent) = bodies::handshake(&bytes, usize::MAX);
    let mut rest = &sent[GREETING_LEN..];
    let (mut replies, mut last_data) = (Vec::new(), Vec::new());
    while rest.starts_with(&NBD_REP_MAGIC.to_be_bytes()) {
        let field = |at: usize| u32::from_be_bytes(rest[at..at + 4].try_into().unwrap());
        let end = OPTION_REPLY_HEADER_LEN + field(16) as usize;
        replies.push((field(8), field(12)));
        last_data = rest[OPTION_REPLY_HEADER_LEN..end].to_vec();
        rest = &rest[end..];
    }
    Talk {
        events,
        replies,
        last_data,
    }
}

fn talk(options: &[(u32, &[u8])]) -> Talk {
    talk_with_flags(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES, options)
}

fn option_bytes(option: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    [&option_header(option, length)[..], data].concat()
}

fn option_header(option: u32, length: u32) -> Vec<u8> {
    [
        &IHAVEOPT.to_be_bytes()[..],
        &option.to_be_bytes(),
        &length.to_be_bytes(),
    ]
    .concat()
}

const STRUCTURED: (u32, &[u8]) = (NBD_OPT_STRUCTURED_REPLY, &[]);
const ABORT: (u32, &[u8]) = (NBD_OPT_ABORT, &[]);
const ABORTED: (u32, u32) = (NBD_OPT_ABORT, NBD_REP_ACK);

// Client flags

#[test]
fn unknown_client_flags_close_the_connection() {
    let talk = talk_with_flags(0b101, &[ABORT]);
    let flags = PeerIncompatible::SetUnknownClientFlags { flags: 0b101 };
    assert_eq!(*talk.closed_because(), CloseReason::Failed(flags.into()));
    assert!(talk.replies.is_empty());
}

#[test]
fn without_fixed_newstyle_only_export_name_is_served() {
    let talk = talk_with_flags(0, &[(NBD_OPT_LIST, &[])]);
    let error = PeerIncompatible::SentOptionWithoutFixedNewstyle {
        option: NBD_OPT_LIST,
    };
    assert_eq!(*talk.closed_because(), CloseReason::Failed(error.into()));
    assert!(talk.replies.is_empty());

    let talk = talk_with_flags(0, &[(NBD_OPT_EXPORT_NAME, b"disk")]);
    assert_eq!(talk.session().export, "disk");
}

// Options that are refused, and the next one is served

#[test]
fn unknown_options_are_consumed_and_answered_unsup() {
    for option in [
        0,
        NBD_OPT_PEEK_EXPORT,
        NBD_OPT_STARTTLS,
        NBD_OPT_EXTENDED_HEADERS,
        u32::MAX,
    ] {
        for length in [0, 1, 70_000, 1 << 20] {
            let talk = talk(&[(option, &vec![0xff; length]), ABORT]);
            assert_eq!(talk.replies, [(option, NBD_REP_ERR_UNSUP), ABORTED]);
        }
    }
}

#[test]
fn an_option_too_long_to_keep_is_consumed_without_being_kept() {
    for option in [
        NBD_OPT_INFO,
        NBD_OPT_GO,
        NBD_OPT_LIST_META_CONTEXT,
        NBD_OPT_SET_META_CONTEXT,
    ] {
        let mut server = ServerHandshake::new();
        let _ = server.take_output();
        server.receive(&1_u32.to_be_bytes());
        server.receive(&option_header(option, 16 << 20));
        let mut most_held = 0;
        for _ in 0..16 << 4 {
            assert_eq!(server.receive(&[0; 1 << 16]), 1 << 16);
            most_held = most_held.max(server.memory_held());
        }
        assert!(most_held < 512, "{most_held} bytes held");
        let reply = server.take_output();
        assert_eq!(reply[12..16], NBD_REP_ERR_TOO_BIG.to_be_bytes());
        assert_eq!(
            server.receive(&option_bytes(NBD_OPT_ABORT, &[])),
            OPTION_HEADER_LEN
        );
    }
}

#[test]
fn the_longest_option_kept_stays_within_the_promised_memory() {
    let mut data = meta_context_data("disk", &[]);
    let queries = (64 << 10) / 4 - 3;
    data[8..12].copy_from_slice(&u32::to_be_bytes(queries));
    data.resize(64 << 10, 0);
    let mut bytes = 1_u32.to_be_bytes().to_vec();
    bytes.extend(option_bytes(NBD_OPT_STRUCTURED_REPLY, &[]));
    bytes.extend(option_bytes(NBD_OPT_SET_META_CONTEXT, &data));
    // Asserts MEMORY_HELD_MAX after each byte.
    let (events, _) = bodies::handshake(&bytes, 1);
    assert_eq!(events.len(), 1, "{events:?}");
    const { assert!(MEMORY_HELD_MAX < 160 << 10) };
}

#[test]
fn an_option_of_64_kib_is_looked_at_and_a_longer_one_is_too_big() {
    let mut data = vec![0xff; 64 << 10];
    for option in [NBD_OPT_INFO, NBD_OPT_GO] {
        let kept = talk(&[(option, &data), ABORT]);
        assert_eq!(kept.replies, [(option, NBD_REP_ERR_INVALID), ABORTED]);
    }
    data.push(0xff);
    for option in [NBD_OPT_INFO, NBD_OPT_GO] {
        let dropped = talk(&[(option, &data), ABORT]);
        assert_eq!(dropped.replies, [(option, NBD_REP_ERR_TOO_BIG), ABORTED]);
    }
}

#[test]
fn an_absurd_option_length_closes_the_connection() {
    let length = OPTION_LENGTH_MAX + 1;
    for option in [NBD_OPT_ABORT, NBD_OPT_LIST, NBD_OPT_GO, 99] {
        let mut bytes = 1_u32.to_be_bytes().to_vec();
        bytes.extend(option_header(option, length));
        let (events, _) = bodies::handshake(&bytes, usize::MAX);
        let error = PeerMisbehaved::SentAbsurdlyLongOption {
            option,
            length,
            max: OPTION_LENGTH_MAX,
        };
        assert_eq!(
            events,
            [HandshakeEvent::Close(CloseReason::Failed(error.into()))]
        );
    }
}

#[test]
fn options_that_carry_no_data_refuse_some() {
    for option in [NBD_OPT_LIST, NBD_OPT_STRUCTURED_REPLY] {
        let talk = talk(&[(option, b"x"), ABORT]);
        assert_eq!(talk.replies, [(option, NBD_REP_ERR_INVALID), ABORTED]);
    }
}

#[test]
fn data_of_abort_is_ignored() {
    let talk = talk(&[(NBD_OPT_ABORT, b"good bye")]);
    assert_eq!(talk.replies, [ABORTED]);
    assert_eq!(*talk.closed_because(), CloseReason::ClientAborted);
}

#[test]
fn trailing_bytes_in_an_option_are_invalid() {
    let mut info = info_data("disk", &[NBD_INFO_NAME]);
    info.push(0);
    let mut meta = meta_context_data("disk", &["base:allocation"]);
    meta.push(0);
    for (option, data) in [
        (NBD_OPT_INFO, &info),
        (NBD_OPT_GO, &info),
        (NBD_OPT_LIST_META_CONTEXT, &meta),
        (NBD_OPT_SET_META_CONTEXT, &meta),
    ] {
        let talk = talk(&[STRUCTURED, (option, data), ABORT]);
        assert_eq!(talk.replies[1..], [(option, NBD_REP_ERR_INVALID), ABORTED]);
    }
}

#[test]
fn every_truncation_of_an_option_is_invalid() {
    let info = info_data("disk", &[NBD_INFO_NAME, NBD_INFO_BLOCK_SIZE]);
    let meta = meta_context_data("disk", &["base:", "base:allocation"]);
    for (option, data) in [(NBD_OPT_GO, info), (NBD_OPT_SET_META_CONTEXT, meta)] {
        for length in 0..data.len() {
            let talk = talk(&[STRUCTURED, (option, &data[..length]), ABORT]);
            assert_eq!(
                talk.replies[1..],
                [(option, NBD_REP_ERR_INVALID), ABORTED],
                "{length}"
            );
        }
    }
}

#[test]
fn lengths_that_overflow_are_invalid() {
    let talk = talk(&[
        STRUCTURED,
        (NBD_OPT_GO, &[0xff; 6]),
        (NBD_OPT_SET_META_CONTEXT, &[0xff; 12]),
        (
            NBD_OPT_LIST_META_CONTEXT,
            &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        ),
        ABORT,
    ]);
    assert!(
        talk.replies[1..4]
            .iter()
            .all(|&(_, reply)| reply == NBD_REP_ERR_INVALID)
    );
    assert_eq!(talk.replies[4], ABORTED);
}

// Names

#[test]
fn a_name_of_4096_bytes_is_asked_for_and_a_longer_one_is_invalid() {
    let name = "x".repeat(STRING_MAX);
    let longest = talk(&[(NBD_OPT_GO, &info_data(&name, &[])), ABORT]);
    assert_eq!(longest.replies[0], (NBD_OPT_GO, NBD_REP_ERR_UNKNOWN));
    assert_eq!(
        longest.events[0],
        HandshakeEvent::Info {
            name,
            reason: InfoReason::Go
        }
    );

    let longer = talk(&[
        (NBD_OPT_GO, &info_data(&"x".repeat(STRING_MAX + 1), &[])),
        ABORT,
    ]);
    assert_eq!(longer.replies[0], (NBD_OPT_GO, NBD_REP_ERR_INVALID));
    assert_eq!(longer.last_data, [], "that is of the ABORT");
}

#[test]
fn a_name_that_is_not_utf8_or_has_a_nul_is_invalid() {
    for name in [b"a\0b".as_slice(), b"\xff\xfe", b"\xc3"] {
        let length = u32::try_from(name.len()).unwrap().to_be_bytes();
        let info = [&length[..], name, &[0, 0]].concat();
        let meta = [&length[..], name, &[0; 4]].concat();
        let query = [&[0; 4], &1_u32.to_be_bytes(), &length[..], name].concat();
        let talk = talk(&[
            STRUCTURED,
            (NBD_OPT_INFO, &info),
            (NBD_OPT_SET_META_CONTEXT, &meta),
            (NBD_OPT_LIST_META_CONTEXT, &query),
            ABORT,
        ]);
        assert!(
            talk.replies[1..4]
                .iter()
                .all(|&(_, reply)| reply == NBD_REP_ERR_INVALID)
        );
    }
}

#[test]
fn export_name_with_a_bad_name_closes_the_connection() {
    let too_long = "x".repeat(STRING_MAX + 1);
    for name in [b"a\0b".as_slice(), b"\xff", too_long.as_bytes()] {
        let talk = talk(&[(NBD_OPT_EXPORT_NAME, name)]);
        let error = PeerMisbehaved::SentExportNameThatIsNoString;
        assert_eq!(*talk.closed_because(), CloseReason::Failed(error.into()));
    }
}

#[test]
fn export_name_of_an_unknown_export_closes_the_connection_without_a_word() {
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    bytes.extend(option_bytes(NBD_OPT_EXPORT_NAME, b"nothing"));
    let (events, sent) = bodies::handshake(&bytes, usize::MAX);
    let refusal = Refusal::new(RefusalReason::Unknown, "there is no such export");
    let close = HandshakeEvent::Close(CloseReason::ExportNameRefused(refusal));
    assert_eq!(events.last(), Some(&close));
    assert_eq!(sent.len(), GREETING_LEN);
}

#[test]
fn the_empty_name_is_asked_for_like_any_other() {
    let talk = talk(&[(NBD_OPT_EXPORT_NAME, b"")]);
    let reason = InfoReason::ExportName;
    assert_eq!(
        talk.events[0],
        HandshakeEvent::Info {
            name: String::new(),
            reason
        }
    );
}

#[test]
fn a_refusal_carries_its_text_and_the_handshake_goes_on() {
    let talk = talk(&[
        (NBD_OPT_GO, &info_data("no", &[])),
        (NBD_OPT_GO, &info_data("disk", &[])),
    ]);
    assert_eq!(talk.replies[0], (NBD_OPT_GO, NBD_REP_ERR_UNKNOWN));
    assert_eq!(talk.session().export, "disk");
}

#[test]
fn info_does_not_start_transmission() {
    let talk = talk(&[(NBD_OPT_INFO, &info_data("disk", &[])), ABORT]);
    let info = (NBD_OPT_INFO, NBD_REP_INFO);
    assert_eq!(talk.replies, [info, (NBD_OPT_INFO, NBD_REP_ACK), ABORTED]);
}

#[test]
fn unknown_information_items_are_ignored_and_known_ones_told_once() {
    let items = [77, NBD_INFO_NAME, NBD_INFO_NAME, NBD_INFO_EXPORT, u16::MAX];
    let talk = talk(&[(NBD_OPT_INFO, &info_data("disk", &items)), ABORT]);
    let info = (NBD_OPT_INFO, NBD_REP_INFO);
    assert_eq!(
        talk.replies,
        [info, info, (NBD_OPT_INFO, NBD_REP_ACK), ABORTED]
    );
}

// Metadata contexts

#[test]
fn metadata_contexts_need_structured_replies_first() {
    let data = meta_context_data("disk", &["base:allocation"]);
    for option in [NBD_OPT_LIST_META_CONTEXT, NBD_OPT_SET_META_CONTEXT] {
        let talk = talk(&[(option, &data), ABORT]);
        assert_eq!(talk.replies, [(option, NBD_REP_ERR_INVALID), ABORTED]);
        assert_eq!(talk.events.len(), 1, "the export is not looked up");
    }
}

#[test]
fn list_meta_context_knows_the_wildcard_and_the_empty_list() {
    let option = NBD_OPT_LIST_META_CONTEXT;
    let told = [(option, NBD_REP_META_CONTEXT), (option, NBD_REP_ACK)];
    let nothing = &told[1..];
    for (queries, expected) in [
        (&[][..], &told[..]),
        (&["base:"], &told),
        (&["base:allocation"], &told),
        (&["base:allocation", "base:", "base:allocation"], &told),
        (&["base:other"], nothing),
        (&["qemu:dirty-bitmap:b", "x-mine:"], nothing),
        (&["base", ""], nothing),
    ] {
        let talk = talk(&[STRUCTURED, (option, &meta_context_data("disk", queries))]);
        assert_eq!(&talk.replies[1..], expected, "{queries:?}");
    }
}

#[test]
fn set_meta_context_ignores_wildcards_and_unknown_contexts() {
    for queries in [&[][..], &["base:"], &["base:other", "qemu:x", "no colon"]] {
        let meta = meta_context_data("disk", queries);
        let talk = talk(&[
            STRUCTURED,
            (NBD_OPT_SET_META_CONTEXT, &meta),
            (NBD_OPT_GO, &info_data("disk", &[])),
        ]);
        assert_eq!(
            talk.replies[1],
            (NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK),
            "{queries:?}"
        );
        assert_eq!(talk.session().allocation_context, None);
    }
}

#[test]
fn a_selection_for_another_export_is_void() {
    let meta = meta_context_data("image", &["base:allocation"]);
    for last in [
        (NBD_OPT_GO, info_data("disk", &[])),
        (NBD_OPT_EXPORT_NAME, b"disk".to_vec()),
    ] {
        let talk = talk(&[
            STRUCTURED,
            (NBD_OPT_SET_META_CONTEXT, &meta),
            (last.0, &last.1),
        ]);
        assert_eq!(talk.session().allocation_context, None);
        assert!(talk.session().structured);
    }
}

#[test]
fn a_later_selection_replaces_the_earlier_even_when_it_fails() {
    let select = meta_context_data("disk", &["base:allocation"]);
    let go = info_data("disk", &[]);
    let unselect = meta_context_data("disk", &[]);
    let unknown = meta_context_data("nothing", &["base:allocation"]);
    let too_long = vec![0; (64 << 10) + 1];
    for second in [&unselect[..], &unknown, b"malformed", &too_long] {
        let talk = talk(&[
            STRUCTURED,
            (NBD_OPT_SET_META_CONTEXT, &select),
            (NBD_OPT_SET_META_CONTEXT, second),
            (NBD_OPT_GO, &go),
        ]);
        assert_eq!(talk.session().allocation_context, None);
    }
    let talk = talk(&[
        STRUCTURED,
        (NBD_OPT_SET_META_CONTEXT, &unknown),
        (NBD_OPT_SET_META_CONTEXT, &select),
        (NBD_OPT_LIST_META_CONTEXT, &unknown),
        (NBD_OPT_GO, &go),
    ]);
    assert_eq!(
        talk.session().allocation_context,
        Some(1),
        "listing changes no selection"
    );
}

// Bounds and order

#[test]
fn a_bad_option_magic_closes_the_connection() {
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    bytes.extend(b"GET / HTTP/1.1\r\n");
    let (events, _) = bodies::handshake(&bytes, usize::MAX);
    let magic = u64::from_be_bytes(*b"GET / HT");
    let error = Error::from(PeerMisbehaved::SentOptionWithBadMagic { magic });
    assert_eq!(events, [HandshakeEvent::Close(CloseReason::Failed(error))]);
}

#[test]
fn the_number_of_options_is_bounded() {
    let too_many = CloseReason::Failed(PeerMisbehaved::SentTooManyOptions.into());
    let options = OPTIONS_MAX as usize;
    let talk_to_the_end = talk(&vec![STRUCTURED; options + 1]);
    assert_eq!(talk_to_the_end.replies.len(), options);
    assert_eq!(*talk_to_the_end.closed_because(), too_many);

    // A list of two exports allows more, once.
    let lists = talk(&vec![(NBD_OPT_LIST, [].as_slice()); options * 2]);
    let expected = options + 2 * OPTIONS_PER_LISTED_EXPORT as usize;
    let acks = lists
        .replies
        .iter()
        .filter(|&&(_, reply)| reply == NBD_REP_ACK)
        .count();
    assert_eq!(acks, expected);
    assert_eq!(*lists.closed_because(), too_many);
}

#[test]
fn nothing_is_consumed_while_output_waits_or_a_question_is_open() {
    let mut server = ServerHandshake::new();
    assert_eq!(
        server.receive(&[0, 0, 0, 3]),
        0,
        "the greeting is not taken"
    );
    assert_eq!(server.output().len(), GREETING_LEN);
    let _ = server.take_output();
    assert_eq!(server.receive(&[0, 0, 0, 3]), 4);

    let list = option_bytes(NBD_OPT_LIST, &[]);
    let two = [&list[..], &list].concat();
    assert_eq!(server.receive(&two), list.len(), "one option at a time");
    assert_eq!(server.receive(&list), 0, "the question is not polled");
    assert_eq!(server.poll(), Some(HandshakeEvent::List));
    assert_eq!(server.poll(), None);
    assert_eq!(server.receive(&list), 0, "the question is not answered");
    server.answer_list(Ok(Vec::new()));
    assert_eq!(server.receive(&list), 0, "the answer is not taken");
    let _ = server.take_output();
    assert_eq!(server.receive(&list), list.len());
}

#[test]
fn bytes_behind_the_handshake_are_left_for_transmission() {
    let mut server = ServerHandshake::new();
    let _ = server.take_output();
    server.receive(&3_u32.to_be_bytes());
    let go = option_bytes(NBD_OPT_GO, &info_data("disk", &[]));
    let bytes = [&go[..], b"a request"].concat();
    assert_eq!(server.receive(&bytes), go.len());
    assert!(matches!(server.poll(), Some(HandshakeEvent::Info { .. })));
    server.answer_info(bodies::export("disk"));
    let _ = server.take_output();
    assert!(matches!(
        server.poll(),
        Some(HandshakeEvent::Transmission(_))
    ));
    assert_eq!(server.receive(b"a request"), 0);
}

#[test]
fn every_kind_of_refusal_has_its_reply() {
    for (reason, reply_type) in [
        (RefusalReason::Unknown, NBD_REP_ERR_UNKNOWN),
        (RefusalReason::Policy, NBD_REP_ERR_POLICY),
        (RefusalReason::Invalid, NBD_REP_ERR_INVALID),
        (RefusalReason::Platform, NBD_REP_ERR_PLATFORM),
        (RefusalReason::TlsRequired, NBD_REP_ERR_TLS_REQD),
        (RefusalReason::Shutdown, NBD_REP_ERR_SHUTDOWN),
        (RefusalReason::TooBig, NBD_REP_ERR_TOO_BIG),
    ] {
        let mut server = ServerHandshake::new();
        let _ = server.take_output();
        server.receive(&3_u32.to_be_bytes());
        server.receive(&option_bytes(NBD_OPT_LIST, &[]));
        assert_eq!(server.poll(), Some(HandshakeEvent::List));
        server.answer_list(Err(Refusal::new(reason, "x".repeat(5000))));
        let reply = server.take_output();
        assert_eq!(reply[12..16], reply_type.to_be_bytes());
        assert_eq!(
            reply.len(),
            OPTION_REPLY_HEADER_LEN + STRING_MAX,
            "the text is cut"
        );
    }
}
