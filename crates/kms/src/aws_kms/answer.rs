//! What AWS KMS says, by the names of its errors, and what they mean for the caller.
//!
//! The name decides, not the HTTP status (most refusals are a 400), but for one rule that comes first: a status that says that
//! the service is away or overloaded says nothing about a key, whatever stands beside it. A name that is not in the table is
//! a caller bug, never a statement about the key, so a new name of the service cannot make a key look lost.

use sealvol_control::keychild::FailureClass::{
    self, CallerBug, GoneForEver, KeyUnusable, NotPermitted, Transient, WrongKeyOrTamper,
};

use crate::http::words;

/// What a try that would have succeeded is answered with.
pub(super) const DRY_RUN: &str = "DryRunOperationException";

/// What a credential is answered that may not do it.
pub(super) const ACCESS_DENIED: [&str; 2] = ["AccessDeniedException", "AccessDenied"];

/// A refusal by the service.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) class: FailureClass,
    /// The name.
    pub(super) said: String,
    pub(super) next_step: &'static str,
    /// In so many seconds there are calls again: quotas are of each second.
    pub(super) retry_after: Option<u32>,
}

/// What an error of that name means, if there is one, that came with these words and this HTTP status.
pub(super) fn verdict(name: Option<&str>, text: &str, status: u16) -> Verdict {
    let (class, next_step) = match (status, name) {
        (300..=399 | 408 | 429 | 500..=599, _) => (Transient, LATER),
        (_, Some(name)) => named(name, text),
        // Something between here and the service, or no KMS at all.
        (_, None) => (
            CallerBug,
            "see whether `endpoint` is one of AWS KMS, and what answers there",
        ),
    };
    let said = name.map(first_line).filter(|name| !name.is_empty());
    let throttled = status == 429 || name.is_some_and(|name| THROTTLED.contains(&name));
    Verdict {
        class,
        retry_after: throttled.then_some(1),
        said: said.unwrap_or_else(|| format!("HTTP {status}")),
        next_step,
    }
}

fn named(name: &str, text: &str) -> (FailureClass, &'static str) {
    let says = |part: &str| text.to_ascii_lowercase().contains(part);
    match name {
        // The state in words: some pass by themselves, and what an external key manager says or fails to say comes as this
        // name, too, so an outage of it could not be told from a revocation.
        "KMSInvalidStateException" if says("external key") || says("xks") => (
            Transient,
            "see how the external key manager and its proxy are: AWS KMS tells their outages and refusals alike",
        ),
        "KMSInvalidStateException" if says("creating") || says("updating") => (Transient, LATER),
        // A request is signed with the time; a clock that is wrong says nothing about the key.
        "InvalidSignatureException" | "SignatureDoesNotMatch"
            if says("expired") || says("not yet current") =>
        {
            (Transient, CLOCK)
        }
        "NotFoundException" if says("invalid arn") => (
            CallerBug,
            "correct `region` in the configuration, or the key's ARN: they name different ones",
        ),
        _ => NAMES
            .iter()
            .find(|(known, ..)| known.contains(&name))
            .map_or(
                (CallerBug, "see the API reference of AWS KMS"),
                |&(_, class, next_step)| (class, next_step),
            ),
    }
}

/// By which the service says that account and region have had their calls of this second.
const THROTTLED: [&str; 6] = [
    "RequestLimitExceeded",
    "SlowDown",
    "ThrottledException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
];

const QUOTA: &str = "have the account's quota of AWS KMS raised, or attach fewer volumes at once";
const LATER: &str = "see how AWS KMS is in the region, and try again";
const CLOCK: &str = "correct the clock of this host";
const POLICY: &str = "see whether the policies of the credential and of the key cover the call";
const ACCESS_KEY: &str = "put a present access key into the file that the configuration names; see whether it has expired or was \
                          deactivated or deleted";

/// Every name that calls of this provider can be answered with. [AWS KMS API reference, common errors and those of each call]
const NAMES: [(&[&str], FailureClass, &str); 12] = [
    (&THROTTLED, Transient, QUOTA),
    (
        &["DisabledException"],
        KeyUnusable,
        "enable the key: sealvol key enable, or in AWS; if it is pending deletion, cancel that first",
    ),
    (
        &["KMSInvalidStateException"],
        KeyUnusable,
        "see its state: sealvol key show; a deletion can be cancelled, missing key material imported",
    ),
    (&ACCESS_DENIED, NotPermitted, POLICY),
    (
        &[
            "InvalidGrantTokenException",
            "NotAuthorized",
            "OptInRequired",
            "UnauthorizedException",
        ],
        NotPermitted,
        POLICY,
    ),
    (
        &[
            "ExpiredToken",
            "ExpiredTokenException",
            "InvalidAccessKeyId",
            "InvalidClientTokenId",
            "InvalidSignatureException",
            "InvalidToken",
            "SignatureDoesNotMatch",
            "TokenRefreshRequired",
            "UnrecognizedClientException",
        ],
        NotPermitted,
        ACCESS_KEY,
    ),
    (
        &["InvalidCiphertextException", "IncorrectKeyException"],
        WrongKeyOrTamper,
        "the wrapped key was changed, moved from another volume, or is of another key: restore the volume's metadata",
    ),
    (
        &["NotFoundException"],
        GoneForEver,
        "check key, region and account; a key that was deleted in AWS KMS does not come back",
    ),
    (
        &[
            "ConflictException",
            "DependencyTimeoutException",
            "InternalFailure",
            "InternalServerException",
            "KMSInternalException",
            "KeyUnavailableException",
            "PriorRequestNotComplete",
            "RequestTimeout",
            "RequestTimeoutException",
            "ServiceUnavailable",
            "ServiceUnavailableException",
        ],
        Transient,
        LATER,
    ),
    (
        &[
            "RequestExpired",
            "RequestInTheFuture",
            "RequestTimeTooSkewed",
        ],
        Transient,
        CLOCK,
    ),
    (
        &["InvalidKeyUsageException"],
        CallerBug,
        "use a symmetric key for encryption (SYMMETRIC_DEFAULT)",
    ),
    (
        &[
            "AlreadyExistsException",
            "IncompleteSignature",
            "InvalidAction",
            "InvalidAliasNameException",
            "InvalidArnException",
            "InvalidMarkerException",
            "InvalidParameterCombination",
            "InvalidParameterValue",
            "InvalidQueryParameter",
            "LimitExceededException",
            "MalformedPolicyDocumentException",
            "MalformedQueryString",
            "MissingAction",
            "MissingAuthenticationToken",
            "MissingAuthenticationTokenException",
            "MissingParameter",
            "SerializationException",
            "TagException",
            "UnknownOperationException",
            "UnsupportedOperationException",
            "ValidationError",
            "ValidationException",
            DRY_RUN,
        ],
        CallerBug,
        "see what AWS KMS says of it; `sealvol doctor` may tell more",
    ),
];

/// Words of the service for a message: short, nothing that a terminal obeys, and the first line only: what follows in an answer to
/// a wrong signature is the request with its session token.
pub(super) fn first_line(text: &str) -> String {
    words(text.trim_start().lines().next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(name: &str, text: &str) -> FailureClass {
        verdict(Some(name), text, 400).class
    }

    #[test]
    fn each_name_has_its_class() {
        for (class_of_all, names) in [
            (
                KeyUnusable,
                &["DisabledException", "KMSInvalidStateException"][..],
            ),
            (
                NotPermitted,
                &[
                    "AccessDeniedException",
                    "InvalidGrantTokenException",
                    "NotAuthorized",
                    "ExpiredTokenException",
                    "InvalidSignatureException",
                    "UnrecognizedClientException",
                    "InvalidClientTokenId",
                ],
            ),
            (
                WrongKeyOrTamper,
                &["InvalidCiphertextException", "IncorrectKeyException"],
            ),
            (GoneForEver, &["NotFoundException"]),
            (
                Transient,
                &[
                    "ThrottlingException",
                    "DependencyTimeoutException",
                    "KeyUnavailableException",
                    "KMSInternalException",
                    "RequestTimeTooSkewed",
                ],
            ),
            (
                CallerBug,
                &[
                    "ValidationException",
                    "InvalidKeyUsageException",
                    "InvalidArnException",
                    "LimitExceededException",
                    "UnsupportedOperationException",
                    "MissingAuthenticationTokenException",
                    "ANameOfNextYear",
                ],
            ),
        ] {
            for name in names {
                assert_eq!(class(name, "because"), class_of_all, "{name}");
            }
        }
    }

    #[test]
    fn no_name_stands_in_the_table_twice() {
        let mut names: Vec<_> = NAMES.iter().flat_map(|(names, ..)| *names).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn a_state_is_read_from_the_words() {
        let of = |text| class("KMSInvalidStateException", text);
        for text in [
            "arn:… is pending deletion.",
            "arn:… is pending import.",
            "arn:… is unavailable.",
        ] {
            assert_eq!(of(text), KeyUnusable, "{text}");
        }
        for text in [
            "arn:… is creating.",
            "The external key store proxy did not respond to the request in time.",
            "The external key store proxy rejected the request because the external key is disabled.",
            "XKS proxy: ThrottlingException",
        ] {
            assert_eq!(of(text), Transient, "{text}");
        }
        // Either name is used of a key that is pending deletion.
        assert_eq!(
            class("DisabledException", "arn:… is pending deletion."),
            KeyUnusable
        );
    }

    #[test]
    fn a_wrong_clock_or_region_is_not_taken_for_a_lost_key() {
        let signature = "InvalidSignatureException";
        let skewed = "Signature expired: 20261130T000000Z is now earlier than 20261130T010000Z";
        assert_eq!(class(signature, skewed), Transient);
        assert_eq!(class(signature, "Signature not yet current: …"), Transient);
        let wrong =
            "The request signature we calculated does not match the signature you provided.";
        assert_eq!(class(signature, wrong), NotPermitted);
        assert_eq!(
            class("NotFoundException", "Invalid arn us-east-1"),
            CallerBug
        );
    }

    #[test]
    fn an_outage_is_never_taken_for_a_revocation() {
        for status in (300..400).chain([408, 429]).chain(500..600) {
            for name in NAMES.iter().flat_map(|(names, ..)| *names) {
                assert_eq!(
                    verdict(Some(name), "", status).class,
                    Transient,
                    "{status} {name}"
                );
            }
            assert_eq!(verdict(None, "", status).class, Transient, "{status}");
        }
        // A firewall or portal on the way has no words of KMS.
        for status in [400, 401, 403, 404, 407, 451] {
            assert_eq!(verdict(None, "", status).class, CallerBug, "{status}");
        }
    }

    #[test]
    fn the_words_of_the_service_are_short_and_end_before_the_request_is_repeated() {
        let text = "The request signature\u{1b}[31m does\tnot match.\n\nThe Canonical String was\n'x-amz-security-token:SECRET'";
        assert_eq!(
            first_line(text),
            "The request signature[31m does not match."
        );
        assert_eq!(first_line(&"c".repeat(1000)).len(), 300);
        assert_eq!(verdict(None, "", 502).said, "HTTP 502");
        assert_eq!(verdict(Some("\n"), "", 400).said, "HTTP 400");
    }
}
