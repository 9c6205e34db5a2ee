//! The control API: HTTP/1.1 with JSON bodies on a Unix socket.
//!
//! | method and path                   | body              | answer          | right      |
//! |-----------------------------------|-------------------|-----------------|------------|
//! | `GET /v1/status`                  |                   | [`Status`]      | any        |
//! | `POST /v1/selftest`               |                   | [`SelfTest`]    | administer |
//! | `GET /v1/doctor`                  |                   | [`doctor::Doctor`] | administer |
//! | `POST /v1/stop`                   | [`Stop`]          | [`Stopping`]    | administer |
//! | `POST /v1/bench/cipher`           | [`bench::Bench`]  | [`bench::CipherReport`] | administer |
//! | `POST /v1/bench/volume`           | [`bench::Bench`]  | [`bench::VolumeReport`] | administer |
//! | `GET /v1/volumes`                 |                   | [`VolumeList`]  | any        |
//! | `POST /v1/volumes`                | [`CreateVolume`]  | [`Volume`]      | create     |
//! | `GET /v1/volumes/NAME`            |                   | [`Volume`]      | any        |
//! | `DELETE /v1/volumes/NAME`         | [`DeleteVolume`]  | [`Deleted`]     | administer |
//! | `POST /v1/volumes/NAME/attach`    | [`AttachVolume`]  | [`Volume`]      | attach     |
//! | `POST /v1/volumes/NAME/detach`    | [`DetachVolume`]  | [`Volume`]      | attach     |
//! | `POST /v1/volumes/NAME/resize`    | [`ResizeVolume`]  | [`Volume`]      | administer |
//! | `POST /v1/volumes/NAME/limit`     | [`LimitVolume`]   | [`Volume`]      | administer |
//! | `POST /v1/volumes/NAME/on-revoke` | [`OnRevoke`]      | [`Volume`]      | administer |
//! | `GET /v1/volumes/NAME/flatten`    |                   | [`FlattenPlan`] | administer |
//! | `POST /v1/volumes/NAME/flatten`   | [`FlattenVolume`] | [`Flattened`]   | administer |
//! | `POST /v1/volumes/NAME/rewrap`    | [`RewrapVolume`]  | [`Rewrapped`]   | administer |
//! | `POST /v1/volumes/NAME/adopt`     | [`AdoptVolume`]   | [`Adopted`]     | administer |
//! | `GET /v1/volumes/NAME/map[?offset=N]` |               | [`VolumeMap`]   | administer |
//! | `GET /v1/snapshots[?volume=V]`    |                   | [`SnapshotList`] | any       |
//! | `POST /v1/snapshots`              | [`CreateSnapshots`] | [`SnapshotList`] | create  |
//! | `GET /v1/snapshots/V@S`           |                   | [`Snapshot`]    | any        |
//! | `DELETE /v1/snapshots/V@S`        |                   | [`SnapshotDeleted`] | administer |
//! | `POST /v1/snapshots/V@S/attach`   | [`AttachSnapshot`] | [`Snapshot`]   | attach     |
//! | `POST /v1/snapshots/V@S/detach`   | [`DetachVolume`]  | [`Snapshot`]    | attach     |
//! | `POST /v1/snapshots/V@S/copy`     | [`CopySnapshot`]  | [`SnapshotCopy`] | create    |
//! | `GET /v1/snapshots/V@S/changes[?offset=N]` |          | [`SnapshotChanges`] | administer |
//! | `POST /v1/volumes/NAME/rekey`     | [`RekeyVolume`]   | [`Job`]         | administer |
//! | `GET /v1/jobs`                    |                   | [`JobList`]     | any        |
//! | `GET /v1/jobs/ID`                 |                   | [`Job`]         | any        |
//! | `POST /v1/jobs/ID/cancel`         |                   | [`Job`]         | administer |
//! | `GET /v1/keys[?provider=P]`       |                   | [`KeyList`]     | any        |
//! | `POST /v1/keys`                   | [`CreateKey`]     | [`Key`]         | administer |
//! | `GET /v1/keys/PROVIDER:KEY`       |                   | [`Key`]         | any        |
//! | `POST /v1/keys/PROVIDER:KEY/change` | [`ChangeKey`]   | [`Key`]         | administer |
//! | `POST /v1/keys/PROVIDER:KEY/import-parameters` | [`GetImportParameters`] | [`ImportParameters`] | administer |
//! | `POST /v1/keys/PROVIDER:KEY/import` | [`ImportMaterial`] | [`Key`]      | administer |
//! | `GET /v1/keys/PROVIDER:KEY/policy` |                 | [`KeyPolicy`]    | administer |
//! | `POST /v1/keys/PROVIDER:KEY/policy` | [`SetKeyPolicy`] | [`KeyPolicy`]  | administer |
//! | `POST /v1/keys/PROVIDER/accept-table` |               | [`KeyTable`]    | administer |
//! | `POST /v1/keys/PROVIDER/backup`   | [`BackUpKeys`]    | [`KeyBackup`]   | administer |
//! | `GET /v1/key-sets`                |                   | [`KeySetList`]  | any        |
//! | `POST /v1/key-sets`               | [`CreateKeySet`]  | [`KeySet`]      | administer |
//! | `GET /v1/key-sets/NAME`           |                   | [`KeySet`]      | any        |
//! | `POST /v1/key-sets/NAME/update`   | [`UpdateKeySet`]  | [`KeySet`]      | administer |
//! | `DELETE /v1/key-sets/NAME`        |                   | [`KeySet`]      | administer |
//! | `GET /v1/aliases[?provider=P]`    |                   | [`AliasList`]   | any        |
//! | `POST /v1/aliases`                | [`CreateAlias`]   | [`Alias`]       | administer |
//! | `POST /v1/aliases/PROVIDER:ALIAS` | [`UpdateAlias`]   | [`Alias`]       | administer |
//! | `DELETE /v1/aliases/PROVIDER:ALIAS` |                 | [`Alias`]       | administer |
//!
//! "Any" is one of the three rights, whichever; who has none is refused everything. An empty body
//! means all defaults where the request allows it. A request with an unknown field is refused.
//! With curl: `curl --unix-socket /run/sealvol/control.sock http://localhost/v1/status`.
//!
//! Every failure is an [`ErrorReply`] under the HTTP status of its [`ErrorKind`].
//! No message of this API holds key bytes, wrapped or not, but for key material that is imported, which is encrypted to a key
//! that only its key service has. Sizes are bytes; times are RFC 3339 in
//! UTC.

pub mod bench;
pub mod doctor;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

mod backup;
mod deletion;
mod import;
mod jobs;
mod key_sets;
mod keys;
mod revocation;
mod rewrap;
mod snapshots;
mod status;

pub use backup::{BackUpKeys, KeyBackup};
pub use deletion::{DeleteVolume, Deleted, OnlyEnd, ShredProof, VolumeTombstone};
pub use import::{GetImportParameters, ImportMaterial, ImportParameters};
pub use jobs::{
    Copied, FreshKey, JOB_RATE_MIN, Job, JobKind, JobList, JobResult, JobState, Opened,
    RekeyVolume, Rekeyed,
};
pub use key_sets::{
    BadKeySetName, CreateKeySet, KeySet, KeySetList, KeySetMember, KeySetName, RewrapWhen,
    UpdateKeySet,
};
pub use keys::{
    Alias, AliasList, ChangeKey, CreateAlias, CreateKey, Key, KeyList, KeyPolicy, KeyTable,
    KeyVersion, SetKeyPolicy, UpdateAlias,
};
pub use revocation::{Enforcement, OnRevoke};
pub use rewrap::{RewrapVolume, Rewrapped};
pub use snapshots::{
    AttachSnapshot, BadSnapshotName, ChangedExtent, CopySnapshot, CreateSnapshots, DeletedLayer,
    Snapshot, SnapshotChanges, SnapshotCopy, SnapshotDeleted, SnapshotList, SnapshotName,
    SnapshotRef, SnapshotState,
};
pub use status::{
    AuditStatus, Failure, KeyMemoryStatus, KeyServiceStatus, SelfTest, Status, Stop, Stopping,
};

/// Path of [`Status`].
pub const STATUS: &str = "/v1/status";
/// Path of [`SelfTest`].
pub const SELFTEST: &str = "/v1/selftest";
/// Path of [`Stop`].
pub const STOP: &str = "/v1/stop";
/// Path of the volumes; one volume is below it by its name.
pub const VOLUMES: &str = "/v1/volumes";
/// Path of the snapshots; one snapshot is below it by its full name.
pub const SNAPSHOTS: &str = "/v1/snapshots";
/// Path of the jobs; one job is below it by its number.
pub const JOBS: &str = "/v1/jobs";
/// Path of the keys; one key is below it by its reference.
pub const KEYS: &str = "/v1/keys";
/// Path of the key sets; one is below it by its name.
pub const KEY_SETS: &str = "/v1/key-sets";
/// Path of the aliases of keys; one alias is below it by its reference.
pub const ALIASES: &str = "/v1/aliases";

/// The socket that is asked when nobody names another.
pub const DEFAULT_SOCKET: &str = "/run/sealvol/control.sock";

/// The longest request body that is read, in bytes.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// The name of a volume: 1 to 64 of ASCII letters, digits, `.`, `_`, `-`, beginning with a letter
/// or digit.
///
/// `@` and `/` stay free, for snapshots and for paths; the same name is the NBD export name and fits
/// into a URI without escapes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

/// A text that cannot be the name of a volume.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "`{0}` cannot be the name of a volume. Use 1 to 64 letters, digits, `.`, `_` or `-`, \
     beginning with a letter or digit"
)]
pub struct BadVolumeName(pub String);

impl VolumeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for VolumeName {
    type Error = BadVolumeName;

    fn try_from(text: String) -> Result<Self, BadVolumeName> {
        let good = (1..=64).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if good {
            Ok(Self(text))
        } else {
            Err(BadVolumeName(text))
        }
    }
}

impl FromStr for VolumeName {
    type Err = BadVolumeName;

    fn from_str(text: &str) -> Result<Self, BadVolumeName> {
        Self::try_from(text.to_owned())
    }
}

impl From<VolumeName> for String {
    fn from(name: VolumeName) -> Self {
        name.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Ask for a new volume. Its data key is generated wrapped: nobody sees it at creation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// Its name, free until now.
    pub name: VolumeName,
    /// Bytes, a multiple of 4096. Only a clone may leave it out: it has the snapshot's size then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// `PROVIDER:KEY` that wraps its data keys; if absent, `local:default`, or for a clone that of the volume it is made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The key set whose key wraps them, now and later; a clone is in that of the volume it is made from if neither is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_set: Option<KeySetName>,
    /// Bytes of one data unit of the cipher: 4096 (if absent) or 512. A clone has that of the volume it is made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sector_size: Option<u32>,
    /// Where the ciphertext goes: a directory, or a block device. The state directory if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backing: Option<PathBuf>,
    /// The directory for further layers, which snapshots put on the first one. Absent: where the
    /// first one is; a volume on a block device has no place for them then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers_dir: Option<PathBuf>,
    /// The snapshot that it begins as: a clone, there at once, since it shares the snapshot's layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_snapshot: Option<SnapshotRef>,
    /// Its data key is made in memory at each attach and never wrapped: what it holds is gone when it is detached, or when the
    /// daemon ends. No key, no snapshot to begin as.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ephemeral: bool,
    /// For a clone: a job copies what it shares under its own data key, so that it comes to stand alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fresh_key: Option<FreshKey>,
}

/// Ask to attach a volume: unwrap its key and export it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachVolume {
    /// Refuse writes.
    #[serde(default)]
    pub read_only: bool,
    /// Reach the store past the page cache (`O_DIRECT`), with every access.
    #[serde(default)]
    pub direct: bool,
    /// User ids that may open the export; the caller and root if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<u32>>,
    /// Go on after a recorded failed sync, knowing that acknowledged writes may be gone.
    #[serde(default)]
    pub accept_loss: bool,
    /// Go on from a superblock that is older than the registry relies on, knowing that what was
    /// written since is gone.
    #[serde(default)]
    pub accept_rollback: bool,
}

/// Ask to detach a volume: answer what is outstanding, commit, wipe its key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetachVolume {
    /// Close the connections of clients that are still there.
    #[serde(default)]
    pub force: bool,
}

/// Ask for a larger volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResizeVolume {
    /// The new size in bytes, a multiple of 4096, not below the present one.
    pub size: u64,
}

/// Ask for other limits on a volume, attached or not. What is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitVolume {
    /// Operations a second, each of up to 256 KiB; 0 for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<u64>,
    /// Bytes a second, at least 4096; 0 for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<u64>,
    /// So many seconds' worth of the limits can be saved up and used at once; at most 86400.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_seconds: Option<u32>,
}

/// The limits of a volume: what is over them waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Operations a second, each of up to 256 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<u64>,
    /// Bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<u64>,
    /// So many seconds' worth can be saved up and used at once.
    pub burst_seconds: u32,
}

/// Ask to bring a volume's content into one layer. One call does a bounded part of it, so whoever
/// asks can stop between two of them; the volume's map remembers how far it has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlattenVolume {
    /// Write encrypted zeros into every block that holds no data. The volume must be attached.
    #[serde(default)]
    pub materialise: bool,
    /// The byte to begin at: 0, then what [`Flattened::next`] says.
    #[serde(default)]
    pub from: u64,
    /// Stop when about so many bytes are written; as many as the daemon thinks right if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_max: Option<u64>,
}

/// What flattening with `materialise` would take now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlattenPlan {
    /// Bytes of the volume.
    pub size: u64,
    /// Bytes in blocks that hold no data: encrypted zeros are to be written there.
    pub zeros: u64,
    /// Bytes free where the volume's data is; absent if it has a device to itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free: Option<u64>,
}

/// What a [`FlattenVolume`] did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flattened {
    /// Layers of the volume now.
    pub layers: usize,
    /// Bytes of encrypted zeros written by this call.
    pub written: u64,
    /// Where to go on; absent when the end was reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// Ask to register a volume again from its layer, when the registry that knew it is lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdoptVolume {
    /// The directory with `meta` and `data`, called by the layer's id.
    pub layer_dir: PathBuf,
    /// `PROVIDER:KEY` that is trusted to have wrapped its data key.
    pub key: String,
    /// The block device that holds its data, if `data` is not in the directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<PathBuf>,
}

/// A volume that was adopted, and what it was adopted on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    /// The volume as registered now.
    pub volume: Volume,
    /// The superblock carried a MAC, and the key proved it. Without one the volume was never
    /// attached, and its data was found to be empty.
    pub authenticated: bool,
    /// The superblock's generation: from now on the registry relies on it. Nothing can tell whether
    /// it was the newest.
    pub generation: u64,
    /// The layer was closed in good order.
    pub clean: bool,
    /// Its data key is wrapped by a public key, so whoever has that could have made all of it, MAC included.
    #[serde(default)]
    pub forgeable: bool,
}

/// The states of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// Complete, its key nowhere in memory.
    Available,
    /// Exported.
    Attached,
    /// Exported, but a sync failed: writes answer EIO until it is attached anew with the loss
    /// accepted.
    Failed,
    /// Being served when the daemon stopped, and could not be attached again.
    Error,
}

impl fmt::Display for VolumeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Available => "available",
            Self::Attached => "attached",
            Self::Failed => "failed",
            Self::Error => "error",
        })
    }
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// UUID; also the value of `sealvol:volume` in its encryption context.
    pub id: String,
    /// Its name, and the name of its export.
    pub name: VolumeName,
    /// Bytes.
    pub size: u64,
    /// Bytes of one data unit of the cipher.
    pub sector_size: u32,
    /// See [`VolumeState`].
    pub state: VolumeState,
    /// When it was created.
    pub created: String,
    /// `PROVIDER:KEY` that wraps its data key, as it was named.
    pub key: String,
    /// The key id that the provider resolved it to, and its version.
    pub key_id: String,
    /// Version of the key-encryption key.
    pub key_version: u32,
    /// The key set that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_set: Option<KeySetName>,
    /// Its key is made in memory at each attach and never wrapped: what it holds is gone when it is detached.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ephemeral: bool,
    /// Directory or block device that holds the ciphertext.
    pub backing: PathBuf,
    /// Present if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Present if its key is watched while it is attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforcement: Option<Enforcement>,
    /// Present while it is attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<Attachment>,
    /// A recorded failed sync: what was acknowledged may be gone (`attach --accept-loss`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<String>,
    /// Why it could not be attached again when the daemon started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attach_failure: Option<String>,
    /// How many layers a read may have to look through.
    pub depth: usize,
    /// From the top down.
    pub layers: Vec<Layer>,
    /// Present while it is a clone: what the layers that it does not own come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Number of the job that works on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<u64>,
}

/// What a clone was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// UUID of the newest layer that it shares.
    pub layer: String,
    /// UUID of the volume that this layer was made for; it may be deleted.
    pub volume: String,
    /// The snapshot, by its present name, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotRef>,
}

/// How a volume is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// NBD URI of the export.
    pub uri: String,
    /// Writes are refused.
    pub read_only: bool,
    /// User ids that may open it.
    pub allow: Vec<u32>,
    /// User id that attached it.
    pub attached_by: u32,
    /// Clients connected now.
    pub connections: usize,
    /// How the store is reached.
    pub access: String,
    /// How long requests waited for snapshots and other changes of its layers.
    pub waits: Waits,
}

/// How long requests waited for the moment at which a volume's layers change, since it was attached. Times are
/// nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waits {
    /// Requests that had to wait.
    pub count: u64,
    /// 99 of 100 waited no longer.
    pub p99: u64,
    /// The longest wait.
    pub longest: u64,
    /// How many waited how long, the shortest first; what is not named is 0.
    pub histogram: Vec<WaitBucket>,
}

/// Waits of about the same length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitBucket {
    /// They were no longer than this, and three quarters of it at least.
    pub up_to: u64,
    /// How many there were.
    pub count: u64,
}

/// One layer of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// UUID.
    pub id: String,
    /// UUID of its data key.
    pub data_key: String,
    /// Highest generation of its superblock that the registry relies on.
    pub generation: u64,
    /// It never changes again.
    pub sealed: bool,
    /// Directory or block device that holds its ciphertext.
    pub backing: PathBuf,
    /// UUID of the volume that it was made for, if that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_volume: Option<String>,
    /// The snapshot of this volume that it is the newest layer of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotName>,
}

/// All volumes, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeList {
    /// Sorted by name.
    pub volumes: Vec<Volume>,
}

/// What is stored where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMap {
    /// Contiguous and ascending, from the offset that was asked for.
    pub runs: Vec<MapRun>,
    /// The offset to ask for next; none if these runs reach the end of the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// A run of blocks of one state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapRun {
    /// Bytes from the start of the volume.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// `absent`, `zero` or `data`.
    pub state: String,
    /// UUID of the layer that the run comes from; none for `absent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<String>,
}

/// What kind of failure a request met; each is one HTTP status and one exit code of `sealvol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// It went wrong although nothing forbade it: a disk, a key service that is away.
    Failed,
    /// The request is wrong in itself.
    Usage,
    /// Policy, a key service or a tamper check forbids it.
    Refused,
    /// The volume or key does not exist.
    NotFound,
    /// It cannot be done in the present state: attached, in use, taken.
    Conflict,
}

impl ErrorKind {
    /// The exit code of `sealvol`.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Refused => 3,
            Self::NotFound => 4,
            Self::Conflict => 5,
        }
    }

    /// The HTTP status code of the reply (RFC 9110).
    pub fn http_status(self) -> u16 {
        match self {
            Self::Failed => 500,
            Self::Usage => 400,
            Self::Refused => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
        }
    }
}

/// The body of every reply that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReply {
    /// The failure.
    pub error: ApiError,
}

/// A failure: what, why, and what to do.
#[derive(Clone, Debug, Error, PartialEq, Eq, Serialize, Deserialize)]
#[error("{message}")]
pub struct ApiError {
    /// See [`ErrorKind`].
    pub kind: ErrorKind,
    /// `THING: CAUSE`.
    pub message: String,
    /// What the caller can do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_step: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volume_names_fit_into_paths_and_uris() {
        for good in ["a", "vol-1", "0.data_2", &"x".repeat(64)] {
            assert!(good.parse::<VolumeName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "-x",
            "_x",
            "a/b",
            "a@b",
            "a b",
            "é",
            "a\0",
            &"x".repeat(65),
        ] {
            assert!(bad.parse::<VolumeName>().is_err(), "{bad}");
        }
        let json = serde_json::from_str::<VolumeName>("\"../../etc\"");
        assert!(json.is_err(), "a bad name does not deserialize");
    }

    #[test]
    fn unknown_fields_are_refused() {
        let typo = serde_json::from_str::<AttachVolume>(r#"{"readonly":true}"#);
        assert!(typo.is_err());
        let empty: AttachVolume = serde_json::from_str("{}").expect("all fields have defaults");
        assert_eq!(empty, AttachVolume::default());
    }

    #[test]
    fn exit_codes_are_the_documented_ones() {
        let codes = [
            (ErrorKind::Failed, 1, 500),
            (ErrorKind::Usage, 2, 400),
            (ErrorKind::Refused, 3, 403),
            (ErrorKind::NotFound, 4, 404),
            (ErrorKind::Conflict, 5, 409),
        ];
        for (kind, exit, http) in codes {
            assert_eq!((kind.exit_code(), kind.http_status()), (exit, http));
        }
        let error = ApiError {
            kind: ErrorKind::NotFound,
            message: "x".into(),
            next_step: None,
        };
        let json = serde_json::to_string(&ErrorReply { error }).expect("plain data");
        assert_eq!(json, r#"{"error":{"kind":"not-found","message":"x"}}"#);
    }
}
