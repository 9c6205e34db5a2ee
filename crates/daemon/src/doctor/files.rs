//! What the daemon wrote and reads: who else could read or change it, whether there is room, whether time goes on.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::statvfs;
use sealvol_control::api::doctor::Check;
use sealvol_control::keychild::{MasterKey, Service, WrappedMasterKey};
use sealvol_control::size::Size;

use super::{failure, ok, warning};
use crate::daemon::Daemon;
use crate::timestamp;

/// What registry, audit log and maps should have left.
const ROOM: u64 = 256 << 20;

pub(super) fn look(daemon: &Daemon) -> Vec<Check> {
    let state = daemon.state.path();
    let mut checks = vec![
        modes(state),
        room(state, statvfs(state).map(|fs| fs.f_bavail * fs.f_frsize)),
        time(
            &timestamp::now(),
            last_record(daemon.audit.path()).as_deref(),
        ),
        verification_key(daemon.audit.verification_key()),
    ];
    let providers = daemon.config.providers.values();
    checks.extend(providers.filter_map(|provider| match &provider.service {
        Service::Local(local) => match &local.master_key {
            MasterKey::File { path } => Some(master_key(&provider.name, path, &local.database)),
            MasterKey::Shares(shares) => Some(master_key_shares(
                &provider.name,
                shares.paths(),
                &local.database,
            )),
            MasterKey::Wrapped(wrapped) => Some(wrapped_master_key(&provider.name, wrapped)),
            MasterKey::Credential { .. } | MasterKey::Passphrase => None,
        },
        // Whether its credentials are private is seen by who reads them, for each use.
        Service::AwsKms(_)
        | Service::AzureKv(_)
        | Service::Pkcs11(_)
        | Service::Tpm2(_)
        | Service::Transit(_) => None,
    }));
    checks
}

/// The directory, and every file in it but those of layers, which hold ciphertext.
fn modes(state: &Path) -> Check {
    const SUBJECT: &str = "state directory";
    match others_may(state) {
        Ok(open) if open.is_empty() => {
            ok(SUBJECT, format!("{}: the daemon's alone", state.display()))
        }
        Ok(open) => {
            let open: Vec<_> = open.iter().map(|path| path.display().to_string()).collect();
            failure(
                SUBJECT,
                format!("others may read or write {}", open.join(", ")),
                "Take that away with chmod go=, and find out who has: `sealvol audit verify`",
            )
        }
        Err(error) => failure(
            SUBJECT,
            format!("{}: {error}", state.display()),
            "Let the daemon's user own it, mode 0700",
        ),
    }
}

fn others_may(state: &Path) -> io::Result<Vec<PathBuf>> {
    let mut open = Vec::new();
    if std::fs::metadata(state)?.mode() & 0o022 != 0 {
        open.push(state.to_owned());
    }
    for directory in [state.to_owned(), state.join("keys")] {
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_file() && metadata.mode() & 0o077 != 0 {
                open.push(entry.path());
            }
        }
    }
    Ok(open)
}

fn room(state: &Path, free: rustix::io::Result<u64>) -> Check {
    const SUBJECT: &str = "room";
    match free {
        Ok(free) if free >= ROOM => ok(
            SUBJECT,
            format!("{} free in {}", Size(free), state.display()),
        ),
        Ok(free) => warning(
            SUBJECT,
            format!("{} free in {}", Size(free), state.display()),
            "Free some: without room no key can be used, for its record can't be written",
        ),
        Err(error) => warning(SUBJECT, error.to_string(), "Look at the file system"),
    }
}

/// When the last record of the audit log was written.
fn last_record(log: &Path) -> Option<String> {
    // It is as long as records are; a log is rotated before it is too long to be read.
    let text = std::fs::read_to_string(log).ok()?;
    let record: serde_json::Value = serde_json::from_str(text.lines().last()?).ok()?;
    Some(record["time"].as_str()?.to_owned())
}

/// Both are of one form, so that they can be compared as text.
fn time(now: &str, last: Option<&str>) -> Check {
    const SUBJECT: &str = "clock";
    match last {
        Some(last) if last > now => failure(
            SUBJECT,
            format!("it is {now}, and the last record of the audit log is of {last}"),
            "Set the clock; keys that expire or are scheduled for deletion go by it",
        ),
        _ => ok(
            SUBJECT,
            format!("it is {now}, and was never later in the audit log"),
        ),
    }
}

fn verification_key(beside: Option<&Path>) -> Check {
    const SUBJECT: &str = "audit log";
    match beside {
        None => ok(SUBJECT, "its verification key is not beside it"),
        Some(path) => warning(
            SUBJECT,
            format!(
                "its verification key {} lies beside it, where it protects nothing",
                path.display()
            ),
            "Move it to another machine",
        ),
    }
}

fn master_key(provider: &str, path: &Path, database: &Path) -> Check {
    let subject = format!("provider {provider}");
    if path.parent() == database.parent() {
        warning(
            &subject,
            format!(
                "the master key {} lies beside the keys that it seals: who copies both has them",
                path.display()
            ),
            "Keep it elsewhere: a systemd credential, a passphrase, a file on another device",
        )
    } else {
        ok(
            &subject,
            "its master key is not beside the keys that it seals",
        )
    }
}

/// How many shares make a key is in the shares, which nobody here reads: so one in a directory is what is well.
fn master_key_shares(provider: &str, shares: &[PathBuf], database: &Path) -> Check {
    let subject = format!("provider {provider}");
    let directories = shares.iter().map(|share| share.parent());
    let beside = |directory: Option<&Path>| {
        let all = directories.clone().chain([database.parent()]);
        all.filter(|other| *other == directory).count() > 1
    };
    let found: Vec<_> = shares
        .iter()
        .filter(|share| beside(share.parent()))
        .map(|share| share.display().to_string())
        .collect();
    if found.is_empty() {
        ok(
            &subject,
            "the shares of its master key are in a directory each, and not beside the keys that it seals",
        )
    } else {
        warning(
            &subject,
            format!(
                "{} lie beside each other, or beside the keys that they are for: who copies enough of them has the keys",
                found.join(", ")
            ),
            "Keep each share apart, on a device of its own that is there when volumes are attached",
        )
    }
}

fn wrapped_master_key(provider: &str, wrapped: &WrappedMasterKey) -> Check {
    let subject = format!("provider {provider}");
    match &wrapped.from {
        Some(from) if wrapped.file.exists() && from.exists() => warning(
            &subject,
            format!(
                "its master key is wrapped by {}, and lies in plain in {} still",
                wrapped.by,
                from.display()
            ),
            "Split it into shares for the day on which the other key is gone, then destroy the file and take `from` out of the configuration",
        ),
        _ => ok(
            &subject,
            format!("its master key is wrapped by {}", wrapped.by),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use sealvol_control::api::doctor::Health;

    use super::*;

    /// Of a database in `/a`.
    fn shares(files: &[&str]) -> Check {
        let files: Vec<_> = files.iter().map(PathBuf::from).collect();
        master_key_shares("l", &files, Path::new("/a/d"))
    }

    /// With a wrapped master key that is there.
    fn wrapped(from: Option<&str>) -> Check {
        let wrapped = WrappedMasterKey {
            by: "hsm:master".parse().expect("a key"),
            file: "/dev/null".into(),
            from: from.map(PathBuf::from),
            service: None,
        };
        wrapped_master_key("l", &wrapped)
    }

    #[test]
    fn each_look_tells_well_from_ill() {
        let here = Path::new("/s");
        let cases = [
            (room(here, Ok(1 << 40)), Health::Ok),
            (room(here, Ok(1 << 20)), Health::Warning),
            (room(here, Err(rustix::io::Errno::IO)), Health::Warning),
            (time("2026-02-03T04:05:06.0Z", None), Health::Ok),
            (
                time("2026-02-03T04:05:06.0Z", Some("2026-02-03T04:05:05.9Z")),
                Health::Ok,
            ),
            (
                time("2026-02-03T04:05:06.0Z", Some("2027-02-03T04:05:06.0Z")),
                Health::Failure,
            ),
            (verification_key(None), Health::Ok),
            (verification_key(Some(here)), Health::Warning),
            (
                master_key("l", Path::new("/a/k"), Path::new("/a/d")),
                Health::Warning,
            ),
            (
                master_key("l", Path::new("/b/k"), Path::new("/a/d")),
                Health::Ok,
            ),
            (shares(&["/b/1", "/c/1", "/e/1"]), Health::Ok),
            (shares(&["/b/1", "/c/1", "/c/2"]), Health::Warning),
            (shares(&["/b/1", "/a/1"]), Health::Warning),
            (wrapped(None), Health::Ok),
            (wrapped(Some("/nonexistent/k")), Health::Ok),
            (wrapped(Some("/dev/null")), Health::Warning),
        ];
        for (check, health) in cases {
            assert_eq!(check.health, health, "{check:?}");
            assert_eq!(check.advice.is_none(), health == Health::Ok, "{check:?}");
        }
    }

    #[test]
    fn a_file_that_others_may_read_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("keys")).expect("made");
        let file = folder.path().join("keys/local.db");
        std::fs::write(&file, "").expect("written");
        std::fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("set");
        assert_eq!(modes(folder.path()).health, Health::Ok);
        std::fs::set_permissions(&file, Permissions::from_mode(0o640)).expect("set");
        let check = modes(folder.path());
        assert_eq!(check.health, Health::Failure);
        assert!(check.found.contains("local.db"), "{check:?}");
        assert_eq!(modes(&folder.path().join("gone")).health, Health::Failure);
    }
}
