//! The files of the audit log, and where its chain stands.
//!
//! ```text
//! audit.log                 the lines
//! audit.next-key            the key of the next line, and the hash of the line before it; written over in place
//! audit.verification-key    the first key of the chain, made with it: to be moved to another machine
//! ```
//! What always holds: a line is on stable storage before `append` returns, and whole: what a failed or interrupted write left is
//! taken back before another line follows. Lines are only ever appended; the file is opened anew for each, so it may be rotated by
//! renaming. The key of a line is gone from memory, and written over in its file, once the line stands; that file is not
//! synced, so after a power cut it may be some lines behind, and is brought up by them.
//! A key that is lost begins the chain anew, which a record and the daemon's log tell: the log goes on, and whoever
//! verifies it sees the place.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sealvol_audit::{
    Anchor, BYTES, ChainKey, Extended, Index, Link, from_hex, hash, hex, parse, seal,
};
use thiserror::Error;
use zeroize::Zeroizing;

use super::{Operation, Record};
use crate::daemon::Daemon;

/// How much of a log's end is looked at when the daemon starts: more than a power cut can leave the key behind.
const TAIL: u64 = 16 << 20;

/// Why the log can't be gone on with.
#[derive(Debug, Error)]
#[error(
    "audit log: {}: {source}. Without it no key may be used: mend the cause and start the daemon again",
    path.display()
)]
pub struct AuditError {
    path: PathBuf,
    source: io::Error,
}

/// The audit log of one daemon.
#[derive(Clone, Debug)]
pub(crate) struct Audit {
    log: PathBuf,
    verification_key: PathBuf,
    chain: Arc<Mutex<Chain>>,
    /// The last line. Beside the chain, which is locked while the disk is waited for: who only asks waits for no disk.
    head: Arc<Mutex<Option<Anchor>>>,
}

/// Where the next line goes.
struct Chain {
    log: PathBuf,
    /// `audit.next-key`.
    state: File,
    key: ChainKey,
    link: Link,
    /// What the lines say of the TPM's index.
    index: Index,
    /// The last line is not one about that index, or was there when the daemon started.
    news: bool,
    /// Why no line may follow any more.
    broken: Option<String>,
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain")
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}

impl Audit {
    /// Goes on with the log in `directory`, or begins it.
    ///
    /// # Errors
    /// If one of its files can't be read or written.
    pub(crate) fn open(directory: &Path) -> Result<Self, AuditError> {
        let log = directory.join("audit.log");
        let (chain, head, anew) = Chain::open(directory, &log)?;
        let verification_key = first_key_file(directory, &Link::START);
        let audit = Self {
            chain: Arc::new(Mutex::new(chain)),
            head: Arc::new(Mutex::new(head)),
            verification_key,
            log,
        };
        if anew {
            tracing::error!(
                log = %audit.log.display(),
                "the key of the audit log's next line was lost: its chain begins anew, with another verification key"
            );
            let record = Record::of(Operation::AuditAnew, Daemon::itself());
            let written = audit.write(&record);
            written.map_err(failed(&audit.log))?;
        }
        Ok(audit)
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.log
    }

    /// The last line.
    pub(crate) fn head(&self) -> Option<Anchor> {
        locked(&self.head).clone()
    }

    /// Where the lines say that the TPM's index stands.
    pub(crate) fn index_value(&self) -> Option<[u8; BYTES]> {
        locked(&self.chain).index.value().copied()
    }

    /// Whether there is anything that the index does not have yet, as far as this daemon knows.
    pub(crate) fn has_news(&self) -> bool {
        locked(&self.chain).news
    }

    /// The line that brought the index to `value`, if no line says so yet.
    pub(crate) fn unrecorded(&self, value: &[u8; BYTES]) -> Option<Anchor> {
        locked(&self.chain).index.unrecorded(value).cloned()
    }

    /// The verification key's file, as long as nobody has taken it away.
    pub(crate) fn verification_key(&self) -> Option<&Path> {
        let path = &self.verification_key;
        path.exists().then_some(path)
    }

    /// Appends a line and waits until it is on stable storage.
    ///
    /// # Errors
    /// When the line may not stand: what it tells of must not go on.
    pub(crate) async fn append(&self, record: Record) -> io::Result<()> {
        let audit = self.clone();
        let appended = tokio::task::spawn_blocking(move || audit.write(&record)).await;
        appended.map_err(io::Error::other)?
    }

    fn write(&self, record: &Record) -> io::Result<()> {
        let record = serde_json::to_string(record)?;
        let mut chain = locked(&self.chain);
        let anchor = chain.append(&record)?;
        *locked(&self.head) = Some(anchor.clone());
        drop(chain);
        // To wherever logs of this machine go: an end that is cut off the file is not cut off there.
        tracing::info!(%anchor, "audit");
        Ok(())
    }
}

impl Chain {
    /// The chain as the files have it, its last line, and whether it had to be begun anew behind lines that were there.
    fn open(directory: &Path, log: &Path) -> Result<(Self, Option<Anchor>, bool), AuditError> {
        let tail = Tail::read(log).map_err(failed(log))?;
        let path = directory.join("audit.next-key");
        let (known, anew) = match read_state(&path).map_err(failed(&path))? {
            Some(known) => (known, false),
            None => {
                let link = tail.end();
                let anew = link != Link::START;
                (begin(directory, link)?, anew)
            }
        };
        let (key, link) = known;
        let state = open_private(&path).map_err(failed(&path))?;
        let mut chain = Self {
            log: log.to_owned(),
            state,
            key,
            link,
            index: tail.index(),
            news: true,
            broken: None,
        };
        chain.catch_up(&tail);
        chain.keep().map_err(failed(&path))?;
        chain.state.sync_data().map_err(failed(&path))?;
        sync_directory(directory).map_err(failed(directory))?;
        Ok((chain, tail.head(), anew))
    }

    /// Goes over lines that were written after the key was last kept.
    fn catch_up(&mut self, tail: &Tail) {
        // An empty log was rotated.
        if !tail.lines.is_empty() && tail.end().seq < self.link.seq {
            tracing::error!(
                log = %self.log.display(),
                expected = self.link.seq - 1,
                found = tail.end().seq - 1,
                "the end of the audit log is missing"
            );
        }
        for line in &tail.lines {
            let Ok(parsed) = parse(line) else {
                continue;
            };
            if parsed.link.seq < self.link.seq {
                continue;
            }
            if parsed.link != self.link || !self.key.made(&parsed) {
                tracing::error!(
                    log = %self.log.display(),
                    line = parsed.link.seq,
                    "the audit log has a line that this daemon did not write: sealvol audit verify says more"
                );
                return;
            }
            self.key.step();
            self.link = Link {
                seq: parsed.link.seq + 1,
                prev: hash(line),
            };
        }
    }

    fn append(&mut self, record: &str) -> io::Result<Anchor> {
        if let Some(why) = &self.broken {
            return Err(io::Error::other(why.clone()));
        }
        let sealed = seal(record, &self.link, &self.key).map_err(io::Error::other)?;
        let (file, before) = self.open_log()?;
        let written = write_whole(&file, &sealed.text, before);
        if let Err(error) = written {
            // A line that may or may not be there must not be followed by another with its number.
            if let Err(stuck) = file.set_len(before).and_then(|()| file.sync_data()) {
                self.broken = Some(format!(
                    "a line that failed ({error}) can't be taken back ({stuck}): restart the daemon"
                ));
            }
            return Err(error);
        }
        let anchor = Anchor {
            seq: self.link.seq,
            mac: sealed.mac,
        };
        let extended = Extended::of(&sealed.text);
        self.index.line(anchor.clone(), extended.as_ref());
        self.news = extended.is_none();
        self.key.step();
        self.link = sealed.next;
        if let Err(error) = self.keep() {
            // The line stands; the next start goes over it.
            tracing::error!(%error, "the key of the audit log's next line can't be kept");
        }
        Ok(anchor)
    }

    /// The log, and how long it is.
    fn open_log(&self) -> io::Result<(File, u64)> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.log)?;
        let len = file.metadata()?.len();
        if len == 0
            && let Some(directory) = self.log.parent()
        {
            sync_directory(directory)?;
        }
        Ok((file, len))
    }

    /// Writes the key of the next line over that of the last.
    fn keep(&self) -> io::Result<()> {
        let mut text = self.key.to_text();
        text.push_str(&hex(&self.link.prev));
        text.push('\n');
        self.state.write_all_at(text.as_bytes(), 0)
    }
}

/// Whole lines at the end of a log.
#[derive(Default)]
struct Tail {
    lines: Vec<String>,
}

impl Tail {
    /// Reads them, and takes off what an interrupted write left behind the last.
    fn read(log: &Path) -> io::Result<Self> {
        let mut file = match OpenOptions::new().read(true).write(true).open(log) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let len = file.metadata()?.len();
        let from = len.saturating_sub(TAIL);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n');
        let whole = whole.map_or(0, |last| last + 1);
        if whole < bytes.len() {
            tracing::warn!(
                log = %log.display(),
                "a line of the audit log that was never complete, and told of nothing that was done, is taken off"
            );
            file.set_len(from + whole as u64)?;
            file.sync_data()?;
        }
        bytes.truncate(whole);
        let text = String::from_utf8_lossy(&bytes);
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        if from > 0 && !lines.is_empty() {
            lines.remove(0);
        }
        Ok(Self { lines })
    }

    /// Where a chain goes on behind them.
    fn end(&self) -> Link {
        let Some(last) = self.lines.last() else {
            return Link::START;
        };
        let numbers = self.lines.iter().rev();
        let last_number = numbers
            .filter_map(|line| parse(line).ok())
            .map(|parsed| parsed.link.seq)
            .next();
        Link {
            seq: last_number.unwrap_or(0) + 1,
            prev: hash(last),
        }
    }

    /// What they say of the TPM's index.
    fn index(&self) -> Index {
        let mut index = Index::default();
        for line in &self.lines {
            if let Ok(parsed) = parse(line) {
                let anchor = Anchor {
                    seq: parsed.link.seq,
                    mac: parsed.mac,
                };
                index.line(anchor, Extended::of(line).as_ref());
            }
        }
        index
    }

    fn head(&self) -> Option<Anchor> {
        let parsed = parse(self.lines.last()?).ok()?;
        Some(Anchor {
            seq: parsed.link.seq,
            mac: parsed.mac,
        })
    }
}

/// The first key of a chain, kept for whoever verifies it before a line is written under it.
fn begin(directory: &Path, link: Link) -> Result<(ChainKey, Link), AuditError> {
    let path = first_key_file(directory, &link);
    let existing = match std::fs::read_to_string(&path) {
        Ok(text) => ChainKey::from_text(&Zeroizing::new(text)).ok(),
        Err(_) => None,
    };
    if let Some(key) = existing.filter(|key| key.seq() == link.seq) {
        // The daemon died between this file and the next key's, before the first line.
        return Ok((key, link));
    }
    let key = ChainKey::generate(link.seq, sealvol_crypto::random);
    let write = || {
        let file = open_private(&path)?;
        file.write_all_at(key.to_text().as_bytes(), 0)?;
        file.sync_all()?;
        sync_directory(directory)
    };
    write().map_err(failed(&path))?;
    Ok((key, link))
}

/// Where the first key of a chain lies that begins with this line.
fn first_key_file(directory: &Path, link: &Link) -> PathBuf {
    if *link == Link::START {
        directory.join("audit.verification-key")
    } else {
        directory.join(format!("audit.verification-key-{}", link.seq))
    }
}

/// The key of the next line and its place; `None` if it is lost.
fn read_state(path: &Path) -> io::Result<Option<(ChainKey, Link)>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut lines = text.lines();
    let (Some(key), Some(prev)) = (lines.next(), lines.next()) else {
        return Ok(None);
    };
    let (Ok(key), Some(prev)) = (ChainKey::from_text(key), from_hex(prev)) else {
        return Ok(None);
    };
    let link = Link {
        seq: key.seq(),
        prev,
    };
    Ok(Some((key, link)))
}

fn write_whole(mut file: &File, text: &str, before: u64) -> io::Result<()> {
    // One write: with O_APPEND nothing comes between.
    file.write_all(text.as_bytes())?;
    file.sync_data()?;
    let now = file.metadata()?.len();
    if now != before + text.len() as u64 {
        return Err(io::Error::other("somebody else writes it"));
    }
    Ok(())
}

/// Nothing can panic while one of these is held but by a mistake in this file.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open_private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn failed(path: &Path) -> impl Fn(io::Error) -> AuditError + use<> {
    let path = path.to_owned();
    move |source| AuditError {
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use sealvol_audit::{Found, Report, Verifier};

    use super::*;

    fn record(name: &str) -> Record {
        let key = Some("local:default".to_owned());
        Record {
            name: Some(name.to_owned()),
            key,
            ..Record::of(Operation::Unwrap, Daemon::itself())
        }
    }

    fn opened(directory: &Path, names: &[&str]) -> Audit {
        let audit = Audit::open(directory).expect("opened");
        for name in names {
            audit.write(&record(name)).expect("written");
        }
        audit
    }

    fn lines(directory: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(directory.join("audit.log")).expect("there");
        text.split_inclusive('\n').map(str::to_owned).collect()
    }

    /// What verifying finds, with every verification key that lies there.
    fn verified(directory: &Path) -> Report {
        let mut keys = Vec::new();
        for entry in std::fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.to_string_lossy().contains("verification-key") {
                let text = std::fs::read_to_string(path).expect("there");
                keys.push(ChainKey::from_text(&text).expect("a key"));
            }
        }
        let mut verifier = Verifier::new(keys, Vec::new());
        for line in lines(directory) {
            verifier.line(&line);
        }
        verifier.finish()
    }

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a folder")
    }

    #[tokio::test]
    async fn lines_are_appended_sealed_and_private() {
        let folder = folder();
        let audit = opened(folder.path(), &["a"]);
        audit.append(record("b")).await.expect("written");
        let lines = lines(folder.path());
        let second: serde_json::Value = serde_json::from_str(&lines[1]).expect("JSON");
        assert_eq!((&second["name"], &second["seq"]), (&"b".into(), &2.into()));
        assert_eq!(second["operation"], "unwrap");
        assert_eq!(second["result"], "ok");
        let report = verified(folder.path());
        assert_eq!((report.findings, report.keyed), (Vec::new(), 2));
        assert_eq!(report.head, audit.head());
        for name in ["audit.log", "audit.next-key", "audit.verification-key"] {
            let path = folder.path().join(name);
            let mode = std::fs::metadata(path).expect("there").mode() & 0o7777;
            assert_eq!(mode, 0o600, "{name}");
        }
    }

    #[test]
    fn the_next_daemon_goes_on_with_the_chain() {
        let folder = folder();
        opened(folder.path(), &["a", "b"]);
        let audit = opened(folder.path(), &["c"]);
        assert_eq!(audit.head().expect("a line").seq, 3);
        // Rotated while no daemon runs, and while one runs.
        let first = lines(folder.path());
        let log = folder.path().join("audit.log");
        std::fs::rename(&log, folder.path().join("audit.log.1")).expect("renamed");
        audit.write(&record("d")).expect("written");
        opened(folder.path(), &["e"]);
        let mut all = first;
        all.extend(lines(folder.path()));
        std::fs::write(&log, all.concat()).expect("written");
        let report = verified(folder.path());
        assert_eq!((report.findings, report.keyed), (Vec::new(), 5));
    }

    #[test]
    fn a_key_that_a_power_cut_left_behind_is_brought_up() {
        let folder = folder();
        let state = folder.path().join("audit.next-key");
        opened(folder.path(), &["a"]);
        let old = std::fs::read(&state).expect("there");
        opened(folder.path(), &["b", "c"]);
        std::fs::write(&state, old).expect("written");
        opened(folder.path(), &["d"]);
        let report = verified(folder.path());
        assert_eq!((report.findings, report.lines), (Vec::new(), 4));
    }

    #[test]
    fn keys_of_lines_that_stand_are_nowhere_any_more() {
        let folder = folder();
        let state = folder.path().join("audit.next-key");
        opened(folder.path(), &["a"]);
        let old = std::fs::read_to_string(&state).expect("there");
        let old = ChainKey::from_text(old.lines().next().expect("a line")).expect("a key");
        let old = old.to_text();
        let key = old.split_whitespace().nth(2).expect("the key");
        opened(folder.path(), &["b"]);
        let now = std::fs::read_to_string(&state).expect("there");
        assert!(!now.contains(key));
    }

    #[test]
    fn what_an_interrupted_write_left_is_taken_off() {
        let folder = folder();
        opened(folder.path(), &["a", "b"]);
        let log = folder.path().join("audit.log");
        let text = std::fs::read_to_string(&log).expect("there");
        std::fs::write(&log, format!("{text}{}", &text[..100])).expect("written");
        opened(folder.path(), &["c"]);
        let report = verified(folder.path());
        assert_eq!((report.findings, report.lines), (Vec::new(), 3));
    }

    #[test]
    fn a_lost_key_begins_the_chain_anew_where_everybody_sees_it() {
        let folder = folder();
        opened(folder.path(), &["a", "b"]);
        for content in [None, Some("no key")] {
            let state = folder.path().join("audit.next-key");
            std::fs::remove_file(&state).expect("removed");
            if let Some(content) = content {
                std::fs::write(&state, content).expect("written");
            }
            opened(folder.path(), &["c"]);
            let lines = lines(folder.path());
            assert!(lines[lines.len() - 2].contains("audit-anew"));
        }
        assert_eq!(verified(folder.path()).findings, []);
        // Who has the first key only sees where it ends.
        std::fs::remove_file(folder.path().join("audit.verification-key-3")).expect("removed");
        std::fs::remove_file(folder.path().join("audit.verification-key-5")).expect("removed");
        let findings = verified(folder.path()).findings;
        assert_eq!((findings[0].seq, &findings[0].what), (3, &Found::Forged));
    }

    #[test]
    fn a_line_of_somebody_else_is_found_and_not_gone_on_from() {
        let folder = folder();
        opened(folder.path(), &["a", "b"]);
        let log = folder.path().join("audit.log");
        let mut text = std::fs::read_to_string(&log).expect("there");
        text.push_str(&lines(folder.path())[1].replace("\"seq\":2", "\"seq\":3"));
        std::fs::write(&log, text).expect("written");
        opened(folder.path(), &["c"]);
        assert!(!verified(folder.path()).findings.is_empty());
        assert_eq!(lines(folder.path()).len(), 4);
    }

    #[test]
    fn a_log_that_cannot_be_written_is_an_error_and_goes_on_when_it_can() {
        let folder = folder();
        let audit = opened(folder.path(), &["a"]);
        let log = folder.path().join("audit.log");
        let kept = folder.path().join("kept");
        std::fs::rename(&log, &kept).expect("renamed");
        std::fs::create_dir(&log).expect("made");
        audit.write(&record("b")).expect_err("a directory");
        std::fs::remove_dir(&log).expect("removed");
        std::fs::rename(&kept, &log).expect("renamed");
        audit.write(&record("c")).expect("written");
        let report = verified(folder.path());
        assert_eq!((report.findings, report.lines), (Vec::new(), 2));
    }

    #[test]
    fn nothing_follows_a_line_that_cannot_be_taken_back() {
        let folder = folder();
        let log = folder.path().join("audit.log");
        let audit = opened(folder.path(), &[]);
        // Takes no byte, and can't be cut.
        std::os::unix::fs::symlink("/dev/full", &log).expect("linked");
        audit.write(&record("a")).expect_err("full");
        std::fs::remove_file(&log).expect("removed");
        let error = audit.write(&record("b")).expect_err("broken");
        assert!(error.to_string().contains("restart"), "{error}");
    }
}
