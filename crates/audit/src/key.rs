//! The key of a line, and the step to that of the next.
//!
//! Always: a key knows the line it is for; a step wipes the key it began with. Never: a way back, a
//! copy, a printed key but the one line of a key file.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use thiserror::Error;
use zeroize::{Zeroize as _, Zeroizing};

use crate::{BYTES, Parsed, from_hex};

/// First word of a key file, with the version of the chain.
const MAGIC: &str = "sealvol-audit-key-1";
/// What a key is stepped on with.
const STEP: &[u8] = b"sealvol audit log: next key";

/// The key of one line.
pub struct ChainKey {
    seq: u64,
    bytes: Zeroizing<[u8; BYTES]>,
}

/// A text that is no key file.
#[derive(Debug, Error)]
#[error(
    "it is no key of an audit log: `{MAGIC} NUMBER KEY` was expected, with 64 hexadecimal digits"
)]
pub struct BadKey;

impl ChainKey {
    /// The first key of a chain whose first line is number `seq`; `fill` makes random bytes.
    pub fn generate(seq: u64, fill: impl FnOnce(&mut [u8])) -> Self {
        let mut bytes = Zeroizing::new([0; BYTES]);
        fill(&mut *bytes);
        Self { seq, bytes }
    }

    /// The number of the line that it is for.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// What a key file holds. It always has the same length, so that the next one covers it.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut digits = crate::hex(&self.bytes);
        let text = Zeroizing::new(format!("{MAGIC} {:020} {digits}\n", self.seq));
        digits.zeroize();
        text
    }

    /// Reads what [`Self::to_text`] made.
    ///
    /// # Errors
    /// If it is something else.
    pub fn from_text(text: &str) -> Result<Self, BadKey> {
        let mut words = text.split_ascii_whitespace();
        let (Some(MAGIC), Some(seq), Some(digits), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(BadKey);
        };
        let bytes = Zeroizing::new(from_hex(digits).ok_or(BadKey)?);
        let seq = seq.parse().ok().filter(|&seq| seq > 0).ok_or(BadKey)?;
        Ok(Self { seq, bytes })
    }

    /// Becomes the key of the next line.
    pub fn step(&mut self) {
        let next = Zeroizing::new(self.tag(STEP));
        self.bytes.copy_from_slice(&*next);
        self.seq += 1;
    }

    /// Whether the MAC of a line is of this key.
    #[must_use]
    pub fn made(&self, line: &Parsed<'_>) -> bool {
        self.mac(line.body).ct_eq(&line.mac).into()
    }

    /// The MAC of `body` as a line.
    pub(crate) fn mac(&self, body: &str) -> [u8; BYTES] {
        // A line begins with a brace, which the step's text does not.
        self.tag(body.as_bytes())
    }

    fn tag(&self, bytes: &[u8]) -> [u8; BYTES] {
        let mut hmac =
            Hmac::<Sha256>::new_from_slice(&*self.bytes).expect("HMAC takes keys of every length");
        hmac.update(bytes);
        hmac.finalize().into_bytes().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_is_read_back_and_nothing_else_is() {
        let key = ChainKey::generate(7, |bytes| bytes.fill(0xA5));
        let text = key.to_text();
        let again = ChainKey::from_text(&text).expect("a key");
        assert_eq!((again.seq(), again.mac("{}")), (7, key.mac("{}")));
        for bad in [
            "",
            "sealvol-audit-key-1 7",
            &text.replace("-1 ", "-2 "),
            &text.replace("a5", "a"),
            &text.replace("a5", "xy"),
            &text.replace("00000000000000000007", "0"),
            &format!("{} more", text.trim_end()),
        ] {
            assert!(ChainKey::from_text(bad).is_err(), "`{bad}` was taken");
        }
    }

    #[test]
    fn key_files_of_one_chain_are_of_one_length() {
        let mut key = ChainKey::generate(9, |bytes| bytes.fill(1));
        let before = key.to_text().len();
        key.step();
        assert_eq!((key.seq(), key.to_text().len()), (10, before));
    }

    #[test]
    fn a_step_is_the_hmac_that_the_description_says() {
        let mut key = ChainKey::generate(1, |bytes| bytes.fill(0x0b));
        key.step();
        // Python: hmac.new(b"\x0b" * 32, b"sealvol audit log: next key", "sha256").hexdigest()
        assert!(key.to_text().contains(STEPPED));
    }

    const STEPPED: &str = "b486fa725e49b296c432a88f94e7b78b7728ff2972edaed735687a574887693a";
}
