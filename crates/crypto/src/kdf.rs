//! HKDF-SHA256 (RFC 5869): what is derived from keys, under which label.
//!
//! Every use has a label of its own, so that no two uses share a key. All functions here handle key
//! bytes by reference and are called behind the boundary of `residue.rs`.

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

/// Label of the commitment to a volume key.
pub(crate) const COMMITMENT: &[u8] = b"sealvol v1 key commitment";
/// Label of the key of the superblock MAC.
pub(crate) const SUPERBLOCK_MAC: &[u8] = b"sealvol v1 superblock mac";
/// Label of the key of the map MAC.
pub(crate) const MAP_MAC: &[u8] = b"sealvol v1 map mac";
/// Label of the AES-256-GCM key and IV that wrap a volume key.
pub(crate) const WRAP: &[u8] = b"sealvol v1 wrap volume key";
/// Label of the AES-256-GCM key and IV that seal a key-encryption key.
pub(crate) const SEAL: &[u8] = b"sealvol v1 seal key-encryption key";
/// Label of the key of the MAC over a table of keys.
pub(crate) const TABLE_MAC: &[u8] = b"sealvol v1 key table mac";
/// Label of the AES-256-GCM key and IV that seal the image of a table of keys.
pub(crate) const SEAL_TABLE: &[u8] = b"sealvol v1 seal key table";

/// Label of the AES-256-GCM key and IV that seal the private key of an import.
pub(crate) const SEAL_IMPORT: &[u8] = b"sealvol v1 seal import private key";
/// Label of the key of the MAC in an import token.
pub(crate) const IMPORT_TOKEN_MAC: &[u8] = b"sealvol v1 import token mac";
/// Label of the key of the fingerprint of imported key material.
pub(crate) const FINGERPRINT: &[u8] = b"sealvol v1 imported key fingerprint";

/// Label of what all shares of a key say of it.
pub(crate) const SHARED_CHECK: &[u8] = b"sealvol v1 shared key check";
/// Label of the key under a data key of another key service that a master key is sealed by.
pub(crate) const MASTER_KEY_WRAP: &[u8] = b"sealvol v1 wrap master key";

/// HKDF-SHA256 of `ikm` with `salt` (may be empty) and `label` as info.
pub(crate) fn derive<const N: usize>(ikm: &[u8], salt: &[u8], label: &[u8]) -> Zeroizing<[u8; N]> {
    let mut okm = Zeroizing::new([0; N]);
    Hkdf::<Sha256>::new(Some(salt), ikm)
        .expand(label, okm.as_mut_slice())
        .expect("less than 255 times the hash length is asked for");
    okm
}
