//! The error values a reply can carry.
//!
//! Which failure of a volume becomes which value is decided in one place of the daemon, not here;
//! the gate in `transmission.rs` chooses only for requests that no volume ever sees.

/// An error value of the protocol, named as the errno it comes from (proto.md, "Error values").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Errno {
    /// Operation not permitted: a write to a read-only export.
    EPERM = 1,
    /// Input/output error.
    EIO = 5,
    /// Cannot allocate memory. The protocol asks servers to avoid it.
    ENOMEM = 12,
    /// Invalid argument.
    EINVAL = 22,
    /// No space left on device; also a write past the end.
    ENOSPC = 28,
    /// Value too large: a READ longer than the server answers.
    EOVERFLOW = 75,
    /// Operation not supported: only for `NBD_CMD_FLAG_FAST_ZERO`.
    ENOTSUP = 95,
    /// The server is shutting down.
    ESHUTDOWN = 108,
}

impl Errno {
    /// The number on the wire, never zero.
    #[must_use]
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// The value with this number. An unexpected one counts as `EINVAL`, as the protocol asks of
    /// clients; zero is success and gives `None`.
    #[must_use]
    pub const fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => return None,
            1 => Self::EPERM,
            5 => Self::EIO,
            12 => Self::ENOMEM,
            28 => Self::ENOSPC,
            75 => Self::EOVERFLOW,
            95 => Self::ENOTSUP,
            108 => Self::ESHUTDOWN,
            _ => Self::EINVAL,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Errno;

    #[test]
    fn every_value_survives_the_wire() {
        for errno in [
            Errno::EPERM,
            Errno::EIO,
            Errno::ENOMEM,
            Errno::EINVAL,
            Errno::ENOSPC,
            Errno::EOVERFLOW,
            Errno::ENOTSUP,
            Errno::ESHUTDOWN,
        ] {
            assert_eq!(Errno::from_code(errno.code()), Some(errno));
        }
    }

    #[test]
    fn an_unexpected_value_counts_as_einval() {
        assert_eq!(Errno::from_code(2), Some(Errno::EINVAL));
        assert_eq!(Errno::from_code(u32::MAX), Some(Errno::EINVAL));
        assert_eq!(Errno::from_code(0), None);
    }
}
