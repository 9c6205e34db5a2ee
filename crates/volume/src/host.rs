//! What a volume needs from whoever runs it: a place for background tasks and a memory outside the layer.
//!
//! This crate has no threads, clock or runtime of its own, so that the same code runs in the daemon and in
//! a simulation.

use std::future::Future;
use std::pin::Pin;

use sealvol_crypto::Commitment;

use crate::error::{Loss, VolumeError};

/// A future without a lifetime, as the host runs it.
pub type Task<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The surroundings of a volume.
pub trait Host: Send + Sync + 'static {
    /// Runs a task to its end, soon, beside everything else.
    fn spawn(&self, task: Task<()>);

    /// Records a loss where the failing store can't lose it. The error that it causes is answered only
    /// after this is done (rule R6).
    fn record_loss(&self, loss: Loss) -> Task<()>;

    /// From now on the layer is bound to the key with this commitment, and a superblock older than
    /// `generation` is a rollback.
    ///
    /// # Errors
    ///
    /// [`VolumeError::Registry`] if that can't be recorded.
    fn pin(
        &self,
        generation: u64,
        size: u64,
        commitment: Commitment,
    ) -> Task<Result<(), VolumeError>>;
}
