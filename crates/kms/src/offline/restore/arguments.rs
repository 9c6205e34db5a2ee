//! What may be typed after `sealvol-keys restore`. No secret is among it: keys come from files and standard input.

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args};

use super::RestoreError;

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("key").required(true)))]
pub(in crate::offline) struct Arguments {
    /// The file that `sealvol key backup` wrote
    #[arg(long, value_name = "FILE")]
    pub(super) backup: PathBuf,
    /// The private key of the recovery pair: PKCS #8 in PEM, not encrypted, readable by nobody else; - for
    /// standard input
    #[arg(long, value_name = "FILE", group = "key")]
    recovery_key: Option<PathBuf>,
    /// Instead of it, the 32 bytes of the backup's key, decrypted by the recovery key elsewhere; - for
    /// standard input
    #[arg(long, value_name = "FILE", group = "key")]
    backup_key: Option<PathBuf>,
    /// Where to put the database; a file that is not there yet
    #[arg(long, value_name = "PATH", required_unless_present = "check")]
    database: Option<PathBuf>,
    /// Where to put the master key; a file that is not there yet. Without it a database whose master key
    /// comes from a passphrase opens by the same passphrase as before
    #[arg(long, value_name = "PATH", requires = "database")]
    master_key: Option<PathBuf>,
    /// Open everything, tell what it is, and write nothing
    #[arg(long, conflicts_with_all = ["database", "master_key"])]
    check: bool,
}

/// What opens the backup.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum KeySource<'a> {
    /// Its own key, decrypted elsewhere.
    BackupKey(&'a Path),
    /// The private key of the recovery pair.
    RecoveryKey(&'a Path),
}

/// Where everything goes: absolute paths.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) database: PathBuf,
    /// None: the master key comes from its passphrase as before.
    pub(super) master_key: Option<PathBuf>,
}

impl Arguments {
    pub(super) fn key(&self) -> KeySource<'_> {
        match (&self.recovery_key, &self.backup_key) {
            (Some(path), _) => KeySource::RecoveryKey(path),
            (None, Some(path)) => KeySource::BackupKey(path),
            (None, None) => unreachable!("one of them is required"),
        }
    }

    /// None: nothing is to be written.
    pub(super) fn target(&self) -> Result<Option<Target>, RestoreError> {
        let absolute = |path: &PathBuf| {
            std::path::absolute(path).map_err(|source| RestoreError::File {
                path: path.clone(),
                source,
            })
        };
        let Some(database) = &self.database else {
            return Ok(None);
        };
        Ok(Some(Target {
            database: absolute(database)?,
            master_key: self.master_key.as_ref().map(absolute).transpose()?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Restore {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(words: &str) -> Result<Arguments, String> {
        let words = std::iter::once("restore").chain(words.split_whitespace());
        match Restore::try_parse_from(words) {
            Ok(parsed) => Ok(parsed.arguments),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn the_ways_of_the_manual_are_understood() {
        let target = |master_key: Option<&str>| Target {
            database: "/k/local.db".into(),
            master_key: master_key.map(PathBuf::from),
        };
        for (words, key, expected) in [
            (
                "--backup b --recovery-key r.pem --database /k/local.db --master-key /k/local.master",
                KeySource::RecoveryKey(Path::new("r.pem")),
                Some(target(Some("/k/local.master"))),
            ),
            (
                "--database /k/local.db --backup-key - --backup b",
                KeySource::BackupKey(Path::new("-")),
                Some(target(None)),
            ),
            (
                "--check --backup b --recovery-key -",
                KeySource::RecoveryKey(Path::new("-")),
                None,
            ),
        ] {
            let arguments = parse(words).expect(words);
            assert_eq!(arguments.backup, Path::new("b"));
            assert_eq!(arguments.key(), key);
            assert_eq!(arguments.target().expect(words), expected);
        }
    }

    #[test]
    fn what_is_missing_or_too_much_is_named() {
        for (words, named) in [
            ("", "--recovery-key"),
            ("--recovery-key r --check", "--backup"),
            (
                "--recovery-key r --backup-key k --backup b --check",
                "--backup-key",
            ),
            ("--recovery-key r --backup b", "--database"),
            ("--recovery-key r --backup b --master-key m", "--database"),
            (
                "--recovery-key r --backup b --check --database d",
                "--check",
            ),
            ("--recovery-key r --backup b --force", "--force"),
            ("--recovery-key r --check --backup", "--backup"),
        ] {
            let error = parse(words).expect_err(words);
            assert!(error.contains(named), "{words}: {error}");
        }
    }
}
