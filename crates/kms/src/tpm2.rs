//! Provider `tpm2`: key-encryption keys sealed in a TPM 2.0 to the state of this machine.
//!
//! ```text
//! registers (PCRs) · counter
//!     └─ allow the TPM to open ─▶ a key-encryption key, sealed     (a file for each)
//!                                     └─ wraps ─▶ volume keys      (with the volumes, as those of `local`)
//! ```
//! What always holds:
//! - a key is made in locked memory and sealed to the registers as they are at that moment; only this TPM opens it, in that
//!   state, straight into locked memory again;
//! - a wrapped key is bound to its encryption context, and opens under the key it names, if that is the key the caller named;
//! - that the machine is in another state takes a key out of use, and nothing else: in the former state it opens again.
//!
//! It speaks to the TPM itself (`device`): eleven commands, so that keys lie in locked memory only. The C library would hold
//! them in its own, and the child could not start on a machine without it. `TPM2.md` describes the file for those who
//! have to open a key without this program.

mod device;
mod sealed;
mod verdict;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use sealvol_control::keychild::{
    KeyDescription, KeyState, KeyVersion, Lifecycle, Origin, Tpm2Service, Wrapped,
};
use sealvol_crypto::locked::KeyMemory;
use sealvol_crypto::wrap::{self, WrapError};
use sealvol_crypto::{EncryptionContext, KeyEncryptionKey, KeyError, VolumeKey, random};
use uuid::Uuid;

use crate::confinement::Needs;
use crate::local::place;
use crate::{KeyService, Refusal, Unwrapped, WrappedUnder};
use device::{Failure, Policy, Tpm, sealed_to};
use sealed::{Sealed, is_name};

/// What wraps.
const ALGORITHM: &str = "AES-256-GCM";

/// A sealed key has one version.
const VERSION: u32 = 1;

/// A TPM as one batch uses it.
pub struct Tpm2 {
    provider: String,
    service: Tpm2Service,
    memory: Arc<KeyMemory>,
    /// Keys that were unsealed in this batch.
    open: RefCell<BTreeMap<Uuid, Rc<KeyEncryptionKey>>>,
}

/// What this provider needs of the system. Makes the directory if `create`: the confinement must name what exists.
pub(crate) fn needs(service: &Tpm2Service, create: bool) -> Result<Needs, Refusal> {
    let mut needs = Needs::NOTHING;
    if create {
        place::create_directory(&service.directory.join("any"))?;
    }
    needs.directories.push(service.directory.clone());
    needs.write.push(service.device.clone());
    Ok(needs)
}

impl Tpm2 {
    /// The provider `name`. Says nothing to the TPM yet.
    #[must_use]
    pub fn new(name: &str, service: &Tpm2Service, memory: &Arc<KeyMemory>) -> Self {
        Self {
            provider: name.to_owned(),
            service: service.clone(),
            memory: Arc::clone(memory),
            open: RefCell::default(),
        }
    }

    /// The key that `key` names, by id or name.
    fn find(&self, key: &str) -> Result<(String, Sealed), Refusal> {
        let unknown = || Refusal::UnknownKey {
            key: self.reference(key),
        };
        let directory = &self.service.directory;
        let Some(id) = Uuid::try_parse(key).ok().filter(|id| id.to_string() == key) else {
            let sealed = sealed::named(directory, key)?.ok_or_else(unknown)?;
            return Ok((key.to_owned(), sealed));
        };
        let mut damaged = None;
        for (name, sealed) in sealed::all(directory)? {
            match sealed {
                Ok(sealed) if sealed.id == id => return Ok((name, sealed)),
                Ok(_) => {}
                Err(refusal) => damaged = Some(refusal),
            }
        }
        // A damaged one may be it: then it is not gone.
        Err(damaged.unwrap_or_else(unknown))
    }

    /// Asks the TPM, and takes out of it again what was put there.
    fn ask<T>(
        &self,
        subject: &str,
        work: impl FnOnce(&mut Tpm) -> Result<T, Failure>,
    ) -> Result<T, Refusal> {
        let told = |failure| verdict::refused(failure, subject.to_owned());
        let mut tpm = Tpm::open(&self.service.device).map_err(|error| told(error.into()))?;
        work(&mut tpm).map_err(told)
    }

    /// Does something under the key that others are sealed under.
    fn under_parent<T>(
        &self,
        tpm: &mut Tpm,
        work: impl FnOnce(&mut Tpm, u32) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        if let Some(persistent) = self.service.parent {
            return work(tpm, persistent);
        }
        let parent = tpm.primary()?;
        let done = work(tpm, parent);
        tpm.flush(parent)?;
        done
    }

    /// A key-encryption key, in locked memory.
    fn unseal(&self, name: &str, sealed: &Sealed) -> Result<Rc<KeyEncryptionKey>, Refusal> {
        if let Some(open) = self.open.borrow().get(&sealed.id) {
            return Ok(Rc::clone(open));
        }
        let (public, private) = sealed.parts().ok_or_else(|| self.damaged(name))?;
        let subject = format!("key {}", self.reference(name));
        let key = self.ask(&subject, |tpm| {
            let object =
                self.under_parent(tpm, |tpm, parent| tpm.load(parent, &public, &private))?;
            let key = tpm.unseal(object, &sealed.policy(), &self.memory);
            tpm.flush(object)?;
            key
        })?;
        let key = Rc::new(key);
        self.open.borrow_mut().insert(sealed.id, Rc::clone(&key));
        Ok(key)
    }

    fn damaged(&self, name: &str) -> Refusal {
        Refusal::SealedKeyDamaged {
            path: self.service.directory.join(name),
            reason: "its parts are not Base64".to_owned(),
        }
    }

    fn open_wrapped(
        &self,
        wrapped: &WrappedUnder<'_>,
        memory: &Arc<KeyMemory>,
    ) -> Result<Unwrapped, Refusal> {
        let (name, sealed) = self.find(wrapped.key)?;
        let kek = self.unseal(&name, &sealed)?;
        let changed = |error| match error {
            WrapError::Locked(error) => Refusal::LockedMemory(error),
            error => Refusal::WrappedKeyChanged {
                key: self.reference(wrapped.key),
                reason: error.to_string(),
            },
        };
        let header = wrap::header(wrapped.blob).map_err(changed)?;
        if header.key_id != sealed.id.into_bytes() {
            return Err(Refusal::WrappedUnderOther {
                key: self.reference(wrapped.key),
                asked: sealed.id.to_string(),
                found: Uuid::from_bytes(header.key_id).to_string(),
            });
        }
        let volume_key =
            wrap::unwrap(memory, &kek, wrapped.blob, wrapped.context).map_err(changed)?;
        Ok(Unwrapped {
            volume_key,
            key_id: sealed.id.to_string(),
            key_version: header.key_version,
        })
    }

    fn wrap(
        &self,
        name: &str,
        sealed: &Sealed,
        volume_key: &VolumeKey,
        context: &EncryptionContext,
    ) -> Result<Wrapped, Refusal> {
        let kek = self.unseal(name, sealed)?;
        let id = sealed.id.into_bytes();
        Ok(Wrapped {
            key_id: sealed.id.to_string(),
            key_version: VERSION,
            blob: wrap::wrap(&kek, &id, VERSION, volume_key, context),
            commitment: Some(volume_key.commitment().0),
        })
    }

    /// Whether the TPM would open it now.
    fn state(&self, name: &str, sealed: &Sealed) -> Result<KeyState, Refusal> {
        let (public, _) = sealed.parts().ok_or_else(|| self.damaged(name))?;
        let policy = sealed.policy();
        let subject = format!("key {}", self.reference(name));
        let holds = self.ask(&subject, |tpm| {
            let stands = match policy.counter {
                Some((index, wanted)) => tpm.counter(index)? == wanted,
                None => true,
            };
            Ok(stands && Some(tpm.digest(&policy)?.as_slice()) == sealed_to(&public))
        })?;
        Ok(if holds {
            KeyState::Enabled
        } else {
            KeyState::Disabled
        })
    }

    fn described(&self, name: String, sealed: &Sealed) -> Result<KeyDescription, Refusal> {
        let created = sealed.created;
        Ok(KeyDescription {
            key_id: sealed.id.to_string(),
            state: self.state(&name, sealed)?,
            name,
            versions: vec![KeyVersion {
                version: VERSION,
                created,
            }],
            created,
            algorithm: ALGORITHM.to_owned(),
            creates_without_plaintext: false,
            aliases: Vec::new(),
            lifecycle: Lifecycle::default(),
        })
    }

    fn reference(&self, key: &str) -> String {
        format!("{}:{key}", self.provider)
    }
}

impl KeyService for Tpm2 {
    async fn create_key(&self, name: &str, origin: Origin) -> Result<KeyDescription, Refusal> {
        if origin == Origin::External {
            let call = "CreateKey with material from elsewhere";
            return Err(Refusal::Unsupported { call });
        }
        if !is_name(name) {
            return Err(Refusal::BadKeyName {
                name: name.chars().take(128).collect(),
                reason: "a sealed key is called by 1 to 128 letters, digits and . _ -, and by no id",
            });
        }
        match self.find(name) {
            Err(Refusal::UnknownKey { .. }) => {}
            Ok(_) => {
                return Err(Refusal::KeyExists {
                    key: self.reference(name),
                });
            }
            Err(other) => return Err(other),
        }
        let key = KeyEncryptionKey::generate(&self.memory).map_err(no_key)?;
        let subject = format!("key {}", self.reference(name));
        let (policy, (public, private)) = self.ask(&subject, |tpm| {
            let counter = match self.service.counter {
                Some(index) => Some((index, tpm.counter(index)?)),
                None => None,
            };
            let policy = Policy {
                bank: self.service.bank,
                pcrs: self.service.pcrs.clone(),
                counter,
            };
            let digest = tpm.digest(&policy)?;
            let parts = self.under_parent(tpm, |tpm, parent| {
                tpm.seal(parent, &digest, &key, &self.memory)
            })?;
            Ok((policy, parts))
        })?;
        let sealed = Sealed::new(new_id(), now(), &policy, (&public, &private));
        // Not before it was seen to open: nothing is to be wrapped under a key that does not.
        self.unseal(name, &sealed)?;
        sealed::write(&self.service.directory, name, &sealed)?;
        self.described(name.to_owned(), &sealed)
    }

    async fn describe(&self, key: &str) -> Result<KeyDescription, Refusal> {
        let (name, sealed) = self.find(key)?;
        self.described(name, &sealed)
    }

    async fn extend_audit(&self, extension: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Refusal> {
        let index = self.service.audit.ok_or(Refusal::Unsupported {
            call: "ExtendAudit without `audit` in the configuration",
        })?;
        let subject = format!("index 0x{index:x} of {}", self.provider);
        self.ask(&subject, |tpm| {
            let before = tpm.extended(index)?;
            tpm.extend(index, extension)?;
            Ok((
                before.unwrap_or_default(),
                tpm.extended(index)?.unwrap_or_default(),
            ))
        })
    }

    async fn generate(&self, key: &str, context: &EncryptionContext) -> Result<Wrapped, Refusal> {
        let (name, sealed) = self.find(key)?;
        let volume_key = VolumeKey::generate(&self.memory).map_err(no_key)?;
        self.wrap(&name, &sealed, &volume_key, context)
    }

    async fn list_keys(&self) -> Result<Vec<KeyDescription>, Refusal> {
        let keys = match sealed::all(&self.service.directory) {
            // None was made yet.
            Err(Refusal::NoDirectory { .. }) => Vec::new(),
            other => other?,
        };
        keys.into_iter()
            .map(|(name, sealed)| self.described(name, &sealed?))
            .collect()
    }

    async fn rewrap(
        &self,
        from: &WrappedUnder<'_>,
        key: &str,
        context: &EncryptionContext,
    ) -> Result<Wrapped, Refusal> {
        let (name, sealed) = self.find(key)?;
        let opened = self.open_wrapped(from, &self.memory)?;
        self.wrap(&name, &sealed, &opened.volume_key, context)
    }

    async fn unwrap(
        &self,
        wrapped: &WrappedUnder<'_>,
        memory: &Arc<KeyMemory>,
    ) -> Result<Unwrapped, Refusal> {
        self.open_wrapped(wrapped, memory)
    }
}

fn new_id() -> Uuid {
    let mut id = [0; 16];
    random(&mut id);
    uuid::Builder::from_random_bytes(id).into_uuid()
}

/// Told, and never decided by.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

fn no_key(error: KeyError) -> Refusal {
    match error {
        KeyError::Locked(error) => error.into(),
        error => Refusal::VolumeKey {
            reason: error.to_string(),
        },
    }
}
