//! Known answers of every algorithm and format, asked before the first key is loaded.
//!
//! The answers come from the standards, or from the second implementation of the tests where the
//! format is our own; none was made by the code under test. The same functions answer that serve
//! real keys, with the processor's instructions that real keys get.

use std::sync::Arc;

use zeroize::Zeroizing;

use crate::context::EncryptionContext;
use crate::digest::sha256;
use crate::gcm;
use crate::kdf;
use crate::key_encryption_key::KeyEncryptionKey;
use crate::locked::KeyMemory;
use crate::sector_cipher::{UnitSize, hmac_sha256};
use crate::volume_key::{KeyError, VolumeKey};
use crate::wrap::{self, VolumeKeyFormat, WrapError, WrapHeader};

/// The self-test failed: nothing that this program encrypts or decrypts can be relied on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SelfTestError {
    /// An answer is wrong.
    #[error(
        "the cryptographic self-test {test:?} gives a wrong answer; no key is used. Suspect the \
         processor, its memory, or the build, and run it on another machine"
    )]
    WrongAnswer {
        /// Name of the test.
        test: &'static str,
    },
    /// The test needs locked memory and there is none.
    #[error("the cryptographic self-test {test:?} cannot run: {source}")]
    CannotRun {
        /// Name of the test.
        test: &'static str,
        /// Why.
        source: KeyError,
    },
}

/// What was tested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Names of the tests, each of which gave the right answer, in the order they ran.
    pub tests: Vec<&'static str>,
}

/// A known-answer test.
struct KnownAnswer {
    name: &'static str,
    /// In hexadecimal.
    expected: &'static str,
    compute: fn(&Arc<KeyMemory>) -> Result<Vec<u8>, KeyError>,
}

/// Runs all known-answer tests.
///
/// # Errors
/// The first wrong answer, or no locked memory to run with.
pub fn run(memory: &Arc<KeyMemory>) -> Result<Report, SelfTestError> {
    run_damaged(memory, None)
}

/// As [`run`], with one bit of the answer of the test named `damaged` flipped: so that a test can
/// see that a wrong answer is noticed and what follows from it.
///
/// # Errors
/// As for [`run`].
pub fn run_damaged(
    memory: &Arc<KeyMemory>,
    damaged: Option<&str>,
) -> Result<Report, SelfTestError> {
    let mut tests = Vec::with_capacity(TESTS.len());
    for &KnownAnswer {
        name: test,
        expected,
        compute,
    } in TESTS
    {
        let mut answer =
            compute(memory).map_err(|source| SelfTestError::CannotRun { test, source })?;
        if damaged == Some(test) {
            answer[0] ^= 1;
        }
        if hexadecimal(&answer) != expected {
            return Err(SelfTestError::WrongAnswer { test });
        }
        tests.push(test);
    }
    Ok(Report { tests })
}

const TESTS: &[KnownAnswer] = &[
    KnownAnswer {
        name: "SHA-256",
        // FIPS 180-4 example: "abc".
        expected: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        compute: |_| Ok(sha256(&[b"a", b"bc"]).into()),
    },
    KnownAnswer {
        name: "HMAC-SHA-256",
        // RFC 4231 section 4.3.
        expected: "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        compute: |_| Ok(hmac_sha256(b"Jefe", &[b"what do ya want ", b"for nothing?"]).into()),
    },
    KnownAnswer {
        name: "HKDF-SHA-256",
        // RFC 5869 appendix A.1.
        expected: "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        compute: |_| {
            let salt: Vec<u8> = (0..=0x0c).collect();
            let info: Vec<u8> = (0xf0..=0xf9).collect();
            Ok(kdf::derive::<42>(&[0x0b; 22], &salt, &info).to_vec())
        },
    },
    KnownAnswer {
        name: "AES-256-GCM encryption",
        // McGrew and Viega, "The Galois/Counter Mode of Operation", appendix B, test case 14.
        expected: "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919",
        compute: |_| {
            let mut answer = [0; 32];
            let (cipher, tag) = answer.split_at_mut(16);
            tag.copy_from_slice(&gcm::seal(&Zeroizing::new([0; 44]), &[], &[0; 16], cipher));
            Ok(answer.into())
        },
    },
    KnownAnswer {
        name: "AES-256-GCM refusal",
        expected: "00",
        compute: |_| {
            let opened = gcm::open(
                &Zeroizing::new([0; 44]),
                &[],
                &[0; 16],
                &[0; 16],
                &mut [0; 16],
            );
            Ok(vec![opened.is_ok().into()])
        },
    },
    KnownAnswer {
        name: "AES-256-XTS encryption, 512-byte data units",
        // IEEE 1619-2018 annex B, vector 10: SHA-256 of the ciphertext.
        expected: "e97e974fa393af794f7a4684395814cf820de60a01eaec677d87b452e316b364",
        compute: |memory| xts(memory, UnitSize::B512, 0xff, &sequence(512), false),
    },
    KnownAnswer {
        name: "AES-256-XTS decryption, 512-byte data units",
        // Second implementation, as for all decryption here.
        expected: "ca3606816acd8baebb2ec449addece25868d7628ad122756ce42641af59caa25",
        compute: |memory| xts(memory, UnitSize::B512, 0xff, &sequence(512), true),
    },
    KnownAnswer {
        name: "AES-256-XTS encryption, 4096-byte data units",
        // Second implementation: SHA-256 of the ciphertext of the last two data units of 64 TiB.
        expected: "ea6b8103a58f32af5819f41e408152024814fe95133555ec12f67cffad7c021e",
        compute: |memory| {
            xts(
                memory,
                UnitSize::B4096,
                0x3_ffff_ffff,
                &pattern(8192),
                false,
            )
        },
    },
    KnownAnswer {
        name: "AES-256-XTS decryption, 4096-byte data units",
        expected: "d856cf3d8e51b546fed5c5c95f9fdba4ace95a177727e4c1740e37ebf3cad6d7",
        compute: |memory| xts(memory, UnitSize::B4096, 0x3_ffff_ffff, &pattern(8192), true),
    },
    KnownAnswer {
        name: "volume key commitment",
        // Second implementation.
        expected: "87b6a24ddb485e66a3bd563a21d2db4577ed5752520d5508cc2d2959582a9b9d",
        compute: |memory| Ok(volume_key(memory)?.commitment().0.into()),
    },
    KnownAnswer {
        name: "wrap format 1",
        // Second implementation.
        expected: "5356776b01808182838485868788898a8b8c8d8e8f00000007404142434445464748494a4b4c4d4e4f\
                   505152535455565758595a5b5c5d5e5f8ff28ab45a0b59f1fdeea03743903880ca5898e0e79cfc6211\
                   22ae2e4d435ba1f1b4381e1ce6fb5d1a574309531584fc55feba4b800000b5c2f3c21091a70f19bb71\
                   f7f459534c078d3985fa6f33028c",
        compute: |memory| wrapped(memory),
    },
    KnownAnswer {
        name: "unwrapping",
        // The commitment to the key that was wrapped, then the refusal of another context.
        expected: "87b6a24ddb485e66a3bd563a21d2db4577ed5752520d5508cc2d2959582a9b9d01",
        compute: |memory| {
            let (kek, blob) = (kek(memory)?, wrapped(memory)?);
            let unwrapped = wrap::unwrap(memory, &kek, &blob, &context());
            let mut answer = unwrapped.map_or_else(|_| vec![0], |key| key.commitment().0.into());
            let other = wrap::unwrap(memory, &kek, &blob, &EncryptionContext::default());
            answer.push(matches!(other, Err(WrapError::Refused)).into());
            Ok(answer)
        },
    },
];

/// The key of IEEE 1619-2018 annex B, vector 10: digits of e, then of π.
const VOLUME_KEY: [u8; 64] = [
    0x27, 0x18, 0x28, 0x18, 0x28, 0x45, 0x90, 0x45, 0x23, 0x53, 0x60, 0x28, 0x74, 0x71, 0x35, 0x26,
    0x62, 0x49, 0x77, 0x57, 0x24, 0x70, 0x93, 0x69, 0x99, 0x59, 0x57, 0x49, 0x66, 0x96, 0x76, 0x27,
    0x31, 0x41, 0x59, 0x26, 0x53, 0x58, 0x97, 0x93, 0x23, 0x84, 0x62, 0x64, 0x33, 0x83, 0x27, 0x95,
    0x02, 0x88, 0x41, 0x97, 0x16, 0x93, 0x99, 0x37, 0x51, 0x05, 0x82, 0x09, 0x74, 0x94, 0x45, 0x92,
];

fn volume_key(memory: &Arc<KeyMemory>) -> Result<VolumeKey, KeyError> {
    VolumeKey::read_from(memory, &mut VOLUME_KEY.as_slice())
}

fn kek(memory: &Arc<KeyMemory>) -> Result<KeyEncryptionKey, KeyError> {
    KeyEncryptionKey::read_from(memory, &mut ascending::<32>(0).as_slice())
}

fn context() -> EncryptionContext {
    EncryptionContext::new([("sealvol:volume", "0"), ("sealvol:data-key", "1")])
        .expect("two different keys")
}

fn wrapped(memory: &Arc<KeyMemory>) -> Result<Vec<u8>, KeyError> {
    let (kek, key) = (kek(memory)?, volume_key(memory)?);
    let header = WrapHeader {
        key_id: ascending(0x80),
        key_version: 7,
    };
    let nonce = ascending(0x40);
    Ok(wrap::seal::<VolumeKeyFormat>(
        &kek,
        header,
        nonce,
        key.bytes(),
        &context(),
    ))
}

/// SHA-256 of `data` after the cipher.
fn xts(
    memory: &Arc<KeyMemory>,
    unit: UnitSize,
    first_unit: u64,
    data: &[u8],
    decrypt: bool,
) -> Result<Vec<u8>, KeyError> {
    let cipher = volume_key(memory)?.expand();
    let mut out = vec![0; data.len()];
    if decrypt {
        cipher.decrypt(unit, first_unit, data, &mut out);
    } else {
        cipher.encrypt(unit, first_unit, data, &mut out);
    }
    Ok(sha256(&[&out]).into())
}

fn ascending<const N: usize>(first: u8) -> [u8; N] {
    let mut bytes = [first; N];
    for (byte, offset) in bytes.iter_mut().zip(0..) {
        *byte += offset;
    }
    bytes
}

/// 0, 1, … 255, again and again: the plaintext of IEEE 1619-2018.
fn sequence(len: usize) -> Vec<u8> {
    (0..=255).cycle().take(len).collect()
}

/// The same, each run of 256 begun 31 higher than the last, so that no two data units are alike.
fn pattern(len: usize) -> Vec<u8> {
    (0..)
        .map(|at: usize| (at / 256 * 31 + at).to_le_bytes()[0])
        .take(len)
        .collect()
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
