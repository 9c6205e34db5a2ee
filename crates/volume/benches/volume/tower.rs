//! Volumes of many layers, whose blocks lie where a benchmark wants them.

use std::fmt::{self, Display};
use std::future::ready;
use std::sync::Arc;

use futures_executor::block_on;
use sealvol_crypto::locked::{KeyMemory, Policy};
use sealvol_crypto::{Commitment, SectorCipher, UnitSize, VolumeKey};
use sealvol_store::Directory;
use sealvol_volume::{
    Access, BLOCK, DATA_FILE, DataKeyId, Host, LayerId, LayerParams, LayerParts, Loss, META_FILE,
    MapCache, Pins, Task, Volume, VolumeError, VolumeId, WrappedKey, create, open,
};

use crate::Scattered;

/// Four map pages.
pub(crate) const BLOCKS: u64 = 4 * 16_384;

/// Where the blocks of a volume lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) depth: u64,
    pub(crate) lie: Lie,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Lie {
    /// Each in a layer chosen by chance.
    Anywhere,
    /// All in the lowest one, but for one of 64 in each of the others: the longest way down, past maps that all have pages.
    Lowest,
}

impl Display for Shape {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lie = match self.lie {
            Lie::Anywhere => "anywhere",
            Lie::Lowest => "lowest",
        };
        write!(formatter, "{:3} {lie}", self.depth)
    }
}

struct Alone(Arc<MapCache>);

impl Host for Alone {
    fn spawn(&self, task: Task<()>) {
        std::thread::spawn(|| block_on(task));
    }

    fn map_cache(&self) -> Arc<MapCache> {
        Arc::clone(&self.0)
    }

    fn record_loss(&self, loss: Loss) -> Task<()> {
        panic!("{loss}")
    }

    fn pin(&self, _: u64, _: u64, _: Commitment) -> Task<Result<(), VolumeError>> {
        Box::pin(ready(Ok(())))
    }
}

/// A volume of this shape, whose layers are in what `directory` gives.
pub(crate) fn volume<D: Directory>(
    shape: Shape,
    directory: impl Fn(u64) -> D,
) -> Arc<Volume<D::File>> {
    let host: Arc<dyn Host> = Arc::new(Alone(MapCache::new(64 << 20)));
    let cipher = Arc::new(cipher());
    let mut volume: Option<Arc<Volume<D::File>>> = None;
    for layer in 0..shape.depth {
        let parts = block_on(parts(&directory(layer), layer, &cipher, &host));
        let opened = match volume.take() {
            None => block_on(open(Vec::new(), parts, Access::Writable)).unwrap(),
            Some(volume) => {
                block_on(volume.snapshot(parts)).unwrap();
                volume
            }
        };
        block_on(fill(&opened, shape, layer));
        volume = Some(opened);
    }
    volume.unwrap()
}

fn cipher() -> SectorCipher {
    let policy = Policy {
        require_secretmem: false,
    };
    let memory = KeyMemory::new(policy).unwrap();
    let key: Vec<u8> = (0..64).collect();
    let key = VolumeKey::read_from(&memory, &mut key.as_slice()).unwrap();
    key.expand()
}

async fn parts<D: Directory>(
    directory: &D,
    layer: u64,
    cipher: &Arc<SectorCipher>,
    host: &Arc<dyn Host>,
) -> LayerParts<D::File> {
    let id = |number: u64| LayerId(u128::from(number + 1).to_le_bytes());
    let params = LayerParams {
        volume: VolumeId([1; 16]),
        layer: id(layer),
        parent: layer.checked_sub(1).map(id),
        size: BLOCKS * BLOCK,
        sector_size: UnitSize::B4096,
    };
    let key = WrappedKey {
        data_key: DataKeyId([3; 16]),
        provider: "none".into(),
        key_id: "fixed".into(),
        key_version: 1,
        blob: vec![0; 100],
    };
    create(directory, true, &params, &[key]).await.unwrap();
    let access = sealvol_store::Access::Writable;
    LayerParts {
        data: directory.open(DATA_FILE, access).await.unwrap(),
        meta: directory.open(META_FILE, access).await.unwrap(),
        cipher: Arc::clone(cipher),
        pins: Pins {
            params,
            commitment: None,
            generation: 0,
            bound: false,
            former_parents: Vec::new(),
        },
        host: Arc::clone(host),
    }
}

/// Writes the blocks that lie in this layer.
async fn fill<S: sealvol_store::Store>(volume: &Arc<Volume<S>>, shape: Shape, layer: u64) {
    let bytes = [0x5a; 4096];
    let mut chance = Scattered(1);
    for block in 0..BLOCKS {
        let drawn = chance.below(shape.depth.max(1) * 64);
        let here = match shape.lie {
            Lie::Anywhere => drawn % shape.depth == layer,
            Lie::Lowest if layer == 0 => true,
            Lie::Lowest => drawn == layer * 64,
        };
        if here {
            let write = volume.prepare_write(block * BLOCK, &bytes).unwrap();
            write.run(false).await.unwrap();
        }
    }
}
