//! What can go wrong with a store, by cause.
//!
//! Every message names the file, what was tried where, the cause and what to do next. Errors can
//! be cloned, because one failed sync is the answer to everybody who waited for it.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

/// What was asked of a store or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// [`Store::allocate`](crate::Store::allocate).
    Allocate,
    /// [`Directory::create`](crate::Directory::create).
    Create,
    /// [`Store::discard_cache`](crate::Store::discard_cache).
    DiscardCache,
    /// [`Store::grow`](crate::Store::grow).
    Grow,
    /// [`Directory::list`](crate::Directory::list).
    List,
    /// [`Directory::open`](crate::Directory::open), or opening a file or device by path.
    Open,
    /// [`Store::punch`](crate::Store::punch).
    Punch,
    /// [`Store::read_at`](crate::Store::read_at).
    Read,
    /// [`Directory::remove`](crate::Directory::remove).
    Remove,
    /// [`Directory::rename`](crate::Directory::rename).
    Rename,
    /// [`Store::sync`](crate::Store::sync).
    Sync,
    /// [`Directory::sync`](crate::Directory::sync).
    SyncDirectory,
    /// [`Store::write_at`](crate::Store::write_at).
    Write,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allocate => "allocate space",
            Self::Create => "create",
            Self::DiscardCache => "discard the page cache",
            Self::Grow => "grow",
            Self::List => "list",
            Self::Open => "open",
            Self::Punch => "punch a hole",
            Self::Read => "read",
            Self::Remove => "remove",
            Self::Rename => "rename",
            Self::Sync => "sync",
            Self::SyncDirectory => "sync the directory",
            Self::Write => "write",
        })
    }
}

/// Where an operation failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What was asked.
    pub operation: Operation,
    /// The file, device or directory. A model's files have made-up paths.
    pub path: Arc<Path>,
    /// First byte of the range; 0 for an operation on the whole file.
    pub offset: u64,
    /// Bytes in the range; 0 for an operation on the whole file. For
    /// [`Operation::Create`] and [`Operation::Grow`], the length that was wanted.
    pub len: u64,
}

impl Place {
    pub(crate) fn new(operation: Operation, path: &Arc<Path>, offset: u64, len: u64) -> Box<Self> {
        Box::new(Self {
            operation,
            path: Arc::clone(path),
            offset,
            len,
        })
    }

    pub(crate) fn whole(operation: Operation, path: &Arc<Path>) -> Box<Self> {
        Self::new(operation, path, 0, 0)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: cannot {}", self.path.display(), self.operation)?;
        match self.operation {
            Operation::Read | Operation::Write | Operation::Punch | Operation::Allocate => {
                write!(f, " ({} bytes at offset {})", self.len, self.offset)
            }
            Operation::Create | Operation::Grow => write!(f, " ({} bytes)", self.len),
            _ => Ok(()),
        }
    }
}

/// Why a store could not do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// A file of that name is there already.
    #[error("{at}: the name is taken; choose another, or remove that file first")]
    AlreadyExists {
        /// Where.
        at: Box<Place>,
    },

    /// The name cannot be that of a file in a directory.
    #[error(
        "{at}: {name:?} is not a file name; use 1 to 255 bytes without '/' and NUL, not \".\" or \"..\""
    )]
    InvalidName {
        /// Where.
        at: Box<Place>,
        /// What was given as a name.
        name: String,
    },

    /// The operating system refused or failed, for a reason without a variant of its own.
    #[error("{at}: {source}; {}", next_step(source))]
    Io {
        /// Where.
        at: Box<Place>,
        /// The system's own error.
        #[source]
        source: Arc<io::Error>,
    },

    /// Another opener, in this process or another, holds the file.
    #[error(
        "{at}: it is in use (locked by another open file, or a device that is mounted or claimed); \
         detach it there first, see `fuser -v {}`", at.path.display()
    )]
    Locked {
        /// Where.
        at: Box<Place>,
    },

    /// Direct access was asked for.
    #[error(
        "{at}: {file_system} has no direct access (O_DIRECT) to it, or only in units of more than a page; \
         attach it without --direct"
    )]
    NotDirect {
        /// Where.
        at: Box<Place>,
        /// The type of the file system, or `block device`.
        file_system: &'static str,
    },

    /// No file of that name.
    #[error("{at}: no such file; check the name, and that the store is mounted")]
    NotFound {
        /// Where.
        at: Box<Place>,
    },

    /// The file system, device or quota is full.
    #[error("{at}: no space left; free or add space on the store, then try again")]
    NoSpace {
        /// Where.
        at: Box<Place>,
    },

    /// The range reaches beyond the end of the store: a mistake of the caller.
    #[error("{at}: the store ends at byte {end}")]
    PastEnd {
        /// Where.
        at: Box<Place>,
        /// Length of the store in bytes.
        end: u64,
    },

    /// The modelled power is off. Only [`fault`](crate::fault) says this.
    #[error("{at}: the power is off; restart the modelled disk and open it again")]
    PowerLost {
        /// Where.
        at: Box<Place>,
    },

    /// The store was opened read-only, or may only be read.
    #[error("{at}: it is read-only; attach it writable, or check permissions and mount options")]
    ReadOnly {
        /// Where.
        at: Box<Place>,
    },

    /// Growing was asked for and it would have become shorter.
    #[error("{at}: it is {current} bytes long already, and a store is never made shorter")]
    Shrink {
        /// Where; the length is the one asked for.
        at: Box<Place>,
        /// Length of the store in bytes.
        current: u64,
    },

    /// The file system or device cannot hold a file of that size.
    #[error(
        "{at}: {file_system} holds at most {} in one file; choose a smaller size or another store",
        Limit(*limit)
    )]
    TooLarge {
        /// Where; the length is the one asked for.
        at: Box<Place>,
        /// The most it can hold, in bytes; `None` if that could not be found out.
        limit: Option<u64>,
        /// What sets the limit: the type of the file system, or `block device`.
        file_system: &'static str,
    },

    /// The file became shorter while it was open: somebody else changed it.
    #[error(
        "{at}: the file was cut to {end} bytes behind our back; \
         find out what writes to the store, and restore the file"
    )]
    Truncated {
        /// Where.
        at: Box<Place>,
        /// Where the file ends now, in bytes.
        end: u64,
    },

    /// A direct write that does not consist of whole units: a mistake of the caller. Nothing was
    /// written: to read the rest of a unit and write it back could undo a write beside it.
    #[error("{at}: it is written in whole units of {unit} bytes only")]
    Unaligned {
        /// Where.
        at: Box<Place>,
        /// What offset and length must be multiples of, in bytes.
        unit: u64,
    },

    /// The file system or device has no such operation.
    #[error("{at}: {file_system} cannot do that; use another store if it is needed")]
    Unsupported {
        /// Where.
        at: Box<Place>,
        /// The type of the file system, or `block device`.
        file_system: &'static str,
    },

    /// It is there but of another kind: a symbolic link, a FIFO, a directory, a device.
    #[error("{at}: it is {found}, not {wanted}; nothing that is not ours is followed or opened")]
    WrongType {
        /// Where.
        at: Box<Place>,
        /// What is there.
        found: &'static str,
        /// What was asked for.
        wanted: &'static str,
    },
}

impl StoreError {
    /// Whether space was missing: nothing is lost, and the same call may succeed later.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::NoSpace { .. })
    }

    /// Where it happened.
    #[must_use]
    pub fn place(&self) -> &Place {
        match self {
            Self::AlreadyExists { at }
            | Self::InvalidName { at, .. }
            | Self::Io { at, .. }
            | Self::Locked { at }
            | Self::NotDirect { at, .. }
            | Self::NotFound { at }
            | Self::NoSpace { at }
            | Self::PastEnd { at, .. }
            | Self::PowerLost { at }
            | Self::ReadOnly { at }
            | Self::Shrink { at, .. }
            | Self::TooLarge { at, .. }
            | Self::Truncated { at, .. }
            | Self::Unaligned { at, .. }
            | Self::Unsupported { at, .. }
            | Self::WrongType { at, .. } => at,
        }
    }

    pub(crate) fn io(at: Box<Place>, source: io::Error) -> Self {
        Self::Io {
            at,
            source: Arc::new(source),
        }
    }
}

/// What to do about an error of the system.
fn next_step(source: &io::Error) -> &'static str {
    match source.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::ACCESS | Errno::PERM) => "check the owner and mode of the file and its folders",
        Some(Errno::MFILE) => "raise the daemon's limit of open files (LimitNOFILE=)",
        Some(Errno::NFILE) => "raise the host's limit of open files (fs.file-max)",
        Some(Errno::NOTDIR) => "check the path",
        _ => "look in the kernel log for the cause",
    }
}

/// A limit in words.
struct Limit(Option<u64>);

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(bytes) => write!(f, "{bytes} bytes"),
            None => f.write_str("less than that"),
        }
    }
}
