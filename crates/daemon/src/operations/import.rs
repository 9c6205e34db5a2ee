//! `key import-parameters` and `key import`.

use base64ct::{Base64, Encoding as _};
use sealvol_control::api;
use sealvol_control::key_ref::KeyRef;
use sealvol_control::timestamp::{rfc3339, seconds};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::rights::Caller;

impl Daemon {
    pub(crate) async fn import_parameters(
        &self,
        caller: Caller,
        key: &str,
        request: api::GetImportParameters,
    ) -> Result<api::ImportParameters, Error> {
        let key: KeyRef = key.parse()?;
        let (spec, algorithm) = (request.spec, request.algorithm);
        let made = self
            .keys
            .import_parameters(caller, &key, spec, algorithm)
            .await?;
        tracing::info!(%key, key_id = made.key_id, "key material can be imported");
        Ok(api::ImportParameters {
            key: key.to_string(),
            key_id: made.key_id,
            algorithm,
            public_key: pem(&made.public_key),
            token: Base64::encode_string(&made.token),
            expires: rfc3339(made.expires),
        })
    }

    pub(crate) async fn import_key_material(
        &self,
        caller: Caller,
        key: &str,
        request: api::ImportMaterial,
    ) -> Result<api::Key, Error> {
        let key: KeyRef = key.parse()?;
        let material = decoded("material", &request.material)?;
        let token = decoded("token", &request.token)?;
        let expires = match &request.expires {
            None => None,
            Some(text) => Some(seconds(text).ok_or_else(|| {
                let cause = format!("expires={text} is no time as 2026-02-03T04:05:06Z");
                Error::BadRequest(cause)
            })?),
        };
        let described = self
            .keys
            .import(caller, &key, material, token, expires)
            .await?;
        tracing::info!(%key, state = described.state.as_str(), "key material imported");
        self.shown(&key, &described).await
    }
}

fn decoded(what: &str, text: &str) -> Result<Vec<u8>, Error> {
    Base64::decode_vec(text.trim())
        .map_err(|_| Error::BadRequest(format!("the {what} is not in Base64")))
}

/// A public key as RFC 7468 writes it.
fn pem(der: &[u8]) -> String {
    let text = Base64::encode_string(der);
    let mut pem = "-----BEGIN PUBLIC KEY-----\n".to_owned();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem + "-----END PUBLIC KEY-----\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_key_is_written_in_lines_of_64() {
        let text = pem(&[0xfb; 51]);
        let lines: Vec<_> = text.lines().map(str::len).collect();
        assert_eq!(lines, [26, 64, 4, 24]);
        assert!(text.ends_with("+/v7\n-----END PUBLIC KEY-----\n"), "{text}");
    }
}
