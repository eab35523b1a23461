//! The structures that reach the disk; the only place that encodes or decodes them.
#![doc = include_str!("../../FORMAT.md")]
pub(crate) mod bytes;
pub(crate) mod deadlist;
pub(crate) mod entry;
pub(crate) mod geometry;
pub(crate) mod node;
pub(crate) mod pointer;
pub(crate) mod record;
pub(crate) mod superblock;
pub(crate) mod table;

#[cfg(test)]
mod tests;

/// The checksum of everything in the pool.
pub(crate) fn checksum(data: &[u8]) -> u32 {
    crc32fast::hash(data)
}
