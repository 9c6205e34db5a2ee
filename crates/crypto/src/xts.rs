//! AES-256-XTS (IEEE Std 1619-2018) over whole data units.
//!
//! ```text
//!   T(n, j) = AES-enc(K2, n as 16 bytes, little-endian) · x^j      n: data unit, j: block in it
//!   C = AES-enc(K1, P ⊕ T) ⊕ T                                     GF(2^128), x^128 = x^7+x^2+x+1
//! ```
//!
//! With data units of 512 bytes this is dm-crypt's `aes-xts-plain64`; with 4096 bytes the same with
//! `--sector-size 4096 --iv-large-sectors`.
//!
//! Why it looks as it does: the cipher is fast when it is fed as many blocks as its widest backend
//! takes at once (64 with VAES on 512-bit registers), so blocks are handled in batches of 64, and
//! everything about tweaks is arithmetic on arrays that the compiler turns into vector code inside
//! the backend: the tweaks of a batch come from one tweak by shifts instead of 64 doublings one after
//! the other, and the tweaks of many data units are encrypted in one call.
//!
//! Lengths are whole blocks: there is no ciphertext stealing here.

use aes::{Aes256Dec, Aes256Enc, Block};
use cipher::consts::U16;
use cipher::inout::InOutBuf;
use cipher::{
    BlockCipherDecBackend, BlockCipherDecClosure, BlockCipherDecrypt, BlockCipherEncBackend,
    BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser, KeyInit,
};

/// Bytes of an AES block.
pub(crate) const BLOCK_BYTES: usize = 16;

/// Blocks handled together: what the widest backend encrypts at once.
const BATCH: usize = 64;

/// Data units whose tweaks are encrypted together.
const TWEAK_BATCH: usize = 64;

/// The expanded key: K1 in both directions and K2 in the one that XTS uses.
pub(crate) struct XtsKeys {
    data_enc: Aes256Enc,
    data_dec: Aes256Dec,
    tweak: Aes256Enc,
}

// Three schedules of 15 round keys each; a fourth would be the half of K2 that nothing uses.
const _: () = assert!(size_of::<XtsKeys>() == 3 * 15 * BLOCK_BYTES);

impl XtsKeys {
    /// Expands K1 ‖ K2. Call behind the boundary of `residue.rs`.
    pub(crate) fn new(key: &[u8; 64]) -> Self {
        let (k1, k2) = key.split_at(32);
        let [k1, k2] = [k1, k2].map(|half| half.try_into().expect("half of 64 bytes"));
        Self {
            data_enc: Aes256Enc::new(k1),
            data_dec: Aes256Dec::new(k1),
            tweak: Aes256Enc::new(k2),
        }
    }

    /// Encrypts whole data units of `unit_bytes`, the first of which has the number `first_unit`.
    ///
    /// # Panics
    /// When the data are not whole data units, or a data unit is not whole blocks.
    #[inline(never)]
    pub(crate) fn encrypt(&self, unit_bytes: usize, first_unit: u128, data: InOutBuf<'_, '_, u8>) {
        self.for_tweaks(unit_bytes, first_unit, data, |units| {
            self.data_enc.encrypt_with_backend(units);
        });
    }

    /// Decrypts what [`XtsKeys::encrypt`] made.
    ///
    /// # Panics
    /// As for `encrypt`.
    #[inline(never)]
    pub(crate) fn decrypt(&self, unit_bytes: usize, first_unit: u128, data: InOutBuf<'_, '_, u8>) {
        self.for_tweaks(unit_bytes, first_unit, data, |units| {
            self.data_dec.decrypt_with_backend(units);
        });
    }

    /// Hands out runs of data units with their encrypted tweaks.
    #[inline(always)]
    fn for_tweaks(
        &self,
        unit_bytes: usize,
        first_unit: u128,
        data: InOutBuf<'_, '_, u8>,
        mut run: impl FnMut(Units<'_, '_, '_>),
    ) {
        assert!(
            unit_bytes != 0 && unit_bytes.is_multiple_of(BLOCK_BYTES),
            "a data unit of {unit_bytes} bytes is not whole blocks"
        );
        assert!(
            data.len().is_multiple_of(unit_bytes),
            "{} bytes are not whole data units of {unit_bytes} bytes",
            data.len()
        );
        let unit_blocks = unit_bytes / BLOCK_BYTES;
        let (mut blocks, _) = data.into_chunks::<U16>();
        let mut unit = first_unit;
        while !blocks.is_empty() {
            let count = TWEAK_BATCH.min(blocks.len() / unit_blocks);
            let (now, later) = blocks.split_at(count * unit_blocks);
            blocks = later;
            let mut tweaks = [Block::default(); TWEAK_BATCH];
            for tweak in &mut tweaks[..count] {
                *tweak = unit.to_le_bytes().into();
                unit += 1;
            }
            self.tweak.encrypt_blocks(&mut tweaks[..count]);
            run(Units {
                tweaks: &tweaks[..count],
                unit_blocks,
                blocks: now,
            });
        }
    }
}

/// Data units with their encrypted tweaks, to be run through one of the cipher's backends.
struct Units<'tweaks, 'inp, 'out> {
    tweaks: &'tweaks [Block],
    unit_blocks: usize,
    blocks: InOutBuf<'inp, 'out, Block>,
}

impl BlockSizeUser for Units<'_, '_, '_> {
    type BlockSize = U16;
}

impl BlockCipherEncClosure for Units<'_, '_, '_> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        self.run(
            #[inline(always)]
            |batch| {
                let (chunks, rest) = InOutBuf::from(batch).into_chunks::<B::ParBlocksSize>();
                for chunk in chunks {
                    backend.encrypt_par_blocks(chunk);
                }
                if !rest.is_empty() {
                    backend.encrypt_tail_blocks(rest);
                }
            },
        );
    }
}

impl BlockCipherDecClosure for Units<'_, '_, '_> {
    #[inline(always)]
    fn call<B: BlockCipherDecBackend<BlockSize = U16>>(self, backend: &B) {
        self.run(
            #[inline(always)]
            |batch| {
                let (chunks, rest) = InOutBuf::from(batch).into_chunks::<B::ParBlocksSize>();
                for chunk in chunks {
                    backend.decrypt_par_blocks(chunk);
                }
                if !rest.is_empty() {
                    backend.decrypt_tail_blocks(rest);
                }
            },
        );
    }
}

impl Units<'_, '_, '_> {
    /// Masks, ciphers and masks again, a batch of blocks at a time.
    #[inline(always)]
    fn run(self, cipher: impl Fn(&mut [Block])) {
        let mut source = TweakSource::new(self.tweaks, self.unit_blocks);
        let mut blocks = self.blocks;
        let mut tweaks = [[0; 2]; BATCH];
        let mut batch = [Block::default(); BATCH];
        while !blocks.is_empty() {
            let count = BATCH.min(blocks.len());
            let (mut now, later) = blocks.split_at(count);
            blocks = later;
            source.fill(&mut tweaks[..count]);
            mask(&mut batch[..count], now.get_in(), &tweaks[..count]);
            cipher(&mut batch[..count]);
            mask(now.get_out(), &batch[..count], &tweaks[..count]);
        }
    }
}

/// `out = input ⊕ tweaks`, block by block.
#[inline(always)]
fn mask(out: &mut [Block], input: &[Block], tweaks: &[[u64; 2]]) {
    for ((out, input), tweak) in out.iter_mut().zip(input).zip(tweaks) {
        for (half, word) in tweak.iter().enumerate() {
            let at = half * 8..half * 8 + 8;
            let input: [u8; 8] = input[at.clone()].try_into().expect("eight bytes");
            let masked = u64::from_le_bytes(input) ^ word;
            out[at].copy_from_slice(&masked.to_le_bytes());
        }
    }
}

/// The tweaks of all blocks of a run of data units, in order.
struct TweakSource<'a> {
    /// Encrypted tweaks of the data units that have not begun.
    units: &'a [Block],
    unit_blocks: usize,
    /// Tweak of the next block.
    next: [u64; 2],
    /// Blocks left in the current data unit.
    left: usize,
}

impl<'a> TweakSource<'a> {
    #[inline(always)]
    fn new(units: &'a [Block], unit_blocks: usize) -> Self {
        Self {
            units,
            unit_blocks,
            next: [0; 2],
            left: 0,
        }
    }

    /// The tweaks of the next `tweaks.len()` blocks.
    #[inline(always)]
    fn fill(&mut self, mut tweaks: &mut [[u64; 2]]) {
        while !tweaks.is_empty() {
            if self.left == 0 {
                let (unit, units) = self
                    .units
                    .split_first()
                    .expect("a tweak for each data unit");
                self.units = units;
                self.left = self.unit_blocks;
                let number = u128::from_le_bytes(unit.0);
                self.next = split(number);
            }
            let count = self.left.min(tweaks.len());
            let (now, later) = tweaks.split_at_mut(count);
            tweaks = later;
            for (power, tweak) in (0..).zip(now.iter_mut()) {
                *tweak = times_x_to(self.next, power);
            }
            self.left -= count;
            self.next = times_x_to(now[count - 1], 1);
        }
    }
}

#[inline(always)]
fn split(number: u128) -> [u64; 2] {
    let bytes = number.to_le_bytes();
    let half = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    [half(0), half(8)]
}

/// `tweak · x^power` in GF(2^128) for powers below 64: a shift, and what leaves the top comes back
/// in as its product with x^7 + x^2 + x + 1.
#[inline(always)]
fn times_x_to([low, high]: [u64; 2], power: u32) -> [u64; 2] {
    let carry_over = |word: u64| (word >> 1).wrapping_shr(63 - power);
    let carry = carry_over(high);
    [
        low.wrapping_shl(power) ^ carry ^ carry << 1 ^ carry << 2 ^ carry << 7,
        high.wrapping_shl(power) ^ carry_over(low) ^ carry >> 63 ^ carry >> 62 ^ carry >> 57,
    ]
}
