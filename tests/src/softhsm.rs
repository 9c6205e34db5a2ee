//! A real PKCS #11 token without hardware: SoftHSM, with its files in a directory of its own.
//!
//! It needs nothing of this crate, so that the tests of other crates can include the file.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// The module, as Debian installs it.
pub const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// Label of the token.
pub const TOKEN: &str = "sealvol test";

/// A token without keys. It ends with the value.
#[derive(Debug)]
pub struct SoftHsm {
    directory: TempDir,
    pin: String,
}

impl SoftHsm {
    /// One with every mechanism that SoftHSM has.
    ///
    /// # Panics
    /// If SoftHSM is not installed.
    #[must_use]
    pub fn start() -> Self {
        Self::with_mechanisms("ALL")
    }

    /// One with these mechanisms, or without those after a minus sign and a comma (SoftHSM 2.6.1 passes over the first of them).
    ///
    /// # Panics
    /// As [`Self::start`].
    #[must_use]
    pub fn with_mechanisms(mechanisms: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut random = [0; 8];
        fill(&mut random);
        let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let token = Self {
            directory,
            pin: format!("pin-{digits}"),
        };
        std::fs::create_dir(token.tokens()).expect("a directory");
        let configuration = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n\
             slots.mechanisms = {mechanisms}\n",
            token.tokens().display()
        );
        std::fs::write(token.configuration(), configuration).expect("written");
        token.put_pin(&token.pin);
        token.initialise();
        token
    }

    fn initialise(&self) {
        let made = Command::new("softhsm2-util")
            .env("SOFTHSM2_CONF", self.configuration())
            .args(["--init-token", "--free", "--label", TOKEN])
            .args(["--so-pin", "12345678", "--pin", &self.pin])
            .output()
            .expect("softhsm2 is installed: tools/install-packages");
        assert!(made.status.success(), "{made:?}");
    }

    /// The file that SoftHSM finds by `SOFTHSM2_CONF`.
    #[must_use]
    pub fn configuration(&self) -> PathBuf {
        self.directory.path().join("softhsm2.conf")
    }

    /// Where its tokens are.
    #[must_use]
    pub fn tokens(&self) -> PathBuf {
        self.directory.path().join("tokens")
    }

    /// The file with the PIN.
    #[must_use]
    pub fn pin_file(&self) -> PathBuf {
        self.directory.path().join("pin")
    }

    /// The PIN.
    #[must_use]
    pub fn pin(&self) -> &str {
        &self.pin
    }

    /// Puts something into the file with the PIN.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn put_pin(&self, pin: &str) {
        std::fs::write(self.pin_file(), format!("{pin}\n")).expect("written");
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(self.pin_file(), private).expect("set");
    }

    /// Takes the token out of its slot.
    ///
    /// # Panics
    /// If it is out.
    pub fn pull_out(&self) {
        std::fs::rename(self.tokens(), self.directory.path().join("away")).expect("moved");
        std::fs::create_dir(self.tokens()).expect("a directory");
    }

    /// Puts it back.
    ///
    /// # Panics
    /// If it is not out.
    pub fn put_back(&self) {
        std::fs::remove_dir_all(self.tokens()).expect("removed");
        std::fs::rename(self.directory.path().join("away"), self.tokens()).expect("moved");
    }

    /// What an operator does with another program than ours; `script` is `operate_token.py`.
    ///
    /// # Panics
    /// If it fails.
    #[must_use]
    pub fn operate(&self, script: &Path, arguments: &[&str]) -> Output {
        let done = Command::new("/usr/bin/python3")
            .env("SOFTHSM2_CONF", self.configuration())
            .arg("-B")
            .arg(script)
            .args(["--module", MODULE, "--token", TOKEN, "--pin-file"])
            .arg(self.pin_file())
            .args(arguments)
            .output()
            .expect("python3 is installed");
        assert!(
            done.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        done
    }
}

/// Random bytes without a crate for them: two PINs must differ, no more.
fn fill(bytes: &mut [u8; 8]) {
    use std::io::Read as _;
    let mut source = std::fs::File::open("/dev/urandom").expect("a generator");
    source.read_exact(bytes).expect("random bytes");
}
