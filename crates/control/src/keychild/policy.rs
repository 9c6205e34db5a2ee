//! The policy of a key: who may use it, for what.
//!
//! ```json
//! {
//!   "version": 1,
//!   "statements": [
//!     {"uids": [1000], "actions": ["administer"]},
//!     {"uids": [1001, 1002], "actions": ["attach"], "context": {"sealvol:volume": "UUID"}}
//!   ]
//! }
//! ```
//! What always holds: what no statement allows is denied. A statement allows an action if it names the user, the action, and, of
//! the encryption context of the call, every pair that it has itself.

use std::collections::BTreeSet;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::message::{Context, Right};

/// Most bytes of a policy, as of one of AWS KMS.
pub const POLICY_BYTES_MAX: usize = 32_768;

/// The one pair of an encryption context that a statement may ask for: the volume's UUID.
pub const POLICY_CONTEXT: &str = "sealvol:volume";

const VERSION: u32 = 1;

/// Who asks: in whose name the key service is to decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Principal {
    /// The daemon, for itself: what was permitted when it began goes on.
    Daemon,
    /// The user who asks the daemon, by the number that the kernel tells of him.
    Uid(u32),
}

/// Who may do what with a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    version: u32,
    statements: Vec<Statement>,
}

/// Something that is allowed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Statement {
    uids: BTreeSet<u32>,
    actions: Vec<Right>,
    #[serde(default, skip_serializing_if = "Context::is_empty")]
    context: Context,
}

/// Why a text is no policy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// It is no JSON of that form.
    #[error("policy: it is not understood: {0}")]
    Form(#[from] serde_json::Error),
    /// It has another version.
    #[error("policy: version {0}; this program knows version {VERSION}")]
    Version(u32),
    /// It is too long.
    #[error("policy: it has {0} bytes; at most {POLICY_BYTES_MAX} are possible")]
    TooLong(usize),
    /// A statement that says nothing.
    #[error("policy: statement {0} names no uid or no action")]
    Empty(usize),
    /// A statement asks for what no context has.
    #[error("policy: statement {0} asks for another pair of the context than {POLICY_CONTEXT}")]
    Context(usize),
}

impl Policy {
    /// Whether a user may do something with the key; `context` is that of the wrapped key that it is about, if it is about one.
    #[must_use]
    pub fn allows(&self, uid: u32, action: Right, context: &dyn Fn(&str, &str) -> bool) -> bool {
        self.statements.iter().any(|statement| {
            statement.uids.contains(&uid)
                && statement.actions.contains(&action)
                && statement
                    .context
                    .iter()
                    .all(|(name, value)| context(name, value))
        })
    }
}

impl FromStr for Policy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        if text.len() > POLICY_BYTES_MAX {
            return Err(PolicyError::TooLong(text.len()));
        }
        let policy: Self = serde_json::from_str(text)?;
        if policy.version != VERSION {
            return Err(PolicyError::Version(policy.version));
        }
        for (number, statement) in (1..).zip(&policy.statements) {
            if statement.uids.is_empty() || statement.actions.is_empty() {
                return Err(PolicyError::Empty(number));
            }
            if statement.context.keys().any(|name| name != POLICY_CONTEXT) {
                return Err(PolicyError::Context(number));
            }
        }
        Ok(policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"version":1,"statements":[
        {"uids":[1],"actions":["administer"]},
        {"uids":[2,3],"actions":["create","attach"],"context":{"sealvol:volume":"a"}}]}"#;

    #[test]
    fn what_no_statement_allows_is_denied() {
        let policy: Policy = TEXT.parse().expect("a policy");
        let volume = |volume: &'static str| {
            move |name: &str, value: &str| name == POLICY_CONTEXT && value == volume
        };
        let none = |_: &str, _: &str| false;
        for right in [Right::Create, Right::Attach, Right::Administer] {
            let administers = right == Right::Administer;
            assert_eq!(policy.allows(1, right, &none), administers);
            assert_eq!(policy.allows(1, right, &volume("a")), administers);
            for uid in [2, 3] {
                assert_eq!(policy.allows(uid, right, &volume("a")), !administers);
                assert!(!policy.allows(uid, right, &volume("b")));
                assert!(!policy.allows(uid, right, &none));
            }
            assert!(!policy.allows(0, right, &volume("a")));
        }
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        let long = format!("{TEXT}{}", " ".repeat(POLICY_BYTES_MAX));
        for text in [
            "",
            "{}",
            &TEXT.replace("\"version\":1", "\"version\":2"),
            &TEXT.replace("create", "destroy"),
            &TEXT.replace("sealvol:volume", "sealvol:data-key"),
            &TEXT.replace("[1]", "[]"),
            &TEXT.replace("[1]", "[-1]"),
            &TEXT.replace("[1]", "[\"*\"]"),
            &TEXT.replace("[\"administer\"]", "[]"),
            &TEXT.replace("\"uids\":[1]", "\"uids\":[1],\"effect\":\"deny\""),
            &long,
        ] {
            assert!(text.parse::<Policy>().is_err(), "{text}");
        }
    }
}
