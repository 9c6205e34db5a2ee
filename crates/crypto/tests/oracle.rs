//! Every derived byte format against the second implementation in `oracle/formats.py`, which was
//! written from FORMATS.md on Python `cryptography` (OpenSSL): bytes are compared both ways.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sealvol_crypto::locked::{KeyMemory, Policy};
use sealvol_crypto::{
    Argon2Params, EncryptionContext, KeyEncryptionKey, Share, UnitSize, VolumeKey, random, wrap,
};
use serde_json::{Value, json};

const ORACLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracle/formats.py");

struct Oracle {
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Oracle {
    fn start() -> Self {
        let check = "import cryptography.hazmat.primitives.kdf.argon2";
        let check = Command::new("python3").args(["-c", check]).output();
        assert!(
            check.as_ref().is_ok_and(|output| output.status.success()),
            "the second implementation needs python3 with `cryptography` 44 or later:\n    \
             python3 -m pip install 'cryptography>=44'\n{check:?}"
        );
        let mut process = Command::new("python3")
            .arg(ORACLE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        let requests = process.stdin.take().expect("a pipe");
        let answers = BufReader::new(process.stdout.take().expect("a pipe"));
        Self {
            process,
            requests,
            answers,
        }
    }

    fn ask(&mut self, request: &Value) -> Value {
        writeln!(self.requests, "{request}").expect("the oracle reads");
        let mut line = String::new();
        self.answers
            .read_line(&mut line)
            .expect("the oracle answers");
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("no answer to {request}"))
    }

    fn bytes(&mut self, request: &Value) -> Vec<u8> {
        let answer = self.ask(request);
        from_hex(
            answer["bytes"]
                .as_str()
                .unwrap_or_else(|| panic!("{answer}")),
        )
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        // It reads to the end of its input, which comes when `requests` is dropped; a panic of the
        // test must not wait for that.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal");
    (0..text.len()).step_by(2).map(byte).collect()
}

fn memory() -> Arc<KeyMemory> {
    KeyMemory::new(Policy::default()).expect("memory for keys")
}

fn volume_key(memory: &Arc<KeyMemory>, bytes: &[u8; 64]) -> VolumeKey {
    VolumeKey::read_from(memory, &mut bytes.as_slice()).expect("a key")
}

fn kek(memory: &Arc<KeyMemory>, bytes: &[u8; 32]) -> KeyEncryptionKey {
    KeyEncryptionKey::read_from(memory, &mut bytes.as_slice()).expect("a key")
}

fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    random(&mut bytes);
    bytes
}

fn pairs() -> [(&'static str, &'static str); 4] {
    [
        ("sealvol:volume", "6f0c9a6e-0f0b-4a4e-9b5e-1d2c3b4a5968"),
        ("sealvol:data-key", "00000000-0000-4000-8000-000000000001"),
        ("sealvol:params", "äöü €"),
        ("", ""),
    ]
}

fn context() -> EncryptionContext {
    EncryptionContext::new(pairs()).expect("different keys")
}

#[test]
fn the_canonical_context_is_the_same() {
    let oracle = RefCell::new(Oracle::start());
    let pairs = proptest::collection::btree_map(".{0,12}", ".{0,40}", 0..6);
    TestRunner::new(Config::with_cases(200))
        .run(&pairs, |pairs| {
            let reversed: Vec<_> = pairs.iter().rev().collect();
            let request = json!({ "op": "canonical", "pairs": reversed });
            let expected = oracle.borrow_mut().bytes(&request);
            let context = EncryptionContext::new(pairs.clone()).expect("different keys");
            prop_assert_eq!(context.canonical(), expected);
            prop_assert_eq!(context.iter().count(), pairs.len());
            Ok(())
        })
        .expect("the same bytes");
}

#[test]
fn commitment_and_macs_are_the_same() {
    let (mut oracle, memory) = (Oracle::start(), memory());
    for length in [0, 1, 55, 64, 4096] {
        let bytes: [u8; 64] = random_bytes();
        let mut data = vec![0; length];
        random(&mut data);
        let key = volume_key(&memory, &bytes);
        let request = |op: &str| json!({ "op": op, "key": hex(&bytes), "data": hex(&data) });
        let commitment = oracle.bytes(&request("commitment"));
        assert_eq!(key.commitment().0.as_slice(), commitment);
        let cipher = key.expand();
        assert_eq!(cipher.commitment().0.as_slice(), commitment);
        let parts = data.split_at(length / 3);
        let parts = [parts.0, parts.1];
        let superblock = oracle.bytes(&request("superblock mac"));
        assert_eq!(cipher.superblock_mac(&parts).as_slice(), superblock);
        assert_eq!(
            cipher.map_mac(&parts).as_slice(),
            oracle.bytes(&request("map mac"))
        );
    }
}

#[test]
fn a_volume_key_wrapped_here_is_the_same_blob_there_and_unwraps_there() {
    let (mut oracle, memory) = (Oracle::start(), memory());
    for key_version in [0, 1, 0x0102_0304, u32::MAX] {
        let (kek_bytes, secret): ([u8; 32], [u8; 64]) = (random_bytes(), random_bytes());
        let key_id: [u8; 16] = random_bytes();
        let (kek, key) = (kek(&memory, &kek_bytes), volume_key(&memory, &secret));
        let blob = wrap::wrap(&kek, &key_id, key_version, &key, &context());
        let expected = oracle.bytes(&json!({
            "op": "wrap", "kind": "volume key", "kek": hex(&kek_bytes), "key_id": hex(&key_id),
            "key_version": key_version, "nonce": hex(&blob[25..57]), "secret": hex(&secret),
            "pairs": pairs(),
        }));
        assert_eq!(hex(&blob), hex(&expected));
        let unwrapped = oracle.ask(&json!({
            "op": "unwrap", "kind": "volume key", "kek": hex(&kek_bytes), "blob": hex(&blob),
            "pairs": pairs(),
        }));
        assert_eq!(
            unwrapped,
            json!({ "secret": hex(&secret), "key_id": hex(&key_id), "key_version": key_version })
        );
    }
}

#[test]
fn a_volume_key_wrapped_there_unwraps_here() {
    let (mut oracle, memory) = (Oracle::start(), memory());
    let (kek_bytes, secret): ([u8; 32], [u8; 64]) = (random_bytes(), random_bytes());
    let blob = oracle.bytes(&json!({
        "op": "wrap", "kind": "volume key", "kek": hex(&kek_bytes), "key_id": "ab".repeat(16),
        "key_version": 9, "nonce": "cd".repeat(32), "secret": hex(&secret), "pairs": pairs(),
    }));
    let header = wrap::header(&blob).expect("a header");
    assert_eq!((header.key_id, header.key_version), ([0xab; 16], 9));
    let kek = kek(&memory, &kek_bytes);
    let key = wrap::unwrap(&memory, &kek, &blob, &context()).expect("it unwraps");
    let mut out = Vec::new();
    key.write_to(&mut out).expect("a vector takes all");
    assert_eq!(out, secret);
}

#[test]
fn a_sealed_key_encryption_key_is_the_same_both_ways() {
    let (mut oracle, memory) = (Oracle::start(), memory());
    let (master_bytes, target_bytes): ([u8; 32], [u8; 32]) = (random_bytes(), random_bytes());
    let (master, target) = (kek(&memory, &master_bytes), kek(&memory, &target_bytes));
    let blob = master.seal(&target, &context(), &[7; 16], 3);
    let expected = oracle.bytes(&json!({
        "op": "wrap", "kind": "key-encryption key", "kek": hex(&master_bytes),
        "key_id": "07".repeat(16), "key_version": 3, "nonce": hex(&blob[25..57]),
        "secret": hex(&target_bytes), "pairs": pairs(),
    }));
    assert_eq!(hex(&blob), hex(&expected));
    let header = KeyEncryptionKey::sealed_header(&expected).expect("a header");
    assert_eq!((header.key_id, header.key_version), ([7; 16], 3));
    let opened = master
        .open(&memory, &expected, &context())
        .expect("it opens");
    let mut out = Vec::new();
    opened.write_to(&mut out).expect("a vector takes all");
    assert_eq!(out, target_bytes);
}

#[test]
fn ciphertext_is_the_same_both_ways_up_to_the_end_of_64_tib() {
    let (mut oracle, memory) = (Oracle::start(), memory());
    let bytes: [u8; 64] = random_bytes();
    let cipher = volume_key(&memory, &bytes).expand();
    for unit in [UnitSize::B512, UnitSize::B4096] {
        let end = (64_u64 << 40) / unit.bytes() as u64;
        for (first, units) in [
            (0, 1),
            (1, 3),
            (0xffff_fffe, 3),
            (end - 65, 65),
            (u64::MAX, 1),
        ] {
            let mut plain = vec![0; units * unit.bytes()];
            random(&mut plain);
            let request = |data: &[u8], encrypt| {
                json!({
                    "op": "xts", "key": hex(&bytes), "unit_bytes": unit.bytes(),
                    "first_unit": first, "data": hex(data), "encrypt": encrypt,
                })
            };
            let mut out = vec![0; plain.len()];
            cipher.encrypt(unit, first, &plain, &mut out);
            assert_eq!(
                out,
                oracle.bytes(&request(&plain, true)),
                "{unit} {first} {units}"
            );
            cipher.decrypt_in_place(unit, first, &mut out);
            assert_eq!(out, plain);
            cipher.decrypt(unit, first, &plain, &mut out);
            assert_eq!(
                out,
                oracle.bytes(&request(&plain, false)),
                "{unit} {first} {units}"
            );
            cipher.encrypt_in_place(unit, first, &mut out);
            assert_eq!(out, plain);
        }
    }
}

#[test]
fn a_passphrase_gives_the_same_key() {
    let (mut oracle, memory) = (Oracle::start(), memory());
    let params = Argon2Params {
        memory_kib: 64,
        iterations: 2,
        parallelism: 3,
    };
    for (typed, passphrase) in [
        ("correct horse", "correct horse"),
        ("line end\n", "line end"),
        ("carriage return\r\n", "carriage return"),
        ("two\n\n", "two\n"),
        (" spaces count ", " spaces count "),
    ] {
        let key =
            KeyEncryptionKey::from_passphrase(&memory, &mut typed.as_bytes(), &[5; 16], params)
                .expect("a key");
        let mut out = Vec::new();
        key.write_to(&mut out).expect("a vector takes all");
        let expected = oracle.bytes(&json!({
            "op": "passphrase", "passphrase": hex(passphrase.as_bytes()), "salt": "05".repeat(16),
            "iterations": 2, "parallelism": 3, "memory_kib": 64,
        }));
        assert_eq!(out, expected, "{typed:?}");
    }
}

#[test]
fn shares_made_here_give_the_key_there_and_shares_made_there_here() {
    let (mut oracle, memory) = (Oracle::start(), memory());
    for (threshold, count) in [(2_u8, 2), (2, 5), (3, 5), (5, 5), (10, 10)] {
        let bytes: [u8; 32] = random_bytes();
        let shares = kek(&memory, &bytes).split(&memory, threshold, count);
        let stored = |share: &Share| {
            let mut bytes = Vec::new();
            share.write_to(&mut bytes).expect("a vector takes all");
            hex(&bytes)
        };
        let mut shares: Vec<_> = shares.expect("split").iter().map(stored).collect();
        let combined = |oracle: &mut Oracle, shares: &[String]| {
            oracle.ask(&json!({ "op": "combine", "shares": shares }))
        };
        assert_eq!(
            combined(&mut oracle, &shares),
            json!({ "bytes": hex(&bytes) })
        );
        shares.reverse();
        shares.truncate(threshold.into());
        assert_eq!(
            combined(&mut oracle, &shares),
            json!({ "bytes": hex(&bytes) })
        );
        shares.pop();
        assert_eq!(combined(&mut oracle, &shares), json!({ "refused": true }));

        let coefficients: Vec<_> = (1..threshold).map(|_| hex(&random_bytes::<32>())).collect();
        let set: [u8; 16] = random_bytes();
        let answer = oracle.ask(&json!({
            "op": "split", "key": hex(&bytes), "set": hex(&set), "count": count, "coefficients": coefficients,
        }));
        let theirs = answer["shares"].as_array().expect("shares").iter();
        let theirs: Vec<_> = theirs
            .map(|share| {
                let share = from_hex(share.as_str().expect("text"));
                Share::read_from(&memory, &mut share.as_slice()).expect("a share")
            })
            .collect();
        let numbers = |share: &Share| (share.set(), share.threshold(), share.count());
        assert!(
            theirs
                .iter()
                .all(|share| numbers(share) == (set, threshold, count))
        );
        let combined = KeyEncryptionKey::combine(&memory, &theirs).expect("combined");
        let mut out = Vec::new();
        combined.write_to(&mut out).expect("a vector takes all");
        assert_eq!(out, bytes);
    }
}

#[test]
fn the_key_that_a_data_key_seals_a_master_key_by_is_the_same() {
    let (mut oracle, memory) = (Oracle::start(), memory());
    let (bytes, id): ([u8; 64], [u8; 16]) = (random_bytes(), random_bytes());
    let made = KeyEncryptionKey::from_data_key(&memory, &volume_key(&memory, &bytes), &id);
    let mut out = Vec::new();
    let made = made.expect("locked memory");
    made.write_to(&mut out).expect("a vector takes all");
    let request = json!({ "op": "master key wrap", "key": hex(&bytes), "id": hex(&id) });
    assert_eq!(out, oracle.bytes(&request));
}
