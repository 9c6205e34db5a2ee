//! QEMU guests: the Linux kernel's own NBD client, and a virtio disk whose NBD client is QEMU. See `tests/guest`.

use std::path::Path;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::place::Place;
use sealvol_tests::programs::client;

#[test]
fn guests_keep_a_file_system_through_the_kernel_client_and_a_virtio_disk() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon.volume("guest", "256M");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/vmtest.sh");
    let outcome = Outcome::of(client("bash").arg(script).arg(daemon.socket()).arg("guest"));
    assert_eq!(outcome.code, Some(0), "{outcome}");
    daemon.stop();
}
