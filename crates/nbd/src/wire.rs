//! The numbers of the NBD protocol, spelled as its document spells them.
//!
//! Source: `doc/proto.md` of <https://github.com/NetworkBlockDevice/nbd>, section names in parentheses.
//! Everything on the wire is big-endian. Nothing here decides anything: what a server makes of a
//! value stands in `handshake.rs` and `transmission.rs`.

// Magic numbers (Newstyle negotiation, Fixed newstyle negotiation, Transmission)

/// First eight bytes from the server (`INIT_PASSWD`), ASCII `NBDMAGIC`.
pub const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second eight bytes from a newstyle server, and the first eight of every option.
pub const IHAVEOPT: u64 = 0x4948_4156_454F_5054;
/// First eight bytes of every option reply.
pub const NBD_REP_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First four bytes of every request.
pub const NBD_REQUEST_MAGIC: u32 = 0x2560_9513;
/// First four bytes of a simple reply.
pub const NBD_SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First four bytes of a structured reply chunk.
pub const NBD_STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

// Handshake flags, sent by the server (Handshake flags)

/// The server speaks fixed newstyle.
pub const NBD_FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// The server can leave out the 124 zeroes after `NBD_OPT_EXPORT_NAME`.
pub const NBD_FLAG_NO_ZEROES: u16 = 1 << 1;

// Client flags (Client flags)

/// The client speaks fixed newstyle.
pub const NBD_FLAG_C_FIXED_NEWSTYLE: u32 = 1 << 0;
/// The client wants no 124 zeroes after `NBD_OPT_EXPORT_NAME`.
pub const NBD_FLAG_C_NO_ZEROES: u32 = 1 << 1;

// Transmission flags (Transmission flags)

/// Always set.
pub const NBD_FLAG_HAS_FLAGS: u16 = 1 << 0;
/// Nothing can be written.
pub const NBD_FLAG_READ_ONLY: u16 = 1 << 1;
/// `NBD_CMD_FLUSH` is served.
pub const NBD_FLAG_SEND_FLUSH: u16 = 1 << 2;
/// `NBD_CMD_FLAG_FUA` is served.
pub const NBD_FLAG_SEND_FUA: u16 = 1 << 3;
/// The export behaves like a rotating disk.
pub const NBD_FLAG_ROTATIONAL: u16 = 1 << 4;
/// `NBD_CMD_TRIM` is served.
pub const NBD_FLAG_SEND_TRIM: u16 = 1 << 5;
/// `NBD_CMD_WRITE_ZEROES` and `NBD_CMD_FLAG_NO_HOLE` are served.
pub const NBD_FLAG_SEND_WRITE_ZEROES: u16 = 1 << 6;
/// `NBD_CMD_FLAG_DF` is served (structured replies only).
pub const NBD_FLAG_SEND_DF: u16 = 1 << 7;
/// FLUSH and FUA hold across all connections.
pub const NBD_FLAG_CAN_MULTI_CONN: u16 = 1 << 8;
/// `NBD_CMD_CACHE` is served.
pub const NBD_FLAG_SEND_CACHE: u16 = 1 << 10;
/// `NBD_CMD_FLAG_FAST_ZERO` is served.
pub const NBD_FLAG_SEND_FAST_ZERO: u16 = 1 << 11;

// Options (Option types)

/// Choose an export and start transmission; cannot answer an error.
pub const NBD_OPT_EXPORT_NAME: u32 = 1;
/// End the session.
pub const NBD_OPT_ABORT: u32 = 2;
/// List the exports.
pub const NBD_OPT_LIST: u32 = 3;
/// Withdrawn from the protocol.
pub const NBD_OPT_PEEK_EXPORT: u32 = 4;
/// Start TLS.
pub const NBD_OPT_STARTTLS: u32 = 5;
/// Describe an export.
pub const NBD_OPT_INFO: u32 = 6;
/// Describe an export and start transmission.
pub const NBD_OPT_GO: u32 = 7;
/// Use structured replies.
pub const NBD_OPT_STRUCTURED_REPLY: u32 = 8;
/// List metadata contexts.
pub const NBD_OPT_LIST_META_CONTEXT: u32 = 9;
/// Select metadata contexts.
pub const NBD_OPT_SET_META_CONTEXT: u32 = 10;
/// Experimental extension; this server does not speak it.
pub const NBD_OPT_EXTENDED_HEADERS: u32 = 11;

// Option replies (Option reply types)

/// Done.
pub const NBD_REP_ACK: u32 = 1;
/// One export of a list.
pub const NBD_REP_SERVER: u32 = 2;
/// One information item about an export.
pub const NBD_REP_INFO: u32 = 3;
/// One metadata context.
pub const NBD_REP_META_CONTEXT: u32 = 4;
/// Set in every error reply.
pub const NBD_REP_FLAG_ERROR: u32 = 1 << 31;
/// The option is unknown.
pub const NBD_REP_ERR_UNSUP: u32 = NBD_REP_FLAG_ERROR + 1;
/// The option is forbidden here.
pub const NBD_REP_ERR_POLICY: u32 = NBD_REP_FLAG_ERROR + 2;
/// The option is malformed or out of place.
pub const NBD_REP_ERR_INVALID: u32 = NBD_REP_FLAG_ERROR + 3;
/// The host of the server cannot do it.
pub const NBD_REP_ERR_PLATFORM: u32 = NBD_REP_FLAG_ERROR + 4;
/// TLS first.
pub const NBD_REP_ERR_TLS_REQD: u32 = NBD_REP_FLAG_ERROR + 5;
/// No such export.
pub const NBD_REP_ERR_UNKNOWN: u32 = NBD_REP_FLAG_ERROR + 6;
/// The server is shutting down.
pub const NBD_REP_ERR_SHUTDOWN: u32 = NBD_REP_FLAG_ERROR + 7;
/// Ask for `NBD_INFO_BLOCK_SIZE` first.
pub const NBD_REP_ERR_BLOCK_SIZE_REQD: u32 = NBD_REP_FLAG_ERROR + 8;
/// The option or its answer is too large.
pub const NBD_REP_ERR_TOO_BIG: u32 = NBD_REP_FLAG_ERROR + 9;

// Information items (NBD_REP_INFO)

/// Size and transmission flags.
pub const NBD_INFO_EXPORT: u16 = 0;
/// Canonical name.
pub const NBD_INFO_NAME: u16 = 1;
/// Text for a human.
pub const NBD_INFO_DESCRIPTION: u16 = 2;
/// Size constraints.
pub const NBD_INFO_BLOCK_SIZE: u16 = 3;

// Requests (Request types)

/// Read.
pub const NBD_CMD_READ: u16 = 0;
/// Write; its payload follows the header.
pub const NBD_CMD_WRITE: u16 = 1;
/// Disconnect; never answered.
pub const NBD_CMD_DISC: u16 = 2;
/// Make answered writes durable.
pub const NBD_CMD_FLUSH: u16 = 3;
/// The range is no longer needed.
pub const NBD_CMD_TRIM: u16 = 4;
/// The range will be needed soon.
pub const NBD_CMD_CACHE: u16 = 5;
/// Write zeroes, without a payload.
pub const NBD_CMD_WRITE_ZEROES: u16 = 6;
/// Query metadata of the range.
pub const NBD_CMD_BLOCK_STATUS: u16 = 7;

// Command flags (Command flags)

/// Durable before the reply; valid on every command.
pub const NBD_CMD_FLAG_FUA: u16 = 1 << 0;
/// Keep the range provisioned; `NBD_CMD_WRITE_ZEROES` only.
pub const NBD_CMD_FLAG_NO_HOLE: u16 = 1 << 1;
/// At most one content chunk; `NBD_CMD_READ` only.
pub const NBD_CMD_FLAG_DF: u16 = 1 << 2;
/// One extent per context; `NBD_CMD_BLOCK_STATUS` only.
pub const NBD_CMD_FLAG_REQ_ONE: u16 = 1 << 3;
/// Fail unless faster than a write; `NBD_CMD_WRITE_ZEROES` only.
pub const NBD_CMD_FLAG_FAST_ZERO: u16 = 1 << 4;

// Structured replies (Structured reply flags, Structured reply types)

/// Last chunk of its reply.
pub const NBD_REPLY_FLAG_DONE: u16 = 1 << 0;
/// Nothing more to say.
pub const NBD_REPLY_TYPE_NONE: u16 = 0;
/// Data at an offset.
pub const NBD_REPLY_TYPE_OFFSET_DATA: u16 = 1;
/// A run of zeroes at an offset.
pub const NBD_REPLY_TYPE_OFFSET_HOLE: u16 = 2;
/// Extents of one metadata context.
pub const NBD_REPLY_TYPE_BLOCK_STATUS: u16 = 5;
/// Set in every error chunk type.
pub const NBD_REPLY_TYPE_FLAG_ERROR: u16 = 1 << 15;
/// The request failed.
pub const NBD_REPLY_TYPE_ERROR: u16 = NBD_REPLY_TYPE_FLAG_ERROR + 1;
/// The request failed at an offset.
pub const NBD_REPLY_TYPE_ERROR_OFFSET: u16 = NBD_REPLY_TYPE_FLAG_ERROR + 2;

// Metadata contexts (The `base:` metadata namespace)

/// The wildcard of the namespace; lists, never selects.
pub const BASE_WILDCARD: &str = "base:";
/// The only context of the namespace.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Not allocated in the store.
pub const NBD_STATE_HOLE: u32 = 1 << 0;
/// Reads as zeroes.
pub const NBD_STATE_ZERO: u32 = 1 << 1;

// Lengths in bytes

/// Magic, magic, handshake flags.
pub const GREETING_LEN: usize = 8 + 8 + 2;
/// Magic, option, length.
pub const OPTION_HEADER_LEN: usize = 8 + 4 + 4;
/// Magic, option, reply type, length.
pub const OPTION_REPLY_HEADER_LEN: usize = 8 + 4 + 4 + 4;
/// Magic, flags, type, cookie, offset, length.
pub const REQUEST_HEADER_LEN: usize = 4 + 2 + 2 + 8 + 8 + 4;
/// Magic, error, cookie.
pub const SIMPLE_REPLY_LEN: usize = 4 + 4 + 8;
/// Magic, flags, type, cookie, length.
pub const CHUNK_HEADER_LEN: usize = 4 + 2 + 2 + 8 + 4;
/// Reserved bytes that end the answer to `NBD_OPT_EXPORT_NAME`.
pub const EXPORT_NAME_ZEROES: usize = 124;
/// Longest string of the protocol (its section "Conventions").
pub const STRING_MAX: usize = 4096;

// Size constraints (section of that name): the protocol's defaults, so that a client which never asks
// is served as well as one which does.

/// Smallest addressable length and alignment.
pub const BLOCK_SIZE_MIN: u32 = 1;
/// Smallest length and alignment without read-modify-write: the block of a volume's map.
pub const BLOCK_SIZE_PREFERRED: u32 = 4096;
/// Longest payload of a READ or WRITE. Requests without a payload may go to 2^32-1.
pub const PAYLOAD_MAX: u32 = 32 << 20;
