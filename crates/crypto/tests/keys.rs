//! Keys on their way in and out: streams, passphrases, contexts, slots.

use std::io::{self, Read, Write};
use std::sync::Arc;

use sealvol_crypto::locked::{KeyMemory, Policy};
use sealvol_crypto::{
    Argon2Params, ContextError, EncryptionContext, KeyEncryptionKey, KeyError, PassphraseError,
    SectorCipher, UnitSize, VolumeKey, constant_time_eq, random, sha256,
};

const CHEAP: Argon2Params = Argon2Params {
    memory_kib: 32,
    iterations: 1,
    parallelism: 1,
};

fn memory() -> Arc<KeyMemory> {
    KeyMemory::new(Policy::default()).expect("memory for keys")
}

fn key_bytes() -> [u8; 64] {
    let mut bytes = [0; 64];
    random(&mut bytes);
    bytes
}

/// Gives a byte a call and is interrupted before each.
struct Stuttering<'a> {
    bytes: &'a [u8],
    interrupted: bool,
}

impl Read for Stuttering<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.interrupted = !self.interrupted;
        if self.interrupted {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let one = buf.len().min(1);
        self.bytes.read(&mut buf[..one])
    }
}

/// Fails as a closed connection does.
struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ConnectionReset.into())
    }
}

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn written(write: impl FnOnce(&mut Vec<u8>) -> Result<(), KeyError>) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out).expect("a vector takes all");
    out
}

#[test]
fn a_key_leaves_as_it_came() {
    let (memory, bytes) = (memory(), key_bytes());
    let key = VolumeKey::read_from(&memory, &mut bytes.as_slice()).expect("a key");
    assert_eq!(written(|out| key.write_to(out)), bytes);
}

#[test]
fn a_key_arrives_in_pieces_and_between_interruptions() {
    let (memory, bytes) = (memory(), key_bytes());
    let mut source = Stuttering {
        bytes: &bytes,
        interrupted: false,
    };
    let key = VolumeKey::read_from(&memory, &mut source).expect("a key");
    assert_eq!(written(|out| key.write_to(out)), bytes);
}

#[test]
fn several_keys_follow_each_other_in_one_stream() {
    let memory = memory();
    let (first, second) = (key_bytes(), key_bytes());
    let stream = [first, second].concat();
    let mut stream = stream.as_slice();
    for expected in [first, second] {
        let key = VolumeKey::read_from(&memory, &mut stream).expect("a key");
        assert_eq!(written(|out| key.write_to(out)), expected);
    }
    let none = VolumeKey::read_from(&memory, &mut stream).err();
    assert!(matches!(
        none,
        Some(KeyError::Short {
            expected: 64,
            got: 0
        })
    ));
}

#[test]
fn a_source_that_ends_early_or_fails_gives_no_key_and_keeps_no_slot() {
    let (memory, bytes) = (memory(), key_bytes());
    let short = VolumeKey::read_from(&memory, &mut &bytes[..63]).err();
    assert!(matches!(
        short,
        Some(KeyError::Short {
            expected: 64,
            got: 63
        })
    ));
    assert!(matches!(
        VolumeKey::read_from(&memory, &mut Broken).err(),
        Some(KeyError::Read(_))
    ));
    let short = KeyEncryptionKey::read_from(&memory, &mut &bytes[..31]).err();
    assert!(matches!(
        short,
        Some(KeyError::Short {
            expected: 32,
            got: 31
        })
    ));
    assert_eq!(memory.slots_in_use(), 0);
}

#[test]
fn a_sink_that_fails_is_an_error() {
    let memory = memory();
    let key = VolumeKey::generate(&memory).expect("a key");
    assert!(matches!(key.write_to(&mut Broken), Err(KeyError::Write(_))));
}

#[test]
fn a_master_key_file_with_more_than_a_key_is_refused() {
    let (memory, bytes) = (memory(), key_bytes());
    let long = KeyEncryptionKey::read_from(&memory, &mut &bytes[..33]).err();
    assert!(matches!(long, Some(KeyError::Long { expected: 32 })));
    let key = KeyEncryptionKey::read_from(&memory, &mut &bytes[..32]).expect("a key");
    assert_eq!(written(|out| key.write_to(out)), bytes[..32]);
}

#[test]
fn generated_keys_differ() {
    let memory = memory();
    let keys: Vec<_> = (0..64)
        .map(|_| written(|out| VolumeKey::generate(&memory).expect("a key").write_to(out)))
        .collect();
    let different: std::collections::HashSet<_> = keys.iter().collect();
    assert_eq!(different.len(), 64);
}

#[test]
fn expanding_takes_no_second_slot_and_dropping_gives_the_first_back() {
    let memory = memory();
    let key = VolumeKey::generate(&memory).expect("a key");
    let commitment = key.commitment();
    assert_eq!(memory.slots_in_use(), 1);
    let cipher = key.expand();
    assert_eq!(
        (memory.slots_in_use(), cipher.commitment()),
        (1, commitment)
    );
    drop(cipher);
    assert_eq!(memory.slots_in_use(), 0);
}

#[test]
fn keys_keep_their_slots_apart_while_threads_take_and_return_them() {
    let memory = memory();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let memory = Arc::clone(&memory);
            std::thread::spawn(move || {
                for _ in 0..40 {
                    let keys: Vec<_> = (0..20)
                        .map(|_| {
                            let bytes = key_bytes();
                            let key = VolumeKey::read_from(&memory, &mut bytes.as_slice());
                            (bytes, key.expect("a key"))
                        })
                        .collect();
                    for (bytes, key) in &keys {
                        assert_eq!(written(|out| key.write_to(out)), bytes);
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no thread saw another key");
    }
    assert_eq!(memory.slots_in_use(), 0);
}

#[test]
fn a_cipher_serves_many_threads_at_once() {
    fn shared<T: Send + Sync>(_: &T) {}
    let cipher: SectorCipher = VolumeKey::generate(&memory()).expect("a key").expand();
    shared(&cipher);
    std::thread::scope(|scope| {
        for first in 0..4_u64 {
            let cipher = &cipher;
            scope.spawn(move || {
                let mut data = [first.to_le_bytes()[0]; 8192];
                let plain = data;
                cipher.encrypt_in_place(UnitSize::B4096, first, &mut data);
                assert_ne!(
                    data[..4096],
                    data[4096..],
                    "each data unit has its own tweak"
                );
                cipher.decrypt_in_place(UnitSize::B4096, first, &mut data);
                assert_eq!(data, plain);
            });
        }
    });
}

#[test]
#[should_panic(expected = "source and destination of the cipher have one length")]
fn buffers_of_different_lengths_panic() {
    let cipher = VolumeKey::generate(&memory()).expect("a key").expand();
    cipher.encrypt(UnitSize::B512, 0, &[0; 1024], &mut [0; 512]);
}

#[test]
fn macs_depend_on_the_key_the_label_and_every_byte() {
    let memory = memory();
    let ciphers = [(); 2].map(|()| VolumeKey::generate(&memory).expect("a key").expand());
    let mac = ciphers[0].superblock_mac(&[b"ab", b"c"]);
    assert!(constant_time_eq(
        &mac,
        &ciphers[0].superblock_mac(&[b"a", b"bc"])
    ));
    assert_ne!(mac, ciphers[1].superblock_mac(&[b"abc"]));
    assert_ne!(mac, ciphers[0].superblock_mac(&[b"abd"]));
    assert_ne!(mac[..16], ciphers[0].map_mac(&[b"abc"]));
    assert!(!constant_time_eq(&mac, &mac[..31]));
}

#[test]
fn a_data_unit_is_512_or_4096_bytes() {
    assert_eq!(UnitSize::try_from(512), Ok(UnitSize::B512));
    assert_eq!(UnitSize::try_from(4096), Ok(UnitSize::B4096));
    for other in [0, 511, 1024, 8192, u32::MAX] {
        let refusal = UnitSize::try_from(other).expect_err("no data unit");
        assert_eq!(
            refusal.to_string(),
            format!("{other} is not a sector size; 512 and 4096 are")
        );
    }
}

#[test]
fn a_context_that_names_a_key_twice_is_refused() {
    let twice = EncryptionContext::new([("a", "1"), ("b", "2"), ("a", "1")]);
    assert_eq!(twice, Err(ContextError::DuplicateKey { key: "a".into() }));
}

#[test]
fn contexts_are_equal_exactly_when_their_encodings_are() {
    let encode = |pairs: &[(&str, &str)]| {
        EncryptionContext::new(pairs.iter().copied())
            .expect("different keys")
            .canonical()
    };
    assert_eq!(
        encode(&[("a", "1"), ("b", "2")]),
        encode(&[("b", "2"), ("a", "1")])
    );
    assert_ne!(encode(&[("ab", "c")]), encode(&[("a", "bc")]));
    assert_ne!(encode(&[("a", ""), ("b", "")]), encode(&[("a", "b")]));
    assert_eq!(encode(&[]), [0; 4]);
    assert_eq!(encode(&[("k", "vv")]), b"\0\0\0\x01\0\0\0\x01k\0\0\0\x02vv");
}

#[test]
fn a_passphrase_must_be_there_and_fit() {
    let memory = memory();
    let from = |passphrase: &[u8]| {
        KeyEncryptionKey::from_passphrase(&memory, &mut &*passphrase, &[1; 16], CHEAP)
    };
    for empty in [&b""[..], b"\n", b"\r\n"] {
        assert!(
            matches!(from(empty).err(), Some(PassphraseError::Empty)),
            "{empty:?}"
        );
    }
    assert!(from(&[b'x'; 1023]).is_ok());
    assert!(matches!(
        from(&[b'x'; 1024]).err(),
        Some(PassphraseError::TooLong)
    ));
    assert!(matches!(
        from(&[b'x'; 9999]).err(),
        Some(PassphraseError::TooLong)
    ));
    assert_eq!(memory.slots_in_use(), 0);
}

#[test]
fn a_passphrase_key_depends_on_passphrase_salt_and_cost() {
    let memory = memory();
    let key = |passphrase: &str, salt: u8, params| {
        let mut source = passphrase.as_bytes();
        let key = KeyEncryptionKey::from_passphrase(&memory, &mut source, &[salt; 16], params);
        written(|out| key.expect("a key").write_to(out))
    };
    let first = key("a", 1, CHEAP);
    assert_eq!(first, key("a\n", 1, CHEAP));
    for other in [
        key("b", 1, CHEAP),
        key("a", 2, CHEAP),
        key(
            "a",
            1,
            Argon2Params {
                memory_kib: 40,
                ..CHEAP
            },
        ),
        key(
            "a",
            1,
            Argon2Params {
                iterations: 2,
                ..CHEAP
            },
        ),
        key(
            "a",
            1,
            Argon2Params {
                parallelism: 2,
                ..CHEAP
            },
        ),
    ] {
        assert_ne!(first, other);
    }
}

#[test]
fn parameters_that_argon2_cannot_honour_are_refused() {
    let memory = memory();
    let refusal = |salt: &[u8], params| {
        KeyEncryptionKey::from_passphrase(&memory, &mut &b"a"[..], salt, params)
            .err()
            .expect("a refusal")
    };
    let short = refusal(&[1; 15], CHEAP);
    assert!(
        matches!(short, PassphraseError::ShortSalt { got: 15 }),
        "{short}"
    );
    for params in [
        Argon2Params {
            memory_kib: 7,
            ..CHEAP
        },
        Argon2Params {
            memory_kib: (4 << 20) + 1,
            ..CHEAP
        },
        Argon2Params {
            iterations: 0,
            ..CHEAP
        },
        Argon2Params {
            parallelism: 0,
            ..CHEAP
        },
        Argon2Params {
            parallelism: 5,
            ..CHEAP
        },
    ] {
        let refusal = refusal(&[1; 16], params);
        assert!(
            matches!(refusal, PassphraseError::Params { .. }),
            "{params:?}: {refusal}"
        );
    }
}

#[test]
fn sha256_takes_parts_one_after_the_other() {
    assert_eq!(sha256(&[b"a", b"", b"bc"]), sha256(&[b"abc"]));
    assert_eq!(sha256(&[])[..4], [0xe3, 0xb0, 0xc4, 0x42]);
}

#[test]
fn the_private_key_of_an_import_opens_under_its_key_and_context_only() {
    let memory = memory();
    let [master, other] =
        [(); 2].map(|()| KeyEncryptionKey::generate(&memory).expect("a master key"));
    let context = |of: &str| EncryptionContext::new([("database", of)]).expect("a context");
    for length in [1, 1217, 2375, 4096] {
        let mut private_key = vec![0; length];
        random(&mut private_key);
        let sealed = master.seal_import_key(&private_key, &context("a"), &[7; 16]);
        assert_eq!(sealed.len(), length + 73);
        let opens = |key: &KeyEncryptionKey, blob: &[u8], of: &str| {
            key.with_import_key(blob, &context(of), |opened| opened == private_key)
        };
        assert!(opens(&master, &sealed, "a").expect("opened"));
        assert!(opens(&other, &sealed, "a").is_err());
        assert!(opens(&master, &sealed, "b").is_err());
        for position in (0..sealed.len()).step_by(length / 50 + 1) {
            let mut changed = sealed.clone();
            changed[position] ^= 1;
            assert!(opens(&master, &changed, "a").is_err(), "byte {position}");
        }
        for cut in [0, 4, 57, 72, 73, sealed.len() - 1] {
            let cut = cut.min(sealed.len() - 1);
            assert!(opens(&master, &sealed[..cut], "a").is_err(), "{cut} bytes");
        }
        // It is no key-encryption key, and none passes as it.
        let opened = master.open(&memory, &sealed, &context("a"));
        assert!(opened.is_err());
    }
}

#[test]
fn a_fingerprint_tells_keys_apart_for_one_master_key_and_one_id() {
    let memory = memory();
    let key = |byte: u8| KeyEncryptionKey::read_from(&memory, &mut &[byte; 32][..]).expect("a key");
    let (master, id) = (key(1), [7; 16]);
    let known = master.fingerprint(&id, &key(2));
    assert_eq!(master.fingerprint(&id, &key(2)), known);
    for other in [
        master.fingerprint(&id, &key(3)),
        master.fingerprint(&[8; 16], &key(2)),
        key(4).fingerprint(&id, &key(2)),
        // The MACs that a master key makes differ by what they are for.
        master.table_mac(&id, &[2; 32]),
        master.import_token_mac(&id, &[2; 32]),
    ] {
        assert_ne!(other, known);
    }
}
