//! What the kernel gives: locked memory, descriptors, io_uring; and where memory of this process could go.
//!
//! Each look is split in two: what the kernel says, and what to make of it, which is tested.

use rustix::process::{DumpableBehavior, Resource, dumpable_behavior, getrlimit};
use sealvol_control::api::doctor::Check;
use sealvol_control::size::Size;
use sealvol_crypto::locked::Protection;

use super::{failure, ok, warning};
use crate::daemon::Daemon;

/// What one more attached volume may need of locked memory: a piece of the arenas that keys lie in.
const ROOM: u64 = 1 << 20;
/// Descriptors that a thousand attached volumes take, with as many connections.
const FILES: u64 = 4096;

pub(super) fn look(daemon: &Daemon) -> Vec<Check> {
    let (protection, locked) = match daemon.memory.ready() {
        Ok(memory) => (Ok(memory.protection()), memory.locked_bytes() as u64),
        Err(error) => (Err(error.to_string()), 0),
    };
    let hibernation = read("/sys/power/state").contains("disk");
    let limit = getrlimit(Resource::Memlock).current;
    let dumped = (
        dumpable_behavior().ok(),
        getrlimit(Resource::Core).current == Some(0),
    );
    vec![
        key_memory(&protection),
        memory_limit(limit, locked, may_lock_anything()),
        core_dumps(dumped),
        swap(&read("/proc/swaps"), is_encrypted),
        suspend(hibernation, protection.ok()),
        open_files(getrlimit(Resource::Nofile).current),
        io_uring(&read("/proc/sys/kernel/io_uring_disabled")),
    ]
}

/// A small file of the kernel's; nothing if it has none.
fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn key_memory(protection: &Result<Protection, String>) -> Check {
    const SUBJECT: &str = "key memory";
    match protection {
        Ok(Protection::SecretMem) => ok(SUBJECT, "secretmem: not even root can read it"),
        Ok(Protection::Mlock) => warning(
            SUBJECT,
            "mlock: it is not swapped, but root can read it",
            "Use a kernel with memfd_secret, boot Linux before 6.5 with secretmem.enable=1, and let seccomp filters pass memfd_secret",
        ),
        Err(why) => failure(SUBJECT, why, "Raise LimitMEMLOCK= or `ulimit -l`"),
    }
}

/// Whether no limit of locked memory holds for this process: CAP_IPC_LOCK is bit 14 of its effective capabilities.
fn may_lock_anything() -> bool {
    let status = read("/proc/self/status");
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    effective.is_some_and(|mask| mask & (1 << 14) != 0)
}

fn memory_limit(limit: Option<u64>, locked: u64, unlimited: bool) -> Check {
    const SUBJECT: &str = "locked memory limit";
    match limit {
        _ if unlimited => ok(SUBJECT, "none: the daemon has CAP_IPC_LOCK"),
        None => ok(SUBJECT, "none"),
        Some(limit) => {
            let found = format!("{} of {} in use", Size(locked), Size(limit));
            if limit.saturating_sub(locked) >= ROOM {
                ok(SUBJECT, found)
            } else {
                let advice =
                    "Raise LimitMEMLOCK= or `ulimit -l`: more volumes can't be attached soon";
                warning(SUBJECT, found, advice)
            }
        }
    }
}

fn core_dumps((dumpable, no_core): (Option<DumpableBehavior>, bool)) -> Check {
    const SUBJECT: &str = "core dumps";
    if dumpable == Some(DumpableBehavior::NotDumpable) && no_core {
        ok(SUBJECT, "off, and nobody of the daemon's user can trace it")
    } else {
        failure(
            SUBJECT,
            "the daemon's memory could be dumped or traced",
            "Somebody has changed the process: restart the daemon",
        )
    }
}

/// `swaps` is `/proc/swaps`.
fn swap(swaps: &str, is_encrypted: impl Fn(&str) -> bool) -> Check {
    const SUBJECT: &str = "swap";
    let areas = swaps.lines().skip(1);
    let areas: Vec<&str> = areas
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let open: Vec<&str> = areas
        .iter()
        .copied()
        .filter(|area| !is_encrypted(area))
        .collect();
    if areas.is_empty() {
        ok(SUBJECT, "none")
    } else if open.is_empty() {
        ok(
            SUBJECT,
            format!("{}: encrypted or in memory", areas.join(", ")),
        )
    } else {
        warning(
            SUBJECT,
            format!(
                "{}: keys never go there, guests' data in flight can",
                open.join(", ")
            ),
            "Encrypt it (crypttab: `swap`), or switch it off with swapoff",
        )
    }
}

/// Whether a swap area is compressed memory, or lies on dm-crypt.
fn is_encrypted(area: &str) -> bool {
    let device = std::fs::canonicalize(area).unwrap_or_else(|_| area.into());
    let name = device.file_name().unwrap_or_default().to_string_lossy();
    let uuid = read(&format!("/sys/block/{name}/dm/uuid"));
    name.starts_with("zram") || uuid.starts_with("CRYPT-")
}

fn suspend(possible: bool, protection: Option<Protection>) -> Check {
    const SUBJECT: &str = "hibernation";
    match (possible, protection) {
        (false, _) => ok(SUBJECT, "this kernel or machine can't"),
        (true, Some(Protection::SecretMem)) => {
            ok(SUBJECT, "the kernel refuses it while keys are in secretmem")
        }
        (true, _) => warning(
            SUBJECT,
            "it would write memory with keys to the disk",
            "Mask it: systemctl mask hibernate.target hybrid-sleep.target",
        ),
    }
}

fn open_files(limit: Option<u64>) -> Check {
    const SUBJECT: &str = "open files";
    match limit {
        Some(limit) if limit < FILES => warning(
            SUBJECT,
            format!("at most {limit}: each attached volume takes two, each connection one"),
            "Raise LimitNOFILE= or `ulimit -Hn`",
        ),
        Some(limit) => ok(SUBJECT, format!("at most {limit}")),
        None => ok(SUBJECT, "no limit"),
    }
}

/// `disabled` is `/proc/sys/kernel/io_uring_disabled`, empty before Linux 6.6.
fn io_uring(disabled: &str) -> Check {
    const SUBJECT: &str = "io_uring";
    if sealvol_store::ring::is_available() {
        return ok(
            SUBJECT,
            "in use for volumes attached with --direct and for cold reads",
        );
    }
    let advice = match disabled.trim() {
        "" | "0" => "Let seccomp filters pass io_uring_setup",
        _ => "Set kernel.io_uring_disabled to 0 with sysctl",
    };
    warning(
        SUBJECT,
        "not to be had: threads do its work, more slowly",
        advice,
    )
}

#[cfg(test)]
mod tests {
    use sealvol_control::api::doctor::Health;

    use super::*;

    const SWAPS: &str =
        "Filename\t\t\t\tType\n/dev/sda2 partition 1 0 -2\n/dev/zram0 partition 1 0 5\n";

    #[test]
    fn each_look_tells_well_from_ill() {
        let cases = [
            (key_memory(&Ok(Protection::SecretMem)), Health::Ok),
            (key_memory(&Ok(Protection::Mlock)), Health::Warning),
            (key_memory(&Err("no room".to_owned())), Health::Failure),
            (memory_limit(Some(8 << 20), 1 << 20, false), Health::Ok),
            (memory_limit(Some(8 << 20), 8 << 20, false), Health::Warning),
            (memory_limit(Some(8 << 20), 8 << 20, true), Health::Ok),
            (memory_limit(None, 8 << 20, false), Health::Ok),
            (
                core_dumps((Some(DumpableBehavior::NotDumpable), true)),
                Health::Ok,
            ),
            (
                core_dumps((Some(DumpableBehavior::NotDumpable), false)),
                Health::Failure,
            ),
            (
                core_dumps((Some(DumpableBehavior::Dumpable), true)),
                Health::Failure,
            ),
            (core_dumps((None, true)), Health::Failure),
            (swap("Filename\n", |_| false), Health::Ok),
            (swap(SWAPS, |area| area.contains("zram")), Health::Warning),
            (swap(SWAPS, |_| true), Health::Ok),
            (suspend(false, Some(Protection::Mlock)), Health::Ok),
            (suspend(true, Some(Protection::SecretMem)), Health::Ok),
            (suspend(true, Some(Protection::Mlock)), Health::Warning),
            (suspend(true, None), Health::Warning),
            (open_files(Some(1024)), Health::Warning),
            (open_files(Some(1 << 20)), Health::Ok),
            (open_files(None), Health::Ok),
        ];
        for (check, health) in cases {
            assert_eq!(check.health, health, "{check:?}");
            assert_eq!(check.advice.is_none(), health == Health::Ok, "{check:?}");
        }
        let found = swap(SWAPS, |area| area.contains("zram")).found;
        assert!(found.contains("sda2") && !found.contains("zram"), "{found}");
    }
}
