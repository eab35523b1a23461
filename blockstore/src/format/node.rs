//! A mapping node on disk: a self-describing header and slots.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::bytes::{Put, Reader};
use super::pointer::{NodeRef, Packed};
use crate::units::{Address, BLOCK_SIZE, Record};

const MAGIC: u32 = u32::from_le_bytes(*b"BSND");
const HEADER_BYTES: usize = 64;

/// What a node says of itself: enough to rebuild a pool whose upper levels are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeHeader {
    pub(crate) level: u8,
    /// The version, catalogue (0) or job that dirtied it.
    pub(crate) owner: u64,
    /// First block of the volume that it covers.
    pub(crate) first: u64,
    pub(crate) birth: Record,
    pub(crate) address: Address,
    pub(crate) twin: Address,
}

/// A node's 4 KiB.
pub(crate) fn encode(header: &NodeHeader, slots: &[Packed]) -> Vec<u8> {
    let mut out = Vec::with_capacity(BLOCK_SIZE);
    out.put_u32(MAGIC);
    out.put_u32(u32::from(header.level));
    out.put_u64(header.owner);
    out.put_u64(header.first);
    out.put_u64(header.birth.0);
    out.put_u64(header.address.0);
    out.put_u64(header.twin.0);
    out.resize(HEADER_BYTES, 0);
    for slot in slots {
        out.put_u64(slot.0);
        out.put_u64(slot.1);
    }
    assert!(
        out.len() <= BLOCK_SIZE,
        "{} slots do not fit a node",
        slots.len()
    );
    out.resize(BLOCK_SIZE, 0);
    out
}

/// The node that `expected` points to, out of a block whose CRC was verified; `None` if it is
/// another node.
pub(crate) fn decode(
    block: &[u8],
    expected: &NodeRef,
    fanout: usize,
) -> Option<(NodeHeader, Vec<Packed>)> {
    let mut reader = Reader::new(block);
    if reader.u32()? != MAGIC {
        return None;
    }
    let header = NodeHeader {
        level: u8::try_from(reader.u32()?).ok()?,
        owner: reader.u64()?,
        first: reader.u64()?,
        birth: Record(reader.u64()?),
        address: Address(reader.u64()?),
        twin: Address(reader.u64()?),
    };
    let same = header.level == expected.level
        && header.birth == expected.birth
        && header.address == expected.address
        && header.twin == expected.twin;
    if !same {
        return None;
    }
    let mut reader = Reader::new(block.get(HEADER_BYTES..)?);
    let slots: Option<Vec<_>> = (0..fanout)
        .map(|_| Some(Packed(reader.u64()?, reader.u64()?)))
        .collect();
    Some((header, slots?))
}
