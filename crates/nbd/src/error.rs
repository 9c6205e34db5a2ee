//! Why a connection must be closed, split by whose fault it is.
//!
//! Only what cannot be answered is here: whatever the protocol lets a server refuse with a reply
//! is refused with one, and the connection goes on.

use crate::wire::PAYLOAD_MAX;

/// A connection that cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The client broke a rule of the protocol: a defect in it, or an attack.
    #[error("the NBD client broke the protocol: {0}; look for a defect in the client")]
    PeerMisbehaved(#[from] PeerMisbehaved),
    /// The client follows a protocol this server does not speak.
    #[error(
        "the NBD client and this server share no protocol: {0}; use a client that speaks fixed newstyle negotiation"
    )]
    PeerIncompatible(#[from] PeerIncompatible),
}

/// How a client broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerMisbehaved {
    /// An option did not start with `IHAVEOPT`; the stream is out of step.
    #[error("it sent an option that starts with {magic:#018x} where IHAVEOPT belongs")]
    SentOptionWithBadMagic {
        /// The eight bytes in the place of the magic number.
        magic: u64,
    },
    /// An option announced more data than anything in this protocol needs.
    #[error("it sent option {option} with {length} bytes of data, and {max} are the most allowed")]
    SentAbsurdlyLongOption {
        /// The option.
        option: u32,
        /// The announced length, in bytes.
        length: u32,
        /// The limit, in bytes.
        max: u32,
    },
    /// Option haggling never came to an end.
    #[error("it sent more options than the handshake allows without starting transmission")]
    SentTooManyOptions,
    /// `NBD_OPT_EXPORT_NAME`, which has no error reply, carried no valid name.
    #[error("it sent NBD_OPT_EXPORT_NAME with a name that is not text of at most 4096 bytes")]
    SentExportNameThatIsNoString,
    /// A request did not start with `NBD_REQUEST_MAGIC`; the stream is out of step.
    #[error("it sent a request that starts with {magic:#010x} where NBD_REQUEST_MAGIC belongs")]
    SentRequestWithBadMagic {
        /// The four bytes in the place of the magic number.
        magic: u32,
    },
    /// A WRITE announced a payload that no client may send.
    #[error("it announced a write of {length} bytes, and {PAYLOAD_MAX} are the most allowed")]
    AnnouncedTooLongPayload {
        /// The announced length, in bytes.
        length: u32,
    },
}

/// Where a client and this server have no common ground.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerIncompatible {
    /// Client flags that nobody offered; the protocol says to drop the connection.
    #[error("it set client flags {flags:#010x}, of which this server offered only 0x00000003")]
    SetUnknownClientFlags {
        /// All flags the client set.
        flags: u32,
    },
    /// Without fixed newstyle no option but `NBD_OPT_EXPORT_NAME` can be answered.
    #[error("it sent option {option} without having agreed to fixed newstyle negotiation")]
    SentOptionWithoutFixedNewstyle {
        /// The option.
        option: u32,
    },
}
