//! Keys in the memory of the running daemon, looked for as root may look.

use sealvol_tests::daemon::Daemon;
use sealvol_tests::pattern;
use sealvol_tests::place::{Place, needs_root};
use sealvol_tests::programs::{check, run};

#[test]
fn no_key_is_in_memory_that_root_can_read() {
    needs_root("read the memory of the daemon");
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let content = place.file("content");
    std::fs::write(&content, pattern::bytes(1, 8 << 20)).expect("a file");
    let content = content.to_str().expect("a UTF-8 path");
    let uri = daemon.volume("busy", "64M");
    let metas = place.layer_files("meta");
    let pid = daemon.pid().as_raw_nonzero().to_string();
    let state = place.state();
    let arguments = [
        &pid,
        state.to_str().expect("a UTF-8 path"),
        metas[0].to_str().expect("a UTF-8 path"),
    ];

    check("key_memory.py", &arguments); // attached, idle
    for _ in 0..3 {
        run("nbdcopy", &["--flush", content, &uri]).succeeded();
        run("nbdcopy", &["--no-extents", &uri, "null:"]).succeeded();
        check("key_memory.py", &arguments); // at rest after a batch
    }
    daemon.detach("busy");
    check("key_memory.py", &arguments); // wiped
    daemon.stop();
}
