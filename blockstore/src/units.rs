//! Ids and counts that cannot be confused with one another.
use std::fmt;

/// Bytes in a block, the unit of allocation, mapping and checksumming.
pub const BLOCK_SIZE: usize = 4096;
/// [`BLOCK_SIZE`] as the type of byte offsets and lengths.
pub const BLOCK_BYTES: u64 = 4096;

/// Identifies a volume for ever: ids are not reused, and survive rename and rollback.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeId(pub u64);

/// Identifies one version of a volume's content: its head, a snapshot, or a hidden ghost.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VersionId(pub u64);

/// A block's number in the pool. Zero holds a superblock, so no mapping ever points there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(pub u64);

/// The number of a journal record: the pool's only clock.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Record(pub u64);

macro_rules! shows {
    ($name:ident, $prefix:literal) => {
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
    };
}
shows!(VolumeId, "volume#");
shows!(VersionId, "version#");
shows!(Address, "block@");
shows!(Record, "record#");
