//! Epochs on one thread. Several threads: `tests/schedules`.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};

use crate::epoch::Epochs;

#[test]
fn grace_waits_for_earlier_readers_only() {
    let epochs = Epochs::default();
    let mut context = Context::from_waker(Waker::noop());
    let early = epochs.enter();
    let mut grace = pin!(epochs.grace());
    assert!(grace.as_mut().poll(&mut context).is_pending());
    let late = epochs.enter();
    assert!(grace.as_mut().poll(&mut context).is_pending());
    drop(early);
    assert!(grace.as_mut().poll(&mut context).is_ready());
    drop(late);
    let mut again = pin!(epochs.grace());
    assert!(again.as_mut().poll(&mut context).is_ready());
}
