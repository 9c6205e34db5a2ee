//! Messages about jobs: work that goes on after its call was answered, and after a restart of the daemon.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Rewrapped, VolumeName};

/// Bytes a second that a job may be held to at least: it works in pieces of so many bytes.
pub const JOB_RATE_MIN: u64 = 1 << 20;

/// Ask for another data key for a volume, attached and in use or not: every block is encrypted
/// again. The answer is the [`Job`] that does so. If a re-key of the volume waits for it to be
/// attached, that one goes on without.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RekeyVolume {
    /// `PROVIDER:KEY` that is to wrap the new data key, and further ones of the volume; the
    /// volume's present one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Bytes that are copied a second at most, [`JOB_RATE_MIN`] or more; as many as possible if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// Its snapshots too, layer by layer, under the same new data key: at the end the old ones open nothing of the volume any
    /// more. The copies are as large as what they are copies of.
    #[serde(default)]
    pub with_snapshots: bool,
}

/// Ask to have all that a clone shares copied into it, under its own data key, by a [`Job`] of kind [`JobKind::Rekey`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FreshKey {
    /// Bytes that are copied a second at most, [`JOB_RATE_MIN`] or more; as many as possible if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
}

/// The states of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// It works, or will again as soon as the daemon is there.
    Running,
    /// It can't go on now, and tries again by itself; [`Job::reason`] says why.
    Waiting,
    /// It did all that it was to do.
    Done,
    /// It never will; [`Job::reason`] says why.
    Failed,
    /// It was ended early by somebody's wish.
    Cancelled,
}

impl JobState {
    /// Whether nothing of the job changes any more.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        })
    }
}

/// The kinds of jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    /// See [`RekeyVolume`].
    Rekey,
    /// See [`super::CopySnapshot`].
    SnapshotCopy,
    /// See [`super::UpdateKeySet`].
    Rewrap,
}

impl fmt::Display for JobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Rekey => "rekey",
            Self::SnapshotCopy => "snapshot-copy",
            Self::Rewrap => "rewrap",
        })
    }
}

/// A job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Numbers that never come twice, the oldest first.
    pub id: u64,
    /// What it does.
    pub kind: JobKind,
    /// The volume that it works on, by the name that it had when the job began.
    pub volume: VolumeName,
    /// See [`JobState`].
    pub state: JobState,
    /// Why it waits or has failed; of one that was cancelled, what is left of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// User id that asked for it.
    pub by: u32,
    /// When it began.
    pub created: String,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// Bytes that are done.
    pub bytes_done: u64,
    /// Bytes to be done in all, as far as is known: what clients write meanwhile is not to be done any more.
    pub bytes_total: u64,
    /// Bytes a second over the last seconds; absent while it does not work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// Bytes a second that it is held to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_max: Option<u64>,
    /// What came of it, once it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<JobResult>,
}

/// What came of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobResult {
    /// Of a [`JobKind::Rekey`].
    Rekey(Rekeyed),
    /// Of a [`JobKind::SnapshotCopy`].
    SnapshotCopy(Copied),
    /// Of a [`JobKind::Rewrap`].
    Rewrap(Rewrapped),
}

/// A snapshot that was copied under another key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copied {
    /// The copy, `VOLUME@SNAPSHOT`.
    pub snapshot: String,
    /// UUID of its data key, which nothing else is under.
    pub data_key: String,
    /// UUIDs of the data keys of its source: it holds no wrapped copy of them any more.
    pub source_data_keys: Vec<String>,
}

/// A volume that is under another data key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rekeyed {
    /// UUID of its data key.
    pub data_key: String,
    /// UUIDs of the data keys that it was under, wherever they may still be in use.
    pub old_data_keys: Vec<String>,
    /// Layers whose wrapped keys were destroyed and whose files are gone.
    pub layers_removed: usize,
    /// What the old data keys still open: empty if nothing needs them any more, and their wrapped
    /// copies are destroyed.
    pub old_keys_open: Vec<Opened>,
}

/// Something that a data key opens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// `VOLUME` or `VOLUME@SNAPSHOT`.
    pub name: String,
    /// UUID of the data key.
    pub data_key: String,
}

/// The jobs that are known, the oldest first. Of those that have ended the daemon keeps the newest
/// thousand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobList {
    /// One entry each.
    pub jobs: Vec<Job>,
}
