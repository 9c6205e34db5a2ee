//! Commits that no client asked for.
//!
//! Every few seconds each attached volume with changes in its map is committed, as a kernel writes back its page cache: a
//! client that never flushes loses little in a power cut, and what was trimmed is freed.
//!
//! Always: one volume that stalls holds up no other, and is not asked again before it has answered.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use crate::exports::Exports;

/// Linux begins to write back after five seconds too (`vm.dirty_writeback_centisecs`).
const INTERVAL: Duration = Duration::from_secs(5);

/// Runs as long as the daemon does.
pub(crate) async fn run(exports: Arc<Exports>) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut running: HashMap<String, JoinHandle<()>> = HashMap::new();
    loop {
        ticks.tick().await;
        running.retain(|_, commit| !commit.is_finished());
        for export in exports.all() {
            if export.read_only || running.contains_key(&export.name) {
                continue;
            }
            let name = export.name.clone();
            let commit = tokio::spawn(async move {
                if let Err(error) = export.volume.write_back().await {
                    tracing::debug!(volume = %export.name, %error, "could not be written back");
                }
            });
            running.insert(name, commit);
        }
    }
}
