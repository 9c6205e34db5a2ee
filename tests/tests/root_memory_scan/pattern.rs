//! What is searched for: pieces of secrets, in each form that a program might leave them in.
//!
//! A piece is 8 bytes of a secret, at each multiple of 8: half of a round key, what one general register holds. So a secret is
//! found whole, in part, and where a compiler spilled it word by word; the chance that 8 other bytes are the same is nil.

use std::collections::HashMap;

/// Bytes of a secret that make one piece.
const PIECE: usize = 8;

/// Bytes of every form of a piece by which it is looked up.
const PREFIX: usize = 8;

/// Characters of base64 that are compared at once: 60 bits, wherever a piece starts in them.
const BASE64_PIECE: usize = 10;

/// Bits of the table that tells most places apart from the start of a piece.
const FILTER_BITS: u32 = 20;

/// Something to look for: a key, or a control that shows what it is worth to find none.
#[derive(Clone, Debug)]
pub(crate) struct Secret {
    /// What it is, for messages.
    pub(crate) name: String,
    /// Its bytes.
    pub(crate) bytes: Vec<u8>,
    /// What it is to the search.
    pub(crate) kind: Kind,
}

/// What it means to find something, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Must not be found.
    Key,
    /// In the process since it began, in every form.
    Planted,
    /// Written to the end of each worker's stack by the scanner.
    OnStacks,
    /// In memory that the process has freed.
    Freed,
    /// Came to the process as a key came, and is no secret.
    SameWay,
}

impl Kind {
    /// Whether it is searched in every one of [`FORMS`]; else as it is.
    fn in_every_form(self) -> bool {
        matches!(self, Self::Key | Self::Planted)
    }
}

/// The forms that a secret is searched in.
pub(crate) const FORMS: [&str; 10] = [
    "raw",
    "xor 0x36",
    "xor 0x5c",
    "4-byte words swapped",
    "8-byte words swapped",
    "lower-case hex",
    "upper-case hex",
    "base64 at 0",
    "base64 at 1",
    "base64 at 2",
];

/// One thing to be found.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    /// The secret that it is a part of, as an index.
    pub(crate) secret: usize,
    /// Index into [`FORMS`].
    pub(crate) form: usize,
    /// What is searched for; [`PREFIX`] bytes or more.
    pub(crate) bytes: Vec<u8>,
}

/// Pieces of secrets, and tables to find them all in one pass.
pub(crate) struct Patterns {
    secrets: Vec<Secret>,
    pieces: Vec<Piece>,
    filter: Vec<u64>,
    by_prefix: HashMap<u64, Vec<usize>>,
}

impl Patterns {
    /// All pieces of `secrets` in all forms. The first of two equal pieces counts.
    pub(crate) fn new(secrets: Vec<Secret>) -> Self {
        let mut patterns = Self {
            secrets: Vec::new(),
            pieces: Vec::new(),
            filter: vec![0; 1 << (FILTER_BITS - 6)],
            by_prefix: HashMap::new(),
        };
        for (number, secret) in secrets.iter().enumerate() {
            assert!(
                secret.bytes.len() >= 2 * PIECE && secret.bytes.len().is_multiple_of(PIECE),
                "{}: {} bytes",
                secret.name,
                secret.bytes.len()
            );
            let forms = if secret.kind.in_every_form() {
                FORMS.len()
            } else {
                1
            };
            for form in 0..forms {
                for bytes in in_form(&secret.bytes, form) {
                    patterns.add(Piece {
                        secret: number,
                        form,
                        bytes,
                    });
                }
            }
        }
        patterns.secrets = secrets;
        patterns
    }

    fn add(&mut self, piece: Piece) {
        let prefix = word(&piece.bytes);
        let same = self.by_prefix.entry(prefix).or_default();
        if same.iter().any(|&at| self.pieces[at].bytes == piece.bytes) {
            return;
        }
        same.push(self.pieces.len());
        self.pieces.push(piece);
        let slot = slot(prefix);
        self.filter[slot >> 6] |= 1 << (slot & 63);
    }

    /// The secrets.
    pub(crate) fn secrets(&self) -> &[Secret] {
        &self.secrets
    }

    /// What the piece with this index is to the search.
    pub(crate) fn kind(&self, piece: usize) -> Kind {
        self.secrets[self.pieces[piece].secret].kind
    }

    /// All that is searched for.
    pub(crate) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Calls `found` with the place of each piece in `memory`, at any alignment, and its index.
    pub(crate) fn search(&self, memory: &[u8], mut found: impl FnMut(usize, usize)) {
        for (at, window) in memory.windows(PREFIX).enumerate() {
            let prefix = word(window);
            let slot = slot(prefix);
            if self.filter[slot >> 6] >> (slot & 63) & 1 == 0 {
                continue;
            }
            for &piece in self.by_prefix.get(&prefix).into_iter().flatten() {
                if memory[at..].starts_with(&self.pieces[piece].bytes) {
                    found(at, piece);
                }
            }
        }
    }
}

fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(*bytes.first_chunk().expect("no piece is shorter"))
}

fn slot(prefix: u64) -> usize {
    // 20 bits of a product.
    usize::try_from(prefix.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - FILTER_BITS))
        .expect("a few bits")
}

/// The pieces of `secret` in one of [`FORMS`].
fn in_form(secret: &[u8], form: usize) -> Vec<Vec<u8>> {
    let pieces = secret.chunks_exact(PIECE);
    let each = |change: &dyn Fn(&[u8]) -> Vec<u8>| pieces.clone().map(change).collect();
    match form {
        0 => each(&<[u8]>::to_vec),
        1 | 2 => {
            let pad = [0x36, 0x5c][form - 1];
            each(&|piece| piece.iter().map(|byte| byte ^ pad).collect())
        }
        3 | 4 => {
            let len = [4, 8][form - 3];
            let swapped = |piece: &[u8]| {
                let words = piece.chunks_exact(len);
                words.flat_map(|word| word.iter().rev().copied()).collect()
            };
            each(&swapped)
        }
        5 | 6 => {
            let digits: &[u8; 16] = [b"0123456789abcdef", b"0123456789ABCDEF"][form - 5];
            let digit = |nibble: u8| digits[usize::from(nibble & 15)];
            each(&|piece| {
                let pairs = piece.iter().map(|byte| [digit(byte >> 4), digit(*byte)]);
                pairs.flatten().collect()
            })
        }
        _ => base64(secret, form - 7),
    }
}

/// The characters of base64 that are the same whatever stands before and behind the secret, which starts `before` bytes after
/// a multiple of 3.
fn base64(secret: &[u8], before: usize) -> Vec<Vec<u8>> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let whole = &secret[(3 - before) % 3..];
    let characters: Vec<u8> = whole
        .chunks_exact(3)
        .flat_map(|group| {
            let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
            [18, 12, 6, 0].map(|shift| DIGITS[(bits >> shift & 63) as usize])
        })
        .collect();
    let pieces = characters.chunks_exact(BASE64_PIECE);
    pieces.map(<[u8]>::to_vec).collect()
}
