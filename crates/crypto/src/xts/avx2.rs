//! AES-256-XTS with the AES instructions of x86-64 on registers of one block, or with VAES of two.
//!
//! ```text
//!   a register     1 block (AES-NI) or 2 blocks (VAES), for both of which AVX2 has the shifts
//!   a group        8 registers: what is in flight at once hides the latency of AES
//!   its tweaks     T · x^0 … T · x^7 or x^15; the next group's are these times x^8 or x^16: whole bytes
//!   T              of one or two data units in a register, made while those before them are ciphered
//! ```
//!
//! The same as `avx512.rs` for processors without AVX-512, where a vector instruction has half or a quarter of the
//! blocks and there are 16 registers: the tweaks of a group lie on the stack.
//!
//! What always holds: a value of a register type exists only where the processor has all instructions that are used on
//! it, and so does a [`Keys`]; no branch and no address depends on a key or on data. What stays in vector registers
//! is left to `clear_residue`; no round key is on the stack (`residue.rs` says why, and its tests look), so each use of
//! a schedule in a loop is one that the compiler can't make ready before it.
//!
//! It never touches a byte outside the source and the destination: what is less than a group goes through a copy.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::marker::PhantomData;

use cipher::inout::InOutBuf;

use super::schedule::{Schedule, Schedules, halves, hidden};
use super::{BLOCK_BYTES, Units};

/// Registers of a group.
const WIDTH: usize = 8;

/// The most blocks that a group has.
const GROUP_MAX: usize = 2 * WIDTH;

/// x^7 + x^2 + x + 1, as which x^128 comes back in.
const REDUCTION: i64 = 0x87;

/// The expanded key, on a processor that has the instructions for `R`.
pub(crate) struct Keys<R>(Schedules, PhantomData<R>);

#[expect(private_bounds, reason = "the two registers are this file's own")]
impl<R: Register> Keys<R> {
    /// Whether the processor and the system have what this file uses on such registers.
    pub(super) fn are_possible() -> bool {
        R::is_possible()
    }

    /// Expands K1 ‖ K2, or gives `None` where the instructions are missing.
    pub(super) fn new(k1: &[u8; 32], k2: &[u8; 32]) -> Option<Self> {
        let schedules = Self::are_possible().then(|| Schedules::expand(k1, k2))??;
        Some(Self(schedules, PhantomData))
    }

    /// All round keys, for tests that look for what must not be found.
    #[cfg(test)]
    pub(super) fn round_keys(&self) -> Vec<[u8; BLOCK_BYTES]> {
        self.0.round_keys()
    }

    /// Encrypts `units`, which are all of `data`.
    ///
    /// # Panics
    /// When they are not.
    pub(super) fn encrypt(&self, units: Units, data: InOutBuf<'_, '_, u8>) {
        assert_eq!(units.bytes(), data.len(), "bytes of the data units");
        // SAFETY: a `Keys` is made only where the processor has the instructions (`new`).
        unsafe { R::crypt::<true>(&self.0.data_enc, &self.0.tweak, units, data) }
    }

    /// Decrypts what `encrypt` made.
    ///
    /// # Panics
    /// As for `encrypt`.
    pub(super) fn decrypt(&self, units: Units, data: InOutBuf<'_, '_, u8>) {
        assert_eq!(units.bytes(), data.len(), "bytes of the data units");
        // SAFETY: as for `encrypt`.
        unsafe { R::crypt::<false>(&self.0.data_dec, &self.0.tweak, units, data) }
    }
}

/// A vector register of whole blocks. A value of it exists only where the processor has the instructions for it, so
/// that only what makes one out of nothing is unsafe.
trait Register: Copy {
    /// Blocks in it.
    const LANES: usize;

    /// Whether the processor and the system have the instructions.
    fn is_possible() -> bool;

    /// [`crypt`] as a function of its own in which the compiler may use the instructions.
    ///
    /// # Safety
    /// They are possible, and `data` are as many bytes as `units` say.
    unsafe fn crypt<const ENCRYPT: bool>(
        keys: &Schedule,
        tweak: &Schedule,
        units: Units,
        data: InOutBuf<'_, '_, u8>,
    );

    /// # Safety
    /// The instructions are possible, and `from` is valid for reads of a register.
    unsafe fn load(from: *const u8) -> Self;

    /// # Safety
    /// `to` is valid for writes of a register.
    unsafe fn store(self, to: *mut u8);

    /// The numbers from `first` on, one in each lane.
    ///
    /// # Safety
    /// The instructions are possible.
    unsafe fn numbers(first: u128) -> Self;

    /// The block of one lane, in all of them.
    fn everywhere(self, lane: usize) -> Self;

    fn xor(self, other: Self) -> Self;

    /// With the same key for each block.
    fn xor_key(self, key: &__m128i) -> Self;

    /// A round of AES but the last, with the same key for each block.
    fn round<const ENCRYPT: bool>(self, key: &__m128i) -> Self;

    /// The last round, with a key for each block.
    fn last_round<const ENCRYPT: bool>(self, key: Self) -> Self;

    /// The tweaks of the register `at` of the first group, of T in every lane.
    fn spread(self, at: usize) -> Self;

    /// The tweaks of the same register of the next group.
    fn times_x_to_group(self) -> Self;
}

/// A register type over the instructions of one of the modules below, which have them under the same names.
macro_rules! register {
    ($(#[$doc:meta])* $name:ident, $ops:ident, $features:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name($ops::Vector);

        impl Register for $name {
            const LANES: usize = $ops::LANES;

            fn is_possible() -> bool {
                $ops::are_possible()
            }

            #[target_feature(enable = $features)]
            unsafe fn crypt<const ENCRYPT: bool>(
                keys: &Schedule,
                tweak: &Schedule,
                units: Units,
                data: InOutBuf<'_, '_, u8>,
            ) {
                // SAFETY: the same is asked of the caller.
                unsafe { crypt::<Self, ENCRYPT>(keys, tweak, units, data) }
            }

            #[inline(always)]
            unsafe fn load(from: *const u8) -> Self {
                // SAFETY: the same is asked of the caller.
                Self(unsafe { $ops::load(from.cast()) })
            }

            #[inline(always)]
            unsafe fn store(self, to: *mut u8) {
                // SAFETY: the same is asked of the caller.
                unsafe { $ops::store(to.cast(), self.0) }
            }

            #[inline(always)]
            unsafe fn numbers(first: u128) -> Self {
                // SAFETY: the same is asked of the caller.
                Self(unsafe { $ops::numbers(first) })
            }

            #[inline(always)]
            fn everywhere(self, lane: usize) -> Self {
                // SAFETY: a register exists, so the processor has the instructions; no more is asked.
                Self(unsafe { $ops::everywhere(self.0, lane) })
            }

            #[inline(always)]
            fn xor(self, other: Self) -> Self {
                // SAFETY: as for `everywhere`.
                Self(unsafe { $ops::xor(self.0, other.0) })
            }

            #[inline(always)]
            fn xor_key(self, key: &__m128i) -> Self {
                // SAFETY: as for `everywhere`.
                Self(unsafe { $ops::xor(self.0, $ops::each(*key)) })
            }

            #[inline(always)]
            fn round<const ENCRYPT: bool>(self, key: &__m128i) -> Self {
                // SAFETY: as for `everywhere`.
                Self(unsafe {
                    if ENCRYPT {
                        $ops::encrypt(self.0, $ops::each(*key))
                    } else {
                        $ops::decrypt(self.0, $ops::each(*key))
                    }
                })
            }

            #[inline(always)]
            fn last_round<const ENCRYPT: bool>(self, key: Self) -> Self {
                // SAFETY: as for `everywhere`.
                Self(unsafe {
                    if ENCRYPT {
                        $ops::encrypt_last(self.0, key.0)
                    } else {
                        $ops::decrypt_last(self.0, key.0)
                    }
                })
            }

            #[inline(always)]
            fn spread(self, at: usize) -> Self {
                // SAFETY: as for `everywhere`.
                Self(unsafe {
                    let powers = $ops::powers(at);
                    // By 64 bits or more: zero, as x^0 needs it.
                    let out = $ops::right_by(self.0, $ops::minus($ops::words(64), powers));
                    let shifted = $ops::xor($ops::left_by(self.0, powers), $ops::bytes_left::<8>(out));
                    $ops::xor(shifted, $ops::multiply::<0x01>(out, $ops::words(REDUCTION)))
                })
            }

            #[inline(always)]
            fn times_x_to_group(self) -> Self {
                // SAFETY: as for `everywhere`.
                Self(unsafe {
                    let shifted = $ops::bytes_left::<{ $ops::GROUP_SHIFT }>(self.0);
                    let out = $ops::right::<{ 64 - 8 * $ops::GROUP_SHIFT }>(self.0);
                    $ops::xor(shifted, $ops::multiply::<0x01>(out, $ops::words(REDUCTION)))
                })
            }
        }
    };
}

register! {
    /// One block, with AES-NI.
    One, one, "aes,pclmulqdq,avx2"
}

register! {
    /// Two blocks, with VAES.
    Two, two, "aes,pclmulqdq,vaes,vpclmulqdq,avx2"
}

/// One block a register.
mod one {
    pub(super) use std::arch::x86_64::{
        __m128i as Vector, _mm_aesdec_si128 as decrypt, _mm_aesdeclast_si128 as decrypt_last,
        _mm_aesenc_si128 as encrypt, _mm_aesenclast_si128 as encrypt_last,
        _mm_bslli_si128 as bytes_left, _mm_clmulepi64_si128 as multiply, _mm_loadu_si128 as load,
        _mm_set1_epi64x as words, _mm_sllv_epi64 as left_by, _mm_srli_epi64 as right,
        _mm_srlv_epi64 as right_by, _mm_storeu_si128 as store, _mm_sub_epi64 as minus,
        _mm_xor_si128 as xor,
    };

    use super::{_mm_set_epi64x, halves};

    pub(super) const LANES: usize = 1;

    /// Bytes by which tweaks are shifted from group to group: a bit for each block of a group.
    pub(super) const GROUP_SHIFT: i32 = 1;

    pub(super) fn are_possible() -> bool {
        is_x86_feature_detected!("aes")
            && is_x86_feature_detected!("pclmulqdq")
            && is_x86_feature_detected!("avx2")
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn each(block: Vector) -> Vector {
        block
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn numbers(first: u128) -> Vector {
        let [low, high] = halves(first);
        _mm_set_epi64x(high, low)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn everywhere(blocks: Vector, _only: usize) -> Vector {
        blocks
    }

    /// By how many bits the block of register `at` is shifted.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn powers(at: usize) -> Vector {
        words(at.cast_signed() as i64)
    }
}

/// Two blocks a register.
mod two {
    pub(super) use std::arch::x86_64::{
        __m256i as Vector, _mm256_aesdec_epi128 as decrypt,
        _mm256_aesdeclast_epi128 as decrypt_last, _mm256_aesenc_epi128 as encrypt,
        _mm256_aesenclast_epi128 as encrypt_last, _mm256_broadcastsi128_si256 as each,
        _mm256_bslli_epi128 as bytes_left, _mm256_clmulepi64_epi128 as multiply,
        _mm256_loadu_si256 as load, _mm256_set1_epi64x as words, _mm256_sllv_epi64 as left_by,
        _mm256_srli_epi64 as right, _mm256_srlv_epi64 as right_by, _mm256_storeu_si256 as store,
        _mm256_sub_epi64 as minus, _mm256_xor_si256 as xor,
    };

    use super::{_mm256_permute2x128_si256, _mm256_set_epi64x, halves};

    pub(super) const LANES: usize = 2;

    pub(super) const GROUP_SHIFT: i32 = 2;

    pub(super) fn are_possible() -> bool {
        super::one::are_possible()
            && is_x86_feature_detected!("vaes")
            && is_x86_feature_detected!("vpclmulqdq")
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn numbers(first: u128) -> Vector {
        let ([low0, high0], [low1, high1]) = (halves(first), halves(first.wrapping_add(1)));
        _mm256_set_epi64x(high1, low1, high0, low0)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn everywhere(blocks: Vector, lane: usize) -> Vector {
        if lane == 0 {
            _mm256_permute2x128_si256::<0x00>(blocks, blocks)
        } else {
            _mm256_permute2x128_si256::<0x11>(blocks, blocks)
        }
    }

    /// By how many bits the blocks of register `at` are shifted.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn powers(at: usize) -> Vector {
        let first = 2 * at.cast_signed() as i64;
        _mm256_set_epi64x(first + 1, first + 1, first, first)
    }
}

/// All of `data`, with the data key's schedule of the right direction.
///
/// # Safety
/// The instructions for `R` are possible, and `data` are as many bytes as `units` say.
#[inline(always)]
unsafe fn crypt<R: Register, const ENCRYPT: bool>(
    keys: &Schedule,
    tweak: &Schedule,
    units: Units,
    data: InOutBuf<'_, '_, u8>,
) {
    let Units {
        unit_blocks,
        units,
        first,
    } = units;
    let group = WIDTH * R::LANES;
    let (groups, tail) = (unit_blocks / group, unit_blocks % group);
    let (mut input, mut output) = data.into_raw();
    // SAFETY: the instructions are possible.
    let mut ahead = unsafe { encrypted_tweaks::<R>(tweak, first) };
    let mut these = ahead;
    for unit in 0..units {
        let lane = unit % R::LANES;
        if lane == 0 {
            these = ahead;
            if unit + R::LANES < units {
                // Needed only after these: its latency hides behind their rounds.
                let next = first.wrapping_add((unit + R::LANES) as u128);
                // SAFETY: the instructions are possible.
                ahead = unsafe { encrypted_tweaks::<R>(tweak, next) };
            }
        }
        let mut tweaks = [these.everywhere(lane); WIDTH];
        for (at, tweaks) in tweaks.iter_mut().enumerate() {
            *tweaks = tweaks.spread(at);
        }
        for _ in 0..groups {
            // SAFETY: `groups` groups and `tail` blocks in each of `units` data units are the length of `data`, and
            // `input` and `output` have moved on by what was done of it. `InOutBuf` has both valid for all of it, and
            // equal or apart, so that what is stored is never loaded later.
            unsafe { crypt_group::<R, ENCRYPT>(hidden(keys), &tweaks, input, output) };
            let bytes = group * BLOCK_BYTES;
            // SAFETY: as above; at most one past the end.
            (input, output) = unsafe { (input.add(bytes), output.add(bytes)) };
            for tweaks in &mut tweaks {
                *tweaks = tweaks.times_x_to_group();
            }
        }
        if tail != 0 {
            // SAFETY: `tail` blocks, less than a group, are left in this data unit.
            unsafe { crypt_tail::<R, ENCRYPT>(hidden(keys), &tweaks, tail, input, output) };
            let bytes = tail * BLOCK_BYTES;
            // SAFETY: as above; at most one past the end.
            (input, output) = unsafe { (input.add(bytes), output.add(bytes)) };
        }
    }
}

/// The cipher between its masks. The tweak of a block is added to the last round key, which AES adds anyway.
///
/// # Safety
/// The instructions for `R` are possible; `input` is valid for reads and `output` for writes of a group.
#[inline(always)]
unsafe fn crypt_group<R: Register, const ENCRYPT: bool>(
    keys: &Schedule,
    tweaks: &[R; WIDTH],
    input: *const u8,
    output: *mut u8,
) {
    let [first, between @ .., last] = keys;
    let register_bytes = R::LANES * BLOCK_BYTES;
    let mut data = *tweaks;
    for (at, data) in data.iter_mut().enumerate() {
        // SAFETY: within the group.
        let block = unsafe { R::load(input.add(at * register_bytes)) };
        *data = block.xor(data.xor_key(first));
    }
    for key in between {
        for block in &mut data {
            *block = block.round::<ENCRYPT>(key);
        }
    }
    for (at, (data, tweaks)) in data.iter().zip(tweaks).enumerate() {
        let block = data.last_round::<ENCRYPT>(tweaks.xor_key(last));
        // SAFETY: within the group.
        unsafe { block.store(output.add(at * register_bytes)) };
    }
}

/// Less than a group, which no volume has: data units are whole groups there.
///
/// # Safety
/// The instructions for `R` are possible; `input` is valid for reads and `output` for writes of `blocks` blocks, which
/// are less than a group.
#[cold]
#[inline(always)]
unsafe fn crypt_tail<R: Register, const ENCRYPT: bool>(
    keys: &Schedule,
    tweaks: &[R; WIDTH],
    blocks: usize,
    input: *const u8,
    output: *mut u8,
) {
    let mut group = [0_u8; GROUP_MAX * BLOCK_BYTES];
    let bytes = blocks * BLOCK_BYTES;
    // SAFETY: `input` is valid for them, and they are less than a group, so less than the greatest one.
    unsafe { input.copy_to_nonoverlapping(group.as_mut_ptr(), bytes) };
    let at: *mut u8 = group.as_mut_ptr();
    // SAFETY: the array is as long as the greatest group; what is there is loaded before it is stored.
    unsafe { crypt_group::<R, ENCRYPT>(keys, tweaks, at, at) };
    // SAFETY: as for the copy in.
    unsafe { output.copy_from_nonoverlapping(at, bytes) };
}

/// T of as many data units from `first` on as a register has lanes.
///
/// # Safety
/// The instructions for `R` are possible.
#[inline(always)]
unsafe fn encrypted_tweaks<R: Register>(keys: &Schedule, first: u128) -> R {
    let [begin, between @ .., last] = hidden(keys);
    // SAFETY: the instructions are possible.
    let numbers = unsafe { R::numbers(first) };
    let mut tweaks = numbers.xor_key(begin);
    for key in between {
        tweaks = tweaks.round::<true>(key);
    }
    let none = numbers.xor(numbers);
    tweaks.last_round::<true>(none.xor_key(last))
}
