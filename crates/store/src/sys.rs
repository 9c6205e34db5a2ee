//! What a kernel queue (io_uring) is given, and the extent-size hint. Beside `mapped.rs` the one file of this crate with `unsafe`.
//!
//! What always holds: a buffer that was pushed belongs to the [`Queue`] until its completion was
//! reaped, and so does the file: nobody else can read, write, move or free that memory meanwhile,
//! whatever becomes of those who wait for it. A queue that is dropped first waits for everything
//! in flight; one that is leaked leaks its buffers with it.
//! Never: a wait for a device, but when a queue is dropped. A queue stays on the thread that made it.

#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use io_uring::{IoUring, opcode as operation, types};
use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, Setter, ioctl, opcode};

use crate::IoBuf;

/// What one operation moves at most, as with `read(2)` (`MAX_RW_COUNT`).
const TRANSFER_MAX: usize = 0x7fff_f000;

/// A file that an operation in flight keeps open.
pub(crate) type File = Arc<dyn AsFd + Send + Sync>;

/// What an operation does with its buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transfer {
    /// File to buffer.
    Read,
    /// Buffer to file.
    Write {
        /// With `RWF_DSYNC`.
        durable: bool,
    },
}

/// A submission and a completion queue that this thread shares with the kernel.
pub(crate) struct Queue {
    ring: IoUring,
    /// What the kernel has, by slot.
    flying: Vec<Option<Flying>>,
    in_flight: usize,
    /// The kernel takes submissions from the thread that made the queue only.
    _stays: PhantomData<*const ()>,
}

struct Flying {
    buf: IoBuf,
    _file: File,
}

impl Queue {
    /// A queue for `in_flight_max` operations at once, `batch` of them in one system call.
    /// Whenever completions arrive, `event` becomes readable anew.
    ///
    /// # Errors
    /// The kernel's: it has no io_uring, forbids it, or has no memory.
    pub(crate) fn new(batch: u32, in_flight_max: u32, event: BorrowedFd<'_>) -> io::Result<Self> {
        // Completions are handed over when this thread asks, not by interrupting it (Linux 6.1).
        let modern = IoUring::builder()
            .dontfork()
            .setup_cqsize(2 * in_flight_max)
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(batch);
        let ring = modern.or_else(|_| {
            IoUring::builder()
                .dontfork()
                .setup_cqsize(2 * in_flight_max)
                .build(batch)
        })?;
        // Without it a full completion queue would lose completions (Linux 5.5).
        if !ring.params().is_feature_nodrop() {
            return Err(Errno::NOSYS.into());
        }
        let submitter = ring.submitter();
        submitter.register_eventfd(event.as_raw_fd())?;
        // Operations that have to block do so on threads of the kernel. If there were fewer of
        // these than operations, one stalled file could take them all. Linux before 5.15 has no
        // such setting, and goes without.
        let _ = submitter.register_iowq_max_workers(&mut [in_flight_max, 0]);
        Ok(Self {
            ring,
            flying: Vec::new(),
            in_flight: 0,
            _stays: PhantomData,
        })
    }

    /// Puts an operation into the submission queue under a number that no operation in flight has,
    /// for all of `buf` but the first `done` bytes. Gives the buffer back if the queue is full.
    ///
    /// # Panics
    /// If an operation with that number is in flight, or `done` is more than there is.
    pub(crate) fn push(
        &mut self,
        slot: usize,
        transfer: Transfer,
        file: File,
        offset: u64,
        buf: IoBuf,
        done: usize,
    ) -> Result<(), IoBuf> {
        if self.flying.len() <= slot {
            self.flying.resize_with(slot + 1, || None);
        }
        let place = &mut self.flying[slot];
        assert!(place.is_none(), "slot {slot} is in flight");
        let fd = types::Fd(file.as_fd().as_raw_fd());
        let flying = place.insert(Flying { buf, _file: file });
        let rest = &mut flying.buf[done..];
        let memory = rest.as_mut_ptr();
        let len = u32::try_from(rest.len().min(TRANSFER_MAX)).unwrap_or(0);
        let offset = offset + done as u64;
        let entry = match transfer {
            Transfer::Read => operation::Read::new(fd, memory, len).offset(offset).build(),
            Transfer::Write { durable } => operation::Write::new(fd, memory, len)
                .offset(offset)
                .rw_flags(if durable { rwf_dsync() } else { 0 })
                .build(),
        };
        let entry = entry.user_data(slot as u64);
        // SAFETY: `entry` names the `len` initialised bytes at `memory`, which an `IoBuf` in
        // `flying` owns. Its heap memory does not move with it, nothing in this file touches it
        // before `reap` has seen the completion of this slot, the `assert` above keeps a second
        // operation from taking its place, and `drop` waits for the completion. Of the file only
        // the number is named: the `Arc` beside the buffer keeps it from being reused.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            // The kernel never saw it.
            return match place.take() {
                Some(flying) => Err(flying.buf),
                None => Ok(()),
            };
        }
        self.in_flight += 1;
        Ok(())
    }

    /// How many operations were pushed and not submitted yet.
    pub(crate) fn pushed(&mut self) -> usize {
        self.ring.submission().len()
    }

    /// Operations that were pushed and whose completion was not reaped yet.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Submits what was pushed and lets completions in, in one system call, if there is reason for
    /// one. Does not wait.
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        let submission = self.ring.submission();
        let idle = submission.is_empty() && !submission.taskrun() && !submission.cq_overflow();
        drop(submission);
        if idle {
            return Ok(());
        }
        self.ring.submit().map(drop)
    }

    /// Hands every completion that is there to `each`: slot, buffer, and bytes moved or the error.
    pub(crate) fn reap(&mut self, mut each: impl FnMut(usize, IoBuf, Result<usize, Errno>)) {
        let Self {
            ring,
            flying,
            in_flight,
            ..
        } = self;
        for completion in ring.completion() {
            let slot = usize::try_from(completion.user_data()).unwrap_or(usize::MAX);
            // The kernel is done with this memory: it completes an operation once.
            let Some(landed) = flying.get_mut(slot).and_then(Option::take) else {
                continue;
            };
            *in_flight -= 1;
            let result = usize::try_from(completion.result())
                .map_err(|_| Errno::from_raw_os_error(-completion.result()));
            each(slot, landed.buf, result);
        }
    }

    /// Waits until nothing is in flight.
    pub(crate) fn finish(
        &mut self,
        mut each: impl FnMut(usize, IoBuf, Result<usize, Errno>),
    ) -> io::Result<()> {
        self.reap(&mut each);
        while self.in_flight > 0 {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
                    Some(Errno::INTR | Errno::BUSY) => {}
                    // The kernel has no memory for now.
                    Some(Errno::AGAIN | Errno::NOMEM) => thread::sleep(Duration::from_millis(1)),
                    _ => return Err(error),
                },
            }
            self.reap(&mut each);
        }
        Ok(())
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if self.finish(|_, _, _| {}).is_err() {
            // The kernel may still have them: memory that is lost does no harm.
            mem::forget(mem::take(&mut self.flying));
        }
    }
}

/// `struct fsxattr` of `linux/fs.h`.
#[repr(C)]
#[derive(Clone, Copy)]
struct FileAttributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    _pad: [u8; 8],
}

/// `FS_IOC_FSGETXATTR` and `FS_IOC_FSSETXATTR`.
const GET_ATTRIBUTES: Opcode = opcode::read::<FileAttributes>(b'X', 31);
const SET_ATTRIBUTES: Opcode = opcode::write::<FileAttributes>(b'X', 32);
/// `FS_XFLAG_EXTSIZE`.
const HAS_EXTENT_SIZE: u32 = 0x0800;

/// Has the file system give this file space in pieces of so many bytes. The file is still empty.
///
/// # Errors
/// Where there is no such hint.
pub(crate) fn hint_extent_size(file: impl AsFd, bytes: u32) -> Result<(), Errno> {
    // SAFETY: FS_IOC_FSGETXATTR writes one `struct fsxattr`, which `FileAttributes` is: plain
    // integers without padding, in its order.
    let old = unsafe {
        ioctl(
            file.as_fd(),
            Getter::<GET_ATTRIBUTES, FileAttributes>::new(),
        )
    }?;
    let new = FileAttributes {
        flags: old.flags | HAS_EXTENT_SIZE,
        extent_size: bytes,
        ..old
    };
    // SAFETY: FS_IOC_FSSETXATTR reads one `struct fsxattr`, as above, and keeps no pointer to it.
    unsafe {
        ioctl(
            file.as_fd(),
            Setter::<SET_ATTRIBUTES, FileAttributes>::new(new),
        )
    }
}

/// `RWF_DSYNC` as the field of a submission has it.
fn rwf_dsync() -> i32 {
    rustix::io::ReadWriteFlags::DSYNC.bits().cast_signed()
}
