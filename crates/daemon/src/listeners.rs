//! The sockets that the daemon answers on: made here, or handed over by systemd.
//!
//! What always holds: a Unix socket that we make is 0660 from its first connection on; a socket file
//! is replaced only if it is a socket and nobody answers on it; TCP is served only when the operator
//! said that it is neither authenticated nor encrypted.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _,
};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Everything that the daemon listens on.
#[derive(Debug)]
pub(crate) struct Listeners {
    pub(crate) control: UnixListener,
    pub(crate) nbd: Vec<NbdListener>,
    /// The Unix socket that URIs name.
    pub(crate) nbd_socket: PathBuf,
    /// Socket files that are ours to remove.
    made: Vec<PathBuf>,
}

/// One NBD socket.
#[derive(Debug)]
pub(crate) enum NbdListener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// Why a socket cannot be had.
#[derive(Debug, Error)]
pub enum ListenError {
    /// A socket or its directory.
    #[error("{}: {source}. Choose another --runtime-dir or --listen", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Somebody answers on it.
    #[error("{}: another program answers on this socket. Stop it, or use another --runtime-dir", .0.display())]
    InUse(PathBuf),
    /// There is a file that is no socket.
    #[error("{}: it is there and is no socket. Remove it, or use another --runtime-dir", .0.display())]
    NoSocket(PathBuf),
    /// Everybody could replace the sockets in it.
    #[error("{}: everybody may write this directory. Use one that only the daemon's user may write", .0.display())]
    OpenDirectory(PathBuf),
    /// `--listen` with a text that is no address.
    #[error("--listen {0}: {1}. Write nbd://HOST:PORT or nbd+unix:///?socket=PATH")]
    Uri(String, &'static str),
    /// A TCP address that cannot be listened on.
    #[error("--listen {address}: {source}. Choose another address")]
    Tcp {
        /// As it was given.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// TCP without the flag.
    #[error(
        "--listen {0}: over TCP everybody who reaches the port may read and write every attached \
         volume, unauthenticated and unencrypted. Use a Unix socket, or add --insecure-plaintext-tcp"
    )]
    PlaintextTcp(String),
    /// What systemd handed over cannot be used.
    #[error("socket activation: {0}. Compare the socket units with those that sealvol ships")]
    Activation(String),
}

/// Where a `--listen` URI points to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Address {
    Tcp(String),
    Unix(PathBuf),
}

impl Listeners {
    /// Opens the default sockets in `runtime_dir` and those of `uris`.
    ///
    /// # Errors
    /// The first that cannot be had; those made before are removed again.
    pub(crate) fn open(
        runtime_dir: &Path,
        uris: &[String],
        plaintext_tcp: bool,
    ) -> Result<Self, ListenError> {
        // What is wrong with the arguments is said before anything is made.
        let mut addresses = Vec::with_capacity(uris.len());
        for uri in uris {
            let address = parse_uri(uri)?;
            if matches!(address, Address::Tcp(_)) && !plaintext_tcp {
                return Err(ListenError::PlaintextTcp(uri.clone()));
            }
            addresses.push(address);
        }
        make_runtime_dir(runtime_dir)?;
        let mut activated = activated()?;
        let mut made = Made(Vec::new());
        let control = match activated.control {
            Some(listener) => listener,
            None => made.bind(&runtime_dir.join("control.sock"))?,
        };
        if activated.nbd.is_empty() {
            let path = runtime_dir.join("nbd.sock");
            activated.nbd.push((made.bind(&path)?, path));
        }
        let nbd_socket = activated.nbd[0].1.clone();
        let mut nbd: Vec<_> = activated
            .nbd
            .into_iter()
            .map(|(socket, path)| NbdListener::Unix(socket, path))
            .collect();
        for address in addresses {
            nbd.push(match address {
                Address::Tcp(address) => NbdListener::Tcp(listen_tcp(&address)?),
                Address::Unix(path) => NbdListener::Unix(made.bind(&path)?, path),
            });
        }
        Ok(Self {
            control,
            nbd,
            nbd_socket,
            made: std::mem::take(&mut made.0),
        })
    }

    /// The NBD sockets as URIs without an export name.
    pub(crate) fn uris(&self) -> Vec<String> {
        let uri = |listener: &NbdListener| match listener {
            NbdListener::Unix(_, path) => format!("nbd+unix:///?socket={}", path.display()),
            NbdListener::Tcp(socket) => socket
                .local_addr()
                .map_or_else(|_| "nbd://".to_owned(), |at| format!("nbd://{at}")),
        };
        self.nbd.iter().map(uri).collect()
    }

    /// The socket files that are to be removed when the daemon stops.
    pub(crate) fn made(&self) -> Made {
        Made(self.made.clone())
    }
}

/// Socket files that are removed with this value.
#[derive(Debug)]
pub(crate) struct Made(Vec<PathBuf>);

impl Made {
    fn bind(&mut self, path: &Path) -> Result<UnixListener, ListenError> {
        let listener = bind_unix(path)?;
        self.0.push(path.to_owned());
        Ok(listener)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.0 {
            // Gone already, or the directory is: nothing is left to do.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn bind_unix(path: &Path) -> Result<UnixListener, ListenError> {
    let failed = |source| ListenError::Socket {
        path: path.to_owned(),
        source,
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NoSocket(path.to_owned()));
        }
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(failed)?;
            }
            Err(error) => return Err(failed(error)),
            Ok(_) => return Err(ListenError::InUse(path.to_owned())),
        },
    }
    // The umask keeps everybody else out until the mode is set.
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o660)).map_err(failed)?;
    Ok(listener)
}

fn make_runtime_dir(path: &Path) -> Result<(), ListenError> {
    let failed = |source| ListenError::Socket {
        path: path.to_owned(),
        source,
    };
    match DirBuilder::new().mode(0o750).create(path) {
        // The umask took the group's bits away.
        Ok(()) => std::fs::set_permissions(path, Permissions::from_mode(0o750)).map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let metadata = std::fs::metadata(path).map_err(failed)?;
            if !metadata.is_dir() {
                return Err(failed(io::ErrorKind::NotADirectory.into()));
            }
            if metadata.mode() & 0o002 != 0 {
                return Err(ListenError::OpenDirectory(path.to_owned()));
            }
            Ok(())
        }
        Err(error) => Err(failed(error)),
    }
}

fn listen_tcp(address: &str) -> Result<TcpListener, ListenError> {
    let failed = |source| ListenError::Tcp {
        address: address.to_owned(),
        source,
    };
    let resolved: Vec<SocketAddr> = address.to_socket_addrs().map_err(failed)?.collect();
    TcpListener::bind(&resolved[..]).map_err(failed)
}

fn parse_uri(uri: &str) -> Result<Address, ListenError> {
    let wrong = |cause| ListenError::Uri(uri.to_owned(), cause);
    if let Some(rest) = uri.strip_prefix("nbd+unix://") {
        let path = rest.trim_start_matches('/').strip_prefix("?socket=");
        let path = path.ok_or_else(|| wrong("there is no socket=PATH in it"))?;
        if !path.starts_with('/') || path.contains(['&', '#', '%']) {
            return Err(wrong(
                "the socket's path must be absolute and without %, & and #",
            ));
        }
        return Ok(Address::Unix(path.into()));
    }
    let Some(rest) = uri.strip_prefix("nbd://") else {
        return Err(wrong("it is no NBD URI"));
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '@', '#']) {
        return Err(wrong("there is more in it than host and port"));
    }
    // A host in brackets is IPv6; a colon after it, or the only one, begins the port.
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (authority, NBD_PORT),
    };
    if port.parse::<u16>().is_err() {
        return Err(wrong("the port is no number up to 65535"));
    }
    let host = if host.is_empty() { "127.0.0.1" } else { host };
    Ok(Address::Tcp(format!("{host}:{port}")))
}

/// What systemd handed over.
#[derive(Default)]
struct Activated {
    control: Option<UnixListener>,
    nbd: Vec<(UnixListener, PathBuf)>,
}

fn activated() -> Result<Activated, ListenError> {
    let failed = |error: &dyn std::fmt::Display| ListenError::Activation(error.to_string());
    // This sets FD_CLOEXEC too, so that no key child inherits them.
    let names: Vec<String> = sd_notify::listen_fds_with_names()
        .map_err(|error| failed(&error))?
        .map(|(_, name)| name)
        .collect();
    let mut sockets = listenfd::ListenFd::from_env();
    let mut activated = Activated::default();
    for (index, name) in names.iter().enumerate() {
        let taken = sockets
            .take_unix_listener(index)
            .map_err(|error| failed(&error))?;
        let listener =
            taken.ok_or_else(|| failed(&format!("descriptor {index} was not handed over")))?;
        match name.as_str() {
            "control" if activated.control.is_none() => activated.control = Some(listener),
            "nbd" => {
                let address = listener.local_addr().map_err(|error| failed(&error))?;
                let path = address.as_pathname().map(Path::to_owned);
                let path = path.ok_or_else(|| failed(&"the socket `nbd` has no path"))?;
                activated.nbd.push((listener, path));
            }
            other => {
                return Err(failed(&format!(
                    "a socket is named `{other}`, not control or nbd"
                )));
            }
        }
    }
    Ok(activated)
}

/// The port that IANA registered for NBD.
const NBD_PORT: &str = "10809";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_read_as_the_nbd_specification_writes_them() {
        let tcp = |text: &str| Address::Tcp(text.to_owned());
        for (uri, address) in [
            ("nbd://127.0.0.1:10809", tcp("127.0.0.1:10809")),
            ("nbd://localhost", tcp("localhost:10809")),
            ("nbd://", tcp("127.0.0.1:10809")),
            ("nbd://:10810/", tcp("127.0.0.1:10810")),
            ("nbd://[::1]:1234", tcp("[::1]:1234")),
            ("nbd://[::1]", tcp("[::1]:10809")),
            (
                "nbd+unix:///?socket=/run/x.sock",
                Address::Unix("/run/x.sock".into()),
            ),
        ] {
            assert_eq!(parse_uri(uri).expect(uri), address, "{uri}");
        }
        for uri in [
            "",
            "127.0.0.1",
            "http://x",
            "nbd://h:port",
            "nbd://h:70000",
            "nbd://h/export",
            "nbd://u@h",
            "nbds://h",
            "nbd+unix://",
            "nbd+unix:///?socket=x",
            "nbd+unix:///v?socket=/x",
        ] {
            assert!(matches!(parse_uri(uri), Err(ListenError::Uri(..))), "{uri}");
        }
    }

    fn open(folder: &Path, uris: &[&str], tcp: bool) -> Result<Listeners, ListenError> {
        let uris: Vec<_> = uris.iter().map(|&uri| uri.to_owned()).collect();
        Listeners::open(&folder.join("run"), &uris, tcp)
    }

    #[test]
    fn tcp_needs_its_flag_whatever_the_address() {
        let folder = tempfile::tempdir().expect("a folder");
        for uri in ["nbd://127.0.0.1:0", "nbd://0.0.0.0:0"] {
            let refused = open(folder.path(), &[uri], false).expect_err(uri);
            assert!(matches!(refused, ListenError::PlaintextTcp(_)));
            assert!(refused.to_string().contains("--insecure-plaintext-tcp"));
        }
        assert!(
            !folder.path().join("run").exists(),
            "nothing was made before the refusal"
        );
        let listeners = open(folder.path(), &["nbd://:0"], true).expect("allowed");
        assert!(
            listeners.uris()[1].starts_with("nbd://127.0.0.1:"),
            "{:?}",
            listeners.uris()
        );
    }

    #[test]
    fn sockets_are_for_owner_and_group() {
        let folder = tempfile::tempdir().expect("a folder");
        let listeners = open(folder.path(), &[], false).expect("free");
        for (path, mode) in [
            ("run", 0o750),
            ("run/control.sock", 0o660),
            ("run/nbd.sock", 0o660),
        ] {
            let found = std::fs::metadata(folder.path().join(path))
                .expect("there")
                .mode();
            assert_eq!(found & 0o7777, mode, "{path}");
        }
        drop(listeners.made());
        assert!(!folder.path().join("run/nbd.sock").exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = open(folder.path(), &[], false).expect("free");
        let refused = open(folder.path(), &[], false).expect_err("somebody answers");
        assert!(matches!(refused, ListenError::InUse(_)));
        assert!(
            folder.path().join("run/control.sock").exists(),
            "and it is still there"
        );
        drop(first);
        open(folder.path(), &[], false).expect("nobody answers any more");
    }

    #[test]
    fn what_is_no_socket_is_never_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("run")).expect("made");
        let file = folder.path().join("run/control.sock");
        std::fs::write(&file, "precious").expect("written");
        let refused = open(folder.path(), &[], false).expect_err("a file is in the way");
        assert!(matches!(refused, ListenError::NoSocket(_)));
        assert_eq!(std::fs::read_to_string(&file).expect("there"), "precious");
    }

    #[test]
    fn a_directory_that_everybody_may_write_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let run = folder.path().join("run");
        std::fs::create_dir(&run).expect("made");
        std::fs::set_permissions(&run, Permissions::from_mode(0o1777)).expect("set");
        let refused = open(folder.path(), &[], false).expect_err("open to everybody");
        assert!(matches!(refused, ListenError::OpenDirectory(_)));
    }
}
