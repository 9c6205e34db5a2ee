//! The program itself: exit codes and streams that need no daemon.

use std::process::{Command, Output};

fn sealvol(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sealvol"))
        .args(args)
        .env_remove("SEALVOL_CONTROL")
        .output()
        .expect("the program starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_wrong_word_is_a_usage_error() {
    for args in [
        &["volume", "frobnicate"][..],
        &["volume", "create", "v"],
        &["volume", "create", "v", "--size", "10 parsecs"],
        &["volume", "show", "../etc"],
        &["volume", "delete", "v", "--require-proof"],
    ] {
        let output = sealvol(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn a_missing_daemon_is_a_failure_with_a_next_step() {
    let output = sealvol(&["--control", "/nonexistent/control.sock", "volume", "list"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        stderr(&output),
        "sealvol: /nonexistent/control.sock: cannot reach the daemon: No such file or directory \
         (os error 2). Start sealvold, or name its socket with --control or SEALVOL_CONTROL\n"
    );
}

#[test]
fn errors_are_json_when_asked_for() {
    let output = sealvol(&["--control", "/nonexistent/control.sock", "--json", "status"]);
    assert_eq!(output.status.code(), Some(1));
    let reply: serde_json::Value = serde_json::from_str(&stderr(&output)).expect("JSON");
    assert_eq!(reply["error"]["kind"], "failed");
}

#[test]
fn the_environment_names_the_socket() {
    let output = Command::new(env!("CARGO_BIN_EXE_sealvol"))
        .args(["status"])
        .env("SEALVOL_CONTROL", "/from/the/environment.sock")
        .output()
        .expect("the program starts");
    assert!(stderr(&output).contains("/from/the/environment.sock"));
}

#[test]
fn completions_know_the_verbs() {
    let output = sealvol(&["completions", "bash"]);
    assert_eq!(output.status.code(), Some(0));
    let script = String::from_utf8(output.stdout).expect("a script is text");
    assert!(script.contains("attach") && script.contains("--accept-loss"));
    for word in [
        "flatten",
        "--materialise",
        "adopt",
        "bench",
        "--seconds",
        "--layer-dir",
        "--accept-rollback",
    ] {
        assert!(script.contains(word), "{word}");
    }
}
