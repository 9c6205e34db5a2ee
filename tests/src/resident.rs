//! What a process takes of the machine, as the kernel counts it.

use std::time::Duration;

use rustix::process::Pid;

/// Kibibytes that were in memory at most since the process began (`VmHWM`).
///
/// # Panics
/// If there is no such process.
pub fn peak_kib(pid: Pid) -> u64 {
    status(pid, "VmHWM:")
}

/// Kibibytes that are in memory now (`VmRSS`).
///
/// # Panics
/// If there is no such process.
pub fn now_kib(pid: Pid) -> u64 {
    status(pid, "VmRSS:")
}

/// Kibibytes that are locked now, secret memory included (`VmLck`).
///
/// # Panics
/// If there is no such process.
pub fn locked_kib(pid: Pid) -> u64 {
    status(pid, "VmLck:")
}

fn status(pid: Pid, field: &str) -> u64 {
    let path = format!("/proc/{}/status", pid.as_raw_nonzero());
    let text = std::fs::read_to_string(path).expect("a process");
    text.lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or_else(|| panic!("no {field} in {text}"))
}

/// Time that its threads have run so far, in user and kernel mode, to 10 ms.
///
/// # Panics
/// If there is no such process.
pub fn processor_time(pid: Pid) -> Duration {
    let path = format!("/proc/{}/stat", pid.as_raw_nonzero());
    let text = std::fs::read_to_string(path).expect("a process");
    // After the name, which may hold anything but ends with the last parenthesis: fields 3 and on.
    let (_, fields) = text.rsplit_once(')').expect("a name");
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().expect("ticks"))
        .sum();
    // USER_HZ is 100 on every architecture that this project runs on.
    Duration::from_millis(ticks * 10)
}
