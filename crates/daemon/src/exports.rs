//! The table of exports: which attached volumes there are, and who may open them.
//!
//! What always holds:
//! - a peer learns of an export, by opening it or by LIST, only if its user id is on the export's
//!   list; to all others it does not exist;
//! - an export that is being drained lets nobody in;
//! - a peer without a user id (TCP) is let in everywhere: the daemon serves TCP only when it was
//!   told `--insecure-plaintext-tcp`.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use sealvol_nbd::{Refusal, RefusalReason};
use sealvol_store::FileStore;
use sealvol_volume::Volume;
use tokio::sync::watch;

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
    /// Connections in transmission now.
    connections: watch::Sender<usize>,
    allow: Vec<u32>,
    draining: watch::Sender<bool>,
}

impl Export {
    /// An export that the user ids of `allow` may open.
    pub fn new(
        name: String,
        description: String,
        volume: Arc<Volume<FileStore>>,
        read_only: bool,
        allow: Vec<u32>,
    ) -> Self {
        let connections = watch::Sender::new(0);
        let draining = watch::Sender::new(false);
        Self { name, description, volume, read_only, connections, allow, draining }
    }

    /// Whether `peer` may open it, or know of it.
    pub fn allows(&self, peer: &Peer) -> bool {
        allows(&self.allow, peer)
    }

    /// From now on its connections are to answer what is outstanding and close.
    pub fn begin_drain(&self) {
        self.draining.send_replace(true);
    }

    /// Becomes true when [`Self::begin_drain`] is called.
    pub fn draining(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }

    /// How many clients are connected now.
    pub fn connected(&self) -> usize {
        *self.connections.borrow()
    }

    /// Waits until no client is connected.
    pub async fn idle(&self) {
        // The sender lives as long as `self`, so the wait can only end by the condition.
        let _ = self.connections.subscribe().wait_for(|connections| *connections == 0).await;
    }

    /// Counts a connection in, until the guard is dropped; `None` if the export is being drained.
    pub fn connect(export: &Arc<Self>) -> Option<Connected> {
        export.connections.send_modify(|connections| *connections += 1);
        let connected = Connected(Arc::clone(export));
        // Counted first, looked second: a drain that begins now either is seen here or waits for this one.
        (!*export.draining.borrow()).then_some(connected)
    }
}

/// A connection that is counted.
pub struct Connected(Arc<Export>);

impl Connected {
    /// What it is connected to.
    pub fn export(&self) -> &Export {
        &self.0
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connections.send_modify(|connections| *connections -= 1);
    }
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Export").field("name", &self.name).finish_non_exhaustive()
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
        if *export.draining.borrow() {
            return Err(Refusal::new(RefusalReason::Shutdown, "the volume is being detached"));
        }
        Ok(export)
    }

    /// Names and descriptions of what `peer` may open, by name.
    pub fn list(&self, peer: &Peer) -> Vec<(String, String)> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let visible = table.values().filter(|export| export.allows(peer));
        visible.map(|export| (export.name.clone(), export.description.clone())).collect()
    }

    /// The export of that name, for the daemon itself.
    pub fn get(&self, name: &str) -> Option<Arc<Export>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
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
        self.table.write().unwrap_or_else(PoisonError::into_inner).remove(name)
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
        let peer = |uid| Peer { uid, description: String::new() };
        assert!(allows(&[0, 107], &peer(Some(107))));
        assert!(!allows(&[0, 107], &peer(Some(1000))));
        assert!(!allows(&[], &peer(Some(0))), "root is on a list like anybody else");
        assert!(allows(&[], &peer(None)));
    }
}
