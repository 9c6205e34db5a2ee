//! What the vault and those who give tokens say, and what it means for the caller.
//!
//! The vault has a name for each refusal, in two places: `code`, and `innererror.code` where 403 and 409 have several causes.
//! A name that is not known is never a statement about the key, but for a 403, which is one whatever its cause.

use std::borrow::Cow;

use sealvol_control::keychild::FailureClass;
use serde::Deserialize;

use crate::http::words;

/// Of `wrapkey` and `unwrapkey`. Borrowed: a plaintext stays where the answer lies.
#[derive(Deserialize)]
pub(super) struct Operation<'a> {
    #[serde(borrow)]
    pub(super) kid: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) value: &'a str,
}

/// Of `keys/NAME` and `deletedkeys/NAME`.
#[derive(Deserialize)]
pub(super) struct Bundle {
    pub(super) key: WebKey,
    #[serde(default)]
    pub(super) attributes: Attributes,
    #[serde(default, rename = "scheduledPurgeDate")]
    pub(super) scheduled_purge: Option<u64>,
}

/// The public part of a key (RFC 7517).
#[derive(Deserialize)]
pub(super) struct WebKey {
    pub(super) kid: String,
    pub(super) kty: String,
    #[serde(default)]
    pub(super) key_ops: Vec<String>,
    /// Modulus, in Base64 for URLs.
    #[serde(default)]
    pub(super) n: String,
}

/// Times are in seconds since 1970.
#[derive(Default, Deserialize)]
pub(super) struct Attributes {
    #[serde(default)]
    pub(super) enabled: Option<bool>,
    #[serde(default)]
    pub(super) created: Option<u64>,
}

/// Of a list.
#[derive(Deserialize)]
pub(super) struct Page {
    pub(super) value: Vec<Item>,
    #[serde(default, rename = "nextLink")]
    pub(super) next: Option<String>,
}

/// See [`Page`].
#[derive(Deserialize)]
pub(super) struct Item {
    pub(super) kid: String,
}

/// Of whoever gives tokens.
#[derive(Deserialize)]
pub(super) struct Token<'a> {
    #[serde(borrow)]
    pub(super) access_token: &'a str,
}

#[derive(Default, Deserialize)]
struct Refused {
    #[serde(default)]
    error: ErrorOf,
}

#[derive(Default, Deserialize)]
struct ErrorOf {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default, alias = "innerError")]
    innererror: Option<Inner>,
}

#[derive(Default, Deserialize)]
struct Inner {
    #[serde(default)]
    code: String,
}

#[derive(Default, Deserialize)]
struct TokenRefused {
    #[serde(default)]
    error: String,
    #[serde(default)]
    error_description: String,
}

/// What is asked of the vault, as far as the meaning of a refusal depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Unwrap,
    Anything,
}

/// A refusal.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) class: FailureClass,
    /// By the service's own name.
    pub(super) said: String,
    /// In its own words.
    pub(super) message: String,
    pub(super) next_step: &'static str,
}

/// What `status` and the body of an answer of the vault that is no success mean.
pub(super) fn verdict(status: u16, body: &[u8], asked: Asked) -> Verdict {
    let Refused { error } = serde_json::from_slice(body).unwrap_or_default();
    let inner = error.innererror.unwrap_or_default().code;
    let cause = if inner.is_empty() {
        &error.code
    } else {
        &inner
    };
    let (class, next_step) = class(status, cause, &error.message, asked);
    let said = if cause.is_empty() {
        format!("HTTP {status}")
    } else {
        words(cause)
    };
    Verdict {
        class,
        said,
        message: words(&error.message),
        next_step,
    }
}

fn class(status: u16, cause: &str, message: &str, asked: Asked) -> (FailureClass, &'static str) {
    use FailureClass::{
        CallerBug, GoneForEver, KeyUnusable, NotPermitted, Transient, WrongKeyOrTamper,
    };
    let says = |text: &str| message.contains(text);
    match (status, cause) {
        (401, _) => (
            NotPermitted,
            "correct `tenant`, `authority` and `audience` in the configuration",
        ),
        (403, "KeyDisabled") => (KeyUnusable, ENABLE),
        (403, _) if says("disabled key") => (KeyUnusable, ENABLE),
        (403, "KeyExpired" | "KeyNotYetValid") => (KeyUnusable, TIMES),
        (403, _) if says("expired key") || says("not yet valid") => (KeyUnusable, TIMES),
        (403, "KeyOperationForbidden") => (
            KeyUnusable,
            "give the key the operations wrapKey and unwrapKey again",
        ),
        (403, "ForbiddenByFirewall" | "ForbiddenByConnection") => (
            NotPermitted,
            "let the vault's network rules pass this machine",
        ),
        (403, _) => (
            NotPermitted,
            "give the identity the permissions that the manual names (docs/key-services.md)",
        ),
        (404, "KeyNotFound") => (
            GoneForEver,
            "check the name; a key that was purged does not come back",
        ),
        (409, "ObjectIsDeletedButRecoverable") => (KeyUnusable, RECOVER),
        (409, "ObjectIsBeingDeleted" | "ObjectIsBeingRecovered") => {
            (Transient, "wait until the vault is done with it")
        }
        (400, _) if asked == Asked::Unwrap => (
            WrongKeyOrTamper,
            "the wrapped key was changed, moved from another volume, or is of another key service: restore the \
             volume's metadata",
        ),
        (300..=399, _) => (Transient, "correct `vault` in the configuration"),
        (408 | 429 | 500..=599, _) => (Transient, "see how the vault is, and try again"),
        _ => (
            CallerBug,
            "see whether `vault` is an Azure Key Vault, and its diagnostic log",
        ),
    }
}

/// What `status` and the body of a refused token mean.
pub(super) fn token_verdict(status: u16, body: &[u8]) -> Verdict {
    use FailureClass::{CallerBug, NotPermitted, Transient};
    let refused: TokenRefused = serde_json::from_slice(body).unwrap_or_default();
    let (class, next_step) = match (status, refused.error.as_str()) {
        // The metadata service is not there yet, or just being replaced.
        (404 | 408 | 410 | 429 | 300..=399 | 500..=599, _) | (_, "temporarily_unavailable") => (
            Transient,
            "see whether who gives tokens can be reached, and try again",
        ),
        (
            400 | 401 | 403,
            "invalid_client" | "unauthorized_client" | "access_denied" | "invalid_grant",
        ) => (
            NotPermitted,
            "see whether the application is known, and its secret not expired: put a new one into the file",
        ),
        (400, _) if refused.error_description.contains("Identity not found") => {
            (NotPermitted, "assign the identity to this machine")
        }
        _ => (
            CallerBug,
            "correct `tenant`, `client-id`, `authority` or `audience` in the configuration",
        ),
    };
    Verdict {
        class,
        said: if refused.error.is_empty() {
            format!("HTTP {status}")
        } else {
            words(&refused.error)
        },
        message: words(&refused.error_description),
        next_step,
    }
}

pub(super) const RECOVER: &str = "recover it in the vault: az keyvault key recover";
const ENABLE: &str = "enable the key in the vault";
const TIMES: &str =
    "change its activation or expiration date in the vault, or use its newest version";

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: u16, code: &str, inner: &str, message: &str, asked: Asked) -> FailureClass {
        let inner = if inner.is_empty() {
            serde_json::Value::Null
        } else {
            serde_json::json!({ "code": inner })
        };
        let error = serde_json::json!({ "code": code, "message": message, "innererror": inner });
        let body = serde_json::json!({ "error": error }).to_string();
        verdict(status, body.as_bytes(), asked).class
    }

    #[test]
    fn each_cause_has_its_class() {
        use FailureClass::*;
        for (status, code, inner, message, class) in [
            (
                401,
                "Unauthorized",
                "",
                "AKV10022: Invalid audience.",
                NotPermitted,
            ),
            (
                403,
                "Forbidden",
                "AccessDenied",
                "does not have keys unwrapKey permission",
                NotPermitted,
            ),
            (
                403,
                "Forbidden",
                "ForbiddenByRbac",
                "Caller is not authorized",
                NotPermitted,
            ),
            (
                403,
                "Forbidden",
                "ForbiddenByFirewall",
                "Client address is not authorized",
                NotPermitted,
            ),
            (403, "Forbidden", "SomethingNew", "", NotPermitted),
            (403, "Forbidden", "KeyDisabled", "", KeyUnusable),
            (
                403,
                "Forbidden",
                "",
                "Operation unwrapKey is not allowed on a disabled key.",
                KeyUnusable,
            ),
            (403, "Forbidden", "KeyExpired", "", KeyUnusable),
            (
                403,
                "Forbidden",
                "",
                "Operation wrapKey is not allowed on an expired key.",
                KeyUnusable,
            ),
            (403, "Forbidden", "KeyNotYetValid", "", KeyUnusable),
            (403, "Forbidden", "KeyOperationForbidden", "", KeyUnusable),
            (
                404,
                "KeyNotFound",
                "",
                "was not found in this key vault",
                GoneForEver,
            ),
            (404, "", "", "", CallerBug),
            (
                409,
                "Conflict",
                "ObjectIsDeletedButRecoverable",
                "",
                KeyUnusable,
            ),
            (409, "Conflict", "ObjectIsBeingDeleted", "", Transient),
            (409, "Conflict", "ObjectIsBeingRecovered", "", Transient),
            (409, "Conflict", "", "", CallerBug),
            (400, "BadParameter", "", "", CallerBug),
            (408, "", "", "", Transient),
            (429, "Throttled", "", "", Transient),
            (500, "InternalServerError", "", "", Transient),
            (503, "ServiceUnavailable", "", "", Transient),
            (302, "", "", "", Transient),
            (418, "a teapot", "", "", CallerBug),
        ] {
            let found = of(status, code, inner, message, Asked::Anything);
            assert_eq!(found, class, "{status} {code} {inner} {message}");
        }
        let of_unwrap = of(
            400,
            "BadParameter",
            "",
            "The parameter is incorrect.",
            Asked::Unwrap,
        );
        assert_eq!(of_unwrap, WrongKeyOrTamper);
    }

    #[test]
    fn each_refused_token_has_its_class() {
        use FailureClass::*;
        for (status, error, description, class) in [
            (
                401,
                "invalid_client",
                "AADSTS7000215: Invalid client secret provided.",
                NotPermitted,
            ),
            (
                401,
                "invalid_client",
                "AADSTS7000222: The provided client secret keys are expired.",
                NotPermitted,
            ),
            (
                400,
                "unauthorized_client",
                "AADSTS700016: Application was not found",
                NotPermitted,
            ),
            (
                400,
                "invalid_request",
                "AADSTS90002: Tenant not found.",
                CallerBug,
            ),
            (400, "invalid_resource", "AADSTS500011", CallerBug),
            (400, "invalid_request", "Identity not found", NotPermitted),
            (400, "temporarily_unavailable", "", Transient),
            (404, "", "", Transient),
            (410, "", "", Transient),
            (429, "", "", Transient),
            (502, "", "", Transient),
        ] {
            let body =
                serde_json::json!({ "error": error, "error_description": description }).to_string();
            let found = token_verdict(status, body.as_bytes());
            assert_eq!(found.class, class, "{status} {error}: {found:?}");
        }
    }

    #[test]
    fn an_outage_is_never_taken_for_a_revocation() {
        let silent = |class| matches!(class, FailureClass::Transient | FailureClass::CallerBug);
        for status in (300..400).chain([408, 429]).chain(500..600) {
            for cause in [
                "",
                "Forbidden",
                "KeyNotFound",
                "KeyDisabled",
                "BadParameter",
            ] {
                for asked in [Asked::Unwrap, Asked::Anything] {
                    let class = of(status, cause, cause, "a disabled key", asked);
                    assert!(silent(class), "{status} {cause}: {class:?}");
                }
                let body = serde_json::json!({ "error": "invalid_client" }).to_string();
                assert!(
                    silent(token_verdict(status, body.as_bytes()).class),
                    "{status}"
                );
            }
        }
        for body in [&b""[..], b"<html>", b"[]", br#"{"error":null}"#] {
            assert!(silent(verdict(502, body, Asked::Unwrap).class));
            assert_eq!(verdict(502, body, Asked::Unwrap).said, "HTTP 502");
        }
    }
}
