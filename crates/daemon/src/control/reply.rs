//! What a caller is told when a request fails: the one place that maps errors to kinds (and so to
//! HTTP statuses and exit codes) and says the next step.

use sealvol_control::api::{ApiError, ErrorKind};
use sealvol_control::keychild::{FailureClass, Fault, LOCKED_MEMORY_UNAVAILABLE, UNTRUSTED_SERVER};
use sealvol_store::StoreError;
use sealvol_volume::VolumeError;

use crate::error::Error;
use crate::registry::RegistryError;

/// `error` as a reply.
pub(crate) fn error(error: &Error) -> ApiError {
    let next_step = match error {
        Error::Key { failure, .. } => Some(sentence(&failure.next_step)),
        Error::NoProof { next_step, .. } => Some(next_step.clone()),
        _ => next_step(error).map(str::to_owned),
    };
    ApiError {
        kind: kind(error),
        message: error.to_string(),
        next_step,
    }
}

/// `error` and its next step as one text.
pub(crate) fn in_words(failed: &Error) -> String {
    let ApiError {
        message, next_step, ..
    } = error(failed);
    next_step.map_or_else(|| message.clone(), |step| format!("{message}. {step}"))
}

fn kind(error: &Error) -> ErrorKind {
    match error {
        Error::BadGivenKey(_)
        | Error::BadName(_)
        | Error::BadRequest(_)
        | Error::BadSnapshotName(_)
        | Error::BadKeySetName(_)
        | Error::Backing { .. }
        | Error::DeviceSize { .. }
        | Error::DirectUnit { .. }
        | Error::KeyNotGiven(_)
        | Error::KeyNotTaken { .. }
        | Error::KeyRef(_)
        | Error::NoSuchClone { .. }
        | Error::OtherProvider { .. } => ErrorKind::Usage,
        Error::AuditIndex { .. }
        | Error::BackingNotAllowed { .. }
        | Error::BadKey { .. }
        | Error::Forbidden { .. }
        | Error::KeyDatabaseLost { .. }
        | Error::KeyMemory(_)
        | Error::LossRecorded { .. }
        | Error::NotAdoptable { .. }
        | Error::NoWrappedKey(_)
        | Error::OtherKey { .. }
        | Error::RecoveryKeyNotAllowed { .. }
        | Error::SelfTest(_)
        | Error::Stranger(_) => ErrorKind::Refused,
        Error::NoSuchCall { .. }
        | Error::NoSuchJob(_)
        | Error::NoSuchKeySet(_)
        | Error::NoSuchProvider { .. }
        | Error::NoSuchSnapshot(_)
        | Error::NoSuchVolume(_) => ErrorKind::NotFound,
        Error::Attached(_)
        | Error::BackingTaken { .. }
        | Error::ClientsConnected { .. }
        | Error::DetachedMeanwhile(_)
        | Error::Ephemeral { .. }
        | Error::EphemeralAttached(_)
        | Error::JobUnderWay { .. }
        | Error::InKeySet { .. }
        | Error::KeyInUse { .. }
        | Error::KeySetInUse { .. }
        | Error::KeySetTaken(_)
        | Error::Measuring
        | Error::NotCancellable { .. }
        | Error::NotServed(_)
        | Error::Provided { .. }
        | Error::HasSnapshots { .. }
        | Error::LayersShared { .. }
        | Error::NoPlaceForLayers(_)
        | Error::NoProof { .. }
        | Error::NotAttached(_)
        | Error::Registered { .. }
        | Error::Registry(RegistryError::NameTaken(_) | RegistryError::SnapshotTaken(_))
        | Error::SnapshotAttached(_)
        | Error::SnapshotNotAttached(_)
        | Error::TooManyLayers { .. } => ErrorKind::Conflict,
        Error::Audit { .. }
        | Error::BackupFile(_)
        | Error::Internal(_)
        | Error::Layer { .. }
        | Error::Measurement(_)
        | Error::MeasurementEnded
        | Error::NoRoom { .. }
        | Error::Registry(_)
        | Error::Stopping => ErrorKind::Failed,
        Error::Key { failure, .. } => of_key_failure(failure.class, &failure.provider_error),
        Error::KeyChild { source, .. } => match source.fault() {
            Fault::Stop => ErrorKind::Refused,
            Fault::Refuse | Fault::Retry => ErrorKind::Failed,
        },
        Error::Store { source, .. } => of_store(source),
        Error::Volume { source, .. } => of_volume(source),
    }
}

fn of_key_failure(class: FailureClass, provider_error: &str) -> ErrorKind {
    match class {
        // Every provider calls it so, as AWS KMS does.
        FailureClass::CallerBug if provider_error == ALREADY_EXISTS => ErrorKind::Conflict,
        FailureClass::CallerBug => ErrorKind::Usage,
        FailureClass::GoneForEver => ErrorKind::NotFound,
        FailureClass::KeyUnusable | FailureClass::NotPermitted | FailureClass::WrongKeyOrTamper => {
            ErrorKind::Refused
        }
        FailureClass::Transient
            if [LOCKED_MEMORY_UNAVAILABLE, UNTRUSTED_SERVER].contains(&provider_error) =>
        {
            ErrorKind::Refused
        }
        FailureClass::Transient => ErrorKind::Failed,
    }
}

fn of_store(error: &StoreError) -> ErrorKind {
    match error {
        StoreError::Locked { .. } | StoreError::AlreadyExists { .. } => ErrorKind::Conflict,
        StoreError::TooLarge { .. }
        | StoreError::Shrink { .. }
        | StoreError::InvalidName { .. }
        | StoreError::NotDirect { .. } => ErrorKind::Usage,
        // Whoever can write the store put something else there, or cut it.
        StoreError::Truncated { .. } | StoreError::WrongType { .. } => ErrorKind::Refused,
        StoreError::Io { .. }
        | StoreError::NotFound { .. }
        | StoreError::NoSpace { .. }
        | StoreError::PastEnd { .. }
        | StoreError::PowerLost { .. }
        | StoreError::ReadOnly { .. }
        | StoreError::Unaligned { .. }
        | StoreError::Unsupported { .. } => ErrorKind::Failed,
    }
}

fn of_volume(error: &VolumeError) -> ErrorKind {
    match error {
        VolumeError::InvalidSize { .. }
        | VolumeError::OutOfRange { .. }
        | VolumeError::Shrink { .. } => ErrorKind::Usage,
        VolumeError::LeftBelow { .. }
        | VolumeError::NotNearest { .. }
        | VolumeError::NotSealed { .. }
        | VolumeError::OtherDataKey { .. }
        | VolumeError::ReadOnly
        | VolumeError::Sealed { .. } => ErrorKind::Conflict,
        VolumeError::BadCopy { .. }
        | VolumeError::BrokenStack { .. }
        | VolumeError::DamagedMap { .. }
        | VolumeError::Failed(_)
        | VolumeError::MergeStopped(_)
        | VolumeError::Mismatch { .. }
        | VolumeError::NewerFormat { .. }
        | VolumeError::NoSuperblock { .. }
        | VolumeError::RolledBack { .. }
        | VolumeError::Tampered { .. }
        | VolumeError::Truncated { .. }
        | VolumeError::WorkingStateLost { .. }
        | VolumeError::WrappedKeys { .. }
        | VolumeError::WrongKey => ErrorKind::Refused,
        VolumeError::NoSpace | VolumeError::Registry(_) | VolumeError::WorkingState(_) => {
            ErrorKind::Failed
        }
        VolumeError::Store(error) => of_store(error),
    }
}

/// `text` with a capital first letter: key services write the next step as the end of a sentence.
fn sentence(text: &str) -> String {
    let mut rest = text.chars();
    rest.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(rest).collect()
    })
}

/// The next step, where the message does not end with it already.
fn next_step(error: &Error) -> Option<&'static str> {
    Some(match error {
        Error::BadRequest(_) => "See the control API's documentation for this call",
        Error::Audit { .. } => {
            "Make the log writable: without a record no key is used and nothing is deleted"
        }
        Error::AuditIndex { .. } => {
            "Find out who put an older state directory back, or extended the index; `sealvol audit verify --tpm-value` says from which \
             record on. The log goes on from here"
        }
        Error::BackupFile(_) => "See whether there is space for it, and make the backup again",
        Error::RecoveryKeyNotAllowed { .. } => {
            "Have it added to `recovery-keys` in sealvold's configuration, or ask as root"
        }
        Error::Backing { .. } => "Name an existing directory or block device",
        Error::BackingNotAllowed { .. } => {
            "Name a place below one that `backing` in the configuration lists, or ask an administrator"
        }
        Error::BackingTaken { .. } => "Name another device, or delete that volume first",
        Error::DirectUnit { .. } => "Attach it without --direct",
        Error::DeviceSize { .. } => "Give the device's own size with --size",
        Error::Forbidden { .. } | Error::Stranger(_) => {
            "Have the administrator add you to [rights] in sealvold's configuration"
        }
        Error::Attached(_) | Error::SnapshotAttached(_) => "Detach it first",
        Error::NotAttached(_) | Error::SnapshotNotAttached(_) => "Attach it first",
        Error::HasSnapshots { .. } => "Delete them first, or delete them with it by --snapshots",
        Error::LayersShared { .. } => {
            "Delete those volumes first, or delete this one without --shred, which leaves the layers that they need"
        }
        Error::NoPlaceForLayers(_) => {
            "Copy it to a volume in a directory, or to one created with --layers-dir"
        }
        Error::NoSuchSnapshot(_) => "See `sealvol snapshot list`",
        Error::NoSuchJob(_) => "See `sealvol job list`",
        Error::NoSuchKeySet(_) => "See `sealvol key set list`",
        Error::KeySetTaken(_) => {
            "Choose another name, or change that one by `sealvol key set update`"
        }
        Error::KeySetInUse { .. } => {
            "Take them out by `sealvol key rewrap VOLUME --key KEYREF`, or delete them"
        }
        Error::InKeySet { .. } => {
            "Leave --key out, point the set at it, or take the volume out by `sealvol key rewrap VOLUME --key KEYREF` first"
        }
        Error::JobUnderWay { .. } => {
            "Wait for it with `sealvol job watch`, or end it with `sealvol job cancel`"
        }
        Error::BadGivenKey(_) => "Give exactly its 64 bytes, and nothing else",
        Error::KeyNotGiven(_) => "Give it: --key-file FILE, or --key-fd N",
        Error::KeyNotTaken { .. } => "Leave out --key-file and --key-fd",
        Error::Provided { .. } => {
            "Do without, or copy what it holds into a volume with a key of a key service"
        }
        Error::Ephemeral { .. } => "Use a volume with a key of a key service",
        Error::EphemeralAttached(_) => "Detach them, or stop with --drop-ephemeral",
        Error::NotCancellable { .. } => "See `sealvol job show`",
        Error::DetachedMeanwhile(_) => {
            "Attach it, or ask for its re-key again to have it done without"
        }
        Error::NotServed(_) => {
            "See `sealvol volume show` for the reason; detach it if it is to stay so"
        }
        Error::TooManyLayers { .. } => "Copy what it holds to a new volume, and go on with that",

        Error::NoRoom { .. } => "Make room there; nothing was written of them",
        Error::NoSuchClone { .. } => "Leave the option out: a clone has what its snapshot has",
        Error::OtherProvider { .. } => {
            "Name a key of the same provider, or have the data copied: `sealvol snapshot copy`, or `volume create --fresh-key`"
        }
        Error::NotAdoptable { .. } => {
            "Name the directory of a volume's layer as it was made, and the key that wrapped its data key"
        }
        Error::Registered { .. } => "Use it by that name",
        Error::ClientsConnected { .. } => "Disconnect them, or detach with --force",
        Error::NoSuchVolume(_) => "See `sealvol volume list`",
        Error::LossRecorded { .. } => {
            "Check the store and what the volume holds, then attach with --accept-loss"
        }
        Error::NoWrappedKey(_) | Error::OtherKey { .. } => {
            "Restore the layer's `meta` from a copy, and find out who can write the store"
        }
        Error::BadKey { .. } => "Do not use this volume's key; ask the key service's operator",
        Error::KeyDatabaseLost { .. } => {
            "Restore it from a backup: a new one is never made in its place"
        }
        Error::KeyInUse { .. } => {
            "Give them another key first (`sealvol key rewrap`, `sealvol volume rekey`) or delete them; --even-if-used gives them up with the key"
        }
        Error::NoSuchProvider { .. } => {
            "Name one of them, or have this one added to sealvold's configuration"
        }
        Error::SelfTest(_) => "Do not use this build on this machine: nothing is served",
        Error::NoSuchCall { .. } => "Use the sealvol and sealvold of one release together",
        Error::Measuring => "Ask again when it has ended",
        Error::Measurement(_) => {
            "Look at the daemon's log, and at the space under the state directory"
        }
        Error::MeasurementEnded => "Ask again",
        Error::Stopping => "Ask again when it has started",
        Error::Internal(_) => "Report it, with the daemon's log",
        // These say it themselves.
        Error::BadName(_)
        | Error::Layer { .. }
        | Error::BadSnapshotName(_)
        | Error::BadKeySetName(_)
        | Error::Key { .. }
        | Error::KeyChild { .. }
        | Error::KeyMemory(_)
        | Error::KeyRef(_)
        | Error::NoProof { .. }
        | Error::Registry(_)
        | Error::Store { .. }
        | Error::Volume { .. } => return None,
    })
}

const ALREADY_EXISTS: &str = "AlreadyExistsException";

#[cfg(test)]
mod tests {
    use sealvol_control::keychild::KeyFailure;

    use super::*;

    fn key_failure(class: FailureClass, provider_error: &str) -> Error {
        let failure = KeyFailure {
            class,
            provider_error: provider_error.to_owned(),
            message: "key local:default: it was refused".to_owned(),
            next_step: "do something else".to_owned(),
            retry_after_s: None,
        };
        Error::Key {
            volume: Some("v".parse().expect("a name")),
            failure: Box::new(failure),
        }
    }

    #[test]
    fn refusals_of_key_services_have_the_documented_exit_codes() {
        for (class, name, exit) in [
            (FailureClass::KeyUnusable, "DisabledException", 3),
            (FailureClass::NotPermitted, "AccessDeniedException", 3),
            (
                FailureClass::WrongKeyOrTamper,
                "InvalidCiphertextException",
                3,
            ),
            (FailureClass::GoneForEver, "NotFoundException", 4),
            (FailureClass::Transient, "ThrottlingException", 1),
            (FailureClass::Transient, LOCKED_MEMORY_UNAVAILABLE, 3),
            (FailureClass::CallerBug, "ValidationException", 2),
            (FailureClass::CallerBug, ALREADY_EXISTS, 5),
        ] {
            let reply = error(&key_failure(class, name));
            assert_eq!(reply.kind.exit_code(), exit, "{name}");
            assert_eq!(
                reply.message,
                format!("volume v: key local:default: it was refused ({name})")
            );
            assert_eq!(reply.next_step.as_deref(), Some("Do something else"));
        }
    }

    #[test]
    fn refusals_of_volumes_have_the_documented_exit_codes() {
        let name = "v".parse().expect("a name");
        for (source, exit) in [
            (VolumeError::WrongKey, 3),
            (VolumeError::Tampered { cause: "a bad MAC" }, 3),
            (VolumeError::NewerFormat { version: 2 }, 3),
            (
                VolumeError::Truncated {
                    file: "data",
                    found: 1,
                    expected: 2,
                },
                3,
            ),
            (
                VolumeError::RolledBack {
                    found: 1,
                    pinned: 2,
                },
                3,
            ),
            (VolumeError::NoSuperblock { cause: "torn" }, 3),
            (VolumeError::InvalidSize { size: 1 }, 2),
            (VolumeError::Shrink { asked: 1, size: 2 }, 2),
            (VolumeError::NoSpace, 1),
            (VolumeError::ReadOnly, 5),
        ] {
            let text = source.to_string();
            let reply = error(&Error::volume(&name)(source));
            assert_eq!(reply.kind.exit_code(), exit, "{text}");
            assert_eq!(reply.message, format!("volume v: {text}"));
        }
    }

    #[test]
    fn states_and_names_have_the_documented_exit_codes() {
        let name = || "v".parse().expect("a name");
        for (failed, exit) in [
            (Error::Attached(name()), 5),
            (Error::NotAttached(name()), 5),
            (
                Error::ClientsConnected {
                    name: "v".to_owned(),
                    count: 2,
                },
                5,
            ),
            (Error::Registry(RegistryError::NameTaken("v".into())), 5),
            (Error::NoSuchVolume(name()), 4),
            (Error::Stranger(1000), 3),
            (Error::SelfTest("AES".into()), 3),
            (
                Error::LossRecorded {
                    name: name(),
                    loss: "a sync failed".into(),
                },
                3,
            ),
            (Error::BadRequest("x".into()), 2),
            (Error::Stopping, 1),
            (
                Error::NoRoom {
                    name: name(),
                    needed: 2,
                    free: 1,
                },
                1,
            ),
            (
                Error::NotAdoptable {
                    path: "/x".into(),
                    cause: "it is sealed".into(),
                },
                3,
            ),
            (
                Error::Registered {
                    id: sealvol_volume::VolumeId::random(),
                    name: name(),
                },
                5,
            ),
        ] {
            let reply = error(&failed);
            assert_eq!(reply.kind.exit_code(), exit, "{failed}");
            assert!(
                reply.message.contains(": "),
                "THING: CAUSE in {}",
                reply.message
            );
        }
    }
}
