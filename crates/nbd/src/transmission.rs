//! The server's side of transmission: one request header at a time, through one gate.
//!
//! [`Transmission::parse`] is the only way from bytes to a [`Request`]. What comes out of it is
//! valid: the command was offered, its flags belong to it, its range lies in the export, a write
//! is for a writable export, a payload is within the limit. No volume checks any of it again.
//!
//! What a request that is not valid gets (proto.md, "Error values" and the request types):
//!
//! | the client sent | it gets |
//! |---|---|
//! | another magic number | the connection is closed: the stream is out of step |
//! | WRITE of more than 32 MiB | the connection is closed: its payload is not worth reading |
//! | an unknown command, or one that was not offered | `EINVAL` |
//! | an unknown flag bit, or one of another command, or one that was not offered | `EINVAL` |
//! | `DF` without structured replies | `EINVAL` |
//! | FLUSH with an offset or a length | `EINVAL` |
//! | WRITE, TRIM, WRITE_ZEROES on a read-only export | `EPERM` |
//! | WRITE, WRITE_ZEROES past the end | `ENOSPC` |
//! | READ, TRIM, CACHE, BLOCK_STATUS past the end | `EINVAL` |
//! | READ of more than 32 MiB | `EOVERFLOW`, or `EINVAL` without structured replies |
//! | BLOCK_STATUS without a selected context, or of no bytes | `EINVAL` |
//! | anything else of no bytes | success, without effect |
//!
//! The 32 MiB are a limit of payloads: TRIM, WRITE_ZEROES, CACHE and BLOCK_STATUS may go to
//! 2^32-1 bytes. `FUA` is valid on every command.
//!
//! Never does: I/O, allocation, panicking on input, keeping state between requests.

use crate::errno::Errno;
use crate::error::{Error, PeerMisbehaved};
use crate::export::Session;
use crate::fields::{u16_at, u32_at, u64_at};
use crate::wire::{
    NBD_CMD_BLOCK_STATUS, NBD_CMD_CACHE, NBD_CMD_DISC, NBD_CMD_FLAG_DF, NBD_CMD_FLAG_FAST_ZERO,
    NBD_CMD_FLAG_FUA, NBD_CMD_FLAG_NO_HOLE, NBD_CMD_FLAG_REQ_ONE, NBD_CMD_FLUSH, NBD_CMD_READ,
    NBD_CMD_TRIM, NBD_CMD_WRITE, NBD_CMD_WRITE_ZEROES, NBD_REQUEST_MAGIC, PAYLOAD_MAX,
    REQUEST_HEADER_LEN,
};

/// A request that has passed the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The client's mark, to be repeated in the reply.
    pub cookie: u64,
    /// First byte; zero for FLUSH.
    pub offset: u64,
    /// Length in bytes: zero for FLUSH, never zero for any other command. `offset + length` is at
    /// most the size of the export.
    pub length: u32,
    /// What to do.
    pub command: Command,
    /// What it writes must be durable before the reply. May be set on commands that write nothing.
    pub fua: bool,
}

/// What a request asks for, with the flags that only this command has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `NBD_CMD_READ`.
    Read {
        /// At most one content chunk in the reply: holes are sent as zeroes.
        df: bool,
    },
    /// `NBD_CMD_WRITE`. Its payload of `length` bytes follows the header in the stream.
    Write,
    /// `NBD_CMD_FLUSH`.
    Flush,
    /// `NBD_CMD_TRIM`.
    Trim,
    /// `NBD_CMD_WRITE_ZEROES`.
    WriteZeroes {
        /// The range must stay allocated.
        no_hole: bool,
        /// Fail with `ENOTSUP`, changing nothing, unless it is faster than writing.
        fast: bool,
    },
    /// `NBD_CMD_CACHE`.
    Cache,
    /// `NBD_CMD_BLOCK_STATUS`, for the session's context.
    BlockStatus {
        /// Exactly one extent, within the range.
        req_one: bool,
    },
}

impl Command {
    /// Whether the command changes the export.
    #[must_use]
    pub const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Trim | Self::WriteZeroes { .. })
    }
}

/// What the next bytes of the stream are. Except for [`Parsed::NeedMore`], the header's
/// [`REQUEST_HEADER_LEN`] bytes are consumed. It is `Copy`: nothing in it is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Less than a header; nothing is consumed.
    NeedMore,
    /// A valid request.
    Request(Request),
    /// A valid request of no bytes, which no volume needs to see. Answer
    /// [`reply::success`](crate::reply::success).
    Empty {
        /// The client's mark.
        cookie: u64,
    },
    /// A request that is answered with an error. Answer [`reply::error`](crate::reply::error).
    Refused {
        /// The client's mark.
        cookie: u64,
        /// The error.
        errno: Errno,
        /// Bytes of payload that follow in the stream, to be read and dropped; at most 32 MiB.
        payload: u32,
        /// Text for the user.
        message: &'static str,
    },
    /// The client takes its leave (`NBD_CMD_DISC`): answer what is outstanding, then close.
    Disconnect,
    /// Close the connection. Nothing can be answered.
    Fatal(Error),
}

/// The gate of one connection.
#[derive(Clone, Debug)]
pub struct Transmission {
    session: Session,
}

impl Transmission {
    /// The gate for what a handshake agreed on.
    #[must_use]
    pub fn new(session: Session) -> Self {
        Self { session }
    }

    /// What the handshake agreed on; the encoders of `reply.rs` ask for it.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Parses and judges the request whose header starts `bytes`. What follows the header is not
    /// looked at.
    #[must_use]
    pub fn parse(&self, bytes: &[u8]) -> Parsed {
        let Some(header) = bytes.first_chunk::<REQUEST_HEADER_LEN>() else {
            return Parsed::NeedMore;
        };
        let magic = u32_at(header, 0);
        if magic != NBD_REQUEST_MAGIC {
            return Parsed::Fatal(PeerMisbehaved::SentRequestWithBadMagic { magic }.into());
        }
        let header = Header {
            flags: u16_at(header, 4),
            kind: u16_at(header, 6),
            cookie: u64_at(header, 8),
            offset: u64_at(header, 16),
            length: u32_at(header, 24),
        };
        self.judge(header)
    }

    fn judge(&self, header: Header) -> Parsed {
        let Header {
            flags,
            kind,
            cookie,
            offset,
            length,
        } = header;
        if kind == NBD_CMD_DISC {
            // Its other fields must be zero, but whoever leaves is not kept for that.
            return Parsed::Disconnect;
        }
        let payload = if kind == NBD_CMD_WRITE { length } else { 0 };
        if payload > PAYLOAD_MAX {
            return Parsed::Fatal(PeerMisbehaved::AnnouncedTooLongPayload { length }.into());
        }
        let command = match self.command(kind, flags) {
            Ok(command) => command,
            Err(message) => return refused(cookie, payload, (Errno::EINVAL, message)),
        };
        if let Err(why) = self.admit(command, offset, length) {
            return refused(cookie, payload, why);
        }
        if length == 0 && command != Command::Flush {
            return Parsed::Empty { cookie };
        }
        let fua = flags & NBD_CMD_FLAG_FUA != 0;
        Parsed::Request(Request {
            cookie,
            offset,
            length,
            command,
            fua,
        })
    }

    /// The command, if it and its flags were offered.
    fn command(&self, kind: u16, flags: u16) -> Result<Command, &'static str> {
        let Session {
            can, structured, ..
        } = &self.session;
        let (command, offered, own_flags) = match kind {
            NBD_CMD_READ => {
                let df = if can.df && *structured {
                    NBD_CMD_FLAG_DF
                } else {
                    0
                };
                (
                    Command::Read {
                        df: flags & NBD_CMD_FLAG_DF != 0,
                    },
                    true,
                    df,
                )
            }
            NBD_CMD_WRITE => (Command::Write, true, 0),
            NBD_CMD_FLUSH => (Command::Flush, can.flush, 0),
            NBD_CMD_TRIM => (Command::Trim, can.trim, 0),
            NBD_CMD_CACHE => (Command::Cache, can.cache, 0),
            NBD_CMD_WRITE_ZEROES => {
                let command = Command::WriteZeroes {
                    no_hole: flags & NBD_CMD_FLAG_NO_HOLE != 0,
                    fast: flags & NBD_CMD_FLAG_FAST_ZERO != 0,
                };
                let fast = if can.fast_zero {
                    NBD_CMD_FLAG_FAST_ZERO
                } else {
                    0
                };
                (command, can.write_zeroes, NBD_CMD_FLAG_NO_HOLE | fast)
            }
            NBD_CMD_BLOCK_STATUS => {
                let command = Command::BlockStatus {
                    req_one: flags & NBD_CMD_FLAG_REQ_ONE != 0,
                };
                (command, true, NBD_CMD_FLAG_REQ_ONE)
            }
            _ => return Err("this server does not know the command"),
        };
        let fua = if can.fua { NBD_CMD_FLAG_FUA } else { 0 };
        if flags & !(own_flags | fua) != 0 {
            return Err("the command carries a flag that was not offered for it");
        }
        // A read-only export offers no writing commands, but they get the more telling EPERM.
        let writes_to_read_only = self.session.read_only && command.writes();
        if offered || writes_to_read_only {
            Ok(command)
        } else {
            Err("the command was not offered for this export")
        }
    }

    /// Whether the command may be done on this range of this export.
    fn admit(&self, command: Command, offset: u64, length: u32) -> Result<(), Refused> {
        let Session {
            size,
            read_only,
            structured,
            allocation_context,
            ..
        } = &self.session;
        if command == Command::Flush && (offset, length) != (0, 0) {
            return Err((Errno::EINVAL, "a flush carries neither offset nor length"));
        }
        if *read_only && command.writes() {
            return Err((Errno::EPERM, "the export is read-only"));
        }
        if matches!(command, Command::BlockStatus { .. }) {
            if allocation_context.is_none() {
                return Err((
                    Errno::EINVAL,
                    "no metadata context was selected for this export",
                ));
            }
            if length == 0 {
                // A status of nothing cannot be told: every extent has a length.
                return Err((Errno::EINVAL, "a block status needs a length"));
            }
        }
        if offset
            .checked_add(u64::from(length))
            .is_none_or(|end| end > *size)
        {
            let errno = match command {
                Command::Write | Command::WriteZeroes { .. } => Errno::ENOSPC,
                _ => Errno::EINVAL,
            };
            return Err((errno, "the range ends past the end of the export"));
        }
        if matches!(command, Command::Read { .. }) && length > PAYLOAD_MAX {
            // EOVERFLOW is for clients that could also send DF; others may not know it.
            let errno = if *structured {
                Errno::EOVERFLOW
            } else {
                Errno::EINVAL
            };
            return Err((errno, "a read is at most 32 MiB long; split it"));
        }
        Ok(())
    }
}

/// The fields of a request header behind its magic number.
struct Header {
    flags: u16,
    kind: u16,
    cookie: u64,
    offset: u64,
    length: u32,
}

type Refused = (Errno, &'static str);

fn refused(cookie: u64, payload: u32, (errno, message): Refused) -> Parsed {
    Parsed::Refused {
        cookie,
        errno,
        payload,
        message,
    }
}
