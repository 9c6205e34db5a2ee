//! What the modules share their state by that are run under chosen schedules: range locks, epochs, map cells, joining a commit.
//!
//! Always: these modules take their primitives from here and nowhere else. `tests/schedules` includes them and gives them
//! others under the same names, with which a test decides who goes on between any two steps.

pub(crate) use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
pub(crate) use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) use async_lock::Mutex as AsyncMutex;
pub(crate) use event_listener::{Event, listener};
