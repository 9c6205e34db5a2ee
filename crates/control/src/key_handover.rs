//! How a call of the control API brings a data key, or a file to write to: not in the call, but as a descriptor.
//!
//! ```text
//! client                                            daemon
//!   the call, with `Upgrade: sealvol-key`   ────▶   may the caller do this?
//!                                           ◀────   101 (RFC 9110, section 7.8)
//!                                           ◀────   one byte: from here on nobody reads but by recvmsg
//!   one byte, and the descriptor            ────▶   a key: reads 64 bytes from it, straight into locked memory; does the call
//!                                                   a file: does the call, then writes what came of it
//!                                           ◀────   status, u16 big-endian; JSON; the end
//! ```
//! What always holds: key bytes go through neither the socket nor the client, so no buffer of HTTP ever has one; the daemon's
//! byte comes first, since a descriptor that arrives where somebody calls `read` is closed by the kernel. Which of the two a
//! descriptor is, the call says, and nobody else.

/// The protocol that `Upgrade` names.
pub const PROTOCOL: &str = "sealvol-key";

/// What either side sends when it is its turn.
pub const READY: [u8; 1] = *b"k";
