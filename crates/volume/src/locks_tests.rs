//! Range locks on one thread. Several threads: `tests/schedules`.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use crate::locks::{Guard, Lock, Mode, RangeLocks};

fn poll<'a>(lock: &mut Lock<'a>) -> Option<Guard<'a>> {
    match Pin::new(lock).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(guard) => Some(guard),
        Poll::Pending => None,
    }
}

#[test]
fn shared_ranges_overlap_and_exclusive_ones_do_not() {
    let locks = RangeLocks::default();
    let first = poll(&mut locks.lock(0..10, Mode::Shared)).unwrap();
    let second = poll(&mut locks.lock(5..15, Mode::Shared)).unwrap();
    let mut third = locks.lock(9..10, Mode::Exclusive);
    assert!(poll(&mut third).is_none());
    drop(first);
    assert!(poll(&mut third).is_none());
    drop(second);
    assert!(poll(&mut third).is_some());
}

#[test]
fn a_later_request_does_not_overtake_an_earlier_one_that_it_conflicts_with() {
    let locks = RangeLocks::default();
    let reader = poll(&mut locks.lock(0..1, Mode::Shared)).unwrap();
    let mut writer = locks.lock(0..2, Mode::Exclusive);
    assert!(poll(&mut writer).is_none());
    let mut late = locks.lock(1..2, Mode::Shared);
    assert!(poll(&mut late).is_none(), "overtook the waiting writer");
    assert!(
        poll(&mut locks.lock(2..3, Mode::Exclusive)).is_some(),
        "no conflict, no wait"
    );
    drop(reader);
    let writer = poll(&mut writer).unwrap();
    assert!(poll(&mut late).is_none());
    drop(writer);
    assert!(poll(&mut late).is_some());
}

#[test]
fn a_wait_that_is_given_up_blocks_nobody() {
    let locks = RangeLocks::default();
    let held = poll(&mut locks.lock(0..4, Mode::Shared)).unwrap();
    let mut given_up = locks.lock(0..4, Mode::Exclusive);
    assert!(poll(&mut given_up).is_none());
    let mut behind = locks.lock(3..4, Mode::Shared);
    assert!(poll(&mut behind).is_none());
    drop(given_up);
    assert!(poll(&mut behind).is_some());
    drop(held);
    assert!(
        poll(&mut locks.lock(0..4, Mode::Exclusive)).is_some(),
        "something is still held or waits"
    );
}

#[test]
fn a_grace_waits_for_those_that_hold_a_lock_and_for_nobody_else() {
    let locks = RangeLocks::default();
    let mut context = Context::from_waker(Waker::noop());
    let held = poll(&mut locks.lock(0..4, Mode::Exclusive)).unwrap();
    let mut behind = locks.lock(0..4, Mode::Shared);
    assert!(poll(&mut behind).is_none());
    let mut grace = std::pin::pin!(locks.grace());
    assert!(grace.as_mut().poll(&mut context).is_pending());
    let late = poll(&mut locks.lock(5..6, Mode::Exclusive)).unwrap();
    assert!(grace.as_mut().poll(&mut context).is_pending());
    drop(held);
    drop(poll(&mut behind).unwrap());
    assert!(grace.as_mut().poll(&mut context).is_ready());
    drop(late);
}

#[test]
fn a_grant_that_nobody_polled_is_given_back() {
    let locks = RangeLocks::default();
    let held = poll(&mut locks.lock(0..4, Mode::Exclusive)).unwrap();
    let mut granted = locks.lock(0..4, Mode::Exclusive);
    assert!(poll(&mut granted).is_none());
    drop(held);
    drop(granted);
    assert!(poll(&mut locks.lock(0..4, Mode::Exclusive)).is_some());
}
