//! One layer on one disk, on a machine that can lose power.

use std::sync::{Arc, OnceLock};

use sealvol_crypto::locked::{KeyMemory, Policy};
use sealvol_crypto::{SectorCipher, UnitSize, VolumeKey};
use sealvol_store::fault::{FaultDirectory, FaultDisk, FaultStore};
use sealvol_store::{Directory, Durability, IoBuf, Store};
use sealvol_volume::{
    Access, DATA_FILE, DataKeyId, LayerId, LayerParams, LayerParts, META_FILE, Volume, VolumeError,
    VolumeId, WrappedKey, create, open,
};

use super::executor::{Executor, Handle};
use super::random::Random;
use super::registry::{Registry, RegistryHost};
use super::scattered::Scattered;

/// The volume key of the tests: K1 is 0, 1, 2, …, K2 goes on.
pub(crate) const KEY: [u8; 64] = key(0);
/// Another one.
pub(crate) const OTHER_KEY: [u8; 64] = key(100);
/// The layer's directory on the disk.
pub(crate) const LAYER: &str = "layer";

const fn key(first: u8) -> [u8; 64] {
    let mut bytes = [first; 64];
    let mut at = 1;
    while at < 64 {
        bytes[at] = bytes[at - 1] + 1;
        at += 1;
    }
    bytes
}

/// A key in locked memory, expanded.
pub(crate) fn cipher(key: &[u8; 64]) -> SectorCipher {
    static MEMORY: OnceLock<Arc<KeyMemory>> = OnceLock::new();
    let memory = MEMORY.get_or_init(|| {
        KeyMemory::new(Policy {
            require_secretmem: false,
        })
        .unwrap()
    });
    VolumeKey::read_from(memory, &mut key.as_slice())
        .unwrap()
        .expand()
}

/// A layer without parent, always with the same ids.
pub(crate) fn params(size: u64, sector_size: UnitSize) -> LayerParams {
    LayerParams {
        volume: VolumeId([0x11; 16]),
        layer: LayerId([0x22; 16]),
        parent: None,
        size,
        sector_size,
    }
}

pub(crate) fn wrapped_keys() -> Vec<WrappedKey> {
    vec![WrappedKey {
        data_key: DataKeyId([0x33; 16]),
        provider: "local".into(),
        key_id: "default".into(),
        key_version: 1,
        blob: vec![0x44; 100],
    }]
}

/// Opens the layer in a directory.
pub(crate) async fn open_in<D: Directory>(
    directory: &D,
    random: Random,
    most: u64,
    registry: Arc<Registry>,
    access: Access,
    key: &[u8; 64],
) -> Result<Arc<Volume<Scattered<D::File>>>, VolumeError> {
    let pins = registry.pins();
    let host = Arc::new(RegistryHost(registry));
    let file_access = match access {
        Access::ReadOnly => sealvol_store::Access::ReadOnly,
        Access::Writable => sealvol_store::Access::Writable,
    };
    let data = directory.open(DATA_FILE, file_access).await?;
    let meta = directory.open(META_FILE, file_access).await?;
    let data = Scattered::new(data, random.clone(), most);
    let meta = Scattered::new(meta, random, most);
    let top = LayerParts {
        data,
        meta,
        cipher: Arc::new(cipher(key)),
        pins,
        host,
    };
    open(Vec::new(), top, access).await
}

/// Executor, disk and registry, with one layer.
pub(crate) struct Machine {
    pub(crate) disk: FaultDisk,
    pub(crate) executor: Executor,
    pub(crate) registry: Arc<Registry>,
    pub(crate) random: Random,
    /// How often an operation of the disk gives way, at most.
    pub(crate) most: u64,
    /// What the key service unwraps to.
    pub(crate) key: [u8; 64],
}

pub(crate) type Disk = Scattered<FaultStore>;

impl Machine {
    /// A machine with a new layer, never opened.
    pub(crate) fn new(seed: u64, size: u64, sector_size: UnitSize) -> Self {
        let mut machine = Self::bare(seed, params(size, sector_size));
        machine.create().unwrap();
        machine
    }

    /// A machine without its layer.
    pub(crate) fn bare(seed: u64, params: LayerParams) -> Self {
        let random = Random::new(seed);
        let disk = FaultDisk::new(random.next());
        let executor = Executor::new(random.clone());
        let registry = Registry::new(executor.spawner(), Some(disk.clone()), params);
        Self {
            disk,
            executor,
            registry,
            random,
            most: 0,
            key: KEY,
        }
    }

    pub(crate) fn directory(&self) -> FaultDirectory {
        self.disk.directory(LAYER)
    }

    pub(crate) fn create(&mut self) -> Result<(), VolumeError> {
        let (directory, params) = (self.directory(), self.registry.pins().params);
        self.executor
            .run(async move { create(&directory, true, &params, &wrapped_keys()).await })
    }

    pub(crate) fn open(&mut self) -> Result<Arc<Volume<Disk>>, VolumeError> {
        self.open_as(Access::Writable)
    }

    pub(crate) fn open_as(&mut self, access: Access) -> Result<Arc<Volume<Disk>>, VolumeError> {
        let open = self.start_open(access);
        self.executor.finish(&open)
    }

    pub(crate) fn start_open(
        &mut self,
        access: Access,
    ) -> Handle<Result<Arc<Volume<Disk>>, VolumeError>> {
        let (directory, random) = (self.directory(), self.random.clone());
        let (most, registry, key) = (self.most, Arc::clone(&self.registry), self.key);
        self.executor
            .start(async move { open_in(&directory, random, most, registry, access, &key).await })
    }

    /// What the power cut left, and nothing in memory.
    pub(crate) fn restart(&mut self) {
        self.disk.cut_power();
        self.executor.idle();
        self.executor.forget();
        self.registry.forget_working_state();
        let (disk, seed) = (self.disk.clone(), self.random.next());
        self.executor
            .run(async move { disk.restart(seed).await })
            .unwrap();
    }

    /// Bytes of a file of the layer, as somebody reads them who has the store.
    pub(crate) fn raw(&mut self, file: &'static str, offset: u64, len: usize) -> Vec<u8> {
        let directory = self.directory();
        self.executor.run(async move {
            let store = directory
                .open(file, sealvol_store::Access::ReadOnly)
                .await
                .unwrap();
            let (buf, result) = store.read_at(IoBuf::zeroed(len), offset).await;
            result.unwrap();
            buf.to_vec()
        })
    }

    /// Overwrites bytes of a file of the layer, durably.
    pub(crate) fn patch(&mut self, file: &'static str, offset: u64, bytes: &[u8]) {
        let (directory, buf) = (self.directory(), IoBuf::copy_of(bytes));
        self.executor.run(async move {
            let store = directory
                .open(file, sealvol_store::Access::Writable)
                .await
                .unwrap();
            store
                .write_at(buf, offset, Durability::Durable)
                .await
                .1
                .unwrap();
        });
    }

    /// Kills the process: nothing of it goes on, the disk and its cache stay as they are.
    pub(crate) fn kill(&mut self) {
        self.executor.forget();
    }

    pub(crate) fn close(&mut self, volume: Arc<Volume<Disk>>) -> Result<u64, VolumeError> {
        self.executor.run(async move { volume.close().await })
    }

    pub(crate) fn read(
        &mut self,
        volume: &Arc<Volume<Disk>>,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>, VolumeError> {
        let volume = Arc::clone(volume);
        self.executor.run(async move {
            let read = volume.read(offset, len).await?;
            Ok(read.bytes().map_or_else(|| vec![0; len], <[u8]>::to_vec))
        })
    }

    pub(crate) fn write(
        &mut self,
        volume: &Arc<Volume<Disk>>,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), VolumeError> {
        let write = self.start_write(volume, offset, bytes, false);
        self.executor.finish(&write)
    }

    pub(crate) fn start_write(
        &mut self,
        volume: &Arc<Volume<Disk>>,
        offset: u64,
        bytes: &[u8],
        fua: bool,
    ) -> Handle<Result<(), VolumeError>> {
        let write = volume.prepare_write(offset, bytes).unwrap();
        self.executor.start(write.run(fua))
    }

    pub(crate) fn trim(
        &mut self,
        volume: &Arc<Volume<Disk>>,
        offset: u64,
        len: u64,
    ) -> Result<(), VolumeError> {
        let volume = Arc::clone(volume);
        self.executor
            .run(async move { volume.trim(offset, len, false).await })
    }

    pub(crate) fn start_flush(
        &mut self,
        volume: &Arc<Volume<Disk>>,
    ) -> Handle<Result<(), VolumeError>> {
        let volume = Arc::clone(volume);
        self.executor.start(async move { volume.flush().await })
    }

    pub(crate) fn flush(&mut self, volume: &Arc<Volume<Disk>>) -> Result<(), VolumeError> {
        let flush = self.start_flush(volume);
        self.executor.finish(&flush)
    }
}
