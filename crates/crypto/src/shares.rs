//! Shares of a key-encryption key: any `threshold` of them give it back, and fewer say nothing of it (Shamir, 1979).
//!
//! ```text
//!   magic 4 │ format 1 │ threshold 1 │ count 1 │ index 1 │ set 16 │ check 32 │ value 32 │ checksum 32
//!   value = f(index), byte by byte over GF(2^8): f(0) is the byte of the key, the other threshold - 1 coefficients are random
//! ```
//! Exact in `FORMATS.md`. A share is a secret like the key itself, though one alone is of no use.
//!
//! What always holds:
//! - key, coefficients and shares lie in locked slots, are made in place and wiped with them; no step takes a time, or reads
//!   a place, that depends on a byte of theirs;
//! - coefficients are uniformly random, zero included: leaving any value out would let fewer shares than the threshold rule
//!   out keys;
//! - shares that do not belong together, or of which one was damaged, give an error and never another key: `checksum` tells
//!   what happened to one, `set` which belong together, and `check`, made of the key, that what came out is the key.
//!
//! `check` is why fewer shares say nothing *but* whether a guess at the whole key is right: of 256 random bits nobody can
//! guess. What was split is not changed: the key is the same, and so former shares of it, of another set, still give it.

mod field;

use std::io::{Read, Write};
use std::sync::Arc;

use crate::digest::{constant_time_eq, sha256};
use crate::kdf;
use crate::key_encryption_key::{KEY_ENCRYPTION_KEY_BYTES, KeyEncryptionKey, read_to_end};
use crate::locked::{KeyMemory, LockedError, Slot};
use crate::random::{self, random};
use crate::residue::with_cleared_residue;
use crate::volume_key::KeyError;
use field::{invert, multiply};

/// Bytes of a share.
pub const SHARE_BYTES: usize = CHECKSUM_AT + 32;

/// Fewest shares that may be needed: one would be the key itself.
pub const THRESHOLD_MIN: u8 = 2;

/// Most shares of a set.
pub const SHARES_MAX: u8 = 10;

const MAGIC: [u8; 4] = *b"SVss";
const FORMAT_VERSION: u8 = 1;
const FORMAT_AT: usize = 4;
const THRESHOLD_AT: usize = 5;
const COUNT_AT: usize = 6;
const INDEX_AT: usize = 7;
const SET_AT: usize = 8;
const CHECK_AT: usize = 24;
const VALUE_AT: usize = 56;
const CHECKSUM_AT: usize = VALUE_AT + KEY_ENCRYPTION_KEY_BYTES;

/// Why there is no share.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShareError {
    /// It does not begin as a share does.
    #[error("this is no share: its first four bytes differ")]
    NotAShare,
    /// A newer program made it.
    #[error("has format {found}, and this program reads format {FORMAT_VERSION}")]
    NewerFormat {
        /// The format it names.
        found: u8,
    },
    /// It is cut off, or something follows it.
    #[error("has not the {SHARE_BYTES} bytes of a share: it was cut off or mixed up")]
    Length,
    /// The checksum does not fit.
    #[error("its checksum does not fit: a byte of it was changed")]
    Damaged,
    /// More are needed than there are, or other such nonsense.
    #[error(
        "{threshold} of {count} shares: a threshold is at least {THRESHOLD_MIN} and at most the number of shares, of which \
         there are at most {SHARES_MAX}"
    )]
    Numbers {
        /// How many are needed.
        threshold: u8,
        /// How many there are.
        count: u8,
    },
    /// There is none of that number.
    #[error("says that it is number {index} of {count}")]
    Index {
        /// The number.
        index: u8,
        /// How many there are.
        count: u8,
    },
    /// It cannot be read, made or written, or there is no locked memory.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl From<LockedError> for ShareError {
    fn from(error: LockedError) -> Self {
        Self::Key(error.into())
    }
}

/// Why shares give no key. `at` is the place, in the order in which they were given, of the one that does not fit the first.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CombineError {
    /// Another key, or the same key split another time.
    #[error("is of another set than the first share")]
    OtherSet {
        /// Which one.
        at: usize,
    },
    /// The same set, and yet it says otherwise how many are needed, how many there are, or what key it is of.
    #[error("says otherwise of its set than the first share does")]
    OtherNumbers {
        /// Which one.
        at: usize,
    },
    /// A share counts once.
    #[error("has the same number as another one")]
    Twice {
        /// Which one.
        at: usize,
        /// The one of that number before it.
        first: usize,
    },
    /// There are not as many as are needed.
    #[error("{have} shares, of which {needed} are needed")]
    TooFew {
        /// How many there are.
        have: usize,
        /// How many are needed.
        needed: usize,
    },
    /// What came out is not the key: one was changed by somebody who made its checksum anew.
    #[error("together they do not give the key that they say they are of")]
    OtherKey,
    /// There is no locked memory for it.
    #[error(transparent)]
    Locked(#[from] LockedError),
}

/// One share, in locked memory.
pub struct Share {
    /// The share as it is stored, then zeros.
    slot: Slot,
}

impl Share {
    /// Reads the whole of `source`, which must be one share, straight into locked memory.
    ///
    /// # Errors
    /// No locked memory; a source that fails, is no share, or a damaged one.
    pub fn read_from(memory: &Arc<KeyMemory>, source: &mut impl Read) -> Result<Self, ShareError> {
        let mut slot = memory.slot()?;
        let got = read_to_end(source, &mut slot.bytes_mut()[..=SHARE_BYTES])?;
        let share = Self { slot };
        let bytes = share.slot.bytes();
        // What it is comes first: that decides what else is wrong.
        if bytes[..FORMAT_AT] != MAGIC {
            return Err(ShareError::NotAShare);
        }
        if got > FORMAT_AT && bytes[FORMAT_AT] != FORMAT_VERSION {
            let found = bytes[FORMAT_AT];
            return Err(ShareError::NewerFormat { found });
        }
        if got != SHARE_BYTES {
            return Err(ShareError::Length);
        }
        let whole = with_cleared_residue(|| {
            let (body, checksum) = bytes[..SHARE_BYTES].split_at(CHECKSUM_AT);
            constant_time_eq(&sha256(&[body]), checksum)
        });
        if !whole {
            return Err(ShareError::Damaged);
        }
        let (count, index) = (share.count(), share.index());
        check_numbers(share.threshold(), count)?;
        if index == 0 || index > count {
            return Err(ShareError::Index { index, count });
        }
        Ok(share)
    }

    /// Writes the share, straight from locked memory.
    ///
    /// # Errors
    /// When the sink refuses the bytes.
    pub fn write_to(&self, sink: &mut impl Write) -> Result<(), KeyError> {
        sink.write_all(&self.slot.bytes()[..SHARE_BYTES])
            .map_err(KeyError::Write)
    }

    /// Which shares it belongs to. Not secret.
    #[must_use]
    pub fn set(&self) -> [u8; 16] {
        self.field(SET_AT)
    }

    /// Its number in the set, from 1.
    #[must_use]
    pub fn index(&self) -> u8 {
        self.slot.bytes()[INDEX_AT]
    }

    /// How many of the set give the key.
    #[must_use]
    pub fn threshold(&self) -> u8 {
        self.slot.bytes()[THRESHOLD_AT]
    }

    /// How many the set has.
    #[must_use]
    pub fn count(&self) -> u8 {
        self.slot.bytes()[COUNT_AT]
    }

    /// What of the key all shares of the set say.
    fn check(&self) -> [u8; 32] {
        self.field(CHECK_AT)
    }

    fn value(&self) -> &[u8; KEY_ENCRYPTION_KEY_BYTES] {
        self.slot.bytes()[VALUE_AT..CHECKSUM_AT]
            .first_chunk()
            .expect("as long as a key")
    }

    /// For what is not secret.
    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        *self.slot.bytes()[at..]
            .first_chunk()
            .expect("a slot is larger")
    }
}

impl KeyEncryptionKey {
    /// Splits this key into `count` shares of which any `threshold` give it back. Each call makes another set.
    ///
    /// # Errors
    /// Numbers that are not possible; no locked memory or no generator.
    pub fn split(
        &self,
        memory: &Arc<KeyMemory>,
        threshold: u8,
        count: u8,
    ) -> Result<Vec<Share>, ShareError> {
        check_numbers(threshold, count)?;
        let mut set = [0; 16];
        random(&mut set);
        let check = self.shared_check(&set);
        let mut slot = memory.slot()?;
        let coefficients =
            &mut slot.bytes_mut()[..usize::from(threshold - 1) * KEY_ENCRYPTION_KEY_BYTES];
        random::fill(coefficients).map_err(KeyError::from)?;
        let share = |index| -> Result<Share, ShareError> {
            let mut slot = memory.slot()?;
            let bytes = slot.bytes_mut();
            bytes[..FORMAT_AT].copy_from_slice(&MAGIC);
            bytes[FORMAT_AT..SET_AT].copy_from_slice(&[FORMAT_VERSION, threshold, count, index]);
            bytes[SET_AT..CHECK_AT].copy_from_slice(&set);
            bytes[CHECK_AT..VALUE_AT].copy_from_slice(&check);
            with_cleared_residue(|| {
                let value = &mut bytes[VALUE_AT..CHECKSUM_AT];
                evaluate(self.bytes(), coefficients, index, value);
                let (body, checksum) = bytes[..SHARE_BYTES].split_at_mut(CHECKSUM_AT);
                checksum.copy_from_slice(&sha256(&[&*body]));
            });
            Ok(Share { slot })
        };
        (1..=count).map(share).collect()
    }

    /// The key of which these are shares: of the first as many as are needed. Those that follow have to fit them, and are of
    /// no further use.
    ///
    /// # Errors
    /// Shares that do not belong together or are too few; one that somebody changed; no locked memory.
    pub fn combine(memory: &Arc<KeyMemory>, shares: &[Share]) -> Result<Self, CombineError> {
        let too_few = |needed: u8| CombineError::TooFew {
            have: shares.len(),
            needed: needed.into(),
        };
        let first = shares.first().ok_or_else(|| too_few(THRESHOLD_MIN))?;
        for (at, share) in shares.iter().enumerate() {
            if share.set() != first.set() {
                return Err(CombineError::OtherSet { at });
            }
            let said = |share: &Share| (share.threshold(), share.count(), share.check());
            if said(share) != said(first) {
                return Err(CombineError::OtherNumbers { at });
            }
            let same = |other: &Share| other.index() == share.index();
            if let Some(first) = shares[..at].iter().position(same) {
                return Err(CombineError::Twice { at, first });
            }
        }
        let needed = first.threshold();
        let shares = shares.get(..needed.into()).ok_or_else(|| too_few(needed))?;
        let key = Self::fill(memory, |bytes| {
            interpolate(shares, bytes);
            Ok::<_, LockedError>(())
        })?;
        if constant_time_eq(&key.shared_check(&first.set()), &first.check()) {
            Ok(key)
        } else {
            Err(CombineError::OtherKey)
        }
    }

    /// What all shares of a set say of their key, and only who has the key can tell. `set` is their set.
    fn shared_check(&self, set: &[u8; 16]) -> [u8; 32] {
        with_cleared_residue(|| *kdf::derive(self.bytes(), set, kdf::SHARED_CHECK))
    }
}

/// A threshold that protects something and can be met.
fn check_numbers(threshold: u8, count: u8) -> Result<(), ShareError> {
    if (THRESHOLD_MIN..=count).contains(&threshold) && count <= SHARES_MAX {
        Ok(())
    } else {
        Err(ShareError::Numbers { threshold, count })
    }
}

/// The polynomials with these constant terms and further coefficients (lowest first, as many bytes each), at `x`; Horner's scheme.
fn evaluate(constants: &[u8], coefficients: &[u8], x: u8, values: &mut [u8]) {
    values.fill(0);
    let terms = coefficients.chunks_exact(constants.len()).rev();
    for term in terms.chain([constants]) {
        for (value, byte) in values.iter_mut().zip(term) {
            *value = multiply(*value, x) ^ byte;
        }
    }
}

/// The polynomials that go through these shares, at 0; Lagrange's form. The indices are no secret, their values are.
fn interpolate(shares: &[Share], values: &mut [u8; KEY_ENCRYPTION_KEY_BYTES]) {
    values.fill(0);
    for share in shares {
        let x = share.index();
        let others = shares.iter().map(Share::index).filter(|&other| other != x);
        let weight = others.fold(1, |weight, other| {
            multiply(weight, multiply(other, invert(other ^ x)))
        });
        for (value, byte) in values.iter_mut().zip(share.value()) {
            *value ^= multiply(weight, *byte);
        }
    }
}

#[cfg(test)]
mod tests;
