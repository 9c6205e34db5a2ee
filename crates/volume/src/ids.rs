//! Ids of volumes, layers and data keys: random UUIDs that are never mixed up.
//!
//! Each kind has its own type, so that a layer's id cannot stand where a volume's is meant.
//! On disk an id is its 16 bytes; everywhere else it is UUID text (RFC 9562).

use std::fmt;
use std::str::FromStr;

/// Text that is no UUID in its usual form (8-4-4-4-12 hexadecimal digits).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an id: expected a UUID such as 6f1c2a34-5b6d-4e7f-8a90-b1c2d3e4f506")]
pub struct InvalidId(pub String);

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// A new random id (UUID version 4).
            #[must_use]
            pub fn random() -> Self {
                Self(random_uuid())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_uuid(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_uuid(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                parse_uuid(text).map(Self)
            }
        }
    };
}

id!(
    /// Names a volume for its whole life, whatever it is called.
    VolumeId
);
id!(
    /// Names one layer of a stack.
    LayerId
);
id!(
    /// Names a data key (not secret; the key itself never leaves `sealvol-crypto`).
    DataKeyId
);

fn random_uuid() -> [u8; 16] {
    let mut bytes = [0; 16];
    sealvol_crypto::random(&mut bytes);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}

fn write_uuid(bytes: &[u8; 16], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            f.write_str("-")?;
        }
        write!(f, "{byte:02x}")?;
    }
    Ok(())
}

fn parse_uuid(text: &str) -> Result<[u8; 16], InvalidId> {
    let invalid = || InvalidId(text.chars().take(64).collect());
    if text.len() != 36 || !text.is_ascii() {
        return Err(invalid());
    }
    let mut bytes = [0; 16];
    let mut digits = text.bytes().enumerate();
    for byte in &mut bytes {
        for _ in 0..2 {
            let (mut at, mut digit) = digits.next().ok_or_else(invalid)?;
            if matches!(at, 8 | 13 | 18 | 23) {
                if digit != b'-' {
                    return Err(invalid());
                }
                (at, digit) = digits.next().ok_or_else(invalid)?;
            }
            debug_assert!(at < 36);
            let value = char::from(digit).to_digit(16).ok_or_else(invalid)?;
            *byte = *byte << 4 | u8::try_from(value).map_err(|_| invalid())?;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_are_the_same_id() {
        let id = VolumeId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().as_bytes()[14], b'4');
        let fixed: LayerId = "00112233-4455-6677-8899-aabbccddeeff".parse().unwrap();
        assert_eq!(fixed.0[..4], [0, 0x11, 0x22, 0x33]);
        assert_eq!(fixed.0[15], 0xff);
    }

    #[test]
    fn text_that_is_no_uuid_is_refused() {
        for text in [
            "",
            "0011223344556677-8899-aabb-ccdd-eeff",
            "00112233-4455-6677-8899-aabbccddeef",
            "00112233-4455-6677-8899-aabbccddeefg",
            "00112233+4455-6677-8899-aabbccddeeff",
            "é0112233-4455-6677-8899-aabbccddeef",
        ] {
            assert!(text.parse::<VolumeId>().is_err(), "{text}");
        }
    }
}
