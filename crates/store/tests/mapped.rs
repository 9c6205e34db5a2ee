//! Files of a memory file system are reached through a mapping where they hold data: what becomes of it when pages go missing.

mod device;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use device::{SmallFileSystem, is_root, memory_folder};
use futures_executor::block_on;
use sealvol_store::{Access, Caching, Durability, FileStore, IoBuf, Store, StoreError};

const MIB: u64 = 1 << 20;

fn read(store: &FileStore, offset: u64, len: usize) -> Result<Vec<u8>, StoreError> {
    let (buf, result) = block_on(store.read_written(IoBuf::for_overwrite(len), offset));
    result.map(|()| buf.to_vec())
}

fn overwrite(store: &FileStore, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
    block_on(store.overwrite_at(IoBuf::copy_of(bytes), offset, Durability::Volatile)).1
}

/// A file of 4 MiB that holds ones, and a store over it.
fn store_of_ones(path: &Path) -> FileStore {
    std::fs::write(path, vec![1; 4 << 20]).unwrap();
    FileStore::open_file(path, Access::Writable, Caching::PageCache).unwrap()
}

fn set_len(path: &Path, len: u64) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(len).unwrap();
}

/// Whether this process has mapped the file.
fn is_mapped(path: &Path) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines()
        .any(|line| line.ends_with(path.to_str().unwrap()))
}

#[test]
fn what_is_written_and_read_through_the_mapping_is_what_the_file_has() {
    let folder = memory_folder();
    let path = folder.path().join("data");
    let store = store_of_ones(&path);
    assert!(!is_mapped(&path), "before anybody asked for data");
    for (offset, len) in [(0, 4096), (4096, 512), (MIB - 7, 100), (2 * MIB, 1 << 20)] {
        let bytes: Vec<u8> = (0..len).map(|at: usize| at.to_le_bytes()[0] | 2).collect();
        overwrite(&store, offset, &bytes).unwrap();
        let mut found = vec![0; len];
        File::open(&path)
            .unwrap()
            .read_exact_at(&mut found, offset)
            .unwrap();
        assert!(found == bytes, "{len} bytes at {offset}");
        assert!(read(&store, offset, len).unwrap() == bytes);
    }
    assert_eq!(is_mapped(&path), cfg!(target_arch = "x86_64"));
    assert_eq!(read(&store, 3 * MIB, 4096).unwrap(), [1; 4096]);
    drop(store);
    // On another thread.
    while is_mapped(&path) {
        std::thread::yield_now();
    }
}

#[test]
fn a_file_that_somebody_shortens_is_an_error_of_the_one_read_and_the_process_goes_on() {
    let folder = memory_folder();
    let path = folder.path().join("data");
    let store = store_of_ones(&path);
    assert_eq!(read(&store, 3 * MIB, 4096).unwrap(), [1; 4096]);
    set_len(&path, 2 * MIB + 4096);
    let refused = read(&store, 2 * MIB, 1 << 20).unwrap_err();
    assert!(
        matches!(refused, StoreError::Truncated { end, .. } if end == 2 * MIB + 4096),
        "{refused}"
    );
    assert_eq!(read(&store, MIB, 1 << 20).unwrap(), vec![1; 1 << 20]);
    set_len(&path, 4 * MIB);
    assert_eq!(read(&store, 3 * MIB, 4096).unwrap(), [0; 4096]);
}

#[test]
fn a_grown_file_is_read_and_written_beyond_what_was_mapped() {
    let folder = memory_folder();
    let path = folder.path().join("data");
    let store = store_of_ones(&path);
    assert_eq!(read(&store, 0, 4096).unwrap(), [1; 4096]);
    block_on(store.grow(8 * MIB)).unwrap();
    let bytes = vec![9; 2 << 20];
    overwrite(&store, 3 * MIB, &bytes).unwrap();
    assert!(read(&store, 3 * MIB, 2 << 20).unwrap() == bytes);
    overwrite(&store, 7 * MIB, &[5; 4096]).unwrap();
    assert_eq!(read(&store, 7 * MIB, 4096).unwrap(), [5; 4096]);
    let beyond = overwrite(&store, 8 * MIB - 100, &[1; 4096]).unwrap_err();
    assert!(matches!(beyond, StoreError::PastEnd { .. }), "{beyond}");
}

#[test]
fn a_full_file_system_is_an_error_of_the_one_write() {
    if !is_root("a full tmpfs is left out: mounting takes root") {
        return;
    }
    let small = SmallFileSystem::mount(MIB);
    let path = small.path().join("data");
    let file = File::create(&path).unwrap();
    file.set_len(4 * MIB).unwrap();
    let store = FileStore::open_file(&path, Access::Writable, Caching::PageCache).unwrap();
    let written = (0..1024)
        .find(|block| match overwrite(&store, block * 4096, &[3; 4096]) {
            Ok(()) => false,
            Err(error) => {
                assert!(error.is_no_space(), "{error}");
                true
            }
        })
        .expect("4 MiB do not fit into 1 MiB");
    assert!(written > 200, "{written} blocks");
    for block in 0..written {
        assert_eq!(read(&store, block * 4096, 4096).unwrap(), [3; 4096]);
    }
    assert_eq!(
        read(&store, 4 * MIB - 4096, 4096).unwrap(),
        [0; 4096],
        "a hole, and no room for a page"
    );
}

#[test]
fn a_plain_read_of_a_hole_takes_no_space() {
    let folder = memory_folder();
    let path = folder.path().join("data");
    File::create(&path).unwrap().set_len(4 * MIB).unwrap();
    let store = FileStore::open_file(&path, Access::Writable, Caching::PageCache).unwrap();
    overwrite(&store, 0, &[1; 4096]).unwrap();
    let space = || std::fs::metadata(&path).unwrap().blocks();
    let before = space();
    let (buf, result) = block_on(store.read_at(IoBuf::for_overwrite(1 << 20), MIB));
    result.unwrap();
    assert!(buf.iter().all(|&byte| byte == 0));
    assert_eq!(space(), before);
}

#[test]
fn pages_that_come_and_go_under_many_readers_and_writers_end_nobody() {
    let folder = memory_folder();
    let path = folder.path().join("data");
    let store = store_of_ones(&path);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..3_u64 {
            let (store, over) = (&store, &over);
            scope.spawn(move || {
                let mut at = thread * 1_000_003;
                while !over.load(Ordering::Relaxed) {
                    at = (at + 1_048_583) % (3 * MIB);
                    match read(store, at, 70_000) {
                        Ok(bytes) => assert!(bytes.iter().all(|byte| *byte < 2)),
                        Err(error) => {
                            assert!(matches!(error, StoreError::Truncated { .. }), "{error}")
                        }
                    }
                    overwrite(store, at, &[1; 5000]).unwrap();
                }
            });
        }
        for _ in 0..300 {
            set_len(&path, 4096);
            set_len(&path, 4 * MIB);
            std::thread::yield_now();
        }
        over.store(true, Ordering::Relaxed);
    });
}
