//! `key set`: many volumes under one key, which go over to another one, or to a newer version of it, together.
//!
//! ```text
//!   update ──▶ registry: the set names another key, and a job begins for each member        (one step)
//!   rotate ──▶ the key's newest version is asked for ─▶ a job for each member that is behind  (also each hour, and at the start)
//!   a job  ──▶ `key rewrap` of one volume by what the set names then
//! ```
//! What always holds:
//! - what is left to do is seen from what wraps the members, never from what was done: whatever stops it, it goes on;
//! - a volume with another job under way is left to the next hour;
//! - a key service that is away makes the jobs wait, and changes nothing.

use std::sync::Arc;

use sealvol_control::api::{self, KeySetName, RewrapWhen};
use sealvol_control::key_ref::KeyRef;

use crate::audit::{Operation, Record};
use crate::control::reply;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::jobs::{Job, RewrapMember, Step};
use crate::registry::{Begun, JobRow, KeySetRow, Newest, VolumeRow};
use crate::rights::Caller;
use crate::timestamp;

impl Daemon {
    pub(crate) async fn list_key_sets(&self) -> Result<api::KeySetList, Error> {
        let mut key_sets = Vec::new();
        for row in self.registry.call(|registry| registry.key_sets()).await? {
            key_sets.push(self.described_set(row).await?);
        }
        Ok(api::KeySetList { key_sets })
    }

    pub(crate) async fn show_key_set(&self, name: KeySetName) -> Result<api::KeySet, Error> {
        let row = self.registered_set(&name).await?;
        self.described_set(row).await
    }

    pub(crate) async fn create_key_set(
        &self,
        caller: Caller,
        request: api::CreateKeySet,
    ) -> Result<api::KeySet, Error> {
        let row = KeySetRow {
            key: self.known_key(&request.key).await?,
            name: request.name,
            rewrap: request.rewrap,
            created: timestamp::now(),
        };
        if self.registered_set(&row.name).await.is_ok() {
            return Err(Error::KeySetTaken(row.name));
        }
        self.record_set(caller, Operation::CreateKeySet, &row)
            .await?;
        let new = row.clone();
        let made = self
            .registry
            .call(move |registry| registry.insert_key_set(&new));
        if !made.await? {
            return Err(Error::KeySetTaken(row.name));
        }
        tracing::info!(set = %row.name, key = %row.key, "key set created");
        self.described_set(row).await
    }

    pub(crate) async fn update_key_set(
        self: &Arc<Self>,
        caller: Caller,
        name: KeySetName,
        request: api::UpdateKeySet,
    ) -> Result<api::KeySet, Error> {
        let former = self.registered_set(&name).await?;
        let key = match &request.key {
            Some(key) => self.known_key(key).await?,
            None => former.key.clone(),
        };
        let members = self.described_set(former.clone()).await?.members;
        for member in &members {
            let from: KeyRef = member.key.parse()?;
            if from.provider() != key.provider() {
                return Err(Error::OtherProvider {
                    name: member.volume.clone(),
                    from,
                    to: key,
                });
            }
        }
        let row = KeySetRow {
            key,
            rewrap: request.rewrap.unwrap_or(former.rewrap),
            ..former
        };
        // Whoever reads the log knows of it before a member is wrapped anew.
        self.record_set(caller, Operation::UpdateKeySet, &row)
            .await?;
        let (new, begun) = (row.clone(), begun_by(caller));
        let jobs = self
            .registry
            .call(move |registry| registry.update_key_set(&new, &begun))
            .await?;
        tracing::info!(set = %name, key = %row.key, rewrap = %row.rewrap, jobs = jobs.len(), "key set changed");
        self.begin_all(&jobs);
        if let Err(error) = self.bring_up(caller, &row).await {
            // What it names counts all the same, and the next hour asks again.
            tracing::warn!(set = %name, %error, "it can't be seen whether its key was rotated");
        }
        self.described_set(row).await
    }

    pub(crate) async fn delete_key_set(
        &self,
        caller: Caller,
        name: KeySetName,
    ) -> Result<api::KeySet, Error> {
        let row = self.registered_set(&name).await?;
        let set = self.described_set(row.clone()).await?;
        let in_use = Error::KeySetInUse {
            set: name.clone(),
            volumes: set
                .members
                .iter()
                .map(|member| member.volume.clone())
                .collect(),
        };
        if !set.members.is_empty() {
            return Err(in_use);
        }
        self.record_set(caller, Operation::DeleteKeySet, &row)
            .await?;
        let gone = self.registry.call({
            let name = name.clone();
            move |registry| registry.delete_key_set(&name)
        });
        if !gone.await? {
            return Err(in_use);
        }
        tracing::info!(set = %name, "key set deleted");
        Ok(set)
    }

    /// The key that a request names, itself or by a set.
    pub(super) async fn named_key(
        &self,
        key: Option<&str>,
        set: Option<&KeySetName>,
    ) -> Result<Option<KeyRef>, Error> {
        match (key, set) {
            (Some(_), Some(_)) => {
                let cause = "a key and a key set: the set says which key it is";
                Err(Error::BadRequest(cause.to_owned()))
            }
            (Some(key), None) => Ok(Some(key.parse()?)),
            (None, Some(set)) => Ok(Some(self.registered_set(set).await?.key)),
            (None, None) => Ok(None),
        }
    }

    /// The key set that a volume is in.
    pub(super) async fn set_of(&self, row: &VolumeRow) -> Result<Option<KeySetRow>, Error> {
        let id = row.id;
        let found = self.registry.call(move |registry| registry.key_set_of(id));
        Ok(found.await?)
    }

    /// Refuses another key for a volume whose set says which it is.
    pub(super) async fn check_key_of_set(
        &self,
        row: &VolumeRow,
        key: &KeyRef,
    ) -> Result<(), Error> {
        match self.set_of(row).await? {
            Some(set) if set.key != *key => Err(Error::InKeySet {
                name: row.name.clone(),
                set: set.name,
            }),
            _ => Ok(()),
        }
    }

    /// Has the members of all sets follow what the sets name; of `provider` alone, if that is said.
    pub(super) async fn bring_up_all(self: &Arc<Self>, provider: Option<&str>) {
        let sets = match self.registry.call(|registry| registry.key_sets()).await {
            Ok(sets) => sets,
            Err(error) => return tracing::error!(%error, "the key sets can't be read"),
        };
        for set in sets {
            if provider.is_some_and(|provider| provider != set.key.provider()) {
                continue;
            }
            let subject = format!("key set {}", set.name);
            match self.bring_up(Self::itself(), &set).await {
                Ok(()) => self.failures.clear(&subject),
                Err(error) => {
                    tracing::warn!(set = %set.name, %error, "it can't be seen whether its key was rotated");
                    let message = format!(
                        "it can't be seen whether its key was rotated, which is tried again within the hour: {}",
                        reply::in_words(&error)
                    );
                    self.failures.set(&subject, message);
                }
            }
        }
    }

    /// Begins a job for each member of the set that is behind. If its key service can't say which version is the newest, those under
    /// another key are behind all the same.
    async fn bring_up(self: &Arc<Self>, caller: Caller, set: &KeySetRow) -> Result<(), Error> {
        let newest = match set.rewrap {
            RewrapWhen::Never => Ok(None),
            RewrapWhen::OnRotate => self.newest(&set.key).await,
        };
        let (newest, asked) = match newest {
            Ok(newest) => (newest, Ok(())),
            Err(error) => (None, Err(error)),
        };
        let (name, begun) = (set.name.clone(), begun_by(caller));
        let jobs = self
            .registry
            .call(move |registry| registry.bring_up_key_set(&name, newest.as_ref(), &begun))
            .await?;
        if !jobs.is_empty() {
            tracing::info!(set = %set.name, key = %set.key, jobs = jobs.len(), "members are wrapped anew");
        }
        self.begin_all(&jobs);
        asked
    }

    async fn newest(&self, key: &KeyRef) -> Result<Option<Newest>, Error> {
        let description = self.keys.describe(key).await?;
        let version = description.versions.last();
        Ok(version.map(|version| Newest {
            key_id: description.key_id.clone(),
            version: version.version,
        }))
    }

    /// What a job of a set does: one volume.
    pub(crate) async fn rewrap_step(
        self: &Arc<Self>,
        job: &Arc<Job>,
        work: &RewrapMember,
    ) -> Result<Step, Error> {
        let Some(_turn) = self.jobs.rewrap_turn(job).await else {
            return Ok(Step::More);
        };
        let row = self.registered(&job.name).await?;
        if row.id != job.volume {
            return Err(Error::NoSuchVolume(job.name.clone()));
        }
        let set = self.set_of(&row).await?;
        if set.is_none_or(|set| set.name.as_str() != work.key_set) {
            // It was taken out: whoever did that has said under which key it is to be.
            return Ok(Step::Done(None));
        }
        let request = api::RewrapVolume::default();
        let rewrapped = self
            .rewrap_volume(Self::itself(), job.name.clone(), request)
            .await?;
        Ok(Step::Done(Some(api::JobResult::Rewrap(rewrapped))))
    }

    fn begin_all(self: &Arc<Self>, jobs: &[JobRow]) {
        for job in jobs {
            self.work_on(job);
        }
    }

    /// A key that its provider knows; what an alias means is asked now and not again.
    async fn known_key(&self, key: &str) -> Result<KeyRef, Error> {
        let key = self.keys.resolve(key.parse()?).await?;
        self.keys.describe(&key).await?;
        Ok(key)
    }

    async fn registered_set(&self, name: &KeySetName) -> Result<KeySetRow, Error> {
        let wanted = name.clone();
        let row = self
            .registry
            .call(move |registry| registry.key_set(&wanted))
            .await?;
        row.ok_or_else(|| Error::NoSuchKeySet(name.clone()))
    }

    async fn described_set(&self, row: KeySetRow) -> Result<api::KeySet, Error> {
        let name = row.name.clone();
        let members = self
            .registry
            .call(move |registry| registry.key_set_members(&name))
            .await?;
        Ok(api::KeySet {
            name: row.name,
            key: row.key.to_string(),
            rewrap: row.rewrap,
            created: row.created,
            members,
        })
    }

    async fn record_set(
        &self,
        caller: Caller,
        operation: Operation,
        row: &KeySetRow,
    ) -> Result<(), Error> {
        let record = Record {
            name: Some(row.name.to_string()),
            key: Some(row.key.to_string()),
            ..Record::of(operation, caller)
        };
        let written = self.audit.append(record).await;
        written.map_err(|source| Error::Audit {
            path: self.audit.path().to_owned(),
            source,
        })
    }
}

fn begun_by(caller: Caller) -> Begun {
    Begun {
        by: caller.uid,
        at: timestamp::now(),
    }
}
