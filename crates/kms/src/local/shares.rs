//! A master key from its shares, which are files: on sticks, in systemd credentials, wherever each of its keepers brings one.
//!
//! What always holds:
//! - a share goes from its file straight into locked memory, and no more are read than are needed;
//! - one that is not there is passed over, and named if too few are left; one that is damaged, does not belong to the others,
//!   or lies where others could have read or changed it, is refused by name: it is no reason to go on with fewer;
//! - that what comes out is the key that was split is known by the shares; that it is the database's, by the database.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sealvol_crypto::locked::KeyMemory;
use sealvol_crypto::{CombineError, KeyEncryptionKey, KeyError, Share, ShareError};

use super::place;
use crate::{Refusal, credential};

/// Shares that were read, each with its file.
pub(crate) struct Gathered<'a> {
    shares: Vec<Share>,
    files: Vec<&'a Path>,
    /// Those that are not there, and why not.
    missing: Vec<String>,
}

/// Why a file gave no share.
enum Failed {
    /// It is not there, or its disk does not give it.
    Missing(String),
    Refused(Refusal),
}

/// Reads as many of the shares as are needed, in this order.
pub(crate) fn gather<'a>(
    paths: &'a [PathBuf],
    memory: &Arc<KeyMemory>,
) -> Result<Gathered<'a>, Refusal> {
    let mut gathered = Gathered {
        shares: Vec::new(),
        files: Vec::new(),
        missing: Vec::new(),
    };
    for path in paths {
        match read(path, memory) {
            Ok(share) => {
                gathered.shares.push(share);
                gathered.files.push(path);
            }
            Err(Failed::Missing(reason)) => {
                gathered
                    .missing
                    .push(format!("{} ({reason})", path.display()));
            }
            Err(Failed::Refused(refusal)) => return Err(refusal),
        }
        let threshold = gathered.shares.first().map(Share::threshold);
        if threshold.is_some_and(|threshold| gathered.shares.len() >= threshold.into()) {
            break;
        }
    }
    Ok(gathered)
}

impl Gathered<'_> {
    /// The set that they are of, if there is a share at all.
    pub(crate) fn set(&self) -> Option<[u8; 16]> {
        self.shares.first().map(Share::set)
    }

    /// The key that they give.
    pub(crate) fn combine(&self, memory: &Arc<KeyMemory>) -> Result<KeyEncryptionKey, Refusal> {
        KeyEncryptionKey::combine(memory, &self.shares).map_err(|error| self.refused(error))
    }

    fn refused(&self, error: CombineError) -> Refusal {
        let first = || self.files[0].display();
        match error {
            CombineError::Locked(error) => error.into(),
            CombineError::OtherSet { at } => unusable(
                self.files[at],
                format!("is of another set than {}", first()),
                "give shares that were made together: each split makes another set",
            ),
            CombineError::OtherNumbers { at } => unusable(
                self.files[at],
                format!(
                    "says otherwise of its set than {}: one of them was changed",
                    first()
                ),
                "find out which one was, and give others in its place",
            ),
            CombineError::Twice { at, first } => unusable(
                self.files[at],
                format!(
                    "has the same number as {}: one is a copy of the other",
                    self.files[first].display()
                ),
                "give another share of the set in the place of one of them",
            ),
            CombineError::TooFew { have, needed } => Refusal::SharesMissing {
                reason: self.too_few(have, needed),
            },
            _ => Refusal::SharesForged {
                files: listed(self.files.iter().map(|path| path.display())),
            },
        }
    }

    fn too_few(&self, have: usize, needed: usize) -> String {
        let at_hand = match have {
            0 => "no share of it is at hand".to_owned(),
            1 => format!("1 share of it is at hand, and {needed} are needed"),
            have => format!("{have} shares of it are at hand, and {needed} are needed"),
        };
        if self.missing.is_empty() {
            format!("{at_hand}; no others are named")
        } else {
            format!("{at_hand}; not there: {}", listed(self.missing.iter()))
        }
    }
}

fn read(path: &Path, memory: &Arc<KeyMemory>) -> Result<Share, Failed> {
    match place::trusted_directory(path) {
        Ok(_) => {}
        Err(Refusal::NoDirectory { .. }) => {
            return Err(Failed::Missing("there is no such directory".to_owned()));
        }
        Err(Refusal::System { source, .. }) => return Err(Failed::Missing(source.to_string())),
        Err(refusal) => return Err(Failed::Refused(refusal)),
    }
    let (mut file, found) =
        place::open_to_read(path).map_err(|source| Failed::Missing(source.to_string()))?;
    // As a credential: systemd may give it to root, and let the service in.
    credential::check(path, &found).map_err(Failed::Refused)?;
    Share::read_from(memory, &mut file).map_err(|error| match error {
        ShareError::Key(KeyError::Read(source)) => Failed::Missing(source.to_string()),
        ShareError::Key(KeyError::Locked(error)) => Failed::Refused(error.into()),
        ShareError::NewerFormat { .. } => Failed::Refused(unusable(
            path,
            error.to_string(),
            "use the release that made it, or a later one",
        )),
        error => Failed::Refused(unusable(
            path,
            error.to_string(),
            "give another copy of this share, or another share of its set",
        )),
    })
}

fn unusable(path: &Path, reason: String, next_step: &'static str) -> Refusal {
    Refusal::ShareUnusable {
        path: path.to_owned(),
        reason,
        next_step,
    }
}

fn listed(parts: impl Iterator<Item = impl ToString>) -> String {
    parts
        .map(|part| part.to_string())
        .collect::<Vec<_>>()
        .join(", ")
}
