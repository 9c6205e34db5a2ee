//! What an attacker with the files sees: no plaintext anywhere, and ciphertext that looks random.

use sealvol_tests::daemon::Daemon;
use sealvol_tests::evidence::files_with;
use sealvol_tests::pattern;
use sealvol_tests::place::Place;
use sealvol_tests::programs::{check, run};

const MARKER: &str = "sealvol-plaintext-marker-6b1f5c9e";

#[test]
fn plaintext_is_in_no_file_and_ciphertext_does_not_compress() {
    for sector in ["512", "4096"] {
        let place = Place::new();
        let control = place.file("control");
        let line = format!("{MARKER}\n");
        let text = line.repeat((1 << 20) / line.len());
        std::fs::write(&control, &text).expect("a file");

        let daemon = Daemon::start(&place);
        daemon
            .sealvol(&[
                "volume",
                "create",
                "secret",
                "--size",
                "64M",
                "--sector-size",
                sector,
            ])
            .succeeded();
        let uri = daemon.attach("secret");
        run(
            "nbdcopy",
            &["--flush", control.to_str().expect("a UTF-8 path"), &uri],
        )
        .succeeded();
        search(&place, "while it is attached");

        let copy = place.file("copy");
        run("nbdcopy", &[&uri, copy.to_str().expect("a UTF-8 path")]).succeeded();
        assert!(
            std::fs::read(&copy)
                .expect("the copy")
                .starts_with(text.as_bytes()),
            "the volume does not hold the marker, so the search says nothing"
        );
        std::fs::remove_file(&copy).expect("a removed copy");
        daemon.detach("secret");
        search(&place, "once it is detached");
        daemon.stop();
        search(&place, "after the daemon's end");

        let data = place.layer_files("data");
        assert_eq!(data.len(), 1, "the layers of one new volume");
        let written = (text.len() / 4096 * 4096).to_string();
        check(
            "compressibility.py",
            &[data[0].to_str().expect("a UTF-8 path"), &written],
        );
    }
}

/// Looks for the marker in everything the daemon keeps, and shows that the same search finds it where it is.
#[track_caller]
fn search(place: &Place, when: &str) {
    let control = place.file("control");
    assert_eq!(files_with(MARKER, &[&control]).len(), 1, "the control file");
    let found = files_with(MARKER, &[&place.state(), &place.runtime(), &place.log()]);
    assert!(found.is_empty(), "plaintext {when}: {found:?}");
}

#[test]
fn equal_blocks_and_equal_volumes_have_different_ciphertext() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let content = place.file("content");
    std::fs::write(&content, vec![0x5a; 1 << 20]).expect("a file");
    for name in ["twin", "brother"] {
        let uri = daemon.volume(name, "8M");
        run(
            "nbdcopy",
            &["--flush", content.to_str().expect("a UTF-8 path"), &uri],
        )
        .succeeded();
    }
    daemon.stop();
    let data = place.layer_files("data");
    assert_eq!(data.len(), 2, "the layers of two new volumes");
    let both = place.file("both");
    let [first, second] =
        [&data[0], &data[1]].map(|path| std::fs::read(path).expect("a data file"));
    std::fs::write(&both, [first, second].concat()).expect("a file");
    // The script refuses a block that is there twice.
    check(
        "compressibility.py",
        &[both.to_str().expect("a UTF-8 path"), "2097152"],
    );
}

#[test]
fn a_volume_can_be_read_without_sealvol_by_whoever_has_the_master_key() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let content = place.file("content");
    std::fs::write(&content, pattern::bytes(1, 1 << 20)).expect("a file");
    let path = |path: &std::path::Path| path.to_str().expect("a UTF-8 path").to_owned();
    for sector in ["512", "4096"] {
        let name = format!("escaped-{sector}");
        daemon
            .sealvol(&[
                "volume",
                "create",
                &name,
                "--size",
                "8M",
                "--sector-size",
                sector,
            ])
            .succeeded();
        run(
            "nbdcopy",
            &["--flush", &path(&content), &daemon.attach(&name)],
        )
        .succeeded();
    }
    daemon.stop();
    let metas = place.layer_files("meta");
    assert_eq!(metas.len(), 2, "the layers of two new volumes");
    for meta in metas {
        let data = meta.with_file_name("data");
        check(
            "recover.py",
            &[
                &path(&place.state()),
                &path(&meta),
                &path(&data),
                &path(&content),
            ],
        );
    }
}
