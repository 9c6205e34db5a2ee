//! Copying up: blocks that only lower layers hold are brought into the top, under the top's own key. Flattening, re-keying,
//! copying under another key and filling from a remote layer are all this one engine.
//!
//! ```text
//!   through the stack   what a volume reads        top: new key    below: all of it, then cut over: no parent
//!   exactly one layer   what that layer says       top: new key    below: that layer alone; zero stays zero, absent stays absent
//!   merging up          what the nearest says      top: the child  below: the layer that goes, and more that stays
//!   merging down        what the child says        top: the layer that goes, in whose place it is   below: its child, which goes
//! ```
//!
//! Always:
//! - the source is read and the destination written inside one exclusive lock of the chunk, whose blocks are looked at again
//!   under it: a newer write, zero or trim of a client is never overwritten;
//! - an entry becomes `data` only after its bytes were written, read back and found to be the same (rule R1), and of a
//!   sealed layer, which others read, only after they were synced: a sync that fails takes nothing from anybody;
//! - the top's map is the cursor: the work may stop anywhere, and goes on where something is missing. Not so merging down, where
//!   what is in the top already is to be overwritten: `merge.rs` says how far it has come;
//! - a cut-over follows only a look at the whole map that finds nothing left below, and then a commit, so that all that the look
//!   found is on disk. What was brought up never goes down again, so clients may write meanwhile. What was below is handed back when nobody reads it any more.
//!
//! Never: a key that is destroyed or a file that is removed; whoever called does that, with what [`Volume::cut_over`] hands back.

use std::ops::Range;
use std::sync::Arc;

use sealvol_store::{IoBuf, Store};

use crate::error::{LostStep, VolumeError};
use crate::geometry::{BLOCK, PAGE_BLOCKS, index};
use crate::host::Task;
use crate::ids::LayerId;
use crate::layer::Layer;
use crate::locks::Mode;
use crate::map::{Run, Runs};
use crate::open::{Access, LayerParts, open_alone};
use crate::page::BlockState;
use crate::stack::Stack;
use crate::volume::Volume;
use crate::zero::yield_now;

/// Blocks that are locked and copied at once: 1 MiB, so that a client's write waits for a read, a write and a read at most.
const CHUNK: u64 = 256;
/// The same for a sealed layer, which no client writes to, but which is synced for each: 4 MiB.
const CHUNK_SEALED: u64 = 1024;

/// What is brought up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All that the volume reads, whoever holds it.
    Everything,
    /// What the layer right below the top says, zeros too: below it there may be more. It is this layer.
    Nearest(LayerId),
    /// The same, also where the top says something else: that gives way.
    Over(LayerId),
}

impl Scope {
    /// Whether a run is one that only a lower layer decides, and that the top needs an entry for.
    fn wants(self, run: &Run) -> bool {
        match self {
            // A block that is zero below reads the same once nothing is below.
            Self::Everything => run.depth > 0 && run.state == BlockState::Data,
            Self::Nearest(_) | Self::Over(_) => run.depth == 1,
        }
    }

    /// Who decides each block of a range.
    async fn resolve<S: Store>(
        self,
        stack: &Stack<S>,
        blocks: Range<u64>,
    ) -> Result<Runs, VolumeError> {
        match self {
            Self::Everything | Self::Nearest(_) => stack.resolve(blocks).await,
            Self::Over(_) => stack.resolve_nearest(blocks).await,
        }
    }

    /// # Errors
    ///
    /// [`VolumeError::NotNearest`] if another layer is right below the top by now.
    fn check<S>(self, stack: &Stack<S>) -> Result<(), VolumeError> {
        match self {
            Self::Nearest(layer) | Self::Over(layer)
                if stack.below.first().map(|lower| lower.params.layer) != Some(layer) =>
            {
                Err(VolumeError::NotNearest { layer })
            }
            _ => Ok(()),
        }
    }
}

/// How fast copying may go.
pub trait Pace: Send + Sync {
    /// Ready when so many bytes may be copied. Called before each chunk, while nothing is locked.
    fn chunk(&self, bytes: u64) -> Task<()>;
}

/// As fast as the stores go.
pub struct Unpaced;

impl Pace for Unpaced {
    fn chunk(&self, _bytes: u64) -> Task<()> {
        Box::pin(async {})
    }
}

/// How far a call of [`Volume::copy_up`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopiedUp {
    /// Bytes that it copied.
    pub copied: u64,
    /// Where the next call is to go on; `None` if it has seen the end of its range.
    pub next: Option<u64>,
}

/// Opens a destination over one sealed layer of which it becomes an exact copy under its own key: [`Volume::copy_up`] it, then
/// [`Volume::seal_copy`]. No client may be given this volume: what lies below the layer is not in it.
///
/// # Errors
///
/// As [`open`](crate::open); [`VolumeError::BrokenStack`] if size or sector size differ.
pub async fn open_copy<S: Store>(
    source: Arc<Layer<S>>,
    destination: LayerParts<S>,
) -> Result<Arc<Volume<S>>, VolumeError> {
    let params = destination.pins.params;
    if params.size != source.size() || params.sector_size != source.params.sector_size {
        return Err(VolumeError::BrokenStack {
            layer: params.layer,
            cause: "it was made for another size than the layer that is to be copied",
        });
    }
    let top = open_alone(destination, Access::Writable).await?;
    let scope = Scope::Nearest(source.id());
    let below = Box::new([source]);
    let volume = Volume::new(Arc::new(top), below, Access::Writable);
    Ok(Arc::new(volume.copying(scope)))
}

impl<S: Store> Volume<S> {
    /// Bytes that [`Self::copy_up`] would copy now.
    ///
    /// # Errors
    ///
    /// Those of loading map pages.
    pub async fn left_below(&self) -> Result<u64, VolumeError> {
        self.left_of(self.scope()).await
    }

    pub(crate) async fn left_of(&self, scope: Scope) -> Result<u64, VolumeError> {
        let mut blocks = 0;
        let mut at = 0;
        while let Some(run) = self.next_below(scope, &mut at).await? {
            blocks += run.blocks;
        }
        Ok(blocks * BLOCK)
    }

    /// The first byte from `from` on (rounded down to a block) that [`Self::copy_up`] would copy now.
    ///
    /// # Errors
    ///
    /// Those of loading map pages.
    pub async fn first_below(&self, from: u64) -> Result<Option<u64>, VolumeError> {
        let mut at = from / BLOCK;
        let run = self.next_below(self.scope(), &mut at).await?;
        Ok(run.map(|run| run.first * BLOCK))
    }

    /// Copies what lies below into the top, in the blocks that a range of bytes touches, until about `bytes_max` are
    /// copied (at least one chunk of 1 MiB is looked at) or the range or the volume ends; then commits. Clients may use the
    /// volume; several calls may work on parts of it side by side, best on parts that begin at whole chunks.
    ///
    /// # Errors
    ///
    /// As a write: after [`VolumeError::NoSpace`] the volume goes on, with what was copied so far. [`VolumeError::BadCopy`].
    pub async fn copy_up(
        self: &Arc<Self>,
        range: Range<u64>,
        bytes_max: u64,
        pace: &dyn Pace,
    ) -> Result<CopiedUp, VolumeError> {
        self.bring_up(self.scope(), range, bytes_max, pace).await
    }

    pub(crate) async fn bring_up(
        self: &Arc<Self>,
        scope: Scope,
        range: Range<u64>,
        bytes_max: u64,
        pace: &dyn Pace,
    ) -> Result<CopiedUp, VolumeError> {
        self.check_writable().await?;
        let mut copied = 0;
        let mut at = range.start / BLOCK;
        let last = range.end.div_ceil(BLOCK);
        let mut ended = false;
        while copied < bytes_max {
            let Some(run) = self.next_below_in(scope, &mut at, last).await? else {
                ended = true;
                break;
            };
            let stack = self.stack.load_full();
            let most = if stack.top.is_sealed() {
                CHUNK_SEALED
            } else {
                CHUNK
            };
            let end = (self.size() / BLOCK).min((run.first / most + 1) * most);
            let end = end.min(last);
            let chunk = run.first..end;
            at = chunk.start;
            let found = scope.resolve(&stack, chunk.clone()).await?;
            let found = found.iter().filter(|run| scope.wants(run));
            pace.chunk(found.map(|run| run.blocks * BLOCK).sum()).await;
            match self.copy_chunk(scope, &stack, chunk.clone()).await? {
                Some(bytes) => {
                    copied += bytes;
                    at = chunk.end;
                }
                None => drop(self.open_stack().await),
            }
            yield_now().await;
        }
        self.commit().await?;
        let next = (!ended).then_some(at * BLOCK);
        Ok(CopiedUp { copied, next })
    }

    /// The next run of blocks, from `at` on, that are to be copied; `at` is its end then, or the volume's.
    async fn next_below(&self, scope: Scope, at: &mut u64) -> Result<Option<Run>, VolumeError> {
        self.next_below_in(scope, at, u64::MAX).await
    }

    /// The same, of the blocks before `end`.
    async fn next_below_in(
        &self,
        scope: Scope,
        at: &mut u64,
        end: u64,
    ) -> Result<Option<Run>, VolumeError> {
        let end = end.min(self.size() / BLOCK);
        while *at < end {
            let page = end.min((*at / PAGE_BLOCKS + 1) * PAGE_BLOCKS);
            let stack = self.stack.load_full();
            scope.check(&stack)?;
            let runs = scope.resolve(&stack, *at..page).await?;
            if let Some(run) = runs.iter().find(|run| scope.wants(run)) {
                *at = run.first + run.blocks;
                return Ok(Some(run));
            }
            *at = page;
            yield_now().await;
        }
        Ok(None)
    }

    /// Copies what is to be copied of a chunk. How many bytes that was; `None` if the stack was closed.
    async fn copy_chunk(
        self: &Arc<Self>,
        scope: Scope,
        stack: &Stack<S>,
        chunk: Range<u64>,
    ) -> Result<Option<u64>, VolumeError> {
        let top = &stack.top;
        scope.check(stack)?;
        self.check_writable().await?;
        self.commit_if_crowded(top).await?;
        let prepared = top.map.prepare(chunk.clone()).await?;
        let turn = self.locks.lock(chunk.clone(), Mode::Exclusive).await;
        if stack.is_closed() {
            return Ok(None);
        }
        let _reading = self.epochs.enter();
        let mut copied = 0;
        let mut remembered = true;
        // Looked at again, now that nobody else can change them.
        let runs = scope.resolve(stack, chunk).await?;
        for run in runs.iter().filter(|run| scope.wants(run)) {
            if run.state == BlockState::Data {
                copy_run(stack, &run).await?;
                copied += run.blocks * BLOCK;
            }
        }
        if top.is_sealed()
            && copied > 0
            && let Err(cause) = top.data.sync().await
        {
            return Err(self.lose(top, LostStep::DataSync, &cause.into()).await);
        }
        for run in runs.iter().filter(|run| scope.wants(run)) {
            let blocks = run.first..run.first + run.blocks;
            top.map.set(&prepared.part(&blocks), run.state);
            remembered &= top.remember(&blocks, run.state);
        }
        drop(turn);
        drop(_reading);
        if !remembered {
            self.commit().await?;
        }
        Ok(Some(copied))
    }

    /// Makes a top that holds everything stand alone: durable when it returns, and nobody reads the layers that were below any
    /// more; they are handed back, the nearest first. What else uses them, only the registry knows.
    ///
    /// A registry that did not hear of it finds a superblock without parent the next time, and
    /// [`open`](crate::open) leaves out what lies below then.
    ///
    /// # Errors
    ///
    /// [`VolumeError::LeftBelow`] if something is not copied up yet; [`VolumeError::Failed`]; those of loading map pages.
    pub async fn cut_over(self: &Arc<Self>) -> Result<Vec<Arc<Layer<S>>>, VolumeError> {
        self.take_away(Scope::Everything).await
    }

    /// Takes what was brought up away from below the top: all of it, or the nearest layer.
    ///
    /// # Errors
    ///
    /// As [`Self::cut_over`].
    pub(crate) async fn take_away(
        self: &Arc<Self>,
        scope: Scope,
    ) -> Result<Vec<Arc<Layer<S>>>, VolumeError> {
        self.check_writable().await?;
        let _shape = self.shape.lock().await;
        self.check_nothing_left(scope).await?;
        // After the look: what it saw in memory alone would else be absent after a power cut, over nothing.
        self.commit().await?;
        let old = self.stack.load_full();
        scope.check(&old)?;
        let gone = match scope {
            Scope::Everything => old.below.len(),
            Scope::Nearest(_) | Scope::Over(_) => 1,
        };
        let (gone, left) = old.below.split_at(gone);
        self.switch_parent(&old.top, left.first().map(|layer| layer.id()), scope)
            .await?;
        self.stand_on(&old, &old.top, left).await;
        old.top.pin().await?;
        Ok(gone.to_vec())
    }

    /// The superblock of a layer names another parent, or none: what it holds by now is durable.
    pub(crate) async fn switch_parent(
        self: &Arc<Self>,
        top: &Arc<Layer<S>>,
        parent: Option<LayerId>,
        scope: Scope,
    ) -> Result<(), VolumeError> {
        let mut head = top.head.lock().await;
        self.commits.check().await?;
        let next = if top.is_sealed() {
            top.settled_head(&mut head).await
        } else {
            Ok(head.clone())
        };
        let mut next = match next {
            Ok(next) => next,
            Err(loss) => return Err(self.record(loss).await),
        };
        next.params.parent = parent;
        next.content_generation += u64::from(scope != Scope::Everything);
        match top.write_head(&mut head, next).await {
            Ok(()) => Ok(()),
            Err(cause) => Err(self.lose(top, LostStep::SuperblockWrite, &cause).await),
        }
    }

    /// Puts a stack of fewer layers in the place of one. Nobody is on the way to the others when it returns. The caller holds `shape`.
    pub(crate) async fn stand_on(
        &self,
        old: &Stack<S>,
        top: &Arc<Layer<S>>,
        below: &[Arc<Layer<S>>],
    ) {
        old.close();
        let new = Stack::new(Arc::clone(top), below.into());
        self.stack.store(Arc::new(new));
        self.switched.notify(usize::MAX);
        // Whoever found the old stack may be on the way to a layer of it.
        self.locks.grace().await;
        self.epochs.grace().await;
    }

    async fn check_nothing_left(&self, scope: Scope) -> Result<(), VolumeError> {
        let mut at = 0;
        match self.next_below(scope, &mut at).await? {
            Some(run) => Err(VolumeError::LeftBelow {
                offset: run.first * BLOCK,
            }),
            None => Ok(()),
        }
    }

    /// Seals an exact copy, once it holds all that its source says. The layer that it is now.
    ///
    /// # Errors
    ///
    /// As [`Self::cut_over`].
    ///
    /// # Panics
    ///
    /// If it is not of [`open_copy`].
    pub async fn seal_copy(self: &Arc<Self>) -> Result<Arc<Layer<S>>, VolumeError> {
        assert!(
            self.scope() != Scope::Everything,
            "only a copy is sealed by this"
        );
        self.check_nothing_left(self.scope()).await?;
        self.settle(true).await?;
        Ok(self.top())
    }
}

/// Reads a run where it lies, writes it into the top and reads it back.
async fn copy_run<S: Store>(stack: &Stack<S>, run: &Run) -> Result<(), VolumeError> {
    let (source, top) = (stack.layer(run.depth), &stack.top);
    let offset = run.first * BLOCK;
    let len = index(run.blocks * BLOCK);
    let (mut buf, result) = source.data.read_at(IoBuf::for_overwrite(len), offset).await;
    result?;
    // Under one data key a sector is the same bytes in every layer.
    if !Arc::ptr_eq(&source.cipher, &top.cipher) {
        source.decrypt(offset, &mut buf);
        top.encrypt(offset, &mut buf);
        // This may not be a worker, which does so before it sleeps.
        sealvol_crypto::clear_residue();
    }
    let written = top.write_data(buf, offset).await?;
    let (found, result) = top.data.read_at(IoBuf::for_overwrite(len), offset).await;
    result?;
    if found[..] != written[..] {
        return Err(VolumeError::BadCopy {
            layer: top.id(),
            offset,
        });
    }
    Ok(())
}
