//! The one table from a store error to an NBD error.
use blockstore::ErrorKind;

/// "The following error values are defined": what a reply may carry. The numbers are Linux's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Errno {
    /// A change to a read-only export.
    Perm = 1,
    /// The device failed, or what it returned is damaged.
    Io = 5,
    /// The command breaks a rule.
    Inval = 22,
    /// The pool is full, or a write passes the end of the export.
    NoSpace = 28,
    /// A read with `DF` is larger than a chunk may be.
    Overflow = 75,
    /// `FAST_ZERO` was asked for and zeroing would not be fast.
    NotSupported = 95,
    /// The server is stopping.
    Shutdown = 108,
}

impl Errno {
    /// The number on the wire.
    pub fn code(self) -> u32 {
        self as u32
    }

    /// What an error chunk tells people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Perm => "the export is read-only",
            Self::Io => "the device failed or its data is damaged; the server's log says more",
            Self::Inval => "the command breaks a rule of the protocol",
            Self::NoSpace => "the pool is full, or the range passes the end of the export",
            Self::Overflow => "the range is too long for one chunk",
            Self::NotSupported => "zeroing this range would not be faster than writing",
            Self::Shutdown => "the server is stopping, or the volume was deleted",
        }
    }
}

impl From<ErrorKind> for Errno {
    /// Kinds that a data operation never returns become `EIO`: the client can do nothing about
    /// them.
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::NoSpace => Self::NoSpace,
            ErrorKind::ReadOnly => Self::Perm,
            ErrorKind::InvalidArgument => Self::Inval,
            ErrorKind::Gone => Self::Shutdown,
            _ => Self::Io,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_number() {
        let table = [
            (ErrorKind::NoSpace, 28),
            (ErrorKind::ReadOnly, 1),
            (ErrorKind::InvalidArgument, 22),
            (ErrorKind::Gone, 108),
            (ErrorKind::Corrupt, 5),
            (ErrorKind::Io, 5),
            (ErrorKind::Poisoned, 5),
            (ErrorKind::Busy, 5),
        ];
        for (kind, code) in table {
            assert_eq!(Errno::from(kind).code(), code, "{kind:?}");
        }
    }
}
