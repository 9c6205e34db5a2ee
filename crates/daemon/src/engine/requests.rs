//! Requests in: one receive brings many of them, each is begun at once.
//!
//! Always: a WRITE's payload is sealed straight from the receive buffer, in pieces of at most its size; the memory of
//! a piece is taken only when its bytes are there. A connection without bytes to parse holds no receive buffer.
//! Never: a look at a request that the gate of `sealvol_nbd` has not passed.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use sealvol_nbd::{Command, Parsed, Request, reply, wire};
use sealvol_store::IoBuf;
use tokio::sync::watch;

use super::connection::Client;
use crate::export::{self, Failure};
use crate::limits::Cost;

/// The receive buffer: what one receive brings at most.
const BUFFER: usize = 256 * 1024;
/// A part of a longer payload that is worth a store call of its own.
const PIECE_MIN: usize = 64 * 1024;

/// Requests of one connection until the others of its worker have their turn. One receive brings thousands of small ones, and more are there when
/// they are answered: without it whoever floods a worker is alone on it for seconds.
const TURN: usize = 256;

/// A client with much in flight is looked after so often: its end is not seen while nothing is received from it.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Serves requests until the client leaves, is sent away, or the export or the engine stops.
pub(super) async fn serve(client: &Rc<Client>, leftover: Vec<u8>, mut stop: watch::Receiver<bool>) {
    let mut intake = Intake::new(&leftover);
    let mut draining = client.export().draining();
    loop {
        client.export().count_receive();
        let flow = intake.begin_requests(client);
        let sent = client.outbox.send();
        match sent {
            Ok(true) => {}
            Ok(false) => client.outbox.wake(),
            Err(_) => return,
        }
        if matches!(flow, Flow::Close) {
            return;
        }
        if matches!(flow, Flow::Crowded) {
            // Room may never come: a client can leave its replies unread for ever.
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                _ = draining.wait_for(|draining| *draining) => return,
                () = client.outbox.broke() => return,
                () = client.room() => continue,
                () = tokio::time::sleep(LOOK_AGAIN) => {
                    if client.stream.is_hung_up().await {
                        return;
                    }
                    continue;
                }
            }
        }
        if matches!(flow, Flow::Turn) {
            tokio::task::yield_now().await;
            // What ends a connection is looked at between two turns, too.
            if *stop.borrow() || *draining.borrow() || client.outbox.is_broken() {
                return;
            }
            continue;
        }
        if let Flow::Limited(cost) = flow {
            if !turn_came(client, cost, &mut stop, &mut draining).await {
                return;
            }
            intake.paid = true;
            continue;
        }
        intake.make_room();
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            _ = draining.wait_for(|draining| *draining) => return,
            () = client.outbox.broke() => return,
            ready = client.stream.readable() => if ready.is_err() { return },
        }
        match intake.receive(client) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::debug!(export = %client.export().name, %error, "connection lost");
                return;
            }
        }
    }
}

/// Waits until the volume's limits let the next request go; false if the connection is to end before.
async fn turn_came(
    client: &Client,
    cost: Cost,
    stop: &mut watch::Receiver<bool>,
    draining: &mut watch::Receiver<bool>,
) -> bool {
    // One wait for all looks, so that it keeps its place in the queue.
    let mut turn = pin!(client.export().limiter.pass(cost));
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return false,
            _ = draining.wait_for(|draining| *draining) => return false,
            () = client.outbox.broke() => return false,
            () = &mut turn => return true,
            () = tokio::time::sleep(LOOK_AGAIN) => {
                if client.stream.is_hung_up().await {
                    return false;
                }
            }
        }
    }
}

enum Flow {
    /// More bytes are needed.
    More,
    /// More requests are there, but enough are in flight.
    Crowded,
    /// The next request has to wait for the volume's limits.
    Limited(Cost),
    /// It is the turn of the others.
    Turn,
    Close,
}

/// Received bytes that were not taken yet, and where in the stream they are.
struct Intake {
    buf: Option<IoBuf>,
    start: usize,
    end: usize,
    place: Place,
    /// The next request has waited for the volume's limits already.
    paid: bool,
    /// Requests that were begun in this turn.
    begun: usize,
}

/// What the next byte of the stream is.
enum Place {
    Header,
    Payload(Incoming),
    /// Payload of a refused WRITE: this many bytes are dropped.
    Dropping(usize),
}

/// A WRITE whose payload is arriving.
struct Incoming {
    request: Request,
    offset: u64,
    left: usize,
    /// Set once a part of the payload was begun by itself.
    pieces: Option<Rc<Pieces>>,
}

/// A WRITE that is written in several pieces.
struct Pieces {
    request: Request,
    /// Pieces in flight, and one for the payload that has not arrived.
    open: Cell<usize>,
    failure: RefCell<Option<Failure>>,
}

impl Intake {
    fn new(leftover: &[u8]) -> Self {
        let mut intake = Self {
            buf: None,
            start: 0,
            end: 0,
            place: Place::Header,
            paid: false,
            begun: 0,
        };
        if !leftover.is_empty() {
            let mut buf = IoBuf::for_overwrite(BUFFER.max(leftover.len()));
            buf[..leftover.len()].copy_from_slice(leftover);
            intake.end = leftover.len();
            intake.buf = Some(buf);
        }
        intake
    }

    /// Gives the buffer back if it is empty; else moves what is left to its front if its end is near.
    fn make_room(&mut self) {
        if self.start == self.end {
            self.buf = None;
            (self.start, self.end) = (0, 0);
        } else if let Some(buf) = &mut self.buf
            && buf.len() - self.end < PIECE_MIN
        {
            buf.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
    }

    /// False at the end of the stream.
    fn receive(&mut self, client: &Client) -> io::Result<bool> {
        let buf = self.buf.get_or_insert_with(|| IoBuf::for_overwrite(BUFFER));
        match client.stream.try_read(&mut buf[self.end..]) {
            Ok(received) => {
                self.end += received;
                Ok(received > 0)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Begins every request whose bytes are there.
    fn begin_requests(&mut self, client: &Rc<Client>) -> Flow {
        let Some(buf) = self.buf.take() else {
            return Flow::More;
        };
        let flow = loop {
            let bytes = &buf[self.start..self.end];
            if client.is_crowded() {
                break Flow::Crowded;
            }
            if self.begun == TURN {
                self.begun = 0;
                break Flow::Turn;
            }
            client.outbox.send_some();
            match &mut self.place {
                Place::Dropping(left) => {
                    let dropped = bytes.len().min(*left);
                    self.start += dropped;
                    *left -= dropped;
                    if *left > 0 {
                        break Flow::More;
                    }
                    self.place = Place::Header;
                }
                Place::Payload(incoming) => {
                    let taken = incoming.take_piece(client, bytes);
                    self.start += taken;
                    if incoming.left == 0 {
                        self.place = Place::Header;
                    } else if taken == 0 {
                        break Flow::More;
                    }
                }
                Place::Header => match begin_request(client, bytes, &mut self.paid) {
                    Begun::NeedMore => break Flow::More,
                    Begun::Close => break Flow::Close,
                    Begun::Limited(cost) => break Flow::Limited(cost),
                    Begun::Next(place) => {
                        self.start += wire::REQUEST_HEADER_LEN;
                        self.place = place;
                        self.begun += 1;
                    }
                },
            }
        };
        self.buf = Some(buf);
        flow
    }
}

enum Begun {
    NeedMore,
    Close,
    /// Nothing was taken: it is to wait.
    Limited(Cost),
    Next(Place),
}

fn begin_request(client: &Rc<Client>, bytes: &[u8], paid: &mut bool) -> Begun {
    let session = client.gate.session();
    let parsed = client.gate.parse(bytes);
    if let Parsed::Request(request) = &parsed
        && !std::mem::take(paid)
        && let Err(cost) = client.export().limiter.try_pass(|| Cost::of(request))
    {
        return Begun::Limited(cost);
    }
    match parsed {
        Parsed::NeedMore => Begun::NeedMore,
        Parsed::Disconnect => Begun::Close,
        Parsed::Fatal(error) => {
            tracing::info!(export = %client.export().name, %error, "connection closed");
            Begun::Close
        }
        Parsed::Empty { cookie } => {
            client
                .outbox
                .push(|out| reply::success(out, session, cookie));
            Begun::Next(Place::Header)
        }
        Parsed::Refused {
            cookie,
            errno,
            payload,
            message,
        } => {
            client
                .outbox
                .push(|out| reply::error(out, session, cookie, errno, message));
            Begun::Next(Place::Dropping(payload as usize))
        }
        Parsed::Request(request) if request.command == Command::Write => {
            let (offset, left) = (request.offset, request.length as usize);
            Begun::Next(Place::Payload(Incoming {
                request,
                offset,
                left,
                pieces: None,
            }))
        }
        Parsed::Request(request) => {
            begin_other(client, request);
            Begun::Next(Place::Header)
        }
    }
}

fn begin_other(client: &Rc<Client>, request: Request) {
    let own = Rc::clone(client);
    client.begin(export::held_by(&request), async move {
        export::answer(own.serving(), request).await;
    });
}

impl Incoming {
    /// Begins the write of what is there, if it is enough; how many bytes it took.
    fn take_piece(&mut self, client: &Rc<Client>, bytes: &[u8]) -> usize {
        let len = self.piece(bytes.len());
        if len == 0 {
            return 0;
        }
        let prepared = client
            .export()
            .volume
            .prepare_write(self.offset, &bytes[..len]);
        let whole = len == self.left && self.pieces.is_none();
        self.offset += len as u64;
        self.left -= len;
        let own = Rc::clone(client);
        if whole {
            let request = self.request;
            client.begin(len, async move {
                let result = match prepared {
                    Ok(prepared) => prepared.run(request.fua).await,
                    Err(error) => Err(error),
                };
                answer_write(
                    &own,
                    request.cookie,
                    result.map_err(|error| Failure::of(&error)),
                );
            });
            return len;
        }
        let pieces = Rc::clone(self.pieces.get_or_insert_with(|| Pieces::new(self.request)));
        pieces.open.set(pieces.open.get() + 1);
        if self.left == 0 {
            // Nothing more arrives: the last piece in flight answers.
            pieces.open.set(pieces.open.get() - 1);
        }
        client.begin(len, async move {
            let result = match prepared {
                Ok(prepared) => prepared.run(false).await,
                Err(error) => Err(error),
            };
            pieces
                .end(&own, result.map_err(|error| Failure::of(&error)))
                .await;
        });
        len
    }

    /// How much of `available` bytes makes a piece: all that is left, or whole blocks up to a block border.
    fn piece(&self, available: usize) -> usize {
        if available >= self.left {
            return self.left;
        }
        let end = self.offset + available as u64;
        let border = end - end % sealvol_volume::BLOCK;
        let len = usize::try_from(border.saturating_sub(self.offset)).unwrap_or(0);
        if len >= PIECE_MIN { len } else { 0 }
    }
}

impl Pieces {
    fn new(request: Request) -> Rc<Self> {
        Rc::new(Self {
            request,
            open: Cell::new(1),
            failure: RefCell::new(None),
        })
    }

    /// A piece is written, or not; the last one answers for all, after one commit if durability was asked for.
    async fn end(&self, client: &Client, result: Result<(), Failure>) {
        if let Err(failure) = result {
            self.failure.borrow_mut().get_or_insert(failure);
        }
        self.open.set(self.open.get() - 1);
        if self.open.get() > 0 {
            return;
        }
        let mut result = self.failure.borrow_mut().take().map_or(Ok(()), Err);
        if result.is_ok() && self.request.fua {
            let flushed = client.export().volume.flush().await;
            result = flushed.map_err(|error| Failure::of(&error));
        }
        answer_write(client, self.request.cookie, result);
    }
}

fn answer_write(client: &Client, cookie: u64, result: Result<(), Failure>) {
    let session = client.gate.session();
    client.outbox.push(|out| match result {
        Ok(()) => reply::success(out, session, cookie),
        Err(failure) => reply::error(out, session, cookie, failure.errno, &failure.message),
    });
}
