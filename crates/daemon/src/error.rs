//! Why the daemon does not do what it was asked: by cause.
//!
//! Each message is `THING: CAUSE`. What the caller gets (kind, HTTP status, exit code, next step) is
//! said in one place, [`crate::control::reply`].

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use sealvol_control::api::{
    BadKeySetName, BadSnapshotName, BadVolumeName, KeySetName, SnapshotRef, VolumeName,
};
use sealvol_control::key_ref::{KeyRef, KeyRefError};
use sealvol_control::keychild::{Fault, KeyChildError, KeyFailure, Right};
use sealvol_crypto::KeyError;
use sealvol_crypto::locked::LockedError;
use sealvol_store::StoreError;
use sealvol_volume::{LayerId, VolumeError, VolumeId};
use thiserror::Error;

use crate::registry::RegistryError;
use crate::rights;

/// A request that was not carried out.
#[derive(Debug, Error)]
pub enum Error {
    /// A request in the wrong form.
    #[error("request: {0}")]
    BadRequest(String),
    /// A name that no volume can have.
    #[error(transparent)]
    BadName(#[from] BadVolumeName),
    /// A name that no snapshot can have.
    #[error(transparent)]
    BadSnapshotName(#[from] BadSnapshotName),
    /// The audit log cannot be written, so keys may not be used.
    #[error("audit log {}: {source}", path.display())]
    Audit {
        /// The log.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The TPM's index for heads of the audit log is not what the log says.
    #[error("the TPM's index for the audit log: {cause}")]
    AuditIndex {
        /// What is wrong.
        cause: &'static str,
    },
    /// A backup of keys has nowhere to go.
    #[error("the backup's file: {0}")]
    BackupFile(io::Error),
    /// The backing is neither a directory nor a block device, or cannot be looked at.
    #[error("backing {}: {cause}", path.display())]
    Backing {
        /// What was asked for.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// Another volume's ciphertext is on that device.
    #[error("backing {}: volume {volume} is on this device", path.display())]
    BackingTaken {
        /// What was asked for.
        path: PathBuf,
        /// Whose it is.
        volume: VolumeName,
    },
    /// The caller may create volumes, but not there.
    #[error("backing {}: uid {uid} may not put volumes there", path.display())]
    BackingNotAllowed {
        /// What was asked for.
        path: PathBuf,
        /// Who asked.
        uid: u32,
    },
    /// The store can't be reached directly in single sectors.
    #[error(
        "volume {name}: direct access to its store is in units of {unit} bytes, its sectors have {sector}"
    )]
    DirectUnit {
        /// The volume.
        name: VolumeName,
        /// Bytes that the store's direct access takes at once.
        unit: u64,
        /// Bytes of a sector of the volume.
        sector: u64,
    },
    /// A volume on a block device has exactly its size.
    #[error("backing {}: the device has {device} bytes, the volume would have {asked}", path.display())]
    DeviceSize {
        /// The device.
        path: PathBuf,
        /// Its size in bytes.
        device: u64,
        /// The size that was asked for.
        asked: u64,
    },
    /// The caller lacks the right.
    #[error("uid {uid}: it does not hold the right to {}", rights::word(*right))]
    Forbidden {
        /// Who asked.
        uid: u32,
        /// What is needed.
        right: Right,
    },
    /// The caller may administer, but not say who can open every key.
    #[error("recovery key {fingerprint}: uid {uid} may have nothing encrypted to it")]
    RecoveryKeyNotAllowed {
        /// SHA-256 of the key.
        fingerprint: String,
        /// Who asked.
        uid: u32,
    },
    /// The caller holds no right at all.
    #[error("uid {0}: it holds no right on this daemon")]
    Stranger(u32),
    /// The volume is attached, and what was asked needs it not to be.
    #[error("volume {0}: it is attached")]
    Attached(VolumeName),
    /// The volume is not attached, and what was asked needs it to be.
    #[error("volume {0}: it is not attached")]
    NotAttached(VolumeName),
    /// Clients use the volume, or the snapshot.
    #[error("volume {name}: clients are connected: {count}")]
    ClientsConnected {
        /// The name of the export.
        name: String,
        /// How many.
        count: usize,
    },
    /// The volume's key is in memory only, and what was asked would outlive it.
    #[error("volume {name}: it is ephemeral: {what}")]
    Ephemeral {
        /// The volume.
        name: VolumeName,
        /// Why that does not go.
        what: &'static str,
    },
    /// The daemon would lose what these volumes hold.
    #[error("sealvold: ephemeral volumes are attached, and what they hold would be gone: {}", names(.0))]
    EphemeralAttached(Vec<VolumeName>),
    /// The volume has snapshots, and would take them with it.
    #[error("volume {name}: it has snapshots: {count}")]
    HasSnapshots {
        /// The volume.
        name: VolumeName,
        /// How many.
        count: usize,
    },
    /// Other volumes stand on layers of the volume, so that its keys can't be destroyed.
    #[error("volume {name}: other volumes stand on layers of it: {layers}")]
    LayersShared {
        /// The volume.
        name: VolumeName,
        /// How many layers.
        layers: usize,
    },
    /// A proof was asked for, and something would go on to open copies of the volume.
    #[error("volume {name}: there would be no proof: {cause}")]
    NoProof {
        /// The volume.
        name: VolumeName,
        /// What it is.
        cause: String,
        /// What ends it.
        next_step: String,
    },
    /// A volume on a block device, and nowhere for another layer.
    #[error(
        "volume {0}: it is on a block device, and no directory for further layers was named when it was created"
    )]
    NoPlaceForLayers(VolumeName),
    /// There is no such snapshot.
    #[error("snapshot {0}: there is none of that name")]
    NoSuchSnapshot(SnapshotRef),
    /// The snapshot is attached, and what was asked needs it not to be.
    #[error("snapshot {0}: it is attached")]
    SnapshotAttached(SnapshotRef),
    /// The snapshot is not attached, and what was asked needs it to be.
    #[error("snapshot {0}: it is not attached")]
    SnapshotNotAttached(SnapshotRef),
    /// A read may have to look through every layer.
    #[error("volume {name}: it has {layers} layers, and may not have more")]
    TooManyLayers {
        /// The volume.
        name: VolumeName,
        /// How many.
        layers: usize,
    },
    /// A clone can't be what was asked for.
    #[error("volume {name}: it can't begin as snapshot {snapshot}: {cause}")]
    NoSuchClone {
        /// The clone.
        name: VolumeName,
        /// What it was to begin as.
        snapshot: SnapshotRef,
        /// Why not.
        cause: String,
    },
    /// There is no such volume.
    #[error("volume {0}: there is none of that name")]
    NoSuchVolume(VolumeName),
    /// A job works on the volume, and what was asked would not go with it.
    #[error("volume {name}: job {job} works on it")]
    JobUnderWay {
        /// The volume.
        name: VolumeName,
        /// The job's number.
        job: u64,
    },
    /// There is no such job.
    #[error("job {0}: there is none of that number")]
    NoSuchJob(u64),
    /// The job has ended, or has come too far.
    #[error("job {job}: {cause}")]
    NotCancellable {
        /// Its number.
        job: u64,
        /// Why not.
        cause: &'static str,
    },
    /// A job has nobody's leave to open the volume by itself.
    #[error("volume {0}: it was detached before its re-key was done")]
    DetachedMeanwhile(VolumeName),
    /// The volume is to be attached, and could not be yet.
    #[error("volume {0}: it is to be attached again, and is not yet")]
    NotServed(VolumeName),
    /// There is not the space that materialising or copying takes.
    #[error(
        "volume {name}: {needed} bytes are to be written, {free} bytes are free where its data is"
    )]
    NoRoom {
        /// The volume.
        name: VolumeName,
        /// Bytes to be written.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// What is in the directory cannot be adopted as a volume.
    #[error("layer {}: {cause}", path.display())]
    NotAdoptable {
        /// The directory.
        path: PathBuf,
        /// Why not.
        cause: String,
    },
    /// The volume is registered already.
    #[error("volume {id}: it is registered already, as {name}")]
    Registered {
        /// Its id, as the layer says.
        id: VolumeId,
        /// Its name.
        name: VolumeName,
    },
    /// A failed sync is on record (rule R6).
    #[error("volume {name}: a sync failed before: {loss}")]
    LossRecorded {
        /// The volume.
        name: VolumeName,
        /// What failed.
        loss: String,
    },
    /// The superblock holds no wrapped copy of the data key that the registry names.
    #[error("volume {0}: its superblock holds no wrapped copy of its data key; it was changed")]
    NoWrappedKey(VolumeName),
    /// The superblock names another key-encryption key than the registry.
    #[error(
        "volume {name}: its superblock says the key {found} wraps it, the registry says {expected}"
    )]
    OtherKey {
        /// The volume.
        name: VolumeName,
        /// Key id of the superblock.
        found: String,
        /// Key id of the registry.
        expected: String,
    },
    /// The key that came is none.
    #[error("volume {name}: its unwrapped key is refused: {source}")]
    BadKey {
        /// The volume.
        name: VolumeName,
        /// What is wrong with it.
        source: KeyError,
    },
    /// What came in place of a data key is none.
    #[error("the key that was given is none: {0}")]
    BadGivenKey(#[source] KeyError),
    /// A volume whose key is given at each attach, and that was not.
    #[error("volume {0}: its key is given by whoever attaches it, and was not")]
    KeyNotGiven(VolumeName),
    /// A volume that takes no key.
    #[error("volume {name}: its key is wrapped by {key}, and none is to be given")]
    KeyNotTaken {
        /// The volume.
        name: VolumeName,
        /// What wraps its key.
        key: KeyRef,
    },
    /// Something that takes a key that a key service wraps.
    #[error("volume {name}: its key is given at each attach: {what}")]
    Provided {
        /// The volume.
        name: VolumeName,
        /// Why that does not go.
        what: &'static str,
    },
    /// The key service refused or failed; its message names the key.
    #[error("{}{} ({})", for_volume(volume.as_ref()), failure.message, failure.provider_error)]
    Key {
        /// The volume that the key was to be used for.
        volume: Option<VolumeName>,
        /// In the provider's words.
        failure: Box<KeyFailure>,
    },
    /// The key service could not be asked.
    #[error("{}key {key}: {source}", for_volume(volume.as_ref()))]
    KeyChild {
        /// The volume that the key was to be used for.
        volume: Option<VolumeName>,
        /// The key.
        key: KeyRef,
        /// What happened to the key child.
        source: Box<KeyChildError>,
    },
    /// The embedded key service has no database, and volumes need the keys that were in it.
    #[error("key database {}: it is gone, and volume {volume} needs a key of it", path.display())]
    KeyDatabaseLost {
        /// Where it should be.
        path: PathBuf,
        /// One of the volumes.
        volume: VolumeName,
    },
    /// Volumes would be lost with the key.
    #[error("key {key}: volumes need it: {}", names(volumes))]
    KeyInUse {
        /// The key.
        key: KeyRef,
        /// Those volumes, by name.
        volumes: Vec<VolumeName>,
    },
    /// The volume's key is that of a key set, and another one was named.
    #[error("volume {name}: it is in key set {set}, which says what key it has")]
    InKeySet {
        /// The volume.
        name: VolumeName,
        /// The set.
        set: KeySetName,
    },
    /// Volumes are in the key set.
    #[error("key set {set}: volumes are in it: {}", names(volumes))]
    KeySetInUse {
        /// The set.
        set: KeySetName,
        /// Those volumes, by name.
        volumes: Vec<VolumeName>,
    },
    /// A key set's name is taken.
    #[error("key set {0}: there is one of that name already")]
    KeySetTaken(KeySetName),
    /// There is no such key set.
    #[error("key set {0}: there is none of that name")]
    NoSuchKeySet(KeySetName),
    /// A name that no key set can have.
    #[error(transparent)]
    BadKeySetName(#[from] BadKeySetName),
    /// It is no key reference.
    #[error(transparent)]
    KeyRef(#[from] KeyRefError),
    /// A key service can't open what another one wrapped.
    #[error(
        "volume {name}: {from} wraps a data key of it, which the provider of {to} can't wrap anew"
    )]
    OtherProvider {
        /// The volume.
        name: VolumeName,
        /// The key that wraps it.
        from: KeyRef,
        /// The key that was to wrap it.
        to: KeyRef,
    },
    /// No configured provider has that name.
    #[error("key provider `{provider}`: it is not configured; there are: {configured}")]
    NoSuchProvider {
        /// The name.
        provider: String,
        /// Those that there are.
        configured: String,
    },
    /// Memory for keys cannot be locked.
    #[error("key memory: {0}")]
    KeyMemory(Arc<LockedError>),
    /// The self-tests failed: nothing is served.
    #[error("self-test: {0}")]
    SelfTest(String),
    /// There is no such path in the API, or no such method on it.
    #[error("{method} {path}: the control API has no such call")]
    NoSuchCall {
        /// The HTTP method.
        method: String,
        /// The path.
        path: String,
    },
    /// The registry cannot be read or written.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A measurement goes on already.
    #[error("bench: another measurement goes on, and the two would measure each other")]
    Measuring,
    /// What was to be measured failed.
    #[error("bench: {0}")]
    Measurement(String),
    /// Nobody waits for the measurement any more, or the daemon is stopping.
    #[error("bench: it was ended early")]
    MeasurementEnded,
    /// The daemon is stopping.
    #[error("sealvold: it is stopping")]
    Stopping,
    /// A file or directory of the volume.
    #[error("volume {name}: {source}")]
    Store {
        /// The volume.
        name: VolumeName,
        /// What happened.
        source: StoreError,
    },
    /// A layer that is to go, or to take over another one.
    #[error("layer {layer}: {source}")]
    Layer {
        /// The layer that is to go.
        layer: LayerId,
        /// What happened.
        source: VolumeError,
    },
    /// A part of the daemon broke while it carried out the request.
    #[error("internal: {0}")]
    Internal(String),
    /// The volume itself.
    #[error("volume {name}: {source}")]
    Volume {
        /// The volume.
        name: VolumeName,
        /// What happened.
        source: Box<VolumeError>,
    },
}

impl Error {
    /// The volume `name` failed so.
    pub fn volume(name: &VolumeName) -> impl FnOnce(VolumeError) -> Self {
        let name = name.clone();
        move |source| Self::Volume {
            name,
            source: Box::new(source),
        }
    }

    /// Whether it is about nothing but a key service that did not answer: nobody has to change anything for it to pass.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Key { failure, .. } => failure.may_pass(),
            Self::KeyChild { source, .. } => source.fault() == Fault::Retry,
            _ => false,
        }
    }

    /// A file of the volume `name` failed so.
    pub fn store(name: &VolumeName) -> impl FnOnce(StoreError) -> Self {
        let name = name.clone();
        move |source| Self::Store { name, source }
    }
}

fn names(volumes: &[VolumeName]) -> String {
    let names: Vec<&str> = volumes.iter().map(VolumeName::as_str).collect();
    names.join(", ")
}

fn for_volume(volume: Option<&VolumeName>) -> String {
    volume.map_or_else(String::new, |name| format!("volume {name}: "))
}
