//! What a volume is given by the daemon: a runtime for its background tasks and the registry as its
//! memory outside the layer.

use std::io;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use sealvol_crypto::Commitment;
use sealvol_volume::{Change, Damage, Host, LayerId, Loss, MapCache, Task, VolumeError};
use tokio::runtime::Handle;

use crate::audit::{Audit, Record};
use crate::registry::Registry;
use crate::timestamp;
use crate::working_state::{BootId, WorkingState};

/// The surroundings of one layer.
pub(crate) struct LayerHost {
    pub(crate) layer: LayerId,
    pub(crate) registry: Registry,
    pub(crate) audit: Audit,
    /// The record of damage, but for what it was and when.
    pub(crate) damage: Record,
    pub(crate) runtime: Handle,
    pub(crate) map_cache: Arc<MapCache>,
    pub(crate) working: WorkingState,
    pub(crate) boot: BootId,
    /// The boot in which the layer was last opened for writing, as the registry has it.
    pub(crate) opened_in: Option<BootId>,
    pub(crate) accepted: Accepted,
}

/// What the operator has accepted for this attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accepted {
    /// Nothing.
    Nothing,
    /// That the working state may be missing: acknowledged writes with it.
    MissingState,
    /// A recorded loss. The page cache is dropped, so what the working state speaks of is gone too.
    RecordedLoss,
    /// A layer older than what was relied on: the working state speaks of what came later.
    Rollback,
}

impl Host for LayerHost {
    /// Begins the task here and now. A commit to a store that answers at once (tmpfs, or nothing to
    /// sync) then costs the worker no hop to another thread; one that must wait goes on in the
    /// daemon's own runtime, which outlives every worker.
    fn spawn(&self, mut task: Task<()>) {
        let mut context = Context::from_waker(Waker::noop());
        if task.as_mut().poll(&mut context).is_pending() {
            // The runtime polls it once more, with a waker that is heard.
            self.runtime.spawn(task);
        }
    }

    fn map_cache(&self) -> Arc<MapCache> {
        Arc::clone(&self.map_cache)
    }

    fn record_loss(&self, loss: Loss) -> Task<()> {
        let registry = self.registry.clone();
        Box::pin(async move {
            tracing::error!(layer = %loss.layer, %loss, "acknowledged writes may be lost");
            let (layer, text) = (loss.layer, loss.to_string());
            let recorded = registry.call(move |db| db.record_loss(layer, &text)).await;
            if let Err(error) = recorded {
                // The volume stays in error as long as this process lives; there is no other place.
                tracing::error!(layer = %loss.layer, %error, "the loss could not be recorded");
            }
        })
    }

    fn record_damage(&self, damage: Damage) -> Task<()> {
        let Damage {
            layer,
            offset,
            end,
            cause,
            last,
        } = damage;
        tracing::error!(%layer, offset, end, cause, "a part of the map can't be trusted");
        let more = if last {
            "; more of this attach is not recorded"
        } else {
            ""
        };
        let record = Record {
            time: timestamp::now(),
            result: format!("map of bytes {offset} to {end}: {cause}{more}"),
            ..self.damage.clone()
        };
        let audit = self.audit.clone();
        // In the daemon's own runtime: the record stands though the client that met the damage is gone by then.
        let appended = self
            .runtime
            .spawn(async move { audit.append(record).await });
        Box::pin(async move {
            if let Err(error) = appended.await.map_err(io::Error::other).flatten() {
                tracing::error!(%layer, %error, "the damage could not be recorded");
            }
        })
    }

    fn pin(
        &self,
        generation: u64,
        size: u64,
        commitment: Commitment,
    ) -> Task<Result<(), VolumeError>> {
        let (registry, layer, boot) = (self.registry.clone(), self.layer, self.boot);
        Box::pin(async move {
            let pinned = registry
                .call(move |db| db.pin(layer, generation, size, commitment, boot))
                .await;
            pinned.map_err(|error| VolumeError::Registry(error.to_string()))
        })
    }

    fn head_switched(&self, sealed: LayerId) -> Task<Result<(), VolumeError>> {
        // The registry has named the new top since before the cut: what is left to say is that the old one is sealed.
        let registry = self.registry.clone();
        Box::pin(async move {
            let recorded = registry.call(move |db| db.set_sealed(sealed)).await;
            recorded.map_err(|error| VolumeError::Registry(error.to_string()))
        })
    }

    fn now(&self) -> Duration {
        static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);
        STARTED.elapsed()
    }

    fn adopt(&self, sessions: [u64; 2]) -> Result<Vec<Change>, VolumeError> {
        if matches!(self.accepted, Accepted::RecordedLoss | Accepted::Rollback) {
            return Ok(Vec::new());
        }
        match self.working.read(sessions) {
            Ok(changes) => {
                let count = changes.len();
                tracing::info!(layer = %self.layer, count, "took over the working state of a daemon that died");
                Ok(changes)
            }
            // A power cut takes the page cache and the working state together: nothing is missing that a disk
            // would have kept.
            Err(_) if self.opened_in != Some(self.boot) => Ok(Vec::new()),
            Err(cause) if self.accepted == Accepted::MissingState => {
                tracing::warn!(layer = %self.layer, %cause, "goes on without the working state, as accepted");
                Ok(Vec::new())
            }
            Err(cause) => Err(VolumeError::WorkingStateLost {
                cause: cause.to_string(),
            }),
        }
    }

    fn begin_session(&self, session: u64, changes: &[Change]) -> Result<(), VolumeError> {
        self.working.begin(session, changes).map_err(failed)
    }

    fn remember(&self, change: Change) -> Result<(), VolumeError> {
        self.working.remember(change).map_err(failed)
    }

    fn commit_begins(&self) {
        self.working.commit_begins();
    }

    fn commit_done(&self) {
        if let Err(error) = self.working.commit_done() {
            // The next daemon would enter once more what is on disk already.
            tracing::warn!(layer = %self.layer, %error, "the working state lags behind");
        }
    }

    fn end_session(&self) {
        if let Err(error) = self.working.end() {
            tracing::warn!(layer = %self.layer, %error, "the working state of a closed volume stays");
        }
    }
}

fn failed(error: io::Error) -> VolumeError {
    VolumeError::WorkingState(error.to_string())
}
