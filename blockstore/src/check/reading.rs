//! Reading what is to be verified: single blocks, nodes with their twins, data in long runs.
use crate::device::{Buffer, Device};
use crate::format::checksum;
use crate::format::pointer::{NodeRef, Packed};
use crate::mapping::Node;
use crate::units::{Address, BLOCK_SIZE};
use futures_util::future::join_all;
use std::sync::Arc;

/// Blocks joined into one read: 1 MiB.
const RUN_BLOCKS: usize = 256;
/// Reads in flight.
pub(super) const READS: usize = 32;

/// The device, as the checker reads it.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) device: Arc<dyn Device>,
    pub(super) fanout: u32,
}

/// A node as found on the device.
#[derive(Debug)]
pub(super) struct Found {
    /// Out of the first copy that is good.
    pub(super) node: Option<Node>,
    /// What is wrong with each bad copy that was read.
    pub(super) bad: Vec<String>,
}

/// A data block that its owner says should be there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Data {
    pub(super) slot: Packed,
    /// Block of the volume.
    pub(super) block: u64,
}

impl Source {
    /// One block that hashes to `crc`; otherwise why not.
    pub(super) async fn block(&self, address: Address, crc: u32) -> Result<Buffer, String> {
        let (buffer, read) = self.device.read(address.0, Buffer::new(BLOCK_SIZE)).await;
        match read {
            Err(error) => Err(format!("{address} cannot be read: {error}")),
            Ok(()) if checksum(&buffer) != crc => Err(format!("{address}: checksum mismatch")),
            Ok(()) => Ok(buffer),
        }
    }

    /// A node. `both`: its twin is read even if the first copy is good.
    pub(super) async fn node(&self, stored: &NodeRef, both: bool) -> Found {
        let mut found = Found {
            node: None,
            bad: Vec::new(),
        };
        let twin = Some(stored.twin).filter(|twin| *twin != Address(0));
        for address in [Some(stored.address), twin].into_iter().flatten() {
            if found.node.is_some() && !both {
                break;
            }
            let copy = self.block(address, stored.crc).await.and_then(|block| {
                Node::from_block(&block, stored, self.fanout)
                    .ok_or_else(|| format!("{address}: not the mapping node expected there"))
            });
            match copy {
                Ok(node) => found.node = Some(node),
                Err(why) => found.bad.push(why),
            }
        }
        found
    }

    /// Reads data blocks, adjacent ones together; what is wrong with each bad one.
    pub(super) async fn verify_data(&self, mut data: Vec<Data>) -> Vec<(Data, String)> {
        data.sort_unstable_by_key(|data| data.slot.address());
        let adjacent = |a: &Data, b: &Data| a.slot.address().0 + 1 == b.slot.address().0;
        let runs: Vec<&[Data]> = data
            .chunk_by(adjacent)
            .flat_map(|run| run.chunks(RUN_BLOCKS))
            .collect();
        let mut bad = Vec::new();
        for batch in runs.chunks(READS) {
            let verified = join_all(batch.iter().map(|run| self.verify_run(run))).await;
            bad.extend(verified.into_iter().flatten());
        }
        bad
    }

    async fn verify_run(&self, run: &[Data]) -> Vec<(Data, String)> {
        let Some(start) = run.first().map(|data| data.slot.address()) else {
            return Vec::new();
        };
        let buffer = Buffer::new(run.len() * BLOCK_SIZE);
        let (buffer, read) = self.device.read(start.0, buffer).await;
        if let (Err(_), [_, _, ..]) = (&read, run) {
            // One bad sector fails the whole read: tell which block it is.
            return self.verify_singly(run).await;
        }
        let blocks = buffer.as_chunks::<BLOCK_SIZE>().0;
        let bad = run.iter().zip(blocks).filter_map(|(data, block)| {
            let why = match &read {
                Err(error) => format!("cannot be read: {error}"),
                Ok(()) if checksum(block) != data.slot.crc() => "checksum mismatch".to_owned(),
                Ok(()) => return None,
            };
            Some((*data, why))
        });
        bad.collect()
    }

    async fn verify_singly(&self, run: &[Data]) -> Vec<(Data, String)> {
        let mut bad = Vec::new();
        for data in run {
            let read = self.block(data.slot.address(), data.slot.crc()).await;
            bad.extend(read.err().map(|why| (*data, why)));
        }
        bad
    }
}
