//! What the kernel's error numbers mean for a store. The one place that turns them into
//! [`StoreError`], except where a number means something special to one call.

use rustix::io::Errno;

use crate::{Place, StoreError};

/// The error for `errno`, met at `at` on a file system of the given type.
pub(super) fn into_error(at: Box<Place>, errno: Errno, file_system: &'static str) -> StoreError {
    match errno {
        Errno::NOSPC | Errno::DQUOT => StoreError::NoSpace { at },
        Errno::NOENT => StoreError::NotFound { at },
        Errno::EXIST => StoreError::AlreadyExists { at },
        Errno::ROFS => StoreError::ReadOnly { at },
        Errno::OPNOTSUPP => StoreError::Unsupported { at, file_system },
        other => StoreError::io(at, other.into()),
    }
}
