//! What a volume is given by the daemon: a runtime for its background tasks and the registry as its
//! memory outside the layer.

use std::task::{Context, Waker};

use sealvol_crypto::Commitment;
use sealvol_volume::{Host, LayerId, Loss, Task, VolumeError};
use tokio::runtime::Handle;

use crate::registry::Registry;

/// The surroundings of the volume whose top layer is `layer`.
#[derive(Debug)]
pub(crate) struct LayerHost {
    pub(crate) layer: LayerId,
    pub(crate) registry: Registry,
    pub(crate) runtime: Handle,
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

    fn pin(
        &self,
        generation: u64,
        size: u64,
        commitment: Commitment,
    ) -> Task<Result<(), VolumeError>> {
        let (registry, layer) = (self.registry.clone(), self.layer);
        Box::pin(async move {
            let pinned = registry
                .call(move |db| db.pin(layer, generation, size, commitment))
                .await;
            pinned.map_err(|error| VolumeError::Registry(error.to_string()))
        })
    }
}
