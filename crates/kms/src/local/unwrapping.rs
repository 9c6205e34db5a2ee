//! The pair of keys that key material is imported by, and what is encrypted to it: by AWS-LC.
//!
//! What always holds: decrypted material goes into locked memory at once and is a key of exactly 32 bytes there.
//!
//! What it cannot promise: AWS-LC keeps the private key, the block that RSA decrypts and its padding in buffers of its own, which
//! are ordinary memory and are wiped when they are freed. `SECURITY.md` says what that means.

use std::sync::Arc;

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrapPadded as _};
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey,
};
use sealvol_control::keychild::{WrappingAlgorithm, WrappingKeySpec};
use sealvol_crypto::locked::KeyMemory;
use sealvol_crypto::{KeyEncryptionKey, KeyError, SecretBytes, clear_residue};

use crate::Refusal;

/// Bytes of the AES key of [`WrappingAlgorithm::RsaAesKeyWrapSha256`].
const AES_KEY_BYTES: usize = 32;

/// A new pair.
pub(super) struct Pair {
    /// PKCS #8; wiped when it is dropped.
    pub(super) private_key: Pkcs8V1Der<'static>,
    /// SubjectPublicKeyInfo.
    pub(super) public_key: Vec<u8>,
}

/// Why material is not taken.
pub(super) enum UnwrapError {
    /// No locked memory for it.
    Key(KeyError),
    /// It is no key of 32 bytes.
    Length,
    /// It is not encrypted to this key, not by this algorithm, or was changed.
    NotEncryptedSo,
}

impl From<KeyError> for UnwrapError {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Short { .. } | KeyError::Long { .. } => Self::Length,
            error => Self::Key(error),
        }
    }
}

pub(super) fn new_pair(spec: WrappingKeySpec) -> Result<Pair, Refusal> {
    let size = match spec {
        WrappingKeySpec::Rsa2048 => KeySize::Rsa2048,
        WrappingKeySpec::Rsa3072 => KeySize::Rsa3072,
        WrappingKeySpec::Rsa4096 => KeySize::Rsa4096,
    };
    let made = PrivateDecryptingKey::generate(size).and_then(|key| {
        let public_key: PublicKeyX509Der<'_> = key.public_key().as_der()?;
        Ok(Pair {
            private_key: key.as_der()?,
            public_key: public_key.as_ref().to_vec(),
        })
    });
    clear_residue();
    made.map_err(|_| Refusal::ImportKeyNotMade)
}

/// Decrypts material by the private key in `private_key`.
pub(super) fn decrypt(
    private_key: &[u8],
    algorithm: WrappingAlgorithm,
    material: &[u8],
    memory: &Arc<KeyMemory>,
) -> Result<KeyEncryptionKey, UnwrapError> {
    let decrypted = decrypt_in_place(private_key, algorithm, material, memory);
    clear_residue();
    decrypted
}

#[inline(never)]
fn decrypt_in_place(
    private_key: &[u8],
    algorithm: WrappingAlgorithm,
    material: &[u8],
    memory: &Arc<KeyMemory>,
) -> Result<KeyEncryptionKey, UnwrapError> {
    let not_so = |_| UnwrapError::NotEncryptedSo;
    let private_key = PrivateDecryptingKey::from_pkcs8(private_key)
        .map_err(|_| UnwrapError::NotEncryptedSo)
        .and_then(|key| OaepPrivateDecryptingKey::new(key).map_err(not_so))?;
    let bytes = private_key.key_size_bytes();
    let (by_rsa, rest) = material
        .split_at_checked(bytes)
        .ok_or(UnwrapError::NotEncryptedSo)?;
    let mut slot = SecretBytes::new(memory).map_err(KeyError::from)?;
    let opened = slot.grow(bytes).map_err(|_| UnwrapError::Length)?;
    let opened = private_key
        .decrypt(&OAEP_SHA256_MGF1SHA256, by_rsa, opened, None)
        .map_err(not_so)?;
    match algorithm {
        WrappingAlgorithm::RsaesOaepSha256 if rest.is_empty() => {
            Ok(KeyEncryptionKey::read_from(memory, &mut &*opened)?)
        }
        WrappingAlgorithm::RsaAesKeyWrapSha256 if opened.len() == AES_KEY_BYTES => {
            let aes = AesKek::new(&AES_256, opened).map_err(not_so)?;
            let mut slot = SecretBytes::new(memory).map_err(KeyError::from)?;
            let unwrapped = slot.grow(rest.len()).map_err(|_| UnwrapError::Length)?;
            let key = aes.unwrap_with_padding(rest, unwrapped).map_err(not_so)?;
            Ok(KeyEncryptionKey::read_from(memory, &mut &*key)?)
        }
        _ => Err(UnwrapError::NotEncryptedSo),
    }
}
