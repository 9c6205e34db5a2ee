//! One connection to a server, over which a batch makes its calls one after the other.
//!
//! What always holds:
//! - the server's certificate comes from the configured authorities and is for the configured host, or nothing is said to it;
//! - each call ends within its time, from connecting to the last byte of the answer;
//! - an answer with a key in it goes from the connection's buffers into locked memory (the buffers are wiped when they are
//!   freed: `main` of the child sets an allocator that does so);
//! - after a failure of the connection the rest of the batch fails the same way at once: who waits is the daemon.
//!
//! It follows no redirect, uses no proxy, keeps no cookie and never repeats a call.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use sealvol_control::keychild::Address;
use sealvol_crypto::{SecretBytes, SecretTooLong};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");

/// Most bytes of an answer without a key in it: a list of thousands of keys.
const ANSWER_MAX: usize = 1 << 20;

/// Why a call brought no answer. Nothing here says anything about a key.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Broken(String),
    #[error("no answer within {} s", .0.as_secs())]
    Late(Duration),
    #[error("an answer of more than {max} bytes")]
    TooLong { max: usize },
    #[error("cannot connect: {0}")]
    Unreachable(String),
    #[error("its certificate is not trusted: {0}")]
    Untrusted(String),
}

/// What is asked.
pub(crate) struct Question {
    pub(crate) method: Method,
    /// With its query.
    pub(crate) path: String,
    /// Besides those of the connection. The body is JSON unless one of them says otherwise.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// Empty for none.
    pub(crate) body: Bytes,
}

/// What came back.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Whom to ask for a token, if the server says so (RFC 9110, section 11.6.1).
    pub(crate) challenge: Option<String>,
    /// In so many seconds it wants to be asked again (RFC 9110, section 10.2.3).
    pub(crate) retry_after: Option<u32>,
    /// By which the service's own records know the call.
    pub(crate) request_id: Option<String>,
    pub(crate) body: Body,
}

/// The body of an answer: in locked memory where it may hold a key.
pub(crate) enum Body {
    Open(Vec<u8>),
    Secret(SecretBytes),
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Open(bytes) => bytes,
            Self::Secret(bytes) => bytes.as_ref(),
        }
    }
}

/// Where a server is.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    address: Address,
    at: Vec<SocketAddr>,
}

impl Found {
    /// The addresses of a host. Asks the system's resolver, so it comes before the confinement.
    pub(crate) fn at(address: &Address) -> io::Result<Self> {
        let at = (address.host.as_str(), address.port).to_socket_addrs()?;
        Ok(Self {
            address: address.clone(),
            at: at.collect(),
        })
    }

    /// The ports to connect to.
    pub(crate) fn ports(&self) -> impl Iterator<Item = u16> {
        self.at.iter().map(SocketAddr::port)
    }

    /// The one of these that is the server of `address`; none at all if nobody looked for it.
    pub(crate) fn among(found: &[Self], address: &Address) -> Self {
        let same = found.iter().find(|one| one.address == *address);
        same.cloned().unwrap_or_else(|| Self {
            address: address.clone(),
            at: Vec::new(),
        })
    }
}

/// A server, connected when it is first asked.
pub(crate) struct Server {
    found: Found,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    timeout: Duration,
    state: Mutex<State>,
}

enum State {
    Closed,
    Open(SendRequest<Full<Bytes>>),
    Failed(Failure),
}

impl Server {
    /// The server that was found; with TLS if its address says so.
    pub(crate) fn new(
        found: Found,
        tls: Option<&Arc<ClientConfig>>,
        timeout: Duration,
    ) -> Result<Self, String> {
        let host = &found.address.host;
        let tls = match tls.filter(|_| found.address.secure) {
            Some(config) => {
                let name = ServerName::try_from(host.clone()).map_err(|error| {
                    format!("{host}: is not a name that certificates have: {error}")
                })?;
                Some((TlsConnector::from(Arc::clone(config)), name))
            }
            None if found.address.secure => {
                return Err(format!("{host}: no authority for its certificate is named"));
            }
            None => None,
        };
        Ok(Self {
            found,
            tls,
            timeout,
            state: Mutex::new(State::Closed),
        })
    }

    /// Where it is.
    pub(crate) fn address(&self) -> &Address {
        &self.found.address
    }

    /// Asks. The answer goes into `secret` if there is one and the server is content, else into ordinary memory.
    pub(crate) async fn ask(
        &self,
        question: Question,
        secret: Option<SecretBytes>,
    ) -> Result<Answer, Failure> {
        let mut state = self.state.lock().await;
        if let State::Failed(failure) = &*state {
            return Err(failure.clone());
        }
        let whole = self.exchange(&mut state, question, secret);
        let asked = match tokio::time::timeout(self.timeout, whole).await {
            Ok(asked) => asked,
            Err(_) => Err(Failure::Late(self.timeout)),
        };
        if let Err(failure) = &asked {
            *state = State::Failed(failure.clone());
        }
        asked
    }

    async fn exchange(
        &self,
        state: &mut State,
        question: Question,
        secret: Option<SecretBytes>,
    ) -> Result<Answer, Failure> {
        let request = self.request(question);
        let sender = match state {
            // Closed by the server after its last answer.
            State::Open(sender) if !sender.is_closed() => sender,
            _ => {
                *state = State::Open(self.connect().await?);
                match state {
                    State::Open(sender) => sender,
                    State::Closed | State::Failed(_) => unreachable!("it was set just now"),
                }
            }
        };
        let answer = sender.send_request(request).await.map_err(broken)?;
        read(answer, secret).await
    }

    fn request(&self, question: Question) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(question.body));
        *request.method_mut() = question.method;
        *request.uri_mut() = question.path.parse().expect("made of checked names");
        let headers = request.headers_mut();
        let host = HeaderValue::from_str(&self.found.address.authority());
        headers.insert(HOST, host.expect("a checked address"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for (name, value) in question.headers {
            headers.insert(name, value);
        }
        request
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Failure> {
        let stream = TcpStream::connect(self.found.at.as_slice())
            .await
            .map_err(|error| Failure::Unreachable(error.to_string()))?;
        // A question is one write; its answer is waited for.
        let _ = stream.set_nodelay(true);
        match &self.tls {
            None => handshake(stream).await,
            Some((connector, name)) => {
                let stream = connector
                    .connect(name.clone(), stream)
                    .await
                    .map_err(|error| tls_failure(&error))?;
                handshake(stream).await
            }
        }
    }
}

async fn handshake<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    // Ends with the sender, or with the process. What goes wrong in it is told to who asks.
    drop(tokio::spawn(connection));
    Ok(sender)
}

/// Reads the answer to its end.
async fn read(answer: Response<Incoming>, secret: Option<SecretBytes>) -> Result<Answer, Failure> {
    let status = answer.status();
    let header = |name: HeaderName| answer.headers().get(name)?.to_str().ok();
    let challenge = header(WWW_AUTHENTICATE).map(words);
    let retry_after = header(RETRY_AFTER).and_then(|seconds| seconds.trim().parse().ok());
    let request_id = header(REQUEST_ID).map(words);
    let mut incoming = answer.into_body();
    let mut body = match secret {
        Some(bytes) if status.is_success() => Body::Secret(bytes),
        _ => Body::Open(Vec::new()),
    };
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(broken)?;
        let Some(piece) = frame.data_ref() else {
            continue; // trailers
        };
        match &mut body {
            Body::Secret(bytes) => bytes
                .push(piece)
                .map_err(|SecretTooLong| Failure::TooLong {
                    max: SecretBytes::CAPACITY,
                })?,
            Body::Open(bytes) if bytes.len() + piece.len() <= ANSWER_MAX => {
                bytes.extend_from_slice(piece);
            }
            Body::Open(_) => return Err(Failure::TooLong { max: ANSWER_MAX }),
        }
    }
    Ok(Answer {
        status: status.as_u16(),
        challenge,
        retry_after,
        request_id,
        body,
    })
}

/// TLS 1.2 or 1.3, with the authorities in a PEM file and no others.
pub(crate) fn tls(authorities: &Path) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    let found = CertificateDer::pem_file_iter(authorities).map_err(|error| error.to_string())?;
    for certificate in found {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    if roots.is_empty() {
        return Err("there is no certificate in it".to_owned());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let config = config.with_root_certificates(roots).with_no_client_auth();
    Ok(Arc::new(config))
}

fn tls_failure(error: &io::Error) -> Failure {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    match inner {
        Some(rustls::Error::InvalidCertificate(reason)) => Failure::Untrusted(reason.to_string()),
        Some(other) => Failure::Unreachable(format!("TLS: {other}")),
        None => Failure::Unreachable(format!("TLS: {error}")),
    }
}

fn broken(error: hyper::Error) -> Failure {
    let cause = std::error::Error::source(&error).map(ToString::to_string);
    Failure::Broken(cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}")))
}

/// A secret as a header has it: marked, so that nothing prints or compresses it.
pub(crate) fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Text of a server for a message: short, one line, nothing that a terminal obeys.
pub(crate) fn words(text: &str) -> String {
    let line = text.replace(['\r', '\n', '\t'], " ");
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().filter(|c| !c.is_control()).take(300).collect()
}
