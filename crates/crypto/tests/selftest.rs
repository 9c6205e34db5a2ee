//! The self-test passes on this machine and notices each wrong answer.

use sealvol_crypto::locked::{KeyMemory, Policy};
use sealvol_crypto::selftest::{self, SelfTestError};

#[test]
fn every_known_answer_is_given() {
    let memory = KeyMemory::new(Policy::default()).expect("memory for keys");
    let report = selftest::run(&memory).expect("the self-test passes");
    assert_eq!(report.tests.len(), 12, "{report:?}");
    assert_eq!(
        memory.slots_in_use(),
        0,
        "the self-test gives its slots back"
    );
}

#[test]
fn a_wrong_answer_of_any_test_is_noticed_and_named() {
    let memory = KeyMemory::new(Policy::default()).expect("memory for keys");
    for name in selftest::run(&memory).expect("the self-test passes").tests {
        match selftest::run_damaged(&memory, Some(name)) {
            Err(SelfTestError::WrongAnswer { test }) => assert_eq!(test, name),
            other => panic!("{name} damaged: {other:?}"),
        }
    }
}
