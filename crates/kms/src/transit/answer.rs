//! What the server says, and what it means for the caller.
//!
//! Every refusal of the transit engine is an HTTP 400, whatever the cause: the text tells them apart. A text that is not
//! known is a caller bug, never a statement about the key, so a new release of the server cannot make a key look lost.

use std::collections::BTreeMap;

use sealvol_control::keychild::FailureClass;
use serde::Deserialize;

use crate::http::words;

/// The `data` of an answer.
#[derive(Deserialize)]
pub(super) struct Reply<T> {
    pub(super) data: T,
}

/// Of `decrypt`. Borrowed: the plaintext stays where the answer lies.
#[derive(Deserialize)]
pub(super) struct Plaintext<'a> {
    pub(super) plaintext: &'a str,
}

/// Of `datakey/wrapped`, `encrypt` and `rewrap`.
#[derive(Deserialize)]
pub(super) struct Ciphertext {
    pub(super) ciphertext: String,
}

/// Of `keys/NAME`.
#[derive(Deserialize)]
pub(super) struct Key {
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) derived: bool,
    #[serde(default)]
    pub(super) soft_deleted: bool,
    /// By version: when it was made, in seconds since 1970; more than that for keys that are not symmetric.
    pub(super) keys: BTreeMap<u32, serde_json::Value>,
}

/// Of a list.
#[derive(Deserialize)]
pub(super) struct Names {
    pub(super) keys: Vec<String>,
}

/// Of a login.
#[derive(Deserialize)]
pub(super) struct Login<'a> {
    #[serde(borrow)]
    pub(super) auth: Token<'a>,
}

/// See [`Login`].
#[derive(Deserialize)]
pub(super) struct Token<'a> {
    pub(super) client_token: &'a str,
}

/// Of `sys/capabilities-self`: by path, what the token may do there.
pub(super) type Capabilities = BTreeMap<String, Vec<String>>;

#[derive(Default, Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<String>,
}

/// A refusal by the server.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) class: FailureClass,
    /// In its own words.
    pub(super) said: String,
    pub(super) next_step: &'static str,
}

/// What `status` and the body of an answer that is no success mean.
pub(super) fn verdict(status: u16, body: &[u8]) -> Verdict {
    let errors: Errors = serde_json::from_slice(body).unwrap_or_default();
    let said = words(&errors.errors.join("; "));
    let (class, next_step) = class(status, &said);
    let said = if said.is_empty() {
        format!("HTTP {status}")
    } else {
        said
    };
    Verdict {
        class,
        said,
        next_step,
    }
}

fn class(status: u16, said: &str) -> (FailureClass, &'static str) {
    use FailureClass::{
        CallerBug, GoneForEver, KeyUnusable, NotPermitted, Transient, WrongKeyOrTamper,
    };
    let says = |text: &str| said.contains(text);
    match status {
        403 => (
            NotPermitted,
            "see whether the policy of the credential covers the call, and whether its token has expired or was revoked",
        ),
        404 if says("no handler for route") || says("unsupported path") => (
            CallerBug,
            "correct `mount` or `namespace` in the configuration, or enable the transit engine there",
        ),
        404 => (GoneForEver, NO_KEY),
        400 if says("encryption key not found") => (GoneForEver, NO_KEY),
        400 if says("soft-deleted") => (
            KeyUnusable,
            "restore the key in the key service (keys/NAME/soft-delete-restore)",
        ),
        400 if says("disallowed by policy (too old)") => (
            KeyUnusable,
            "lower min_decryption_version of the key, attach, and rewrap: sealvol key rewrap",
        ),
        400 if says("message authentication failed")
            || says("invalid ciphertext")
            || says("version is too new")
            || says("unable to decode") =>
        {
            (
                WrongKeyOrTamper,
                "the wrapped key was changed, moved from another volume, or is of another key \
                 service: restore the volume's metadata",
            )
        }
        503 if says("sealed") => (Transient, "unseal the key service"),
        // A standby that does not forward says where the active node is.
        300..=399 => (
            Transient,
            "name the active node, or a load balancer that finds it, as `address`",
        ),
        408 | 412 | 429 | 500..=599 => (Transient, "see how the key service is, and try again"),
        _ => (
            CallerBug,
            "see whether `address` is an OpenBao or Vault server, and its log",
        ),
    }
}

const NO_KEY: &str = "check the name; a key that was deleted in the key service does not come back";

#[cfg(test)]
mod tests {
    use super::*;

    fn class_of(status: u16, said: &str) -> FailureClass {
        let body = serde_json::json!({ "errors": [said] }).to_string();
        verdict(status, body.as_bytes()).class
    }

    #[test]
    fn each_cause_has_its_class() {
        use FailureClass::*;
        for (status, said, class) in [
            (
                400,
                "cipher: message authentication failed",
                WrongKeyOrTamper,
            ),
            (400, "invalid ciphertext: no prefix", WrongKeyOrTamper),
            (
                400,
                "invalid ciphertext: version is too new",
                WrongKeyOrTamper,
            ),
            (
                400,
                "ciphertext or signature version is disallowed by policy (too old)",
                KeyUnusable,
            ),
            (400, "refusing to use soft-deleted key", KeyUnusable),
            (400, "encryption key not found", GoneForEver),
            (
                400,
                "missing 'context' for key derivation; the key was created using a derived key",
                CallerBug,
            ),
            (
                403,
                "1 error occurred:\n\t* permission denied\n\n",
                NotPermitted,
            ),
            (404, "", GoneForEver),
            (
                404,
                "no handler for route \"nothing/keys/a\". route entry not found.",
                CallerBug,
            ),
            (307, "", Transient),
            (412, "required index state not present", Transient),
            (
                429,
                "request path \"transit/decrypt/a\": rate limit quota exceeded",
                Transient,
            ),
            (500, "internal error", Transient),
            (502, "", Transient),
            (503, "Vault is sealed", Transient),
            (405, "unsupported operation", CallerBug),
            (418, "a teapot", CallerBug),
        ] {
            assert_eq!(class_of(status, said), class, "{status} {said}");
        }
    }

    #[test]
    fn an_outage_is_never_taken_for_a_revocation() {
        for status in (300..400).chain([408, 412, 429]).chain(500..600) {
            for said in [
                "",
                "permission denied",
                "encryption key not found",
                "sealed",
                "x",
            ] {
                let class = class_of(status, said);
                let says_nothing_of_the_key =
                    matches!(class, FailureClass::Transient | FailureClass::CallerBug);
                assert!(says_nothing_of_the_key, "{status} {said}: {class:?}");
            }
        }
    }

    #[test]
    fn the_words_of_a_server_are_short_and_plain() {
        let body =
            serde_json::json!({ "errors": ["a\n\t* b\u{1b}[31m", "c".repeat(1000)] }).to_string();
        let said = verdict(400, body.as_bytes()).said;
        assert!(
            said.starts_with("a * b[31m; ccc") && said.len() == 300,
            "{said}"
        );
        for body in [&b""[..], b"<html>", b"{}", b"[]", br#"{"errors":[]}"#] {
            assert_eq!(verdict(502, body).said, "HTTP 502");
        }
    }
}
