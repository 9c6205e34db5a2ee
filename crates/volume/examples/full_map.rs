//! Makes a volume whose map is fully populated (no page uniform), then measures what opening it costs.
//!
//!     cargo run --release -p sealvol-volume --example full_map -- DIRECTORY [SIZE_IN_TIB]
//!
//! 64 TiB make a `meta` of 8 GiB; `data` is not kept: a store that forgets stands in for it. Prints milliseconds to open for
//! writing, the growth of resident memory, and the same after reads scattered over the whole volume.

use std::future::ready;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use sealvol_crypto::locked::{KeyMemory, Policy};
use sealvol_crypto::{Commitment, UnitSize, VolumeKey};
use sealvol_store::{Access, Directory, Durability, FileDirectory, IoBuf, Store, StoreError};
use sealvol_volume::{
    DataKeyId, Host, LayerId, LayerParams, LayerParts, Loss, META_FILE, MapCache, Pins, Task,
    Volume, VolumeError, VolumeId, WrappedKey,
};

const PAGE_SPAN: u64 = 64 << 20;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments
        .next()
        .ok_or("usage: full_map DIRECTORY [SIZE_IN_TIB]")?;
    let size = arguments.next().map_or(Ok(64), |tib| tib.parse::<u64>())? << 40;
    let params = LayerParams {
        volume: VolumeId([1; 16]),
        layer: LayerId([2; 16]),
        parent: None,
        size,
        sector_size: UnitSize::B4096,
    };
    let generation = futures_executor::block_on(populate(Path::new(&directory), params))?;
    let pins = Pins {
        params,
        commitment: None,
        generation,
        bound: true,
        former_parents: Vec::new(),
    };
    futures_executor::block_on(measure(Path::new(&directory), &pins))
}

async fn populate(directory: &Path, params: LayerParams) -> Result<u64, Error> {
    let files = FileDirectory::open(directory)?;
    let key = WrappedKey {
        data_key: DataKeyId([3; 16]),
        provider: "none".into(),
        key_id: "fixed".into(),
        key_version: 1,
        blob: vec![0; 137],
    };
    sealvol_volume::create(&files, false, &params, &[key]).await?;
    let pins = Pins {
        params,
        commitment: None,
        generation: 0,
        bound: false,
        former_parents: Vec::new(),
    };
    let volume = open(&files, &pins).await?;
    let block = [0x5a; 4096];
    let pages = params.size / PAGE_SPAN;
    for page in 0..pages {
        // Two of the page's blocks, so that it is neither all data nor all absent.
        for offset in [page * PAGE_SPAN, page * PAGE_SPAN + PAGE_SPAN / 2] {
            volume.prepare_write(offset, &block)?.run(false).await?;
        }
        if page % 65_536 == 65_535 {
            eprintln!("{} of {pages} pages", page + 1);
        }
    }
    Ok(volume.close().await?)
}

async fn measure(directory: &Path, pins: &Pins) -> Result<(), Error> {
    let files = FileDirectory::open(directory)?;
    let before = resident_kib()?;
    let start = Instant::now();
    let volume = open(&files, pins).await?;
    let opened = start.elapsed();
    println!("open: {:.1} ms", opened.as_secs_f64() * 1e3);
    println!(
        "resident after open: {} KiB more",
        resident_kib()?.saturating_sub(before)
    );
    let start = Instant::now();
    let step = pins.params.size / 100_000 / 4096 * 4096;
    for number in 0..100_000 {
        volume.read(number * step, 4096).await?;
    }
    println!(
        "100,000 scattered reads: {:.1} s",
        start.elapsed().as_secs_f64()
    );
    println!(
        "resident after them: {} KiB more",
        resident_kib()?.saturating_sub(before)
    );
    volume.close().await?;
    Ok(())
}

async fn open(files: &FileDirectory, pins: &Pins) -> Result<Arc<Volume<Either>>, Error> {
    let memory = KeyMemory::new(Policy {
        require_secretmem: false,
    })?;
    let key: Vec<u8> = (0..64).collect();
    let cipher = VolumeKey::read_from(&memory, &mut &key[..])?.expand();
    let meta = Either::File(files.open(META_FILE, Access::Writable).await?);
    let data = Either::Forgets(pins.params.size);
    let host = Arc::new(Alone(MapCache::new(64 << 20)));
    let access = sealvol_volume::Access::Writable;
    let top = LayerParts {
        data,
        meta,
        cipher: Arc::new(cipher),
        pins: pins.clone(),
        host,
    };
    Ok(sealvol_volume::open(Vec::new(), top, access).await?)
}

fn resident_kib() -> Result<u64, Error> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}

/// Gives each task a thread: only commits come, one at a time.
struct Alone(Arc<MapCache>);

impl Host for Alone {
    fn spawn(&self, task: Task<()>) {
        std::thread::spawn(|| futures_executor::block_on(task));
    }

    fn map_cache(&self) -> Arc<MapCache> {
        Arc::clone(&self.0)
    }

    fn record_loss(&self, loss: Loss) -> Task<()> {
        eprintln!("{loss}");
        Box::pin(ready(()))
    }

    fn pin(&self, _: u64, _: u64, _: Commitment) -> Task<Result<(), VolumeError>> {
        Box::pin(ready(Ok(())))
    }
}

/// `meta` in its file; `data` nowhere: what is written is forgotten, what is read is zeros.
enum Either {
    File(<FileDirectory as Directory>::File),
    Forgets(u64),
}

impl Store for Either {
    async fn read_at(&self, mut buf: IoBuf, offset: u64) -> (IoBuf, Result<(), StoreError>) {
        match self {
            Self::File(file) => file.read_at(buf, offset).await,
            Self::Forgets(_) => {
                buf.fill(0);
                (buf, Ok(()))
            }
        }
    }

    async fn write_at(
        &self,
        buf: IoBuf,
        offset: u64,
        durability: Durability,
    ) -> (IoBuf, Result<(), StoreError>) {
        match self {
            Self::File(file) => file.write_at(buf, offset, durability).await,
            Self::Forgets(_) => (buf, Ok(())),
        }
    }

    async fn sync(&self) -> Result<(), StoreError> {
        match self {
            Self::File(file) => file.sync().await,
            Self::Forgets(_) => Ok(()),
        }
    }

    async fn punch(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        match self {
            Self::File(file) => file.punch(offset, len).await,
            Self::Forgets(_) => Ok(()),
        }
    }

    async fn allocate(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        match self {
            Self::File(file) => file.allocate(offset, len).await,
            Self::Forgets(_) => Ok(()),
        }
    }

    fn len(&self) -> u64 {
        match self {
            Self::File(file) => file.len(),
            Self::Forgets(len) => *len,
        }
    }

    async fn grow(&self, len: u64) -> Result<(), StoreError> {
        match self {
            Self::File(file) => file.grow(len).await,
            Self::Forgets(_) => Ok(()),
        }
    }

    fn access(&self) -> &'static str {
        match self {
            Self::File(file) => file.access(),
            Self::Forgets(_) => "nowhere",
        }
    }

    async fn discard_cache(&self) -> Result<(), StoreError> {
        match self {
            Self::File(file) => file.discard_cache().await,
            Self::Forgets(_) => Ok(()),
        }
    }
}
