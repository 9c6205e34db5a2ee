//! Backups of a key database with its master key, which only the holder of a recovery key opens.
//!
//! ```text
//! recovery key (RSA, public)
//!     └─ encrypts ─▶ the backup's key (32 bytes, made for this backup)
//!                        ├─ seals ─▶ the master key
//!                        └─ seals ─▶ the image of the database           (its keys are sealed by the master key)
//! ```
//! What always holds:
//! - the image is of one moment, and was proved by its own MAC, under the master key that goes with it, before it is encrypted;
//! - the master key goes from locked memory into its sealed form and from there into locked memory, and lies nowhere between; the
//!   backup's key is made in locked memory and leaves it only encrypted to the recovery key;
//! - every byte of a backup is authenticated under the backup's key, and a backup that is not whole gives nothing.
//!
//! What it never does: prove who made a backup. Whoever has the recovery key's public half makes one, with another master key
//! and other keys in it; so a backup is told by its digest. It asks no policy of a key: whoever may have it made is for the
//! daemon to say, and the recovery key, too.
//!
//! `LOCAL.md` describes the file for those who have to open it without this program.

pub(crate) mod format;
pub(crate) mod recovery_key;

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use rusqlite::Transaction;
use sealvol_control::keychild::{BackupMade, MasterKeyForm as Form};
use sealvol_crypto::locked::KeyMemory;
use sealvol_crypto::wrap::WrapError;
use sealvol_crypto::{KeyEncryptionKey, TABLE_IMAGE_BYTES_MAX, sha256};

use super::clock::{Clock, SystemClock};
use super::database::{Database, MasterKeyForm};
use super::opening::{check_master, check_relied_on, close_table, verify};
use super::table::{Material, Table};
use super::{Local, Use, context, id_text, key_error, no_clock, now};
use crate::{KeyService as _, Refusal};
use format::{BadBackup, Header, Parts};
use recovery_key::RecoveryKey;

impl Local {
    /// Writes a backup to the file that came with the batch.
    pub(super) fn back_up(&self, recovery_key: &[u8]) -> Result<BackupMade, Refusal> {
        let recovery_key = RecoveryKey::from_der(recovery_key)?;
        let sink = self.sink.as_ref().ok_or(Refusal::NoSink)?;
        let (header, image) = self.image(&recovery_key)?;
        let key = KeyEncryptionKey::generate(&self.memory).map_err(key_error)?;
        let wrapped = recovery_key.wrap(&key, &self.memory)?;
        let backup = seal(&header, &wrapped, &key, &self.master, &image);
        let mut file: &File = sink;
        file.write_all(&backup)
            .map_err(|source| Refusal::BackupNotWritten { source })?;
        Ok(BackupMade {
            database: id_text(&header.database),
            changes: header.changes,
            master_key: header.form,
            recovery_key: hex(&header.recovery_key),
            bytes: backup.len() as u64,
            sha256: hex(&sha256(&[&backup])),
        })
    }

    /// A copy of the database as it is now, proved, and what is said of it in front.
    fn image(&self, recovery_key: &RecoveryKey) -> Result<(Header, Vec<u8>), Refusal> {
        let mut copy = self.database.copy()?;
        let path = || self.database.path().to_owned();
        let meta = copy
            .meta()?
            .ok_or_else(|| Refusal::NoDatabase { path: path() })?;
        let table = copy.table()?;
        verify(&copy, &self.master, &self.database_id, &table)?;
        check_relied_on(&copy, &meta, Some(&table), self.table_state().as_ref())?;
        let header = Header {
            form: form(&meta.form),
            database: meta.id,
            changes: table.changes,
            made: self.clock.read().map_err(no_clock)?.wall / 1000,
            recovery_key: *recovery_key.fingerprint(),
        };
        let image = copy.image()?;
        if image.len() > TABLE_IMAGE_BYTES_MAX {
            return Err(Refusal::BackupTooLarge {
                path: path(),
                bytes: image.len(),
            });
        }
        Ok((header, image))
    }
}

fn form(form: &MasterKeyForm) -> Form {
    match form {
        MasterKeyForm::Passphrase { .. } => Form::Passphrase,
        MasterKeyForm::Raw => Form::Raw,
    }
}

/// The whole file.
fn seal(
    header: &Header,
    wrapped: &[u8],
    key: &KeyEncryptionKey,
    master: &KeyEncryptionKey,
    image: &[u8],
) -> Vec<u8> {
    let mut backup = header.encode(wrapped);
    let context = format::context(&header.database, &backup);
    backup.extend(key.seal(master, &context, &header.database, 0));
    backup.extend(key.seal_table(image, &context, &header.database));
    backup
}

/// A backup that was opened: its master key in locked memory, its database in ordinary memory, neither of them in a file.
pub(crate) struct Opened {
    pub(crate) master: KeyEncryptionKey,
    pub(crate) header: Header,
    /// Keys, and versions of them, in the database.
    pub(crate) keys: usize,
    pub(crate) versions: usize,
    database: Database,
    id: [u8; 16],
}

/// Why a backup was not opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    Bad(#[from] BadBackup),
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Opens a backup by its own key. `name` is what messages call it.
pub(crate) fn open(
    parts: &Parts<'_>,
    key: &KeyEncryptionKey,
    memory: &Arc<KeyMemory>,
    name: &Path,
) -> Result<Opened, OpenError> {
    let context = parts.context();
    let refused = |error| match error {
        WrapError::Locked(error) => OpenError::Refused(error.into()),
        _ => OpenError::Bad(BadBackup::Changed),
    };
    let master = key
        .open(memory, parts.master_key, &context)
        .map_err(refused)?;
    let image = key.open_table(parts.image, &context).map_err(refused)?;
    let database = Database::of_image(&image, name)?;
    drop(image);
    let inconsistent = |reason: &str| Refusal::DatabaseDamaged {
        path: name.to_owned(),
        reason: reason.to_owned(),
    };
    let meta = database
        .meta()?
        .ok_or_else(|| inconsistent("the backup has an empty one"))?;
    check_master(&master, &meta, name, memory)?;
    let table = database.table()?;
    verify(&database, &master, &meta.id, &table)?;
    let header = &parts.header;
    if (header.database, header.changes, header.form) != (meta.id, table.changes, form(&meta.form))
    {
        return Err(inconsistent("it is not the one that the backup says it has").into());
    }
    Ok(Opened {
        master,
        header: header.clone(),
        keys: table.keys.len(),
        versions: table.keys.iter().map(|key| key.versions.len()).sum(),
        database,
        id: meta.id,
    })
}

impl Opened {
    /// The versions whose material does not open, as `KEY version N`: it was damaged when the backup was made.
    pub(crate) fn damaged(&self, memory: &Arc<KeyMemory>) -> Result<Vec<String>, Refusal> {
        let context = context(&self.id, Use::KeyMaterial);
        let mut damaged = Vec::new();
        for key in &self.database.table()?.keys {
            let external = key.external.as_ref();
            // What is not imported, or destroyed, has none.
            if key.destroying || external.is_some_and(|key| key.material != Material::Imported) {
                continue;
            }
            for version in &key.versions {
                let version = version.told.version;
                let sealed = self.database.sealed(&key.id, version)?.unwrap_or_default();
                let header = KeyEncryptionKey::sealed_header(&sealed);
                let own = header
                    .is_ok_and(|header| (header.key_id, header.key_version) == (key.id, version));
                if !own || self.master.open(memory, &sealed, &context).is_err() {
                    damaged.push(format!("{} version {version}", key.name));
                }
            }
        }
        Ok(damaged)
    }

    /// Has the database say that its master key is 32 bytes of a file, whatever it said before.
    pub(crate) fn make_raw(&mut self) -> Result<(), Refusal> {
        if self.header.form == Form::Raw {
            return Ok(());
        }
        let reading = SystemClock.read().map_err(no_clock)?;
        let transaction = self.database.write()?;
        let work = |transaction: &Transaction<'_>| {
            let now = now(&Table::load(transaction)?, reading);
            transaction.execute(
                "UPDATE meta SET master_key = 'raw', argon2_salt = NULL, argon2_memory = NULL, argon2_passes = NULL, \
                 argon2_lanes = NULL",
                [],
            )?;
            close_table(transaction, &self.master, &self.id, &now)
        };
        work(&transaction).map_err(|error| self.database.fault(error))?;
        transaction
            .commit()
            .map_err(|error| self.database.fault(error))
    }

    /// The database's file.
    pub(crate) fn image(&mut self) -> Result<Vec<u8>, Refusal> {
        self.database.image()
    }

    /// Whether this is the master key.
    pub(crate) fn is_master(&self, key: &KeyEncryptionKey) -> Result<bool, Refusal> {
        match verify(&self.database, key, &self.id, &self.database.table()?) {
            Ok(()) => Ok(true),
            Err(Refusal::TableChanged { .. }) => Ok(false),
            Err(other) => Err(other),
        }
    }
}

/// In lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
