//! What unwrapping refuses, and that equal halves are refused at each of the three ways in.

use super::*;
use crate::locked::Policy;
use crate::volume_key::KeyError;

const KEY_ID: [u8; 16] = [3; 16];

struct Fixture {
    memory: Arc<KeyMemory>,
    kek: KeyEncryptionKey,
    blob: Vec<u8>,
}

fn fixture() -> Fixture {
    let memory = KeyMemory::new(Policy::default()).expect("memory for keys");
    let kek = KeyEncryptionKey::generate(&memory).expect("a key");
    let key = VolumeKey::generate(&memory).expect("a key");
    let blob = wrap(&kek, &KEY_ID, 2, &key, &context());
    Fixture { memory, kek, blob }
}

fn context() -> EncryptionContext {
    EncryptionContext::new([("volume", "a"), ("data-key", "b")]).expect("different keys")
}

impl Fixture {
    /// Why `blob` is refused; panics when it is not.
    fn refusal(&self, blob: &[u8], context: &EncryptionContext) -> WrapError {
        let slots = self.memory.slots_in_use();
        let refusal = unwrap(&self.memory, &self.kek, blob, context)
            .err()
            .expect("a refusal");
        assert_eq!(
            self.memory.slots_in_use(),
            slots,
            "a refusal gives its slot back"
        );
        refusal
    }
}

#[test]
fn the_untouched_blob_unwraps() {
    let fixture = fixture();
    unwrap(&fixture.memory, &fixture.kek, &fixture.blob, &context()).expect("it unwraps");
    assert_eq!(fixture.blob.len(), WRAPPED_VOLUME_KEY_BYTES);
}

#[test]
fn a_blob_with_any_bit_flipped_is_refused() {
    let fixture = fixture();
    for bit in 0..fixture.blob.len() * 8 {
        let mut blob = fixture.blob.clone();
        blob[bit / 8] ^= 1 << (bit % 8);
        let refusal = fixture.refusal(&blob, &context());
        let expected = match bit / 8 {
            0..4 => matches!(refusal, WrapError::NotWrapped),
            4 => matches!(refusal, WrapError::NewerFormat { found } if found == blob[4]),
            _ => matches!(refusal, WrapError::Refused),
        };
        assert!(expected, "bit {bit}: {refusal}");
    }
}

#[test]
fn a_blob_that_is_cut_off_or_goes_on_is_refused() {
    let fixture = fixture();
    for len in 0..fixture.blob.len() {
        let refusal = fixture.refusal(&fixture.blob[..len], &context());
        assert!(
            matches!(refusal, WrapError::Length { got, .. } if got == len),
            "{refusal}"
        );
    }
    let longer = [&fixture.blob[..], &[0]].concat();
    assert!(matches!(
        fixture.refusal(&longer, &context()),
        WrapError::Length { got: 138, .. }
    ));
}

#[test]
fn another_context_is_refused() {
    let fixture = fixture();
    for pairs in [
        vec![],
        vec![("volume", "a")],
        vec![("volume", "a"), ("data-key", "c")],
        vec![("volume", "b"), ("data-key", "a")],
        vec![("volume", "a"), ("data-keyb", "")],
        vec![("volume", "a"), ("data-key", "b"), ("", "")],
    ] {
        let context = EncryptionContext::new(pairs.clone()).expect("different keys");
        let refusal = fixture.refusal(&fixture.blob, &context);
        assert!(
            matches!(refusal, WrapError::Refused),
            "{pairs:?}: {refusal}"
        );
    }
}

#[test]
fn another_key_is_refused() {
    let fixture = fixture();
    let other = KeyEncryptionKey::generate(&fixture.memory).expect("a key");
    let refusal = unwrap(&fixture.memory, &other, &fixture.blob, &context()).err();
    assert!(matches!(refusal, Some(WrapError::Refused)));
}

#[test]
fn a_blob_with_swapped_halves_of_its_ciphertext_is_refused() {
    let fixture = fixture();
    let mut blob = fixture.blob.clone();
    let (k1, k2) = blob[HEADER_BYTES..HEADER_BYTES + VOLUME_KEY_BYTES].split_at_mut(32);
    k1.swap_with_slice(k2);
    assert!(matches!(
        fixture.refusal(&blob, &context()),
        WrapError::Refused
    ));
}

#[test]
fn the_head_of_one_blob_on_the_ciphertext_of_another_is_refused() {
    let fixture = fixture();
    let key = VolumeKey::generate(&fixture.memory).expect("a key");
    let other = wrap(&fixture.kek, &KEY_ID, 2, &key, &context());
    let mixed = [&fixture.blob[..HEADER_BYTES], &other[HEADER_BYTES..]].concat();
    assert!(matches!(
        fixture.refusal(&mixed, &context()),
        WrapError::Refused
    ));
}

#[test]
fn a_sealed_key_encryption_key_is_no_wrapped_volume_key_and_the_reverse() {
    let fixture = fixture();
    let sealed = fixture.kek.seal(&fixture.kek, &context(), &KEY_ID, 2);
    assert!(matches!(
        fixture.refusal(&sealed, &context()),
        WrapError::NotWrapped
    ));
    let opened = fixture
        .kek
        .open(&fixture.memory, &fixture.blob, &context())
        .err();
    assert!(matches!(opened, Some(WrapError::NotWrapped)));
}

#[test]
fn a_sealed_key_encryption_key_with_any_byte_changed_is_refused() {
    let fixture = fixture();
    let sealed = fixture.kek.seal(&fixture.kek, &context(), &KEY_ID, 2);
    fixture
        .kek
        .open(&fixture.memory, &sealed, &context())
        .expect("untouched, it opens");
    for at in 0..sealed.len() {
        let mut changed = sealed.clone();
        changed[at] ^= 0x80;
        assert!(
            fixture
                .kek
                .open(&fixture.memory, &changed, &context())
                .is_err(),
            "byte {at}"
        );
    }
    let other = EncryptionContext::default();
    let opened = fixture.kek.open(&fixture.memory, &sealed, &other).err();
    assert!(matches!(opened, Some(WrapError::Refused)));
}

#[test]
fn two_wraps_of_one_key_share_nothing_but_their_head() {
    let fixture = fixture();
    let key = VolumeKey::generate(&fixture.memory).expect("a key");
    let wraps = [(); 2].map(|()| wrap(&fixture.kek, &KEY_ID, 2, &key, &context()));
    assert_eq!(wraps[0][..NONCE_AT], wraps[1][..NONCE_AT]);
    for at in [NONCE_AT, HEADER_BYTES, HEADER_BYTES + VOLUME_KEY_BYTES] {
        assert_ne!(wraps[0][at..at + 16], wraps[1][at..at + 16], "at {at}");
    }
}

#[test]
fn equal_halves_are_refused_at_unwrapping() {
    let fixture = fixture();
    let header = WrapHeader {
        key_id: KEY_ID,
        key_version: 2,
    };
    let blob = seal::<VolumeKeyFormat>(&fixture.kek, header, fresh_nonce(), &[7; 64], &context());
    assert!(matches!(
        fixture.refusal(&blob, &context()),
        WrapError::HalvesEqual
    ));
}

#[test]
fn equal_halves_are_refused_at_import() {
    let fixture = fixture();
    let imported = VolumeKey::read_from(&fixture.memory, &mut [7; 64].as_slice()).err();
    assert!(matches!(imported, Some(KeyError::HalvesEqual)));
    let mut almost = [7; 64];
    almost[63] = 8;
    VolumeKey::read_from(&fixture.memory, &mut almost.as_slice()).expect("they differ by a bit");
}

#[test]
fn equal_halves_are_refused_at_generation() {
    let fixture = fixture();
    // A broken generator: the same entry that `generate` uses.
    let broken = |bytes: &mut [u8; 64]| {
        bytes.fill(7);
        Ok::<(), KeyError>(())
    };
    assert!(matches!(
        VolumeKey::fill(&fixture.memory, broken).err(),
        Some(KeyError::HalvesEqual)
    ));
}
