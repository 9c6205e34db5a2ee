//! `key backup`: a file that only a recovery key opens. The daemon writes it through our descriptor; nothing of it is read here.
//!
//! What always holds: the file is there whole, durably, under its name, or not at all; none that is there is written over; nobody
//! else can read it. One that a killed command left is called `FILE.PID.new`, and is of no use.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use sealvol_control::api;
use sealvol_control::client::Client;

use crate::args::Backup;
use crate::run::{CommandError, Printer};

pub(crate) async fn run(
    client: &Client,
    print: &Printer,
    options: Backup,
) -> Result<(), CommandError> {
    let to = options.to;
    let recovery_key = fs::read_to_string(&options.recovery_key)
        .map_err(|error| of_file(&options.recovery_key, error))?;
    if to.symlink_metadata().is_ok() {
        return Err(of_file(&to, io::ErrorKind::AlreadyExists.into()));
    }
    let new = NewFile::beside(&to).map_err(|error| of_file(&to, error))?;
    let request = api::BackUpKeys { recovery_key };
    let file = new.file.as_fd();
    let made = client
        .back_up_keys(&options.provider, &request, file)
        .await?;
    new.keep(&to).map_err(|error| of_file(&to, error))?;
    print.answer(&made, |made| told(made, &to))
}

/// A file without its name yet; gone with the value unless it is kept.
struct NewFile {
    file: File,
    path: PathBuf,
}

impl NewFile {
    fn beside(to: &Path) -> io::Result<Self> {
        let mut path = to.as_os_str().to_owned();
        path.push(format!(".{}.new", std::process::id()));
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        let path = path.into();
        Ok(Self { file, path })
    }

    /// Gives it its name, if nothing has it.
    fn keep(self, to: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        match renameat_with(CWD, &self.path, CWD, to, RenameFlags::NOREPLACE) {
            // A file system that does not know the flag: a second name is never given to what has one.
            Err(Errno::INVAL) => fs::hard_link(&self.path, to)?,
            other => other?,
        }
        let directory = to.parent().filter(|path| !path.as_os_str().is_empty());
        File::open(directory.unwrap_or_else(|| Path::new(".")))?.sync_all()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // It is not there any more if it was renamed; else it is of no use to anybody.
        let _ = fs::remove_file(&self.path);
    }
}

fn of_file(path: &Path, source: io::Error) -> CommandError {
    CommandError::File {
        path: path.to_owned(),
        source,
    }
}

fn told(made: &api::KeyBackup, to: &Path) -> String {
    format!(
        "Keys of {} backed up to {}: database {} at change {}, {} bytes\n  recovery key: {}\n  sha256: {}\n",
        made.provider,
        to.display(),
        made.database,
        made.changes,
        made.bytes,
        made.recovery_key,
        made.sha256
    )
}

#[cfg(test)]
mod tests {
    use sealvol_control::keychild::MasterKeyForm;

    use super::*;

    #[test]
    fn a_backup_is_told_by_what_it_can_be_compared_with() {
        let made = api::KeyBackup {
            provider: "local".into(),
            database: "0d7c".into(),
            changes: 7,
            master_key: MasterKeyForm::Raw,
            recovery_key: "ab12".into(),
            bytes: 4242,
            sha256: "cd34".into(),
        };
        assert_eq!(
            told(&made, Path::new("keys.backup")),
            "\
Keys of local backed up to keys.backup: database 0d7c at change 7, 4242 bytes
  recovery key: ab12
  sha256: cd34
"
        );
    }
}
