//! Key references: the words by which an operator names a key-encryption key.
//!
//! `PROVIDER:KEY` names a *configured* provider (its type, endpoint and credentials stand in the
//! daemon's configuration, which root owns) and a key in it. The first `:` separates the two, so the
//! key may hold colons (an ARN does). `provided:` alone, with no key, is no key of any provider.
//!
//! What always holds: a [`KeyRef`] that exists is well formed. It never carries an endpoint, a
//! credential or a module path for us to follow, and nothing secret: it may be printed and logged.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::pkcs11_uri::{self, Pkcs11Uri, Pkcs11UriError};

/// A key in a configured provider, written `PROVIDER:KEY`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyRef {
    provider: String,
    key: String,
}

impl KeyRef {
    /// Most bytes in the name of a provider.
    pub const PROVIDER_MAX: usize = 32;
    /// Most bytes in the name of a key; an AWS ARN has at most 2048.
    pub const KEY_MAX: usize = 2048;

    /// `provided:`: no key of a key service, but the data key itself, which whoever attaches gives.
    #[must_use]
    pub fn provided() -> Self {
        Self {
            provider: PROVIDED.to_owned(),
            key: String::new(),
        }
    }

    /// Whether it is [`Self::provided`].
    #[must_use]
    pub fn is_provided(&self) -> bool {
        self.provider == PROVIDED
    }

    /// The reference to `key` in `provider`.
    ///
    /// # Errors
    /// When either name is empty, too long, or holds a character it may not.
    pub fn new(provider: &str, key: &str) -> Result<Self, KeyRefError> {
        if provider == PROVIDED && key.is_empty() {
            return Ok(Self::provided());
        }
        check_provider(provider)?;
        if key.is_empty() {
            return Err(KeyRefError::NoKey);
        }
        if key.len() > Self::KEY_MAX {
            return Err(KeyRefError::KeyTooLong { bytes: key.len() });
        }
        if let Some(found) = key.chars().find(|c| !c.is_ascii_graphic()) {
            return Err(KeyRefError::KeyCharacter { found });
        }
        // Before it is written anywhere: such a URI can have a PIN in it.
        if key.starts_with(pkcs11_uri::SCHEME) {
            Pkcs11Uri::parse(key)?;
        }
        Ok(Self {
            provider: provider.to_owned(),
            key: key.to_owned(),
        })
    }

    /// The name of the configured provider.
    #[must_use]
    pub fn provider(&self) -> &str {
        &self.provider
    }

    /// The key, in the provider's own words.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }
}

/// Whether `name` may name a configured provider; the configuration is checked by the same rule.
///
/// # Errors
/// When the name is empty, too long, or holds something else than `a-z`, `0-9` and `-`.
pub fn check_provider(name: &str) -> Result<(), KeyRefError> {
    if name.is_empty() {
        return Err(KeyRefError::NoProvider);
    }
    if name.len() > KeyRef::PROVIDER_MAX {
        return Err(KeyRefError::ProviderTooLong { bytes: name.len() });
    }
    match name
        .chars()
        .find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-'))
    {
        Some(found) => Err(KeyRefError::ProviderCharacter { found }),
        None if name == PROVIDED => Err(KeyRefError::ProviderReserved),
        None => Ok(()),
    }
}

/// Stands where others name a provider, for a key that no key service has.
const PROVIDED: &str = "provided";

/// `local:default`: the embedded provider's key, there without any configuration.
impl Default for KeyRef {
    fn default() -> Self {
        Self {
            provider: "local".to_owned(),
            key: "default".to_owned(),
        }
    }
}

impl fmt::Display for KeyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.provider, self.key)
    }
}

impl FromStr for KeyRef {
    type Err = KeyRefError;

    fn from_str(text: &str) -> Result<Self, KeyRefError> {
        let (provider, key) = text.split_once(':').ok_or(KeyRefError::NoSeparator)?;
        Self::new(provider, key)
    }
}

impl TryFrom<String> for KeyRef {
    type Error = KeyRefError;

    fn try_from(text: String) -> Result<Self, KeyRefError> {
        text.parse()
    }
}

impl From<KeyRef> for String {
    fn from(key: KeyRef) -> Self {
        key.to_string()
    }
}

/// Why a text is no key reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyRefError {
    /// The key's name has a character outside printable ASCII.
    #[error(
        "key reference: the key holds {found:?}; only printable ASCII without spaces is possible"
    )]
    KeyCharacter {
        /// The first such character.
        found: char,
    },
    /// The key's name is too long.
    #[error(
        "key reference: the key has {bytes} bytes; at most {} are possible",
        KeyRef::KEY_MAX
    )]
    KeyTooLong {
        /// Its length.
        bytes: usize,
    },
    /// Nothing follows the colon.
    #[error("key reference: no key after the colon; write PROVIDER:KEY, for example local:default")]
    NoKey,
    /// Nothing stands before the colon.
    #[error(
        "key reference: no provider before the colon; write PROVIDER:KEY, for example local:default"
    )]
    NoProvider,
    /// There is no colon.
    #[error("key reference: no colon in it; write PROVIDER:KEY, for example local:default")]
    NoSeparator,
    /// The key is named by a PKCS #11 URI that is refused.
    #[error("key reference: {0}")]
    Pkcs11(#[from] Pkcs11UriError),
    /// The provider's name has a character it may not have.
    #[error("key reference: the provider holds {found:?}; only a-z, 0-9 and - are possible")]
    ProviderCharacter {
        /// The first such character.
        found: char,
    },
    /// It is the word for keys of no provider, with a key.
    #[error("key reference: `provided:` is for keys that are given at each attach, and names none")]
    ProviderReserved,
    /// The provider's name is too long.
    #[error(
        "key reference: the provider has {bytes} bytes; at most {} are possible",
        KeyRef::PROVIDER_MAX
    )]
    ProviderTooLong {
        /// Its length.
        bytes: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_is_the_embedded_key() {
        assert_eq!(KeyRef::default().to_string(), "local:default");
        assert_eq!("local:default".parse(), Ok(KeyRef::default()));
    }

    #[test]
    fn a_key_that_is_given_has_no_name_and_no_provider_has_its() {
        let given: KeyRef = "provided:".parse().unwrap();
        assert_eq!(given, KeyRef::provided());
        assert!(given.is_provided() && given.to_string() == "provided:");
        assert!(!KeyRef::default().is_provided());
        let refused = "provided:k".parse::<KeyRef>().unwrap_err();
        assert_eq!(refused, KeyRefError::ProviderReserved);
        assert_eq!(
            check_provider("provided"),
            Err(KeyRefError::ProviderReserved)
        );
    }

    #[test]
    fn only_the_first_colon_separates() {
        let key: KeyRef = "aws-1:arn:aws:kms:eu-west-1:1:key/2".parse().unwrap();
        assert_eq!(key.provider(), "aws-1");
        assert_eq!(key.key(), "arn:aws:kms:eu-west-1:1:key/2");
        assert_eq!(key.to_string().parse(), Ok(key));
    }

    #[test]
    fn each_malformed_reference_is_refused_by_its_own_name() {
        let refused = |text: &str| text.parse::<KeyRef>().unwrap_err();
        assert_eq!(refused("default"), KeyRefError::NoSeparator);
        assert_eq!(refused(""), KeyRefError::NoSeparator);
        assert_eq!(refused(":default"), KeyRefError::NoProvider);
        assert_eq!(refused("local:"), KeyRefError::NoKey);
        assert_eq!(
            refused("hsm:pkcs11:object=k?pin-value=1234").to_string(),
            "key reference: pkcs11 URI: pin-value is refused: modules and PINs are named in the daemon's configuration only"
        );
        assert!("hsm:pkcs11:object=k".parse::<KeyRef>().is_ok());
        assert_eq!(
            refused("Local:a"),
            KeyRefError::ProviderCharacter { found: 'L' }
        );
        assert_eq!(
            refused("../x:a"),
            KeyRefError::ProviderCharacter { found: '.' }
        );
        assert_eq!(
            refused("local:a b"),
            KeyRefError::KeyCharacter { found: ' ' }
        );
        assert_eq!(
            refused("local:a\n"),
            KeyRefError::KeyCharacter { found: '\n' }
        );
        assert_eq!(refused("local:ä"), KeyRefError::KeyCharacter { found: 'ä' });
        let long = format!("local:{}", "k".repeat(KeyRef::KEY_MAX + 1));
        assert_eq!(
            refused(&long),
            KeyRefError::KeyTooLong {
                bytes: KeyRef::KEY_MAX + 1
            }
        );
        let long = format!("{}:k", "p".repeat(KeyRef::PROVIDER_MAX + 1));
        assert_eq!(
            refused(&long),
            KeyRefError::ProviderTooLong {
                bytes: KeyRef::PROVIDER_MAX + 1
            }
        );
    }

    #[test]
    fn serde_writes_it_as_one_string_and_checks_it_on_the_way_in() {
        let text = serde_json::to_string(&KeyRef::default()).unwrap();
        assert_eq!(text, r#""local:default""#);
        assert_eq!(
            serde_json::from_str::<KeyRef>(&text).unwrap(),
            KeyRef::default()
        );
        let error = serde_json::from_str::<KeyRef>(r#""nothing""#)
            .unwrap_err()
            .to_string();
        assert!(error.contains("no colon"), "{error}");
    }
}
