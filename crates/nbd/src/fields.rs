//! Reading fields out of bytes that a peer sent.
//!
//! Every read is bounded by the slice: a length field that points outside of it is `Malformed`,
//! never a panic, and nothing is copied or allocated. The `*_at` functions are for headers of a
//! known length only.

use crate::wire::STRING_MAX;

/// The bytes do not hold what their own lengths say, or hold a string that is none. The text says
/// which, for the error reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

/// A cursor over one message's bytes.
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    /// A string preceded by its length in 32 bits.
    pub(crate) fn string(&mut self) -> Result<&'a str, Malformed> {
        let len = self.u32()? as usize;
        string(self.bytes(len)?)
    }

    /// Nothing may be left over.
    pub(crate) fn end(self) -> Result<(), Malformed> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Malformed("the option has trailing bytes"))
        }
    }

    fn bytes(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(TOO_SHORT)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(TOO_SHORT)?;
        self.0 = rest;
        Ok(*bytes)
    }
}

/// A string as the protocol defines it: UTF-8, no NUL, at most 4096 bytes (proto.md,
/// "Conventions").
pub(crate) fn string(bytes: &[u8]) -> Result<&str, Malformed> {
    if bytes.len() > STRING_MAX {
        return Err(Malformed("a string is longer than 4096 bytes"));
    }
    if bytes.contains(&0) {
        return Err(Malformed("a string contains NUL"));
    }
    str::from_utf8(bytes).map_err(|_| Malformed("a string is not UTF-8"))
}

const TOO_SHORT: Malformed = Malformed("the option is shorter than its fields say");

/// The 16-bit number at this place of a header. Panics outside of it: offsets are constants.
pub(crate) fn u16_at(header: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array_at(header, at))
}

/// The 32-bit number at this place of a header. Panics outside of it: offsets are constants.
pub(crate) fn u32_at(header: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array_at(header, at))
}

/// The 64-bit number at this place of a header. Panics outside of it: offsets are constants.
pub(crate) fn u64_at(header: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array_at(header, at))
}

fn array_at<const N: usize>(header: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&header[at..at + N]);
    field
}
