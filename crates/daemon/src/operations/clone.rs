//! `volume create --from-snapshot`: a volume that begins as a snapshot holds, there at once; no data is copied, or all of it
//! behind it, by a job (`--fresh-key`).
//!
//! ```text
//!   registry: creating ─▶ key service: a new data key for the clone, the inherited ones wrapped for the clone
//!      ─▶ the clone's top, complete and durable ─▶ another top for the source, under a new data key ─▶ registry: available
//!                                                   (if it writes under one that the clone inherits)
//! ```
//! What always holds:
//! - a data key never has writable layers in two volumes: else whoever writes the store could put what the source writes from
//!   now on into what the clone reads. The source has its new top before the clone exists;
//! - layers are shared, keys are not: the clone's own top carries its own copy of every data key that it inherits, wrapped for
//!   the clone's id by the key service. Nobody sees one. So it needs nothing of its source any more;
//! - a clone that a job brings to stand alone has them only until then, wrapped by what wraps them for the source: its own
//!   key, which may be of another provider, never opens what the source is under;
//! - the job that copies begins in the step of the registry that makes the clone available: they are both there, or neither;
//! - whatever fails or is cut short leaves no clone, and the source with all that it had.

use std::collections::HashSet;
use std::sync::Arc;

use sealvol_control::api::{self, SnapshotRef};
use sealvol_control::key_ref::KeyRef;
use sealvol_control::keychild::Right;
use sealvol_crypto::UnitSize;
use sealvol_volume::{DataKeyId, WrappedKey};

use super::attach::is_recorded;
use super::context;
use super::create::as_record;
use super::rekey::check_rate;
use super::snapshot::{Cut, LAYERS_MAX};
use super::stack::wrapped_copy;
use crate::audit::{Operation, Record};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::jobs::{Rekey, Work};
use crate::keys::{Subject, WrappedCopy};
use crate::place::Place;
use crate::registry::{LayerRow, NewJob, NewVolume, VolumeRow, WrappedBy};
use crate::rights::Caller;

/// What a clone begins as.
struct Source<'a> {
    name: &'a SnapshotRef,
    row: VolumeRow,
    /// Of the snapshot, from the top down.
    layers: Vec<LayerRow>,
}

/// What a clone that is the copy of a snapshot gets beside.
pub(super) struct CopyOf {
    /// The copy, a snapshot of the clone.
    pub(super) to: SnapshotRef,
    /// Bytes a second at most, if its blocks are copied.
    pub(super) rate: Option<u64>,
}

impl Daemon {
    pub(super) async fn clone_volume(
        self: &Arc<Self>,
        caller: Caller,
        mut request: api::CreateVolume,
        snapshot: &SnapshotRef,
        copy: Option<CopyOf>,
    ) -> Result<api::Volume, Error> {
        self.resolve_asked(&mut request.key).await?;
        let mut fresh_key = request.fresh_key.clone();
        // In the order of their names, as everybody who takes several.
        let mut names = vec![&request.name, &snapshot.volume];
        names.sort();
        names.dedup();
        let mut turns = Vec::new();
        for name in names {
            turns.push(self.turn(name).await);
        }
        // Until the registry has the clone stand on it, and a merge takes the clone along.
        let steady = self.merges.steady().await;
        let (row, found) = self.registered_snapshot(snapshot).await?;
        let second = "what begins as its snapshot has a data key of its own, so it would take two to open that";
        Self::check_not_provided(&row, second)?;
        if request.key.as_deref().is_some_and(is_provided) {
            let cause = "a clone inherits keys that a key service wraps: it is under one of its keys, not under `provided:`";
            return Err(Error::BadRequest(cause.to_owned()));
        }
        let layers = self.stack(&row, found.layer).await?;
        let source = Source {
            name: snapshot,
            row,
            layers,
        };
        if let Some(copy) = &copy
            && !self
                .may_share(&source.row, &source.layers, request.key.as_deref())
                .await?
        {
            fresh_key = Some(api::FreshKey { rate: copy.rate });
        }
        check_rate(fresh_key.as_ref().and_then(|fresh| fresh.rate))?;
        let mut request = self.complete(request, &source)?;
        if request.key.is_none() && request.key_set.is_none() && copy.is_none() {
            request.key_set = self.set_of(&source.row).await?.map(|set| set.name);
        }
        if request.key_set.is_none() {
            let same = || Some(source.row.key.to_string());
            request.key = request.key.or_else(same);
        }
        let new = NewVolume {
            parent: Some(found.layer),
            ..self.check_create(caller, &request).await?
        };
        self.begin_create(&new, request.key_set).await?;
        drop(steady);
        let place = Place::of(&new.backing, new.layer, &self.state.layers());
        let job = fresh_key.map(|fresh| copy_job(caller, &new, &source, &fresh, copy.as_ref()));
        let for_a_while = job.is_some();
        let at_once = copy.as_ref().filter(|_| !for_a_while);
        let made = self.make_clone(caller, &new, &place, &source, for_a_while);
        let made = match made.await {
            Ok(keys) => {
                let tops = self.snapshot_clone(caller, &new, at_once).await;
                tops.map(|tops| (keys, tops))
            }
            Err(error) => Err(error),
        };
        match made {
            Ok((keys, tops)) => {
                let id = new.id;
                let begun = self
                    .registry
                    .call(move |registry| {
                        registry.finish_clone(id, &keys, job.as_ref(), &tops)?;
                        registry.job_of(id)
                    })
                    .await?;
                tracing::info!(volume = %new.name, id = %new.id, from = %snapshot, "cloned");
                if let Some(job) = &begun {
                    self.work_on(job);
                }
                self.show_volume(&new.name).await
            }
            Err(error) => {
                self.undo_create(&new, &place).await;
                if !is_recorded(&error) {
                    let refused = self.record_clone(caller, &new, error.to_string()).await;
                    if let Err(error) = refused {
                        tracing::error!(volume = %new.name, %error, "the refusal could not be recorded");
                    }
                }
                Err(error)
            }
        }
    }

    /// The request with what a clone has from its source, but for its key.
    fn complete(
        &self,
        request: api::CreateVolume,
        source: &Source<'_>,
    ) -> Result<api::CreateVolume, Error> {
        let refuse = |cause| Error::NoSuchClone {
            name: request.name.clone(),
            snapshot: source.name.clone(),
            cause,
        };
        let (least, depth) = (source.layers[0].size, source.layers.len());
        let size = request.size.unwrap_or(least);
        if size < least {
            let cause = format!("{size} bytes were asked for, the snapshot has {least}");
            return Err(refuse(cause));
        }
        let has = source.row.sector_size;
        let asked = request.sector_size.map(UnitSize::try_from).transpose();
        let asked = asked.map_err(|error| Error::BadRequest(error.to_string()))?;
        if asked.is_some_and(|asked| asked != has) {
            let cause = format!("its sectors have {} bytes", has.bytes());
            return Err(refuse(cause));
        }
        let pending = source.layers.iter().any(|layer| !layer.sealed);
        if let Some(loss) = source.row.loss.clone().filter(|_| pending) {
            let name = source.row.name.clone();
            return Err(Error::LossRecorded { name, loss });
        }
        if depth >= LAYERS_MAX {
            return Err(Error::TooManyLayers {
                name: source.row.name.clone(),
                layers: depth,
            });
        }
        Ok(api::CreateVolume {
            size: Some(size),
            sector_size: u32::try_from(has.bytes()).ok(),
            ..request
        })
    }

    /// The clone's keys and its top, and the source's new one: what is left to do is to say that the clone exists.
    async fn make_clone(
        &self,
        caller: Caller,
        new: &NewVolume,
        place: &Place,
        source: &Source<'_>,
        for_a_while: bool,
    ) -> Result<Vec<(DataKeyId, WrappedBy)>, Error> {
        let (by, own) = self.own_key(caller, new).await?;
        let (mut keys, mut records) = (vec![(new.data_key, by)], vec![own]);
        let inherited = self.inherited_keys(caller, new, source, for_a_while);
        for (by, record) in inherited.await? {
            keys.push((record.data_key, by));
            records.push(record);
        }
        let cut = self.cut_for_clone(caller, source).await?;
        self.make_files(new, place, &records).await?;
        let stands_on = format!(
            "ok: it stands on layer {} of volume {} ({})",
            source.layers[0].id, source.layers[0].volume, source.name
        );
        self.record_clone(caller, new, stands_on).await?;
        if let Some(cut) = cut {
            self.cut(caller, vec![cut]).await?;
        }
        Ok(keys)
    }

    /// A copy of each data key of the snapshot, wrapped for the clone: by its key, or, if a job is to make them superfluous, by
    /// what wraps them for the source. So the clone's key may be of any provider then, and never opens what the source is under.
    async fn inherited_keys(
        &self,
        caller: Caller,
        new: &NewVolume,
        source: &Source<'_>,
        for_a_while: bool,
    ) -> Result<Vec<(WrappedBy, WrappedKey)>, Error> {
        let wrapped = self.wrapped_keys(&source.row).await?;
        let id = source.row.id;
        let by = self
            .registry
            .call(move |registry| registry.data_keys(id))
            .await?;
        let mut seen = HashSet::new();
        let ids = source.layers.iter().map(|layer| layer.data_key);
        let ids: Vec<DataKeyId> = ids.filter(|&id| seen.insert(id)).collect();
        let mut copies = Vec::new();
        for &id in &ids {
            let from = wrapped_copy(&source.row, id, by.get(&id), &wrapped)?;
            let to = Subject {
                id: new.id,
                name: new.name.clone(),
                context: context(new.id, id, new.sector_size),
            };
            copies.push((from, to));
        }
        let mut records = Vec::with_capacity(ids.len());
        // One batch for all of them that have the same key.
        let mut from = 0;
        while from < copies.len() {
            let under = if for_a_while {
                copies[from].0.key.clone()
            } else {
                new.key.clone()
            };
            let same = |(copy, _): &&(WrappedCopy, Subject)| !for_a_while || copy.key == under;
            let to = from + copies[from..].iter().take_while(same).count();
            let rewrapped = self
                .keys
                .rewrap_all(Right::Create, caller, &copies[from..to], &under)
                .await?;
            let of_batch = ids[from..to].iter().zip(rewrapped);
            records.extend(of_batch.map(|(&id, wrapped)| as_record(id, &under, wrapped)));
            from = to;
        }
        Ok(records)
    }

    /// The new top that the source needs if it writes under a data key that the clone inherits.
    async fn cut_for_clone(
        &self,
        caller: Caller,
        source: &Source<'_>,
    ) -> Result<Option<Cut>, Error> {
        let row = &source.row;
        let stack = self.stack(row, row.top).await?;
        let writes_under = stack[0].data_key;
        let shared = |layer: &LayerRow| layer.data_key == writes_under;
        if !source.layers.iter().any(shared) {
            return Ok(None);
        }
        // Whether it can be cut at all, before a key is made for it.
        self.check_place_for_top(row, &stack)?;
        let fresh = self.fresh_key(caller, row, &row.key).await?;
        self.plan_cut(row.clone(), None, Some(fresh))
            .await
            .map(Some)
    }

    async fn record_clone(
        &self,
        caller: Caller,
        new: &NewVolume,
        result: String,
    ) -> Result<(), Error> {
        let record = Record {
            volume: Some(new.id.to_string()),
            name: Some(new.name.to_string()),
            key: Some(new.key.to_string()),
            result,
            ..Record::of(Operation::Clone, caller)
        };
        let written = self.audit.append(record).await;
        written.map_err(|source| Error::Audit {
            path: self.audit.path().to_owned(),
            source,
        })
    }
}

fn is_provided(key: &str) -> bool {
    key == KeyRef::provided().to_string()
}

/// The job that copies what a clone shares into it: its top has a data key of its own already, so nothing is to be cut.
fn copy_job(
    caller: Caller,
    new: &NewVolume,
    source: &Source<'_>,
    fresh: &api::FreshKey,
    copy: Option<&CopyOf>,
) -> NewJob {
    let mut old_keys: Vec<String> = Vec::new();
    for layer in &source.layers {
        let key = layer.data_key.to_string();
        if !old_keys.contains(&key) {
            old_keys.push(key);
        }
    }
    NewJob {
        volume: new.id,
        name: new.name.clone(),
        work: Work::Rekey(Rekey {
            rate: fresh.rate,
            // Nobody has it attached, and it is not to wait until somebody has.
            detached: true,
            sealed: source.layers[0].id.to_string(),
            old_keys,
            then_snapshot: copy.map(|copy| copy.to.name.to_string()),
            ..Rekey::default()
        }),
        total: 0,
        by: caller.uid,
        created: new.created.clone(),
    }
}
