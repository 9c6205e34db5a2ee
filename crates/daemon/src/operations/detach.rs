//! `volume detach`, and the detaching of everything when the daemon stops.
//!
//! Nobody new is let in → outstanding requests are answered → what was written is committed and the
//! layer marked clean → the key is wiped with the last reference to the volume, which is waited for. Of an ephemeral volume
//! everything is gone then.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use sealvol_control::api::{self, VolumeName};
use sealvol_store::FileStore;
use sealvol_volume::{Volume, VolumeError};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::exports::Export;
use crate::rights::Caller;

/// How long a client that has left may take to be gone.
const LEAVING: Duration = Duration::from_secs(1);

impl Daemon {
    pub(crate) async fn detach_volume(
        &self,
        caller: Caller,
        name: VolumeName,
        request: api::DetachVolume,
    ) -> Result<api::Volume, Error> {
        let _turn = self.turn(&name).await;
        let row = self.registered(&name).await?;
        match self.exports.get(name.as_str()) {
            Some(export) => self.take_down(&name, export, request.force).await?,
            // Attached when the daemon stopped, and not attachable since: it is not to be tried again.
            None if row.attached.is_some() => {}
            None => return Err(Error::NotAttached(name)),
        }
        self.failures.clear(name.as_str());
        let id = row.id;
        self.registry
            .call(move |registry| registry.set_detached(id))
            .await?;
        if row.ephemeral {
            self.discard_ephemeral(&row, caller, "it was detached")
                .await;
        }
        tracing::info!(volume = %name, "detached");
        self.show_volume(&name).await
    }

    /// Drains, closes and forgets an export; lets clients in again if it cannot be closed.
    pub(crate) async fn take_down(
        &self,
        volume: &VolumeName,
        export: Arc<Export>,
        force: bool,
    ) -> Result<(), Error> {
        if force {
            export.begin_drain();
        } else {
            // A client that has just left is counted until its last requests have ended.
            let _ = tokio::time::timeout(LEAVING, export.idle()).await;
            let clients = |count| Error::ClientsConnected {
                name: export.name.clone(),
                count,
            };
            export.begin_drain_unused().map_err(clients)?;
        }
        let name = export.name.clone();
        export.idle().await;
        // A merge would hold keys of it, and write to what is being closed.
        let _no_merge = self.merges.hold().await;
        match close(&export.volume).await {
            Ok(()) => {}
            Err(error) if force => {
                tracing::warn!(volume = %name, %error, "detached by force without a clean close");
            }
            Err(error) => {
                export.end_drain();
                return Err(Error::volume(volume)(error));
            }
        }
        self.exports.remove(&name);
        wiped(&name, export).await;
        self.merges.want();
        Ok(())
    }

    /// Closes what a job has opened, commits and wipes its key. The caller has the volume's turn.
    pub(crate) async fn close_opened(&self, name: &VolumeName) {
        let opened = [self.jobs.take_copy(name), self.jobs.take_opened(name)];
        for volume in opened.into_iter().flatten() {
            if let Err(error) = close(&volume).await {
                // Whoever opens it next meets the cause.
                tracing::error!(volume = %name, %error, "not closed cleanly");
            }
            last_reference(name.as_str(), volume).await;
        }
    }

    /// Closes every volume; they stay registered as attached, so the next start attaches them again.
    /// The engine has stopped.
    pub(crate) async fn close_all(&self) {
        let closing = self.exports.all().into_iter();
        futures_util::stream::iter(closing)
            .for_each_concurrent(CLOSED_AT_ONCE, |export| self.close_at_the_end(export))
            .await;
    }

    async fn close_at_the_end(&self, export: Arc<Export>) {
        self.exports.remove(&export.name);
        if let Err(error) = close(&export.volume).await {
            tracing::error!(volume = %export.name, %error, "not closed cleanly");
        }
        let name = export.name.clone();
        wiped(&name, export).await;
    }
}

/// Commits and marks clean. A volume that has lost data has nothing to commit: its loss is recorded,
/// and that is how it is left.
async fn close(volume: &Arc<Volume<FileStore>>) -> Result<(), VolumeError> {
    match volume.close().await {
        Ok(_) => Ok(()),
        Err(VolumeError::Failed(loss)) => {
            tracing::error!(layer = %loss.layer, %loss, "closed with acknowledged writes lost");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Waits until nobody holds the volume any more: then its key is wiped and its files are unlocked.
async fn wiped(name: &str, export: Arc<Export>) {
    let volume = Arc::clone(&export.volume);
    drop(export);
    last_reference(name, volume).await;
}

async fn last_reference(name: &str, volume: Arc<Volume<FileStore>>) {
    let last = volume;
    let volume = Arc::downgrade(&last);
    drop(last);
    let since = Instant::now();
    while volume.strong_count() > 0 {
        if since.elapsed() > LAST_REFERENCE_WITHIN {
            tracing::error!(volume = %name, "its key is still in use after the last connection");
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Tasks that end with a connection let go of the volume within microseconds of its last reply.
const LAST_REFERENCE_WITHIN: Duration = Duration::from_secs(5);
/// Closing waits for the disk a few times in a row; a service manager gives all volumes together 90 seconds. One that hangs
/// holds up no other either.
const CLOSED_AT_ONCE: usize = 16;
