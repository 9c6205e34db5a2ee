//! The three things that a layer can say of a block, and their two bits in memory.

/// Bits of a block's state in memory ([`BlockState::bits`]).
pub(crate) const STATE_BITS: usize = 2;
/// Blocks whose states make one word in memory, the first one's in its lowest bits.
pub(crate) const WORD_BLOCKS: usize = 64 / STATE_BITS;

/// What a layer says of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockState {
    /// Nothing: the layer below decides; zeros if there is none.
    Absent,
    /// The block reads as zeros.
    Zero,
    /// The block's sectors are in the layer's data.
    Data,
}

impl BlockState {
    pub(crate) fn from_bits(bits: u64) -> Self {
        match bits {
            0 => Self::Absent,
            1 => Self::Zero,
            _ => Self::Data,
        }
    }

    pub(crate) fn bits(self) -> u64 {
        match self {
            Self::Absent => 0,
            Self::Zero => 1,
            Self::Data => 2,
        }
    }
}
