//! The volume key: 512 bits, K1 for the data and K2 for the tweak of AES-256-XTS.
//!
//! What always holds: the 64 bytes lie in a locked slot, from the generator, the stream or the
//! unwrapping until they are wiped; K1 ≠ K2 was verified in constant time on the way in (IEEE
//! 1619-2018 leaves equal halves insecure; FIPS 140-3 IG C.I requires the check).
//!
//! A key is never cloned, printed, compared or returned by value. Its bytes leave the process by
//! [`VolumeKey::write_to`] only.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;

use crate::digest::constant_time_eq;
use crate::kdf;
use crate::locked::{KeyMemory, LockedError, Slot};
use crate::random::{self, RandomError};
use crate::residue::with_cleared_residue;
use crate::sector_cipher::SectorCipher;

/// Bytes of a volume key: K1 ‖ K2.
pub const VOLUME_KEY_BYTES: usize = 64;

/// Why a key could not be made or moved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// There is no locked memory for it.
    #[error(transparent)]
    Locked(#[from] LockedError),
    /// The generator failed.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// K1 = K2.
    #[error(
        "the volume key is refused: its two halves are equal, which makes AES-XTS insecure; no \
         sound generator makes such a key, so distrust where it came from"
    )]
    HalvesEqual,
    /// The source ended before the key did.
    #[error("the key source ended after {got} of {expected} bytes; nothing was accepted")]
    Short {
        /// Bytes of a whole key.
        expected: usize,
        /// Bytes before the end.
        got: usize,
    },
    /// The source has more bytes than a key.
    #[error("the key source has more than the {expected} bytes of a key: it is something else")]
    Long {
        /// Bytes of a whole key.
        expected: usize,
    },
    /// The source could not be read.
    #[error("cannot read the key from its source: {0}")]
    Read(#[source] io::Error),
    /// The sink could not be written.
    #[error("cannot write the key to its sink: {0}")]
    Write(#[source] io::Error),
}

/// 32 bytes that identify a volume key without telling anything about it: HKDF of the key.
///
/// Not secret; an unwrapped key with another commitment than the one on record is refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Commitment(pub [u8; 32]);

impl fmt::Debug for Commitment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Commitment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A volume key in locked memory. See the module for what always holds.
pub struct VolumeKey {
    /// K1 ‖ K2, then zeros.
    slot: Slot,
}

impl VolumeKey {
    /// A new key from the kernel's generator, written straight into locked memory.
    ///
    /// # Errors
    /// No locked memory, no generator, or (never seen with a sound generator) equal halves.
    pub fn generate(memory: &Arc<KeyMemory>) -> Result<Self, KeyError> {
        Self::fill(memory, |bytes| Ok(random::fill(bytes)?))
    }

    /// Reads exactly 64 bytes straight into locked memory; what follows them is left unread.
    ///
    /// `source` must not buffer: a buffer would keep a copy.
    ///
    /// # Errors
    /// No locked memory, a source that fails or ends early, or equal halves.
    pub fn read_from(memory: &Arc<KeyMemory>, source: &mut impl Read) -> Result<Self, KeyError> {
        Self::fill(memory, |bytes| read_exact(source, bytes))
    }

    /// Reads the whole of `source`, which must be exactly 64 bytes, straight into locked memory.
    ///
    /// # Errors
    /// As [`Self::read_from`]; a source that goes on.
    pub fn read_whole(memory: &Arc<KeyMemory>, source: &mut impl Read) -> Result<Self, KeyError> {
        Self::fill(memory, |bytes| {
            read_exact(source, bytes)?;
            match read_exact(source, &mut [0]) {
                Err(KeyError::Short { .. }) => Ok(()),
                Ok(()) => Err(KeyError::Long {
                    expected: VOLUME_KEY_BYTES,
                }),
                Err(other) => Err(other),
            }
        })
    }

    /// Writes the 64 bytes of the key, straight from locked memory.
    ///
    /// The one way out of the process. Its one caller is the key child: for its key socket, and for a message to a key
    /// service that is to wrap the key anew.
    ///
    /// # Errors
    /// When the sink refuses the bytes.
    pub fn write_to(&self, sink: &mut impl Write) -> Result<(), KeyError> {
        sink.write_all(self.bytes()).map_err(KeyError::Write)
    }

    /// The commitment to this key.
    pub fn commitment(&self) -> Commitment {
        with_cleared_residue(|| Commitment(*kdf::derive(self.bytes(), &[], kdf::COMMITMENT)))
    }

    /// Expands the key into round keys and MAC keys, in the same slot; the 64 bytes are wiped.
    pub fn expand(self) -> SectorCipher {
        let commitment = self.commitment();
        SectorCipher::expand(self.slot, commitment)
    }

    /// The one entry for key bytes: `source` fills the slot in place, then the halves are compared.
    pub(crate) fn fill<E: From<LockedError> + From<HalvesEqual>>(
        memory: &KeyMemory,
        source: impl FnOnce(&mut [u8; VOLUME_KEY_BYTES]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut slot = memory.slot()?;
        with_cleared_residue(|| {
            let bytes = slot
                .bytes_mut()
                .first_chunk_mut()
                .expect("a slot is larger than a key");
            source(bytes)?;
            let (k1, k2) = bytes.split_at(VOLUME_KEY_BYTES / 2);
            if constant_time_eq(k1, k2) {
                return Err(E::from(HalvesEqual));
            }
            Ok(())
        })?;
        Ok(Self { slot })
    }

    /// K1 ‖ K2, in the slot.
    pub(crate) fn bytes(&self) -> &[u8; VOLUME_KEY_BYTES] {
        self.slot
            .bytes()
            .first_chunk()
            .expect("a slot is larger than a key")
    }
}

/// K1 = K2, before it is known whose error that is.
pub(crate) struct HalvesEqual;

impl From<HalvesEqual> for KeyError {
    fn from(_: HalvesEqual) -> Self {
        Self::HalvesEqual
    }
}

/// Fills `bytes`, which lie in a slot, from `source`; interrupted reads are repeated.
pub(crate) fn read_exact(source: &mut impl Read, bytes: &mut [u8]) -> Result<(), KeyError> {
    let expected = bytes.len();
    let mut got = 0;
    while got < expected {
        match source.read(&mut bytes[got..]) {
            Ok(0) => return Err(KeyError::Short { expected, got }),
            Ok(count) => got += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(KeyError::Read(error)),
        }
    }
    Ok(())
}
