//! Who uses a volume while its key changes: writers that know of each block what it may hold, and a virtual machine's block layer,
//! by QEMU, that says what its guest would be told.

use std::io::{self, Read as _, Write as _};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::thread::{Scope, ScopedJoinHandle};

use sealvol_tests::daemon::Daemon;
use sealvol_tests::load::{Record, Writer};
use sealvol_tests::peer::Address;
use sealvol_tests::programs::{Running, client, wait_for};

/// Connections that write.
pub(crate) const WRITERS: u64 = 2;

/// Blocks that each of them has for itself: many, since those of requests that a writer left behind are not written again.
pub(crate) const SHARE: u64 = 1024;

/// How large a volume is that both find their place in.
pub(crate) const SIZE: &str = "96M";

/// The guest's block, behind what the writers have.
const BLOCK: &str = "92M 4k";

/// What QEMU says when it waits for a command.
const PROMPT: &[u8] = b"qemu-io> ";

/// Writers on one volume.
pub(crate) struct Load<'scope> {
    record: &'scope Record,
    writers: Vec<ScopedJoinHandle<'scope, io::Error>>,
}

impl<'scope> Load<'scope> {
    /// Begins to write.
    ///
    /// # Panics
    /// If the volume is not served.
    pub(crate) fn start(
        scope: &'scope Scope<'scope, '_>,
        record: &'scope Record,
        address: &'scope Address,
        volume: &'scope str,
    ) -> Self {
        let writer = |share| {
            let seed = share + u64::from(std::process::id());
            let writer = Writer::connect(record, address, volume, share, seed);
            let writer = writer.expect("the volume is attached");
            // A request that is answered by an error is a panic in there.
            scope.spawn(move || {
                writer
                    .run()
                    .expect_err("it writes until its connection ends")
            })
        };
        let writers = (0..WRITERS).map(writer).collect();
        Self { record, writers }
    }

    /// Asserts that many more requests are answered, over the connections that there were.
    ///
    /// # Panics
    /// If they are not.
    #[track_caller]
    pub(crate) fn goes_on(&self, when: &str) {
        let enough = self.record.acknowledged() + 300;
        wait_for(&format!("requests to be answered {when}"), || {
            let ended = self.writers.iter().any(ScopedJoinHandle::is_finished);
            assert!(!ended, "a connection ended {when}");
            (self.record.acknowledged() > enough).then_some(())
        });
    }

    /// Waits until no writer is connected any more.
    ///
    /// # Panics
    /// If one goes on, or was answered by an error.
    #[track_caller]
    pub(crate) fn has_ended(self) {
        wait_for("all connections to end", || {
            let all = self.writers.iter().all(ScopedJoinHandle::is_finished);
            all.then_some(())
        });
        for writer in self.writers {
            writer
                .join()
                .expect("every request that was answered was answered well");
        }
    }
}

/// A guest's disk, opened by QEMU for as long as the value lives.
pub(crate) struct Guest {
    _qemu: Running,
    asks: ChildStdin,
    says: ChildStdout,
    written: u8,
}

impl Guest {
    /// Opens a volume.
    ///
    /// # Panics
    /// If QEMU cannot.
    #[track_caller]
    pub(crate) fn start(daemon: &Daemon<'_>, volume: &str) -> Self {
        let mut command = client("qemu-io");
        command
            .args(["-f", "raw", &daemon.uri(volume)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut qemu = Running::start(&mut command);
        let asks = qemu.child().stdin.take().expect("a pipe");
        let says = qemu.child().stdout.take().expect("a pipe");
        let mut guest = Self {
            _qemu: qemu,
            asks,
            says,
            written: 0,
        };
        guest.answer();
        guest
    }

    /// Asserts that it can write, flush, and read what it wrote.
    ///
    /// # Panics
    /// If it cannot.
    #[track_caller]
    pub(crate) fn is_served(&mut self, when: &str) {
        let next = self.written % 250 + 1;
        let said = self.ask(&format!("write -f -P {next} {BLOCK}"));
        assert!(said.contains("wrote 4096/4096"), "{when}: {said}");
        self.written = next;
        self.reads(next, when);
    }

    /// Asserts that its block holds this.
    ///
    /// # Panics
    /// If it does not, or cannot be read.
    #[track_caller]
    pub(crate) fn reads(&mut self, byte: u8, when: &str) {
        let said = self.ask(&format!("read -P {byte} {BLOCK}"));
        let right = said.contains("read 4096/4096") && !said.contains("verification failed");
        assert!(right, "{when}: {said}");
    }

    /// Asserts that whatever it asks for is an I/O error, as of a disk that was pulled.
    ///
    /// # Panics
    /// If it is not.
    #[track_caller]
    pub(crate) fn has_lost_its_disk(&mut self) {
        for (command, what) in [("write -P 255", "write"), ("read", "read")] {
            let said = self.ask(&format!("{command} {BLOCK}"));
            let expected = format!("{what} failed: Input/output error");
            assert!(said.contains(&expected), "{said}");
        }
    }

    /// The byte that its block is full of, as far as it was told.
    pub(crate) fn written(&self) -> u8 {
        self.written
    }

    fn ask(&mut self, command: &str) -> String {
        writeln!(self.asks, "{command}").expect("QEMU listens");
        self.answer()
    }

    /// All that it says until it waits for a command.
    fn answer(&mut self) -> String {
        let mut said = Vec::new();
        while !said.ends_with(PROMPT) {
            let mut byte = [0];
            self.says
                .read_exact(&mut byte)
                .expect("QEMU says something, or that it waits");
            said.push(byte[0]);
        }
        String::from_utf8_lossy(&said).into_owned()
    }
}
