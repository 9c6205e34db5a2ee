//! The image of a table of keys, encrypted: what a backup of it holds beside the key that seals the keys in it.
//!
//! What always holds: it has the form of a wrapped key (`wrap.rs`), so an image with any bit changed, cut off or followed by
//! anything, of another context or under another key, is refused whole, and nothing of it comes out. There are no key bytes in
//! it: the keys of a table are sealed. What is said of them is nobody else's business all the same.

use crate::context::EncryptionContext;
use crate::kdf;
use crate::key_encryption_key::KeyEncryptionKey;
use crate::wrap::{self, Format, WrapError, WrapHeader};

/// Most bytes of an image: it is encrypted in memory, in one piece.
pub const TABLE_IMAGE_BYTES_MAX: usize = 128 << 20;

/// An image of a table under a key-encryption key.
struct SealedTableFormat;

impl Format for SealedTableFormat {
    const MAGIC: [u8; 4] = *b"SVst";
    const LABEL: &'static [u8] = kdf::SEAL_TABLE;
    const SECRET_BYTES: usize = TABLE_IMAGE_BYTES_MAX;

    fn may_have(bytes: usize) -> bool {
        (1..=TABLE_IMAGE_BYTES_MAX).contains(&bytes)
    }
}

impl KeyEncryptionKey {
    /// Encrypts the image of a table of keys, known to the outside as `id`.
    ///
    /// # Panics
    /// If it has no byte, or more than [`TABLE_IMAGE_BYTES_MAX`].
    pub fn seal_table(&self, image: &[u8], context: &EncryptionContext, id: &[u8; 16]) -> Vec<u8> {
        let header = WrapHeader {
            key_id: *id,
            key_version: 0,
        };
        wrap::seal::<SealedTableFormat>(self, header, wrap::fresh_nonce(), image, context)
    }

    /// Decrypts what [`KeyEncryptionKey::seal_table`] made.
    ///
    /// # Errors
    /// A blob that is malformed, of a newer format, or does not authenticate under this key and `context`.
    pub fn open_table(
        &self,
        blob: &[u8],
        context: &EncryptionContext,
    ) -> Result<Vec<u8>, WrapError> {
        wrap::parse::<SealedTableFormat>(blob)?;
        let mut image = vec![0; wrap::secret_bytes(blob).unwrap_or(0)];
        wrap::open::<SealedTableFormat>(self, blob, context, &mut image)?;
        Ok(image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::locked::{KeyMemory, Policy};

    #[test]
    fn an_image_comes_back_whole_or_not_at_all() {
        let memory = KeyMemory::new(Policy::default()).expect("locked memory");
        let [key, other] = [1, 2].map(|_| KeyEncryptionKey::generate(&memory).expect("a key"));
        let context = EncryptionContext::new([("a", "b")]).expect("a context");
        let image = vec![7; 5000];
        let sealed = key.seal_table(&image, &context, &[9; 16]);
        assert_eq!(sealed.len(), 57 + 5000 + 16);
        assert_eq!(key.open_table(&sealed, &context).unwrap(), image);

        let refused = |key: &KeyEncryptionKey, blob: &[u8], context: &EncryptionContext| {
            key.open_table(blob, context).expect_err("refused")
        };
        assert!(matches!(
            refused(&other, &sealed, &context),
            WrapError::Refused
        ));
        let elsewhere = EncryptionContext::new([("a", "c")]).expect("a context");
        assert!(matches!(
            refused(&key, &sealed, &elsewhere),
            WrapError::Refused
        ));
        let longer = [&sealed[..], &[0]].concat();
        for changed in [&sealed[..sealed.len() - 1], &longer] {
            assert!(matches!(
                refused(&key, changed, &context),
                WrapError::Refused
            ));
        }
        assert!(matches!(
            refused(&key, &sealed[..57 + 16], &context),
            WrapError::Length { .. }
        ));
        // A key and a table are never taken for each other.
        let as_key = key.seal(&other, &context, &[9; 16], 0);
        assert!(matches!(
            refused(&key, &as_key, &context),
            WrapError::NotWrapped
        ));
    }
}
