//! Revocation while attached: asks the key service whether keys in memory may still be used.
//!
//! ```text
//! every so often, for each attached volume that is watched:
//!   a throw-away key, wrapped under the volume's key and context ─▶ could it be unwrapped now?
//!     yes                                         all is well
//!     no: disabled, pending deletion, gone,
//!         not permitted                           audit log ─▶ detached by force, its key wiped ─▶ told
//!     nobody to ask                               the time is counted; over the grace it is as a no
//! ```
//! What always holds:
//! - the volume's own data key is never asked for again, and no plaintext of the throw-away key reaches this process;
//! - an outage is not taken for a revocation before its grace is over, which is counted on boot time and goes on after a restart;
//! - from a revocation on nobody is let in; requests in flight are brought to their end, what was written is committed.
//!
//! Never: a wipe while a disk holds up a request in flight: it waits for that, and says so.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use rustix::time::{ClockId, clock_gettime};
use sealvol_control::api::{Enforcement, VolumeName};
use sealvol_volume::VolumeId;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::audit::{Operation, Record};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::keys::WrappedCopy;
use crate::registry::VolumeRow;

/// Key services that are asked at once.
const AT_ONCE: usize = 8;

/// What is known of the volumes that are watched.
#[derive(Default)]
pub(crate) struct Revocation {
    watched: Mutex<HashMap<VolumeId, Watched>>,
    changed: Notify,
}

/// One of them, while it is attached.
struct Watched {
    /// When to ask next.
    due: Instant,
    /// Boot time, in seconds, from which on the key service has been away if it is.
    since: u64,
    /// Seconds it had been away before that.
    before: u32,
    /// Half of the grace was over, and somebody told.
    told: bool,
    probe: Option<WrappedCopy>,
}

/// What a key service said.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Usable,
    Revoked(String),
    /// Nothing about the key.
    Nothing(String),
}

impl Said {
    fn of(asked: Result<(), Error>) -> Self {
        match asked {
            Ok(()) => Self::Usable,
            Err(Error::Key { failure, .. }) if failure.is_revocation() => {
                Self::Revoked(failure.to_string())
            }
            Err(error) => Self::Nothing(error.to_string()),
        }
    }
}

impl Revocation {
    /// Which volumes are watched, or how, has changed.
    pub(crate) fn changed(&self) {
        self.changed.notify_one();
    }

    fn probe_of(&self, volume: VolumeId) -> Option<WrappedCopy> {
        self.watched().get(&volume)?.probe.clone()
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<VolumeId, Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Daemon {
    /// Asks for the keys of all watched volumes, for as long as the daemon runs.
    pub(crate) async fn watch_keys(self: Arc<Self>) {
        loop {
            let next = match self.ask_who_is_due().await {
                Ok(next) => next,
                Err(error) => {
                    tracing::error!(%error, "keys can't be watched now");
                    Some(Instant::now() + Duration::from_secs(1))
                }
            };
            let changed = self.revocation.changed.notified();
            match next {
                Some(next) => {
                    let _ = tokio::time::timeout_at(next, changed).await;
                }
                None => changed.await,
            }
        }
    }

    /// When to ask again; `None` if nobody is watched.
    async fn ask_who_is_due(self: &Arc<Self>) -> Result<Option<Instant>, Error> {
        let all = self.registry.call(|registry| registry.enforcements());
        let (now, mut due, mut next) = (Instant::now(), Vec::new(), None);
        let mut present = Vec::new();
        for (name, policy) in all.await? {
            let Ok(row) = self.registered(&name).await else {
                continue; // it is being deleted
            };
            let every = Duration::from_secs(policy.every_seconds.into());
            if self.exports.get(name.as_str()).is_none() {
                // Its next attach asks anyhow.
                next = earlier(next, now + every);
                continue;
            }
            present.push(row.id);
            let at = self.look_again(&row, &policy, now);
            if at <= now {
                due.push((row, policy));
                next = earlier(next, now + every);
            } else {
                next = earlier(next, at);
            }
        }
        self.revocation
            .watched()
            .retain(|id, _| present.contains(id));
        futures_util::stream::iter(due)
            .for_each_concurrent(AT_ONCE, |(row, policy)| self.ask(row, policy))
            .await;
        Ok(next)
    }

    /// When a volume is due; if it is, the time after that is set.
    fn look_again(&self, row: &VolumeRow, policy: &Enforcement, now: Instant) -> Instant {
        let every = Duration::from_secs(policy.every_seconds.into());
        let mut watched = self.revocation.watched();
        let one = watched.entry(row.id).or_insert_with(|| Watched {
            due: now,
            since: boot_seconds(),
            before: policy.away_seconds,
            told: false,
            probe: None,
        });
        // A shorter period counts from now on.
        let at = one.due.min(now + every);
        one.due = if at <= now { now + every } else { at };
        at
    }

    async fn ask(self: &Arc<Self>, row: VolumeRow, policy: Enforcement) {
        let asked = match self.probe(&row).await {
            Ok(probe) => self.keys.could_unwrap(Self::itself(), &probe).await,
            Err(error) => Err(error),
        };
        match Said::of(asked) {
            Said::Usable => self.is_usable(&row, &policy).await,
            Said::Revoked(why) => {
                self.revoke(&row.name, format!("its key is revoked: {why}"))
                    .await;
            }
            Said::Nothing(why) => self.is_away(&row, &policy, &why).await,
        }
    }

    /// A throw-away key under what wraps the volume's data key now; made once, and again after a rewrap.
    async fn probe(&self, row: &VolumeRow) -> Result<WrappedCopy, Error> {
        let (subject, key) = self.wrapped_under(row).await?;
        let fits =
            |probe: &WrappedCopy| probe.key == key && probe.subject.context == subject.context;
        let had = self.revocation.probe_of(row.id);
        if let Some(probe) = had.filter(fits) {
            return Ok(probe);
        }
        let wrapped = self.keys.generate(Self::itself(), &subject, &key).await?;
        let probe = WrappedCopy {
            subject,
            key,
            blob: wrapped.blob,
        };
        if let Some(one) = self.revocation.watched().get_mut(&row.id) {
            one.probe = Some(probe.clone());
        }
        Ok(probe)
    }

    async fn is_usable(&self, row: &VolumeRow, policy: &Enforcement) {
        let was_away = match self.revocation.watched().get_mut(&row.id) {
            Some(one) => {
                one.since = boot_seconds();
                let told = std::mem::take(&mut one.told);
                std::mem::take(&mut one.before) > 0 || told
            }
            None => false,
        };
        if was_away || policy.away_seconds > 0 {
            self.failures.clear(row.name.as_str());
            self.note_away(row, 0).await;
            tracing::info!(volume = %row.name, "its key service answers again");
        }
    }

    async fn is_away(self: &Arc<Self>, row: &VolumeRow, policy: &Enforcement, why: &str) {
        let (away, tell) = match self.revocation.watched().get_mut(&row.id) {
            Some(one) => {
                let away = away(one.before, one.since, boot_seconds());
                let half = away >= policy.grace_seconds.div_ceil(2);
                (away, half && !std::mem::replace(&mut one.told, half))
            }
            None => return,
        };
        self.note_away(row, away).await;
        let name = &row.name;
        let grace = policy.grace_seconds;
        if away >= grace {
            let why = format!(
                "its key service was away for {away} seconds, over its grace of {grace}: {why}"
            );
            return self.revoke(name, why).await;
        }
        tracing::warn!(volume = %name, away, grace, why, "its key can't be asked for");
        if tell {
            let message = format!(
                "its key service has been away for {away} seconds; after {grace} the volume is detached: {why}"
            );
            tracing::error!(volume = %name, "{message}");
            self.failures.set(name.as_str(), message);
        }
    }

    async fn note_away(&self, row: &VolumeRow, seconds: u32) {
        let id = row.id;
        let noted = self
            .registry
            .call(move |registry| registry.set_away(id, seconds));
        if let Err(error) = noted.await {
            tracing::error!(volume = %row.name, %error, "how long its key service is away can't be noted");
        }
    }

    /// Takes the key out of memory, and tells why.
    async fn revoke(self: &Arc<Self>, name: &VolumeName, why: String) {
        // A task of its own: it is carried to its end also when the daemon stops meanwhile.
        let (daemon, name) = (Arc::clone(self), name.clone());
        let revoked = tokio::spawn(async move {
            let Ok(_leave) = daemon.leave().await else {
                return;
            };
            if let Err(error) = daemon.revoke_now(&name, &why).await {
                tracing::error!(volume = %name, %error, "its key is revoked, and could not be wiped");
            }
        });
        let _ = revoked.await;
    }

    async fn revoke_now(&self, name: &VolumeName, why: &str) -> Result<(), Error> {
        let _turn = self.turn(name).await;
        let row = self.registered(name).await?;
        let record = Record {
            volume: Some(row.id.to_string()),
            name: Some(name.to_string()),
            key: Some(row.key.to_string()),
            result: why.to_owned(),
            ..Record::of(Operation::Revoke, Self::itself())
        };
        if let Err(error) = self.audit.append(record).await {
            // The key goes all the same: to keep it would be worse than to lack a record.
            tracing::error!(volume = %name, %error, "the revocation could not be recorded");
        }
        tracing::error!(volume = %name, why, "revoked");
        let of_snapshots = format!("{name}@");
        let mut exports = self.exports.all();
        exports.retain(|export| {
            export.name == name.as_str() || export.name.starts_with(&of_snapshots)
        });
        for export in &exports {
            // Before any is waited for: none of them lets anybody in any more.
            export.begin_drain();
        }
        for export in exports {
            self.take_down(name, export, true).await?;
        }
        let id = row.id;
        self.registry
            .call(move |registry| {
                registry.set_away(id, 0)?;
                registry.set_detached(id)?;
                registry.set_snapshots_detached(id)
            })
            .await?;
        self.failures
            .set(name.as_str(), format!("it was detached: {why}"));
        tracing::error!(volume = %name, "detached, and its key wiped");
        Ok(())
    }
}

fn earlier(one: Option<Instant>, other: Instant) -> Option<Instant> {
    Some(one.map_or(other, |one| one.min(other)))
}

/// For how many seconds a key service has been away.
fn away(before: u32, since: u64, now: u64) -> u32 {
    let more = u32::try_from(now.saturating_sub(since)).unwrap_or(u32::MAX);
    before.saturating_add(more)
}

/// Seconds since the machine started, those in which it slept included.
fn boot_seconds() -> u64 {
    clock_gettime(ClockId::Boottime).tv_sec.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use sealvol_control::keychild::{FailureClass, KeyFailure};

    use super::*;

    fn said(class: FailureClass, provider_error: &str) -> Said {
        let failure = Box::new(KeyFailure {
            class,
            provider_error: provider_error.to_owned(),
            message: "why".to_owned(),
            next_step: "what".to_owned(),
            retry_after_s: None,
        });
        Said::of(Err(Error::Key {
            volume: None,
            failure,
        }))
    }

    #[test]
    fn an_outage_is_no_revocation() {
        for (class, name) in [
            (FailureClass::Transient, "ThrottlingException"),
            (FailureClass::CallerBug, "ValidationException"),
            (FailureClass::KeyUnusable, "MasterKeyUnavailable"),
            (FailureClass::KeyUnusable, "NoDatabase"),
            (FailureClass::NotPermitted, "UnsafePlace"),
            (FailureClass::WrongKeyOrTamper, "TableRolledBack"),
        ] {
            assert!(matches!(said(class, name), Said::Nothing(_)), "{name}");
        }
        for (class, name) in [
            (FailureClass::KeyUnusable, "DisabledException"),
            (FailureClass::KeyUnusable, "KMSInvalidStateException"),
            (FailureClass::GoneForEver, "NotFoundException"),
            (FailureClass::NotPermitted, "AccessDeniedException"),
            (FailureClass::WrongKeyOrTamper, "InvalidCiphertextException"),
        ] {
            assert!(matches!(said(class, name), Said::Revoked(_)), "{name}");
        }
        assert_eq!(Said::of(Ok(())), Said::Usable);
        let internal = Error::Internal("the child died".to_owned());
        assert!(matches!(Said::of(Err(internal)), Said::Nothing(_)));
    }

    #[test]
    fn time_away_goes_on_after_a_restart_and_never_back() {
        assert_eq!(away(0, 100, 160), 60);
        assert_eq!(away(40, 100, 160), 100);
        assert_eq!(away(40, 200, 160), 40);
        assert_eq!(away(u32::MAX, 0, u64::MAX), u32::MAX);
    }
}
