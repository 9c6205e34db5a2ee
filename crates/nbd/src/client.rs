//! A small blocking client over any `Read + Write`, for tests and for measuring.
//!
//! It is on two levels. The lower one sends whatever it is told, malformed things included, and
//! reads one message at a time: [`Client::send_option`], [`Client::read_option_reply`],
//! [`Client::send`], [`Client::read_message`]. The upper one does one whole exchange and checks that
//! the server kept the protocol: [`Client::go`], [`Client::list`], [`Client::call`] and so on.
//!
//! Always holds: it never allocates more than the protocol lets a server send.
//! Never does: TLS, reconnecting, more than one request in flight on the upper level.

mod message;

use std::io::{self, Read, Write};

pub use message::{Answer, Chunk, Message, RawRequest};

use crate::errno::Errno;
use crate::wire::{
    BASE_ALLOCATION, EXPORT_NAME_ZEROES, IHAVEOPT, NBD_CMD_READ, NBD_FLAG_C_NO_ZEROES,
    NBD_INFO_BLOCK_SIZE, NBD_INFO_DESCRIPTION, NBD_INFO_EXPORT, NBD_INFO_NAME, NBD_OPT_ABORT,
    NBD_OPT_EXPORT_NAME, NBD_OPT_GO, NBD_OPT_INFO, NBD_OPT_LIST, NBD_OPT_SET_META_CONTEXT,
    NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK, NBD_REP_FLAG_ERROR, NBD_REP_INFO, NBD_REP_MAGIC,
    NBD_REP_META_CONTEXT, NBD_REP_SERVER, NBDMAGIC, STRING_MAX,
};

/// The longest option reply a server may send: two strings and their lengths.
const OPTION_REPLY_MAX: usize = 2 * STRING_MAX + 8;

/// What a client meets.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection failed, or the server closed it (`UnexpectedEof`).
    #[error("the connection to the NBD server failed: {0}")]
    Io(#[from] io::Error),
    /// The server answered an option with an error.
    #[error("the NBD server refused option {option} with {reply_type:#010x}: {message}")]
    Refused {
        /// The option.
        option: u32,
        /// The `NBD_REP_ERR_*`.
        reply_type: u32,
        /// The server's text for the user.
        message: String,
    },
    /// The server broke the protocol.
    #[error("the NBD server broke the protocol: {0}; look for a defect in the server")]
    ServerMisbehaved(&'static str),
}

type Result<T> = std::result::Result<T, ClientError>;

/// One option reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionReply {
    /// The option it answers.
    pub option: u32,
    /// `NBD_REP_*`.
    pub reply_type: u32,
    /// Its data.
    pub data: Vec<u8>,
}

/// What a server told about an export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportDetails {
    /// Size in bytes.
    pub size: u64,
    /// Transmission flags.
    pub flags: u16,
    /// Canonical name, if it was told.
    pub name: Option<String>,
    /// Description, if it was told.
    pub description: Option<String>,
    /// Minimum, preferred and maximum size in bytes, if they were told.
    pub block_size: Option<[u32; 3]>,
}

/// One connection to a server.
#[derive(Debug)]
pub struct Client<S> {
    stream: S,
    client_flags: u32,
    structured: bool,
    next_cookie: u64,
}

impl<S: Read + Write> Client<S> {
    /// Reads the greeting and answers it with these client flags, whatever they are.
    ///
    /// # Errors
    /// If the connection fails or the greeting is not that of a newstyle server.
    pub fn connect(mut stream: S, client_flags: u32) -> Result<Self> {
        if read_u64(&mut stream)? != NBDMAGIC || read_u64(&mut stream)? != IHAVEOPT {
            return Err(ClientError::ServerMisbehaved(
                "it sent no newstyle greeting",
            ));
        }
        let [_, _] = read_array::<2>(&mut stream)?;
        stream.write_all(&client_flags.to_be_bytes())?;
        Ok(Self {
            stream,
            client_flags,
            structured: false,
            next_cookie: 1,
        })
    }

    /// The stream, to send bytes of any kind.
    pub fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Sends one option.
    ///
    /// # Errors
    /// If the connection fails.
    ///
    /// # Panics
    /// If the data is longer than 2^32-1 bytes.
    pub fn send_option(&mut self, option: u32, data: &[u8]) -> Result<()> {
        let length = u32::try_from(data.len()).expect("option data has a 32-bit length");
        let mut bytes = IHAVEOPT.to_be_bytes().to_vec();
        bytes.extend_from_slice(&option.to_be_bytes());
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(data);
        Ok(self.stream.write_all(&bytes)?)
    }

    /// Reads one option reply.
    ///
    /// # Errors
    /// If the connection fails or what comes is no option reply.
    pub fn read_option_reply(&mut self) -> Result<OptionReply> {
        if read_u64(&mut self.stream)? != NBD_REP_MAGIC {
            return Err(ClientError::ServerMisbehaved(
                "an option reply has a bad magic number",
            ));
        }
        let option = read_u32(&mut self.stream)?;
        let reply_type = read_u32(&mut self.stream)?;
        let length = read_u32(&mut self.stream)? as usize;
        if length > OPTION_REPLY_MAX {
            return Err(ClientError::ServerMisbehaved("an option reply is too long"));
        }
        let data = read_vec(&mut self.stream, length)?;
        Ok(OptionReply {
            option,
            reply_type,
            data,
        })
    }

    /// Sends an option and reads its replies up to the final `NBD_REP_ACK`, which is left out.
    ///
    /// # Errors
    /// `Refused` if an error reply comes; else as [`Client::read_option_reply`].
    pub fn haggle(&mut self, option: u32, data: &[u8]) -> Result<Vec<OptionReply>> {
        self.send_option(option, data)?;
        let mut replies = Vec::new();
        loop {
            let reply = self.read_option_reply()?;
            if reply.option != option {
                return Err(ClientError::ServerMisbehaved(
                    "a reply answers another option",
                ));
            }
            if reply.reply_type & NBD_REP_FLAG_ERROR != 0 {
                let message = text(&reply.data)?;
                return Err(ClientError::Refused {
                    option,
                    reply_type: reply.reply_type,
                    message,
                });
            }
            if reply.reply_type == NBD_REP_ACK {
                return Ok(replies);
            }
            replies.push(reply);
        }
    }

    /// Negotiates structured replies.
    ///
    /// # Errors
    /// As [`Client::haggle`].
    pub fn negotiate_structured_replies(&mut self) -> Result<()> {
        self.haggle(NBD_OPT_STRUCTURED_REPLY, &[])?;
        self.structured = true;
        Ok(())
    }

    /// Selects `base:allocation` for an export; its context id, if the server has it.
    ///
    /// # Errors
    /// As [`Client::haggle`].
    pub fn select_allocation(&mut self, export: &str) -> Result<Option<u32>> {
        let data = meta_context_data(export, &[BASE_ALLOCATION]);
        for reply in self.haggle(NBD_OPT_SET_META_CONTEXT, &data)? {
            if let Some((id, name)) = reply.data.split_first_chunk()
                && reply.reply_type == NBD_REP_META_CONTEXT
                && name == BASE_ALLOCATION.as_bytes()
            {
                return Ok(Some(u32::from_be_bytes(*id)));
            }
        }
        Ok(None)
    }

    /// Lists exports: names and descriptions.
    ///
    /// # Errors
    /// As [`Client::haggle`].
    pub fn list(&mut self) -> Result<Vec<(String, String)>> {
        const MALFORMED: ClientError =
            ClientError::ServerMisbehaved("a listed export is malformed");
        let replies = self.haggle(NBD_OPT_LIST, &[])?;
        replies
            .iter()
            .map(|reply| {
                let (len, rest) = reply.data.split_first_chunk().ok_or(MALFORMED)?;
                let len = u32::from_be_bytes(*len) as usize;
                let (name, description) = rest.split_at_checked(len).ok_or(MALFORMED)?;
                if reply.reply_type != NBD_REP_SERVER {
                    return Err(MALFORMED);
                }
                Ok((text(name)?, text(description)?))
            })
            .collect()
    }

    /// Asks about an export, with every information item.
    ///
    /// # Errors
    /// As [`Client::haggle`].
    pub fn info(&mut self, export: &str) -> Result<ExportDetails> {
        self.details(NBD_OPT_INFO, export)
    }

    /// Asks about an export, with every information item, and starts transmission.
    ///
    /// # Errors
    /// As [`Client::haggle`].
    pub fn go(&mut self, export: &str) -> Result<ExportDetails> {
        self.details(NBD_OPT_GO, export)
    }

    /// Starts transmission by `NBD_OPT_EXPORT_NAME`. A server that refuses closes the connection.
    ///
    /// # Errors
    /// If the connection fails, or the zeroes at the end of the answer are none.
    pub fn export_name(&mut self, export: &str) -> Result<ExportDetails> {
        self.send_option(NBD_OPT_EXPORT_NAME, export.as_bytes())?;
        let size = read_u64(&mut self.stream)?;
        let flags = u16::from_be_bytes(read_array(&mut self.stream)?);
        if self.client_flags & NBD_FLAG_C_NO_ZEROES == 0
            && read_array::<EXPORT_NAME_ZEROES>(&mut self.stream)? != [0; EXPORT_NAME_ZEROES]
        {
            return Err(ClientError::ServerMisbehaved(
                "the reserved bytes are not zero",
            ));
        }
        Ok(ExportDetails {
            size,
            flags,
            ..ExportDetails::default()
        })
    }

    /// Takes leave during the handshake.
    ///
    /// # Errors
    /// As [`Client::haggle`].
    pub fn abort(&mut self) -> Result<()> {
        self.haggle(NBD_OPT_ABORT, &[]).map(drop)
    }

    /// Sends one request, and whatever payload, without waiting for a reply.
    ///
    /// # Errors
    /// If the connection fails.
    pub fn send(&mut self, request: &RawRequest, payload: &[u8]) -> Result<()> {
        let mut bytes = request.encode().to_vec();
        bytes.extend_from_slice(payload);
        Ok(self.stream.write_all(&bytes)?)
    }

    /// Reads one simple reply (without data: a READ's follows, see [`Client::read_data`]) or one
    /// chunk.
    ///
    /// # Errors
    /// If the connection fails or what comes is neither.
    pub fn read_message(&mut self) -> Result<Message> {
        Message::read_from(&mut self.stream)
    }

    /// Reads the data of a simple reply to a READ.
    ///
    /// # Errors
    /// If the connection fails.
    pub fn read_data(&mut self, len: usize) -> Result<Vec<u8>> {
        read_vec(&mut self.stream, len)
    }

    /// One whole exchange: sends a request and gathers its reply.
    ///
    /// # Errors
    /// If the connection fails or the reply breaks the protocol. An error *in* the reply is no
    /// error here; it stands in the [`Answer`].
    pub fn call(
        &mut self,
        kind: u16,
        flags: u16,
        offset: u64,
        length: u32,
        payload: &[u8],
    ) -> Result<Answer> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let request = RawRequest {
            flags,
            kind,
            cookie,
            offset,
            length,
        };
        self.send(&request, payload)?;
        let mut answer = Answer::default();
        loop {
            match self.read_message()? {
                Message::Simple { cookie: to, error } => {
                    if to != cookie
                        || answer.chunks > 0
                        || (self.structured && kind == NBD_CMD_READ)
                    {
                        let why = "a simple reply is out of place";
                        return Err(ClientError::ServerMisbehaved(why));
                    }
                    answer.error = Errno::from_code(error);
                    if kind == NBD_CMD_READ && error == 0 {
                        answer.data = self.read_data(length as usize)?;
                    }
                    return Ok(answer);
                }
                Message::Chunk { cookie: to, .. } if to != cookie || !self.structured => {
                    return Err(ClientError::ServerMisbehaved("a chunk is out of place"));
                }
                Message::Chunk { done, chunk, .. } => {
                    answer.add(&request, chunk)?;
                    if done {
                        return answer.finish(&request);
                    }
                }
            }
        }
    }

    fn details(&mut self, option: u32, export: &str) -> Result<ExportDetails> {
        let items = [NBD_INFO_NAME, NBD_INFO_DESCRIPTION, NBD_INFO_BLOCK_SIZE];
        let replies = self.haggle(option, &info_data(export, &items))?;
        let mut details = ExportDetails::default();
        let mut export_told = false;
        for reply in replies {
            let Some((item, data)) = reply.data.split_first_chunk() else {
                return Err(ClientError::ServerMisbehaved(
                    "an information reply is too short",
                ));
            };
            if reply.reply_type != NBD_REP_INFO {
                return Err(ClientError::ServerMisbehaved(
                    "a reply to INFO or GO is out of place",
                ));
            }
            match (u16::from_be_bytes(*item), data) {
                (NBD_INFO_EXPORT, &[a, b, c, d, e, f, g, h, i, j]) => {
                    details.size = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
                    details.flags = u16::from_be_bytes([i, j]);
                    export_told = true;
                }
                (NBD_INFO_NAME, name) => details.name = Some(text(name)?),
                (NBD_INFO_DESCRIPTION, line) => details.description = Some(text(line)?),
                (NBD_INFO_BLOCK_SIZE, &[a, b, c, d, e, f, g, h, i, j, k, l]) => {
                    let sizes = [[a, b, c, d], [e, f, g, h], [i, j, k, l]];
                    details.block_size = Some(sizes.map(u32::from_be_bytes));
                }
                _ => {
                    return Err(ClientError::ServerMisbehaved(
                        "an information reply is malformed",
                    ));
                }
            }
        }
        if export_told {
            Ok(details)
        } else {
            Err(ClientError::ServerMisbehaved(
                "it granted an export without NBD_INFO_EXPORT",
            ))
        }
    }
}

/// The data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
///
/// # Panics
/// If a length does not fit its field.
#[must_use]
pub fn info_data(export: &str, items: &[u16]) -> Vec<u8> {
    let mut data = string_data(export);
    let count = u16::try_from(items.len()).expect("items are counted in 16 bits");
    data.extend_from_slice(&count.to_be_bytes());
    for item in items {
        data.extend_from_slice(&item.to_be_bytes());
    }
    data
}

/// The data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
///
/// # Panics
/// If a length does not fit its field.
#[must_use]
pub fn meta_context_data(export: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string_data(export);
    let count = u32::try_from(queries.len()).expect("queries are counted in 32 bits");
    data.extend_from_slice(&count.to_be_bytes());
    for query in queries {
        data.extend_from_slice(&string_data(query));
    }
    data
}

fn string_data(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).expect("a string has a 32-bit length");
    let mut data = length.to_be_bytes().to_vec();
    data.extend_from_slice(text.as_bytes());
    data
}

fn text(bytes: &[u8]) -> Result<String> {
    crate::fields::string(bytes)
        .map(str::to_owned)
        .map_err(|_| ClientError::ServerMisbehaved("a text is not UTF-8, has a NUL or is too long"))
}

fn read_array<const N: usize>(stream: &mut impl Read) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn read_u32(stream: &mut impl Read) -> Result<u32> {
    read_array(stream).map(u32::from_be_bytes)
}

fn read_u64(stream: &mut impl Read) -> Result<u64> {
    read_array(stream).map(u64::from_be_bytes)
}

fn read_vec(stream: &mut impl Read, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}
