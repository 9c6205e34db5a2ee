//! What the tests of this crate stand on: a deterministic executor, a registry in memory, a machine with one
//! layer on one disk, a tower of volumes with many, and a history that knows which values a block may have.

mod executor;
mod history;
mod machine;
mod random;
mod registry;
mod scattered;
mod tower;

pub(crate) use executor::{Executor, Handle};
pub(crate) use history::{History, PIECE, pattern};
pub(crate) use machine::{
    Disk, KEY, LAYER, Machine, OTHER_KEY, cipher, open_in, params, wrapped_keys,
};
pub(crate) use random::{Random, seeds};
pub(crate) use registry::{Registry, RegistryHost};
pub(crate) use scattered::Scattered;
pub(crate) use tower::{Tower, key};
