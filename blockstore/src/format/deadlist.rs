//! A block of a deadlist: entries, and the block before it.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::bytes::{Put, Reader};
use super::checksum;
use super::pointer::Packed;
use crate::limits::DEADLIST_ENTRIES;
use crate::units::BLOCK_SIZE;

const MAGIC: u32 = u32::from_le_bytes(*b"BSDL");

/// One block of a chain: at most [`DEADLIST_ENTRIES`] entries and the pointer to the block before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DeadlistBlock {
    pub(crate) previous: Packed,
    /// Dead blocks: address and birth.
    pub(crate) entries: Vec<Packed>,
}

impl DeadlistBlock {
    /// The block's bytes and their CRC.
    pub(crate) fn encode(&self) -> (Vec<u8>, u32) {
        assert!(
            self.entries.len() <= DEADLIST_ENTRIES,
            "{} entries",
            self.entries.len()
        );
        let mut out = Vec::with_capacity(BLOCK_SIZE);
        out.put_u32(MAGIC);
        out.put_u32(u32::try_from(self.entries.len()).unwrap_or_default());
        out.put_u64(self.previous.0);
        out.put_u64(self.previous.1);
        out.resize(64, 0);
        for entry in &self.entries {
            out.put_u64(entry.0);
            out.put_u64(entry.1);
        }
        out.resize(BLOCK_SIZE, 0);
        let crc = checksum(&out);
        (out, crc)
    }

    /// The block of a chunk of bytes whose CRC was verified.
    pub(crate) fn decode(block: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(block);
        if reader.u32()? != MAGIC {
            return None;
        }
        let count = usize::try_from(reader.u32()?).ok()?;
        let previous = Packed(reader.u64()?, reader.u64()?);
        if count > DEADLIST_ENTRIES {
            return None;
        }
        let mut reader = Reader::new(block.get(64..)?);
        let entries: Option<Vec<_>> = (0..count)
            .map(|_| Some(Packed(reader.u64()?, reader.u64()?)))
            .collect();
        Some(Self {
            previous,
            entries: entries?,
        })
    }
}
