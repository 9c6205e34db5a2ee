//! AES-256-XTS over the parallel backends of the `aes` crate, in safe Rust, for every processor.
//!
//! Why it looks as it does: the cipher is fast when it is fed as many blocks as its widest backend
//! takes at once (64 with VAES on 512-bit registers), so blocks are handled in batches of 64, and
//! everything about tweaks is arithmetic on arrays that the compiler turns into vector code inside
//! the backend: the tweaks of a batch come from one tweak by shifts instead of 64 doublings one after
//! the other, and the tweaks of many data units are encrypted in one call.

use std::array::from_fn;

use aes::{Aes256Dec, Aes256Enc, Block};
use cipher::array::{Array, ArraySize};
use cipher::consts::{U16, U64};
use cipher::inout::InOutBuf;
use cipher::{
    BlockCipherDecBackend, BlockCipherDecClosure, BlockCipherDecrypt, BlockCipherEncBackend,
    BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser, KeyInit,
};

use super::Units;

/// Blocks handled together: what the widest backend encrypts at once.
const BATCH: usize = 64;
type BatchSize = U64;

/// Blocks whose tweaks are made from one by shifts: a data unit of 512 bytes.
const SPREAD: usize = 32;

/// Data units whose tweaks are encrypted together.
const TWEAK_BATCH: usize = 64;

/// The expanded key: K1 in both directions and K2 in the one that XTS uses.
pub(crate) struct Keys {
    data_enc: Aes256Enc,
    data_dec: Aes256Dec,
    tweak: Aes256Enc,
}

impl Keys {
    /// Expands K1 ‖ K2.
    pub(super) fn new(k1: &[u8; 32], k2: &[u8; 32]) -> Self {
        Self {
            data_enc: Aes256Enc::new(k1.into()),
            data_dec: Aes256Dec::new(k1.into()),
            tweak: Aes256Enc::new(k2.into()),
        }
    }

    /// Encrypts `units`, which are all of `data`.
    ///
    /// # Panics
    /// When they are not.
    pub(super) fn encrypt(&self, units: Units, data: InOutBuf<'_, '_, u8>) {
        self.for_tweaks(units, data, |units| {
            self.data_enc.encrypt_with_backend(units);
        });
    }

    /// Decrypts what `encrypt` made.
    ///
    /// # Panics
    /// As for `encrypt`.
    pub(super) fn decrypt(&self, units: Units, data: InOutBuf<'_, '_, u8>) {
        self.for_tweaks(units, data, |units| {
            self.data_dec.decrypt_with_backend(units);
        });
    }

    /// Hands out runs of data units with their encrypted tweaks.
    #[inline(always)]
    fn for_tweaks(
        &self,
        units: Units,
        data: InOutBuf<'_, '_, u8>,
        mut run: impl FnMut(TweakedUnits<'_, '_, '_>),
    ) {
        assert_eq!(units.bytes(), data.len(), "bytes of the data units");
        let (mut blocks, _) = data.into_chunks::<U16>();
        let unit_blocks = units.unit_blocks;
        let mut unit = units.first;
        while !blocks.is_empty() {
            let count = TWEAK_BATCH.min(blocks.len() / unit_blocks);
            let (now, later) = blocks.split_at(count * unit_blocks);
            blocks = later;
            let mut tweaks = [Block::default(); TWEAK_BATCH];
            for tweak in &mut tweaks[..count] {
                *tweak = unit.to_le_bytes().into();
                unit = unit.wrapping_add(1);
            }
            self.tweak.encrypt_blocks(&mut tweaks[..count]);
            run(TweakedUnits {
                tweaks: &tweaks[..count],
                unit_blocks,
                blocks: now,
            });
        }
    }
}

/// Data units with their encrypted tweaks, to be run through one of the cipher's backends.
struct TweakedUnits<'tweaks, 'inp, 'out> {
    tweaks: &'tweaks [Block],
    unit_blocks: usize,
    blocks: InOutBuf<'inp, 'out, Block>,
}

impl BlockSizeUser for TweakedUnits<'_, '_, '_> {
    type BlockSize = U16;
}

impl BlockCipherEncClosure for TweakedUnits<'_, '_, '_> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        self.run(
            #[inline(always)]
            |batch, count| {
                let (groups, rest) = in_groups::<B::ParBlocksSize>(batch, count);
                for group in groups {
                    backend.encrypt_par_blocks(group.into());
                }
                if !rest.is_empty() {
                    backend.encrypt_tail_blocks(rest.into());
                }
            },
        );
    }
}

impl BlockCipherDecClosure for TweakedUnits<'_, '_, '_> {
    #[inline(always)]
    fn call<B: BlockCipherDecBackend<BlockSize = U16>>(self, backend: &B) {
        self.run(
            #[inline(always)]
            |batch, count| {
                let (groups, rest) = in_groups::<B::ParBlocksSize>(batch, count);
                for group in groups {
                    backend.decrypt_par_blocks(group.into());
                }
                if !rest.is_empty() {
                    backend.decrypt_tail_blocks(rest.into());
                }
            },
        );
    }
}

/// A batch where vector loads and stores do not straddle cache lines.
#[repr(align(64))]
struct CacheLines<T>(T);

/// A tweak: the lower and the upper 64 bits of an element of GF(2^128).
type Tweak = [u64; 2];

impl TweakedUnits<'_, '_, '_> {
    /// Masks, ciphers and masks again, a batch of blocks at a time. `cipher` works on the first
    /// blocks of a batch, as many as it is told.
    ///
    /// Arrays are made by `from_fn`, not filled afterwards: the zeros that would be written first
    /// cost a fifth of the speed.
    #[inline(always)]
    fn run(self, cipher: impl Fn(&mut [Block; BATCH], usize)) {
        let mut source = TweakSource::new(self.tweaks, self.unit_blocks);
        let (batches, mut rest) = self.blocks.into_chunks::<BatchSize>();
        let mut tweaks = CacheLines([[0; 2]; BATCH]);
        for mut blocks in batches {
            source.fill(&mut tweaks.0);
            let input: &[Block; BATCH] = blocks.get_in().into();
            let mut masked = CacheLines(from_fn(
                #[inline(always)]
                |at| mask(&input[at], tweaks.0[at]),
            ));
            cipher(&mut masked.0, BATCH);
            for ((out, block), tweak) in blocks.get_out().iter_mut().zip(&masked.0).zip(&tweaks.0) {
                *out = mask(block, *tweak);
            }
        }
        if !rest.is_empty() {
            source.fill(&mut tweaks.0);
            let mut masked = CacheLines([Block::default(); BATCH]);
            for ((out, block), tweak) in masked.0.iter_mut().zip(rest.get_in()).zip(&tweaks.0) {
                *out = mask(block, *tweak);
            }
            cipher(&mut masked.0, rest.len());
            for ((out, block), tweak) in rest.get_out().iter_mut().zip(&masked.0).zip(&tweaks.0) {
                *out = mask(block, *tweak);
            }
        }
    }
}

/// The first `count` blocks of a batch, in groups as large as the backend takes at once, and what is
/// left of them.
///
/// The last group may hold more than was asked for: from a quarter of a group on, ciphering the
/// surplus in vain is faster than going block by block.
#[inline(always)]
fn in_groups<N: ArraySize>(
    batch: &mut [Block; BATCH],
    count: usize,
) -> (&mut [Array<Block, N>], &mut [Block]) {
    let (whole, left) = (count / N::USIZE, count % N::USIZE);
    let one_more = left > N::USIZE / 4 && (whole + 1) * N::USIZE <= BATCH;
    let grouped = (whole + usize::from(one_more)) * N::USIZE;
    let (groups, rest) = batch.split_at_mut(grouped);
    (
        Array::slice_as_chunks_mut(groups).0,
        &mut rest[..count.saturating_sub(grouped)],
    )
}

/// `block ⊕ tweak`.
#[inline(always)]
fn mask(block: &Block, tweak: Tweak) -> Block {
    let [low, high] = split(block);
    let mut masked = Block::default();
    masked[..8].copy_from_slice(&(low ^ tweak[0]).to_le_bytes());
    masked[8..].copy_from_slice(&(high ^ tweak[1]).to_le_bytes());
    masked
}

/// The tweaks of all blocks of a run of data units, in order.
struct TweakSource<'a> {
    /// Encrypted tweaks of the data units that have not begun.
    units: &'a [Block],
    unit_blocks: usize,
    /// Tweak of the next block.
    next: Tweak,
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

    /// Replaces the tweaks of the last batch by those of the next 64 blocks; past the last data unit
    /// they are arbitrary.
    #[inline(always)]
    fn fill(&mut self, tweaks: &mut [Tweak; BATCH]) {
        if self.unit_blocks.is_multiple_of(BATCH) && self.left != 0 {
            // The last batch is of the same data unit, 64 blocks before this one.
            for tweak in tweaks {
                *tweak = times_x_to_64(*tweak);
            }
            self.left -= BATCH;
        } else if self.unit_blocks.is_multiple_of(SPREAD) {
            let (spreads, _) = tweaks.as_chunks_mut::<SPREAD>();
            for tweaks in spreads {
                self.begin_unit_if_due();
                for (power, tweak) in tweaks.iter_mut().enumerate() {
                    *tweak = times_x_to(self.next, power);
                }
                self.next = times_x_to(self.next, SPREAD);
                self.left -= SPREAD;
            }
        } else {
            self.fill_one_by_one(tweaks);
        }
    }

    /// As `fill`, for data units of other sizes than volumes have.
    #[inline(never)]
    fn fill_one_by_one(&mut self, tweaks: &mut [Tweak; BATCH]) {
        for tweak in tweaks {
            self.begin_unit_if_due();
            *tweak = self.next;
            self.next = times_x_to(self.next, 1);
            self.left -= 1;
        }
    }

    #[inline(always)]
    fn begin_unit_if_due(&mut self) {
        if self.left == 0 {
            self.left = self.unit_blocks;
            if let Some((unit, units)) = self.units.split_first() {
                self.units = units;
                self.next = split(unit);
            }
        }
    }
}

#[inline(always)]
fn split(block: &Block) -> [u64; 2] {
    let half = |at: usize| {
        u64::from_le_bytes(
            block[at..at + 8]
                .try_into()
                .expect("eight of sixteen bytes"),
        )
    };
    [half(0), half(8)]
}

/// `tweak · x^power` in GF(2^128) for powers up to 32: a shift, and what leaves the top comes back in
/// as its product with x^7 + x^2 + x + 1.
#[inline(always)]
fn times_x_to([low, high]: Tweak, power: usize) -> Tweak {
    let carry_over = |word: u64| (word >> 1) >> (63 - power);
    let carry = carry_over(high);
    [
        low << power ^ carry ^ carry << 1 ^ carry << 2 ^ carry << 7,
        high << power ^ carry_over(low),
    ]
}

/// `tweak · x^64`: the upper half leaves the top as a whole, and its product has more than 64 bits.
#[inline(always)]
fn times_x_to_64([low, high]: Tweak) -> Tweak {
    [
        high ^ high << 1 ^ high << 2 ^ high << 7,
        low ^ high >> 63 ^ high >> 62 ^ high >> 57,
    ]
}
