//! Encoders of option replies. Each appends one reply to the caller's buffer.
//!
//! Texts that come from the server's side (names, descriptions, refusals) are cut to what the
//! protocol calls a string, so that no reply is ever one that a client must reject.

use crate::export::{ExportInfo, ExportListing, transmission_flags};
use crate::option::InfoItems;
use crate::wire::{
    BLOCK_SIZE_MIN, BLOCK_SIZE_PREFERRED, EXPORT_NAME_ZEROES, NBD_INFO_BLOCK_SIZE,
    NBD_INFO_DESCRIPTION, NBD_INFO_EXPORT, NBD_INFO_NAME, NBD_REP_ACK, NBD_REP_INFO, NBD_REP_MAGIC,
    NBD_REP_META_CONTEXT, NBD_REP_SERVER, PAYLOAD_MAX, STRING_MAX,
};

pub(crate) fn ack(out: &mut Vec<u8>, option: u32) {
    reply(out, option, NBD_REP_ACK, &[]);
}

/// An error reply with text for the user.
pub(crate) fn error(out: &mut Vec<u8>, option: u32, reply_type: u32, message: &str) {
    reply(out, option, reply_type, &[presentable(message).as_bytes()]);
}

/// One export of a list. A name that no client could ask for is left out.
pub(crate) fn server(out: &mut Vec<u8>, option: u32, listing: &ExportListing) {
    let name = listing.name.as_bytes();
    if presentable(&listing.name).len() != name.len() {
        return;
    }
    let name_len = length(name.len());
    let description = presentable(&listing.description).as_bytes();
    reply(out, option, NBD_REP_SERVER, &[&name_len, name, description]);
}

/// The whole answer to `NBD_OPT_INFO` and `NBD_OPT_GO`: size and flags always, the rest as asked.
pub(crate) fn infos(
    out: &mut Vec<u8>,
    option: u32,
    name: &str,
    info: &ExportInfo,
    items: InfoItems,
    structured: bool,
) {
    let size = info.size.to_be_bytes();
    let flags = transmission_flags(info, structured).to_be_bytes();
    item(out, option, NBD_INFO_EXPORT, &[&size, &flags]);
    if items.name {
        item(out, option, NBD_INFO_NAME, &[name.as_bytes()]);
    }
    let description = presentable(&info.description);
    if items.description && !description.is_empty() {
        item(out, option, NBD_INFO_DESCRIPTION, &[description.as_bytes()]);
    }
    if items.block_size {
        let [min, preferred, payload] =
            [BLOCK_SIZE_MIN, BLOCK_SIZE_PREFERRED, PAYLOAD_MAX].map(u32::to_be_bytes);
        item(
            out,
            option,
            NBD_INFO_BLOCK_SIZE,
            &[&min, &preferred, &payload],
        );
    }
    ack(out, option);
}

pub(crate) fn meta_context(out: &mut Vec<u8>, option: u32, id: u32, name: &str) {
    reply(
        out,
        option,
        NBD_REP_META_CONTEXT,
        &[&id.to_be_bytes(), name.as_bytes()],
    );
}

/// The answer to `NBD_OPT_EXPORT_NAME`, which alone has no reply header.
pub(crate) fn export_name(out: &mut Vec<u8>, info: &ExportInfo, structured: bool, zeroes: bool) {
    out.extend_from_slice(&info.size.to_be_bytes());
    out.extend_from_slice(&transmission_flags(info, structured).to_be_bytes());
    if zeroes {
        out.extend_from_slice(&[0; EXPORT_NAME_ZEROES]);
    }
}

/// One `NBD_REP_INFO`, of at most three fields.
fn item(out: &mut Vec<u8>, option: u32, kind: u16, fields: &[&[u8]]) {
    let kind = kind.to_be_bytes();
    let mut parts: [&[u8]; 4] = [&kind, &[], &[], &[]];
    parts[1..=fields.len()].copy_from_slice(fields);
    reply(out, option, NBD_REP_INFO, &parts);
}

fn reply(out: &mut Vec<u8>, option: u32, reply_type: u32, parts: &[&[u8]]) {
    out.extend_from_slice(&NBD_REP_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&reply_type.to_be_bytes());
    out.extend_from_slice(&length(parts.iter().map(|part| part.len()).sum()));
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// The longest start of `text` that is a string of the protocol.
pub(crate) fn presentable(text: &str) -> &str {
    let text = text.split('\0').next().unwrap_or_default();
    &text[..text.floor_char_boundary(STRING_MAX)]
}

/// A length field. Every part is a string or of fixed size, so the sum is far below 2^32.
fn length(len: usize) -> [u8; 4] {
    u32::try_from(len)
        .expect("a reply of a few strings is below 4 GiB")
        .to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters() {
        let text = "é".repeat(STRING_MAX);
        assert_eq!(presentable(&text).len(), STRING_MAX);
        let text = format!("x{text}");
        assert_eq!(presentable(&text).len(), STRING_MAX - 1);
        assert_eq!(presentable("up to\0here"), "up to");
    }

    #[test]
    fn a_name_that_no_client_can_ask_for_is_not_listed() {
        let mut out = Vec::new();
        for name in ["x".repeat(STRING_MAX + 1), "a\0b".to_owned()] {
            server(
                &mut out,
                3,
                &ExportListing {
                    name,
                    description: String::new(),
                },
            );
        }
        assert!(out.is_empty());
    }
}
