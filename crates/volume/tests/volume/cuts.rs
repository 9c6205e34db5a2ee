//! Snapshots of two volumes from one thread while others write: what the deterministic executor, which has one, can't show.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_executor::block_on;
use sealvol_crypto::{Commitment, UnitSize};
use sealvol_store::{Directory, MemoryDirectory, MemoryStore};
use sealvol_volume::{
    Access, BLOCK, DATA_FILE, Host, Layer, LayerId, LayerParams, LayerParts, Loss, META_FILE, Pins,
    Task, Volume, VolumeError, VolumeId, create, open, snapshot_all, view,
};

use crate::rig::{KEY, OTHER_KEY, cipher, params, wrapped_keys};

const SIZE: u64 = 64 << 20;
/// Blocks that a writer uses in turn, in each volume.
const SLOTS: u64 = 64;
const WRITERS: u64 = 3;
const CUTS: u8 = 40;

/// Runs tasks on threads, and remembers nothing: nothing here dies.
struct Threads;

impl Host for Threads {
    fn spawn(&self, task: Task<()>) {
        std::thread::spawn(move || block_on(task));
    }

    fn record_loss(&self, loss: Loss) -> Task<()> {
        panic!("{loss}");
    }

    fn pin(&self, _: u64, _: u64, _: Commitment) -> Task<Result<(), VolumeError>> {
        Box::pin(async { Ok(()) })
    }
}

async fn new_layer(volume: u8, layer: u8, parent: Option<LayerId>) -> LayerParts<MemoryStore> {
    let params = LayerParams {
        volume: VolumeId([volume; 16]),
        layer: LayerId([volume << 6 | layer; 16]),
        parent,
        ..params(SIZE, UnitSize::B512)
    };
    let directory = MemoryDirectory::new();
    create(&directory, true, &params, &wrapped_keys())
        .await
        .unwrap();
    let writable = sealvol_store::Access::Writable;
    let key = if layer.is_multiple_of(3) {
        &OTHER_KEY
    } else {
        &KEY
    };
    LayerParts {
        data: directory.open(DATA_FILE, writable).await.unwrap(),
        meta: directory.open(META_FILE, writable).await.unwrap(),
        cipher: Arc::new(cipher(key)),
        pins: Pins {
            params,
            commitment: None,
            generation: 1,
            bound: false,
            former_parents: Vec::new(),
        },
        host: Arc::new(Threads),
    }
}

/// Writes 1, 2, 3, …, each begun when the one before was answered, first to one volume and then to the other; a number
/// goes into a sector of its slot's block, the others of which belong to other writers.
async fn write_on(volumes: [Arc<Volume<MemoryStore>>; 2], writer: u64, stop: &AtomicBool) {
    for number in 1_u64.. {
        for volume in &volumes {
            let offset = number % SLOTS * BLOCK + 512 * writer;
            let write = volume.prepare_write(offset, &sector(number)).unwrap();
            write.run(number % 50 == 0).await.unwrap();
        }
        if stop.load(Ordering::Relaxed) {
            return;
        }
    }
}

fn sector(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(64)
}

/// The newest number of a writer, and whether all before it are there too.
async fn newest(volume: &Arc<Volume<MemoryStore>>, writer: u64) -> u64 {
    let mut found = Vec::new();
    for slot in 0..SLOTS {
        let read = volume.read(slot * BLOCK + 512 * writer, 512).await.unwrap();
        let bytes = read.bytes().map_or_else(|| vec![0; 512], <[u8]>::to_vec);
        let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        assert_eq!(bytes, sector(number), "a torn sector");
        found.push(number);
    }
    let newest = found.iter().copied().max().unwrap();
    for (slot, number) in (0..).zip(found) {
        let expected = (newest.saturating_sub(SLOTS - 1)..=newest)
            .find(|number| number % SLOTS == slot)
            .unwrap_or(0);
        assert_eq!(
            number, expected,
            "slot {slot} of writer {writer}, whose newest is {newest}"
        );
    }
    newest
}

#[test]
fn cuts_of_two_volumes_respect_cause_and_effect_whatever_the_threads_do() {
    let volumes = block_on(async {
        let mut volumes = Vec::new();
        for id in 1..=2 {
            let top = new_layer(id, 0, None).await;
            volumes.push(open(Vec::new(), top, Access::Writable).await.unwrap());
        }
        <[_; 2]>::try_from(volumes).ok().unwrap()
    });
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (volumes, stop) = (volumes.clone(), Arc::clone(&stop));
            std::thread::spawn(move || block_on(write_on(volumes, writer, &stop)))
        })
        .collect();
    let mut before = [0; 3];
    for cut in 1..=CUTS {
        let sealed: Vec<Arc<Layer<MemoryStore>>> = block_on(async {
            let mut cuts = Vec::new();
            for (id, volume) in (1..).zip(&volumes) {
                let top = new_layer(id, cut, Some(volume.top().id())).await;
                cuts.push((Arc::clone(volume), top));
            }
            snapshot_all(cuts).await.unwrap()
        });
        for writer in 0..WRITERS {
            let [first, second] = [0, 1].map(|at: usize| {
                let mut layers = volumes[at].layers();
                layers.retain(|layer| layer.id().0[0] <= sealed[at].id().0[0]);
                layers.reverse();
                block_on(async { newest(&view(layers).await.unwrap(), writer).await })
            });
            assert!(
                first == second || first == second + 1,
                "writer {writer}: {first} in the first volume, {second} in the second"
            );
            let known = &mut before[usize::try_from(writer).unwrap()];
            assert!(second >= *known, "a snapshot lost what the one before had");
            *known = second;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.join().unwrap();
    }
    assert!(before.iter().all(|number| *number > 0));
}
