//! Where a daemon under test keeps its things: a temporary directory, on the machine's disk or on a small memory file system
//! of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::outcome::Outcome;

/// A temporary directory with `state`, `runtime` and `log` in it. Short, because a socket's path has 107 bytes at most.
#[derive(Debug)]
pub struct Place {
    mounts: Vec<Tmpfs>, // before `root`: unmounted before the directory is removed
    root: tempfile::TempDir,
}

impl Place {
    /// A place on the file system of the temporary directory.
    ///
    /// # Panics
    /// If the directories cannot be made.
    #[expect(clippy::new_without_default, reason = "it makes directories")]
    pub fn new() -> Self {
        let root = tempfile::Builder::new()
            .prefix("sv")
            .tempdir()
            .expect("a temporary directory");
        let place = Self {
            mounts: Vec::new(),
            root,
        };
        for directory in [place.state(), place.runtime(), place.log()] {
            std::fs::create_dir(directory).expect("a directory in a temporary directory");
        }
        place
    }

    /// A place whose state directory is a memory file system of `size` (in `mount`'s words). Needs root.
    ///
    /// # Panics
    /// If it cannot be mounted.
    pub fn with_small_state(size: &str) -> Self {
        let mut place = Self::new();
        place.mounts.push(Tmpfs::mount(&place.state(), size));
        place
    }

    /// Gives the state directory of [`Self::with_small_state`] another size.
    ///
    /// # Panics
    /// If it cannot be mounted anew, or the state directory is no mount of its own.
    pub fn resize_state(&self, size: &str) {
        self.mounts
            .first()
            .expect("a state directory with a size of its own")
            .resize(size);
    }

    /// The directory that holds all others, and room for a test's own files.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The daemon's `--state-dir`.
    pub fn state(&self) -> PathBuf {
        self.root().join("state")
    }

    /// The daemon's `--runtime-dir`.
    pub fn runtime(&self) -> PathBuf {
        self.root().join("run")
    }

    /// Where the daemons' output is kept, one file a start.
    pub fn log(&self) -> PathBuf {
        self.root().join("log")
    }

    /// The records of the audit log, oldest first.
    ///
    /// # Panics
    /// If it holds what is no record.
    pub fn audit(&self) -> Vec<serde_json::Value> {
        let log = std::fs::read_to_string(self.state().join("audit.log")).unwrap_or_default();
        let record = |line| serde_json::from_str(line).expect("a record");
        log.lines().map(record).collect()
    }

    /// A file of the test's own.
    pub fn file(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// Every file called `name` under the state directory, sorted by path: `meta` and `data` are a layer's two.
    ///
    /// # Panics
    /// If the state directory cannot be read.
    pub fn layer_files(&self, name: &str) -> Vec<PathBuf> {
        let mut found = crate::evidence::files_under(&self.state());
        found.retain(|path| path.file_name().is_some_and(|last| last == name));
        found
    }
}

/// A memory file system, mounted for as long as the value lives.
#[derive(Debug)]
struct Tmpfs {
    path: PathBuf,
}

impl Tmpfs {
    fn mount(path: &Path, size: &str) -> Self {
        needs_root("mount a memory file system");
        Outcome::of(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o"])
                .arg(format!("size={size},mode=0700"))
                .arg("sealvol-test")
                .arg(path),
        )
        .succeeded();
        Self { path: path.into() }
    }

    fn resize(&self, size: &str) {
        Outcome::of(
            Command::new("mount")
                .arg("-o")
                .arg(format!("remount,size={size}"))
                .arg(&self.path),
        )
        .succeeded();
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(&self.path)
            .status();
    }
}

/// Says plainly that a test cannot run without root. Such tests live in files called `root_*`, which `tools/test` leaves out,
/// and says so, when it is not root.
///
/// # Panics
/// If the effective user is not root.
pub fn needs_root(purpose: &str) {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test must be root to {purpose}; run it by `sudo tools/test`, or leave out `binary(/^root_/)`"
    );
}
