//! What a layer says of itself, for whoever has lost the registry or is asked to accept less than it says.
//!
//! Always: what [`read_layer`] gives is what the store says, nothing more. [`verify_layer`] gives pins only for what
//! the MAC under the layer's own key covers, and only if nothing changed since it was read.
//! Never: a write. And no answer to "is this the newest?": only a registry knows that.

use sealvol_crypto::SectorCipher;
use sealvol_store::Store;

use crate::error::VolumeError;
use crate::ids::DataKeyId;
use crate::open::{Pins, check_lengths, check_slots};
use crate::slots;
use crate::superblock::{LayerParams, WrappedKey};

/// What the serving superblock of a layer says. Not trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundLayer {
    /// Identity and geometry.
    pub params: LayerParams,
    /// The key that its own data is encrypted with.
    pub data_key: DataKeyId,
    /// The superblock's generation.
    pub generation: u64,
    /// Whether it carries a MAC: whether it was ever attached for writing.
    pub bound: bool,
    /// Whether it was closed in good order.
    pub clean: bool,
    /// Whether it lies below another layer, and never changes.
    pub sealed: bool,
    /// Whether its data key was never wrapped, and is gone with the memory that it was in.
    pub ephemeral: bool,
    /// Every wrapped key in it.
    pub keys: Vec<WrappedKey>,
}

/// Reads what a layer's superblock says, without any key.
///
/// # Errors
///
/// Those of a superblock that can't be read.
pub async fn read_layer<S: Store>(meta: &S) -> Result<FoundLayer, VolumeError> {
    let serving = slots::read(meta).await?.serving;
    Ok(FoundLayer {
        params: serving.params,
        data_key: serving.data_key,
        generation: serving.generation,
        bound: serving.bound,
        clean: serving.clean,
        sealed: serving.sealed,
        ephemeral: serving.ephemeral,
        keys: serving.keys,
    })
}

/// Pins for a layer that no registry has any for: as `found`, once the key has proved it. For a layer without a MAC
/// there is nothing to prove but the lengths: whoever calls makes sure that nothing can be lost with its map.
///
/// # Errors
///
/// [`VolumeError::Tampered`], [`VolumeError::Truncated`], those of a superblock that can't be read.
pub async fn verify_layer<S: Store>(
    data: &S,
    meta: &S,
    cipher: &SectorCipher,
    found: &FoundLayer,
) -> Result<Pins, VolumeError> {
    let slots = slots::read(meta).await?;
    let serving = &slots.serving;
    let same = serving.params == found.params
        && serving.data_key == found.data_key
        && (serving.generation, serving.bound) == (found.generation, found.bound);
    if !same {
        return Err(VolumeError::Tampered {
            cause: "it changed between two looks at it",
        });
    }
    let pins = Pins {
        params: found.params,
        commitment: found.bound.then(|| cipher.commitment()),
        generation: if found.bound { found.generation } else { 0 },
        bound: found.bound,
        former_parents: Vec::new(),
    };
    let checked = check_slots(&slots, &pins, &[], cipher);
    sealvol_crypto::clear_residue();
    checked?;
    check_lengths(data, meta, found.params.size)?;
    Ok(pins)
}
