//! `volume attach VOLUME@SNAPSHOT`: a snapshot as a read-only export of its own, beside its volume or without it.
//!
//! What always holds: the keys are unwrapped for it under the volume's context, as for the volume; its layers are those that
//! the volume has open, if it has. A snapshot whose layer is not sealed yet is sealed first.

use std::sync::Arc;

use sealvol_control::api::{self, SnapshotRef};
use sealvol_crypto::VolumeKey;
use sealvol_store::FileStore;
use sealvol_volume::{Volume, view};

use super::attach::is_recorded;
use super::stack::{Opening, about};
use crate::audit::{Operation, Record};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::exports::Export;
use crate::host::Accepted;
use crate::registry::{Attached, SnapshotRow, VolumeRow};
use crate::rights::Caller;

impl Daemon {
    pub(crate) async fn attach_snapshot(
        &self,
        caller: Caller,
        name: SnapshotRef,
        request: api::AttachSnapshot,
        given: Option<VolumeKey>,
    ) -> Result<api::Snapshot, Error> {
        let _turn = self.turn(&name.volume).await;
        let steady = self.merges.steady().await;
        let (row, snapshot) = self.registered_snapshot(&name).await?;
        if self.exports.get(&name.to_string()).is_some() {
            return Err(Error::SnapshotAttached(name));
        }
        let attached = Attached {
            read_only: true,
            direct: request.direct,
            allow: self.allowed(caller, request.allow),
            by: caller.uid,
        };
        let volume = self
            .open_snapshot(caller, &name, &row, &snapshot, &attached, given)
            .await?;
        let (layer, registered) = (snapshot.layer, attached.clone());
        self.registry
            .call(move |registry| registry.set_snapshot_attached(layer, Some(&registered)))
            .await?;
        self.serve_snapshot(&name, volume, attached);
        drop(steady);
        self.show_snapshot(&name).await
    }

    /// Attaches a snapshot as the registry says it was attached, after a restart.
    pub(crate) async fn attach_snapshot_again(&self, name: &SnapshotRef) -> Result<(), Error> {
        let _turn = self.turn(&name.volume).await;
        let _steady = self.merges.steady().await;
        let (row, snapshot) = self.registered_snapshot(name).await?;
        // Somebody may have attached or detached it while it waited for its turn.
        let served = self.exports.get(&name.to_string()).is_some();
        let Some(attached) = snapshot.attached.clone().filter(|_| !served) else {
            return Ok(());
        };
        let volume = self
            .open_snapshot(Self::itself(), name, &row, &snapshot, &attached, None)
            .await?;
        self.serve_snapshot(name, volume, attached);
        Ok(())
    }

    pub(crate) async fn detach_snapshot(
        &self,
        name: SnapshotRef,
        request: api::DetachVolume,
    ) -> Result<api::Snapshot, Error> {
        let _turn = self.turn(&name.volume).await;
        let (_, snapshot) = self.registered_snapshot(&name).await?;
        match self.exports.get(&name.to_string()) {
            Some(export) => self.take_down(&name.volume, export, request.force).await?,
            // Attached when the daemon stopped, and not attachable since: it is not to be tried again.
            None if snapshot.attached.is_some() => {}
            None => return Err(Error::SnapshotNotAttached(name)),
        }
        self.failures.clear(&name.to_string());
        // Not before: who is taken down waits for merges. It may stand on another layer by now.
        let steady = self.merges.steady().await;
        let layer = self.registered_snapshot(&name).await?.1.layer;
        self.registry
            .call(move |registry| registry.set_snapshot_attached(layer, None))
            .await?;
        drop(steady);
        tracing::info!(snapshot = %name, "detached");
        self.show_snapshot(&name).await
    }

    /// Opens it, or leaves a record of why not.
    async fn open_snapshot(
        &self,
        caller: Caller,
        name: &SnapshotRef,
        row: &VolumeRow,
        snapshot: &SnapshotRow,
        attached: &Attached,
        given: Option<VolumeKey>,
    ) -> Result<Arc<Volume<FileStore>>, Error> {
        let opened = self
            .view_snapshot(caller, row, snapshot, attached, given)
            .await;
        if let Err(error) = &opened
            && !is_recorded(error)
        {
            let record = Record {
                name: Some(name.to_string()),
                key: Some(row.key.to_string()),
                result: error.to_string(),
                ..about(row, Operation::Attach, caller)
            };
            if let Err(error) = self.audit.append(record).await {
                tracing::error!(snapshot = %name, %error, "the refusal could not be recorded");
            }
        }
        opened
    }

    async fn view_snapshot(
        &self,
        caller: Caller,
        row: &VolumeRow,
        snapshot: &SnapshotRow,
        attached: &Attached,
        given: Option<VolumeKey>,
    ) -> Result<Arc<Volume<FileStore>>, Error> {
        let layers = self.stack(row, snapshot.layer).await?;
        let pending = layers.iter().any(|layer| !layer.sealed);
        if let Some(loss) = row.loss.clone().filter(|_| pending) {
            return Err(Error::LossRecorded {
                name: row.name.clone(),
                loss,
            });
        }
        let opening = Opening {
            caller,
            row,
            direct: attached.direct,
            writable: false,
            accepted: Accepted::Nothing,
        };
        let wrapped = self.wrapped_keys(row).await?;
        let mut ciphers = self.load_keys(opening, &layers, &wrapped, given).await?;
        let below = self.open_below(opening, &layers, &mut ciphers).await?;
        let volume = view(below).await.map_err(Error::volume(&row.name))?;
        self.note_parents(&volume, &layers).await?;
        Ok(volume)
    }

    fn serve_snapshot(
        &self,
        name: &SnapshotRef,
        volume: Arc<Volume<FileStore>>,
        attached: Attached,
    ) {
        let name = name.to_string();
        let description = "snapshot of an encrypted volume".to_owned();
        tracing::info!(snapshot = %name, by = attached.by, "attached");
        self.failures.clear(&name);
        let export = Export::new(name, description, volume, true, attached.allow);
        self.exports.insert(Arc::new(export));
    }
}
