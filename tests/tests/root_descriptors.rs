//! What a process that the daemon starts would inherit: nothing. Root, because a process that cannot be dumped shows its
//! descriptors to nobody else.

use std::path::{Path, PathBuf};

use sealvol_tests::daemon::Daemon;
use sealvol_tests::place::{Place, needs_root};

/// The bit of `O_CLOEXEC` in the flags of fdinfo.
const CLOEXEC: u32 = 0o2_000_000;

#[test]
fn no_descriptor_of_the_daemon_outlives_an_exec_not_even_that_of_a_passphrase() {
    needs_root("look at the descriptors of a process that cannot be dumped");
    let place = Place::new();
    let passphrase = place.file("passphrase");
    std::fs::write(&passphrase, "correct horse battery staple").expect("a file");
    let daemon = Daemon::start_with_passphrase(&place, &passphrase);
    daemon.volume("v", "8M");
    let process = PathBuf::from(format!("/proc/{}", daemon.pid().as_raw_nonzero()));
    let mut passphrases = 0;
    for entry in std::fs::read_dir(process.join("fdinfo")).expect("fdinfo") {
        let number = entry.expect("an entry").file_name();
        let link = std::fs::read_link(process.join("fd").join(&number));
        let info = std::fs::read_to_string(process.join("fdinfo").join(&number));
        let (Ok(link), Ok(info)) = (link, info) else {
            continue; // closed meanwhile
        };
        let flags = info
            .lines()
            .find_map(|line| line.strip_prefix("flags:"))
            .expect("the flags of a descriptor");
        let flags = u32::from_str_radix(flags.trim(), 8).expect("an octal number");
        let standard = ["0", "1", "2"].iter().any(|stream| number == *stream);
        // What this test was started with has gone through the daemon's hands unseen.
        let given = std::fs::read_link(Path::new("/proc/self/fd").join(&number));
        let ours = given.is_ok_and(|given| given == link);
        assert!(
            standard || ours || flags & CLOEXEC != 0,
            "a child would inherit descriptor {}: {}",
            number.display(),
            link.display()
        );
        passphrases += usize::from(link == passphrase);
    }
    assert_eq!(passphrases, 1, "descriptors of the passphrase");
    daemon.stop();
}
