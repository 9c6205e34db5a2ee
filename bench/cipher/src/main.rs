//! Speed of the sector cipher beside other implementations of AES-256-XTS, on one core.
//!
//! ```text
//! cargo run --release --locked --manifest-path bench/cipher/Cargo.toml [-- RECORD]
//! ```
//!
//! prints a table; with RECORD, a folder, keeps every sample (`samples.csv`) and the table with what it
//! was measured on (`README.md`) in it.
//!
//! Method: all implementations have the same key and the same data, and their results are compared
//! before they are timed. A row is a data unit, bytes per call and a direction. In each round of a row
//! every implementation is timed once, for two milliseconds of processor time, in an order that turns
//! by one from round to round. A ratio is the median, over all rounds, of ours to the rival's in the
//! same round: what disturbs the machine for longer than a round disturbs both. Its spread is from the
//! least to the greatest median of a pass over all rows. `best` compares the fastest samples.

mod rivals;

use std::fmt::Write as _;
use std::hint::black_box;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use rivals::{Direction, Rival};
use rustix::time::{ClockId, clock_gettime};
use sealvol_crypto::{UnitSize, clear_residue, random};

const PASSES: usize = 5;
const ROUNDS: usize = 41;
const SAMPLE: Duration = Duration::from_millis(2);

/// Data unit and bytes per call.
const ROWS: [(UnitSize, usize); 6] = [
    (UnitSize::B512, 512),
    (UnitSize::B512, 4096),
    (UnitSize::B512, 64 << 10),
    (UnitSize::B4096, 4096),
    (UnitSize::B4096, 64 << 10),
    (UnitSize::B4096, 1 << 20),
];

/// Samples of a row: GB/s by pass, round and implementation.
struct Row {
    unit: UnitSize,
    call: usize,
    direction: Direction,
    passes: Vec<Vec<Vec<f64>>>,
}

fn main() -> ExitCode {
    let mut key = [0; 64];
    random(&mut key);
    let mut rivals = rivals::all(&key);
    let mut rows: Vec<Row> = ROWS
        .iter()
        .flat_map(|&(unit, call)| {
            [Direction::Encrypt, Direction::Decrypt].map(|direction| Row {
                unit,
                call,
                direction,
                passes: Vec::new(),
            })
        })
        .collect();
    let load = first_line("/proc/loadavg");
    for _ in 0..PASSES {
        for row in &mut rows {
            let pass = measure(row, &mut rivals);
            row.passes.push(pass);
        }
    }
    let residue = residue();
    let names: Vec<&str> = rivals.iter().map(|rival| rival.name()).collect();
    let table = table(&names, &rows);
    println!("{table}\nclear_residue: {residue:.0} ns");
    let Some(record) = std::env::args_os().nth(1).map(PathBuf::from) else {
        return ExitCode::SUCCESS;
    };
    let about = about(
        &record.file_name().unwrap_or_default().to_string_lossy(),
        &load,
    );
    let readme =
        format!("{about}\n{table}\n`clear_residue`, once per batch of calls: {residue:.0} ns.\n");
    let written = std::fs::create_dir_all(&record)
        .and_then(|()| std::fs::write(record.join("samples.csv"), samples(&names, &rows)))
        .and_then(|()| std::fs::write(record.join("README.md"), readme));
    if let Err(error) = written {
        eprintln!("cannot write the record to {}: {error}", record.display());
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// A buffer that begins with a page, as those of a server do.
fn page_aligned(len: usize) -> (Vec<u8>, std::ops::Range<usize>) {
    let area = vec![0; len + 4096];
    let start = area.as_ptr().align_offset(4096);
    (area, start..start + len)
}

/// One pass over a row.
fn measure(row: &Row, rivals: &mut [Box<dyn Rival>]) -> Vec<Vec<f64>> {
    let &Row {
        unit,
        call,
        direction,
        ..
    } = row;
    let (mut from, at) = page_aligned(call);
    let from = &mut from[at];
    random(from);
    let (mut to, at) = page_aligned(call);
    let to = &mut to[at];
    agree(row, rivals, from);
    (0..ROUNDS)
        .map(|round| {
            let mut speeds = vec![0.0; rivals.len()];
            for turn in 0..rivals.len() {
                let which = (round + turn) % rivals.len();
                let rival = &mut rivals[which];
                speeds[which] = speed(call, || {
                    rival.run(direction, unit, 7, black_box(from), black_box(to))
                });
            }
            speeds
        })
        .collect()
}

/// # Panics
/// When two implementations do not give the same bytes, or one does not give back what it was given.
fn agree(row: &Row, rivals: &mut [Box<dyn Rival>], plain: &[u8]) {
    let (mut ours, mut theirs, mut back) = (plain.to_vec(), plain.to_vec(), plain.to_vec());
    rivals[0].run(Direction::Encrypt, row.unit, 7, plain, &mut ours);
    for rival in rivals.iter_mut().filter(|rival| rival.name() != "copy") {
        rival.run(Direction::Encrypt, row.unit, 7, plain, &mut theirs);
        assert_eq!(theirs, ours, "{} and sealvol differ", rival.name());
        rival.run(Direction::Decrypt, row.unit, 7, &theirs, &mut back);
        assert_eq!(
            back,
            plain,
            "{} does not decrypt what it encrypted",
            rival.name()
        );
    }
}

/// GB/s (10^9 bytes a second) of one sample, after a short warm-up.
#[expect(clippy::cast_precision_loss, reason = "a speed of three digits")]
fn speed(bytes: usize, mut run: impl FnMut()) -> f64 {
    // The clock is asked about once in 20 microseconds.
    let calls_between = (128 << 10) / bytes.max(512) + 1;
    for _ in 0..calls_between {
        run();
    }
    let start = processor_time();
    let mut calls = 0;
    loop {
        for _ in 0..calls_between {
            run();
        }
        calls += calls_between;
        let elapsed = processor_time() - start;
        if elapsed >= SAMPLE {
            return (calls * bytes) as f64 / elapsed.as_nanos() as f64;
        }
    }
}

/// What this thread has had of the processor: time in which others had it does not count.
fn processor_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        now.tv_sec.try_into().expect("not negative"),
        now.tv_nsec.try_into().expect("less than a second"),
    )
}

/// Nanoseconds of a `clear_residue`, the median of many.
fn residue() -> f64 {
    median((0..ROUNDS).map(|_| 1.0 / speed(1, clear_residue)))
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The table of medians and ratios, in Markdown.
fn table(names: &[&str], rows: &[Row]) -> String {
    let mut text = String::from("| unit | call | direction |");
    for name in names {
        write!(text, " {name} GB/s |").expect("a string");
    }
    for name in &names[1..] {
        write!(text, " to {name} |").expect("a string");
    }
    writeln!(
        text,
        " passes | best |\n|{}",
        "---|".repeat(3 + names.len() * 2 + 1)
    )
    .expect("a string");
    for row in rows {
        let rounds = || row.passes.iter().flatten();
        write!(
            text,
            "| {} | {} | {:?} |",
            row.unit, row.call, row.direction
        )
        .expect("a string");
        for which in 0..names.len() {
            write!(text, " {:.2} |", median(rounds().map(|round| round[which]))).expect("a string");
        }
        for which in 1..names.len() {
            let ratio = median(rounds().map(|round| round[0] / round[which]));
            write!(text, " {ratio:.2} |").expect("a string");
        }
        let passes = row
            .passes
            .iter()
            .map(|pass| median(pass.iter().map(|round| round[0] / round[1])));
        let (least, greatest) = passes.fold((f64::MAX, 0.0_f64), |(least, greatest), ratio| {
            (least.min(ratio), greatest.max(ratio))
        });
        let fastest = |which: usize| rounds().map(|round| round[which]).fold(0.0, f64::max);
        let best = fastest(0) / fastest(1);
        writeln!(text, " {least:.2}-{greatest:.2} | {best:.2} |").expect("a string");
    }
    text
}

/// Every sample.
fn samples(names: &[&str], rows: &[Row]) -> String {
    let mut text =
        String::from("unit,call,direction,pass,round,implementation,gigabytes_per_second\n");
    for row in rows {
        for (pass, rounds) in row.passes.iter().enumerate() {
            for (round, speeds) in rounds.iter().enumerate() {
                for (name, speed) in names.iter().zip(speeds) {
                    let Row {
                        unit,
                        call,
                        direction,
                        ..
                    } = row;
                    writeln!(
                        text,
                        "{unit},{call},{direction:?},{pass},{round},{name},{speed:.3}"
                    )
                    .expect("a string");
                }
            }
        }
    }
    text
}

/// The head of a record: command, versions, machine.
fn about(name: &str, load: &str) -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |wanted: &str| {
        let mut lines = cpu.lines().filter_map(|line| line.split_once(':'));
        let value = lines.find(|(name, _)| name.trim() == wanted);
        value
            .map_or("unknown", |(_, value)| value.trim())
            .to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let wanted = [
        "aes",
        "avx2",
        "vaes",
        "vpclmulqdq",
        "avx512f",
        "avx512_vbmi2",
    ];
    let flags = field("flags");
    let flags: Vec<&str> = flags
        .split(' ')
        .filter(|flag| wanted.contains(flag))
        .collect();
    let [aws_lc, openssl] = rivals::versions();
    format!(
        "# {name}\n\n    cargo run --release --locked --manifest-path bench/cipher/Cargo.toml -- bench/runs/{name}\n\n\
         | | |\n|---|---|\n\
         | commit | {} |\n\
         | machine | {cores} x {} (family {}, model {}), Linux {} |\n\
         | instructions | {} |\n\
         | load before | {load} |\n\
         | rustc | {} |\n\
         | rivals | {aws_lc}; {openssl}; xts-mode 0.6.0; copy: `memcpy` of the same bytes |\n\
         | samples | {PASSES} passes of {ROUNDS} rounds of {} ms of processor time each, interleaved |\n\n\
         How: `bench/cipher/src/main.rs`. GB/s are medians; `to X` is ours to X's in the same round, the median of all; `passes` and\n\
         `best` are to AWS-LC: the least and the greatest median of a pass, and the fastest sample to the fastest.\n",
        output("git", &["describe", "--always", "--dirty"]),
        field("model name"),
        field("cpu family"),
        field("model"),
        first_line("/proc/sys/kernel/osrelease"),
        flags.join(" "),
        output("rustc", &["--version"]),
        SAMPLE.as_millis(),
    )
}

fn first_line(path: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(
        |error| error.to_string(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}
