//! A message with a key in it, as key services send and want them, in one slot of locked memory.
//!
//! What always holds: the bytes lie in the slot and are wiped with it; what does not fit is refused whole, never moved to
//! larger, ordinary memory. Never printed, compared or cloned.

use std::sync::Arc;

use crate::locked::{KeyMemory, LockedError, SLOT_BYTES, Slot};

/// Up to [`SecretBytes::CAPACITY`] bytes in locked memory.
pub struct SecretBytes {
    slot: Slot,
    length: usize,
}

/// The bytes do not fit the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a message with a key in it is longer than the {} bytes there are for it",
    SecretBytes::CAPACITY
)]
pub struct SecretTooLong;

impl SecretBytes {
    /// Most bytes that it holds.
    pub const CAPACITY: usize = SLOT_BYTES;

    /// None yet.
    ///
    /// # Errors
    /// When there is no locked memory.
    pub fn new(memory: &Arc<KeyMemory>) -> Result<Self, LockedError> {
        Ok(Self {
            slot: memory.slot()?,
            length: 0,
        })
    }

    /// Adds `bytes` at the end, all or none.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), SecretTooLong> {
        self.grow(bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }

    /// Adds `count` zeros at the end, to be written in place.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn grow(&mut self, count: usize) -> Result<&mut [u8], SecretTooLong> {
        let end = self.length.checked_add(count).ok_or(SecretTooLong)?;
        let added = self.slot.bytes_mut().get_mut(self.length..end);
        let added = added.ok_or(SecretTooLong)?;
        self.length = end;
        Ok(added)
    }
}

impl AsRef<[u8]> for SecretBytes {
    fn as_ref(&self) -> &[u8] {
        &self.slot.bytes()[..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::locked::Policy;

    #[test]
    fn what_fits_is_kept_in_order_and_what_does_not_is_refused_whole() {
        let memory = KeyMemory::new(Policy::default()).expect("locked memory");
        let mut bytes = SecretBytes::new(&memory).expect("a slot");
        bytes.push(b"one").unwrap();
        bytes.grow(2).unwrap().copy_from_slice(b"tw");
        assert_eq!(bytes.as_ref(), b"onetw");
        let rest = SecretBytes::CAPACITY - 5;
        assert_eq!(bytes.push(&vec![1; rest + 1]), Err(SecretTooLong));
        assert_eq!(bytes.as_ref(), b"onetw");
        bytes.push(&vec![1; rest]).unwrap();
        assert_eq!(bytes.grow(usize::MAX).map(|_| ()), Err(SecretTooLong));
        assert_eq!(bytes.as_ref().len(), SecretBytes::CAPACITY);

        assert_eq!(memory.slots_in_use(), 1);
        drop(bytes);
        let next = memory.slot().expect("the same slot");
        assert_eq!((memory.slots_in_use(), next.bytes()), (1, &[0; SLOT_BYTES]));
    }
}
