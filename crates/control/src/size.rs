//! Sizes as people type and read them.
//!
//! The rule is that of coreutils `truncate` and of `qemu-img`: a bare suffix is a power of 1024
//! (`10G` = `10GiB` = 10 × 2^30 bytes), a suffix with `B` alone is a power of 1000 (`10GB` =
//! 10 × 10^9 bytes), no suffix means bytes. Letters may be of either case. A fraction is accepted
//! when it comes to a whole number of bytes (`1.5G`).
//!
//! What [`Size`] prints without a decimal point is exact and reads back as the same size; with one
//! it is rounded down to a tenth.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A number of bytes that reads and prints with the usual suffixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

/// Why a size could not be read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SizeError {
    /// There is no number in front.
    #[error("`{0}` is not a size: it does not begin with a number. Write it as in 10G or 512M")]
    NotANumber(String),
    /// The letters after the number are no suffix.
    #[error(
        "`{text}` is not a size: the suffix `{suffix}` is unknown. \
         Use K, M, G, T or P (powers of 1024), or KB, MB, GB, TB, PB (powers of 1000)"
    )]
    UnknownSuffix {
        /// What was typed.
        text: String,
        /// The part that is not understood.
        suffix: String,
    },
    /// A fraction of a byte.
    #[error("`{0}` is not a whole number of bytes. Give it without a fraction")]
    NotWhole(String),
    /// More than 2^64 - 1 bytes.
    #[error("`{0}` is larger than any size can be (16 EiB). Give a smaller one")]
    TooLarge(String),
}

impl Size {
    /// The number of bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let trimmed = text.trim();
        let split = trimmed
            .find(|c: char| !(c.is_ascii_digit() || c == '.'))
            .unwrap_or(trimmed.len());
        let (number, suffix) = trimmed.split_at(split);
        let unit = unit_of(suffix.trim_start()).ok_or_else(|| SizeError::UnknownSuffix {
            text: text.to_owned(),
            suffix: suffix.to_owned(),
        });
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || (number.contains('.') && !digits(fraction)) {
            return Err(SizeError::NotANumber(text.to_owned()));
        }
        let unit = unit?;
        let too_large = || SizeError::TooLarge(text.to_owned());
        let mut bytes: u128 = whole
            .parse::<u64>()
            .map_err(|_| too_large())
            .map(|value| u128::from(value) * u128::from(unit))?;
        if !fraction.is_empty() {
            bytes +=
                fraction_of(fraction, unit).ok_or_else(|| SizeError::NotWhole(text.to_owned()))?;
        }
        u64::try_from(bytes).map(Size).map_err(|_| too_large())
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((letter, unit)) = UNITS.iter().rev().find(|(_, unit)| self.0 >= *unit) else {
            return f.pad(&self.0.to_string());
        };
        let (whole, rest) = (self.0 / unit, self.0 % unit);
        if rest == 0 {
            f.pad(&format!("{whole}{letter}"))
        } else {
            let tenths = u128::from(rest) * 10 / u128::from(*unit);
            f.pad(&format!("{whole}.{tenths}{letter}"))
        }
    }
}

fn unit_of(suffix: &str) -> Option<u64> {
    let lower = suffix.to_ascii_lowercase();
    if lower.is_empty() || lower == "b" {
        return Some(1);
    }
    let power = "kmgtp".find(lower.chars().next()?)?;
    let power = u32::try_from(power).ok()? + 1;
    match &lower[1..] {
        "" | "ib" => Some(1024_u64.pow(power)),
        "b" => Some(1000_u64.pow(power)),
        _ => None,
    }
}

/// The bytes in `0.FRACTION` of `unit`, or None if that is not a whole number.
fn fraction_of(fraction: &str, unit: u64) -> Option<u128> {
    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() {
        return Some(0);
    }
    // 18 digits and a unit below 2^50 stay within u128.
    if fraction.len() > 18 {
        return None;
    }
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let scaled = fraction.parse::<u128>().ok()? * u128::from(unit);
    (scaled % scale == 0).then(|| scaled / scale)
}

const UNITS: [(char, u64); 5] = [
    ('K', 1 << 10),
    ('M', 1 << 20),
    ('G', 1 << 30),
    ('T', 1 << 40),
    ('P', 1 << 50),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<u64, SizeError> {
        text.parse::<Size>().map(Size::bytes)
    }

    #[test]
    fn bare_suffixes_are_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("1k", 1 << 10),
            ("10G", 10 << 30),
            ("10g", 10 << 30),
            ("10GiB", 10 << 30),
            ("10 GiB", 10 << 30),
            ("64T", 64 << 40),
            ("1P", 1 << 50),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn suffixes_with_b_are_powers_of_1000() {
        assert_eq!(parse("10GB"), Ok(10_000_000_000));
        assert_eq!(parse("1kb"), Ok(1000));
    }

    #[test]
    fn fractions_must_come_to_whole_bytes() {
        assert_eq!(parse("1.5G"), Ok(3 << 29));
        assert_eq!(parse("0.25K"), Ok(256));
        assert_eq!(parse("1.0"), Ok(1));
        assert_eq!(parse("0.1K"), Err(SizeError::NotWhole("0.1K".into())));
        assert_eq!(parse("1.5"), Err(SizeError::NotWhole("1.5".into())));
    }

    #[test]
    fn what_is_no_size_is_refused_with_its_cause() {
        for text in ["", "G", "-1", "1.", ".5G", "1.2.3", "0x10"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(matches!(parse("10X"), Err(SizeError::UnknownSuffix { .. })));
        assert!(matches!(
            parse("10Gbit"),
            Err(SizeError::UnknownSuffix { .. })
        ));
        assert_eq!(parse("16384P"), Err(SizeError::TooLarge("16384P".into())));
        assert!(parse("99999999999999999999").is_err());
    }

    #[test]
    fn what_is_printed_without_a_point_is_exact() {
        for bytes in [
            0,
            1,
            512,
            1023,
            4096,
            10 << 30,
            (1 << 40) + (1 << 30),
            1 << 60,
        ] {
            let printed = Size(bytes).to_string();
            if !printed.contains('.') {
                assert_eq!(parse(&printed), Ok(bytes), "{printed}");
            }
        }
        assert_eq!(Size(u64::MAX).to_string(), "16383.9P");
        assert_eq!(Size(1025).to_string(), "1.0K");
        assert_eq!(Size(10 << 30).to_string(), "10G");
        assert_eq!(Size(3 << 29).to_string(), "1.5G");
        assert_eq!(Size(1000).to_string(), "1000");
        assert_eq!(format!("{:>6}", Size(1 << 20)), "    1M");
    }
}
