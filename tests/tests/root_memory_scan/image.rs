//! A process as it stands still: its mappings, all bytes that can be read from outside, and the registers of its threads.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use sealvol_tests::programs::{client, wait_for};
use serde_json::Value;

const PAGE: usize = 4096;

/// One line of /proc/PID/maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// Its first address.
    pub(crate) start: u64,
    /// The address behind it.
    pub(crate) end: u64,
    /// As the kernel writes them: `rw-p`.
    pub(crate) permissions: String,
    /// The file, a name of the kernel's in brackets, or nothing.
    pub(crate) name: String,
}

impl Mapping {
    /// Whether it is secret memory, by its file's name.
    pub(crate) fn is_secret(&self) -> bool {
        self.name.starts_with("/secretmem")
    }

    /// Whether the kernel shows a page of its own in it.
    pub(crate) fn is_kernels(&self) -> bool {
        ["[vvar]", "[vvar_vclock]", "[vsyscall]", "[vdso]"].contains(&self.name.as_str())
    }

    /// Whether its pages come from no file, so that those that are not there hold nothing.
    fn is_anonymous(&self) -> bool {
        self.permissions.ends_with('p') && !self.name.starts_with('/') && !self.is_kernels()
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.end - self.start
    }
}

/// A stopped thread.
#[derive(Debug)]
pub(crate) struct Thread {
    /// Its id.
    pub(crate) id: i32,
    /// Its name.
    pub(crate) name: String,
    /// Where its stack ends at present.
    pub(crate) stack_pointer: u64,
    /// The names and contents of its register sets.
    pub(crate) registers: Vec<(String, Vec<u8>)>,
}

/// Who keeps a process from going on.
enum Holder {
    /// freeze.py, until its standard input is closed.
    Tracer(Child),
    /// hold_child.py, until this file is there.
    Gate(PathBuf),
}

/// A process that stands still, until the value is dropped.
pub(crate) struct Frozen {
    process: i32,
    holder: Holder,
    /// Its threads.
    pub(crate) threads: Vec<Thread>,
    /// Its mappings.
    pub(crate) mappings: Vec<Mapping>,
}

impl Frozen {
    /// Stops all threads of a process.
    ///
    /// # Panics
    /// If it cannot be traced.
    pub(crate) fn running(process: i32) -> Self {
        let mut tracer = script("freeze.py")
            .arg(process.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Python");
        let output = BufReader::new(tracer.stdout.take().expect("a pipe"));
        Self::told(output, Holder::Tracer(tracer))
    }

    /// A process that hold_child.py has stopped at one of these moments and told of in `directory`; and which of them it is.
    ///
    /// # Panics
    /// If it is not told of within 30 seconds.
    pub(crate) fn at_one_of(moments: &[String], directory: &Path) -> (usize, Self) {
        let (moment, told) = wait_for("a process to be stopped", || {
            let mut files = moments
                .iter()
                .map(|moment| File::open(directory.join(format!("stopped.{moment}"))).ok())
                .enumerate();
            files.find_map(|(number, file)| Some((number, file?)))
        });
        // Told once.
        let told_in = directory.join(format!("stopped.{}", moments[moment]));
        std::fs::remove_file(told_in).expect("it is there");
        let gate = directory.join(format!("continue.{}", moments[moment]));
        let frozen = Self::told(BufReader::new(told), Holder::Gate(gate));
        (moment, frozen)
    }

    /// The process that its holder tells of: a line per thread, the first of which is the process's own.
    fn told(lines: impl BufRead, holder: Holder) -> Self {
        let mut frozen = Self {
            process: 0,
            holder,
            threads: Vec::new(),
            mappings: Vec::new(),
        };
        for line in lines.lines() {
            let line = line.expect("a line");
            if line == "frozen" {
                frozen.mappings = mappings(frozen.process);
                return frozen;
            }
            let thread = thread(&line);
            if frozen.threads.is_empty() {
                frozen.process = thread.id;
            }
            frozen.threads.push(thread);
        }
        panic!("the process cannot be stopped by ptrace");
    }

    /// Writes `bytes` to the far end of the stack of each thread whose name begins so: where no call ever came to, so that nothing
    /// is overwritten.
    ///
    /// # Panics
    /// If there is something else already.
    pub(crate) fn plant_on_stacks(&self, threads: &str, bytes: &[u8]) {
        let memory = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{}/mem", self.process))
            .expect("the memory of the process");
        for thread in self
            .threads
            .iter()
            .filter(|thread| thread.name.starts_with(threads))
        {
            let stack = self
                .mappings
                .iter()
                .find(|mapping| (mapping.start..mapping.end).contains(&thread.stack_pointer));
            let end = stack.expect("its stack").start;
            let mut present = vec![0; bytes.len()];
            memory.read_exact_at(&mut present, end).expect("its stack");
            assert!(
                present == bytes || present.iter().all(|&byte| byte == 0),
                "the stack of {} is used to its end",
                thread.name
            );
            memory.write_all_at(bytes, end).expect("its stack");
        }
    }

    /// Its process id.
    pub(crate) fn process(&self) -> i32 {
        self.process
    }

    /// Calls `with` with each stretch of bytes of `mapping` that can be read, and its address. Gives whether there was something
    /// that could not be read.
    pub(crate) fn read(&self, mapping: &Mapping, mut with: impl FnMut(u64, &[u8])) -> bool {
        let open = |name: &str| {
            File::open(format!("/proc/{}/{name}", self.process))
                .unwrap_or_else(|error| panic!("{name} of the process: {error}"))
        };
        let (memory, table) = (open("mem"), open("pagemap"));
        let mut missing = false;
        for (start, end) in stretches(mapping, &table) {
            let mut bytes = vec![0; usize::try_from(end - start).expect("it fits in memory")];
            if memory.read_exact_at(&mut bytes, start).is_ok() {
                with(start, &bytes);
                continue;
            }
            for (number, page) in bytes.chunks_mut(PAGE).enumerate() {
                let at = start + (number * PAGE) as u64;
                match memory.read_exact_at(page, at) {
                    Ok(()) => with(at, page),
                    Err(_) => missing = true,
                }
            }
        }
        missing
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        match &mut self.holder {
            Holder::Tracer(tracer) => {
                drop(tracer.stdin.take());
                let _ = tracer.wait();
            }
            Holder::Gate(path) => {
                let _ = File::create(path);
            }
        }
    }
}

/// A script of `tests/memory-scan`.
pub(crate) fn script(name: &str) -> Command {
    let mut command = client("/usr/bin/python3");
    command
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(source(name));
    command
}

/// A file of `tests/memory-scan`.
pub(crate) fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("memory-scan")
        .join(name)
}

fn thread(line: &str) -> Thread {
    let thread: Value = serde_json::from_str(line).expect("JSON");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let id = thread["id"].as_i64().expect("a number");
    Thread {
        id: i32::try_from(id).expect("a thread's id"),
        name: text(&thread["name"]),
        stack_pointer: thread["stack_pointer"].as_u64().expect("a number"),
        registers: thread["registers"]
            .as_object()
            .expect("register sets")
            .iter()
            .map(|(name, content)| (name.clone(), from_hex(&text(content))))
            .collect(),
    }
}

/// Bytes from hexadecimal text.
///
/// # Panics
/// If it is none.
pub(crate) fn from_hex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| {
            let pair = std::str::from_utf8(pair).expect("ASCII");
            u8::from_str_radix(pair, 16).expect("hexadecimal text")
        })
        .collect()
}

/// The mappings of a process.
fn mappings(process: i32) -> Vec<Mapping> {
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps")).expect("its mappings");
    maps.lines()
        .map(|line| {
            let mut words = line.splitn(6, ' ');
            let mut word = || words.next().expect("six columns");
            let (start, end) = word().split_once('-').expect("two addresses");
            let number = |text| u64::from_str_radix(text, 16).expect("an address");
            let (start, end) = (number(start), number(end));
            let permissions = word().to_owned();
            let _ = (word(), word(), word()); // offset, device, inode and padding
            Mapping {
                start,
                end,
                permissions,
                name: line
                    .split_whitespace()
                    .skip(5)
                    .collect::<Vec<_>>()
                    .join(" "),
            }
        })
        .collect()
}

/// The parts of a mapping that may hold something: all of it, or, if it is anonymous, the pages that are there.
fn stretches(mapping: &Mapping, table: &File) -> Vec<(u64, u64)> {
    if !mapping.is_anonymous() {
        return vec![(mapping.start, mapping.end)];
    }
    let mut entries = vec![0; usize::try_from(mapping.len() / PAGE as u64 * 8).expect("it fits")];
    table
        .read_exact_at(&mut entries, mapping.start / PAGE as u64 * 8)
        .expect("the page table of an anonymous mapping");
    let mut stretches: Vec<(u64, u64)> = Vec::new();
    for (number, entry) in entries.chunks_exact(8).enumerate() {
        // Bit 63: in memory, bit 62: in swap.
        if entry[7] & 0xc0 == 0 {
            continue;
        }
        let start = mapping.start + (number * PAGE) as u64;
        match stretches.last_mut() {
            Some((_, end)) if *end == start => *end += PAGE as u64,
            _ => stretches.push((start, start + PAGE as u64)),
        }
    }
    stretches
}
