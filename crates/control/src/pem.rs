//! Keys in PEM (RFC 7468), as OpenSSL writes them.
//!
//! What always holds: what is not exactly that is no key; nothing of the text is kept, or stands in an error: it may be a
//! private key.

use base64ct::{Base64, Decoder};

/// Characters in a line.
const LINE: usize = 64;

/// The DER between the lines that begin and end a `label`, such as `PUBLIC KEY`; none if it is not there whole.
#[must_use]
pub fn decode(text: &[u8], label: &str) -> Option<Vec<u8>> {
    let begin = format!("-----BEGIN {label}-----");
    let end = format!("-----END {label}-----");
    let from = position(text, begin.as_bytes())? + begin.len();
    let rest = &text[from..];
    let base64 = rest[..position(rest, end.as_bytes())?].trim_ascii();
    let mut decoder = Decoder::<Base64>::new_wrapped(base64, LINE).ok()?;
    // As long as it will be: no former, shorter place of it is left in memory.
    let mut der = Vec::with_capacity(decoder.remaining_len());
    decoder.decode_to_end(&mut der).ok()?;
    (!der.is_empty()).then_some(der)
}

fn position(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "\
-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURoAAAAA
AAAA
-----END PUBLIC KEY-----
";

    #[test]
    fn a_key_is_found_whatever_stands_around_it() {
        let plain = decode(KEY.as_bytes(), "PUBLIC KEY").expect("a key");
        assert_eq!((plain.len(), &plain[..2]), (51, &[0x30, 0x2a][..]));
        let other_line_ends = KEY.replace('\n', "\r\n");
        for text in [format!("Bag Attributes\n{KEY}rest\n"), other_line_ends] {
            assert_eq!(decode(text.as_bytes(), "PUBLIC KEY"), Some(plain.clone()));
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let cut = &KEY[..80];
        let changed = KEY.replace("AAAA\n---", "A*AA\n---");
        let empty = "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n";
        for text in ["", cut, &changed, empty] {
            assert_eq!(decode(text.as_bytes(), "PUBLIC KEY"), None, "{text}");
        }
        assert_eq!(decode(KEY.as_bytes(), "PRIVATE KEY"), None);
    }
}
