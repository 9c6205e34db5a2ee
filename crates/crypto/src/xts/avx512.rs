//! AES-256-XTS with the widest vector instructions of x86-64: VAES and VPCLMULQDQ on 512-bit registers.
//!
//! ```text
//!   a register     4 blocks
//!   a group        8 registers: 32 blocks, 512 bytes; what is in flight at once hides the latency of AES
//!   its tweaks     T · x^0 … T · x^31 in 8 registers; the next group's are these times x^32
//!   T              of four data units in one register, made while the four before them are ciphered
//! ```
//!
//! Why it stands beside the safe code of `portable.rs`: there, tweaks and blocks pass through memory
//! between the cipher's calls, which makes a single data unit cost twice as much; here they stay in
//! registers. `bench/cipher` measures it.
//!
//! What always holds: a [`Keys`] exists only where the processor has all instructions that are used
//! here, which is asked when a key is expanded; no branch and no address depends on a key or on data;
//! round keys are read from where the `Keys` lie, for each group anew, so that the compiler has no
//! cause to spill them. What stays in vector registers is left to `clear_residue`.
//!
//! It never touches a byte outside the source and the destination: what is less than a group is read
//! and written under masks.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use cipher::inout::InOutBuf;

use super::schedule::{Schedule, Schedules, halves, hidden};
use super::{BLOCK_BYTES, Units};

/// Blocks in a register.
const LANES: usize = 4;

/// Registers of a group.
const WIDTH: usize = 8;

/// Blocks of a group.
const GROUP: usize = WIDTH * LANES;

/// Bytes of a group.
const GROUP_BYTES: usize = GROUP * BLOCK_BYTES;

/// Bytes of a register.
const REGISTER_BYTES: usize = LANES * BLOCK_BYTES;

/// 32 blocks, or their tweaks.
type Group = [__m512i; WIDTH];

/// The expanded key, on a processor that has the instructions.
pub(crate) struct Keys(Schedules);

impl Keys {
    /// Whether the processor and the system have what this file uses.
    pub(super) fn are_possible() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vbmi2")
            && is_x86_feature_detected!("vaes")
            && is_x86_feature_detected!("vpclmulqdq")
    }

    /// Expands K1 ‖ K2, or gives `None` where the instructions are missing.
    pub(super) fn new(k1: &[u8; 32], k2: &[u8; 32]) -> Option<Self> {
        Self::are_possible().then(|| Schedules::expand(k1, k2).map(Self))?
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
        unsafe {
            if units.unit_blocks.is_multiple_of(GROUP) {
                crypt::<true, false>(&self.0.data_enc, &self.0.tweak, units, data);
            } else {
                crypt::<true, true>(&self.0.data_enc, &self.0.tweak, units, data);
            }
        }
    }

    /// Decrypts what `encrypt` made.
    ///
    /// # Panics
    /// As for `encrypt`.
    pub(super) fn decrypt(&self, units: Units, data: InOutBuf<'_, '_, u8>) {
        assert_eq!(units.bytes(), data.len(), "bytes of the data units");
        // SAFETY: as for `encrypt`.
        unsafe {
            if units.unit_blocks.is_multiple_of(GROUP) {
                crypt::<false, false>(&self.0.data_dec, &self.0.tweak, units, data);
            } else {
                crypt::<false, true>(&self.0.data_dec, &self.0.tweak, units, data);
            }
        }
    }
}

/// All of `data`, with the data key's schedule of the right direction; `TAILS` is whether data units
/// end in less than a group.
///
/// # Safety
/// `data` are as many bytes as `units` say.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,vaes,vpclmulqdq")]
unsafe fn crypt<const ENCRYPT: bool, const TAILS: bool>(
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
    let (groups, tail) = (unit_blocks / GROUP, unit_blocks % GROUP);
    let (mut input, mut output) = data.into_raw();
    let mut ahead = encrypted_tweaks(tweak, first);
    let mut quad = ahead;
    for unit in 0..units {
        let lane = unit % LANES;
        if lane == 0 {
            quad = ahead;
            if unit + LANES < units {
                // Needed four data units from now: its latency hides behind their rounds.
                ahead = encrypted_tweaks(tweak, first.wrapping_add((unit + LANES) as u128));
            }
        }
        let mut tweaks = spread(quad, lane);
        for group in 0..groups {
            let following = if TAILS || group + 1 < groups {
                times_x_to_32(tweaks)
            } else {
                tweaks
            };
            // SAFETY: `groups` groups and `tail` blocks in each of `units` data units are the length
            // of `data`, and `input` and `output` have moved on by what was done of it. `InOutBuf`
            // has both valid for all of it, and equal or apart, so that what is stored is never
            // loaded later.
            let data = unsafe { load(input) };
            let data = rounds::<ENCRYPT>(hidden(keys), &tweaks, data);
            // SAFETY: as for the load.
            unsafe { store(output, data) };
            // SAFETY: as for the load; at most one past the end.
            (input, output) = unsafe { (input.add(GROUP_BYTES), output.add(GROUP_BYTES)) };
            tweaks = following;
        }
        if TAILS {
            // SAFETY: `tail` blocks are left in this data unit.
            unsafe { crypt_tail::<ENCRYPT>(keys, &tweaks, tail, input, output) };
            let bytes = tail * BLOCK_BYTES;
            // SAFETY: as above; at most one past the end.
            (input, output) = unsafe { (input.add(bytes), output.add(bytes)) };
        }
    }
}

/// Less than a group, which no volume has: data units are whole groups there.
///
/// # Safety
/// `input` is valid for reads and `output` for writes of `blocks` blocks.
#[cold]
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,vaes,vpclmulqdq")]
unsafe fn crypt_tail<const ENCRYPT: bool>(
    keys: &Schedule,
    tweaks: &Group,
    blocks: usize,
    input: *const u8,
    output: *mut u8,
) {
    let mask = |at: usize| -> __mmask8 {
        let words = 2 * blocks.saturating_sub(at * LANES).min(LANES);
        ((1_u16 << words) - 1).to_le_bytes()[0]
    };
    let mut data = [_mm512_setzero_si512(); WIDTH];
    for (at, register) in data.iter_mut().enumerate() {
        let from = input.wrapping_add(at * REGISTER_BYTES).cast();
        // SAFETY: the mask names words within `blocks` only; others are not accessed.
        *register = unsafe { _mm512_maskz_loadu_epi64(mask(at), from) };
    }
    let data = rounds::<ENCRYPT>(keys, tweaks, data);
    for (at, register) in data.iter().enumerate() {
        let to = output.wrapping_add(at * REGISTER_BYTES).cast();
        // SAFETY: as for the load.
        unsafe { _mm512_mask_storeu_epi64(to, mask(at), *register) };
    }
}

/// # Safety
/// `input` is valid for reads of a group.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(input: *const u8) -> Group {
    let mut data = [_mm512_setzero_si512(); WIDTH];
    for (at, register) in data.iter_mut().enumerate() {
        // SAFETY: within the group.
        *register = unsafe { _mm512_loadu_si512(input.add(at * REGISTER_BYTES).cast()) };
    }
    data
}

/// # Safety
/// `output` is valid for writes of a group.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store(output: *mut u8, data: Group) {
    for (at, register) in data.iter().enumerate() {
        // SAFETY: within the group.
        unsafe { _mm512_storeu_si512(output.add(at * REGISTER_BYTES).cast(), *register) };
    }
}

/// The cipher between its masks. The tweak of a block is added to the last round key, which AES adds
/// anyway.
#[inline]
#[target_feature(enable = "avx512f,vaes")]
fn rounds<const ENCRYPT: bool>(keys: &Schedule, tweaks: &Group, mut data: Group) -> Group {
    let [first, between @ .., last] = keys;
    let (first, last) = (
        _mm512_broadcast_i32x4(*first),
        _mm512_broadcast_i32x4(*last),
    );
    let mut ends = *tweaks;
    for at in 0..WIDTH {
        // A ⊕ B ⊕ C.
        data[at] = _mm512_ternarylogic_epi64::<0x96>(data[at], tweaks[at], first);
        ends[at] = _mm512_xor_si512(tweaks[at], last);
    }
    for key in between {
        let key = _mm512_broadcast_i32x4(*key);
        for block in &mut data {
            *block = if ENCRYPT {
                _mm512_aesenc_epi128(*block, key)
            } else {
                _mm512_aesdec_epi128(*block, key)
            };
        }
    }
    for at in 0..WIDTH {
        data[at] = if ENCRYPT {
            _mm512_aesenclast_epi128(data[at], ends[at])
        } else {
            _mm512_aesdeclast_epi128(data[at], ends[at])
        };
    }
    data
}

/// T of the data unit `first` and of the three that follow it.
#[inline]
#[target_feature(enable = "avx512f,vaes")]
fn encrypted_tweaks(keys: &Schedule, first: u128) -> __m512i {
    let [low, high] = halves(first);
    let mut tweaks = if low.cast_unsigned() <= u64::MAX - 3 {
        let first = _mm512_broadcast_i32x4(_mm_set_epi64x(high, low));
        _mm512_add_epi64(first, _mm512_set_epi64(0, 3, 0, 2, 0, 1, 0, 0))
    } else {
        let [low1, high1] = halves(first.wrapping_add(1));
        let [low2, high2] = halves(first.wrapping_add(2));
        let [low3, high3] = halves(first.wrapping_add(3));
        _mm512_set_epi64(high3, low3, high2, low2, high1, low1, high, low)
    };
    let [first, between @ .., last] = hidden(keys);
    tweaks = _mm512_xor_si512(tweaks, _mm512_broadcast_i32x4(*first));
    for key in between {
        tweaks = _mm512_aesenc_epi128(tweaks, _mm512_broadcast_i32x4(*key));
    }
    _mm512_aesenclast_epi128(tweaks, _mm512_broadcast_i32x4(*last))
}

/// x^7 + x^2 + x + 1, as which x^128 comes back in.
const REDUCTION: i64 = 0x87;

/// The tweaks of the first 32 blocks of the data unit in a lane of `quad`: T · x^0 to T · x^31.
#[inline]
#[target_feature(enable = "avx512f,avx512vbmi2,vpclmulqdq")]
fn spread(quad: __m512i, lane: usize) -> Group {
    let lane = _mm512_set1_epi64(2 * lane.cast_signed() as i64);
    let words = _mm512_add_epi64(lane, _mm512_set_epi64(1, 0, 1, 0, 1, 0, 1, 0));
    let tweak = _mm512_permutexvar_epi64(words, quad);
    // What a shift by 64 would bring into each half.
    let below = _mm512_unpacklo_epi64(_mm512_setzero_si512(), tweak);
    let mut tweaks = [tweak; WIDTH];
    for (at, tweaks) in (0..).zip(&mut tweaks) {
        let powers = _mm512_add_epi64(
            _mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0),
            _mm512_set1_epi64(4 * at),
        );
        let out = _mm512_srlv_epi64(tweak, _mm512_sub_epi64(_mm512_set1_epi64(64), powers));
        *tweaks = _mm512_xor_si512(_mm512_shldv_epi64(tweak, below, powers), reduced(out));
    }
    tweaks
}

/// The tweaks 32 blocks further in the same data unit.
#[inline]
#[target_feature(enable = "avx512f,avx512vbmi2,vpclmulqdq")]
fn times_x_to_32(mut tweaks: Group) -> Group {
    for tweak in &mut tweaks {
        // A shift of 128 bits by 32: each word into the next, zero into the lowest.
        let shifted = _mm512_maskz_shuffle_epi32::<0b10_01_00_00>(0xeeee, *tweak);
        let out = _mm512_srli_epi64::<32>(*tweak);
        *tweak = _mm512_xor_si512(shifted, reduced(out));
    }
    tweaks
}

/// What left the top of each block, in its upper half, as it comes back in.
#[inline]
#[target_feature(enable = "avx512f,vpclmulqdq")]
fn reduced(out: __m512i) -> __m512i {
    _mm512_clmulepi64_epi128::<0x01>(out, _mm512_set1_epi64(REDUCTION))
}
