//! A layer at rest: how it is created, and what can be read of it without its key.
//!
//! Always: when `create` returns, `meta`, `data` and their directory are durable. A new layer has no MAC,
//! because nobody has seen its key.

use sealvol_store::{Access, Directory, Store};

use crate::error::VolumeError;
use crate::geometry::{SLOT_SPACE, check_size, meta_len};
use crate::ids::DataKeyId;
use crate::open::{Pins, check_generation, check_identity};
use crate::slots;
use crate::superblock::{LayerParams, Superblock, WrappedKey, slot_reserve};

/// The file with superblock, directory and map.
pub const META_FILE: &str = "meta";
/// The file with the ciphertext.
pub const DATA_FILE: &str = "data";

/// Key records for which space is allocated in each slot.
const KEYS_RESERVED: u64 = 2;

/// Creates the files of a layer in `directory`, which is empty; `data` only if it is not a block device.
///
/// # Errors
///
/// [`VolumeError::InvalidSize`], [`VolumeError::WrappedKeys`], store errors (a size that the file system can't hold
/// among them). What was made before the error is left to whoever made the directory.
pub async fn create<D: Directory>(
    directory: &D,
    data_file: bool,
    params: &LayerParams,
    keys: &[WrappedKey],
) -> Result<(), VolumeError> {
    check_size(params.size)?;
    let own = keys.first().ok_or(VolumeError::WrappedKeys {
        count: 0,
        cause: "there is none",
    })?;
    let superblock = Superblock::new(*params, own.data_key, keys.to_vec());
    make(directory, data_file, params, &superblock).await
}

/// [`create`] for an ephemeral volume: nobody ever wraps its data key, so the layer can be opened by whoever has the key in
/// memory, and by nobody once it is wiped. Its superblock says so and has no key records (FORMAT.md, section 3.1).
///
/// # Errors
///
/// Those of [`create`].
pub async fn create_ephemeral<D: Directory>(
    directory: &D,
    data_file: bool,
    params: &LayerParams,
    data_key: DataKeyId,
) -> Result<(), VolumeError> {
    check_size(params.size)?;
    let mut superblock = Superblock::new(*params, data_key, Vec::new());
    superblock.ephemeral = true;
    make(directory, data_file, params, &superblock).await
}

async fn make<D: Directory>(
    directory: &D,
    data_file: bool,
    params: &LayerParams,
    superblock: &Superblock,
) -> Result<(), VolumeError> {
    if data_file {
        let data = directory.create(DATA_FILE, params.size).await?;
        data.sync().await?;
    }
    let meta = directory.create(META_FILE, meta_len(params.size)).await?;
    for (offset, len) in slot_allocations(params.size) {
        meta.allocate(offset, len).await?;
    }
    slots::write(&meta, superblock, 0).await?;
    directory.sync().await?;
    Ok(())
}

/// The wrapped keys in a layer's superblock. They are what the store says: only unwrapping proves them.
///
/// # Errors
///
/// Those of a superblock that can't be read.
pub async fn read_keys<S: Store>(meta: &S) -> Result<Vec<WrappedKey>, VolumeError> {
    Ok(slots::read(meta).await?.serving.keys)
}

/// Puts other wrapped keys in the place of those in a layer's superblock, in both slots: a rewrap, of a layer that nobody has
/// open. Durable when it returns, and nothing is left of the old ones then; wherever it stops, one slot has all of the old
/// or all of the new. The keys are under no MAC (FORMAT.md, section 3.1), so none is needed for it.
///
/// A rewrap is two calls: with the new key before the old one, and, once the new one has been unwrapped to the key that the
/// registry is committed to, with the new one alone.
///
/// # Errors
///
/// [`VolumeError::Mismatch`] and [`VolumeError::RolledBack`] if it is not what the registry has pinned; [`VolumeError::WrappedKeys`] if none of them is of its own data key, or they
/// do not fit; those of a superblock that can't be read; store errors.
pub async fn replace_keys<D: Directory>(
    directory: &D,
    pins: &Pins,
    keys: &[WrappedKey],
) -> Result<(), VolumeError> {
    let meta = directory.open(META_FILE, Access::Writable).await?;
    let slots = slots::read(&meta).await?;
    let mut next = slots.serving;
    check_identity(&next.params, pins, &[])?;
    check_generation(&next, pins)?;
    next.replace_keys(keys)?;
    slots::make_room(&meta, &next).await?;
    slots::write(&meta, &next, slots.spare).await
}

/// Overwrites the wrapped keys in both slots: what they opened is gone for ever, unless a copy exists
/// elsewhere (crypto-erase). Durable when it returns.
///
/// # Errors
///
/// Store errors.
pub async fn destroy_keys<D: Directory>(directory: &D) -> Result<(), VolumeError> {
    let meta = directory.open(META_FILE, Access::Writable).await?;
    slots::erase(&meta).await
}

/// What a volume of `size` bytes needs allocated in its slots: offset and length.
pub(crate) fn slot_allocations(size: u64) -> [(u64, u64); 2] {
    let len = slot_reserve(size, KEYS_RESERVED);
    [(0, len), (SLOT_SPACE, len)]
}
