//! Memory for I/O: owned, aligned, recycled.
//!
//! An [`IoBuf`] goes into an operation and comes back with its result, so no operation can outlive
//! its memory, and one buffer serves a request from the socket to the disk. Memory of dropped
//! buffers is kept by the thread that dropped them and handed out again, so a warm data path does
//! not allocate.
//!
//! What always holds:
//!
//! * A buffer starts at a multiple of [`ALIGNMENT`], as direct I/O wants it.
//! * A buffer can hold plaintext: sectors are decrypted in place. It is never wiped when dropped,
//!   it is memory of this process like any other: not in a core dump (the daemon switches those
//!   off), not shared, never written anywhere but by an operation it was given to. No key is ever
//!   put into one.
//! * So what a recycled buffer holds may belong to another volume. [`IoBuf::zeroed`] hides that;
//!   [`IoBuf::for_overwrite`] does not, and is only for who fills all of it before anything looks
//!   at it or leaves with it. Builds with debug assertions fill it with `0xA5`, so that a
//!   forgotten byte shows.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};

/// Buffers start at a multiple of this many bytes: a page, and no disk asks for more.
pub const ALIGNMENT: usize = 4096;

/// Sizes that are recycled: `ALIGNMENT << class`, to 32 MiB, the largest NBD payload we accept.
const CLASSES: usize = 14;
/// Buffers of one class that a thread keeps: four connections at queue depth 32.
const KEPT_OF_A_CLASS: usize = 128;
/// Bytes that a thread keeps at most, all classes together; beyond that memory is freed.
const KEPT_BYTES: usize = 32 << 20;
/// What `for_overwrite` holds in builds with debug assertions.
const UNWRITTEN: u8 = 0xA5;

thread_local! {
    static KEPT: RefCell<Kept> = const { RefCell::new(Kept::new()) };
}

/// Owned memory that starts at a multiple of [`ALIGNMENT`].
///
/// Not `Clone`, and its `Debug` shows no content: that may be plaintext.
pub struct IoBuf {
    /// All of it initialised; never grown or shrunk, so it never moves.
    memory: Vec<u8>,
    /// First aligned byte of `memory`.
    start: usize,
    len: usize,
}

impl IoBuf {
    /// A buffer of `len` zeros.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        match Self::recycled(len) {
            Some(mut buf) => {
                buf.fill(0);
                buf
            }
            None => Self::allocated(len),
        }
    }

    /// A buffer of `len` bytes of **unspecified content**, possibly plaintext of another volume:
    /// only for a caller who overwrites all of it before anything reads it.
    #[must_use]
    pub fn for_overwrite(len: usize) -> Self {
        let mut buf = Self::recycled(len).unwrap_or_else(|| Self::allocated(len));
        if cfg!(debug_assertions) {
            buf.fill(UNWRITTEN);
        }
        buf
    }

    /// A buffer that holds a copy of `bytes`.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buf = Self::recycled(bytes.len()).unwrap_or_else(|| Self::allocated(bytes.len()));
        buf.copy_from_slice(bytes);
        buf
    }

    /// Makes it `len` bytes long. Bytes that are new are zeros. Moves the content if there is no
    /// room for it.
    pub fn resize(&mut self, len: usize) {
        let old = self.len;
        if len > self.capacity() {
            let mut larger = Self::recycled(len).unwrap_or_else(|| Self::allocated(len));
            larger[..old].copy_from_slice(self);
            *self = larger;
        }
        self.len = len;
        if len > old {
            self[old..].fill(0);
        }
    }

    /// Drops all bytes but the first `len`; does nothing if there are no more.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Bytes it can hold without moving.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.memory.len() - self.start
    }

    fn recycled(len: usize) -> Option<Self> {
        let class = class_of(len)?;
        // A thread that is ending has given its memory back already.
        let memory = KEPT.try_with(|kept| kept.borrow_mut().take(class)).ok()??;
        Some(Self::over(memory, len))
    }

    fn allocated(len: usize) -> Self {
        let capacity = class_of(len).map_or(len, |class| ALIGNMENT << class);
        Self::over(vec![0; capacity + ALIGNMENT - 1], len)
    }

    fn over(memory: Vec<u8>, len: usize) -> Self {
        let start = memory.as_ptr().addr().wrapping_neg() % ALIGNMENT;
        Self { memory, start, len }
    }
}

impl Drop for IoBuf {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        // `try_with` fails in a thread that is ending: the memory is then simply freed.
        let _ = KEPT.try_with(|kept| kept.borrow_mut().put(memory));
    }
}

impl Deref for IoBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for IoBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

impl AsRef<[u8]> for IoBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for IoBuf {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoBuf")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// The smallest class that holds `len` bytes, if there is one.
fn class_of(len: usize) -> Option<usize> {
    let class = len.div_ceil(ALIGNMENT).next_power_of_two().trailing_zeros() as usize;
    (class < CLASSES).then_some(class)
}

/// Memory that a thread keeps for its next buffers, by class.
struct Kept {
    by_class: [Vec<Vec<u8>>; CLASSES],
    bytes: usize,
}

impl Kept {
    const fn new() -> Self {
        Self {
            by_class: [const { Vec::new() }; CLASSES],
            bytes: 0,
        }
    }

    fn take(&mut self, class: usize) -> Option<Vec<u8>> {
        let memory = self.by_class[class].pop()?;
        self.bytes -= memory.len();
        Some(memory)
    }

    /// Keeps `memory`, or frees it if it is of no class or there is enough.
    fn put(&mut self, memory: Vec<u8>) {
        let Some(capacity) = (memory.len() + 1).checked_sub(ALIGNMENT) else {
            return;
        };
        let Some(class) = class_of(capacity) else {
            return;
        };
        let same = &mut self.by_class[class];
        if same.len() < KEPT_OF_A_CLASS && self.bytes + memory.len() <= KEPT_BYTES {
            self.bytes += memory.len();
            same.push(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [usize; 8] = [0, 1, 511, 4096, 4097, 65536, 1 << 20, (32 << 20) + 1];

    #[test]
    fn a_buffer_is_aligned_whatever_its_size() {
        for len in SIZES {
            for buf in [IoBuf::zeroed(len), IoBuf::for_overwrite(len)] {
                assert_eq!(buf.as_ptr().addr() % ALIGNMENT, 0);
                assert_eq!(buf.len(), len);
            }
        }
    }

    #[test]
    fn zeroed_is_zero_also_when_recycled() {
        for len in SIZES {
            let mut buf = IoBuf::zeroed(len);
            buf.fill(0xFF);
            drop(buf);
            assert!(IoBuf::zeroed(len).iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn dropped_memory_is_handed_out_again() {
        let buf = IoBuf::zeroed(10_000);
        let address = buf.as_ptr().addr();
        drop(buf);
        assert_eq!(IoBuf::for_overwrite(16_384).as_ptr().addr(), address);
    }

    #[test]
    fn what_a_thread_keeps_is_bounded() {
        let many: Vec<IoBuf> = (0..KEPT_OF_A_CLASS + 10)
            .map(|_| IoBuf::zeroed(4096))
            .collect();
        drop(many);
        let large: Vec<IoBuf> = (0..4).map(|_| IoBuf::zeroed(16 << 20)).collect();
        drop(large);
        KEPT.with_borrow(|kept| {
            assert_eq!(kept.by_class[0].len(), KEPT_OF_A_CLASS);
            assert!(kept.bytes <= KEPT_BYTES);
            let sum: usize = kept.by_class.iter().flatten().map(Vec::len).sum();
            assert_eq!(kept.bytes, sum);
        });
    }

    #[test]
    fn resize_keeps_the_content_and_adds_zeros() {
        let mut buf = IoBuf::copy_of(&[7; 4096]);
        buf.truncate(100);
        buf.resize(4096);
        assert!(buf[..100].iter().all(|&byte| byte == 7));
        assert!(
            buf[100..].iter().all(|&byte| byte == 0),
            "old bytes came back"
        );
        buf.resize(100_000);
        assert_eq!(buf.as_ptr().addr() % ALIGNMENT, 0);
        assert!(buf[..100].iter().all(|&byte| byte == 7));
        assert!(buf[100..].iter().all(|&byte| byte == 0));
        buf.truncate(200_000);
        assert_eq!(buf.len(), 100_000);
    }

    #[test]
    fn debug_shows_no_content() {
        assert_eq!(
            format!("{:?}", IoBuf::copy_of(b"plaintext")),
            "IoBuf { len: 9, .. }"
        );
    }
}
