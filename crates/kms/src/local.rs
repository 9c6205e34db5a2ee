//! Provider `local`: named keys with versions in an SQLite file on this host, sealed by a master key.
//!
//! ```text
//! master key (file · credential · passphrase)
//!     └─ seals ─▶ key material, one for each version of a named key     (in the database)
//!                     └─ wraps ─▶ volume keys                           (with the volumes)
//! ```
//! What always holds:
//! - a wrong master key is recognised by the database's check value before anything else is done;
//! - a key and its first version come to be together or not at all;
//! - material is random, made in locked memory, and bound to its key's id, its version and its
//!   database: rows cannot be swapped;
//! - a wrapped key is opened by the key and version it names, if that is the key the caller named;
//! - the master key of an existing database is never made anew.
//!
//! It does not keep whoever can read both database and master key from the keys, nor root.
//! `LOCAL.md` describes the file for those who have to read it without this program.

mod database;
mod master_key;
pub(crate) mod place;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use sealvol_control::keychild::{KeyDescription, KeyState, LocalService, MasterKey, Wrapped};
use sealvol_crypto::locked::KeyMemory;
use sealvol_crypto::wrap::{self, WrapError};
use sealvol_crypto::{EncryptionContext, KeyEncryptionKey, KeyError, VolumeKey, random};
use uuid::Uuid;

use crate::confinement::Needs;
use crate::{KeyService, Refusal, Unwrapped, WrappedUnder};
use database::{Database, KeyRow, Meta};
use master_key::Source;

/// What wraps and seals.
const ALGORITHM: &str = "AES-256-GCM";

/// Longest name of a key in bytes, as that of an AWS KMS alias.
const NAME_MAX: usize = 256;

/// Version in the header of the check value; those of keys begin at 1.
const CHECK_VERSION: u32 = 0;

/// An open database with its master key.
pub struct Local {
    provider: String,
    database: Database,
    database_id: [u8; 16],
    master: KeyEncryptionKey,
    memory: Arc<KeyMemory>,
}

/// What this provider needs of the file system. Makes the database's directory if `create`: the
/// confinement must name what exists.
pub(crate) fn needs(service: &LocalService, create: bool) -> Result<Needs, Refusal> {
    let mut needs = Needs::NOTHING;
    // SQLite seeds its own generator there, for the names and nonces of journals.
    needs.files.push("/dev/urandom".into());
    if create {
        place::create_directory(&service.database)?;
    }
    needs
        .directories
        .push(place::parent(&service.database)?.to_owned());
    match &service.master_key {
        MasterKey::Credential { directory, name } => {
            needs
                .files
                .push(master_key::credential_path(directory, name)?);
        }
        MasterKey::File { path } if create && !path.exists() => {
            needs.directories.push(place::parent(path)?.to_owned());
        }
        MasterKey::File { path } => needs.files.push(path.clone()),
        MasterKey::Passphrase => {}
    }
    Ok(needs)
}

impl Local {
    /// Opens the provider `name`; makes database and master key file where they are missing if
    /// `create`. `passphrase` is what came with the batch.
    ///
    /// # Errors
    /// When the files are not there or not safe, or the master key is not the right one.
    pub fn open(
        name: &str,
        service: &LocalService,
        create: bool,
        passphrase: Option<&OwnedFd>,
        memory: &Arc<KeyMemory>,
    ) -> Result<Self, Refusal> {
        let database = Database::open(&service.database, create)?;
        let source = Source {
            configured: &service.master_key,
            passphrase,
        };
        let mut meta = database.meta()?;
        if meta.is_none() && create {
            database.initialise(|| new_meta(&source, memory))?;
            meta = database.meta()?;
        }
        let Some(Meta {
            id,
            form,
            master_check,
        }) = meta
        else {
            return Err(Refusal::NoDatabase {
                path: service.database.clone(),
            });
        };
        let master = source.read(form, memory)?;
        match master.open(memory, &master_check, &context(&id, Use::MasterCheck)) {
            Ok(_) => {}
            Err(WrapError::Refused) => {
                return Err(Refusal::WrongMasterKey {
                    path: service.database.clone(),
                });
            }
            Err(WrapError::Locked(error)) => return Err(error.into()),
            Err(error) => {
                let reason = format!("check value of the master key: {error}");
                return Err(Refusal::DatabaseDamaged {
                    path: service.database.clone(),
                    reason,
                });
            }
        }
        Ok(Self {
            provider: name.to_owned(),
            database,
            database_id: id,
            master,
            memory: Arc::clone(memory),
        })
    }

    /// The key that `key` names, by id or name.
    fn find(&self, key: &str) -> Result<KeyRow, Refusal> {
        let found = match as_id(key) {
            Some(id) => self.database.find_id(&id)?,
            None => self.database.find(key)?,
        };
        found.ok_or_else(|| Refusal::UnknownKey {
            key: self.reference(key),
        })
    }

    /// The key that `key` names, if it may be used.
    fn usable(&self, key: &str) -> Result<KeyRow, Refusal> {
        let row = self.find(key)?;
        match row.state {
            KeyState::Enabled => Ok(row),
            KeyState::Disabled => Err(Refusal::Disabled {
                key: self.reference(key),
            }),
        }
    }

    /// The material of a version, in locked memory.
    fn material(&self, row: &KeyRow, version: u32) -> Result<Option<KeyEncryptionKey>, Refusal> {
        let Some(sealed) = self.database.sealed(&row.id, version)? else {
            return Ok(None);
        };
        let changed = || Refusal::KeyMaterialChanged {
            key: self.reference(&row.name),
            version,
        };
        let header = KeyEncryptionKey::sealed_header(&sealed).map_err(|_| changed())?;
        if (header.key_id, header.key_version) != (row.id, version) {
            return Err(changed());
        }
        let context = context(&self.database_id, Use::KeyMaterial);
        match self.master.open(&self.memory, &sealed, &context) {
            Ok(key) => Ok(Some(key)),
            Err(WrapError::Locked(error)) => Err(error.into()),
            Err(_) => Err(changed()),
        }
    }

    fn open_wrapped(
        &self,
        wrapped: &WrappedUnder<'_>,
        memory: &Arc<KeyMemory>,
    ) -> Result<Unwrapped, Refusal> {
        let row = self.usable(wrapped.key)?;
        let key = || self.reference(wrapped.key);
        let changed = |error| match error {
            WrapError::Locked(error) => Refusal::LockedMemory(error),
            error => Refusal::WrappedKeyChanged {
                key: key(),
                reason: error.to_string(),
            },
        };
        let header = wrap::header(wrapped.blob).map_err(changed)?;
        if header.key_id != row.id {
            let (asked, found) = (id_text(&row.id), id_text(&header.key_id));
            return Err(Refusal::WrappedUnderOther {
                key: key(),
                asked,
                found,
            });
        }
        let version = header.key_version;
        let material = self
            .material(&row, version)?
            .ok_or_else(|| Refusal::UnknownVersion {
                key: key(),
                version,
            })?;
        let volume_key =
            wrap::unwrap(memory, &material, wrapped.blob, wrapped.context).map_err(changed)?;
        Ok(Unwrapped {
            volume_key,
            key_id: id_text(&row.id),
            key_version: version,
        })
    }

    /// Wraps under the latest version.
    fn wrap(
        &self,
        row: &KeyRow,
        volume_key: &VolumeKey,
        context: &EncryptionContext,
    ) -> Result<Wrapped, Refusal> {
        let key_version = self
            .database
            .versions(&row.id)?
            .last()
            .map_or(0, |last| last.version);
        let material = self.material(row, key_version)?.ok_or_else(|| {
            let reason = format!("key {} has no version", row.name);
            Refusal::DatabaseDamaged {
                path: self.database.path().to_owned(),
                reason,
            }
        })?;
        let blob = wrap::wrap(&material, &row.id, key_version, volume_key, context);
        Ok(Wrapped {
            key_id: id_text(&row.id),
            key_version,
            blob,
        })
    }

    fn description(&self, row: KeyRow) -> Result<KeyDescription, Refusal> {
        Ok(KeyDescription {
            key_id: id_text(&row.id),
            versions: self.database.versions(&row.id)?,
            name: row.name,
            state: row.state,
            created: row.created,
            algorithm: ALGORITHM.to_owned(),
        })
    }

    fn reference(&self, key: &str) -> String {
        format!("{}:{key}", self.provider)
    }
}

impl KeyService for Local {
    async fn create_key(&self, name: &str) -> Result<KeyDescription, Refusal> {
        check_name(name)?;
        let id = new_id();
        let material = KeyEncryptionKey::generate(&self.memory).map_err(key_error)?;
        let context = context(&self.database_id, Use::KeyMaterial);
        let sealed = self.master.seal(&material, &context, &id, 1);
        if self.database.insert_key(&id, name, &sealed)? {
            self.describe(name).await
        } else {
            Err(Refusal::KeyExists {
                key: self.reference(name),
            })
        }
    }

    async fn describe(&self, key: &str) -> Result<KeyDescription, Refusal> {
        self.description(self.find(key)?)
    }

    async fn generate(&self, key: &str, context: &EncryptionContext) -> Result<Wrapped, Refusal> {
        let row = self.usable(key)?;
        let volume_key = VolumeKey::generate(&self.memory).map_err(key_error)?;
        self.wrap(&row, &volume_key, context)
    }

    async fn list_keys(&self) -> Result<Vec<KeyDescription>, Refusal> {
        self.database
            .keys()?
            .into_iter()
            .map(|row| self.description(row))
            .collect()
    }

    async fn rewrap(
        &self,
        from: &WrappedUnder<'_>,
        key: &str,
        context: &EncryptionContext,
    ) -> Result<Wrapped, Refusal> {
        let row = self.usable(key)?;
        let opened = self.open_wrapped(from, &self.memory)?;
        self.wrap(&row, &opened.volume_key, context)
    }

    async fn unwrap(
        &self,
        wrapped: &WrappedUnder<'_>,
        memory: &Arc<KeyMemory>,
    ) -> Result<Unwrapped, Refusal> {
        self.open_wrapped(wrapped, memory)
    }
}

/// What a sealed key is for: part of what it is bound to.
#[derive(Clone, Copy)]
enum Use {
    KeyMaterial,
    MasterCheck,
}

fn context(database_id: &[u8; 16], purpose: Use) -> EncryptionContext {
    let purpose = match purpose {
        Use::KeyMaterial => "key material",
        Use::MasterCheck => "master key check",
    };
    EncryptionContext::new([
        ("sealvol-local:database", id_text(database_id)),
        ("sealvol-local:use", purpose.to_owned()),
    ])
    .expect("the two names differ and the values are short")
}

/// A new database's `meta`: its check value is a throw-away key that only the master key opens.
fn new_meta(source: &Source<'_>, memory: &Arc<KeyMemory>) -> Result<Meta, Refusal> {
    let id = new_id();
    let (master, form) = source.read_or_make(memory)?;
    let check = KeyEncryptionKey::generate(memory).map_err(key_error)?;
    let master_check = master.seal(&check, &context(&id, Use::MasterCheck), &id, CHECK_VERSION);
    Ok(Meta {
        id,
        form,
        master_check,
    })
}

fn check_name(name: &str) -> Result<(), Refusal> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '/' | '-');
    let reason = if name.is_empty() || name.len() > NAME_MAX {
        "a name has 1 to 256 bytes"
    } else if !name.chars().all(allowed) {
        "a name is made of letters, digits and . _ / -"
    } else if Uuid::try_parse(name).is_ok() {
        "it looks like the id of a key"
    } else {
        return Ok(());
    };
    Err(Refusal::BadKeyName {
        name: name.chars().take(NAME_MAX).collect(),
        reason,
    })
}

/// The id that `key` is, if it is one as [`id_text`] writes them.
fn as_id(key: &str) -> Option<[u8; 16]> {
    let id = Uuid::try_parse(key).ok()?;
    (id.to_string() == key).then(|| id.into_bytes())
}

fn id_text(id: &[u8; 16]) -> String {
    Uuid::from_bytes(*id).to_string()
}

fn new_id() -> [u8; 16] {
    let mut id = [0; 16];
    random(&mut id);
    uuid::Builder::from_random_bytes(id)
        .into_uuid()
        .into_bytes()
}

fn key_error(error: KeyError) -> Refusal {
    match error {
        KeyError::Locked(error) => error.into(),
        error => Refusal::VolumeKey {
            reason: error.to_string(),
        },
    }
}
