//! The data of the options that carry some, and how much of it is worth keeping.
//!
//! An option is taken in one of two ways, decided from its header alone: its data is *kept* (in a
//! buffer of at most [`KEPT_MAX`] bytes, then parsed here) or *dropped* as it comes, with the
//! answer already decided. So no length that a client announces is ever the size of an allocation.

use crate::fields::{Fields, Malformed};
use crate::wire::{
    BASE_ALLOCATION, BASE_WILDCARD, NBD_INFO_BLOCK_SIZE, NBD_INFO_DESCRIPTION, NBD_INFO_NAME,
    NBD_OPT_ABORT, NBD_OPT_EXPORT_NAME, NBD_OPT_GO, NBD_OPT_INFO, NBD_OPT_LIST,
    NBD_OPT_LIST_META_CONTEXT, NBD_OPT_SET_META_CONTEXT, NBD_OPT_STARTTLS,
    NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_INVALID, NBD_REP_ERR_TOO_BIG, NBD_REP_ERR_UNSUP,
    STRING_MAX,
};

/// The most option data kept in memory: sixteen longest strings, far beyond what any client sends.
pub(crate) const KEPT_MAX: u32 = 64 << 10;

/// What the header of an option decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intake {
    /// Keep the data and parse it.
    Keep(Kept),
    /// Drop the data, then do this.
    Drop(AfterDrop),
    /// It cannot be answered, whatever the data is.
    BadExportName,
}

/// Options whose data matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    ExportName,
    Info,
    Go,
    ListMetaContext,
    SetMetaContext,
}

/// What follows once data that does not matter has gone by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterDrop {
    Abort,
    List,
    StructuredReply,
    Refuse {
        reply_type: u32,
        message: &'static str,
    },
}

impl Intake {
    pub(crate) fn of(option: u32, length: u32) -> Self {
        let kept = match option {
            NBD_OPT_EXPORT_NAME if length as usize > STRING_MAX => return Self::BadExportName,
            NBD_OPT_EXPORT_NAME => Kept::ExportName,
            NBD_OPT_INFO => Kept::Info,
            NBD_OPT_GO => Kept::Go,
            NBD_OPT_LIST_META_CONTEXT => Kept::ListMetaContext,
            NBD_OPT_SET_META_CONTEXT => Kept::SetMetaContext,
            _ => return Self::Drop(AfterDrop::of(option, length)),
        };
        if length > KEPT_MAX {
            return Self::Drop(AfterDrop::Refuse {
                reply_type: NBD_REP_ERR_TOO_BIG,
                message: "the option has more than 65536 bytes of data",
            });
        }
        Self::Keep(kept)
    }
}

impl Kept {
    /// The option as the wire numbers it.
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::ExportName => NBD_OPT_EXPORT_NAME,
            Self::Info => NBD_OPT_INFO,
            Self::Go => NBD_OPT_GO,
            Self::ListMetaContext => NBD_OPT_LIST_META_CONTEXT,
            Self::SetMetaContext => NBD_OPT_SET_META_CONTEXT,
        }
    }
}

impl AfterDrop {
    fn of(option: u32, length: u32) -> Self {
        match option {
            NBD_OPT_ABORT => Self::Abort,
            NBD_OPT_LIST | NBD_OPT_STRUCTURED_REPLY if length > 0 => Self::Refuse {
                reply_type: NBD_REP_ERR_INVALID,
                message: "this option carries no data",
            },
            NBD_OPT_LIST => Self::List,
            NBD_OPT_STRUCTURED_REPLY => Self::StructuredReply,
            NBD_OPT_STARTTLS => Self::Refuse {
                reply_type: NBD_REP_ERR_UNSUP,
                message: "this server has no TLS on this socket; connect without it",
            },
            _ => Self::Refuse {
                reply_type: NBD_REP_ERR_UNSUP,
                message: "this server does not know the option",
            },
        }
    }
}

/// Which information items a client asked for, beside `NBD_INFO_EXPORT` that it always gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct InfoItems {
    pub(crate) name: bool,
    pub(crate) description: bool,
    pub(crate) block_size: bool,
}

/// Parses the data of `NBD_OPT_INFO` and `NBD_OPT_GO`. Items that are unknown are ignored, as the
/// protocol asks; those asked for twice are answered once.
pub(crate) fn parse_info(data: &[u8]) -> Result<(&str, InfoItems), Malformed> {
    let mut fields = Fields::new(data);
    let name = fields.string()?;
    let mut items = InfoItems::default();
    for _ in 0..fields.u16()? {
        match fields.u16()? {
            NBD_INFO_NAME => items.name = true,
            NBD_INFO_DESCRIPTION => items.description = true,
            NBD_INFO_BLOCK_SIZE => items.block_size = true,
            _ => {}
        }
    }
    fields.end()?;
    Ok((name, items))
}

/// What the queries of a metadata option say about `base:allocation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Queries {
    /// There was none at all: LIST then lists everything, SET selects nothing.
    pub(crate) none: bool,
    /// One was the wildcard `base:`: LIST lists its namespace, SET ignores it.
    pub(crate) wildcard: bool,
    /// One was `base:allocation`.
    pub(crate) allocation: bool,
}

/// Parses the data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`. Queries of other
/// namespaces and other leaf-names are ignored, as the protocol asks.
pub(crate) fn parse_meta_context(data: &[u8]) -> Result<(&str, Queries), Malformed> {
    let mut fields = Fields::new(data);
    let name = fields.string()?;
    let count = fields.u32()?;
    let mut queries = Queries {
        none: count == 0,
        ..Queries::default()
    };
    // However large the count, each query takes four bytes of the data: the loop ends with it.
    for _ in 0..count {
        match fields.string()? {
            BASE_WILDCARD => queries.wildcard = true,
            BASE_ALLOCATION => queries.allocation = true,
            _ => {}
        }
    }
    fields.end()?;
    Ok((name, queries))
}
