//! The search of a whole process, and what it found by place.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use crate::image::{Frozen, Mapping, Thread};
use crate::pattern::{FORMS, Patterns};

/// Where in a process something was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// In the registers of a thread.
    Registers {
        /// The thread's name.
        thread: String,
        /// Which set.
        set: String,
    },
    /// In the mapping that a thread's stack pointer points to.
    Stack {
        /// The thread's name.
        thread: String,
    },
    /// In memory that is locked for keys, by its form: secret memory, or between two guards of a page.
    Arena,
    /// In any other mapping.
    Mapping {
        /// Its permissions and name.
        name: String,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registers { thread, set } => write!(f, "{set} registers of {thread}"),
            Self::Stack { thread } => write!(f, "stack of {thread}"),
            Self::Arena => f.write_str("key arena"),
            Self::Mapping { name } => write!(f, "mapping {name}"),
        }
    }
}

/// One piece, found.
#[derive(Clone, Debug)]
pub(crate) struct Hit {
    /// Where.
    pub(crate) place: Place,
    /// Address, or offset in the register set.
    pub(crate) at: u64,
    /// Index of the piece in the patterns.
    pub(crate) piece: usize,
}

/// What one pass over a process has found.
pub(crate) struct Report {
    /// All that was found.
    pub(crate) hits: Vec<Hit>,
    /// Bytes of memory that were searched.
    pub(crate) searched: u64,
    /// Mappings of which something could not be read.
    pub(crate) unreadable: Vec<Mapping>,
    /// Bytes of the arenas, readable or not.
    pub(crate) arena_bytes: u64,
    /// Arenas that do not lie between two guards of a page each.
    pub(crate) unguarded: usize,
    /// Threads whose registers were searched.
    pub(crate) threads: usize,
    /// How long the process stood still.
    pub(crate) stopped: Duration,
}

impl Report {
    /// Stops a process, searches all of it, and lets it go on.
    pub(crate) fn of(process: i32, patterns: &Patterns) -> Self {
        let begin = Instant::now();
        let mut report = Self::of_frozen(Frozen::running(process), patterns);
        report.stopped = begin.elapsed();
        report
    }

    /// Searches all of a process that stands still, and lets it go on.
    pub(crate) fn of_frozen(frozen: Frozen, patterns: &Patterns) -> Self {
        let begin = Instant::now();
        let arenas = arenas(frozen.process(), &frozen.mappings);
        let mut report = Self {
            hits: Vec::new(),
            searched: 0,
            unreadable: Vec::new(),
            arena_bytes: 0,
            unguarded: 0,
            threads: frozen.threads.len(),
            stopped: Duration::ZERO,
        };
        for thread in &frozen.threads {
            report.search_registers(thread, patterns);
        }
        for (number, mapping) in frozen.mappings.iter().enumerate() {
            let is_arena = arenas.contains(&mapping.start);
            if is_arena {
                report.arena_bytes += mapping.len();
                report.unguarded += usize::from(!guarded(&frozen.mappings, number));
            }
            let place = if is_arena {
                Place::Arena
            } else {
                place(mapping, &frozen.threads)
            };
            let hits = &mut report.hits;
            let searched = &mut report.searched;
            let missing = frozen.read(mapping, |start, bytes| {
                *searched += bytes.len() as u64;
                patterns.search(bytes, |at, piece| {
                    hits.push(Hit {
                        place: place.clone(),
                        at: start + at as u64,
                        piece,
                    });
                });
            });
            if missing {
                report.unreadable.push(mapping.clone());
            }
        }
        drop(frozen);
        report.stopped = begin.elapsed();
        report
    }

    fn search_registers(&mut self, thread: &Thread, patterns: &Patterns) {
        for (set, bytes) in &thread.registers {
            patterns.search(bytes, |at, piece| {
                self.hits.push(Hit {
                    place: Place::Registers {
                        thread: thread.name.clone(),
                        set: set.clone(),
                    },
                    at: at as u64,
                    piece,
                });
            });
        }
    }

    /// How many pieces were found by place and secret, those that `wanted` lets through.
    pub(crate) fn table(
        &self,
        patterns: &Patterns,
        wanted: impl Fn(&Hit) -> bool,
    ) -> BTreeMap<String, usize> {
        let mut table = BTreeMap::new();
        for hit in self.hits.iter().filter(|hit| wanted(hit)) {
            let piece = &patterns.pieces()[hit.piece];
            let secret = &patterns.secrets()[piece.secret].name;
            let line = format!("{}: {secret} ({})", hit.place, FORMS[piece.form]);
            *table.entry(line).or_default() += 1;
        }
        table
    }

    /// How many pieces were found by place alone.
    pub(crate) fn by_place(&self, wanted: impl Fn(&Hit) -> bool) -> BTreeMap<Place, usize> {
        let mut table = BTreeMap::new();
        for hit in self.hits.iter().filter(|hit| wanted(hit)) {
            *table.entry(hit.place.clone()).or_default() += 1;
        }
        table
    }
}

fn place(mapping: &Mapping, threads: &[Thread]) -> Place {
    let owner = threads
        .iter()
        .find(|thread| (mapping.start..mapping.end).contains(&thread.stack_pointer));
    match owner {
        Some(thread) => Place::Stack {
            thread: thread.name.clone(),
        },
        None => Place::Mapping {
            name: format!("{} {}", mapping.permissions, mapping.name),
        },
    }
}

/// The first addresses of the mappings that are locked ("lo" among the kernel's flags).
fn arenas(process: i32, mappings: &[Mapping]) -> Vec<u64> {
    let smaps = std::fs::read_to_string(format!("/proc/{process}/smaps")).expect("its mappings");
    let flags = smaps
        .lines()
        .filter_map(|line| line.strip_prefix("VmFlags:"));
    let locked: Vec<u64> = flags
        .zip(mappings)
        .filter(|(flags, _)| flags.split_whitespace().any(|flag| flag == "lo"))
        .map(|(_, mapping)| mapping.start)
        .collect();
    for mapping in mappings {
        assert!(
            !mapping.is_secret() || locked.contains(&mapping.start),
            "secret memory that is not locked: {mapping:?}"
        );
    }
    locked
}

fn guarded(mappings: &[Mapping], number: usize) -> bool {
    let closed = |mapping: &Mapping| mapping.permissions == "---p";
    let Some((before, behind)) = number
        .checked_sub(1)
        .and_then(|before| mappings.get(before).zip(mappings.get(number + 1)))
    else {
        return false;
    };
    let arena = &mappings[number];
    before.end == arena.start && closed(before) && behind.start == arena.end && closed(behind)
}
