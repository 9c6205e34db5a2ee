//! What was attached when the daemon last stopped is attached again, at the start and for as long as its key service is away.
//!
//! ```text
//! start ─▶ each once ─┬─ attached                     clients are let in when every one has had its turn
//!                     ├─ refused                      told by `status`; whoever sees to the cause attaches it
//!                     └─ nobody to ask, or too slow   told by `status` ─▶ one of each key service after a pause: 1 s, 2 s, … 60 s
//!                                                                            it answers: all others of that service
//! ```
//! What always holds:
//! - what fails stays registered as attached, and does not hold up the others;
//! - only a failure that may pass by itself is tried again, and never one of a volume that was attached or detached meanwhile;
//! - a key service that is away is asked for one volume at a time, however many wait for it.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use sealvol_control::api::{SnapshotRef, VolumeName};

use crate::control::reply;
use crate::daemon::Daemon;
use crate::error::Error;

/// What an export is of.
#[derive(Clone)]
enum Subject {
    Volume(VolumeName),
    Snapshot(SnapshotRef),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume(name) => name.fmt(f),
            Self::Snapshot(name) => name.fmt(f),
        }
    }
}

/// What waits for its key service, by the name of that.
#[derive(Default)]
pub(crate) struct Waiting(BTreeMap<String, VecDeque<Subject>>);

/// How an attempt ended.
enum Attempt {
    /// It is served, or is not to be any more, or was refused for good.
    Over,
    /// The key service did not answer.
    MayPass,
}

impl Daemon {
    /// Attaches everything once that is registered as attached; gives what is to be tried again.
    ///
    /// # Errors
    /// When the registry cannot be read.
    pub(crate) async fn attach_all_again(self: &Arc<Self>) -> Result<Waiting, Error> {
        let mut waiting = Waiting::default();
        let (volumes, snapshots) = self.registered_as_attached().await?;
        // Snapshots after volumes: these are what somebody waits for.
        for subjects in [volumes, snapshots] {
            for (provider, subject) in self.attach_each(subjects).await {
                waiting.0.entry(provider).or_default().push_back(subject);
            }
        }
        Ok(waiting)
    }

    /// Goes on with what waits, until nothing does.
    pub(crate) async fn attach_rest_again(self: Arc<Self>, waiting: Waiting) {
        let services = waiting.0.into_iter();
        let each = services.map(|(provider, waiting)| self.attach_when_answered(provider, waiting));
        futures_util::future::join_all(each).await;
    }

    /// Volumes and snapshots with their providers.
    async fn registered_as_attached(
        &self,
    ) -> Result<(Vec<(String, Subject)>, Vec<(String, Subject)>), Error> {
        let (mut volumes, mut snapshots) = (Vec::new(), Vec::new());
        for row in self.registry.call(|registry| registry.volumes()).await? {
            let (id, provider) = (row.id, row.key.provider().to_owned());
            let found = self
                .registry
                .call(move |registry| registry.snapshots(id))
                .await?;
            for snapshot in found.into_iter().filter(|row| row.attached.is_some()) {
                let (volume, name) = (row.name.clone(), snapshot.name);
                let subject = Subject::Snapshot(SnapshotRef { volume, name });
                snapshots.push((provider.clone(), subject));
            }
            if row.attached.is_some() {
                volumes.push((provider, Subject::Volume(row.name)));
            }
        }
        Ok((volumes, snapshots))
    }

    /// Attaches each once; gives those that may be tried again.
    async fn attach_each(
        self: &Arc<Self>,
        subjects: Vec<(String, Subject)>,
    ) -> Vec<(String, Subject)> {
        let attempts = subjects.into_iter().map(|(provider, subject)| async move {
            let attempt = self.attach_or_tell(subject.clone()).await;
            matches!(attempt, Attempt::MayPass).then_some((provider, subject))
        });
        let attempts = futures_util::stream::iter(attempts).buffer_unordered(AT_ONCE);
        attempts.filter_map(std::future::ready).collect().await
    }

    async fn attach_when_answered(
        self: &Arc<Self>,
        provider: String,
        mut waiting: VecDeque<Subject>,
    ) {
        tracing::info!(
            provider,
            waiting = waiting.len(),
            "attached when their key service answers"
        );
        let mut pause = FIRST_PAUSE;
        while let Some(first) = waiting.pop_front() {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            if let Attempt::MayPass = self.attach_or_tell(first.clone()).await {
                // Another one's turn: it may be this volume that the service is slow with.
                waiting.push_back(first);
                continue;
            }
            let rest = waiting.drain(..).map(|subject| (provider.clone(), subject));
            let left = self.attach_each(rest.collect()).await;
            waiting.extend(left.into_iter().map(|(_, subject)| subject));
        }
    }

    /// A task of its own: what has begun is carried to its end also when whoever waits for it is ended.
    async fn attach_or_tell(self: &Arc<Self>, subject: Subject) -> Attempt {
        let daemon = Arc::clone(self);
        let task = tokio::spawn(async move { daemon.try_to_attach(subject).await });
        match task.await {
            Ok(attempt) => attempt,
            Err(error) => {
                tracing::error!(%error, "an attach broke");
                Attempt::Over
            }
        }
    }

    async fn try_to_attach(&self, subject: Subject) -> Attempt {
        // An operation like any other: a stop waits for those that have begun, the rest stay as they are registered.
        let Ok(_leave) = self.leave().await else {
            return Attempt::Over;
        };
        let attached = match subject.clone() {
            Subject::Volume(name) => self.attach_again(name).await,
            Subject::Snapshot(name) => self.attach_snapshot_again(&name).await,
        };
        let name = subject.to_string();
        match attached {
            Ok(()) => Attempt::Over,
            // It was deleted while it waited.
            Err(Error::NoSuchVolume(_) | Error::NoSuchSnapshot(_)) => Attempt::Over,
            Err(error) if error.is_outage() => {
                tracing::warn!(name, %error, "cannot be attached yet");
                let message = format!("{}. It is tried again by itself", reply::in_words(&error));
                self.failures.set(&name, message);
                Attempt::MayPass
            }
            Err(error) => {
                tracing::error!(name, %error, "cannot be attached again");
                self.failures.set(&name, reply::in_words(&error));
                Attempt::Over
            }
        }
    }
}

/// Each is a key child; more of them would only wait for each other's processor.
const AT_ONCE: usize = 8;

/// Between the start's attempt and the next one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// A key service that is back is noticed within so long. Each attempt is a record of the audit log.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
