//! Heads of the log in a register that can be extended and never set: an NV index of a TPM of the type *extend*.
//!
//! ```text
//! value n+1 = SHA-256(value n ‖ number of a line, 8 bytes big-endian ‖ MAC of that line)        value 0 = 32 zeros
//! ```
//! which is what `TPM2_NV_Extend` makes of an index with the name algorithm SHA-256 [TPM 2.0 Library, part 3, 31.10]. A line of
//! the log says which line went in and what came out. Whoever puts an older log back, key file and all, and goes on from there,
//! can't bring the index to what that log says: it only goes forward, by lines that this log does not have.
//!
//! Always: a line that went in between two daemons (the machine died before it was told) is looked for among those since the
//! last one that was told. Never: a judgement about the first line of this kind; what the index was before nobody knows here.

use std::collections::VecDeque;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::{Anchor, BYTES, from_hex};

/// Lines that are remembered to be looked for: many more than come between a head's way into the index and the record of it.
const REMEMBERED: usize = 1 << 14;

/// What goes into the index for a line.
#[must_use]
pub fn extension(anchor: &Anchor) -> [u8; 8 + BYTES] {
    let mut bytes = [0; 8 + BYTES];
    bytes[..8].copy_from_slice(&anchor.seq.to_be_bytes());
    bytes[8..].copy_from_slice(&anchor.mac);
    bytes
}

/// What an index that stood at `value` stands at when a line went in.
#[must_use]
pub fn extended(value: &[u8; BYTES], anchor: &Anchor) -> [u8; BYTES] {
    Sha256::new()
        .chain_update(value)
        .chain_update(extension(anchor))
        .finalize()
        .into()
}

/// What a line of the log says of the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extended {
    /// The line that went in.
    pub anchor: Anchor,
    /// Where the index stood then.
    pub value: [u8; BYTES],
}

impl Extended {
    /// What `line` says, if it is about that.
    #[must_use]
    pub fn of(line: &str) -> Option<Self> {
        // Most lines are about something else, and are not taken apart a second time.
        if !line.contains("\"tpm-value\"") {
            return None;
        }
        let fields: Value = serde_json::from_str(line).ok()?;
        let text = |name: &str| fields.get(name).and_then(Value::as_str);
        Some(Self {
            anchor: text("anchored")?.parse().ok()?,
            value: from_hex(text("tpm-value")?)?,
        })
    }
}

/// What a log says of the index, followed line by line.
#[derive(Clone, Debug, Default)]
pub struct Index {
    value: Option<[u8; BYTES]>,
    /// Lines since the last that is known to have gone in.
    since: VecDeque<Anchor>,
}

/// What the record of a line that went in should not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// The log has another line of that number.
    Line,
    /// The index would stand elsewhere.
    Value,
}

impl Index {
    /// The next line, which is `anchor`, with what it says of the index.
    pub fn line(&mut self, anchor: Anchor, says: Option<&Extended>) -> Option<Doubt> {
        let doubt = says.and_then(|says| self.says(says));
        if self.since.len() == REMEMBERED {
            self.since.pop_front();
        }
        self.since.push_back(anchor);
        doubt
    }

    fn says(&mut self, says: &Extended) -> Option<Doubt> {
        let at = says.anchor.seq;
        let line = self.since.iter().find(|line| line.seq == at);
        let other = line.is_some_and(|line| *line != says.anchor);
        let value = self.value.replace(says.value);
        self.since.retain(|line| line.seq > at);
        let fits = value.is_none_or(|value| extended(&value, &says.anchor) == says.value);
        match (other, fits) {
            (true, _) => Some(Doubt::Line),
            (false, false) => Some(Doubt::Value),
            (false, true) => None,
        }
    }

    /// Where the log says that the index stands; `None`: it says nothing.
    #[must_use]
    pub fn value(&self) -> Option<&[u8; BYTES]> {
        self.value.as_ref()
    }

    /// The line with which the index came to stand at `value`, if that is the next step from what the log says.
    #[must_use]
    pub fn unrecorded(&self, value: &[u8; BYTES]) -> Option<&Anchor> {
        let from = self.value.unwrap_or([0; BYTES]);
        let mut since = self.since.iter().rev();
        since.find(|line| extended(&from, line) == *value)
    }

    /// Whether an index that stands at `value` is the one that the log speaks of, with nothing of the log gone since.
    #[must_use]
    pub fn may_stand_at(&self, value: &[u8; BYTES]) -> bool {
        self.value.as_ref() == Some(value) || self.unrecorded(value).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hex;

    fn line(seq: u64) -> Anchor {
        let mac = [u8::try_from(seq).expect("small"); BYTES];
        Anchor { seq, mac }
    }

    fn said(value: &[u8; BYTES], seq: u64) -> Extended {
        let anchor = line(seq);
        let value = extended(value, &anchor);
        Extended { anchor, value }
    }

    /// A log of lines 1 to `count`, of which some say what went in.
    fn followed(count: u64, says: &[(u64, &Extended)]) -> (Index, Vec<(u64, Doubt)>) {
        let mut index = Index::default();
        let doubts = (1..=count).filter_map(|seq| {
            let says = says
                .iter()
                .find(|(at, _)| *at == seq)
                .map(|(_, says)| *says);
            index.line(line(seq), says).map(|doubt| (seq, doubt))
        });
        let doubts = doubts.collect();
        (index, doubts)
    }

    #[test]
    fn what_a_line_says_is_read_and_nothing_else() {
        let says = said(&[0; BYTES], 7);
        let text = format!(
            "{{\"operation\":\"anchor\",\"anchored\":\"{}\",\"tpm-value\":\"{}\",\"seq\":9}}",
            says.anchor,
            hex(&says.value)
        );
        assert_eq!(Extended::of(&text), Some(says));
        for other in [
            "{\"operation\":\"unwrap\"}".to_owned(),
            text.replace("anchored", "anchor"),
            text.replace("\"7:", "\"x:"),
            text.replace("{\"", "{{\""),
        ] {
            assert_eq!(Extended::of(&other), None, "{other}");
        }
    }

    #[test]
    fn a_chain_of_values_is_followed_from_the_first() {
        let first = said(&[9; BYTES], 2);
        let second = said(&first.value, 5);
        let (index, doubts) = followed(8, &[(3, &first), (7, &second)]);
        assert_eq!(doubts, []);
        assert!(index.may_stand_at(&second.value));
        assert!(!index.may_stand_at(&first.value), "it only goes forward");
        let later = extended(&second.value, &line(8));
        assert_eq!(index.unrecorded(&later), Some(&line(8)));
        let gone = extended(&second.value, &line(9));
        assert!(!index.may_stand_at(&gone), "line 9 is not in this log");
        let before = extended(&second.value, &line(5));
        assert!(!index.may_stand_at(&before), "nor does a line go in twice");
    }

    #[test]
    fn a_missing_step_and_another_line_are_doubted() {
        let first = said(&[0; BYTES], 2);
        let second = said(&first.value, 5);
        let third = said(&second.value, 8);
        let (_, doubts) = followed(9, &[(3, &first), (9, &third)]);
        assert_eq!(doubts, [(9, Doubt::Value)]);
        let mut other = second.clone();
        other.anchor.mac[0] ^= 1;
        let (_, doubts) = followed(9, &[(3, &first), (6, &other)]);
        assert_eq!(doubts, [(6, Doubt::Line)]);
    }

    #[test]
    fn the_first_step_of_all_may_be_unrecorded() {
        let (index, _) = followed(4, &[]);
        assert!(index.may_stand_at(&extended(&[0; BYTES], &line(4))));
        assert!(!index.may_stand_at(&[0; BYTES]), "nothing ever went in");
    }
}
