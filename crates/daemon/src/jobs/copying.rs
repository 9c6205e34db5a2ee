//! Copying up for a job: part by part, on threads of its own, and out of the clients' way.
//!
//! Always:
//! - the threads are not the workers that serve clients, and have a lower priority: where both want a processor, clients have
//!   nearly all of it;
//! - while clients use the volume one thread copies, and rests after each chunk as long as that took, so that a store that is
//!   the limit is theirs for half of the time at least. While nobody does, every core copies;
//! - a part is cut so that it takes about half a second: whoever wants the volume's turn waits no longer.
//!
//! Never: a request of a client that waits for more than one chunk of one thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};
use sealvol_store::FileStore;
use sealvol_volume::{LayerId, Pace, Task, Volume, VolumeError};
use tokio::runtime::Handle;

use super::Job;
use crate::exports::Export;
use crate::limits::{Cost, Limiter, Limits};

/// The threads that copy, for all jobs together.
#[derive(Default)]
pub(crate) struct Copiers(OnceLock<ThreadPool>);

impl Copiers {
    fn pool(&self) -> Result<&ThreadPool, ThreadPoolBuildError> {
        if let Some(pool) = self.0.get() {
            return Ok(pool);
        }
        let pool = ThreadPoolBuilder::new()
            .thread_name(|_| "copier".to_owned())
            .start_handler(|_| {
                // On Linux that of the calling thread alone. Refused, it copies as fast as clients are served.
                let _ = rustix::process::setpriority_process(None, NICE);
            })
            .build()?;
        Ok(self.0.get_or_init(|| pool))
    }
}

/// Where a copy goes on, and in what parts. It is forgotten with the process: the map knows what is missing.
#[derive(Debug)]
pub(crate) struct Cursor {
    /// Byte of the volume.
    pub(crate) at: u64,
    /// The top that it is about.
    pub(crate) top: Option<LayerId>,
    /// Bytes of the next part.
    part: u64,
}

impl Cursor {
    /// Bytes that the next part may write at most, of those that are left.
    pub(crate) fn next_part(&self, left: u64) -> u64 {
        self.part.min(left) + CHUNK
    }
}

impl Default for Cursor {
    fn default() -> Self {
        Self {
            at: 0,
            top: None,
            part: PART_MIN,
        }
    }
}

/// Copies the next part of what lies below the top of a volume. Whether the end was reached.
///
/// # Errors
///
/// Those of [`Volume::copy_up`]. What was copied stays copied.
pub(crate) async fn copy_part(
    copiers: &Copiers,
    job: &Arc<Job>,
    volume: &Arc<Volume<FileStore>>,
    export: Option<&Arc<Export>>,
) -> Result<bool, CopyError> {
    let mut cursor = job.cursor.lock().await;
    let Some(first) = volume.first_below(cursor.at).await? else {
        return Ok(true);
    };
    let part = match job.rate_max {
        // A pace that waits, waits with the volume's turn.
        Some(rate) => cursor.part.min((rate / 2).next_multiple_of(CHUNK)),
        None => cursor.part,
    };
    let end = volume
        .size()
        .min(first.saturating_add(part) / CHUNK * CHUNK + CHUNK);
    let pool = copiers.pool()?;
    let busy = export.is_some_and(|export| job.sees_clients(export));
    let pieces = if busy {
        1
    } else {
        pool.current_num_threads() * 2
    };
    let (began, moment) = (Instant::now(), Handle::current());
    let work = Work {
        job: Arc::clone(job),
        volume: Arc::clone(volume),
        export: export.cloned(),
        runtime: moment,
    };
    let (answer, answered) = tokio::sync::oneshot::channel();
    let ranges = cut(first, end, pieces as u64);
    pool.spawn(move || {
        let copied = ranges
            .into_par_iter()
            .try_for_each(|(from, to)| work.copy(from, to));
        drop(work);
        // A step is carried to its end: somebody waits.
        let _ = answer.send(copied);
    });
    answered.await.map_err(|_| CopyError::Broke)??;
    cursor.at = end;
    cursor.part = next_part(part, began.elapsed());
    Ok(false)
}

/// Why a part was not copied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error("the threads that copy can't be started: {0}")]
    Threads(#[from] ThreadPoolBuildError),
    #[error("a thread that copies broke")]
    Broke,
}

/// What a thread copies with.
struct Work {
    job: Arc<Job>,
    volume: Arc<Volume<FileStore>>,
    export: Option<Arc<Export>>,
    runtime: Handle,
}

impl Work {
    fn copy(&self, from: u64, to: u64) -> Result<(), VolumeError> {
        let pace = ClientsFirst {
            job: Arc::clone(&self.job),
            export: self.export.clone(),
            chunk: Arc::default(),
        };
        let copied = self
            .runtime
            .block_on(self.volume.copy_up(from..to, u64::MAX, &pace));
        sealvol_crypto::clear_residue();
        copied.map(|_| ())
    }
}

/// See the module. One for each thread's piece.
struct ClientsFirst {
    job: Arc<Job>,
    export: Option<Arc<Export>>,
    /// When the last chunk began.
    chunk: Arc<Mutex<Option<Instant>>>,
}

impl Pace for ClientsFirst {
    fn chunk(&self, bytes: u64) -> Task<()> {
        let (job, export) = (Arc::clone(&self.job), self.export.clone());
        let chunk = Arc::clone(&self.chunk);
        let last = *chunk.lock().unwrap_or_else(PoisonError::into_inner);
        let took = last.map(|began| began.elapsed());
        Box::pin(async move {
            let busy = export.is_some_and(|export| job.sees_clients(&export));
            if let Some(took) = took.filter(|_| busy) {
                tokio::time::sleep(took.min(REST_MAX)).await;
            }
            if let (Some(limiter), Some(cost)) = (&job.limiter, Cost::of_bytes(bytes)) {
                limiter.pass(cost).await;
            }
            *chunk.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            job.progress.add(bytes, Instant::now());
        })
    }
}

/// When clients were last seen at work on the volume of a job.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    requests: AtomicU64,
    seen: Mutex<Option<Instant>>,
}

impl Clients {
    /// Whether the number of requests has changed within the last moments.
    fn at_work(&self, requests: u64, now: Instant) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if self.requests.swap(requests, Ordering::Relaxed) != requests {
            *seen = Some(now);
        }
        seen.is_some_and(|seen| now.saturating_duration_since(seen) < CLIENTS_GONE)
    }
}

impl Job {
    fn sees_clients(&self, export: &Export) -> bool {
        self.clients.at_work(export.receives(), Instant::now())
    }
}

/// What holds a job to its rate.
pub(super) fn limiter(rate: Option<u64>) -> Option<Limiter> {
    let limits = |rate| Limits {
        bandwidth: Some(rate),
        iops: None,
        burst_seconds: 0,
    };
    rate.map(|rate| Limiter::new(limits(rate)))
}

/// `from..to` in about so many pieces of whole chunks.
fn cut(from: u64, to: u64, pieces: u64) -> Vec<(u64, u64)> {
    let step = (to - from).div_ceil(pieces).next_multiple_of(CHUNK);
    let mut ranges = Vec::new();
    let mut at = from;
    while at < to {
        let end = to.min((at + step) / CHUNK * CHUNK);
        ranges.push((at, end));
        at = end;
    }
    ranges
}

/// Twice or half as much, if that is nearer to the time that a part is to take.
fn next_part(part: u64, took: Duration) -> u64 {
    if took < PART_TAKES / 2 {
        (part * 2).min(PART_MAX)
    } else if took > PART_TAKES * 2 {
        (part / 2).max(PART_MIN)
    } else {
        part
    }
}

/// What the volume copies under one lock.
const CHUNK: u64 = 1 << 20;
const PART_MIN: u64 = 8 << 20;
const PART_MAX: u64 = 1 << 30;
const PART_TAKES: Duration = Duration::from_millis(500);
/// A client that is silent for so long has no need of being waited for.
const CLIENTS_GONE: Duration = Duration::from_millis(200);
/// A store that hangs once is not waited for twice.
const REST_MAX: Duration = Duration::from_secs(1);
/// A tenth of the share of a thread that serves clients (`sched(7)`).
const NICE: i32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_whole_chunks_and_leave_nothing_out() {
        for (from, to, pieces) in [
            (0, 8 << 20, 4),
            (4096, 8 << 20, 4),
            (5 << 20, (5 << 20) + 4096, 8),
            (0, 3 << 20, 1),
        ] {
            let ranges = cut(from, to, pieces);
            assert_eq!((ranges[0].0, ranges[ranges.len() - 1].1), (from, to));
            for pair in ranges.windows(2) {
                assert_eq!(pair[0].1, pair[1].0);
                assert!(pair[0].1.is_multiple_of(CHUNK));
            }
            assert!(ranges.iter().all(|(from, to)| from < to));
        }
    }

    #[test]
    fn parts_grow_and_shrink_towards_their_time() {
        assert_eq!(next_part(PART_MIN, Duration::from_millis(10)), 2 * PART_MIN);
        assert_eq!(next_part(PART_MIN, Duration::from_secs(9)), PART_MIN);
        assert_eq!(next_part(PART_MAX, Duration::ZERO), PART_MAX);
        assert_eq!(next_part(64 << 20, PART_TAKES), 64 << 20);
    }

    #[test]
    fn clients_are_at_work_until_they_are_silent_for_a_while() {
        let (clients, start) = (Clients::default(), Instant::now());
        assert!(!clients.at_work(0, start));
        assert!(clients.at_work(3, start));
        assert!(clients.at_work(3, start + CLIENTS_GONE / 2));
        assert!(!clients.at_work(3, start + CLIENTS_GONE));
    }
}
