//! Whether each configured key service answers, and whether each volume's key is of one that is configured.

use std::time::Instant;

use sealvol_control::api::doctor::Check;
use sealvol_control::key_ref::KeyRef;

use super::{failure, ok};
use crate::control::reply;
use crate::daemon::Daemon;
use crate::error::Error;

pub(super) async fn look(daemon: &Daemon) -> Vec<Check> {
    let names = daemon
        .keys
        .providers()
        .map(|provider| provider.name.clone());
    let mut checks = Vec::new();
    for name in names.collect::<Vec<_>>() {
        let begun = Instant::now();
        let listed = daemon.keys.list(&name).await;
        let subject = format!("key service {name}");
        checks.push(match listed {
            Ok(keys) => {
                let took = begun.elapsed().as_millis();
                ok(
                    &subject,
                    format!("answers in {took} ms; {} keys", keys.len()),
                )
            }
            Err(error) => {
                let told = reply::error(&error);
                let advice = told
                    .next_step
                    .unwrap_or_else(|| "Ask it again later".to_owned());
                failure(&subject, told.message, advice)
            }
        });
    }
    checks
}

/// Volumes that can't be attached, since nobody can be asked for their key.
pub(super) async fn orphans(daemon: &Daemon) -> Result<Check, Error> {
    const SUBJECT: &str = "volumes' keys";
    let mut volumes = daemon.list_volumes().await?.volumes;
    // Nobody is asked for the key of an ephemeral one, nor for one that is given.
    let given = KeyRef::provided().to_string();
    volumes.retain(|volume| !volume.ephemeral && volume.key != given);
    let known = |key: &str| {
        let provider = key.split(':').next();
        daemon
            .keys
            .providers()
            .any(|one| Some(&*one.name) == provider)
    };
    let orphans = volumes.iter().filter(|volume| !known(&volume.key));
    let orphans: Vec<_> = orphans
        .map(|volume| format!("{} ({})", volume.name, volume.key))
        .collect();
    Ok(if orphans.is_empty() {
        ok(
            SUBJECT,
            format!(
                "{} volumes, each under a configured key service",
                volumes.len()
            ),
        )
    } else {
        failure(
            SUBJECT,
            format!(
                "of key services that are not configured: {}",
                orphans.join(", ")
            ),
            "Configure them again: sealvold --config",
        )
    })
}
