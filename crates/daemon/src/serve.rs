//! The life of the daemon: start, serve, stop.
//!
//! ```text
//! start   harden ─▶ configuration ─▶ state directory, locked ─▶ registry ─▶ sockets ─▶ self-test
//!         ─▶ clean up ─▶ control answers ─▶ attach again ─▶ jobs go on ─▶ NBD answers ─▶ READY=1
//! stop    no new connections or operations ─▶ requests in flight answered ─▶ volumes committed,
//!         marked clean ─▶ keys wiped ─▶ sockets removed ─▶ state directory free
//! ```
//! What always holds: nothing is served before the self-tests have passed; a volume is served by one
//! daemon at a time; a stop that was asked for loses nothing that was answered.

use std::fs::File;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sealvol_crypto::HardenError;
use thiserror::Error;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::args::Args;
use crate::audit::{Audit, AuditError};
use crate::config::{Config, ConfigError};
use crate::daemon::{Daemon, Parts};
use crate::engine::{Engine, Socket};
use crate::exports::{Exports, Peer};
use crate::keys::Keys;
use crate::listeners::{ListenError, Listeners, NbdListener};
use crate::registry::{Registry, RegistryError};
use crate::state_dir::{StateDir, StateDirError};
use crate::{control, error, hardening, logging, working_state, write_back};

/// Why the daemon does not start, or did not stop in good order.
#[derive(Debug, Error)]
pub enum RunError {
    /// The process cannot be protected.
    #[error(transparent)]
    Harden(#[from] HardenError),
    /// The audit log cannot be gone on with.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The state directory cannot be used.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// The registry cannot be used.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// What the last run left cannot be cleaned up.
    #[error(transparent)]
    Recover(#[from] error::Error),
    /// A socket cannot be had.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The passphrase cannot be read.
    #[error("--passphrase-fd {0}: {1}. Hand over an open file: sealvold --passphrase-fd 3 3< FILE")]
    Passphrase(u32, String),
    /// Threads, runtime or signals.
    #[error("sealvold: {what}: {source}. Raise the limits of the process")]
    System {
        /// What was wanted.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl RunError {
    /// The exit code: as `sealvol`'s, 5 if another daemon or program is in the way, 3 if something is
    /// not to be trusted, 2 for arguments, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::StateDir(StateDirError::InUse { .. }) | Self::Listen(ListenError::InUse(_)) => 5,
            Self::Config(ConfigError::Untrusted { .. })
            | Self::StateDir(StateDirError::Untrusted { .. })
            | Self::Listen(ListenError::OpenDirectory(_) | ListenError::PlaintextTcp(_))
            | Self::Registry(RegistryError::NewerSchema { .. } | RegistryError::Foreign(_)) => 3,
            Self::Config(_) | Self::Listen(ListenError::Uri(..)) | Self::Passphrase(..) => 2,
            Self::Audit(_)
            | Self::Harden(_)
            | Self::Listen(_)
            | Self::Recover(_)
            | Self::Registry(_)
            | Self::StateDir(_)
            | Self::System { .. } => 1,
        }
    }
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> RunError {
    move |source| RunError::System { what, source }
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// When it cannot start; nothing was served then.
pub fn run(args: &Args) -> Result<(), RunError> {
    hardening::harden()?;
    logging::start(args.log_json);
    hardening::raise_open_files();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("blocking")
        .build()
        .map_err(system("its runtime"))?;
    let served = runtime.block_on(serve(args));
    // What may still hang is no volume's work: they are closed.
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

/// Where the working states of volumes lie: the listeners have made the directory above it.
fn make_working_dir(runtime_dir: &Path) -> io::Result<PathBuf> {
    let path = runtime_dir.join("volumes");
    match std::fs::DirBuilder::new().mode(0o700).create(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(path),
    }
}

async fn serve(args: &Args) -> Result<(), RunError> {
    let mut stop = StopSignals::new().map_err(system("its signals"))?;
    let state_dir =
        std::path::absolute(&args.state_dir).map_err(system("its working directory"))?;
    let runtime_dir =
        std::path::absolute(&args.runtime_dir).map_err(system("its working directory"))?;
    let passphrase = args.passphrase_fd.map(open_passphrase).transpose()?;
    let config = Config::load(args.config.as_deref(), &state_dir, passphrase.is_some())?;
    let state = StateDir::hold(&state_dir)?;
    let registry = Registry::open(&state.registry())?;
    let listeners = Listeners::open(&runtime_dir, &args.listen, args.insecure_plaintext_tcp)?;
    let _made = listeners.made();

    let exports = Arc::new(Exports::new());
    let engine = Engine::start(config.workers, &exports).map_err(system("its worker threads"))?;
    let engine = Arc::new(engine);
    let audit = Audit::open(state.path())?;
    let parts = Parts {
        keys: Keys::new(&config, passphrase, audit.clone(), registry.clone()),
        config,
        state,
        registry,
        audit,
        exports,
        nbd_socket: listeners.nbd_socket.clone(),
        listening: listeners.uris(),
        working_dir: make_working_dir(&runtime_dir).map_err(system("its runtime directory"))?,
        boot: working_state::boot_id().map_err(system("the boot id"))?,
    };
    let daemon = Arc::new(Daemon::new(parts, tokio::runtime::Handle::current()));
    if let Err(error) = daemon.memory.ready() {
        tracing::error!(%error, "no volume can be attached");
    }
    daemon.clean_up().await?;
    daemon.make_first_keys().await;

    let mut tasks = JoinSet::new();
    let (control, nbd) = (listeners.control, listeners.nbd);
    if nbd
        .iter()
        .any(|listener| matches!(listener, NbdListener::Tcp(_)))
    {
        tracing::warn!("TCP is served: whoever reaches the port may read and write every volume");
    }
    tasks.spawn(answer_control(Arc::clone(&daemon), control));
    tasks.spawn(Arc::clone(&daemon).watch_keys());
    tasks.spawn(write_back::run(Arc::clone(&daemon.exports)));
    tasks.spawn(Arc::clone(&daemon).tend_keys());
    // A task of its own: what has begun is carried to its end also when a stop comes in between.
    let again = tokio::spawn({
        let daemon = Arc::clone(&daemon);
        async move { daemon.attach_all_again().await }
    });
    let waiting = tokio::select! {
        attached = again => attached.map_err(|error| error::Error::Internal(error.to_string()))??,
        () = stop.wait() => return stop_all(&daemon, engine, tasks).await,
        () = daemon.told_to_stop.notified() => return stop_all(&daemon, engine, tasks).await,
    };
    tasks.spawn(Arc::clone(&daemon).attach_rest_again(waiting));
    // No task of these: nothing of it is given up in the middle, it ends at the end of a step.
    tokio::spawn(Arc::clone(&daemon).run_merges());
    daemon.resume_jobs().await?;
    for listener in nbd {
        tasks.spawn(accept(Arc::clone(&engine), listener));
    }
    notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), listening = ?daemon.listening, "ready");
    tokio::select! {
        () = stop.wait() => {}
        () = daemon.told_to_stop.notified() => {}
    }
    stop_all(&daemon, engine, tasks).await
}

async fn stop_all(
    daemon: &Arc<Daemon>,
    engine: Arc<Engine>,
    mut tasks: JoinSet<()>,
) -> Result<(), RunError> {
    tracing::info!("stopping");
    notify(&[sd_notify::NotifyState::Stopping]);
    tasks.shutdown().await;
    daemon.end_operations().await;
    daemon.merges.end().await;
    if let Some(engine) = Arc::into_inner(engine) {
        engine.stop().await;
    }
    daemon.close_all().await;
    if let Err(error) = daemon.discard_all_ephemeral("the daemon stopped").await {
        tracing::warn!(%error, "ephemeral volumes are seen to by the next start");
    }
    daemon.anchor_audit_log().await;
    if let Err(error) = daemon.registry.call(|registry| registry.checkpoint()).await {
        tracing::warn!(%error, "the registry's log stays, for the next start to read");
    }
    tracing::info!("stopped");
    Ok(())
}

async fn answer_control(daemon: Arc<Daemon>, socket: StdUnixListener) {
    if let Err(error) = control::serve(daemon, socket).await {
        tracing::error!(%error, "the control socket cannot be served");
    }
}

/// Accepts connections and gives them to the engine, until the task is ended.
async fn accept(engine: Arc<Engine>, listener: NbdListener) {
    let accepted = match listener {
        NbdListener::Unix(socket, _) => accept_unix(&engine, socket).await,
        NbdListener::Tcp(socket) => accept_tcp(&engine, socket).await,
    };
    let Err(error) = accepted;
    tracing::error!(%error, "an NBD socket cannot be served");
}

async fn accept_unix(engine: &Engine, socket: StdUnixListener) -> io::Result<Never> {
    socket.set_nonblocking(true)?;
    let socket = UnixListener::from_std(socket)?;
    loop {
        match socket.accept().await.and_then(|(stream, _)| {
            let peer = stream.peer_cred()?;
            Ok((stream.into_std()?, peer))
        }) {
            Ok((stream, credentials)) => {
                let uid = credentials.uid();
                let pid = credentials
                    .pid()
                    .map_or_else(|| "?".to_owned(), |pid| pid.to_string());
                let peer = Peer {
                    uid: Some(uid),
                    description: format!("uid {uid} pid {pid}"),
                };
                engine.serve(Socket::Unix(stream), peer);
            }
            Err(error) => not_accepted(&error).await,
        }
    }
}

async fn accept_tcp(engine: &Engine, socket: std::net::TcpListener) -> io::Result<Never> {
    socket.set_nonblocking(true)?;
    let socket = TcpListener::from_std(socket)?;
    loop {
        match socket
            .accept()
            .await
            .and_then(|(stream, from)| Ok((stream.into_std()?, from)))
        {
            Ok((stream, from)) => {
                engine.serve(
                    Socket::Tcp(stream),
                    Peer {
                        uid: None,
                        description: from.to_string(),
                    },
                );
            }
            Err(error) => not_accepted(&error).await,
        }
    }
}

/// A loop that only an error ends.
type Never = std::convert::Infallible;

async fn not_accepted(error: &io::Error) {
    tracing::warn!(%error, "an NBD connection could not be accepted");
    // Out of file descriptors, most likely: give others time to close theirs.
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// The open file with the passphrase. A pipe is refused: it could be read once only, and each call
/// to the key service reads the passphrase anew, so that it is never kept in memory here.
///
/// The descriptor that was handed over is closed: it is not close-on-exec, so every key child would inherit it. Called before
/// anything else opens regular files, so that the number means what the one who started the daemon meant by it.
fn open_passphrase(descriptor: u32) -> Result<File, RunError> {
    let refused = |cause: String| RunError::Passphrase(descriptor, cause);
    let file = File::open(format!("/proc/self/fd/{descriptor}"))
        .map_err(|error| refused(error.to_string()))?;
    let metadata = file
        .metadata()
        .map_err(|error| refused(error.to_string()))?;
    if !metadata.is_file() {
        return Err(refused("it is not a regular file".to_owned()));
    }
    let number = std::os::fd::RawFd::try_from(descriptor).map_err(|e| refused(e.to_string()))?;
    nix::unistd::close(number).map_err(|error| refused(error.to_string()))?;
    Ok(file)
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    // Without systemd there is nobody to tell.
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager was not told");
    }
}

struct StopSignals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl StopSignals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
