//! What a server of a test needs in files: certificates, and secrets that nobody else may read.
//!
//! It needs nothing of this crate, so that the tests of other crates can include the file.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An authority with a certificate for `localhost` (`ca.pem`, `server.pem`, `server.key`), and an authority that has nothing
/// to do with it (`other-ca.pem`).
///
/// # Panics
/// If openssl is not installed.
pub fn certify(directory: &Path) {
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
            ])
            .args(["-nodes", "-days", "30"])
            .args(arguments)
            .current_dir(directory)
            .output()
            .expect("openssl is installed");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    for name in ["ca", "other-ca"] {
        let (key, file) = (format!("{name}.key"), format!("{name}.pem"));
        openssl(&[
            "-keyout",
            &key,
            "-out",
            &file,
            "-subj",
            "/CN=authority of a test",
        ]);
    }
    openssl(&[
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-keyout",
        "server.key",
        "-out",
        "server.pem",
        "-subj",
        "/CN=server",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
        "-addext",
        "subjectAltName=DNS:localhost",
    ]);
}

/// A private file.
///
/// # Panics
/// If it cannot be written.
#[must_use]
pub fn secret_file(directory: &Path, name: &str, secret: &str) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, format!("{secret}\n")).expect("written");
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(&path, private).expect("private");
    path
}
