//! A volume key at work: sector encryption and the MACs over the volume's own metadata.
//!
//! All that is secret (720 bytes of round keys, two MAC keys) lies in one slot and is wiped with it.
//! Cipher calls leave round keys in registers of the calling thread; a worker clears them
//! with [`clear_residue`](crate::clear_residue) before it sleeps. On the stack they leave none, and
//! MAC calls clear up at once: what either left there was seen to reach the heap before their caller
//! cleared, in the unused bytes of values that were moved there.
//!
//! XTS hides content; it detects no change. What must not be changed is under a MAC.

use std::fmt;

use cipher::inout::InOutBuf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::kdf;
use crate::locked::{Placed, Slot};
use crate::residue::with_cleared_residue;
use crate::volume_key::Commitment;
use crate::xts::XtsKeys;

/// Bytes that are encrypted under one tweak: the sector size of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UnitSize {
    /// 512 bytes.
    B512,
    /// 4096 bytes.
    B4096,
}

/// A number that is not the size of a data unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a sector size; 512 and 4096 are")]
pub struct UnitSizeError(pub u32);

impl UnitSize {
    /// The size in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::B512 => 512,
            Self::B4096 => 4096,
        }
    }
}

impl TryFrom<u32> for UnitSize {
    type Error = UnitSizeError;

    fn try_from(bytes: u32) -> Result<Self, UnitSizeError> {
        match bytes {
            512 => Ok(Self::B512),
            4096 => Ok(Self::B4096),
            other => Err(UnitSizeError(other)),
        }
    }
}

impl From<UnitSize> for u32 {
    fn from(unit: UnitSize) -> Self {
        match unit {
            UnitSize::B512 => 512,
            UnitSize::B4096 => 4096,
        }
    }
}

impl fmt::Display for UnitSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.bytes(), f)
    }
}

/// What is derived from a volume key and kept secret.
struct Schedules {
    xts: XtsKeys,
    superblock_mac: [u8; 32],
    map_mac: [u8; 32],
}

/// The expanded volume key. See the module.
pub struct SectorCipher {
    schedules: Placed<Schedules>,
    commitment: Commitment,
}

impl SectorCipher {
    /// Expands the volume key at the start of `slot`, in place.
    pub(crate) fn expand(slot: Slot, commitment: Commitment) -> Self {
        let schedules = with_cleared_residue(|| {
            slot.place(|bytes| {
                let key = bytes.first_chunk().expect("a slot is larger than a key");
                Schedules {
                    xts: XtsKeys::new(key),
                    superblock_mac: *kdf::derive(key, &[], kdf::SUPERBLOCK_MAC),
                    map_mac: *kdf::derive(key, &[], kdf::MAP_MAC),
                }
            })
        });
        Self {
            schedules,
            commitment,
        }
    }

    /// Encrypts whole data units from `plain` into `cipher`; the first has the number `first_unit`,
    /// counted in data units from the start of the volume.
    ///
    /// # Panics
    /// When the lengths differ or are not whole data units.
    pub fn encrypt(&self, unit: UnitSize, first_unit: u64, plain: &[u8], cipher: &mut [u8]) {
        self.schedules
            .xts
            .encrypt(unit.bytes(), first_unit.into(), pair(plain, cipher));
    }

    /// Encrypts whole data units in place; otherwise as [`SectorCipher::encrypt`].
    ///
    /// # Panics
    /// When the length is not whole data units.
    pub fn encrypt_in_place(&self, unit: UnitSize, first_unit: u64, data: &mut [u8]) {
        self.schedules
            .xts
            .encrypt(unit.bytes(), first_unit.into(), data.into());
    }

    /// Decrypts whole data units from `cipher` into `plain`.
    ///
    /// # Panics
    /// When the lengths differ or are not whole data units.
    pub fn decrypt(&self, unit: UnitSize, first_unit: u64, cipher: &[u8], plain: &mut [u8]) {
        self.schedules
            .xts
            .decrypt(unit.bytes(), first_unit.into(), pair(cipher, plain));
    }

    /// Decrypts whole data units in place.
    ///
    /// # Panics
    /// When the length is not whole data units.
    pub fn decrypt_in_place(&self, unit: UnitSize, first_unit: u64, data: &mut [u8]) {
        self.schedules
            .xts
            .decrypt(unit.bytes(), first_unit.into(), data.into());
    }

    /// MAC of a superblock, its parts taken one after the other: HMAC-SHA256 (RFC 2104).
    ///
    /// Compare with [`constant_time_eq`](crate::constant_time_eq).
    pub fn superblock_mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        with_cleared_residue(|| hmac_sha256(&self.schedules.superblock_mac, parts))
    }

    /// MAC of a map page, its parts taken one after the other: HMAC-SHA256 cut to 16 bytes
    /// (RFC 2104 section 5; half the hash is the least that it allows).
    ///
    /// Compare with [`constant_time_eq`](crate::constant_time_eq).
    pub fn map_mac(&self, parts: &[&[u8]]) -> [u8; 16] {
        let mac = with_cleared_residue(|| hmac_sha256(&self.schedules.map_mac, parts));
        *mac.first_chunk().expect("16 of 32 bytes")
    }

    /// The commitment to the key, as [`VolumeKey::commitment`](crate::VolumeKey::commitment).
    pub fn commitment(&self) -> Commitment {
        self.commitment
    }
}

fn pair<'inp, 'out>(input: &'inp [u8], out: &'out mut [u8]) -> InOutBuf<'inp, 'out, u8> {
    assert_eq!(
        input.len(),
        out.len(),
        "source and destination of the cipher have one length"
    );
    InOutBuf::new(input, out).expect("the lengths are equal")
}

/// HMAC-SHA256; a frame of its own, which `clear_residue` reaches.
#[inline(never)]
pub(crate) fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}
