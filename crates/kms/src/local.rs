//! Provider `local`: named keys with versions in an SQLite file on this host, sealed by a master key.
//!
//! ```text
//! master key (file · credential · passphrase · shares · wrapped by another key service)
//!     └─ seals ─▶ key material, one for each version of a named key     (in the database)
//!                     └─ wraps ─▶ volume keys                           (with the volumes)
//! ```
//! What always holds:
//! - a wrong master key is recognised by the database's check value before anything else is done;
//! - a key and its first version come to be together or not at all;
//! - material is random, made in locked memory, and bound to its key's id, its version and its
//!   database: rows cannot be swapped;
//! - a wrapped key is opened by the key and version it names, if that is the key the caller named;
//! - the master key of an existing database is never made anew;
//! - what is said of keys (names, states, versions, deadlines) stands under a MAC by the master key, and a table older than the
//!   one that the caller relies on is refused;
//! - what was shredded is refused for ever, wherever a wrapped copy comes from.
//!
//! It does not keep whoever can read both database and master key from the keys, nor root.
//! `LOCAL.md` describes the file for those who have to read it without this program.

mod aliases;
pub(crate) mod backup;
pub mod clock;
mod database;
mod import;
mod lifecycle;
pub(crate) mod master_key;
mod opening;
pub(crate) mod place;
mod policy;
mod schema;
pub(crate) mod shares;
mod table;
mod tombstones;
mod unwrapping;
pub(crate) mod wrapped;

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use rusqlite::{Transaction, params};
use sealvol_control::keychild::{
    ALIAS_PREFIX, AliasChange, AliasChanged, BackupMade, ImportParameters, KeyChange,
    KeyDescription, KeyState, Lifecycle, LocalService, Origin, Principal, Right, TableState,
    Tended, Tombstones, Wrapped, WrappingAlgorithm, WrappingKeySpec,
};
use sealvol_crypto::locked::KeyMemory;
use sealvol_crypto::wrap::{self, WrapError};
use sealvol_crypto::{EncryptionContext, KeyEncryptionKey, KeyError, VolumeKey, random};
use uuid::Uuid;

use crate::confinement::Needs;
use crate::{KeyService, Refusal, Unwrapped, WrappedUnder};
use clock::{Clock, Now};
use database::{Database, Meta};
use import::Import;
use master_key::Source;
use opening::{check_master, check_relied_on, close_table, migrate, new_meta, verify};
use table::{Cause, Key, Table, signed};
pub use wrapped::DataKeys;

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
    clock: Box<dyn Clock>,
    accepted: bool,
    principal: Principal,
    right: Right,
    sink: Option<File>,
    /// What the database says, and SQLite's number of that state.
    table: RefCell<(i64, Rc<Table>)>,
}

/// How a provider is opened.
pub struct Opening<'a> {
    /// The provider's name.
    pub name: &'a str,
    /// Its configuration.
    pub service: &'a LocalService,
    /// Make database and master key file where they are missing.
    pub create: bool,
    /// What came with the batch.
    pub passphrase: Option<&'a OwnedFd>,
    /// The key service that wraps the master key, where one does.
    pub data_keys: Option<&'a dyn DataKeys>,
    /// What a backup is written to.
    pub sink: Option<File>,
    /// The newest table that the caller has seen.
    pub relied_on: Option<&'a TableState>,
    /// Go on from an older table all the same: it counts as newer from then on.
    pub accept_table: bool,
    /// In whose name it is used.
    pub principal: Principal,
    /// Under which right.
    pub right: Right,
    /// Where the time comes from.
    pub clock: Box<dyn Clock>,
}

/// What this provider needs of the file system. Makes the database's directory if `create`: the
/// confinement must name what exists.
pub(crate) fn needs(service: &LocalService, create: bool) -> Result<Needs, Refusal> {
    let mut needs = Needs::NOTHING;
    // SQLite seeds its own generator there, for the names and nonces of journals.
    needs.files.push("/dev/urandom".into());
    needs.files.push(clock::BOOT_ID.into());
    if create {
        place::create_directory(&service.database)?;
    }
    needs
        .directories
        .push(place::parent(&service.database)?.to_owned());
    master_key::needs(&service.master_key, create, &mut needs)?;
    Ok(needs)
}

impl Local {
    /// Opens the provider.
    ///
    /// # Errors
    /// When the files are not there or not safe, the master key is not the right one, or the table of keys was changed by
    /// somebody else or is older than the one that is relied on.
    pub fn open(opening: Opening<'_>, memory: &Arc<KeyMemory>) -> Result<Self, Refusal> {
        let service = opening.service;
        let database = Database::open(&service.database, opening.create)?;
        let source = Source {
            configured: &service.master_key,
            passphrase: opening.passphrase,
            data_keys: opening.data_keys,
        };
        let read_clock = || opening.clock.read().map_err(no_clock);
        let (mut meta, mut relied_on) = (database.meta()?, opening.relied_on);
        if meta.is_none() && opening.create {
            let reading = read_clock()?;
            let close = |transaction: &Transaction<'_>, meta: &Meta, master| {
                let now = Now {
                    wall: reading.wall / 1000,
                    counted: 0,
                    reading,
                };
                close_table(transaction, &master, &meta.id, &now)
                    .map(|_| ())
                    .map_err(|error| database.fault(error))
            };
            database.initialise(reading.wall / 1000, || new_meta(&source, memory), close)?;
            meta = database.meta()?;
            relied_on = None;
        }
        let Some(meta) = meta else {
            return Err(Refusal::NoDatabase {
                path: service.database.clone(),
            });
        };
        let master = source.read(meta.form, memory)?;
        check_master(&master, &meta, &service.database, memory)?;
        source.settle(&master, memory)?;
        if opening.accept_table {
            // It is judged by its MAC alone; what the caller relied on counts again from the change on.
            relied_on = None;
        }
        if meta.format < schema::FORMAT {
            migrate(&database, &master, &meta, relied_on, read_clock()?)?;
        }
        let state = database.data_version()?;
        let mut table = database.table()?;
        let now = now(&table, read_clock()?);
        table.settle(&now);
        let table = (state, Rc::new(table));
        let local = Self {
            provider: opening.name.to_owned(),
            database,
            database_id: meta.id,
            master,
            memory: Arc::clone(memory),
            clock: opening.clock,
            accepted: opening.accept_table,
            principal: opening.principal,
            right: opening.right,
            sink: opening.sink,
            table: RefCell::new(table),
        };
        let table = Rc::clone(&local.table.borrow().1);
        local.verify(&table)?;
        check_relied_on(&local.database, &meta, Some(&table), relied_on)?;
        if opening.accept_table {
            let beyond = opening.relied_on.map_or(0, |relied_on| relied_on.version);
            local.change(|transaction, _, _| {
                let sql = "UPDATE meta SET changes = max(changes, ?1)";
                local.execute(transaction, sql, [signed(beyond)])
            })?;
        }
        Ok(local)
    }

    /// What the database says now, authenticated.
    fn table(&self) -> Result<Rc<Table>, Refusal> {
        let state = self.database.data_version()?;
        let mut cached = self.table.borrow_mut();
        if cached.0 != state {
            let mut table = self.database.table()?;
            self.verify(&table)?;
            table.settle(&now(&table, self.clock.read().map_err(no_clock)?));
            *cached = (state, Rc::new(table));
        }
        Ok(Rc::clone(&cached.1))
    }

    fn verify(&self, table: &Table) -> Result<(), Refusal> {
        verify(&self.database, &self.master, &self.database_id, table)
    }

    /// One change: what `work` does to the table that it is given, counted and authenticated, or nothing at all.
    fn change<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>, &Table, &Now) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let fault = |error| self.database.fault(error);
        let transaction = self.database.write()?;
        let mut table = Table::load(&transaction).map_err(fault)?;
        self.verify(&table)?;
        let now = now(&table, self.clock.read().map_err(no_clock)?);
        table.settle(&now);
        let done = work(&transaction, &table, &now)?;
        let mut table =
            close_table(&transaction, &self.master, &self.database_id, &now).map_err(fault)?;
        table.settle(&now);
        transaction.commit().map_err(fault)?;
        *self.table.borrow_mut() = (self.database.data_version()?, Rc::new(table));
        Ok(done)
    }

    /// The key that `key` names, by id, name or alias.
    fn find_in<'t>(&self, table: &'t Table, key: &str) -> Result<&'t Key, Refusal> {
        let has_alias = |found: &&Key| found.aliases.iter().any(|alias| alias == key);
        self.find_key_in(table, key)
            .or_else(|refusal| table.keys.iter().find(has_alias).ok_or(refusal))
    }

    /// The key that `key` names, by id or name: what changes a key takes no alias for it, as with AWS KMS.
    fn find_key_in<'t>(&self, table: &'t Table, key: &str) -> Result<&'t Key, Refusal> {
        let id = as_id(key);
        let named = |found: &&Key| id.map_or(found.name == key, |id| found.id == id);
        let found = table.keys.iter().find(named);
        found.ok_or_else(|| {
            let is_alias = |found: &Key| found.aliases.iter().any(|alias| alias == key);
            let reference = self.reference(key);
            if table.keys.iter().any(is_alias) {
                Refusal::AliasForKey { alias: reference }
            } else {
                Refusal::UnknownKey { key: reference }
            }
        })
    }

    /// The key that `key` names, if the principal may use it so, the context is of nothing that was shredded, and its state
    /// allows it.
    fn usable<'t>(
        &self,
        table: &'t Table,
        key: &str,
        action: Right,
        context: &EncryptionContext,
    ) -> Result<&'t Key, Refusal> {
        let found = self.find_in(table, key)?;
        self.permit(found, action, Some(context))?;
        self.check_not_buried(table, found, context)?;
        self.check_usable(found)?;
        Ok(found)
    }

    /// The material of a version, in locked memory.
    fn material(&self, row: &Key, version: u32) -> Result<Option<KeyEncryptionKey>, Refusal> {
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
        action: Right,
        memory: &Arc<KeyMemory>,
    ) -> Result<Unwrapped, Refusal> {
        let table = self.table()?;
        let row = self.usable(&table, wrapped.key, action, wrapped.context)?;
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
            .material(row, version)?
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
        row: &Key,
        volume_key: &VolumeKey,
        context: &EncryptionContext,
    ) -> Result<Wrapped, Refusal> {
        let key_version = row.latest().unwrap_or(0);
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
            commitment: Some(volume_key.commitment().0),
        })
    }

    fn description(&self, key: &Key) -> KeyDescription {
        let pending = key.state == KeyState::PendingDeletion;
        // As AWS KMS tells it: off while the key waits for its destruction, and on again when that is taken back.
        let rotation = key.rotation.filter(|_| !pending);
        KeyDescription {
            key_id: id_text(&key.id),
            name: key.name.clone(),
            state: key.state,
            versions: key
                .versions
                .iter()
                .map(|version| version.told.clone())
                .collect(),
            created: key.created,
            algorithm: ALGORITHM.to_owned(),
            creates_without_plaintext: false,
            aliases: key.aliases.clone(),
            lifecycle: Lifecycle {
                rotation_days: rotation.map(|rotation| rotation.days),
                next_rotation: rotation.map(|rotation| rotation.next.wall),
                deletion: key
                    .deletion
                    .filter(|_| pending)
                    .map(|deadline| deadline.wall),
                origin: key.origin(),
                material_expires: key
                    .external
                    .as_ref()
                    .and_then(|external| external.expires)
                    .map(|deadline| deadline.wall),
            },
        }
    }

    fn reference(&self, key: &str) -> String {
        format!("{}:{key}", self.provider)
    }
}

impl KeyService for Local {
    fn accept_table(&self) -> Result<(), Refusal> {
        if self.accepted {
            Ok(())
        } else {
            Err(Refusal::NotFirst)
        }
    }

    async fn back_up(&self, recovery_key: &[u8]) -> Result<BackupMade, Refusal> {
        Self::back_up(self, recovery_key)
    }

    async fn change_key(&self, key: &str, change: &KeyChange) -> Result<KeyDescription, Refusal> {
        self.carry_out(key, change)
    }

    async fn change_alias(
        &self,
        alias: &str,
        change: &AliasChange,
    ) -> Result<AliasChanged, Refusal> {
        self.carry_out_on_alias(alias, change)
    }

    async fn create_key(&self, name: &str, origin: Origin) -> Result<KeyDescription, Refusal> {
        check_name(name)?;
        let id = new_id();
        let sealed = match origin {
            Origin::External => Vec::new(),
            Origin::Local => {
                let material = KeyEncryptionKey::generate(&self.memory).map_err(key_error)?;
                let context = context(&self.database_id, Use::KeyMaterial);
                self.master.seal(&material, &context, &id, 1)
            }
        };
        self.change(|transaction, table, now| {
            if table.keys.iter().any(|key| key.name == name) {
                let key = self.reference(name);
                return Err(Refusal::KeyExists { key });
            }
            let created = signed(now.wall);
            self.execute(
                transaction,
                "INSERT INTO keys (id, name, state, created) VALUES (?1, ?2, 'enabled', ?3)",
                params![id, name, created],
            )?;
            self.execute(
                transaction,
                "INSERT INTO versions (key_id, version, created, cause, sealed) VALUES (?1, 1, ?2, ?3, ?4)",
                params![id, created, Cause::Created.as_str(), sealed],
            )?;
            if origin == Origin::Local {
                return Ok(());
            }
            let sql = "INSERT INTO external_keys (key_id, material) VALUES (?1, 'none')";
            self.execute(transaction, sql, params![id])
        })?;
        self.describe(name).await
    }

    async fn describe(&self, key: &str) -> Result<KeyDescription, Refusal> {
        Ok(self.description(self.find_in(&*self.table()?, key)?))
    }

    async fn generate(&self, key: &str, context: &EncryptionContext) -> Result<Wrapped, Refusal> {
        let table = self.table()?;
        let row = self.usable(&table, key, Right::Create, context)?;
        let volume_key = VolumeKey::generate(&self.memory).map_err(key_error)?;
        self.wrap(row, &volume_key, context)
    }

    async fn import_key_material(
        &self,
        key: &str,
        material: &[u8],
        token: &[u8],
        expires: Option<u64>,
    ) -> Result<KeyDescription, Refusal> {
        let import = Import {
            material,
            token,
            expires,
        };
        self.import(key, import)
    }

    async fn import_parameters(
        &self,
        key: &str,
        spec: WrappingKeySpec,
        algorithm: WrappingAlgorithm,
    ) -> Result<ImportParameters, Refusal> {
        self.make_import_key(key, spec, algorithm)
    }

    async fn list_keys(&self) -> Result<Vec<KeyDescription>, Refusal> {
        let table = self.table()?;
        Ok(table.keys.iter().map(|key| self.description(key)).collect())
    }

    async fn policy(&self, key: &str) -> Result<Option<String>, Refusal> {
        self.policy_of(key)
    }

    async fn rewrap(
        &self,
        from: &WrappedUnder<'_>,
        key: &str,
        context: &EncryptionContext,
    ) -> Result<Wrapped, Refusal> {
        let table = self.table()?;
        let row = self.usable(&table, key, self.right, context)?;
        let opened = self.open_wrapped(from, self.right, &self.memory)?;
        self.wrap(row, &opened.volume_key, context)
    }

    async fn set_policy(
        &self,
        key: &str,
        policy: Option<&str>,
        bypass_lockout_check: bool,
    ) -> Result<(), Refusal> {
        self.put_policy(key, policy, bypass_lockout_check)
    }

    fn table_state(&self) -> Option<TableState> {
        let table = &self.table.borrow().1;
        Some(TableState {
            database: id_text(&self.database_id),
            version: table.changes,
            mac: table.mac.clone(),
        })
    }

    async fn tend(&self) -> Result<Tended, Refusal> {
        self.tend_keys()
    }

    async fn tombstone(&self, tombstones: &Tombstones) -> Result<(), Refusal> {
        self.bury(tombstones)
    }

    async fn unwrap(
        &self,
        wrapped: &WrappedUnder<'_>,
        memory: &Arc<KeyMemory>,
    ) -> Result<Unwrapped, Refusal> {
        self.open_wrapped(wrapped, Right::Attach, memory)
    }
}

/// What a sealed key is for: part of what it is bound to.
#[derive(Clone, Copy)]
enum Use {
    ImportKey,
    KeyMaterial,
    MasterCheck,
}

fn context(database_id: &[u8; 16], purpose: Use) -> EncryptionContext {
    let purpose = match purpose {
        Use::ImportKey => "import key",
        Use::KeyMaterial => "key material",
        Use::MasterCheck => "master key check",
    };
    EncryptionContext::new([
        ("sealvol-local:database", id_text(database_id)),
        ("sealvol-local:use", purpose.to_owned()),
    ])
    .expect("the two names differ and the values are short")
}

fn now(table: &Table, reading: clock::Reading) -> Now {
    Now {
        wall: reading.wall / 1000,
        counted: table.counted + reading.since(&table.seen),
        reading,
    }
}

fn no_clock(source: std::io::Error) -> Refusal {
    Refusal::system(std::path::Path::new(clock::BOOT_ID), source)
}

fn check_name(name: &str) -> Result<(), Refusal> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '/' | '-');
    let reason = if name.is_empty() || name.len() > NAME_MAX {
        "a name has 1 to 256 bytes"
    } else if !name.chars().all(allowed) {
        "a name is made of letters, digits and . _ / -"
    } else if Uuid::try_parse(name).is_ok() {
        "it looks like the id of a key"
    } else if name.starts_with(ALIAS_PREFIX) {
        "names that begin with alias/ are those of aliases"
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

pub(crate) fn id_text(id: &[u8; 16]) -> String {
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
