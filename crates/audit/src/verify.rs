//! Checks a log line by line, in order, over as many files as it was rotated into.
//!
//! Always: each line is looked at whatever was wrong with those before it, so that one change shows
//! as one finding, not as a ruined rest. Never: a judgement about what records say.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::extended::{Doubt, Extended, Index};
use crate::line::{self, Link, Parsed};
use crate::{BYTES, ChainKey, LineError, from_hex, hex};

/// Lines that may be missing before one whose MAC is still checked: getting to its key takes a second or two for
/// so many, and whatever a file says must not take for ever.
const STEPS_MAX: u64 = 1 << 22;

/// A line that was told elsewhere, while the log was written: its number and MAC, as `NUMBER:MAC`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// The line's number.
    pub seq: u64,
    /// Its MAC.
    pub mac: [u8; BYTES],
}

/// A text that is no anchor.
#[derive(Debug, Error)]
#[error("it is no anchor: `NUMBER:MAC` was expected, as status and the daemon's log tell it")]
pub struct BadAnchor;

impl FromStr for Anchor {
    type Err = BadAnchor;

    fn from_str(text: &str) -> Result<Self, BadAnchor> {
        let (seq, mac) = text.split_once(':').ok_or(BadAnchor)?;
        Ok(Self {
            seq: seq.parse().map_err(|_| BadAnchor)?,
            mac: from_hex(mac).ok_or(BadAnchor)?,
        })
    }
}

impl fmt::Display for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, hex(&self.mac))
    }
}

/// Something that a log does not have when nobody has touched it.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    /// The first line it is about: its number in the chain.
    pub seq: u64,
    /// The last one.
    pub last: u64,
    /// What it is.
    pub what: Found,
}

/// What is wrong with a line.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Found {
    /// It is no line of a chain.
    #[error("{0}")]
    NoLine(LineError),
    /// The line after it was linked to another one in its place.
    #[error("changed, or put in the place of another: the line after it follows another one")]
    Changed,
    /// The key of its number did not make its MAC.
    #[error("not written by the daemon as it stands: its MAC is not of this key")]
    Forged,
    /// It is not there.
    #[error("missing")]
    Missing,
    /// It stands a second time, or behind one that came later.
    #[error("out of its place, or there twice")]
    Misplaced,
    /// It is not the line that was told elsewhere.
    #[error("written anew: it was {0} once")]
    Rewritten(String),
    /// The log ends before a line that was told elsewhere.
    #[error("missing: the log was longer once, and its end is cut off")]
    Cut,
    /// A line that was told elsewhere comes before the first of these files.
    #[error("not in these files, which begin later: give those from before the rotation too")]
    Before,
    /// It says that another line than the log has went into the TPM's index.
    #[error("another line than this log has went into the TPM's index")]
    OtherLineExtended,
    /// It says that the TPM's index stood where it can't have.
    #[error(
        "the TPM's index did not come there by this line from where the log had it: the log was put back or lines are missing, or \
         somebody else extended the index"
    )]
    OtherIndex,
    /// The TPM's index stands elsewhere now.
    #[error(
        "the TPM's index does not stand where this log would have it: an older log was put back, or its end is cut off"
    )]
    IndexMoved,
    /// The last line has no newline.
    #[error("incomplete: writing it was interrupted, or the end is cut off")]
    Torn,
}

/// Checks a log.
#[derive(Default)]
pub struct Verifier {
    keys: Vec<ChainKey>,
    anchors: Vec<Anchor>,
    first: Option<u64>,
    /// What the next line should be linked to; the hash is not known after what was no line.
    next: Option<(u64, Option<[u8; BYTES]>)>,
    head: Option<Anchor>,
    /// What the log says of the TPM's index, and where that stands.
    index: Index,
    tpm_value: Option<[u8; BYTES]>,
    lines: u64,
    keyed: u64,
    findings: Vec<Finding>,
}

impl Verifier {
    /// One that checks MACs by `keys`, each from its line on, and that `anchors` are in the log.
    #[must_use]
    pub fn new(mut keys: Vec<ChainKey>, anchors: Vec<Anchor>) -> Self {
        keys.sort_by_key(ChainKey::seq);
        Self {
            keys,
            anchors,
            ..Self::default()
        }
    }

    /// Checks besides that the TPM's index, which stands at `value`, is where the log would have it.
    #[must_use]
    pub fn with_tpm_value(mut self, value: Option<[u8; BYTES]>) -> Self {
        self.tpm_value = value;
        self
    }

    /// The next line of the log, with its newline if it has one.
    pub fn line(&mut self, text: &str) {
        self.lines += 1;
        let expected = self.next.map_or(1, |(seq, _)| seq);
        let Some(whole) = text.strip_suffix('\n') else {
            return self.found(expected, Found::Torn);
        };
        match line::parse(whole) {
            Ok(parsed) => self.parsed(whole, &parsed),
            Err(error) => {
                self.found(expected, Found::NoLine(error));
                self.next = Some((expected + 1, None));
            }
        }
    }

    fn parsed(&mut self, whole: &str, parsed: &Parsed<'_>) {
        let Link { seq, prev } = parsed.link;
        self.first.get_or_insert(seq);
        match self.next {
            Some((expected, _)) if seq < expected => {
                return self.found(seq, Found::Misplaced);
            }
            Some((expected, _)) if seq > expected => self.push(Finding {
                seq: expected,
                last: seq - 1,
                what: Found::Missing,
            }),
            Some((_, Some(hash))) if hash != prev => self.found(seq - 1, Found::Changed),
            None if seq == 1 && prev != Link::START.prev => self.found(seq, Found::Changed),
            _ => {}
        }
        self.check_mac(seq, parsed);
        for anchor in self.anchors.extract_if(.., |anchor| anchor.seq == seq) {
            if anchor.mac != parsed.mac {
                self.findings.push(Finding {
                    seq,
                    last: seq,
                    what: Found::Rewritten(hex(&anchor.mac)),
                });
            }
        }
        let head = Anchor {
            seq,
            mac: parsed.mac,
        };
        match self.index.line(head.clone(), Extended::of(whole).as_ref()) {
            Some(Doubt::Line) => self.found(seq, Found::OtherLineExtended),
            Some(Doubt::Value) => self.found(seq, Found::OtherIndex),
            None => {}
        }
        self.head = Some(head);
        self.next = Some((seq + 1, Some(line::hash(whole))));
    }

    fn check_mac(&mut self, seq: u64, parsed: &Parsed<'_>) {
        // The youngest key that is not for a later line.
        let Some(key) = self.keys.iter_mut().rev().find(|key| key.seq() <= seq) else {
            return;
        };
        if seq - key.seq() > STEPS_MAX {
            return;
        }
        while key.seq() < seq {
            key.step();
        }
        self.keyed += 1;
        if !key.made(parsed) {
            self.found(seq, Found::Forged);
        }
    }

    fn found(&mut self, seq: u64, what: Found) {
        self.push(Finding {
            seq,
            last: seq,
            what,
        });
    }

    /// Notes a finding; the same thing about the next line is one finding with it.
    fn push(&mut self, finding: Finding) {
        if let Some(last) = self.findings.last_mut()
            && last.what == finding.what
            && last.last.checked_add(1) == Some(finding.seq)
        {
            last.last = finding.last;
        } else {
            self.findings.push(finding);
        }
    }

    /// What was found in all the lines, in their order.
    #[must_use]
    pub fn finish(mut self) -> Report {
        let mut anchors = std::mem::take(&mut self.anchors);
        anchors.sort_by_key(|anchor| anchor.seq);
        let next = self.next.map_or(1, |(seq, _)| seq);
        for anchor in anchors {
            let before = self.first.is_some_and(|first| anchor.seq < first);
            if before {
                self.found(anchor.seq, Found::Before);
            } else if anchor.seq >= next {
                self.found(anchor.seq, Found::Cut);
            }
            // Else its line is known to be missing or no line.
        }
        if self
            .tpm_value
            .is_some_and(|value| !self.index.may_stand_at(&value))
        {
            self.found(next, Found::IndexMoved);
        }
        Report {
            lines: self.lines,
            first: self.first,
            head: self.head,
            keyed: self.keyed,
            findings: self.findings,
        }
    }
}

/// What a log was found to be.
#[derive(Debug)]
pub struct Report {
    /// Lines that were looked at.
    pub lines: u64,
    /// The number of the first.
    pub first: Option<u64>,
    /// The last one: an anchor for the next time.
    pub head: Option<Anchor>,
    /// Lines whose MAC was checked by a key.
    pub keyed: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn first_key() -> ChainKey {
        ChainKey::generate(1, |bytes| bytes.fill(0x42))
    }

    /// A log of `count` lines.
    fn log(count: u64) -> Vec<String> {
        let (mut key, mut link) = (first_key(), Link::START);
        (0..count)
            .map(|number| {
                let record = format!("{{\"operation\":\"unwrap\",\"n\":{number}}}");
                let sealed = line::seal(&record, &link, &key).expect("sealed");
                key.step();
                link = sealed.next;
                sealed.text
            })
            .collect()
    }

    fn report(lines: &[String], keys: Vec<ChainKey>, anchors: Vec<Anchor>) -> Report {
        let mut verifier = Verifier::new(keys, anchors);
        for line in lines {
            verifier.line(line);
        }
        verifier.finish()
    }

    fn findings(lines: &[String], keys: Vec<ChainKey>) -> Vec<(u64, u64, Found)> {
        let report = report(lines, keys, Vec::new());
        let parts = |finding: Finding| (finding.seq, finding.last, finding.what);
        report.findings.into_iter().map(parts).collect()
    }

    fn anchor(lines: &[String], index: usize) -> Anchor {
        let line = lines[index].trim_end();
        let parsed = line::parse(line).expect("a line");
        let text = format!("{}:{}", parsed.link.seq, hex(&parsed.mac));
        let anchor: Anchor = text.parse().expect("an anchor");
        assert_eq!(anchor.to_string(), text);
        anchor
    }

    #[test]
    fn an_untouched_log_has_no_findings() {
        let lines = log(20);
        let report = report(
            &lines,
            vec![first_key()],
            vec![anchor(&lines, 7), anchor(&lines, 19)],
        );
        assert_eq!(report.findings, []);
        assert_eq!(
            (report.lines, report.keyed, report.first),
            (20, 20, Some(1))
        );
        assert_eq!(report.head, Some(anchor(&lines, 19)));
    }

    #[test]
    fn what_rotation_left_is_checked_from_its_first_line() {
        let lines = log(20);
        let rest = report(&lines[12..], vec![first_key()], Vec::new());
        assert_eq!(rest.findings, []);
        assert_eq!((rest.first, rest.keyed), (Some(13), 8));
        let before = report(&lines[12..], Vec::new(), vec![anchor(&lines, 3)]);
        assert_eq!(before.findings[0].what, Found::Before);
    }

    #[test]
    fn an_edit_is_found_without_a_key_and_with_one() {
        let mut lines = log(9);
        lines[4] = lines[4].replace("unwrap", "Unwrap");
        assert_eq!(findings(&lines, Vec::new()), [(5, 5, Found::Changed)]);
        assert_eq!(
            findings(&lines, vec![first_key()]),
            [(5, 5, Found::Forged), (5, 5, Found::Changed)]
        );
    }

    #[test]
    fn a_dropped_a_moved_and_a_repeated_line_are_found() {
        let mut dropped = log(9);
        dropped.drain(3..6);
        assert_eq!(
            findings(&dropped, vec![first_key()]),
            [(4, 6, Found::Missing)]
        );
        let mut moved = log(9);
        moved.swap(3, 4);
        let found = findings(&moved, vec![first_key()]);
        assert_eq!(found, [(4, 4, Found::Missing), (4, 4, Found::Misplaced)]);
        let mut repeated = log(9);
        repeated.insert(5, repeated[4].clone());
        assert_eq!(findings(&repeated, Vec::new()), [(5, 5, Found::Misplaced)]);
    }

    #[test]
    fn a_line_that_is_none_is_one_finding() {
        let mut lines = log(9);
        lines[4] = "{\"n\":1}\n".to_owned();
        let found = findings(&lines, vec![first_key()]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(matches!(found[0], (5, 5, Found::NoLine(_))));
    }

    #[test]
    fn a_log_made_anew_is_found_by_the_key_and_by_an_anchor() {
        let true_lines = log(9);
        let mut key = ChainKey::generate(1, |bytes| bytes.fill(0x43));
        let mut link = Link::START;
        let mut forged = Vec::new();
        for number in 0..9 {
            let sealed = line::seal(&format!("{{\"n\":{number}}}"), &link, &key).expect("sealed");
            key.step();
            link = sealed.next;
            forged.push(sealed.text);
        }
        assert_eq!(findings(&forged, Vec::new()), []);
        assert_eq!(
            findings(&forged, vec![first_key()]),
            [(1, 9, Found::Forged)]
        );
        let anchored = report(&forged, Vec::new(), vec![anchor(&true_lines, 6)]);
        assert!(matches!(
            anchored.findings[..],
            [Finding {
                seq: 7,
                what: Found::Rewritten(_),
                ..
            }]
        ));
    }

    #[test]
    fn a_cut_tail_is_found_by_an_anchor() {
        let lines = log(9);
        assert_eq!(findings(&lines[..5], vec![first_key()]), []);
        let cut = report(&lines[..5], vec![first_key()], vec![anchor(&lines, 8)]);
        assert_eq!(
            cut.findings,
            [Finding {
                seq: 9,
                last: 9,
                what: Found::Cut
            }]
        );
        let all = report(&[], Vec::new(), vec![anchor(&lines, 0)]);
        assert_eq!(all.findings[0].what, Found::Cut);
        let mut torn = lines[..5].to_vec();
        torn[4].pop();
        assert_eq!(findings(&torn, Vec::new()), [(5, 5, Found::Torn)]);
    }

    #[test]
    fn a_mac_has_one_spelling() {
        let mut lines = log(3);
        let at = lines[2]
            .rfind(|digit: char| matches!(digit, 'a'..='f'))
            .expect("a letter");
        let upper = lines[2][at..=at].to_uppercase();
        lines[2].replace_range(at..=at, &upper);
        assert!(!findings(&lines, vec![first_key()]).is_empty());
    }

    #[test]
    fn numbers_that_nobody_gave_end_no_check() {
        let mut lines = log(3);
        for number in ["0", "18446744073709551615", "18446744073709551614"] {
            lines[1] = lines[1].replace("\"seq\":2", &format!("\"seq\":{number}"));
            assert!(!findings(&lines, vec![first_key()]).is_empty());
            lines[1] = log(3)[1].clone();
        }
    }

    #[test]
    fn a_chain_begun_again_needs_its_own_key() {
        let mut lines = log(4);
        let mut link = Link {
            seq: 5,
            prev: line::hash(lines[3].trim_end()),
        };
        let second = || ChainKey::generate(5, |bytes| bytes.fill(0x77));
        let mut key = second();
        for _ in 0..3 {
            let sealed = line::seal("{}", &link, &key).expect("sealed");
            key.step();
            link = sealed.next;
            lines.push(sealed.text);
        }
        assert_eq!(findings(&lines, vec![first_key()]), [(5, 7, Found::Forged)]);
        assert_eq!(findings(&lines, vec![second(), first_key()]), []);
    }

    /// A log of which each third line says what went into an index, and where that stands in the end.
    fn extended_log(count: u64) -> (Vec<String>, [u8; BYTES]) {
        let (mut key, mut link) = (first_key(), Link::START);
        let (mut value, mut before) = ([0; BYTES], None);
        let mut lines = Vec::new();
        for number in 0..count {
            let record = match before.as_ref().filter(|_| number % 3 == 2) {
                Some(head) => {
                    value = crate::extended(&value, head);
                    format!(
                        "{{\"anchored\":\"{head}\",\"tpm-value\":\"{}\"}}",
                        hex(&value)
                    )
                }
                None => "{}".to_owned(),
            };
            let sealed = line::seal(&record, &link, &key).expect("sealed");
            let (seq, mac) = (link.seq, sealed.mac);
            key.step();
            link = sealed.next;
            before = Some(Anchor { seq, mac });
            lines.push(sealed.text);
        }
        (lines, value)
    }

    #[test]
    fn an_older_log_that_was_put_back_is_found_by_the_index() {
        let found = |lines: &[String], value| {
            let mut verifier =
                Verifier::new(vec![first_key()], Vec::new()).with_tpm_value(Some(value));
            lines.iter().for_each(|line| verifier.line(line));
            let findings = verifier.finish().findings.into_iter();
            findings
                .map(|finding| (finding.seq, finding.what))
                .collect::<Vec<_>>()
        };
        let (lines, value) = extended_log(10);
        assert_eq!(found(&lines, value), []);
        // Without line 9, which says that 8 went in, it is as after a crash between the two; without 8 it is not.
        assert_eq!(found(&lines[..8], value), []);
        assert_eq!(found(&lines[..7], value), [(8, Found::IndexMoved)]);
        // It went in and the machine died before it was told.
        let head = anchor(&lines, 9);
        assert_eq!(found(&lines, crate::extended(&value, &head)), []);
        // An older log that was gone on with by who has its key of then: it knows the value, not the way there.
        let (older, _) = extended_log(5);
        let mut key = first_key();
        (0..5).for_each(|_| key.step());
        let prev = line::hash(older[4].trim_end());
        let link = Link { seq: 6, prev };
        let claim = format!(
            "{{\"anchored\":\"{}\",\"tpm-value\":\"{}\"}}",
            anchor(&older, 4),
            hex(&value)
        );
        let forged = line::seal(&claim, &link, &key).expect("sealed").text;
        let forged = [&older[..], &[forged]].concat();
        assert_eq!(found(&forged, value), [(6, Found::OtherIndex)]);
    }

    proptest! {
        /// Whatever single byte of a log is changed, the key or the chain finds it.
        #[test]
        fn no_changed_byte_goes_unseen(line in 0usize..6, place in 0usize..400, bit in 0u8..7) {
            let mut lines = log(6);
            let mut bytes = lines[line].clone().into_bytes();
            let place = place % bytes.len();
            bytes[place] ^= 1 << bit;
            let changed = String::from_utf8(bytes).expect("ASCII");
            let text: String = lines.drain(..).enumerate().map(|(number, text)| {
                if number == line { changed.clone() } else { text }
            }).collect();
            let lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
            prop_assert!(!findings(&lines, vec![first_key()]).is_empty());
        }
    }
}
