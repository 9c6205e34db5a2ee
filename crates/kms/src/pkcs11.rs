//! Provider `pkcs11`: keys in a token (a hardware security module, a smart card, SoftHSM) that a PKCS #11 module reaches.
//!
//! ```text
//! generate   64 random bytes in locked memory, C_Encrypt or C_WrapKey      tokens give no data key without its plaintext
//! unwrap     C_Decrypt, or C_UnwrapKey and C_GetAttributeValue
//! rewrap     both, in this process
//! ```
//! What always holds:
//! - the key that wraps never leaves the token: a key that could be taken out is not used;
//! - a wrapped key is bound to its encryption context, by AES-GCM's additional data or by a digest that is wrapped along;
//! - a key is named by its label or by a URI that selects and does nothing else ([`sealvol_control::pkcs11_uri`]);
//!   what names no key is refused before any module is loaded;
//! - a failure that says nothing of its cause is taken for tampering only if the token opens another wrapped key at that
//!   moment, and refuses this one again.
//!
//! The module is code of others that runs in this process, confined like it, and sees every volume key that it wraps and opens;
//! what it keeps of them in its own memory is not ours to wipe. `PKCS11.md` describes a wrapped key.

mod blob;
mod token;
mod verdict;

use std::cell::OnceCell;
use std::path::PathBuf;
use std::sync::Arc;

use cryptoki::error::Error;
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass};
use cryptoki::types::AuthPin;
use sealvol_control::keychild::{
    FailureClass, KeyDescription, KeyState, KeyVersion, Lifecycle, Origin, Pkcs11Service,
    WrapMechanism, Wrapped,
};
use sealvol_control::pkcs11_uri::{self, Pkcs11Uri};
use sealvol_crypto::locked::KeyMemory;
use sealvol_crypto::{
    EncryptionContext, KeyError, SecretBytes, VOLUME_KEY_BYTES, VolumeKey, constant_time_eq, random,
};
use zeroize::Zeroizing;

use crate::confinement::Needs;
use crate::refusal::Remote;
use crate::{KeyService, Refusal, Unwrapped, WrappedUnder, credential};
use blob::{Blob, NONCE_BYTES, PAYLOAD_BYTES, TAG_BITS, associated_data, binding};
use token::{Found, Token};

/// A token's keys have no versions.
const VERSION: u32 = 1;

/// Bytes of the `CKA_ID` of keys that are made here.
const ID_BYTES: usize = 16;

/// Longest label of a key that is made here.
const LABEL_MAX: usize = 64;

/// Where shared libraries and what finds them are, on any Linux.
const LIBRARIES: [&str; 7] = [
    "/etc/ld.so.cache",
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ssl/openssl.cnf",
];

/// A token as one batch uses it.
pub struct Pkcs11 {
    provider: String,
    service: Pkcs11Service,
    memory: Arc<KeyMemory>,
    /// The module's file, with all links resolved.
    module: PathBuf,
    pin: AuthPin,
    /// What became of the one attempt to log in.
    token: OnceCell<Result<Token, Remote>>,
}

/// What this provider needs of the system: the module with its libraries, and what the configuration says that it reaches.
pub(crate) fn needs(service: &Pkcs11Service) -> Result<Needs, Refusal> {
    let mut needs = Needs::NOTHING;
    let module = token::trusted_module(&service.module)?;
    needs.read.extend(module.parent().map(PathBuf::from));
    needs.read.extend(LIBRARIES.map(PathBuf::from));
    needs
        .read
        .extend(["/dev/urandom", "/dev/random"].map(PathBuf::from));
    needs.read.extend(service.read.iter().cloned());
    needs.write.extend(service.write.iter().cloned());
    needs.files.push(service.pin_file.clone());
    needs.ports.extend(service.ports.iter().copied());
    Ok(needs)
}

impl Pkcs11 {
    /// The provider `name`. Loads no module yet.
    ///
    /// # Errors
    /// When the PIN cannot be read, or others could have read or changed it or the module.
    pub fn open(
        name: &str,
        service: &Pkcs11Service,
        memory: &Arc<KeyMemory>,
    ) -> Result<Self, Refusal> {
        let module = token::trusted_module(&service.module)?;
        let pin = credential::read(&service.pin_file)?;
        Ok(Self {
            provider: name.to_owned(),
            service: service.clone(),
            memory: Arc::clone(memory),
            module,
            pin: AuthPin::new(pin.as_str().into()),
            token: OnceCell::new(),
        })
    }

    /// The token, logged in to once for the batch: a PIN that was refused is not tried again.
    fn token(&self) -> Result<&Token, Refusal> {
        let opened = self
            .token
            .get_or_init(|| Token::open(&self.service, &self.module, &self.provider, &self.pin));
        opened.as_ref().map_err(|remote| remote.clone().into())
    }

    /// What `key` selects.
    fn named(&self, key: &str) -> Result<Pkcs11Uri, Refusal> {
        if !key.starts_with(pkcs11_uri::SCHEME) {
            return Ok(Pkcs11Uri {
                object: Some(key.to_owned()),
                ..Pkcs11Uri::default()
            });
        }
        let uri = Pkcs11Uri::parse(key).map_err(|error| self.misnamed(error.to_string()))?;
        if uri.names_object() {
            Ok(uri)
        } else {
            Err(self.misnamed("pkcs11 URI: names no key: give its object or id".to_owned()))
        }
    }

    /// The key's own words are left out: they may hold a PIN.
    fn misnamed(&self, reason: String) -> Refusal {
        self.refusal(
            FailureClass::CallerBug,
            "ValidationException",
            format!("a key of provider {}", self.provider),
            reason,
            "name the key by its label, or as pkcs11:object=LABEL or pkcs11:id=%01%02",
        )
    }

    fn refusal(
        &self,
        class: FailureClass,
        said: &str,
        subject: String,
        reason: String,
        next_step: &'static str,
    ) -> Refusal {
        Refusal::Remote(Remote {
            class,
            said: said.to_owned(),
            subject,
            reason,
            retry_after: None,
            next_step,
        })
    }

    fn failed(&self, key: &str, error: &Error) -> Refusal {
        verdict::refused(error, &format!("key {}", self.reference(key))).into()
    }

    fn reference(&self, key: &str) -> String {
        format!("{}:{key}", self.provider)
    }

    /// The one key that `key` names.
    fn find(&self, key: &str) -> Result<Found, Refusal> {
        let uri = self.named(key)?;
        let token = self.token()?;
        let mut found = Vec::new();
        if token::is(&uri, &token.info) {
            found = token
                .find(uri.object.as_deref(), uri.id.as_deref())
                .map_err(|error| self.failed(key, &error))?;
        }
        match found.len() {
            1 => Ok(found.remove(0)),
            0 => Err(Refusal::UnknownKey {
                key: self.reference(key),
            }),
            several => Err(self.refusal(
                FailureClass::CallerBug,
                "InvalidKeyUsageException",
                format!("key {}", self.reference(key)),
                format!("{several} keys of the token are called so"),
                "name it by its id: pkcs11:id=%01%02",
            )),
        }
    }

    /// The one key that `key` names, if it may be used with `mechanism`.
    fn usable(&self, key: &str, mechanism: WrapMechanism) -> Result<Found, Refusal> {
        let found = self.find(key)?;
        let key = self.reference(key);
        if let Some(reason) = found.unsuitable() {
            return Err(self.refusal(
                FailureClass::CallerBug,
                "InvalidKeyUsageException",
                format!("key {key}"),
                reason.to_owned(),
                "have one made that stays in the token: sealvol key create",
            ));
        }
        if !found.enabled(mechanism) {
            return Err(self.refusal(
                FailureClass::KeyUnusable,
                "CKR_KEY_FUNCTION_NOT_PERMITTED",
                format!("key {key}"),
                format!("its attributes do not allow {}", algorithm(mechanism)),
                "let whoever looks after the token allow it: CKA_ENCRYPT and CKA_DECRYPT for CKM_AES_GCM, CKA_WRAP and \
                 CKA_UNWRAP for CKM_AES_KEY_WRAP_PAD",
            ));
        }
        Ok(found)
    }

    /// Wraps under a key that was looked up. What the token is given lies in locked memory.
    fn wrap(
        &self,
        key: &Found,
        mechanism: WrapMechanism,
        volume_key: &VolumeKey,
        context: &EncryptionContext,
    ) -> Result<Wrapped, Refusal> {
        let failed = |error: Error| self.failed(&key.label, &error);
        let token = self.token()?;
        let mut nonce = [0; NONCE_BYTES];
        random(&mut nonce);
        let mut secret = SecretBytes::new(&self.memory)?;
        let room = secret.grow(VOLUME_KEY_BYTES).map_err(too_long)?;
        volume_key.write_to(&mut &mut *room).map_err(no_key)?;
        let wrapped = match mechanism {
            WrapMechanism::AesGcm => {
                let associated = associated_data(context);
                // Some tokens choose the IV themselves and write it here.
                let params = GcmParams::new(&mut nonce, &associated, TAG_BITS.into());
                let mechanism = Mechanism::AesGcm(params.map_err(failed)?);
                token
                    .session
                    .encrypt(&mechanism, key.handle, secret.as_ref())
                    .map_err(failed)?
            }
            WrapMechanism::AesKeyWrapPad => {
                secret.push(&binding(&nonce, context)).map_err(too_long)?;
                self.wrap_object(token, key, secret.as_ref())
                    .map_err(failed)?
            }
        };
        let blob = Blob {
            mechanism,
            nonce,
            wrapped: &wrapped,
        };
        let bytes = blob.to_bytes();
        // A token that gives another length than the standards say is not understood.
        Blob::parse(&bytes).map_err(|_| {
            self.refusal(
                FailureClass::Transient,
                "ModuleUnusable",
                format!("key {}", self.reference(&key.label)),
                format!("the token gave {} bytes for a wrapped key", wrapped.len()),
                "choose the other `mechanism` in the configuration",
            )
        })?;
        Ok(Wrapped {
            key_id: Pkcs11Uri::of_key(&key.id, &key.label),
            key_version: VERSION,
            blob: bytes,
            commitment: Some(volume_key.commitment().0),
        })
    }

    /// `CKM_AES_KEY_WRAP_PAD` wraps objects: the secret is one as long as this takes.
    fn wrap_object(&self, token: &Token, key: &Found, secret: &[u8]) -> Result<Vec<u8>, Error> {
        let session = &token.session;
        let mut template = throw_away();
        template.push(Attribute::Value(secret.to_vec()));
        let object = session.create_object(&template)?;
        let wrapped = session.wrap_key(&Mechanism::AesKeyWrapPad, key.handle, object);
        session.destroy_object(object)?;
        wrapped
    }

    fn open_wrapped(
        &self,
        wrapped: &WrappedUnder<'_>,
        memory: &Arc<KeyMemory>,
    ) -> Result<Unwrapped, Refusal> {
        self.named(wrapped.key)?;
        let changed = |reason: String| Refusal::WrappedKeyChanged {
            key: self.reference(wrapped.key),
            reason,
        };
        let blob = match Blob::parse(wrapped.blob) {
            Ok(blob) => blob,
            Err(error) => {
                // A key that is gone, disabled or out of reach is told first: that is what can be done something about.
                self.usable(wrapped.key, self.token()?.mechanism)?;
                return Err(changed(error.to_string()));
            }
        };
        let key = self.usable(wrapped.key, blob.mechanism)?;
        let plain = match self.decrypt(&key, &blob, wrapped.context) {
            Err(error) if verdict::says_nothing(&error) => {
                self.try_throw_away(&key, blob.mechanism)?;
                self.decrypt(&key, &blob, wrapped.context)
                    .map_err(|again| {
                        if verdict::says_nothing(&again) {
                            changed(format!(
                                "the token opens others, and says {again} to this one"
                            ))
                        } else {
                            self.failed(wrapped.key, &again)
                        }
                    })?
            }
            other => other.map_err(|error| self.failed(wrapped.key, &error))?,
        };
        let (mut volume_key, rest) = plain
            .split_at_checked(VOLUME_KEY_BYTES)
            .ok_or_else(|| changed("what is in it is no volume key".to_owned()))?;
        let expected = match blob.mechanism {
            WrapMechanism::AesGcm => Vec::new(),
            WrapMechanism::AesKeyWrapPad => binding(&blob.nonce, wrapped.context).to_vec(),
        };
        if !constant_time_eq(rest, &expected) {
            return Err(changed(
                "it is bound to another encryption context".to_owned(),
            ));
        }
        let volume_key =
            VolumeKey::read_from(memory, &mut volume_key).map_err(|error| match error {
                KeyError::Locked(error) => Refusal::LockedMemory(error),
                error => changed(error.to_string()),
            })?;
        Ok(Unwrapped {
            volume_key,
            key_id: Pkcs11Uri::of_key(&key.id, &key.label),
            key_version: VERSION,
        })
    }

    /// What the token has in a wrapped key. In ordinary memory, since the interface gives it so: wiped when it is dropped.
    fn decrypt(
        &self,
        key: &Found,
        blob: &Blob<'_>,
        context: &EncryptionContext,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let session = match self.token.get() {
            Some(Ok(token)) => &token.session,
            _ => return Err(Error::InvalidValue),
        };
        match blob.mechanism {
            WrapMechanism::AesGcm => {
                let mut nonce = blob.nonce;
                let associated = associated_data(context);
                let params = GcmParams::new(&mut nonce, &associated, TAG_BITS.into())?;
                let mechanism = Mechanism::AesGcm(params);
                session
                    .decrypt(&mechanism, key.handle, blob.wrapped)
                    .map(Zeroizing::new)
            }
            WrapMechanism::AesKeyWrapPad => {
                let mechanism = Mechanism::AesKeyWrapPad;
                let object =
                    session.unwrap_key(&mechanism, key.handle, blob.wrapped, &throw_away())?;
                let read = session.get_attributes(object, &[AttributeType::Value]);
                session.destroy_object(object)?;
                match read?.pop() {
                    Some(Attribute::Value(value)) if value.len() == PAYLOAD_BYTES => {
                        Ok(Zeroizing::new(value))
                    }
                    _ => Err(Error::InvalidValue),
                }
            }
        }
    }

    /// Whether the token wraps and opens under this key now: then it is the wrapped key before that was wrong.
    fn try_throw_away(&self, key: &Found, mechanism: WrapMechanism) -> Result<(), Refusal> {
        let context = EncryptionContext::default();
        let made = VolumeKey::generate(&self.memory).map_err(no_key)?;
        let wrapped = self.wrap(key, mechanism, &made, &context)?;
        let parsed = Blob::parse(&wrapped.blob).expect("it was just checked");
        self.decrypt(key, &parsed, &context)
            .map(drop)
            .map_err(|error| self.failed(&key.label, &error))
    }

    fn described(&self, key: &Found, mechanism: WrapMechanism) -> KeyDescription {
        let key_id = Pkcs11Uri::of_key(&key.id, &key.label);
        KeyDescription {
            name: if is_name(&key.label) {
                key.label.clone()
            } else {
                key_id.clone()
            },
            key_id,
            state: if key.enabled(mechanism) {
                KeyState::Enabled
            } else {
                KeyState::Disabled
            },
            // A token does not tell when a key was made.
            versions: vec![KeyVersion {
                version: VERSION,
                created: 0,
            }],
            created: 0,
            algorithm: algorithm(mechanism).to_owned(),
            creates_without_plaintext: false,
            aliases: Vec::new(),
            lifecycle: Lifecycle::default(),
        }
    }
}

impl KeyService for Pkcs11 {
    async fn create_key(&self, name: &str, origin: Origin) -> Result<KeyDescription, Refusal> {
        if origin == Origin::External {
            let call = "CreateKey with material from elsewhere";
            return Err(Refusal::Unsupported { call });
        }
        if !is_name(name) || name.len() > LABEL_MAX {
            return Err(self.misnamed(
                "a new key is called by a label of 1 to 64 printable characters, not by a URI"
                    .to_owned(),
            ));
        }
        match self.find(name) {
            Err(Refusal::UnknownKey { .. }) => {}
            Err(Refusal::Remote(remote)) if remote.said != "InvalidKeyUsageException" => {
                return Err(remote.into());
            }
            Ok(_) | Err(Refusal::Remote(_)) => {
                return Err(Refusal::KeyExists {
                    key: self.reference(name),
                });
            }
            Err(other) => return Err(other),
        }
        let token = self.token()?;
        let mut id = vec![0; ID_BYTES];
        random(&mut id);
        let gcm = token.mechanism == WrapMechanism::AesGcm;
        let template = [
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::ValueLen(32.into()),
            Attribute::Label(name.as_bytes().to_vec()),
            Attribute::Id(id),
            Attribute::Encrypt(gcm),
            Attribute::Decrypt(gcm),
            Attribute::Wrap(!gcm),
            Attribute::Unwrap(!gcm),
        ];
        token
            .writable()
            .and_then(|session| session.generate_key(&Mechanism::AesKeyGen, &template))
            .map_err(|error| self.failed(name, &error))?;
        self.describe(name).await
    }

    async fn describe(&self, key: &str) -> Result<KeyDescription, Refusal> {
        let found = self.find(key)?;
        Ok(self.described(&found, self.token()?.mechanism))
    }

    async fn generate(&self, key: &str, context: &EncryptionContext) -> Result<Wrapped, Refusal> {
        self.named(key)?;
        let mechanism = self.token()?.mechanism;
        let found = self.usable(key, mechanism)?;
        let volume_key = VolumeKey::generate(&self.memory).map_err(no_key)?;
        self.wrap(&found, mechanism, &volume_key, context)
    }

    async fn list_keys(&self) -> Result<Vec<KeyDescription>, Refusal> {
        let token = self.token()?;
        let found = token
            .find(None, None)
            .map_err(|error| self.failed("*", &error))?;
        // A token holds keys of others, too.
        let ours = found.iter().filter(|key| key.unsuitable().is_none());
        let mut keys: Vec<_> = ours
            .map(|key| self.described(key, token.mechanism))
            .collect();
        keys.sort_by(|a, b| (&a.name, &a.key_id).cmp(&(&b.name, &b.key_id)));
        Ok(keys)
    }

    async fn rewrap(
        &self,
        from: &WrappedUnder<'_>,
        key: &str,
        context: &EncryptionContext,
    ) -> Result<Wrapped, Refusal> {
        self.named(key)?;
        let mechanism = self.token()?.mechanism;
        let to = self.usable(key, mechanism)?;
        let opened = self.open_wrapped(from, &self.memory)?;
        self.wrap(&to, mechanism, &opened.volume_key, context)
    }

    async fn unwrap(
        &self,
        wrapped: &WrappedUnder<'_>,
        memory: &Arc<KeyMemory>,
    ) -> Result<Unwrapped, Refusal> {
        self.open_wrapped(wrapped, memory)
    }
}

/// Whether a label names its key as it is, without a URI.
fn is_name(label: &str) -> bool {
    let graphic = label.chars().all(|c| c.is_ascii_graphic());
    graphic && !label.is_empty() && !label.starts_with(pkcs11_uri::SCHEME)
}

/// What is said of an object that is there for one call only.
fn throw_away() -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ]
}

fn algorithm(mechanism: WrapMechanism) -> &'static str {
    match mechanism {
        WrapMechanism::AesGcm => "CKM_AES_GCM",
        WrapMechanism::AesKeyWrapPad => "CKM_AES_KEY_WRAP_PAD",
    }
}

fn too_long(error: sealvol_crypto::SecretTooLong) -> Refusal {
    Refusal::VolumeKey {
        reason: error.to_string(),
    }
}

fn no_key(error: KeyError) -> Refusal {
    match error {
        KeyError::Locked(error) => error.into(),
        error => Refusal::VolumeKey {
            reason: error.to_string(),
        },
    }
}
