//! The key-encryption key: 256 bits that wrap volume keys or seal other key-encryption keys.
//!
//! It lies in a locked slot like every key; it is derived from, never used as, a key of AES-GCM
//! (each wrap has its own, see `wrap.rs`).

use std::io::{Read, Write};
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::context::EncryptionContext;
use crate::kdf;
use crate::locked::{KeyMemory, LockedError, Slot};
use crate::random;
use crate::residue::with_cleared_residue;
use crate::sector_cipher::hmac_sha256;
use crate::volume_key::{KeyError, VolumeKey, read_exact};
use crate::wrap::{self, Format, WrapError, WrapHeader};

/// Bytes of a key-encryption key.
pub const KEY_ENCRYPTION_KEY_BYTES: usize = 32;

/// Bytes of a sealed key-encryption key.
pub const SEALED_KEY_ENCRYPTION_KEY_BYTES: usize = SealedKeyFormat::BLOB_BYTES;

/// A key-encryption key under another one.
struct SealedKeyFormat;

impl Format for SealedKeyFormat {
    const MAGIC: [u8; 4] = *b"SVsk";
    const LABEL: &'static [u8] = kdf::SEAL;
    const SECRET_BYTES: usize = KEY_ENCRYPTION_KEY_BYTES;
}

/// Most bytes of the private key of an import: one of RSA-4096 has about 2,400 (PKCS #8).
const IMPORT_KEY_BYTES_MAX: usize = 4096;

/// The private key that key material is imported by, under a key-encryption key.
struct SealedImportKeyFormat;

impl Format for SealedImportKeyFormat {
    const MAGIC: [u8; 4] = *b"SVsi";
    const LABEL: &'static [u8] = kdf::SEAL_IMPORT;
    const SECRET_BYTES: usize = IMPORT_KEY_BYTES_MAX;

    fn may_have(bytes: usize) -> bool {
        (1..=IMPORT_KEY_BYTES_MAX).contains(&bytes)
    }
}

/// A key-encryption key in locked memory.
pub struct KeyEncryptionKey {
    /// The key, then zeros.
    slot: Slot,
}

impl KeyEncryptionKey {
    /// A new key from the kernel's generator, written straight into locked memory.
    ///
    /// # Errors
    /// No locked memory or no generator.
    pub fn generate(memory: &Arc<KeyMemory>) -> Result<Self, KeyError> {
        Self::fill(memory, |bytes| Ok(random::fill(bytes)?))
    }

    /// Reads the whole of `source`, which must be exactly 32 bytes, straight into locked memory.
    ///
    /// # Errors
    /// No locked memory; a source that fails, ends early or goes on.
    pub fn read_from(memory: &Arc<KeyMemory>, source: &mut impl Read) -> Result<Self, KeyError> {
        let expected = KEY_ENCRYPTION_KEY_BYTES;
        let mut slot = memory.slot()?;
        let got = read_to_end(source, &mut slot.bytes_mut()[..=expected])?;
        match got {
            _ if got < expected => Err(KeyError::Short { expected, got }),
            _ if got > expected => Err(KeyError::Long { expected }),
            _ => Ok(Self { slot }),
        }
    }

    /// The key that a master key is sealed by when a data key of another key service protects it: made of that data key. `id` is
    /// the master key's own.
    ///
    /// # Errors
    /// No locked memory.
    pub fn from_data_key(
        memory: &Arc<KeyMemory>,
        data_key: &VolumeKey,
        id: &[u8; 16],
    ) -> Result<Self, LockedError> {
        Self::fill(memory, |bytes| {
            let derived =
                kdf::derive::<KEY_ENCRYPTION_KEY_BYTES>(data_key.bytes(), id, kdf::MASTER_KEY_WRAP);
            bytes.copy_from_slice(derived.as_slice());
            Ok(())
        })
    }

    /// Writes the 32 bytes, straight from locked memory: to create the master key file, mode 0600.
    ///
    /// # Errors
    /// When the sink refuses the bytes.
    pub fn write_to(&self, sink: &mut impl Write) -> Result<(), KeyError> {
        sink.write_all(self.bytes()).map_err(KeyError::Write)
    }

    /// Encrypts `target`, known to the outside as `id` and `version`, under this key.
    pub fn seal(
        &self,
        target: &Self,
        context: &EncryptionContext,
        id: &[u8; 16],
        version: u32,
    ) -> Vec<u8> {
        let header = WrapHeader {
            key_id: *id,
            key_version: version,
        };
        wrap::seal::<SealedKeyFormat>(self, header, wrap::fresh_nonce(), target.bytes(), context)
    }

    /// Decrypts what [`KeyEncryptionKey::seal`] made, into locked memory.
    ///
    /// # Errors
    /// A blob that is malformed, of a newer format, or does not authenticate under this key and
    /// `context`; no locked memory.
    pub fn open(
        &self,
        memory: &Arc<KeyMemory>,
        blob: &[u8],
        context: &EncryptionContext,
    ) -> Result<Self, WrapError> {
        Self::fill(memory, |bytes| {
            wrap::open::<SealedKeyFormat>(self, blob, context, bytes)
        })
    }

    /// Id and version of the key in a sealed blob. Authenticated only by opening it.
    ///
    /// # Errors
    /// A blob that is malformed or of a newer format.
    pub fn sealed_header(blob: &[u8]) -> Result<WrapHeader, WrapError> {
        wrap::parse::<SealedKeyFormat>(blob)
    }

    /// Authenticates the table of the keys that this key seals: what is said of them, not the keys. `id` is the table's own.
    pub fn table_mac(&self, id: &[u8; 16], table: &[u8]) -> [u8; 32] {
        self.mac(id, kdf::TABLE_MAC, table)
    }

    /// Authenticates a token of an import, which comes back from outside. `id` is that of the table of keys.
    pub fn import_token_mac(&self, id: &[u8; 16], token: &[u8]) -> [u8; 32] {
        self.mac(id, kdf::IMPORT_TOKEN_MAC, token)
    }

    /// What another key is recognised by, by whoever has this one and by nobody else. `id` is the other one's.
    pub fn fingerprint(&self, id: &[u8; 16], other: &Self) -> [u8; 32] {
        self.mac(id, kdf::FINGERPRINT, other.bytes())
    }

    /// Encrypts the private key of an import, which is no key-encryption key and need not lie in locked memory.
    ///
    /// # Panics
    /// If it has no byte, or more than 4096.
    pub fn seal_import_key(
        &self,
        private_key: &[u8],
        context: &EncryptionContext,
        id: &[u8; 16],
    ) -> Vec<u8> {
        let header = WrapHeader {
            key_id: *id,
            key_version: 0,
        };
        let nonce = wrap::fresh_nonce();
        wrap::seal::<SealedImportKeyFormat>(self, header, nonce, private_key, context)
    }

    /// Decrypts what [`KeyEncryptionKey::seal_import_key`] made, for as long as `with` works.
    ///
    /// # Errors
    /// As [`KeyEncryptionKey::open`].
    pub fn with_import_key<T>(
        &self,
        blob: &[u8],
        context: &EncryptionContext,
        with: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, WrapError> {
        wrap::parse::<SealedImportKeyFormat>(blob)?;
        let mut private_key = Zeroizing::new(vec![0; wrap::secret_bytes(blob).unwrap_or(0)]);
        wrap::open::<SealedImportKeyFormat>(self, blob, context, &mut private_key)?;
        Ok(with(&private_key))
    }

    fn mac(&self, salt: &[u8; 16], label: &[u8], message: &[u8]) -> [u8; 32] {
        with_cleared_residue(|| {
            let key = kdf::derive::<32>(self.bytes(), salt, label);
            hmac_sha256(key.as_slice(), &[message])
        })
    }

    /// The one entry for key bytes: `source` fills the slot in place.
    pub(crate) fn fill<E: From<LockedError>>(
        memory: &KeyMemory,
        source: impl FnOnce(&mut [u8; KEY_ENCRYPTION_KEY_BYTES]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut slot = memory.slot()?;
        with_cleared_residue(|| {
            source(
                slot.bytes_mut()
                    .first_chunk_mut()
                    .expect("a slot is larger than a key"),
            )
        })?;
        Ok(Self { slot })
    }

    /// The key, in the slot.
    pub(crate) fn bytes(&self) -> &[u8; KEY_ENCRYPTION_KEY_BYTES] {
        self.slot
            .bytes()
            .first_chunk()
            .expect("a slot is larger than a key")
    }
}

/// Reads `source` to its end or until `bytes`, which lie in a slot, are full.
pub(crate) fn read_to_end(source: &mut impl Read, bytes: &mut [u8]) -> Result<usize, KeyError> {
    match read_exact(source, bytes) {
        Ok(()) => Ok(bytes.len()),
        Err(KeyError::Short { got, .. }) => Ok(got),
        Err(error) => Err(error),
    }
}
