//! The file of a sealed key: JSON, `NAME.sealed` in the provider's directory. `TPM2.md` describes it.
//!
//! What always holds: a file is made whole or not at all, and never written over; nothing in it is secret, and what is
//! changed in it opens nothing.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use base64ct::{Base64, Encoding as _};
use sealvol_control::keychild::PcrBank;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::device::Policy;
use crate::Refusal;
use crate::local::place;

const ENDING: &str = ".sealed";
const FORMAT: u32 = 1;
/// A file of ours has less than a kilobyte.
const FILE_MAX: u64 = 16 * 1024;

/// A key, as it is on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Sealed {
    format: u32,
    pub(super) id: Uuid,
    /// Seconds since 1970 (UTC).
    pub(super) created: u64,
    bank: PcrBank,
    pcrs: Vec<u8>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    counter: Option<Counter>,
    /// Base64 of a TPMT_PUBLIC and a TPM2B_PRIVATE's buffer.
    public: String,
    private: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counter {
    index: u32,
    stands: u64,
}

/// A key by its name, or why its file is none.
pub(super) type Named = (String, Result<Sealed, Refusal>);

impl Sealed {
    pub(super) fn new(id: Uuid, created: u64, policy: &Policy, parts: (&[u8], &[u8])) -> Self {
        Self {
            format: FORMAT,
            id,
            created,
            bank: policy.bank,
            pcrs: policy.pcrs.clone(),
            counter: policy.counter.map(|(index, stands)| Counter {
                index,
                stands: u64::from_be_bytes(stands),
            }),
            public: Base64::encode_string(parts.0),
            private: Base64::encode_string(parts.1),
        }
    }

    pub(super) fn policy(&self) -> Policy {
        Policy {
            bank: self.bank,
            pcrs: self.pcrs.clone(),
            counter: self
                .counter
                .as_ref()
                .map(|counter| (counter.index, counter.stands.to_be_bytes())),
        }
    }

    /// Public and private part, if they are ones.
    pub(super) fn parts(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let part = |text: &str| Base64::decode_vec(text).ok();
        Some((part(&self.public)?, part(&self.private)?))
    }
}

/// The key of that name, if there is one.
pub(super) fn named(directory: &Path, name: &str) -> Result<Option<Sealed>, Refusal> {
    let directory = place::trusted_directory(&directory.join("any"))?;
    let path = file(&directory, name);
    if !is_name(name) || path.symlink_metadata().is_err() {
        return Ok(None);
    }
    read(&path).map(Some)
}

/// The keys in a directory, by name; one that is damaged is none of the others' business.
pub(super) fn all(directory: &Path) -> Result<Vec<Named>, Refusal> {
    let directory = place::trusted_directory(&directory.join("any"))?;
    let system = |source| Refusal::system(&directory, source);
    let mut keys = Vec::new();
    for entry in fs::read_dir(&directory).map_err(system)? {
        let path = entry.map_err(system)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name.and_then(|name| name.strip_suffix(ENDING)) else {
            continue;
        };
        if is_name(name) {
            keys.push((name.to_owned(), read(&path)));
        }
    }
    keys.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(keys)
}

fn read(path: &Path) -> Result<Sealed, Refusal> {
    let system = |source| Refusal::system(path, source);
    let damaged = |reason: String| Refusal::SealedKeyDamaged {
        path: path.to_owned(),
        reason,
    };
    let (file, found) = place::open_to_read(path).map_err(system)?;
    place::check_private(path, &found)?;
    let mut text = String::new();
    let read = file.take(FILE_MAX).read_to_string(&mut text);
    match read {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(damaged("it is not text".to_owned()));
        }
        other => other.map_err(system)?,
    };
    let sealed: Sealed = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    if sealed.format != FORMAT {
        return Err(damaged(format!(
            "it has format {}, and this program reads format {FORMAT}",
            sealed.format
        )));
    }
    Ok(sealed)
}

/// Writes a new key's file, durable when this returns.
pub(super) fn write(directory: &Path, name: &str, sealed: &Sealed) -> Result<(), Refusal> {
    let path = file(directory, name);
    let system = |source| Refusal::system(&path, source);
    let text = serde_json::to_string(sealed).map_err(|error| system(error.into()))?;
    place::make_whole(&path, |made| {
        made.write_all(text.as_bytes()).map_err(system)
    })
}

fn file(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}{ENDING}"))
}

/// Whether a key can be called so: part of a file's name, and no id.
pub(super) fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=128).contains(&name.len())
        && name.chars().all(allowed)
        && !name.starts_with('.')
        && Uuid::try_parse(name).is_err()
}
