//! The encryption context: what a wrapped key is bound to, as key and value pairs.
//!
//! The canonical encoding is what enters the authenticated data of a wrap. Equal contexts have
//! equal encodings whatever the order of their pairs, and different contexts have different ones:
//! every length is written before its bytes. No pair is secret; the context appears in audit
//! records.

use std::collections::BTreeMap;

/// Why pairs do not make a context.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ContextError {
    /// A key occurs twice: which value counts would depend on the reader.
    #[error("the encryption context names {key:?} twice; give each key once")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A key or value does not fit its length field of 32 bits.
    #[error("the encryption context has a key or value of 4 GiB or more under {key:?}")]
    TooLong {
        /// The key, abbreviated.
        key: String,
    },
}

/// Pairs of text that a wrapped key is bound to: it unwraps under the same pairs only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncryptionContext {
    /// Sorted by the raw bytes of the key, which is the order of `str`.
    pairs: BTreeMap<String, String>,
}

impl EncryptionContext {
    /// The context of these pairs, in any order.
    ///
    /// # Errors
    /// A key that occurs twice, or a text that does not fit its length field.
    pub fn new<K, V>(pairs: impl IntoIterator<Item = (K, V)>) -> Result<Self, ContextError>
    where
        K: Into<String>,
        V: Into<String>,
    {
        let mut sorted = BTreeMap::new();
        for (key, value) in pairs {
            let (key, value) = (key.into(), value.into());
            if u32::try_from(key.len().max(value.len())).is_err() {
                return Err(ContextError::TooLong {
                    key: key.chars().take(64).collect(),
                });
            }
            if sorted.contains_key(&key) {
                return Err(ContextError::DuplicateKey { key });
            }
            sorted.insert(key, value);
        }
        Ok(Self { pairs: sorted })
    }

    /// The pairs, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The canonical encoding (FORMATS.md section 2).
    ///
    /// # Panics
    /// With 2^32 pairs or more.
    pub fn canonical(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        push_u32(&mut bytes, self.pairs.len());
        for text in self.pairs.iter().flat_map(|(key, value)| [key, value]) {
            push_u32(&mut bytes, text.len());
            bytes.extend_from_slice(text.as_bytes());
        }
        bytes
    }
}

fn push_u32(bytes: &mut Vec<u8>, number: usize) {
    let number = u32::try_from(number).expect("checked by `new`");
    bytes.extend_from_slice(&number.to_be_bytes());
}
