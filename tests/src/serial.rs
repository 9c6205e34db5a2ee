//! The serial line to a virtual machine, over which it says what it does and is told what to do.
//!
//! Always: a machine that says nothing for minutes is given up. Never: another look at a clock.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::programs::Running;

/// How long a machine may say nothing: emulated, on a machine that is busy with others.
const PATIENCE: Duration = Duration::from_secs(180);

/// A line that is open.
#[derive(Debug)]
pub struct Serial(BufReader<UnixStream>);

impl Serial {
    /// Opens the line that `machine`, just started, is to listen on.
    ///
    /// # Panics
    /// If the machine ends before it does.
    #[must_use]
    pub fn open(machine: &mut Running, socket: &Path) -> Self {
        let stream = std::iter::repeat_with(|| {
            let ended = machine.child().try_wait().expect("its status");
            assert_eq!(ended, None, "the machine did not start");
            std::thread::sleep(Duration::from_millis(20));
            UnixStream::connect(socket)
        })
        .find_map(Result::ok)
        .expect("it goes on for ever");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        Self(BufReader::new(stream))
    }

    /// What it says next.
    ///
    /// # Errors
    /// It is off, or says nothing.
    pub fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        let count = self.0.read_line(&mut line);
        match count.map_err(|error| format!("the machine says nothing: {error}"))? {
            0 => Err("the machine is off".to_owned()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }

    /// Says a line to it.
    ///
    /// # Errors
    /// It is off.
    pub fn say(&mut self, line: &str) -> Result<(), String> {
        writeln!(self.0.get_mut(), "{line}").map_err(|error| error.to_string())
    }
}
