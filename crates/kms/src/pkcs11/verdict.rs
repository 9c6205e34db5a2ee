//! What a token's return values mean here: the one table of them.
//!
//! What always holds: whatever says that the token or the way to it is in trouble is [`FailureClass::Transient`], and so is
//! whatever says nothing at all: only what speaks of key, PIN or ciphertext is taken for a word about them. A PIN is in none
//! of these texts.

use cryptoki::error::{Error, RvError};
use sealvol_control::keychild::{FailureClass, PIN_LOCKED};

use crate::refusal::Remote;

/// `CKR_AEAD_DECRYPT_FAILED` (PKCS #11 3.0), which the wrapper of the interface has no name for.
const AEAD_DECRYPT_FAILED: u64 = 0x35;

/// Class and next step of a return value.
fn verdict(value: RvError) -> (FailureClass, &'static str) {
    use FailureClass::{CallerBug, KeyUnusable, NotPermitted, Transient, WrongKeyOrTamper};
    match value {
        RvError::ActionProhibited | RvError::KeyFunctionNotPermitted => (
            KeyUnusable,
            "let whoever looks after the token allow the key's use again (CKA_ENCRYPT and CKA_DECRYPT, or CKA_WRAP and CKA_UNWRAP)",
        ),
        RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange => (
            NotPermitted,
            "put the token's present PIN into `pin-file`; a wrong one is not tried again, since tokens lock",
        ),
        RvError::PinExpired | RvError::UserPinNotInitialized => (
            NotPermitted,
            "set a PIN for the token's user, and put it into `pin-file`",
        ),
        RvError::UserNotLoggedIn
        | RvError::UserTypeInvalid
        | RvError::FunctionRejected
        | RvError::TokenWriteProtected => (
            NotPermitted,
            "see what the token allows its user, and who else is logged in",
        ),
        RvError::PinLocked => (
            Transient,
            "have the token's security officer unlock it, and see who gave wrong PINs; nothing is said of the key",
        ),
        RvError::EncryptedDataInvalid
        | RvError::EncryptedDataLenRange
        | RvError::WrappedKeyInvalid
        | RvError::WrappedKeyLenRange
        | RvError::UnknownErrorCode(AEAD_DECRYPT_FAILED) => (
            WrongKeyOrTamper,
            "the wrapped key was changed, moved from another volume, or is of another key: restore the volume's metadata",
        ),
        RvError::AttributeReadOnly
        | RvError::AttributeSensitive
        | RvError::AttributeTypeInvalid
        | RvError::AttributeValueInvalid
        | RvError::CurveNotSupported
        | RvError::DomainParamsInvalid
        | RvError::FunctionNotSupported
        | RvError::KeyNotWrappable
        | RvError::KeySizeRange
        | RvError::KeyTypeInconsistent
        | RvError::KeyUnextractable
        | RvError::MechanismInvalid
        | RvError::MechanismParamInvalid
        | RvError::TemplateIncomplete
        | RvError::TemplateInconsistent
        | RvError::UnwrappingKeySizeRange
        | RvError::UnwrappingKeyTypeInconsistent
        | RvError::WrappingKeySizeRange
        | RvError::WrappingKeyTypeInconsistent => (
            CallerBug,
            "the token does not do this: see its mechanisms (pkcs11-tool -M), and `mechanism` in the configuration",
        ),
        _ => (
            Transient,
            "see whether the token is there and its module works: pkcs11-tool --module MODULE -T",
        ),
    }
}

/// The token's own name for a return value.
fn name(value: RvError) -> String {
    if value == RvError::UnknownErrorCode(AEAD_DECRYPT_FAILED) {
        return "CKR_AEAD_DECRYPT_FAILED".to_owned();
    }
    if let RvError::VendorDefined(code) | RvError::UnknownErrorCode(code) = value {
        return format!("CKR 0x{code:x}");
    }
    if value == RvError::PinLocked {
        return PIN_LOCKED.to_owned();
    }
    let mut name = "CKR".to_owned();
    for character in format!("{value:?}").chars() {
        if character.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(character.to_ascii_uppercase());
    }
    name
}

/// Whether a refusal to open a wrapped key says neither that the token is in trouble nor that the wrapped key is wrong: then
/// only what the token does with another one tells. (SoftHSM says `CKR_GENERAL_ERROR` to whatever is wrong with a ciphertext.)
pub(super) fn says_nothing(error: &Error) -> bool {
    matches!(
        error,
        Error::Pkcs11(
            RvError::ArgumentsBad
                | RvError::DataInvalid
                | RvError::DataLenRange
                | RvError::FunctionFailed
                | RvError::GeneralError
                | RvError::SignatureInvalid
                | RvError::UnknownErrorCode(_)
                | RvError::VendorDefined(_),
            _
        )
    )
}

/// The refusal of `subject` that a failure is.
pub(super) fn refused(error: &Error, subject: &str) -> Remote {
    let (class, said, next_step) = match error {
        Error::Pkcs11(value, _) => {
            let (class, next_step) = verdict(*value);
            (class, name(*value), next_step)
        }
        Error::LibraryLoading(_) | Error::MissingSymbol(_) | Error::NullFunctionPointer => (
            FailureClass::Transient,
            "ModuleUnusable".to_owned(),
            "name the token's PKCS #11 module as `module`, and what it needs as `read` and `write`",
        ),
        _ => (
            FailureClass::Transient,
            "ModuleUnusable".to_owned(),
            "see whether the module is of PKCS #11 2.40 or later",
        ),
    };
    let reason = match error {
        Error::Pkcs11(_, function) => format!("C_{function:?}: {said}"),
        // Where the system looked and what it found.
        other => format!("the module cannot be used: {other}"),
    };
    Remote {
        class,
        said,
        subject: subject.to_owned(),
        reason,
        retry_after: None,
        next_step,
    }
}

#[cfg(test)]
mod tests {
    use FailureClass::{CallerBug, KeyUnusable, NotPermitted, Transient, WrongKeyOrTamper};
    use cryptoki::context::Function;
    use sealvol_control::keychild::KeyFailure;

    use super::*;
    use crate::Refusal;

    #[test]
    fn each_return_value_has_its_class() {
        for (value, name, class) in [
            (RvError::PinIncorrect, "CKR_PIN_INCORRECT", NotPermitted),
            (RvError::PinInvalid, "CKR_PIN_INVALID", NotPermitted),
            (RvError::PinLenRange, "CKR_PIN_LEN_RANGE", NotPermitted),
            (RvError::PinExpired, "CKR_PIN_EXPIRED", NotPermitted),
            (
                RvError::UserPinNotInitialized,
                "CKR_USER_PIN_NOT_INITIALIZED",
                NotPermitted,
            ),
            (
                RvError::UserNotLoggedIn,
                "CKR_USER_NOT_LOGGED_IN",
                NotPermitted,
            ),
            (
                RvError::FunctionRejected,
                "CKR_FUNCTION_REJECTED",
                NotPermitted,
            ),
            (
                RvError::TokenWriteProtected,
                "CKR_TOKEN_WRITE_PROTECTED",
                NotPermitted,
            ),
            (RvError::PinLocked, "CKR_PIN_LOCKED", Transient),
            (
                RvError::KeyFunctionNotPermitted,
                "CKR_KEY_FUNCTION_NOT_PERMITTED",
                KeyUnusable,
            ),
            (
                RvError::ActionProhibited,
                "CKR_ACTION_PROHIBITED",
                KeyUnusable,
            ),
            (
                RvError::EncryptedDataInvalid,
                "CKR_ENCRYPTED_DATA_INVALID",
                WrongKeyOrTamper,
            ),
            (
                RvError::EncryptedDataLenRange,
                "CKR_ENCRYPTED_DATA_LEN_RANGE",
                WrongKeyOrTamper,
            ),
            (
                RvError::WrappedKeyInvalid,
                "CKR_WRAPPED_KEY_INVALID",
                WrongKeyOrTamper,
            ),
            (
                RvError::WrappedKeyLenRange,
                "CKR_WRAPPED_KEY_LEN_RANGE",
                WrongKeyOrTamper,
            ),
            (
                RvError::UnknownErrorCode(0x35),
                "CKR_AEAD_DECRYPT_FAILED",
                WrongKeyOrTamper,
            ),
            (
                RvError::MechanismInvalid,
                "CKR_MECHANISM_INVALID",
                CallerBug,
            ),
            (
                RvError::MechanismParamInvalid,
                "CKR_MECHANISM_PARAM_INVALID",
                CallerBug,
            ),
            (RvError::KeySizeRange, "CKR_KEY_SIZE_RANGE", CallerBug),
            (
                RvError::TemplateInconsistent,
                "CKR_TEMPLATE_INCONSISTENT",
                CallerBug,
            ),
            (
                RvError::FunctionNotSupported,
                "CKR_FUNCTION_NOT_SUPPORTED",
                CallerBug,
            ),
            (RvError::TokenNotPresent, "CKR_TOKEN_NOT_PRESENT", Transient),
            (
                RvError::TokenNotRecognized,
                "CKR_TOKEN_NOT_RECOGNIZED",
                Transient,
            ),
            (RvError::DeviceError, "CKR_DEVICE_ERROR", Transient),
            (RvError::DeviceMemory, "CKR_DEVICE_MEMORY", Transient),
            (RvError::DeviceRemoved, "CKR_DEVICE_REMOVED", Transient),
            (RvError::HostMemory, "CKR_HOST_MEMORY", Transient),
            (RvError::SlotIdInvalid, "CKR_SLOT_ID_INVALID", Transient),
            (RvError::SessionClosed, "CKR_SESSION_CLOSED", Transient),
            (RvError::SessionCount, "CKR_SESSION_COUNT", Transient),
            (
                RvError::SessionHandleInvalid,
                "CKR_SESSION_HANDLE_INVALID",
                Transient,
            ),
            (
                RvError::KeyHandleInvalid,
                "CKR_KEY_HANDLE_INVALID",
                Transient,
            ),
            (
                RvError::ObjectHandleInvalid,
                "CKR_OBJECT_HANDLE_INVALID",
                Transient,
            ),
            (RvError::OperationActive, "CKR_OPERATION_ACTIVE", Transient),
            (
                RvError::FunctionCanceled,
                "CKR_FUNCTION_CANCELED",
                Transient,
            ),
            (
                RvError::CryptokiNotInitialized,
                "CKR_CRYPTOKI_NOT_INITIALIZED",
                Transient,
            ),
            (
                RvError::FipsSelfTestFailed,
                "CKR_FIPS_SELF_TEST_FAILED",
                Transient,
            ),
            (RvError::GeneralError, "CKR_GENERAL_ERROR", Transient),
            (RvError::FunctionFailed, "CKR_FUNCTION_FAILED", Transient),
            (
                RvError::VendorDefined(0x8000_0001),
                "CKR 0x80000001",
                Transient,
            ),
        ] {
            let remote = refused(&Error::Pkcs11(value, Function::Decrypt), "key hsm:k");
            assert_eq!((remote.class, remote.said.as_str()), (class, name));
            let failure = KeyFailure::from(&Refusal::Remote(remote));
            assert!(failure.message.contains(name), "{failure}");
            // Only what speaks of the key or the right to it takes a key out of memory, and only an outage is tried again.
            let lasting = matches!(class, KeyUnusable | NotPermitted | WrongKeyOrTamper);
            assert_eq!(failure.is_revocation(), lasting, "{failure}");
            let again = class == Transient && value != RvError::PinLocked;
            assert_eq!(failure.may_pass(), again, "{failure}");
        }
    }

    #[test]
    fn an_outage_is_never_judged_by_what_the_token_does_later() {
        for value in [
            RvError::DeviceError,
            RvError::DeviceRemoved,
            RvError::HostMemory,
            RvError::SessionClosed,
            RvError::SessionHandleInvalid,
            RvError::TokenNotPresent,
            RvError::PinIncorrect,
            RvError::KeyFunctionNotPermitted,
        ] {
            assert!(
                !says_nothing(&Error::Pkcs11(value, Function::Decrypt)),
                "{value:?}"
            );
        }
        assert!(says_nothing(&Error::Pkcs11(
            RvError::GeneralError,
            Function::Decrypt
        )));
    }
}
