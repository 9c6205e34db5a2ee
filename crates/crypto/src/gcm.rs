//! AES-256-GCM (NIST SP 800-38D) with a 96-bit IV and a 128-bit tag, for wrapped keys.
//!
//! Key and IV of a call are derived from a fresh 256-bit nonce, so no pair of them is ever used
//! twice. The key schedules of the `aes-gcm` crate live on the stack: both functions are called
//! behind the boundary of `residue.rs`.

use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{AeadInOut, Aes256Gcm, KeyInit};
use zeroize::Zeroizing;

/// Bytes of the tag.
pub(crate) const TAG_BYTES: usize = 16;

/// Bytes of key and IV.
pub(crate) const KEY_AND_IV_BYTES: usize = 32 + 12;

/// A key of 32 bytes and an IV of 12, in that order, as HKDF gives them.
pub(crate) type KeyAndIv = Zeroizing<[u8; KEY_AND_IV_BYTES]>;

/// The ciphertext did not authenticate.
pub(crate) struct TagMismatch;

/// Encrypts `plain` into `cipher`, which has the same length, and gives the tag.
pub(crate) fn seal(
    key_and_iv: &KeyAndIv,
    associated: &[u8],
    plain: &[u8],
    cipher: &mut [u8],
) -> [u8; TAG_BYTES] {
    let (key, iv) = split(key_and_iv);
    let buffers = InOutBuf::new(plain, cipher).expect("plaintext and ciphertext have one length");
    Aes256Gcm::new(key.into())
        .encrypt_inout_detached(iv.into(), associated, buffers)
        .expect("a key is far below the length limit of GCM")
        .into()
}

/// Verifies the tag, then decrypts `cipher` into `plain`; without it `plain` is left alone.
pub(crate) fn open(
    key_and_iv: &KeyAndIv,
    associated: &[u8],
    cipher: &[u8],
    tag: &[u8; TAG_BYTES],
    plain: &mut [u8],
) -> Result<(), TagMismatch> {
    let (key, iv) = split(key_and_iv);
    let buffers = InOutBuf::new(cipher, plain).expect("plaintext and ciphertext have one length");
    Aes256Gcm::new(key.into())
        .decrypt_inout_detached(iv.into(), associated, buffers, tag.into())
        .map_err(|_| TagMismatch)
}

fn split(key_and_iv: &KeyAndIv) -> (&[u8; 32], &[u8; 12]) {
    let key = key_and_iv.first_chunk().expect("44 bytes begin with 32");
    let iv = key_and_iv.last_chunk().expect("44 bytes end with 12");
    (key, iv)
}

#[cfg(test)]
mod vectors;
