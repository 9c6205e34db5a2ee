//! Arithmetic in GF(2^8), the field of AES: bytes, added by exclusive or, multiplied modulo x^8 + x^4 + x^3 + x + 1
//! (FIPS 197, section 4.2).
//!
//! What always holds: neither the time that an operation takes nor an address that it reads depends on its operands. There
//! is no table: what was looked up in one by a secret byte could be seen in the cache.

use subtle::{Choice, ConditionallySelectable as _};

/// What x^8 is, modulo the polynomial of AES.
const REDUCED: u8 = 0x1b;

/// The product.
pub(super) fn multiply(a: u8, b: u8) -> u8 {
    let mut product = 0;
    let mut shifted = a;
    for bit in 0..8 {
        product ^= u8::conditional_select(&0, &shifted, Choice::from(b >> bit & 1));
        let carry = Choice::from(shifted >> 7);
        shifted = shifted << 1 ^ u8::conditional_select(&0, &REDUCED, carry);
    }
    product
}

/// The one that gives 1 when it is multiplied with `a`: `a` to the 254. 0 has none, and gives 0.
pub(super) fn invert(a: u8) -> u8 {
    let mut power = a;
    let mut inverse = 1;
    for _ in 0..7 {
        power = multiply(power, power);
        inverse = multiply(inverse, power);
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_standard_come_out() {
        // FIPS 197, sections 4.2 and 4.2.1.
        assert_eq!(multiply(0x57, 0x83), 0xc1);
        assert_eq!(multiply(0x57, 0x13), 0xfe);
        assert_eq!(multiply(0x57, 0x02), 0xae);
    }

    #[test]
    fn every_byte_but_zero_has_an_inverse_and_multiplying_by_one_is_a_permutation() {
        assert_eq!(invert(0), 0);
        for a in 1..=255 {
            assert_eq!(multiply(a, invert(a)), 1, "{a}");
            let mut seen = [false; 256];
            for b in 0..=255 {
                assert_eq!(multiply(a, b), multiply(b, a));
                seen[usize::from(multiply(a, b))] = true;
            }
            assert!(seen.iter().all(|&seen| seen), "{a}");
        }
    }
}
