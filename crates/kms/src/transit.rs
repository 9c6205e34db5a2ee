//! Provider `transit`: keys in an OpenBao or HashiCorp Vault server, which never leave it.
//!
//! ```text
//! generate   datakey/wrapped, 512 bits                        `create` credential    no plaintext anywhere but in the server
//! unwrap     decrypt                                          `attach` credential    answer read into locked memory
//! rewrap     rewrap, to the key's newest version              `create` credential    no plaintext
//!            … for another context or key: decrypt, encrypt   `attach` credential    in locked memory, as for `local`
//! ```
//! What always holds:
//! - a key is used only if it is `derived`: then the encryption context enters the key that wraps, and `rewrap` goes by it
//!   (the server would ignore the context with any other key, silently);
//! - the `create` credential is used for nothing before the server has said that it may not unwrap with that key, unless
//!   the configuration allows one credential for everything;
//! - a wrapped key goes to the server only in the one form in which the server writes it, so no two texts open alike;
//! - an outage is [`FailureClass::Transient`], whatever the server says in it.
//!
//! The blob of a wrapped key is the server's own text (`vault:v1:…`), so it can be opened without this program:
//! `docs/key-services.md`.

mod answer;
mod credential;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use base64ct::{Base64, Decoder, Encoder, Encoding as _};
use bytes::Bytes;
use hyper::Method;
use hyper::header::{HeaderName, HeaderValue};
use sealvol_control::keychild::{
    Credential, FailureClass, KeyDescription, KeyState, KeyVersion, Lifecycle, Origin,
    TransitService, Wrapped,
};
use sealvol_crypto::locked::KeyMemory;
use sealvol_crypto::{EncryptionContext, KeyError, SecretBytes, VOLUME_KEY_BYTES, VolumeKey};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Mutex;

use crate::confinement::Needs;
use crate::http::{self, Answer, Body, Failure, Found, Question, Server};
use crate::refusal::Remote;
use crate::role::{PerRole, Role};
use crate::{KeyService, Refusal, Unwrapped, WrappedUnder};
use answer::{Capabilities, Ciphertext, Key, Names, Plaintext, Reply, verdict};

/// Bits of a volume key.
const BITS: usize = VOLUME_KEY_BYTES * 8;

/// Base64 of a volume key.
const KEY_TEXT_BYTES: usize = VOLUME_KEY_BYTES.div_ceil(3) * 4;

/// The kinds of key that wrap with a context.
const KINDS: [&str; 4] = [
    "aes256-gcm96",
    "aes128-gcm96",
    "chacha20-poly1305",
    "xchacha20-poly1305",
];

/// A server as one batch uses it.
pub struct Transit {
    provider: String,
    service: TransitService,
    server: Server,
    namespace: Option<HeaderValue>,
    memory: Arc<KeyMemory>,
    tokens: PerRole<HeaderValue>,
    /// Keys that the `create` credential may not unwrap with, as this batch has learned.
    apart: Mutex<BTreeSet<String>>,
}

/// What this provider needs of the system: where the server is, and the files of its authorities and credentials.
pub(crate) fn needs(service: &TransitService) -> Result<Needs, Refusal> {
    let mut needs = Needs::NOTHING;
    // Before the confinement: the resolver reads what it likes and asks over the network.
    let found = Found::at(&service.address)
        .map_err(|error| outage(service, &format!("cannot be found: {error}")))?;
    needs.connect.push(found);
    needs.files.extend(service.ca_file.clone());
    for credential in [service.create.as_ref(), Some(&service.attach)] {
        let files = credential.into_iter().flat_map(Credential::files);
        needs.files.extend(files.cloned());
    }
    Ok(needs)
}

impl Transit {
    /// The provider `name`, whose server is among those that were found. Says nothing to it yet.
    ///
    /// # Errors
    /// When the authorities' file or the configuration cannot be used.
    pub(crate) fn open(
        name: &str,
        service: &TransitService,
        found: &[Found],
        memory: &Arc<KeyMemory>,
    ) -> Result<Self, Refusal> {
        let unusable = |reason| Refusal::Configuration {
            provider: name.to_owned(),
            reason,
        };
        let tls = service.ca_file.as_ref().map(|path| {
            http::tls(path)
                .map_err(|reason| unusable(format!("ca-file {}: {reason}", path.display())))
        });
        let namespace = service.namespace.as_deref().map(HeaderValue::from_str);
        let namespace = namespace
            .transpose()
            .map_err(|error| unusable(format!("namespace: {error}")))?;
        let timeout = Duration::from_secs(service.timeout_s.into());
        let found = Found::among(found, &service.address);
        let server = Server::new(found, tls.transpose()?.as_ref(), timeout);
        Ok(Self {
            provider: name.to_owned(),
            server: server.map_err(unusable)?,
            namespace,
            service: service.clone(),
            memory: Arc::clone(memory),
            tokens: PerRole::new(),
            apart: Mutex::default(),
        })
    }

    /// Asks the server, as `role`, about `key`.
    async fn ask(
        &self,
        role: Role,
        key: &str,
        method: Method,
        path: &str,
        body: Bytes,
        secret: Option<SecretBytes>,
    ) -> Result<Body, Refusal> {
        let token = self.token(role).await?;
        let question = self.question(method, path, body, Some(token));
        let answer = self.put(question, secret).await?;
        if (200..300).contains(&answer.status) {
            return Ok(answer.body);
        }
        Err(self.refused(&answer, &self.reference(key)))
    }

    /// Asks the server for something of `key` that is not secret.
    async fn ask_for<T: for<'de> Deserialize<'de>>(
        &self,
        role: Role,
        key: &str,
        method: Method,
        path: &str,
        body: &serde_json::Value,
    ) -> Result<T, Refusal> {
        let body = if body.is_null() {
            Bytes::new()
        } else {
            Bytes::from(body.to_string())
        };
        let answer = self.ask(role, key, method, path, body, None).await?;
        let reply: Reply<T> = self.understood(serde_json::from_slice(answer.as_ref()))?;
        Ok(reply.data)
    }

    fn question(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        token: Option<HeaderValue>,
    ) -> Question {
        // Agents can be told to answer only those who say that they mean them.
        let mut headers = vec![(VAULT_REQUEST, HeaderValue::from_static("true"))];
        headers.extend(token.map(|token| (VAULT_TOKEN, token)));
        let namespace = self.namespace.clone();
        headers.extend(namespace.map(|namespace| (VAULT_NAMESPACE, namespace)));
        Question {
            method,
            path: format!("/v1/{path}"),
            headers,
            body,
        }
    }

    async fn put(
        &self,
        question: Question,
        secret: Option<SecretBytes>,
    ) -> Result<Answer, Refusal> {
        self.server
            .ask(question, secret)
            .await
            .map_err(|failure| match failure {
                Failure::Untrusted(_) => Refusal::UntrustedServer {
                    server: self.service.address.to_string(),
                    reason: failure.to_string(),
                },
                failure => outage(&self.service, &failure.to_string()),
            })
    }

    /// Sees to it that the credential that makes wrapped keys could not open one of `key`.
    async fn keep_apart(&self, key: &str) -> Result<(), Refusal> {
        if self.service.single_credential || self.apart.lock().await.contains(key) {
            return Ok(());
        }
        let mount = &self.service.mount;
        let forbidden = [
            "decrypt",
            "encrypt",
            "datakey/plaintext",
            "export/encryption-key",
            "backup",
        ];
        let paths: Vec<_> = forbidden
            .iter()
            .map(|call| format!("{mount}/{call}/{key}"))
            .collect();
        let can: BTreeMap<String, serde_json::Value> = self
            .ask_for(
                Role::Create,
                key,
                Method::POST,
                "sys/capabilities-self",
                &json!({ "paths": paths }),
            )
            .await
            .map_err(|refusal| match refusal {
                Refusal::Remote(remote) if remote.class == FailureClass::NotPermitted => {
                    self.too_powerful("may not ask the server what it may do".to_owned())
                }
                other => other,
            })?;
        let can: Capabilities = can
            .into_iter()
            .filter_map(|(path, can)| Some((path, serde_json::from_value(can).ok()?)))
            .collect();
        for path in paths {
            let can = can.get(&path).map(Vec::as_slice).unwrap_or_default();
            if can != ["deny"] {
                let can = can.join(", ");
                return Err(self.too_powerful(format!("has [{can}] on {path}")));
            }
        }
        self.apart.lock().await.insert(key.to_owned());
        Ok(())
    }

    fn too_powerful(&self, reason: String) -> Refusal {
        Refusal::CredentialTooPowerful {
            provider: self.provider.clone(),
            reason,
        }
    }

    async fn read_key(&self, key: &str) -> Result<Key, Refusal> {
        let path = format!("{}/keys/{}", self.service.mount, self.name(key)?);
        self.ask_for(Role::Create, key, Method::GET, &path, &json!(null))
            .await
    }

    /// A key that may wrap: one that takes the context into account.
    async fn check_usable(&self, key: &str) -> Result<(), Refusal> {
        let found = self.read_key(key).await?;
        let reason = if !KINDS.contains(&found.kind.as_str()) {
            format!(
                "is a key of type {}, which does not wrap with a context",
                found.kind
            )
        } else if !found.derived {
            "is not a derived key: the server would ignore which volume a wrapped key is for"
                .to_owned()
        } else {
            return Ok(());
        };
        Err(Refusal::UnsuitableKey {
            key: self.reference(key),
            reason,
            next_step: "make one of type aes256-gcm96 with derived=true",
        })
    }

    /// Asks for a wrapped key: `call` is the path's part before the key's name.
    async fn wrapped(
        &self,
        role: Role,
        call: &str,
        key: &str,
        body: Bytes,
    ) -> Result<Wrapped, Refusal> {
        let path = format!("{}/{call}/{}", self.service.mount, self.name(key)?);
        let answer = self.ask(role, key, Method::POST, &path, body, None).await?;
        let reply: Reply<Ciphertext> = self.understood(serde_json::from_slice(answer.as_ref()))?;
        let blob = reply.data.ciphertext.into_bytes();
        let key_version = version(&blob).map_err(|reason| self.nonsense(reason))?;
        Ok(Wrapped {
            key_id: key.to_owned(),
            key_version,
            blob,
            commitment: None,
        })
    }

    async fn open_wrapped(
        &self,
        wrapped: &WrappedUnder<'_>,
        memory: &Arc<KeyMemory>,
    ) -> Result<Unwrapped, Refusal> {
        let key = wrapped.key;
        let changed = |reason: String| Refusal::WrappedKeyChanged {
            key: self.reference(key),
            reason,
        };
        let key_version = version(wrapped.blob).map_err(|reason| changed(reason.to_owned()))?;
        let path = format!("{}/decrypt/{}", self.service.mount, self.name(key)?);
        let body = asking(wrapped.blob, wrapped.context);
        let secret = Some(SecretBytes::new(memory)?);
        let answer = self
            .ask(Role::Attach, key, Method::POST, &path, body, secret)
            .await?;
        let reply: Reply<Plaintext<'_>> =
            self.understood(serde_json::from_slice(answer.as_ref()))?;
        let no_key = |reason: &str| changed(format!("what is in it is no volume key: {reason}"));
        let text = reply.data.plaintext.as_bytes();
        if text.len() != KEY_TEXT_BYTES {
            return Err(no_key("it has another length"));
        }
        let mut source = Decoder::<Base64>::new(text).map_err(|_| no_key("it is not Base64"))?;
        let volume_key =
            VolumeKey::read_from(memory, &mut source).map_err(|error| match error {
                KeyError::Locked(error) => error.into(),
                error => no_key(&error.to_string()),
            })?;
        if !source.is_finished() {
            return Err(no_key("it has another length"));
        }
        Ok(Unwrapped {
            volume_key,
            key_id: key.to_owned(),
            key_version,
        })
    }

    /// Has the server wrap a volume key that is in memory. The text of the question lies in locked memory.
    async fn wrap(
        &self,
        key: &str,
        volume_key: &VolumeKey,
        context: &EncryptionContext,
    ) -> Result<Wrapped, Refusal> {
        let mut body = SecretBytes::new(&self.memory)?;
        let context = Base64::encode_string(&context.canonical());
        let write = |body: &mut SecretBytes| {
            body.push(br#"{"plaintext":""#).ok()?;
            let mut text = Encoder::<Base64>::new(body.grow(KEY_TEXT_BYTES).ok()?).ok()?;
            volume_key.write_to(&mut text).ok()?;
            text.finish().ok()?;
            body.push(format!(r#"","context":"{context}"}}"#).as_bytes())
                .ok()
        };
        write(&mut body).ok_or_else(|| Refusal::BadContext {
            reason: "is too long to be sent with a key".to_owned(),
        })?;
        self.wrapped(Role::Attach, "encrypt", key, Bytes::from_owner(body))
            .await
    }

    /// The name of a key, if it can be one and may be used.
    fn name<'a>(&self, key: &'a str) -> Result<&'a str, Refusal> {
        let reason = if !is_name(key) {
            "a key of this key service is called by letters, digits and . _ -"
        } else if !self.service.keys.is_empty()
            && !self.service.keys.iter().any(|allowed| allowed == key)
        {
            return Err(Refusal::KeyNotAllowed {
                key: self.reference(key),
                provider: self.provider.clone(),
            });
        } else {
            return Ok(key);
        };
        Err(Refusal::BadKeyName {
            name: key.to_owned(),
            reason,
        })
    }

    fn described(&self, key: Key) -> KeyDescription {
        let versions: Vec<_> = key
            .keys
            .iter()
            .map(|(&version, made)| KeyVersion {
                version,
                created: made.as_u64().unwrap_or_default(),
            })
            .collect();
        KeyDescription {
            key_id: key.name.clone(),
            name: key.name,
            state: if key.soft_deleted {
                KeyState::Disabled
            } else {
                KeyState::Enabled
            },
            created: versions.first().map_or(0, |first| first.created),
            versions,
            algorithm: key.kind,
            creates_without_plaintext: true,
            aliases: Vec::new(),
            lifecycle: Lifecycle::default(),
        }
    }

    fn reference(&self, key: &str) -> String {
        format!("{}:{key}", self.provider)
    }

    fn refused(&self, answer: &Answer, key: &str) -> Refusal {
        let verdict = verdict(answer.status, answer.body.as_ref());
        Refusal::Remote(Remote {
            class: verdict.class,
            said: verdict.said,
            subject: format!("key {key}"),
            reason: format!("{} answers {}", self.service.address, answer.status),
            retry_after: answer.retry_after,
            next_step: verdict.next_step,
        })
    }

    fn understood<T>(&self, parsed: Result<T, serde_json::Error>) -> Result<T, Refusal> {
        // What serde says may quote the answer, and so a key: only where it stopped is told.
        parsed.map_err(|error| {
            self.nonsense(&format!(
                "not the JSON of a transit engine, at byte {}",
                error.column()
            ))
        })
    }

    fn nonsense(&self, what: &str) -> Refusal {
        outage(&self.service, &format!("answers with {what}"))
    }
}

impl KeyService for Transit {
    async fn create_key(&self, name: &str, origin: Origin) -> Result<KeyDescription, Refusal> {
        if origin == Origin::External {
            let call = "CreateKey with material from elsewhere";
            return Err(Refusal::Unsupported { call });
        }
        let path = format!("{}/keys/{}", self.service.mount, self.name(name)?);
        match self.read_key(name).await {
            Ok(_) => {
                return Err(Refusal::KeyExists {
                    key: self.reference(name),
                });
            }
            Err(Refusal::Remote(remote)) if remote.class == FailureClass::GoneForEver => {}
            Err(other) => return Err(other),
        }
        let kind = json!({ "type": KINDS[0], "derived": true }).to_string();
        self.ask(Role::Create, name, Method::POST, &path, kind.into(), None)
            .await?;
        self.describe(name).await
    }

    async fn describe(&self, key: &str) -> Result<KeyDescription, Refusal> {
        Ok(self.described(self.read_key(key).await?))
    }

    async fn generate(&self, key: &str, context: &EncryptionContext) -> Result<Wrapped, Refusal> {
        self.keep_apart(self.name(key)?).await?;
        self.check_usable(key).await?;
        let context = Base64::encode_string(&context.canonical());
        let body = json!({ "context": context, "bits": BITS }).to_string();
        self.wrapped(Role::Create, "datakey/wrapped", key, body.into())
            .await
    }

    async fn list_keys(&self) -> Result<Vec<KeyDescription>, Refusal> {
        let names = match self.service.keys.as_slice() {
            [] => {
                let path = format!("{}/keys?list=true", self.service.mount);
                let all = self
                    .ask_for(Role::Create, "*", Method::GET, &path, &json!(null))
                    .await;
                match all {
                    Ok(Names { keys }) => keys,
                    // There is none yet.
                    Err(Refusal::Remote(remote)) if remote.class == FailureClass::GoneForEver => {
                        Vec::new()
                    }
                    Err(other) => return Err(other),
                }
            }
            allowed => allowed.to_vec(),
        };
        let mut keys = Vec::with_capacity(names.len());
        for name in names.iter().filter(|name| is_name(name)) {
            match self.describe(name).await {
                Ok(key) => keys.push(key),
                // The engine has keys of others, too.
                Err(Refusal::Remote(remote)) if remote.class == FailureClass::NotPermitted => {}
                Err(other) => return Err(other),
            }
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
        self.keep_apart(self.name(key)?).await?;
        self.check_usable(key).await?;
        if from.key == key && from.context == context {
            version(from.blob).map_err(|reason| Refusal::WrappedKeyChanged {
                key: self.reference(key),
                reason: reason.to_owned(),
            })?;
            let body = asking(from.blob, context);
            return self.wrapped(Role::Create, "rewrap", key, body).await;
        }
        let opened = self.open_wrapped(from, &self.memory).await?;
        self.wrap(key, &opened.volume_key, context).await
    }

    async fn unwrap(
        &self,
        wrapped: &WrappedUnder<'_>,
        memory: &Arc<KeyMemory>,
    ) -> Result<Unwrapped, Refusal> {
        self.open_wrapped(wrapped, memory).await
    }
}

const VAULT_NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
const VAULT_REQUEST: HeaderName = HeaderName::from_static("x-vault-request");
const VAULT_TOKEN: HeaderName = HeaderName::from_static("x-vault-token");

/// The server could not be asked, or did not make sense.
fn outage(service: &TransitService, reason: &str) -> Refusal {
    Refusal::ServerAway {
        server: service.address.to_string(),
        reason: reason.to_owned(),
    }
}

/// `{"ciphertext":…,"context":…}` for a blob that was checked.
fn asking(blob: &[u8], context: &EncryptionContext) -> Bytes {
    let context = Base64::encode_string(&context.canonical());
    let ciphertext = String::from_utf8_lossy(blob);
    Bytes::from(json!({ "ciphertext": ciphertext, "context": context }).to_string())
}

/// The key's version in a wrapped key as the server writes it, `vault:v1:` and Base64. Strict, since the server is not: it
/// takes version 0 for 1, skips line ends and ignores the last bits of the Base64.
fn version(blob: &[u8]) -> Result<u32, &'static str> {
    let text = str::from_utf8(blob).map_err(|_| "is not text")?;
    let (version, ciphertext) = text
        .strip_prefix("vault:v")
        .and_then(|rest| rest.split_once(':'))
        .ok_or("does not begin as those of this key service do")?;
    let number: u32 = version.parse().map_err(|_| "has no version")?;
    if number == 0 || number.to_string() != version {
        return Err("has a version that is written differently");
    }
    let decoded = Base64::decode_vec(ciphertext).map_err(|_| "is not Base64")?;
    if Base64::encode_string(&decoded) != ciphertext {
        return Err("is Base64 that is written differently");
    }
    Ok(number)
}

/// Whether a key can be called so; the server allows no more, and a path must not come to mean another call.
fn is_name(key: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    key.len() <= 128
        && key.chars().all(allowed)
        && ends(key.chars().next())
        && ends(key.chars().next_back())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrapped_key_has_one_form_only() {
        assert_eq!(version(b"vault:v1:AAAA"), Ok(1));
        assert_eq!(version(b"vault:v4294967295:AA=="), Ok(u32::MAX));
        for other in [
            "",
            "vault",
            "vault:v1",
            "vault:1:AAAA",
            "Vault:v1:AAAA",
            "vault:v0:AAAA",
            "vault:v01:AAAA",
            "vault:v+1:AAAA",
            "vault:v1:AAA",
            "vault:v1:AB==",
            "vault:v1:AAAA\n",
            "vault:v1:AA\nAA",
            "vault:v1:AA-_",
            "vault:v1:AAAA:",
            "vault:v4294967296:AAAA",
            "vault:v:AAAA",
        ] {
            assert!(version(other.as_bytes()).is_err(), "{other:?}");
        }
        assert!(version(b"vault:v1:AAA\xff").is_err());
    }

    #[test]
    fn a_name_never_leaves_its_place_in_a_path() {
        for name in ["a", "volumes", "team-1.volumes_2", "_", "0"] {
            assert!(is_name(name), "{name}");
        }
        for other in [
            "", ".", "..", "a/b", "../sys", "a?b", "a#", "a%2f", "-a", "a-", "a ", "ä", "a.", "*",
        ] {
            assert!(!is_name(other), "{other}");
        }
        assert!(!is_name(&"a".repeat(129)));
    }
}
