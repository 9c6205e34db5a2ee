//! The present time as RFC 3339 text in UTC: for records and answers, never for decisions.

use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};

/// The present time, to the microsecond: `2026-02-03T04:05:06.000007Z`.
pub(crate) fn now() -> String {
    let mut text = String::new();
    // The formatter of the log lines, so that records and log agree; a string takes all it gets.
    SystemTime
        .format_time(&mut Writer::new(&mut text))
        .expect("writing to a string does not fail");
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn now_is_rfc_3339_in_utc() {
        let text = super::now();
        assert_eq!(text.len(), "2026-02-03T04:05:06.000007Z".len(), "{text}");
        assert_eq!(
            (&text[4..5], &text[10..11], &text[26..]),
            ("-", "T", "Z"),
            "{text}"
        );
        assert!(text.as_str() > "2024", "{text}");
    }
}
