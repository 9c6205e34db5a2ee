//! One NBD client that keeps a number of requests in flight on one connection, and counts.
//!
//! It speaks to the daemon's own socket as any client does, with simple replies. What it reads it drops: whether
//! it is right is a matter of tests. It has one buffer for what comes and one for what goes, so that it stays the smaller part.

use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use sealvol_control::api::bench::{Limit, LoadOperation, LoadReport};
use sealvol_nbd::client::{Client, RawRequest};
use sealvol_nbd::wire::{
    NBD_CMD_DISC, NBD_CMD_FLUSH, NBD_CMD_READ, NBD_CMD_WRITE, NBD_FLAG_C_FIXED_NEWSTYLE,
    NBD_FLAG_C_NO_ZEROES, NBD_SIMPLE_REPLY_MAGIC, REQUEST_HEADER_LEN,
};

use super::processor::{Threads, judge};
use super::{Measurement, per_second};
use crate::error::Error;

/// The rows, in order: the request of a database and the request of a copy.
const LOADS: [Load; 4] = [
    Load::random(LoadOperation::Read, 4096, 32),
    Load::random(LoadOperation::Write, 4096, 32),
    Load::in_order(LoadOperation::Read, LARGEST, 8),
    Load::in_order(LoadOperation::Write, LARGEST, 8),
];

const LARGEST: u32 = 1 << 20;
const REPLY: usize = 16;
const INPUT: usize = 256 * 1024;
/// How long it sleeps at most before it looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(100);
/// A server that says nothing for so long while requests are in flight has stopped.
const SILENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy)]
struct Load {
    operation: LoadOperation,
    random: bool,
    block: u32,
    depth: u32,
}

impl Load {
    const fn random(operation: LoadOperation, block: u32, depth: u32) -> Self {
        Self {
            operation,
            random: true,
            block,
            depth,
        }
    }

    const fn in_order(operation: LoadOperation, block: u32, depth: u32) -> Self {
        Self {
            random: false,
            ..Self::random(operation, block, depth)
        }
    }
}

/// Writes all of the export `name` at `socket`, then measures each load.
///
/// # Errors
/// A request that failed, a connection that broke, or [`Error::MeasurementEnded`].
pub(crate) fn measure(
    socket: &Path,
    name: &str,
    measurement: &Measurement,
) -> Result<Vec<LoadReport>, Error> {
    let mut connection = Connection::open(socket, name, measurement)?;
    connection.fill()?;
    let mut reports = Vec::new();
    for load in LOADS {
        reports.push(connection.measure(load)?);
        // What this row wrote is not to be waited for in the next one.
        connection.flush()?;
    }
    connection.leave()?;
    Ok(reports)
}

struct Connection<'a> {
    client: Client<UnixStream>,
    measurement: &'a Measurement,
    size: u64,
    payload: Vec<u8>,
    heads: Vec<[u8; REQUEST_HEADER_LEN]>,
    input: Vec<u8>,
    /// What of `input` came and is not taken yet.
    came: std::ops::Range<usize>,
    /// Bytes of a reply's data that are still to come.
    data_left: usize,
    in_flight: u32,
    random: u64,
    next: u64,
}

impl<'a> Connection<'a> {
    fn open(socket: &Path, name: &str, measurement: &'a Measurement) -> Result<Self, Error> {
        let stream = UnixStream::connect(socket).map_err(broken)?;
        stream.set_read_timeout(Some(SILENCE)).map_err(broken)?;
        let flags = NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES;
        let mut client = Client::connect(stream, flags).map_err(failed)?;
        let details = client.go(name).map_err(failed)?;
        let stream = client.stream();
        stream.set_read_timeout(Some(LOOK)).map_err(broken)?;
        stream.set_write_timeout(Some(LOOK)).map_err(broken)?;
        let mut connection = Self {
            client,
            measurement,
            size: details.size,
            payload: Vec::new(),
            heads: Vec::new(),
            input: vec![0; INPUT],
            came: 0..0,
            data_left: 0,
            in_flight: 0,
            random: 0x9e37_79b9_7f4a_7c15,
            next: 0,
        };
        let words = std::iter::repeat_with(|| connection.random().to_ne_bytes());
        connection.payload = words.flatten().take(LARGEST as usize).collect();
        Ok(connection)
    }

    /// Writes every block once, so that nothing that is measured is a first write or reads a hole.
    fn fill(&mut self) -> Result<(), Error> {
        let load = Load::in_order(LoadOperation::Write, LARGEST, 8);
        let mut left = self.size / u64::from(load.block);
        self.next = 0;
        while left > 0 || self.in_flight > 0 {
            let more = load.depth - self.in_flight;
            let more = u32::try_from(left).unwrap_or(u32::MAX).min(more);
            self.send(load, more)?;
            left -= u64::from(more);
            self.receive(load)?;
        }
        self.flush()
    }

    fn measure(&mut self, load: Load) -> Result<LoadReport, Error> {
        self.next = 0;
        let before = Threads::look();
        let began = Instant::now();
        let mut answered = 0;
        let elapsed = loop {
            self.send(load, load.depth - self.in_flight)?;
            answered += self.receive(load)?;
            let elapsed = began.elapsed();
            if elapsed >= self.measurement.time && answered > 0 {
                break elapsed;
            }
        };
        let after = Threads::look();
        while self.in_flight > 0 {
            self.receive(load)?;
        }
        let judged = before.zip(after).map(|(before, after)| {
            let (client, worker) = after.since(&before);
            judge(client, worker, elapsed)
        });
        Ok(LoadReport {
            operation: load.operation,
            random: load.random,
            block: load.block,
            depth: load.depth,
            iops: per_second(answered, elapsed),
            bytes_per_second: per_second(answered * u64::from(load.block), elapsed),
            client_percent: judged.map(|(client, _, _)| client),
            server_percent: judged.map(|(_, server, _)| server),
            limit: judged.map_or(Limit::Unknown, |(_, _, limit)| limit),
        })
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.heads.push(request(NBD_CMD_FLUSH, 0, 0));
        self.send_heads(0)?;
        while self.in_flight > 0 {
            self.receive_replies(0)?;
        }
        Ok(())
    }

    fn leave(mut self) -> Result<(), Error> {
        self.heads.push(request(NBD_CMD_DISC, 0, 0));
        self.send_heads(0)
    }

    /// Sends so many more requests.
    fn send(&mut self, load: Load, count: u32) -> Result<(), Error> {
        let (kind, payload) = match load.operation {
            LoadOperation::Read => (NBD_CMD_READ, 0),
            LoadOperation::Write => (NBD_CMD_WRITE, load.block as usize),
        };
        for _ in 0..count {
            let offset = self.place(load);
            self.heads.push(request(kind, offset, load.block));
        }
        self.send_heads(payload)
    }

    /// Sends the heads, each with so many bytes of payload, in as few calls as the socket takes.
    fn send_heads(&mut self, payload: usize) -> Result<(), Error> {
        self.in_flight += u32::try_from(self.heads.len()).unwrap_or(u32::MAX);
        let payload = &self.payload[..payload];
        let parts = self.heads.iter().map(|head| &head[..]);
        let mut slices: Vec<_> = parts
            .flat_map(|head| [IoSlice::new(head), IoSlice::new(payload)])
            .collect();
        let mut rest = &mut slices[..];
        let mut heard = Instant::now();
        IoSlice::advance_slices(&mut rest, 0); // leaves empty ones out
        while !rest.is_empty() {
            match self.client.stream().write_vectored(rest) {
                Ok(0) => return Err(broken(io::ErrorKind::WriteZero.into())),
                Ok(sent) => {
                    heard = Instant::now();
                    IoSlice::advance_slices(&mut rest, sent);
                }
                Err(error) => patient(&error, heard)?,
            }
            self.measurement.check()?;
        }
        self.heads.clear();
        Ok(())
    }

    /// Waits for replies to `load`, and says how many came.
    fn receive(&mut self, load: Load) -> Result<u64, Error> {
        self.receive_replies(match load.operation {
            LoadOperation::Read => load.block as usize,
            LoadOperation::Write => 0,
        })
    }

    /// Waits until at least one reply is whole, each with so much data.
    fn receive_replies(&mut self, data: usize) -> Result<u64, Error> {
        let mut replies = 0;
        let mut heard = Instant::now();
        while replies == 0 && self.in_flight > 0 {
            self.input.copy_within(self.came.clone(), 0);
            self.came = 0..self.came.len();
            let room = &mut self.input[self.came.end..];
            match self.client.stream().read(room) {
                Ok(0) => return Err(broken(io::ErrorKind::UnexpectedEof.into())),
                Ok(received) => {
                    heard = Instant::now();
                    self.came.end += received;
                    replies += self.take(data)?;
                }
                Err(error) => patient(&error, heard)?,
            }
            self.measurement.check()?;
        }
        Ok(replies)
    }

    /// Takes what has come; counts the replies that are whole with it.
    fn take(&mut self, data: usize) -> Result<u64, Error> {
        let mut replies = 0;
        loop {
            if self.data_left > 0 {
                let part = self.data_left.min(self.came.len());
                self.came.start += part;
                self.data_left -= part;
                if self.data_left > 0 {
                    return Ok(replies);
                }
            } else {
                let Some(head) = self.input[self.came.clone()].first_chunk::<REPLY>() else {
                    return Ok(replies);
                };
                check_reply(head)?;
                self.came.start += REPLY;
                self.data_left = data;
                if data > 0 {
                    continue;
                }
            }
            replies += 1;
            self.in_flight = self.in_flight.checked_sub(1).ok_or_else(|| {
                Error::Measurement("a reply came that nothing was asked for".to_owned())
            })?;
        }
    }

    /// Where the next request goes.
    fn place(&mut self, load: Load) -> u64 {
        let block = u64::from(load.block);
        let blocks = self.size / block;
        let number = if load.random {
            self.random() % blocks
        } else {
            self.next += 1;
            (self.next - 1) % blocks
        };
        number * block
    }

    /// xorshift64 (Marsaglia 2003): places need be no better than scattered.
    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

fn request(kind: u16, offset: u64, length: u32) -> [u8; REQUEST_HEADER_LEN] {
    let request = RawRequest {
        kind,
        offset,
        length,
        ..RawRequest::default()
    };
    request.encode()
}

/// Magic number, error, cookie.
fn check_reply(head: &[u8; REPLY]) -> Result<(), Error> {
    let word = |at: usize| {
        let bytes = head[at..].first_chunk();
        u32::from_be_bytes(*bytes.expect("four of the sixteen bytes"))
    };
    if word(0) != NBD_SIMPLE_REPLY_MAGIC {
        return Err(Error::Measurement(
            "what came is no simple reply".to_owned(),
        ));
    }
    match word(4) {
        0 => Ok(()),
        code => Err(Error::Measurement(format!(
            "a request failed: {}",
            io::Error::from_raw_os_error(i32::try_from(code).unwrap_or_default())
        ))),
    }
}

/// A socket that had nothing to say for [`LOOK`] is asked again, until [`SILENCE`] is over.
fn patient(error: &io::Error, heard: Instant) -> Result<(), Error> {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted if heard.elapsed() < SILENCE => {
            Ok(())
        }
        _ => Err(Error::Measurement(format!("the NBD connection: {error}"))),
    }
}

fn broken(error: io::Error) -> Error {
    Error::Measurement(format!("the NBD connection: {error}"))
}

fn failed(error: sealvol_nbd::client::ClientError) -> Error {
    Error::Measurement(error.to_string())
}
