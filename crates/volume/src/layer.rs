//! One layer that is open: its stores, its map, its superblock and its key.
//!
//! Always:
//! - a layer is *sealed* (never written, shared by every volume that stands on it) or the *top* of one volume;
//! - data is written in two functions, which note it for the next commit before whoever wrote it is answered: [`Layer::write_data`]
//!   and [`Layer::overwrite_data`];
//! - the superblock is changed under the `head` lock, and in one function: [`Layer::write_head`];
//! - what a layer is settled with, the digest of its map is under its superblock's MAC, and its map never changes again
//!   before the layer is opened once more ([`Volume::settle`]).
//!
//! Never: a range lock. Who may change which block is the volume's business.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use sealvol_crypto::SectorCipher;
use sealvol_store::{Durability, IoBuf, Store};

use crate::error::{Loss, LostStep, VolumeError};
use crate::geometry::BLOCK;
use crate::host::{Change, Host};
use crate::ids::LayerId;
use crate::map::Map;
use crate::page::BlockState;
use crate::punch::Punches;
use crate::slots;
use crate::superblock::{LayerParams, Superblock, WrappedKey};

/// An open layer. Those that are sealed are shared by the volumes that stand on them.
pub struct Layer<S> {
    /// As they were when it was opened.
    pub(crate) params: LayerParams,
    pub(crate) data: S,
    pub(crate) map: Map<S>,
    pub(crate) cipher: Arc<SectorCipher>,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) punches: Punches,
    /// Data was written that no commit has begun to sync.
    unsynced: AtomicBool,
    /// The superblock on disk, and the right to change it or the map's pages on disk.
    pub(crate) head: async_lock::Mutex<Superblock>,
    generation: AtomicU64,
    size: AtomicU64,
    /// What it stands on: a cut-over or a merge takes that away. Its superblock may name a layer that was handed down into this one.
    parent: Mutex<Option<LayerId>>,
    /// How much of the layer above it a merge has brought down into it.
    pub(crate) reached: Mutex<Option<Reached>>,
    /// All that it says is in the layer below it, and the registry has nobody stand on it any more.
    handed_down: AtomicBool,
    sealed: AtomicBool,
    /// Why nothing more is brought to it, sealed as it is, before it is opened anew.
    pub(crate) unmergeable: Arc<OnceLock<Loss>>,
    repaired: Option<&'static str>,
}

/// All that a child says before this byte is in the layer below it, on disk; true as long as that is open.
pub(crate) struct Reached {
    pub(crate) child: LayerId,
    /// Of the child: it was not written to since.
    pub(crate) generation: u64,
    pub(crate) to: u64,
}

impl<S: Store> Layer<S> {
    /// A layer whose superblock is `head`: checked, or just written; it stands on `parent`, whatever that says.
    pub(crate) fn new(
        (data, meta): (S, S),
        parent: Option<LayerId>,
        cipher: Arc<SectorCipher>,
        host: Arc<dyn Host>,
        head: Superblock,
        exact_from: u64,
        repaired: Option<&'static str>,
    ) -> Self {
        let map = Map::new(
            meta,
            Arc::clone(&cipher),
            head.params.layer,
            exact_from,
            head.root.clone(),
            head.sequence_base.max(1),
            Arc::clone(&host),
        );
        Self {
            params: LayerParams {
                parent,
                ..head.params
            },
            data,
            map,
            cipher,
            host,
            punches: Punches::default(),
            // Whoever had it open before may have died and left writes in the page cache.
            unsynced: AtomicBool::new(true),
            generation: AtomicU64::new(head.generation),
            size: AtomicU64::new(head.params.size),
            parent: Mutex::new(parent),
            reached: Mutex::new(None),
            handed_down: AtomicBool::new(false),
            sealed: AtomicBool::new(head.sealed),
            unmergeable: Arc::default(),
            head: async_lock::Mutex::new(head),
            repaired,
        }
    }

    /// Which layer it is.
    #[must_use]
    pub fn id(&self) -> LayerId {
        self.params.layer
    }

    /// Identity and geometry, as they are now: a layer may have grown, or given up its parent, since it was opened.
    #[must_use]
    pub fn params(&self) -> LayerParams {
        LayerParams {
            parent: *self.parent.lock().unwrap_or_else(PoisonError::into_inner),
            size: self.size(),
            ..self.params
        }
    }

    /// The superblock's generation.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Its data key at work: for another layer under the same key, which needs no key service then.
    #[must_use]
    pub fn cipher(&self) -> Arc<SectorCipher> {
        Arc::clone(&self.cipher)
    }

    /// The wrapped keys in its superblock: for a new top, which carries those of every layer below it.
    pub async fn wrapped_keys(&self) -> Vec<WrappedKey> {
        self.head.lock().await.keys.clone()
    }

    /// What was repaired when the layer was opened, if something was.
    #[must_use]
    pub fn repaired(&self) -> Option<&'static str> {
        self.repaired
    }

    /// Whether its superblock says that what it holds never changes again.
    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Blocks that its map knows of.
    pub(crate) fn blocks(&self) -> u64 {
        self.size() / BLOCK
    }

    /// Decrypts whole sectors that were read at byte `first`.
    pub(crate) fn decrypt(&self, first: u64, bytes: &mut [u8]) {
        let unit = self.params.sector_size;
        self.cipher
            .decrypt_in_place(unit, first / unit.bytes() as u64, bytes);
    }

    /// Encrypts whole sectors that are to be written at byte `first`.
    pub(crate) fn encrypt(&self, first: u64, bytes: &mut [u8]) {
        let unit = self.params.sector_size;
        self.cipher
            .encrypt_in_place(unit, first / unit.bytes() as u64, bytes);
    }

    /// Writes ciphertext, which the next commit syncs; the buffer comes back.
    ///
    /// # Errors
    ///
    /// Store errors.
    pub(crate) async fn write_data(&self, buf: IoBuf, offset: u64) -> Result<IoBuf, VolumeError> {
        let volatile = Durability::Volatile;
        let (buf, result) = self.data.write_at(buf, offset, volatile).await;
        self.unsynced.store(true, Ordering::Release);
        result?;
        Ok(buf)
    }

    /// The same over blocks that are data, with the durability that is asked for.
    ///
    /// # Errors
    ///
    /// Store errors.
    pub(crate) async fn overwrite_data(
        &self,
        buf: IoBuf,
        offset: u64,
        durability: Durability,
    ) -> Result<(), VolumeError> {
        let (_, result) = self.data.overwrite_at(buf, offset, durability).await;
        if durability == Durability::Volatile {
            self.unsynced.store(true, Ordering::Release);
        }
        Ok(result?)
    }

    /// A commit begins: what was written by now is for its sync.
    pub(crate) fn sync_begins(&self) {
        self.unsynced.swap(false, Ordering::AcqRel);
    }

    /// Whether a commit would bring anything to disk, or free space. While one is under way it says what the next one would.
    pub(crate) fn wants_commit(&self) -> bool {
        self.unsynced.load(Ordering::Acquire) || self.map.has_changes() || self.punches.has_marked()
    }

    fn stands_on(&self, parent: Option<LayerId>) {
        *self.parent.lock().unwrap_or_else(PoisonError::into_inner) = parent;
    }

    /// All that it says is in the layer below it, durably, and the registry has nobody stand on it any more.
    pub(crate) fn hand_down(&self) {
        self.handed_down.store(true, Ordering::Release);
    }

    pub(crate) fn is_handed_down(&self) -> bool {
        self.handed_down.load(Ordering::Acquire)
    }

    /// Stands on what a layer stood on that was handed down, if it stood on that one. False: it stands on it, and it was not.
    pub(crate) fn steps_over(&self, lower: &Self) -> bool {
        if self.params().parent != Some(lower.id()) {
            return true;
        }
        if !lower.is_handed_down() {
            return false;
        }
        // The next superblock that is written says so too.
        self.stands_on(lower.params().parent);
        true
    }

    /// Writes the next superblock to both slots and remembers it.
    ///
    /// # Errors
    ///
    /// Those of [`slots::write`].
    pub(crate) async fn write_head(
        &self,
        head: &mut Superblock,
        mut next: Superblock,
    ) -> Result<(), VolumeError> {
        let other_parent = next.params.parent != head.params.parent;
        if !other_parent {
            // It may be on disk as that of a layer that was handed down.
            next.params.parent = self.params().parent;
        }
        next.generation += 1;
        next.bind(&self.cipher);
        sealvol_crypto::clear_residue();
        slots::write(self.map.meta(), &next, 0).await?;
        self.map.root_written(&next.root);
        self.generation.store(next.generation, Ordering::Release);
        self.size.store(next.params.size, Ordering::Release);
        self.sealed.store(next.sealed, Ordering::Release);
        if other_parent {
            self.stands_on(next.params.parent);
        }
        *head = next;
        Ok(())
    }

    /// Tells the registry what the superblock says now.
    ///
    /// # Errors
    ///
    /// [`VolumeError::Registry`].
    pub(crate) async fn pin(&self) -> Result<(), VolumeError> {
        self.host
            .pin(self.generation(), self.size(), self.cipher.commitment())
            .await
    }

    /// Puts a change where it survives this process (rule R8). False: there is no room, and a commit must make it
    /// durable before it is acknowledged. Call under the blocks' exclusive lock. Nobody is told of a change to a sealed
    /// layer, so there is nothing to remember.
    pub(crate) fn remember(&self, blocks: &Range<u64>, state: BlockState) -> bool {
        if self.is_sealed() {
            return true;
        }
        let change = Change {
            first: blocks.start,
            blocks: blocks.end - blocks.start,
            state,
        };
        self.host.remember(change).is_ok()
    }

    /// Enters changes that an earlier opening acknowledged and did not bring to disk.
    ///
    /// # Errors
    ///
    /// [`VolumeError::OutOfRange`]; those of loading map pages.
    pub(crate) async fn apply(&self, changes: &[Change]) -> Result<(), VolumeError> {
        for change in changes {
            let blocks = change.first..change.first.saturating_add(change.blocks);
            if blocks.end > self.blocks() {
                return Err(VolumeError::OutOfRange {
                    offset: blocks.start.saturating_mul(BLOCK),
                    end: blocks.end.saturating_mul(BLOCK),
                    size: self.size(),
                });
            }
            let prepared = self.map.prepare(blocks.clone()).await?;
            self.map.set(&prepared, change.state);
            if change.state == BlockState::Zero {
                self.punches.mark(blocks);
            } else {
                self.punches.cancel(&blocks);
            }
        }
        Ok(())
    }

    pub(crate) fn loss(&self, step: LostStep, cause: &VolumeError) -> Loss {
        Loss {
            layer: self.params.layer,
            step,
            cause: cause.to_string(),
        }
    }
}
