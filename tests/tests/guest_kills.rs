//! The daemon is killed again and again under the file system of a guest, which goes on with the next one and notices nothing: every file that it
//! had synced is there, and the file system is whole. See `tests/guest/writer.sh`.
//!
//! `SEALVOL_ROUNDS` kills so many times (10 if it is not set), `SEALVOL_SEED` repeats the choices of a run.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use sealvol_tests::daemon::{Daemon, mortal};
use sealvol_tests::load::Choices;
use sealvol_tests::place::Place;
use sealvol_tests::programs::Running;
use sealvol_tests::serial::Serial;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect(variable))
}

/// Waits until the guest has kept one file more.
fn kept(serial: &mut Serial) -> u64 {
    let line = serial.line().unwrap_or_else(|error| panic!("{error}"));
    let file = line.strip_prefix("kept ").unwrap_or_else(|| {
        // What else it has to say says why.
        let more: Vec<String> = std::iter::from_fn(|| serial.line().ok()).take(40).collect();
        panic!("{line}\n{}", more.join("\n"))
    });
    file.parse().expect("a number")
}

#[test]
fn a_guest_writes_on_while_the_daemon_is_killed_again_and_again_and_loses_nothing() {
    let seed = number("SEALVOL_SEED", u64::from(std::process::id()));
    let rounds = number("SEALVOL_ROUNDS", 10);
    println!("SEALVOL_SEED={seed}");
    let mut choices = Choices(seed);
    let place = Place::new();
    let mut daemon = Daemon::start(&place);
    daemon.volume("guest", "128M");
    let directory = place.file("guest");
    std::fs::create_dir(&directory).expect("a directory");
    let socket = directory.join("serial");
    let mut command = Command::new("bash");
    command
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/kills.sh"))
        .arg(&directory)
        .arg(daemon.socket())
        .arg("guest")
        .arg(&socket);
    let mut qemu = Running::start(mortal(&command).stdin(Stdio::null()));
    let mut serial = Serial::open(&mut qemu, &socket);
    let mut files = kept(&mut serial);
    for _ in 0..rounds {
        for _ in 0..choices.below(4) {
            files = kept(&mut serial);
        }
        std::thread::sleep(Duration::from_millis(choices.below(400)));
        daemon.kill();
        std::thread::sleep(Duration::from_millis(choices.below(400)));
        // It attaches again what was attached.
        daemon = Daemon::start(&place);
        files = files.max(kept(&mut serial));
    }
    serial.say("enough").expect("it listens");
    let mut said = String::new();
    let end = loop {
        match serial.line() {
            Ok(line) if line.starts_with("end ") => break line,
            Ok(line) if line.starts_with("kept ") => {}
            Ok(line) => said.push_str(&(line + "\n")),
            Err(error) => panic!("{said}{error}"),
        }
    };
    assert_eq!(end, "end failures=0", "{said}");
    println!("{rounds} kills, {files} files");
    daemon.detach("guest");
    daemon.stop();
}
