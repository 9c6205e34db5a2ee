//! Who may use a volume: the user id of the peer decides, for the control socket and for each export.

use std::os::unix::fs::PermissionsExt as _;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::place::{Place, needs_root};
use sealvol_tests::programs::{self, client, run};

/// Debian's `nobody`, and a second user that is nobody else.
const NOBODY: &str = "65534";
const SOMEBODY: &str = "64999";

/// Runs a program as another user with no groups and no capabilities.
fn as_user(uid: &str, program: &str, arguments: &[&str]) -> Outcome {
    Outcome::of(
        client("setpriv")
            .args([
                &format!("--reuid={uid}"),
                &format!("--regid={uid}"),
                "--clear-groups",
                "--inh-caps=-all",
                program,
            ])
            .args(arguments),
    )
}

/// Lets every user reach the sockets, so that what refuses is the daemon and not a directory's mode.
fn open_to_all(place: &Place) {
    let open = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
            .expect("a changed mode");
    };
    open(place.root(), 0o755);
    open(&place.runtime(), 0o755);
    for socket in ["control.sock", "nbd.sock"] {
        open(&place.runtime().join(socket), 0o777);
    }
}

#[test]
fn an_export_serves_only_the_users_it_was_attached_for() {
    needs_root("become other users");
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let uri = daemon.volume("root-only", "8M");
    daemon
        .sealvol(&["volume", "create", "shared", "--size", "8M"])
        .succeeded();
    daemon
        .sealvol(&["volume", "attach", "shared", "--allow", NOBODY])
        .succeeded();
    open_to_all(&place);

    run("nbdinfo", &["--size", &uri]).succeeded();
    let size = |uid, name: &str| as_user(uid, "nbdinfo", &["--size", &daemon.uri(name)]);
    size(NOBODY, "shared").succeeded();
    for (uid, name) in [
        (NOBODY, "root-only"),
        (SOMEBODY, "root-only"),
        (SOMEBODY, "shared"),
    ] {
        let outcome = size(uid, name);
        assert_ne!(outcome.code, Some(0), "user {uid} reads {name}: {outcome}");
    }

    // The list shows a peer what it may open and not that there is more.
    let list = format!("nbd+unix:///?socket={}", daemon.socket().display());
    let listed = as_user(NOBODY, "nbdinfo", &["--list", "--json", &list])
        .succeeded()
        .stdout;
    assert!(
        listed.contains("shared") && !listed.contains("root-only"),
        "{listed}"
    );
    daemon.stop();
}

#[test]
fn the_control_socket_refuses_users_without_a_right() {
    needs_root("become other users");
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon.volume("kept", "8M");
    open_to_all(&place);
    // The other user can run a copy, wherever the build directory is.
    let copy = place.file("sealvol");
    std::fs::copy(programs::ours("sealvol"), &copy).expect("a copy of sealvol");
    let control = place.runtime().join("control.sock");
    let [copy, control] = [&copy, &control].map(|path| path.to_str().expect("a UTF-8 path"));
    for words in [
        &["volume", "create", "mine", "--size", "8M"][..],
        &["volume", "attach", "kept"],
        &["volume", "detach", "kept"],
        &["volume", "delete", "kept"],
    ] {
        let mut arguments = vec!["--control", control];
        arguments.extend(words);
        as_user(SOMEBODY, copy, &arguments).failed_with(3, &[SOMEBODY]);
    }
    run("nbdinfo", &["--size", &daemon.uri("kept")]).succeeded();
    daemon.stop();
}
