//! Threads for system calls that may block, so that no worker of the daemon ever waits in one.
//!
//! Each store has a [`Lane`]: its jobs run in the order they came, at most [`LANE_WIDTH`] at once.
//! Lanes share the threads of the process, which are started on demand and end when idle. A disk
//! that hangs therefore holds up its own lane and nobody else's.
//!
//! What always holds: a job that was accepted runs, also when its future is dropped; a panic in a
//! job surfaces in whoever awaits it and costs no thread; no lock is held while a job runs; before a
//! thread is started, what [`before_new_threads`] was given has run in the thread that starts it.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

/// Jobs of one store that run at once: enough to keep a disk busy with reads that miss the page
/// cache while a sync of the same file takes its time.
const LANE_WIDTH: usize = 8;
/// Threads of the process at most; beyond that lanes take turns.
const THREADS_MAX: usize = 256;
/// How long a thread waits for more before it ends.
const IDLE: Duration = Duration::from_secs(10);
/// Jobs are system calls, and then wake a task: no deep stacks.
const STACK_BYTES: usize = 256 << 10;

type Job = Box<dyn FnOnce() + Send>;

/// What runs before a thread is started.
static CLEAR: OnceLock<fn()> = OnceLock::new();

/// From now on whoever starts a thread of this crate runs `clear` first.
///
/// A new thread begins with a copy of the registers of the one that starts it, which is whoever asked
/// for something that may block: a worker, say, that was enciphering a moment ago. It would keep them
/// for as long as it does nothing else with those registers. What is in them this crate can't know; the
/// first one who says how to clear them is heard.
pub fn before_new_threads(clear: fn()) {
    let _ = CLEAR.set(clear);
}

/// The jobs of one store.
#[derive(Default)]
pub(crate) struct Lane {
    state: Mutex<LaneState>,
}

#[derive(Default)]
struct LaneState {
    waiting: VecDeque<Job>,
    /// Turns of this lane that threads hold or that stand in the pool's queue.
    turns: usize,
}

impl Lane {
    /// Runs `work` on a thread of the pool; the future completes when it is done.
    pub(crate) fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Completion<T> {
        let slot = Arc::new(Mutex::new(Slot::Running(None)));
        let completion = Completion {
            slot: Arc::clone(&slot),
        };
        self.submit(Box::new(move || {
            complete(&slot, catch_unwind(AssertUnwindSafe(work)))
        }));
        completion
    }

    fn submit(self: &Arc<Self>, job: Job) {
        let mut state = locked(&self.state);
        state.waiting.push_back(job);
        let wants_turn = state.turns < LANE_WIDTH;
        state.turns += usize::from(wants_turn);
        drop(state);
        if wants_turn {
            POOL.schedule(Arc::clone(self));
        }
    }

    /// Runs one job; returns whether the turn goes on.
    fn run_one(&self) -> bool {
        let job = locked(&self.state).waiting.pop_front();
        if let Some(job) = job {
            job();
        }
        let mut state = locked(&self.state);
        let more = !state.waiting.is_empty();
        state.turns -= usize::from(!more);
        more
    }
}

/// The threads of the process, shared by all lanes.
struct Pool {
    state: Mutex<PoolState>,
    work: Condvar,
}

struct PoolState {
    /// Lanes with a turn that no thread has taken yet.
    ready: VecDeque<Arc<Lane>>,
    idle: usize,
    threads: usize,
}

static POOL: Pool = Pool {
    state: Mutex::new(PoolState {
        ready: VecDeque::new(),
        idle: 0,
        threads: 0,
    }),
    work: Condvar::new(),
};

impl Pool {
    fn schedule(&'static self, lane: Arc<Lane>) {
        let mut state = locked(&self.state);
        state.ready.push_back(lane);
        if state.idle >= state.ready.len() {
            self.work.notify_one();
            return;
        }
        if state.threads == THREADS_MAX {
            return; // a busy thread takes it when it is done
        }
        state.threads += 1;
        drop(state);
        if let Some(clear) = CLEAR.get() {
            clear();
        }
        let started = thread::Builder::new()
            .name("store-io".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || self.work());
        if started.is_err() {
            self.go_on_without_new_thread();
        }
    }

    /// The system gave no thread. Those that run will come to it; if there are none, the caller
    /// does the work: late is better than never.
    fn go_on_without_new_thread(&self) {
        let mut state = locked(&self.state);
        state.threads -= 1;
        while state.threads == 0 {
            let Some(lane) = state.ready.pop_front() else {
                return;
            };
            drop(state);
            while lane.run_one() {}
            state = locked(&self.state);
        }
    }

    /// A thread's life: one job of a lane at a time, so that lanes take turns.
    fn work(&self) {
        let mut state = locked(&self.state);
        loop {
            if let Some(lane) = state.ready.pop_front() {
                drop(state);
                let more = lane.run_one();
                state = locked(&self.state);
                if more {
                    state.ready.push_back(lane);
                }
                continue;
            }
            state.idle += 1;
            let (woken, waited) = self
                .work
                .wait_timeout(state, IDLE)
                .unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if waited.timed_out() && state.ready.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

enum Slot<T> {
    Running(Option<Waker>),
    Done(thread::Result<T>),
    Taken,
}

/// Ready when the job is done. Needs no particular executor.
pub(crate) struct Completion<T> {
    slot: Arc<Mutex<Slot<T>>>,
}

fn complete<T>(slot: &Mutex<Slot<T>>, result: thread::Result<T>) {
    let before = std::mem::replace(&mut *locked(slot), Slot::Done(result));
    if let Slot::Running(Some(waker)) = before {
        waker.wake();
    }
}

impl<T> Future for Completion<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let mut slot = locked(&self.slot);
        match std::mem::replace(&mut *slot, Slot::Taken) {
            Slot::Running(_) => {
                *slot = Slot::Running(Some(context.waker().clone()));
                Poll::Pending
            }
            Slot::Done(result) => {
                drop(slot);
                Poll::Ready(result.unwrap_or_else(|panic| resume_unwind(panic)))
            }
            Slot::Taken => panic!("a completion was polled after it was ready"),
        }
    }
}

/// Locks a mutex whose holders cannot panic (jobs run outside of it), poisoned or not.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use futures_executor::block_on;

    use super::*;

    #[test]
    fn a_job_answers_on_any_executor() {
        let lane = Arc::new(Lane::default());
        let answers: Vec<_> = (0..100)
            .map(|number| lane.run(move || number * 2))
            .collect();
        for (number, answer) in answers.into_iter().enumerate() {
            assert_eq!(block_on(answer), number * 2);
        }
    }

    #[test]
    fn a_panic_reaches_who_awaits_and_the_lane_goes_on() {
        let lane = Arc::new(Lane::default());
        for _ in 0..2 * LANE_WIDTH {
            let broken = lane.run(|| panic!("the job's own words"));
            let panic = catch_unwind(AssertUnwindSafe(|| block_on(broken))).unwrap_err();
            assert_eq!(panic.downcast_ref(), Some(&"the job's own words"));
        }
        assert_eq!(block_on(lane.run(|| 5)), 5);
    }

    #[test]
    fn a_job_runs_also_when_nobody_waits_for_it() {
        let lane = Arc::new(Lane::default());
        let (done, wait) = mpsc::channel();
        drop(lane.run(move || done.send(()).unwrap()));
        wait.recv_timeout(Duration::from_secs(60))
            .expect("the job was dropped with its future");
    }

    #[test]
    fn a_lane_that_hangs_holds_up_nobody_else() {
        let hanging = Arc::new(Lane::default());
        let running = Arc::new(AtomicUsize::new(0));
        let (release, held) = mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let stuck: Vec<_> = (0..3 * LANE_WIDTH)
            .map(|_| {
                let (running, held) = (Arc::clone(&running), Arc::clone(&held));
                hanging.run(move || {
                    running.fetch_add(1, Ordering::SeqCst);
                    // Ends with an error when the sender is gone.
                    let _ = locked(&held).recv();
                })
            })
            .collect();
        let other = Arc::new(Lane::default());
        assert_eq!(
            block_on(other.run(|| 7)),
            7,
            "answered while the first lane hangs"
        );
        assert!(running.load(Ordering::SeqCst) <= LANE_WIDTH);
        drop(release);
        stuck.into_iter().for_each(block_on);
        assert_eq!(running.load(Ordering::SeqCst), 3 * LANE_WIDTH);
    }

    #[test]
    fn who_starts_a_thread_clears_first_what_it_would_inherit() {
        thread_local! {
            static CLEARED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
        }
        before_new_threads(|| CLEARED.with(|count| count.set(count.get() + 1)));
        // More jobs at once than there can be idle threads: every one that waits needs a thread of its own.
        let meeting = Arc::new(std::sync::Barrier::new(THREADS_MAX / 2));
        let jobs: Vec<_> = (0..THREADS_MAX / 2)
            .map(|_| {
                let (lane, meeting) = (Arc::new(Lane::default()), Arc::clone(&meeting));
                lane.run(move || meeting.wait())
            })
            .collect();
        assert!(
            CLEARED.with(std::cell::Cell::get) > 0,
            "no thread was started, or none cleared"
        );
        for job in jobs {
            block_on(job);
        }
    }

    #[test]
    fn jobs_of_a_lane_run_side_by_side() {
        let lane = Arc::new(Lane::default());
        let meeting = Arc::new(std::sync::Barrier::new(LANE_WIDTH));
        let jobs: Vec<_> = (0..LANE_WIDTH)
            .map(|_| {
                let meeting = Arc::clone(&meeting);
                lane.run(move || meeting.wait())
            })
            .collect();
        for job in jobs {
            block_on(job);
        }
    }
}
