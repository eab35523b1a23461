//! Writing changed mapping nodes, children before parents, twins both.
use super::freeze::{Content, FrozenEntry};
use crate::device::Buffer;
use crate::error::Result;
use crate::format::geometry::Geometry;
use crate::mapping::{Child, Node, Root};
use crate::pool::Pool;
use crate::units::{Address, BLOCK_SIZE, Record};
use crate::versions::Output;
use futures_util::future::join_all;
use std::sync::Arc;

/// Blocks gathered before they are written: 4 MiB.
const BATCH_BLOCKS: usize = 1024;
/// Blocks joined into one device write.
const JOIN_BLOCKS: usize = 128;

/// What of a job's tree is not the job's: it must neither be written nor pointed to.
#[derive(Clone, Copy, Debug)]
struct Share {
    cut: Record,
    /// The job's own nodes that end at or before it were freed.
    cursor: u64,
    /// The job skips what was born at or before the cut. The version that it is left to may change
    /// it in place, so that the job's copy is out of date.
    own_only: bool,
}

impl Pool {
    /// Writes every node of the frozen mappings that was not written yet.
    pub(super) async fn write_nodes(&self, entries: &[FrozenEntry]) -> Result<()> {
        for entry in entries {
            let Some(Root::Memory(root)) = entry.root() else {
                continue;
            };
            let share = match &entry.content {
                Some(Content::Walk {
                    cut,
                    cursor,
                    output,
                    ..
                }) => Some(Share {
                    cut: *cut,
                    cursor: *cursor,
                    own_only: *output == Output::Discard,
                }),
                _ => None,
            };
            if share.is_none_or(|share| !share.own_only || root.header.birth > share.cut) {
                self.write_tree(root, share).await?;
            }
        }
        Ok(())
    }

    /// Writes the changed nodes of one tree.
    pub(super) async fn write_mapping(&self, root: &Arc<Node>) -> Result<()> {
        self.write_tree(root, None).await
    }

    async fn write_tree(&self, root: &Arc<Node>, share: Option<Share>) -> Result<()> {
        let geometry = self.state.lock().geometry;
        let mut unwritten = Vec::new();
        collect(root, &geometry, share, &mut unwritten);
        let (mut batch, mut nodes) = (Vec::new(), Vec::new());
        for node in unwritten {
            let bytes = node.write(|index| is_pruned(&node, index, &geometry, share));
            if node.header.twin != Address(0) {
                batch.push((node.header.twin, bytes.clone()));
            }
            batch.push((node.header.address, bytes));
            nodes.push(node);
            if batch.len() >= BATCH_BLOCKS {
                self.write_batch(std::mem::take(&mut batch)).await?;
                nodes.drain(..).for_each(|node| node.set_landed());
            }
        }
        self.write_batch(batch).await?;
        nodes.iter().for_each(|node| node.set_landed());
        Ok(())
    }

    /// Writes single blocks, adjacent ones together. None of them is referred to by anything
    /// durable; the flush before the superblock makes them so.
    pub(super) async fn write_batch(&self, mut batch: Vec<(Address, Vec<u8>)>) -> Result<()> {
        batch.sort_unstable_by_key(|(address, _)| *address);
        let adjacent = |a: &(Address, Vec<u8>), b: &(Address, Vec<u8>)| a.0.0 + 1 == b.0.0;
        let mut writes = Vec::new();
        for run in batch
            .chunk_by(adjacent)
            .flat_map(|run| run.chunks(JOIN_BLOCKS))
        {
            let Some((start, _)) = run.first() else {
                continue;
            };
            let mut buffer = Buffer::new(run.len() * BLOCK_SIZE);
            for (place, (_, bytes)) in buffer.as_chunks_mut::<BLOCK_SIZE>().0.iter_mut().zip(run) {
                place.copy_from_slice(bytes);
            }
            writes.push(self.device.write(start.0, buffer.freeze()));
        }
        let failed = join_all(writes)
            .await
            .into_iter()
            .find_map(std::result::Result::err);
        failed.map_or(Ok(()), |error| {
            Err(self.poison("a checkpoint write", &error))
        })
    }
}

fn is_pruned(node: &Node, index: usize, g: &Geometry, share: Option<Share>) -> bool {
    let level = node.header.level;
    let Some(share) = share.filter(|_| level > 0) else {
        return false;
    };
    let end = node.header.first + (index as u64 + 1) * g.span(level - 1);
    let birth = match node.child(index) {
        Child::Hole => return false,
        Child::Memory(child) => child.header.birth,
        Child::Stored(stored) => stored.birth,
    };
    // A node born at or before the cut is an ancestor's too, and keeps all it has.
    let consumed = node.header.birth > share.cut && end <= share.cursor;
    consumed || share.own_only && birth <= share.cut
}

fn collect(node: &Arc<Node>, geometry: &Geometry, share: Option<Share>, into: &mut Vec<Arc<Node>>) {
    if node.is_written() {
        return; // and so is all below: children are written first
    }
    for index in 0..node.children_len() {
        if let Some(child) = node.child_in_memory(index)
            && !is_pruned(node, index, geometry, share)
        {
            collect(child, geometry, share, into);
        }
    }
    into.push(Arc::clone(node));
}
