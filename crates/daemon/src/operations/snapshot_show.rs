//! `snapshot list`, `snapshot show`: looking, without changing anything.
//!
//! What changed between a snapshot and the one before it is what the maps of the layers between them say. Maps are read
//! through the keys of an attached volume or snapshot, never by asking the key service.

use std::sync::{Arc, Weak};

use sealvol_control::api::{self, SnapshotRef, SnapshotState, VolumeName};
use sealvol_store::FileStore;
use sealvol_volume::{BlockState, Layer, LayerId, view};

use super::show::MAP_RUNS_MAX;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::registry::{LayerRow, RowState, SnapshotRow, VolumeRow};

impl Daemon {
    /// A volume and one of its snapshots.
    pub(super) async fn registered_snapshot(
        &self,
        name: &SnapshotRef,
    ) -> Result<(VolumeRow, SnapshotRow), Error> {
        let row = self.registered(&name.volume).await?;
        let (id, wanted) = (row.id, name.name.clone());
        let snapshot = self
            .registry
            .call(move |registry| registry.snapshot(id, &wanted))
            .await?;
        let snapshot = snapshot.ok_or_else(|| Error::NoSuchSnapshot(name.clone()))?;
        Ok((row, snapshot))
    }

    pub(crate) async fn list_snapshots(
        &self,
        volume: Option<VolumeName>,
    ) -> Result<api::SnapshotList, Error> {
        let rows = match volume {
            Some(name) => vec![self.registered(&name).await?],
            None => self.registry.call(|registry| registry.volumes()).await?,
        };
        let _steady = self.merges.steady().await;
        let mut snapshots = Vec::new();
        for row in rows {
            if row.state != RowState::Available {
                continue;
            }
            let of_volume = self.snapshots_of(&row).await?;
            for snapshot in &of_volume {
                snapshots.push(self.describe_snapshot(&row, snapshot, &of_volume).await?);
            }
        }
        Ok(api::SnapshotList { snapshots })
    }

    pub(crate) async fn show_snapshot(&self, name: &SnapshotRef) -> Result<api::Snapshot, Error> {
        let _steady = self.merges.steady().await;
        let (row, snapshot) = self.registered_snapshot(name).await?;
        let of_volume = self.snapshots_of(&row).await?;
        self.describe_snapshot(&row, &snapshot, &of_volume).await
    }

    /// At most [`MAP_RUNS_MAX`] changed extents from `offset` on, and where the next ones begin.
    pub(crate) async fn snapshot_changes(
        &self,
        name: &SnapshotRef,
        offset: u64,
    ) -> Result<api::SnapshotChanges, Error> {
        let steady = self.merges.steady().await;
        let (row, snapshot) = self.registered_snapshot(name).await?;
        let of_volume = self.snapshots_of(&row).await?;
        let layers = self.stack(&row, snapshot.layer).await?;
        let own: Vec<LayerId> = own_layers(&row, &layers, &of_volume)
            .iter()
            .map(|layer| layer.id)
            .collect();
        let open = self.open_ones(&layers).await;
        let open = open.ok_or_else(|| Error::SnapshotNotAttached(name.clone()))?;
        let volume = view(open).await.map_err(Error::volume(&row.name))?;
        // What is open is what it is.
        drop(steady);
        let found = volume
            .map(offset, MAP_RUNS_MAX)
            .await
            .map_err(Error::volume(&row.name))?;
        let end = found.last().map(|run| run.offset + run.len);
        let next = end.filter(|&end| found.len() >= MAP_RUNS_MAX && end < volume.size());
        let changed = found
            .iter()
            .filter(|run| run.layer.is_some_and(|layer| own.contains(&layer)));
        let mut extents: Vec<api::ChangedExtent> = Vec::new();
        for run in changed {
            let zero = run.state == BlockState::Zero;
            match extents.last_mut() {
                Some(last) if last.zero == zero && last.offset + last.length == run.offset => {
                    last.length += run.len;
                }
                _ => extents.push(api::ChangedExtent {
                    offset: run.offset,
                    length: run.len,
                    zero,
                }),
            }
        }
        Ok(api::SnapshotChanges { extents, next })
    }

    async fn snapshots_of(&self, row: &VolumeRow) -> Result<Vec<SnapshotRow>, Error> {
        let id = row.id;
        let snapshots = self.registry.call(move |registry| registry.snapshots(id));
        Ok(snapshots.await?)
    }

    /// These layers, the lowest first, if all of them are open.
    async fn open_ones(&self, layers: &[LayerRow]) -> Option<Vec<Arc<Layer<FileStore>>>> {
        let open = self.open_layers.lock().await;
        let layers = layers.iter().rev();
        layers
            .map(|layer| open.get(&layer.id).and_then(Weak::upgrade))
            .collect()
    }

    async fn describe_snapshot(
        &self,
        row: &VolumeRow,
        snapshot: &SnapshotRow,
        of_volume: &[SnapshotRow],
    ) -> Result<api::Snapshot, Error> {
        let of = |snapshot: &SnapshotRow| SnapshotRef {
            volume: row.name.clone(),
            name: snapshot.name.clone(),
        };
        let name = of(snapshot);
        let layers = self.stack(row, snapshot.layer).await?;
        let own = own_layers(row, &layers, of_volume);
        let previous = layers.get(own.len()).and_then(|layer| {
            let before = of_volume.iter().find(|other| other.layer == layer.id);
            before.map(of)
        });
        let mut own_bytes = 0;
        for layer in own {
            own_bytes += self.place_of(layer).taken().map_err(|error| {
                Error::Internal(format!("the space that snapshot {name} takes: {error}"))
            })?;
        }
        let export = self.exports.get(&name.to_string());
        let state = match &export {
            Some(_) => SnapshotState::Attached,
            None if snapshot.attached.is_some() => SnapshotState::Error,
            None if layers[0].sealed => SnapshotState::Completed,
            None => SnapshotState::Pending,
        };
        Ok(api::Snapshot {
            layer: snapshot.layer.to_string(),
            state,
            created: snapshot.created.clone(),
            size: layers[0].size,
            own_bytes,
            depth: layers.len(),
            previous,
            attachment: export
                .as_ref()
                .map(|export| self.attachment(snapshot.attached.as_ref(), export)),
            attach_failure: self.failures.of(&name.to_string()),
            name,
        })
    }
}

/// The layers of a snapshot, given from the top down, that the one before it and other volumes do not have.
fn own_layers<'a>(
    row: &VolumeRow,
    layers: &'a [LayerRow],
    of_volume: &[SnapshotRow],
) -> &'a [LayerRow] {
    let others = |layer: &LayerRow| {
        layer.volume != row.id || of_volume.iter().any(|other| other.layer == layer.id)
    };
    let end = layers.iter().skip(1).position(others);
    &layers[..end.map_or(layers.len(), |end| end + 1)]
}
