//! An NBD export as a block device of this machine, without a kernel NBD client: `nbdfuse` shows it as a file, a loop device
//! with direct I/O makes a block device of the file.

use std::path::{Path, PathBuf};

use crate::place::{Place, needs_root};
use crate::programs::{Running, client, run, wait_for};

/// A block device that is an export. Dropping it takes everything down again, mounted or not.
#[derive(Debug)]
pub struct BlockDevice {
    device: String,
    file_directory: PathBuf,
    mount_point: PathBuf,
    nbdfuse: Running,
}

impl BlockDevice {
    /// Makes a block device of `uri`, with its files in `place`. Needs root.
    ///
    /// # Panics
    /// If that cannot be done, with what the program said.
    pub fn new(place: &Place, uri: &str) -> Self {
        needs_root("make a loop device");
        let [file_directory, mount_point] = ["fuse", "mnt"].map(|name| place.file(name));
        for directory in [&file_directory, &mount_point] {
            std::fs::create_dir_all(directory).expect("a directory");
        }
        let nbdfuse = Running::start(client("nbdfuse").arg(&file_directory).arg(uri));
        let file = file_directory.join("nbd");
        wait_for("nbdfuse to show its file", || file.exists().then_some(()));
        let device = run(
            "losetup",
            &["--find", "--show", "--direct-io=on", path(&file)],
        )
        .succeeded()
        .stdout
        .trim()
        .to_owned();
        Self {
            device,
            file_directory,
            mount_point,
            nbdfuse,
        }
    }

    /// The device node.
    pub fn node(&self) -> &str {
        &self.device
    }

    /// Mounts the file system on it, without the kernel's cache of an earlier mount.
    ///
    /// # Panics
    /// If that fails.
    pub fn mount(&self, options: &str) -> &Path {
        run(
            "mount",
            &["-o", options, &self.device, path(&self.mount_point)],
        )
        .succeeded();
        &self.mount_point
    }

    /// Unmounts the file system.
    ///
    /// # Panics
    /// If that fails.
    pub fn unmount(&self) {
        run("umount", &[&self.mount_point]).succeeded();
    }

    /// Takes the device down and asserts that every step of it went well.
    ///
    /// # Panics
    /// If one did not.
    pub fn release(mut self) {
        run("losetup", &["--detach", &self.device]).succeeded();
        wait_for("the loop device to let go of its file", || {
            let all = run(
                "losetup",
                &["--associated", path(&self.file_directory.join("nbd"))],
            )
            .succeeded();
            all.stdout.is_empty().then_some(())
        });
        run("fusermount3", &["-u", path(&self.file_directory)]).succeeded();
        let status = self.nbdfuse.child().wait().expect("its end");
        assert!(status.success(), "nbdfuse: {status}");
    }
}

impl Drop for BlockDevice {
    fn drop(&mut self) {
        // After `release` none of these has anything to do.
        let _ = client("umount")
            .arg("--quiet")
            .arg(&self.mount_point)
            .output();
        let _ = client("losetup").arg("--detach").arg(&self.device).output();
        let _ = client("fusermount3")
            .arg("-uzq")
            .arg(&self.file_directory)
            .output();
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}
