//! The policy of a key: asked for, and set with its record.

use sealvol_control::key_ref::KeyRef;
use sealvol_control::keychild::{Call, Done, Right};

use super::{Attempts, Keys, mismatched};
use crate::audit::{Operation, Record};
use crate::error::Error;
use crate::rights::Caller;

impl Keys {
    /// The policy of a key, as text.
    ///
    /// # Errors
    /// When the key service refuses or cannot be asked.
    pub(crate) async fn policy(
        &self,
        caller: Caller,
        key: &KeyRef,
    ) -> Result<Option<String>, Error> {
        let call = Call::Policy {
            key: key.key().to_owned(),
        };
        let asked = self.ask(caller, Right::Administer, key, call, Attempts::Several);
        match asked.await?.0 {
            Done::Policy(policy) => Ok(policy),
            other => Err(mismatched(&other)),
        }
    }

    /// Gives a key another policy, or none.
    ///
    /// # Errors
    /// When the key service refuses or cannot be asked, or the record cannot be written.
    pub(crate) async fn set_policy(
        &self,
        caller: Caller,
        key: &KeyRef,
        policy: Option<String>,
        bypass_lockout_check: bool,
    ) -> Result<(), Error> {
        let call = Call::SetPolicy {
            key: key.key().to_owned(),
            policy: policy.clone(),
            bypass_lockout_check,
        };
        let asked = self.ask(caller, Right::Administer, key, call, Attempts::One);
        let set = asked.await.and_then(|(done, _)| match done {
            Done::SetPolicy => Ok(()),
            other => Err(mismatched(&other)),
        });
        let record = Record {
            key: Some(key.to_string()),
            policy: Some(policy.unwrap_or_else(|| "none".to_owned())),
            ..Record::of(Operation::SetKeyPolicy, caller)
        };
        self.record(record, set).await
    }
}
