//! A master key that another key service protects: its file, and how it is made and opened. `LOCAL.md` describes it.
//!
//! ```text
//! key of the other service ── wraps ──▶ a data key ── seals (HKDF, AES-256-GCM) ──▶ the master key
//! (token, TPM, server)                  data-key                                    sealed            in one file
//! ```
//! The master key is sealed and not made of the data key, so that it can be any: that of a database which had it in a file
//! until then, and of which shares are kept for the day on which the other service is gone.
//!
//! What always holds:
//! - data key and master key lie in locked memory only; the file has neither;
//! - the data key is bound to this file and its use by a context that no volume can have;
//! - the file is made whole or not at all, never written over, and not before the data key in it was seen to open;
//! - a refusal of the other service keeps its class: an outage stays one.

use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use base64ct::{Base64, Encoding as _};
use sealvol_control::key_ref::KeyRef;
use sealvol_control::keychild::Wrapped;
use sealvol_crypto::locked::KeyMemory;
use sealvol_crypto::wrap::WrapError;
use sealvol_crypto::{EncryptionContext, KeyEncryptionKey, VolumeKey};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{new_id, place};
use crate::Refusal;

const FORMAT: u32 = 1;

/// The longest wrapped key, in Base64, and what is around it.
const FILE_MAX: u64 = 16 * 1024;

/// What this provider asks another one for: data keys under the key that protects its master key.
pub trait DataKeys {
    /// Has a data key made that is bound to `context`.
    ///
    /// # Errors
    /// As the other service refuses.
    fn generate(&self, context: &EncryptionContext) -> Result<Wrapped, Refusal>;

    /// Has one opened that `key` has wrapped, into locked memory.
    ///
    /// # Errors
    /// As the other service refuses.
    fn unwrap(
        &self,
        key: &str,
        blob: &[u8],
        context: &EncryptionContext,
    ) -> Result<VolumeKey, Refusal>;

    /// The key, for messages.
    fn by(&self) -> &KeyRef;
}

/// A wrapped master key, as it is in its file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct WrappedFile {
    format: u32,
    id: Uuid,
    /// Seconds since 1970 (UTC).
    created: u64,
    /// The resolved id of the key that wraps the data key, in its service's words.
    key: String,
    key_version: u32,
    /// Base64 of what that service made.
    data_key: String,
    /// Base64 of the master key under the data key.
    sealed: String,
}

/// What is in the file at `path`, if there is one.
pub(super) fn read(path: &Path) -> Result<Option<WrappedFile>, Refusal> {
    place::trusted_directory(path)?;
    let (file, found) = match place::open_to_read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|source| Refusal::MasterKeyMissing {
            path: path.to_owned(),
            source,
        })?,
    };
    place::check_private(path, &found)?;
    let mut text = Vec::new();
    file.take(FILE_MAX)
        .read_to_end(&mut text)
        .map_err(|source| Refusal::system(path, source))?;
    let file: WrappedFile =
        serde_json::from_slice(&text).map_err(|error| damaged(path, error.to_string()))?;
    if file.format == FORMAT {
        Ok(Some(file))
    } else {
        let found = file.format;
        let reason = format!("it has format {found}, and this program reads format {FORMAT}");
        Err(damaged(path, reason))
    }
}

/// The master key in `file`, which was read from `path`.
pub(super) fn open(
    path: &Path,
    file: &WrappedFile,
    service: &dyn DataKeys,
    memory: &Arc<KeyMemory>,
) -> Result<KeyEncryptionKey, Refusal> {
    let part = |text: &str| {
        Base64::decode_vec(text).map_err(|_| damaged(path, "a part of it is not Base64".to_owned()))
    };
    let context = context(file.id);
    let data_key = service
        .unwrap(&file.key, &part(&file.data_key)?, &context)
        .map_err(|refusal| through(service.by(), refusal))?;
    let sealing = KeyEncryptionKey::from_data_key(memory, &data_key, file.id.as_bytes())?;
    sealing
        .open(memory, &part(&file.sealed)?, &context)
        .map_err(|error| match error {
            WrapError::Locked(error) => error.into(),
            error => Refusal::WrappedMasterKeyChanged {
                path: path.to_owned(),
                reason: error.to_string(),
            },
        })
}

/// Makes the file of a wrapped master key at `path`, where there is none.
pub(super) fn make(
    path: &Path,
    master: &KeyEncryptionKey,
    service: &dyn DataKeys,
    memory: &Arc<KeyMemory>,
) -> Result<(), Refusal> {
    let id = Uuid::from_bytes(new_id());
    let context = context(id);
    let asked = |refusal| through(service.by(), refusal);
    let wrapped = service.generate(&context).map_err(asked)?;
    // Not before it was seen to open: nothing is to depend on a data key that does not.
    let data_key = service
        .unwrap(&wrapped.key_id, &wrapped.blob, &context)
        .map_err(asked)?;
    if wrapped
        .commitment
        .is_some_and(|commitment| commitment != data_key.commitment().0)
    {
        let reason = "what opens is another key than the one that was made".to_owned();
        return Err(asked(Refusal::VolumeKey { reason }));
    }
    let sealing = KeyEncryptionKey::from_data_key(memory, &data_key, id.as_bytes())?;
    let sealed = sealing.seal(master, &context, id.as_bytes(), 0);
    let file = WrappedFile {
        format: FORMAT,
        id,
        created: now(),
        key: wrapped.key_id,
        key_version: wrapped.key_version,
        data_key: Base64::encode_string(&wrapped.blob),
        sealed: Base64::encode_string(&sealed),
    };
    let system = |source| Refusal::system(path, source);
    let text = serde_json::to_string(&file).map_err(|error| system(error.into()))?;
    place::make_whole(path, |file| file.write_all(text.as_bytes()).map_err(system))
}

/// What the data key is bound to. A volume's has `sealvol:volume`, and no pair of this one.
fn context(id: Uuid) -> EncryptionContext {
    EncryptionContext::new([
        ("sealvol-local:master-key", id.to_string()),
        ("sealvol-local:use", "wrapped master key".to_owned()),
    ])
    .expect("the two names differ and the values are short")
}

/// A refusal of the service that wraps the master key.
pub(crate) fn through(by: &KeyRef, refusal: Refusal) -> Refusal {
    Refusal::MasterKeyService {
        by: by.clone(),
        source: Box::new(refusal),
    }
}

/// Told, and never decided by.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

fn damaged(path: &Path, reason: String) -> Refusal {
    Refusal::WrappedMasterKeyDamaged {
        path: path.to_owned(),
        reason,
    }
}
