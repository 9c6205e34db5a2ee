//! The crate's client against the crate's server, in memory.

use sealvol_nbd::client::{Client, ClientError, Message, RawRequest};
use sealvol_nbd::wire::*;
use sealvol_nbd::{Errno, Extent};

use crate::server::Server;

fn connect() -> Client<Server> {
    Client::connect(
        Server::new(),
        NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES,
    )
    .unwrap()
}

fn structured() -> Client<Server> {
    let mut client = connect();
    client.negotiate_structured_replies().unwrap();
    assert_eq!(client.select_allocation("disk").unwrap(), Some(1));
    client.go("disk").unwrap();
    client
}

#[test]
fn the_handshake_tells_what_the_server_knows() {
    let mut client = connect();
    let names: Vec<String> = client
        .list()
        .unwrap()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, ["disk", "image"]);
    let told = client.info("image").unwrap();
    assert_eq!(told.name.as_deref(), Some("image"));
    assert_eq!(told.description.as_deref(), Some("a test"));
    assert_eq!(told.block_size, Some([1, 4096, 32 << 20]));
    assert_ne!(told.flags & NBD_FLAG_READ_ONLY, 0);
    match client.go("nothing") {
        Err(ClientError::Refused {
            reply_type: NBD_REP_ERR_UNKNOWN,
            message,
            ..
        }) => {
            assert_eq!(message, "there is no such export");
        }
        result => panic!("{result:?}"),
    }
    assert_eq!(client.go("image").unwrap(), told, "GO tells what INFO told");
}

#[test]
fn an_old_client_gets_its_zeroes_and_reads_and_writes() {
    let mut client = Client::connect(Server::new(), 0).unwrap();
    assert_eq!(client.export_name("disk").unwrap().size, 1 << 20);
    let written = client
        .call(NBD_CMD_WRITE, 0, 4090, 10, b"0123456789")
        .unwrap();
    assert_eq!((written.error, written.chunks), (None, 0));
    let read = client.call(NBD_CMD_READ, 0, 4092, 6, &[]).unwrap();
    assert_eq!(
        (read.error, read.data.as_slice()),
        (None, b"234567".as_slice())
    );
}

#[test]
fn structured_reads_send_holes_and_df_forbids_them() {
    let mut client = structured();
    client.call(NBD_CMD_WRITE, 0, 4096, 4, b"data").unwrap();
    let read = client.call(NBD_CMD_READ, 0, 0, 12288, &[]).unwrap();
    let content = [(0, 4096, true), (4096, 4096, false), (8192, 4096, true)];
    assert_eq!(read.content, content);
    assert_eq!(&read.data[4096..4100], b"data");
    let whole = client
        .call(NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, 12288, &[])
        .unwrap();
    assert_eq!(whole.content, [(0, 12288, false)]);
    assert_eq!(whole.data, read.data);
}

#[test]
fn a_read_that_fails_late_tells_where_and_the_connection_goes_on() {
    let mut client = structured();
    client.stream().bad_byte = Some(5000);
    let read = client.call(NBD_CMD_READ, 0, 0, 12288, &[]).unwrap();
    assert_eq!(
        (read.error, read.message.as_str()),
        (Some(Errno::EIO), "bad byte")
    );
    assert_eq!(
        client.call(NBD_CMD_READ, 0, 0, 4096, &[]).unwrap().error,
        None
    );
}

#[test]
fn block_status_tells_holes_apart() {
    let mut client = structured();
    client
        .call(NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, 4096, 4, b"data")
        .unwrap();
    let hole = NBD_STATE_HOLE | NBD_STATE_ZERO;
    let status = client
        .call(NBD_CMD_BLOCK_STATUS, 0, 100, 20_000, &[])
        .unwrap();
    let expected = [
        Extent {
            len: 3996,
            flags: hole,
        },
        Extent {
            len: 4096,
            flags: 0,
        },
        Extent {
            len: 11_908,
            flags: hole,
        },
    ];
    assert_eq!(status.extents, expected);
    let one = client
        .call(NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, 100, 20_000, &[])
        .unwrap();
    assert_eq!(one.extents, expected[..1]);
}

#[test]
fn commands_without_content_succeed() {
    let mut client = structured();
    client.call(NBD_CMD_WRITE, 0, 0, 4, b"data").unwrap();
    for (kind, flags) in [
        (NBD_CMD_CACHE, 0),
        (
            NBD_CMD_WRITE_ZEROES,
            NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
        ),
        (NBD_CMD_TRIM, NBD_CMD_FLAG_FUA),
    ] {
        assert_eq!(
            client.call(kind, flags, 0, 1 << 20, &[]).unwrap().error,
            None
        );
    }
    assert_eq!(
        client.call(NBD_CMD_FLUSH, 0, 0, 0, &[]).unwrap().error,
        None
    );
    assert_eq!(
        client.call(NBD_CMD_READ, 0, 0, 4, &[]).unwrap().data,
        [0; 4]
    );
}

#[test]
fn zero_length_requests_are_answered() {
    for mut client in [structured(), {
        let mut client = connect();
        client.go("disk").unwrap();
        client
    }] {
        for kind in [
            NBD_CMD_READ,
            NBD_CMD_WRITE,
            NBD_CMD_TRIM,
            NBD_CMD_WRITE_ZEROES,
        ] {
            assert_eq!(client.call(kind, 0, 0, 0, &[]).unwrap().error, None);
        }
    }
}

#[test]
fn a_refused_write_leaves_the_stream_in_step() {
    let mut client = connect();
    client.go("image").unwrap();
    let payload = RawRequest {
        kind: NBD_CMD_DISC,
        ..RawRequest::default()
    }
    .encode();
    let length = u32::try_from(payload.len()).unwrap();
    let refused = client.call(NBD_CMD_WRITE, 0, 0, length, &payload).unwrap();
    assert_eq!(
        refused.error,
        Some(Errno::EPERM),
        "the payload is no request"
    );
    assert_eq!(
        client.call(NBD_CMD_READ, 0, 0, 4, &[]).unwrap().data,
        [0; 4]
    );
}

#[test]
fn refusals_come_with_a_text_when_structured() {
    let mut client = structured();
    let refused = client.call(NBD_CMD_READ, 0, 1 << 20, 1, &[]).unwrap();
    assert_eq!(refused.error, Some(Errno::EINVAL));
    assert_eq!(refused.message, "the range ends past the end of the export");
}

#[test]
fn replies_carry_the_cookie_of_their_request() {
    let mut client = structured();
    for cookie in [0, u64::MAX, 7, 7] {
        let request = RawRequest {
            kind: NBD_CMD_FLUSH,
            cookie,
            ..RawRequest::default()
        };
        client.send(&request, &[]).unwrap();
    }
    for expected in [0, u64::MAX, 7, 7] {
        match client.read_message().unwrap() {
            Message::Chunk {
                cookie, done: true, ..
            } => assert_eq!(cookie, expected),
            message => panic!("{message:?}"),
        }
    }
}

#[test]
fn disc_and_abort_close_the_connection() {
    let mut client = structured();
    client
        .send(
            &RawRequest {
                kind: NBD_CMD_DISC,
                ..RawRequest::default()
            },
            &[],
        )
        .unwrap();
    assert!(matches!(client.read_message(), Err(ClientError::Io(_))));
    let mut client = connect();
    client.abort().unwrap();
    assert!(matches!(
        client.read_option_reply(),
        Err(ClientError::Io(_))
    ));
}
