//! One line: a record, its number, the hash of the line before it, and the MAC.
//!
//! Always: what the MAC covers is text that stands in the line as it is, so that checking needs no
//! second encoding of JSON. Never: a newline inside a line.

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::{BYTES, ChainKey, from_hex, hex};

/// Where the MAC begins.
const MAC: &str = ",\"mac\":\"";
/// What follows it.
const END: &str = "\"}";

/// A place in the chain: what the next line is to be linked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The number of the next line; the first is 1.
    pub seq: u64,
    /// [`hash`] of the line before it; zeros if there is none.
    pub prev: [u8; BYTES],
}

impl Link {
    /// Before the first line.
    pub const START: Self = Self {
        seq: 1,
        prev: [0; BYTES],
    };
}

/// A line that was sealed.
#[derive(Debug)]
pub struct Sealed {
    /// With its newline.
    pub text: String,
    /// Its MAC: told elsewhere it is an [`Anchor`](crate::Anchor).
    pub mac: [u8; BYTES],
    /// Where the next line follows.
    pub next: Link,
}

/// Why a text is no line of a chain.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LineError {
    /// It is no JSON object.
    #[error("no record: {0}")]
    NotJson(String),
    /// It is one, without the fields of the chain.
    #[error("a record that is not part of the chain: `{0}` is missing or malformed")]
    NotChained(&'static str),
}

/// Seals `record`, a JSON object without `seq`, `prev` and `mac`, as the line of `key`.
///
/// # Errors
/// If it is no such object.
pub fn seal(record: &str, link: &Link, key: &ChainKey) -> Result<Sealed, LineError> {
    let fields = object(record)?;
    for taken in ["seq", "prev", "mac"] {
        if fields.contains_key(taken) {
            return Err(LineError::NotChained(taken));
        }
    }
    let open = record.trim_end().strip_suffix('}');
    let open = open.ok_or_else(|| LineError::NotJson("it has no end".to_owned()))?;
    let comma = if fields.is_empty() { "" } else { "," };
    let body = format!(
        "{open}{comma}\"seq\":{},\"prev\":\"{}\"",
        link.seq,
        hex(&link.prev)
    );
    let mac = key.mac(&body);
    let line = format!("{body}{MAC}{}{END}", hex(&mac));
    let next = Link {
        seq: link.seq + 1,
        prev: hash(&line),
    };
    Ok(Sealed {
        text: line + "\n",
        mac,
        next,
    })
}

/// What the next line has as `prev`. `line` is without its newline.
#[must_use]
pub fn hash(line: &str) -> [u8; BYTES] {
    Sha256::digest(line).into()
}

/// A line taken apart; nothing of it is checked yet.
#[derive(Debug)]
pub struct Parsed<'a> {
    /// Its number and what it says of the line before it.
    pub link: Link,
    /// The MAC it has.
    pub mac: [u8; BYTES],
    /// What the MAC covers.
    pub body: &'a str,
}

/// Takes a line apart, given without its newline.
///
/// # Errors
/// If it is none.
pub fn parse(line: &str) -> Result<Parsed<'_>, LineError> {
    let fields = object(line)?;
    let body_end = line.len().checked_sub(MAC.len() + 2 * BYTES + END.len());
    let split = body_end.and_then(|end| line.split_at_checked(end));
    let (body, rest) = split.ok_or(LineError::NotChained("mac"))?;
    let digits = rest.strip_prefix(MAC).and_then(|r| r.strip_suffix(END));
    let mac = digits
        .and_then(from_hex)
        .ok_or(LineError::NotChained("mac"))?;
    let text = |name| fields.get(name).and_then(Value::as_str);
    let prev = text("prev").and_then(from_hex);
    let seq = fields.get("seq").and_then(Value::as_u64);
    // Numbers begin at 1, and there is one after each.
    let seq = seq.filter(|seq| (1..u64::MAX).contains(seq));
    Ok(Parsed {
        link: Link {
            seq: seq.ok_or(LineError::NotChained("seq"))?,
            prev: prev.ok_or(LineError::NotChained("prev"))?,
        },
        mac,
        body,
    })
}

fn object(text: &str) -> Result<serde_json::Map<String, Value>, LineError> {
    if text.contains('\n') {
        return Err(LineError::NotJson("it goes over several lines".to_owned()));
    }
    serde_json::from_str(text).map_err(|error| LineError::NotJson(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_line_is_taken_apart_again() {
        let key = ChainKey::generate(1, |bytes| bytes.fill(3));
        for record in ["{}", r#"{"a":1}"#, r#"{"a":"}","b":{"mac":"x"}}"#] {
            let sealed = seal(record, &Link::START, &key).expect("sealed");
            let line = sealed.text.strip_suffix('\n').expect("a newline");
            let parsed = parse(line).expect("a line");
            assert_eq!(parsed.link, Link::START);
            assert_eq!(parsed.mac, sealed.mac);
            assert_eq!(key.mac(parsed.body), sealed.mac);
            assert_eq!(
                sealed.next,
                Link {
                    seq: 2,
                    prev: hash(line)
                }
            );
        }
    }

    #[test]
    fn what_is_no_record_is_not_sealed() {
        let key = ChainKey::generate(1, |bytes| bytes.fill(3));
        for bad in [
            "",
            "7",
            "[]",
            "{\"a\":1",
            "{\n}",
            r#"{"seq":1}"#,
            r#"{"mac":""}"#,
        ] {
            assert!(seal(bad, &Link::START, &key).is_err(), "`{bad}` was sealed");
        }
    }

    #[test]
    fn what_is_no_line_is_told_apart() {
        assert!(matches!(parse("garbage"), Err(LineError::NotJson(_))));
        assert_eq!(parse("{}").unwrap_err(), LineError::NotChained("mac"));
        let only_mac = format!("{{\"a\":1{MAC}{}{END}", hex(&[0; BYTES]));
        assert_eq!(parse(&only_mac).unwrap_err(), LineError::NotChained("seq"));
    }
}
