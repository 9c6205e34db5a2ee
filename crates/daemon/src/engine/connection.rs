//! One connection from its first byte to its last, and what its parts share.
//!
//! ```text
//!   handshake ──▶ transmission ──▶ (client leaves, DISC, detach, stop) ──▶ drain ──▶ closed
//! ```
//!
//! Always: "drain" waits until no request is in flight and every reply is sent or can't be.

use std::cell::Cell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use sealvol_nbd::Transmission;
use tokio::sync::{Notify, oneshot};

use super::memory::Held;
use super::outbox::Outbox;
use super::socket::{Socket, Stream};
use super::{Share, handshake, requests};
use crate::export::Serving;
use crate::exports::{Connected, Export, Peer};

/// Requests of one connection in flight at once.
const REQUESTS_MAX: usize = 256;
/// A client that does not take its last replies within this time is closed without them.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// A connection to be served.
pub(super) struct Connection {
    pub(super) share: Share,
    pub(super) peer: Peer,
}

impl Connection {
    /// Serves it to its end. The handshake ends early if the other end of `shaking` is dropped.
    pub(super) async fn run(self, socket: Socket, shaking: oneshot::Receiver<()>) {
        let Share {
            exports,
            mut stop,
            memory,
        } = self.share;
        let stream = match Stream::new(socket) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be taken over");
                return;
            }
        };
        let shaken = tokio::select! {
            shaken = handshake::run(&stream, &exports, &self.peer) => shaken,
            _ = stop.wait_for(|stop| *stop) => return,
            _ = shaking => {
                tracing::warn!(peer = %self.peer.description, "too many handshakes at once: the oldest was closed");
                return;
            }
        };
        let agreed = match shaken {
            Ok(Some(agreed)) => agreed,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(peer = %self.peer.description, %error, "handshake ended");
                return;
            }
        };
        // A detach may have begun since the lookup: it sees this connection, or is seen by it.
        let Some(guard) = Export::connect(&agreed.export) else {
            return;
        };
        let Some(held) = Held::new(memory) else {
            tracing::warn!(peer = %self.peer.description, "too many connections: this one was closed");
            return;
        };
        let gate = Transmission::new(agreed.session);
        let client = Rc::new(Client::new(stream, guard, gate, held));
        let writer = tokio::task::spawn_local({
            let client = Rc::clone(&client);
            async move {
                if client.outbox.run().await.is_err() {
                    client.outbox.give_up();
                }
            }
        });
        requests::serve(&client, agreed.leftover, stop).await;
        client.drain().await;
        client.outbox.give_up();
        // It may be waiting for a client that reads nothing.
        writer.abort();
        let _ = writer.await;
    }
}

/// What the reader, the writer and the requests of one connection share.
pub(super) struct Client {
    pub(super) stream: Rc<Stream>,
    pub(super) outbox: Outbox,
    pub(super) gate: Transmission,
    connected: Connected,
    requests: Cell<usize>,
    held: Rc<Held>,
    ended: Notify,
}

impl Client {
    fn new(stream: Stream, connected: Connected, gate: Transmission, held: Held) -> Self {
        let (stream, held) = (Rc::new(stream), Rc::new(held));
        Self {
            outbox: Outbox::new(Rc::clone(&stream), Rc::clone(&held)),
            stream,
            gate,
            connected,
            requests: Cell::new(0),
            held,
            ended: Notify::new(),
        }
    }

    pub(super) fn export(&self) -> &Export {
        self.connected.export()
    }

    /// For whom and with what a request is answered.
    pub(super) fn serving(&self) -> Serving<'_> {
        Serving {
            export: self.export(),
            session: self.gate.session(),
            outbox: &self.outbox,
        }
    }

    /// Whether no more requests are to be begun for now.
    pub(super) fn is_crowded(&self) -> bool {
        self.requests.get() >= REQUESTS_MAX || self.held.is_full()
    }

    /// Waits until more requests can be begun. What crowds it is its own: each request that ends and each reply
    /// that is sent wakes it.
    pub(super) async fn room(&self) {
        while self.is_crowded() {
            tokio::select! {
                () = self.ended.notified() => {}
                () = self.outbox.progress() => {}
            }
        }
    }

    /// Runs the work of a request: here and now as far as it goes, in a task of its own if it has to wait.
    /// `bytes` is what it holds in memory meanwhile.
    pub(super) fn begin(self: &Rc<Self>, bytes: usize, work: impl Future<Output = ()> + 'static) {
        let mut work: Pin<Box<dyn Future<Output = ()>>> = Box::pin(work);
        // Whatever it waits for is told of the real waker when the task polls it again.
        if work
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_ready()
        {
            return;
        }
        self.requests.set(self.requests.get() + 1);
        self.held.add(bytes);
        let client = Rc::clone(self);
        tokio::task::spawn_local(async move {
            work.await;
            client.requests.set(client.requests.get() - 1);
            client.held.sub(bytes);
            client.ended.notify_waiters();
            client.outbox.send_some();
            client.outbox.wake();
        });
    }

    /// Waits until all that was begun is answered and sent. A request may itself wait for the client to take an
    /// earlier reply, so a client that takes too long is given up; a slow store is waited for.
    async fn drain(&self) {
        let mut answered = pin!(self.answered());
        let mut waited = false;
        while tokio::time::timeout(DRAIN_MAX / 2, &mut answered)
            .await
            .is_err()
        {
            // The second look: what waits now may just have been answered.
            if waited && self.outbox.is_waiting() {
                tracing::info!(export = %self.export().name, "a client did not take its last replies");
                self.outbox.give_up();
            } else if self.stream.is_hung_up().await {
                self.outbox.give_up();
            }
            waited = self.outbox.is_waiting();
        }
    }

    async fn answered(&self) {
        while self.requests.get() > 0 {
            self.ended.notified().await;
        }
        self.outbox.sent().await;
    }
}
