//! A disk that stops answering holds up the volumes on it and no other, also where one worker thread serves all of them.
//!
//! The disk is a file system on a loop device on an NBD server of somebody else, which is stopped and continued by signals.
//! What is asserted is an order (the other volume's client is answered while this one's is not); how long it took is printed.

use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use sealvol_tests::block_device::BlockDevice;
use sealvol_tests::daemon::Daemon;
use sealvol_tests::pattern;
use sealvol_tests::peer::{Address, BLOCK, Peer, command, request};
use sealvol_tests::place::Place;
use sealvol_tests::programs::{Running, client, run, wait_for};

/// A disk under a mounted file system, whose requests are answered only while its server runs.
struct Disk {
    device: BlockDevice, // before `server`: unmounted before that ends
    server: Running,
    directory: String,
}

/// As long as this lives the disk answers nothing.
struct Stalled<'a>(&'a Disk);

impl Drop for Stalled<'_> {
    fn drop(&mut self) {
        // It may have ended; there is nobody to stall then.
        let _ = kill_process(self.0.server.pid(), Signal::CONT);
    }
}

impl Disk {
    fn new(place: &Place, make: &[&str], options: &str) -> Self {
        let socket = place.file("disk.sock");
        let server = Running::start(
            client("nbdkit")
                .args(["--foreground", "--unix"])
                .arg(&socket)
                .args(["memory", "512M"])
                .stdin(Stdio::null()),
        );
        wait_for("nbdkit to listen", || socket.exists().then_some(()));
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        let device = BlockDevice::new(place, &uri);
        let mut arguments = make[1..].to_vec();
        arguments.push(device.node());
        run(make[0], &arguments).succeeded();
        let mounted = device.mount(options);
        let directory = mounted.to_str().expect("a UTF-8 path").to_owned();
        Self {
            server,
            device,
            directory,
        }
    }

    fn stall(&self) -> Stalled<'_> {
        kill_process(self.server.pid(), Signal::STOP).expect("SIGSTOP");
        Stalled(self)
    }
}

/// What the client of the stalled volume does meanwhile.
#[derive(Clone, Copy, PartialEq)]
enum Load {
    /// First writes, overwrites and a FLUSH: its sync waits for data.
    Everything,
    /// Overwrites alone. Their new times are in the file system's journal, which is what waits for the disk then.
    Overwrites,
}

/// The client of the stalled volume. Its replies are read by a thread of their own, which tells their cookies.
struct Slow {
    peer: Peer,
    asked: u64,
    answered: Receiver<u64>,
}

impl Slow {
    const READ: u64 = 0;

    fn open(address: &Address) -> Self {
        let mut peer = Peer::open(address, "slow").expect("served");
        for block in 0..64 {
            let content = pattern::bytes(block, BLOCK);
            peer.write(block * BLOCK as u64, &content).expect("written");
        }
        peer.flush().expect("durable");
        let mut replies = peer.try_clone().expect("a second descriptor");
        let (tell, answered) = channel();
        std::thread::spawn(move || {
            while let Ok((cookie, 0)) = replies.reply() {
                if cookie == Self::READ {
                    replies.take(BLOCK).expect("its payload");
                }
                if tell.send(cookie).is_err() {
                    return;
                }
            }
        });
        Self {
            peer,
            asked: 0,
            answered,
        }
    }

    fn ask(&mut self, kind: u16, cookie: u64, block: u64, payload: &[u8]) -> u64 {
        let length = if kind == command::FLUSH { 0 } else { 4096 };
        let mut bytes = request(kind, 0, cookie, block * BLOCK as u64, length).to_vec();
        bytes.extend_from_slice(payload);
        self.peer.send(&bytes).expect("taken");
        self.asked += 1;
        cookie
    }

    fn write(&mut self, block: u64) {
        let content = pattern::bytes(block + 5000, BLOCK);
        self.ask(command::WRITE, self.asked + 1, block, &content);
    }
}

fn others_are_answered_meanwhile(make: &[&str], mount: &str, attach: &[&str], load: Load) {
    let place = Place::new();
    let config = place.file("sealvold.toml");
    std::fs::write(&config, "workers = 1\n").expect("a file");
    let disk = Disk::new(&place, make, mount);
    let mut command = Daemon::command(&place);
    command.arg("--config").arg(&config);
    let daemon = Daemon::start_by(&place, command).unwrap_or_else(|outcome| panic!("{outcome}"));
    let create = [
        "volume",
        "create",
        "slow",
        "--size",
        "256M",
        "--backing",
        &disk.directory,
    ];
    daemon.sealvol(&create).succeeded();
    daemon
        .sealvol(&[&["volume", "attach", "slow"], attach].concat())
        .succeeded();
    daemon.volume("other", "64M");
    let address = Address::from(daemon.socket().as_path());
    let mut slow = Slow::open(&address);
    let mut other = Peer::open(&address, "other").expect("served");

    let stalled = disk.stall();
    if load == Load::Everything {
        slow.ask(command::READ, Slow::READ, 40, &[]);
        slow.write(1000);
    }
    slow.write(1);
    let flush = slow.ask(command::FLUSH, FLUSH, 0, &[]);
    let mut longest = Duration::ZERO;
    for turn in 0..40 {
        match load {
            Load::Everything => slow.write(3000 + turn * 300),
            Load::Overwrites => slow.write(turn),
        }
        let content = pattern::bytes(turn, BLOCK);
        let offset = turn * BLOCK as u64;
        let began = Instant::now();
        other
            .write(offset, &content)
            .expect("answered while the other disk stalls");
        assert_eq!(other.read(offset, 4096).expect("answered as well"), content);
        longest = longest.max(began.elapsed());
        if turn % 8 == 0 {
            other.flush().expect("answered while the other disk stalls");
        }
        // Time for what the stalled file system does of its own accord: it writes back, and its journal once a second.
        std::thread::sleep(Duration::from_millis(60));
    }
    let early: Vec<u64> = slow.answered.try_iter().collect();
    // What was written directly and acknowledged is on the disk: a FLUSH that comes before the write behind it finds nothing to wait for.
    let waits = if attach.is_empty() { flush } else { Slow::READ };
    assert!(
        !early.contains(&waits),
        "the disk did not stall: {waits} was answered"
    );
    println!(
        "{} {attach:?}: a write and a read of the other volume took {longest:?} at most; answered of the stalled one: {} of {}",
        make[0],
        early.len(),
        slow.asked
    );

    drop(stalled);
    for _ in early.len() as u64..slow.asked {
        slow.answered
            .recv_timeout(Duration::from_secs(30))
            .expect("answered once the disk goes on");
    }
    let read = Peer::open(&address, "slow").and_then(|mut peer| peer.read(BLOCK as u64, 4096));
    assert_eq!(read.expect("read"), pattern::bytes(5001, BLOCK));
    slow.peer.disconnect();
    drop(other);
    daemon.stop();
    disk.device.unmount();
}

/// The cookie of the FLUSH.
const FLUSH: u64 = 1 << 32;
const EXT4: [&str; 3] = ["mkfs.ext4", "-q", "-F"];
const XFS: [&str; 3] = ["mkfs.xfs", "-q", "-f"];

#[test]
fn a_stalled_disk_under_ext4_delays_no_other_volume_of_the_worker() {
    others_are_answered_meanwhile(&EXT4, "commit=1", &[], Load::Everything);
}

#[test]
fn a_stalled_journal_of_ext4_delays_no_other_volume_of_the_worker() {
    others_are_answered_meanwhile(&EXT4, "commit=1", &[], Load::Overwrites);
}

#[test]
fn a_stalled_disk_under_ext4_that_is_reached_directly_delays_no_other_volume_of_the_worker() {
    others_are_answered_meanwhile(&EXT4, "commit=1", &["--direct"], Load::Everything);
}

#[test]
fn a_stalled_disk_under_xfs_delays_no_other_volume_of_the_worker() {
    others_are_answered_meanwhile(&XFS, "defaults", &[], Load::Everything);
}

#[test]
fn a_stalled_disk_under_xfs_that_is_reached_directly_delays_no_other_volume_of_the_worker() {
    others_are_answered_meanwhile(&XFS, "defaults", &["--direct"], Load::Everything);
}
