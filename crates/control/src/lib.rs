//! Messages of the control API and of the key child, and their clients. See each module.

pub mod api;
pub mod client;
pub mod descriptor;
pub mod key_handover;
pub mod key_ref;
pub mod keychild;
pub mod pem;
pub mod pkcs11_uri;
pub mod size;
pub mod timestamp;
