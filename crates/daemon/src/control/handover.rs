//! A call that brings a data key, or a file to write to, as [`sealvol_control::key_handover`] says: the key is read from the
//! caller's descriptor.
//!
//! What always holds: the caller's right to the call was checked before the connection is handed over; the key comes in straight
//! into locked memory, whole and alone, or the call is refused; a descriptor that gives nothing ends after its time. A file to
//! write to is a regular one and empty: what a caller opened by mistake loses nothing, and nobody waits for whoever reads a pipe.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, HeaderValue, UPGRADE};
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sealvol_control::{descriptor, key_handover};
use sealvol_crypto::locked::KeyMemory;
use sealvol_crypto::{KeyError, VolumeKey};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

use super::routes::{Bringing, Brought};
use super::{REQUEST_WITHIN, routes, told};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::rights::Caller;

/// Those that are under way; each may hold a thread for as long as a descriptor has.
static ROOM: Semaphore = Semaphore::const_new(16);

pub(super) fn is_asked_for(request: &Request<Incoming>) -> bool {
    let protocol = request.headers().get(UPGRADE);
    protocol.is_some_and(|protocol| protocol == key_handover::PROTOCOL)
}

/// Goes on with the call when the connection is the caller's and ours alone.
pub(super) fn begin(
    daemon: Arc<Daemon>,
    caller: Caller,
    head: Parts,
    body: Bytes,
    bringing: Bringing,
    upgrade: OnUpgrade,
) -> Response<Full<Bytes>> {
    tokio::spawn(async move {
        if let Err(error) = carry_out(daemon, caller, &head, body, bringing, upgrade).await {
            tracing::debug!(uid = caller.uid, %error, "a connection that was to bring a key ended");
        }
    });
    let mut response = Response::new(Full::new(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(key_handover::PROTOCOL));
    response
}

async fn carry_out(
    daemon: Arc<Daemon>,
    caller: Caller,
    head: &Parts,
    body: Bytes,
    bringing: Bringing,
    upgrade: OnUpgrade,
) -> io::Result<()> {
    let room = ROOM.acquire().await.map_err(io::Error::other)?;
    let upgraded = upgrade.await.map_err(io::Error::other)?;
    let parts = upgraded.downcast::<TokioIo<UnixStream>>();
    let parts = parts.map_err(|_| io::Error::other("another connection than was made"))?;
    let mut stream = parts.io.into_inner();
    // Nothing may have been said yet: a descriptor would have been lost with it.
    if !parts.read_buf.is_empty() {
        return Err(io::Error::other("the caller did not wait for its turn"));
    }
    stream.write_all(&key_handover::READY).await?;
    let socket = stream.into_std()?;
    // A file needs no memory for keys.
    let memory = match bringing {
        Bringing::Key => daemon.memory.ready().map(Some),
        Bringing::File => Ok(None),
    };
    let given = match memory {
        Ok(memory) => {
            let taken = tokio::task::spawn_blocking(move || {
                let brought = take(&socket, memory.as_ref());
                (socket, brought)
            });
            let (back, brought) = taken.await.map_err(io::Error::other)?;
            stream = UnixStream::from_std(back)?;
            brought
        }
        Err(error) => {
            stream = UnixStream::from_std(socket)?;
            Err(error)
        }
    };
    drop(room);
    let result = match given {
        Ok(brought) => routes::call(daemon, caller, head, body, brought).await,
        Err(error) => Err(error),
    };
    let (status, json) = told(caller, head, result);
    stream.write_u16(status.as_u16()).await?;
    stream.write_all(&json).await?;
    stream.shutdown().await
}

/// A key, if there is memory for one; else a file.
fn take(socket: &StdUnixStream, memory: Option<&Arc<KeyMemory>>) -> Result<Brought, Error> {
    let until = Instant::now() + REQUEST_WITHIN;
    let what = if memory.is_some() { "key" } else { "file" };
    let missing =
        |error: io::Error| Error::BadRequest(format!("its {what} does not come: {error}"));
    wait(socket, until).map_err(missing)?;
    let (_, descriptors) = descriptor::receive(socket, &mut [0]).map_err(missing)?;
    let Ok([descriptor]) = <[OwnedFd; 1]>::try_from(descriptors) else {
        return Err(Error::BadRequest(format!("its {what} does not come")));
    };
    let Some(memory) = memory else {
        return empty_file(descriptor).map(|file| Brought {
            key: None,
            file: Some(file),
        });
    };
    let mut source = Source { descriptor, until };
    let key = VolumeKey::read_whole(memory, &mut source).map_err(|error| match error {
        KeyError::Locked(limit) => Error::KeyMemory(Arc::new(limit)),
        source => Error::BadGivenKey(source),
    })?;
    Ok(Brought {
        key: Some(key),
        file: None,
    })
}

fn empty_file(descriptor: OwnedFd) -> Result<File, Error> {
    let file = File::from(descriptor);
    match file.metadata() {
        Ok(found) if found.is_file() && found.len() == 0 => Ok(file),
        Ok(_) => Err(Error::BadRequest(
            "its file is not a regular and empty one".to_owned(),
        )),
        Err(source) => Err(Error::BackupFile(source)),
    }
}

/// A descriptor that has its time to give what it has. Reads without a buffer of its own.
struct Source {
    descriptor: OwnedFd,
    until: Instant,
}

impl io::Read for Source {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        wait(&self.descriptor, self.until)?;
        Ok(rustix::io::read(&self.descriptor, bytes)?)
    }
}

/// Waits until there is something to read, or the end.
fn wait(descriptor: &impl std::os::fd::AsFd, until: Instant) -> io::Result<()> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left == Duration::ZERO {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut polled = [PollFd::new(descriptor, PollFlags::IN)];
        match poll(&mut polled, Some(&left)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
