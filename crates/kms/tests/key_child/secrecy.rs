//! What may be found where: secrets in locked memory only, and a way to the keys without this program.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sealvol_control::keychild::{Call, FailureClass, Landlock, MasterKey, Origin, Right};
use sealvol_crypto::VolumeKey;

use crate::place::{Place, child, context, memory, unwrap};

/// `secret` as it is, and as hexadecimal and Base64 text.
pub(crate) fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let base64 = python(&[
        "-c",
        "import sys,base64;sys.stdout.write(base64.b64encode(bytes.fromhex(sys.argv[1])).decode())",
        &hex,
    ]);
    let base64 = String::from_utf8(base64.stdout).unwrap();
    let base64 = base64.trim_end_matches('=');
    // The last group depends on what follows the secret.
    let base64 = &base64[..base64.len() - 1];
    vec![
        secret.to_vec(),
        hex.to_uppercase().into(),
        hex.into(),
        base64.into(),
    ]
}

pub(crate) fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

fn python(arguments: &[&str]) -> Output {
    Command::new("python3")
        .arg("-B")
        .args(arguments)
        .output()
        .expect("python3 is installed")
}

#[tokio::test]
async fn no_secret_is_in_the_database_or_in_a_message() {
    let place = Place::with_default_key().await;
    let blob = place.generate("default", &context("1")).await.blob;
    let calls = vec![
        Call::ListKeys,
        unwrap("default", &blob, &context("1")),
        unwrap("default", &blob, &context("2")),
    ];
    let mut answer = place.answer(Right::Attach, calls).await;
    let mut key = [0; 64];
    answer.keys.read_exact(&mut key).unwrap();

    let replied = serde_json::to_vec(&answer.results).unwrap();
    let printed = format!("{:?}", answer.results).into_bytes();
    let database = fs::read(place.database()).unwrap();
    let master = fs::read(place.master_key_file()).unwrap();
    for secret in [&master[..], &key[..32], &key[32..]] {
        for form in forms(secret) {
            for (name, place) in [
                ("database", &database),
                ("reply", &replied),
                ("debug text", &printed),
            ] {
                assert!(!contains(place, &form), "a secret is in the {name}");
            }
        }
    }
    // The search finds what is there.
    assert!(
        contains(&database, &blob[5..21]),
        "the id of the key is in the database"
    );
}

/// The documented way to a plain key by other tools.
fn open_blob(place: &Place, blob: &[u8], master: &[&str], context: &str) -> Output {
    let file = place.directory.path().join("blob");
    fs::write(&file, blob).unwrap();
    let script = tests().join("open_blob.py");
    let mut arguments = vec![script.to_str().unwrap()];
    let database = place.database();
    arguments.extend([
        "--database",
        database.to_str().unwrap(),
        "--context",
        context,
    ]);
    arguments.extend(master);
    arguments.push(file.to_str().unwrap());
    python(&arguments)
}

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

#[tokio::test]
async fn another_implementation_opens_a_blob_with_the_master_key_file() {
    let place = Place::with_default_key().await;
    let ctx = context("vol-1 ä");
    let json = serde_json::to_string(&ctx).unwrap();
    let blob = place.generate("default", &ctx).await.blob;
    let master = place.master_key_file();
    let master = ["--master-key-file", master.to_str().unwrap()];

    let opened = open_blob(&place, &blob, &master, &json);
    assert!(
        opened.status.success(),
        "{}",
        String::from_utf8_lossy(&opened.stderr)
    );
    let theirs = VolumeKey::read_from(&memory(), &mut opened.stdout.as_slice()).unwrap();
    let ours = place.unwrap(unwrap("default", &blob, &ctx)).await.unwrap();
    assert_eq!(theirs.commitment(), ours.commitment());

    let refused = open_blob(&place, &blob, &master, r#"{"sealvol:volume":"other"}"#);
    assert!(!refused.status.success() && refused.stdout.is_empty());
}

#[tokio::test]
async fn another_implementation_opens_a_blob_with_the_passphrase() {
    let mut place = Place::empty();
    place.master_key = MasterKey::Passphrase;
    let path = place.directory.path().join("passphrase");
    fs::write(&path, "correct horse\n").unwrap();
    let passphrase = fs::File::open(&path).unwrap();
    let create = Call::CreateKey {
        name: "default".to_owned(),
        origin: Origin::Local,
    };
    let generate = crate::place::generate("default", &context("1"));
    for (right, call) in [(Right::Administer, create), (Right::Create, generate)] {
        let batch = place.batch(right, vec![call]);
        let answer = child()
            .call_with_passphrase(&batch, std::os::fd::AsFd::as_fd(&passphrase))
            .await;
        let done = answer.unwrap().results.remove(0).unwrap();
        if let sealvol_control::keychild::Done::Generate(wrapped) = done {
            let json = serde_json::to_string(&context("1")).unwrap();
            let master = ["--passphrase-file", path.to_str().unwrap()];
            let opened = open_blob(&place, &wrapped.blob, &master, &json);
            assert!(
                opened.status.success(),
                "{}",
                String::from_utf8_lossy(&opened.stderr)
            );
            assert_eq!(opened.stdout.len(), 64);
            return;
        }
    }
    panic!("no key was generated");
}

#[tokio::test]
async fn a_soundly_wrapped_key_with_equal_halves_is_refused() {
    let place = Place::with_default_key().await;
    let script = tests().join("wrap_key.py");
    let wrap = |key: &str| {
        let made = python(&[
            script.to_str().unwrap(),
            "--database",
            place.database().to_str().unwrap(),
            "--master-key-file",
            place.master_key_file().to_str().unwrap(),
            "--context",
            &serde_json::to_string(&context("1")).unwrap(),
            "default",
            key,
        ]);
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        made.stdout
    };
    let half = "5a".repeat(32);
    let blob = wrap(&format!("{half}{half}"));
    let call = unwrap("default", &blob, &context("1"));
    let mut answer = place.answer(Right::Attach, vec![call]).await;
    let failure = answer.results.remove(0).unwrap_err();
    assert_eq!(failure.class, FailureClass::WrongKeyOrTamper);
    assert!(failure.message.contains("halves"), "{failure}");
    assert_eq!(answer.keys.read(&mut [0]).unwrap(), 0);

    // Wrapped the same way, a key with different halves is taken: nothing else was wrong.
    let blob = wrap(&format!("{half}{}", "5b".repeat(32)));
    place
        .unwrap(unwrap("default", &blob, &context("1")))
        .await
        .unwrap();
}

#[tokio::test]
async fn the_reply_tells_how_the_child_was_confined() {
    let place = Place::with_default_key().await;
    let confinement = place
        .answer(Right::Attach, vec![Call::ListKeys])
        .await
        .confinement;
    let protection = memory().protection().to_string();
    assert_eq!(confinement.protection, Some(protection));
    // landlock_create_ruleset(2) with LANDLOCK_CREATE_RULESET_VERSION tells what the kernel can.
    let asked = python(&[
        "-c",
        "import ctypes; print(ctypes.CDLL(None).syscall(444, None, 0, 1))",
    ]);
    let abi: i32 = String::from_utf8(asked.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let expected = match abi {
        ..=0 => Landlock::None,
        1..=5 => Landlock::Partial,
        _ => Landlock::Full,
    };
    assert_eq!(
        confinement.landlock, expected,
        "the kernel has version {abi}"
    );
}
