//! A virtual machine that runs `sealvold` on a disk that forgets, and whose power can be cut.
//!
//! The disk is `clients/forgetful_disk.py`: what no FLUSH covers is in its memory alone, and of that a part by chance is left after a
//! cut, sector by sector. `guest/machine.sh` boots the machine, `guest/host.sh` is what runs in it: it looks after the file
//! system, starts the daemon and does what it is told over a serial port.
//!
//! Always: both processes end with the value.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::daemon::mortal;
use crate::outcome::Outcome;
use crate::peer::Address;
use crate::programs::{self, Running, wait_for};
use crate::serial::Serial;

/// The file system of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// As `mkfs.ext4` makes it.
    Ext4,
    /// As `mkfs.xfs` makes it.
    Xfs,
}

/// A disk image, and the machine that is booted on it again and again.
#[derive(Debug)]
pub struct Bench {
    directory: tempfile::TempDir,
    boots: u64,
}

/// A running machine.
#[derive(Debug)]
pub struct Machine {
    qemu: Running,
    disk: Running,
    serial: Serial,
    address: Address,
    disk_log: PathBuf,
    console: PathBuf,
}

impl Bench {
    /// An empty file system of 512 MiB.
    ///
    /// # Panics
    /// If it can't be made.
    #[must_use]
    pub fn new(file_system: FileSystem) -> Self {
        let directory = tempfile::Builder::new().prefix("sv").tempdir();
        let directory = directory.expect("a temporary directory");
        let image = directory.path().join("image");
        let file = std::fs::File::create(&image).expect("an image");
        file.set_len(512 << 20).expect("an image");
        let image = image.to_str().expect("UTF-8");
        match file_system {
            FileSystem::Ext4 => programs::run("mkfs.ext4", &["-q", "-F", image]),
            FileSystem::Xfs => programs::run("mkfs.xfs", &["-q", image]),
        }
        .succeeded();
        Self {
            directory,
            boots: 0,
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Switches the machine on. What is left after its power is cut follows from `seed`.
    ///
    /// # Panics
    /// If its processes can't be started.
    #[must_use]
    pub fn boot(&mut self, seed: u64) -> Machine {
        self.boots += 1;
        let file = |name: &str| self.file(&format!("{name}.{}", self.boots));
        let (socket, serial, log) = (file("disk"), file("serial"), file("disk.log"));
        let mut command = programs::script("forgetful_disk.py");
        command
            .args([self.file("image"), self.file("now"), socket.clone()])
            .arg(seed.to_string());
        let mut command = mortal(&command);
        command
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&log).expect("a log"));
        let disk = Running::start(&mut command);
        wait_for("the disk", || socket.exists().then_some(()));
        let port = free_port();
        let mut command = Command::new("bash");
        command
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/machine.sh"))
            .arg(self.directory.path())
            .arg(&socket)
            .arg(&serial)
            .arg(port.to_string())
            .args(["sealvold", "sealvol", "sealvol-keys"].map(programs::ours));
        let mut qemu = Running::start(mortal(&command).stdin(Stdio::null()));
        let serial = Serial::open(&mut qemu, &serial);
        Machine {
            qemu,
            disk,
            serial,
            address: Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
            disk_log: log,
            console: self.file("console"),
        }
    }
}

/// One that nobody listens on now.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("its address").port()
}

impl Machine {
    /// Waits until it has booted, before it touches its disk.
    ///
    /// # Errors
    /// It does not.
    pub fn booted(&mut self) -> Result<(), String> {
        self.serial.line().map(drop)
    }

    /// Waits until the daemon serves. Before that the file system was mounted, so that its journal was replayed, and checked.
    ///
    /// # Errors
    /// The file system is damaged, or the daemon does not start; with what was said.
    pub fn ready(&mut self) -> Result<(), String> {
        let mut said = String::new();
        loop {
            let line = self
                .serial
                .line()
                .map_err(|error| format!("{said}{error}"))?;
            match line.as_str() {
                "ready" => return Ok(()),
                line => {
                    said.push_str(line);
                    said.push('\n');
                    if line.starts_with("FAIL") {
                        return Err(said);
                    }
                }
            }
        }
    }

    /// Runs `sealvol` in it.
    ///
    /// # Errors
    /// The machine is gone.
    pub fn sealvol(&mut self, arguments: &str) -> Result<Outcome, String> {
        self.serial.say(arguments)?;
        let line = loop {
            let line = self.serial.line()?;
            if let Some(ended) = line.strip_prefix("done ") {
                break ended.to_owned();
            }
        };
        let (code, output) = line.split_once(' ').ok_or("half a line")?;
        Ok(Outcome {
            command: format!("sealvol {arguments}"),
            code: code.parse().ok(),
            stdout: output.to_owned(),
            stderr: String::new(),
        })
    }

    /// What the daemon in it says of itself, and has logged last: for the word of a failure.
    pub fn told(&mut self) -> String {
        ["status", "log"]
            .map(|asked| match self.sealvol(asked) {
                Ok(outcome) => outcome.stdout,
                Err(error) => error,
            })
            .join("\n")
    }

    /// Where the daemon in it serves NBD.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// What cuts its power, while another thread speaks with it.
    #[must_use]
    pub fn switch(&self) -> Switch {
        Switch {
            machine: self.qemu.pid(),
            disk: self.disk.pid(),
        }
    }

    /// What the kernel said last.
    #[must_use]
    pub fn console(&self) -> String {
        let text = std::fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Cuts the power; what the disk says it forgot.
    ///
    /// # Panics
    /// If the disk fails.
    pub fn cut(mut self) -> String {
        self.switch().cut();
        self.qemu.child().wait().expect("its end");
        let status = self.disk.child().wait().expect("its end");
        assert!(status.success(), "the disk failed");
        let said = std::fs::read_to_string(&self.disk_log).expect("what the disk says");
        said.trim().to_owned()
    }
}

/// What cuts the power of a machine that is not waited for yet.
#[derive(Clone, Copy, Debug)]
pub struct Switch {
    machine: Pid,
    disk: Pid,
}

impl Switch {
    /// Cuts it now.
    pub fn cut(self) {
        // An error says that it was cut already.
        let _ = rustix::process::kill_process(self.machine, Signal::KILL);
    }

    /// From now on the disk answers FLUSH and forgets all the same.
    ///
    /// # Panics
    /// If the disk is gone.
    pub fn lie(self) {
        rustix::process::kill_process(self.disk, Signal::USR2).expect("the disk");
    }

    /// Cuts it in the middle of the writes that the disk gets next; now, if none come.
    pub fn cut_among_writes(self) {
        let _ = rustix::process::kill_process(self.disk, Signal::USR1);
        let state = format!("/proc/{}/stat", self.machine.as_raw_nonzero());
        for _ in 0..300 {
            // Nobody waits for its end before this returns: it stays as a zombie.
            let stat = std::fs::read_to_string(&state).unwrap_or_default();
            if stat.contains(") Z ") {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.cut();
    }
}
