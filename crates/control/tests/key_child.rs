//! `KeyChild` against programs that misbehave, each a script in `children/`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sealvol_control::keychild::{
    Batch, Call, Done, FailureClass, Fault, KeyChild, KeyChildError, LocalService, MasterKey,
    Principal, Provider, Right, Service,
};

/// Longer than any script takes on a slow machine.
const DEADLINE: Duration = Duration::from_secs(20);

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/children")
        .join(name)
}

fn batch(calls: Vec<Call>) -> Batch {
    let service = Service::Local(LocalService {
        database: "/nonexistent/keys.db".into(),
        master_key: MasterKey::Passphrase,
        create: false,
    });
    let provider = Provider {
        name: "local".to_owned(),
        service,
    };
    Batch {
        right: Right::Attach,
        principal: Principal::Daemon,
        provider,
        require_secretmem: false,
        calls,
        relied_on: None,
    }
}

async fn error_of(program: &str) -> KeyChildError {
    let child = KeyChild::new(script(program), DEADLINE);
    child
        .call(&batch(vec![Call::Describe {
            key: "k".to_owned(),
        }]))
        .await
        .unwrap_err()
}

#[tokio::test]
async fn a_program_that_is_missing_or_cannot_run_is_refused_by_name() {
    let error = error_of("missing.sh").await;
    assert!(matches!(&error, KeyChildError::NoProgram { .. }), "{error}");
    assert!(error.to_string().contains("missing.sh"), "{error}");
    assert_eq!(
        (error.class(), error.fault()),
        (FailureClass::Transient, Fault::Refuse)
    );
    let error = error_of("../children").await;
    assert!(matches!(&error, KeyChildError::Spawn { .. }), "{error}");
}

#[tokio::test]
async fn a_child_that_dies_is_told_with_its_status_and_words() {
    let error = error_of("dies.sh").await;
    let KeyChildError::ChildDied { status, stderr, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(status.code(), Some(7));
    assert_eq!(stderr, "one[31m; two", "one line without escapes");
    assert_eq!(error.fault(), Fault::Retry);
}

#[tokio::test]
async fn a_child_that_fails_after_its_reply_has_failed() {
    let child = KeyChild::new(script("fails-late.sh"), DEADLINE);
    let error = child.call(&batch(vec![Call::ListKeys])).await.unwrap_err();
    assert!(matches!(error, KeyChildError::ChildDied { .. }), "{error}");
}

#[tokio::test]
async fn a_reply_that_does_not_belong_to_the_batch_is_bad() {
    for program in ["garbage.sh", "wrong-count.sh", "wrong-kind.sh"] {
        let error = error_of(program).await;
        assert!(
            matches!(error, KeyChildError::BadReply { .. }),
            "{program}: {error}"
        );
        assert_eq!(error.fault(), Fault::Refuse);
    }
    assert!(
        error_of("garbage.sh")
            .await
            .to_string()
            .contains("message of version")
    );
    let error = error_of("wrong-count.sh").await.to_string();
    assert!(error.contains("do not belong"), "{error}");
}

#[tokio::test]
async fn a_child_that_says_too_much_neither_blocks_nor_fills_memory() {
    let child = KeyChild::new(script("chatters.sh"), DEADLINE);
    let answer = child.call(&batch(vec![Call::ListKeys])).await.unwrap();
    assert_eq!(answer.results, [Ok(Done::ListKeys(Vec::new()))]);

    let error = child.call(&batch(vec![])).await.unwrap_err();
    let KeyChildError::BadReply { stderr, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(stderr.len(), 4096);
}

#[tokio::test]
async fn the_child_gets_an_empty_environment_and_the_root_directory() {
    assert!(
        std::env::vars_os().next().is_some(),
        "there is something to hand down"
    );
    let error = error_of("environment.sh").await.to_string();
    assert!(error.ends_with("it said: env: ; pwd: /"), "{error}");
}

fn is_gone(process: &str) -> bool {
    // A process that waits to be reaped still has its folder.
    !Path::new("/proc").join(process).exists()
}

#[tokio::test]
async fn a_stuck_child_is_killed_and_reaped_at_its_deadline() {
    let child = KeyChild::new(script("stuck.sh"), Duration::from_millis(700));
    let started = Instant::now();
    let error = child.call(&batch(vec![Call::ListKeys])).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(10));
    let KeyChildError::TimedOut { stderr, .. } = &error else {
        panic!("{error}")
    };
    let process = stderr
        .split(' ')
        .nth(1)
        .unwrap_or_else(|| panic!("it said: {stderr:?}"));
    assert!(is_gone(process), "process {process} is still there");
    assert_eq!(
        (error.class(), error.fault()),
        (FailureClass::Transient, Fault::Retry)
    );
}

#[tokio::test]
async fn a_child_whose_caller_gives_up_is_killed() {
    let child = KeyChild::new(script("stuck.sh"), DEADLINE);
    let batch = batch(vec![Call::ListKeys]);
    let given_up = tokio::time::timeout(Duration::from_millis(300), child.call(&batch)).await;
    assert!(given_up.is_err());
    let ours = std::process::id().to_string();
    let stuck = || {
        std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            let read = |file| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
            read("cmdline").starts_with("sleep\x00600")
                && read("status").contains(&format!("PPid:\t{ours}\n"))
        })
    };
    for _ in 0..100 {
        if !stuck() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the child goes on");
}

#[tokio::test]
async fn a_batch_too_long_for_a_message_is_not_sent() {
    let child = KeyChild::new(script("dies.sh"), DEADLINE);
    let error = child
        .call(&batch(vec![Call::Describe {
            key: "k".repeat(1 << 20),
        }]))
        .await;
    assert!(
        matches!(error, Err(KeyChildError::Unsendable(_))),
        "{error:?}"
    );
}
