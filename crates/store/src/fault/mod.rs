//! A disk that fails, by seed: for tests of everything that must survive it.
//!
//! A [`FaultDisk`] is a model of one disk with a volatile cache. Its [`FaultDirectory`]s and
//! [`FaultStore`]s are used like any others, over memory or over any other directory, which then
//! holds exactly what is durable. It is strict: it keeps what [`Store`](crate::Store) and
//! [`Directory`](crate::Directory) promise and nothing more.
//!
//! * **Crash** ([`FaultDisk::crash`], or [`cut_power_at`](FaultDisk::cut_power_at) the n-th change
//!   and [`restart`](FaultDisk::restart)). Each 512-byte sector that was written since the last
//!   sync that covered it comes back as *any* of the values written since, or the old one;
//!   punches survive in pieces; growth and allocations or not; of directory operations a prefix
//!   or any subset that makes sense. Durable writes survive. A file that was created and synced
//!   is gone if its directory was not synced.
//! * **Failures** ([`FaultDisk::inject`]). `EIO`, `ENOSPC`, short and torn writes, by kind of
//!   operation, file, range and count. A failed sync loses what it covered while the cache goes
//!   on showing it, and the next one succeeds: as measured on Linux.
//! * **Space** ([`FaultDisk::set_capacity`]): counted in 4 KiB blocks, given back by punching and
//!   removing.
//! * **Stalls** ([`FaultDisk::hold`]): an operation stays pending until its [`Gate`] is released.
//! * **Order** ([`FaultDisk::journal`]): every operation with its beginning and end.
//!
//! What always holds: the same seed and the same order of operations give the same disk. Every
//! operation is ready when first polled unless a gate holds it (over memory). After the power is
//! cut every operation on every handle fails with
//! [`StoreError::PowerLost`](crate::StoreError::PowerLost), for ever: open again after the restart.
//!
//! To stop at every point of some work: do it once and count ([`FaultDisk::changes`]); then, for
//! each `n` up to that count, do it on a new disk with `cut_power_at(n)`, restart it with a few
//! seeds, open, and look.
//!
//! ```
//! use sealvol_store::fault::{FaultDisk, When, Fault, Failure};
//! use sealvol_store::{Directory, Operation, Store};
//!
//! # futures_executor::block_on(async {
//! let disk = FaultDisk::new(42);
//! let layer = disk.directory("layer-1");
//! let data = layer.create("data", 1 << 20).await?;
//! layer.sync().await?;
//! disk.inject(When::operation(Operation::Sync).file("data"), Fault::Fail(Failure::Io));
//! assert!(data.sync().await.is_err());
//! disk.crash(7).await?;
//! assert!(layer.list().await.is_err(), "of the boot before");
//! assert_eq!(disk.directory("layer-1").list().await?, ["data"]);
//! # Ok::<(), sealvol_store::StoreError>(()) }).unwrap();
//! ```

mod cache;
mod directory;
mod disk;
mod extents;
mod gate;
mod journal;
mod namespace;
mod plan;
mod platter;
mod random;
mod store;

pub use directory::FaultDirectory;
pub use disk::FaultDisk;
pub use gate::{Gate, Hold};
pub use journal::{Outcome, Record};
pub use plan::{Failure, Fault, When};
pub use store::FaultStore;

/// What survives or is lost as one, in bytes: no disk promises more.
pub const SECTOR: u64 = SECTOR_LEN as u64;

/// [`SECTOR`] as the length of an array.
const SECTOR_LEN: usize = 512;
