//! The bytes of a backup: what stands where, and what it is bound to.
//!
//! ```text
//! offset 0    magic 4 │ format 1 │ form 1 │ n 2 │ database 16 │ changes 8 │ made 8 │ recovery key 32
//! offset 72   the backup's key, encrypted to the recovery key: n bytes
//! then        the master key, sealed by the backup's key: 105 bytes
//! then        the image of the database, sealed by the backup's key: to the end
//! ```
//! What always holds: a backup is read as a whole or not at all, without a length that anybody chose being believed before it was
//! compared with what is there; what stands before the sealed parts is bound to both of them.

use sealvol_control::keychild::MasterKeyForm;
use sealvol_crypto::{EncryptionContext, SEALED_KEY_ENCRYPTION_KEY_BYTES, sha256};

use super::{hex, id_text};

const MAGIC: [u8; 4] = *b"SVbk";

/// The format that is written, and the only one that is read.
const FORMAT: u8 = 1;

/// Where the encrypted key begins.
pub(crate) const WRAPPED_AT: usize = 72;

/// What a recovery key of 3072 or 4096 bits gives.
pub(crate) const WRAPPED_BYTES: [usize; 2] = [384, 512];

/// Least bytes of a sealed image: one of a single byte.
const IMAGE_BYTES_MIN: usize = 57 + 1 + 16;

/// What a backup says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// How the master key came about.
    pub(crate) form: MasterKeyForm,
    /// Id of the database.
    pub(crate) database: [u8; 16],
    /// How many changes of it there are.
    pub(crate) changes: u64,
    /// When it was made, in seconds since 1970.
    pub(crate) made: u64,
    /// SHA-256 of the recovery key.
    pub(crate) recovery_key: [u8; 32],
}

/// Why a file is not a backup that can be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadBackup {
    #[error("it was changed since it was made, or cut off, or is opened by another key")]
    Changed,
    #[error("it has format {found}, made by a newer release; this one knows format {FORMAT}")]
    NewerFormat { found: u8 },
    #[error("it is not a backup of a key database")]
    NoBackup,
    #[error("it is cut off, or not as it was made")]
    NotWhole,
}

impl Header {
    /// The beginning of a backup, with the encrypted key.
    pub(super) fn encode(&self, wrapped: &[u8]) -> Vec<u8> {
        let length = u16::try_from(wrapped.len()).expect("an RSA key is shorter");
        let mut bytes = Vec::with_capacity(WRAPPED_AT + wrapped.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.push(FORMAT);
        bytes.push(match self.form {
            MasterKeyForm::Raw => 0,
            MasterKeyForm::Passphrase => 1,
        });
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&self.database);
        bytes.extend_from_slice(&self.changes.to_be_bytes());
        bytes.extend_from_slice(&self.made.to_be_bytes());
        bytes.extend_from_slice(&self.recovery_key);
        bytes.extend_from_slice(wrapped);
        bytes
    }
}

/// A backup, taken apart. Nothing of it is authenticated yet.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    pub(crate) header: Header,
    /// The backup's key, encrypted to the recovery key.
    pub(crate) wrapped: &'a [u8],
    pub(super) master_key: &'a [u8],
    pub(super) image: &'a [u8],
    /// Everything before the sealed parts.
    beginning: &'a [u8],
}

impl<'a> Parts<'a> {
    pub(crate) fn of(backup: &'a [u8]) -> Result<Self, BadBackup> {
        let (magic, rest) = backup.split_first_chunk().ok_or(BadBackup::NoBackup)?;
        if *magic != MAGIC {
            return Err(BadBackup::NoBackup);
        }
        let (&[format], rest) = rest.split_first_chunk().ok_or(BadBackup::NotWhole)?;
        if format != FORMAT {
            return Err(BadBackup::NewerFormat { found: format });
        }
        let (header, length) = header(rest).ok_or(BadBackup::NotWhole)?;
        if !WRAPPED_BYTES.contains(&length) {
            return Err(BadBackup::NotWhole);
        }
        let (beginning, sealed) = backup
            .split_at_checked(WRAPPED_AT + length)
            .ok_or(BadBackup::NotWhole)?;
        let (master_key, image) = sealed
            .split_at_checked(SEALED_KEY_ENCRYPTION_KEY_BYTES)
            .filter(|(_, image)| image.len() >= IMAGE_BYTES_MIN)
            .ok_or(BadBackup::NotWhole)?;
        Ok(Self {
            header,
            wrapped: &beginning[WRAPPED_AT..],
            master_key,
            image,
            beginning,
        })
    }

    pub(super) fn context(&self) -> EncryptionContext {
        context(&self.header.database, self.beginning)
    }
}

/// What follows magic and format, and the length of the encrypted key.
fn header(bytes: &[u8]) -> Option<(Header, usize)> {
    let (&[form], rest) = bytes.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let (database, rest) = rest.split_first_chunk()?;
    let (changes, rest) = rest.split_first_chunk()?;
    let (made, rest) = rest.split_first_chunk()?;
    let (recovery_key, _) = rest.split_first_chunk()?;
    let header = Header {
        form: match form {
            0 => MasterKeyForm::Raw,
            1 => MasterKeyForm::Passphrase,
            _ => return None,
        },
        database: *database,
        changes: u64::from_be_bytes(*changes),
        made: u64::from_be_bytes(*made),
        recovery_key: *recovery_key,
    };
    Some((header, u16::from_be_bytes(*length).into()))
}

/// What both sealed parts are bound to: the database, and everything that stands before them.
pub(super) fn context(database: &[u8; 16], beginning: &[u8]) -> EncryptionContext {
    EncryptionContext::new([
        ("sealvol-local:backup", hex(&sha256(&[beginning]))),
        ("sealvol-local:database", id_text(database)),
        ("sealvol-local:use", "backup".to_owned()),
    ])
    .expect("the names differ and the values are short")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            form: MasterKeyForm::Passphrase,
            database: [1; 16],
            changes: 2,
            made: 3,
            recovery_key: [4; 32],
        }
    }

    fn backup(wrapped: usize) -> Vec<u8> {
        let mut backup = header().encode(&vec![5; wrapped]);
        backup.extend([6; SEALED_KEY_ENCRYPTION_KEY_BYTES]);
        backup.extend([7; IMAGE_BYTES_MIN]);
        backup
    }

    #[test]
    fn what_is_written_is_read() {
        for bytes in WRAPPED_BYTES {
            let backup = backup(bytes);
            let parts = Parts::of(&backup).expect("whole");
            assert_eq!(parts.header, header());
            assert_eq!(parts.wrapped, vec![5; bytes]);
            assert_eq!(parts.master_key, [6; SEALED_KEY_ENCRYPTION_KEY_BYTES]);
            assert_eq!(parts.image, [7; IMAGE_BYTES_MIN]);
        }
    }

    #[test]
    fn what_is_cut_off_anywhere_is_refused() {
        let backup = backup(384);
        for length in 0..backup.len() {
            let refused = Parts::of(&backup[..length]).expect_err("cut off");
            let expected = if length < 4 {
                BadBackup::NoBackup
            } else {
                BadBackup::NotWhole
            };
            assert_eq!(refused, expected, "{length}");
        }
    }

    #[test]
    fn no_byte_of_the_beginning_can_be_another_one_unseen() {
        let sound = backup(384);
        let context = Parts::of(&sound).expect("whole").context();
        for at in 0..WRAPPED_AT + 384 {
            for bit in 0..8 {
                let mut changed = sound.clone();
                changed[at] ^= 1 << bit;
                // Refused at once, or bound to something else.
                if let Ok(parts) = Parts::of(&changed) {
                    assert_ne!(parts.context().canonical(), context.canonical(), "{at}");
                }
            }
        }
    }

    #[test]
    fn lengths_and_words_that_nobody_writes_are_refused() {
        let sound = backup(512);
        for (at, byte, expected) in [
            (0, b'X', BadBackup::NoBackup),
            (4, 2, BadBackup::NewerFormat { found: 2 }),
            (5, 2, BadBackup::NotWhole),
            (6, 0xff, BadBackup::NotWhole),
            (7, 1, BadBackup::NotWhole),
        ] {
            let mut changed = sound.clone();
            changed[at] = byte;
            assert_eq!(
                Parts::of(&changed).expect_err("refused"),
                expected,
                "byte {at}"
            );
        }
    }
}
