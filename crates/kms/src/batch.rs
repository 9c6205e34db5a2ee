//! Carries out a batch: checks the caller's right to each call, then asks the key service.
//!
//! What always holds: a call that the right does not cover never reaches the service; each call
//! succeeds or fails by itself; for each successful `Unwrap`, and for nothing else, there is one
//! volume key, in the order of the calls.

use std::sync::Arc;

use sealvol_control::keychild::{
    Call, CallResult, Context, Done, KeyFailure, Right, TableState, WRAPPED_MAX, Wrapped,
};
use sealvol_crypto::locked::KeyMemory;
use sealvol_crypto::{EncryptionContext, VolumeKey};

use crate::{KeyService, Refusal, Unwrapped, WrappedUnder};

/// Results of the calls, and the volume keys that were unwrapped.
pub struct Outcome {
    /// One for each call.
    pub results: Vec<CallResult>,
    /// One for each successful `Unwrap`.
    pub keys: Vec<VolumeKey>,
    /// What the service's table of keys is known by after them.
    pub table: Option<TableState>,
}

/// Carries out `calls`. A service that could not be opened refuses every call that is permitted.
pub async fn carry_out<S: KeyService>(
    service: Result<&S, &Refusal>,
    memory: &Arc<KeyMemory>,
    right: Right,
    calls: &[Call],
) -> Outcome {
    let mut outcome = Outcome {
        results: Vec::with_capacity(calls.len()),
        keys: Vec::new(),
        table: None,
    };
    for call in calls {
        let result = match permitted(right, call).and_then(|()| service.map_err(KeyFailure::from)) {
            Ok(service) => carry_out_one(service, memory, call, &mut outcome.keys)
                .await
                .map_err(|refusal| KeyFailure::from(&refusal)),
            Err(failure) => Err(failure),
        };
        outcome.results.push(result);
    }
    outcome.table = service.ok().and_then(KeyService::table_state);
    outcome
}

/// Refuses `calls` without a service to ask: those that are not permitted by that name.
pub fn refuse(refusal: &Refusal, right: Right, calls: &[Call]) -> Outcome {
    let refused = |call| permitted(right, call).and_then(|()| Err(KeyFailure::from(refusal)));
    Outcome {
        results: calls.iter().map(refused).collect(),
        keys: Vec::new(),
        table: None,
    }
}

fn permitted(right: Right, call: &Call) -> Result<(), KeyFailure> {
    if right.permits(call) {
        return Ok(());
    }
    Err(KeyFailure::from(&Refusal::NotPermitted {
        right,
        call: name(call),
    }))
}

async fn carry_out_one<S: KeyService>(
    service: &S,
    memory: &Arc<KeyMemory>,
    call: &Call,
    keys: &mut Vec<VolumeKey>,
) -> Result<Done, Refusal> {
    Ok(match call {
        Call::AcceptTable => {
            service.accept_table()?;
            Done::AcceptTable
        }
        Call::Backup { recovery_key } => Done::Backup(service.back_up(recovery_key).await?),
        Call::Change { key, change } => Done::Change(service.change_key(key, change).await?),
        Call::ChangeAlias { alias, change } => {
            Done::ChangeAlias(service.change_alias(alias, change).await?)
        }
        Call::Check {
            key,
            wrapped,
            context,
        } => {
            let unwrapped = unwrap(service, memory, key, wrapped, context).await?;
            Done::Check {
                key_id: unwrapped.key_id,
                key_version: unwrapped.key_version,
            }
        }
        Call::CreateKey { name, origin } => {
            Done::CreateKey(service.create_key(name, *origin).await?)
        }
        Call::Describe { key } => Done::Describe(service.describe(key).await?),
        Call::ExtendAudit { extension } => {
            let (before, after) = service.extend_audit(extension).await?;
            Done::ExtendAudit { before, after }
        }
        Call::Generate { key, context } => {
            Done::Generate(bounded(service.generate(key, &checked(context)?).await?)?)
        }
        Call::ImportMaterial {
            key,
            material,
            token,
            expires,
        } => {
            let imported = service.import_key_material(key, material, token, *expires);
            Done::ImportMaterial(imported.await?)
        }
        Call::ImportParameters {
            key,
            spec,
            algorithm,
        } => {
            let made = service.import_parameters(key, *spec, *algorithm);
            Done::ImportParameters(made.await?)
        }
        Call::ListKeys => Done::ListKeys(service.list_keys().await?),
        Call::Policy { key } => Done::Policy(service.policy(key).await?),
        Call::Rewrap {
            key,
            wrapped,
            old_context,
            new_key,
            new_context,
        } => {
            let from = WrappedUnder {
                key,
                blob: fitting(wrapped)?,
                context: &checked(old_context)?,
            };
            let rewrapped = service
                .rewrap(&from, new_key, &checked(new_context)?)
                .await?;
            Done::Rewrap(bounded(rewrapped)?)
        }
        Call::SetPolicy {
            key,
            policy,
            bypass_lockout_check,
        } => {
            let set = service.set_policy(key, policy.as_deref(), *bypass_lockout_check);
            set.await?;
            Done::SetPolicy
        }
        Call::Tend => Done::Tend(service.tend().await?),
        Call::Tombstone(tombstones) => {
            service.tombstone(tombstones).await?;
            Done::Tombstone
        }
        Call::Unwrap {
            key,
            wrapped,
            context,
        } => {
            let Unwrapped {
                volume_key,
                key_id,
                key_version,
            } = unwrap(service, memory, key, wrapped, context).await?;
            keys.push(volume_key);
            Done::Unwrap {
                key_id,
                key_version,
            }
        }
    })
}

/// The volume key, in locked memory of this process.
async fn unwrap<S: KeyService>(
    service: &S,
    memory: &Arc<KeyMemory>,
    key: &str,
    wrapped: &[u8],
    context: &Context,
) -> Result<Unwrapped, Refusal> {
    let wrapped = WrappedUnder {
        key,
        blob: fitting(wrapped)?,
        context: &checked(context)?,
    };
    service.unwrap(&wrapped, memory).await
}

fn checked(context: &Context) -> Result<EncryptionContext, Refusal> {
    let pairs = context
        .iter()
        .map(|(key, value)| (key.clone(), value.clone()));
    EncryptionContext::new(pairs).map_err(|error| Refusal::BadContext {
        reason: error.to_string(),
    })
}

fn fitting(wrapped: &[u8]) -> Result<&[u8], Refusal> {
    if wrapped.len() > WRAPPED_MAX {
        return Err(Refusal::WrappedKeyLength {
            bytes: wrapped.len(),
        });
    }
    Ok(wrapped)
}

/// What a service made must fit the field it is stored in.
fn bounded(wrapped: Wrapped) -> Result<Wrapped, Refusal> {
    fitting(&wrapped.blob)?;
    Ok(wrapped)
}

fn name(call: &Call) -> &'static str {
    match call {
        Call::AcceptTable => "AcceptTable",
        Call::Backup { .. } => "Backup",
        Call::Change { change, .. } => change.as_str(),
        Call::ChangeAlias { change, .. } => change.as_str(),
        Call::Check { .. } => "Check",
        Call::CreateKey { .. } => "CreateKey",
        Call::Describe { .. } => "Describe",
        Call::ExtendAudit { .. } => "ExtendAudit",
        Call::Generate { .. } => "Generate",
        Call::ImportMaterial { .. } => "ImportKeyMaterial",
        Call::ImportParameters { .. } => "GetParametersForImport",
        Call::ListKeys => "ListKeys",
        Call::Policy { .. } => "GetKeyPolicy",
        Call::Rewrap { .. } => "Rewrap",
        Call::SetPolicy { .. } => "PutKeyPolicy",
        Call::Tend => "Tend",
        Call::Tombstone(_) => "Tombstone",
        Call::Unwrap { .. } => "Unwrap",
    }
}
