//! QEMU's NBD client, by way of its image tools.

use sealvol_tests::daemon::Daemon;
use sealvol_tests::pattern;
use sealvol_tests::place::Place;
use sealvol_tests::programs::run;

#[test]
fn qemu_io_verifies_its_own_patterns() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let uri = daemon.volume("patterns", "256M");
    let io = |commands: &[&str]| {
        let mut arguments = vec!["-f", "raw", "-t", "none"];
        for command in commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(&uri);
        run("qemu-io", &arguments).succeeded();
    };
    io(&[
        "write -P 0xa1 0 64k",
        "write -P 0xa2 1M 3M",
        "write -P 0xa3 -f 8193k 512",
        "write -P 0xa4 200M 32M",
        "aio_write -P 0xa5 16M 1M",
        "aio_write -P 0xa6 17M 1M",
        "aio_flush",
        "write -z 2M 1M",
        "write -z -u 210M 1M",
        "discard 3M 512k",
        "flush",
    ]);
    io(&[
        "read -P 0xa1 0 64k",
        "read -P 0 64k 960k",
        "read -P 0xa2 1M 1M",
        "read -P 0 2M 1M",
        "read -P 0 3M 512k",
        "read -P 0xa2 3584k 512k",
        "read -P 0 8M 1k",
        "read -P 0xa3 8193k 512",
        "read -P 0xa5 16M 1M",
        "read -P 0xa6 17M 1M",
        "read -P 0xa4 200M 10M",
        "read -P 0 210M 1M",
        "read -P 0xa4 211M 21M",
    ]);
    daemon.stop();
}

#[test]
fn qemu_img_converts_compares_and_maps() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let uri = daemon.volume("converted", "64M");
    let [raw, qcow2, back] = ["raw", "qcow2", "back"].map(|name| {
        place
            .file(name)
            .into_os_string()
            .into_string()
            .expect("a UTF-8 path")
    });
    let mut content = vec![0; 64 << 20];
    content[5 << 20..9 << 20].copy_from_slice(&pattern::bytes(1, 4 << 20));
    std::fs::write(&raw, &content).expect("a file");
    run(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "qcow2", &raw, &qcow2],
    )
    .succeeded();

    run(
        "qemu-img",
        &[
            "convert", "-n", "-W", "-m", "8", "-f", "qcow2", "-O", "raw", &qcow2, &uri,
        ],
    )
    .succeeded();
    run(
        "qemu-img",
        &["compare", "-f", "qcow2", "-F", "raw", &qcow2, &uri],
    )
    .succeeded();
    run(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "qcow2", &uri, &back],
    )
    .succeeded();
    run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "qcow2", &raw, &back],
    )
    .succeeded();

    let map = run("qemu-img", &["map", "-f", "raw", "--output=json", &uri])
        .succeeded()
        .json();
    let data: Vec<_> = map
        .as_array()
        .expect("extents")
        .iter()
        .filter(|extent| extent["data"] == true)
        .map(|extent| (extent["start"].as_u64(), extent["length"].as_u64()))
        .collect();
    assert_eq!(data, [(Some(5 << 20), Some(4 << 20))], "{map}");
    daemon.stop();
}
