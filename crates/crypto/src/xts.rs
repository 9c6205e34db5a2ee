//! AES-256-XTS (IEEE Std 1619-2018) over whole data units.
//!
//! ```text
//!   T(n, j) = AES-enc(K2, n as 16 bytes, little-endian) · x^j      n: data unit, j: block in it
//!   C = AES-enc(K1, P ⊕ T) ⊕ T                                     GF(2^128), x^128 = x^7+x^2+x+1
//! ```
//!
//! With data units of 512 bytes this is dm-crypt's `aes-xts-plain64`; with 4096 bytes the same with
//! `--sector-size 4096 --iv-large-sectors`.
//!
//! There are four ways to compute it: `avx512.rs` and `avx2.rs`, this one on registers of two blocks or of
//! one, where the processor has the instructions for it, and `portable.rs` everywhere. Which one is
//! chosen once for a key, when it is expanded: the widest. All are tested by the same vectors and against
//! each other. `--cfg sealvol_portable_xts` leaves the vector code out of a build.
//!
//! Measured beside AWS-LC in one run each, one core (`bench/cipher`), as times its speed:
//!
//! | | processor | 4096-byte units in bulk | one a call | 512-byte units in bulk | one a call |
//! |---|---|---|---|---|---|
//! | `avx512.rs` | Zen 4 | 1.1 | 1.02 to 1.1 | 1.8 to 2 | 1.06 to 1.5 |
//! | `avx2.rs`, two blocks | Zen 3 | 1.8 | 1.75 | 2.2 | 1.7 |
//! | `avx2.rs`, one block | Zen 3 | 0.96 | 0.95 | 1.27 | 1.2 |
//! | `portable.rs` | Zen 4, Zen 3 | 0.97, 0.5 | 0.83, 0.47 | 1.8, 0.65 | 0.5, 0.47 |
//!
//! Lengths are whole blocks: there is no ciphertext stealing here.

#[cfg(all(target_arch = "x86_64", not(sealvol_portable_xts)))]
mod avx2;
#[cfg(all(target_arch = "x86_64", not(sealvol_portable_xts)))]
mod avx512;
mod portable;
#[cfg(all(target_arch = "x86_64", not(sealvol_portable_xts)))]
mod schedule;

use cipher::inout::InOutBuf;

use crate::residue::with_cleared_stack;

/// Bytes of an AES block.
pub(crate) const BLOCK_BYTES: usize = 16;

/// The expanded key, as the code that was chosen for it has it.
pub(crate) enum XtsKeys {
    /// Four blocks a register.
    #[cfg(all(target_arch = "x86_64", not(sealvol_portable_xts)))]
    Avx512(avx512::Keys),
    /// Two blocks a register.
    #[cfg(all(target_arch = "x86_64", not(sealvol_portable_xts)))]
    Vaes(avx2::Keys<avx2::Two>),
    /// One block a register.
    #[cfg(all(target_arch = "x86_64", not(sealvol_portable_xts)))]
    AesNi(avx2::Keys<avx2::One>),
    /// For all.
    Portable(portable::Keys),
}

// Three schedules of 15 round keys each (a fourth would be the half of K2 that nothing uses), and
// which code they are for.
const _: () = assert!(size_of::<XtsKeys>() <= (3 * 15 + 1) * BLOCK_BYTES);

impl XtsKeys {
    /// Expands K1 ‖ K2. Call behind the boundary of `residue.rs`.
    pub(crate) fn new(key: &[u8; 64]) -> Self {
        #[cfg(all(target_arch = "x86_64", not(sealvol_portable_xts)))]
        if let Some(keys) = Self::avx512(key)
            .or_else(|| Self::vaes(key))
            .or_else(|| Self::aes_ni(key))
        {
            return keys;
        }
        Self::portable(key)
    }

    #[cfg(all(target_arch = "x86_64", not(sealvol_portable_xts)))]
    fn avx512(key: &[u8; 64]) -> Option<Self> {
        let (k1, k2) = halves(key);
        avx512::Keys::new(k1, k2).map(Self::Avx512)
    }

    #[cfg(all(target_arch = "x86_64", not(sealvol_portable_xts)))]
    fn vaes(key: &[u8; 64]) -> Option<Self> {
        let (k1, k2) = halves(key);
        avx2::Keys::new(k1, k2).map(Self::Vaes)
    }

    #[cfg(all(target_arch = "x86_64", not(sealvol_portable_xts)))]
    fn aes_ni(key: &[u8; 64]) -> Option<Self> {
        let (k1, k2) = halves(key);
        avx2::Keys::new(k1, k2).map(Self::AesNi)
    }

    fn portable(key: &[u8; 64]) -> Self {
        let (k1, k2) = halves(key);
        Self::Portable(portable::Keys::new(k1, k2))
    }

    /// The round keys, where they are plain bytes: what tests look for.
    #[cfg(all(test, target_arch = "x86_64"))]
    pub(crate) fn round_keys(&self) -> Option<Vec<[u8; BLOCK_BYTES]>> {
        match self {
            #[cfg(all(target_arch = "x86_64", not(sealvol_portable_xts)))]
            Self::Avx512(keys) => Some(keys.round_keys()),
            #[cfg(all(target_arch = "x86_64", not(sealvol_portable_xts)))]
            Self::Vaes(keys) => Some(keys.round_keys()),
            #[cfg(all(target_arch = "x86_64", not(sealvol_portable_xts)))]
            Self::AesNi(keys) => Some(keys.round_keys()),
            Self::Portable(_) => None,
        }
    }

    /// Encrypts whole data units of `unit_bytes`, the first of which has the number `first_unit`.
    ///
    /// # Panics
    /// When the data are not whole data units, or a data unit is not whole blocks.
    #[inline(never)]
    pub(crate) fn encrypt(&self, unit_bytes: usize, first_unit: u128, data: InOutBuf<'_, '_, u8>) {
        let units = Units::new(unit_bytes, first_unit, data.len());
        match self {
            #[cfg(all(target_arch = "x86_64", not(sealvol_portable_xts)))]
            Self::Avx512(keys) => keys.encrypt(units, data),
            #[cfg(all(target_arch = "x86_64", not(sealvol_portable_xts)))]
            Self::Vaes(keys) => keys.encrypt(units, data),
            #[cfg(all(target_arch = "x86_64", not(sealvol_portable_xts)))]
            Self::AesNi(keys) => keys.encrypt(units, data),
            Self::Portable(keys) => with_cleared_stack(|| keys.encrypt(units, data)),
        }
    }

    /// Decrypts what [`XtsKeys::encrypt`] made.
    ///
    /// # Panics
    /// As for `encrypt`.
    #[inline(never)]
    pub(crate) fn decrypt(&self, unit_bytes: usize, first_unit: u128, data: InOutBuf<'_, '_, u8>) {
        let units = Units::new(unit_bytes, first_unit, data.len());
        match self {
            #[cfg(all(target_arch = "x86_64", not(sealvol_portable_xts)))]
            Self::Avx512(keys) => keys.decrypt(units, data),
            #[cfg(all(target_arch = "x86_64", not(sealvol_portable_xts)))]
            Self::Vaes(keys) => keys.decrypt(units, data),
            #[cfg(all(target_arch = "x86_64", not(sealvol_portable_xts)))]
            Self::AesNi(keys) => keys.decrypt(units, data),
            Self::Portable(keys) => with_cleared_stack(|| keys.decrypt(units, data)),
        }
    }
}

/// K1 and K2.
fn halves(key: &[u8; 64]) -> (&[u8; 32], &[u8; 32]) {
    let (k1, k2) = key.split_at(32);
    let half = "half of 64 bytes";
    (k1.first_chunk().expect(half), k2.first_chunk().expect(half))
}

/// Data units that follow each other.
#[derive(Clone, Copy)]
struct Units {
    /// Blocks of one.
    unit_blocks: usize,
    /// How many.
    units: usize,
    /// The number of the first.
    first: u128,
}

impl Units {
    /// `len` bytes of data units.
    ///
    /// # Panics
    /// When they are not whole data units, or a data unit is not whole blocks.
    #[inline(always)]
    fn new(unit_bytes: usize, first: u128, len: usize) -> Self {
        assert!(
            unit_bytes != 0 && unit_bytes.is_multiple_of(BLOCK_BYTES),
            "a data unit of {unit_bytes} bytes is not whole blocks"
        );
        let units = len / unit_bytes;
        assert!(
            units * unit_bytes == len,
            "{len} bytes are not whole data units of {unit_bytes} bytes"
        );
        Self {
            unit_blocks: unit_bytes / BLOCK_BYTES,
            units,
            first,
        }
    }

    /// Bytes of all of them.
    fn bytes(self) -> usize {
        self.units * self.unit_blocks * BLOCK_BYTES
    }
}

#[cfg(test)]
pub(crate) mod vectors;
