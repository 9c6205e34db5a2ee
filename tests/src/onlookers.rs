//! What any user of the machine can see of a daemon and of every process that it starts: arguments; and what root sees:
//! environments.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

/// Arguments and environments of `daemon`, by its process id, and of every process that it starts while `work` is done.
///
/// # Panics
/// If `work` does.
pub fn seen_of_children(daemon: i32, work: impl FnOnce()) -> BTreeSet<Vec<u8>> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut seen = BTreeSet::new();
            while !done.load(Ordering::Acquire) {
                look(daemon, &mut seen);
            }
            look(daemon, &mut seen);
            seen
        });
        // Else the other thread looks on for ever.
        struct End<'a>(&'a AtomicBool);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Release);
            }
        }
        let end = End(&done);
        work();
        drop(end);
        looking.join().expect("it does not panic")
    })
}

fn look(daemon: i32, seen: &mut BTreeSet<Vec<u8>>) {
    let mut processes = vec![daemon.to_string()];
    for thread in std::fs::read_dir(format!("/proc/{daemon}/task"))
        .into_iter()
        .flatten()
    {
        let children = thread.map(|thread| thread.path().join("children"));
        let children = children
            .and_then(std::fs::read_to_string)
            .unwrap_or_default();
        processes.extend(children.split_whitespace().map(str::to_owned));
    }
    for process in processes {
        for what in ["cmdline", "environ"] {
            // A child that is gone, or whose environment only root may see.
            if let Ok(text) = std::fs::read(format!("/proc/{process}/{what}")) {
                seen.insert(text);
            }
        }
    }
}

/// Whether `text` is in `bytes`.
#[must_use]
pub fn holds(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|part| part == text)
}
