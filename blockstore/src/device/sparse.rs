//! `Sparse`: blocks in memory, zero until written, cheap to copy as a whole.
use crate::BLOCK_SIZE;
use bytes::Bytes;
use std::collections::BTreeMap;

/// Blocks by address. A copy shares them until they are overwritten.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sparse(BTreeMap<u64, Bytes>);

impl Sparse {
    /// The block at `address`, if it was ever written.
    pub(super) fn block(&self, address: u64) -> Option<&Bytes> {
        self.0.get(&address)
    }

    /// Fills `buffer`, whole blocks, from block `address` on.
    pub(super) fn read(&self, address: u64, buffer: &mut [u8]) {
        buffer.fill(0);
        let end = address + (buffer.len() / BLOCK_SIZE) as u64;
        for (at, block) in self.0.range(address..end) {
            let start = usize::try_from(at - address).unwrap_or(0) * BLOCK_SIZE;
            buffer[start..start + BLOCK_SIZE].copy_from_slice(block);
        }
    }

    /// Writes `data`, whole blocks, from block `address` on.
    pub(super) fn write(&mut self, address: u64, data: &[u8]) {
        for (at, block) in (address..).zip(data.chunks_exact(BLOCK_SIZE)) {
            self.0.insert(at, Bytes::copy_from_slice(block));
        }
    }

    /// Changes the block at `address` in place.
    pub(super) fn change(&mut self, address: u64, change: impl FnOnce(&mut [u8])) {
        let mut block = vec![0; BLOCK_SIZE];
        self.read(address, &mut block);
        change(&mut block);
        self.0.insert(address, block.into());
    }
}
