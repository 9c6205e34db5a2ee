//! What the kernel's limits and filters make of key memory. Each case is a process of its own, run
//! from this program: limits, capabilities and filters cannot be taken back.
//!
//! Root is not limited at all, so every case gives CAP_IPC_LOCK away and fails if it still has it.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use sealvol_crypto::locked::{KeyMemory, LockedError, Policy, Protection};
use sealvol_crypto::{KeyError, SectorCipher, VolumeKey};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

const ARENA: u64 = 256 << 10;
const CASES: &[(&str, fn())] = &[
    ("a_limit_below_one_arena_is_refused_and_named", || {
        limit(64 << 10);
        assert_refused_below_one_arena();
    }),
    ("the_fallback_has_the_same_limit", || {
        limit(64 << 10);
        refuse_memfd_secret(libc::ENOSYS);
        assert_refused_below_one_arena();
    }),
    ("guards_do_not_count_against_the_limit", || {
        limit(ARENA);
        assert_one_arena_holds_256_keys();
    }),
    (
        "guards_do_not_count_against_the_limit_of_the_fallback",
        || {
            limit(ARENA);
            refuse_memfd_secret(libc::EPERM);
            assert_one_arena_holds_256_keys();
        },
    ),
    (
        "a_thousand_volumes_with_four_keys_fit_six_of_eight_mebibytes",
        || {
            limit(8 << 20);
            assert_4000_keys_fit();
        },
    ),
    ("a_thousand_volumes_fit_the_fallback_too", || {
        limit(8 << 20);
        refuse_memfd_secret(libc::EACCES);
        assert_4000_keys_fit();
    }),
    ("a_kernel_without_memfd_secret_leads_to_mlock", || {
        limit(8 << 20);
        for errno in [libc::ENOSYS, libc::EPERM, libc::EACCES] {
            // The latest filter wins where both return an errno.
            refuse_memfd_secret(errno);
            assert_eq!(memory().protection(), Protection::Mlock);
            assert_eq!(memory().protection().to_string(), "mlock");
        }
    }),
    ("required_secret_memory_is_not_replaced", || {
        limit(8 << 20);
        refuse_memfd_secret(libc::EPERM);
        let refusal = KeyMemory::new(Policy {
            require_secretmem: true,
        })
        .err()
        .expect("a refusal");
        assert!(
            matches!(refusal, LockedError::SecretMemRequired { .. }),
            "{refusal:?}"
        );
        assert!(
            refusal.to_string().contains("secretmem.enable=1"),
            "{refusal}"
        );
    }),
    ("a_full_descriptor_table_does_not_lead_to_mlock", || {
        limit(8 << 20);
        refuse_memfd_secret(libc::EMFILE);
        let refusal = KeyMemory::new(Policy::default()).err().expect("a refusal");
        assert!(
            matches!(
                refusal,
                LockedError::Map {
                    call: "memfd_secret",
                    ..
                }
            ),
            "{refusal:?}"
        );
    }),
    ("mappings_are_locked_guarded_and_kept_from_children", || {
        limit(8 << 20);
        assert_mappings(&memory());
    }),
    (
        "mappings_of_the_fallback_are_locked_guarded_undumped_and_wiped_in_children",
        || {
            limit(8 << 20);
            refuse_memfd_secret(libc::ENOSYS);
            assert_mappings(&memory());
        },
    ),
];

fn main() -> ExitCode {
    if let Ok(case) = std::env::var("MEMLOCK_CASE") {
        give_up_ipc_lock();
        CASES
            .iter()
            .find(|(name, _)| *name == case)
            .expect("a case")
            .1();
        return ExitCode::SUCCESS;
    }
    // As the standard harness does: `--list` names the cases, a name chooses some.
    let asked = |option: &str| std::env::args().any(|argument| argument == option);
    if asked("--list") || asked("--ignored") {
        for (case, _) in CASES.iter().filter(|_| !asked("--ignored")) {
            println!("{case}: test");
        }
        return ExitCode::SUCCESS;
    }
    let program = std::env::current_exe().expect("this program");
    let filter = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'));
    let mut failed = false;
    for (case, _) in CASES {
        if filter
            .as_ref()
            .is_some_and(|filter| !case.contains(filter.as_str()))
        {
            continue;
        }
        let output = Command::new(&program)
            .env("MEMLOCK_CASE", case)
            .output()
            .expect("it runs");
        let passed = output.status.success();
        println!("test {case} ... {}", if passed { "ok" } else { "FAILED" });
        if !passed {
            print!("{}", String::from_utf8_lossy(&output.stderr));
        }
        failed |= !passed;
    }
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn give_up_ipc_lock() {
    let mut sets = capabilities(None).expect("capabilities");
    for set in [
        &mut sets.effective,
        &mut sets.permitted,
        &mut sets.inheritable,
    ] {
        set.remove(CapabilitySet::IPC_LOCK);
    }
    set_capabilities(None, sets).expect("rights can be given away");
    let left = capabilities(None).expect("capabilities").effective;
    assert!(
        !left.contains(CapabilitySet::IPC_LOCK),
        "CAP_IPC_LOCK is still there: no limit holds"
    );
}

fn limit(bytes: u64) {
    let limit = Rlimit {
        current: Some(bytes),
        maximum: Some(bytes),
    };
    setrlimit(Resource::Memlock, limit).expect("a limit can be lowered");
}

/// Has the kernel answer memfd_secret(2) with an error from now on.
fn refuse_memfd_secret(errno: i32) {
    let errno = errno.unsigned_abs();
    let arch = TargetArch::try_from(std::env::consts::ARCH).expect("an architecture with seccomp");
    let filter: BpfProgram = SeccompFilter::new(
        BTreeMap::from([(libc::SYS_memfd_secret, vec![])]),
        SeccompAction::Allow,
        SeccompAction::Errno(errno),
        arch,
    )
    .and_then(TryInto::try_into)
    .expect("a filter");
    seccompiler::apply_filter(&filter).expect("the kernel takes filters");
}

fn memory() -> Arc<KeyMemory> {
    KeyMemory::new(Policy::default()).expect("memory for keys")
}

fn assert_refused_below_one_arena() {
    let refusal = KeyMemory::new(Policy::default()).err().expect("a refusal");
    assert!(
        matches!(refusal, LockedError::MemlockLimit { locked: 0, .. }),
        "{refusal:?}"
    );
    let message = refusal.to_string();
    for part in [
        "262144 more bytes",
        "RLIMIT_MEMLOCK is 65536 bytes",
        "LimitMEMLOCK=",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

fn assert_one_arena_holds_256_keys() {
    let memory = memory();
    let key = || VolumeKey::generate(&memory);
    let mut keys: Vec<_> = (0..256).map(|_| key().expect("room for 256")).collect();
    let refusal = key().err().expect("no room for one more");
    let KeyError::Locked(LockedError::MemlockLimit {
        locked: 262_144, ..
    }) = refusal
    else {
        panic!("{refusal:?}");
    };
    assert_eq!(memory.slots_in_use(), 256);
    keys.swap_remove(100);
    keys.push(key().expect("the slot that became free"));
    assert_eq!(
        (memory.slots_in_use(), memory.locked_bytes()),
        (256, 262_144)
    );
}

fn assert_4000_keys_fit() {
    let memory = memory();
    let keys: Vec<SectorCipher> = (0..4000)
        .map(|_| {
            VolumeKey::generate(&memory)
                .expect("room for 4000")
                .expand()
        })
        .collect();
    assert_eq!(memory.slots_in_use(), keys.len());
    assert!(
        memory.locked_bytes() <= 6 << 20,
        "{} bytes locked",
        memory.locked_bytes()
    );
}

/// One mapping of /proc/self/smaps.
struct Mapping {
    start: u64,
    end: u64,
    permissions: String,
    flags: Vec<String>,
}

fn mappings() -> Vec<Mapping> {
    let smaps = fs::read_to_string("/proc/self/smaps").expect("smaps");
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words[0] == "VmFlags:" {
            let flags = words[1..].iter().map(ToString::to_string).collect();
            mappings
                .last_mut()
                .expect("a mapping before its flags")
                .flags = flags;
        } else if let (Some((start, end)), false) =
            (words[0].split_once('-'), words[0].ends_with(':'))
        {
            let number = |text| u64::from_str_radix(text, 16).expect("an address");
            mappings.push(Mapping {
                start: number(start),
                end: number(end),
                permissions: words[1].to_owned(),
                flags: Vec::new(),
            });
        }
    }
    mappings
}

fn assert_mappings(memory: &Arc<KeyMemory>) {
    let keys: Vec<_> = (0..300)
        .map(|_| VolumeKey::generate(memory).expect("a key"))
        .collect();
    let expected: &[&str] = match memory.protection() {
        // locked, not copied on fork, not dumped
        Protection::SecretMem => &["lo", "dc", "dd"],
        // locked, wiped on fork, not dumped
        Protection::Mlock => &["lo", "wf", "dd"],
    };
    let mappings = mappings();
    let arenas: Vec<usize> = (0..mappings.len())
        .filter(|&at| mappings[at].flags.iter().any(|flag| flag == "lo"))
        .collect();
    let bytes: u64 = arenas
        .iter()
        .map(|&at| mappings[at].end - mappings[at].start)
        .sum();
    assert_eq!(
        bytes,
        2 * ARENA,
        "two arenas for {} keys, and nothing else is locked",
        keys.len()
    );
    for at in arenas {
        let (before, arena, after) = (&mappings[at - 1], &mappings[at], &mappings[at + 1]);
        assert_eq!(arena.end - arena.start, ARENA, "guards keep arenas apart");
        for flag in expected {
            assert!(
                arena.flags.iter().any(|have| have == flag),
                "{flag}: {:?}",
                arena.flags
            );
        }
        assert_eq!(
            (before.end, &before.permissions[..3]),
            (arena.start, "---"),
            "guard before"
        );
        assert_eq!(
            (after.start, &after.permissions[..3]),
            (arena.end, "---"),
            "guard behind"
        );
    }
    for fd in fs::read_dir("/proc/self/fd").expect("descriptors") {
        let target = fs::read_link(fd.expect("a descriptor").path()).unwrap_or_default();
        assert!(
            !target.to_string_lossy().contains("secretmem"),
            "{target:?} is still open"
        );
    }
}
