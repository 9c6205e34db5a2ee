//! Volumes: layers of ciphertext with a presence map, on stores that can tear, fail and lie.
//!
//! | subject | file |
//! |---|---|
//! | reading, writing, zeroing, trimming | `io.rs` |
//! | when a write is durable | `commit.rs` |
//! | what is on disk | `FORMAT.md`, `superblock.rs`, `page.rs` |
//! | which slot serves | `slots.rs` |
//! | which block is absent, zero or data | `map/` |
//! | who may change which block | `locks.rs` |
//! | when freed space may go | `punch.rs`, `epoch.rs` |
//! | opening, growing, closing | `volume.rs` |
//! | creating | `layer.rs` |
//! | filling what holds no data | `materialise.rs` |
//! | what a layer says of itself, and whether it is so | `adopt.rs` |
//!
//! The crate has no runtime, thread, clock or socket of its own: stores, key and [`Host`] come from outside, so that
//! the code of the daemon is the code that is simulated.
//!
//! **Futures of this crate are polled to their end.** A write that is given up half-way would let its range lock go
//! while the store still works on it. Whoever serves clients drains their requests when they leave.

mod adopt;
mod bytes;
mod commit;
mod epoch;
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
mod map;
mod materialise;
mod page;
mod punch;
mod slots;
mod superblock;
mod volume;

pub use adopt::{FoundLayer, read_layer, verify_layer};
pub use error::{Fault, Loss, LostStep, VolumeError};
pub use geometry::{BLOCK, MAX_SIZE, check_size, params_digest};
pub use host::{Change, Damage, Host, Task};
pub use ids::{DataKeyId, InvalidId, LayerId, VolumeId};
pub use io::{Extent, PreparedWrite, ReadData, Zeroing};
pub use layer::{DATA_FILE, META_FILE, create, destroy_keys, read_keys};
pub use map::MapCache;
pub use materialise::Materialised;
pub use page::BlockState;
pub use superblock::{LayerParams, MAX_WRAPPED_KEY, WrappedKey};
pub use volume::{Access, MapRun, Pins, Volume, open, open_rolled_back};
