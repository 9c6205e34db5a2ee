//! A volume against an array of bytes: any alignment and size, several requests at once, clean detach and
//! attach in between.

use std::ops::Range;
use std::sync::Arc;

use sealvol_crypto::UnitSize;
use sealvol_store::fault::FaultDisk;
use sealvol_store::{Directory, MemoryDirectory};
use sealvol_volume::{Access, BLOCK, BlockState, Volume, VolumeError, Zeroing, create};

use crate::rig::{Executor, KEY, LAYER, Random, Registry, Scattered, open_in, params, seeds};

const PAGE: u64 = 64 << 20;
/// Two map pages and a bit.
const SIZE: u64 = 2 * PAGE + 5 * BLOCK;
const GROWN: u64 = 3 * PAGE;
const WINDOW: u64 = 5 * BLOCK;
/// Everything happens in one of these; reads outside of them find zeros.
const WINDOWS: [u64; 4] = [0, PAGE - 2 * BLOCK, PAGE + 100 * BLOCK, 2 * PAGE];

#[derive(Clone, Debug)]
enum Request {
    Write(Range<u64>, u8, bool),
    Zero(Range<u64>, Zeroing, bool),
    Trim(Range<u64>, bool),
    Read(Range<u64>),
    Flush,
}

impl Request {
    fn by_chance(random: &Random, tag: u8) -> Self {
        let window = random.pick(&WINDOWS);
        let range = match random.below(8) {
            // Aligned to blocks, to sectors of 512 bytes, or to nothing.
            0..=2 => {
                let first = random.below(WINDOW / BLOCK);
                let past = first + 1 + random.below(WINDOW / BLOCK - first);
                window + first * BLOCK..window + past * BLOCK
            }
            3 | 4 => {
                let first = random.below(WINDOW / 512);
                let past = first + 1 + random.below(WINDOW / 512 - first);
                window + first * 512..window + past * 512
            }
            5 => {
                let first = random.below(WINDOW - 40);
                window + first..window + first + 1 + random.below(40)
            }
            _ => {
                let first = random.below(WINDOW);
                let past = first + 1 + random.below(WINDOW - first);
                window + first..window + past
            }
        };
        let fua = random.chance(1, 8);
        match random.below(16) {
            0..=6 => Self::Write(range, tag, fua),
            7 => Self::Zero(range, Zeroing::Allocated, fua),
            8 => Self::Zero(range, Zeroing::MayFree, fua),
            // Across all windows, as mkfs does.
            9 if random.chance(1, 6) => Self::Trim(random.below(PAGE)..SIZE, fua),
            9 if random.chance(1, 6) => Self::Zero(BLOCK + 7..SIZE - 9, Zeroing::MayFree, fua),
            9 | 10 => Self::Trim(range, fua),
            11 | 12 => Self::Flush,
            _ => Self::Read(range),
        }
    }

    fn range(&self) -> Range<u64> {
        match self {
            Self::Write(range, ..)
            | Self::Zero(range, ..)
            | Self::Trim(range, _)
            | Self::Read(range) => range.clone(),
            Self::Flush => 0..0,
        }
    }

    /// What it leaves in the byte at `at`, if it changes it.
    fn leaves(&self, at: u64) -> Option<u8> {
        match self {
            Self::Write(range, tag, _) => range.contains(&at).then(|| byte(*tag, at)),
            Self::Zero(range, ..) => range.contains(&at).then_some(0),
            Self::Trim(range, _) => {
                let whole = range.start.next_multiple_of(BLOCK)..range.end / BLOCK * BLOCK;
                whole.contains(&at).then_some(0)
            }
            Self::Read(_) | Self::Flush => None,
        }
    }
}

fn byte(tag: u8, at: u64) -> u8 {
    tag.wrapping_mul(31) ^ at.to_le_bytes()[0].rotate_left(3) ^ at.to_le_bytes()[1]
}

async fn perform<D: Directory>(
    volume: Arc<Volume<Scattered<D::File>>>,
    request: Request,
) -> Result<Option<Vec<u8>>, VolumeError> {
    let len = |range: &Range<u64>| range.end - range.start;
    match request {
        Request::Write(range, tag, fua) => {
            let bytes: Vec<u8> = range.clone().map(|at| byte(tag, at)).collect();
            volume.prepare_write(range.start, &bytes)?.run(fua).await?;
        }
        Request::Zero(range, how, fua) => volume.zero(range.start, len(&range), how, fua).await?,
        Request::Trim(range, fua) => volume.trim(range.start, len(&range), fua).await?,
        Request::Flush => volume.flush().await?,
        Request::Read(range) => return read::<D>(&volume, range).await.map(Some),
    }
    Ok(None)
}

async fn read<D: Directory>(
    volume: &Arc<Volume<Scattered<D::File>>>,
    range: Range<u64>,
) -> Result<Vec<u8>, VolumeError> {
    let len = usize::try_from(range.end - range.start).unwrap();
    let read = volume.read(range.start, len).await?;
    assert_eq!(read.len(), len);
    let bytes = read.bytes().map_or_else(|| vec![0; len], <[u8]>::to_vec);
    let mut at = 0;
    for (part, data) in read.parts() {
        assert_eq!(part.start, at, "parts follow each other");
        assert!(
            data || bytes[part.clone()].iter().all(|&byte| byte == 0),
            "a hole that is not zeros"
        );
        at = part.end;
    }
    assert_eq!(at, len);
    Ok(bytes)
}

/// The volume's model: what each window holds.
type Bytes = [Vec<u8>; WINDOWS.len()];

/// Checks that each byte of `found`, read at `first`, is what one of the requests left; or what it was before, if
/// `before` may still show.
fn check(found: &[u8], first: u64, before: &[u8], requests: &[Request], before_may_show: bool) {
    let mut fits: Vec<bool> = found
        .iter()
        .zip(before)
        .map(|(found, before)| found == before)
        .collect();
    let mut replaced = vec![false; found.len()];
    for request in requests {
        let range = request.range();
        let from = range.start.max(first);
        for at in from..range.end.min(first + found.len() as u64) {
            let Some(byte) = request.leaves(at) else {
                continue;
            };
            let index = usize::try_from(at - first).unwrap();
            if !before_may_show && !replaced[index] {
                fits[index] = false;
            }
            replaced[index] = true;
            fits[index] |= found[index] == byte;
        }
    }
    if let Some(bad) = fits.iter().position(|fits| !fits) {
        panic!(
            "byte {} was {}, is {}: {requests:?}",
            first + bad as u64,
            before[bad],
            found[bad]
        );
    }
}

/// Several requests at once, then what is there must be what one of them left.
fn round<D: Directory>(
    executor: &mut Executor,
    volume: &Arc<Volume<Scattered<D::File>>>,
    random: &Random,
    bytes: &mut Bytes,
    tag: &mut u8,
) {
    let count = 1 + random.below(6);
    let requests: Vec<Request> = (0..count)
        .map(|_| {
            *tag = tag.wrapping_add(1).max(1);
            Request::by_chance(random, *tag)
        })
        .collect();
    let handles: Vec<_> = requests
        .iter()
        .map(|request| executor.start(perform::<D>(Arc::clone(volume), request.clone())))
        .collect();
    let results: Vec<_> = handles
        .iter()
        .map(|handle| executor.finish(handle).unwrap())
        .collect();
    for (request, result) in requests.iter().zip(results) {
        let (Request::Read(range), Some(found)) = (request, result) else {
            continue;
        };
        let window = WINDOWS
            .iter()
            .position(|first| (*first..first + WINDOW).contains(&range.start))
            .unwrap();
        let from = usize::try_from(range.start - WINDOWS[window]).unwrap();
        check(&found, range.start, &bytes[window][from..], &requests, true);
    }
    for (window, before) in WINDOWS.into_iter().zip(bytes) {
        let reader = Arc::clone(volume);
        let found = executor
            .run(async move { read::<D>(&reader, window..window + WINDOW).await })
            .unwrap();
        check(&found, window, before, &requests, false);
        *before = found;
    }
}

/// The map and the extents say the same, cover everything, and what is not data reads as zeros.
fn check_map<D: Directory>(
    executor: &mut Executor,
    volume: &Arc<Volume<Scattered<D::File>>>,
    bytes: &Bytes,
) {
    let mapped = Arc::clone(volume);
    executor
        .run(async move {
            let mut map = Vec::new();
            let mut at = 0;
            loop {
                let runs = mapped.map(at, 3).await.unwrap();
                let Some(last) = runs.last() else { break };
                at = last.offset + last.len;
                map.extend(runs);
            }
            assert_eq!(at, mapped.size());
            let mut at = 0;
            let mut states = Vec::new();
            while at < mapped.size() {
                for extent in mapped.extents(at, mapped.size() - at, 2).await.unwrap() {
                    states.push((at, extent.state));
                    at += extent.len;
                }
            }
            for (offset, state) in states {
                let run = map
                    .iter()
                    .find(|run| run.offset <= offset && offset < run.offset + run.len)
                    .unwrap();
                assert_eq!(run.state, state);
            }
            map
        })
        .iter()
        .filter(|run| run.state != BlockState::Data)
        .for_each(|run| {
            for (first, bytes) in WINDOWS.into_iter().zip(bytes) {
                let hole = (first..)
                    .zip(bytes)
                    .filter(|(at, _)| (run.offset..run.offset + run.len).contains(at));
                assert!(
                    hole.into_iter().all(|(_, byte)| *byte == 0),
                    "{run:?} is not zeros"
                );
            }
        });
}

fn campaign<D: Directory>(
    directory: D,
    mut executor: Executor,
    random: Random,
    registry: &Arc<Registry>,
) {
    let directory = Arc::new(directory);
    let (maker, layer) = (Arc::clone(&directory), registry.pins().params);
    let keys = vec![sealvol_volume::WrappedKey {
        data_key: sealvol_volume::DataKeyId([3; 16]),
        provider: "local".into(),
        key_id: "default".into(),
        key_version: 1,
        blob: vec![1; 80],
    }];
    executor
        .run(async move { create(&*maker, true, &layer, &keys).await })
        .unwrap();
    let mut bytes: Bytes = WINDOWS.map(|_| vec![0; usize::try_from(WINDOW).unwrap()]);
    let mut tag = 0;
    let mut generation = 0;
    for life in 0..3 {
        let most = random.below(4);
        registry.bound_cache(random.pick(&[0, 5000, 1 << 20]));
        let (opener, chance, host) = (Arc::clone(&directory), random.clone(), Arc::clone(registry));
        let volume = executor
            .run(async move { open_in(&*opener, chance, most, host, Access::Writable, &KEY).await })
            .unwrap();
        assert!(volume.generation() > generation);
        for _ in 0..12 {
            round::<D>(&mut executor, &volume, &random, &mut bytes, &mut tag);
        }
        if life == 1 {
            let grown = Arc::clone(&volume);
            executor
                .run(async move { grown.grow(GROWN).await })
                .unwrap();
            assert_eq!((volume.size(), registry.pins().params.size), (GROWN, GROWN));
        }
        check_map::<D>(&mut executor, &volume, &bytes);
        generation = executor.run(async move { volume.close().await }).unwrap();
        assert_eq!(registry.pins().generation, generation);
    }
    assert!(registry.losses().is_empty());
}

fn both_sizes(mut run: impl FnMut(u64, UnitSize)) {
    for seed in seeds(12) {
        run(seed, UnitSize::B4096);
        run(seed, UnitSize::B512);
    }
}

#[test]
fn a_volume_in_memory_behaves_like_an_array_of_bytes() {
    both_sizes(|seed, sector_size| {
        let random = Random::new(seed);
        let executor = Executor::new(random.clone());
        let registry = Registry::new(executor.spawner(), None, params(SIZE, sector_size));
        campaign(MemoryDirectory::new(), executor, random, &registry);
    });
}

#[test]
fn a_volume_on_a_disk_with_a_cache_behaves_like_an_array_of_bytes() {
    both_sizes(|seed, sector_size| {
        let random = Random::new(seed);
        let disk = FaultDisk::new(seed);
        let executor = Executor::new(random.clone());
        let registry = Registry::new(
            executor.spawner(),
            Some(disk.clone()),
            params(SIZE, sector_size),
        );
        campaign(disk.directory(LAYER), executor, random, &registry);
    });
}
