//! Hardening changes the whole process, so it has a test program of its own.

use rustix::process::{DumpableBehavior, Resource, dumpable_behavior, getrlimit};

#[test]
fn a_hardened_process_is_undumpable_and_leaves_no_core() {
    assert_eq!(
        dumpable_behavior(),
        Ok(DumpableBehavior::Dumpable),
        "before"
    );
    sealvol_crypto::harden_process().expect("the kernel lets a process give up rights");
    assert_eq!(dumpable_behavior(), Ok(DumpableBehavior::NotDumpable));
    let core = getrlimit(Resource::Core);
    assert_eq!((core.current, core.maximum), (Some(0), Some(0)));
}
