//! The NBD protocol, sans I/O: bytes in, requests out; replies in, bytes out.
//!
//! There is no socket, clock, thread or runtime in here: whoever has them drives these machines.
//! The protocol is that of `doc/proto.md` in <https://github.com/NetworkBlockDevice/nbd>, and the
//! words are its words.
//!
//! ```text
//!   bytes ─▶ ServerHandshake ─▶ HandshakeEvent::{List, Info}     the server answers
//!                 │         └─▶ Transmission(Session)            agreed
//!   bytes ─▶ Transmission::parse ─▶ Request                      the one gate: valid, or refused
//!                                   └─▶ volume ─▶ reply::* ─▶ bytes
//! ```
//!
//! A tour, in the order of a connection:
//! - [`handshake`]: fixed newstyle negotiation, one option at a time;
//! - [`export`]: what the server says about an export, and the [`Session`] that results;
//! - [`transmission`]: request headers, and the gate with the table of what is refused how;
//! - [`reply`], [`extents`]: encoders of replies;
//! - [`error`], [`errno`]: why a connection must close; why a request failed;
//! - [`wire`]: the protocol's numbers;
//! - [`client`]: a small blocking client, for tests and for measuring.
//!
//! Always holds: no input makes it panic, allocate more than a fixed bound, or pass an invalid
//! request on.

#![forbid(unsafe_code)]

pub mod client;
pub mod errno;
pub mod error;
pub mod export;
pub mod extents;
mod fields;
pub mod handshake;
mod option;
mod option_reply;
pub mod reply;
pub mod transmission;
pub mod wire;

pub use errno::Errno;
pub use error::{Error, PeerIncompatible, PeerMisbehaved};
pub use export::{Capabilities, ExportInfo, ExportListing, Refusal, RefusalReason, Session};
pub use extents::{Extent, Extents};
pub use handshake::{CloseReason, HandshakeEvent, InfoReason, ServerHandshake};
pub use transmission::{Command, Parsed, Request, Transmission};
