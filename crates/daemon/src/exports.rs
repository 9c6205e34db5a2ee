//! The table of exports: which attached volumes there are, and who may open them.
//!
//! What always holds:
//! - a peer learns of an export, by opening it or by LIST, only if its user id is on the export's
//!   list; to all others it does not exist;
//! - an export that is being drained lets nobody in;
//! - a peer without a user id (TCP) is let in everywhere: the daemon serves TCP only when it was
//!   told `--insecure-plaintext-tcp`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use sealvol_nbd::{Refusal, RefusalReason};
use sealvol_store::FileStore;
use sealvol_volume::Volume;
use tokio::sync::{Notify, watch};

use crate::limits::{Limiter, Limits};

/// Whoever is at the other end of an NBD connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its user id, as the kernel says; none over TCP.
    pub uid: Option<u32>,
    /// For log lines.
    pub description: String,
}

/// An attached volume as NBD clients see it.
pub struct Export {
    /// The volume's name.
    pub name: String,
    /// One line for people, in LIST and INFO.
    pub description: String,
    /// The volume.
    pub volume: Arc<Volume<FileStore>>,
    /// Writes are refused.
    pub read_only: bool,
    /// How many requests and bytes a second.
    pub(crate) limiter: Limiter,
    allow: Vec<u32>,
    receives: AtomicU64,
    /// One lock for both, so that a connection and a detach that meet see each other.
    occupancy: Mutex<Occupancy>,
    draining: watch::Sender<bool>,
    left: Notify,
}

#[derive(Clone, Copy, Default)]
struct Occupancy {
    connections: usize,
    draining: bool,
}

impl Export {
    /// An export that the user ids of `allow` may open, without limits.
    pub fn new(
        name: String,
        description: String,
        volume: Arc<Volume<FileStore>>,
        read_only: bool,
        allow: Vec<u32>,
    ) -> Self {
        Self {
            name,
            description,
            volume,
            read_only,
            limiter: Limiter::new(Limits::default()),
            allow,
            receives: AtomicU64::new(0),
            occupancy: Mutex::default(),
            draining: watch::Sender::new(false),
            left: Notify::new(),
        }
    }

    /// Whether `peer` may open it, or know of it.
    pub fn allows(&self, peer: &Peer) -> bool {
        allows(&self.allow, peer)
    }

    /// Counts a look at what a client has sent.
    pub(crate) fn count_receive(&self) {
        self.receives.fetch_add(1, Ordering::Relaxed);
    }

    /// How often clients have been listened to: it stands still while none of them wants anything.
    pub(crate) fn receives(&self) -> u64 {
        self.receives.load(Ordering::Relaxed)
    }

    /// Counts a connection until its guard is dropped; none if the export is being drained.
    pub fn connect(export: &Arc<Self>) -> Option<Connected> {
        let mut occupancy = export.occupancy();
        if occupancy.draining {
            return None;
        }
        occupancy.connections += 1;
        Some(Connected(Arc::clone(export)))
    }

    /// How many clients are connected now.
    pub fn connected(&self) -> usize {
        self.occupancy().connections
    }

    /// From now on nobody is let in, and the connections that are there are to answer what is
    /// outstanding and close.
    pub fn begin_drain(&self) {
        self.occupancy().draining = true;
        self.draining.send_replace(true);
    }

    /// Like [`Self::begin_drain`], if nobody is connected.
    ///
    /// # Errors
    /// The number of connections; nothing has changed then.
    pub fn begin_drain_unused(&self) -> Result<(), usize> {
        let mut occupancy = self.occupancy();
        if occupancy.connections > 0 {
            return Err(occupancy.connections);
        }
        occupancy.draining = true;
        drop(occupancy);
        self.draining.send_replace(true);
        Ok(())
    }

    /// Waits until no client is connected.
    pub async fn idle(&self) {
        loop {
            let left = self.left.notified();
            tokio::pin!(left);
            left.as_mut().enable();
            if self.connected() == 0 {
                return;
            }
            left.await;
        }
    }

    /// Lets clients in again after a drain.
    pub fn end_drain(&self) {
        self.occupancy().draining = false;
        self.draining.send_replace(false);
    }

    /// Is true while the export is being drained.
    pub fn draining(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }

    fn occupancy(&self) -> MutexGuard<'_, Occupancy> {
        self.occupancy
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Export")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// One connection to an export, counted as long as this value lives.
#[derive(Debug)]
pub struct Connected(Arc<Export>);

impl Connected {
    /// The export.
    pub fn export(&self) -> &Export {
        &self.0
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.occupancy().connections -= 1;
        self.0.left.notify_waiters();
    }
}

/// All exports, by name.
#[derive(Debug, Default)]
pub struct Exports {
    table: RwLock<BTreeMap<String, Arc<Export>>>,
}

impl Exports {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// The export of that name, if `peer` may open it.
    ///
    /// # Errors
    /// The same refusal whether it does not exist or the peer may not know that it does.
    pub fn lookup(&self, name: &str, peer: &Peer) -> Result<Arc<Export>, Refusal> {
        let export = self.get(name).filter(|export| export.allows(peer)).ok_or_else(|| {
            Refusal::new(
                RefusalReason::Unknown,
                "there is no such export for you: attach the volume, or have it attached with your \
                 user id in --allow",
            )
        })?;
        if export.occupancy().draining {
            return Err(Refusal::new(
                RefusalReason::Shutdown,
                "the volume is being detached",
            ));
        }
        Ok(export)
    }

    /// Names and descriptions of what `peer` may open, by name.
    pub fn list(&self, peer: &Peer) -> Vec<(String, String)> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let visible = table.values().filter(|export| export.allows(peer));
        visible
            .map(|export| (export.name.clone(), export.description.clone()))
            .collect()
    }

    /// The export of that name, for the daemon itself.
    pub fn get(&self, name: &str) -> Option<Arc<Export>> {
        self.table
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned()
    }

    /// All of them, by name.
    pub fn all(&self) -> Vec<Arc<Export>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.values().cloned().collect()
    }

    /// Lets clients open it from now on.
    pub fn insert(&self, export: Arc<Export>) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.insert(export.name.clone(), export);
    }

    /// Lets nobody open it any more. Connections that are there stay.
    pub fn remove(&self, name: &str) -> Option<Arc<Export>> {
        self.table
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name)
    }
}

fn allows(allow: &[u32], peer: &Peer) -> bool {
    peer.uid.is_none_or(|uid| allow.contains(&uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_user_ids_and_tcp_are_let_in() {
        let peer = |uid| Peer {
            uid,
            description: String::new(),
        };
        assert!(allows(&[0, 107], &peer(Some(107))));
        assert!(!allows(&[0, 107], &peer(Some(1000))));
        assert!(
            !allows(&[], &peer(Some(0))),
            "root is on a list like anybody else"
        );
        assert!(allows(&[], &peer(None)));
    }
}
