//! The SDK's way to the network: one connection to the endpoint that was found before the confinement ([`crate::http`]).
//!
//! It stands in the place of the SDK's own client, which finds hosts, keeps pools and trusts the system's authorities by
//! itself. What that gives: the rules of the connection (who is trusted, one time for a call, nothing repeated) are those of
//! every provider, and an answer with a key in it lies in locked memory while the SDK reads it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use aws_sdk_kms::config::http::{HttpRequest, HttpResponse};
use aws_sdk_kms::config::{HttpClient, RuntimeComponents};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use sealvol_crypto::SecretBytes;

use crate::http::{Answer, Body, Failure, Question, Server};

/// The calls whose answers hold a plaintext key.
const SECRET: [&str; 1] = ["TrentService.Decrypt"];

/// Hands the SDK's requests to the server.
#[derive(Clone)]
pub(super) struct Connector {
    server: Arc<Server>,
    /// Where the next such answer goes.
    secret: Arc<Mutex<Option<SecretBytes>>>,
}

impl Connector {
    pub(super) fn new(server: Server) -> Self {
        Self {
            server: Arc::new(server),
            secret: Arc::default(),
        }
    }

    /// Gives the place for the next answer with a key in it; without one it is not asked for.
    pub(super) fn keep_in(&self, secret: SecretBytes) {
        *self.secret() = Some(secret);
    }

    fn secret(&self) -> std::sync::MutexGuard<'_, Option<SecretBytes>> {
        self.secret.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(self, request: HttpRequest) -> Result<HttpResponse, ConnectorError> {
        let target = request.headers().get("x-amz-target");
        let secret = match target.is_some_and(|target| SECRET.contains(&target)) {
            true => Some(
                self.secret()
                    .take()
                    .ok_or_else(|| other("no locked memory at hand".into()))?,
            ),
            false => None,
        };
        let request = in_full(request).map_err(other)?;
        let answer = self.server.ask(request, secret).await;
        let Answer {
            status,
            request_id,
            body,
            ..
        } = answer.map_err(|failure| other(failure.into()))?;
        let body = SdkBody::from(match body {
            Body::Open(bytes) => Bytes::from(bytes),
            Body::Secret(bytes) => Bytes::from_owner(bytes),
        });
        let status = StatusCode::try_from(status).map_err(|error| other(error.into()))?;
        let mut response = HttpResponse::new(status, body);
        // All that is needed of the headers: the name of an error is in the body.
        if let Some(id) = request_id {
            let _ = response.headers_mut().try_append(REQUEST_ID, id);
        }
        Ok(response)
    }
}

/// The request with its whole body, and its path alone: the server adds the host.
fn in_full(request: HttpRequest) -> Result<Question, BoxError> {
    let (head, body) = request.try_into_http1x()?.into_parts();
    let body = body.bytes().ok_or("a request whose body is not at hand")?;
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let named = |(name, value): (Option<_>, _)| Some((name?, value));
    Ok(Question {
        method: head.method,
        path: path.to_owned(),
        headers: head.headers.into_iter().filter_map(named).collect(),
        body: Bytes::copy_from_slice(body),
    })
}

/// By which the service's own records know a call.
pub(super) const REQUEST_ID: &str = "x-amzn-requestid";

type BoxError = Box<dyn std::error::Error + Send + Sync>;

fn other(source: BoxError) -> ConnectorError {
    ConnectorError::other(source, None)
}

/// What of the connection went wrong, if it is that.
pub(super) fn failure(error: &ConnectorError) -> Option<&Failure> {
    std::error::Error::source(error)?.downcast_ref()
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        HttpConnectorFuture::new(self.clone().ask(request))
    }
}

impl HttpClient for Connector {
    fn http_connector(
        &self,
        _: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}
