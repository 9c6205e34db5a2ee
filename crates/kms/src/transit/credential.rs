//! How an AppRole says who it is. What always holds: what it says is wiped after use, and in no message.

use zeroize::Zeroize as _;

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
