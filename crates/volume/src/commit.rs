//! Commit: when a write is durable (rules R1 and R6).
//!
//! ```text
//!   copy the dirty map pages ─▶ sync data ─▶ write the copies ─▶ sync meta
//!                                    │            └─▶ (states changed) write directory pages ─▶ sync meta
//!                                    │                    └─▶ (a directory is new) superblock, both slots
//!                                    └─ no dirty page: that is all
//! ```
//!
//! Always:
//! - a page on disk never carries an entry newer than the last data sync: the copies are made before it;
//! - a flush never joins a commit that has begun (`commit/joins.rs`);
//! - a commit that has nothing to bring to disk touches no disk: nothing was written since the last one began, and that one ended
//!   well, or this one would not have begun (clients send a FLUSH after each fsync, whether or not there was anything);
//! - one commit at a time, run as a task of its own, so that no client that goes away or stalls holds up the others;
//! - a failed sync, durable write or map write is for ever: no commit ends well after it, it is recorded outside the
//!   layer, then every waiting and every later flush and write is refused; nothing is tried again;
//! - the kernel reports a lost write once, to whoever asks first: a commit counts its data sync as good only when no
//!   durable write that was under way during it was told of a loss.
//!
//! - a commit after a snapshot's cut first finishes the switch (`snapshot.rs`): lower layers before higher ones.
//!
//! Never: a sync on the caller's thread (the store sees to it), a reply before the record of a loss.

mod joins;

use std::sync::Arc;

use sealvol_store::Store;

use crate::error::{Loss, LostStep, VolumeError};
use crate::layer::Layer;
use crate::superblock::Superblock;
use crate::volume::Volume;
pub(crate) use joins::{CommitFailed, Commits};

impl<S: Store> Volume<S> {
    /// Makes everything durable that was answered before this call, on whatever connection.
    ///
    /// # Errors
    ///
    /// [`VolumeError::Failed`] once a sync or map write has failed, for ever. [`VolumeError::Registry`] if a snapshot's head
    /// switch could not be recorded: the next commit tries again.
    pub(crate) async fn commit(self: &Arc<Self>) -> Result<(), VolumeError> {
        let begin = || {
            let volume = Arc::clone(self);
            self.host
                .spawn(Box::pin(async move { volume.run_commit().await }));
        };
        self.commits.join(begin).await
    }

    async fn run_commit(self: Arc<Self>) {
        let ended = self.commit_once().await;
        if let Err(CommitFailed::Lost(loss)) = &ended {
            self.record(loss.clone()).await;
        }
        self.commits.end(ended);
    }

    /// Lower layers first: until a switch is finished, the new top has nothing that may be called durable.
    async fn commit_once(self: &Arc<Self>) -> Result<(), CommitFailed> {
        // The top before the switch: a new top is in place only after its switch is there to be finished.
        let mut top = self.top();
        if let Some(switch) = self.switch_to_finish() {
            self.finish_switch(switch).await?;
            top = self.top();
        }
        if top.wants_commit() {
            self.commit_layer(&top).await?;
        }
        Ok(())
    }

    /// Stops the volume for ever, at once; recorded outside the layer; then the error to answer with.
    pub(crate) async fn record(&self, loss: Loss) -> VolumeError {
        let (first, recorded) = self.commits.lose(loss);
        if !recorded {
            self.host.record_loss(first.clone()).await;
            self.commits.recorded();
        }
        VolumeError::Failed(first)
    }

    /// The same from a store's error.
    pub(crate) async fn lose(
        &self,
        layer: &Layer<S>,
        step: LostStep,
        cause: &VolumeError,
    ) -> VolumeError {
        self.record(layer.loss(step, cause)).await
    }

    /// The steps of one commit, in the order that the module's doc gives.
    pub(crate) async fn commit_layer(self: &Arc<Self>, layer: &Arc<Layer<S>>) -> Result<(), Loss> {
        let mut head = layer.head.lock().await;
        let lost = |step| move |cause: VolumeError| layer.loss(step, &cause);
        self.commits.lost().map_or(Ok(()), Err)?;
        layer.sync_begins();
        layer.punches.commit_begins();
        layer.host.commit_begins();
        let mut batch = layer.map.copy_dirty();
        sealvol_crypto::clear_residue();
        layer
            .data
            .sync()
            .await
            .map_err(VolumeError::from)
            .map_err(lost(LostStep::DataSync))?;
        self.durable_writes.grace().await;
        self.commits.lost().map_or(Ok(()), Err)?;
        if !batch.is_empty() {
            if layer
                .map
                .write_pages(&mut batch)
                .await
                .map_err(lost(LostStep::MapWrite))?
            {
                layer.sync_meta().await?;
            }
            layer
                .map
                .enter_directories(&batch)
                .await
                .map_err(lost(LostStep::MapWrite))?;
            layer.commit_directories(&mut head, false).await?;
            layer.map.settle(&batch);
        }
        drop(head);
        layer.host.commit_done();
        if layer.punches.commit_done() {
            let (volume, layer) = (Arc::clone(self), Arc::clone(layer));
            self.host
                .spawn(Box::pin(async move { volume.run_punches(layer).await }));
        }
        Ok(())
    }
}

impl<S: Store> Layer<S> {
    /// Writes and syncs directory pages, and the superblock if one of them is new.
    pub(crate) async fn commit_directories(
        &self,
        head: &mut Superblock,
        stale: bool,
    ) -> Result<(), Loss> {
        let lost = |step| move |cause: VolumeError| self.loss(step, &cause);
        let written = self
            .map
            .write_directories(stale)
            .await
            .map_err(lost(LostStep::MapWrite))?;
        sealvol_crypto::clear_residue();
        if written.any {
            self.sync_meta().await?;
        }
        if written.new.is_empty() {
            return Ok(());
        }
        let mut next = head.clone();
        for (directory, sequence) in written.new {
            next.root[crate::geometry::index(directory)] = sequence;
        }
        self.write_head(head, next)
            .await
            .map_err(lost(LostStep::SuperblockWrite))?;
        // A registry that can't be written now hears of a later generation: until then only an older superblock
        // would pass for the newest one.
        let _ = self.pin().await;
        Ok(())
    }

    /// The superblock of a layer whose last change is on disk: the digest of the map is in it, and it is clean.
    pub(crate) async fn settled_head(&self, head: &mut Superblock) -> Result<Superblock, Loss> {
        self.commit_directories(head, true).await?;
        Ok(Superblock {
            root: self.map.exact_root(),
            clean: true,
            ..head.clone()
        })
    }

    async fn sync_meta(&self) -> Result<(), Loss> {
        let synced = self.map.meta().sync().await;
        synced.map_err(|cause| self.loss(LostStep::MapSync, &cause.into()))
    }
}
