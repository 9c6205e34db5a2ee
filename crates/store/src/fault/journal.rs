//! What was asked of the disk, in order, so that a test can say what must come before what.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use crate::Operation;

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has not, or whoever asked dropped it.
    InFlight,
    /// Well.
    Done,
    /// With an error.
    Failed,
}

/// One operation.
#[derive(Clone, Debug)]
pub struct Record {
    /// Number of the operation: ascending in the order in which they began.
    pub id: u64,
    /// What was asked.
    pub operation: Operation,
    /// Path of the file or directory: `disk/DIRECTORY/NAME`.
    pub path: Arc<Path>,
    /// First byte; 0 where there is no range.
    pub offset: u64,
    /// Bytes; 0 where there is no range.
    pub len: u64,
    /// Whether it is a durable write.
    pub durable: bool,
    /// When it began, on the disk's own clock, which ticks at each beginning and each end.
    pub began: u64,
    /// When it ended.
    pub ended: Option<u64>,
    /// How it ended.
    pub outcome: Outcome,
}

impl Record {
    /// Whether it had ended before `other` began.
    #[must_use]
    pub fn ended_before(&self, other: &Self) -> bool {
        self.ended.is_some_and(|ended| ended < other.began)
    }
}

/// What a sync covers: every operation that had ended when it began.
pub(super) struct Covers {
    before: u64,
    but: BTreeSet<u64>,
}

impl Covers {
    pub(super) fn covers(&self, id: u64) -> bool {
        id < self.before && !self.but.contains(&id)
    }
}

/// The records, and what is in flight.
#[derive(Default)]
pub(super) struct Journal {
    records: Vec<Record>,
    in_flight: BTreeSet<u64>,
    next_id: u64,
    clock: u64,
}

impl Journal {
    pub(super) fn begin(
        &mut self,
        operation: Operation,
        path: &Arc<Path>,
        (offset, len): (u64, u64),
        durable: bool,
    ) -> u64 {
        self.clock += 1;
        let id = self.next_id;
        self.next_id += 1;
        self.in_flight.insert(id);
        self.records.push(Record {
            id,
            operation,
            path: Arc::clone(path),
            offset,
            len,
            durable,
            began: self.clock,
            ended: None,
            outcome: Outcome::InFlight,
        });
        id
    }

    pub(super) fn end(&mut self, id: u64, outcome: Outcome) {
        self.clock += 1;
        self.in_flight.remove(&id);
        // It may have been forgotten.
        if let Ok(index) = self.records.binary_search_by_key(&id, |record| record.id) {
            self.records[index].ended = Some(self.clock);
            self.records[index].outcome = outcome;
        }
    }

    /// What a sync with this number, beginning now, covers.
    pub(super) fn covered_by(&self, id: u64) -> Covers {
        Covers {
            before: id,
            but: self.in_flight.clone(),
        }
    }

    pub(super) fn records(&self) -> Vec<Record> {
        self.records.clone()
    }

    pub(super) fn forget(&mut self) {
        self.records.clear();
    }
}
