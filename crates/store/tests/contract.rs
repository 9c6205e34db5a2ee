//! What every store promises, held against a plain array of bytes: files on disk and in memory,
//! block devices, the model in memory, and the fault disk while nothing goes wrong. Files in each way in which they can be
//! reached: through the page cache or past it, by a thread with a ring or by one without.

mod device;
mod worker;

use futures_executor::block_on;
use proptest::prelude::*;
use sealvol_store::fault::FaultDisk;
use sealvol_store::{
    Access, Caching, Directory, Durability, FileDirectory, FileStore, IoBuf, MemoryDirectory,
    Operation, Store, StoreError,
};

const LEN: u64 = 100_000;

#[derive(Clone, Debug)]
enum Step {
    /// With `written`, by the call for ranges that were written: that only says what may be done, not what is found.
    Read {
        offset: u64,
        len: usize,
        written: bool,
    },
    Write {
        offset: u64,
        len: usize,
        byte: u8,
        durability: Durability,
        written: bool,
    },
    Punch {
        offset: u64,
        len: u64,
    },
    Allocate {
        offset: u64,
        len: u64,
    },
    Grow {
        by: u64,
    },
    Sync,
    DiscardCache,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Half of the ranges lie on sectors, as those of a volume do; the others anywhere.
    let range = prop_oneof![
        (0..LEN / 512, 0..60usize).prop_map(|(sector, count)| (sector * 512, count * 512)),
        (0..LEN + 1000, 0..30_000usize),
    ];
    let durability = prop_oneof![Just(Durability::Volatile), Just(Durability::Durable)];
    let step = prop_oneof![
        4 => (range.clone(), any::<bool>())
            .prop_map(|((offset, len), written)| Step::Read { offset, len, written }),
        6 => (range.clone(), any::<u8>(), durability, any::<bool>())
            .prop_map(|((offset, len), byte, durability, written)| Step::Write { offset, len, byte, durability, written }),
        3 => range.clone().prop_map(|(offset, len)| Step::Punch { offset, len: len as u64 }),
        1 => range.prop_map(|(offset, len)| Step::Allocate { offset, len: len as u64 }),
        1 => (0..20_000u64).prop_map(|by| Step::Grow { by }),
        2 => Just(Step::Sync),
        1 => Just(Step::DiscardCache),
    ];
    prop::collection::vec(step, 1..40)
}

/// Bytes that tell where they are, so that a shifted write shows.
fn pattern(len: usize, byte: u8) -> Vec<u8> {
    let low = |number: usize| number.to_le_bytes()[0];
    (0..len)
        .map(|at| byte.wrapping_add(low(at / 512)).wrapping_mul(31) ^ low(at))
        .collect()
}

fn index(at: u64) -> usize {
    usize::try_from(at).expect("small stores only")
}

/// Does a step to both; whatever the array says must be what the store says. Writes that are not
/// made of whole units must be refused and change nothing.
async fn step_agrees(store: &impl Store, unit: u64, array: &mut Vec<u8>, step: Step) {
    let within = |offset: u64, len: u64| offset + len <= array.len() as u64;
    let agree = |offset, len, result: &Result<(), StoreError>| match result {
        Ok(()) => assert!(within(offset, len), "past the end and no error"),
        Err(StoreError::PastEnd { end, .. }) => {
            assert!(!within(offset, len));
            assert_eq!(*end, array.len() as u64);
        }
        Err(error) => panic!("{error}"),
    };
    match step {
        Step::Read {
            offset,
            len,
            written,
        } => {
            let buf = IoBuf::for_overwrite(len);
            let (buf, result) = if written {
                store.read_written(buf, offset).await
            } else {
                store.read_at(buf, offset).await
            };
            agree(offset, len as u64, &result);
            if result.is_ok() {
                assert!(
                    buf[..] == array[index(offset)..][..len],
                    "wrong bytes at {offset}"
                );
            }
        }
        Step::Write {
            offset,
            len,
            byte,
            durability,
            written,
        } => {
            let bytes = pattern(len, byte);
            let buf = IoBuf::copy_of(&bytes);
            let (buf, result) = if written {
                store.overwrite_at(buf, offset, durability).await
            } else {
                store.write_at(buf, offset, durability).await
            };
            assert!(buf[..] == bytes[..], "the buffer came back changed");
            let is_whole = offset.is_multiple_of(unit) && (len as u64).is_multiple_of(unit);
            if within(offset, len as u64) && !is_whole {
                assert!(
                    matches!(result, Err(StoreError::Unaligned { unit: told, .. }) if told == unit),
                    "{result:?}"
                );
                return;
            }
            agree(offset, len as u64, &result);
            if result.is_ok() {
                array[index(offset)..][..len].copy_from_slice(&bytes);
            }
        }
        Step::Punch { offset, len } => {
            let result = store.punch(offset, len).await;
            agree(offset, len, &result);
            if result.is_ok() {
                array[index(offset)..][..index(len)].fill(0);
            }
        }
        Step::Allocate { offset, len } => {
            let result = store.allocate(offset, len).await;
            agree(offset, len, &result);
        }
        Step::Grow { by } => {
            let len = array.len() + index(by);
            store.grow(len as u64).await.expect("growing");
            array.resize(len, 0);
        }
        Step::Sync => store.sync().await.expect("syncing"),
        Step::DiscardCache => {
            // Only after a sync does it promise to keep what was written.
            store.sync().await.expect("syncing");
            store.discard_cache().await.expect("discarding");
        }
    }
    assert_eq!(store.len(), array.len() as u64);
}

fn agrees_with_an_array(directory: &impl Directory, steps: Vec<Step>) {
    block_on(agrees(directory, |_| 1, steps));
}

async fn agrees<D: Directory>(directory: &D, unit: fn(&D::File) -> u64, steps: Vec<Step>) {
    let store = directory.create("data", LEN).await.expect("creating");
    let mut array = vec![0; index(LEN)];
    for step in steps {
        step_agrees(&store, unit(&store), &mut array, step).await;
    }
    let (buf, result) = store.read_at(IoBuf::for_overwrite(array.len()), 0).await;
    result.expect("reading all of it");
    assert!(buf[..] == array[..], "wrong bytes at the end");
    drop(store);
    let again = directory
        .open("data", Access::ReadOnly)
        .await
        .expect("opening again");
    let (buf, result) = again.read_at(IoBuf::for_overwrite(array.len()), 0).await;
    result.expect("reading all of it again");
    assert!(buf[..] == array[..], "wrong bytes after opening again");
    directory.remove("data").await.expect("removing");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_store_in_memory_is_an_array_of_bytes(steps in steps()) {
        agrees_with_an_array(&MemoryDirectory::new(), steps);
    }

    #[test]
    fn a_fault_disk_without_faults_is_an_array_of_bytes(steps in steps(), seed: u64) {
        agrees_with_an_array(&FaultDisk::new(seed).directory("layer"), steps);
    }

    #[test]
    fn a_file_in_memory_is_an_array_of_bytes(steps in steps()) {
        let folder = device::memory_folder();
        agrees_with_an_array(&FileDirectory::open(folder.path()).expect("opening"), steps);
    }
}

proptest! {
    // Each sync of these goes to a real disk.
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_file_on_disk_is_an_array_of_bytes(steps in steps()) {
        let folder = device::disk_folder();
        agrees_with_an_array(&FileDirectory::open(folder.path()).expect("opening"), steps);
    }

    #[test]
    fn a_file_on_disk_is_an_array_of_bytes_to_a_worker_with_a_ring(steps in steps()) {
        let folder = device::disk_folder();
        let directory = FileDirectory::open(folder.path()).expect("opening");
        worker::run(agrees(&directory, FileStore::write_unit, steps));
    }

    #[test]
    fn a_file_past_the_page_cache_is_an_array_of_bytes(steps in steps()) {
        let folder = device::disk_folder();
        let directory = FileDirectory::open(folder.path()).expect("opening").caching(Caching::Direct);
        block_on(agrees(&directory, FileStore::write_unit, steps));
    }

    #[test]
    fn a_file_past_the_page_cache_is_an_array_of_bytes_to_a_worker_with_a_ring(steps in steps()) {
        let folder = device::disk_folder();
        let directory = FileDirectory::open(folder.path()).expect("opening").caching(Caching::Direct);
        worker::run(agrees(&directory, FileStore::write_unit, steps));
    }

    #[test]
    fn a_fault_disk_over_files_is_an_array_of_bytes(steps in steps(), seed: u64) {
        let folder = device::memory_folder();
        let platter = FileDirectory::open(folder.path()).expect("opening");
        agrees_with_an_array(&FaultDisk::over(platter, seed).directory("layer"), steps);
    }
}

/// Runs a check on a fresh directory of each kind.
macro_rules! on_every_directory {
    ($check:path) => {
        block_on($check(&MemoryDirectory::new()));
        block_on($check(&FaultDisk::new(1).directory("layer")));
        for folder in [device::memory_folder(), device::disk_folder()] {
            for caching in [Caching::PageCache, Caching::Direct] {
                let directory = FileDirectory::open(folder.path()).expect("opening");
                let directory = directory.caching(caching);
                block_on($check(&directory));
                empty(&directory);
                worker::run($check(&directory));
                empty(&directory);
            }
        }
    };
}

/// Removes what a check left.
fn empty(directory: &FileDirectory) {
    for name in block_on(directory.list()).expect("listing") {
        block_on(directory.remove(&name)).expect("removing");
    }
}

fn expect_locked<T>(result: Result<T, StoreError>, name: &str) {
    match result {
        Err(StoreError::Locked { at }) => {
            assert!(
                at.path.ends_with(name),
                "{} is not the locked file",
                at.path.display()
            );
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("{name} was opened twice"),
    }
}

#[test]
fn a_writable_file_is_open_once_and_a_read_only_one_shared() {
    async fn check(directory: &impl Directory) {
        let created = directory.create("data", 4096).await.unwrap();
        expect_locked(directory.open("data", Access::Writable).await, "data");
        expect_locked(directory.open("data", Access::ReadOnly).await, "data");
        drop(created);
        let first = directory.open("data", Access::ReadOnly).await.unwrap();
        let second = directory.open("data", Access::ReadOnly).await.unwrap();
        expect_locked(directory.open("data", Access::Writable).await, "data");
        drop(first);
        expect_locked(directory.open("data", Access::Writable).await, "data");
        drop(second);
        let _writable = directory.open("data", Access::Writable).await.unwrap();
        expect_locked(directory.open("data", Access::ReadOnly).await, "data");
    }
    on_every_directory!(check);
}

#[test]
fn a_read_only_store_refuses_every_change() {
    async fn check(directory: &impl Directory) {
        let created = directory.create("data", 8192).await.unwrap();
        created
            .write_at(IoBuf::copy_of(&[7; 4096]), 0, Durability::Durable)
            .await
            .1
            .unwrap();
        drop(created);
        let store = directory.open("data", Access::ReadOnly).await.unwrap();
        let written = store
            .write_at(IoBuf::zeroed(4096), 0, Durability::Volatile)
            .await
            .1;
        for (what, result) in [
            (Operation::Write, written),
            (Operation::Punch, store.punch(0, 4096).await),
            (Operation::Allocate, store.allocate(4096, 4096).await),
            (Operation::Grow, store.grow(16384).await),
        ] {
            assert!(
                matches!(result, Err(StoreError::ReadOnly { .. })),
                "{what}: {result:?}"
            );
        }
        let (buf, result) = store.read_at(IoBuf::for_overwrite(8192), 0).await;
        result.unwrap();
        assert!(buf[..4096] == [7; 4096] && buf[4096..] == [0; 4096]);
        assert_eq!(store.len(), 8192);
    }
    on_every_directory!(check);
}

#[test]
fn names_are_created_once_replaced_by_rename_and_gone_when_removed() {
    async fn check(directory: &impl Directory) {
        for name in ["meta", "data", "Data"] {
            directory.create(name, 512).await.unwrap();
        }
        assert_eq!(directory.list().await.unwrap(), ["Data", "data", "meta"]);
        let taken = directory.create("meta", 512).await.err();
        assert!(
            matches!(taken, Some(StoreError::AlreadyExists { .. })),
            "{taken:?}"
        );
        let data = directory.open("data", Access::Writable).await.unwrap();
        let bytes = b"data".repeat(128);
        data.write_at(IoBuf::copy_of(&bytes), 0, Durability::Durable)
            .await
            .1
            .unwrap();
        directory.rename("data", "meta").await.unwrap();
        assert_eq!(directory.list().await.unwrap(), ["Data", "meta"]);
        drop(data);
        let renamed = directory.open("meta", Access::ReadOnly).await.unwrap();
        assert_eq!(&renamed.read_at(IoBuf::zeroed(4), 0).await.0[..], b"data");
        directory.remove("meta").await.unwrap();
        assert_eq!(&renamed.read_at(IoBuf::zeroed(4), 0).await.0[..], b"data");
        for result in [
            directory.open("meta", Access::ReadOnly).await.map(drop),
            directory.rename("meta", "data").await,
            directory.remove("meta").await,
        ] {
            assert!(
                matches!(result, Err(StoreError::NotFound { .. })),
                "{result:?}"
            );
        }
        for result in [
            directory.create("../data", 512).await.map(drop),
            directory.open("", Access::ReadOnly).await.map(drop),
            directory.rename("Data", "a/b").await,
            directory.remove("..").await,
        ] {
            assert!(
                matches!(result, Err(StoreError::InvalidName { .. })),
                "{result:?}"
            );
        }
        directory.sync().await.unwrap();
    }
    on_every_directory!(check);
}

#[test]
fn a_store_never_becomes_shorter() {
    async fn check(directory: &impl Directory) {
        let store = directory.create("data", 8192).await.unwrap();
        let refused = store.grow(4096).await;
        assert!(
            matches!(refused, Err(StoreError::Shrink { current: 8192, .. })),
            "{refused:?}"
        );
        store.grow(8192).await.unwrap();
        assert_eq!(store.len(), 8192);
    }
    on_every_directory!(check);
}

#[test]
fn a_range_that_overflows_is_past_the_end() {
    async fn check(directory: &impl Directory) {
        let store = directory.create("data", 8192).await.unwrap();
        for offset in [8192, u64::MAX, u64::MAX - 4095] {
            let read = store.read_at(IoBuf::zeroed(4096), offset).await.1;
            assert!(
                matches!(read, Err(StoreError::PastEnd { end: 8192, .. })),
                "{read:?}"
            );
            let punched = store.punch(offset, 4096).await;
            assert!(
                matches!(punched, Err(StoreError::PastEnd { .. })),
                "{punched:?}"
            );
        }
    }
    on_every_directory!(check);
}

#[test]
fn sixty_four_tebibytes_cost_what_is_in_them() {
    const TIB: u64 = 1 << 40;
    async fn check(directory: &impl Directory) {
        let store = directory.create("data", 64 * TIB).await.unwrap();
        for offset in [0, 16 * TIB, 64 * TIB - 4096] {
            store
                .write_at(IoBuf::copy_of(&[9; 4096]), offset, Durability::Volatile)
                .await
                .1
                .unwrap();
        }
        store.punch(4096, 63 * TIB).await.unwrap();
        store.sync().await.unwrap();
        for (offset, byte) in [(0, 9), (16 * TIB, 0), (64 * TIB - 4096, 9)] {
            let (buf, result) = store.read_at(IoBuf::for_overwrite(4096), offset).await;
            result.unwrap();
            assert!(buf[..] == [byte; 4096], "at {offset}");
        }
    }
    block_on(check(&MemoryDirectory::new()));
    block_on(check(&FaultDisk::new(1).directory("layer")));
    let folder = device::memory_folder();
    block_on(check(&FileDirectory::open(folder.path()).unwrap()));
}
