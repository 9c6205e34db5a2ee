//! What a file lies on, and so how it is best reached. Probed once, when it is opened.
//!
//! Measured (4 KiB, depth 32): on tmpfs plain calls are seven times as fast as io_uring, and
//! `RWF_NOWAIT` is refused; reads from the page cache of ext4 and xfs are fastest when tried with
//! `RWF_NOWAIT` by the caller; buffered writes refuse `RWF_NOWAIT` (ext4) or always answer EAGAIN
//! (xfs), so whether one may block has to be guessed from what is unsynced.
//!
//! On xfs, files should carry an extent-size hint of 1 MiB, else random first writes give one
//! extent each. Setting it takes an `ioctl` for which there is no safe call; a directory hands it
//! on to new files: `xfs_io -c 'extsize 1m' DIRECTORY`.

use std::os::fd::OwnedFd;

use rustix::fs::fstatfs;
use rustix::io::Errno;

use super::transfer;

/// How reads are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reads {
    /// Plain calls by the caller: nothing can block.
    Inline,
    /// By the caller as far as the page cache has it, the rest on another thread.
    CachedInline,
    /// On another thread.
    OffThread,
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
}

/// What a file lies on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Medium {
    /// Type of the file system, or `block device`.
    pub(super) file_system: &'static str,
    pub(super) is_block_device: bool,
    pub(super) reads: Reads,
    pub(super) writes: Writes,
    /// Memory: nothing is ever more durable than it is now.
    pub(super) sync_does_nothing: bool,
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
    /// Finds out what a regular file lies on.
    pub(super) fn of_file(fd: &OwnedFd) -> Result<Self, Errno> {
        let (file_system, kind) = file_system_of(fd)?;
        let in_memory = matches!(kind, Kind::Memory);
        Ok(Self {
            file_system,
            is_block_device: false,
            reads: if in_memory {
                Reads::Inline
            } else {
                cached_reads(fd)
            },
            writes: match kind {
                Kind::Memory => Writes::Inline,
                Kind::Disk => Writes::InlineWhileFewUnsynced,
                Kind::Other => Writes::OffThread,
            },
            sync_does_nothing: in_memory,
        })
    }

    /// A block device, reached through its page cache.
    pub(super) fn of_block_device(fd: &OwnedFd) -> Self {
        Self {
            file_system: "block device",
            is_block_device: true,
            reads: cached_reads(fd),
            writes: Writes::InlineWhileFewUnsynced,
            sync_does_nothing: false,
        }
    }

    /// For an operator.
    pub(super) fn in_words(&self) -> &'static str {
        match (self.reads, self.writes) {
            (Reads::Inline, _) | (_, Writes::Inline) => "plain calls inline (memory file system)",
            (Reads::CachedInline, Writes::InlineWhileFewUnsynced) => {
                "page cache: cached reads and writes inline, the rest on threads"
            }
            (Reads::CachedInline, Writes::OffThread) => {
                "page cache: cached reads inline, the rest on threads"
            }
            (Reads::OffThread, Writes::InlineWhileFewUnsynced) => {
                "page cache: writes inline, the rest on threads"
            }
            (Reads::OffThread, Writes::OffThread) => "all on threads",
        }
    }
}

/// The type of the file system that `fd` (a file or directory) lies on.
pub(super) fn file_system_name(fd: &OwnedFd) -> &'static str {
    file_system_of(fd).map_or("this file system", |(name, _)| name)
}

#[allow(
    clippy::useless_conversion,
    reason = "the word is narrower on some architectures"
)]
fn file_system_of(fd: &OwnedFd) -> Result<(&'static str, Kind), Errno> {
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
        Reads::OffThread
    }
}
