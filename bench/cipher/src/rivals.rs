//! The implementations that are compared, each behind the same two calls: data units in, data units out.
//!
//! AWS-LC is called by its C interface, since `aws-lc-rs` offers no XTS: the only `unsafe` here. Every
//! rival keeps its expanded key between calls, as a server would.

use std::ffi::{CStr, c_int};
use std::ptr;

use aes::Aes256;
use aes::cipher::{Array, KeyInit};
use aws_lc_sys as aws;
use openssl::cipher::Cipher;
use openssl::cipher_ctx::CipherCtx;
use sealvol_crypto::locked::{KeyMemory, Policy};
use sealvol_crypto::{SectorCipher, UnitSize, VolumeKey};
use xts_mode::{Xts128, get_tweak_default};

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Encrypt,
    Decrypt,
}

/// AES-256-XTS with one key.
pub trait Rival {
    fn name(&self) -> &'static str;

    /// Ciphers data units of `unit` bytes from `from` into `to`, numbered from `first`.
    fn run(&mut self, direction: Direction, unit: UnitSize, first: u64, from: &[u8], to: &mut [u8]);
}

/// All of them; the first is ours, the second the one that ratios are against.
pub fn all(key: &[u8; 64]) -> Vec<Box<dyn Rival>> {
    vec![
        Box::new(Sealvol::new(key)),
        Box::new(AwsLc::new(key)),
        Box::new(OpenSsl::new(key)),
        Box::new(XtsMode::new(key)),
        Box::new(Copy),
    ]
}

/// What the C libraries say they are.
pub fn versions() -> [String; 2] {
    // SAFETY: gives a constant string that ends with a zero byte.
    let aws = unsafe { CStr::from_ptr(aws::OpenSSL_version(0)) };
    [
        aws.to_string_lossy().into(),
        openssl::version::version().into(),
    ]
}

struct Sealvol(SectorCipher);

impl Sealvol {
    fn new(key: &[u8; 64]) -> Self {
        let memory = KeyMemory::new(Policy::default()).expect("memory for keys");
        let key = VolumeKey::read_from(&memory, &mut key.as_slice()).expect("a key");
        Self(key.expand())
    }
}

impl Rival for Sealvol {
    fn name(&self) -> &'static str {
        "sealvol"
    }

    fn run(
        &mut self,
        direction: Direction,
        unit: UnitSize,
        first: u64,
        from: &[u8],
        to: &mut [u8],
    ) {
        match direction {
            Direction::Encrypt => self.0.encrypt(unit, first, from, to),
            Direction::Decrypt => self.0.decrypt(unit, first, from, to),
        }
    }
}

/// A context for each direction, keyed once; each data unit sets its tweak.
struct AwsLc {
    contexts: [*mut aws::EVP_CIPHER_CTX; 2],
}

impl AwsLc {
    fn new(key: &[u8; 64]) -> Self {
        let contexts = [1, 0].map(|encrypt| {
            // SAFETY: a new context, keyed with as many bytes as AES-256-XTS takes (64 and 16); null
            // stands for no engine.
            unsafe {
                let context = aws::EVP_CIPHER_CTX_new();
                let (cipher, tweak) = (aws::EVP_aes_256_xts(), [0; 16]);
                let keyed = aws::EVP_CipherInit_ex(
                    context,
                    cipher,
                    ptr::null_mut(),
                    key.as_ptr(),
                    tweak.as_ptr(),
                    encrypt,
                );
                assert_eq!(keyed, 1, "AWS-LC takes the key");
                context
            }
        });
        Self { contexts }
    }
}

impl Drop for AwsLc {
    fn drop(&mut self) {
        for context in self.contexts {
            // SAFETY: made by `EVP_CIPHER_CTX_new`, and not used again.
            unsafe { aws::EVP_CIPHER_CTX_free(context) };
        }
    }
}

impl Rival for AwsLc {
    fn name(&self) -> &'static str {
        "AWS-LC"
    }

    fn run(
        &mut self,
        direction: Direction,
        unit: UnitSize,
        first: u64,
        from: &[u8],
        to: &mut [u8],
    ) {
        assert_eq!(from.len(), to.len());
        let context = self.contexts[usize::from(direction == Direction::Decrypt)];
        let units = from
            .chunks_exact(unit.bytes())
            .zip(to.chunks_exact_mut(unit.bytes()));
        for (number, (from, to)) in (first..).zip(units) {
            let tweak = u128::from(number).to_le_bytes();
            let mut written = 0;
            // SAFETY: the context is keyed; null keeps what it has, and -1 its direction. Both
            // areas have the length that is passed, and XTS writes as much as it reads.
            let done = unsafe {
                aws::EVP_CipherInit_ex(
                    context,
                    ptr::null(),
                    ptr::null_mut(),
                    ptr::null(),
                    tweak.as_ptr(),
                    -1,
                );
                aws::EVP_CipherUpdate(
                    context,
                    to.as_mut_ptr(),
                    &raw mut written,
                    from.as_ptr(),
                    c_int::try_from(from.len()).expect("a data unit"),
                )
            };
            assert_eq!(done, 1, "AWS-LC ciphers");
        }
    }
}

struct OpenSsl {
    contexts: [CipherCtx; 2],
}

impl OpenSsl {
    fn new(key: &[u8; 64]) -> Self {
        let mut contexts = [(); 2].map(|()| CipherCtx::new().expect("a context"));
        let (cipher, tweak) = (Cipher::aes_256_xts(), [0; 16]);
        let [encrypt, decrypt] = &mut contexts;
        encrypt
            .encrypt_init(Some(cipher), Some(key), Some(&tweak))
            .expect("OpenSSL takes the key");
        decrypt
            .decrypt_init(Some(cipher), Some(key), Some(&tweak))
            .expect("OpenSSL takes the key");
        Self { contexts }
    }
}

impl Rival for OpenSsl {
    fn name(&self) -> &'static str {
        "OpenSSL"
    }

    fn run(
        &mut self,
        direction: Direction,
        unit: UnitSize,
        first: u64,
        from: &[u8],
        to: &mut [u8],
    ) {
        let [encrypt, decrypt] = &mut self.contexts;
        let units = from
            .chunks_exact(unit.bytes())
            .zip(to.chunks_exact_mut(unit.bytes()));
        for (number, (from, to)) in (first..).zip(units) {
            let tweak = u128::from(number).to_le_bytes();
            let context = match direction {
                Direction::Encrypt => {
                    encrypt
                        .encrypt_init(None, None, Some(&tweak))
                        .expect("a tweak");
                    &mut *encrypt
                }
                Direction::Decrypt => {
                    decrypt
                        .decrypt_init(None, None, Some(&tweak))
                        .expect("a tweak");
                    &mut *decrypt
                }
            };
            context
                .cipher_update(from, Some(to))
                .expect("OpenSSL ciphers");
        }
    }
}

/// Works in place only, so that its copy is counted.
struct XtsMode(Xts128<Aes256>);

impl XtsMode {
    fn new(key: &[u8; 64]) -> Self {
        let half = |at: usize| Aes256::new(&Array::try_from(&key[at..at + 32]).expect("32 bytes"));
        Self(Xts128::new(half(0), half(32)))
    }
}

impl Rival for XtsMode {
    fn name(&self) -> &'static str {
        "xts-mode"
    }

    fn run(
        &mut self,
        direction: Direction,
        unit: UnitSize,
        first: u64,
        from: &[u8],
        to: &mut [u8],
    ) {
        to.copy_from_slice(from);
        let (unit, first) = (unit.bytes(), first.into());
        match direction {
            Direction::Encrypt => self.0.encrypt_area(to, unit, first, get_tweak_default),
            Direction::Decrypt => self.0.decrypt_area(to, unit, first, get_tweak_default),
        }
    }
}

/// No cipher: what moving the bytes alone costs.
struct Copy;

impl Rival for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn run(&mut self, _: Direction, _: UnitSize, _: u64, from: &[u8], to: &mut [u8]) {
        to.copy_from_slice(from);
    }
}
