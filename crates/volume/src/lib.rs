//! Volumes: layers of ciphertext with a presence map, on stores that can tear, fail and lie.
//!
//! | subject | file |
//! |---|---|
//! | which layer decides a block | `stack.rs` |
//! | one open layer | `layer.rs` |
//! | reading | `io.rs` |
//! | writing | `write.rs` |
//! | zeroing, trimming | `zero.rs` |
//! | when a write is durable | `commit.rs`, and who joins which commit: `commit/joins.rs` |
//! | what is on disk | `FORMAT.md`, `superblock.rs`, `page.rs` |
//! | which slot serves | `slots.rs` |
//! | which block is absent, zero or data in a layer | `map/` |
//! | who may change which block | `locks.rs` |
//! | when freed space may go | `punch.rs`, `epoch.rs` |
//! | what threads share state by | `sync.rs` |
//! | creating the files of a layer | `create.rs` |
//! | opening, and sealing what was not | `open.rs` |
//! | growing, closing | `volume.rs` |
//! | snapshots: another top takes the place of the old one | `snapshot.rs` |
//! | copying up, and giving up what lies below | `copy_up.rs` |
//! | making one layer of two | `merge.rs` |
//! | filling what holds no data | `materialise.rs` |
//! | how long requests waited for a cut | `waits.rs` |
//! | what a layer says of itself, and whether it is so | `adopt.rs` |
//!
//! The crate has no runtime, thread, clock or socket of its own: stores, key and [`Host`] come from outside, so that
//! the code of the daemon is the code that is simulated.
//!
//! **Futures of this crate are polled to their end.** A write that is given up half-way would let its range lock go
//! while the store still works on it. Whoever serves clients drains their requests when they leave.

mod adopt;
mod block_state;
mod bytes;
mod commit;
mod copy_up;
mod create;
mod epoch;
#[cfg(test)]
mod epoch_tests;
mod error;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
mod geometry;
mod host;
mod ids;
mod io;
mod layer;
mod locks;
#[cfg(test)]
mod locks_tests;
mod map;
mod materialise;
mod merge;
mod open;
mod page;
mod punch;
mod slots;
mod snapshot;
mod stack;
mod superblock;
mod sync;
mod volume;
mod waits;
mod write;
mod zero;

pub use adopt::{FoundLayer, read_layer, verify_layer};
pub use block_state::BlockState;
pub use copy_up::{CopiedUp, Pace, Unpaced, open_copy};
pub use create::{
    DATA_FILE, META_FILE, create, create_ephemeral, destroy_keys, read_keys, replace_keys,
};
pub use error::{Fault, Loss, LostStep, VolumeError};
pub use geometry::{BLOCK, MAX_SIZE, check_size, params_digest};
pub use host::{Change, Damage, Host, Task};
pub use ids::{DataKeyId, InvalidId, LayerId, VolumeId};
pub use io::{Extent, ReadData};
pub use layer::Layer;
pub use map::MapCache;
pub use materialise::Materialised;
pub use merge::{Merge, Sides};
pub use open::{
    Access, LayerParts, Pins, finish_sealing, open, open_rolled_back, open_sealed, view,
};
pub use snapshot::snapshot_all;
pub use superblock::{LayerParams, MAX_WRAPPED_KEY, WrappedKey};
pub use volume::{MapRun, Volume};
pub use waits::Waits;
pub use write::PreparedWrite;
pub use zero::Zeroing;
