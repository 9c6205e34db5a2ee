//! fio with verification: every block carries a checksum and its own place, and is read back.

use sealvol_tests::daemon::Daemon;
use sealvol_tests::place::Place;
use sealvol_tests::programs::run;

/// fio's words for mixed random I/O over four connections, each with its own quarter of the volume.
const FOUR_CONNECTIONS: [&str; 14] = [
    "--numjobs=4",
    "--size=16M",
    "--offset_increment=16M",
    "--rw=randwrite",
    "--bsrange=512-256k",
    "--blockalign=512",
    "--iodepth=16",
    "--verify=crc32c",
    "--verify_fatal=1",
    "--do_verify=1",
    "--fsync=64",
    "--group_reporting",
    "--output-format=terse",
    "--verify_state_save=0",
];

#[test]
fn random_writes_over_several_connections_verify() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    for sector in ["512", "4096"] {
        let name = format!("fio-{sector}");
        daemon
            .sealvol(&[
                "volume",
                "create",
                &name,
                "--size",
                "64M",
                "--sector-size",
                sector,
            ])
            .succeeded();
        let uri = format!("--uri={}", daemon.attach(&name));
        let name = format!("--name={name}");
        let mut arguments = vec![name.as_str(), "--ioengine=nbd", uri.as_str()];
        arguments.extend(FOUR_CONNECTIONS);
        run("fio", &arguments).succeeded();

        // Again, from what is on disk now: the checksums are in the blocks.
        arguments.push("--verify_only=1");
        run("fio", &arguments).succeeded();
    }
    daemon.stop();
}
