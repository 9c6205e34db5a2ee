//! The programs that tests run: ours, where cargo built them, and the clients of others.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use crate::outcome::Outcome;

/// One of our programs, from the directory that this test was built into.
///
/// # Panics
/// If it has not been built.
pub fn ours(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    let directory = test
        .parent() // deps
        .and_then(Path::parent)
        .expect("a test executable lies in the target directory");
    let path = directory.join(name);
    assert!(
        path.exists(),
        "{} is not there: run `cargo build --workspace` first, as tools/test does",
        path.display()
    );
    path
}

/// A client program of somebody else, with the system's own directories first in its path: libnbd's Python module belongs to
/// the system's interpreter.
pub fn client(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("/usr/sbin:/usr/bin:/sbin:/bin:{path}"));
    command
}

/// Runs a client program to its end.
///
/// # Panics
/// If it is not installed.
pub fn run<S: AsRef<OsStr>>(name: &str, arguments: &[S]) -> Outcome {
    Outcome::of(client(name).args(arguments))
}

/// A script of `tests/clients`, for the system's Python with libnbd, ready to run.
pub fn script(name: &str) -> Command {
    let mut command = client("/usr/bin/python3");
    command.env("PYTHONDONTWRITEBYTECODE", "1").arg(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("clients")
            .join(name),
    );
    command
}

/// Runs a script of `tests/clients` to its end and asserts that it is content.
///
/// # Panics
/// If it is not, with its traceback.
#[track_caller]
pub fn check(name: &str, arguments: &[&str]) -> Outcome {
    Outcome::of(script(name).args(arguments)).succeeded()
}

/// A process that ends with the value.
#[derive(Debug)]
pub struct Running(Child);

impl Running {
    /// Starts `command`.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(command: &mut Command) -> Self {
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self(child)
    }

    /// The process itself.
    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// The process id.
    ///
    /// # Panics
    /// Never: a process id is positive.
    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.0)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until `condition` gives a value, looking 100 times a second.
///
/// # Panics
/// After 30 seconds, naming `what`.
#[track_caller]
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    for _ in 0..3000 {
        if let Some(value) = condition() {
            return value;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("waited 30 seconds for {what}");
}
