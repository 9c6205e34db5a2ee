//! What a file lies on, and so how it is best reached. Probed once, when it is opened.
//!
//! Measured (4 KiB, depth 32): on tmpfs plain calls are seven times as fast as io_uring, and
//! `RWF_NOWAIT` is refused; reads from the page cache of ext4 and xfs are fastest when tried with
//! `RWF_NOWAIT` by the caller; buffered writes refuse `RWF_NOWAIT` (ext4) or always answer EAGAIN
//! (xfs), so whether one may block has to be guessed from what is unsynced. On tmpfs a copy from or to a
//! mapping of the file takes a third of what a call takes.
//!
//! On xfs, files of random first writes should carry an extent-size hint of 1 MiB, else each
//! gives an extent: [`FileDirectory::with_large_extents`](super::FileDirectory::with_large_extents).

use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, StatxFlags, fstatfs, statx};
use rustix::io::Errno;

use super::transfer;
use crate::mapped::Mapping;
use crate::{ALIGNMENT, Caching, ring};

/// How reads are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reads {
    /// Plain calls by the caller: nothing can block.
    Inline,
    /// By the caller as far as the page cache has it, the rest by the ring or on another thread.
    CachedInline,
    /// By the ring or on another thread.
    Away,
}

/// How writes are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writes {
    /// Plain calls by the caller: nothing can block.
    Inline,
    /// By the caller while little is unsynced, then on another thread.
    InlineWhileFewUnsynced,
    /// On another thread: the file system may go to a network or to another process.
    OffThread,
    /// By the ring, or on another thread.
    Ring,
}

/// What a file lies on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Medium {
    /// Type of the file system, or `block device`.
    pub(super) file_system: &'static str,
    pub(super) is_block_device: bool,
    pub(super) reads: Reads,
    pub(super) writes: Writes,
    /// Reads that are not inline go to the ring of a thread that has one, before other threads.
    pub(super) ring: bool,
    /// Bytes of which offset and length of every access are multiples; `None` if the page cache
    /// sees to that.
    pub(super) direct: Option<NonZeroU64>,
    /// Nothing is ever more durable than it is now, and what it holds can be reached through a mapping of it, without a call.
    pub(super) is_memory: bool,
}

/// A type of file system, as far as it matters here.
struct FileSystem {
    /// `f_type` of `statfs(2)`.
    magic: u32,
    name: &'static str,
    kind: Kind,
}

enum Kind {
    /// Files are pages in memory and nothing else.
    Memory,
    /// Writes go to the page cache; a disk of this host is behind it.
    Disk,
    /// A network or another process may be behind it.
    Other,
}

/// From `linux/magic.h` and the sources of file systems outside of it.
const FILE_SYSTEMS: [FileSystem; 14] = [
    FileSystem {
        magic: 0x0102_1994,
        name: "tmpfs",
        kind: Kind::Memory,
    },
    FileSystem {
        magic: 0x8584_58f6,
        name: "ramfs",
        kind: Kind::Memory,
    },
    FileSystem {
        magic: 0x0000_ef53,
        name: "ext4",
        kind: Kind::Disk,
    },
    FileSystem {
        magic: 0x5846_5342,
        name: "xfs",
        kind: Kind::Disk,
    },
    FileSystem {
        magic: 0x9123_683e,
        name: "btrfs",
        kind: Kind::Disk,
    },
    FileSystem {
        magic: 0xf2f5_2010,
        name: "f2fs",
        kind: Kind::Disk,
    },
    FileSystem {
        magic: 0xca45_1a4e,
        name: "bcachefs",
        kind: Kind::Disk,
    },
    FileSystem {
        magic: 0x0000_4d44,
        name: "vfat",
        kind: Kind::Disk,
    },
    FileSystem {
        magic: 0x2fc1_2fc1,
        name: "zfs",
        kind: Kind::Other,
    },
    FileSystem {
        magic: 0x794c_7630,
        name: "overlayfs",
        kind: Kind::Other,
    },
    FileSystem {
        magic: 0x0000_6969,
        name: "nfs",
        kind: Kind::Other,
    },
    FileSystem {
        magic: 0x6573_5546,
        name: "fuse",
        kind: Kind::Other,
    },
    FileSystem {
        magic: 0xff53_4d42,
        name: "cifs",
        kind: Kind::Other,
    },
    FileSystem {
        magic: 0x00c3_6400,
        name: "ceph",
        kind: Kind::Other,
    },
];

impl Medium {
    /// Finds out what a regular file lies on, that was opened as `caching` says.
    pub(super) fn of_file(fd: &OwnedFd, caching: Caching) -> Result<Self, Errno> {
        let (file_system, kind) = file_system_of(fd)?;
        if matches!(kind, Kind::Memory) {
            return Ok(Self {
                file_system,
                is_block_device: false,
                reads: Reads::Inline,
                writes: Writes::Inline,
                ring: false,
                direct: None,
                is_memory: true,
            });
        }
        let cached = Self {
            file_system,
            is_block_device: false,
            reads: cached_reads(fd),
            writes: match kind {
                Kind::Memory | Kind::Disk => Writes::InlineWhileFewUnsynced,
                Kind::Other => Writes::OffThread,
            },
            // A network that hangs shall not hang the kernel's threads of a ring.
            ring: matches!(kind, Kind::Disk) && ring::is_available(),
            direct: None,
            is_memory: false,
        };
        cached.reached(fd, caching)
    }

    /// A block device that was opened as `caching` says.
    pub(super) fn of_block_device(fd: &OwnedFd, caching: Caching) -> Result<Self, Errno> {
        let cached = Self {
            file_system: "block device",
            is_block_device: true,
            reads: cached_reads(fd),
            writes: Writes::InlineWhileFewUnsynced,
            ring: ring::is_available(),
            direct: None,
            is_memory: false,
        };
        cached.reached(fd, caching)
    }

    fn reached(self, fd: &OwnedFd, caching: Caching) -> Result<Self, Errno> {
        Ok(match caching {
            Caching::PageCache => self,
            Caching::Direct => Self {
                reads: Reads::Away,
                writes: Writes::Ring,
                ring: ring::is_available(),
                direct: Some(direct_alignment(fd)?),
                ..self
            },
        })
    }

    /// For an operator.
    pub(super) fn in_words(&self) -> &'static str {
        if self.direct.is_some() {
            return if self.ring {
                "O_DIRECT: io_uring"
            } else {
                "O_DIRECT: on threads (no io_uring here)"
            };
        }
        match (self.reads, self.writes, self.ring) {
            (Reads::Inline, ..) | (_, Writes::Inline, _) if Mapping::ARE_POSSIBLE => {
                "mapped where it holds data, else plain calls inline (memory file system)"
            }
            (Reads::Inline, ..) | (_, Writes::Inline, _) => {
                "plain calls inline (memory file system)"
            }
            (Reads::CachedInline, Writes::OffThread, _) => {
                "page cache: cached reads inline, the rest on threads"
            }
            (Reads::CachedInline, _, true) => {
                "page cache: cached reads and writes inline, other reads by io_uring, the rest on threads"
            }
            (Reads::CachedInline, _, false) => {
                "page cache: cached reads and writes inline, the rest on threads"
            }
            (Reads::Away, Writes::OffThread, _) => "all on threads",
            (Reads::Away, _, true) => {
                "page cache: writes inline, reads by io_uring, the rest on threads"
            }
            (Reads::Away, _, false) => "page cache: writes inline, the rest on threads",
        }
    }
}

/// What offsets, lengths and memory of direct access to this file must be multiples of.
///
/// # Errors
/// `EINVAL` if it cannot be had, or takes more than [`ALIGNMENT`].
fn direct_alignment(fd: &OwnedFd) -> Result<NonZeroU64, Errno> {
    let about = statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
    let told = StatxFlags::from_bits_retain(about.stx_mask).contains(StatxFlags::DIOALIGN);
    let alignment = if told {
        // Both zero: no direct access to this very file (encrypted, compressed, in the inode).
        u64::from(about.stx_dio_mem_align.max(about.stx_dio_offset_align))
    } else {
        // Linux before 6.1, and file systems that do not say: a page suits all of them.
        ALIGNMENT as u64
    };
    NonZeroU64::new(alignment)
        .filter(|unit| unit.is_power_of_two() && unit.get() <= ALIGNMENT as u64)
        .ok_or(Errno::INVAL)
}

/// The type of the file system that `fd` (a file or directory) lies on.
pub(super) fn file_system_name(fd: impl AsFd) -> &'static str {
    file_system_of(fd).map_or("this file system", |(name, _)| name)
}

#[allow(
    clippy::useless_conversion,
    reason = "the word is narrower on some architectures"
)]
fn file_system_of(fd: impl AsFd) -> Result<(&'static str, Kind), Errno> {
    let found = i64::from(fstatfs(fd)?.f_type);
    let known = FILE_SYSTEMS
        .into_iter()
        .find(|known| is_magic(known.magic, found));
    Ok(known.map_or(("this file system", Kind::Other), |known| {
        (known.name, known.kind)
    }))
}

/// `f_type` is a signed word on some architectures, so large numbers may come sign-extended.
fn is_magic(magic: u32, found: i64) -> bool {
    found & 0xffff_ffff == i64::from(magic)
}

fn cached_reads(fd: &OwnedFd) -> Reads {
    if transfer::can_read_cached(fd) {
        Reads::CachedInline
    } else {
        Reads::Away
    }
}
