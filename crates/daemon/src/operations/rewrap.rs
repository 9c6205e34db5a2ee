//! `key rewrap`: the data keys of a volume, wrapped by the newest version of its key or by another one. No block changes.
//!
//! ```text
//!   key service: each data key, wrapped anew ─▶ both copies unwrapped: the same key, and the pinned one
//!      ─▶ superblock of the top: new and old, durable ─▶ registry: the new ones count ─▶ superblock: the new ones alone
//!      ─▶ superblocks of the sealed layers
//! ```
//! What always holds:
//! - at every instant the top holds a copy of each data key that the registry names: whatever is cut short, the volume can be
//!   attached, and asking once more does the rest;
//! - an old copy goes only after the new one is durable and has been proved to open to the same key;
//! - the answer tells what the former copies still open: a layer that somebody reads keeps them until it is not read.
//!
//! What it does not do: help against whoever has an old superblock and the old key. That takes another data key.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Weak;

use sealvol_control::api::{self, VolumeName};
use sealvol_control::key_ref::KeyRef;
use sealvol_control::keychild::Right;
use sealvol_store::{Access, Caching};
use sealvol_volume::{DataKeyId, VolumeError, WrappedKey, read_keys, replace_keys};

use super::attach::is_recorded;
use super::create::as_record;
use super::pins;
use super::stack::{about, wrapped_copy};
use crate::audit::{Operation, Record};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::keys::WrappedCopy;
use crate::registry::{LayerRow, Membership, VolumeRow, WrappedBy};
use crate::rights::Caller;

/// The data keys of a volume, wrapped anew.
struct Renewed {
    /// In the order of the superblock.
    records: Vec<WrappedKey>,
    by: Vec<(DataKeyId, WrappedBy)>,
    /// The copies that counted until now.
    former: Vec<WrappedKey>,
    former_by: HashMap<DataKeyId, WrappedBy>,
}

impl Daemon {
    pub(crate) async fn rewrap_volume(
        &self,
        caller: Caller,
        name: VolumeName,
        request: api::RewrapVolume,
    ) -> Result<api::Rewrapped, Error> {
        let _turn = self.turn(&name).await;
        // What is merged meanwhile would be missed by name.
        let _steady = self.merges.steady().await;
        let row = self.registered(&name).await?;
        self.check_not_being_copied(&row).await?;
        Self::check_not_ephemeral(&row, "its data key is never wrapped")?;
        let (key, set) = (request.key.as_deref(), request.key_set.as_ref());
        let membership = match (key, set) {
            (_, Some(set)) => Membership::Joins(set.clone()),
            (Some(_), None) => Membership::Leaves,
            (None, None) => Membership::Stays,
        };
        let key = match self.named_key(key, set).await? {
            Some(key) => key,
            None => match self.set_of(&row).await? {
                Some(set) => set.key,
                None => row.key.clone(),
            },
        };
        Self::check_not_provided(&row, "nobody wraps it")?;
        let key = self.keys.resolve(key).await?;
        let rewrapped = self.rewrap(caller, &row, &key, membership).await;
        if let Err(error) = &rewrapped
            && !is_recorded(error)
        {
            let record = Record {
                key: Some(key.to_string()),
                result: error.to_string(),
                ..about(&row, Operation::Rewrap, caller)
            };
            if let Err(error) = self.audit.append(record).await {
                tracing::error!(volume = %name, %error, "the failure could not be recorded");
            }
        }
        rewrapped
    }

    async fn rewrap(
        &self,
        caller: Caller,
        row: &VolumeRow,
        key: &KeyRef,
        membership: Membership,
    ) -> Result<api::Rewrapped, Error> {
        let layers = self.layers_of(row).await?;
        let top = &layers[0];
        let renewed = self.renew(caller, row, key, &layers).await?;
        let both = [&renewed.records[..], &renewed.former].concat();
        self.put_keys(row, top, &both).await?;
        let (id, named, by) = (row.id, key.clone(), renewed.by.clone());
        self.registry
            .call(move |registry| registry.set_rewrapped(id, &named, &by, &membership))
            .await?;
        self.put_keys(row, top, &renewed.records).await?;
        let layers_left = self.renew_sealed(row, &layers[1..], &renewed.records).await;
        let (mut former, id) = (renewed.former_by, row.id);
        let before: BTreeSet<String> = former
            .values()
            .map(|by| format!("{}:{} version {}", by.provider, by.key_id, by.key_version))
            .collect();
        // By the same version as before: what others have is as good as this.
        former.retain(|key, old| renewed.by.iter().all(|(id, new)| id != key || new != old));
        let volumes_left = self
            .registry
            .call(move |registry| registry.volumes_under(id, &former))
            .await?;
        let (_, now) = &renewed.by[0];
        tracing::info!(volume = %row.name, %key, version = now.key_version, "rewrapped");
        Ok(api::Rewrapped {
            name: row.name.clone(),
            key: key.to_string(),
            key_id: now.key_id.clone(),
            key_version: now.key_version,
            data_keys: renewed.by.len(),
            before: before.into_iter().collect(),
            layers_left,
            volumes_left,
        })
    }

    /// The layers that a volume and its snapshots stand on, each once, the volume's top first.
    async fn layers_of(&self, row: &VolumeRow) -> Result<Vec<LayerRow>, Error> {
        let id = row.id;
        let snapshots = self
            .registry
            .call(move |registry| registry.snapshots(id))
            .await?;
        let heads = std::iter::once(row.top).chain(snapshots.iter().map(|row| row.layer));
        let (mut layers, mut seen) = (Vec::new(), HashSet::new());
        for head in heads {
            if seen.contains(&head) {
                continue;
            }
            let stack = self.stack(row, head).await?.into_iter();
            layers.extend(stack.filter(|layer| seen.insert(layer.id)));
        }
        Ok(layers)
    }

    /// Has the data keys of these layers wrapped anew, and proves that they are the same keys.
    async fn renew(
        &self,
        caller: Caller,
        row: &VolumeRow,
        key: &KeyRef,
        layers: &[LayerRow],
    ) -> Result<Renewed, Error> {
        let (id, wrapped) = (row.id, self.wrapped_keys(row).await?);
        let by = self
            .registry
            .call(move |registry| registry.data_keys(id))
            .await?;
        let mut seen = HashSet::new();
        let ids = layers.iter().map(|layer| layer.data_key);
        let ids: Vec<DataKeyId> = ids.filter(|&id| seen.insert(id)).collect();
        let mut copies = Vec::new();
        for &id in &ids {
            let copy = wrapped_copy(row, id, by.get(&id), &wrapped)?;
            copies.push((copy.clone(), copy.subject));
        }
        let anew = self
            .keys
            .rewrap_all(Right::Administer, caller, &copies, key)
            .await?;
        let mut renewed = Renewed {
            records: Vec::new(),
            by: Vec::new(),
            former: Vec::new(),
            former_by: HashMap::new(),
        };
        for ((id, wrapped), (old, _)) in ids.into_iter().zip(anew).zip(&copies) {
            let (new_by, record) = as_record(id, key, wrapped);
            let old_by = by[&id].clone();
            renewed.former.push(WrappedKey {
                data_key: id,
                provider: old_by.provider.clone(),
                key_id: old_by.key_id.clone(),
                key_version: old_by.key_version,
                blob: old.blob.clone(),
            });
            renewed.records.push(record);
            renewed.by.push((id, new_by));
            renewed.former_by.insert(id, old_by);
        }
        self.prove_same(caller, row, layers, &renewed, copies)
            .await?;
        Ok(renewed)
    }

    /// Unwraps the old and the new copies: they must be the same keys, and those that the registry is committed to.
    async fn prove_same(
        &self,
        caller: Caller,
        row: &VolumeRow,
        layers: &[LayerRow],
        renewed: &Renewed,
        old: Vec<(WrappedCopy, crate::keys::Subject)>,
    ) -> Result<(), Error> {
        let memory = self.memory.ready()?;
        let mut copies = Vec::with_capacity(old.len() * 2);
        for ((old, subject), new) in old.into_iter().zip(&renewed.records) {
            copies.push(old);
            copies.push(WrappedCopy {
                subject,
                key: KeyRef::new(&new.provider, &new.key_id)?,
                blob: new.blob.clone(),
            });
        }
        let keys = self.keys.unwrap_all(caller, copies, &memory).await?;
        for (pair, record) in keys.chunks_exact(2).zip(&renewed.records) {
            let of_key = layers
                .iter()
                .filter(|layer| layer.data_key == record.data_key);
            let mut pinned = of_key.filter_map(|layer| layer.commitment);
            let found = pair[1].commitment();
            if pair[0].commitment() != found || pinned.any(|pinned| pinned != found) {
                return Err(Error::volume(&row.name)(VolumeError::WrongKey));
            }
        }
        Ok(())
    }

    /// Puts wrapped keys into the superblock of a volume's top, attached or not.
    async fn put_keys(
        &self,
        row: &VolumeRow,
        top: &LayerRow,
        keys: &[WrappedKey],
    ) -> Result<(), Error> {
        let put = match self.exports.get(row.name.as_str()) {
            Some(export) => export.volume.replace_keys(keys).await,
            None => {
                let directory = self.place_of(top).directory();
                let directory = directory.map_err(Error::store(&row.name))?;
                replace_keys(&directory, &pins(row, top), keys).await
            }
        };
        put.map_err(Error::volume(&row.name))
    }

    /// Puts the new copies into the superblocks of those layers below that were made for the volume. The ids of those that keep
    /// the former ones: somebody reads them, or they can't be written now.
    async fn renew_sealed(
        &self,
        row: &VolumeRow,
        below: &[LayerRow],
        records: &[WrappedKey],
    ) -> Vec<String> {
        // Whoever is about to open one of them waits: it would find its files locked.
        let open = self.open_layers.lock().await;
        let mut left = Vec::new();
        for layer in below.iter().filter(|layer| layer.volume == row.id) {
            let in_use = open.get(&layer.id).and_then(Weak::upgrade).is_some();
            if in_use {
                left.push(layer.id.to_string());
            } else if let Err(error) = self.renew_layer(row, layer, records).await {
                tracing::warn!(volume = %row.name, layer = %layer.id, %error, "keeps its former wrapped keys");
                left.push(layer.id.to_string());
            }
        }
        left
    }

    async fn renew_layer(
        &self,
        row: &VolumeRow,
        layer: &LayerRow,
        records: &[WrappedKey],
    ) -> Result<(), Error> {
        let place = self.place_of(layer);
        let files = place.open(Access::ReadOnly, Caching::PageCache).await;
        let files = files.map_err(Error::store(&row.name))?;
        let present = read_keys(&files.meta).await;
        let present = present.map_err(Error::volume(&row.name))?;
        drop(files);
        let of_layer = |new: &&WrappedKey| present.iter().any(|old| old.data_key == new.data_key);
        let keys: Vec<WrappedKey> = records.iter().filter(of_layer).cloned().collect();
        let directory = place.directory().map_err(Error::store(&row.name))?;
        replace_keys(&directory, &pins(row, layer), &keys)
            .await
            .map_err(Error::volume(&row.name))
    }
}
