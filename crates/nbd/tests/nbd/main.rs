//! The protocol as a client meets it: bytes in, bytes out.

#[path = "../../fuzz/bodies.rs"]
mod bodies;

mod gate;
mod handshake;
mod kept_corpus;
mod properties;
mod replies;
mod round_trip;
mod server;
mod transcripts;

/// Bytes written as hexadecimal digits; white space is for the reader.
fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| {
            c.to_digit(16)
                .and_then(|digit| u8::try_from(digit).ok())
                .expect("a digit")
        })
        .collect();
    assert_eq!(digits.len() % 2, 0, "a byte has two digits");
    digits
        .chunks_exact(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}
