//! What the fault disk keeps, loses and tears: the tests of the tests' own ground.

use std::collections::BTreeSet;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use futures_executor::block_on;
use proptest::prelude::*;
use sealvol_store::fault::{
    Failure, Fault, FaultDisk, FaultStore, Hold, Outcome, Record, SECTOR, When,
};
use sealvol_store::{Access, Directory, Durability, IoBuf, Operation, Store, StoreError};

const SECTORS: usize = 64;
const SECTOR_LEN: usize = 512;
const LEN: u64 = SECTORS as u64 * SECTOR;

/// A disk with a durable file `data` of `SECTORS` sectors that hold `byte`.
fn disk_with(byte: u8) -> (FaultDisk, FaultStore) {
    let disk = FaultDisk::new(1);
    let directory = disk.directory("layer");
    let store = block_on(directory.create("data", LEN)).unwrap();
    write(&store, 0, &[byte; SECTORS * SECTOR_LEN]).unwrap();
    block_on(store.sync()).unwrap();
    block_on(directory.sync()).unwrap();
    disk.forget_journal();
    (disk, store)
}

fn write(store: &impl Store, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
    block_on(store.write_at(IoBuf::copy_of(bytes), offset, Durability::Volatile)).1
}

fn write_durably(store: &impl Store, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
    block_on(store.write_at(IoBuf::copy_of(bytes), offset, Durability::Durable)).1
}

fn read(store: &impl Store) -> Vec<u8> {
    let len = usize::try_from(store.len()).unwrap();
    let (buf, result) = block_on(store.read_at(IoBuf::for_overwrite(len), 0));
    result.unwrap();
    buf.to_vec()
}

fn reopen(disk: &FaultDisk) -> FaultStore {
    block_on(disk.directory("layer").open("data", Access::Writable)).unwrap()
}

/// The one byte that each sector holds; a sector is never torn within.
fn bytes_of_sectors(content: &[u8]) -> Vec<u8> {
    let of_sector = |sector: &[u8]| {
        assert!(
            sector.iter().all(|byte| *byte == sector[0]),
            "a sector was torn"
        );
        sector[0]
    };
    content.chunks(SECTOR_LEN).map(of_sector).collect()
}

/// Nothing but a proof for the compiler: whoever tests on many threads needs it.
fn sendable<T: Send>(future: T) -> T {
    future
}

/// What each of many seeds leaves of the same unsynced work.
fn after_crashes(work: impl Fn(&FaultDisk, &FaultStore)) -> Vec<Vec<u8>> {
    (0..200)
        .map(|seed| {
            let (disk, store) = disk_with(1);
            work(&disk, &store);
            block_on(sendable(disk.crash(seed))).unwrap();
            bytes_of_sectors(&read(&reopen(&disk)))
        })
        .collect()
}

fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn a_crash_leaves_of_each_sector_any_value_since_the_last_sync() {
    let outcomes = after_crashes(|_, store| {
        for byte in [2, 3, 4] {
            write(store, 0, &[byte; SECTORS / 2 * SECTOR_LEN]).unwrap();
        }
    });
    let (written, untouched) = (
        |it: &Vec<u8>| it[..32].to_vec(),
        |it: &Vec<u8>| it[32..].to_vec(),
    );
    let survivors: BTreeSet<u8> = outcomes.iter().flat_map(written).collect();
    assert_eq!(survivors, BTreeSet::from([1, 2, 3, 4]));
    assert!(outcomes.iter().all(|it| untouched(it) == [1; 32]));
    assert!(
        outcomes.iter().any(|it| written(it) == [1; 32]),
        "never was all lost"
    );
    assert!(
        outcomes.iter().any(|it| !written(it).contains(&1)),
        "never did all survive"
    );
    let torn = outcomes
        .iter()
        .filter(|it| written(it).contains(&1) && written(it) != [1; 32]);
    assert!(torn.count() > 50, "hardly ever was a write torn");
    // A later sector may survive where an earlier one is lost, and the other way round.
    for (lost, kept) in [(0, 31), (31, 0)] {
        assert!(outcomes.iter().any(|it| it[lost] == 1 && it[kept] != 1));
    }
}

#[test]
fn what_was_synced_survives_every_crash() {
    let outcomes = after_crashes(|_, store| {
        write(store, 0, &[2; SECTORS * SECTOR_LEN]).unwrap();
        block_on(store.sync()).unwrap();
        write(store, 0, &[3; SECTOR_LEN]).unwrap();
    });
    assert!(
        outcomes
            .iter()
            .all(|it| it[1..] == [2; SECTORS - 1] && [2, 3].contains(&it[0]))
    );
}

#[test]
fn a_durable_write_survives_and_takes_nothing_else_with_it() {
    let outcomes = after_crashes(|_, store| {
        write(store, 0, &[2; 4 * SECTOR_LEN]).unwrap();
        write_durably(store, SECTOR, &[3; SECTOR_LEN]).unwrap();
    });
    assert!(outcomes.iter().all(|it| it[1] == 3));
    assert!(outcomes.iter().any(|it| it[0] == 1) && outcomes.iter().any(|it| it[0] == 2));
}

#[test]
fn an_older_punch_never_takes_a_durable_write() {
    let outcomes = after_crashes(|_, store| {
        block_on(store.punch(0, LEN / 2)).unwrap();
        write_durably(store, SECTOR, &[3; SECTOR_LEN]).unwrap();
        assert_eq!(bytes_of_sectors(&read(store))[..3], [0, 3, 0]);
    });
    assert!(outcomes.iter().all(|it| it[1] == 3));
    let (old, punched): (BTreeSet<u8>, BTreeSet<u8>) = (
        outcomes.iter().map(|it| it[0]).collect(),
        outcomes.iter().map(|it| it[31]).collect(),
    );
    assert_eq!(
        (old, punched),
        (BTreeSet::from([0, 1]), BTreeSet::from([0, 1]))
    );
    let (disk, store) = disk_with(1);
    block_on(store.punch(0, LEN / 2)).unwrap();
    write_durably(&store, SECTOR, &[3; SECTOR_LEN]).unwrap();
    block_on(store.sync()).unwrap();
    assert_eq!(bytes_of_sectors(&read(&store))[..3], [0, 3, 0]);
    block_on(disk.crash(0)).unwrap();
    assert_eq!(bytes_of_sectors(&read(&reopen(&disk)))[..3], [0, 3, 0]);
}

#[test]
fn a_synced_write_survives_an_older_punch_that_is_still_in_flight() {
    for seed in 0..60 {
        let (disk, store) = disk_with(1);
        let gate = disk.hold(When::operation(Operation::Punch), Hold::After);
        let mut punching = pin!(store.punch(0, LEN / 2));
        assert!(poll(punching.as_mut()).is_pending());
        write(&store, SECTOR, &[3; 512]).unwrap();
        block_on(store.sync()).unwrap();
        assert_eq!(bytes_of_sectors(&read(&store))[..3], [0, 3, 0]);
        gate.release();
        assert!(poll(punching).is_ready());
        block_on(disk.crash(seed)).unwrap();
        assert_eq!(bytes_of_sectors(&read(&reopen(&disk)))[1], 3);
    }
}

#[test]
fn a_write_over_an_unsynced_punch_leaves_old_zero_or_new() {
    let outcomes = after_crashes(|_, store| {
        block_on(store.punch(0, LEN)).unwrap();
        write(store, 0, &[2; SECTOR_LEN]).unwrap();
    });
    let seen: BTreeSet<u8> = outcomes.iter().map(|it| it[0]).collect();
    assert_eq!(seen, BTreeSet::from([0, 1, 2]));
}

#[test]
fn growth_survives_or_not_until_it_is_synced() {
    let lengths: BTreeSet<u64> = (0..50)
        .map(|seed| {
            let (disk, store) = disk_with(1);
            block_on(store.grow(2 * LEN)).unwrap();
            write(&store, LEN, &[2; SECTOR_LEN]).unwrap();
            block_on(disk.crash(seed)).unwrap();
            reopen(&disk).len()
        })
        .collect();
    assert_eq!(lengths, BTreeSet::from([LEN, 2 * LEN]));
    for seed in 0..50 {
        let (disk, store) = disk_with(1);
        block_on(store.grow(2 * LEN)).unwrap();
        block_on(store.sync()).unwrap();
        block_on(disk.crash(seed)).unwrap();
        assert_eq!(reopen(&disk).len(), 2 * LEN);
    }
}

#[test]
fn a_name_is_durable_only_when_its_directory_is_synced() {
    let after = |sync: bool, seed: u64| {
        let disk = FaultDisk::new(0);
        let directory = disk.directory("layer");
        for name in ["old", "gone"] {
            block_on(directory.create(name, 512)).unwrap();
        }
        block_on(directory.sync()).unwrap();
        let new = block_on(directory.create("new", 512)).unwrap();
        block_on(new.sync()).unwrap();
        block_on(directory.rename("old", "renamed")).unwrap();
        block_on(directory.remove("gone")).unwrap();
        if sync {
            block_on(directory.sync()).unwrap();
        }
        block_on(disk.crash(seed)).unwrap();
        block_on(disk.directory("layer").list()).unwrap()
    };
    for seed in 0..20 {
        assert_eq!(after(true, seed), ["new", "renamed"]);
    }
    let seen: BTreeSet<Vec<String>> = (0..200).map(|seed| after(false, seed)).collect();
    let all: BTreeSet<Vec<String>> = [false, true]
        .into_iter()
        .flat_map(|created| [false, true].map(|renamed| (created, renamed)))
        .flat_map(|(created, renamed)| [false, true].map(|removed| (created, renamed, removed)))
        .map(|(created, renamed, removed)| {
            let mut names = vec![if renamed { "renamed" } else { "old" }];
            names.extend(created.then_some("new"));
            names.extend((!removed).then_some("gone"));
            names.sort_unstable();
            names.into_iter().map(str::to_owned).collect()
        })
        .collect();
    assert_eq!(
        seen, all,
        "any subset survives, and a rename is never half done"
    );
}

#[test]
fn syncing_one_directory_covers_no_other() {
    let survived = (0..60).filter(|&seed| {
        let disk = FaultDisk::new(0);
        let (first, second) = (disk.directory("first"), disk.directory("second"));
        block_on(first.create("data", 512)).unwrap();
        block_on(second.create("data", 512)).unwrap();
        block_on(first.sync()).unwrap();
        block_on(disk.crash(seed)).unwrap();
        assert_eq!(block_on(disk.directory("first").list()).unwrap(), ["data"]);
        !block_on(disk.directory("second").list())
            .unwrap()
            .is_empty()
    });
    assert!((1..60).contains(&survived.count()));
}

#[test]
fn a_removed_file_comes_back_with_its_content() {
    let back = (0..40).filter(|&seed| {
        let (disk, store) = disk_with(7);
        block_on(disk.directory("layer").remove("data")).unwrap();
        assert_eq!(disk.used(), 0);
        drop(store);
        block_on(disk.crash(seed)).unwrap();
        let directory = disk.directory("layer");
        match block_on(directory.open("data", Access::ReadOnly)) {
            Ok(store) => {
                assert_eq!(bytes_of_sectors(&read(&store)), [7; SECTORS]);
                assert_eq!(disk.used(), LEN);
                true
            }
            Err(error) => {
                assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
                false
            }
        }
    });
    assert!((1..40).contains(&back.count()));
}

#[test]
fn a_failed_sync_loses_some_shows_all_and_is_forgotten() {
    let (disk, store) = disk_with(1);
    write(&store, 0, &[2; SECTORS * SECTOR_LEN]).unwrap();
    disk.inject(When::operation(Operation::Sync), Fault::Fail(Failure::Io));
    let failed = block_on(store.sync()).unwrap_err();
    assert!(matches!(failed, StoreError::Io { .. }), "{failed}");
    block_on(store.sync()).expect("the kernel reports it once");
    assert_eq!(
        bytes_of_sectors(&read(&store)),
        [2; SECTORS],
        "the cache shows all as new"
    );
    block_on(store.discard_cache()).unwrap();
    let on_disk = bytes_of_sectors(&read(&store));
    let lost = on_disk.iter().filter(|&&byte| byte == 1).count();
    assert!(
        (1..SECTORS).contains(&lost),
        "{lost} of {SECTORS} sectors are lost"
    );
    block_on(disk.crash(5)).unwrap();
    assert_eq!(
        bytes_of_sectors(&read(&reopen(&disk))),
        on_disk,
        "no later sync wrote them"
    );
}

#[test]
fn a_write_after_a_failed_sync_counts_again() {
    let (disk, store) = disk_with(1);
    write(&store, 0, &[2; SECTORS * SECTOR_LEN]).unwrap();
    disk.inject(When::operation(Operation::Sync), Fault::Fail(Failure::Io));
    block_on(store.sync()).unwrap_err();
    write(&store, 0, &[3; SECTORS * SECTOR_LEN]).unwrap();
    block_on(store.sync()).unwrap();
    block_on(disk.crash(5)).unwrap();
    assert_eq!(bytes_of_sectors(&read(&reopen(&disk))), [3; SECTORS]);
}

#[test]
fn a_failed_durable_write_is_shown_and_may_be_lost() {
    let outcomes = after_crashes(|disk, store| {
        disk.inject(When::operation(Operation::Write), Fault::Fail(Failure::Io));
        write_durably(store, 0, &[2; 4 * SECTOR_LEN]).unwrap_err();
        assert_eq!(bytes_of_sectors(&read(store))[..4], [2; 4]);
        block_on(store.sync()).expect("nothing is dirty");
    });
    assert!(outcomes.iter().any(|it| it[..4].contains(&1)));
}

#[test]
fn a_failing_write_leaves_a_prefix_or_torn_sectors() {
    let mut seen = BTreeSet::new();
    for seed in 0..60 {
        let disk = FaultDisk::new(seed);
        let store = block_on(disk.directory("layer").create("data", LEN)).unwrap();
        disk.inject(
            When::operation(Operation::Write),
            Fault::FailPartly(Failure::Io),
        );
        write(&store, 0, &[2; SECTORS * SECTOR_LEN]).unwrap_err();
        let content = read(&store);
        let written = content.iter().filter(|&&byte| byte == 2).count();
        let is_prefix = content[..written].iter().all(|&byte| byte == 2);
        seen.insert(if is_prefix { "short" } else { "torn" });
        if !is_prefix {
            bytes_of_sectors(&content);
        }
    }
    assert_eq!(seen, BTreeSet::from(["short", "torn"]));
}

#[test]
fn faults_meet_what_they_are_meant_for() {
    let (disk, store) = disk_with(1);
    let when = When::operation(Operation::Write)
        .file("layer/data")
        .range(SECTOR..2 * SECTOR);
    disk.inject(when.nth(2).times(2), Fault::Fail(Failure::NoSpace));
    let results: Vec<bool> = [1, 0, 1, 2, 1, 1]
        .map(|sector| write(&store, sector * SECTOR, &[9; 512]).is_ok())
        .into();
    assert_eq!(results, [true, true, false, true, false, true]);
    disk.inject(When::any().file("meta").always(), Fault::Fail(Failure::Io));
    block_on(store.sync()).expect("another file");
    let refused = block_on(disk.directory("layer").create("meta", 512)).err();
    assert!(
        matches!(refused, Some(StoreError::Io { .. })),
        "{refused:?}"
    );
    assert_eq!(block_on(disk.directory("layer").list()).unwrap(), ["data"]);
}

#[test]
fn a_sync_covers_only_what_ended_before_it_began() {
    let survives = |hold_write: bool, seed: u64| {
        let (disk, store) = disk_with(1);
        let when = When::operation(if hold_write {
            Operation::Write
        } else {
            Operation::Sync
        });
        let gate = disk.hold(
            when,
            if hold_write {
                Hold::After
            } else {
                Hold::Before
            },
        );
        if hold_write {
            // The write is in the cache, but nobody was told when the sync began.
            let mut writing =
                pin!(store.write_at(IoBuf::copy_of(&[2; 512]), 0, Durability::Volatile));
            assert!(poll(writing.as_mut()).is_pending());
            assert_eq!(gate.held(), 1);
            assert_eq!(read(&store)[0], 2);
            block_on(store.sync()).unwrap();
            gate.release();
            assert!(poll(writing).is_ready());
        } else {
            // The sync had begun when the write was made.
            let mut syncing = pin!(store.sync());
            assert!(poll(syncing.as_mut()).is_pending());
            write(&store, 0, &[2; 512]).unwrap();
            gate.release();
            assert!(matches!(poll(syncing), Poll::Ready(Ok(()))));
        }
        assert_eq!(gate.held(), 0);
        block_on(disk.crash(seed)).unwrap();
        read(&reopen(&disk))[0] == 2
    };
    for hold_write in [true, false] {
        let survived = (0..60).filter(|&seed| survives(hold_write, seed)).count();
        assert!((1..60).contains(&survived), "{survived} of 60 survived");
    }
}

#[test]
fn after_the_power_is_cut_nothing_works_until_opened_again() {
    let (disk, store) = disk_with(1);
    let directory = disk.directory("layer");
    let gate = disk.hold(When::operation(Operation::Sync), Hold::Before);
    let mut syncing = pin!(store.sync());
    assert!(poll(syncing.as_mut()).is_pending());
    disk.cut_power_at(2);
    write(&store, 0, &[2; 512]).unwrap();
    assert!(disk.is_powered());
    let cut = write(&store, 0, &[3; 512]);
    assert!(matches!(cut, Err(StoreError::PowerLost { .. })), "{cut:?}");
    assert!(!disk.is_powered());
    assert!(matches!(
        poll(syncing),
        Poll::Ready(Err(StoreError::PowerLost { .. }))
    ));
    assert_eq!(gate.held(), 0);
    let is_dead = || {
        let (_, read) = block_on(store.read_at(IoBuf::zeroed(512), 0));
        matches!(read, Err(StoreError::PowerLost { .. }))
            && matches!(block_on(store.sync()), Err(StoreError::PowerLost { .. }))
            && matches!(
                block_on(directory.list()),
                Err(StoreError::PowerLost { .. })
            )
            && matches!(
                block_on(directory.sync()),
                Err(StoreError::PowerLost { .. })
            )
    };
    assert!(is_dead());
    block_on(disk.restart(0)).unwrap();
    assert!(is_dead(), "handles of the last boot stay dead");
    let again = reopen(&disk);
    assert!([1, 2, 3].contains(&read(&again)[0]));
    write(&again, 0, &[4; 512]).unwrap();
}

#[test]
fn the_write_in_flight_as_the_power_goes_may_survive_in_part() {
    let outcomes = after_crashes(|disk, store| {
        disk.cut_power_at(1);
        write_durably(store, 0, &[2; 8 * SECTOR_LEN]).unwrap_err();
    });
    let survivors = outcomes
        .iter()
        .map(|it| it[..8].iter().filter(|&&byte| byte == 2).count());
    let survivors: BTreeSet<usize> = survivors.collect();
    assert!(survivors.contains(&0) && survivors.contains(&8) && survivors.len() > 4);
}

#[test]
fn the_journal_tells_what_ended_before_what_began() {
    let (disk, store) = disk_with(1);
    write(&store, 512, &[2; 512]).unwrap();
    block_on(store.sync()).unwrap();
    write_durably(&store, 0, &[3; 512]).unwrap();
    write(&store, LEN, &[4; 512]).unwrap_err();
    disk.inject(When::any(), Fault::Fail(Failure::Io));
    block_on(store.sync()).unwrap_err();
    let journal = disk.journal();
    let words = |it: &Record| (it.operation, it.offset, it.len, it.durable, it.outcome);
    assert_eq!(
        journal.iter().map(words).collect::<Vec<_>>(),
        [
            (Operation::Write, 512, 512, false, Outcome::Done),
            (Operation::Sync, 0, 0, false, Outcome::Done),
            (Operation::Write, 0, 512, true, Outcome::Done),
            (Operation::Sync, 0, 0, false, Outcome::Failed),
        ],
        "what the caller got wrong never reaches the disk"
    );
    assert!(
        journal
            .iter()
            .all(|record| record.path.ends_with("disk/layer/data"))
    );
    assert!(
        journal
            .windows(2)
            .all(|pair| pair[0].ended_before(&pair[1]))
    );
    assert!(!journal[1].ended_before(&journal[0]));
}

#[test]
fn space_is_given_back_by_punching_and_removing() {
    let disk = FaultDisk::new(0);
    disk.set_capacity(Some(16 << 10));
    let directory = disk.directory("layer");
    let store = block_on(directory.create("data", 1 << 20)).unwrap();
    write(&store, 4096, &[1; 8192]).unwrap();
    assert_eq!(disk.used(), 8192);
    block_on(store.allocate(0, 8192)).unwrap();
    assert_eq!(disk.used(), 12288);
    let refused = write(&store, 16 << 10, &[2; 8192]).unwrap_err();
    assert!(refused.is_no_space());
    assert_eq!(disk.used(), 16 << 10, "the part that fits is written");
    block_on(store.punch(2048, 12 << 10)).unwrap();
    assert_eq!(disk.used(), 8192, "two whole blocks come free");
    block_on(directory.remove("data")).unwrap();
    assert_eq!(disk.used(), 0);
}

/// Operations of a random history; the crash comes at any of them.
#[derive(Clone, Debug)]
enum Step {
    Write {
        sector: usize,
        count: usize,
        durably: bool,
    },
    Punch {
        sector: usize,
        count: usize,
    },
    Sync,
    FailSync,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range =
        (0..SECTORS, 1..10usize).prop_map(|(sector, count)| (sector, count.min(SECTORS - sector)));
    let step = prop_oneof![
        6 => (range.clone(), prop::bool::weighted(0.2))
            .prop_map(|((sector, count), durably)| Step::Write { sector, count, durably }),
        2 => range.prop_map(|(sector, count)| Step::Punch { sector, count }),
        2 => Just(Step::Sync),
        1 => Just(Step::FailSync),
    ];
    prop::collection::vec(step, 1..30)
}

/// What a reader sees of a sector, and what may be on the disk after a crash.
#[derive(Clone)]
struct Possible {
    shown: u8,
    durable: BTreeSet<u8>,
    unsynced: BTreeSet<u8>,
}

impl Possible {
    fn change(&mut self, byte: u8) {
        self.shown = byte;
        self.unsynced.insert(byte);
    }

    fn settle(&mut self) {
        if !self.unsynced.is_empty() {
            self.durable = BTreeSet::from([self.shown]);
            self.unsynced.clear();
        }
    }

    /// A failed sync or write: the newest may be there, and no later sync sees to it.
    fn lose(&mut self) {
        if !self.unsynced.is_empty() {
            self.durable.insert(self.shown);
            self.unsynced.clear();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// The rules once more, as plainly as can be: a set of bytes for each sector.
    #[test]
    fn a_crash_leaves_only_what_the_contract_allows(steps in steps(), cut in 1..40u64, seed: u64) {
        let (disk, store) = disk_with(1);
        let old = Possible { shown: 1, durable: BTreeSet::from([1]), unsynced: BTreeSet::new() };
        let mut sectors = vec![old; SECTORS];
        disk.cut_power_at(cut);
        for (step, byte) in steps.into_iter().zip(2..) {
            let result = match step.clone() {
                Step::Write { sector, count, durably } => {
                    let bytes = vec![byte; count * SECTOR_LEN];
                    let offset = sector as u64 * SECTOR;
                    if durably { write_durably(&store, offset, &bytes) } else { write(&store, offset, &bytes) }
                }
                Step::Punch { sector, count } =>
                    block_on(store.punch(sector as u64 * SECTOR, count as u64 * SECTOR)),
                Step::Sync => block_on(store.sync()),
                Step::FailSync => {
                    disk.inject(When::operation(Operation::Sync), Fault::Fail(Failure::Io));
                    block_on(store.sync())
                }
            };
            let in_flight = !disk.is_powered();
            match step {
                Step::Write { sector, count, durably } => for it in &mut sectors[sector..][..count] {
                    it.change(byte);
                    if durably && !in_flight { it.settle(); }
                },
                Step::Punch { sector, count } => for it in &mut sectors[sector..][..count] {
                    it.change(0);
                },
                Step::Sync if !in_flight => sectors.iter_mut().for_each(Possible::settle),
                Step::FailSync if !in_flight => sectors.iter_mut().for_each(Possible::lose),
                Step::Sync | Step::FailSync => {}
            }
            if in_flight {
                prop_assert!(matches!(result, Err(StoreError::PowerLost { .. })), "{:?}", result);
                break;
            }
            let shown: Vec<u8> = sectors.iter().map(|it| it.shown).collect();
            prop_assert_eq!(bytes_of_sectors(&read(&store)), shown);
        }
        block_on(disk.crash(seed)).unwrap();
        let left = bytes_of_sectors(&read(&reopen(&disk)));
        for (sector, (byte, it)) in left.iter().zip(&sectors).enumerate() {
            let allowed = it.durable.contains(byte) || it.unsynced.contains(byte);
            prop_assert!(allowed, "sector {} holds {}: {:?} {:?}", sector, byte, it.durable, it.unsynced);
        }
        // And it is a disk like any other afterwards.
        let store = reopen(&disk);
        write(&store, 0, &[200; SECTORS * SECTOR_LEN]).unwrap();
        block_on(store.sync()).unwrap();
        block_on(disk.crash(seed)).unwrap();
        prop_assert_eq!(bytes_of_sectors(&read(&reopen(&disk))), vec![200; SECTORS]);
    }

    #[test]
    fn the_same_seed_leaves_the_same_disk(steps in steps(), seed: u64) {
        let run = || {
            let (disk, store) = disk_with(1);
            for (step, byte) in steps.iter().zip(2..) {
                match *step {
                    Step::Write { sector, count, .. } =>
                        write(&store, sector as u64 * SECTOR, &vec![byte; count * SECTOR_LEN]).unwrap(),
                    Step::Punch { sector, count } =>
                        block_on(store.punch(sector as u64 * SECTOR, count as u64 * SECTOR)).unwrap(),
                    Step::Sync => block_on(store.sync()).unwrap(),
                    Step::FailSync => {
                        disk.inject(When::operation(Operation::Sync), Fault::Fail(Failure::Io));
                        block_on(store.sync()).unwrap_err();
                    }
                }
            }
            block_on(disk.crash(seed)).unwrap();
            read(&reopen(&disk))
        };
        prop_assert_eq!(run(), run());
    }
}
