//! Read epochs: space is freed when no read that could still look at it is under way, and not later.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Waker};

use shuttle::future::block_on;
use shuttle::sync::Barrier;
use shuttle::sync::atomic::AtomicBool as SharedBool;
use shuttle::thread;

use crate::epoch::Epochs;
use crate::{perhaps_others, under_schedules};

/// A block: what the map says of it, and whether its space is still there.
#[derive(Default)]
struct Block {
    zero: SharedBool,
    punched: AtomicBool,
}

impl Block {
    fn read(&self, epochs: &Epochs) {
        let _reading = epochs.enter();
        if !self.zero.load(SeqCst) {
            perhaps_others();
            let punched = self.punched.load(SeqCst);
            assert!(!punched, "a read met space that was freed");
        }
    }

    fn punch(&self, epochs: &Epochs) {
        self.zero.store(true, SeqCst);
        block_on(epochs.grace());
        self.punched.store(true, SeqCst);
    }
}

#[test]
fn a_punch_waits_for_every_read_that_found_its_block_in_the_map() {
    under_schedules(|| {
        let (epochs, block) = (Epochs::default(), Block::default());
        let (epochs, block) = (&epochs, &block);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(move || {
                    block.read(epochs);
                    block.read(epochs);
                });
            }
            scope.spawn(move || block.punch(epochs));
        });
    });
}

#[test]
fn a_read_that_enters_during_one_grace_is_waited_for_by_the_next() {
    under_schedules(|| {
        let (epochs, blocks) = (Epochs::default(), [(); 2].map(|()| Block::default()));
        let (epochs, blocks) = (&epochs, &blocks);
        thread::scope(|scope| {
            scope.spawn(move || blocks[1].read(epochs));
            scope.spawn(move || blocks.iter().for_each(|block| block.punch(epochs)));
        });
    });
}

#[test]
fn punches_of_two_layers_at_once_and_one_after_the_other_wait_for_their_own_reads() {
    under_schedules(|| {
        let (epochs, blocks) = (Epochs::default(), [(); 3].map(|()| Block::default()));
        let (epochs, blocks) = (&epochs, &blocks);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(move || blocks.iter().for_each(|block| block.read(epochs)));
            }
            scope.spawn(move || blocks[0].punch(epochs));
            scope.spawn(move || {
                blocks[1].punch(epochs);
                blocks[2].punch(epochs);
            });
        });
    });
}

#[test]
fn a_grace_waits_for_no_read_that_enters_after_it_began() {
    under_schedules(|| {
        let (epochs, over) = (Epochs::default(), Barrier::new(2));
        let (epochs, over) = (&epochs, &over);
        let early = epochs.enter();
        let mut grace = Box::pin(epochs.grace());
        let began = grace.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(began.is_pending());
        thread::scope(|scope| {
            scope.spawn(move || {
                let _late = epochs.enter();
                over.wait();
            });
            scope.spawn(move || drop(early));
            scope.spawn(move || {
                block_on(grace);
                over.wait();
            });
        });
    });
}
