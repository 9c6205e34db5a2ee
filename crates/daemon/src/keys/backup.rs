//! Backups of a provider's keys: the call, and its record.
//!
//! What always holds:
//! - a recovery key that is not in the configuration is taken from root and the daemon's own user only: whoever has its private
//!   half has every key of the provider, which is more than any right of the control API gives;
//! - the key child writes to memory of the daemon's; a caller gets none of it before its record stands.
//!
//! What passes through here is encrypted to a key that this host does not have.

use std::fs::File;

use rustix::fs::{MemfdFlags, memfd_create};
use sealvol_control::key_ref::KeyRef;
use sealvol_control::keychild::{BackupMade, Call, Done, Right};
use sealvol_crypto::sha256;

use super::{Attempts, Keys, mismatched};
use crate::audit::{Operation, Record};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::rights::Caller;

impl Keys {
    /// Has a backup of a provider's keys made, encrypted to a recovery key (SubjectPublicKeyInfo in DER).
    ///
    /// # Errors
    /// [`Error::RecoveryKeyNotAllowed`]. When the key service refuses or cannot be asked, or the record cannot be written.
    pub(crate) async fn back_up(
        &self,
        caller: Caller,
        provider: &str,
        recovery_key: Vec<u8>,
    ) -> Result<(BackupMade, File), Error> {
        let whole = KeyRef::new(provider, "*")?;
        let fingerprint = fingerprint(&recovery_key);
        let record = Record {
            key: Some(whole.to_string()),
            recovery_key: Some(fingerprint.clone()),
            ..Record::of(Operation::BackUpKeys, caller)
        };
        let made = self.make_backup(caller, &whole, recovery_key, fingerprint);
        self.record(record, made.await).await
    }

    async fn make_backup(
        &self,
        caller: Caller,
        whole: &KeyRef,
        recovery_key: Vec<u8>,
        fingerprint: String,
    ) -> Result<(BackupMade, File), Error> {
        self.provider(whole.provider())?;
        let own = [0, Daemon::itself().uid].contains(&caller.uid);
        if !own && !self.recovery_keys.contains(&fingerprint) {
            return Err(Error::RecoveryKeyNotAllowed {
                fingerprint,
                uid: caller.uid,
            });
        }
        let memory = memfd_create("sealvol-backup", MemfdFlags::CLOEXEC)
            .map(File::from)
            .map_err(|errno| Error::BackupFile(errno.into()))?;
        let calls = vec![Call::Backup { recovery_key }];
        let (right, attempts) = (Right::Administer, Attempts::One);
        let asked = self.ask_with(caller, right, whole, calls, attempts, Some(&memory));
        match asked.await?.results.pop() {
            Some(Ok(Done::Backup(made))) => Ok((made, memory)),
            Some(Ok(other)) => Err(mismatched(&other)),
            Some(Err(failure)) => Err(Error::Key {
                volume: None,
                failure: Box::new(failure),
            }),
            None => Err(Error::Internal(
                "the key child answered without a result".to_owned(),
            )),
        }
    }
}

/// SHA-256 of a public key in hexadecimal digits, as OpenSSL and sha256sum have it.
fn fingerprint(der: &[u8]) -> String {
    sha256(&[der])
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
