//! Shares of a key-encryption key: any `threshold` of them give it back, whatever else is tried gives an error that says why,
//! and another implementation of the same field (`vsss-rs`) combines ours and is combined by us.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::{Index, subsequence};
use sealvol_crypto::locked::{KeyMemory, Policy};
use sealvol_crypto::{
    CombineError, KeyEncryptionKey, SHARE_BYTES, SHARES_MAX, Share, ShareError, sha256,
};
use vsss_rs::Gf256;

/// Where the fields of a share are.
const VALUE: std::ops::Range<usize> = 56..88;

fn memory() -> Arc<KeyMemory> {
    KeyMemory::new(Policy::default()).expect("memory for keys")
}

fn key(memory: &Arc<KeyMemory>, bytes: &[u8; 32]) -> KeyEncryptionKey {
    KeyEncryptionKey::read_from(memory, &mut bytes.as_slice()).expect("a key")
}

fn plain(key: &KeyEncryptionKey) -> Vec<u8> {
    let mut bytes = Vec::new();
    key.write_to(&mut bytes).expect("written");
    bytes
}

fn stored(share: &Share) -> Vec<u8> {
    let mut bytes = Vec::new();
    share.write_to(&mut bytes).expect("written");
    assert_eq!(bytes.len(), SHARE_BYTES);
    bytes
}

fn read(memory: &Arc<KeyMemory>, bytes: &[u8]) -> Result<Share, ShareError> {
    Share::read_from(memory, &mut &*bytes)
}

fn read_all(memory: &Arc<KeyMemory>, stored: &[Vec<u8>]) -> Vec<Share> {
    let shares = stored
        .iter()
        .map(|bytes| read(memory, bytes).expect("a share"));
    shares.collect()
}

/// (threshold, count)
fn numbers() -> impl Strategy<Value = (u8, u8)> {
    (2..=SHARES_MAX).prop_flat_map(|count| (2..=count, Just(count)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_of_them_in_any_order_give_the_key_and_one_less_gives_none(
        bytes in any::<[u8; 32]>(),
        (threshold, count, chosen) in numbers().prop_flat_map(|(threshold, count)| {
            let all: Vec<_> = (0..usize::from(count)).collect();
            let some = subsequence(all, usize::from(threshold)..=usize::from(count));
            (Just(threshold), Just(count), some.prop_shuffle())
        }),
    ) {
        let memory = memory();
        let shares = key(&memory, &bytes).split(&memory, threshold, count).expect("split");
        prop_assert_eq!(shares.len(), usize::from(count));
        let all: Vec<_> = shares.iter().map(stored).collect();
        let mut some: Vec<_> = chosen.iter().map(|&at| all[at].clone()).collect();
        let combined = KeyEncryptionKey::combine(&memory, &read_all(&memory, &some));
        prop_assert_eq!(plain(&combined.expect("enough")), bytes);
        some.truncate(usize::from(threshold) - 1);
        let refused = KeyEncryptionKey::combine(&memory, &read_all(&memory, &some)).err();
        let needed = usize::from(threshold);
        let told = matches!(refused, Some(CombineError::TooFew { have, needed: told })
            if have == needed - 1 && told == needed);
        prop_assert!(told, "{:?}", refused);
    }

    #[test]
    fn whatever_byte_is_changed_and_wherever_it_is_cut_a_share_is_refused(
        (threshold, count) in numbers(),
        at in any::<Index>(),
        change in 1..=255_u8,
    ) {
        let memory = memory();
        let shares = key(&memory, &[9; 32]).split(&memory, threshold, count).expect("split");
        let whole = stored(&shares[0]);
        let at = at.index(SHARE_BYTES);
        let mut changed = whole.clone();
        changed[at] ^= change;
        let refused = read(&memory, &changed).err();
        let expected = match at {
            0..4 => matches!(refused, Some(ShareError::NotAShare)),
            4 => matches!(refused, Some(ShareError::NewerFormat { .. })),
            _ => matches!(refused, Some(ShareError::Damaged)),
        };
        prop_assert!(expected, "{}: {:?}", at, refused);
        let refused = read(&memory, &whole[..at]).err();
        let expected = match at {
            0..4 => matches!(refused, Some(ShareError::NotAShare)),
            _ => matches!(refused, Some(ShareError::Length)),
        };
        prop_assert!(expected, "{}: {:?}", at, refused);
        let longer = [&whole[..], &[0]].concat();
        prop_assert!(matches!(read(&memory, &longer), Err(ShareError::Length)));
    }

    /// The other implementation knows values and indices; what is around them is ours.
    #[test]
    fn another_implementation_combines_our_shares_and_ours_combines_its(
        bytes in any::<[u8; 32]>(),
        (threshold, count) in numbers(),
    ) {
        let memory = memory();
        let ours = key(&memory, &bytes);
        let shares: Vec<_> = ours.split(&memory, threshold, count).expect("split").iter().map(stored).collect();
        // Index, then value.
        let theirs: Vec<Vec<u8>> = shares.iter().rev().take(threshold.into())
            .map(|share| [&share[7..8], &share[VALUE]].concat()).collect();
        prop_assert_eq!(Gf256::combine_array(&theirs).expect("combined"), bytes);

        let (threshold_n, count_n) = (threshold.into(), count.into());
        let theirs = Gf256::split_array(threshold_n, count_n, bytes, Generator).expect("split");
        let dressed: Vec<_> = shares.iter().zip(theirs).map(|(share, theirs)| {
            let mut dressed = share.clone();
            assert_eq!(dressed[7], theirs[0], "they number theirs from 1, too");
            dressed[VALUE].copy_from_slice(&theirs[1..]);
            let checksum = sha256(&[&dressed[..VALUE.end]]);
            dressed[VALUE.end..].copy_from_slice(&checksum);
            dressed
        }).collect();
        let combined = KeyEncryptionKey::combine(&memory, &read_all(&memory, &dressed));
        prop_assert_eq!(plain(&combined.expect("combined")), bytes);
    }
}

/// The kernel's, as the other implementation wants it.
struct Generator;

impl rand_core::TryRng for Generator {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        let mut bytes = [0; 4];
        sealvol_crypto::random(&mut bytes);
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        let mut bytes = [0; 8];
        sealvol_crypto::random(&mut bytes);
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        sealvol_crypto::random(bytes);
        Ok(())
    }
}

impl rand_core::TryCryptoRng for Generator {}

#[test]
fn shares_that_do_not_belong_together_are_told_by_their_places() {
    let memory = memory();
    let key = key(&memory, &[3; 32]);
    let split = |threshold| {
        let shares = key.split(&memory, threshold, 3).expect("split");
        shares.iter().map(stored).collect::<Vec<_>>()
    };
    let (one, other) = (split(2), split(2));
    let combined = |stored: &[&Vec<u8>]| {
        let stored: Vec<_> = stored.iter().map(|&bytes| bytes.clone()).collect();
        KeyEncryptionKey::combine(&memory, &read_all(&memory, &stored)).map(|key| plain(&key))
    };
    // The same key, split twice: each set gives it, and a share of either nothing together.
    assert_eq!(combined(&[&one[0], &one[2]]).expect("the key"), [3; 32]);
    assert_eq!(combined(&[&other[2], &other[1]]).expect("the key"), [3; 32]);
    let refused = combined(&[&one[0], &one[1], &other[2]]);
    assert!(matches!(refused, Err(CombineError::OtherSet { at: 2 })));
    let refused = combined(&[&one[1], &one[1]]);
    assert!(matches!(
        refused,
        Err(CombineError::Twice { at: 1, first: 0 })
    ));
    // Another threshold under the id of the same set.
    let mut forged = one[1].clone();
    forged[5] = 3;
    let checksum = sha256(&[&forged[..VALUE.end]]);
    forged[VALUE.end..].copy_from_slice(&checksum);
    let refused = combined(&[&one[0], &forged]);
    assert!(matches!(refused, Err(CombineError::OtherNumbers { at: 1 })));
    assert!(matches!(
        combined(&[]),
        Err(CombineError::TooFew { have: 0, needed: 2 })
    ));
}

#[test]
fn only_thresholds_that_protect_and_can_be_met_are_split_by() {
    let memory = memory();
    let key = key(&memory, &[3; 32]);
    for (threshold, count) in [(0, 3), (1, 3), (4, 3), (2, 1), (2, 11), (11, 11)] {
        let refused = key.split(&memory, threshold, count).err();
        assert!(
            matches!(refused, Some(ShareError::Numbers { .. })),
            "{threshold} of {count}"
        );
    }
    let in_use = memory.slots_in_use();
    let shares = key.split(&memory, 10, 10).expect("split");
    assert_eq!(
        memory.slots_in_use(),
        in_use + 10,
        "and the coefficients are gone"
    );
    drop(shares);
    assert_eq!(memory.slots_in_use(), in_use);
}
