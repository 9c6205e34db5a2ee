//! Changes of key-encryption keys, and what comes due by itself: the calls, and their records.
//!
//! What always holds: each change has its record; a destruction has one before it begins, and one of how it ended.

use sealvol_control::key_ref::KeyRef;
use sealvol_control::keychild::{
    Call, Done, KeyChange, KeyDescription, Right, Service, TableState, Tombstones,
};

use super::{Attempts, Keys, mismatched};
use crate::audit::{Operation, Record};
use crate::error::Error;
use crate::rights::Caller;

impl Keys {
    /// Changes a key.
    ///
    /// # Errors
    /// When the key service refuses or cannot be asked, or the record cannot be written.
    pub(crate) async fn change(
        &self,
        caller: Caller,
        key: &KeyRef,
        change: KeyChange,
    ) -> Result<KeyDescription, Error> {
        let record = Record {
            key: Some(key.to_string()),
            days: match change {
                KeyChange::ScheduleDeletion { days } => Some(days),
                KeyChange::SetRotation { days } => days,
                _ => None,
            },
            ..Record::of(operation(&change), caller)
        };
        if change == KeyChange::Destroy {
            let begun = "begun".to_owned();
            let begun = Record {
                result: begun,
                ..record.clone()
            };
            let written = self.audit.append(begun).await;
            written.map_err(|source| Error::Audit {
                path: self.audit.path().to_owned(),
                source,
            })?;
        }
        let call = Call::Change {
            key: key.key().to_owned(),
            change,
        };
        let answer = self
            .ask(caller, Right::Administer, key, call, Attempts::One)
            .await;
        let changed = answer.and_then(|(done, _)| match done {
            Done::Change(description) => Ok(description),
            other => Err(mismatched(&other)),
        });
        self.record(record, changed).await
    }

    /// The providers whose keys come due here, and not in a service of their own.
    pub(crate) fn to_tend(&self) -> impl Iterator<Item = &str> {
        let kept_here = self
            .providers()
            .filter(|provider| matches!(provider.service, Service::Local(_)));
        kept_here.map(|provider| provider.name.as_str())
    }

    /// Has a provider do what is due, and tells what is to be destroyed.
    ///
    /// # Errors
    /// When the key service refuses or cannot be asked, or a record cannot be written.
    pub(crate) async fn tend(
        &self,
        caller: Caller,
        provider: &str,
    ) -> Result<Vec<KeyDescription>, Error> {
        let whole = KeyRef::new(provider, "*")?;
        let (done, _) = self
            .ask(caller, Right::Administer, &whole, Call::Tend, Attempts::One)
            .await?;
        let Done::Tend(tended) = done else {
            return Err(mismatched(&done));
        };
        for expired in tended.expired {
            let key = KeyRef::new(provider, &expired.key_id)?;
            tracing::warn!(%key, name = expired.name, "imported key material expired and is destroyed");
            let record = Record {
                key: Some(key.to_string()),
                ..Record::of(Operation::ExpireKeyMaterial, caller)
            };
            self.record(record, Ok(())).await?;
        }
        for rotated in tended.rotated {
            let key = KeyRef::new(provider, &rotated.name)?;
            let version = rotated.versions.last().map(|version| version.version);
            tracing::info!(%key, version, "rotated by itself");
            let record = Record {
                key: Some(key.to_string()),
                key_version: version,
                ..Record::of(Operation::RotateKey, caller)
            };
            self.record(record, Ok(())).await?;
        }
        Ok(tended.due)
    }

    /// Goes on from a provider's table as it is now, although another was relied on; in the same step it gets these tombstones.
    ///
    /// # Errors
    /// When the key service refuses or cannot be asked, or the record cannot be written.
    pub(crate) async fn accept_table(
        &self,
        caller: Caller,
        provider: &str,
        tombstones: Tombstones,
    ) -> Result<TableState, Error> {
        let whole = KeyRef::new(provider, "*")?;
        let calls = vec![Call::AcceptTable, Call::Tombstone(tombstones)];
        let asked = self
            .ask_all(caller, Right::Administer, &whole, calls, Attempts::One)
            .await;
        let accepted = asked.and_then(|answer| {
            let none = || Error::Internal("the key child told no table of keys".to_owned());
            let refused = |failure| Error::Key {
                volume: None,
                failure: Box::new(failure),
            };
            let results = answer.results.into_iter();
            results.collect::<Result<Vec<_>, _>>().map_err(refused)?;
            answer.table.ok_or_else(none)
        });
        let record = Record {
            key: Some(whole.to_string()),
            ..Record::of(Operation::AcceptKeyTable, caller)
        };
        self.record(record, accepted).await
    }
}

fn operation(change: &KeyChange) -> Operation {
    match change {
        KeyChange::CancelDeletion => Operation::CancelKeyDeletion,
        KeyChange::DeleteMaterial => Operation::DeleteKeyMaterial,
        KeyChange::Destroy => Operation::DestroyKey,
        KeyChange::Disable => Operation::DisableKey,
        KeyChange::Enable => Operation::EnableKey,
        KeyChange::Rotate => Operation::RotateKey,
        KeyChange::ScheduleDeletion { .. } => Operation::ScheduleKeyDeletion,
        KeyChange::SetRotation { .. } => Operation::SetKeyRotation,
    }
}
