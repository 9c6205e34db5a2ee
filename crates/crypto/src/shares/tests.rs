//! What fewer shares than the threshold say, which is nothing; and shares that were changed together with their checksum.

use proptest::prelude::*;

use super::*;
use crate::locked::Policy;

fn memory() -> Arc<KeyMemory> {
    KeyMemory::new(Policy::default()).expect("memory for keys")
}

fn key(memory: &Arc<KeyMemory>, bytes: [u8; 32]) -> KeyEncryptionKey {
    KeyEncryptionKey::read_from(memory, &mut bytes.as_slice()).expect("a key")
}

/// The share with another byte, and the checksum of one that has it.
fn forged(mut share: Share, at: usize, change: u8) -> Share {
    let bytes = share.slot.bytes_mut();
    bytes[at] ^= change;
    let checksum = sha256(&[&bytes[..CHECKSUM_AT]]);
    bytes[CHECKSUM_AT..SHARE_BYTES].copy_from_slice(&checksum);
    share
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever key somebody thinks of: there is a last share that would give it with those they have.
    #[test]
    fn to_one_share_less_than_are_needed_every_key_is_as_likely(
        split in any::<[u8; 32]>(),
        other in any::<[u8; 32]>(),
        (threshold, count) in (2..=10_u8).prop_flat_map(|count| (2..=count, Just(count))),
    ) {
        let memory = memory();
        let mut shares = key(&memory, split).split(&memory, threshold, count).expect("split");
        shares.truncate(threshold.into());
        let last = shares.pop().expect("two or more");
        // f(0) = Σ value(i) · weight(i): with the others as they are, it is the last value that decides.
        let weight = shares.iter().fold(1, |weight, share| {
            let x = share.index();
            multiply(weight, multiply(x, invert(x ^ last.index())))
        });
        let mut changed = last;
        for at in 0..32 {
            let wanted = split[at] ^ other[at];
            changed = forged(changed, VALUE_AT + at, multiply(wanted, invert(weight)));
        }
        shares.push(changed);
        let mut found = [0; 32];
        interpolate(&shares, &mut found);
        prop_assert_eq!(found, other);
        // And `check` knows which of them was split.
        let combined = KeyEncryptionKey::combine(&memory, &shares);
        prop_assert_eq!(matches!(combined, Err(CombineError::OtherKey)), split != other);
    }
}

#[test]
fn the_value_of_a_share_is_any_byte_just_as_often() {
    // All polynomials of degree one for one byte of a key: of each share, all 256 values once.
    for index in 1..=SHARES_MAX {
        let mut seen = [0; 256];
        for coefficient in 0..=255 {
            let mut value = [0];
            evaluate(&[0x5a], &[coefficient], index, &mut value);
            seen[usize::from(value[0])] += 1;
        }
        assert_eq!(seen, [1; 256], "share {index}");
    }
}

#[test]
fn a_share_that_was_forged_with_its_checksum_gives_no_key() {
    let memory = memory();
    let key = key(&memory, [7; 32]);
    for at in [CHECK_AT, CHECK_AT + 31, VALUE_AT, VALUE_AT + 31] {
        for which in 0..3 {
            let mut shares = key.split(&memory, 3, 3).expect("split");
            let share = shares.remove(which);
            shares.insert(which, forged(share, at, 1));
            let refused = KeyEncryptionKey::combine(&memory, &shares).err();
            let refused = refused.expect("refused");
            let expected = if at < VALUE_AT {
                matches!(refused, CombineError::OtherNumbers { .. })
            } else {
                matches!(refused, CombineError::OtherKey)
            };
            assert!(expected, "{at} of {which}: {refused}");
        }
    }
    let shares = key.split(&memory, 2, 2).expect("split");
    let shares: Vec<_> = shares
        .into_iter()
        .map(|share| forged(share, CHECK_AT, 1))
        .collect();
    let refused = KeyEncryptionKey::combine(&memory, &shares).err();
    assert!(matches!(refused, Some(CombineError::OtherKey)));
}

#[test]
fn numbers_that_make_no_sense_are_refused_though_the_checksum_fits() {
    let memory = memory();
    let key = key(&memory, [7; 32]);
    let read = |share: &Share| {
        let mut bytes = Vec::new();
        share.write_to(&mut bytes).expect("written");
        Share::read_from(&memory, &mut bytes.as_slice()).err()
    };
    for (at, from, to) in [
        (THRESHOLD_AT, 2, 0),
        (THRESHOLD_AT, 2, 1),
        (THRESHOLD_AT, 2, 4),
        (COUNT_AT, 3, 11),
        (COUNT_AT, 3, 1),
        (INDEX_AT, 1, 0),
        (INDEX_AT, 1, 4),
    ] {
        let share = key.split(&memory, 2, 3).expect("split").remove(0);
        assert!(read(&share).is_none());
        let refused = read(&forged(share, at, from ^ to));
        assert!(
            matches!(
                refused,
                Some(ShareError::Numbers { .. } | ShareError::Index { .. })
            ),
            "{at} {to}: {refused:?}"
        );
    }
}
