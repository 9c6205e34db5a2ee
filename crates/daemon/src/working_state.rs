//! The working state of a volume: what is acknowledged and not on disk yet, kept where it outlives this process
//! (rule R8).
//!
//! One file per layer in the runtime directory, which is memory: it dies with the page cache, and so exactly with the
//! writes that it speaks of, and not with the daemon. Records are written with ordinary calls: what a call has put
//! into the file survives a kill -9 as a memory mapping would, a full file system is an error and not a signal, and
//! there is nothing to get wrong in `unsafe` code. It costs one call for each first write of a block.
//!
//! ```text
//!   0     header: magic, boot id, layer, session, epoch that is durable
//!   4096  half 0: records of the even epochs    then half 1: records of the odd ones
//! ```
//!
//! Always:
//! - a commit begins a new epoch, in the other half; when it is done, the epoch before is durable and its half may be
//!   overwritten. So the records of the two newest epochs are there, and no commit is needed to make room for another;
//! - a record carries its epoch and a checksum: what an earlier use of the half left is not taken for one of these;
//! - records are in the order in which the volume changed, for each block;
//! - a new session's file replaces the old one in one step (rename), with everything adopted in it.
//!
//! Never: a sync. Durability against a power cut is the commit's business.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};

use sealvol_volume::{BlockState, Change, LayerId};

const MAGIC: [u8; 8] = *b"svwork1\0";
const HEADER: usize = 64;
const DURABLE_EPOCH: u64 = 48;
const FIRST_HALF: u64 = 4096;
const RECORD: usize = 32;
/// Records of one half: 2 MiB of them, and then a write has to bring a commit about.
const RECORDS_MAX: u64 = 65_536;

/// A random number that the kernel draws at each boot.
pub(crate) type BootId = [u8; 16];

/// Why a file is not the working state of the session that is asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotAdoptable {
    #[error("there is none")]
    Missing,
    #[error("it is damaged")]
    Damaged,
    #[error("it is of another boot, layer or session")]
    Other,
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// The working state of one layer that is open for writing.
#[derive(Debug)]
pub(crate) struct WorkingState {
    path: PathBuf,
    /// Writing a record shares it, a new epoch takes it alone: no record of an old epoch is on its way then.
    session: RwLock<Option<Session>>,
    boot: BootId,
    layer: LayerId,
}

#[derive(Debug)]
struct Session {
    file: File,
    epoch: u64,
    next: AtomicU64,
}

impl WorkingState {
    /// The working state of a layer, below a directory in memory.
    pub(crate) fn new(directory: &Path, layer: LayerId, boot: BootId) -> Self {
        Self {
            path: directory.join(format!("{layer}.state")),
            session: RwLock::default(),
            boot,
            layer,
        }
    }

    /// What the session with this number, or the one that was about to follow it, left.
    ///
    /// # Errors
    /// [`NotAdoptable`].
    pub(crate) fn read(&self, sessions: [u64; 2]) -> Result<Vec<Change>, NotAdoptable> {
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(NotAdoptable::Missing);
            }
            Err(error) => return Err(error.into()),
        };
        let header = bytes.first_chunk::<HEADER>().ok_or(NotAdoptable::Damaged)?;
        if header[..8] != MAGIC {
            return Err(NotAdoptable::Damaged);
        }
        if header[8..24] != self.boot
            || header[24..40] != self.layer.0
            || !sessions.contains(&number(header, 40))
        {
            return Err(NotAdoptable::Other);
        }
        let durable = number(header, 48);
        let mut changes = Vec::new();
        // The epoch whose commit did not end, then the one that was being filled.
        for epoch in [durable + 1, durable + 2] {
            let half = bytes.get(half_offset(epoch)..).unwrap_or_default();
            let records = half.chunks_exact(RECORD).take(capacity());
            changes.extend(records.filter_map(|record| decode(record, epoch)));
        }
        Ok(changes)
    }

    /// Begins a session; the file of an earlier one is replaced.
    ///
    /// # Errors
    /// The file system's; the earlier file is then as it was.
    pub(crate) fn begin(&self, session: u64, changes: &[Change]) -> io::Result<()> {
        let new = self.path.with_extension("new");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&MAGIC);
        header[8..24].copy_from_slice(&self.boot);
        header[24..40].copy_from_slice(&self.layer.0);
        header[40..48].copy_from_slice(&session.to_le_bytes());
        let state = Session {
            file,
            epoch: 1,
            next: AtomicU64::new(0),
        };
        state.file.write_all_at(&header, 0)?;
        for change in changes {
            state.write(*change)?;
        }
        std::fs::rename(&new, &self.path)?;
        *self.session.write().unwrap_or_else(PoisonError::into_inner) = Some(state);
        Ok(())
    }

    /// Appends a change.
    ///
    /// # Errors
    /// `StorageFull` if the half is full; the file system's.
    pub(crate) fn remember(&self, change: Change) -> io::Result<()> {
        let session = self.session.read().unwrap_or_else(PoisonError::into_inner);
        session
            .as_ref()
            .ok_or(io::ErrorKind::NotFound)?
            .write(change)
    }

    /// From now on changes belong to the next epoch.
    pub(crate) fn commit_begins(&self) {
        if let Some(session) = &mut *self.session.write().unwrap_or_else(PoisonError::into_inner) {
            session.epoch += 1;
            session.next = AtomicU64::new(0);
        }
    }

    /// The epoch before the present one is on disk.
    ///
    /// # Errors
    /// The file system's. What is durable would then be adopted once more, which changes nothing.
    pub(crate) fn commit_done(&self) -> io::Result<()> {
        let session = self.session.read().unwrap_or_else(PoisonError::into_inner);
        let Some(session) = &*session else {
            return Ok(());
        };
        session
            .file
            .write_all_at(&(session.epoch - 1).to_le_bytes(), DURABLE_EPOCH)
    }

    /// The layer was closed: nothing is to be adopted.
    ///
    /// # Errors
    /// The file system's. The superblock says "clean" then all the same, and the file is ignored.
    pub(crate) fn end(&self) -> io::Result<()> {
        *self.session.write().unwrap_or_else(PoisonError::into_inner) = None;
        // A daemon that died while it began a session may have left it.
        let _ = std::fs::remove_file(self.path.with_extension("new"));
        std::fs::remove_file(&self.path)
    }
}

impl Session {
    fn write(&self, change: Change) -> io::Result<()> {
        let slot = self.next.fetch_add(1, Ordering::Relaxed);
        if slot >= RECORDS_MAX {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let offset = half_offset(self.epoch) as u64 + slot * RECORD as u64;
        self.file.write_all_at(&encode(change, self.epoch), offset)
    }
}

/// This boot's id.
///
/// # Errors
/// If the kernel does not tell.
pub(crate) fn boot_id() -> io::Result<BootId> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let id: LayerId = text
        .trim()
        .parse()
        .map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(id.0)
}

fn capacity() -> usize {
    usize::try_from(RECORDS_MAX).unwrap_or(usize::MAX)
}

fn half_offset(epoch: u64) -> usize {
    let first = if epoch.is_multiple_of(2) {
        0
    } else {
        capacity() * RECORD
    };
    usize::try_from(FIRST_HALF).unwrap_or(usize::MAX) + first
}

fn encode(change: Change, epoch: u64) -> [u8; RECORD] {
    let state = match change.state {
        BlockState::Absent => 0,
        BlockState::Zero => 1,
        BlockState::Data => 2,
    };
    let mut record = [0; RECORD];
    record[..8].copy_from_slice(&epoch.to_le_bytes());
    record[8..16].copy_from_slice(&change.first.to_le_bytes());
    record[16..24].copy_from_slice(&(change.blocks << 2 | state).to_le_bytes());
    let check = checksum(&record);
    record[24..].copy_from_slice(&check.to_le_bytes());
    record
}

fn decode(record: &[u8], epoch: u64) -> Option<Change> {
    let record: &[u8; RECORD] = record.try_into().ok()?;
    if number(record, 0) != epoch || number(record, 24) != checksum(record) {
        return None;
    }
    let state = match number(record, 16) & 3 {
        1 => BlockState::Zero,
        2 => BlockState::Data,
        _ => return None,
    };
    Some(Change {
        first: number(record, 8),
        blocks: number(record, 16) >> 2,
        state,
    })
}

/// Tells a whole record from a part of one. Nobody but the daemon writes here, so it need not stand up to an attacker.
fn checksum(record: &[u8; RECORD]) -> u64 {
    let mix = |sum: u64, at| {
        (sum ^ number(record, at))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29)
    };
    [0, 8, 16].into_iter().fold(0x7365_616c_766f_6c31, mix)
}

fn number(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8]
        .iter()
        .rev()
        .fold(0, |number, &byte| number << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: BootId = [7; 16];

    fn change(first: u64, state: BlockState) -> Change {
        Change {
            first,
            blocks: 3,
            state,
        }
    }

    #[test]
    fn the_next_daemon_reads_what_no_commit_has_brought_to_disk() {
        let folder = tempfile::tempdir().unwrap();
        let layer = LayerId::random();
        let state = WorkingState::new(folder.path(), layer, BOOT);
        let [a, b, c, d] = [1, 2, 3, 4].map(|first| change(first, BlockState::Data));
        state.begin(10, &[a]).unwrap();
        state.remember(b).unwrap();
        let next = || WorkingState::new(folder.path(), layer, BOOT);
        assert_eq!(next().read([10, 20]).unwrap(), [a, b]);
        state.commit_begins();
        state.remember(c).unwrap();
        assert_eq!(
            next().read([0, 10]).unwrap(),
            [a, b, c],
            "the commit has not ended"
        );
        state.commit_done().unwrap();
        assert_eq!(next().read([10, 20]).unwrap(), [c]);
        state.commit_begins();
        state.remember(d).unwrap();
        assert_eq!(
            next().read([10, 20]).unwrap(),
            [c, d],
            "not what the half held before"
        );
        state.commit_done().unwrap();
        state.commit_begins();
        state.commit_done().unwrap();
        assert_eq!(next().read([10, 20]).unwrap(), []);
        let begun = state.path.with_extension("new");
        std::fs::write(&begun, "of a daemon that died while it began").unwrap();
        state.end().unwrap();
        assert!(!begun.exists());
        assert!(matches!(next().read([10, 20]), Err(NotAdoptable::Missing)));
    }

    #[test]
    fn another_boot_layer_or_session_and_damage_are_told_apart_from_nothing_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let layer = LayerId::random();
        let state = WorkingState::new(folder.path(), layer, BOOT);
        state.begin(10, &[change(1, BlockState::Zero)]).unwrap();
        assert!(matches!(state.read([11, 12]), Err(NotAdoptable::Other)));
        let rebooted = WorkingState::new(folder.path(), layer, [8; 16]);
        assert!(matches!(rebooted.read([10, 20]), Err(NotAdoptable::Other)));
        let path = folder.path().join(format!("{layer}.state"));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[0] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(state.read([10, 20]), Err(NotAdoptable::Damaged)));
    }

    #[test]
    fn a_torn_record_is_none_and_a_full_half_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let layer = LayerId::random();
        let state = WorkingState::new(folder.path(), layer, BOOT);
        state.begin(1, &[]).unwrap();
        for first in 0..RECORDS_MAX {
            state.remember(change(first, BlockState::Data)).unwrap();
        }
        let full = state.remember(change(0, BlockState::Data)).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        let path = folder.path().join(format!("{layer}.state"));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[half_offset(1) + RECORD + 9] ^= 4;
        std::fs::write(&path, &bytes).unwrap();
        let left = state.read([1, 2]).unwrap();
        assert_eq!(left.len() as u64, RECORDS_MAX - 1);
        assert_eq!((left[0].first, left[1].first), (0, 2));
        state.commit_begins();
        state.remember(change(9, BlockState::Zero)).unwrap();
        assert_eq!(state.read([1, 2]).unwrap().len() as u64, RECORDS_MAX);
    }
}
