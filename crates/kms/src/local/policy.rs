//! Who may use which key: the key's policy, asked before its state, as AWS KMS does.
//!
//! | call | what the policy has to allow the principal |
//! |---|---|
//! | `Generate` | `create`, in that context |
//! | `Unwrap`, `Check` | `attach`, in that context |
//! | `Rewrap` | the right of the batch (`create` or `administer`), of both keys, each in its context |
//! | every change of a key, its aliases, its material and its policy; what its policy is | `administer`, without a context |
//! | `Describe`, `ListKeys`, `CreateKey`, `Tend`, `AcceptTable`, `Backup`, `Tombstone` | nothing: they use no key; of a backup see `backup.rs` |
//!
//! What always holds:
//! - a key without a policy is used by whoever holds the right: so it was before there were policies, and so are keys that nobody
//!   has said anything of; the daemon's configuration says who holds one;
//! - what a policy does not allow is denied, but that root may administer: a key that nobody may administer would be lost;
//! - whoever sets a policy may set another one after it, unless he says that he need not;
//! - the daemon for itself is denied nothing: it goes on with what was allowed to whoever began it.

use rusqlite::params;
use sealvol_control::keychild::{Policy, Principal, Right};
use sealvol_crypto::EncryptionContext;

use super::Local;
use super::table::Key;
use crate::Refusal;

impl Local {
    /// Refuses what the policy of a key does not allow the principal.
    pub(super) fn permit(
        &self,
        key: &Key,
        action: Right,
        context: Option<&EncryptionContext>,
    ) -> Result<(), Refusal> {
        let (Principal::Uid(uid), Some(policy)) = (self.principal, &key.policy) else {
            return Ok(());
        };
        // It was checked when it was set, and stands under the MAC. Whatever else there may be allows nothing.
        let policy: Option<Policy> = policy.parse().ok();
        if policy.is_some_and(|policy| allows(&policy, uid, action, context))
            || is_root(uid, action)
        {
            return Ok(());
        }
        Err(Refusal::PolicyDenies {
            key: self.reference(&key.name),
            uid,
            action,
        })
    }

    /// The policy of a key.
    pub(super) fn policy_of(&self, key: &str) -> Result<Option<String>, Refusal> {
        let table = self.table()?;
        let key = self.find_key_in(&table, key)?;
        self.permit(key, Right::Administer, None)?;
        Ok(key.policy.clone())
    }

    /// Gives a key another policy, or none.
    pub(super) fn put_policy(
        &self,
        key: &str,
        policy: Option<&str>,
        bypass_lockout_check: bool,
    ) -> Result<(), Refusal> {
        let parsed: Option<Policy> =
            policy
                .map(str::parse)
                .transpose()
                .map_err(|error| Refusal::MalformedPolicy {
                    reason: format!("{error}"),
                })?;
        self.change(|transaction, table, _| {
            let key = self.find_key_in(table, key)?;
            self.permit(key, Right::Administer, None)?;
            if !bypass_lockout_check {
                self.check_lockout(parsed.as_ref())?;
            }
            match policy {
                Some(policy) => self.execute(
                    transaction,
                    "INSERT OR REPLACE INTO policies (key_id, policy) VALUES (?1, ?2)",
                    params![key.id, policy],
                ),
                None => {
                    let sql = "DELETE FROM policies WHERE key_id = ?1";
                    self.execute(transaction, sql, params![key.id])
                }
            }
        })
    }

    /// Refuses a policy after which the principal could not set another one.
    fn check_lockout(&self, policy: Option<&Policy>) -> Result<(), Refusal> {
        let (Some(policy), Principal::Uid(uid)) = (policy, self.principal) else {
            return Ok(());
        };
        let administer = Right::Administer;
        if allows(policy, uid, administer, None) || is_root(uid, administer) {
            return Ok(());
        }
        let reason = format!(
            "policy: after it user {uid}, who sets it, could not set another one (action administer, without a context)"
        );
        Err(Refusal::MalformedPolicy { reason })
    }
}

fn allows(policy: &Policy, uid: u32, action: Right, context: Option<&EncryptionContext>) -> bool {
    let has = |name: &str, value: &str| {
        context.is_some_and(|context| context.iter().any(|pair| pair == (name, value)))
    };
    policy.allows(uid, action, &has)
}

fn is_root(uid: u32, action: Right) -> bool {
    uid == 0 && action == Right::Administer
}
