//! The secrets by which the child is known to a key service: files, read once for a batch.
//!
//! What always holds: a secret is read only if nobody else could have read or changed it; it is wiped after use, and in no
//! message.

use std::fs::Metadata;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::process::geteuid;
use zeroize::Zeroizing;

use crate::Refusal;
use crate::local::place;

/// Most bytes of a secret: OpenBao's longest tokens have some hundred.
const SECRET_MAX: u64 = 8192;

/// What a file says that holds one word, without the white space around it.
pub(crate) fn read(path: &Path) -> Result<Zeroizing<String>, Refusal> {
    let text = text(path)?;
    let word = text.trim();
    if !word.chars().all(|c| c.is_ascii_graphic()) {
        return Err(unusable(
            path,
            "has something else in it than one credential",
        ));
    }
    Ok(Zeroizing::new(word.to_owned()))
}

/// What a file says, which is something.
pub(crate) fn text(path: &Path) -> Result<Zeroizing<String>, Refusal> {
    let unreadable = |source: io::Error| unusable(path, &source.to_string());
    place::parent(path)?;
    let (file, found) = place::open_to_read(path).map_err(unreadable)?;
    check(path, &found)?;
    // Never grows, so no copy of it stays behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(
        1 + usize::try_from(SECRET_MAX).unwrap_or(0),
    ));
    file.take(SECRET_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > SECRET_MAX {
        return Err(unusable(path, "is too long for a credential"));
    }
    let text = str::from_utf8(&bytes).map_err(|_| unusable(path, "is not text"))?;
    if text.trim().is_empty() {
        return Err(unusable(path, "is empty"));
    }
    Ok(Zeroizing::new(text.to_owned()))
}

/// A file that is no credential: it may be one a moment later, when whoever writes it is done.
pub(crate) fn unusable(path: &Path, reason: &str) -> Refusal {
    Refusal::CredentialMissing {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}

/// A regular file of ours with no access for others, or one of root's that our group may read.
pub(crate) fn check(path: &Path, found: &Metadata) -> Result<(), Refusal> {
    let (owner, us) = (found.uid(), geteuid().as_raw());
    let forbidden = if owner == 0 && us != 0 { 0o037 } else { 0o077 };
    let reason = if !found.is_file() {
        "is not a regular file".to_owned()
    } else if owner != us && owner != 0 {
        format!("belongs to user {owner}, not to user {us} or root")
    } else if found.mode() & forbidden != 0 {
        format!(
            "has mode {:04o}: others have access to it",
            found.mode() & 0o7777
        )
    } else {
        return Ok(());
    };
    Err(Refusal::UnsafePlace {
        path: path.to_owned(),
        reason,
    })
}
