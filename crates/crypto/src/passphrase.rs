//! A key-encryption key from a passphrase: Argon2id (RFC 9106), version 0x13.
//!
//! The passphrase is read into a locked slot and wiped. The memory that Argon2 fills is derived from
//! it and far larger than what may be locked: it is ordinary memory, wiped before it is freed. While
//! the derivation runs it could be swapped out; whoever reads it there learns what a guess of the
//! passphrase must produce, not the passphrase.

use std::io::Read;
use std::sync::Arc;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use zeroize::Zeroize;

use crate::key_encryption_key::{KEY_ENCRYPTION_KEY_BYTES, KeyEncryptionKey, read_to_end};
use crate::locked::{KeyMemory, SLOT_BYTES};
use crate::volume_key::KeyError;

/// Longest passphrase in bytes: a slot, less one byte that tells a longer one.
pub const MAX_PASSPHRASE_BYTES: usize = SLOT_BYTES - 1;

/// Shortest salt in bytes (RFC 9106 section 3.1 recommends 16).
pub const MIN_SALT_BYTES: usize = 16;

/// Most memory that stored parameters may ask for, in KiB: 4 GiB.
const MAX_MEMORY_KIB: u32 = 4 << 20;

/// Cost of a guess. Not secret; stored beside what the key wraps, with the salt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Argon2Params {
    /// Memory in KiB; at least 8 for each lane.
    pub memory_kib: u32,
    /// Passes over the memory; at least 1.
    pub iterations: u32,
    /// Lanes; at least 1.
    pub parallelism: u32,
}

impl Argon2Params {
    /// The second recommended option of RFC 9106 section 4: 64 MiB, 3 passes, 4 lanes.
    pub const RECOMMENDED: Self = Self {
        memory_kib: 64 << 10,
        iterations: 3,
        parallelism: 4,
    };
}

/// Why a passphrase gave no key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PassphraseError {
    /// The passphrase could not be read, or there is no locked memory.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Nothing before the end of the source or its line end.
    #[error("the passphrase is empty; write it to the file descriptor before closing it")]
    Empty,
    /// More bytes than a slot takes.
    #[error("the passphrase is longer than {MAX_PASSPHRASE_BYTES} bytes")]
    TooLong,
    /// The salt is too short.
    #[error("the salt has {got} bytes and needs {MIN_SALT_BYTES}")]
    ShortSalt {
        /// Bytes of the salt.
        got: usize,
    },
    /// Argon2 does not take these parameters.
    #[error("Argon2id does not take {params:?}: {reason}")]
    Params {
        /// The parameters.
        params: Argon2Params,
        /// What is wrong with them.
        reason: String,
    },
    /// There is not as much memory as the parameters ask for.
    #[error(
        "Argon2id needs {memory_kib} KiB of memory and cannot have them; free some, or choose less when the key is made"
    )]
    Memory {
        /// KiB asked for.
        memory_kib: u32,
    },
}

impl KeyEncryptionKey {
    /// Derives a key from the passphrase that `source` gives up to its end. One line end (LF or
    /// CR LF) at the end is not part of the passphrase.
    ///
    /// # Errors
    /// A passphrase that is empty, too long or unreadable; a short salt; parameters that Argon2 does
    /// not take; no memory.
    pub fn from_passphrase(
        memory: &Arc<KeyMemory>,
        source: &mut impl Read,
        salt: &[u8],
        params: Argon2Params,
    ) -> Result<Self, PassphraseError> {
        if salt.len() < MIN_SALT_BYTES {
            return Err(PassphraseError::ShortSalt { got: salt.len() });
        }
        let argon2 = argon2(params)?;
        let mut blocks = allocate(params.memory_kib)?;
        let mut slot = memory.slot().map_err(KeyError::from)?;
        let got = read_to_end(source, slot.bytes_mut())?;
        if got > MAX_PASSPHRASE_BYTES {
            return Err(PassphraseError::TooLong);
        }
        let passphrase = without_line_end(&slot.bytes()[..got]);
        if passphrase.is_empty() {
            return Err(PassphraseError::Empty);
        }
        Self::fill(memory, |key| {
            let result = argon2
                .hash_password_into_with_memory(passphrase, salt, key, &mut blocks)
                .map_err(|reason| refused(params, &reason));
            blocks.iter_mut().for_each(Zeroize::zeroize);
            result
        })
    }
}

impl From<crate::locked::LockedError> for PassphraseError {
    fn from(error: crate::locked::LockedError) -> Self {
        Self::Key(error.into())
    }
}

fn argon2(params: Argon2Params) -> Result<Argon2<'static>, PassphraseError> {
    if params.memory_kib > MAX_MEMORY_KIB {
        let reason = format!("more than {MAX_MEMORY_KIB} KiB of memory");
        return Err(PassphraseError::Params { params, reason });
    }
    let Argon2Params {
        memory_kib,
        iterations,
        parallelism,
    } = params;
    let inner = Params::new(
        memory_kib,
        iterations,
        parallelism,
        Some(KEY_ENCRYPTION_KEY_BYTES),
    )
    .map_err(|reason| refused(params, &reason))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, inner))
}

fn refused(params: Argon2Params, reason: &argon2::Error) -> PassphraseError {
    PassphraseError::Params {
        params,
        reason: reason.to_string(),
    }
}

/// The memory that Argon2 fills, one block of 1 KiB for each KiB.
fn allocate(memory_kib: u32) -> Result<Vec<Block>, PassphraseError> {
    let mut blocks = Vec::new();
    blocks
        .try_reserve_exact(memory_kib as usize)
        .map_err(|_| PassphraseError::Memory { memory_kib })?;
    blocks.resize(memory_kib as usize, Block::new());
    Ok(blocks)
}

fn without_line_end(bytes: &[u8]) -> &[u8] {
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    bytes.strip_suffix(b"\r").unwrap_or(bytes)
}
