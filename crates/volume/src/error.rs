//! What can go wrong with a volume, by cause and by whose fault.

use sealvol_store::StoreError;

use crate::geometry::MAX_SIZE;
use crate::ids::LayerId;

/// What whoever meets an error is to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The cause may pass: the same call may succeed later.
    Retry,
    /// The call or the layer is not acceptable; nothing was changed.
    Refuse,
    /// Integrity or durability is lost: stop and let the operator decide.
    Stop,
}

/// Which step lost acknowledged or flushable data for ever (rule R6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LostStep {
    /// The sync of `data` failed: writes before it may be gone although the cache shows them.
    DataSync,
    /// The sync of `meta` failed.
    MapSync,
    /// A map or directory page could not be written.
    MapWrite,
    /// A superblock slot could not be written.
    SuperblockWrite,
}

/// A failed sync or map write: sticky until the operator accepts the loss (rule R6).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("layer {layer}: {step:?} failed ({cause}); acknowledged writes may be lost")]
pub struct Loss {
    /// The layer whose store failed.
    pub layer: LayerId,
    /// What failed.
    pub step: LostStep,
    /// The store's error, as text.
    pub cause: String,
}

/// An error of this crate. Each message names the thing, the cause and the next step.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// What was copied reads back as something else.
    #[error(
        "what was copied to byte {offset} of layer {layer} reads back as something else; nothing relies on it: check the store, \
         then go on copying"
    )]
    BadCopy {
        /// The destination.
        layer: LayerId,
        /// First byte of what was written.
        offset: u64,
    },
    /// The layers do not follow each other as a stack.
    #[error(
        "layer {layer} can't be part of this stack: {cause}; the registry's record of the volume does not fit its layers: \
         nothing was served, restore the missing or replaced one"
    )]
    BrokenStack {
        /// The layer that does not fit what lies below it.
        layer: LayerId,
        /// What is wrong with it.
        cause: &'static str,
    },
    /// A page of the map can't be trusted; only its range answers with errors.
    #[error(
        "map of bytes {offset} to {end}: {cause}; this range can't be served: restore it from a snapshot or copy"
    )]
    DamagedMap {
        /// First byte of the range.
        offset: u64,
        /// One past its last byte.
        end: u64,
        /// What was found.
        cause: &'static str,
    },
    /// Acknowledged data may be lost; writes and flushes are refused until the loss is accepted.
    #[error("{0}; detach, check the store, then attach with --accept-loss")]
    Failed(Loss),
    /// The size is not one that a volume can have.
    #[error(
        "a volume of {size} bytes can't be: the size must be a multiple of 4096 from 4096 to {MAX_SIZE}"
    )]
    InvalidSize {
        /// What was asked for.
        size: u64,
    },
    /// A volume that is to stand alone still needs what lies below it.
    #[error(
        "byte {offset} is held by a lower layer only: copy up all of them before the layers below are given up"
    )]
    LeftBelow {
        /// The first such byte.
        offset: u64,
    },
    /// The superblock belongs to something else than the registry says.
    #[error(
        "{field} in the superblock is {found}, the registry says {expected}: this is another layer, or it was tampered with"
    )]
    Mismatch {
        /// Which field.
        field: &'static str,
        /// What the superblock says.
        found: String,
        /// What the registry says.
        expected: String,
    },
    /// The superblock was written by a later version.
    #[error("superblock has format version {version}, this sealvol knows 1: use a newer sealvol")]
    NewerFormat {
        /// The version in the superblock.
        version: u32,
    },
    /// Neither slot holds a superblock.
    #[error(
        "neither superblock slot is intact ({cause}): restore `meta` from a copy, the data can't be trusted without it"
    )]
    NoSuperblock {
        /// What is wrong with the slots.
        cause: &'static str,
    },
    /// A sealed layer can't be given what it is to take over.
    #[error(
        "merging stopped: {0}; of a merge that means nothing: nothing is lost, and all that it was to move is where it was. Check the store, then detach \
         and attach every volume and snapshot that stands on the layer: the merge then goes on"
    )]
    MergeStopped(Loss),
    /// A layer is not where it was when its merge began.
    #[error(
        "layer {layer} is not right below the layer that it is to be merged with: a snapshot came between them, or it is merged \
         already; begin the merge anew"
    )]
    NotNearest {
        /// The layer that was to go.
        layer: LayerId,
    },
    /// What is under one data key can't be brought into a layer under another one.
    #[error(
        "layer {layer} is under another data key than the layer below it, or was made for another volume: it can't be merged down; \
         merge that one up into it"
    )]
    OtherDataKey {
        /// The layer that was to go.
        layer: LayerId,
    },
    /// A layer below others was not sealed yet.
    #[error(
        "layer {layer} lies below another one and is not sealed: a snapshot was cut short; attach the volume for writing, \
         which ends it"
    )]
    NotSealed {
        /// The layer.
        layer: LayerId,
    },
    /// The disk is full; nothing acknowledged is lost and the volume goes on when there is space.
    #[error("no space left on the store: make room, then the volume goes on")]
    NoSpace,
    /// The write does not belong to this volume's bytes; whoever calls checks ranges first.
    #[error("bytes {offset} to {end} are beyond the end of the volume ({size} bytes)")]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// One past the last byte.
        end: u64,
        /// The volume's size.
        size: u64,
    },
    /// The registry could not record what must be recorded before going on.
    #[error(
        "the registry could not be written: {0}; nothing was served, repair it and attach again"
    )]
    Registry(String),
    /// Writing to what is attached read-only.
    #[error("the volume is attached read-only")]
    ReadOnly,
    /// The layer is older than what was relied on.
    #[error(
        "superblock generation {found} is older than {pinned}, which the registry relies on: the layer was rolled back; \
         restore the newer one, or go on from this one by --accept-rollback"
    )]
    RolledBack {
        /// The newest generation found.
        found: u64,
        /// The registry's.
        pinned: u64,
    },
    /// A sealed layer never changes.
    #[error(
        "layer {layer} is sealed and never changes: put a new layer on it (snapshot or clone), or attach it read-only"
    )]
    Sealed {
        /// The layer.
        layer: LayerId,
    },
    /// A volume never shrinks.
    #[error("size {asked} is smaller than the present {size}: a volume can't shrink")]
    Shrink {
        /// What was asked for.
        asked: u64,
        /// The size now.
        size: u64,
    },
    /// The store failed.
    #[error("store: {0}")]
    Store(#[source] StoreError),
    /// A good checksum with a bad MAC: somebody else wrote it.
    #[error("superblock: {cause}: it was tampered with; nothing was written")]
    Tampered {
        /// What gave it away.
        cause: &'static str,
    },
    /// A file is shorter than the volume needs.
    #[error("{file} has {found} bytes, the volume needs {expected}: it was truncated; restore it")]
    Truncated {
        /// `data` or `meta`.
        file: &'static str,
        /// Its length.
        found: u64,
        /// What is needed.
        expected: u64,
    },
    /// The working state could not be written or read.
    #[error("working state in the runtime directory: {0}; make room or mend it, then attach again")]
    WorkingState(String),
    /// The daemon died in this boot and what it had not brought to disk can't be found.
    #[error(
        "the volume was not closed, and the working state that its daemon left is not usable ({cause}): acknowledged \
         writes may be missing; attach with --accept-loss to go on with what is on disk"
    )]
    WorkingStateLost {
        /// What is wrong with it.
        cause: String,
    },
    /// The key service returned another key than the one that the registry is committed to.
    #[error("the unwrapped key is not this volume's (its commitment differs): refused")]
    WrongKey,
    /// The wrapped keys do not fit a slot.
    #[error("{count} wrapped keys do not fit the superblock: {cause}")]
    WrappedKeys {
        /// How many.
        count: usize,
        /// Which limit is met.
        cause: &'static str,
    },
}

impl VolumeError {
    /// What to do with it.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::NoSpace | Self::Store(_) | Self::Registry(_) | Self::WorkingState(_) => {
                Fault::Retry
            }
            Self::InvalidSize { .. }
            | Self::LeftBelow { .. }
            | Self::NewerFormat { .. }
            | Self::NotNearest { .. }
            | Self::OutOfRange { .. }
            | Self::NotSealed { .. }
            | Self::OtherDataKey { .. }
            | Self::ReadOnly
            | Self::Sealed { .. }
            | Self::Shrink { .. }
            | Self::WrappedKeys { .. } => Fault::Refuse,
            Self::BadCopy { .. }
            | Self::BrokenStack { .. }
            | Self::DamagedMap { .. }
            | Self::Failed(_)
            | Self::MergeStopped(_)
            | Self::Mismatch { .. }
            | Self::NoSuperblock { .. }
            | Self::RolledBack { .. }
            | Self::Tampered { .. }
            | Self::Truncated { .. }
            | Self::WorkingStateLost { .. }
            | Self::WrongKey => Fault::Stop,
        }
    }
}

impl From<StoreError> for VolumeError {
    fn from(error: StoreError) -> Self {
        if error.is_no_space() {
            Self::NoSpace
        } else {
            Self::Store(error)
        }
    }
}
