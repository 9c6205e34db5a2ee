//! Snapshots (rule R7): a new top takes the place of the old one while requests go on, and the old one is sealed.
//!
//! ```text
//!   new top opened for writing, durable ─▶ close the stacks ─▶ put the new ones in place ─▶ commit and seal the old tops
//!        (before the cut: I/O)              └── in memory, without a wait: the cut ──┘        ─▶ registry: head switched ─▶ answer
//! ```
//!
//! Always:
//! - a change begins in the stack that is open while it holds its range lock. What began in the old top ends there, and the
//!   old top is committed only after it did;
//! - nothing begins in a new top of a group before every old one is closed: the cut respects cause and effect over all
//!   connections and all volumes;
//! - every commit that begins after the cut first finishes the switch: old top committed, sealed, head switched durably.
//!   So no FLUSH or FUA on the new top is answered before that, and lower layers are durable before higher ones;
//! - a re-key, a clone's and a plain snapshot's switch are this one.
//!
//! Never: a wait or I/O between the first stack that is closed and the last one that is replaced.

use std::sync::Arc;

use sealvol_store::Store;

use crate::commit::CommitFailed;
use crate::error::VolumeError;
use crate::layer::Layer;
use crate::open::{Access, LayerParts, open_top};
use crate::stack::{Stack, linked};
use crate::volume::Volume;

/// A switch that is made in memory and not on disk yet.
pub(crate) struct Switch<S> {
    old: Arc<Layer<S>>,
    new: Arc<Layer<S>>,
    sealed: bool,
}

impl<S> Clone for Switch<S> {
    fn clone(&self) -> Self {
        Self {
            old: Arc::clone(&self.old),
            new: Arc::clone(&self.new),
            sealed: self.sealed,
        }
    }
}

/// Cuts several volumes at one moment and puts a new top on each. The layers that were sealed, in the order of the volumes.
///
/// Of each new top the files are complete and durable, its parent is the present top, and the registry has recorded that it
/// is about to come: what is opened after a crash is the old top by [`finish_sealing`](crate::finish_sealing), with the new
/// one on it. What was acknowledged before this call is in the sealed layers, what is sent after it returned is not.
///
/// # Errors
///
/// Before the cut: as [`open`](crate::open) for a new top; [`VolumeError::BrokenStack`] if it does not fit; nothing was cut then.
/// After it: [`VolumeError::Failed`] for ever; [`VolumeError::Registry`] if the head switch could not be recorded, and then
/// the next flush or close tries again.
///
/// # Panics
///
/// If the same volume is given twice.
pub async fn snapshot_all<S: Store>(
    cuts: Vec<(Arc<Volume<S>>, LayerParts<S>)>,
) -> Result<Vec<Arc<Layer<S>>>, VolumeError> {
    let (volumes, parts): (Vec<_>, Vec<_>) = cuts.into_iter().unzip();
    // In one order, so that two groups never wait for each other.
    let mut order: Vec<&Arc<Volume<S>>> = volumes.iter().collect();
    order.sort_by_key(|volume| Arc::as_ptr(volume));
    let twice = order.windows(2).any(|pair| Arc::ptr_eq(pair[0], pair[1]));
    assert!(!twice, "a volume is cut twice at one moment");
    let mut turns = Vec::new();
    for volume in order {
        turns.push(volume.shape.lock().await);
    }
    let tops = open_tops(&volumes, parts).await?;
    let sealed = volumes.iter().map(|volume| volume.top()).collect();
    switch(&volumes, tops);
    for volume in &volumes {
        volume.commit().await?;
    }
    Ok(sealed)
}

/// Opens the new tops; those that were opened are given up again if one of them can't be.
async fn open_tops<S: Store>(
    volumes: &[Arc<Volume<S>>],
    parts: Vec<LayerParts<S>>,
) -> Result<Vec<Arc<Layer<S>>>, VolumeError> {
    let mut tops: Vec<Arc<Layer<S>>> = Vec::new();
    for (volume, parts) in volumes.iter().zip(parts) {
        match volume.open_new_top(parts).await {
            Ok(top) => tops.push(top),
            Err(error) => {
                for top in tops {
                    top.host.end_session();
                }
                return Err(error);
            }
        }
    }
    Ok(tops)
}

/// The cut.
fn switch<S: Store>(volumes: &[Arc<Volume<S>>], tops: Vec<Arc<Layer<S>>>) {
    let old: Vec<Arc<Stack<S>>> = volumes
        .iter()
        .map(|volume| volume.stack.load_full())
        .collect();
    let new: Vec<Arc<Stack<S>>> = old
        .iter()
        .zip(tops)
        .map(|(old, top)| Arc::new(Stack::new(top, old.layers().cloned().collect())))
        .collect();
    for stack in &old {
        stack.close();
    }
    for ((volume, old), new) in volumes.iter().zip(&old).zip(new) {
        volume.commits_first(Switch {
            old: Arc::clone(&old.top),
            new: Arc::clone(&new.top),
            sealed: false,
        });
        volume.stack.store(new);
    }
    for volume in volumes {
        volume.switched.notify(usize::MAX);
    }
}

impl<S: Store> Volume<S> {
    /// [`snapshot_all`] for one volume: the layer that was sealed.
    ///
    /// # Errors
    ///
    /// As [`snapshot_all`].
    pub async fn snapshot(
        self: &Arc<Self>,
        top: LayerParts<S>,
    ) -> Result<Arc<Layer<S>>, VolumeError> {
        let mut sealed = snapshot_all(vec![(Arc::clone(self), top)]).await?;
        Ok(sealed.remove(0))
    }

    /// Opens what is to be the next top. The caller holds `shape`.
    async fn open_new_top(
        self: &Arc<Self>,
        parts: LayerParts<S>,
    ) -> Result<Arc<Layer<S>>, VolumeError> {
        self.check_writable().await?;
        if self.switch_to_finish().is_some() {
            self.commit().await?;
        }
        let params = parts.pins.params;
        if params.volume != self.top().params.volume || params.size != self.size() {
            let cause = "it was made for another volume, or for another size of it";
            let layer = params.layer;
            return Err(VolumeError::BrokenStack { layer, cause });
        }
        // A layer that was merged with the one above it may still be there, until it is left out.
        let below = linked(Some(self.top().id()), &self.layers());
        open_top(&below, parts, Access::Writable).await
    }

    /// Has every commit from now on finish a switch first.
    fn commits_first(&self, switch: Switch<S>) {
        *self.switching() = Some(switch);
    }

    pub(crate) fn switch_to_finish(&self) -> Option<Switch<S>> {
        self.switching().clone()
    }

    /// Commits and seals what was the top, and makes the registry name the new one. One commit at a time calls it.
    pub(crate) async fn finish_switch(
        self: &Arc<Self>,
        switch: Switch<S>,
    ) -> Result<(), CommitFailed> {
        let Switch { old, new, sealed } = switch;
        if !sealed {
            self.locks.grace().await;
            self.commit_layer(&old).await?;
            self.settle_layer(&old, true).await?;
            if let Some(switch) = &mut *self.switching() {
                switch.sealed = true;
            }
        }
        old.pin().await?;
        new.host.head_switched(old.id()).await?;
        *self.switching() = None;
        old.host.end_session();
        Ok(())
    }
}
