//! `sealvol-keys` by hand: splitting a master key into shares and putting them together again, by the real program.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::place::{program, set_mode};

/// A directory with the master key `key`.
pub(crate) struct Desk {
    pub(crate) directory: TempDir,
    pub(crate) key: Vec<u8>,
}

impl Desk {
    pub(crate) fn new() -> Self {
        let desk = Self {
            directory: TempDir::new().expect("a temporary directory"),
            key: (0..32).map(|at| (7 * at) ^ 0xa5).collect(),
        };
        fs::write(desk.path("key"), &desk.key).expect("written");
        set_mode(&desk.path("key"), 0o600);
        desk
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let run = Command::new(program())
            .current_dir(self.directory.path())
            .args(arguments)
            .output()
            .expect("it starts");
        let said = [&run.stdout[..], &run.stderr].concat();
        assert!(!contains(&said, &self.key), "{run:?}");
        run
    }

    #[track_caller]
    fn done(&self, arguments: &str) -> String {
        let run = self.run(&arguments.split_whitespace().collect::<Vec<_>>());
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{arguments}: {said}");
        String::from_utf8(run.stdout).expect("text")
    }

    #[track_caller]
    fn refused(&self, code: i32, words: &[&str], arguments: &str) {
        let run = self.run(&arguments.split_whitespace().collect::<Vec<_>>());
        let said = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(code), "{arguments}: {said}");
        for word in words {
            assert!(said.contains(word), "{arguments}: not {word:?} in: {said}");
        }
    }

    fn combined(&self, shares: &[&str]) -> Vec<u8> {
        let shares: Vec<_> = shares
            .iter()
            .map(|share| format!("--share {share}"))
            .collect();
        self.done(&format!("combine {} --to combined", shares.join(" ")));
        let found = fs::read(self.path("combined")).expect("read");
        fs::remove_file(self.path("combined")).expect("removed");
        found
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

/// The documented way, by another implementation.
fn combined_elsewhere(shares: &[PathBuf]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/combine_shares.py");
    let mut python = Command::new("python3");
    python.arg("-B").arg(script).args(shares);
    python.output().expect("python3 is installed")
}

#[test]
fn any_three_of_five_shares_give_the_key_back_and_another_program_gets_the_same() {
    let desk = Desk::new();
    let told =
        desk.done("split --master-key key --threshold 3 --to s1 --to s2 --to s3 --to s4 --to s5");
    assert!(told.contains("any 3 of these 5"), "{told}");
    assert!(
        told.contains("the same key still: destroy it"),
        "what was split opens everything still: {told}"
    );
    for name in ["s1", "s5"] {
        let found = desk.path(name).metadata().expect("there");
        assert_eq!((found.mode() & 0o7777, found.len()), (0o600, 120), "{name}");
    }
    for three in [["s1", "s2", "s3"], ["s5", "s3", "s1"], ["s4", "s2", "s5"]] {
        assert_eq!(desk.combined(&three), desk.key);
        let paths = three.map(|name| desk.path(name));
        let elsewhere = combined_elsewhere(&paths);
        assert_eq!(elsewhere.stdout, desk.key, "{elsewhere:?}");
        assert!(!combined_elsewhere(&paths[..2]).status.success());
    }
    // One that is not there is passed over.
    assert_eq!(desk.combined(&["gone", "s1", "s2", "s3"]), desk.key);
    desk.refused(
        3,
        &["2 shares", "3 are needed", "gone", "plug in"],
        "combine --share s1 --share gone --share s2 --to combined",
    );
    assert!(!desk.path("combined").exists());
}

#[test]
fn shares_of_shares_are_another_set_of_the_same_key_and_the_former_still_give_it() {
    let desk = Desk::new();
    desk.done("split --master-key key --threshold 2 --to a1 --to a2 --to a3");
    let told = desk.done(
        "split --from-share a3 --from-share a1 --threshold 3 --to b1 --to b2 --to b3 --to b4",
    );
    assert!(
        told.contains("The key is the same") && told.contains("destroy them"),
        "{told}"
    );
    assert_eq!(desk.combined(&["b4", "b1", "b2"]), desk.key);
    assert_eq!(desk.combined(&["a2", "a3"]), desk.key);
    desk.refused(
        3,
        &["b1", "another set than", "a1"],
        "combine --share a1 --share b1 --to combined",
    );
    desk.refused(
        3,
        &["2 are needed", "no others are named"],
        "split --from-share a1 --threshold 2 --to c1 --to c2",
    );
    assert!(!desk.path("c1").exists());
}

#[test]
fn a_key_that_is_made_for_its_shares_is_in_no_file() {
    let desk = Desk::new();
    let told = desk.done("split --generate --threshold 2 --to s1 --to s2");
    assert!(told.contains("No file has the key"), "{told}");
    let key = desk.combined(&["s1", "s2"]);
    assert_eq!(key.len(), 32);
    assert_ne!(key, [0; 32]);
    for entry in fs::read_dir(desk.directory.path()).expect("listed") {
        let path = entry.expect("an entry").path();
        let content = fs::read(&path).expect("read");
        assert!(!contains(&content, &key), "{}", path.display());
    }
    desk.done("split --generate --threshold 2 --to t1 --to t2");
    assert_ne!(desk.combined(&["t1", "t2"]), key);
}

#[test]
fn each_share_that_is_no_good_is_refused_by_name_with_the_cause() {
    let desk = Desk::new();
    desk.done("split --master-key key --threshold 2 --to s1 --to s2 --to s3");
    let whole = fs::read(desk.path("s2")).expect("read");
    let put = |bytes: &[u8]| fs::write(desk.path("s2"), bytes).expect("written");
    let combine = "combine --share s1 --share s2 --to combined";
    for at in [5, 6, 7, 8, 24, 56, 88, 119] {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        put(&damaged);
        desk.refused(3, &["s2", "checksum", "another copy"], combine);
    }
    put(&whole[..119]);
    desk.refused(3, &["s2", "120 bytes"], combine);
    put(&[&whole[..], &[0]].concat());
    desk.refused(3, &["s2", "120 bytes"], combine);
    put(&desk.key);
    desk.refused(3, &["s2", "no share"], combine);
    put(&[&whole[..4], &[2], &whole[5..]].concat());
    desk.refused(3, &["s2", "format 2", "release"], combine);
    put(&fs::read(desk.path("s1")).expect("read"));
    desk.refused(3, &["s2", "same number as", "s1", "copy"], combine);
    put(&whole);
    for mode in [0o640, 0o604, 0o660] {
        set_mode(&desk.path("s2"), mode);
        desk.refused(3, &["s2", "others have access", "chmod go="], combine);
    }
    set_mode(&desk.path("s2"), 0o400);
    assert_eq!(desk.combined(&["s1", "s2"]), desk.key);
    assert!(
        !desk.path("combined").exists(),
        "nothing was made meanwhile"
    );
}

#[test]
fn a_forged_share_gives_no_key_although_its_checksum_fits() {
    let desk = Desk::new();
    desk.done("split --master-key key --threshold 2 --to s1 --to s2");
    let script = "import hashlib,sys; s=bytearray(open(sys.argv[1],'rb').read()); s[60]^=1; s[88:]=hashlib.sha256(s[:88]).digest(); open(sys.argv[1],'wb').write(s)";
    let forged = Command::new("python3")
        .args(["-c", script])
        .arg(desk.path("s2"))
        .status();
    assert!(forged.expect("python3 is installed").success());
    let words = ["s1", "s2", "changed by somebody", "WrongMasterKey"];
    desk.refused(3, &words, "combine --share s1 --share s2 --to combined");
    let words = ["WrongMasterKey"];
    desk.refused(
        3,
        &words,
        "split --from-share s1 --from-share s2 --threshold 2 --to t1 --to t2",
    );
    assert!(!desk.path("combined").exists() && !desk.path("t1").exists());
}

#[test]
fn no_file_is_written_over_and_none_is_left_of_what_could_not_be_made_whole() {
    let desk = Desk::new();
    fs::write(desk.path("s3"), "somebody's").expect("written");
    desk.refused(
        1,
        &["s3", "exists"],
        "split --master-key key --threshold 2 --to s1 --to s2 --to s3",
    );
    assert!(!desk.path("s1").exists() && !desk.path("s2").exists());
    assert_eq!(fs::read(desk.path("s3")).expect("read"), b"somebody's");
    desk.refused(
        1,
        &["s1", "exists"],
        "split --master-key key --threshold 2 --to s1 --to s1",
    );
    assert!(!desk.path("s1").exists());
    desk.done("split --master-key key --threshold 2 --to s1 --to s2");
    desk.refused(
        1,
        &["key", "exists"],
        "combine --share s1 --share s2 --to key",
    );
    assert_eq!(fs::read(desk.path("key")).expect("read"), desk.key);
    // Where others could put something else in its place, no share is kept.
    fs::create_dir(desk.path("open")).expect("made");
    fs::set_permissions(desk.path("open"), fs::Permissions::from_mode(0o777)).expect("set");
    desk.refused(
        3,
        &["others can write"],
        "split --master-key key --threshold 2 --to t1 --to open/t2",
    );
    assert!(!desk.path("t1").exists());
}

#[test]
fn what_cannot_be_meant_is_a_usage_error() {
    let desk = Desk::new();
    for (words, arguments) in [
        (
            &["--master-key", "required"][..],
            "split --threshold 2 --to s1 --to s2",
        ),
        (
            &["cannot be used with"],
            "split --generate --master-key key --threshold 2 --to s1 --to s2",
        ),
        (
            &["1 is not in 2..=10"],
            "split --master-key key --threshold 1 --to s1 --to s2",
        ),
        (
            &["3 of 2 shares", "at least 2"],
            "split --master-key key --threshold 3 --to s1 --to s2",
        ),
        (
            &["at most 10"],
            "split --master-key key --threshold 3 --to 1 --to 2 --to 3 --to 4 --to 5 --to 6 --to 7 --to 8 --to 9 --to 10 --to 11",
        ),
        (&["--to"], "combine --share s1"),
        (&["unrecognized subcommand"], "divide --master-key key"),
    ] {
        desk.refused(2, words, arguments);
        assert!(!desk.path("s1").exists() && !desk.path("1").exists());
    }
    fs::write(desk.path("short"), [1; 31]).expect("written");
    set_mode(&desk.path("short"), 0o600);
    desk.refused(
        3,
        &["short", "31 bytes", "exactly 32"],
        "split --master-key short --threshold 2 --to s1 --to s2",
    );
    let help = desk.done("--help");
    assert!(help.contains("split") && help.contains("combine"), "{help}");
}
