//! Keys in locked memory, the sector cipher, and the formats in which keys are wrapped: the only
//! crate of the project that can hold a key.
//!
//! ```text
//!   key service ──► VolumeKey (64 bytes) ──► SectorCipher (round keys, MAC keys) ──► volumes
//!                       │       ▲
//!        wrap::wrap ◄───┘       └─── wrap::unwrap          under a KeyEncryptionKey
//! ```
//!
//! # A tour
//! - [`locked`]: the memory that keys lie in, from the kernel up.
//! - [`VolumeKey`], [`KeyEncryptionKey`]: keys before they are used; how they come in and go out.
//! - [`SectorCipher`]: AES-256-XTS and the MACs, with a volume key expanded in its slot.
//! - [`Share`]: shares of a key-encryption key, of which some give it back.
//! - [`SecretBytes`]: messages to and from key services that have a key in them.
//! - [`wrap`], [`EncryptionContext`]: wrapped keys and what they are bound to.
//! - [`clear_residue`]: what the cipher leaves on stack and in registers, and how it goes away.
//! - [`selftest`]: known answers, asked before the first key is loaded.
//!
//! Every byte format is in `FORMATS.md`, exact enough for a second implementation, which the tests
//! have.
//!
//! # What always holds
//! At rest, no key byte is outside locked memory; during a batch of cipher calls, only on the stack
//! and in the registers of the thread that makes them. No type that holds a key is `Clone`, `Debug`
//! or `Serialize`, and no function returns key bytes by value. `unsafe` is in `locked/sys.rs`,
//! `residue.rs` and the vector code only: `xts/avx2.rs`, `xts/avx512.rs` and `xts/schedule.rs`.
//!
//! The crate does no I/O but on the readers and writers that it is given, knows neither async nor
//! any other crate of the project, and does not protect a key from whoever runs code in the process.

mod context;
mod digest;
mod gcm;
mod kdf;
mod key_encryption_key;
pub mod locked;
mod passphrase;
mod process;
mod random;
mod residue;
mod sealed_table;
mod secret_bytes;
mod sector_cipher;
pub mod selftest;
mod shares;
mod volume_key;
pub mod wrap;
mod xts;

pub use context::{ContextError, EncryptionContext};
pub use digest::{constant_time_eq, sha256};
pub use key_encryption_key::{
    KEY_ENCRYPTION_KEY_BYTES, KeyEncryptionKey, SEALED_KEY_ENCRYPTION_KEY_BYTES,
};
pub use passphrase::{Argon2Params, MAX_PASSPHRASE_BYTES, MIN_SALT_BYTES, PassphraseError};
pub use process::{HardenError, harden_process};
pub use random::{RandomError, random};
pub use residue::clear_residue;
pub use sealed_table::TABLE_IMAGE_BYTES_MAX;
pub use secret_bytes::{SecretBytes, SecretTooLong};
pub use sector_cipher::{SectorCipher, UnitSize, UnitSizeError};
pub use shares::{CombineError, SHARE_BYTES, SHARES_MAX, Share, ShareError, THRESHOLD_MIN};
pub use volume_key::{Commitment, KeyError, VOLUME_KEY_BYTES, VolumeKey};
