//! The two superblock slots: which one serves, and how both are changed (rule R4).
//!
//! Always: a change writes one slot, syncs, writes the other with the same bytes, syncs. At rest both carry the
//! same generations, so that falling back to the other slot never changes meaning. While they differ, the one
//! that does not serve is written first, so that power that goes in the middle of a repair leaves the one that does.
//! Nothing of what a slot held before is left in it.
//! Never: a write before the serving slot was accepted by whoever can check it.

use sealvol_store::{Durability, IoBuf, Store};

use crate::error::VolumeError;
use crate::geometry::{SLOT_SPACE, index};
use crate::superblock::{SlotFault, Superblock};

/// What the two slots hold.
#[derive(Debug)]
pub(crate) struct Slots {
    /// The newer of the intact ones.
    pub(crate) serving: Superblock,
    /// The other one, if it is intact too and differs.
    pub(crate) older: Option<Superblock>,
    /// The slot to write first: the one that does not serve.
    pub(crate) spare: u64,
    /// What is to be repaired once the serving slot is trusted.
    pub(crate) repair: Option<&'static str>,
}

/// Reads both slots.
///
/// # Errors
///
/// [`VolumeError::Truncated`] if `meta` is too short to hold slots, [`VolumeError::NewerFormat`] if an intact slot is of a later version,
/// [`VolumeError::Tampered`] if an intact slot holds what no writer makes, [`VolumeError::NoSuperblock`] if none is intact,
/// store errors.
pub(crate) async fn read<S: Store>(meta: &S) -> Result<Slots, VolumeError> {
    if meta.len() < 2 * SLOT_SPACE {
        return Err(VolumeError::Truncated {
            file: "meta",
            found: meta.len(),
            expected: 2 * SLOT_SPACE,
        });
    }
    let mut found = [None, None];
    for (slot, place) in found.iter_mut().enumerate() {
        let buf = IoBuf::for_overwrite(index(SLOT_SPACE));
        let (buf, result) = meta.read_at(buf, slot as u64 * SLOT_SPACE).await;
        result?;
        *place = match Superblock::decode(&buf) {
            Ok(superblock) => Some(superblock),
            Err(SlotFault::Torn) => None,
            Err(SlotFault::Newer { version }) => return Err(VolumeError::NewerFormat { version }),
            Err(SlotFault::Impossible) => {
                return Err(VolumeError::Tampered {
                    cause: "a good checksum over fields that no writer makes",
                });
            }
        };
    }
    match found {
        [Some(first), Some(second)] if first == second => Ok(Slots {
            serving: first,
            older: None,
            spare: 1,
            repair: None,
        }),
        [Some(first), Some(second)] => {
            let (serving, older, spare) = if first.age() >= second.age() {
                (first, second, 1)
            } else {
                (second, first, 0)
            };
            Ok(Slots {
                serving,
                older: Some(older),
                spare,
                repair: Some("one superblock slot was older than the other"),
            })
        }
        [Some(only), None] => Ok(Slots {
            serving: only,
            older: None,
            spare: 1,
            repair: Some("one superblock slot was damaged"),
        }),
        [None, Some(only)] => Ok(Slots {
            serving: only,
            older: None,
            spare: 0,
            repair: Some("one superblock slot was damaged"),
        }),
        [None, None] => Err(VolumeError::NoSuperblock {
            cause: "both checksums are bad",
        }),
    }
}

/// Writes both slots, `first` before the other, each durable before the next step.
///
/// # Errors
///
/// [`VolumeError::WrappedKeys`] if it does not fit; store errors. After a store error the slots may differ; the
/// old content still serves.
pub(crate) async fn write<S: Store>(
    meta: &S,
    superblock: &Superblock,
    first: u64,
) -> Result<(), VolumeError> {
    let bytes = superblock.encode()?;
    for slot in [first, 1 - first] {
        // What a longer superblock left behind the end of this one may be a wrapped key that is to be gone.
        let whole = IoBuf::for_overwrite(index(SLOT_SPACE));
        let (old, read) = meta.read_at(whole, slot * SLOT_SPACE).await;
        let left = match read {
            Ok(()) => old
                .iter()
                .rposition(|&byte| byte != 0)
                .map_or(0, |at| at + 1),
            Err(_) => old.len(),
        };
        let mut buf = IoBuf::zeroed(bytes.len().max(left).next_multiple_of(4096));
        buf[..bytes.len()].copy_from_slice(&bytes);
        let (_, result) = meta
            .write_at(buf, slot * SLOT_SPACE, Durability::Volatile)
            .await;
        result?;
        meta.sync().await?;
    }
    Ok(())
}

/// Allocates what a superblock takes in both slots, so that writing it meets no full disk.
///
/// # Errors
///
/// [`VolumeError::WrappedKeys`] if it does not fit; [`VolumeError::NoSpace`] and other store errors, and nothing was written then.
pub(crate) async fn make_room<S: Store>(
    meta: &S,
    superblock: &Superblock,
) -> Result<(), VolumeError> {
    let len = (superblock.encode()?.len() as u64).next_multiple_of(4096);
    for slot in 0..2 {
        meta.allocate(slot * SLOT_SPACE, len).await?;
    }
    Ok(())
}

/// Overwrites both slots with zeros, durably.
///
/// # Errors
///
/// Store errors; part of it may be done then.
pub(crate) async fn erase<S: Store>(meta: &S) -> Result<(), VolumeError> {
    for slot in 0..2 {
        let buf = IoBuf::zeroed(index(SLOT_SPACE));
        let (_, result) = meta
            .write_at(buf, slot * SLOT_SPACE, Durability::Volatile)
            .await;
        result?;
        meta.sync().await?;
    }
    Ok(())
}
