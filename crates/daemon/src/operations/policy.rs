//! `key policy show` and `set`.

use sealvol_control::api;
use sealvol_control::key_ref::KeyRef;

use crate::daemon::Daemon;
use crate::error::Error;
use crate::rights::Caller;

impl Daemon {
    pub(crate) async fn key_policy(
        &self,
        caller: Caller,
        key: &str,
    ) -> Result<api::KeyPolicy, Error> {
        let key: KeyRef = key.parse()?;
        let policy = self.keys.policy(caller, &key).await?;
        told(&key, policy)
    }

    pub(crate) async fn set_key_policy(
        &self,
        caller: Caller,
        key: &str,
        request: api::SetKeyPolicy,
    ) -> Result<api::KeyPolicy, Error> {
        let key: KeyRef = key.parse()?;
        let (policy, bypass) = (request.policy, request.bypass_lockout_check);
        self.keys
            .set_policy(caller, &key, policy.clone(), bypass)
            .await?;
        tracing::warn!(%key, uid = caller.uid, "the key has another policy");
        told(&key, policy)
    }
}

fn told(key: &KeyRef, policy: Option<String>) -> Result<api::KeyPolicy, Error> {
    let policy = policy.map(|text| serde_json::from_str(&text)).transpose();
    Ok(api::KeyPolicy {
        key: key.to_string(),
        policy: policy.map_err(|error| Error::Internal(error.to_string()))?,
    })
}
