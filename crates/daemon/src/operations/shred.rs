//! `volume delete --shred`: the end of a volume's wrapped keys, here and, where the key service can, everywhere.
//!
//! ```text
//!   plan, and is a proof possible? ─▶ audit log: begun ─▶ key service: tombstone, durable ─▶ registry: what was buried
//!      ─▶ audit log: what is refused for ever ─▶ wrapped keys overwritten in both slots of each layer, durable ─▶ deletion
//! ```
//! What always holds:
//! - a tombstone comes before the first wrapped key is overwritten: where it can't be put, nothing is lost. In between the volume
//!   is listed and opens for nobody; whatever cut the shred short, asking for it again ends it;
//! - what is buried is the volume's id, and those data keys it ever had that no layer is under which stays: so neither a copy of
//!   its files opens, nor one of a clone's that is gone, and no volume that is there loses anything;
//! - a proof is given only if no key of another service, and no imported one, has ever wrapped for the volume, and no layer that was
//!   made for it stays.
//!
//! It does not reach whoever has the master key, the key database and a wrapped key, and does without the key service.

use std::collections::BTreeSet;

use sealvol_control::api::{OnlyEnd, ShredProof};
use sealvol_control::key_ref::KeyRef;
use sealvol_control::keychild::Tombstones;
use sealvol_volume::destroy_keys;

use super::stack::about;
use crate::audit::{Operation, Record};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::registry::{LayerRow, VolumeRow};
use crate::rights::Caller;

/// What a shred is to do.
pub(super) struct ShredPlan {
    tombstones: Tombstones,
    /// The providers that are to keep them.
    keepers: BTreeSet<String>,
    /// What they don't reach.
    ends: Vec<OnlyEnd>,
    /// Layers that were made for the volume and stay.
    layers_left: usize,
}

impl Daemon {
    /// What a shred of a volume is to do, with which these layers go.
    pub(super) async fn plan_shred(
        &self,
        row: &VolumeRow,
        own: &[LayerRow],
    ) -> Result<ShredPlan, Error> {
        let (volume, layers) = (row.id, own.iter().map(|layer| layer.id).collect::<Vec<_>>());
        let facts = self
            .registry
            .call(move |registry| registry.shred_facts(volume, &layers))
            .await?;
        let mut plan = ShredPlan {
            tombstones: Tombstones {
                volumes: vec![volume.to_string()],
                data_keys: facts.data_keys.into_iter().collect(),
            },
            keepers: BTreeSet::new(),
            ends: Vec::new(),
            layers_left: facts.layers_left,
        };
        for (provider, key_id) in facts.wrapped_by {
            let key = KeyRef::new(&provider, &key_id)?;
            plan.ends.extend(self.keys.only_end(&key).await?);
            if self.keys.keeps_tombstones(&provider) {
                plan.keepers.insert(provider);
            }
        }
        Ok(plan)
    }

    /// Has the key services refuse for ever what is to be shredded, and says so in the audit log. Nothing is destroyed before.
    pub(super) async fn bury(
        &self,
        caller: Caller,
        row: &VolumeRow,
        plan: ShredPlan,
    ) -> Result<ShredProof, Error> {
        let record = Record {
            key: Some(row.key.to_string()),
            ..about(row, Operation::Shred, caller)
        };
        let mut proof = ShredProof {
            complete: plan.is_complete(),
            tombstones: Vec::new(),
            ends: plan.ends,
            layers_left: plan.layers_left,
        };
        if !plan.keepers.is_empty() {
            let begun = "begun".to_owned();
            self.append_shred(Record {
                result: begun,
                ..record.clone()
            })
            .await?;
        }
        for provider in plan.keepers {
            let (tombstones, name) = (plan.tombstones.clone(), provider.clone());
            match self.keys.bury(caller, &provider, tombstones.clone()).await {
                Ok(stands) => proof.tombstones.push(stands),
                Err(error) => {
                    let result = error.to_string();
                    self.append_shred(Record { result, ..record }).await?;
                    return Err(error);
                }
            }
            self.registry
                .call(move |registry| registry.bury(&name, &tombstones))
                .await?;
        }
        let result = in_words(&proof, &plan.tombstones);
        self.append_shred(Record { result, ..record }).await?;
        Ok(proof)
    }

    /// Overwrites the wrapped keys of the layers that go.
    pub(super) async fn destroy_wrapped_keys(
        &self,
        row: &VolumeRow,
        own: &[LayerRow],
    ) -> Result<(), Error> {
        for layer in own {
            let directory = self.place_of(layer).directory();
            let directory = directory.map_err(Error::store(&row.name))?;
            destroy_keys(&directory)
                .await
                .map_err(Error::volume(&row.name))?;
        }
        Ok(())
    }

    async fn append_shred(&self, record: Record) -> Result<(), Error> {
        let written = self.audit.append(record).await;
        written.map_err(|source| Error::Audit {
            path: self.audit.path().to_owned(),
            source,
        })
    }
}

impl ShredPlan {
    fn is_complete(&self) -> bool {
        self.ends.is_empty() && self.layers_left == 0
    }

    /// Refuses a shred after which something would go on to open copies.
    pub(super) fn check_provable(&self, row: &VolumeRow) -> Result<(), Error> {
        let refuse = |cause, next_step| {
            Err(Error::NoProof {
                name: row.name.clone(),
                cause,
                next_step,
            })
        };
        if self.layers_left > 0 {
            return refuse(
                format!(
                    "other volumes stand on layers that were made for it and go on to open what is in them: {}",
                    self.layers_left
                ),
                "Delete those volumes first, or delete this one without --require-proof".to_owned(),
            );
        }
        let Some(first) = self.ends.first() else {
            return Ok(());
        };
        let command = first.command.as_ref();
        let command = command.map_or_else(String::new, |command| format!(": {command}"));
        refuse(
            format!(
                "key {} opens every copy of what it wrapped for the volume, and {}",
                first.key, first.cause
            ),
            format!(
                "Delete it without --require-proof, and {}{command}",
                first.end
            ),
        )
    }
}

/// What the audit log says of a shred before the wrapped keys here go.
fn in_words(proof: &ShredProof, buried: &Tombstones) -> String {
    let mut words = vec!["ok".to_owned()];
    for stands in &proof.tombstones {
        words.push(format!(
            "{} (key database {}, change {}) refuses for ever volume {} and data keys {}",
            stands.provider,
            stands.database,
            stands.changes,
            buried.volumes.join(", "),
            buried.data_keys.join(", ")
        ));
    }
    let keys: Vec<&str> = proof.ends.iter().map(|end| end.key.as_str()).collect();
    if !keys.is_empty() {
        words.push(format!("copies still open under {}", keys.join(", ")));
    }
    if proof.layers_left > 0 {
        words.push(format!(
            "layers that were made for it stay: {}",
            proof.layers_left
        ));
    }
    let (ok, rest) = (words.remove(0), words.join("; "));
    if rest.is_empty() {
        ok
    } else {
        format!("{ok}: {rest}")
    }
}
