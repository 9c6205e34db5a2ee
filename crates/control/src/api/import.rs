//! Messages about key material that somebody else made. It is encrypted in all of them.

use serde::{Deserialize, Serialize};

use crate::keychild::{WrappingAlgorithm, WrappingKeySpec};

/// Ask for a public key to encrypt key material to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GetImportParameters {
    /// Which pair of keys: `RSA_2048`, `RSA_3072` or `RSA_4096`.
    pub spec: WrappingKeySpec,
    /// How the material will be encrypted: `RSAES_OAEP_SHA_256` or `RSA_AES_KEY_WRAP_SHA_256`.
    pub algorithm: WrappingAlgorithm,
}

/// What key material is imported with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportParameters {
    /// `PROVIDER:KEY` that it is for.
    pub key: String,
    /// The provider's own identifier of it.
    pub key_id: String,
    /// How the material has to be encrypted.
    pub algorithm: WrappingAlgorithm,
    /// The public key, in PEM (RFC 7468).
    pub public_key: String,
    /// The token to give back with the material, in Base64.
    pub token: String,
    /// Until when both are good.
    pub expires: String,
}

/// Give the material of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportMaterial {
    /// The material, encrypted to the public key, in Base64.
    pub material: String,
    /// The token that came with that key, in Base64.
    pub token: String,
    /// When it is to expire; none: never.
    pub expires: Option<String>,
}
