//! What the key child may still do once it knows its batch: use the files, devices and servers of its provider.
//!
//! Landlock (landlock(7)) denies every other path, and with kernels that can, TCP to every other
//! port, abstract Unix sockets and signals to others. Best effort, for it is a second wall: where the kernel knows
//! less of it, less is enforced and the reply says so. `NO_NEW_PRIVS` is not best effort.

use std::io;
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath,
    PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use sealvol_control::keychild::Landlock;

use crate::http::Found;

/// The newest rules that are asked for (Linux 6.12).
const RULES: ABI = ABI::V6;

/// What a provider needs. Paths that do not exist are left out: they cannot be used either.
#[derive(Debug)]
pub(crate) struct Needs {
    /// Directories to read, make, change and remove files in.
    pub(crate) directories: Vec<PathBuf>,
    /// Files to read.
    pub(crate) files: Vec<PathBuf>,
    /// Files and whole directories to read: what a module that is loaded needs.
    pub(crate) read: Vec<PathBuf>,
    /// Files, devices and whole directories to read and write in.
    pub(crate) write: Vec<PathBuf>,
    /// Where to connect to. Landlock knows ports only: another host is not denied.
    pub(crate) connect: Vec<Found>,
    /// Ports to connect to, on whichever host.
    pub(crate) ports: Vec<u16>,
}

impl Needs {
    /// No file and no server at all.
    pub(crate) const NOTHING: Self = Self {
        directories: Vec::new(),
        files: Vec::new(),
        read: Vec::new(),
        write: Vec::new(),
        connect: Vec::new(),
        ports: Vec::new(),
    };

    /// What both need.
    pub(crate) fn and(mut self, other: Self) -> Self {
        let Self {
            directories,
            files,
            read,
            write,
            connect,
            ports,
        } = other;
        self.directories.extend(directories);
        self.files.extend(files);
        self.read.extend(read);
        self.write.extend(write);
        self.connect.extend(connect);
        self.ports.extend(ports);
        self
    }
}

/// Gives up the chance to gain privileges by exec.
pub(crate) fn forbid_new_privileges() -> io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// Confines this thread and all it starts to `needs`, for ever. Call it before there are others.
pub(crate) fn confine(needs: &Needs) -> Result<Landlock, RulesetError> {
    let files: BitFlags<AccessFs> = AccessFs::ReadFile
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::RemoveFile
        | AccessFs::ReadDir;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(RULES))?
        .handle_access(AccessNet::from_all(RULES))?
        .scope(Scope::from_all(RULES))?
        .create()?;
    let device: BitFlags<AccessFs> = AccessFs::IoctlDev.into();
    for (paths, access) in [
        (&needs.directories, files),
        (&needs.files, AccessFs::ReadFile.into()),
        (&needs.read, AccessFs::ReadFile | AccessFs::ReadDir),
        (&needs.write, files | device),
    ] {
        for path in paths {
            // The check of the provider that follows says what is wrong with a path.
            if let Ok(opened) = PathFd::new(path) {
                let access = if path.is_dir() {
                    access
                } else {
                    access & AccessFs::from_file(RULES)
                };
                rules = rules.add_rule(PathBeneath::new(opened, access))?;
            }
        }
    }
    let ports = needs.connect.iter().flat_map(Found::ports);
    for port in ports.chain(needs.ports.iter().copied()) {
        rules = rules.add_rule(NetPort::new(port, AccessNet::ConnectTcp))?;
    }
    Ok(match rules.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Landlock::Full,
        RulesetStatus::PartiallyEnforced => Landlock::Partial,
        RulesetStatus::NotEnforced => Landlock::None,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use super::*;

    /// Tries each thing in a thread that is confined to `needs`; landlock confines threads.
    fn confined<T: Send>(needs: &Needs, attempt: impl FnOnce() -> T + Send) -> (Landlock, T) {
        thread::scope(|scope| {
            let thread = scope.spawn(|| (confine(needs).expect("rules are accepted"), attempt()));
            thread.join().expect("the attempts do not panic")
        })
    }

    fn listen() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").unwrap()
    }

    #[test]
    fn what_was_not_asked_for_is_denied() {
        let (ours, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (key, database) = (
            others.path().join("master.key"),
            ours.path().join("keys.db"),
        );
        let other = others.path().join("other");
        fs::write(&key, "key").unwrap();
        fs::write(&other, "other").unwrap();
        let (server, second, stranger) = (listen(), listen(), listen());
        let found = |server: &TcpListener| {
            let address = format!("http://{}", server.local_addr().unwrap());
            Found::at(&address.try_into().unwrap()).unwrap()
        };
        let needs = Needs {
            directories: vec![ours.path().to_owned()],
            files: vec![key.clone()],
            connect: vec![found(&server), found(&second)],
            ..Needs::NOTHING
        };

        let (level, (allowed, denied)) = confined(&needs, || {
            let allowed = [
                fs::write(&database, "database"),
                fs::read(&database).map(drop),
                fs::read_dir(ours.path()).map(drop),
                fs::rename(&database, ours.path().join("renamed")),
                fs::remove_file(ours.path().join("renamed")),
                fs::read(&key).map(drop),
                TcpStream::connect(server.local_addr().unwrap()).map(drop),
                TcpStream::connect(second.local_addr().unwrap()).map(drop),
            ];
            let denied = [
                fs::write(&key, "changed"),
                fs::read(&other).map(drop),
                fs::read("/etc/hostname").map(drop),
                fs::write(others.path().join("new"), ""),
                fs::create_dir(ours.path().join("directory")),
                TcpListener::bind("127.0.0.1:0").map(drop),
                TcpStream::connect(stranger.local_addr().unwrap()).map(drop),
            ];
            (allowed, denied)
        });
        for (number, attempt) in allowed.iter().enumerate() {
            assert!(attempt.is_ok(), "allowed {number}: {attempt:?}");
        }
        // With less than all rules it depends on the kernel which of these are denied.
        if level == Landlock::Full {
            for (number, attempt) in denied.iter().enumerate() {
                let kind = attempt.as_ref().map_err(io::Error::kind);
                assert_eq!(
                    kind,
                    Err(io::ErrorKind::PermissionDenied),
                    "denied {number}"
                );
            }
        }
    }
}
