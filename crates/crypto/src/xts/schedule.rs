//! The key schedules of AES-256 (FIPS 197 sections 5.2 and 5.3.5) with the AES instructions of x86-64, as the vector
//! code has them.
//!
//! What always holds: no branch and no address depends on a key. What stays in vector registers is left to
//! `clear_residue`.
//! It never tells a round key to anybody but the code beside it.
#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::*;

#[cfg(test)]
use super::BLOCK_BYTES;

/// The 15 round keys of AES-256, in the order in which they are used.
pub(super) type Schedule = [__m128i; 15];

/// The expanded key: K1 in both directions and K2 in the one that XTS uses.
pub(super) struct Schedules {
    pub(super) data_enc: Schedule,
    pub(super) data_dec: Schedule,
    pub(super) tweak: Schedule,
}

impl Schedules {
    /// Expands K1 ‖ K2, or gives `None` where the processor has no AES instructions.
    pub(super) fn expand(k1: &[u8; 32], k2: &[u8; 32]) -> Option<Self> {
        if !is_x86_feature_detected!("aes") {
            return None;
        }
        // SAFETY: the processor has AES instructions, as was just asked.
        let [data_enc, tweak] = unsafe { [expand(k1), expand(k2)] };
        // SAFETY: as above.
        let data_dec = unsafe { inverse(&data_enc) };
        Some(Self {
            data_enc,
            data_dec,
            tweak,
        })
    }

    /// All of them, for tests that look for what must not be found.
    #[cfg(test)]
    pub(super) fn round_keys(&self) -> Vec<[u8; BLOCK_BYTES]> {
        let schedules = [&self.data_enc, &self.data_dec, &self.tweak];
        let keys = schedules.into_iter().flatten();
        // SAFETY: both are 16 bytes of which every value is valid.
        keys.map(|key| unsafe { std::mem::transmute(*key) })
            .collect()
    }
}

/// The same schedule, of which the compiler no longer knows that it is: round keys would otherwise
/// be kept from group to group in more registers than there are, and spilled to the stack.
#[inline(always)]
pub(super) fn hidden(schedule: &Schedule) -> &Schedule {
    let mut pointer: *const Schedule = schedule;
    // SAFETY: no instruction.
    unsafe {
        asm!("/* {} */", inout(reg) pointer, options(readonly, nostack, preserves_flags));
    }
    // SAFETY: it is the reference that came in, with its lifetime.
    unsafe { &*pointer }
}

/// Lower and upper half, as the intrinsics take them.
#[inline(always)]
pub(super) fn halves(number: u128) -> [i64; 2] {
    let bytes = number.to_le_bytes();
    let half = |at: usize| i64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    [half(0), half(8)]
}

/// AES-256 key expansion (FIPS 197 section 5.2).
#[target_feature(enable = "aes")]
fn expand(key: &[u8; 32]) -> Schedule {
    let half = |at: usize| {
        let half: &[u8; 16] = key[at..].first_chunk().expect("half of the key");
        let [low, high] = halves(u128::from_le_bytes(*half));
        _mm_set_epi64x(high, low)
    };
    let mut keys = [_mm_setzero_si128(); 15];
    (keys[0], keys[1]) = (half(0), half(16));
    step::<2, 0x01>(&mut keys);
    step::<4, 0x02>(&mut keys);
    step::<6, 0x04>(&mut keys);
    step::<8, 0x08>(&mut keys);
    step::<10, 0x10>(&mut keys);
    step::<12, 0x20>(&mut keys);
    step::<14, 0x40>(&mut keys);
    keys
}

/// The round keys `AT` and, but after the last, `AT` + 1.
#[target_feature(enable = "aes")]
fn step<const AT: usize, const CONSTANT: i32>(keys: &mut Schedule) {
    let word = _mm_aeskeygenassist_si128::<CONSTANT>(keys[AT - 1]);
    keys[AT] = _mm_xor_si128(summed(keys[AT - 2]), _mm_shuffle_epi32::<0xff>(word));
    if AT + 1 < keys.len() {
        let word = _mm_aeskeygenassist_si128::<0>(keys[AT]);
        keys[AT + 1] = _mm_xor_si128(summed(keys[AT - 1]), _mm_shuffle_epi32::<0xaa>(word));
    }
}

/// Each word with all the words before it.
#[target_feature(enable = "sse2")]
fn summed(words: __m128i) -> __m128i {
    let pairs = _mm_xor_si128(words, _mm_slli_si128::<4>(words));
    _mm_xor_si128(pairs, _mm_slli_si128::<8>(pairs))
}

/// The schedule of the equivalent inverse cipher (FIPS 197 section 5.3.5).
#[target_feature(enable = "aes")]
fn inverse(keys: &Schedule) -> Schedule {
    let mut inverse = *keys;
    inverse.reverse();
    for key in &mut inverse[1..14] {
        *key = _mm_aesimc_si128(*key);
    }
    inverse
}
