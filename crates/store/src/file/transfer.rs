//! Moving bytes: positional reads and writes that go on until all is done.

use std::io::{IoSlice, IoSliceMut};
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;

use rustix::io::{Errno, ReadWriteFlags, pread, preadv2, pwrite, pwritev2, retry_on_intr};

/// The page cache's unit; larger pages only make [`edges_are_cached`] ask too often.
const PAGE: u64 = 4096;

/// Fills `buf`, waiting as long as it takes. If the file ends before, returns where.
pub(super) fn read_all(fd: &OwnedFd, buf: &mut [u8], offset: u64) -> Result<Option<u64>, Errno> {
    let mut done = 0;
    while done < buf.len() {
        let at = offset + done as u64;
        match retry_on_intr(|| pread(fd, &mut buf[done..], at))? {
            0 => return Ok(Some(at)),
            count => done += count,
        }
    }
    Ok(None)
}

/// Reads at least the first `need` bytes of `buf`, past the page cache, waiting as long as it
/// takes; offset and length of `buf` are multiples of `unit`. If the file ends before, returns where.
pub(super) fn read_directly(
    fd: &OwnedFd,
    buf: &mut [u8],
    offset: u64,
    need: usize,
    unit: NonZeroU64,
) -> Result<Option<u64>, Errno> {
    let mut done = 0;
    while done < need {
        let at = offset + done as u64;
        done += retry_on_intr(|| pread(fd, &mut buf[done..], at))?;
        let end = offset + done as u64;
        // Within a unit only the end of the file ends a read.
        if done < need && (end == at || !end.is_multiple_of(unit.get())) {
            return Ok(Some(end));
        }
    }
    Ok(None)
}

/// Reads as much from the start of `buf` as the page cache has without waiting; returns how much.
/// Errors are left for [`read_all`] to meet again.
pub(super) fn read_cached(fd: &OwnedFd, buf: &mut [u8], offset: u64) -> usize {
    let mut done = 0;
    while done < buf.len() {
        let rest = &mut [IoSliceMut::new(&mut buf[done..])];
        match preadv2(fd, rest, offset + done as u64, ReadWriteFlags::NOWAIT) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(_) => break,
        }
    }
    done
}

/// Writes all of `buf`; if `durable`, it is on stable storage on return.
pub(super) fn write_all(fd: &OwnedFd, buf: &[u8], offset: u64, durable: bool) -> Result<(), Errno> {
    let mut done = 0;
    while done < buf.len() {
        let rest = &buf[done..];
        let at = offset + done as u64;
        let count = retry_on_intr(|| {
            if durable {
                pwritev2(fd, &[IoSlice::new(rest)], at, ReadWriteFlags::DSYNC)
            } else {
                pwrite(fd, rest, at)
            }
        })?;
        if count == 0 {
            return Err(Errno::IO); // write(2) has no such answer; never spin on it
        }
        done += count;
    }
    Ok(())
}

/// Whether this file can be asked for what the page cache has.
pub(super) fn can_read_cached(fd: &OwnedFd) -> bool {
    let byte = &mut [0];
    let answer = preadv2(fd, &mut [IoSliceMut::new(byte)], 0, ReadWriteFlags::NOWAIT);
    matches!(answer, Ok(_) | Err(Errno::AGAIN))
}

/// Whether the pages that a write covers only in part are in the page cache. If one is not, the
/// write first reads it from the disk.
pub(super) fn edges_are_cached(fd: &OwnedFd, offset: u64, len: u64) -> bool {
    let end = offset + len;
    let is_cached = |at: u64| {
        let byte = &mut [0];
        read_cached(fd, byte, at) == 1
    };
    let head_is = offset.is_multiple_of(PAGE) || is_cached(offset);
    head_is && (end.is_multiple_of(PAGE) || is_cached(end - 1))
}
