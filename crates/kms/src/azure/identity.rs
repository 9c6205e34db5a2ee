//! Who the child is to the vault: a token for it, got once for a batch from the authority or from this machine's host.
//!
//! What always holds: a secret goes to the configured authority only, over TLS, whatever a challenge of the vault says; secrets
//! and tokens are in no message, and wiped after use.

use bytes::Bytes;
use hyper::Method;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use sealvol_control::keychild::{FailureClass, Identity};
use zeroize::Zeroizing;

use super::answer::{Token, Verdict, token_verdict};
use super::{Azure, outage};
use crate::http::{Answer, Failure, Question, Server};
use crate::refusal::Remote;
use crate::{Refusal, credential};

impl Azure {
    /// A header that says that the child is `identity`.
    pub(super) async fn authorization(&self, identity: &Identity) -> Result<HeaderValue, Refusal> {
        let (server, question) = match identity {
            Identity::ClientSecret {
                tenant,
                client_id,
                secret_file,
            } => {
                let secret = credential::read(secret_file)?;
                let question = of_application(tenant, client_id, &secret, &self.service.audience);
                (&self.authority, question)
            }
            Identity::ManagedIdentity { client_id } => (
                &self.metadata,
                of_machine(client_id.as_deref(), &self.service.audience),
            ),
        };
        let answer = self.ask_for_token(server, question).await?;
        let token: Token<'_> = serde_json::from_slice(answer.body.as_ref())
            .map_err(|_| outage(server.address(), "gives no token that is understood"))?;
        let bearer = Zeroizing::new(format!("Bearer {}", token.access_token));
        crate::http::secret_header(&bearer)
            .ok_or_else(|| outage(server.address(), "gives a token that no header can hold"))
    }

    async fn ask_for_token(&self, server: &Server, question: Question) -> Result<Answer, Refusal> {
        let answer = server.ask(question, None).await;
        let answer = answer.map_err(|failure| unanswered(server, &failure))?;
        if answer.status == 200 {
            return Ok(answer);
        }
        let Verdict {
            class,
            said,
            message,
            next_step,
        } = token_verdict(answer.status, answer.body.as_ref());
        let at = server.address();
        Err(match class {
            FailureClass::Transient if answer.retry_after.is_none() => {
                outage(at, &format!("{said} {message}"))
            }
            class => Refusal::Remote(Remote {
                class,
                said,
                subject: format!("provider {}", self.provider),
                reason: format!("{} gives no token: {message}", at.origin()),
                retry_after: answer.retry_after,
                next_step,
            }),
        })
    }
}

/// A server that has not answered.
pub(super) fn unanswered(server: &Server, failure: &Failure) -> Refusal {
    match failure {
        Failure::Untrusted(_) => Refusal::UntrustedServer {
            server: server.address().to_string(),
            reason: failure.to_string(),
        },
        failure => outage(server.address(), &failure.to_string()),
    }
}

/// OAuth 2.0 client credentials (RFC 6749, section 4.4.2).
fn of_application(tenant: &str, client_id: &str, secret: &str, audience: &str) -> Question {
    let mut form = Zeroizing::new(String::with_capacity(1024 + 3 * secret.len()));
    form.push_str("grant_type=client_credentials&client_id=");
    form.push_str(client_id);
    form.push_str("&scope=");
    escape(&mut form, audience);
    form.push_str("%2F.default&client_secret=");
    escape(&mut form, secret);
    Question {
        method: Method::POST,
        path: format!("/{tenant}/oauth2/v2.0/token"),
        headers: vec![(
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-www-form-urlencoded"),
        )],
        // The connection's copies are wiped by the child's allocator, as this one is.
        body: Bytes::from(form.as_bytes().to_vec()),
    }
}

/// The instance metadata service of a virtual machine's host.
fn of_machine(client_id: Option<&str>, audience: &str) -> Question {
    let mut path = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=".to_owned();
    escape(&mut path, audience);
    if let Some(client_id) = client_id {
        path.push_str("&client_id=");
        path.push_str(client_id);
    }
    Question {
        method: Method::GET,
        path,
        // What a page in somebody's browser, or a forged request, can't send.
        headers: vec![(METADATA, HeaderValue::from_static("true"))],
        body: Bytes::new(),
    }
}

/// Appends `text` with all but the unreserved characters of RFC 3986, section 2.3, percent-encoded.
fn escape(to: &mut String, text: &str) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            to.push(char::from(byte));
        } else {
            to.push('%');
            to.push(char::from(DIGITS[usize::from(byte >> 4)]));
            to.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
}

const METADATA: HeaderName = HeaderName::from_static("metadata");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_what_it_was_after_a_form() {
        let asked = of_application("t", "c", "a+b/c=~&d%e", "https://vault.azure.net");
        assert_eq!(asked.path, "/t/oauth2/v2.0/token");
        let form = String::from_utf8(asked.body.to_vec()).unwrap();
        assert_eq!(
            form,
            "grant_type=client_credentials&client_id=c&scope=https%3A%2F%2Fvault.azure.net%2F.default\
             &client_secret=a%2Bb%2Fc%3D~%26d%25e"
        );
    }

    #[test]
    fn a_machine_says_which_of_its_identities_it_means() {
        let at = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fv";
        assert_eq!(of_machine(None, "https://v").path, at);
        let one = of_machine(Some("c"), "https://v").path;
        assert_eq!(one, format!("{at}&client_id=c"));
    }
}
