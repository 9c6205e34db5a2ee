//! Wrapped keys, format version 1: a key, encrypted and authenticated under a key-encryption key.
//!
//! ```text
//!   magic 4 │ format 1 │ key id 16 │ key version 4 │ nonce 32 │ ciphertext 64 or 32 │ tag 16
//!   └──────────────────── header, 57 bytes ───────────────────┘
//!   key ‖ IV = HKDF-SHA256(ikm = KEK, salt = nonce, info = label)
//!   AES-256-GCM, associated data = header ‖ canonical encryption context
//! ```
//!
//! Exact in `FORMATS.md`. Four kinds share the format and differ in magic, label and length: a volume
//! key under a key-encryption key (here), a key-encryption key under another one
//! ([`KeyEncryptionKey::seal`]), the private key of an import ([`KeyEncryptionKey::seal_import_key`]),
//! and the image of a table of keys ([`KeyEncryptionKey::seal_table`]).
//!
//! What always holds: the plaintext goes from slot to ciphertext and from ciphertext to slot, and
//! lies nowhere between; a blob with any bit changed, another context or another key is refused
//! without telling which of the three it was; each wrap has a fresh nonce of 256 bits, so that
//! key and IV never repeat however many keys one KEK wraps.

use std::sync::Arc;

use crate::context::EncryptionContext;
use crate::gcm::{self, KEY_AND_IV_BYTES, TAG_BYTES};
use crate::kdf;
use crate::key_encryption_key::KeyEncryptionKey;
use crate::locked::{KeyMemory, LockedError};
use crate::random::random;
use crate::residue::with_cleared_residue;
use crate::volume_key::{HalvesEqual, VOLUME_KEY_BYTES, VolumeKey};

/// The format that is written, and the only one that is read.
const FORMAT_VERSION: u8 = 1;

const KEY_ID_AT: usize = 5;
const KEY_VERSION_AT: usize = 21;
const NONCE_AT: usize = 25;
const NONCE_BYTES: usize = 32;
const HEADER_BYTES: usize = NONCE_AT + NONCE_BYTES;

/// Bytes of a wrapped volume key.
pub const WRAPPED_VOLUME_KEY_BYTES: usize = VolumeKeyFormat::BLOB_BYTES;

/// What distinguishes the kinds of wrapped keys.
pub(crate) trait Format {
    const MAGIC: [u8; 4];
    const LABEL: &'static [u8];
    /// Bytes of the secret; where it may have any length up to there, the most.
    const SECRET_BYTES: usize;
    const BLOB_BYTES: usize = HEADER_BYTES + Self::SECRET_BYTES + TAG_BYTES;

    /// Whether a secret of this kind may have so many bytes.
    fn may_have(bytes: usize) -> bool {
        bytes == Self::SECRET_BYTES
    }
}

/// A volume key under a key-encryption key.
pub(crate) struct VolumeKeyFormat;

impl Format for VolumeKeyFormat {
    const MAGIC: [u8; 4] = *b"SVwk";
    const LABEL: &'static [u8] = kdf::WRAP;
    const SECRET_BYTES: usize = VOLUME_KEY_BYTES;
}

/// Which key a blob says it was wrapped with. Authenticated only by unwrapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrapHeader {
    /// Id of the key-encryption key.
    pub key_id: [u8; 16],
    /// Version of the key-encryption key.
    pub key_version: u32,
}

/// Why a wrapped key was not unwrapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WrapError {
    /// The blob does not begin as a wrapped key of this kind does.
    #[error("this is not a wrapped key of the kind expected: its first four bytes differ")]
    NotWrapped,
    /// The blob was written by a newer program.
    #[error(
        "the wrapped key has format {found} and this program reads format {FORMAT_VERSION}; use a newer one"
    )]
    NewerFormat {
        /// Format that the blob names.
        found: u8,
    },
    /// The blob is cut off, or something follows it.
    #[error("the wrapped key has {got} bytes instead of {expected}: it was cut off or mixed up")]
    Length {
        /// Bytes of a blob of this kind.
        expected: usize,
        /// Bytes of this one.
        got: usize,
    },
    /// Tag mismatch.
    #[error(
        "the wrapped key is refused: it was wrapped with another key, or for another encryption \
         context (another volume or data key), or has been altered"
    )]
    Refused,
    /// The unwrapped volume key has equal halves.
    #[error(
        "the unwrapped volume key is refused: its two halves are equal, which makes AES-XTS \
         insecure; it was not made by this program"
    )]
    HalvesEqual,
    /// There is no locked memory for the key.
    #[error(transparent)]
    Locked(#[from] LockedError),
}

impl From<HalvesEqual> for WrapError {
    fn from(_: HalvesEqual) -> Self {
        Self::HalvesEqual
    }
}

/// Wraps a volume key with `kek`, which is known to the outside as `kek_id` and `kek_version`.
pub fn wrap(
    kek: &KeyEncryptionKey,
    kek_id: &[u8; 16],
    kek_version: u32,
    key: &VolumeKey,
    context: &EncryptionContext,
) -> Vec<u8> {
    let header = WrapHeader {
        key_id: *kek_id,
        key_version: kek_version,
    };
    seal::<VolumeKeyFormat>(kek, header, fresh_nonce(), key.bytes(), context)
}

/// Unwraps a volume key into locked memory and compares its halves.
///
/// # Errors
/// A blob that is malformed, of a newer format, or does not authenticate under `kek` and `context`;
/// equal halves; no locked memory.
pub fn unwrap(
    memory: &Arc<KeyMemory>,
    kek: &KeyEncryptionKey,
    blob: &[u8],
    context: &EncryptionContext,
) -> Result<VolumeKey, WrapError> {
    VolumeKey::fill(memory, |bytes| {
        open::<VolumeKeyFormat>(kek, blob, context, bytes)
    })
}

/// Which key a wrapped volume key names, to look it up.
///
/// # Errors
/// A blob that is malformed or of a newer format.
pub fn header(blob: &[u8]) -> Result<WrapHeader, WrapError> {
    parse::<VolumeKeyFormat>(blob)
}

pub(crate) fn fresh_nonce() -> [u8; NONCE_BYTES] {
    let mut nonce = [0; NONCE_BYTES];
    random(&mut nonce);
    nonce
}

/// Bytes of the secret in a blob, if it is as long as one.
pub(crate) fn secret_bytes(blob: &[u8]) -> Option<usize> {
    blob.len().checked_sub(HEADER_BYTES + TAG_BYTES)
}

/// Encrypts `secret`, which lies in a slot, under `kek`. `nonce` must never have been used before.
pub(crate) fn seal<F: Format>(
    kek: &KeyEncryptionKey,
    header: WrapHeader,
    nonce: [u8; NONCE_BYTES],
    secret: &[u8],
    context: &EncryptionContext,
) -> Vec<u8> {
    assert!(
        F::may_have(secret.len()),
        "the secret has the length of its format"
    );
    let mut blob = Vec::with_capacity(HEADER_BYTES + secret.len() + TAG_BYTES);
    blob.extend_from_slice(&F::MAGIC);
    blob.push(FORMAT_VERSION);
    blob.extend_from_slice(&header.key_id);
    blob.extend_from_slice(&header.key_version.to_be_bytes());
    blob.extend_from_slice(&nonce);
    let associated = associated_data(&blob, context);
    blob.resize(HEADER_BYTES + secret.len(), 0);
    let tag = with_cleared_residue(|| {
        let key_and_iv = kdf::derive::<KEY_AND_IV_BYTES>(kek.bytes(), &nonce, F::LABEL);
        gcm::seal(&key_and_iv, &associated, secret, &mut blob[HEADER_BYTES..])
    });
    blob.extend_from_slice(&tag);
    blob
}

/// Decrypts `blob` into `secret`, which lies in a slot.
pub(crate) fn open<F: Format>(
    kek: &KeyEncryptionKey,
    blob: &[u8],
    context: &EncryptionContext,
    secret: &mut [u8],
) -> Result<(), WrapError> {
    parse::<F>(blob)?;
    let (header, sealed) = blob.split_at(HEADER_BYTES);
    let (cipher, tag) = sealed
        .split_last_chunk::<TAG_BYTES>()
        .expect("`parse` saw the length");
    let associated = associated_data(header, context);
    with_cleared_residue(|| {
        let nonce = &header[NONCE_AT..];
        let key_and_iv = kdf::derive::<KEY_AND_IV_BYTES>(kek.bytes(), nonce, F::LABEL);
        gcm::open(&key_and_iv, &associated, cipher, tag, secret)
    })
    .map_err(|gcm::TagMismatch| WrapError::Refused)
}

/// Checks the form of a blob. Kind and format come first: what they are decides what else is wrong.
pub(crate) fn parse<F: Format>(blob: &[u8]) -> Result<WrapHeader, WrapError> {
    let length = WrapError::Length {
        expected: F::BLOB_BYTES,
        got: blob.len(),
    };
    let Some((magic, rest)) = blob.split_first_chunk::<4>() else {
        return Err(length);
    };
    if *magic != F::MAGIC {
        return Err(WrapError::NotWrapped);
    }
    match rest.first() {
        None => return Err(length),
        Some(&FORMAT_VERSION) => {}
        Some(&found) => return Err(WrapError::NewerFormat { found }),
    }
    if !secret_bytes(blob).is_some_and(F::may_have) {
        return Err(length);
    }
    let field = |at: usize, bytes: usize| &blob[at..at + bytes];
    Ok(WrapHeader {
        key_id: field(KEY_ID_AT, 16).try_into().expect("16 bytes"),
        key_version: u32::from_be_bytes(field(KEY_VERSION_AT, 4).try_into().expect("4 bytes")),
    })
}

fn associated_data(header: &[u8], context: &EncryptionContext) -> Vec<u8> {
    [header, &context.canonical()].concat()
}

#[cfg(test)]
mod refusals;
