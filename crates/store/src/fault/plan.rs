//! What is to go wrong, and when.

use std::ops::Range;
use std::path::Path;

use super::gate::{Gate, Hold};
use crate::Operation;

/// Which operations a fault or a [`Gate`] meets. Starts as the next one of any kind, and is
/// narrowed down: `When::operation(Operation::Write).file("meta").nth(3)`.
#[derive(Clone, Debug)]
pub struct When {
    operation: Option<Operation>,
    file: Option<String>,
    range: Option<Range<u64>>,
    skip: u64,
    times: u64,
}

impl When {
    /// The next operation, whatever it is.
    #[must_use]
    pub fn any() -> Self {
        Self {
            operation: None,
            file: None,
            range: None,
            skip: 0,
            times: 1,
        }
    }

    /// The next operation of this kind.
    #[must_use]
    pub fn operation(operation: Operation) -> Self {
        Self {
            operation: Some(operation),
            ..Self::any()
        }
    }

    /// Only on this file or directory: a name, or as much of the path as is needed
    /// (`layer-1/meta`).
    #[must_use]
    pub fn file(mut self, path: &str) -> Self {
        self.file = Some(path.to_owned());
        self
    }

    /// Only if it touches one of these bytes of the file.
    #[must_use]
    pub fn range(mut self, bytes: Range<u64>) -> Self {
        self.range = Some(bytes);
        self
    }

    /// From the `nth` that fits, counted from 1.
    ///
    /// # Panics
    /// If `nth` is 0.
    #[must_use]
    pub fn nth(mut self, nth: u64) -> Self {
        assert_ne!(nth, 0, "operations are counted from 1");
        self.skip = nth - 1;
        self
    }

    /// So many of them; one if not said.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// All of them from then on.
    #[must_use]
    pub fn always(self) -> Self {
        self.times(u64::MAX)
    }

    fn fits(&self, operation: Operation, path: &Path, offset: u64, len: u64) -> bool {
        self.operation.is_none_or(|wanted| wanted == operation)
            && self
                .file
                .as_ref()
                .is_none_or(|wanted| path.ends_with(wanted))
            && self
                .range
                .as_ref()
                .is_none_or(|wanted| offset < wanted.end && offset + len > wanted.start)
    }

    /// Counts one that fits; returns whether it is met.
    fn meets(&mut self) -> bool {
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        let met = self.times > 0;
        self.times = self.times.saturating_sub(1);
        met
    }
}

/// Why an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// `EIO`.
    Io,
    /// `ENOSPC`.
    NoSpace,
}

/// What happens to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails and nothing of it has happened. A sync or durable write fails as measured on
    /// Linux: some of what it covers reached the disk and some did not, by seed; the cache goes
    /// on showing all of it as new, and no later sync writes it again or reports it.
    Fail(Failure),
    /// It fails, and a part has happened: of a write either a prefix (short) or any subset of
    /// its sectors (torn), of a punch a prefix, by seed. Others are as with [`Fault::Fail`].
    FailPartly(Failure),
    /// The power goes while it is in flight.
    CutPower,
}

enum Effect {
    Fault(Fault),
    Hold(Hold, Gate),
}

/// Everything that is still to go wrong.
#[derive(Default)]
pub(super) struct Plan {
    rules: Vec<(When, Effect)>,
}

/// What the plan has for one operation.
#[derive(Default)]
pub(super) struct Verdict {
    pub(super) fault: Option<Fault>,
    pub(super) hold: Option<(Hold, Gate)>,
}

impl Plan {
    pub(super) fn inject(&mut self, when: When, fault: Fault) {
        self.rules.push((when, Effect::Fault(fault)));
    }

    pub(super) fn hold(&mut self, when: When, hold: Hold) -> Gate {
        let gate = Gate::default();
        self.rules.push((when, Effect::Hold(hold, gate.clone())));
        gate
    }

    /// What is to happen to an operation. Every rule that fits it counts it; of those that meet
    /// it, the first fault and the first gate hold.
    pub(super) fn judge(
        &mut self,
        operation: Operation,
        path: &Path,
        offset: u64,
        len: u64,
    ) -> Verdict {
        let mut verdict = Verdict::default();
        for (when, effect) in &mut self.rules {
            if !when.fits(operation, path, offset, len) || !when.meets() {
                continue;
            }
            match effect {
                Effect::Fault(fault) => verdict.fault = verdict.fault.or(Some(*fault)),
                Effect::Hold(hold, gate) => {
                    verdict.hold.get_or_insert_with(|| (*hold, gate.clone()));
                }
            }
        }
        verdict
    }

    /// Forgets everything, and lets go what is held: the power is off.
    pub(super) fn clear(&mut self) {
        for (_, effect) in self.rules.drain(..) {
            if let Effect::Hold(_, gate) = effect {
                gate.release();
            }
        }
    }
}
