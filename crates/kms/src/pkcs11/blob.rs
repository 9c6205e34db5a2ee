//! The form of a volume key that a token wrapped, format 1. `PKCS11.md` describes it for those who open one without this program.
//!
//! ```text
//!   magic 4 │ format 1 │ mechanism 1 │ nonce 12 │ what the token gave, 80 or 104 bytes
//!   └──────────── header, 18 bytes ─────────────┘
//! ```
//! What always holds: a blob that is parsed has the length of its mechanism, so what the token gets is what a token gave.

use sealvol_control::keychild::WrapMechanism;
use sealvol_crypto::{EncryptionContext, VOLUME_KEY_BYTES, sha256};

const MAGIC: [u8; 4] = *b"SVp1";
const FORMAT_VERSION: u8 = 1;

/// Bytes of the nonce: the IV of AES-GCM; what keeps two wraps of one key apart with AES-KEY-WRAP-PAD, which is deterministic.
pub(super) const NONCE_BYTES: usize = 12;

/// Where the nonce begins.
const NONCE_AT: usize = MAGIC.len() + 2;

const HEADER_BYTES: usize = NONCE_AT + NONCE_BYTES;

/// Bits of AES-GCM's tag.
pub(super) const TAG_BITS: u64 = 128;

/// Bytes of the digest that AES-KEY-WRAP-PAD wraps along.
const BINDING_BYTES: usize = 32;

/// Bytes that AES-KEY-WRAP-PAD wraps: the volume key, then the digest of what it is bound to.
pub(super) const PAYLOAD_BYTES: usize = VOLUME_KEY_BYTES + BINDING_BYTES;

/// Keeps the digest apart from digests for anything else.
const LABEL: &[u8] = b"sealvol pkcs11 v1 binding";

/// A blob, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Blob<'a> {
    pub(super) mechanism: WrapMechanism,
    pub(super) nonce: [u8; NONCE_BYTES],
    pub(super) wrapped: &'a [u8],
}

/// What is wrong with a blob. It was changed, or is of another key service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotABlob {
    #[error("its first four bytes are not those of a key that a token wrapped")]
    Magic,
    #[error("it has format {0}, and this program reads format {FORMAT_VERSION}")]
    Format(u8),
    #[error("it names no mechanism that is known: {0}")]
    Mechanism(u8),
    #[error("it was cut off, or something follows it")]
    Length,
}

impl<'a> Blob<'a> {
    pub(super) fn parse(blob: &'a [u8]) -> Result<Self, NotABlob> {
        let (header, wrapped) = blob
            .split_at_checked(HEADER_BYTES)
            .ok_or(NotABlob::Length)?;
        if header[..MAGIC.len()] != MAGIC {
            return Err(NotABlob::Magic);
        }
        if header[4] != FORMAT_VERSION {
            return Err(NotABlob::Format(header[4]));
        }
        let mechanism = match header[5] {
            1 => WrapMechanism::AesGcm,
            2 => WrapMechanism::AesKeyWrapPad,
            other => return Err(NotABlob::Mechanism(other)),
        };
        if wrapped.len() != wrapped_bytes(mechanism) {
            return Err(NotABlob::Length);
        }
        let nonce = header[NONCE_AT..].try_into().expect("the header's end");
        Ok(Self {
            mechanism,
            nonce,
            wrapped,
        })
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        [&prefix(self.mechanism)[..], &self.nonce, self.wrapped].concat()
    }
}

/// Bytes that a token gives.
fn wrapped_bytes(mechanism: WrapMechanism) -> usize {
    match mechanism {
        // SP 800-38D: as long as the plaintext, and the tag.
        WrapMechanism::AesGcm => VOLUME_KEY_BYTES + 16,
        // SP 800-38F: one semiblock more.
        WrapMechanism::AesKeyWrapPad => PAYLOAD_BYTES + 8,
    }
}

/// The header up to the nonce.
fn prefix(mechanism: WrapMechanism) -> [u8; NONCE_AT] {
    let [a, b, c, d] = MAGIC;
    let number = match mechanism {
        WrapMechanism::AesGcm => 1,
        WrapMechanism::AesKeyWrapPad => 2,
    };
    [a, b, c, d, FORMAT_VERSION, number]
}

/// The additional data of AES-GCM. The nonce is its IV, which a token may choose itself.
pub(super) fn associated_data(context: &EncryptionContext) -> Vec<u8> {
    [&prefix(WrapMechanism::AesGcm)[..], &context.canonical()].concat()
}

/// What AES-KEY-WRAP-PAD wraps along with the key. Not secret; nobody else can put it under the token's key.
pub(super) fn binding(
    nonce: &[u8; NONCE_BYTES],
    context: &EncryptionContext,
) -> [u8; BINDING_BYTES] {
    let prefix = prefix(WrapMechanism::AesKeyWrapPad);
    sha256(&[LABEL, &prefix, nonce, &context.canonical()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_comes_back_the_same_and_no_other_bytes_are_one() {
        for mechanism in [WrapMechanism::AesGcm, WrapMechanism::AesKeyWrapPad] {
            let wrapped = vec![7; wrapped_bytes(mechanism)];
            let blob = Blob {
                mechanism,
                nonce: [9; NONCE_BYTES],
                wrapped: &wrapped,
            };
            let bytes = blob.to_bytes();
            assert_eq!(Blob::parse(&bytes), Ok(blob));
            for cut in 0..bytes.len() {
                assert_eq!(Blob::parse(&bytes[..cut]), Err(NotABlob::Length));
            }
            let longer = [bytes.as_slice(), &[0]].concat();
            assert_eq!(Blob::parse(&longer), Err(NotABlob::Length));
            for bit in 0..NONCE_AT * 8 {
                let mut changed = bytes.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert!(Blob::parse(&changed).is_err(), "bit {bit}");
            }
        }
    }
}
