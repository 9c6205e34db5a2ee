//! What a fuzzer does with bytes. The crate's tests run the same functions on a fixed seed, so they are compiled and checked
//! without a fuzzer too.
//!
//! Each function states what must hold for any input, and panics if it does not.

use std::sync::{Arc, LazyLock};

use sealvol_crypto::locked::{KeyMemory, Policy};
use sealvol_crypto::wrap::{self, WrapError};
use sealvol_crypto::{
    EncryptionContext, KeyEncryptionKey, SHARE_BYTES, SHARES_MAX, Share, THRESHOLD_MIN, VolumeKey,
    sha256,
};

struct Keys {
    memory: Arc<KeyMemory>,
    kek: KeyEncryptionKey,
    /// A volume key, wrapped for no context.
    genuine: Vec<u8>,
    /// One of two shares of three.
    share: Vec<u8>,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let policy = Policy {
        require_secretmem: false,
    };
    let memory = KeyMemory::new(policy).expect("locked memory");
    let kek = KeyEncryptionKey::read_from(&memory, &mut [7; 32].as_slice()).expect("32 bytes");
    let bytes: Vec<u8> = (0..64).collect();
    let key = VolumeKey::read_from(&memory, &mut bytes.as_slice()).expect("64 bytes");
    let genuine = wrap::wrap(&kek, &[1; 16], 1, &key, &EncryptionContext::default());
    let mut share = Vec::new();
    let shares = kek.split(&memory, 2, 3).expect("two of three");
    shares[1].write_to(&mut share).expect("a vector takes all");
    Keys {
        memory,
        kek,
        genuine,
        share,
    }
});

/// `data` is a share; if it begins with a zero byte, the rest is laid over a genuine one, and with a one its checksum made anew.
///
/// # Panics
/// If a share is taken whose checksum does not fit, or whose numbers make no sense, or is not the one that was read.
pub(crate) fn share(data: &[u8]) {
    let keys = &*KEYS;
    let mut bytes = data.to_vec();
    if let [sums @ 0..2, at, change @ ..] = data {
        bytes.clone_from(&keys.share);
        for (byte, change) in bytes.iter_mut().skip(usize::from(*at)).zip(change) {
            *byte ^= change;
        }
        if *sums == 1 {
            let body = SHARE_BYTES - 32;
            let checksum = sha256(&[&bytes[..body]]);
            bytes[body..].copy_from_slice(&checksum);
        }
    }
    let Ok(share) = Share::read_from(&keys.memory, &mut bytes.as_slice()) else {
        assert_ne!(bytes, keys.share, "the genuine one is taken");
        return;
    };
    let (body, checksum) = bytes.split_at(SHARE_BYTES - 32);
    assert_eq!(sha256(&[body]), checksum);
    let (threshold, count) = (share.threshold(), share.count());
    assert!((THRESHOLD_MIN..=count).contains(&threshold) && count <= SHARES_MAX);
    assert!((1..=count).contains(&share.index()));
    let mut again = Vec::new();
    share.write_to(&mut again).expect("a vector takes all");
    assert_eq!(again, bytes);
    // Alone it is never enough.
    assert!(KeyEncryptionKey::combine(&keys.memory, &[share]).is_err());
}

/// `data` is a wrapped key; if it begins with a zero byte, the rest is laid over a genuine one, so that the form is right.
///
/// # Panics
/// If anything but the genuine blob unwraps, or what has no form is called refused.
pub(crate) fn wrapped_key(data: &[u8]) {
    let keys = &*KEYS;
    let mut blob = data.to_vec();
    if let [0, at, change @ ..] = data {
        blob.clone_from(&keys.genuine);
        for (byte, change) in blob.iter_mut().skip(usize::from(*at)).zip(change) {
            *byte ^= change;
        }
    }
    let header = wrap::header(&blob);
    let empty = EncryptionContext::default();
    match wrap::unwrap(&keys.memory, &keys.kek, &blob, &empty) {
        Ok(_) => assert_eq!(blob, keys.genuine, "an altered key unwraps"),
        Err(WrapError::Refused) => {
            assert!(header.is_ok() && blob.len() == keys.genuine.len() && blob != keys.genuine);
        }
        Err(_) => assert!(header.is_err()),
    }
    let other = EncryptionContext::new([("a", "b")]).expect("one pair");
    assert!(wrap::unwrap(&keys.memory, &keys.kek, &blob, &other).is_err());
}

/// `data` is texts, each ended by a byte that is no UTF-8; two make a pair.
///
/// # Panics
/// If two different contexts have one encoding, or the order of the pairs matters.
pub(crate) fn context(data: &[u8]) {
    let texts: Vec<_> = data
        .split(|&byte| byte == 0xff)
        .map(|text| String::from_utf8_lossy(text).into_owned())
        .collect();
    let pairs: Vec<_> = texts
        .chunks_exact(2)
        .map(|pair| (pair[0].clone(), pair[1].clone()))
        .collect();
    let mut keys: Vec<_> = pairs.iter().map(|(key, _)| key).collect();
    keys.sort();
    keys.dedup();
    let Ok(context) = EncryptionContext::new(pairs.clone()) else {
        assert!(
            keys.len() < pairs.len(),
            "only a key that occurs twice is refused"
        );
        return;
    };
    assert_eq!(keys.len(), pairs.len(), "a key occurs twice");
    let canonical = context.canonical();
    let backwards = EncryptionContext::new(pairs.into_iter().rev()).expect("the same pairs");
    assert_eq!(backwards.canonical(), canonical);
    let read = read_canonical(&canonical).expect("a canonical encoding can be read");
    let again: Vec<_> = context
        .iter()
        .map(|(key, value)| (key.as_bytes(), value.as_bytes()))
        .collect();
    assert_eq!(read, again, "another context has this encoding too");
}

/// Key and value.
type Pair<'a> = (&'a [u8], &'a [u8]);

/// FORMATS.md section 2, read backwards: the count, then each text behind its length.
fn read_canonical(bytes: &[u8]) -> Option<Vec<Pair<'_>>> {
    let (count, mut rest) = bytes.split_first_chunk()?;
    let mut pairs = Vec::new();
    for _ in 0..u32::from_be_bytes(*count) {
        pairs.push((read_text(&mut rest)?, read_text(&mut rest)?));
    }
    rest.is_empty().then_some(pairs)
}

fn read_text<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, bytes) = rest.split_first_chunk()?;
    let (text, behind) = bytes.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    *rest = behind;
    Some(text)
}
