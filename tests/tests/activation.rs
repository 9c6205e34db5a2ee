//! The two things that systemd and the daemon agree on: readiness, and sockets that are handed over.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::place::Place;
use sealvol_tests::programs::{self, check};

#[test]
fn it_says_when_it_is_ready_and_when_it_stops() {
    let place = Place::new();
    let path = place.file("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("a time-out");
    let heard = |word: &str| {
        let mut message = [0; 4096];
        loop {
            let len = socket
                .recv(&mut message)
                .expect("a message before the time-out");
            let text = String::from_utf8_lossy(&message[..len]).into_owned();
            if text.lines().any(|line| line == word) {
                return;
            }
        }
    };
    let mut command = Daemon::command(&place);
    command.env("NOTIFY_SOCKET", &path);
    let daemon = Daemon::start_by(&place, command).unwrap_or_else(|outcome| panic!("{outcome}"));
    heard("READY=1");
    daemon.volume("noted", "8M");
    daemon.stop();
    heard("STOPPING=1");
}

#[test]
fn it_serves_on_sockets_that_were_handed_over() {
    let place = Place::new();
    let [control, nbd] = ["control.sock", "nbd.sock"].map(|name| place.runtime().join(name));
    let mut command = programs::script("activate.py");
    command
        .arg(format!("control={}", text(&control)))
        .arg(format!("nbd={}", text(&nbd)))
        .arg(programs::ours("sealvold"))
        .args(Daemon::arguments(&place));
    let daemon = Daemon::start_by(&place, command).unwrap_or_else(|outcome| panic!("{outcome}"));
    let uri = daemon.volume("handed", "64M");
    check("durability_flags.py", &[&uri]);
    daemon.stop();
    assert!(
        control.exists() && nbd.exists(),
        "sockets that belong to the service manager were removed"
    );
}

#[test]
fn it_replaces_a_socket_of_a_dead_daemon_but_no_other_file() {
    let place = Place::new();
    Daemon::start(&place).kill();
    Daemon::start(&place).stop();
    let socket = place.runtime().join("nbd.sock");
    let _ = std::fs::remove_file(&socket);
    std::fs::write(&socket, "somebody's notes").expect("a file");
    let outcome = Outcome::of(&mut Daemon::command(&place));
    assert_ne!(outcome.code, Some(0), "{outcome}");
    outcome.says(&["nbd.sock"]);
    assert_eq!(
        std::fs::read(&socket).expect("the file"),
        b"somebody's notes"
    );
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}
