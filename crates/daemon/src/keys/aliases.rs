//! Aliases of keys: what one means, and the changes of them with their records.
//!
//! What always holds: a volume is bound to a key, never to an alias; what an alias means is asked once, when the key is named for
//! the volume.

use sealvol_control::key_ref::KeyRef;
use sealvol_control::keychild::{ALIAS_PREFIX, AliasChange, AliasChanged, Call, Done, Right};

use super::{Attempts, Keys, mismatched};
use crate::audit::{Operation, Record};
use crate::error::Error;
use crate::rights::Caller;

impl Keys {
    /// The key that somebody names for a volume, as it is kept: an alias as the key that it means now.
    ///
    /// # Errors
    /// [`Error::NoSuchProvider`]; for an alias also when the key service refuses or cannot be asked.
    pub(crate) async fn resolve(&self, key: KeyRef) -> Result<KeyRef, Error> {
        self.provider(key.provider())?;
        if !key.key().starts_with(ALIAS_PREFIX) {
            return Ok(key);
        }
        let described = self.describe(&key).await?;
        Ok(KeyRef::new(key.provider(), &described.key_id)?)
    }

    /// Makes, moves or removes an alias.
    ///
    /// # Errors
    /// When the key service refuses or cannot be asked, or the record cannot be written.
    pub(crate) async fn change_alias(
        &self,
        caller: Caller,
        alias: &KeyRef,
        change: AliasChange,
    ) -> Result<AliasChanged, Error> {
        let operation = match &change {
            AliasChange::Create { .. } => Operation::CreateAlias,
            AliasChange::Delete => Operation::DeleteAlias,
            AliasChange::Update { .. } => Operation::UpdateAlias,
        };
        let of = |id: &String| format!("{}:{id}", alias.provider());
        let asked = match &change {
            AliasChange::Create { key } | AliasChange::Update { key } => Some(of(key)),
            AliasChange::Delete => None,
        };
        let call = Call::ChangeAlias {
            alias: alias.key().to_owned(),
            change,
        };
        let answer = self
            .ask(caller, Right::Administer, alias, call, Attempts::One)
            .await;
        let changed = answer.and_then(|(done, _)| match done {
            Done::ChangeAlias(changed) => Ok(changed),
            other => Err(mismatched(&other)),
        });
        let told = changed.as_ref().ok();
        let record = Record {
            alias: Some(alias.to_string()),
            key: told.map_or(asked, |told| told.key_id.as_ref().map(of)),
            from: told.and_then(|told| told.former.as_ref().map(of)),
            ..Record::of(operation, caller)
        };
        self.record(record, changed).await
    }
}
