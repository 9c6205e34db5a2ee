//! Key material as an operator brings it: encrypted by OpenSSL, which knows nothing of ours, to the public key that
//! `sealvol key import-parameters` has written; and moments as the command line takes them.

use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use crate::outcome::Outcome;

/// Encrypts 32 bytes, all `byte`, to a public key.
///
/// # Panics
/// If OpenSSL cannot.
pub fn encrypt(public_key: &Path, byte: u8, encrypted: &Path) {
    let plain = encrypted.with_extension("plain");
    std::fs::write(&plain, [byte; 32]).expect("written");
    let words = ["pkeyutl", "-encrypt", "-pubin"];
    let oaep = [
        "rsa_padding_mode:oaep",
        "rsa_oaep_md:sha256",
        "rsa_mgf1_md:sha256",
    ];
    let mut openssl = Command::new("openssl");
    openssl.args(words).arg("-inkey").arg(public_key);
    for option in oaep {
        openssl.args(["-pkeyopt", option]);
    }
    openssl.arg("-in").arg(&plain).arg("-out").arg(encrypted);
    Outcome::of(&mut openssl).succeeded();
}

/// The moment in so many seconds, in UTC.
///
/// # Panics
/// If `date` does not know it.
#[must_use]
pub fn in_seconds(seconds: u64) -> String {
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("after 1970");
    let date = Outcome::of(
        Command::new("date")
            .args(["-u", "+%Y-%m-%dT%H:%M:%SZ", "-d"])
            .arg(format!("@{}", now.as_secs() + seconds)),
    );
    date.succeeded().stdout.trim().to_owned()
}
