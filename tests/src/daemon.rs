//! A real `sealvold` in a place of its own, and `sealvol` talking to it.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;

use crate::outcome::Outcome;
use crate::peer::{Address, Peer};
use crate::place::Place;
use crate::programs::{self, Running, wait_for};

/// A running daemon. It is killed when the value is dropped, and its log is printed when a test panics.
#[derive(Debug)]
pub struct Daemon<'a> {
    running: Running,
    place: &'a Place,
    log: PathBuf,
}

impl<'a> Daemon<'a> {
    /// Starts `sealvold` in `place` and waits until it serves.
    ///
    /// # Panics
    /// If it ends instead, with what it said.
    #[track_caller]
    pub fn start(place: &'a Place) -> Self {
        Self::start_by(place, Self::command(place)).unwrap_or_else(|outcome| panic!("{outcome}"))
    }

    /// Starts `sealvold` in `place` with the passphrase in `file` handed over as descriptor 3, by a shell.
    ///
    /// # Panics
    /// If it ends instead of serving, with what it said.
    #[track_caller]
    pub fn start_with_passphrase(place: &'a Place, file: &std::path::Path) -> Self {
        let sealvold = Self::command(place);
        let mut command = Command::new("sh");
        command
            .args(["-c", "exec \"$@\" --passphrase-fd 3 3<\"$0\""])
            .arg(file)
            .arg(sealvold.get_program())
            .args(sealvold.get_args());
        Self::start_by(place, command).unwrap_or_else(|outcome| panic!("{outcome}"))
    }

    /// The command line that starts `sealvold` in `place`, to be changed by a test that needs another.
    pub fn command(place: &Place) -> Command {
        let mut command = Command::new(programs::ours("sealvold"));
        command.args(Self::arguments(place));
        command
    }

    /// The arguments of [`Self::command`], for tests that start the daemon through another program.
    pub fn arguments(place: &Place) -> [std::ffi::OsString; 4] {
        [
            "--state-dir".into(),
            place.state().into(),
            "--runtime-dir".into(),
            place.runtime().into(),
        ]
    }

    /// Starts `command` as the daemon of `place` and waits until it serves, or gives what it said when it ended.
    ///
    /// # Errors
    /// The daemon ended before it served.
    ///
    /// # Panics
    /// If it does neither within 30 seconds.
    pub fn start_by(place: &'a Place, command: Command) -> Result<Self, Outcome> {
        let mut command = mortal(&command);
        let starts = std::fs::read_dir(place.log())
            .expect("the log directory")
            .count();
        let log = place.log().join(format!("sealvold.{starts}.log"));
        let output = std::fs::File::create(&log).expect("a log file");
        command
            .stdin(std::process::Stdio::null())
            .stdout(output.try_clone().expect("a second descriptor of the log"))
            .stderr(output);
        let line = format!("{command:?}");
        let mut daemon = Daemon {
            running: Running::start(&mut command),
            place,
            log,
        };
        let ended = wait_for("sealvold to serve or to end", || {
            if let Some(status) = daemon.running.child().try_wait().expect("its status") {
                return Some(Some(status));
            }
            let serves = [place.runtime().join("control.sock"), daemon.socket()]
                .iter()
                .all(|socket| UnixStream::connect(socket).is_ok());
            serves.then_some(None)
        });
        match ended {
            None => Ok(daemon),
            Some(status) => Err(Outcome {
                command: line,
                code: status.code(),
                stdout: String::new(),
                stderr: daemon.log(),
            }),
        }
    }

    /// Runs `sealvol` against this daemon.
    pub fn sealvol(&self, arguments: &[&str]) -> Outcome {
        Outcome::of(
            Command::new(programs::ours("sealvol"))
                .arg("--control")
                .arg(self.place.runtime().join("control.sock"))
                .args(arguments),
        )
    }

    /// Runs `sealvol` for its JSON.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn sealvol_json(&self, arguments: &[&str]) -> serde_json::Value {
        let mut all = vec!["--json"];
        all.extend(arguments);
        self.sealvol(&all).succeeded().json()
    }

    /// Creates and attaches a volume; gives its NBD URI.
    ///
    /// # Panics
    /// If either fails.
    #[track_caller]
    pub fn volume(&self, name: &str, size: &str) -> String {
        self.sealvol(&["volume", "create", name, "--size", size])
            .succeeded();
        self.attach(name)
    }

    /// Attaches a volume; gives its NBD URI as `sealvol` prints it.
    ///
    /// # Panics
    /// If that fails or prints no URI.
    #[track_caller]
    pub fn attach(&self, name: &str) -> String {
        let outcome = self.sealvol(&["volume", "attach", name]).succeeded();
        outcome
            .stdout
            .split_whitespace()
            .find(|word| word.starts_with("nbd+unix://"))
            .unwrap_or_else(|| panic!("no NBD URI: {outcome}"))
            .to_owned()
    }

    /// Detaches a volume.
    ///
    /// # Panics
    /// If that fails.
    #[track_caller]
    pub fn detach(&self, name: &str) {
        self.sealvol(&["volume", "detach", name]).succeeded();
    }

    /// Writes to an export.
    ///
    /// # Panics
    /// If it is not served, or refuses the write.
    #[track_caller]
    pub fn write(&self, name: &str, offset: u64, data: &[u8]) {
        let mut peer = Peer::open(&self.address(), name).expect("attached");
        peer.write(offset, data).expect("written");
    }

    /// A whole export, as nbdcopy reads it.
    ///
    /// # Panics
    /// If it cannot be read.
    #[track_caller]
    pub fn content(&self, name: &str) -> Vec<u8> {
        let file = self.place.file(&format!("copy.{name}"));
        let _ = std::fs::remove_file(&file);
        let file_name = file.to_str().expect("UTF-8");
        programs::run("nbdcopy", &[&self.uri(name), file_name]).succeeded();
        std::fs::read(&file).expect("the copy")
    }

    /// Where it serves NBD.
    pub fn address(&self) -> Address {
        Address::from(self.socket().as_path())
    }

    /// The NBD URI that the export `name` has, attached or not.
    pub fn uri(&self, name: &str) -> String {
        format!("nbd+unix:///{name}?socket={}", self.socket().display())
    }

    /// The socket that serves NBD.
    pub fn socket(&self) -> PathBuf {
        self.place.runtime().join("nbd.sock")
    }

    /// What the daemon has written to its log so far.
    ///
    /// # Panics
    /// If the log cannot be read.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).expect("the daemon's log")).into_owned()
    }

    /// The process id.
    pub fn pid(&self) -> rustix::process::Pid {
        self.running.pid()
    }

    /// Kills it as a power cut would, as far as a process can see, and waits for its end.
    ///
    /// # Panics
    /// If it had ended already.
    #[track_caller]
    pub fn kill(mut self) {
        assert!(
            self.running
                .child()
                .try_wait()
                .expect("its status")
                .is_none(),
            "the daemon had ended already"
        );
        self.kill_now();
        self.running.child().wait().expect("its end");
    }

    /// Sends SIGKILL, for a test that uses the daemon in other threads too; dropping the value waits for its end.
    ///
    /// # Panics
    /// If there is no such process any more.
    pub fn kill_now(&self) {
        rustix::process::kill_process(self.pid(), Signal::KILL).expect("SIGKILL");
    }

    /// Stops it by SIGTERM and asserts that it ends in good order.
    ///
    /// # Panics
    /// If its exit code is not 0.
    #[track_caller]
    pub fn stop(mut self) {
        rustix::process::kill_process(self.pid(), Signal::TERM).expect("SIGTERM");
        let status = self.running.child().wait().expect("its end");
        assert_eq!(status.code(), Some(0), "sealvold after SIGTERM");
    }

    /// Waits until it has ended by itself, in good order.
    ///
    /// # Panics
    /// If its exit code is not 0.
    #[track_caller]
    pub fn ended(mut self) {
        let status = self.running.child().wait().expect("its end");
        assert_eq!(status.code(), Some(0), "sealvold, told to stop");
    }
}

/// The same command, killed by the kernel should this thread end without its `Drop`: a runner that gives up on a test kills only
/// the test.
pub fn mortal(command: &Command) -> Command {
    let mut mortal = Command::new("setpriv");
    mortal
        .args(["--pdeathsig", "KILL"])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => mortal.env(name, value),
            None => mortal.env_remove(name),
        };
    }
    mortal
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read(&self.log).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            eprintln!("--- {} ---\n{log}---", self.log.display());
        }
    }
}
