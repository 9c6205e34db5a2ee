//! Joining commits: a flush is answered by a sync that began after it came, and by nothing else.

use std::future::Future;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::task::{Context, Waker};

use sealvol_volume::{LayerId, Loss, LostStep, VolumeError};
use shuttle::future::block_on;
use shuttle::sync::{Arc, Barrier};
use shuttle::thread;

use crate::joins::{CommitFailed, Commits};
use crate::{perhaps_others, under_schedules};

/// A volume of which nothing is there but when its syncs were.
#[derive(Default)]
struct Volume {
    commits: Commits,
    clock: AtomicU64,
    /// Beginning and end of each sync.
    syncs: Mutex<Vec<(u64, Option<u64>)>>,
    /// The first sync stands still here, twice: when it has begun, and until somebody lets it go on.
    stall: Option<Barrier>,
    /// Whether the first sync fails, and how.
    fault: Option<Fault>,
    recorded: AtomicBool,
}

#[derive(Clone, Copy)]
enum Fault {
    Lost,
    Refused,
}

fn loss() -> Loss {
    Loss {
        layer: LayerId([1; 16]),
        step: LostStep::DataSync,
        cause: "the disk is gone".into(),
    }
}

impl Volume {
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, SeqCst)
    }

    async fn flush(self: Arc<Self>) -> Result<(), VolumeError> {
        let begin = || {
            let volume = Arc::clone(&self);
            thread::spawn(move || volume.sync());
        };
        self.commits.join(begin).await
    }

    /// One commit, as the task that `begin` starts.
    fn sync(&self) {
        let number = {
            let mut syncs = self.syncs.lock().unwrap();
            assert!(
                syncs.iter().all(|(_, end)| end.is_some()),
                "two commits at once"
            );
            syncs.push((self.now(), None));
            syncs.len()
        };
        perhaps_others();
        if let (1, Some(stall)) = (number, &self.stall) {
            stall.wait();
            stall.wait();
        }
        let how = match (number, self.fault) {
            (1, Some(Fault::Refused)) => Err(CommitFailed::Refused("not now".into())),
            (1, Some(Fault::Lost)) => Err(loss().into()),
            _ => Ok(()),
        };
        if let Err(CommitFailed::Lost(loss)) = &how {
            let (first, recorded) = self.commits.lose(loss.clone());
            assert!(first == *loss && !recorded);
            perhaps_others();
            self.recorded.store(true, SeqCst);
            self.commits.recorded();
        }
        self.syncs.lock().unwrap()[number - 1].1 = Some(self.now());
        self.commits.end(how);
    }

    fn syncs(&self) -> usize {
        self.syncs.lock().unwrap().len()
    }
}

fn start(flush: &mut Pin<Box<impl Future>>) {
    let begun = flush.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(begun.is_pending());
}

#[test]
fn every_flush_is_covered_by_a_sync_that_began_after_it_came() {
    under_schedules(|| {
        let volume = Arc::new(Volume::default());
        let clients: Vec<_> = (0..3)
            .map(|_| {
                let volume = Arc::clone(&volume);
                thread::spawn(move || {
                    for _ in 0..2 {
                        let came = volume.now();
                        block_on(Arc::clone(&volume).flush()).unwrap();
                        let syncs = volume.syncs.lock().unwrap();
                        let covers = |&(from, to): &(u64, Option<u64>)| came < from && to.is_some();
                        assert!(syncs.iter().any(covers), "came at {came}: {syncs:?}");
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap();
        }
        assert!(volume.syncs() <= 6, "more syncs than flushes");
    });
}

#[test]
fn a_stalled_sync_answers_none_that_came_later_and_those_share_the_next() {
    under_schedules(|| {
        let volume = Arc::new(Volume {
            stall: Some(Barrier::new(2)),
            ..Volume::default()
        });
        let stall = volume.stall.as_ref().unwrap();
        let mut before = Box::pin(Arc::clone(&volume).flush());
        start(&mut before);
        stall.wait();
        let mut late = [(); 2].map(|()| Box::pin(Arc::clone(&volume).flush()));
        late.iter_mut().for_each(start);
        assert_eq!(volume.syncs(), 1);
        let late = late.map(|flush| {
            let volume = Arc::clone(&volume);
            thread::spawn(move || {
                block_on(flush).unwrap();
                assert_eq!(volume.syncs(), 2, "one for both, and not the first");
            })
        });
        stall.wait();
        block_on(before).unwrap();
        for flush in late {
            flush.join().unwrap();
        }
    });
}

#[test]
fn a_loss_is_told_to_everybody_and_to_nobody_before_it_is_recorded() {
    under_schedules(|| {
        let volume = Arc::new(Volume {
            fault: Some(Fault::Lost),
            ..Volume::default()
        });
        let refused = |volume: &Volume, answer| {
            assert!(matches!(answer, Err(VolumeError::Failed(_))));
            assert!(volume.recorded.load(SeqCst), "told before it was recorded");
        };
        let clients = [(); 2].map(|()| {
            let volume = Arc::clone(&volume);
            thread::spawn(move || refused(&volume, block_on(Arc::clone(&volume).flush())))
        });
        let writer = {
            let volume = Arc::clone(&volume);
            thread::spawn(move || match block_on(volume.commits.check()) {
                Ok(()) => {}
                answer => refused(&volume, answer),
            })
        };
        for client in clients {
            client.join().unwrap();
        }
        writer.join().unwrap();
        assert!(volume.commits.lost().is_some());
        assert_eq!(volume.syncs(), 1, "tried again");
        refused(&volume, block_on(volume.commits.check()));
    });
}

#[test]
fn a_refused_commit_is_no_answer_for_those_that_came_during_it() {
    under_schedules(|| {
        let volume = Arc::new(Volume {
            stall: Some(Barrier::new(2)),
            fault: Some(Fault::Refused),
            ..Volume::default()
        });
        let stall = volume.stall.as_ref().unwrap();
        let mut before = Box::pin(Arc::clone(&volume).flush());
        start(&mut before);
        stall.wait();
        let mut late = Box::pin(Arc::clone(&volume).flush());
        start(&mut late);
        let late = thread::spawn(move || block_on(late));
        stall.wait();
        match block_on(before) {
            Err(VolumeError::Registry(cause)) => assert_eq!(cause, "not now"),
            // It looked so late that the second one had made everything durable.
            Ok(()) => assert_eq!(volume.syncs(), 2),
            Err(other) => panic!("{other}"),
        }
        late.join().unwrap().unwrap();
        assert_eq!(volume.syncs(), 2);
    });
}
