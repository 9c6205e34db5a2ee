//! libnbd's own programs: what `nbdinfo` reports, and copies by `nbdcopy`, which uses several connections and skips holes.

use std::os::unix::fs::FileExt as _;

use sealvol_tests::daemon::Daemon;
use sealvol_tests::pattern;
use sealvol_tests::place::Place;
use sealvol_tests::programs::run;
use serde_json::Value;

#[test]
fn nbdinfo_reports_an_export_with_everything_it_can() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let uri = daemon.volume("vault", "64M");
    assert_eq!(uri, daemon.uri("vault"));

    let text = run("nbdinfo", &[&uri]).succeeded().stdout;
    assert!(
        text.starts_with("protocol: newstyle-fixed without TLS, using structured packets"),
        "{text}"
    );
    let all = run("nbdinfo", &["--json", &uri]).succeeded().json();
    let export = &all["exports"][0];
    assert_eq!(export["export-size"], 64 << 20, "{all}");
    for (name, expected) in [
        ("is_read_only", false),
        ("is_rotational", false),
        ("can_cache", true),
        ("can_df", true),
        ("can_fast_zero", true),
        ("can_flush", true),
        ("can_fua", true),
        ("can_multi_conn", true),
        ("can_trim", true),
        ("can_zero", true),
    ] {
        assert_eq!(export[name], expected, "{name} in {all}");
    }
    for (name, expected) in [
        ("block_size_minimum", 1),
        ("block_size_preferred", 4096),
        ("block_size_maximum", 32 << 20),
    ] {
        assert_eq!(export[name], expected, "{name} in {all}");
    }
    assert_eq!(
        export["contexts"],
        serde_json::json!(["base:allocation"]),
        "{all}"
    );
    daemon.stop();
}

#[test]
fn nbdinfo_lists_what_is_attached_and_nothing_else() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    for name in ["one", "two", "three"] {
        daemon.volume(name, "8M");
    }
    daemon.detach("two");
    let uri = format!("nbd+unix:///?socket={}", daemon.socket().display());
    let all = run("nbdinfo", &["--json", "--list", &uri])
        .succeeded()
        .json();
    let mut names: Vec<_> = all["exports"]
        .as_array()
        .expect("exports")
        .iter()
        .map(|export| export["export-name"].as_str().expect("a name"))
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["one", "three"], "{all}");
    daemon.stop();
}

#[test]
fn nbdinfo_maps_what_is_written_and_what_is_not() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let uri = daemon.volume("map", "64M");
    let map = || {
        let map = run("nbdinfo", &["--json", "--map", &uri])
            .succeeded()
            .json();
        let field = |extent: &Value, name: &str| extent[name].as_u64().expect("a number");
        map.as_array()
            .expect("extents")
            .iter()
            .map(|extent| {
                (
                    field(extent, "offset"),
                    field(extent, "length"),
                    field(extent, "type"),
                )
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(map(), [(0, 64 << 20, 3)]);
    let content = place.file("content");
    std::fs::write(&content, pattern::bytes(1, 1 << 20)).expect("a file");
    run("nbdcopy", &[content.to_str().expect("a UTF-8 path"), &uri]).succeeded();
    assert_eq!(map(), [(0, 1 << 20, 0), (1 << 20, 63 << 20, 3)]);
    daemon.stop();
}

#[test]
fn nbdcopy_brings_a_sparse_image_in_and_out_unchanged() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let uri = daemon.volume("image", "128M");
    let [original, returned] = ["original", "returned"].map(|name| place.file(name));
    let file = std::fs::File::create(&original).expect("a file");
    file.set_len(128 << 20).expect("a sparse file");
    for (seed, offset, len) in [
        (1, 0, 3 << 20),
        (2, (17 << 20) + 512, 5 << 20),
        (3, (100 << 20) + 4096, 64 << 10),
        (4, (128 << 20) - 4096, 4096),
    ] {
        file.write_all_at(&pattern::bytes(seed, len), offset)
            .expect("a written file");
    }
    let [original, returned] =
        [&original, &returned].map(|path| path.to_str().expect("a UTF-8 path"));
    run(
        "nbdcopy",
        &["--flush", "--destination-is-zero", original, &uri],
    )
    .succeeded();
    run("nbdcopy", &["--connections=4", &uri, returned]).succeeded();
    run("cmp", &[original, returned]).succeeded();

    // Over old content, the zeros must be written.
    std::fs::write(original, pattern::bytes(9, 1 << 20)).expect("a file");
    file.set_len(128 << 20).expect("a sparse file");
    run("nbdcopy", &["--flush", original, &uri]).succeeded();
    daemon.detach("image");
    daemon.attach("image");
    std::fs::remove_file(returned).expect("a removed file");
    run("nbdcopy", &["--no-extents", &uri, returned]).succeeded();
    run("cmp", &[original, returned]).succeeded();
    daemon.stop();
}
