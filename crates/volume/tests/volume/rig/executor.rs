//! A deterministic executor: whatever can go on goes on in an order that the seed decides.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use sealvol_volume::Task;

use super::random::Random;

/// Polls in an order chosen by chance; nothing runs but inside its methods.
pub(crate) struct Executor {
    tasks: Vec<(Task<()>, Arc<Flag>)>,
    spawned: Spawner,
    random: Random,
}

/// Where background tasks come in.
#[derive(Clone, Default)]
pub(crate) struct Spawner(Arc<Mutex<Vec<Task<()>>>>);

impl Spawner {
    pub(crate) fn spawn(&self, task: Task<()>) {
        self.0.lock().unwrap().push(task);
    }
}

/// What a future ended with, once it has.
pub(crate) struct Handle<T>(Arc<Mutex<Option<T>>>);

impl<T> Handle<T> {
    pub(crate) fn is_done(&self) -> bool {
        self.0.lock().unwrap().is_some()
    }
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Executor {
    pub(crate) fn new(random: Random) -> Self {
        Self {
            tasks: Vec::new(),
            spawned: Spawner::default(),
            random,
        }
    }

    pub(crate) fn spawner(&self) -> Spawner {
        self.spawned.clone()
    }

    /// Starts a future; it is polled when the executor runs.
    pub(crate) fn start<T: Send + 'static>(
        &mut self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Handle<T> {
        let slot = Arc::new(Mutex::new(None));
        let result = Arc::clone(&slot);
        self.push(Box::pin(async move {
            let value = future.await;
            *result.lock().unwrap() = Some(value);
        }));
        Handle(slot)
    }

    /// Lets everything go on until nothing can.
    pub(crate) fn idle(&mut self) {
        while self.step() {}
    }

    /// Lets at most so many polls happen.
    pub(crate) fn steps(&mut self, most: u64) {
        for _ in 0..most {
            if !self.step() {
                return;
            }
        }
    }

    /// Lets things go on, a poll at a time, until `reached`.
    ///
    /// # Panics
    /// If everything waits before that.
    pub(crate) fn until(&mut self, mut reached: impl FnMut() -> bool) {
        while !reached() {
            assert!(self.step(), "nothing goes on, and it is not reached");
        }
    }

    /// Lets things go on until this one has ended.
    ///
    /// # Panics
    /// If everything waits: a deadlock.
    pub(crate) fn finish<T>(&mut self, handle: &Handle<T>) -> T {
        loop {
            if let Some(value) = handle.0.lock().unwrap().take() {
                return value;
            }
            assert!(
                self.step(),
                "deadlock: {} tasks wait for each other",
                self.tasks.len()
            );
        }
    }

    pub(crate) fn run<T: Send + 'static>(
        &mut self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let handle = self.start(future);
        self.finish(&handle)
    }

    /// Drops everything that has not ended: the machine is off.
    pub(crate) fn forget(&mut self) {
        self.tasks.clear();
        self.spawned.0.lock().unwrap().clear();
    }

    fn push(&mut self, task: Task<()>) {
        self.tasks
            .push((task, Arc::new(Flag(AtomicBool::new(true)))));
    }

    /// Polls one that can go on; false if none can.
    fn step(&mut self) -> bool {
        let spawned = std::mem::take(&mut *self.spawned.0.lock().unwrap());
        spawned.into_iter().for_each(|task| self.push(task));
        let ready: Vec<usize> = (0..self.tasks.len())
            .filter(|&at| self.tasks[at].1.0.load(Ordering::SeqCst))
            .collect();
        if ready.is_empty() {
            return false;
        }
        let at = ready[self.random.index(ready.len())];
        let (task, flag) = &mut self.tasks[at];
        flag.0.store(false, Ordering::SeqCst);
        let waker = Waker::from(Arc::clone(flag));
        if Pin::as_mut(task).poll(&mut Context::from_waker(&waker)) == Poll::Ready(()) {
            drop(self.tasks.swap_remove(at));
        }
        true
    }
}

/// Lets others run, `times` times.
pub(crate) async fn yields(times: u64) {
    let mut left = times;
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
