//! Locked memory as the kernel gives it: the only file that maps, locks, advises or dereferences it.
//!
//! A [`Region`] is one locked mapping between two inaccessible guard pages, cut into slots of
//! [`SLOT_BYTES`]. What always holds:
//! - every byte of a region is initialised: the mapping starts as zeros and a slot is wiped before
//!   it can be taken again;
//! - a slot has exactly one owner, a [`Slot`] or a [`Placed`]: the bitmap of taken slots is private
//!   to this file;
//! - the guards are mappings of their own *around* the locked one: inside it they would count
//!   against RLIMIT_MEMLOCK;
//! - the descriptor of secret memory is closed before the first key can be there: whoever may take
//!   it out of the process (`pidfd_getfd`) could map it and read.
//!
//! It never grows a region, and never tells which limit to raise: `locked/mod.rs` does.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;
use std::marker::PhantomData;
use std::ops::Deref;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use zeroize::Zeroize;

/// Size of one slot in bytes: a data key with its expanded schedules (720 bytes) and its MAC keys.
pub(crate) const SLOT_BYTES: usize = 1024;

/// Slots that one word of the bitmap stands for.
const SLOTS_PER_WORD: usize = u64::BITS as usize;

/// What went wrong on the way to a region, by step: the steps fail for different reasons.
#[derive(Debug)]
pub(super) enum RegionError {
    /// This kernel (or the seccomp filter of this process) has no `memfd_secret`.
    NoSecretMemory(io::Error),
    /// The bytes would exceed what the process may lock.
    LockLimit(io::Error),
    /// Any other refusal, with the call that met it.
    Call {
        call: &'static str,
        source: io::Error,
    },
}

/// One locked mapping and its guards.
pub(super) struct Region {
    /// First byte of the locked part; a guard page lies before it and one behind it.
    base: NonNull<u8>,
    /// Bytes of the locked part.
    len: usize,
    /// Bytes of each guard.
    guard: usize,
    /// Bit set: the slot has an owner.
    taken: Box<[AtomicU64]>,
}

// SAFETY: the region is plain memory that belongs to the process, not to a thread; which part may
// be touched by whom is decided by the atomic bitmap.
unsafe impl Send for Region {}
// SAFETY: as for `Send`: through `&Region` only the atomic bitmap can be reached.
unsafe impl Sync for Region {}

impl Region {
    /// A region of secret memory: absent from the kernel's direct map, unreadable for other
    /// processes by any means, never in a core dump, never on swap.
    pub(super) fn secret(len: usize) -> Result<Self, RegionError> {
        let fd = memfd_secret(len)?;
        let region = Self::map(len, libc::MAP_SHARED, fd.as_raw_fd(), |source| {
            if source.raw_os_error() == Some(libc::EAGAIN) {
                RegionError::LockLimit(source)
            } else {
                RegionError::Call {
                    call: "mmap of secret memory",
                    source,
                }
            }
        })?;
        drop(fd);
        // MADV_WIPEONFORK is refused on secret memory; a child shall not have it at all.
        region.advise(libc::MADV_DONTFORK, "madvise(MADV_DONTFORK)")?;
        region.touch();
        Ok(region)
    }

    /// A region of ordinary memory, locked, kept out of core dumps and of children.
    pub(super) fn locked(len: usize) -> Result<Self, RegionError> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let region = Self::map(len, flags, -1, |source| RegionError::Call {
            call: "mmap of anonymous memory",
            source,
        })?;
        // SAFETY: the range is the mapping just made, which `region` owns.
        if unsafe { libc::mlock(region.base.as_ptr().cast(), len) } != 0 {
            let source = io::Error::last_os_error();
            return Err(match source.raw_os_error() {
                Some(libc::ENOMEM | libc::EAGAIN | libc::EPERM) => RegionError::LockLimit(source),
                _ => RegionError::Call {
                    call: "mlock",
                    source,
                },
            });
        }
        region.advise(libc::MADV_DONTDUMP, "madvise(MADV_DONTDUMP)")?;
        region.advise(libc::MADV_WIPEONFORK, "madvise(MADV_WIPEONFORK)")?;
        region.touch();
        Ok(region)
    }

    /// Reserves guard, region and guard as inaccessible memory, then maps the region into its
    /// middle: three mappings, of which only the middle one is ever locked.
    fn map(
        len: usize,
        flags: libc::c_int,
        fd: RawFd,
        classify: impl FnOnce(io::Error) -> RegionError,
    ) -> Result<Self, RegionError> {
        let guard = rustix::param::page_size();
        assert!(len.is_multiple_of(guard), "a region is whole pages");
        assert!(
            len.is_multiple_of(SLOT_BYTES * SLOTS_PER_WORD),
            "a region is whole bitmap words"
        );
        let reservation = map_pages(
            ptr::null_mut(),
            len + 2 * guard,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
        )
        .map_err(|source| RegionError::Call {
            call: "mmap of the guards",
            source,
        })?;
        // SAFETY: `guard` is inside the reservation of `len + 2 * guard` bytes.
        let base = unsafe { reservation.add(guard) };
        // Made before the second mapping, so that its failure unmaps the reservation.
        let taken = (0..len / SLOT_BYTES / SLOTS_PER_WORD)
            .map(|_| AtomicU64::new(0))
            .collect();
        let region = Self {
            base,
            len,
            guard,
            taken,
        };
        map_pages(
            base.as_ptr().cast(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            flags | libc::MAP_FIXED,
            fd,
        )
        .map_err(classify)?;
        Ok(region)
    }

    fn advise(&self, advice: libc::c_int, call: &'static str) -> Result<(), RegionError> {
        // SAFETY: the range is this region's own mapping; the advices used here (no inheritance, no
        // dump) change no byte of it.
        if unsafe { libc::madvise(self.base.as_ptr().cast(), self.len, advice) } != 0 {
            return Err(RegionError::Call {
                call,
                source: io::Error::last_os_error(),
            });
        }
        Ok(())
    }

    /// Has the kernel provide every page now, so that no key path meets a page fault that cannot be
    /// served.
    fn touch(&self) {
        // SAFETY: base..base + len is mapped readable and writable, and no slot is taken yet.
        unsafe { ptr::write_bytes(self.base.as_ptr(), 0, self.len) };
    }

    /// Bytes that count against RLIMIT_MEMLOCK.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Slots that have an owner.
    pub(super) fn slots_taken(&self) -> usize {
        let bits = |word: &AtomicU64| word.load(Ordering::Relaxed).count_ones() as usize;
        self.taken.iter().map(bits).sum()
    }

    /// A free slot, all zeros, or `None` when every one has an owner.
    pub(super) fn take(self: &Arc<Self>) -> Option<Slot> {
        for (position, word) in self.taken.iter().enumerate() {
            let mut bits = word.load(Ordering::Relaxed);
            while bits != u64::MAX {
                let bit = bits.trailing_ones();
                // Acquire pairs with the release of the former owner: its wipe comes before us.
                match word.compare_exchange_weak(
                    bits,
                    bits | 1 << bit,
                    Ordering::Acquire,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => {
                        let index = position * SLOTS_PER_WORD + bit as usize;
                        return Some(Slot {
                            region: Arc::clone(self),
                            index,
                        });
                    }
                    Err(now) => bits = now,
                }
            }
        }
        None
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the reservation starts one guard before `base`; no slot is left, since each holds
        // an `Arc` of this region, so nothing refers to the memory any more.
        let result = unsafe {
            libc::munmap(
                self.base.as_ptr().sub(self.guard).cast(),
                self.len + 2 * self.guard,
            )
        };
        debug_assert_eq!(
            result,
            0,
            "munmap of a region: {}",
            io::Error::last_os_error()
        );
    }
}

/// A secret-memory file of `len` bytes, close-on-exec.
fn memfd_secret(len: usize) -> Result<OwnedFd, RegionError> {
    // SAFETY: memfd_secret(2) takes one integer of flags and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    if fd < 0 {
        let source = io::Error::last_os_error();
        return Err(match source.raw_os_error() {
            // Not built, or not enabled at boot; or filtered (seccomp answers EPERM or EACCES).
            Some(libc::ENOSYS | libc::EPERM | libc::EACCES) => RegionError::NoSecretMemory(source),
            _ => RegionError::Call {
                call: "memfd_secret",
                source,
            },
        });
    }
    let fd = RawFd::try_from(fd).expect("a descriptor is a small number");
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::fs::ftruncate(&fd, len as u64).map_err(|errno| RegionError::Call {
        call: "ftruncate of secret memory",
        source: errno.into(),
    })?;
    Ok(fd)
}

fn map_pages(
    address: *mut c_void,
    len: usize,
    protection: libc::c_int,
    flags: libc::c_int,
    fd: RawFd,
) -> io::Result<NonNull<u8>> {
    // SAFETY: either the kernel chooses the address (null, without MAP_FIXED), or `Region::map`
    // passes a range inside the reservation it has just made, which nothing else refers to.
    let mapped = unsafe { libc::mmap(address, len, protection, flags, fd, 0) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(NonNull::new(mapped.cast()).expect("mmap does not answer with page zero"))
}

/// One kibibyte of locked memory with one owner; wiped when dropped.
pub(crate) struct Slot {
    region: Arc<Region>,
    index: usize,
}

impl Slot {
    fn pointer(&self) -> NonNull<u8> {
        // SAFETY: `index` came from the bitmap of this region, which has a bit per slot of it.
        unsafe { self.region.base.add(self.index * SLOT_BYTES) }
    }

    /// The content. Key bytes are seen through this method and [`Slot::bytes_mut`] only.
    pub(crate) fn bytes(&self) -> &[u8; SLOT_BYTES] {
        // SAFETY: the slot lies in the mapping, is initialised (region docs), and `self` is its only
        // owner, so that nobody writes while this borrow lives.
        unsafe { self.pointer().cast::<[u8; SLOT_BYTES]>().as_ref() }
    }

    /// The content, to be written in place.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8; SLOT_BYTES] {
        // SAFETY: as for `bytes`; `&mut self` makes the borrow exclusive.
        unsafe { self.pointer().cast::<[u8; SLOT_BYTES]>().as_mut() }
    }

    /// Makes a `T` from the raw content and puts it in the place of that content, which is wiped.
    ///
    /// The value passes over the stack: call this behind the boundary of `residue.rs`.
    pub(crate) fn place<T: Send + Sync>(
        mut self,
        make: impl FnOnce(&[u8; SLOT_BYTES]) -> T,
    ) -> Placed<T> {
        const {
            assert!(size_of::<T>() <= SLOT_BYTES, "the value fits a slot");
            assert!(align_of::<T>() <= 64, "a slot starts at a multiple of 1024");
        }
        let value = make(self.bytes());
        self.bytes_mut().zeroize();
        // SAFETY: the slot is large and aligned enough (asserted above), is owned by `self`, and
        // holds nothing that needs to be dropped.
        unsafe { self.pointer().cast::<T>().write(value) };
        Placed {
            slot: self,
            value: PhantomData,
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.bytes_mut().zeroize();
        let bit = 1 << (self.index % SLOTS_PER_WORD);
        // Release: the wipe happens before the next owner's first look.
        self.region.taken[self.index / SLOTS_PER_WORD].fetch_and(!bit, Ordering::Release);
    }
}

/// A `T` that lives in a slot; dropped and wiped with it.
pub(crate) struct Placed<T> {
    slot: Slot,
    value: PhantomData<T>,
}

#[cfg(test)]
impl<T> Placed<T> {
    /// The whole slot, for types without padding.
    pub(super) fn slot_bytes(&self) -> &[u8; SLOT_BYTES] {
        self.slot.bytes()
    }
}

impl<T> Deref for Placed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `Slot::place` wrote a `T` here, and nothing else writes before `drop`.
        unsafe { self.slot.pointer().cast::<T>().as_ref() }
    }
}

impl<T> Drop for Placed<T> {
    fn drop(&mut self) {
        // SAFETY: the value is there (as for `deref`), is dropped once, and is not seen again:
        // the slot's own drop, which follows, overwrites all of its bytes.
        unsafe { self.slot.pointer().cast::<T>().drop_in_place() };
    }
}
