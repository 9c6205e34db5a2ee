//! The superblock as bytes (FORMAT.md, section 3.1): what one slot holds.
//!
//! Always: encoding and decoding are inverse; decoding never trusts a length it has not checked and never
//! looks at a MAC (whoever has the key does, by [`Superblock::mac_matches`]).
//! Never: I/O. Which slot serves is decided in `slots.rs`.

use sealvol_crypto::{SectorCipher, UnitSize, constant_time_eq};

use crate::bytes::{array_at, put, u16_at, u32_at, u64_at};
use crate::error::VolumeError;
use crate::geometry::{self, SLOT_SPACE, directories, index, sector_size_number};
use crate::ids::{DataKeyId, LayerId, VolumeId};

const MAGIC: [u8; 8] = *b"sealvol\0";
const VERSION: u32 = 1;
const HEAD: usize = 256;
const MACED_HEAD: usize = 128;
const ROOT_ENTRY: usize = 8;

const SEALED: u32 = 1;
const CLEAN: u32 = 2;
const BOUND: u32 = 4;
const EPHEMERAL: u32 = 8;

/// The longest wrapped key that any provider returns: AWS KMS allows 6144 bytes.
pub const MAX_WRAPPED_KEY: usize = 6144;
const MAX_PROVIDER: usize = 64;
const MAX_KEY_ID: usize = 2048;

/// One wrapped copy of a data key, as the key service returned it. Not secret, not trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappedKey {
    /// Which data key this is a copy of.
    pub data_key: DataKeyId,
    /// The configured provider that wrapped it.
    pub provider: String,
    /// The key-encryption key's id at the provider.
    pub key_id: String,
    /// The key-encryption key's version.
    pub key_version: u32,
    /// The wrapped key, opaque, at most [`MAX_WRAPPED_KEY`] bytes.
    pub blob: Vec<u8>,
}

/// What is fixed when a layer is created, and its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerParams {
    /// The volume that the layer belongs to.
    pub volume: VolumeId,
    /// The layer.
    pub layer: LayerId,
    /// The layer below, if there is one.
    pub parent: Option<LayerId>,
    /// Size in bytes; grows only.
    pub size: u64,
    /// The cipher's data unit.
    pub sector_size: UnitSize,
}

/// A decoded superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) params: LayerParams,
    pub(crate) sealed: bool,
    pub(crate) clean: bool,
    pub(crate) bound: bool,
    /// Its data key was never wrapped: there are no key records.
    pub(crate) ephemeral: bool,
    pub(crate) generation: u64,
    pub(crate) content_generation: u64,
    pub(crate) sequence_base: u64,
    pub(crate) data_key: DataKeyId,
    /// Sequences at or above it are exact, below it floors.
    pub(crate) exact_from: u64,
    pub(crate) key_generation: u64,
    /// One sequence a directory page; 0: never written.
    pub(crate) root: Vec<u64>,
    pub(crate) keys: Vec<WrappedKey>,
    pub(crate) mac: [u8; 32],
}

/// Why the bytes of a slot are no superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotFault {
    /// No magic or a bad checksum.
    Torn,
    /// Intact, but with fields that no writer produces: no accident makes that.
    Impossible,
    /// Intact, but written by a later version.
    Newer { version: u32 },
}

impl Superblock {
    /// The superblock of a new, empty layer that no key has been seen for.
    pub(crate) fn new(params: LayerParams, data_key: DataKeyId, keys: Vec<WrappedKey>) -> Self {
        Self {
            params,
            sealed: false,
            clean: true,
            bound: false,
            ephemeral: false,
            generation: 1,
            content_generation: 0,
            sequence_base: 0,
            data_key,
            exact_from: 0,
            key_generation: 1,
            root: vec![0; index(directories(params.size))],
            keys,
            mac: [0; 32],
        }
    }

    /// The superblock of a layer that nobody ever had the key of, so that nothing it says has a MAC: all of
    /// it as the registry has it but the size, which the registry may know to be larger, and the wrapped keys.
    pub(crate) fn unbound(self, pinned: LayerParams, generation: u64) -> Self {
        let params = LayerParams {
            size: self.params.size,
            ..pinned
        };
        Self {
            generation: generation.max(1),
            key_generation: self.key_generation,
            ephemeral: self.ephemeral,
            ..Self::new(params, self.data_key, self.keys)
        }
    }

    /// Puts other wrapped keys in place.
    ///
    /// # Errors
    ///
    /// [`VolumeError::WrappedKeys`] if none is of the layer's own data key.
    pub(crate) fn replace_keys(&mut self, keys: &[WrappedKey]) -> Result<(), VolumeError> {
        if keys.iter().all(|key| key.data_key != self.data_key) {
            return Err(VolumeError::WrappedKeys {
                count: keys.len(),
                cause: "none is of the layer's own data key",
            });
        }
        self.keys = keys.to_vec();
        self.key_generation += 1;
        Ok(())
    }

    /// Which of two intact slots is the newer.
    pub(crate) fn age(&self) -> (u64, u64) {
        (self.generation, self.key_generation)
    }

    /// The bytes of the slot.
    ///
    /// # Errors
    ///
    /// [`VolumeError::WrappedKeys`] if the key records do not fit.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, VolumeError> {
        let mut slot = self.maced_head().to_vec();
        slot.resize(HEAD, 0);
        for entry in &self.root {
            slot.extend_from_slice(&entry.to_le_bytes());
        }
        for key in &self.keys {
            encode_key(key, &mut slot, self.keys.len())?;
        }
        if slot.len() as u64 > SLOT_SPACE {
            return Err(self.too_many_keys("a slot has 262,144 bytes"));
        }
        let used = u32::try_from(slot.len()).map_err(|_| self.too_many_keys("length"))?;
        let count = u32::try_from(self.keys.len()).map_err(|_| self.too_many_keys("count"))?;
        put(&mut slot, 128, &self.key_generation.to_le_bytes());
        put(&mut slot, 136, &count.to_le_bytes());
        put(&mut slot, 140, &used.to_le_bytes());
        put(&mut slot, 160, &self.mac);
        let checksum = crc32c::crc32c(&slot);
        put(&mut slot, 144, &checksum.to_le_bytes());
        Ok(slot)
    }

    /// Reads a slot. `bytes` may be longer than what the slot uses.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, SlotFault> {
        let slot = intact(bytes)?;
        let version = u32_at(slot, 8);
        if version > VERSION {
            return Err(SlotFault::Newer { version });
        }
        if version != VERSION {
            return Err(SlotFault::Impossible);
        }
        parse(slot).ok_or(SlotFault::Impossible)
    }

    /// Computes the MAC anew and calls the layer bound.
    pub(crate) fn bind(&mut self, cipher: &SectorCipher) {
        self.bound = true;
        self.mac = self.compute_mac(cipher);
    }

    /// Whether the MAC is the one that the layer's key makes.
    pub(crate) fn mac_matches(&self, cipher: &SectorCipher) -> bool {
        self.bound && constant_time_eq(&self.mac, &self.compute_mac(cipher))
    }

    fn compute_mac(&self, cipher: &SectorCipher) -> [u8; 32] {
        let root: Vec<u8> = self
            .root
            .iter()
            .flat_map(|entry| entry.to_le_bytes())
            .collect();
        cipher.superblock_mac(&[&self.maced_head(), &root])
    }

    fn maced_head(&self) -> [u8; MACED_HEAD] {
        let flags = if self.sealed { SEALED } else { 0 }
            | if self.clean { CLEAN } else { 0 }
            | if self.bound { BOUND } else { 0 }
            | if self.ephemeral { EPHEMERAL } else { 0 };
        let entries =
            u32::try_from(self.root.len()).expect("a volume has at most 4,096 root entries");
        let mut head = [0; MACED_HEAD];
        put(&mut head, 0, &MAGIC);
        put(&mut head, 8, &VERSION.to_le_bytes());
        put(&mut head, 12, &flags.to_le_bytes());
        put(&mut head, 16, &self.params.volume.0);
        put(&mut head, 32, &self.params.layer.0);
        put(
            &mut head,
            48,
            &self.params.parent.map_or([0; 16], |parent| parent.0),
        );
        put(&mut head, 64, &self.params.size.to_le_bytes());
        put(
            &mut head,
            72,
            &sector_size_number(self.params.sector_size).to_le_bytes(),
        );
        put(&mut head, 76, &entries.to_le_bytes());
        put(&mut head, 80, &self.generation.to_le_bytes());
        put(&mut head, 88, &self.content_generation.to_le_bytes());
        put(&mut head, 96, &self.sequence_base.to_le_bytes());
        put(&mut head, 104, &self.data_key.0);
        put(&mut head, 120, &self.exact_from.to_le_bytes());
        head
    }

    fn too_many_keys(&self, cause: &'static str) -> VolumeError {
        VolumeError::WrappedKeys {
            count: self.keys.len(),
            cause,
        }
    }
}

/// Space that a slot of a volume of `size` bytes needs with room for `keys` records of the longest
/// kind: what is allocated when the layer is created, so that a change never meets a full disk.
pub(crate) fn slot_reserve(size: u64, keys: u64) -> u64 {
    let record = (16 + 4 + 6 + MAX_PROVIDER + MAX_KEY_ID + MAX_WRAPPED_KEY) as u64;
    let used = HEAD as u64 + directories(size) * ROOT_ENTRY as u64 + keys * record;
    used.next_multiple_of(geometry::BLOCK).min(SLOT_SPACE)
}

/// The used part of the slot, if magic, length and checksum hold.
fn intact(bytes: &[u8]) -> Result<&[u8], SlotFault> {
    if bytes.len() < HEAD || bytes[..8] != MAGIC {
        return Err(SlotFault::Torn);
    }
    let used = index(u64::from(u32_at(bytes, 140)));
    if used < HEAD || used > bytes.len() {
        return Err(SlotFault::Torn);
    }
    let mut slot = bytes[..used].to_vec();
    put(&mut slot, 144, &[0; 4]);
    if crc32c::crc32c(&slot) != u32_at(bytes, 144) {
        return Err(SlotFault::Torn);
    }
    Ok(&bytes[..used])
}

fn parse(slot: &[u8]) -> Option<Superblock> {
    let size = u64_at(slot, 64);
    geometry::check_size(size).ok()?;
    let flags = u32_at(slot, 12);
    // The MAC is computed over the fields as they are understood here, so none may say more than that.
    if flags & !(SEALED | CLEAN | BOUND | EPHEMERAL) != 0 {
        return None;
    }
    let keys = u32_at(slot, 136);
    if flags & EPHEMERAL != 0 && keys != 0 {
        return None;
    }
    let parent: [u8; 16] = array_at(slot, 48);
    let entries = index(u64::from(u32_at(slot, 76)));
    if entries as u64 != directories(size) || slot.len() < HEAD + entries * ROOT_ENTRY {
        return None;
    }
    let (root, records) = slot[HEAD..].split_at(entries * ROOT_ENTRY);
    Some(Superblock {
        params: LayerParams {
            volume: VolumeId(array_at(slot, 16)),
            layer: LayerId(array_at(slot, 32)),
            parent: (parent != [0; 16]).then_some(LayerId(parent)),
            size,
            sector_size: UnitSize::try_from(u32_at(slot, 72)).ok()?,
        },
        sealed: flags & SEALED != 0,
        clean: flags & CLEAN != 0,
        bound: flags & BOUND != 0,
        ephemeral: flags & EPHEMERAL != 0,
        generation: u64_at(slot, 80),
        content_generation: u64_at(slot, 88),
        sequence_base: u64_at(slot, 96),
        data_key: DataKeyId(array_at(slot, 104)),
        exact_from: u64_at(slot, 120),
        key_generation: u64_at(slot, 128),
        root: root
            .chunks_exact(ROOT_ENTRY)
            .map(|entry| u64_at(entry, 0))
            .collect(),
        keys: parse_keys(records, keys)?,
        mac: array_at(slot, 160),
    })
}

fn parse_keys(mut records: &[u8], count: u32) -> Option<Vec<WrappedKey>> {
    let mut keys = Vec::new();
    for _ in 0..count {
        if records.len() < 20 {
            return None;
        }
        let (fixed, rest) = records.split_at(20);
        let (provider, rest) = take_counted(rest, MAX_PROVIDER)?;
        let (key_id, rest) = take_counted(rest, MAX_KEY_ID)?;
        let (blob, rest) = take_counted(rest, MAX_WRAPPED_KEY)?;
        keys.push(WrappedKey {
            data_key: DataKeyId(array_at(fixed, 0)),
            provider: std::str::from_utf8(provider).ok()?.to_owned(),
            key_id: std::str::from_utf8(key_id).ok()?.to_owned(),
            key_version: u32_at(fixed, 16),
            blob: blob.to_vec(),
        });
        records = rest;
    }
    records.is_empty().then_some(keys)
}

fn take_counted(bytes: &[u8], max: usize) -> Option<(&[u8], &[u8])> {
    if bytes.len() < 2 {
        return None;
    }
    let len = usize::from(u16_at(bytes, 0));
    (len <= max && bytes.len() >= 2 + len).then(|| bytes[2..].split_at(len))
}

fn encode_key(key: &WrappedKey, slot: &mut Vec<u8>, count: usize) -> Result<(), VolumeError> {
    slot.extend_from_slice(&key.data_key.0);
    slot.extend_from_slice(&key.key_version.to_le_bytes());
    for (field, max, cause) in [
        (
            key.provider.as_bytes(),
            MAX_PROVIDER,
            "a provider name has at most 64 bytes",
        ),
        (
            key.key_id.as_bytes(),
            MAX_KEY_ID,
            "a key id has at most 2048 bytes",
        ),
        (
            &key.blob,
            MAX_WRAPPED_KEY,
            "a wrapped key has at most 6144 bytes",
        ),
    ] {
        let len = u16::try_from(field.len())
            .ok()
            .filter(|_| field.len() <= max);
        let len = len.ok_or(VolumeError::WrappedKeys { count, cause })?;
        slot.extend_from_slice(&len.to_le_bytes());
        slot.extend_from_slice(field);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn example() -> Superblock {
        let params = LayerParams {
            volume: VolumeId::random(),
            layer: LayerId::random(),
            parent: Some(LayerId::random()),
            size: 40 << 30,
            sector_size: UnitSize::B512,
        };
        let data_key = DataKeyId::random();
        let key = |len| WrappedKey {
            data_key,
            provider: "local".into(),
            key_id: "default".into(),
            key_version: 7,
            blob: vec![0xa5; len],
        };
        let mut superblock = Superblock::new(params, data_key, vec![key(6144), key(0)]);
        superblock.root = vec![0, 1 << 40, 3];
        superblock
    }

    #[test]
    fn encoding_and_decoding_are_inverse() {
        let superblock = example();
        let mut slot = superblock.encode().unwrap();
        assert_eq!(Superblock::decode(&slot).unwrap(), superblock);
        slot.resize(256 * 1024, 0xee);
        assert_eq!(Superblock::decode(&slot).unwrap(), superblock);
    }

    #[test]
    fn an_ephemeral_layer_says_so_under_the_mac_and_has_no_key_records() {
        let mut superblock = Superblock {
            ephemeral: true,
            bound: true,
            ..example()
        };
        assert_eq!(
            Superblock::decode(&superblock.encode().unwrap()),
            Err(SlotFault::Impossible),
            "with key records"
        );
        superblock.keys = Vec::new();
        let slot = superblock.encode().unwrap();
        assert_eq!(Superblock::decode(&slot).unwrap(), superblock);
        assert_eq!(u32_at(&slot, 12), CLEAN | BOUND | EPHEMERAL);
        assert_eq!((u32_at(&slot, 136), u32_at(&slot, 140)), (0, 256 + 3 * 8));
        assert_eq!(superblock.maced_head()[12], 2 | 4 | 8);
    }

    #[test]
    fn every_flipped_bit_of_the_used_part_is_a_torn_slot() {
        let slot = example().encode().unwrap();
        for at in 0..slot.len() {
            for bit in 0..8 {
                let mut flipped = slot.clone();
                flipped[at] ^= 1 << bit;
                assert_eq!(
                    Superblock::decode(&flipped),
                    Err(SlotFault::Torn),
                    "byte {at} bit {bit}"
                );
            }
        }
    }

    #[test]
    fn every_shorter_slot_is_torn() {
        let slot = example().encode().unwrap();
        for len in 0..slot.len() {
            assert_eq!(Superblock::decode(&slot[..len]), Err(SlotFault::Torn));
        }
    }

    #[test]
    fn an_intact_slot_of_a_later_version_is_told_from_a_damaged_one() {
        let mut slot = example().encode().unwrap();
        put(&mut slot, 8, &2u32.to_le_bytes());
        put(&mut slot, 144, &[0; 4]);
        let checksum = crc32c::crc32c(&slot);
        put(&mut slot, 144, &checksum.to_le_bytes());
        assert_eq!(
            Superblock::decode(&slot),
            Err(SlotFault::Newer { version: 2 })
        );
    }

    #[test]
    fn keys_that_do_not_fit_are_refused() {
        let mut superblock = example();
        superblock.keys[0].blob = vec![0; MAX_WRAPPED_KEY + 1];
        assert!(matches!(
            superblock.encode(),
            Err(VolumeError::WrappedKeys { .. })
        ));
        superblock.keys[0].blob.pop();
        superblock.keys = vec![superblock.keys[0].clone(); 50];
        assert!(matches!(
            superblock.encode(),
            Err(VolumeError::WrappedKeys { .. })
        ));
    }
}
