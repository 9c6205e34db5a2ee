//! `volume rekey --with-snapshots`: the snapshots of a volume under its new data key too, layer by layer.
//!
//! ```text
//!   the volume stands alone under the new key ─▶ registry: an empty copy for each layer that its snapshots stand on
//!   ─▶ each is copied, exactly: same map, same blocks, the new key; and sealed                            (from the lowest up)
//!   ─▶ registry: the snapshots stand on the copies, in one step ─▶ the end, as of every re-key (`rekey_end.rs`)
//! ```
//! What always holds:
//! - a snapshot stands on its own layers until all copies of the family are sealed, then on the copies: there is no mixture;
//! - a copy is what its layer is, and nothing is flattened: what two snapshots share, their copies share;
//! - how far a copy has come is in its map, and which copies there are in the job: whatever stops it, it goes on from there;
//! - while somebody reads a snapshot its layers stay: the job waits, and says for whom.
//!
//! What it does not do: touch a layer that another volume stands on. A clone keeps it, with its key, and the result names it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use sealvol_control::api::SnapshotRef;
use sealvol_store::{Access, FileStore};
use sealvol_volume::{InvalidId, LayerId, LayerParams, Volume, VolumeError, WrappedKey, open_copy};

use super::stack::Opening;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::host::Accepted;
use crate::jobs::copying::{CopyError, copy_part};
use crate::jobs::{Job, LayerCopy, Rekey, Step};
use crate::registry::{LayerRow, VolumeRow};

impl Daemon {
    /// A bounded part of what follows when the volume stands alone. The caller has the volume's turn.
    pub(super) async fn copy_family(
        &self,
        job: &Arc<Job>,
        work: &Rekey,
        row: &VolumeRow,
    ) -> Result<Step, Error> {
        if self.exports.get(row.name.as_str()).is_none() {
            if row.attached.is_some() {
                return Err(Error::NotServed(row.name.clone()));
            }
            if !work.detached {
                return Err(Error::DetachedMeanwhile(row.name.clone()));
            }
        }
        let Some(copies) = &work.copies else {
            self.plan_family(job, row).await?;
            return Ok(Step::More);
        };
        for copy in copies {
            let (from, to) = copy.layers().map_err(internal)?;
            let to = self.stack(row, to).await?.swap_remove(0);
            if to.sealed {
                continue;
            }
            self.copy_layer(job, row, from, &to).await?;
            return Ok(Step::More);
        }
        self.switch_family(job, row, copies).await?;
        Ok(Step::More)
    }

    /// Makes an empty copy of each layer that a snapshot stands on and that is under another key, or on one that is.
    async fn plan_family(&self, job: &Job, row: &VolumeRow) -> Result<(), Error> {
        let top = self.stack(row, row.top).await?.swap_remove(0);
        let id = row.id;
        // Until the registry has the copies: of their layers none goes then.
        let _steady = self.merges.steady().await;
        let snapshots = self
            .registry
            .call(move |registry| registry.snapshots(id))
            .await?;
        let backing = row.next_backing();
        let backing = backing.ok_or_else(|| Error::NoPlaceForLayers(row.name.clone()))?;
        let mut copied: HashMap<LayerId, LayerId> = HashMap::new();
        let (mut copies, mut layers) = (Vec::new(), Vec::new());
        for snapshot in snapshots {
            let mut below: Option<LayerId> = None;
            for layer in self.stack(row, snapshot.layer).await?.into_iter().rev() {
                let parent = below.and_then(|below| copied.get(&below).copied());
                below = Some(layer.id);
                let other = layer.data_key != top.data_key || layer.volume != row.id;
                if copied.contains_key(&layer.id) || !(other || parent.is_some()) {
                    continue;
                }
                let copy = LayerRow {
                    id: LayerId::random(),
                    volume: row.id,
                    parent: parent.or(layer.parent),
                    size: layer.size,
                    backing: backing.clone(),
                    data_key: top.data_key,
                    sealed: false,
                    commitment: top.commitment,
                    generation: 0,
                    bound: false,
                    boot: None,
                    former_parents: Vec::new(),
                };
                copied.insert(layer.id, copy.id);
                copies.push(LayerCopy::new(layer.id, copy.id));
                layers.push(copy);
            }
        }
        self.make_copies(row, &layers).await?;
        let job = job.id;
        tracing::info!(volume = %row.name, layers = layers.len(), "its snapshots' layers are copied");
        self.registry
            .call(move |registry| registry.begin_copies(job, &layers, copies))
            .await?;
        Ok(())
    }

    /// The files of the copies, empty, with the new key's wrapped copy.
    async fn make_copies(&self, row: &VolumeRow, layers: &[LayerRow]) -> Result<(), Error> {
        let Some(first) = layers.first() else {
            return Ok(());
        };
        let keys = self.wrapped_keys(row).await?;
        let own = |key: &WrappedKey| key.data_key == first.data_key;
        let keys: Vec<WrappedKey> = keys.into_iter().filter(own).collect();
        let begun = layers.to_vec();
        self.registry
            .call(move |registry| registry.begin_layers(&begun))
            .await?;
        for layer in layers {
            if let Err(error) = self.make_copy(row, layer, &keys).await {
                self.unmake_copies(row, layers).await;
                return Err(error);
            }
        }
        Ok(())
    }

    async fn make_copy(
        &self,
        row: &VolumeRow,
        layer: &LayerRow,
        keys: &[WrappedKey],
    ) -> Result<(), Error> {
        let params = LayerParams {
            volume: layer.volume,
            layer: layer.id,
            parent: layer.parent,
            size: layer.size,
            sector_size: row.sector_size,
        };
        let directory = self.place_of(layer).make();
        let directory = directory.map_err(Error::store(&row.name))?;
        sealvol_volume::create(&directory, true, &params, keys)
            .await
            .map_err(Error::volume(&row.name))
    }

    async fn unmake_copies(&self, row: &VolumeRow, layers: &[LayerRow]) {
        let mut gone = Vec::new();
        for layer in layers {
            match self.remove_with_keys(&self.place_of(layer)).await {
                Ok(()) => gone.push(layer.id),
                Err(error) => {
                    tracing::warn!(volume = %row.name, %error, "files of a layer that was not used stay until the next start");
                }
            }
        }
        let forgotten = self
            .registry
            .call(move |registry| registry.forget_new_layers(&gone))
            .await;
        if let Err(error) = forgotten {
            tracing::warn!(volume = %row.name, %error, "the next start looks for files that are gone");
        }
    }

    /// Copies a part of a layer, and seals the copy when that was all.
    async fn copy_layer(
        &self,
        job: &Arc<Job>,
        row: &VolumeRow,
        from: LayerId,
        to: &LayerRow,
    ) -> Result<(), Error> {
        let Some(volume) = self.open_layer_copy(job, row, from, to).await? else {
            // It was sealed, and the registry did not hear of it.
            return self.copy_is_sealed(row, to.id).await;
        };
        self.look_anew(job, row, to, &volume).await?;
        let export = self.exports.get(row.name.as_str());
        let all = copy_part(&self.jobs.copiers, job, &volume, export.as_ref()).await;
        let all = all.map_err(|error| match error {
            CopyError::Volume(error) => of_copy(row, error),
            broken => Error::Internal(broken.to_string()),
        })?;
        if !all {
            return Ok(());
        }
        match volume.seal_copy().await {
            Ok(_layer) => {}
            Err(VolumeError::LeftBelow { offset }) => {
                job.cursor.lock().await.at = offset;
                return Ok(());
            }
            Err(error) => return Err(of_copy(row, error)),
        }
        drop(volume);
        self.copy_is_sealed(row, to.id).await
    }

    async fn copy_is_sealed(&self, row: &VolumeRow, layer: LayerId) -> Result<(), Error> {
        self.jobs.take_copy(&row.name);
        self.registry
            .call(move |registry| registry.set_sealed(layer))
            .await?;
        tracing::info!(volume = %row.name, %layer, "a layer of its snapshots is copied");
        Ok(())
    }

    /// The copy of a layer over that layer, as it was left open or opened anew; none if it is sealed already.
    async fn open_layer_copy(
        &self,
        job: &Job,
        row: &VolumeRow,
        from: LayerId,
        to: &LayerRow,
    ) -> Result<Option<Arc<Volume<FileStore>>>, Error> {
        if let Some(open) = self.jobs.copy(&row.name)
            && open.top().id() == to.id
        {
            return Ok(Some(open));
        }
        self.jobs.take_copy(&row.name);
        let _steady = self.merges.steady().await;
        let opening = Opening {
            caller: Self::itself(),
            row,
            direct: false,
            writable: false,
            accepted: Accepted::Nothing,
        };
        let sources = self.stack(row, from).await?;
        let needed: Vec<LayerRow> = std::iter::once(to).chain(&sources).cloned().collect();
        let wrapped = self.wrapped_keys(row).await?;
        let mut ciphers = self.load_keys(opening, &needed, &wrapped, None).await?;
        let below = self.open_below(opening, &sources, &mut ciphers).await?;
        let source = below.last().cloned().ok_or_else(|| {
            Error::Internal(format!("volume {}: layer {from} is not there", row.name))
        })?;
        drop(below);
        // In memory a key is there once.
        let cipher = match self.open_by_anybody(row) {
            Some(volume) => volume.top().cipher(),
            None => Arc::clone(&ciphers[&to.data_key]),
        };
        let files = self.open_files(opening, to, Access::Writable).await?;
        let opened = open_copy(source, self.parts(opening, to, files, &cipher)).await;
        let volume = match opened {
            Ok(volume) => volume,
            Err(VolumeError::Sealed { .. }) => return Ok(None),
            Err(error) => return Err(Error::volume(&row.name)(error)),
        };
        tracing::info!(volume = %row.name, job = %job.id, layer = %to.id, "opened for a job");
        self.jobs.has_copy(&row.name, &volume);
        Ok(Some(volume))
    }

    /// All copies are sealed: the snapshots stand on them from now on, and what nobody stands on any more is the job's to destroy.
    async fn switch_family(
        &self,
        job: &Job,
        row: &VolumeRow,
        copies: &[LayerCopy],
    ) -> Result<(), Error> {
        let id = row.id;
        let snapshots = self
            .registry
            .call(move |registry| registry.snapshots(id))
            .await?;
        let mut pairs = Vec::new();
        for copy in copies {
            pairs.push(copy.layers().map_err(internal)?);
        }
        let moved: HashSet<LayerId> = pairs.iter().map(|&(from, _)| from).collect();
        for snapshot in snapshots.iter().filter(|row| moved.contains(&row.layer)) {
            let name = SnapshotRef {
                volume: row.name.clone(),
                name: snapshot.name.clone(),
            };
            if snapshot.attached.is_some() || self.exports.get(&name.to_string()).is_some() {
                return Err(Error::SnapshotAttached(name));
            }
        }
        let job = job.id;
        self.registry
            .call(move |registry| registry.switch_family(id, job, &pairs))
            .await?;
        tracing::info!(volume = %row.name, layers = moved.len(), "its snapshots stand on the copies");
        Ok(())
    }
}

/// A copy that may have lost something is given up, and the job with it: its layers are nobody's then, and go. Nothing of the
/// volume or its snapshots is in them alone.
fn of_copy(row: &VolumeRow, error: VolumeError) -> Error {
    match error {
        VolumeError::Failed(loss) => Error::Internal(format!(
            "volume {}: the copy of a layer of its snapshots is given up: {loss}. They keep their keys until it is re-keyed again",
            row.name
        )),
        error => Error::volume(&row.name)(error),
    }
}

fn internal(error: InvalidId) -> Error {
    Error::Internal(error.to_string())
}
