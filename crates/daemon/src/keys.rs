//! The daemon's side of the key path: which provider, which call, how often, and its record.
//!
//! What always holds:
//! - a key reference whose provider is not configured is refused before anything is started;
//! - each use of a key is in the audit log, with its result, before it has an effect;
//! - of a provider's table of keys nothing older than what was seen once is believed ([`relied_on`]);
//! - only a failure that may pass is tried again, within the deadline, and never one that might
//!   have made something; and a PIN that a token refused is not given again ([`pins`]); many that ask at once take turns ([`turns`]);
//! - a plaintext key goes from the key socket into locked memory, nowhere else.

mod aliases;
mod audit_index;
mod backup;
mod import;
mod lifecycle;
mod pins;
mod policy;
mod relied_on;
mod tombstones;
mod turns;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sealvol_control::api::VolumeName;
use sealvol_control::key_ref::KeyRef;
use sealvol_control::keychild::{
    Answer, Batch, CALLS_MAX, Call, CallResult, Context, Descriptors, Done, FailureClass, Fault,
    KeyChild, KeyChildError, KeyDescription, KeyFailure, MasterKey, Origin, Principal, Provider,
    Right, Service, Wrapped,
};
use sealvol_crypto::locked::KeyMemory;
use sealvol_crypto::{KeyError, VolumeKey};
use sealvol_volume::VolumeId;
use tokio::time::Instant;

use crate::audit::{Audit, Operation, Record};
use crate::config::Config;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::registry::Registry;
use crate::rights::Caller;
use pins::Pins;
use relied_on::ReliedOn;
use turns::Turns;

/// The key services as they are configured.
#[derive(Debug)]
pub(crate) struct Keys {
    child: KeyChild,
    deadline: Duration,
    providers: BTreeMap<String, Provider>,
    require_secretmem: bool,
    /// What backups may be encrypted to, whoever asks.
    recovery_keys: Vec<String>,
    /// Where a provider's passphrase is read from, once per child.
    passphrase: Option<File>,
    audit: Audit,
    pins: Pins,
    relied_on: ReliedOn,
    turns: Turns,
}

/// The volume that a key is used for.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    /// Its id.
    pub id: VolumeId,
    /// Its name.
    pub name: VolumeName,
    /// The encryption context of the data key, computed from the registry.
    pub context: Context,
}

/// One wrapped copy of a data key, to be unwrapped.
#[derive(Clone, Debug)]
pub(crate) struct WrappedCopy {
    /// The volume, and the context of this data key.
    pub subject: Subject,
    /// The key-encryption key that wrapped it, by its resolved id.
    pub key: KeyRef,
    /// The wrapped key.
    pub blob: Vec<u8>,
}

impl Keys {
    /// The providers of `config`; `passphrase` is a file with the passphrase of those that need one.
    pub(crate) fn new(
        config: &Config,
        passphrase: Option<File>,
        audit: Audit,
        registry: Registry,
    ) -> Self {
        Self {
            child: KeyChild::new(&config.key_child, config.key_deadline),
            deadline: config.key_deadline,
            pins: Pins::new(&config.providers),
            providers: config.providers.clone(),
            require_secretmem: config.require_secretmem,
            recovery_keys: config.recovery_keys.clone(),
            passphrase,
            audit,
            relied_on: ReliedOn::new(registry),
            turns: Turns::new(config.providers.keys()),
        }
    }

    /// The names of the configured providers.
    pub(crate) fn providers(&self) -> impl Iterator<Item = &Provider> {
        self.providers.values()
    }

    /// The database of an embedded key service, if it is not there.
    pub(crate) fn missing_database(&self, provider: &str) -> Option<PathBuf> {
        let Service::Local(local) = &self.providers.get(provider)?.service else {
            return None;
        };
        (!local.database.exists()).then(|| local.database.clone())
    }

    /// Whether whoever has the public part of a provider's key makes wrapped keys as good as its own.
    pub(crate) fn wraps_by_public_key(&self, provider: &str) -> bool {
        let service = self.providers.get(provider).map(|one| &one.service);
        matches!(service, Some(Service::AzureKv(_)))
    }

    /// Makes a data key for a volume and returns it wrapped: nobody sees it.
    ///
    /// # Errors
    /// When the key service refuses or cannot be asked, or the record cannot be written.
    pub(crate) async fn generate(
        &self,
        caller: Caller,
        subject: &Subject,
        key: &KeyRef,
    ) -> Result<Wrapped, Error> {
        let call = Call::Generate {
            key: key.key().to_owned(),
            context: subject.context.clone(),
        };
        let answer = self
            .ask(caller, Right::Create, key, call, Attempts::Several)
            .await;
        let answer = answer.map_err(|error| about(&subject.name, error));
        let wrapped = answer.and_then(|(done, _)| match done {
            Done::Generate(wrapped) => Ok(wrapped),
            other => Err(mismatched(&other)),
        });
        let record = Record {
            key_version: wrapped.as_ref().ok().map(|wrapped| wrapped.key_version),
            ..record(Operation::Generate, caller, subject, key)
        };
        self.record(record, wrapped).await
    }

    /// Has data keys wrapped anew, in the order that they are given: the same keys, for another volume or under another key.
    /// Nobody sees them. One batch for each [`CALLS_MAX`] of them.
    ///
    /// # Errors
    /// [`Error::OtherProvider`]: a key service wraps anew only what it wrapped itself. When the key service refuses or cannot be
    /// asked, or a record cannot be written.
    pub(crate) async fn rewrap_all(
        &self,
        right: Right,
        caller: Caller,
        copies: &[(WrappedCopy, Subject)],
        to: &KeyRef,
    ) -> Result<Vec<Wrapped>, Error> {
        let foreign = |(from, _): &&(WrappedCopy, Subject)| from.key.provider() != to.provider();
        if let Some((from, _)) = copies.iter().find(foreign) {
            return Err(Error::OtherProvider {
                name: from.subject.name.clone(),
                from: from.key.clone(),
                to: to.clone(),
            });
        }
        let mut wrapped = Vec::with_capacity(copies.len());
        for batch in copies.chunks(CALLS_MAX) {
            let calls = batch.iter().map(|(from, subject)| Call::Rewrap {
                key: from.key.key().to_owned(),
                wrapped: from.blob.clone(),
                old_context: from.subject.context.clone(),
                new_key: to.key().to_owned(),
                new_context: subject.context.clone(),
            });
            let asked = self
                .ask_all(caller, right, to, calls.collect(), Attempts::Several)
                .await;
            let results: Vec<Result<Done, Error>> = match asked {
                Ok(answer) => {
                    let failed = |failure| Error::Key {
                        volume: None,
                        failure: Box::new(failure),
                    };
                    let results = answer.results.into_iter();
                    results.map(|result| result.map_err(failed)).collect()
                }
                Err(error) => {
                    let subject = &batch[0].1;
                    let record = record(Operation::Rewrap, caller, subject, to);
                    return self.record(record, Err(about(&subject.name, error))).await;
                }
            };
            // Each has its record; the first failure is the one that is told.
            let mut outcome = Ok(());
            for ((from, subject), result) in batch.iter().zip(results) {
                let rewrapped = result.map_err(|error| about(&subject.name, error));
                let rewrapped = rewrapped.and_then(|done| match done {
                    Done::Rewrap(wrapped) => Ok(wrapped),
                    other => Err(mismatched(&other)),
                });
                let record = Record {
                    key_version: rewrapped.as_ref().ok().map(|wrapped| wrapped.key_version),
                    from: Some(from.key.to_string()),
                    ..record(Operation::Rewrap, caller, subject, to)
                };
                match self.record(record, rewrapped).await {
                    Ok(rewrapped) => wrapped.push(rewrapped),
                    Err(error) => outcome = outcome.and(Err(error)),
                }
            }
            outcome?;
        }
        Ok(wrapped)
    }

    /// Unwraps data keys straight into locked memory, in the order of their wrapped copies: one batch for each provider.
    ///
    /// # Errors
    /// When the key service refuses or cannot be asked, the record cannot be written, or what came
    /// is no key.
    pub(crate) async fn unwrap_all(
        &self,
        caller: Caller,
        copies: Vec<WrappedCopy>,
        memory: &Arc<KeyMemory>,
    ) -> Result<Vec<VolumeKey>, Error> {
        let mut keys: Vec<Option<VolumeKey>> = copies.iter().map(|_| None).collect();
        let mut places: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (place, copy) in copies.iter().enumerate() {
            places.entry(copy.key.provider()).or_default().push(place);
        }
        for batch in places.values().flat_map(|places| places.chunks(CALLS_MAX)) {
            let of_batch: Vec<&WrappedCopy> = batch.iter().map(|&place| &copies[place]).collect();
            let unwrapped = self.unwrap_batch(caller, &of_batch, memory).await?;
            for (&place, key) in batch.iter().zip(unwrapped) {
                keys[place] = Some(key);
            }
        }
        Ok(keys.into_iter().flatten().collect())
    }

    /// Unwraps keys of one provider.
    async fn unwrap_batch(
        &self,
        caller: Caller,
        copies: &[&WrappedCopy],
        memory: &Arc<KeyMemory>,
    ) -> Result<Vec<VolumeKey>, Error> {
        let calls = copies.iter().map(|copy| Call::Unwrap {
            key: copy.key.key().to_owned(),
            wrapped: copy.blob.clone(),
            context: copy.subject.context.clone(),
        });
        let calls = calls.collect();
        let first = copies[0];
        let asked = self
            .ask_all(caller, Right::Attach, &first.key, calls, Attempts::Several)
            .await;
        let answer = match asked {
            Ok(answer) => answer,
            Err(error) => {
                let error = about(&first.subject.name, error);
                let record = record(Operation::Unwrap, caller, &first.subject, &first.key);
                return self.record(record, Err(error)).await;
            }
        };
        let mut outcome = Ok(());
        for (copy, result) in copies.iter().zip(answer.results) {
            let unwrapped = result.map_err(|failure| Error::Key {
                volume: Some(copy.subject.name.clone()),
                failure: Box::new(failure),
            });
            let unwrapped = unwrapped.and_then(|done| match done {
                Done::Unwrap { key_version, .. } => Ok(key_version),
                other => Err(mismatched(&other)),
            });
            let record = Record {
                key_version: unwrapped.as_ref().ok().copied(),
                protection: Some(memory.protection().to_string()),
                ..record(Operation::Unwrap, caller, &copy.subject, &copy.key)
            };
            let recorded = self.record(record, unwrapped).await;
            // Each has its record; the first failure is the one that is told.
            outcome = outcome.and_then(|()| recorded.map(|_| ()));
        }
        outcome?;
        // All bytes are in the socket's buffer and the child is gone: this does not block.
        let mut socket = answer.keys;
        let read = |copy: &&WrappedCopy| {
            VolumeKey::read_from(memory, &mut socket).map_err(|source| match source {
                KeyError::Locked(limit) => Error::KeyMemory(Arc::new(limit)),
                source => Error::BadKey {
                    name: copy.subject.name.clone(),
                    source,
                },
            })
        };
        copies.iter().map(read).collect()
    }

    /// Tries whether a wrapped key could be unwrapped now. Nobody gets its plaintext.
    ///
    /// # Errors
    /// As an unwrap would fail: when the key service refuses or cannot be asked, or the record cannot be written.
    pub(crate) async fn could_unwrap(
        &self,
        caller: Caller,
        copy: &WrappedCopy,
    ) -> Result<(), Error> {
        let call = Call::Check {
            key: copy.key.key().to_owned(),
            wrapped: copy.blob.clone(),
            context: copy.subject.context.clone(),
        };
        let asked = self
            .ask(caller, Right::Attach, &copy.key, call, Attempts::Several)
            .await;
        let asked = asked.map_err(|error| about(&copy.subject.name, error));
        let version = asked.and_then(|(done, _)| match done {
            Done::Check { key_version, .. } => Ok(key_version),
            other => Err(mismatched(&other)),
        });
        let record = Record {
            key_version: version.as_ref().ok().copied(),
            ..record(Operation::Check, caller, &copy.subject, &copy.key)
        };
        self.record(record, version).await.map(drop)
    }

    /// Tells what a provider says of one of its keys.
    ///
    /// # Errors
    /// When the key service refuses or cannot be asked.
    pub(crate) async fn describe(&self, key: &KeyRef) -> Result<KeyDescription, Error> {
        let call = Call::Describe {
            key: key.key().to_owned(),
        };
        match self
            .ask(
                Daemon::itself(),
                Right::Attach,
                key,
                call,
                Attempts::Several,
            )
            .await?
            .0
        {
            Done::Describe(description) => Ok(description),
            other => Err(mismatched(&other)),
        }
    }

    /// Tells all keys of a provider.
    ///
    /// # Errors
    /// When the key service refuses or cannot be asked, or there is no such provider.
    pub(crate) async fn list(&self, provider: &str) -> Result<Vec<KeyDescription>, Error> {
        // For messages only: the call names no key.
        let whole = KeyRef::new(provider, "*")?;
        match self
            .ask(
                Daemon::itself(),
                Right::Attach,
                &whole,
                Call::ListKeys,
                Attempts::Several,
            )
            .await?
            .0
        {
            Done::ListKeys(descriptions) => Ok(descriptions),
            other => Err(mismatched(&other)),
        }
    }

    /// Makes a key-encryption key.
    ///
    /// # Errors
    /// When the key service refuses (there is one of that name) or cannot be asked, or the record
    /// cannot be written.
    pub(crate) async fn create(
        &self,
        caller: Caller,
        key: &KeyRef,
        origin: Origin,
    ) -> Result<KeyDescription, Error> {
        let call = Call::CreateKey {
            name: key.key().to_owned(),
            origin,
        };
        let answer = self
            .ask(caller, Right::Administer, key, call, Attempts::One)
            .await;
        let created = answer.and_then(|(done, _)| match done {
            Done::CreateKey(description) => Ok(description),
            other => Err(mismatched(&other)),
        });
        let record = Record {
            key: Some(key.to_string()),
            ..Record::of(Operation::CreateKey, caller)
        };
        self.record(record, created).await
    }

    fn provider(&self, name: &str) -> Result<&Provider, Error> {
        self.providers
            .get(name)
            .ok_or_else(|| Error::NoSuchProvider {
                provider: name.to_owned(),
                configured: self
                    .providers
                    .keys()
                    .map(String::as_str)
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }

    /// One call to the provider of `key`, again while its failure may pass and there is time.
    async fn ask(
        &self,
        caller: Caller,
        right: Right,
        key: &KeyRef,
        call: Call,
        attempts: Attempts,
    ) -> Result<(Done, Answer), Error> {
        let mut answer = self
            .ask_all(caller, right, key, vec![call], attempts)
            .await?;
        match answer.results.pop() {
            Some(Ok(done)) => Ok((done, answer)),
            Some(Err(failure)) => Err(Error::Key {
                volume: None,
                failure: Box::new(failure),
            }),
            None => Err(Error::Internal(
                "the key child answered without a result".to_owned(),
            )),
        }
    }

    /// A batch of calls to the provider of `key`, all of them again while the failure of one may pass and there is time.
    async fn ask_all(
        &self,
        caller: Caller,
        right: Right,
        key: &KeyRef,
        calls: Vec<Call>,
        attempts: Attempts,
    ) -> Result<Answer, Error> {
        self.ask_with(caller, right, key, calls, attempts, None)
            .await
    }

    /// The same, with the file that a backup is written to.
    async fn ask_with(
        &self,
        caller: Caller,
        right: Right,
        key: &KeyRef,
        calls: Vec<Call>,
        attempts: Attempts,
        sink: Option<&File>,
    ) -> Result<Answer, Error> {
        let provider = self.provider(key.provider())?.clone();
        let asked = Instant::now();
        let not_served = || Error::Key {
            volume: None,
            failure: Box::new(not_served(key, self.deadline)),
        };
        let lane = self.turns.of(key.provider()).ok_or_else(not_served)?;
        let turn = lane.turn(asked, self.deadline).await;
        let _turn = turn.ok_or_else(not_served)?;
        let batch = Batch {
            right,
            principal: principal(caller),
            provider,
            require_secretmem: self.require_secretmem,
            calls,
            relied_on: self.relied_on.of(key.provider()).await?,
        };
        let mut until = lane.until(asked, self.deadline);
        if until.saturating_duration_since(Instant::now()) < LEAST {
            return Err(not_served());
        }
        let mut pause = FIRST_PAUSE;
        let mut before = None;
        loop {
            // For one attempt: whoever waits for a token that is away does not hold up the others.
            let turn = self.pins.turn(&batch.provider).await;
            let turn = turn.map_err(|failure| Error::Key {
                volume: None,
                failure: Box::new(failure),
            })?;
            let left = until.saturating_duration_since(Instant::now());
            let child = self.child.within(left);
            let mut answer = self.call_child(&child, &batch, sink).await;
            if let (Some(turn), Ok(answer)) = (turn, &answer) {
                turn.end(answer);
            }
            if let (Err(KeyChildError::TimedOut { .. }), Some(told)) = (&answer, before.take()) {
                // It had only what the others left: what they were told says more.
                answer = told;
            }
            let may_pass = match &answer {
                Ok(answer) => may_pass(&answer.results),
                Err(source) => source.fault() == Fault::Retry,
            };
            if let Ok(answer) = &answer {
                if !may_pass || answer.results.iter().any(Result::is_ok) {
                    lane.has_served();
                }
                if overloaded(&answer.results) {
                    until = until.max(lane.until(asked, self.deadline));
                    pause = pause.min(BUSY_PAUSE);
                }
            }
            let asked_for = answer.as_ref().map_or(Duration::ZERO, retry_after);
            let wait = asked_for.max(pause) + jitter(pause);
            let left = until.saturating_duration_since(Instant::now());
            if attempts == Attempts::One || !may_pass || left <= wait + LEAST {
                let answer = answer.map_err(|source| Error::KeyChild {
                    volume: None,
                    key: key.clone(),
                    source: Box::new(source),
                })?;
                if let Some(table) = &answer.table {
                    self.relied_on.saw(key.provider(), table).await?;
                }
                return Ok(answer);
            }
            tracing::warn!(key = %key, "key service failed, trying again");
            before = Some(answer);
            tokio::time::sleep(wait).await;
            pause *= 3;
        }
    }

    async fn call_child(
        &self,
        child: &KeyChild,
        batch: &Batch,
        sink: Option<&File>,
    ) -> Result<Answer, KeyChildError> {
        let passphrase = match &batch.provider.service {
            Service::Local(local) if local.master_key == MasterKey::Passphrase => {
                self.passphrase.as_ref()
            }
            _ => None,
        };
        let descriptors = Descriptors {
            passphrase: passphrase.map(File::as_fd),
            sink: sink.map(File::as_fd),
        };
        child.call_with(batch, descriptors).await
    }

    /// Writes `record` with the outcome; only then is a success one.
    async fn record<T>(&self, record: Record, outcome: Result<T, Error>) -> Result<T, Error> {
        let result = match &outcome {
            Ok(_) => "ok".to_owned(),
            Err(error) => error.to_string(),
        };
        let written = self.audit.append(Record { result, ..record }).await;
        match (outcome, written) {
            (Ok(value), Ok(())) => Ok(value),
            (Err(error), _) => Err(error),
            (Ok(_), Err(source)) => Err(Error::Audit {
                path: self.audit.path().to_owned(),
                source,
            }),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Attempts {
    /// The call may have made something although it failed.
    One,
    Several,
}

fn record(operation: Operation, caller: Caller, subject: &Subject, key: &KeyRef) -> Record {
    Record {
        volume: Some(subject.id.to_string()),
        name: Some(subject.name.to_string()),
        key: Some(key.to_string()),
        context: subject.context.clone(),
        ..Record::of(operation, caller)
    }
}

/// In whose name a key service is asked: what the daemon goes on with by itself was allowed to whoever began it.
fn principal(caller: Caller) -> Principal {
    if caller == Daemon::itself() {
        Principal::Daemon
    } else {
        Principal::Uid(caller.uid)
    }
}

/// The same error, saying which volume it is about.
fn about(name: &VolumeName, mut error: Error) -> Error {
    if let Error::Key { volume, .. } | Error::KeyChild { volume, .. } = &mut error {
        *volume = Some(name.clone());
    }
    error
}

/// Whether all may come right a little later: a batch in which one call is refused for good fails as a whole.
fn may_pass(results: &[CallResult]) -> bool {
    let mut failures = results.iter().filter_map(|result| result.as_ref().err());
    failures.clone().next().is_some() && failures.all(KeyFailure::may_pass)
}

/// How long the key service wants to be left alone.
fn retry_after(answer: &Answer) -> Duration {
    let failures = answer
        .results
        .iter()
        .filter_map(|result| result.as_ref().err());
    let longest = failures.filter_map(|failure| failure.retry_after_s).max();
    Duration::from_secs(longest.unwrap_or(0).into())
}

/// Whether nothing is in the way but that the service wants to be asked later.
fn overloaded(results: &[CallResult]) -> bool {
    let mut failures = results.iter().filter_map(|result| result.as_ref().err());
    failures.clone().next().is_some() && failures.all(|failure| failure.retry_after_s.is_some())
}

/// That a call was not even asked: the calls before it were not answered.
fn not_served(key: &KeyRef, deadline: Duration) -> KeyFailure {
    KeyFailure {
        class: FailureClass::Transient,
        provider_error: "KeyServiceBusy".to_owned(),
        message: format!(
            "key {key}: its key service has answered none of the calls before this one for {} s",
            deadline.as_secs()
        ),
        next_step: "see what those were told and how the key service is, and try again".to_owned(),
        retry_after_s: None,
    }
}

fn mismatched(done: &Done) -> Error {
    Error::Internal(format!("the key child answered another call: {done:?}"))
}

/// Up to half of `pause` more, so that volumes that failed together do not come back together.
fn jitter(pause: Duration) -> Duration {
    let mut byte = [0];
    sealvol_crypto::random(&mut byte);
    pause * u32::from(byte[0]) / 512
}

const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// A service that counts calls in a second has new ones in the next.
const BUSY_PAUSE: Duration = Duration::from_secs(1);
/// With less time than this nobody is asked again: starting a child and connecting take a part of it.
const LEAST: Duration = Duration::from_millis(200);
