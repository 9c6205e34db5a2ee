//! What is in files, seen from outside: fingerprints of whole directories, to show that nothing was written, and a search for
//! bytes, to show that something is nowhere.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every regular file under `directory`, sorted.
///
/// # Panics
/// If a directory cannot be read.
pub fn files_under(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut open = vec![directory.to_path_buf()];
    while let Some(directory) = open.pop() {
        let entries = std::fs::read_dir(&directory)
            .unwrap_or_else(|error| panic!("cannot list {}: {error}", directory.display()));
        for entry in entries {
            let entry = entry.expect("a directory entry");
            let kind = entry.file_type().expect("a file type");
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    files
}

/// A fingerprint of the length and content of each file under `directory`.
///
/// # Panics
/// If a file cannot be read.
pub fn fingerprints(directory: &Path) -> BTreeMap<PathBuf, (u64, u64)> {
    files_under(directory)
        .into_iter()
        .map(|path| {
            let fingerprint = fingerprint(&path);
            (path, fingerprint)
        })
        .collect()
}

fn fingerprint(path: &Path) -> (u64, u64) {
    let mut file = std::fs::File::open(path)
        .unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()));
    let mut hasher = DefaultHasher::new();
    let mut piece = vec![0; 1 << 20];
    let mut len = 0_u64;
    loop {
        let count = file.read(&mut piece).expect("a readable file");
        if count == 0 {
            return (len, hasher.finish());
        }
        piece[..count].hash(&mut hasher);
        len += count as u64;
    }
}

/// The files under `directories` that hold `marker` anywhere, as `grep` finds them.
///
/// # Panics
/// If `grep` cannot search one of them: nothing found must mean that all was searched.
pub fn files_with(marker: &str, directories: &[&Path]) -> Vec<String> {
    let outcome = crate::outcome::Outcome::of(
        Command::new("grep")
            .args([
                "--recursive",
                "--devices=skip",
                "--text",
                "--files-with-matches",
                "--fixed-strings",
                "--regexp",
            ])
            .arg(marker)
            .args(directories)
            .env("LC_ALL", "C"),
    );
    assert!(
        matches!(outcome.code, Some(0 | 1)),
        "the search did not reach every file: {outcome}"
    );
    outcome.stdout.lines().map(str::to_owned).collect()
}
