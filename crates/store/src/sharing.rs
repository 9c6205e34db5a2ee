//! The models' rule of who may have a file open beside whom: one writer, or any number of
//! readers. Real files leave that to the kernel's locks; the models must refuse the same.

use std::sync::{Arc, Mutex, PoisonError};

use crate::Access;

/// The openers of one file.
#[derive(Clone, Default)]
pub(crate) struct Sharing {
    openers: Arc<Mutex<Openers>>,
}

#[derive(Default)]
struct Openers {
    readers: usize,
    writer: bool,
}

/// One opener; counts until it is dropped.
pub(crate) struct Share {
    openers: Arc<Mutex<Openers>>,
    access: Access,
}

impl Sharing {
    /// Lets one more in, unless that conflicts with those who are.
    pub(crate) fn admit(&self, access: Access) -> Option<Share> {
        let mut openers = self.openers.lock().unwrap_or_else(PoisonError::into_inner);
        match access {
            Access::ReadOnly if !openers.writer => openers.readers += 1,
            Access::Writable if !openers.writer && openers.readers == 0 => openers.writer = true,
            _ => return None,
        }
        drop(openers);
        Some(Share {
            openers: Arc::clone(&self.openers),
            access,
        })
    }
}

impl Share {
    /// What this opener may do.
    pub(crate) fn access(&self) -> Access {
        self.access
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut openers = self.openers.lock().unwrap_or_else(PoisonError::into_inner);
        match self.access {
            Access::ReadOnly => openers.readers -= 1,
            Access::Writable => openers.writer = false,
        }
    }
}
