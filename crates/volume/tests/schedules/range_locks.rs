//! Range locks: exclusion, order, and that whoever waits is woken.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll, Waker};

use shuttle::future::block_on;
use shuttle::sync::Barrier;
use shuttle::thread;

use crate::locks::{Guard, Lock, Mode, RangeLocks};
use crate::{perhaps_others, under_schedules};

/// Who is in each block: how many share it, how many have it for themselves.
#[derive(Default)]
struct Inside(Mutex<[(u32, u32); 4]>);

impl Inside {
    fn change(&self, blocks: &Range<u64>, mode: Mode, by: impl Fn(&mut u32)) {
        let mut inside = self.0.lock().unwrap();
        for block in blocks.clone() {
            let (shared, exclusive) = &mut inside[usize::try_from(block).unwrap()];
            by(match mode {
                Mode::Shared => shared,
                Mode::Exclusive => exclusive,
            });
            let all = (*shared, *exclusive);
            assert!(all.1 == 0 || all == (0, 1), "{all:?} in block {block}");
        }
    }

    fn work(&self, blocks: &Range<u64>, mode: Mode) {
        self.change(blocks, mode, |count| *count += 1);
        perhaps_others();
        self.change(blocks, mode, |count| *count -= 1);
    }
}

/// Asks for a lock; it keeps its place in the order from here on.
fn ask<'a>(locks: &'a RangeLocks, blocks: Range<u64>, mode: Mode) -> Lock<'a> {
    let mut lock = locks.lock(blocks, mode);
    let asked = Pin::new(&mut lock).poll(&mut Context::from_waker(Waker::noop()));
    assert!(asked.is_pending(), "it has nobody to wait for");
    lock
}

fn have<'a>(locks: &'a RangeLocks, blocks: Range<u64>, mode: Mode) -> Guard<'a> {
    let mut lock = locks.lock(blocks, mode);
    match Pin::new(&mut lock).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(guard) => guard,
        Poll::Pending => panic!("somebody is in its way"),
    }
}

#[test]
fn nobody_is_in_a_block_beside_one_who_has_it_exclusively_and_everybody_gets_in() {
    under_schedules(|| {
        let (locks, inside) = (RangeLocks::default(), Inside::default());
        let (locks, inside) = (&locks, &inside);
        let plans = [
            [(0..2, Mode::Shared), (1..4, Mode::Exclusive)],
            [(1..3, Mode::Exclusive), (0..4, Mode::Shared)],
            [(0..4, Mode::Exclusive), (2..3, Mode::Shared)],
        ];
        thread::scope(|scope| {
            for plan in plans {
                scope.spawn(move || {
                    for (blocks, mode) in plan {
                        let _turn = block_on(locks.lock(blocks.clone(), mode));
                        inside.work(&blocks, mode);
                    }
                });
            }
        });
    });
}

#[test]
fn those_that_share_a_block_are_in_it_together() {
    under_schedules(|| {
        let (locks, together) = (RangeLocks::default(), Barrier::new(2));
        let (locks, together) = (&locks, &together);
        thread::scope(|scope| {
            for blocks in [0..3, 2..4] {
                scope.spawn(move || {
                    let _turn = block_on(locks.lock(blocks, Mode::Shared));
                    together.wait();
                });
            }
        });
    });
}

#[test]
fn who_came_first_is_first_and_a_newcomer_overtakes_nobody() {
    under_schedules(|| {
        let (locks, order) = (RangeLocks::default(), Mutex::new(Vec::new()));
        let (locks, order) = (&locks, &order);
        let held = have(locks, 0..4, Mode::Shared);
        let asked = [
            ask(locks, 0..2, Mode::Exclusive),
            ask(locks, 1..3, Mode::Shared),
            ask(locks, 2..4, Mode::Exclusive),
        ];
        thread::scope(|scope| {
            for (number, lock) in asked.into_iter().enumerate() {
                scope.spawn(move || {
                    let _turn = block_on(lock);
                    order.lock().unwrap().push(number);
                });
            }
            scope.spawn(move || {
                let _turn = block_on(locks.lock(0..4, Mode::Shared));
                order.lock().unwrap().push(3);
            });
            drop(held);
        });
        assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3]);
    });
}

#[test]
fn a_wait_that_is_given_up_wakes_those_behind_it() {
    under_schedules(|| {
        let locks = RangeLocks::default();
        let locks = &locks;
        let held = have(locks, 0..2, Mode::Shared);
        let given_up = ask(locks, 0..4, Mode::Exclusive);
        thread::scope(|scope| {
            let behind = [0..1, 3..4].map(|blocks| {
                scope.spawn(move || drop(block_on(locks.lock(blocks, Mode::Shared))))
            });
            scope.spawn(move || drop(given_up));
            for thread in behind {
                thread.join().unwrap();
            }
            // Only now: it was not this one that they waited for.
            drop(held);
        });
    });
}

#[test]
fn a_wait_that_is_given_up_while_its_turn_comes_gives_the_turn_on() {
    under_schedules(|| {
        let locks = RangeLocks::default();
        let locks = &locks;
        let held = have(locks, 0..2, Mode::Exclusive);
        let given_up = ask(locks, 0..2, Mode::Exclusive);
        let behind = ask(locks, 1..2, Mode::Exclusive);
        thread::scope(|scope| {
            scope.spawn(move || drop(held));
            scope.spawn(move || drop(given_up));
            scope.spawn(move || drop(block_on(behind)));
        });
        drop(have(locks, 0..4, Mode::Exclusive));
    });
}

#[test]
fn a_grace_hears_of_every_release() {
    under_schedules(|| {
        let (locks, left) = (RangeLocks::default(), AtomicBool::new(false));
        let (locks, left) = (&locks, &left);
        let held = [
            have(locks, 0..2, Mode::Shared),
            have(locks, 0..2, Mode::Shared),
        ];
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(move || {
                    block_on(locks.grace());
                    assert!(left.load(SeqCst), "over while somebody held a lock");
                });
            }
            let [first, last] = held;
            drop(first);
            left.store(true, SeqCst);
            drop(last);
        });
    });
}

#[test]
fn a_grace_waits_for_whoever_holds_a_lock_and_for_nobody_who_comes_later() {
    under_schedules(|| {
        let (locks, left, over) = (
            RangeLocks::default(),
            AtomicBool::new(false),
            Barrier::new(2),
        );
        let (locks, left, over) = (&locks, &left, &over);
        let held = have(locks, 0..2, Mode::Exclusive);
        thread::scope(|scope| {
            let mut grace = Box::pin(locks.grace());
            let began = grace.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(began.is_pending());
            scope.spawn(move || {
                perhaps_others();
                left.store(true, SeqCst);
                drop(held);
            });
            scope.spawn(move || {
                let _turn = block_on(locks.lock(3..4, Mode::Exclusive));
                over.wait();
            });
            scope.spawn(move || {
                block_on(grace);
                assert!(left.load(SeqCst), "over while somebody held a lock");
                over.wait();
            });
        });
    });
}
