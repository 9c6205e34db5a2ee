//! The control socket: HTTP/1.1 with JSON, as [`sealvol_control::api`] says.
//!
//! | subject | file |
//! |---|---|
//! | which call is meant, and who may make it | `routes.rs` |
//! | what the caller is told when it fails | `reply.rs` |
//! | a call that brings a data key, or a file to write to | `handover.rs` |
//!
//! What always holds: the caller is who the kernel says is at the other end of the socket; what is
//! read of a request is bounded, and so is the time for it; a call that has begun goes on when its
//! caller goes away; no answer holds key bytes.

mod handover;
pub(crate) mod reply;
mod routes;

use std::convert::Infallible;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use sealvol_control::api::{self, BODY_BYTES_MAX};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::daemon::Daemon;
use crate::error::Error;
use crate::rights::Caller;
use routes::Brought;

/// Answers on the control socket until the task is ended.
///
/// # Errors
/// When the socket cannot be taken over by the runtime.
pub(crate) async fn serve(daemon: Arc<Daemon>, socket: StdUnixListener) -> std::io::Result<()> {
    socket.set_nonblocking(true)?;
    let socket = UnixListener::from_std(socket)?;
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = Arc::clone(&room).acquire_owned().await;
        match socket.accept().await {
            Ok((stream, _)) => {
                let daemon = Arc::clone(&daemon);
                tokio::spawn(async move {
                    serve_connection(daemon, stream).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "control socket");
                // Out of file descriptors, most likely: give others time to close theirs.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_connection(daemon: Arc<Daemon>, stream: UnixStream) {
    let caller = match stream.peer_cred() {
        Ok(peer) => Caller {
            uid: peer.uid(),
            gid: peer.gid(),
            pid: peer.pid(),
        },
        Err(error) => {
            tracing::warn!(%error, "a peer without credentials was sent away");
            return;
        }
    };
    let service = service_fn(move |request| {
        let daemon = Arc::clone(&daemon);
        async move { Ok::<_, Infallible>(answer(daemon, caller, request).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_WITHIN)
        .max_buf_size(HEADERS_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = served.await {
        tracing::debug!(uid = caller.uid, %error, "control connection ended");
    }
}

async fn answer(
    daemon: Arc<Daemon>,
    caller: Caller,
    mut request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let upgrade = handover::is_asked_for(&request).then(|| hyper::upgrade::on(&mut request));
    let (head, body) = request.into_parts();
    let result = match (read_body(body).await, upgrade) {
        (Ok(body), None) => routes::call(daemon, caller, &head, body, Brought::default()).await,
        (Ok(body), Some(upgrade)) => match routes::may_bring(&daemon, caller, &head) {
            Ok(bringing) => {
                return handover::begin(daemon, caller, head, body, bringing, upgrade);
            }
            Err(error) => Err(error),
        },
        (Err(error), _) => Err(error),
    };
    let (status, json) = told(caller, &head, result);
    respond(status, json)
}

/// What the caller is told, and the daemon's log, too, if it is a refusal.
fn told(caller: Caller, head: &Parts, result: Result<Vec<u8>, Error>) -> (StatusCode, Vec<u8>) {
    match result {
        Ok(json) => (StatusCode::OK, json),
        Err(error) => {
            let error = reply::error(&error);
            let (method, path) = (&head.method, head.uri.path());
            tracing::info!(uid = caller.uid, %method, path, kind = ?error.kind, %error, "refused");
            let status = StatusCode::from_u16(error.kind.http_status());
            let json = serde_json::to_vec(&api::ErrorReply { error }).unwrap_or_default();
            (status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), json)
        }
    }
}

async fn read_body(body: Incoming) -> Result<Bytes, Error> {
    let whole = Limited::new(body, BODY_BYTES_MAX).collect();
    match tokio::time::timeout(REQUEST_WITHIN, whole).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) => Err(Error::BadRequest(format!(
            "its body cannot be read: {error}"
        ))),
        Err(_) => Err(Error::BadRequest(
            "its body did not come in time".to_owned(),
        )),
    }
}

fn respond(status: StatusCode, json: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(json)));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// Connections served at once; more of them wait to be accepted.
const CONNECTIONS_MAX: usize = 64;
/// A request that takes longer to come is not one.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// hyper's least.
const HEADERS_BYTES_MAX: usize = 8192;
