//! What the daemon finds when it looks at its machine, its files and its key services.

use serde::{Deserialize, Serialize};

/// Path of [`Doctor`].
pub const DOCTOR: &str = "/v1/doctor";

/// Everything that was looked at, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doctor {
    /// One for each thing.
    pub checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What it is, in two or three words.
    pub subject: String,
    /// How it is.
    pub health: Health,
    /// What was found.
    pub found: String,
    /// What to do, unless all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// As it should be.
    Ok,
    /// It works, with less than could be had: a weaker protection, little room left.
    Warning,
    /// Volumes can't be attached, or a promise of SECURITY.md does not hold.
    Failure,
}
