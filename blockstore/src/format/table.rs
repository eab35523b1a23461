//! The region table: for each region, which copy of its bitmap is current.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::bytes::{Put, Reader};
use crate::limits::TABLE_ENTRIES;
use crate::units::BLOCK_SIZE;

/// A region's entry: 16 bytes, CRC, used blocks, place, seven zeroes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RegionEntry {
    /// CRC of the current copy of the bitmap.
    pub(crate) crc: u32,
    /// Bits set in it, the bitmap's own blocks not counted.
    pub(crate) used: u32,
    /// Which copy is current: 0 or 1.
    pub(crate) place: u8,
}

/// One block of the table.
pub(crate) fn encode(entries: &[RegionEntry]) -> Vec<u8> {
    assert!(
        entries.len() <= TABLE_ENTRIES,
        "{} entries in a table block",
        entries.len()
    );
    let mut out = Vec::with_capacity(BLOCK_SIZE);
    for entry in entries {
        out.put_u32(entry.crc);
        out.put_u32(entry.used);
        out.put_u64(u64::from(entry.place & 1));
    }
    out.resize(BLOCK_SIZE, 0);
    out
}

/// The entries of a block whose CRC was verified.
pub(crate) fn decode(block: &[u8]) -> Option<Vec<RegionEntry>> {
    let mut reader = Reader::new(block);
    (0..TABLE_ENTRIES)
        .map(|_| {
            let (crc, used, place) = (reader.u32()?, reader.u32()?, reader.u64()?);
            let place = u8::try_from(place).ok().filter(|place| *place < 2)?;
            Some(RegionEntry { crc, used, place })
        })
        .collect()
}
