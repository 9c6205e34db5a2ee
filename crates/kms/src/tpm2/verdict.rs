//! What a TPM's response codes mean here: the one table of them [TPM 2.0 Library, part 2, 6.6].
//!
//! What always holds: whatever is not known is [`FailureClass::Transient`]; only what speaks of a key, its policy or the
//! right to it is taken for a word about them.

use std::io;

use sealvol_control::keychild::FailureClass;
use sealvol_crypto::KeyError;

use super::device::{Failure, NV_EXTEND_NAME as NV_EXTEND};
use crate::Refusal;
use crate::refusal::Remote;

/// What a code is: without the number of the parameter, handle or session that it is about.
fn kind(code: u32) -> u32 {
    const FORMAT_ONE: u32 = 0x80;
    if code & FORMAT_ONE == 0 {
        code
    } else {
        code & 0xBF
    }
}

/// The specification's name.
fn name(code: u32) -> &'static str {
    match kind(code) {
        0x82 => "TPM_RC_ATTRIBUTES",
        0x83 => "TPM_RC_HASH",
        0x84 => "TPM_RC_VALUE",
        0x85 => "TPM_RC_HIERARCHY",
        0x8A => "TPM_RC_TYPE",
        0x8B => "TPM_RC_HANDLE",
        0x8E => "TPM_RC_AUTH_FAIL",
        0x92 => "TPM_RC_SCHEME",
        0x95 => "TPM_RC_SIZE",
        0x9A => "TPM_RC_INSUFFICIENT",
        0x9D => "TPM_RC_POLICY_FAIL",
        0x9F => "TPM_RC_INTEGRITY",
        0xA2 => "TPM_RC_BAD_AUTH",
        0xA5 => "TPM_RC_BINDING",
        0x100 => "TPM_RC_INITIALIZE",
        0x101 => "TPM_RC_FAILURE",
        0x126 => "TPM_RC_POLICY",
        0x128 => "TPM_RC_PCR_CHANGED",
        0x12F => "TPM_RC_AUTH_UNAVAILABLE",
        0x143 => "TPM_RC_COMMAND_CODE",
        0x149 => "TPM_RC_NV_AUTHORIZATION",
        0x14A => "TPM_RC_NV_UNINITIALIZED",
        0x902 => "TPM_RC_OBJECT_MEMORY",
        0x903 => "TPM_RC_SESSION_MEMORY",
        0x904 => "TPM_RC_MEMORY",
        0x905 => "TPM_RC_SESSION_HANDLES",
        0x906 => "TPM_RC_OBJECT_HANDLES",
        0x921 => "TPM_RC_LOCKOUT",
        0x922 => "TPM_RC_RETRY",
        _ => "TPM_RC",
    }
}

/// Class and next step.
fn verdict(code: u32) -> (FailureClass, &'static str) {
    use FailureClass::{CallerBug, KeyUnusable, NotPermitted, Transient};
    match kind(code) {
        0x9D => (
            KeyUnusable,
            "this machine is not in the state that the key was sealed to: boot it as it was then, or open the volumes with \
             another key",
        ),
        0x126 => (
            KeyUnusable,
            "the counter that the key was sealed with was moved on: the key opens no more",
        ),
        0x82 | 0x92 | 0x95 | 0x9A | 0x9F | 0xA5 => (
            KeyUnusable,
            "the key was sealed by another TPM, under another parent, before this one was cleared, or its file was changed: \
             go back to what it was sealed by, or open the volumes with another key",
        ),
        0x8B => (
            KeyUnusable,
            "there is nothing at that handle: see `parent`, `counter` and `audit` in the configuration",
        ),
        0x8E | 0xA2 => (
            NotPermitted,
            "the owner's password is set: make the storage primary key persistent without a password, and name it as `parent`",
        ),
        0x149 => (
            NotPermitted,
            "the index can't be read or written with its own empty password: define it anew with authread and authwrite",
        ),
        0x85 | 0x12F => (
            NotPermitted,
            "enable the TPM's owner hierarchy in the firmware's settings",
        ),
        0x83 | 0x84 | 0x8A | 0x143 => (
            CallerBug,
            "the TPM does not do this: see `bank` and `pcrs` in the configuration",
        ),
        0x921 => (
            Transient,
            "somebody gave the TPM wrong passwords: wait, or tpm2_dictionarylockout -c",
        ),
        0x100 => (
            Transient,
            "the TPM was not started: the firmware, or tpm2_startup, does",
        ),
        0x902..=0x906 => (
            Transient,
            "others hold the TPM's places: use the device with the resource manager, /dev/tpmrm0",
        ),
        _ => (
            Transient,
            "see what the TPM says by tpm2_rc_decode, and the kernel's log",
        ),
    }
}

/// The refusal of `subject` that a failure is.
pub(super) fn refused(failure: Failure, subject: String) -> Refusal {
    let (class, said, reason, next_step) = match failure {
        Failure::Code(code, command) => {
            let name = name(code);
            let (class, next_step) = match command {
                NV_EXTEND if name == "TPM_RC_ATTRIBUTES" => (
                    FailureClass::CallerBug,
                    "the index is of another type: define it with nt=extend and the name algorithm sha256",
                ),
                _ => verdict(code),
            };
            let reason = format!("{command}: {name} (0x{code:x})");
            (class, name.to_owned(), reason, next_step)
        }
        Failure::Key(KeyError::Locked(error)) => return error.into(),
        Failure::Key(error) => (
            FailureClass::WrongKeyOrTamper,
            "KeyMaterialChanged".to_owned(),
            format!("what was sealed is no key: {error}"),
            "find out who changed the file of the key",
        ),
        Failure::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => (
            FailureClass::NotPermitted,
            "DeviceForbidden".to_owned(),
            error.to_string(),
            "let the daemon's user use the device: on Debian the group tss may",
        ),
        Failure::Io(error) => (
            FailureClass::Transient,
            "DeviceMissing".to_owned(),
            error.to_string(),
            "see whether the TPM is there and enabled in the firmware: `device` in the configuration names it",
        ),
        Failure::Nonsense(what) => (
            FailureClass::Transient,
            "TPM_RC".to_owned(),
            format!("it gives {what}"),
            "see whether what answers at `device` is a TPM 2.0",
        ),
    };
    Refusal::Remote(Remote {
        class,
        said,
        subject,
        reason,
        retry_after: None,
        next_step,
    })
}

#[cfg(test)]
mod tests {
    use FailureClass::{CallerBug, KeyUnusable, NotPermitted, Transient};

    use super::*;

    #[test]
    fn each_response_code_has_its_class_whatever_it_is_about() {
        for (code, name, class) in [
            (0x99D, "TPM_RC_POLICY_FAIL", KeyUnusable), // session 1, as a changed register gives
            (0x126, "TPM_RC_POLICY", KeyUnusable),
            (0x1DF, "TPM_RC_INTEGRITY", KeyUnusable), // parameter 1, as after a clear
            (0x18B, "TPM_RC_HANDLE", KeyUnusable),
            (0x98E, "TPM_RC_AUTH_FAIL", NotPermitted),
            (0x9A2, "TPM_RC_BAD_AUTH", NotPermitted),
            (0x185, "TPM_RC_HIERARCHY", NotPermitted),
            (0x1C4, "TPM_RC_VALUE", CallerBug),
            (0x921, "TPM_RC_LOCKOUT", Transient),
            (0x902, "TPM_RC_OBJECT_MEMORY", Transient),
            (0x905, "TPM_RC_SESSION_HANDLES", Transient),
            (0x100, "TPM_RC_INITIALIZE", Transient),
            (0x922, "TPM_RC_RETRY", Transient),
            (0x128, "TPM_RC_PCR_CHANGED", Transient),
            (0x101, "TPM_RC_FAILURE", Transient),
        ] {
            let refusal = refused(Failure::Code(code, "TPM2_Unseal"), "key tpm:k".to_owned());
            let Refusal::Remote(remote) = refusal else {
                panic!("{refusal}");
            };
            assert_eq!(
                (remote.class, remote.said.as_str()),
                (class, name),
                "0x{code:x}"
            );
            assert!(
                remote.reason.contains(&format!("0x{code:x}")),
                "{}",
                remote.reason
            );
        }
    }
}
