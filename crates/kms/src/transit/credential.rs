//! What is said to the server with a secret in it: a token's header, an AppRole's login.
//!
//! What always holds: a secret is marked sensitive where it stands in a header, and in no message.

use hyper::header::HeaderValue;
use zeroize::Zeroize as _;

/// A token as a header has it.
pub(super) fn header(token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(token).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// `{"role_id":…,"secret_id":…}`: both are printable ASCII; a quote or backslash in them is none that a server made.
pub(super) fn login(role_id: &str, secret_id: &str) -> Option<Vec<u8>> {
    let plain = |text: &str| !text.contains(['"', '\\']);
    let body = plain(role_id) && plain(secret_id);
    body.then(|| {
        let mut text = format!(r#"{{"role_id":"{role_id}","secret_id":"{secret_id}"}}"#);
        let body = text.as_bytes().to_vec();
        text.zeroize();
        body
    })
}
