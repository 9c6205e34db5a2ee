//! The audit log: one JSON line for each use of a key, each decision that lowers a guard, and each thing that a store
//! holds and nobody of ours wrote.
//!
//! What always holds: a line is on stable storage before what it tells of has an effect (a key that
//! was unwrapped is not used before its record stands); lines are only ever appended. If the log
//! cannot be written, keys are not used. The file is opened anew for each line, so it may be rotated
//! by renaming.
//!
//! It never holds key bytes, wrapped or not.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::rights::Caller;
use crate::timestamp;

/// What happened, for whom, to what, and how it ended.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Record {
    /// RFC 3339, UTC.
    pub time: String,
    /// See [`Operation`].
    pub operation: Operation,
    /// Who asked; the daemon itself when it attaches again after a restart.
    pub caller: Caller,
    /// The volume's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// The volume's name at the time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The key-encryption key, as `PROVIDER:KEY`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The key that wrapped it before, if it was wrapped anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Version of the key-encryption key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_version: Option<u32>,
    /// The encryption context.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub context: BTreeMap<String, String>,
    /// `ok`, or why not.
    pub result: String,
}

/// What is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Operation {
    /// A loss of acknowledged writes was accepted.
    AcceptLoss,
    /// A superblock older than what was relied on was accepted.
    AcceptRollback,
    /// A volume was registered from its layer, or was not.
    Adopt,
    /// An attach was refused after its key was unwrapped, or before it was asked for.
    Attach,
    /// A volume was made that stands on layers of another one.
    Clone,
    /// A snapshot is copied into a new volume, or is.
    CopySnapshot,
    /// A key-encryption key was made.
    CreateKey,
    /// A part of a volume's map is damaged or tampered with, and its range answers with errors.
    Damage,
    /// A volume was deleted.
    Delete,
    /// A snapshot was deleted.
    DeleteSnapshot,
    /// A data key was generated, wrapped.
    Generate,
    /// The top of a volume was sealed, or is about to be, and another one put on it.
    Snapshot,
    /// A volume gets another data key, or has got it.
    Rekey,
    /// A superblock slot that was torn, or older than the other one, was written anew from that.
    Repair,
    /// A data key was wrapped anew: under another key, a newer version of it, or for another volume.
    Rewrap,
    /// Wrapped keys were overwritten.
    Shred,
    /// A data key was unwrapped.
    Unwrap,
}

impl Record {
    /// A record of now that says `ok` and nothing about a volume or key.
    pub(crate) fn of(operation: Operation, caller: Caller) -> Self {
        Self {
            time: timestamp::now(),
            operation,
            caller,
            volume: None,
            name: None,
            key: None,
            from: None,
            key_version: None,
            context: BTreeMap::new(),
            result: "ok".to_owned(),
        }
    }
}

/// The audit log of one daemon.
#[derive(Clone, Debug)]
pub(crate) struct Audit {
    path: PathBuf,
}

impl Audit {
    /// The log at `path`; the file is made with the first line.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a line and waits until it is on stable storage.
    ///
    /// # Errors
    /// When the line may not stand: what it tells of must not go on.
    pub(crate) async fn append(&self, record: Record) -> io::Result<()> {
        let path = self.path.clone();
        let appended = tokio::task::spawn_blocking(move || write_line(&path, &record)).await;
        appended.map_err(io::Error::other)?
    }
}

fn write_line(path: &Path, record: &Record) -> io::Result<()> {
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    // One write: with O_APPEND a line is never torn by another.
    file.write_all(&line)?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn record(name: &str) -> Record {
        let caller = Caller {
            uid: 1000,
            gid: 1000,
            pid: Some(7),
        };
        let key = Some("local:default".to_owned());
        Record {
            name: Some(name.to_owned()),
            key,
            ..Record::of(Operation::Unwrap, caller)
        }
    }

    #[tokio::test]
    async fn lines_are_appended_and_private() {
        let folder = tempfile::tempdir().expect("a folder");
        let audit = Audit::new(folder.path().join("audit.log"));
        audit.append(record("a")).await.expect("written");
        audit.append(record("b")).await.expect("written");
        let text = std::fs::read_to_string(audit.path()).expect("there");
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1]["name"], "b");
        assert_eq!(lines[0]["operation"], "unwrap");
        assert_eq!(lines[0]["caller"]["uid"], 1000);
        assert_eq!(lines[0]["result"], "ok");
        let mode = std::fs::metadata(audit.path()).expect("there").mode() & 0o7777;
        assert_eq!(mode, 0o600);
    }

    #[tokio::test]
    async fn a_log_that_cannot_be_written_is_an_error() {
        let audit = Audit::new("/nonexistent/audit.log".into());
        audit.append(record("a")).await.expect_err("no such folder");
    }
}
