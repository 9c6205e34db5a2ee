//! Key material that somebody else made: the words in which it comes in, always encrypted to a public key of the key service.

use serde::{Deserialize, Serialize};

use super::message::base64_text;

/// Where the material of a key comes from, in the words of AWS KMS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// It is imported: the key is pending import until it is there.
    External,
    /// The key service makes it.
    #[default]
    Local,
}

impl Origin {
    /// The origin in one word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::External => "external",
            Self::Local => "local",
        }
    }
}

/// Which pair of keys the material is encrypted to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WrappingKeySpec {
    /// RSA with 2048 bits.
    #[serde(rename = "RSA_2048")]
    Rsa2048,
    /// RSA with 3072 bits.
    #[serde(rename = "RSA_3072")]
    Rsa3072,
    /// RSA with 4096 bits.
    #[default]
    #[serde(rename = "RSA_4096")]
    Rsa4096,
}

/// How it is encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WrappingAlgorithm {
    /// By RSA-OAEP with SHA-256, for the digest and for MGF1 (RFC 8017).
    #[default]
    #[serde(rename = "RSAES_OAEP_SHA_256")]
    RsaesOaepSha256,
    /// By AES-256 key wrap with padding (RFC 5649) under a key that is encrypted as above; the encrypted key comes first.
    #[serde(rename = "RSA_AES_KEY_WRAP_SHA_256")]
    RsaAesKeyWrapSha256,
}

impl WrappingAlgorithm {
    /// Every one.
    pub const ALL: [Self; 2] = [Self::RsaesOaepSha256, Self::RsaAesKeyWrapSha256];

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RsaesOaepSha256 => "RSAES_OAEP_SHA_256",
            Self::RsaAesKeyWrapSha256 => "RSA_AES_KEY_WRAP_SHA_256",
        }
    }
}

/// Seconds for which an import's public key and token are good.
pub const IMPORT_SECONDS: u64 = 86_400;

/// Most days that imported material can be asked to live; without an expiry it lives as long as its key.
pub const MATERIAL_DAYS_MAX: u64 = 365;

/// Most bytes of encrypted material, and of a token.
pub const IMPORT_BYTES_MAX: usize = 6144;

/// What key material is imported with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportParameters {
    /// Id of the key that it is for.
    pub key_id: String,
    /// The public key to encrypt the material to: SubjectPublicKeyInfo in DER (RFC 5280).
    #[serde(with = "base64_text")]
    pub public_key: Vec<u8>,
    /// To be given back with the material. Not secret.
    #[serde(with = "base64_text")]
    pub token: Vec<u8>,
    /// Until when both are good, in seconds since 1970 (UTC).
    pub expires: u64,
}
