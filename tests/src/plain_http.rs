//! Questions of a test to a server on this machine, in the clear.
//!
//! It needs nothing of this crate, so that the tests of other crates can include the file.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::Value;

/// One question over a connection of its own, as HTTP/1.0: the answer ends with the connection. Status 0 if there is none.
#[must_use]
pub fn ask(
    port: u16,
    headers: &[(&str, &str)],
    method: &str,
    path: &str,
    body: &Value,
) -> (u16, Value) {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let mut question = format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\n");
    for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
        question += &format!("{name}: {value}\r\n");
    }
    question += &format!(
        "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let exchange = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.write_all(question.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().unwrap_or_default();
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (
        status.unwrap_or(0),
        serde_json::from_str(body).unwrap_or(Value::Null),
    )
}
