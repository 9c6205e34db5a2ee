//! What a fuzzer does with bytes. The crate's tests run the same functions on a fixed seed, so they are compiled and checked
//! without a fuzzer too.
//!
//! Each function states what must hold for any input, and panics if it does not.

use std::fmt::Debug;
use std::io::Write as _;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use sealvol_control::api;
use sealvol_control::key_ref::KeyRef;
use sealvol_control::keychild::frame::{self, FrameError, JSON_MAX};
use sealvol_control::keychild::{Batch, Reply};
use sealvol_control::size::Size;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// `data` is the body of a request or of an answer, of each kind in turn.
///
/// # Panics
/// If what is understood is not understood the same way after it was written again.
pub(crate) fn messages(data: &[u8]) {
    kept::<api::AttachVolume>(data);
    kept::<api::CreateKey>(data);
    kept::<api::CreateVolume>(data);
    kept::<api::DeleteVolume>(data);
    kept::<api::Deleted>(data);
    kept::<api::DetachVolume>(data);
    kept::<api::ErrorReply>(data);
    kept::<api::JobList>(data);
    kept::<api::KeyList>(data);
    kept::<api::RekeyVolume>(data);
    kept::<api::ResizeVolume>(data);
    kept::<api::RewrapVolume>(data);
    kept::<api::Rewrapped>(data);
    kept::<api::Status>(data);
    kept::<api::VolumeList>(data);
    kept::<api::VolumeMap>(data);
    kept::<Batch>(data);
    kept::<Reply>(data);
}

fn kept<T: Serialize + DeserializeOwned + PartialEq + Debug>(data: &[u8]) {
    let Ok(message) = serde_json::from_slice::<T>(data) else {
        return;
    };
    let json = serde_json::to_vec(&message).expect("what was read can be written");
    let again: T = serde_json::from_slice(&json).expect("what was written can be read");
    assert_eq!(again, message);
}

/// `data` comes over the message socket, then its end.
///
/// # Panics
/// If a message is taken that is too long or of another version, or is not the one that was sent.
pub(crate) fn frames(data: &[u8]) {
    let (mut sender, receiver) = UnixStream::pair().expect("a socket");
    // What a socket holds at once; a longer message is `messages`' matter.
    let data = &data[..data.len().min(64 << 10)];
    sender.write_all(data).expect("taken");
    sender.shutdown(Shutdown::Write).expect("ended");
    match frame::receive::<Batch>(&receiver) {
        Ok((batch, descriptors)) => {
            assert!(descriptors.is_empty());
            let frame =
                frame::encode(&batch).expect("a message that came is no longer than one may be");
            let (again, _) = frame::receive::<Batch>(&sent(&frame)).expect("our own message");
            assert_eq!(again, batch);
        }
        Err(FrameError::TooLong { bytes }) => assert!(bytes > JSON_MAX),
        Err(FrameError::Truncated { got, wanted }) => assert!(got < wanted && got <= data.len()),
        Err(FrameError::OtherVersion { .. } | FrameError::NotUnderstood(_)) => {
            assert!(data.len() >= 8);
        }
        Err(other) => panic!("{other}"),
    }
}

fn sent(frame: &[u8]) -> UnixStream {
    let (mut sender, receiver) = UnixStream::pair().expect("a socket");
    sender.write_all(frame).expect("taken");
    receiver
}

/// `data` is typed where a size, a key reference or a name is asked for.
///
/// # Panics
/// If what is accepted breaks the rules of its kind, or reads otherwise once printed.
pub(crate) fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(size) = text.parse::<Size>() {
        // A fraction is rounded for the reader; without one it is exact.
        let printed = size.to_string();
        if !printed.contains('.') {
            assert_eq!(printed.parse(), Ok(size), "{text} is printed as {printed}");
        }
    }
    if let Ok(key) = text.parse::<KeyRef>() {
        assert_eq!(key.to_string(), text);
        assert!(key.provider().len() <= KeyRef::PROVIDER_MAX);
        assert!(!key.key().is_empty() || key.is_provided());
        assert!(text.bytes().all(|byte| byte.is_ascii_graphic()));
    }
    if let Ok(name) = text.parse::<api::VolumeName>() {
        assert_eq!(name.as_str(), text);
        assert!(!text.contains(['/', '@', '\0']) && !text.starts_with('.'));
    }
}
