//! Taking and releasing a range, alone and among others; the epochs that reads take part by.

use divan::{Bencher, black_box};

use crate::at_once;
use crate::epoch::Epochs;
use crate::locks::{Mode, RangeLocks};

/// The lock of a 4 KiB write that has to wait for nobody, by one worker and by two at once.
#[divan::bench(threads = [1, 2])]
fn uncontended(bencher: Bencher<'_, '_>) {
    let locks = RangeLocks::default();
    bencher.bench(|| drop(at_once(locks.lock(black_box(7..8), Mode::Shared))));
}

/// The same while so many others hold ranges elsewhere: a deep queue that waits for its disk.
#[divan::bench(args = [1, 8, 32, 256])]
fn beside_others(bencher: Bencher<'_, '_>, others: u64) {
    let locks = RangeLocks::default();
    let _held: Vec<_> = (0..others)
        .map(|other| at_once(locks.lock(other * 10..other * 10 + 1, Mode::Shared)))
        .collect();
    bencher.bench(|| drop(at_once(locks.lock(black_box(7..8), Mode::Exclusive))));
}

/// Nobody holds a lock: what a snapshot's switch meets in the best case.
#[divan::bench]
fn grace_of_the_locks(bencher: Bencher<'_, '_>) {
    let locks = RangeLocks::default();
    bencher.bench(|| at_once(locks.grace()));
}

/// What each read does.
#[divan::bench(threads = [1, 2])]
fn epoch_of_a_read(bencher: Bencher<'_, '_>) {
    let epochs = Epochs::default();
    bencher.bench(|| drop(black_box(&epochs).enter()));
}

/// What a punch does when nobody reads.
#[divan::bench]
fn grace_of_the_epochs(bencher: Bencher<'_, '_>) {
    let epochs = Epochs::default();
    bencher.bench(|| at_once(epochs.grace()));
}
