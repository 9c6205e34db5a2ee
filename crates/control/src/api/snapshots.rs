//! Messages about snapshots.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Attachment, BadVolumeName, Job, VolumeName};

/// The name of a snapshot among those of its volume, by the same rule as [`VolumeName`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotName(VolumeName);

/// A text that cannot be a snapshot's name, alone or as `VOLUME@SNAPSHOT`.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "`{0}` cannot be the name of a snapshot. Use VOLUME@SNAPSHOT, each of 1 to 64 letters, digits, `.`, `_` or `-`, \
     beginning with a letter or digit"
)]
pub struct BadSnapshotName(pub String);

impl SnapshotName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl TryFrom<String> for SnapshotName {
    type Error = BadSnapshotName;

    fn try_from(text: String) -> Result<Self, BadSnapshotName> {
        VolumeName::try_from(text)
            .map(Self)
            .map_err(|BadVolumeName(text)| BadSnapshotName(text))
    }
}

impl FromStr for SnapshotName {
    type Err = BadSnapshotName;

    fn from_str(text: &str) -> Result<Self, BadSnapshotName> {
        Self::try_from(text.to_owned())
    }
}

impl From<SnapshotName> for String {
    fn from(name: SnapshotName) -> Self {
        name.0.into()
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A snapshot by its full name, `VOLUME@SNAPSHOT`: also the name of its export.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotRef {
    /// The volume.
    pub volume: VolumeName,
    /// The snapshot's name among those of the volume.
    pub name: SnapshotName,
}

impl TryFrom<String> for SnapshotRef {
    type Error = BadSnapshotName;

    fn try_from(text: String) -> Result<Self, BadSnapshotName> {
        text.parse()
    }
}

impl FromStr for SnapshotRef {
    type Err = BadSnapshotName;

    fn from_str(text: &str) -> Result<Self, BadSnapshotName> {
        let bad = || BadSnapshotName(text.to_owned());
        let (volume, name) = text.split_once('@').ok_or_else(bad)?;
        Ok(Self {
            volume: volume.parse().map_err(|_| bad())?,
            name: name.parse().map_err(|_| bad())?,
        })
    }
}

impl From<SnapshotRef> for String {
    fn from(snapshot: SnapshotRef) -> Self {
        snapshot.to_string()
    }
}

impl fmt::Display for SnapshotRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}@{}", self.volume, self.name))
    }
}

/// Ask for snapshots of one or several volumes, attached or not, all of one point in time: what was
/// acknowledged before the call is in, what is sent after its answer is not, and between lies one
/// cut that respects cause and effect over all connections and volumes. All of them or none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshots {
    /// At most one of each volume.
    pub snapshots: Vec<SnapshotRef>,
}

/// Ask for a copy of a snapshot: a new volume that holds what the snapshot holds, and a snapshot of it. Nothing of the source
/// changes. Under the key that the source is under the two share layers, and no data moves; under another one a [`Job`] of kind
/// [`super::JobKind::SnapshotCopy`] encrypts every block again, under a data key of its own, and makes the snapshot at its end.
/// Until then the new volume can't be attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopySnapshot {
    /// The snapshot to be, of a volume that is not there yet.
    pub to: SnapshotRef,
    /// `PROVIDER:KEY` that wraps the copy's data keys, of any provider; that of the source's volume if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Bytes that are copied a second at most, [`super::JOB_RATE_MIN`] or more; as many as possible if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
}

/// What became of a [`CopySnapshot`]: the job that copies, or the snapshot, if no data moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotCopy {
    /// What is copied.
    pub from: SnapshotRef,
    /// The copy.
    pub to: SnapshotRef,
    /// `PROVIDER:KEY` that wraps its data keys.
    pub key: String,
    /// At its end the copy is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Job>,
    /// The copy, there at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
}

/// Ask to export a snapshot, read-only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachSnapshot {
    /// Reach the store past the page cache, where its layers are not open already.
    #[serde(default)]
    pub direct: bool,
    /// User ids that may open the export; the caller and root if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<u32>>,
}

/// The states of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotState {
    /// Its content is fixed, its layer not sealed yet: that is done when the volume, or the
    /// snapshot, is attached next.
    Pending,
    /// Its layer is sealed.
    Completed,
    /// Exported, read-only.
    Attached,
    /// Being served when the daemon stopped, and could not be attached again.
    Error,
}

impl fmt::Display for SnapshotState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pending => "pending",
            Self::Completed => "completed",
            Self::Attached => "attached",
            Self::Error => "error",
        })
    }
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// `VOLUME@SNAPSHOT`, also the name of its export.
    pub name: SnapshotRef,
    /// UUID of the newest of its layers.
    pub layer: String,
    /// See [`SnapshotState`].
    pub state: SnapshotState,
    /// When it was made.
    pub created: String,
    /// Bytes of the volume then.
    pub size: u64,
    /// Bytes that the files of its own layers take on the store: what changed since the one before
    /// it. Of a layer on a block device, the size of the device.
    pub own_bytes: u64,
    /// Layers that it consists of.
    pub depth: usize,
    /// The snapshot of the same volume before it; absent for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<SnapshotRef>,
    /// Present while it is attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<Attachment>,
    /// Why it could not be attached again when the daemon started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attach_failure: Option<String>,
}

/// Snapshots: of each volume the oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotList {
    /// By volume, then by age.
    pub snapshots: Vec<Snapshot>,
}

/// What changed between a snapshot and the one before it, or from nothing for the first. What does
/// not appear did not change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotChanges {
    /// Ascending, from the offset that was asked for.
    pub extents: Vec<ChangedExtent>,
    /// The offset to ask for next; none if these reach the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// Blocks that were written or zeroed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedExtent {
    /// Bytes from the start of the volume.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// They read as zeros now, and take no space.
    pub zero: bool,
}

/// What became of a snapshot that was deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotDeleted {
    /// The snapshot that is not there any more.
    pub name: SnapshotRef,
    /// When the space that it alone needed is free.
    pub layer: DeletedLayer,
}

/// What becomes of the layer of a deleted snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeletedLayer {
    /// It is merged with the layer above it, beside whatever clients do.
    Merging,
    /// Merging begins when the volume, or a clone that stands on the layer, is attached for writing.
    WaitsForAttach,
    /// Several layers stand on it, or it is the device that the volume was put on: it is kept, and merged when one layer is
    /// left that needs it.
    Needed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_named_by_its_volume_and_its_name() {
        let snapshot: SnapshotRef = "web-1@before.update".parse().expect("a name");
        assert_eq!(snapshot.volume.as_str(), "web-1");
        assert_eq!(snapshot.name.as_str(), "before.update");
        assert_eq!(snapshot.to_string(), "web-1@before.update");
        for bad in ["web", "web@", "@s", "a@b@c", "a/b@c", "a@b/c", "a@.b"] {
            let refused = bad.parse::<SnapshotRef>();
            assert_eq!(refused, Err(BadSnapshotName(bad.to_owned())));
        }
        let json = serde_json::from_str::<SnapshotRef>("\"web\"");
        assert!(json.is_err(), "a bad name does not deserialize");
    }
}
