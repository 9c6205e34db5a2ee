//! Which threads of this process were running, from the kernel's scheduler, and what that says of a load's limit.
//!
//! The kernel tells for each thread how long it has run, and how long it was ready to run while something else had the
//! processor (`/proc/*/schedstat`, Documentation/scheduler/sched-stats.rst).

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use sealvol_control::api::bench::Limit;

/// Percent of the time from which on a thread counts as always running: the clock and the start of the load take some.
const ALWAYS: u32 = 85;
/// Percent of the time from which on waiting for a processor counts.
const WAITS: u32 = 20;
/// Percent of the time that client and worker run together if they only wait for each other.
const BOTH: u32 = 90;

/// What a thread did, in all its life or in a part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ran {
    running: Duration,
    waiting: Duration,
}

impl Ran {
    fn since(self, earlier: Self) -> Self {
        Self {
            running: self.running.saturating_sub(earlier.running),
            waiting: self.waiting.saturating_sub(earlier.waiting),
        }
    }
}

/// What the calling thread and the engine's workers have done until now.
pub(super) struct Threads {
    own: Ran,
    workers: HashMap<OsString, Ran>,
}

impl Threads {
    /// None if the kernel does not tell.
    pub(super) fn look() -> Option<Self> {
        let own = ran(Path::new("/proc/thread-self"))?;
        let mut workers = HashMap::new();
        for task in std::fs::read_dir("/proc/self/task").ok()? {
            let task = task.ok()?;
            // One that has ended meanwhile was no worker.
            let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            if name.starts_with(WORKER) {
                workers.insert(task.file_name(), ran(&task.path())?);
            }
        }
        Some(Self { own, workers })
    }

    /// What the calling thread has done since, and the worker that has run most since.
    pub(super) fn since(&self, earlier: &Self) -> (Ran, Ran) {
        let ran = |(id, ran): (&OsString, &Ran)| {
            let before = earlier.workers.get(id).copied().unwrap_or_default();
            ran.since(before)
        };
        let workers = self.workers.iter().map(ran);
        let busiest = workers.max_by_key(|ran| ran.running).unwrap_or_default();
        (self.own.since(earlier.own), busiest)
    }
}

/// How the engine's threads begin.
const WORKER: &str = "worker-";

fn ran(thread: &Path) -> Option<Ran> {
    parse(&std::fs::read_to_string(thread.join("schedstat")).ok()?)
}

/// `RUNNING WAITING TIMES`, the first two in nanoseconds.
fn parse(schedstat: &str) -> Option<Ran> {
    let mut words = schedstat.split_ascii_whitespace();
    let mut duration = || Some(Duration::from_nanos(words.next()?.parse().ok()?));
    Some(Ran {
        running: duration()?,
        waiting: duration()?,
    })
}

/// Percent of `elapsed`; a thread has at most all of it.
fn percent(part: Duration, elapsed: Duration) -> u32 {
    let percent = part.as_nanos() * 100 / elapsed.as_nanos().max(1);
    u32::try_from(percent).unwrap_or(100).min(100)
}

/// Percent of the time that client and worker were running, and what that says.
pub(super) fn judge(client: Ran, worker: Ran, elapsed: Duration) -> (u32, u32, Limit) {
    let of = |part| percent(part, elapsed);
    let (client_ran, worker_ran) = (of(client.running), of(worker.running));
    let limit = if of(client.waiting.max(worker.waiting)) >= WAITS {
        Limit::Processors
    } else if client_ran >= ALWAYS && client_ran >= worker_ran {
        Limit::Client
    } else if worker_ran >= ALWAYS {
        Limit::Server
    } else if client_ran + worker_ran >= BOTH {
        Limit::Turns
    } else {
        Limit::Store
    };
    (client_ran, worker_ran, limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn thread(running: u64, waiting: u64) -> Ran {
        let percent = |part: u64| Duration::from_millis(part * 10);
        Ran {
            running: percent(running),
            waiting: percent(waiting),
        }
    }

    #[test]
    fn who_was_always_running_was_the_limit() {
        for (client, worker, limit) in [
            (thread(95, 0), thread(60, 0), Limit::Client),
            (thread(60, 5), thread(99, 1), Limit::Server),
            (thread(90, 0), thread(97, 0), Limit::Server),
            (thread(50, 0), thread(50, 0), Limit::Turns),
            (thread(20, 0), thread(30, 0), Limit::Store),
            (thread(60, 30), thread(70, 0), Limit::Processors),
            (thread(60, 0), thread(70, 25), Limit::Processors),
        ] {
            let (ran, served, found) = judge(client, worker, SECOND);
            assert_eq!(found, limit, "{ran} % and {served} %");
        }
    }

    #[test]
    fn the_kernel_tells_of_this_thread_and_it_can_be_read() {
        let second = Duration::from_nanos(12_345);
        let told = parse("12345 678 9\n").expect("three numbers");
        assert_eq!((told.running, told.waiting.as_nanos()), (second, 678));
        assert_eq!(parse("12345\n"), None);
        assert_eq!(parse("x 1 2\n"), None);
        let Some(before) = Threads::look() else {
            return; // a kernel that does not tell
        };
        while Threads::look()
            .expect("as before")
            .since(&before)
            .0
            .running
            .is_zero()
        {
            std::hint::spin_loop();
        }
    }
}
