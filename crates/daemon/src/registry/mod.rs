//! The registry: what the daemon knows and trusts about volumes and their layers.
//!
//! An SQLite database in the state directory, one owner: a thread of its own, which carries out one
//! call after the other. Callers on any runtime wait for it without blocking a thread.
//!
//! What always holds:
//! - a call is one transaction, on stable storage when it returns (synchronous=FULL);
//! - a volume in the state *available* has complete layers: a creation that was cut short is seen by
//!   its state *creating*, a deletion by *deleting*, and both are undone or done at the next start;
//! - generations only grow, and a commitment once recorded never changes.
//!
//! - of each provider's table of keys the newest state that was seen is kept, never an older one.
//!
//! It never holds key bytes, wrapped or not.

mod database;
mod enforcements;
mod families;
mod jobs;
mod key_sets;
mod key_tables;
mod merges;
mod new_layers;
mod rows;
mod schema;
mod shredding;
mod stacks;

use std::path::{Path, PathBuf};
use std::sync::mpsc;

use thiserror::Error;
use tokio::sync::oneshot;

pub(crate) use database::{Database, NewVolume};
pub(crate) use jobs::{JobEnd, JobRow, NewJob};
pub(crate) use key_sets::{Begun, KeySetRow, Membership, Newest};
pub(crate) use rows::{Attached, Backing, LayerRow, RowState, SnapshotRow, VolumeRow, WrappedBy};
pub(crate) use stacks::NewTop;

/// Why the registry cannot be read or written.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// Its thread is gone: it panicked, or the daemon is stopping.
    #[error("registry: it is closed. Look at the daemon's log, and restart it")]
    Closed,
    /// A volume's name is taken.
    #[error("volume {0}: there is one of that name already. Choose another name")]
    NameTaken(String),
    /// A snapshot's name is taken.
    #[error(
        "snapshot {0}: there is one of that name already. Choose another name, or delete that one first"
    )]
    SnapshotTaken(String),
    /// SQLite failed.
    #[error("registry: {0}. Check the space and the health of the disk under the state directory")]
    Sqlite(#[from] rusqlite::Error),
    /// It was written by a later version.
    #[error(
        "{}: it has schema version {found}, this sealvold knows {}. Use a newer sealvold",
        path.display(), schema::VERSION
    )]
    NewerSchema {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
    /// It is another program's database.
    #[error("{}: it is not a registry of sealvol. Move it away or use another --state-dir", .0.display())]
    Foreign(PathBuf),
    /// The thread could not be started.
    #[error("registry: its thread cannot be started: {0}. Raise the limit of threads")]
    Thread(std::io::Error),
}

/// A handle to the registry; clones are the same one.
#[derive(Clone)]
pub(crate) struct Registry {
    calls: mpsc::Sender<Call>,
}

type Call = Box<dyn FnOnce(&mut Database) + Send>;

impl Registry {
    /// Opens the registry at `path`; makes an empty one if there is none.
    ///
    /// # Errors
    /// When the file is damaged, another program's, or a later version's.
    pub(crate) fn open(path: &Path) -> Result<Self, RegistryError> {
        let mut database = Database::open(path)?;
        let (calls, queue) = mpsc::channel::<Call>();
        std::thread::Builder::new()
            .name("registry".to_owned())
            .spawn(move || queue.iter().for_each(|call| call(&mut database)))
            .map_err(RegistryError::Thread)?;
        Ok(Self { calls })
    }

    /// Carries out `work` on the registry's thread and brings its result.
    ///
    /// Work that has been handed over is carried out whether or not the caller goes on waiting.
    ///
    /// # Errors
    /// Those of `work`, and [`RegistryError::Closed`].
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Database) -> Result<T, RegistryError> + Send + 'static,
    ) -> Result<T, RegistryError> {
        let (answer, answered) = oneshot::channel();
        let call: Call = Box::new(move |database| {
            // Nobody may be waiting any more; the work was to be done all the same.
            let _ = answer.send(work(database));
        });
        self.calls.send(call).map_err(|_| RegistryError::Closed)?;
        answered.await.map_err(|_| RegistryError::Closed)?
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Registry")
    }
}
