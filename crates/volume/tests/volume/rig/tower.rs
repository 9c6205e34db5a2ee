//! Volumes of many layers on one disk, on a machine that can lose power or whose process can be killed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use sealvol_crypto::{SectorCipher, UnitSize};
use sealvol_store::fault::FaultDisk;
use sealvol_store::{Access as FileAccess, Directory};
use sealvol_volume::{
    Access, DATA_FILE, DataKeyId, Layer, LayerId, LayerParams, LayerParts, META_FILE, Merge,
    Unpaced, Volume, VolumeError, VolumeId, WrappedKey, create, destroy_keys, finish_sealing, open,
    open_sealed, read_layer,
};

use super::executor::{Executor, Handle};
use super::machine::{Disk, KEY, cipher};
use super::random::Random;
use super::registry::{Registry, RegistryHost};
use super::scattered::Scattered;

type Tall = Arc<Volume<Disk>>;
/// What a snapshot that was begun ends with.
type Cut = Handle<Result<Arc<Layer<Disk>>, VolumeError>>;

/// Executor, disk, and what a registry knows: of each layer its pins and key, of each volume its layers.
pub(crate) struct Tower {
    pub(crate) disk: FaultDisk,
    pub(crate) executor: Executor,
    pub(crate) random: Random,
    /// How often an operation of the disk gives way, at most.
    pub(crate) most: u64,
    pub(crate) sector_size: UnitSize,
    /// Whether what is written to `data` is not what was asked for.
    pub(crate) flips: Arc<AtomicBool>,
    layers: BTreeMap<LayerId, Row>,
    /// The layers of each volume, the lowest first. One that is about to be its top is in it already.
    stacks: BTreeMap<VolumeId, Vec<LayerId>>,
    /// Sealed layers that are open: they are shared.
    open: BTreeMap<LayerId, Arc<Layer<Disk>>>,
}

struct Row {
    registry: Arc<Registry>,
    cipher: Arc<SectorCipher>,
}

/// The key with this number.
pub(crate) fn key(number: u8) -> [u8; 64] {
    KEY.map(|byte| byte.wrapping_add(number.wrapping_mul(7)))
}

impl Tower {
    pub(crate) fn new(seed: u64, sector_size: UnitSize) -> Self {
        let random = Random::new(seed);
        Self {
            disk: FaultDisk::new(random.next()),
            executor: Executor::new(random.clone()),
            random,
            most: 0,
            sector_size,
            flips: Arc::default(),
            layers: BTreeMap::new(),
            stacks: BTreeMap::new(),
            open: BTreeMap::new(),
        }
    }

    /// A volume of one layer.
    pub(crate) fn volume(&mut self, size: u64) -> VolumeId {
        let volume = self.volume_id();
        let layer = self.layer(volume, None, size, key(0)).unwrap();
        self.stacks.insert(volume, vec![layer]);
        volume
    }

    fn volume_id(&self) -> VolumeId {
        VolumeId(self.id())
    }

    /// By seed, unlike the random ones of the crate.
    fn id(&self) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.random.next().to_le_bytes());
        id
    }

    /// Makes the files of a layer; it is not part of a volume's stack yet.
    pub(crate) fn layer(
        &mut self,
        volume: VolumeId,
        parent: Option<LayerId>,
        size: u64,
        key: [u8; 64],
    ) -> Result<LayerId, VolumeError> {
        let params = LayerParams {
            volume,
            layer: LayerId(self.id()),
            parent,
            size,
            sector_size: self.sector_size,
        };
        let directory = self.disk.directory(&params.layer.to_string());
        let wrapped = WrappedKey {
            data_key: DataKeyId([key[0]; 16]),
            provider: "local".into(),
            key_id: "default".into(),
            key_version: 1,
            blob: vec![key[1]; 100],
        };
        self.executor
            .run(async move { create(&directory, true, &params, &[wrapped]).await })?;
        let registry = Registry::new(self.executor.spawner(), Some(self.disk.clone()), params);
        let cipher = self
            .layers
            .values()
            .map(|row| &row.cipher)
            .find(|known| known.commitment() == cipher(&key).commitment())
            .map_or_else(|| Arc::new(cipher(&key)), Arc::clone);
        self.layers.insert(params.layer, Row { registry, cipher });
        Ok(params.layer)
    }

    pub(crate) fn registry(&self, layer: LayerId) -> &Arc<Registry> {
        &self.layers[&layer].registry
    }

    /// The layers of a volume, the lowest first.
    pub(crate) fn stack(&self, volume: VolumeId) -> &[LayerId] {
        &self.stacks[&volume]
    }

    pub(crate) fn change_stack(&mut self, volume: VolumeId, stack: Vec<LayerId>) {
        self.stacks.insert(volume, stack);
    }

    /// What a layer is opened with.
    pub(crate) fn parts(
        &self,
        layer: LayerId,
        access: FileAccess,
    ) -> impl Future<Output = Result<LayerParts<Disk>, VolumeError>> + Send + 'static {
        let directory = self.disk.directory(&layer.to_string());
        let (random, most, flips) = (self.random.clone(), self.most, Arc::clone(&self.flips));
        let row = &self.layers[&layer];
        let (registry, cipher) = (Arc::clone(&row.registry), Arc::clone(&row.cipher));
        async move {
            let data = directory.open(DATA_FILE, access).await?;
            let meta = directory.open(META_FILE, access).await?;
            Ok(LayerParts {
                data: Scattered::new(data, random.clone(), most).flipping(&flips),
                meta: Scattered::new(meta, random, most),
                cipher,
                pins: registry.pins(),
                host: Arc::new(RegistryHost(registry)),
            })
        }
    }

    /// Opens a volume as a daemon does: what should be sealed below is sealed first, if it is not.
    pub(crate) fn open(&mut self, volume: VolumeId) -> Result<Tall, VolumeError> {
        let mut below = Vec::new();
        let stack = self.stacks[&volume].clone();
        let (top, lower) = stack.split_last().unwrap();
        for &layer in lower {
            let opened = match self.open.get(&layer) {
                Some(open) => Arc::clone(open),
                None => self.open_lower(layer, below.clone())?,
            };
            self.open.insert(layer, Arc::clone(&opened));
            below.push(opened);
        }
        let parts = self.parts(*top, FileAccess::Writable);
        self.executor
            .run(async move { open(below, parts.await?, Access::Writable).await })
    }

    fn open_lower(
        &mut self,
        layer: LayerId,
        below: Vec<Arc<Layer<Disk>>>,
    ) -> Result<Arc<Layer<Disk>>, VolumeError> {
        let (sealed, unsealed) = (
            self.parts(layer, FileAccess::Writable),
            self.parts(layer, FileAccess::Writable),
        );
        self.executor.run(async move {
            let parts = sealed.await?;
            if read_layer(&parts.meta).await?.sealed {
                return open_sealed(&below, parts).await;
            }
            drop(parts);
            finish_sealing(below, unsealed.await?).await
        })
    }

    /// Makes a new top under the key with this number and begins to put it on an open volume.
    pub(crate) fn start_snapshot(
        &mut self,
        volume: &Tall,
        key: [u8; 64],
    ) -> Result<Cut, VolumeError> {
        let parts = self.new_top(volume, key)?;
        let volume = Arc::clone(volume);
        Ok(self
            .executor
            .start(async move { volume.snapshot(parts.await?).await }))
    }

    /// The files of a new top, which the registry knows of.
    pub(crate) fn new_top(
        &mut self,
        volume: &Tall,
        key: [u8; 64],
    ) -> Result<
        impl Future<Output = Result<LayerParts<Disk>, VolumeError>> + Send + 'static,
        VolumeError,
    > {
        let old = volume.top();
        let id = old.params().volume;
        let top = self.layer(id, Some(old.id()), volume.size(), key)?;
        if self.disk.is_powered() {
            self.stacks.get_mut(&id).unwrap().push(top);
        }
        Ok(self.parts(top, FileAccess::Writable))
    }

    pub(crate) fn snapshot(
        &mut self,
        volume: &Tall,
        key: [u8; 64],
    ) -> Result<Arc<Layer<Disk>>, VolumeError> {
        let snapshot = self.start_snapshot(volume, key)?;
        self.executor.finish(&snapshot)
    }

    /// Copies up, a part at a time, until nothing is left below.
    pub(crate) fn copy_up(&mut self, volume: &Tall) -> Result<u64, VolumeError> {
        let copy = self.start_copy_up(volume);
        self.executor.finish(&copy)
    }

    pub(crate) fn start_copy_up(&mut self, volume: &Tall) -> Handle<Result<u64, VolumeError>> {
        let volume = Arc::clone(volume);
        self.executor.start(async move {
            let (mut copied, mut next) = (0, Some(0));
            while let Some(from) = next {
                let part = volume.copy_up(from..u64::MAX, 2 << 20, &Unpaced).await?;
                copied += part.copied;
                next = part.next;
            }
            Ok(copied)
        })
    }

    /// Makes a volume stand alone, and tells the registry. The layers that were below, the nearest first.
    pub(crate) fn cut_over(&mut self, volume: &Tall) -> Result<Vec<LayerId>, VolumeError> {
        let (cut, id) = (Arc::clone(volume), volume.top().params().volume);
        let below = self.executor.run(async move { cut.cut_over().await })?;
        let top = volume.top().id();
        self.registry(top).change_pins(|pins| {
            pins.params.parent = None;
            pins.former_parents.clear();
        });
        self.stacks.insert(id, vec![top]);
        Ok(below.iter().map(|layer| layer.id()).collect())
    }

    /// Merges a layer with the one above it, tells the registry and removes the files.
    pub(crate) fn merge(&mut self, volume: &Tall, dying: LayerId) -> Result<(), VolumeError> {
        let merge = self.start_merge(volume, dying);
        self.executor.finish(&merge)?;
        self.merged(volume, dying);
        Ok(())
    }

    /// Begins a merge, to its end but for what the registry hears and the files.
    pub(crate) fn start_merge(
        &mut self,
        volume: &Tall,
        dying: LayerId,
    ) -> Handle<Result<(), VolumeError>> {
        let volume = Arc::clone(volume);
        self.executor.start(async move {
            let merge = Merge::begin(&volume, dying).await?;
            loop {
                let mut next = Some(0);
                while let Some(from) = next {
                    next = merge.step(from, 1 << 20, &Unpaced).await?.next;
                }
                match merge.finish().await {
                    Err(VolumeError::LeftBelow { .. }) => {}
                    ended => break ended,
                }
            }
        })
    }

    /// Merges what lies on a layer down into it, tells the registry and removes the files.
    pub(crate) fn merge_down(&mut self, volume: &Tall, dying: LayerId) -> Result<(), VolumeError> {
        let merge = self.start_merge_down(volume, dying);
        let merge = self.executor.finish(&merge)?;
        self.merged_down(&[volume], merge);
        Ok(())
    }

    /// Begins a merge down, to its end but for what the registry hears and the files.
    pub(crate) fn start_merge_down(
        &mut self,
        volume: &Tall,
        dying: LayerId,
    ) -> Handle<Result<Arc<Merge<Disk>>, VolumeError>> {
        let volume = Arc::clone(volume);
        self.executor.start(async move {
            let merge = Merge::begin_down(&volume, dying).await?;
            loop {
                let mut next = Some(merge.from());
                while let Some(from) = next {
                    next = merge.step(from, 1 << 20, &Unpaced).await?.next;
                }
                match merge.finish().await {
                    Err(VolumeError::LeftBelow { .. }) => {}
                    ended => break ended.map(|()| Arc::new(merge)),
                }
            }
        })
    }

    /// What the registry does after a merge down into a layer, in one step: who stood on the one above stands on it. The layer
    /// that nobody stands on any more.
    pub(crate) fn hand_down(&mut self, stays: LayerId) -> LayerId {
        let pairs = self.stacks.values().flat_map(|stack| stack.windows(2));
        let mut on_it = pairs.filter(|pair| pair[0] == stays).map(|pair| pair[1]);
        let gone = on_it.next().unwrap();
        assert!(on_it.all(|other| other == gone), "it has two children");
        for row in self.layers.values() {
            row.registry.change_pins(|pins| {
                if pins.params.parent == Some(gone) {
                    pins.params.parent = Some(stays);
                    pins.former_parents.push(gone);
                }
            });
        }
        for stack in self.stacks.values_mut() {
            stack.retain(|&layer| layer != gone);
        }
        gone
    }

    /// What a daemon does after a merge down: the registry hears of it, these volumes go on without the layer, and its files go.
    pub(crate) fn merged_down(&mut self, volumes: &[&Tall], merge: Arc<Merge<Disk>>) {
        let gone = self.hand_down(merge.stays());
        self.leave_out_handed_down(volumes, &merge, gone);
        drop(merge);
        self.remove(&[gone]);
    }

    /// The same, but for registry and files.
    pub(crate) fn leave_out_handed_down(
        &mut self,
        volumes: &[&Tall],
        merge: &Arc<Merge<Disk>>,
        gone: LayerId,
    ) {
        let open: Vec<_> = self.open.values().cloned().collect();
        self.open.remove(&gone);
        let volumes: Vec<Tall> = volumes.iter().map(|&volume| Arc::clone(volume)).collect();
        let merge = Arc::clone(merge);
        let freed = self.executor.run(async move {
            merge.hand_down(&open);
            for volume in volumes {
                volume.leave_out(gone).await.unwrap();
            }
            merge.free().await
        });
        assert!(freed.is_ok() || !self.disk.is_powered(), "{freed:?}");
    }

    /// What a daemon does after a merge: the volume goes on without the layer, the registry hears of it, its files go.
    pub(crate) fn merged(&mut self, volume: &Tall, dying: LayerId) {
        let left = Arc::clone(volume);
        self.executor
            .run(async move { left.leave_out(dying).await })
            .unwrap();
        self.relink(volume);
        self.remove(&[dying]);
    }

    /// The registry hears what the layers of a volume stand on: stacks that something was taken from are shorter.
    pub(crate) fn relink(&mut self, volume: &Tall) {
        for layer in volume.layers() {
            let parent = layer.params().parent;
            self.registry(layer.id()).change_pins(|pins| {
                if pins.params.parent != parent {
                    pins.params.parent = parent;
                    pins.former_parents.clear();
                }
            });
        }
        for stack in self.stacks.values_mut() {
            let mut linked = Vec::new();
            let mut next = stack.last().copied();
            while let Some(layer) = next {
                linked.insert(0, layer);
                next = self.layers[&layer].registry.pins().params.parent;
            }
            *stack = linked;
        }
    }

    /// How many layers lie right on this one, over all volumes.
    pub(crate) fn children(&self, layer: LayerId) -> usize {
        let pairs = self.stacks.values().flat_map(|stack| stack.windows(2));
        let on_it = pairs.filter(|pair| pair[0] == layer).map(|pair| pair[1]);
        on_it.collect::<std::collections::BTreeSet<_>>().len()
    }

    /// Destroys the keys and removes the files of layers that nobody has open.
    pub(crate) fn remove(&mut self, layers: &[LayerId]) {
        self.forget_open();
        for layer in layers {
            let directory = self.disk.directory(&layer.to_string());
            self.executor.run(async move {
                destroy_keys(&directory).await.unwrap();
                for name in directory.list().await.unwrap() {
                    directory.remove(&name).await.unwrap();
                }
            });
        }
    }

    /// The registry knows nothing of a volume any more.
    pub(crate) fn forget_volume(&mut self, volume: VolumeId) {
        self.stacks.remove(&volume);
    }

    /// A new volume on the sealed layers of another one, up to `height` of them.
    pub(crate) fn clone_of(
        &mut self,
        volume: VolumeId,
        height: usize,
        key: [u8; 64],
    ) -> Result<VolumeId, VolumeError> {
        let mut stack = self.stacks[&volume][..height].to_vec();
        let parent = stack[height - 1];
        let size = self.registry(parent).pins().params.size;
        let clone = self.volume_id();
        stack.push(self.layer(clone, Some(parent), size, key)?);
        self.stacks.insert(clone, stack);
        Ok(clone)
    }

    /// What the power cut left, and nothing in memory.
    pub(crate) fn restart(&mut self) {
        self.disk.cut_power();
        self.executor.idle();
        self.executor.forget();
        self.open.clear();
        for row in self.layers.values() {
            row.registry.forget_working_state();
        }
        let (disk, seed) = (self.disk.clone(), self.random.next());
        self.executor
            .run(async move { disk.restart(seed).await })
            .unwrap();
    }

    /// Kills the process: nothing of it goes on, the disk and its cache stay as they are.
    pub(crate) fn kill(&mut self) {
        self.executor.forget();
        self.open.clear();
    }

    pub(crate) fn read(
        &mut self,
        volume: &Tall,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>, VolumeError> {
        let volume = Arc::clone(volume);
        self.executor.run(async move {
            let read = volume.read(offset, len).await?;
            Ok(read.bytes().map_or_else(|| vec![0; len], <[u8]>::to_vec))
        })
    }

    pub(crate) fn start_write(
        &mut self,
        volume: &Tall,
        offset: u64,
        bytes: &[u8],
        fua: bool,
    ) -> Handle<Result<(), VolumeError>> {
        let write = volume.prepare_write(offset, bytes).unwrap();
        self.executor.start(write.run(fua))
    }

    pub(crate) fn write(
        &mut self,
        volume: &Tall,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), VolumeError> {
        let write = self.start_write(volume, offset, bytes, false);
        self.executor.finish(&write)
    }

    pub(crate) fn trim(&mut self, volume: &Tall, offset: u64, len: u64) -> Result<(), VolumeError> {
        let volume = Arc::clone(volume);
        self.executor
            .run(async move { volume.trim(offset, len, false).await })
    }

    pub(crate) fn start_flush(&mut self, volume: &Tall) -> Handle<Result<(), VolumeError>> {
        let volume = Arc::clone(volume);
        self.executor.start(async move { volume.flush().await })
    }

    pub(crate) fn flush(&mut self, volume: &Tall) -> Result<(), VolumeError> {
        let flush = self.start_flush(volume);
        self.executor.finish(&flush)
    }

    /// Closes sealed layers that no volume stands on any more.
    pub(crate) fn forget_open(&mut self) {
        self.open.retain(|_, layer| Arc::strong_count(layer) > 1);
    }

    pub(crate) fn close(&mut self, volume: Tall) -> Result<u64, VolumeError> {
        let closed = self.executor.run(async move { volume.close().await });
        self.forget_open();
        closed
    }
}
