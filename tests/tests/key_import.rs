//! Key material that the operator brings: encrypted by somebody else's tools, imported, deleted, imported again; what is attached
//! meanwhile, and what is on record.

use sealvol_tests::daemon::Daemon;
use sealvol_tests::key_material::{encrypt, in_seconds};
use sealvol_tests::outcome::Outcome;
use sealvol_tests::place::Place;
use serde_json::{Value, json};

const CONFLICT: i32 = 5;
const REFUSED: i32 = 3;
const USAGE: i32 = 2;

const KEY: &str = "local:own";

/// Has a public key and a token made, in files that begin with `name`, and encrypts material.
fn prepare(daemon: &Daemon<'_>, place: &Place, name: &str, byte: u8) -> [String; 2] {
    let [public_key, token, material] =
        ["pem", "token", "enc"].map(|ending| place.file(&format!("{name}.{ending}")));
    let [public, token] = [&public_key, &token].map(|path| path.display().to_string());
    let words = ["key", "import-parameters", KEY, "--bits", "2048"];
    let files = ["--public-key", &public, "--token", &token];
    let made = daemon.sealvol(&[&words[..], &files].concat());
    assert!(
        made.succeeded()
            .stdout
            .contains("by RSAES_OAEP_SHA_256 for key local:own")
    );
    // A file that is there is not written over.
    let again = daemon.sealvol(&[&words[..], &files].concat());
    again.failed_with(1, &["File exists"]);
    let again = ["key", "import-parameters", KEY, "--bits", "2048"];
    std::fs::remove_file(&public_key).expect("removed");
    std::fs::remove_file(&token).expect("removed");
    daemon.sealvol(&[&again[..], &files].concat()).succeeded();
    encrypt(&public_key, byte, &material);
    [material.display().to_string(), token]
}

fn import(daemon: &Daemon<'_>, [material, token]: &[String; 2], until: &[&str]) -> Outcome {
    let words = [
        "key",
        "import",
        KEY,
        "--material",
        material,
        "--token",
        token,
    ];
    daemon.sealvol(&[&words[..], until].concat())
}

#[test]
fn an_operator_brings_a_key_takes_it_away_and_brings_it_again() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let create = ["key", "create", KEY, "--origin", "external"];
    let said = daemon.sealvol(&create).succeeded().stdout;
    assert!(said.contains("pending import"), "{said}");
    let volume = ["volume", "create", "v", "--size", "4M", "--key", KEY];
    let pending = [
        "is pending import",
        "KMSInvalidStateException",
        "import-parameters",
    ];
    daemon.sealvol(&volume).failed_with(REFUSED, &pending);

    let files = prepare(&daemon, &place, "first", 7);
    import(&daemon, &files, &[]).failed_with(USAGE, &["--expires", "--no-expiry"]);
    import(&daemon, &files, &["--expires", "tomorrow"])
        .failed_with(USAGE, &["2026-02-03T04:05:06Z"]);
    import(&daemon, &files, &["--no-expiry"]).succeeded();
    let key = daemon.sealvol_json(&["key", "show", KEY]);
    assert_eq!(
        (&key["state"], &key["origin"]),
        (&json!("enabled"), &json!("external"))
    );
    daemon.sealvol(&volume).succeeded();
    daemon.attach("v");
    daemon.write("v", 0, &[9; 4096]);
    daemon
        .sealvol(&["key", "rotate", KEY])
        .failed_with(USAGE, &["external", "UnsupportedOperationException"]);

    // What is attached goes on; the next attach is refused.
    let said = daemon
        .sealvol(&["key", "delete-material", KEY])
        .succeeded()
        .stdout;
    assert!(
        said.contains("pending-import now") && said.contains("be attached then: v"),
        "{said}"
    );
    daemon.write("v", 4096, &[8; 4096]);
    daemon.detach("v");
    daemon
        .sealvol(&["volume", "attach", "v"])
        .failed_with(REFUSED, &pending);
    let other = prepare(&daemon, &place, "other", 6);
    import(&daemon, &other, &["--no-expiry"])
        .failed_with(USAGE, &["first", "IncorrectKeyMaterialException"]);
    import(&daemon, &files, &["--no-expiry"])
        .failed_with(USAGE, &["newer one", "InvalidImportTokenException"]);
    let same = prepare(&daemon, &place, "same", 7);
    import(&daemon, &same, &["--no-expiry"]).succeeded();
    daemon.attach("v");
    assert_eq!(daemon.content("v")[..8192], [[9; 4096], [8; 4096]].concat());

    let records = place.audit();
    let of_imports = records.iter().filter(|record| {
        let operation = record["operation"].as_str().unwrap_or_default();
        operation.contains("import") || operation.contains("material")
    });
    let told: Vec<(&str, bool)> = of_imports
        .map(|record| {
            assert_eq!(record["key"], KEY);
            assert!(record["caller"]["uid"].is_u64());
            let operation = record["operation"].as_str().expect("an operation");
            (operation, record["result"] == "ok")
        })
        .collect();
    let made = ("import-parameters", true);
    let expected = [
        &[made; 3][..],
        &[("import-key-material", true), ("delete-key-material", true)],
        &[made; 3],
        &[("import-key-material", false); 2],
        &[made; 3],
        &[("import-key-material", true)],
    ];
    assert_eq!(told, expected.concat());
    daemon.stop();
    // Nothing that the daemon wrote has the material, in any file.
    for folder in [
        place.state(),
        place.state().join("keys"),
        place.root().join("log"),
    ] {
        for file in std::fs::read_dir(&folder).expect("a folder").flatten() {
            let Ok(content) = std::fs::read(file.path()) else {
                continue; // a folder
            };
            let found = content.windows(32).any(|part| part == [7; 32]);
            assert!(!found, "{}", file.path().display());
        }
    }
}

#[test]
fn material_with_an_expiry_says_when() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    daemon
        .sealvol(&["key", "create", KEY, "--origin", "external"])
        .succeeded();
    let files = prepare(&daemon, &place, "first", 7);
    import(&daemon, &files, &["--expires", "2001-02-03T04:05:06Z"])
        .failed_with(USAGE, &["365 days", "ValidationException"]);
    let until = in_seconds(3600);
    import(&daemon, &files, &["--expires", &until]).succeeded();
    let shown = daemon.sealvol(&["key", "show", KEY]).succeeded().stdout;
    assert!(
        shown.contains(&format!("external, its material expires {until}")),
        "{shown}"
    );
    let key: Value = daemon.sealvol_json(&["key", "show", KEY]);
    assert_eq!(key["material_expires"], json!(until));
}

#[test]
fn whoever_has_imported_material_stands_in_the_way_of_a_proof_of_a_shred() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let create = ["key", "create", KEY, "--origin", "external"];
    daemon.sealvol(&create).succeeded();
    let files = prepare(&daemon, &place, "first", 7);
    import(&daemon, &files, &["--no-expiry"]).succeeded();
    let create = ["volume", "create", "v", "--size", "4M", "--key", KEY];
    daemon.sealvol(&create).succeeded();
    let shred = ["volume", "delete", "v", "--shred"];
    let words = [
        "imported",
        "without this key service",
        "each copy of that material",
    ];
    daemon
        .sealvol(&[&shred[..], &["--require-proof"]].concat())
        .failed_with(CONFLICT, &words);
    daemon.attach("v");
    daemon.detach("v");
    let deleted = daemon.sealvol_json(&shred);
    let proof = &deleted["proof"];
    assert_eq!(proof["tombstones"][0]["provider"], "local");
    assert_eq!(proof["complete"], false);
    daemon.stop();
}
