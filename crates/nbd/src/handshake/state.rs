//! The states of a handshake, each with the data that only it needs.

use crate::handshake::InfoReason;
use crate::option::{AfterDrop, InfoItems, Kept, Queries};

/// See the diagram of the parent module.
#[derive(Debug)]
pub(super) enum State {
    /// The greeting is out; four bytes of client flags come next.
    ClientFlags,
    /// The sixteen bytes that open an option come next.
    OptionHeader,
    /// Bytes of data that matter come next.
    KeptData { option: Kept, length: usize },
    /// Bytes of data that do not matter come next.
    DroppedData {
        option: u32,
        left: u32,
        then: AfterDrop,
    },
    /// Only the server can go on, by an answer.
    Asked(Question),
    /// Transmission has begun or the connection must close; bytes are no longer ours.
    Ended,
}

/// What the server has been asked.
#[derive(Debug)]
pub(super) enum Question {
    List,
    Export { name: String, purpose: Purpose },
}

/// Why it has been asked about an export, with what the answer needs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    ExportName,
    Info(InfoItems),
    Go(InfoItems),
    ListMetaContext(Queries),
    SetMetaContext(Queries),
}

impl State {
    /// How many bytes must be gathered before the state can be left; zero if none are awaited or
    /// none are kept.
    pub(super) fn gathers(&self) -> usize {
        match self {
            Self::ClientFlags => 4,
            Self::OptionHeader => crate::wire::OPTION_HEADER_LEN,
            Self::KeptData { length, .. } => *length,
            Self::DroppedData { .. } | Self::Asked(_) | Self::Ended => 0,
        }
    }
}

impl Purpose {
    pub(super) fn reason(self) -> InfoReason {
        match self {
            Self::ExportName => InfoReason::ExportName,
            Self::Info(_) => InfoReason::Info,
            Self::Go(_) => InfoReason::Go,
            Self::ListMetaContext(_) => InfoReason::ListMetaContext,
            Self::SetMetaContext(_) => InfoReason::SetMetaContext,
        }
    }
}
