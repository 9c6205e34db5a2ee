//! Many commands of `sealvol` at once, as orchestrators send them.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::daemon::Daemon;

/// How many commands run at once.
const AT_ONCE: usize = 16;

/// Carries out `work` for each of `names`, many of them at a time, each once.
///
/// # Panics
/// If one of them does.
pub fn each<N: AsRef<str> + Sync>(names: &[N], work: impl Fn(&str) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(names.len()) {
            scope.spawn(|| {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(name.as_ref());
                }
            });
        }
    });
}

/// How many keys `sealvol status` says are in locked memory.
///
/// # Panics
/// If it does not say.
#[track_caller]
pub fn keys(daemon: &Daemon<'_>) -> u64 {
    key_memory(daemon, "keys")
}

/// How many bytes of locked memory there are, as `sealvol status` says.
///
/// # Panics
/// If it does not say.
#[track_caller]
pub fn locked_bytes(daemon: &Daemon<'_>) -> u64 {
    key_memory(daemon, "locked_bytes")
}

#[track_caller]
fn key_memory(daemon: &Daemon<'_>, field: &str) -> u64 {
    let status = daemon.sealvol_json(&["status"]);
    status["key_memory"][field].as_u64().expect("a number")
}
