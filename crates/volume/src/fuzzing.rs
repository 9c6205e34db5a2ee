//! What a fuzzer does with the bytes of a `meta` file. It is there under `cfg(fuzzing)` and in this crate's own tests, which
//! run the same functions on a fixed seed, and in no other build.
//!
//! Each function states what must hold for any input, and panics if it does not.

use std::sync::LazyLock;

use sealvol_crypto::locked::{KeyMemory, Policy};
use sealvol_crypto::{SectorCipher, VolumeKey};

use crate::bytes::put;
use crate::geometry::PAGE_LEN;
use crate::ids::LayerId;
use crate::page::{
    self, DirectoryEntry, PageFault, PageKind, PageName, WORD_BLOCKS, pack_entries, pack_states,
    payload, unpack_entries, unpack_states,
};
use crate::superblock::{SlotFault, Superblock};

static CIPHER: LazyLock<SectorCipher> = LazyLock::new(|| {
    let policy = Policy {
        require_secretmem: false,
    };
    let memory = KeyMemory::new(policy).expect("locked memory");
    let bytes: Vec<u8> = (0..64).collect();
    let key = VolumeKey::read_from(&memory, &mut bytes.as_slice()).expect("64 bytes");
    key.expand()
});

/// `data` is a slot; once as it is, once with magic, version, length and checksum put right, so that every field behind them is
/// looked at.
///
/// # Panics
/// If what decodes does not decode to the same once it is encoded, or has a MAC that nobody made.
pub fn superblock(data: &[u8]) {
    let _ = decoded(data);
    let mut slot = data.to_vec();
    slot.resize(slot.len().clamp(256, 256 * 1024), 0);
    let used = u32::try_from(slot.len()).expect("clamped");
    put(&mut slot, 0, b"sealvol\0");
    put(&mut slot, 140, &used.to_le_bytes());
    put(&mut slot, 144, &[0; 4]);
    if slot[8] < 0x80 {
        put(&mut slot, 8, &1_u32.to_le_bytes());
    }
    let checksum = crc32c::crc32c(&slot);
    put(&mut slot, 144, &checksum.to_le_bytes());
    assert_ne!(decoded(&slot), Err(SlotFault::Torn), "it is intact");
}

fn decoded(slot: &[u8]) -> Result<Superblock, SlotFault> {
    let superblock = Superblock::decode(slot)?;
    let encoded = superblock.encode().expect("what was in a slot fits one");
    let again = Superblock::decode(&encoded).expect("our own encoding");
    assert_eq!(again, superblock);
    assert!(!superblock.mac_matches(&CIPHER), "a MAC that nobody made");
    Ok(superblock)
}

/// `data` is a page: once as it is found in a place, once as what a holder of the key put into one, once that with one byte
/// changed.
///
/// # Panics
/// If a page opens that the key's holder did not make, or what is unpacked is not packed to the same.
pub fn pages(data: &[u8]) {
    let [kind, at, change, data @ ..] = data else {
        return;
    };
    let kind = if kind % 2 == 0 {
        PageKind::Directory
    } else {
        PageKind::Map
    };
    let name = PageName {
        kind,
        layer: LayerId([9; 16]),
        index: 3,
    };
    let mut found = data[..data.len().min(PAGE_LEN)].to_vec();
    found.resize(PAGE_LEN, 0);
    assert!(page::open(name, &CIPHER, &found).is_err());

    let mut page = vec![0; PAGE_LEN];
    page::seal(name, 5, &CIPHER, &mut page, |payload| {
        payload.copy_from_slice(&found[..payload.len()]);
    });
    assert_eq!(page::open(name, &CIPHER, &page), Ok(5));
    let elsewhere = PageName { index: 4, ..name };
    let moved = page::open(elsewhere, &CIPHER, &page);
    assert_eq!(moved, Err(PageFault::Tampered));
    repacked(kind, payload(&page));
    if *change != 0 {
        // Each byte of the header is tried within 256, and some of the payload.
        page[usize::from(*at)] ^= change;
        assert!(page::open(name, &CIPHER, &page).is_err());
    }
}

fn repacked(kind: PageKind, payload: &[u8]) {
    let mut again = vec![0; payload.len()];
    match kind {
        PageKind::Map => {
            let mut words = Vec::new();
            if unpack_states(payload, |word| words.push(word)).is_some() {
                let used = (words.len() * WORD_BLOCKS).div_ceil(5);
                pack_states(words.into_iter(), &mut again);
                assert_eq!(again[..used], payload[..used]);
            }
        }
        PageKind::Directory => {
            let mut entries = Vec::new();
            unpack_entries(payload, |at, bits| {
                assert_eq!(at, entries.len(), "entries come in order");
                entries.push(bits);
                let entry = DirectoryEntry::from_bits(bits);
                assert_eq!(DirectoryEntry::from_bits(entry.bits()), entry);
            });
            pack_entries(|at| entries[at], &mut again);
            let used = entries.len() * 8;
            assert_eq!(again[..used], payload[..used]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig {
            rng_seed: proptest::test_runner::RngSeed::Fixed(1),
            failure_persistence: None,
            ..ProptestConfig::with_cases(300)
        })]

        #[test]
        fn any_bytes_as_a_superblock(data in prop::collection::vec(any::<u8>(), 0..600)) {
            super::superblock(&data);
        }

        #[test]
        fn any_bytes_as_a_page(data in prop::collection::vec(any::<u8>(), 0..4200)) {
            super::pages(&data);
        }

        #[test]
        fn any_states_as_a_page(data in prop::collection::vec(0_u8..243, 4100)) {
            super::pages(&data);
        }
    }

    #[test]
    fn the_kept_corpus() {
        for (folder, body) in [
            ("superblock", super::superblock as fn(&[u8])),
            ("pages", super::pages),
        ] {
            let folder = format!("{}/fuzz/corpus/{folder}", env!("CARGO_MANIFEST_DIR"));
            let mut inputs = 0;
            for entry in std::fs::read_dir(&folder).expect(&folder) {
                body(&std::fs::read(entry.expect("an entry").path()).expect("an input"));
                inputs += 1;
            }
            assert!(inputs > 0, "{folder} is empty");
        }
    }
}
