//! The client of the control API.
//!
//! One connection per call: calls are rare, and peer credentials are those of the moment.
//! The client never retries: it cannot know whether a call that got no answer was carried out.

mod keys;

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, UPGRADE};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;

use crate::api::{self, ApiError, ErrorKind, SnapshotRef, VolumeName};
use crate::{descriptor, key_handover};

/// Why a call brought no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody answers on the socket.
    #[error("{}: cannot reach the daemon: {source}", path.display())]
    Connect {
        /// The control socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The daemon answered that it failed.
    #[error(transparent)]
    Refused(#[from] ApiError),
    /// The connection broke or the answer is not HTTP.
    #[error("the daemon's answer broke off: {0}")]
    Http(#[from] hyper::Error),
    /// The answer is too long or ended early.
    #[error("the daemon's answer cannot be read: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// The answer is not what this version of the API says.
    #[error("the daemon's answer (HTTP {status}) is not understood: {source}")]
    Format {
        /// HTTP status code.
        status: u16,
        /// Where it differs.
        source: serde_json::Error,
    },
    /// No answer in time. Whether the call was carried out is not known.
    #[error("no answer from the daemon within {} s", .0.as_secs())]
    TimedOut(Duration),
}

impl ClientError {
    /// The kind that decides the exit code.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused(error) => error.kind,
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                ErrorKind::Refused
            }
            _ => ErrorKind::Failed,
        }
    }

    /// What the caller can do about it.
    pub fn next_step(&self) -> Option<String> {
        match self {
            Self::Refused(error) => error.next_step.clone(),
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("Run as a user of the group that owns the socket".to_owned())
            }
            Self::Connect { .. } => Some(
                "Start sealvold, or name its socket with --control or SEALVOL_CONTROL".to_owned(),
            ),
            Self::TimedOut(_) | Self::Http(_) | Self::Body(_) => Some(
                "Look at the daemon's log; the call may have been carried out all the same"
                    .to_owned(),
            ),
            Self::Format { .. } => {
                Some("Use the sealvol and sealvold of one release together".to_owned())
            }
        }
    }
}

/// A client of the control socket at a path.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    deadline: Duration,
}

impl Client {
    /// A client that asks the daemon at `socket`. Nothing is connected yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            deadline: ANSWER_WITHIN,
        }
    }

    /// The socket it asks.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// How the daemon is.
    pub async fn status(&self) -> Result<api::Status, ClientError> {
        self.get(api::STATUS).await
    }

    /// Runs the self-tests now.
    pub async fn selftest(&self) -> Result<api::SelfTest, ClientError> {
        self.send(Method::POST, api::SELFTEST, &NoFields {}).await
    }

    /// Has the daemon look at its machine, its files and its key services.
    pub async fn doctor(&self) -> Result<api::doctor::Doctor, ClientError> {
        self.get(api::doctor::DOCTOR).await
    }

    /// Has the daemon end.
    pub async fn stop(&self, request: &api::Stop) -> Result<api::Stopping, ClientError> {
        self.send(Method::POST, api::STOP, request).await
    }

    /// Measures the cipher on the daemon's machine.
    pub async fn bench_cipher(
        &self,
        request: &api::bench::Bench,
    ) -> Result<api::bench::CipherReport, ClientError> {
        self.send(Method::POST, api::bench::CIPHER, request).await
    }

    /// Measures a temporary volume over the daemon's NBD socket. It is deleted when this ends, and also when the caller
    /// goes away.
    pub async fn bench_volume(
        &self,
        request: &api::bench::Bench,
    ) -> Result<api::bench::VolumeReport, ClientError> {
        self.send(Method::POST, api::bench::VOLUME, request).await
    }

    /// All volumes, by name.
    pub async fn volumes(&self) -> Result<api::VolumeList, ClientError> {
        self.get(api::VOLUMES).await
    }

    /// One volume.
    pub async fn volume(&self, name: &VolumeName) -> Result<api::Volume, ClientError> {
        self.get(&volume_path(name, "")).await
    }

    /// A new volume.
    pub async fn create_volume(
        &self,
        request: &api::CreateVolume,
    ) -> Result<api::Volume, ClientError> {
        self.send(Method::POST, api::VOLUMES, request).await
    }

    /// Attaches a volume.
    pub async fn attach_volume(
        &self,
        name: &VolumeName,
        request: &api::AttachVolume,
    ) -> Result<api::Volume, ClientError> {
        self.send(Method::POST, &volume_path(name, "/attach"), request)
            .await
    }

    /// [`Self::create_volume`], for one whose data key is given: the daemon reads it from `key`.
    pub async fn create_volume_with_key(
        &self,
        request: &api::CreateVolume,
        key: BorrowedFd<'_>,
    ) -> Result<api::Volume, ClientError> {
        self.send_with_descriptor(api::VOLUMES, request, key).await
    }

    /// [`Self::attach_volume`], for one whose data key is given: the daemon reads it from `key`.
    pub async fn attach_volume_with_key(
        &self,
        name: &VolumeName,
        request: &api::AttachVolume,
        key: BorrowedFd<'_>,
    ) -> Result<api::Volume, ClientError> {
        self.send_with_descriptor(&volume_path(name, "/attach"), request, key)
            .await
    }

    /// [`Self::attach_snapshot`], for one of a volume whose data key is given: the daemon reads it from `key`.
    pub async fn attach_snapshot_with_key(
        &self,
        name: &SnapshotRef,
        request: &api::AttachSnapshot,
        key: BorrowedFd<'_>,
    ) -> Result<api::Snapshot, ClientError> {
        self.send_with_descriptor(&snapshot_path(name, "/attach"), request, key)
            .await
    }

    /// Detaches a volume.
    pub async fn detach_volume(
        &self,
        name: &VolumeName,
        request: &api::DetachVolume,
    ) -> Result<api::Volume, ClientError> {
        self.send(Method::POST, &volume_path(name, "/detach"), request)
            .await
    }

    /// Makes a volume larger.
    pub async fn resize_volume(
        &self,
        name: &VolumeName,
        request: &api::ResizeVolume,
    ) -> Result<api::Volume, ClientError> {
        self.send(Method::POST, &volume_path(name, "/resize"), request)
            .await
    }

    /// Changes a volume's limits.
    pub async fn limit_volume(
        &self,
        name: &VolumeName,
        request: &api::LimitVolume,
    ) -> Result<api::Volume, ClientError> {
        self.send(Method::POST, &volume_path(name, "/limit"), request)
            .await
    }

    /// Says what becomes of a volume when its key is revoked while it is attached.
    pub async fn set_on_revoke(
        &self,
        name: &VolumeName,
        request: &api::OnRevoke,
    ) -> Result<api::Volume, ClientError> {
        self.send(Method::POST, &volume_path(name, "/on-revoke"), request)
            .await
    }

    /// Deletes a volume.
    pub async fn delete_volume(
        &self,
        name: &VolumeName,
        request: &api::DeleteVolume,
    ) -> Result<api::Deleted, ClientError> {
        self.send(Method::DELETE, &volume_path(name, ""), request)
            .await
    }

    /// What of a volume is stored where, from start to end.
    pub async fn volume_map(&self, name: &VolumeName) -> Result<api::VolumeMap, ClientError> {
        let path = volume_path(name, "/map");
        let mut map: api::VolumeMap = self.get(&path).await?;
        while let Some(offset) = map.next {
            let part: api::VolumeMap = self.get(&format!("{path}?offset={offset}")).await?;
            // What does not move forward would be asked for without end.
            map.next = part.next.filter(|&next| next > offset);
            map.runs.extend(part.runs);
        }
        Ok(map)
    }

    /// What materialising a volume would take.
    pub async fn flatten_plan(&self, name: &VolumeName) -> Result<api::FlattenPlan, ClientError> {
        self.get(&volume_path(name, "/flatten")).await
    }

    /// A part of flattening a volume.
    pub async fn flatten_volume(
        &self,
        name: &VolumeName,
        request: &api::FlattenVolume,
    ) -> Result<api::Flattened, ClientError> {
        self.send(Method::POST, &volume_path(name, "/flatten"), request)
            .await
    }

    /// Wraps the data keys of a volume anew.
    pub async fn rewrap_volume(
        &self,
        name: &VolumeName,
        request: &api::RewrapVolume,
    ) -> Result<api::Rewrapped, ClientError> {
        self.send(Method::POST, &volume_path(name, "/rewrap"), request)
            .await
    }

    /// Registers a volume from its layer.
    pub async fn adopt_volume(
        &self,
        name: &VolumeName,
        request: &api::AdoptVolume,
    ) -> Result<api::Adopted, ClientError> {
        self.send(Method::POST, &volume_path(name, "/adopt"), request)
            .await
    }

    /// The snapshots of a volume, or of all.
    pub async fn snapshots(
        &self,
        volume: Option<&VolumeName>,
    ) -> Result<api::SnapshotList, ClientError> {
        let query = volume.map(|name| format!("?volume={name}"));
        self.get(&format!("{}{}", api::SNAPSHOTS, query.unwrap_or_default()))
            .await
    }

    /// Snapshots of one or several volumes, of one point in time.
    pub async fn create_snapshots(
        &self,
        request: &api::CreateSnapshots,
    ) -> Result<api::SnapshotList, ClientError> {
        self.send(Method::POST, api::SNAPSHOTS, request).await
    }

    /// One snapshot.
    pub async fn snapshot(&self, name: &SnapshotRef) -> Result<api::Snapshot, ClientError> {
        self.get(&snapshot_path(name, "")).await
    }

    /// What changed between a snapshot and the one before it, from start to end.
    pub async fn snapshot_changes(
        &self,
        name: &SnapshotRef,
    ) -> Result<api::SnapshotChanges, ClientError> {
        let path = snapshot_path(name, "/changes");
        let mut changes: api::SnapshotChanges = self.get(&path).await?;
        while let Some(offset) = changes.next {
            let part: api::SnapshotChanges = self.get(&format!("{path}?offset={offset}")).await?;
            // What does not move forward would be asked for without end.
            changes.next = part.next.filter(|&next| next > offset);
            changes.extents.extend(part.extents);
        }
        Ok(changes)
    }

    /// Exports a snapshot.
    pub async fn attach_snapshot(
        &self,
        name: &SnapshotRef,
        request: &api::AttachSnapshot,
    ) -> Result<api::Snapshot, ClientError> {
        self.send(Method::POST, &snapshot_path(name, "/attach"), request)
            .await
    }

    /// Ends a snapshot's export.
    pub async fn detach_snapshot(
        &self,
        name: &SnapshotRef,
        request: &api::DetachVolume,
    ) -> Result<api::Snapshot, ClientError> {
        self.send(Method::POST, &snapshot_path(name, "/detach"), request)
            .await
    }

    /// Copies a snapshot into a new volume.
    pub async fn copy_snapshot(
        &self,
        name: &SnapshotRef,
        request: &api::CopySnapshot,
    ) -> Result<api::SnapshotCopy, ClientError> {
        self.send(Method::POST, &snapshot_path(name, "/copy"), request)
            .await
    }

    /// Deletes a snapshot.
    pub async fn delete_snapshot(
        &self,
        name: &SnapshotRef,
    ) -> Result<api::SnapshotDeleted, ClientError> {
        self.send(Method::DELETE, &snapshot_path(name, ""), &NoFields {})
            .await
    }

    /// Begins to give a volume another data key.
    pub async fn rekey_volume(
        &self,
        name: &VolumeName,
        request: &api::RekeyVolume,
    ) -> Result<api::Job, ClientError> {
        self.send(Method::POST, &volume_path(name, "/rekey"), request)
            .await
    }

    /// The jobs that are known, the oldest first.
    pub async fn jobs(&self) -> Result<api::JobList, ClientError> {
        self.get(api::JOBS).await
    }

    /// One job.
    pub async fn job(&self, id: u64) -> Result<api::Job, ClientError> {
        self.get(&format!("{}/{id}", api::JOBS)).await
    }

    /// Ends a job early.
    pub async fn cancel_job(&self, id: u64) -> Result<api::Job, ClientError> {
        let path = format!("{}/{id}/cancel", api::JOBS);
        self.send(Method::POST, &path, &NoFields {}).await
    }

    async fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, ClientError> {
        self.within_deadline(Method::GET, path, Bytes::new()).await
    }

    async fn send<R: Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        request: &R,
    ) -> Result<A, ClientError> {
        // The messages are plain structs with string keys: serializing them cannot fail.
        let body = serde_json::to_vec(request).unwrap_or_default();
        self.within_deadline(method, path, Bytes::from(body)).await
    }

    async fn send_with_descriptor<R: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        request: &R,
        descriptor: BorrowedFd<'_>,
    ) -> Result<A, ClientError> {
        let body = serde_json::to_vec(request).unwrap_or_default();
        let whole = self.hand_over(path, Bytes::from(body), descriptor);
        let (status, body) = tokio::time::timeout(self.deadline, whole)
            .await
            .unwrap_or(Err(ClientError::TimedOut(self.deadline)))?;
        understood(status, &body)
    }

    /// A call that brings a descriptor (see [`key_handover`]): its status and JSON.
    async fn hand_over(
        &self,
        path: &str,
        body: Bytes,
        descriptor: BorrowedFd<'_>,
    ) -> Result<(u16, Vec<u8>), ClientError> {
        let broken = |error: io::Error| ClientError::Body(Box::new(error));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(self.connect().await?)).await?;
        // Ends with the upgrade, or with the answer.
        drop(tokio::spawn(connection.with_upgrades()));
        let mut request = request_to(Method::POST, path, body)?;
        let headers = request.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static(key_handover::PROTOCOL));
        let response = sender.send_request(request).await?;
        let status = response.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            return Ok((
                status.as_u16(),
                whole_body(response.into_body()).await?.to_vec(),
            ));
        }
        let upgraded = hyper::upgrade::on(response).await?;
        let parts = upgraded
            .downcast::<TokioIo<UnixStream>>()
            .map_err(|_| ClientError::Body("another connection than was made".into()))?;
        let mut stream = parts.io.into_inner();
        if parts.read_buf.is_empty() {
            stream.read_exact(&mut [0]).await.map_err(broken)?;
        }
        let socket = stream.into_std().map_err(broken)?;
        descriptor::send(&socket, &key_handover::READY, &[descriptor]).map_err(broken)?;
        let mut stream = UnixStream::from_std(socket).map_err(broken)?;
        let status = stream.read_u16().await.map_err(broken)?;
        let mut body = Vec::new();
        let mut rest = stream.take(ANSWER_BYTES_MAX as u64);
        rest.read_to_end(&mut body).await.map_err(broken)?;
        Ok((status, body))
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        let connected = UnixStream::connect(&self.socket).await;
        connected.map_err(|source| ClientError::Connect {
            path: self.socket.clone(),
            source,
        })
    }

    async fn within_deadline<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<A, ClientError> {
        tokio::time::timeout(self.deadline, self.exchange(method, path, body))
            .await
            .unwrap_or(Err(ClientError::TimedOut(self.deadline)))
    }

    async fn exchange<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<A, ClientError> {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(self.connect().await?)).await?;
        let request = request_to(method, path, body)?;
        let answer = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = whole_body(response.into_body()).await?;
            Ok::<_, ClientError>((status.as_u16(), body))
        };
        tokio::pin!(answer);
        // The connection makes the progress that the answer waits for; its own end is no news.
        let (status, body) = tokio::select! {
            answer = &mut answer => answer?,
            end = connection => match end {
                Ok(()) => answer.await?,
                Err(error) => return Err(error.into()),
            },
        };
        understood(status, &body)
    }
}

fn request_to(
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<Request<Full<Bytes>>, ClientError> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = path
        .parse()
        .map_err(|error: hyper::http::uri::InvalidUri| ClientError::Body(Box::new(error)))?;
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_static("localhost"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(request)
}

async fn whole_body(body: Incoming) -> Result<Bytes, ClientError> {
    let whole = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    Ok(whole.map_err(ClientError::Body)?.to_bytes())
}

fn understood<A: DeserializeOwned>(status: u16, body: &[u8]) -> Result<A, ClientError> {
    let not_understood = |source| ClientError::Format { status, source };
    if (200..300).contains(&status) {
        return serde_json::from_slice(body).map_err(not_understood);
    }
    let reply: api::ErrorReply = serde_json::from_slice(body).map_err(not_understood)?;
    Err(reply.error.into())
}

/// `{}`: the body of a request that has nothing to say.
#[derive(Serialize)]
struct NoFields {}

fn snapshot_path(name: &SnapshotRef, action: &str) -> String {
    // Nor does a snapshot's: `@` may stand in a path (RFC 3986, section 3.3).
    format!("{}/{name}{action}", api::SNAPSHOTS)
}

fn volume_path(name: &VolumeName, action: &str) -> String {
    // A volume name needs no escapes, by its rule.
    format!("{}/{name}{action}", api::VOLUMES)
}

/// `text` with all but the unreserved characters of RFC 3986 section 2.3 and `:` percent-encoded.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// An attach may wait for a key service, a detach for the drain of a slow disk.
const ANSWER_WITHIN: Duration = Duration::from_secs(300);

/// A list of some ten thousand volumes is the longest answer.
const ANSWER_BYTES_MAX: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_unreserved_is_percent_encoded() {
        assert_eq!(escaped("local:default"), "local:default");
        assert_eq!(escaped("a/b?c d%é"), "a%2Fb%3Fc%20d%25%C3%A9");
    }

    #[tokio::test]
    async fn a_missing_daemon_is_named_with_its_socket() {
        let client = Client::new("/nonexistent/control.sock");
        let error = client.status().await.expect_err("there is no such socket");
        assert!(matches!(error, ClientError::Connect { .. }));
        assert!(error.to_string().contains("/nonexistent/control.sock"));
        assert_eq!(error.kind(), ErrorKind::Failed);
        assert!(
            error
                .next_step()
                .is_some_and(|step| step.contains("SEALVOL_CONTROL"))
        );
    }
}
