//! Provider `aws-kms`: keys in AWS Key Management Service, which never leave it, by AWS's own SDK.
//!
//! ```text
//! generate   GenerateDataKeyWithoutPlaintext, 64 bytes   `create` credential   no plaintext anywhere but in the service
//!            … then Decrypt, as a try                    `create` credential   must be denied
//! unwrap     Decrypt                                     `attach` credential   answer read into locked memory
//! rewrap     ReEncrypt, also to another key or context   `attach` credential   no plaintext anywhere but in the service
//! ```
//! What always holds:
//! - a wrapped key is asked for with its key *and* its context, and the key that answers must be the one that was asked;
//! - a key that the `create` credential could open itself is not handed out, unless the configuration allows one credential for
//!   everything. What a try gives although it should give nothing is wiped unseen;
//! - what is stored is the ARN of the key that wrapped, never an alias: that may come to mean another key;
//! - an outage is [`FailureClass::Transient`](sealvol_control::keychild::FailureClass::Transient), whatever the service says in it; nothing is repeated here.
//!
//! The service numbers no versions of a key: 1 stands for whichever it used.

mod answer;
mod connector;
mod keys;
mod name;
mod profile;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_kms::config::endpoint::{DefaultResolver, Params, ResolveEndpoint as _};
use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::config::timeout::TimeoutConfig;
use aws_sdk_kms::config::{
    BehaviorVersion, Credentials, IdentityCache, Region, StalledStreamProtectionConfig,
};
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::operation::decrypt::{DecryptError, DecryptOutput};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::{Client, Config};
use sealvol_control::keychild::{
    Address, AwsKmsService, KeyChange, KeyDescription, Origin, Wrapped,
};
use sealvol_crypto::locked::KeyMemory;
use sealvol_crypto::{EncryptionContext, KeyError, SecretBytes, VOLUME_KEY_BYTES, VolumeKey};
use zeroize::Zeroizing;

use crate::confinement::Needs;
use crate::http::{self, Failure, Found, Server};
use crate::refusal::Remote;
use crate::role::{PerRole, Role};
use crate::{KeyService, Refusal, Unwrapped, WrappedUnder};
use answer::{ACCESS_DENIED, DRY_RUN, first_line, verdict};
use connector::Connector;

/// The one number there is.
const VERSION: u32 = 1;

/// The service as one batch uses it.
pub struct AwsKms {
    provider: String,
    service: AwsKmsService,
    endpoint: Address,
    connector: Connector,
    memory: Arc<KeyMemory>,
    clients: PerRole<Client>,
}

/// What this provider needs of the system: where the endpoint is, and the files of its authorities and credentials.
pub(crate) fn needs(name: &str, service: &AwsKmsService) -> Result<Needs, Refusal> {
    let mut needs = Needs::NOTHING;
    let endpoint = endpoint(name, service)?;
    // Before the confinement: the resolver reads what it likes and asks over the network.
    let found = Found::at(&endpoint)
        .map_err(|error| outage(&endpoint, &format!("cannot be found: {error}")))?;
    needs.connect.push(found);
    needs.files.extend(service.ca_file.clone());
    for credential in [service.create.as_ref(), Some(&service.attach)] {
        needs.files.extend(credential.map(|of| of.file.clone()));
    }
    Ok(needs)
}

/// Where the service is: as configured, else by the SDK's own table of regions.
fn endpoint(name: &str, service: &AwsKmsService) -> Result<Address, Refusal> {
    if let Some(endpoint) = &service.endpoint {
        return Ok(endpoint.clone());
    }
    let unusable = |reason: String| Refusal::Configuration {
        provider: name.to_owned(),
        reason: format!("region {}: {reason}", service.region),
    };
    let asked = Params::builder()
        .region(service.region.clone())
        .use_fips(service.fips)
        .build()
        .map_err(|error| unusable(error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|error| unusable(error.to_string()))?;
    let found = runtime
        .block_on(DefaultResolver::new().resolve_endpoint(&asked))
        .map_err(|error| unusable(error.to_string()))?;
    Address::parse(found.url(), 443)
        .map_err(|reason| unusable(format!("{}: {reason}", found.url())))
}

impl AwsKms {
    /// The provider `name`, whose endpoint was found as `needs` says. Says nothing to it yet.
    ///
    /// # Errors
    /// When the authorities' file or the configuration cannot be used.
    pub(crate) fn open(
        name: &str,
        service: &AwsKmsService,
        found: &[Found],
        memory: &Arc<KeyMemory>,
    ) -> Result<Self, Refusal> {
        let unusable = |reason| Refusal::Configuration {
            provider: name.to_owned(),
            reason,
        };
        let endpoint = endpoint(name, service)?;
        let tls = service.ca_file.as_ref().map(|path| {
            http::tls(path)
                .map_err(|reason| unusable(format!("ca-file {}: {reason}", path.display())))
        });
        let timeout = Duration::from_secs(service.timeout_s.into());
        let found = Found::among(found, &endpoint);
        let server = Server::new(found, tls.transpose()?.as_ref(), timeout);
        Ok(Self {
            provider: name.to_owned(),
            service: service.clone(),
            connector: Connector::new(server.map_err(unusable)?),
            endpoint,
            memory: Arc::clone(memory),
            clients: PerRole::new(),
        })
    }

    /// The SDK, as `role`: with that credential and our connection, without its own timeouts, retries and caches.
    async fn client(&self, role: Role) -> Result<Client, Refusal> {
        let (create, attach) = (self.service.create.as_ref(), &self.service.attach);
        self.clients
            .of(role, create, attach, async |credential| {
                Ok(self.new_client(profile::read(credential).await?))
            })
            .await
    }

    fn new_client(&self, credential: Credentials) -> Client {
        let config = Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(self.service.region.clone()))
            .endpoint_url(self.endpoint.origin())
            .credentials_provider(credential)
            .identity_cache(IdentityCache::no_cache())
            .http_client(self.connector.clone())
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .build();
        Client::from_conf(config)
    }

    /// Decrypts. The answer is in locked memory while the SDK reads it; what the SDK makes of it is wiped here.
    async fn decrypt(
        &self,
        role: Role,
        key: &str,
        wrapped: &WrappedUnder<'_>,
        only_try: bool,
    ) -> Result<Result<(String, Zeroizing<Vec<u8>>), SdkError<DecryptError, HttpResponse>>, Refusal>
    {
        let client = self.client(role).await?;
        self.connector.keep_in(SecretBytes::new(&self.memory)?);
        let asked = client
            .decrypt()
            .key_id(key)
            .ciphertext_blob(Blob::new(wrapped.blob))
            .set_encryption_context(Some(pairs(wrapped.context)))
            .set_dry_run(only_try.then_some(true));
        let answer = asked.send().await;
        Ok(answer.map(
            |DecryptOutput {
                 key_id, plaintext, ..
             }| {
                let plaintext = plaintext.map(Blob::into_inner).unwrap_or_default();
                (key_id.unwrap_or_default(), Zeroizing::new(plaintext))
            },
        ))
    }

    /// Sees to it that the credential that made a wrapped key cannot open it.
    async fn keep_apart(&self, wrapped: &WrappedUnder<'_>) -> Result<(), Refusal> {
        if self.service.single_credential {
            return Ok(());
        }
        let too_powerful = |reason: &str| Refusal::CredentialTooPowerful {
            provider: self.provider.clone(),
            reason: format!("{reason} under {}", self.reference(wrapped.key)),
        };
        match self
            .decrypt(Role::Create, wrapped.key, wrapped, true)
            .await?
        {
            Ok(_) => Err(too_powerful("opened the key that it had made")),
            Err(error) => {
                // A service in trouble may say anything.
                let sound = |raw: &HttpResponse| raw.status().is_client_error();
                let said = error.as_service_error().and_then(|error| error.code());
                match said.filter(|_| error.raw_response().is_some_and(sound)) {
                    Some(DRY_RUN) => Err(too_powerful("could open the key that it had made")),
                    Some(name) if ACCESS_DENIED.contains(&name) => Ok(()),
                    _ => Err(self.refused(wrapped.key, error)),
                }
            }
        }
    }

    /// The key as the service takes its name.
    fn named(&self, key: &str) -> Result<String, Refusal> {
        name::asked(key, &self.service.region).map_err(|reason| Refusal::BadKeyName {
            name: key.to_owned(),
            reason,
        })
    }

    /// The key that answered, if it is the one that was asked.
    fn answered(&self, asked: &str, answered: Option<String>) -> Result<String, Refusal> {
        let answered = answered.unwrap_or_default();
        if !name::is_key(&answered, &self.service.region) {
            return Err(self.nonsense("an answer that names no key"));
        }
        if name::fits(asked, &answered) {
            return Ok(answered);
        }
        Err(Refusal::WrappedUnderOther {
            key: self.reference(asked),
            asked: asked.to_owned(),
            found: first_line(&answered),
        })
    }

    /// A wrapped key that has any bytes: the service takes none as a mistake of the caller, but somebody took them away.
    fn some(&self, wrapped: &WrappedUnder<'_>) -> Result<(), Refusal> {
        if wrapped.blob.is_empty() {
            return Err(Refusal::WrappedKeyChanged {
                key: self.reference(wrapped.key),
                reason: "it is empty".to_owned(),
            });
        }
        Ok(())
    }

    fn reference(&self, key: &str) -> String {
        let name = key.strip_prefix("alias/").unwrap_or(key);
        format!("{}:{name}", self.provider)
    }

    /// Why a call brought nothing. What the SDK makes of an answer that it does not understand may quote it: that is not told.
    fn refused<E: ProvideErrorMetadata>(
        &self,
        key: &str,
        error: SdkError<E, HttpResponse>,
    ) -> Refusal {
        match &error {
            // An answer that says that all is well, but not what it should.
            SdkError::ServiceError(context) if context.raw().status().is_success() => {
                self.nonsense("what is no answer of AWS KMS")
            }
            SdkError::ServiceError(context) => {
                let (error, raw) = (context.err().meta(), context.raw());
                let status = raw.status().as_u16();
                let text = error.message().unwrap_or_default();
                let verdict = verdict(error.code(), text, status);
                let request = raw
                    .headers()
                    .get(connector::REQUEST_ID)
                    .unwrap_or("without id");
                Refusal::Remote(Remote {
                    class: verdict.class,
                    said: verdict.said,
                    subject: format!("key {}", self.reference(key)),
                    reason: format!(
                        "{} answers {status}, {} (request {})",
                        self.endpoint,
                        Said(&first_line(text)),
                        first_line(request)
                    ),
                    next_step: verdict.next_step,
                    retry_after: verdict.retry_after,
                })
            }
            SdkError::DispatchFailure(failed) => {
                match failed.as_connector_error().and_then(connector::failure) {
                    Some(failure @ Failure::Untrusted(_)) => Refusal::UntrustedServer {
                        server: self.endpoint.to_string(),
                        reason: failure.to_string(),
                    },
                    Some(failure) => outage(&self.endpoint, &failure.to_string()),
                    None => outage(&self.endpoint, "cannot be asked"),
                }
            }
            SdkError::ConstructionFailure(_) => Refusal::Configuration {
                provider: self.provider.clone(),
                reason: format!("{} cannot be asked so", self.reference(key)),
            },
            _ => self.nonsense("what is no answer of AWS KMS"),
        }
    }

    fn nonsense(&self, what: &str) -> Refusal {
        outage(&self.endpoint, &format!("answers with {what}"))
    }
}

impl KeyService for AwsKms {
    async fn change_key(&self, key: &str, change: &KeyChange) -> Result<KeyDescription, Refusal> {
        self.change(key, change).await
    }

    async fn create_key(&self, name: &str, origin: Origin) -> Result<KeyDescription, Refusal> {
        if origin == Origin::External {
            let call = "CreateKey with material from elsewhere";
            return Err(Refusal::Unsupported { call });
        }
        self.make(name).await
    }

    async fn describe(&self, key: &str) -> Result<KeyDescription, Refusal> {
        self.tell(key).await
    }

    async fn list_keys(&self) -> Result<Vec<KeyDescription>, Refusal> {
        self.tell_all().await
    }

    async fn generate(&self, key: &str, context: &EncryptionContext) -> Result<Wrapped, Refusal> {
        let asked = self.named(key)?;
        let client = self.client(Role::Create).await?;
        let made = client
            .generate_data_key_without_plaintext()
            .key_id(&asked)
            .number_of_bytes(BYTES)
            .set_encryption_context(Some(pairs(context)))
            .send()
            .await;
        let made = made.map_err(|error| self.refused(&asked, error))?;
        let key_id = self.answered(&asked, made.key_id)?;
        let blob = made.ciphertext_blob.map(Blob::into_inner);
        let blob = blob.unwrap_or_default();
        let wrapped = WrappedUnder {
            key: &key_id,
            blob: &blob,
            context,
        };
        self.keep_apart(&wrapped).await?;
        Ok(Wrapped {
            key_id,
            key_version: VERSION,
            commitment: None,
            blob,
        })
    }

    async fn rewrap(
        &self,
        from: &WrappedUnder<'_>,
        key: &str,
        context: &EncryptionContext,
    ) -> Result<Wrapped, Refusal> {
        let (source, destination) = (self.named(from.key)?, self.named(key)?);
        self.some(from)?;
        let client = self.client(Role::Attach).await?;
        let asked = client
            .re_encrypt()
            .ciphertext_blob(Blob::new(from.blob))
            .source_key_id(&source)
            .set_source_encryption_context(Some(pairs(from.context)))
            .destination_key_id(&destination)
            .set_destination_encryption_context(Some(pairs(context)));
        let made = asked.send().await;
        let made = made.map_err(|error| self.refused(&destination, error))?;
        self.answered(&source, made.source_key_id)?;
        Ok(Wrapped {
            key_id: self.answered(&destination, made.key_id)?,
            key_version: VERSION,
            commitment: None,
            blob: made
                .ciphertext_blob
                .map(Blob::into_inner)
                .unwrap_or_default(),
        })
    }

    async fn unwrap(
        &self,
        wrapped: &WrappedUnder<'_>,
        memory: &Arc<KeyMemory>,
    ) -> Result<Unwrapped, Refusal> {
        let asked = self.named(wrapped.key)?;
        self.some(wrapped)?;
        let opened = self.decrypt(Role::Attach, &asked, wrapped, false).await?;
        let (answered, plaintext) = opened.map_err(|error| self.refused(&asked, error))?;
        let key_id = self.answered(&asked, Some(answered))?;
        let no_key = |reason: &str| Refusal::WrappedKeyChanged {
            key: self.reference(&asked),
            reason: format!("what is in it is no volume key: {reason}"),
        };
        if plaintext.len() != VOLUME_KEY_BYTES {
            return Err(no_key("it has another length"));
        }
        let read = VolumeKey::read_from(memory, &mut plaintext.as_slice());
        let volume_key = read.map_err(|error| match error {
            KeyError::Locked(error) => error.into(),
            error => no_key(&error.to_string()),
        })?;
        Ok(Unwrapped {
            volume_key,
            key_id,
            key_version: VERSION,
        })
    }
}

/// Bytes of a volume key, as the service takes a number.
const BYTES: i32 = {
    assert!(VOLUME_KEY_BYTES == 64);
    64
};

/// What the service said, if it said something.
struct Said<'a>(&'a str);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            "" => f.write_str("without a word"),
            text => f.write_str(text),
        }
    }
}

/// The endpoint could not be asked, or did not make sense.
fn outage(endpoint: &Address, reason: &str) -> Refusal {
    Refusal::ServerAway {
        server: endpoint.to_string(),
        reason: reason.to_owned(),
    }
}

fn pairs(context: &EncryptionContext) -> HashMap<String, String> {
    let pairs = context.iter();
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}
