//! `key backup`.

use std::fs::File;
use std::io::{self, Seek as _};

use sealvol_control::api;
use sealvol_control::pem;

use crate::daemon::Daemon;
use crate::error::Error;
use crate::rights::Caller;

impl Daemon {
    /// `to` is the caller's: empty, and nobody else's yet.
    pub(crate) async fn back_up_keys(
        &self,
        caller: Caller,
        provider: &str,
        request: api::BackUpKeys,
        to: File,
    ) -> Result<api::KeyBackup, Error> {
        let recovery_key =
            pem::decode(request.recovery_key.as_bytes(), "PUBLIC KEY").ok_or_else(|| {
                let cause =
                    "the recovery key is no public key in PEM (`-----BEGIN PUBLIC KEY-----`)";
                Error::BadRequest(cause.to_owned())
            })?;
        let (made, backup) = self.keys.back_up(caller, provider, recovery_key).await?;
        let written = tokio::task::spawn_blocking(move || copy(backup, to)).await;
        let written = written.map_err(|error| Error::Internal(error.to_string()))?;
        let bytes = written.map_err(Error::BackupFile)?;
        if bytes != made.bytes {
            let cause = format!("a backup of {} bytes has {bytes}", made.bytes);
            return Err(Error::Internal(cause));
        }
        let recovery_key = &made.recovery_key;
        tracing::info!(
            provider,
            recovery_key,
            sha256 = made.sha256,
            "keys backed up"
        );
        Ok(api::KeyBackup {
            provider: provider.to_owned(),
            database: made.database,
            changes: made.changes,
            master_key: made.master_key,
            recovery_key: made.recovery_key,
            bytes,
            sha256: made.sha256,
        })
    }
}

fn copy(mut from: File, mut to: File) -> io::Result<u64> {
    from.rewind()?;
    let bytes = io::copy(&mut from, &mut to)?;
    to.sync_all()?;
    Ok(bytes)
}
