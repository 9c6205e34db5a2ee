//! Who a question is from: the token of a role, from a file or by an AppRole's login.
//!
//! What always holds: a secret is wiped after use, and in no message; a role logs in once for a batch.

use hyper::Method;
use hyper::header::HeaderValue;
use sealvol_control::keychild::{Credential, FailureClass};
use zeroize::Zeroize as _;

use super::answer::{Login, verdict};
use super::{Transit, outage};
use crate::Refusal;
use crate::credential::read;
use crate::http::{self, Answer};
use crate::refusal::Remote;
use crate::role::Role;

impl Transit {
    /// The token of a role; logs in if that is what it takes.
    pub(super) async fn token(&self, role: Role) -> Result<HeaderValue, Refusal> {
        let (create, attach) = (self.service.create.as_ref(), &self.service.attach);
        self.tokens
            .of(role, create, attach, async |credential| {
                self.authenticated(credential).await
            })
            .await
    }

    async fn authenticated(&self, credential: &Credential) -> Result<HeaderValue, Refusal> {
        let token = match credential {
            Credential::TokenFile(path) => http::secret_header(&read(path)?),
            Credential::Approle {
                mount,
                role_id_file,
                secret_id_file,
            } => {
                let (role_id, secret_id) = (read(role_id_file)?, read(secret_id_file)?);
                self.log_in(mount, &role_id, &secret_id).await?
            }
        };
        token.ok_or_else(|| self.nonsense("a token that no header can hold"))
    }

    async fn log_in(
        &self,
        mount: &str,
        role_id: &str,
        secret_id: &str,
    ) -> Result<Option<HeaderValue>, Refusal> {
        let rejected = |said: String| {
            Refusal::Remote(Remote {
                class: FailureClass::NotPermitted,
                said,
                subject: format!("provider {}", self.provider),
                reason: format!("{} refuses the AppRole's login", self.service.address),
                retry_after: None,
                next_step: "put the role's present role id and secret id into the files that the configuration names",
            })
        };
        let Some(body) = login(role_id, secret_id) else {
            return Err(rejected("not a role id and secret id".to_owned()));
        };
        let path = format!("auth/{mount}/login");
        let question = self.question(Method::POST, &path, body.into(), None);
        let Answer { status, body, .. } = self.put(question, None).await?;
        if status == 200 {
            let login: Login<'_> = self.understood(serde_json::from_slice(body.as_ref()))?;
            return Ok(http::secret_header(login.auth.client_token));
        }
        let verdict = verdict(status, body.as_ref());
        match verdict.class {
            FailureClass::Transient => Err(outage(&self.service, &verdict.said)),
            _ => Err(rejected(verdict.said)),
        }
    }
}

/// `{"role_id":…,"secret_id":…}`: both are printable ASCII; a quote or backslash in them is none that a server made.
fn login(role_id: &str, secret_id: &str) -> Option<Vec<u8>> {
    let plain = |text: &str| !text.contains(['"', '\\']);
    let body = plain(role_id) && plain(secret_id);
    body.then(|| {
        let mut text = format!(r#"{{"role_id":"{role_id}","secret_id":"{secret_id}"}}"#);
        let body = text.as_bytes().to_vec();
        text.zeroize();
        body
    })
}
