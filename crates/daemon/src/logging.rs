//! Log lines on standard error: text for people, or one JSON object a line.
//!
//! What may be logged is what may be told: no type that holds a key has a text form.

use tracing_subscriber::EnvFilter;

/// Sends log lines to standard error from now on.
///
/// `SEALVOL_LOG` says how much, in the words of `tracing_subscriber::EnvFilter`; `info` if unset.
pub(crate) fn start(json: bool) {
    let filter = EnvFilter::try_from_env("SEALVOL_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // A second subscriber is impossible outside of tests, and there the first serves.
    let _ = if json {
        lines.json().try_init()
    } else {
        lines.with_ansi(false).try_init()
    };
}
