//! The same volume from several threads at once: what the deterministic executor, which has one, can't show.

use std::sync::{Arc, Mutex};

use futures_executor::block_on;
use sealvol_crypto::{Commitment, UnitSize};
use sealvol_store::{Directory, MemoryDirectory, MemoryStore};
use sealvol_volume::{
    Access, BLOCK, DATA_FILE, Host, LayerParts, Loss, META_FILE, Pins, Task, Volume, VolumeError,
    create, open,
};

use crate::rig::{KEY, Random, cipher, params, pattern, wrapped_keys};

const PAGE: u64 = 64 << 20;
const SIZE: u64 = 3 * PAGE;
const THREADS: u64 = 4;
/// Blocks that the threads share out between them, on both sides of a page's border.
const BLOCKS: u64 = 64;
const OPERATIONS: u64 = 1500;

/// A host that keeps the last pins, and runs tasks on threads.
struct Threads(Mutex<Pins>);

impl Host for Threads {
    fn spawn(&self, task: Task<()>) {
        std::thread::spawn(move || block_on(task));
    }

    fn record_loss(&self, loss: Loss) -> Task<()> {
        panic!("{loss}");
    }

    fn pin(
        &self,
        generation: u64,
        size: u64,
        commitment: Commitment,
    ) -> Task<Result<(), VolumeError>> {
        let mut pins = self.0.lock().unwrap();
        pins.generation = generation;
        pins.params.size = size;
        pins.commitment = Some(commitment);
        pins.bound = true;
        Box::pin(async { Ok(()) })
    }
}

async fn open_again(directory: &MemoryDirectory, host: &Arc<Threads>) -> Arc<Volume<MemoryStore>> {
    let access = sealvol_store::Access::Writable;
    let data = directory.open(DATA_FILE, access).await.unwrap();
    let meta = directory.open(META_FILE, access).await.unwrap();
    let pins = host.0.lock().unwrap().clone();
    let host = Arc::clone(host) as Arc<dyn Host>;
    let top = LayerParts {
        data,
        meta,
        cipher: Arc::new(cipher(&KEY)),
        pins,
        host,
    };
    open(Vec::new(), top, Access::Writable).await.unwrap()
}

fn offset(block: u64) -> u64 {
    PAGE - BLOCKS / 2 * BLOCK + block * BLOCK
}

fn content(version: u64, block: u64) -> Vec<u8> {
    (0..8)
        .flat_map(|piece| pattern(version, block * 8 + piece))
        .collect()
}

async fn check(volume: &Arc<Volume<MemoryStore>>, block: u64, version: u64) {
    let read = volume.read(offset(block), 4096).await.unwrap();
    let expected = content(version, block);
    let found = read.bytes().map_or_else(|| vec![0; 4096], <[u8]>::to_vec);
    assert!(
        found == expected,
        "block {block} does not hold version {version}"
    );
}

/// Works on every `THREADS`th block; the versions that they have in the end.
async fn work(volume: Arc<Volume<MemoryStore>>, thread: u64) -> Vec<(u64, u64)> {
    let random = Random::new(thread);
    let mut versions: Vec<(u64, u64)> = (thread..BLOCKS)
        .step_by(usize::try_from(THREADS).unwrap())
        .map(|block| (block, 0))
        .collect();
    for operation in 1..=OPERATIONS {
        let at = random.index(versions.len());
        let (block, version) = &mut versions[at];
        let fua = random.chance(1, 10);
        match random.below(8) {
            0..=2 => {
                *version = operation * THREADS + thread;
                let write = volume
                    .prepare_write(offset(*block), &content(*version, *block))
                    .unwrap();
                write.run(fua).await.unwrap();
            }
            3 => {
                // Half of the block: the other half must stay, or be zeros.
                let half = content(*version, *block)[2048..].to_vec();
                volume
                    .prepare_write(offset(*block) + 2048, &half)
                    .unwrap()
                    .run(fua)
                    .await
                    .unwrap();
            }
            4 | 5 => {
                *version = 0;
                volume.trim(offset(*block), BLOCK, fua).await.unwrap();
            }
            6 => volume.flush().await.unwrap(),
            _ => check(&volume, *block, *version).await,
        }
    }
    versions
}

#[test]
fn threads_that_share_pages_do_not_lose_each_others_blocks() {
    for sector_size in [UnitSize::B512, UnitSize::B4096] {
        let layer = params(SIZE, sector_size);
        let host = Arc::new(Threads(Mutex::new(Pins {
            params: layer,
            commitment: None,
            generation: 1,
            bound: false,
            former_parents: Vec::new(),
        })));
        let directory = MemoryDirectory::new();
        block_on(create(&directory, true, &layer, &wrapped_keys())).unwrap();
        let volume = block_on(open_again(&directory, &host));
        let workers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let volume = Arc::clone(&volume);
                std::thread::spawn(move || block_on(work(volume, thread)))
            })
            .collect();
        let versions: Vec<_> = workers
            .into_iter()
            .flat_map(|worker| worker.join().unwrap())
            .collect();
        block_on(volume.close()).unwrap();
        // Tasks that have just ended may not have let go of the volume, and with it of the files, yet.
        while Arc::strong_count(&volume) > 1 {
            std::thread::yield_now();
        }
        drop(volume);
        block_on(async {
            let volume = open_again(&directory, &host).await;
            for (block, version) in versions {
                check(&volume, block, version).await;
            }
        });
    }
}
