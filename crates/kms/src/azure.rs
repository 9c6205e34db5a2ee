//! Provider `azure-kv`: keys in an Azure Key Vault, which never leave it.
//!
//! ```text
//! generate   the key is made here, in locked memory; wrapkey      `create` identity
//! unwrap     unwrapkey, answer read into locked memory            `attach` identity
//! rewrap     unwrapkey, wrapkey: the vault has no call for it     `attach`, then `create`; in locked memory, as for `local`
//! ```
//! What is wrapped (RSA-OAEP-256): the volume key and a digest of its encryption context, since the vault takes no additional
//! data (`crates/crypto/FORMATS.md`, section 6). Whoever has the public key can make the same of a key of their own: that it is *this*
//! key is known by its commitment alone, which is returned with a new wrapped key.
//!
//! What always holds:
//! - a wrapped key names the version of the key that wrapped it, and is unwrapped by that one;
//! - the `create` identity is used for nothing before the vault has refused to unwrap for it with that key, unless the
//!   configuration allows one identity for everything;
//! - a key of another vault is refused before anybody is asked;
//! - an outage is [`FailureClass::Transient`], whatever a server says in it.

mod answer;
mod identity;
mod key_id;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64ct::{Base64UrlUnpadded, Decoder, Encoder, Encoding as _};
use bytes::Bytes;
use hyper::Method;
use hyper::header::{AUTHORIZATION, HeaderValue};
use sealvol_control::keychild::{
    Address, AzureService, FailureClass, Identity, KeyDescription, KeyState, KeyVersion, Lifecycle,
    Origin, Wrapped,
};
use sealvol_crypto::locked::KeyMemory;
use sealvol_crypto::{
    EncryptionContext, KeyError, SecretBytes, VOLUME_KEY_BYTES, VolumeKey, constant_time_eq, sha256,
};
use serde_json::json;
use tokio::sync::Mutex;

use crate::confinement::Needs;
use crate::http::{self, Answer, Body, Found, Question, Server};
use crate::refusal::Remote;
use crate::role::{PerRole, Role};
use crate::{KeyService, Refusal, Unwrapped, WrappedUnder};
use answer::{Asked, Bundle, Operation, Page, RECOVER, Verdict, verdict};
use identity::unanswered;
use key_id::KeyId;

/// What is asked for, and all that this file says of requests and answers is by.
const API_VERSION: &str = "api-version=7.4";

const ALGORITHM: &str = "RSA-OAEP-256";

/// Bytes of a digest of an encryption context.
const DIGEST_BYTES: usize = 32;

/// What a digest of an encryption context begins with.
const DIGEST_LABEL: &[u8] = b"sealvol v1 wrap context digest";

/// A volume key and a digest, in Base64 for URLs.
const SECRET_TEXT_BYTES: usize = (VOLUME_KEY_BYTES + DIGEST_BYTES) / 3 * 4;

/// Bytes of the moduli that such a key may have: 2048, 3072 and 4096 bits.
const MODULI: [usize; 3] = [256, 384, 512];

/// Most pages of a list; each has 25 keys.
const PAGES_MAX: usize = 100;

/// A vault as one batch uses it.
pub(crate) struct Azure {
    provider: String,
    service: AzureService,
    /// How URLs of the vault begin.
    origin: String,
    vault: Server,
    authority: Server,
    metadata: Server,
    memory: Arc<KeyMemory>,
    tokens: PerRole<HeaderValue>,
    /// Versions of keys that the `create` identity may not unwrap with, as this batch has learned.
    apart: Mutex<BTreeSet<String>>,
}

/// What this provider needs of the system: where its servers are, and the files of authorities and secrets.
pub(crate) fn needs(service: &AzureService) -> Result<Needs, Refusal> {
    let mut needs = Needs::NOTHING;
    let mut addresses = vec![&service.vault];
    for identity in service.create.iter().chain([&service.attach]) {
        match identity {
            Identity::ClientSecret { secret_file, .. } => {
                needs.files.push(PathBuf::clone(secret_file));
                addresses.push(&service.authority);
            }
            Identity::ManagedIdentity { .. } => addresses.push(&service.metadata),
        }
    }
    // Before the confinement: the resolver reads what it likes and asks over the network.
    for address in addresses {
        let found = Found::at(address)
            .map_err(|error| outage(address, &format!("cannot be found: {error}")))?;
        needs.connect.push(found);
    }
    needs.files.push(service.ca_file.clone());
    Ok(needs)
}

impl Azure {
    /// The provider `name`, whose servers are among those that were found. Says nothing to them yet.
    ///
    /// # Errors
    /// When the authorities' file or the configuration cannot be used.
    pub(crate) fn open(
        name: &str,
        service: &AzureService,
        found: &[Found],
        memory: &Arc<KeyMemory>,
    ) -> Result<Self, Refusal> {
        let unusable = |reason| Refusal::Configuration {
            provider: name.to_owned(),
            reason,
        };
        let path = &service.ca_file;
        let tls = http::tls(path)
            .map_err(|reason| unusable(format!("ca-file {}: {reason}", path.display())))?;
        let timeout = Duration::from_secs(service.timeout_s.into());
        let server = |address| Server::new(Found::among(found, address), Some(&tls), timeout);
        Ok(Self {
            provider: name.to_owned(),
            origin: service.vault.origin(),
            vault: server(&service.vault).map_err(unusable)?,
            authority: server(&service.authority).map_err(unusable)?,
            metadata: server(&service.metadata).map_err(unusable)?,
            service: service.clone(),
            memory: Arc::clone(memory),
            tokens: PerRole::new(),
            apart: Mutex::default(),
        })
    }

    /// Asks the vault, as `role`, about `key`.
    async fn ask(&self, role: Role, key: &KeyId, request: Request<'_>) -> Result<Body, Refusal> {
        let Request {
            method,
            path,
            body,
            secret,
            asked,
        } = request;
        let question = Question {
            method,
            path: if path.contains('?') {
                format!("/{path}&{API_VERSION}")
            } else {
                format!("/{path}?{API_VERSION}")
            },
            headers: vec![(AUTHORIZATION, self.token(role).await?)],
            body,
        };
        let answer = self.vault.ask(question, secret).await;
        let answer = answer.map_err(|failure| unanswered(&self.vault, &failure))?;
        if answer.status == 200 {
            return Ok(answer.body);
        }
        Err(self.refused(&answer, key, asked))
    }

    /// The authorization of a role; gets a token if that is what it takes.
    async fn token(&self, role: Role) -> Result<HeaderValue, Refusal> {
        let (create, attach) = (self.service.create.as_ref(), &self.service.attach);
        self.tokens
            .of(role, create, attach, async |identity| {
                self.authorization(identity).await
            })
            .await
    }

    /// What the vault says of a key; of one that it has put away, that it has.
    async fn bundle(&self, role: Role, key: &KeyId) -> Result<Bundle, Refusal> {
        let asked = self.ask(role, key, Request::get(&key.path())).await;
        match asked {
            Ok(body) => self.understood(serde_json::from_slice(body.as_ref())),
            Err(refusal) => Err(self.put_away(role, key, refusal).await),
        }
    }

    /// The refusal of a key that is not there: it may only have been put away, from where it can be brought back. Where that is
    /// not told, nobody knows.
    async fn put_away(&self, role: Role, key: &KeyId, refusal: Refusal) -> Refusal {
        if refusal.class() != FailureClass::GoneForEver {
            return refusal;
        }
        let reason = match self.deleted(role, key).await {
            Ok(_) => "is deleted, and can be recovered",
            Err(Refusal::Remote(remote)) if remote.class == FailureClass::NotPermitted => {
                "is not there; whether it was only deleted, or purged, the vault does not tell"
            }
            Err(Refusal::Remote(remote)) if remote.class == FailureClass::GoneForEver => {
                return refusal;
            }
            Err(other) => return other,
        };
        Refusal::Remote(Remote {
            class: FailureClass::KeyUnusable,
            said: "ObjectIsDeletedButRecoverable".to_owned(),
            subject: format!("key {}", self.reference(key)),
            reason: reason.to_owned(),
            retry_after: None,
            next_step: RECOVER,
        })
    }

    async fn deleted(&self, role: Role, key: &KeyId) -> Result<Bundle, Refusal> {
        let path = format!("deletedkeys/{}", key.name);
        let body = self.ask(role, key, Request::get(&path)).await?;
        self.understood(serde_json::from_slice(body.as_ref()))
    }

    /// A version of a key: the one that is named, else the newest.
    async fn resolved(&self, role: Role, key: &KeyId) -> Result<(KeyId, Bundle), Refusal> {
        let bundle = self.bundle(role, key).await?;
        let found = KeyId::parse(&bundle.key.kid, &self.origin);
        let found = found.map_err(|_| self.nonsense("a key of another vault"))?;
        let as_asked = key.version.is_none() || key.version == found.version;
        if found.name != key.name || found.version.is_none() || !as_asked {
            return Err(self.nonsense("another key than the one it was asked for"));
        }
        Ok((found, bundle))
    }

    /// A version of a key that may wrap, and the bytes of its modulus.
    async fn usable(&self, key: &str) -> Result<(KeyId, usize), Refusal> {
        let key = self.key_id(key)?;
        let (found, bundle) = self.resolved(Role::Create, &key).await?;
        // The vault itself wraps with a disabled key: what it would never unwrap.
        if bundle.attributes.enabled == Some(false) {
            return Err(Refusal::Disabled {
                key: self.reference(&key),
            });
        }
        let modulus = Base64UrlUnpadded::decode_vec(&bundle.key.n).unwrap_or_default();
        let bytes = modulus.iter().skip_while(|byte| **byte == 0).count();
        let reason = if !matches!(bundle.key.kty.as_str(), "RSA" | "RSA-HSM") {
            format!("is a key of type {}, not RSA", bundle.key.kty)
        } else if !MODULI.contains(&bytes) {
            format!("has a modulus of {} bits", bytes * 8)
        } else if !["wrapKey", "unwrapKey"]
            .iter()
            .all(|op| bundle.key.key_ops.iter().any(|has| has == op))
        {
            "may not be used for wrapKey and unwrapKey".to_owned()
        } else {
            return Ok((found, bytes));
        };
        Err(Refusal::UnsuitableKey {
            key: self.reference(&key),
            reason,
            next_step: "make one of type RSA or RSA-HSM, of 2048, 3072 or 4096 bits, for wrapKey and unwrapKey",
        })
    }

    /// Sees to it that the identity that has keys wrapped could not have one unwrapped: it tries, with a throw-away key. The
    /// vault has no call that tells what somebody may do.
    async fn keep_apart(&self, key: &KeyId, modulus: usize) -> Result<(), Refusal> {
        let path = key.path();
        if self.service.single_credential || self.apart.lock().await.contains(&path) {
            return Ok(());
        }
        let (throw_away, context) = (self.new_key()?, EncryptionContext::default());
        let blob = self.wrap(key, modulus, &throw_away, &context).await?.blob;
        let wrapped = WrappedUnder {
            key: &path,
            blob: &blob,
            context: &context,
        };
        let tried = self
            .unwrap_as(Role::Create, key, &wrapped, &self.memory)
            .await
            .map(drop);
        match tried.map_err(|refusal| (refusal.class(), refusal)) {
            Err((FailureClass::NotPermitted, _)) => {
                self.apart.lock().await.insert(path);
                Ok(())
            }
            Ok(()) | Err((FailureClass::WrongKeyOrTamper, _)) => {
                Err(Refusal::CredentialTooPowerful {
                    provider: self.provider.clone(),
                    reason: format!("may use unwrapKey with key {}", self.reference(key)),
                })
            }
            Err((_, refusal)) => Err(refusal),
        }
    }

    fn new_key(&self) -> Result<VolumeKey, Refusal> {
        VolumeKey::generate(&self.memory).map_err(|error| match error {
            KeyError::Locked(error) => error.into(),
            error => Refusal::VolumeKey {
                reason: error.to_string(),
            },
        })
    }

    /// Has the vault wrap a volume key that is in memory. The text of the question lies in locked memory.
    async fn wrap(
        &self,
        key: &KeyId,
        modulus: usize,
        volume_key: &VolumeKey,
        context: &EncryptionContext,
    ) -> Result<Wrapped, Refusal> {
        let mut body = SecretBytes::new(&self.memory)?;
        let write = |body: &mut SecretBytes| {
            body.push(format!(r#"{{"alg":"{ALGORITHM}","value":""#).as_bytes())
                .ok()?;
            let text = body.grow(SECRET_TEXT_BYTES).ok()?;
            let mut text = Encoder::<Base64UrlUnpadded>::new(text).ok()?;
            volume_key.write_to(&mut text).ok()?;
            text.encode(&digest(context)).ok()?;
            text.finish().ok()?;
            body.push(br#""}"#).ok()
        };
        write(&mut body).expect("a slot holds more than a key in Base64");
        let path = format!("{}/wrapkey", key.path());
        let request = Request {
            method: Method::POST,
            path: &path,
            body: Bytes::from_owner(body),
            secret: None,
            asked: Asked::Anything,
        };
        let answer = self.ask(Role::Create, key, request).await?;
        let wrapped: Operation<'_> = self.understood(serde_json::from_slice(answer.as_ref()))?;
        let key_id = format!("{}/{}", self.origin, key.path());
        let blob = Base64UrlUnpadded::decode_vec(wrapped.value).unwrap_or_default();
        if wrapped.kid != key_id || blob.len() != modulus {
            return Err(self.nonsense("what is not wrapped by the key that was asked for"));
        }
        Ok(Wrapped {
            key_id,
            // The version is a part of the id.
            key_version: VERSION,
            blob,
            commitment: Some(volume_key.commitment().0),
        })
    }

    async fn unwrap_as(
        &self,
        role: Role,
        key: &KeyId,
        wrapped: &WrappedUnder<'_>,
        memory: &Arc<KeyMemory>,
    ) -> Result<Unwrapped, Refusal> {
        let changed = |reason: &str| Refusal::WrappedKeyChanged {
            key: self.reference(key),
            reason: reason.to_owned(),
        };
        if !MODULI.contains(&wrapped.blob.len()) {
            return Err(changed("no RSA key makes one of that length"));
        }
        let value = Base64UrlUnpadded::encode_string(wrapped.blob);
        let path = format!("{}/unwrapkey", key.path());
        let request = Request {
            method: Method::POST,
            path: &path,
            body: json!({ "alg": ALGORITHM, "value": value })
                .to_string()
                .into(),
            secret: Some(SecretBytes::new(memory)?),
            asked: Asked::Unwrap,
        };
        let answer = self.ask(role, key, request).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(refusal) => return Err(self.put_away(role, key, refusal).await),
        };
        let opened: Operation<'_> = self.understood(serde_json::from_slice(answer.as_ref()))?;
        let text = opened.value.as_bytes();
        if text.len() != SECRET_TEXT_BYTES {
            return Err(changed(
                "what is in it is no volume key: it has another length",
            ));
        }
        let mut source = Decoder::<Base64UrlUnpadded>::new(text)
            .map_err(|_| self.nonsense("a value that is not Base64"))?;
        let volume_key =
            VolumeKey::read_from(memory, &mut source).map_err(|error| match error {
                KeyError::Locked(error) => error.into(),
                error => changed(&format!("what is in it is no volume key: {error}")),
            })?;
        let mut bound_to = [0; DIGEST_BYTES];
        if source.decode(&mut bound_to).is_err() {
            return Err(self.nonsense("a value that is not Base64"));
        }
        if !constant_time_eq(&bound_to, &digest(wrapped.context)) {
            return Err(changed("it is bound to another encryption context"));
        }
        Ok(Unwrapped {
            volume_key,
            key_id: format!("{}/{}", self.origin, key.path()),
            key_version: VERSION,
        })
    }

    async fn open_wrapped(
        &self,
        wrapped: &WrappedUnder<'_>,
        memory: &Arc<KeyMemory>,
    ) -> Result<Unwrapped, Refusal> {
        let mut key = self.key_id(wrapped.key)?;
        if key.version.is_none() {
            (key, _) = self.resolved(Role::Attach, &key).await?;
        }
        self.unwrap_as(Role::Attach, &key, wrapped, memory).await
    }

    /// A key, if it can be one of this vault and may be used.
    fn key_id(&self, key: &str) -> Result<KeyId, Refusal> {
        let id = KeyId::parse(key, &self.origin).map_err(|reason| Refusal::BadKeyName {
            name: key.to_owned(),
            reason,
        })?;
        let allowed = &self.service.keys;
        if !allowed.is_empty() && !allowed.contains(&id.name) {
            return Err(Refusal::KeyNotAllowed {
                key: self.reference(&id),
                provider: self.provider.clone(),
            });
        }
        Ok(id)
    }

    /// The names of all keys of the vault.
    async fn names(&self) -> Result<Vec<String>, Refusal> {
        let every = KeyId {
            name: "*".to_owned(),
            version: None,
        };
        let (mut names, mut path) = (Vec::new(), "keys".to_owned());
        for _ in 0..PAGES_MAX {
            let body = self.ask(Role::Create, &every, Request::get(&path)).await?;
            let page: Page = self.understood(serde_json::from_slice(body.as_ref()))?;
            for item in page.value {
                let key = KeyId::parse(&item.kid, &self.origin);
                names.push(
                    key.map_err(|_| self.nonsense("a key of another vault"))?
                        .name,
                );
            }
            let Some(next) = page.next else {
                return Ok(names);
            };
            path = self.page_path(&next)?;
        }
        Err(self.nonsense("a list that does not end"))
    }

    /// The path of the next page of a list, with its query: the vault's address and the version of the API are those that are
    /// asked anyhow.
    fn page_path(&self, link: &str) -> Result<String, Refusal> {
        let query = link
            .strip_prefix(&self.origin)
            .and_then(|rest| rest.strip_prefix("/keys?"));
        let sound = |query: &&str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-._~%$&=+".contains(c);
            query.chars().all(allowed)
        };
        let query = query
            .filter(sound)
            .ok_or_else(|| self.nonsense("a list that goes on elsewhere"))?;
        let others = query.split('&').filter(|pair| *pair != API_VERSION);
        Ok(format!("keys?{}", others.collect::<Vec<_>>().join("&")))
    }

    fn described(&self, id: &KeyId, bundle: &Bundle) -> KeyDescription {
        let deleted = bundle.scheduled_purge.is_some();
        let created = bundle.attributes.created.unwrap_or_default();
        let modulus = Base64UrlUnpadded::decode_vec(&bundle.key.n).unwrap_or_default();
        KeyDescription {
            key_id: format!("{}/{}", self.origin, id.path()),
            name: id.name.clone(),
            state: match bundle.attributes.enabled {
                _ if deleted => KeyState::PendingDeletion,
                Some(false) => KeyState::Disabled,
                _ => KeyState::Enabled,
            },
            versions: vec![KeyVersion {
                version: VERSION,
                created,
            }],
            created,
            algorithm: format!("{} {} {ALGORITHM}", bundle.key.kty, modulus.len() * 8),
            aliases: Vec::new(),
            creates_without_plaintext: false,
            lifecycle: Lifecycle {
                deletion: bundle.scheduled_purge,
                ..Lifecycle::default()
            },
        }
    }

    fn reference(&self, key: &KeyId) -> String {
        match &key.version {
            Some(version) => format!("{}:{}/{version}", self.provider, key.name),
            None => format!("{}:{}", self.provider, key.name),
        }
    }

    fn refused(&self, answer: &Answer, key: &KeyId, asked: Asked) -> Refusal {
        let Verdict {
            class,
            said,
            message,
            next_step,
        } = verdict(answer.status, answer.body.as_ref(), asked);
        let challenge = match &answer.challenge {
            Some(challenge) => format!("; it asks for {challenge}"),
            None => String::new(),
        };
        Refusal::Remote(Remote {
            class,
            said,
            subject: format!("key {}", self.reference(key)),
            reason: format!(
                "{} answers {} {message}{challenge}",
                self.origin, answer.status
            ),
            retry_after: answer.retry_after,
            next_step,
        })
    }

    fn understood<T>(&self, parsed: Result<T, serde_json::Error>) -> Result<T, Refusal> {
        // What serde says may quote the answer, and so a key: only where it stopped is told.
        parsed.map_err(|error| {
            self.nonsense(&format!(
                "not the JSON of a vault, at byte {}",
                error.column()
            ))
        })
    }

    fn nonsense(&self, what: &str) -> Refusal {
        outage(&self.service.vault, &format!("answers with {what}"))
    }
}

/// A request to the vault.
struct Request<'a> {
    method: Method,
    /// Without the version of the API.
    path: &'a str,
    body: Bytes,
    /// Where an answer with a key in it goes.
    secret: Option<SecretBytes>,
    asked: Asked,
}

impl<'a> Request<'a> {
    fn get(path: &'a str) -> Self {
        Self {
            method: Method::GET,
            path,
            body: Bytes::new(),
            secret: None,
            asked: Asked::Anything,
        }
    }
}

impl KeyService for Azure {
    async fn create_key(&self, name: &str, origin: Origin) -> Result<KeyDescription, Refusal> {
        if origin == Origin::External {
            let call = "CreateKey with material from elsewhere";
            return Err(Refusal::Unsupported { call });
        }
        let key = self.key_id(name)?;
        if key.version.is_some() {
            return Err(Refusal::BadKeyName {
                name: name.to_owned(),
                reason: "the vault chooses the version of a new key",
            });
        }
        // The vault would make another version of it.
        match self.bundle(Role::Create, &key).await {
            Ok(_) => {
                return Err(Refusal::KeyExists {
                    key: self.reference(&key),
                });
            }
            Err(refusal) if refusal.class() == FailureClass::GoneForEver => {}
            Err(other) => return Err(other),
        }
        let kind = json!({ "kty": "RSA", "key_size": 3072, "key_ops": ["wrapKey", "unwrapKey"] });
        let path = format!("{}/create", key.path());
        let request = Request {
            method: Method::POST,
            path: &path,
            body: kind.to_string().into(),
            secret: None,
            asked: Asked::Anything,
        };
        self.ask(Role::Create, &key, request).await?;
        self.describe(name).await
    }

    async fn describe(&self, key: &str) -> Result<KeyDescription, Refusal> {
        let key = self.key_id(key)?;
        match self.resolved(Role::Create, &key).await {
            Ok((found, bundle)) => Ok(self.described(&found, &bundle)),
            Err(refusal) if refusal.class() == FailureClass::KeyUnusable => {
                match self.deleted(Role::Create, &key).await {
                    Ok(bundle) => Ok(self.described(&key, &bundle)),
                    Err(_) => Err(refusal),
                }
            }
            Err(refusal) => Err(refusal),
        }
    }

    async fn generate(&self, key: &str, context: &EncryptionContext) -> Result<Wrapped, Refusal> {
        let (key, modulus) = self.usable(key).await?;
        self.keep_apart(&key, modulus).await?;
        let volume_key = self.new_key()?;
        self.wrap(&key, modulus, &volume_key, context).await
    }

    async fn list_keys(&self) -> Result<Vec<KeyDescription>, Refusal> {
        let names = match self.service.keys.as_slice() {
            [] => self.names().await?,
            allowed => allowed.to_vec(),
        };
        let mut keys = Vec::with_capacity(names.len());
        for name in names {
            keys.push(self.describe(&name).await?);
        }
        keys.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(keys)
    }

    async fn rewrap(
        &self,
        from: &WrappedUnder<'_>,
        key: &str,
        context: &EncryptionContext,
    ) -> Result<Wrapped, Refusal> {
        let (key, modulus) = self.usable(key).await?;
        self.keep_apart(&key, modulus).await?;
        let opened = self.open_wrapped(from, &self.memory).await?;
        self.wrap(&key, modulus, &opened.volume_key, context).await
    }

    async fn unwrap(
        &self,
        wrapped: &WrappedUnder<'_>,
        memory: &Arc<KeyMemory>,
    ) -> Result<Unwrapped, Refusal> {
        self.open_wrapped(wrapped, memory).await
    }
}

/// What a wrapped key is bound to.
fn digest(context: &EncryptionContext) -> [u8; DIGEST_BYTES] {
    sha256(&[DIGEST_LABEL, &context.canonical()])
}

/// A server could not be asked, or did not make sense.
fn outage(server: &Address, reason: &str) -> Refusal {
    Refusal::ServerAway {
        server: server.to_string(),
        reason: reason.to_owned(),
    }
}

/// Each version of a key has an id of its own, by which it is known everywhere.
const VERSION: u32 = 1;
