//! A real TPM 2.0 without hardware: swtpm on a Unix socket, with its state in a directory of its own.
//!
//! It needs nothing of this crate, so that the tests of other crates can include the file.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

/// A TPM that runs. It ends with the value.
#[derive(Debug)]
pub struct Swtpm {
    directory: TempDir,
    process: Child,
}

impl Swtpm {
    /// One that was just made, and started.
    ///
    /// # Panics
    /// If swtpm is not installed, or does not come up.
    #[must_use]
    pub fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(directory.path().join("state")).expect("a directory");
        let process = start(&directory);
        Self { directory, process }
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("tpm")
    }

    /// A place for a test's own files, gone with the TPM.
    #[must_use]
    pub fn place(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Switches it off: nobody answers.
    ///
    /// # Panics
    /// If it cannot be ended.
    pub fn switch_off(&mut self) {
        self.process.kill().expect("killed");
        self.process.wait().expect("its end");
        for socket in [self.socket(), self.socket().with_extension("ctrl")] {
            let _ = std::fs::remove_file(socket);
        }
    }

    /// Switches it on again, as a boot of the machine does: what it was sealed with is there, the registers begin anew.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn switch_on(&mut self) {
        self.process = start(&self.directory);
    }

    /// Runs a program of tpm2-tools.
    ///
    /// # Panics
    /// If it fails.
    pub fn tool(&self, program: &str, arguments: &[&str]) -> String {
        let done = Command::new(program)
            .env(
                "TPM2TOOLS_TCTI",
                format!("swtpm:path={}", self.socket().display()),
            )
            .current_dir(self.directory.path())
            .args(arguments)
            .output()
            .expect("tpm2-tools are installed: tools/install-packages");
        assert!(done.status.success(), "{program} {arguments:?}: {done:?}");
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    /// Puts something into a register.
    ///
    /// # Panics
    /// As [`Self::tool`].
    pub fn extend(&self, pcr: u8) {
        let value = format!("{pcr}:sha256={}", "5a".repeat(32));
        self.tool("tpm2_pcrextend", &[&value]);
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        // It may have been switched off.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn start(directory: &TempDir) -> Child {
    let socket = directory.path().join("tpm");
    let log = std::fs::File::create(directory.path().join("log")).expect("a log");
    let mut process = Command::new("swtpm")
        .args(["socket", "--tpm2", "--flags", "startup-clear,not-need-init"])
        .args([
            "--tpmstate",
            &format!("dir={}", directory.path().join("state").display()),
        ])
        .args([
            "--server",
            &format!("type=unixio,path={}", socket.display()),
        ])
        .args([
            "--ctrl",
            &format!("type=unixio,path={}.ctrl", socket.display()),
        ])
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a descriptor"))
        .stderr(log)
        .spawn()
        .expect("swtpm is installed: tools/install-packages");
    for _ in 0..1000 {
        if socket.exists() {
            return process;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = process.kill();
    let ended = process.wait();
    panic!(
        "swtpm does not come up: {ended:?} {:?}",
        std::fs::read_to_string(directory.path().join("log"))
    );
}
