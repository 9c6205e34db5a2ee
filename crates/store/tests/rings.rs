//! Workers with a ring: many operations at once, each to its own memory, on every kind of file;
//! futures that nobody waits for, threads that end, more work than a ring takes.

mod device;
mod worker;

use std::future::poll_fn;
use std::os::unix::fs::MetadataExt;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::thread;

use device::{MadeFileSystem, disk_folder, is_root, memory_folder};
use futures_executor::block_on;
use futures_util::future::join_all;
use sealvol_store::fault::{FaultDisk, Hold, When};
use sealvol_store::ring::{Worker, turn};
use sealvol_store::{
    Access, Caching, Directory, Durability, FileDirectory, FileStore, IoBuf, Operation, Store,
    StoreError,
};
use tempfile::TempDir;

const BLOCK: u64 = 4096;

/// A file of so many blocks in each of the ways in which one is reached.
fn stores(blocks: u64) -> Vec<(TempDir, FileStore)> {
    let cached = [memory_folder(), disk_folder()].map(|folder| (folder, Caching::PageCache));
    let direct = [(disk_folder(), Caching::Direct)];
    let all = cached.into_iter().chain(direct);
    all.map(|(folder, caching)| {
        let directory = FileDirectory::open(folder.path()).unwrap().caching(caching);
        let store = block_on(directory.create("data", blocks * BLOCK)).unwrap();
        (folder, store)
    })
    .collect()
}

fn direct(blocks: u64) -> (TempDir, FileStore) {
    stores(blocks).pop().expect("the last one")
}

/// What block `number` is to hold.
fn block(number: u64) -> Vec<u8> {
    (0..BLOCK / 8)
        .flat_map(|word| (number * 1000 + word + 1).to_le_bytes())
        .collect()
}

async fn write(store: &FileStore, number: u64, durability: Durability) -> Result<(), StoreError> {
    let (buf, result) = store
        .write_at(IoBuf::copy_of(&block(number)), number * BLOCK, durability)
        .await;
    assert!(buf[..] == block(number)[..], "another buffer came back");
    result
}

async fn read(store: &FileStore, number: u64) -> Vec<u8> {
    let buf = IoBuf::for_overwrite(4096);
    let (buf, result) = store.read_at(buf, number * BLOCK).await;
    result.expect("reading");
    buf.to_vec()
}

fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn many_operations_at_once_each_reach_their_own_memory() {
    // More than a ring has in flight.
    const BLOCKS: u64 = 1500;
    for (_folder, store) in stores(BLOCKS) {
        worker::run(async {
            let durable = |number| {
                if number % 100 == 0 {
                    Durability::Durable
                } else {
                    Durability::Volatile
                }
            };
            let writes = (0..BLOCKS).filter(|number| number % 3 != 0);
            for result in
                join_all(writes.map(|number| write(&store, number, durable(number)))).await
            {
                result.expect("writing");
            }
            store.sync().await.unwrap();
            store.discard_cache().await.unwrap();
            let read = join_all((0..BLOCKS).map(|number| read(&store, number))).await;
            for (number, bytes) in (0..BLOCKS).zip(read) {
                if number % 3 == 0 {
                    assert!(bytes == [0; 4096], "a hole at {number}, {}", store.access());
                } else {
                    assert!(bytes == block(number), "block {number}, {}", store.access());
                }
            }
        });
    }
}

#[test]
fn reads_of_any_bytes_are_right_and_past_the_end_is_refused() {
    for (_folder, store) in stores(16) {
        worker::run(async {
            for number in 0..16 {
                write(&store, number, Durability::Volatile).await.unwrap();
            }
            store.sync().await.unwrap();
            let all: Vec<u8> = (0..16).flat_map(block).collect();
            for (offset, len) in [
                (0, 1),
                (1, 4095),
                (511, 2),
                (4095, 4098),
                (5000, 0),
                (100, 65_000),
                (65_535, 1),
            ] {
                store.discard_cache().await.unwrap();
                let (buf, result) = store.read_at(IoBuf::for_overwrite(len), offset).await;
                result.unwrap();
                let from = usize::try_from(offset).unwrap();
                assert!(
                    buf[..] == all[from..][..len],
                    "{len} bytes at {offset}, {}",
                    store.access()
                );
            }
            for (offset, len) in [(65_535, 2), (65_536, 1), (u64::MAX, 4096)] {
                let past = store.read_at(IoBuf::zeroed(len), offset).await.1;
                assert!(
                    matches!(past, Err(StoreError::PastEnd { end: 65_536, .. })),
                    "{past:?}"
                );
            }
        });
    }
}

#[test]
fn what_was_begun_is_done_though_nobody_waits_for_it() {
    const BLOCKS: u64 = 64;
    for (_folder, store) in stores(BLOCKS) {
        worker::run(async {
            for number in 0..BLOCKS {
                let mut begun = Box::pin(write(&store, number, Durability::Volatile));
                let _ = poll_once(begun.as_mut());
                if number % 2 == 0 {
                    // Some are dropped in flight, some before the kernel knows of them.
                    turn();
                }
            }
            // Their memory is not handed out while the kernel reads it.
            let other: Vec<IoBuf> = (0..BLOCKS).map(|_| IoBuf::for_overwrite(4096)).collect();
            drop(other);
        });
        // The worker has ended, and waited for all of them.
        for number in 0..BLOCKS {
            assert!(
                block_on(read(&store, number)) == block(number),
                "block {number}, {}",
                store.access()
            );
        }
    }
}

#[test]
fn dropped_reads_write_into_nobodys_memory() {
    let (_folder, store) = direct(64);
    worker::run(async {
        for number in 0..64 {
            write(&store, number, Durability::Volatile).await.unwrap();
        }
        for round in 0..20 {
            for number in 0..64 {
                let _ = poll_once(pin!(read(&store, number)).as_mut());
            }
            let mut bufs: Vec<IoBuf> = (0..64).map(|_| IoBuf::for_overwrite(4096)).collect();
            for buf in &mut bufs {
                buf.fill(round);
            }
            turn();
            assert!(read(&store, 5).await == block(5));
            turn();
            assert!(bufs.iter().all(|buf| buf.iter().all(|&byte| byte == round)));
        }
    });
}

#[test]
fn a_future_can_be_waited_for_on_another_thread_and_after_its_worker_ended() {
    let (_folder, store) = direct(64);
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        let store = &store;
        scope.spawn(move || {
            let worker = Worker::start().unwrap();
            for number in 0..64 {
                let mut begun = Box::pin(write(store, number, Durability::Volatile));
                assert!(
                    poll_once(begun.as_mut()).is_pending(),
                    "O_DIRECT is never done inline"
                );
                sender.send(begun).unwrap();
            }
            drop(worker);
        });
        for begun in receiver {
            block_on(begun).expect("writing");
        }
    });
    for number in 0..64 {
        assert!(
            block_on(read(&store, number)) == block(number),
            "block {number}"
        );
    }
}

/// Never dropped, and never taken for lost memory.
static FORGOTTEN: AtomicPtr<Worker> = AtomicPtr::new(std::ptr::null_mut());

#[test]
fn a_thread_that_forgets_that_it_is_a_worker_still_waits_for_the_kernel() {
    let (_folder, store) = direct(64);
    thread::scope(|scope| {
        let ended = scope.spawn(|| {
            let worker = Box::new(Worker::start().unwrap());
            FORGOTTEN.store(Box::leak(worker), Ordering::Relaxed);
            for number in 0..64 {
                let _ = poll_once(pin!(write(&store, number, Durability::Volatile)).as_mut());
            }
        });
        ended.join().unwrap();
    });
    for number in 0..64 {
        assert!(
            block_on(read(&store, number)) == block(number),
            "block {number}"
        );
    }
}

#[test]
fn each_waiter_is_woken_by_its_own_completion() {
    let (_folder, store) = direct(64);
    worker::run(async {
        let mut first = pin!(write(&store, 1, Durability::Volatile));
        // Polled by somebody who will never wake: the waker of the last poll counts.
        assert!(poll_once(first.as_mut()).is_pending());
        first.await.unwrap();
        let mut reads: Vec<_> = (0..8).map(|_| Box::pin(read(&store, 1))).collect();
        while !reads.is_empty() {
            // Ends only if each of them wakes this one.
            poll_fn(|context| {
                let before = reads.len();
                reads.retain_mut(|read| read.as_mut().poll(context).is_pending());
                if reads.len() < before {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            })
            .await;
        }
    });
}

#[test]
fn direct_writes_of_less_than_a_unit_are_refused_and_write_nothing() {
    let (_folder, store) = direct(2);
    let unit = store.write_unit();
    assert!(
        unit.is_power_of_two() && (2..=4096).contains(&unit),
        "{unit}"
    );
    worker::run(async {
        write(&store, 0, Durability::Volatile).await.unwrap();
        let half = usize::try_from(unit / 2).unwrap();
        for (offset, len) in [(0, half), (unit / 2, 4096), (1, 4096)] {
            let refused = store
                .write_at(IoBuf::zeroed(len), offset, Durability::Volatile)
                .await
                .1;
            let Err(error @ StoreError::Unaligned { .. }) = refused else {
                panic!("{refused:?}");
            };
            assert!(
                error
                    .to_string()
                    .contains(&format!("units of {unit} bytes")),
                "{error}"
            );
        }
        assert!(read(&store, 0).await == block(0));
        assert!(read(&store, 1).await == [0; 4096]);
    });
}

#[test]
fn the_way_a_file_is_reached_is_told_in_words() {
    let words: Vec<_> = stores(1).iter().map(|(_, store)| store.access()).collect();
    assert_eq!(words[0], device::IN_MEMORY);
    assert!(
        words[1].starts_with("page cache: cached reads and writes inline"),
        "{}",
        words[1]
    );
    assert!(words[2].starts_with("O_DIRECT: "), "{}", words[2]);
}

#[test]
fn what_has_no_direct_access_is_refused_by_name() {
    // Of /proc, whose files have neither direct access nor another file system's excuse.
    let refused = FileStore::open_file("/proc/version", Access::ReadOnly, Caching::Direct).err();
    let Some(error @ StoreError::NotDirect { .. }) = refused else {
        panic!("{refused:?}");
    };
    let words = error.to_string();
    assert!(
        words.contains("/proc/version") && words.contains("--direct"),
        "{words}"
    );
}

#[test]
fn direct_writes_are_seen_by_a_later_cached_opener_and_the_other_way() {
    let folder = disk_folder();
    let path = folder.path().join("data");
    let open = |caching| FileStore::open_file(&path, Access::Writable, caching).unwrap();
    std::fs::write(&path, [0; 8192]).unwrap();
    for round in 0..4 {
        let caching = if round % 2 == 0 {
            Caching::Direct
        } else {
            Caching::PageCache
        };
        let store = open(caching);
        if round > 0 {
            assert!(
                worker::run(read(&store, 1)) == block((round - 1) * 7 + 1),
                "round {round}"
            );
        }
        let bytes = block(round * 7 + 1);
        let written = store.write_at(IoBuf::copy_of(&bytes), BLOCK, Durability::Volatile);
        worker::run(written).1.unwrap();
    }
}

#[test]
fn a_store_that_stalls_holds_up_no_other_on_its_worker() {
    let folder = disk_folder();
    let stalling = FaultDisk::over(FileDirectory::open(folder.path()).unwrap(), 1);
    let stalled = block_on(stalling.directory("layer").create("data", 64 * BLOCK)).unwrap();
    let (_folder, store) = direct(64);
    worker::run(async {
        let gate = stalling.hold(When::operation(Operation::Write).always(), Hold::Before);
        let stuck = join_all((0..64).map(|number| {
            stalled.write_at(
                IoBuf::copy_of(&block(number)),
                number * BLOCK,
                Durability::Volatile,
            )
        }));
        let mut stuck = pin!(stuck);
        assert!(poll_once(stuck.as_mut()).is_pending());
        assert_eq!(gate.held(), 64);
        for number in 0..64 {
            write(&store, number, Durability::Volatile).await.unwrap();
            assert!(read(&store, number).await == block(number));
        }
        gate.release();
        for (_, result) in stuck.await {
            result.expect("it was only late");
        }
    });
}

#[test]
fn a_full_disk_refuses_direct_writes_and_loses_nothing() {
    if !is_root("a full disk past the page cache is left out: mounting one takes root") {
        return;
    }
    let small = MadeFileSystem::mount(&["mkfs.ext4", "-q", "-b", "4096"], 4 << 20);
    let directory = FileDirectory::open(small.path()).unwrap();
    let directory = directory.caching(Caching::Direct);
    let store = block_on(directory.create("data", 2048 * BLOCK)).unwrap();
    worker::run(async {
        let mut full = 0;
        let refused = loop {
            match write(&store, full, Durability::Volatile).await {
                Ok(()) => full += 1,
                Err(refused) => break refused,
            }
        };
        assert!(refused.is_no_space(), "{refused}");
        assert_eq!(refused.place().offset, full * BLOCK);
        for number in 0..full {
            assert!(
                read(&store, number).await == block(number),
                "block {number}"
            );
        }
        store.punch(0, 8 * BLOCK).await.unwrap();
        write(&store, full, Durability::Durable)
            .await
            .expect("there is space again");
        assert!(read(&store, full).await == block(full));
    });
}

#[test]
fn data_on_xfs_gets_its_space_in_large_pieces_and_other_files_do_not() {
    if !is_root("extent sizes on xfs are left out: mounting one takes root") {
        return;
    }
    let made = MadeFileSystem::mount(&["mkfs.xfs", "-q"], 512 << 20);
    let directory = FileDirectory::open(made.path()).unwrap();
    let directory = directory.with_large_extents("data");
    let space = |name: &str| {
        let store = block_on(directory.create(name, 64 << 20)).unwrap();
        block_on(write(&store, 5000, Durability::Durable)).unwrap();
        assert!(block_on(read(&store, 5000)) == block(5000));
        assert!(block_on(read(&store, 5001)) == [0; 4096]);
        std::fs::metadata(store.path()).unwrap().blocks() * 512
    };
    assert_eq!(space("data"), 1 << 20);
    assert!(space("meta") < 1 << 20);
}
