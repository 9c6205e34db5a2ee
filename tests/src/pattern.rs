//! Reproducible bytes that no compressor makes smaller, so that a hole, a shift or a mix-up always shows.

/// `len` bytes (a multiple of 8) that follow from `seed` alone, by the SplitMix64 generator.
///
/// # Panics
/// If `len` is no multiple of 8.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    assert_eq!(len % 8, 0, "pattern lengths are multiples of 8");
    let mut state = seed;
    (0..len / 8)
        .flat_map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = state;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (mixed ^ (mixed >> 31)).to_le_bytes()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_seed_gives_the_same_bytes_again_and_another_seed_others() {
        assert_eq!(super::bytes(1, 4096), super::bytes(1, 4096));
        assert_ne!(super::bytes(1, 4096), super::bytes(2, 4096));
    }
}
