//! Places to put files: memory, disk, a full file system, a loop device. What takes root says so
//! and is `None` without it.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// How a store says that it is reached which lies on a memory file system.
#[allow(dead_code, reason = "not every test file looks at it")]
pub(crate) const IN_MEMORY: &str = if cfg!(target_arch = "x86_64") {
    "mapped where it holds data, else plain calls inline (memory file system)"
} else {
    "plain calls inline (memory file system)"
};

/// A folder on tmpfs.
pub(crate) fn memory_folder() -> TempDir {
    TempDir::new_in("/dev/shm").expect("/dev/shm is there on every Linux")
}

/// A folder where the build goes: on a disk, unless the build does not.
pub(crate) fn disk_folder() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("the target directory can be written")
}

/// Whether this is root; otherwise says what is left out.
#[allow(dead_code, reason = "not every test file needs root")]
pub(crate) fn is_root(without: &str) -> bool {
    let root = std::fs::metadata("/proc/self").expect("/proc").uid() == 0;
    if !root {
        // Not by eprintln!, which the test harness hides when the test passes.
        writeln!(std::io::stderr(), "NOT ROOT: {without}").expect("stderr");
    }
    root
}

#[allow(dead_code, reason = "not every test file mounts")]
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {complaint}"
    );
    String::from_utf8(output.stdout)
        .expect("text")
        .trim()
        .to_owned()
}

/// A tmpfs of its own size; unmounted when dropped.
#[allow(dead_code, reason = "not every test file mounts")]
pub(crate) struct SmallFileSystem {
    folder: TempDir,
}

#[allow(dead_code, reason = "not every test file mounts")]
impl SmallFileSystem {
    pub(crate) fn mount(bytes: u64) -> Self {
        let folder = TempDir::new().expect("a folder to mount on");
        let size = format!("size={bytes}");
        run(
            "mount",
            &[
                "-t",
                "tmpfs",
                "-o",
                &size,
                "sealvol-test",
                path(folder.path()),
            ],
        );
        Self { folder }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        // Lazily: a loop device may still hold a file of it. A drop must not panic.
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.folder.path())
            .status();
    }
}

/// A file system of its own in a file; unmounted when dropped.
#[allow(dead_code, reason = "not every test file mounts")]
pub(crate) struct MadeFileSystem {
    folder: TempDir,
}

#[allow(dead_code, reason = "not every test file mounts")]
impl MadeFileSystem {
    /// `make` is the program that makes it, with its options.
    pub(crate) fn mount(make: &[&str], bytes: u64) -> Self {
        let image = disk_folder();
        let file = image.path().join("image");
        File::create(&file)
            .and_then(|file| file.set_len(bytes))
            .expect("a file for it");
        let arguments: Vec<_> = make[1..].iter().copied().chain([path(&file)]).collect();
        run(make[0], &arguments);
        let folder = TempDir::new().expect("a folder to mount on");
        // The image's name goes at once; the mount keeps its bytes.
        run("mount", &["-o", "loop", path(&file), path(folder.path())]);
        Self { folder }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for MadeFileSystem {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.folder.path())
            .status();
    }
}

/// A loop device over a new sparse file; detached when dropped.
#[allow(dead_code, reason = "not every test file attaches")]
pub(crate) struct LoopDevice {
    pub(crate) path: PathBuf,
}

#[allow(dead_code, reason = "not every test file attaches")]
impl LoopDevice {
    pub(crate) fn over(file: &Path, bytes: u64) -> Self {
        File::create(file)
            .and_then(|file| file.set_len(bytes))
            .expect("a file to attach");
        let found = run("losetup", &["--find", "--show", path(file)]);
        Self { path: found.into() }
    }

    pub(crate) fn grow(&self, file: &Path, bytes: u64) {
        let opened = File::options().write(true).open(file);
        opened
            .and_then(|file| file.set_len(bytes))
            .expect("growing the file");
        run("losetup", &["--set-capacity", path(&self.path)]);
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.path)
            .status();
    }
}

#[allow(dead_code, reason = "not every test file mounts")]
fn path(path: &Path) -> &str {
    path.to_str().expect("test paths are text")
}
