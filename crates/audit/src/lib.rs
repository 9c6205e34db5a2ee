//! The chain of the audit log: how a line is sealed, and how a log is checked afterwards.
//!
//! ```text
//! line n   {…record…,"seq":n,"prev":SHA-256 of line n-1,"mac":HMAC-SHA-256 under key n of all before it}
//! key n+1  HMAC-SHA-256 under key n of a constant; key n is wiped
//! ```
//! The first key is the verification key. Whoever writes the log keeps only the key of the next line,
//! and no step leads back: who takes the machine over can't change what was written before without
//! this showing, to whoever has the verification key. The step is the classic one (M. Bellare and
//! B. Yee, *Forward integrity for secure audit logs*, 1997; B. Schneier and J. Kelsey, 1998).
//!
//! | what was done to a log | found by |
//! |---|---|
//! | a line changed, put in, dropped, moved, written twice | `seq` and `prev`, without any key |
//! | all lines from one on made anew, with new `prev` | the verification key, or an [`Anchor`] |
//! | its end cut off | an [`Anchor`]: a place in the log that was told elsewhere while it was made |
//! | an older log put back, its key with it | an anchor, or the [`Index`] of a TPM that heads were extended into |
//!
//! What always holds: a line is complete, with the newline at its end, or it is no line; a key is
//! wiped when it is stepped on or dropped, and is neither printed nor compared in variable time.
//!
//! The keys here protect the log and nothing else: no data key comes near this crate, and it opens
//! no file. They are in ordinary memory: the next one stands in a file beside the log as well.

mod extended;
mod key;
mod line;
mod verify;

pub use extended::{Doubt, Extended, Index, extended, extension};
pub use key::{BadKey, ChainKey};
pub use line::{LineError, Link, Parsed, Sealed, hash, parse, seal};
pub use verify::{Anchor, BadAnchor, Finding, Found, Report, Verifier};

/// Bytes of a key, a hash, a MAC.
pub const BYTES: usize = 32;

/// As lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8; BYTES]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What [`hex()`] made, and nothing else: a MAC has one spelling.
#[must_use]
pub fn from_hex(text: &str) -> Option<[u8; BYTES]> {
    let digits = text.as_bytes();
    let is_digit = |digit: &u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
    if digits.len() != 2 * BYTES || !digits.iter().all(is_digit) {
        return None;
    }
    let mut bytes = [0; BYTES];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}
