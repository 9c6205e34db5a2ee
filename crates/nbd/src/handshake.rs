//! The server's side of the handshake: fixed newstyle negotiation and option haggling.
//!
//! ```text
//!   ClientFlags ──▶ OptionHeader ──┬──▶ KeptData ────┬──▶ Asked ──┬──▶ Ended
//!                        ▲         └──▶ DroppedData ─┤            │
//!                        └────────── replied ────────┴────────────┘
//! ```
//! - `KeptData` (EXPORT_NAME, INFO, GO, LIST_META_CONTEXT, SET_META_CONTEXT) leads to `Asked`;
//!   malformed, it is replied to at once.
//! - `DroppedData` (all others) is replied to at once; only LIST leads to `Asked`, ABORT to `Ended`.
//! - `Asked` waits for the server's answer and turns it into replies. `Ended` follows a GO that is
//!   granted, and an EXPORT_NAME whether granted or refused.
//! - From every state a fault that cannot be answered leads to `Ended`.
//!
//! The caller's loop, in the order to call: send what [`ServerHandshake::take_output`] gives; ask
//! [`ServerHandshake::poll`], and answer what it asks; only then give more bytes to
//! [`ServerHandshake::receive`]. After [`HandshakeEvent::Transmission`] the bytes that were not
//! consumed are the first of the transmission phase.
//!
//! Always holds:
//! - one option at a time: while a question is unanswered or output waits, nothing is consumed, so
//!   neither a fast client nor a slow one can pile anything up;
//! - at most 64 KiB of input are kept, whatever lengths the client announces, and the number of
//!   options is bounded;
//! - an option that can be answered is answered, and the next one is parsed; only what the protocol
//!   cannot answer ends the session.
//!
//! Never does: I/O, waiting, looking at a clock (deadlines are the caller's), panicking on input.

mod state;

use crate::error::{Error, PeerIncompatible, PeerMisbehaved};
use crate::export::{ExportInfo, ExportListing, Refusal, Session};
use crate::fields::{Malformed, string, u32_at, u64_at};
use crate::option::{AfterDrop, Intake, KEPT_MAX, Kept, Queries, parse_info, parse_meta_context};
use crate::option_reply;
use crate::wire::{
    BASE_ALLOCATION, IHAVEOPT, NBD_FLAG_C_FIXED_NEWSTYLE, NBD_FLAG_C_NO_ZEROES,
    NBD_FLAG_FIXED_NEWSTYLE, NBD_FLAG_NO_ZEROES, NBD_OPT_ABORT, NBD_OPT_EXPORT_NAME, NBD_OPT_GO,
    NBD_OPT_INFO, NBD_OPT_LIST, NBD_OPT_LIST_META_CONTEXT, NBD_OPT_SET_META_CONTEXT,
    NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_INVALID, NBDMAGIC, PAYLOAD_MAX,
};
use state::{Purpose, Question, State};

/// The longest option data that is dropped rather than taken for an attack. The protocol says that
/// no length up to this one should be.
pub const OPTION_LENGTH_MAX: u32 = PAYLOAD_MAX;

/// Options a client may send. Real ones send fewer than ten.
pub const OPTIONS_MAX: u32 = 64;

/// Options a client may send in addition for each export in its first list, so that it can ask
/// about all of them on one connection.
pub const OPTIONS_PER_LISTED_EXPORT: u32 = 8;

/// The id of `base:allocation`. Any value would do: clients must treat it as opaque.
pub const ALLOCATION_CONTEXT_ID: u32 = 1;

/// Most memory a client can make a handshake hold, in bytes: 64 KiB of an option's data in a buffer
/// that grows by doubling, and the answer to one option, which is a few strings.
pub const MEMORY_HELD_MAX: usize = 2 * (KEPT_MAX as usize) + (16 << 10);

/// What the handshake needs from the server, or where it led.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandshakeEvent {
    /// The client wants a list of exports: call [`ServerHandshake::answer_list`].
    List,
    /// The client names an export: call [`ServerHandshake::answer_info`].
    Info {
        /// The name as the client gave it, at most 4096 bytes; empty for the default export.
        name: String,
        /// What the client wants to know it for.
        reason: InfoReason,
    },
    /// Transmission begins, once the output is sent.
    Transmission(Session),
    /// Close the connection, once the output is sent.
    Close(CloseReason),
}

/// What a client names an export for. Only with [`InfoReason::Go`] and [`InfoReason::ExportName`]
/// does a granted answer start transmission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InfoReason {
    /// `NBD_OPT_EXPORT_NAME`: a refusal can only close the connection.
    ExportName,
    /// `NBD_OPT_INFO`.
    Info,
    /// `NBD_OPT_GO`.
    Go,
    /// `NBD_OPT_LIST_META_CONTEXT`.
    ListMetaContext,
    /// `NBD_OPT_SET_META_CONTEXT`.
    SetMetaContext,
}

/// Why the connection is to be closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The client said `NBD_OPT_ABORT`.
    ClientAborted,
    /// The server refused an `NBD_OPT_EXPORT_NAME`, which has no error reply.
    ExportNameRefused(Refusal),
    /// The client is at fault, or has no common ground with this server.
    Failed(Error),
}

/// One handshake with one client.
#[derive(Debug)]
pub struct ServerHandshake {
    state: State,
    /// What the state waits for, as far as it has come.
    gathered: Vec<u8>,
    output: Vec<u8>,
    event: Option<HandshakeEvent>,
    terms: Terms,
    options_left: u32,
    listed: bool,
}

/// What has been agreed on so far.
#[derive(Debug, Default)]
struct Terms {
    fixed_newstyle: bool,
    no_zeroes: bool,
    structured: bool,
    /// The export for which `base:allocation` is selected.
    allocation_for: Option<String>,
}

impl Default for ServerHandshake {
    fn default() -> Self {
        Self::new()
    }
}

impl ServerHandshake {
    /// Starts a handshake; the greeting waits in the output.
    #[must_use]
    pub fn new() -> Self {
        let mut output = Vec::new();
        output.extend_from_slice(&NBDMAGIC.to_be_bytes());
        output.extend_from_slice(&IHAVEOPT.to_be_bytes());
        output.extend_from_slice(&(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES).to_be_bytes());
        Self {
            state: State::ClientFlags,
            gathered: Vec::new(),
            output,
            event: None,
            terms: Terms::default(),
            options_left: OPTIONS_MAX,
            listed: false,
        }
    }

    /// The bytes to send before anything else is done; may be empty.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// Takes the bytes to send; the caller sends all of them.
    #[must_use]
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// The next event, each once. `None` means: more bytes are needed, or an answer is.
    #[must_use]
    pub fn poll(&mut self) -> Option<HandshakeEvent> {
        self.event.take()
    }

    /// Consumes bytes from the client and returns how many. It stops behind each option that made
    /// output or an event, and consumes nothing until output is taken, the event is polled, and a
    /// question is answered; with all that done it consumes at least one byte, until the handshake
    /// has ended.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let mut consumed = 0;
        while consumed < bytes.len() && self.wants_input() {
            consumed += self.take_in(&bytes[consumed..]);
        }
        consumed
    }

    /// Answers [`HandshakeEvent::List`]. An export whose name no client could ask for (over 4096
    /// bytes, or with a NUL) is left out; a description is cut to 4096 bytes.
    ///
    /// # Panics
    /// If the handshake did not ask for a list.
    pub fn answer_list(&mut self, list: Result<Vec<ExportListing>, Refusal>) {
        let state = std::mem::replace(&mut self.state, State::OptionHeader);
        assert!(
            matches!(state, State::Asked(Question::List)),
            "a list answers only HandshakeEvent::List"
        );
        let list = match list {
            Ok(list) => list,
            Err(refusal) => return self.refuse(NBD_OPT_LIST, &refusal),
        };
        for listing in &list {
            option_reply::server(&mut self.output, NBD_OPT_LIST, listing);
        }
        option_reply::ack(&mut self.output, NBD_OPT_LIST);
        if !std::mem::replace(&mut self.listed, true) {
            let listed = u32::try_from(list.len()).unwrap_or(u32::MAX);
            let more = listed.saturating_mul(OPTIONS_PER_LISTED_EXPORT);
            self.options_left = self.options_left.saturating_add(more);
        }
    }

    /// Answers [`HandshakeEvent::Info`]: what there is to know about the export, or why it is
    /// refused. After a granted `Go` or `ExportName` the next event is the transmission.
    ///
    /// # Panics
    /// If the handshake did not ask about an export.
    pub fn answer_info(&mut self, answer: Result<ExportInfo, Refusal>) {
        let state = std::mem::replace(&mut self.state, State::OptionHeader);
        let State::Asked(Question::Export { name, purpose }) = state else {
            panic!("an export's information answers only HandshakeEvent::Info");
        };
        match answer {
            Ok(info) => self.grant(name, purpose, &info),
            Err(refusal) => match purpose {
                Purpose::ExportName => self.close(CloseReason::ExportNameRefused(refusal)),
                Purpose::Info(_) => self.refuse(NBD_OPT_INFO, &refusal),
                Purpose::Go(_) => self.refuse(NBD_OPT_GO, &refusal),
                Purpose::ListMetaContext(_) => self.refuse(NBD_OPT_LIST_META_CONTEXT, &refusal),
                Purpose::SetMetaContext(_) => self.refuse(NBD_OPT_SET_META_CONTEXT, &refusal),
            },
        }
    }

    /// Bytes of memory that the buffers hold: input of an option that is not complete yet, and
    /// output not yet taken. A client alone can bring it to [`MEMORY_HELD_MAX`] at most; the answer
    /// to a list comes on top.
    #[must_use]
    pub fn memory_held(&self) -> usize {
        self.gathered.capacity() + self.output.capacity()
    }

    fn wants_input(&self) -> bool {
        self.output.is_empty()
            && self.event.is_none()
            && !matches!(self.state, State::Asked(_) | State::Ended)
    }

    /// Consumes at least one byte of a non-empty slice, and goes on if the state has what it needs.
    fn take_in(&mut self, bytes: &[u8]) -> usize {
        if let State::DroppedData { option, left, then } = &mut self.state {
            let dropped = bytes.len().min(*left as usize);
            // No more than `left`, so it fits.
            *left -= u32::try_from(dropped).unwrap_or(*left);
            if *left == 0 {
                let (option, then) = (*option, *then);
                self.after_drop(option, then);
            }
            return dropped;
        }
        let missing = self.state.gathers() - self.gathered.len();
        let taken = bytes.len().min(missing);
        self.gathered.extend_from_slice(&bytes[..taken]);
        if taken == missing {
            self.gathered_all();
        }
        taken
    }

    /// Leaves a state that has gathered what it needs. States follow `OptionHeader` unless they
    /// say otherwise.
    fn gathered_all(&mut self) {
        let mut bytes = std::mem::take(&mut self.gathered);
        match std::mem::replace(&mut self.state, State::OptionHeader) {
            State::ClientFlags => self.client_flags(u32_at(&bytes, 0)),
            State::OptionHeader => {
                self.option_header(u64_at(&bytes, 0), u32_at(&bytes, 8), u32_at(&bytes, 12));
            }
            State::KeptData { option, .. } => self.kept_data(option, &bytes),
            state @ (State::DroppedData { .. } | State::Asked(_) | State::Ended) => {
                self.state = state;
            }
        }
        bytes.clear();
        self.gathered = bytes;
    }

    fn client_flags(&mut self, flags: u32) {
        if flags & !(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES) != 0 {
            return self.fail(PeerIncompatible::SetUnknownClientFlags { flags });
        }
        self.terms.fixed_newstyle = flags & NBD_FLAG_C_FIXED_NEWSTYLE != 0;
        self.terms.no_zeroes = flags & NBD_FLAG_C_NO_ZEROES != 0;
    }

    fn option_header(&mut self, magic: u64, option: u32, length: u32) {
        if magic != IHAVEOPT {
            return self.fail(PeerMisbehaved::SentOptionWithBadMagic { magic });
        }
        if !self.terms.fixed_newstyle && option != NBD_OPT_EXPORT_NAME {
            return self.fail(PeerIncompatible::SentOptionWithoutFixedNewstyle { option });
        }
        if length > OPTION_LENGTH_MAX {
            let max = OPTION_LENGTH_MAX;
            return self.fail(PeerMisbehaved::SentAbsurdlyLongOption {
                option,
                length,
                max,
            });
        }
        let Some(left) = self.options_left.checked_sub(1) else {
            return self.fail(PeerMisbehaved::SentTooManyOptions);
        };
        self.options_left = left;
        if option == NBD_OPT_SET_META_CONTEXT {
            // Whatever becomes of it, it replaces what was selected before.
            self.terms.allocation_for = None;
        }
        match Intake::of(option, length) {
            Intake::BadExportName => self.fail(PeerMisbehaved::SentExportNameThatIsNoString),
            Intake::Keep(kept) if length == 0 => self.kept_data(kept, &[]),
            Intake::Keep(option) => {
                self.state = State::KeptData {
                    option,
                    length: length as usize,
                };
            }
            Intake::Drop(then) if length == 0 => self.after_drop(option, then),
            Intake::Drop(then) => {
                self.state = State::DroppedData {
                    option,
                    left: length,
                    then,
                }
            }
        }
    }

    fn after_drop(&mut self, option: u32, then: AfterDrop) {
        self.state = State::OptionHeader;
        match then {
            AfterDrop::Abort => {
                option_reply::ack(&mut self.output, NBD_OPT_ABORT);
                self.close(CloseReason::ClientAborted);
            }
            AfterDrop::List => {
                self.state = State::Asked(Question::List);
                self.event = Some(HandshakeEvent::List);
            }
            AfterDrop::StructuredReply => {
                self.terms.structured = true;
                option_reply::ack(&mut self.output, NBD_OPT_STRUCTURED_REPLY);
            }
            AfterDrop::Refuse {
                reply_type,
                message,
            } => {
                option_reply::error(&mut self.output, option, reply_type, message);
            }
        }
    }

    fn kept_data(&mut self, option: Kept, data: &[u8]) {
        let asked = match option {
            Kept::ExportName => string(data).map(|name| (name, Purpose::ExportName)),
            Kept::Info => parse_info(data).map(|(name, items)| (name, Purpose::Info(items))),
            Kept::Go => parse_info(data).map(|(name, items)| (name, Purpose::Go(items))),
            Kept::ListMetaContext => self.meta_context(data, Purpose::ListMetaContext),
            Kept::SetMetaContext => self.meta_context(data, Purpose::SetMetaContext),
        };
        match asked {
            Ok((name, purpose)) => {
                let (name, reason) = (name.to_owned(), purpose.reason());
                self.event = Some(HandshakeEvent::Info {
                    name: name.clone(),
                    reason,
                });
                self.state = State::Asked(Question::Export { name, purpose });
            }
            Err(Malformed(_)) if option == Kept::ExportName => {
                self.fail(PeerMisbehaved::SentExportNameThatIsNoString);
            }
            Err(Malformed(message)) => {
                option_reply::error(
                    &mut self.output,
                    option.number(),
                    NBD_REP_ERR_INVALID,
                    message,
                );
            }
        }
    }

    fn meta_context<'a>(
        &self,
        data: &'a [u8],
        purpose: fn(Queries) -> Purpose,
    ) -> Result<(&'a str, Purpose), Malformed> {
        if !self.terms.structured {
            return Err(Malformed(
                "metadata contexts need NBD_OPT_STRUCTURED_REPLY first",
            ));
        }
        parse_meta_context(data).map(|(name, queries)| (name, purpose(queries)))
    }

    fn grant(&mut self, name: String, purpose: Purpose, info: &ExportInfo) {
        let out = &mut self.output;
        let Terms {
            no_zeroes,
            structured,
            ..
        } = self.terms;
        match purpose {
            Purpose::ExportName => {
                option_reply::export_name(out, info, structured, !no_zeroes);
                self.begin_transmission(name, info);
            }
            Purpose::Info(items) => {
                option_reply::infos(out, NBD_OPT_INFO, &name, info, items, structured);
            }
            Purpose::Go(items) => {
                option_reply::infos(out, NBD_OPT_GO, &name, info, items, structured);
                self.begin_transmission(name, info);
            }
            Purpose::ListMetaContext(queries) => {
                let option = NBD_OPT_LIST_META_CONTEXT;
                if queries.none || queries.wildcard || queries.allocation {
                    // The id of a listed context is reserved and zero.
                    option_reply::meta_context(out, option, 0, BASE_ALLOCATION);
                }
                option_reply::ack(out, option);
            }
            Purpose::SetMetaContext(queries) => {
                let option = NBD_OPT_SET_META_CONTEXT;
                if queries.allocation {
                    let id = ALLOCATION_CONTEXT_ID;
                    option_reply::meta_context(out, option, id, BASE_ALLOCATION);
                    self.terms.allocation_for = Some(name);
                }
                option_reply::ack(out, option);
            }
        }
    }

    fn begin_transmission(&mut self, export: String, info: &ExportInfo) {
        // A selection made for another export is void.
        let selected = self
            .terms
            .allocation_for
            .take()
            .is_some_and(|name| name == export);
        let session = Session {
            export,
            size: info.size,
            read_only: info.read_only,
            can: info.can,
            structured: self.terms.structured,
            allocation_context: selected.then_some(ALLOCATION_CONTEXT_ID),
        };
        self.end(HandshakeEvent::Transmission(session));
    }

    fn refuse(&mut self, option: u32, refusal: &Refusal) {
        let reply_type = refusal.reason.reply_type();
        option_reply::error(&mut self.output, option, reply_type, &refusal.message);
    }

    fn fail(&mut self, error: impl Into<Error>) {
        self.close(CloseReason::Failed(error.into()));
    }

    fn close(&mut self, reason: CloseReason) {
        self.end(HandshakeEvent::Close(reason));
    }

    fn end(&mut self, event: HandshakeEvent) {
        self.state = State::Ended;
        self.event = Some(event);
    }
}
