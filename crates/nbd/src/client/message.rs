//! Messages of the transmission phase, seen from the client.

use std::io::Read;

use super::{ClientError, Result, read_u32, read_vec, text};
use crate::errno::Errno;
use crate::extents::Extent;
use crate::fields::{u16_at, u32_at, u64_at};
use crate::wire::{
    CHUNK_HEADER_LEN, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_DF, NBD_CMD_FLAG_REQ_ONE, NBD_CMD_READ,
    NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_BLOCK_STATUS, NBD_REPLY_TYPE_ERROR,
    NBD_REPLY_TYPE_ERROR_OFFSET, NBD_REPLY_TYPE_NONE, NBD_REPLY_TYPE_OFFSET_DATA,
    NBD_REPLY_TYPE_OFFSET_HOLE, NBD_REQUEST_MAGIC, NBD_SIMPLE_REPLY_MAGIC,
    NBD_STRUCTURED_REPLY_MAGIC, PAYLOAD_MAX, REQUEST_HEADER_LEN,
};

/// A request header with any content, valid or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawRequest {
    /// Command flags.
    pub flags: u16,
    /// `NBD_CMD_*`.
    pub kind: u16,
    /// The client's mark.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub length: u32,
}

impl RawRequest {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST_HEADER_LEN] {
        let mut bytes = [0; REQUEST_HEADER_LEN];
        bytes[0..4].copy_from_slice(&NBD_REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.kind.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }
}

/// One message from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A simple reply, without the data of a READ.
    Simple {
        /// The request's mark.
        cookie: u64,
        /// Zero, or the error as it came.
        error: u32,
    },
    /// A structured reply chunk.
    Chunk {
        /// The request's mark.
        cookie: u64,
        /// Whether it is the reply's last.
        done: bool,
        /// What it says.
        chunk: Chunk,
    },
}

/// What a structured reply chunk says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// `NBD_REPLY_TYPE_NONE`.
    None,
    /// `NBD_REPLY_TYPE_OFFSET_DATA`.
    Data {
        /// Place in the export.
        offset: u64,
        /// What is there.
        data: Vec<u8>,
    },
    /// `NBD_REPLY_TYPE_OFFSET_HOLE`.
    Hole {
        /// Place in the export.
        offset: u64,
        /// Length in bytes.
        len: u32,
    },
    /// `NBD_REPLY_TYPE_BLOCK_STATUS`.
    BlockStatus {
        /// Metadata context id.
        context_id: u32,
        /// The extents, from the request's offset.
        extents: Vec<Extent>,
    },
    /// `NBD_REPLY_TYPE_ERROR` and `NBD_REPLY_TYPE_ERROR_OFFSET`.
    Error {
        /// The error as it came.
        error: u32,
        /// Text for the user.
        message: String,
        /// Place in the export, if it was told.
        offset: Option<u64>,
    },
}

impl Message {
    /// Reads one message.
    ///
    /// # Errors
    /// If the connection fails or what comes is neither a simple reply nor a chunk.
    pub fn read_from(stream: &mut impl Read) -> Result<Self> {
        match read_u32(stream)? {
            NBD_SIMPLE_REPLY_MAGIC => {
                let rest = read_vec(stream, 12)?;
                Ok(Self::Simple {
                    error: u32_at(&rest, 0),
                    cookie: u64_at(&rest, 4),
                })
            }
            NBD_STRUCTURED_REPLY_MAGIC => {
                let header = read_vec(stream, CHUNK_HEADER_LEN - 4)?;
                let length = u32_at(&header, 12);
                if length > PAYLOAD_MAX + 8 {
                    return Err(ClientError::ServerMisbehaved("a chunk is too long"));
                }
                let payload = read_vec(stream, length as usize)?;
                Ok(Self::Chunk {
                    cookie: u64_at(&header, 4),
                    done: u16_at(&header, 0) & NBD_REPLY_FLAG_DONE != 0,
                    chunk: Chunk::parse(u16_at(&header, 2), &payload)?,
                })
            }
            _ => Err(ClientError::ServerMisbehaved(
                "a reply has a bad magic number",
            )),
        }
    }
}

impl Chunk {
    fn parse(kind: u16, payload: &[u8]) -> Result<Self> {
        match (kind, payload.len()) {
            (NBD_REPLY_TYPE_NONE, 0) => Ok(Self::None),
            (NBD_REPLY_TYPE_OFFSET_DATA, 9..) => Ok(Self::Data {
                offset: u64_at(payload, 0),
                data: payload[8..].to_vec(),
            }),
            (NBD_REPLY_TYPE_OFFSET_HOLE, 12) if u32_at(payload, 8) > 0 => Ok(Self::Hole {
                offset: u64_at(payload, 0),
                len: u32_at(payload, 8),
            }),
            (NBD_REPLY_TYPE_BLOCK_STATUS, len @ 12..) if len % 8 == 4 => {
                let extents = payload[4..].chunks_exact(8).map(|extent| Extent {
                    len: u32_at(extent, 0),
                    flags: u32_at(extent, 4),
                });
                Ok(Self::BlockStatus {
                    context_id: u32_at(payload, 0),
                    extents: extents.collect(),
                })
            }
            (NBD_REPLY_TYPE_ERROR, 6..) => Self::parse_error(payload, 0),
            (NBD_REPLY_TYPE_ERROR_OFFSET, 14..) => Self::parse_error(payload, 8),
            _ => Err(ClientError::ServerMisbehaved(
                "a chunk is malformed or of unknown type",
            )),
        }
    }

    /// An error chunk whose last `tail` bytes are an offset (8) or absent (0).
    fn parse_error(payload: &[u8], tail: usize) -> Result<Self> {
        let (head, offset) = payload.split_at(payload.len() - tail);
        let (error, len) = (u32_at(head, 0), usize::from(u16_at(head, 4)));
        if error == 0 || head.len() != 6 + len {
            return Err(ClientError::ServerMisbehaved("an error chunk is malformed"));
        }
        let offset = (tail > 0).then(|| u64_at(offset, 0));
        Ok(Self::Error {
            error,
            message: text(&head[6..])?,
            offset,
        })
    }
}

/// The gathered reply to one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The error, if the request failed.
    pub error: Option<Errno>,
    /// The server's text for the user, if it sent one.
    pub message: String,
    /// What a READ got: as long as the request if it succeeded.
    pub data: Vec<u8>,
    /// What a BLOCK_STATUS got.
    pub extents: Vec<Extent>,
    /// How many chunks came; zero for a simple reply.
    pub chunks: usize,
    /// Ranges of the export that content chunks covered, in the order they came, with whether each
    /// was a hole.
    pub content: Vec<(u64, u32, bool)>,
}

impl Answer {
    /// Takes in one chunk, checking it against the request and what came before.
    pub(super) fn add(&mut self, request: &RawRequest, chunk: Chunk) -> Result<()> {
        self.chunks += 1;
        match chunk {
            Chunk::None => {}
            Chunk::Data { offset, data } => {
                // At most 2^25 bytes, so it fits.
                let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
                let start = self.cover(request, offset, len, false)?;
                self.data[start..start + data.len()].copy_from_slice(&data);
            }
            Chunk::Hole { offset, len } => {
                self.cover(request, offset, len, true)?;
            }
            Chunk::BlockStatus { extents, .. } => {
                let one = request.flags & NBD_CMD_FLAG_REQ_ONE != 0;
                if request.kind != NBD_CMD_BLOCK_STATUS
                    || !self.extents.is_empty()
                    || extents.iter().any(|extent| extent.len == 0)
                    || (one && (extents.len() != 1 || extents[0].len > request.length))
                {
                    return Err(ClientError::ServerMisbehaved(
                        "a block status is out of place",
                    ));
                }
                self.extents = extents;
            }
            Chunk::Error { error, message, .. } => {
                self.error = Errno::from_code(error);
                self.message = message;
            }
        }
        Ok(())
    }

    pub(super) fn finish(self, request: &RawRequest) -> Result<Self> {
        let covered: u64 = self.content.iter().map(|&(_, len, _)| u64::from(len)).sum();
        let complete = match request.kind {
            NBD_CMD_READ => covered == u64::from(request.length),
            NBD_CMD_BLOCK_STATUS => !self.extents.is_empty(),
            _ => true,
        };
        if self.error.is_none() && !complete {
            return Err(ClientError::ServerMisbehaved(
                "a successful reply is incomplete",
            ));
        }
        Ok(self)
    }

    /// Notes a content chunk; where its data belongs in the answer's.
    fn cover(&mut self, request: &RawRequest, offset: u64, len: u32, hole: bool) -> Result<usize> {
        let end = offset.saturating_add(u64::from(len));
        let within = request.kind == NBD_CMD_READ
            && request.length <= PAYLOAD_MAX
            && offset >= request.offset
            && end <= request.offset.saturating_add(u64::from(request.length));
        let overlaps = self
            .content
            .iter()
            .any(|&(start, len, _)| start < end && offset < start + u64::from(len));
        let fragments = request.flags & NBD_CMD_FLAG_DF != 0 && !self.content.is_empty();
        if !within || overlaps || fragments {
            return Err(ClientError::ServerMisbehaved(
                "a content chunk is out of place",
            ));
        }
        self.content.push((offset, len, hole));
        self.data.resize(request.length as usize, 0);
        // Within a request whose length is 32 bits.
        Ok(usize::try_from(offset - request.offset).unwrap_or(usize::MAX))
    }
}
