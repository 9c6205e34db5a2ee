//! The way out, as docs/escape-hatch.md tells it: a volume without holes, its plain key by a tool that knows only the formats,
//! and dm-crypt, in a guest where no sealvol is. And the way back.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::outcome::Outcome;
use sealvol_tests::pattern;
use sealvol_tests::place::Place;
use sealvol_tests::programs::{check, client, run};

const SIZE: u64 = 96 << 20;

fn path(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

fn shell(directory: &Path, script: &str) {
    Outcome::of(client("sh").current_dir(directory).args(["-euc", script])).succeeded();
}

/// A file system with files in it, as an image.
fn file_system(place: &Place) -> PathBuf {
    let tree = place.file("tree");
    std::fs::create_dir_all(tree.join("A/sub")).expect("a directory");
    for number in 0..12_u64 {
        let len = 8 * usize::try_from(40_001 * number).expect("small");
        std::fs::write(
            tree.join(format!("A/file{number}")),
            pattern::bytes(number, len),
        )
        .expect("a file");
        std::fs::write(
            tree.join(format!("A/sub/small{number}")),
            format!("{number}\n"),
        )
        .expect("a file");
    }
    shell(&tree, "find A -type f | sort | xargs sha256sum >A.sha256");
    let image = place.file("image");
    let blocks = (SIZE / 4096).to_string();
    run(
        "mke2fs",
        &[
            "-q",
            "-F",
            "-t",
            "ext4",
            "-b",
            "4096",
            "-d",
            path(&tree),
            path(&image),
            &blocks,
        ],
    )
    .succeeded();
    image
}

/// The image in a volume that was full of something else before: some of it overwritten, some trimmed, some zeroed.
fn fill(daemon: &Daemon<'_>, name: &str, image: &Path) -> String {
    let uri = daemon.attach(name);
    let half = SIZE / 2;
    let fill = format!("write -P 0xaa 0 {half}");
    let trim = format!("discard {} {}", SIZE / 4, SIZE / 8);
    run(
        "qemu-io",
        &["-f", "raw", "-c", &fill, "-c", &trim, "-c", "flush", &uri],
    )
    .succeeded();
    run("nbdcopy", &["--flush", path(image), &uri]).succeeded();
    let map = daemon.sealvol_json(&["volume", "map", name]);
    for state in ["absent", "zero", "data"] {
        let runs = map["runs"].as_array().expect("runs");
        assert!(
            runs.iter().any(|run| run["state"] == state),
            "no block is {state}: {map}"
        );
    }
    uri
}

/// The tool that gives the key, for the one layer there is.
fn plain_key(place: &Place, meta: &Path, more: &[&str]) -> Outcome {
    let master = place.state().join("keys/local.master");
    plain_key_by(place, meta, &["--master-key-file", path(&master)], more)
}

/// The same with a master key from elsewhere.
fn plain_key_by(place: &Place, meta: &Path, master: &[&str], more: &[&str]) -> Outcome {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/plain-key");
    let keys = place.state().join("keys");
    Outcome::of(
        client("/usr/bin/python3")
            .arg(tool)
            .args([
                "--meta",
                path(meta),
                "--database",
                path(&keys.join("local.db")),
            ])
            .args(master)
            .args(more),
    )
}

/// A volume of which `data` alone is the whole: its files, its key, and what it read before it was detached.
struct Leaving {
    place: Place,
    meta: PathBuf,
    data: PathBuf,
    key: PathBuf,
    before: PathBuf,
}

fn leave(sector_size: &str) -> Leaving {
    let place = Place::new();
    let image = file_system(&place);
    let daemon = Daemon::start(&place);
    let size = SIZE.to_string();
    daemon
        .sealvol(&[
            "volume",
            "create",
            "v",
            "--size",
            &size,
            "--sector-size",
            sector_size,
        ])
        .succeeded();
    let uri = fill(&daemon, "v", &image);
    let [meta, data] = ["meta", "data"].map(|name| place.layer_files(name).remove(0));
    let key = place.file("volume.key");
    let before = place.file("before");
    run("nbdcopy", &[&uri, path(&before)]).succeeded();
    daemon
        .sealvol(&["volume", "flatten", "v", "--materialise"])
        .succeeded();
    daemon.detach("v");
    daemon.stop();
    plain_key(&place, &meta, &["--out", path(&key)])
        .succeeded()
        .says(&[
            "cryptsetup open --type plain --cipher aes-xts-plain64 --key-size 512",
            &format!("--sector-size {sector_size}"),
        ]);
    Leaving {
        place,
        meta,
        data,
        key,
        before,
    }
}

/// A way out and back, through a guest's dm-crypt.
fn through_the_guest(sector_size: &str) {
    let leaving = leave(sector_size);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/vmtest.sh");
    let outcome = Outcome::of(client("bash").arg(script).args([
        "--plain",
        path(&leaving.data),
        path(&leaving.key),
        sector_size,
    ]));
    assert_eq!(outcome.code, Some(0), "{outcome}");

    let place = &leaving.place;
    let daemon = Daemon::start(place);
    let after = place.file("after");
    run("nbdcopy", &[&daemon.attach("v"), path(&after)]).succeeded();
    run("e2fsck", &["-fn", path(&after)]).succeeded();
    let found = place.file("found");
    std::fs::create_dir(&found).expect("a directory");
    run(
        "debugfs",
        &["-R", &format!("rdump / {}", path(&found)), path(&after)],
    )
    .succeeded();
    shell(
        &found,
        "test -s B/random8 && sha256sum --quiet -c A.sha256 B.sha256",
    );
    daemon.stop();
}

#[test]
fn dm_crypt_in_a_guest_reads_and_writes_a_volume_of_512_byte_sectors() {
    through_the_guest("512");
}

#[test]
fn dm_crypt_in_a_guest_reads_and_writes_a_volume_of_4096_byte_sectors() {
    through_the_guest("4096");
}

#[test]
fn an_independent_aes_reads_all_of_data_as_the_volume_did() {
    for sector_size in ["512", "4096"] {
        let leaving = leave(sector_size);
        let files = [
            path(&leaving.key),
            sector_size,
            path(&leaving.data),
            path(&leaving.before),
        ];
        let said = check("plain.py", &files);
        assert!(said.stdout.contains("are what the volume reads"), "{said}");
    }
}

#[test]
fn the_plain_key_goes_to_a_private_file_or_a_descriptor_and_never_to_a_terminal() {
    let leaving = leave("4096");
    let mode = std::fs::metadata(&leaving.key)
        .expect("a file")
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o600);
    let key = std::fs::read(&leaving.key).expect("the key");
    assert_eq!(key.len(), 64);
    // A file that is there is not overwritten.
    plain_key(
        &leaving.place,
        &leaving.meta,
        &["--out", path(&leaving.key)],
    )
    .failed_with(1, &["exists"]);
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/plain-key");
    let keys = leaving.place.state().join("keys");
    let line = format!(
        "/usr/bin/python3 {} --meta {} --database {} --master-key-file {} --fd",
        path(&tool),
        path(&leaving.meta),
        path(&keys.join("local.db")),
        path(&keys.join("local.master"))
    );
    let piped = Command::new("sh")
        .args(["-c", &format!("{line} 3 3>&1 >&2")])
        .output()
        .expect("a shell");
    assert_eq!(piped.stdout, key);
    // A terminal of its own, made by script(1).
    let typed = run("script", &["-qec", &format!("{line} 1"), "/dev/null"]);
    assert_ne!(typed.code, Some(0), "{typed}");
    assert!(
        typed.stdout.contains("does not go to a terminal"),
        "{typed}"
    );
}

#[test]
fn a_volume_with_holes_does_not_leave_unnoticed() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let uri = daemon.volume("v", "96M");
    run(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "write -P 1 0 1M",
            "-c",
            "discard 64k 64k",
            "-c",
            "flush",
            &uri,
        ],
    )
    .succeeded();
    daemon.detach("v");
    daemon.stop();
    let meta = place.layer_files("meta").remove(0);
    let key = place.file("key");
    let holes = (96 << 20) - (1 << 20) + (64 << 10);
    plain_key(&place, &meta, &["--out", path(&key)])
        .failed_with(1, &[&format!("{holes} of"), "flatten", "--materialise"]);
    assert!(!key.exists());
    plain_key(&place, &meta, &["--with-holes", "--out", path(&key)]).succeeded();
    assert_eq!(std::fs::read(&key).expect("the key").len(), 64);
}

#[test]
fn a_passphrase_gives_the_plain_key_as_its_file_does_and_another_does_not() {
    let place = Place::new();
    let [passphrase, other] = ["passphrase", "other"].map(|name| place.file(name));
    std::fs::write(&passphrase, "correct horse battery staple\n").expect("a file");
    std::fs::write(&other, "wrong horse battery staple\n").expect("a file");
    let daemon = Daemon::start_with_passphrase(&place, &passphrase);
    let uri = daemon.volume("v", "1M");
    let [content, before, key] = ["content", "before", "key"].map(|name| place.file(name));
    std::fs::write(&content, pattern::bytes(9, 1 << 20)).expect("a file");
    run("nbdcopy", &["--flush", path(&content), &uri]).succeeded();
    run("nbdcopy", &[&uri, path(&before)]).succeeded();
    daemon.detach("v");
    daemon.stop();
    assert!(
        !place.state().join("keys/local.master").exists(),
        "there is a master key in a file"
    );
    let [meta, data] = ["meta", "data"].map(|name| place.layer_files(name).remove(0));
    let out = ["--out", path(&key)];
    plain_key_by(&place, &meta, &["--passphrase-file", path(&other)], &out)
        .failed_with(1, &["wrong master key or passphrase"]);
    assert!(!key.exists());
    plain_key(&place, &meta, &out).failed_with(1, &["of the form `passphrase`"]);
    plain_key_by(
        &place,
        &meta,
        &["--passphrase-file", path(&passphrase)],
        &out,
    )
    .succeeded();
    let said = check(
        "plain.py",
        &[path(&key), "4096", path(&data), path(&before)],
    );
    assert!(said.stdout.contains("are what the volume reads"), "{said}");
}
