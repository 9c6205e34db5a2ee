//! The recovery key: an RSA pair whose public half encrypts the key of a backup, and whose private half is kept elsewhere. By
//! AWS-LC.
//!
//! What always holds: a pair of fewer than 3072 bits encrypts nothing; a public key is taken in the one form that it is known by,
//! so its digest means one key; what is decrypted goes into locked memory at once.
//!
//! What it cannot promise is said in `unwrapping.rs`: AWS-LC has buffers of its own.

use std::sync::Arc;

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rsa::{
    OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PrivateDecryptingKey, PublicEncryptingKey,
};
use sealvol_control::keychild::WrappingAlgorithm;
use sealvol_crypto::locked::KeyMemory;
use sealvol_crypto::{
    KEY_ENCRYPTION_KEY_BYTES, KeyEncryptionKey, SecretBytes, clear_residue, sha256,
};

use super::super::unwrapping::{self, UnwrapError};
use crate::Refusal;

/// Bits of a recovery key.
const BITS: [usize; 2] = [3072, 4096];

/// The public half.
pub(crate) struct RecoveryKey {
    key: OaepPublicEncryptingKey,
    fingerprint: [u8; 32],
}

impl RecoveryKey {
    /// From a SubjectPublicKeyInfo (RFC 5280).
    pub(crate) fn from_der(der: &[u8]) -> Result<Self, Refusal> {
        let bad = |reason| Refusal::BadRecoveryKey { reason };
        let key = PublicEncryptingKey::from_der(der)
            .map_err(|_| bad("it is not the public key of an RSA pair"))?;
        if !BITS.contains(&key.key_size_bits()) {
            return Err(bad("it has neither 3072 nor 4096 bits"));
        }
        if fingerprint(&key).as_ref() != Some(&sha256(&[der])) {
            return Err(bad("it is not written as OpenSSL writes one"));
        }
        let key =
            OaepPublicEncryptingKey::new(key).map_err(|_| bad("it cannot encrypt by RSA-OAEP"))?;
        Ok(Self {
            key,
            fingerprint: sha256(&[der]),
        })
    }

    /// SHA-256 of it.
    pub(crate) fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    /// Encrypts a key by RSA-OAEP with SHA-256, for the digest and for MGF1 (RFC 8017).
    pub(super) fn wrap(
        &self,
        key: &KeyEncryptionKey,
        memory: &Arc<KeyMemory>,
    ) -> Result<Vec<u8>, Refusal> {
        let wrapped = self.wrap_in_place(key, memory);
        clear_residue();
        wrapped
    }

    #[inline(never)]
    fn wrap_in_place(
        &self,
        key: &KeyEncryptionKey,
        memory: &Arc<KeyMemory>,
    ) -> Result<Vec<u8>, Refusal> {
        let bad = || Refusal::BadRecoveryKey {
            reason: "it does not encrypt",
        };
        let mut plain = SecretBytes::new(memory)?;
        let mut bytes = plain
            .grow(KEY_ENCRYPTION_KEY_BYTES)
            .expect("a slot is larger than a key");
        key.write_to(&mut bytes)
            .expect("a slice of its size takes a key");
        let mut wrapped = vec![0; self.key.ciphertext_size()];
        let encrypted =
            self.key
                .encrypt(&OAEP_SHA256_MGF1SHA256, plain.as_ref(), &mut wrapped, None);
        encrypted.map_err(|_| bad())?;
        Ok(wrapped)
    }
}

/// Why a private key does not decrypt the key of a backup.
#[derive(Debug)]
pub(crate) enum NotOpened {
    /// It is no private key of an RSA pair.
    NoKey,
    /// It belongs to another public key than the one of the backup.
    OtherKey([u8; 32]),
    /// What is encrypted was changed.
    Changed,
    /// There is no locked memory.
    Refused(Refusal),
}

/// Decrypts the key of a backup that was made for the recovery key of that fingerprint, by a private key in PKCS #8.
pub(crate) fn unwrap(
    private_key: &[u8],
    wrapped: &[u8],
    recovery_key: &[u8; 32],
    memory: &Arc<KeyMemory>,
) -> Result<KeyEncryptionKey, NotOpened> {
    let own =
        PrivateDecryptingKey::from_pkcs8(private_key).map(|key| fingerprint(&key.public_key()));
    clear_residue();
    let own = own.ok().flatten().ok_or(NotOpened::NoKey)?;
    if own != *recovery_key {
        return Err(NotOpened::OtherKey(own));
    }
    let algorithm = WrappingAlgorithm::RsaesOaepSha256;
    unwrapping::decrypt(private_key, algorithm, wrapped, memory).map_err(|error| match error {
        UnwrapError::Key(error) => NotOpened::Refused(super::key_error(error)),
        UnwrapError::Length | UnwrapError::NotEncryptedSo => NotOpened::Changed,
    })
}

fn fingerprint(key: &PublicEncryptingKey) -> Option<[u8; 32]> {
    let der: PublicKeyX509Der<'_> = key.as_der().ok()?;
    Some(sha256(&[der.as_ref()]))
}
