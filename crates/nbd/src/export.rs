//! What a server tells about its exports, and what a finished handshake leaves behind.

use std::fmt;

use crate::wire;

/// Everything a client learns about one export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Size in bytes. It holds for the whole connection: the protocol has no way to change it.
    pub size: u64,
    /// Whether every command that writes is refused with `EPERM`.
    pub read_only: bool,
    /// One line for a human; empty if there is nothing to say.
    pub description: String,
    /// What is offered beside reading and writing.
    pub can: Capabilities,
}

/// What an export offers beside reading and writing. Whatever is not offered is refused by the
/// gate with `EINVAL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// `NBD_CMD_FLUSH`.
    pub flush: bool,
    /// `NBD_CMD_FLAG_FUA`, on every command.
    pub fua: bool,
    /// `NBD_CMD_TRIM`.
    pub trim: bool,
    /// `NBD_CMD_WRITE_ZEROES`, with `NBD_CMD_FLAG_NO_HOLE`.
    pub write_zeroes: bool,
    /// `NBD_CMD_FLAG_FAST_ZERO`; without effect unless `write_zeroes` is set.
    pub fast_zero: bool,
    /// FLUSH and FUA cover the writes of all connections to the export.
    pub multi_conn: bool,
    /// `NBD_CMD_CACHE`.
    pub cache: bool,
    /// `NBD_CMD_FLAG_DF`; without effect unless structured replies are negotiated.
    pub df: bool,
}

impl Capabilities {
    /// Everything.
    pub const ALL: Self = Self {
        flush: true,
        fua: true,
        trim: true,
        write_zeroes: true,
        fast_zero: true,
        multi_conn: true,
        cache: true,
        df: true,
    };
}

/// One export in the answer to `NBD_OPT_LIST`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportListing {
    /// The name a client asks for.
    pub name: String,
    /// One line for a human; may be empty.
    pub description: String,
}

/// The server will not serve an export (or a list), and says why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The kind, which decides the reply type.
    pub reason: RefusalReason,
    /// Text for the user: what was refused, the cause, the next step. It is sent to the client, so
    /// it must not tell a stranger more than the stranger may know.
    pub message: String,
}

impl Refusal {
    /// A refusal of this kind with this text for the user.
    pub fn new(reason: RefusalReason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// The kinds of refusal; each is one `NBD_REP_ERR_*` (proto.md, "Option reply types").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalReason {
    /// There is no such export, or the peer may not know of it.
    Unknown,
    /// Policy forbids it to this peer.
    Policy,
    /// What was asked makes no sense for this export.
    Invalid,
    /// The host cannot do it.
    Platform,
    /// TLS must be started first.
    TlsRequired,
    /// The server is shutting down, or cannot serve for now.
    Shutdown,
    /// The answer would be too large.
    TooBig,
}

impl RefusalReason {
    /// The `NBD_REP_ERR_*` that tells it.
    #[must_use]
    pub const fn reply_type(self) -> u32 {
        match self {
            Self::Unknown => wire::NBD_REP_ERR_UNKNOWN,
            Self::Policy => wire::NBD_REP_ERR_POLICY,
            Self::Invalid => wire::NBD_REP_ERR_INVALID,
            Self::Platform => wire::NBD_REP_ERR_PLATFORM,
            Self::TlsRequired => wire::NBD_REP_ERR_TLS_REQD,
            Self::Shutdown => wire::NBD_REP_ERR_SHUTDOWN,
            Self::TooBig => wire::NBD_REP_ERR_TOO_BIG,
        }
    }
}

/// What client and server agreed on when transmission starts. The gate holds every request
/// against it, so it carries what was *announced*, whatever becomes of the volume later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The export, by the name the client used.
    pub export: String,
    /// Size in bytes, as announced.
    pub size: u64,
    /// Whether the export was announced as read-only.
    pub read_only: bool,
    /// What was offered.
    pub can: Capabilities,
    /// Whether structured replies are negotiated; then READ must never get a simple reply.
    pub structured: bool,
    /// The id of `base:allocation`, if the client selected it for this export.
    pub allocation_context: Option<u32>,
}

/// The transmission flags of an export. Those for writing are left out of a read-only export's,
/// and `NBD_FLAG_SEND_DF` must be clear unless structured replies are negotiated.
pub(crate) fn transmission_flags(info: &ExportInfo, structured: bool) -> u16 {
    let can = info.can;
    let writable = !info.read_only;
    [
        (true, wire::NBD_FLAG_HAS_FLAGS),
        (info.read_only, wire::NBD_FLAG_READ_ONLY),
        (can.flush, wire::NBD_FLAG_SEND_FLUSH),
        (can.fua, wire::NBD_FLAG_SEND_FUA),
        (can.trim && writable, wire::NBD_FLAG_SEND_TRIM),
        (
            can.write_zeroes && writable,
            wire::NBD_FLAG_SEND_WRITE_ZEROES,
        ),
        (
            can.write_zeroes && can.fast_zero && writable,
            wire::NBD_FLAG_SEND_FAST_ZERO,
        ),
        (can.df && structured, wire::NBD_FLAG_SEND_DF),
        (can.multi_conn, wire::NBD_FLAG_CAN_MULTI_CONN),
        (can.cache, wire::NBD_FLAG_SEND_CACHE),
    ]
    .into_iter()
    .filter(|&(offered, _)| offered)
    .fold(0, |flags, (_, flag)| flags | flag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(read_only: bool) -> ExportInfo {
        ExportInfo {
            size: 1 << 20,
            read_only,
            description: String::new(),
            can: Capabilities::ALL,
        }
    }

    #[test]
    fn df_is_offered_only_with_structured_replies() {
        assert_eq!(transmission_flags(&info(false), false), 0b1101_0110_1101);
        assert_eq!(transmission_flags(&info(false), true), 0b1101_1110_1101);
    }

    #[test]
    fn a_read_only_export_offers_nothing_that_writes() {
        assert_eq!(transmission_flags(&info(true), true), 0b0101_1000_1111);
    }

    #[test]
    fn fast_zero_is_never_offered_without_write_zeroes() {
        let mut info = info(false);
        info.can.write_zeroes = false;
        assert_eq!(
            transmission_flags(&info, false) & wire::NBD_FLAG_SEND_FAST_ZERO,
            0
        );
    }
}
