//! A recovery key as an operator makes one with OpenSSL, backups that are made for it, and how one is restored.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::daemon::Daemon;
use crate::outcome::Outcome;
use crate::place::Place;
use crate::programs::{self, run};

/// An RSA pair in two files of a place.
#[derive(Debug)]
pub struct RecoveryKey {
    private: PathBuf,
    /// The public half, in PEM.
    pub public: PathBuf,
}

impl RecoveryKey {
    /// Makes a pair whose files begin with `name`.
    ///
    /// # Panics
    /// If OpenSSL does not.
    pub fn new(place: &Place, name: &str) -> Self {
        let [private, public] = ["key", "pub"].map(|end| place.file(&format!("{name}.{end}")));
        let [key, public_key] = [&private, &public].map(|path| path.display().to_string());
        let make = [
            "genpkey",
            "-algorithm",
            "RSA",
            "-pkeyopt",
            "rsa_keygen_bits:3072",
            "-out",
        ];
        run("openssl", &[&make[..], &[&key]].concat()).succeeded();
        run(
            "openssl",
            &["pkey", "-in", &key, "-pubout", "-out", &public_key],
        )
        .succeeded();
        Self { private, public }
    }

    /// What it is known by: SHA-256 of the public key, as the manual has it.
    ///
    /// # Panics
    /// If OpenSSL does not tell.
    pub fn fingerprint(&self) -> String {
        let pipe = "openssl pkey -pubin -in \"$0\" -outform DER | sha256sum";
        let told = Outcome::of(Command::new("sh").args(["-c", pipe]).arg(&self.public));
        let told = told.succeeded().stdout;
        told.split_whitespace().next().expect("a digest").to_owned()
    }

    /// The words of a backup of `local` for it.
    pub fn backup<'a>(&'a self, to: &'a Path) -> [&'a str; 7] {
        let text = |path: &'a Path| path.to_str().expect("UTF-8");
        let (key, to) = (text(&self.public), text(to));
        ["key", "backup", "local", "--recovery-key", key, "--to", to]
    }

    /// Has a backup of `local` made.
    ///
    /// # Panics
    /// If it is refused.
    #[track_caller]
    pub fn back_up(&self, daemon: &Daemon<'_>, to: &Path) -> serde_json::Value {
        daemon.sealvol_json(&self.backup(to))
    }

    /// Restores a backup into the state directory of a place, without a daemon.
    ///
    /// # Panics
    /// If the private key cannot be read.
    pub fn restore(&self, place: &Place, backup: &Path) -> Outcome {
        let keys = place.state().join("keys");
        let key = std::fs::File::open(&self.private).expect("the private key");
        let mut command = Command::new(programs::ours("sealvol-keys"));
        command
            .args(["restore", "--recovery-key", "-", "--backup"])
            .arg(backup)
            .arg("--database")
            .arg(keys.join("local.db"))
            .arg("--master-key")
            .arg(keys.join("local.master"));
        let output = command.stdin(Stdio::from(key)).output();
        let output = output.expect("it runs");
        Outcome {
            command: format!("{command:?}"),
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}
