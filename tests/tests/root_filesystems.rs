//! File systems on a volume: the kernel's block layer and its journals as a client, through `nbdfuse` and a loop device.

use std::path::Path;

use sealvol_tests::block_device::BlockDevice;
use sealvol_tests::daemon::Daemon;
use sealvol_tests::evidence::fingerprints;
use sealvol_tests::pattern;
use sealvol_tests::place::Place;
use sealvol_tests::programs::run;

/// Makes a file system, works in it, and finds it whole after the volume was detached and the daemon started anew.
fn file_system_survives(make: &[&str], check: &[&str], size: &str) {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let uri = daemon.volume("disk", size);
    let device = BlockDevice::new(&place, &uri);
    let on_device = |command: &[&str]| {
        let mut arguments = command[1..].to_vec();
        arguments.push(device.node());
        run(command[0], &arguments).succeeded();
    };
    on_device(make);
    let mounted = device.mount("discard");
    work_in(mounted);
    run("fstrim", &[mounted]).succeeded();
    let before = fingerprints(mounted);
    assert!(before.len() > 200, "{} files", before.len());
    device.unmount();
    on_device(check);
    device.release();
    daemon.detach("disk");
    daemon.stop();

    let daemon = Daemon::start(&place);
    let device = BlockDevice::new(&place, &daemon.attach("disk"));
    let mut arguments = check[1..].to_vec();
    arguments.push(device.node());
    run(check[0], &arguments).succeeded();
    assert_eq!(fingerprints(device.mount("ro")), before);
    device.unmount();
    device.release();
    daemon.stop();
}

/// Files small and large, sparse, overwritten, renamed, truncated and removed.
fn work_in(directory: &Path) {
    let write = |name: &str, content: &[u8]| {
        std::fs::write(directory.join(name), content).expect("a written file")
    };
    for seed in 0..8 {
        write(&format!("large{seed}"), &pattern::bytes(seed, 4 << 20));
    }
    for seed in 0..200 {
        write(
            &format!("small{seed}"),
            &pattern::bytes(seed, 8 * (1 + usize::try_from(seed).expect("small"))),
        );
    }
    let sparse = std::fs::File::create(directory.join("sparse")).expect("a file");
    sparse.set_len(64 << 20).expect("a sparse file");
    std::os::unix::fs::FileExt::write_all_at(
        &sparse,
        &pattern::bytes(300, 4096),
        (64 << 20) - 4096,
    )
    .expect("its end");
    sparse.sync_all().expect("fsync");
    write("large1", &pattern::bytes(301, 3 << 20));
    std::fs::rename(directory.join("large2"), directory.join("large3")).expect("a rename");
    std::fs::remove_file(directory.join("large4")).expect("a removal");
    let shorter = std::fs::File::options()
        .write(true)
        .open(directory.join("large5"))
        .expect("a file");
    shorter.set_len(12345).expect("a truncation");
    shorter.sync_all().expect("fsync");
}

#[test]
fn ext4_survives_detach_and_restart() {
    file_system_survives(&["mkfs.ext4", "-q", "-F"], &["e2fsck", "-f", "-n"], "128M");
}

#[test]
fn xfs_survives_detach_and_restart() {
    // xfs refuses devices of less than 300 MiB.
    file_system_survives(&["mkfs.xfs", "-q", "-f"], &["xfs_repair", "-n"], "512M");
}
