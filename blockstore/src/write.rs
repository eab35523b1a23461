//! The way of a write: admit, claim fresh blocks, checksum, write once, publish, answer.
use crate::admit::{Need, Promise, Urgency};
use crate::cache::NodeSource;
use crate::device::{Buffer, is_aligned};
use crate::error::{Error, ErrorKind, Result};
use crate::format::checksum;
use crate::format::pointer::{NodeRef, Packed};
use crate::format::record::{Change, Run};
use crate::limits::DEADLIST_ENTRIES;
use crate::mapping::{Leaf, leaf_at};
use crate::pool::Pool;
use crate::publish::{Made, Published};
use crate::state::State;
use crate::units::{BLOCK_BYTES, BLOCK_SIZE, Record};
use crate::versions::SMALL_UNMAP_LEAVES;
use bytes::Bytes;
use futures_util::future::join_all;

/// A block that is written in part: what it was merged from must still be current when the merge is
/// published.
#[derive(Clone, Copy, Debug)]
struct Edge {
    block: u64,
    merged_from: Packed,
}

/// The head of a volume, or `Gone`.
pub(crate) fn head_of(state: &State, volume: u64) -> Result<u64> {
    let head = state.volumes.get(&volume).map_or(0, |volume| volume.head);
    if head == 0 {
        return Err(Error::new(ErrorKind::Gone, "the volume was deleted"));
    }
    Ok(head)
}

/// What a version maps at `block`, or the node to load to tell.
pub(crate) fn slot_at(
    state: &mut State,
    version: u64,
    block: u64,
    nodes: &NodeSource<'_>,
) -> Result<std::result::Result<Packed, NodeRef>> {
    let (root, ground) = state.ground(version, Record(0), nodes)?;
    Ok(match leaf_at(root, &ground, block) {
        Err(missing) => Err(missing),
        Ok(Leaf::Hole { .. }) => Ok(Packed::HOLE),
        Ok(Leaf::Node(leaf)) => {
            let index = usize::try_from(block - leaf.header.first).unwrap_or(usize::MAX);
            Ok(leaf.slot(index))
        }
    })
}

impl Pool {
    /// Writes `data` at byte `offset`; the record that holds it, or `None` if it is empty.
    pub(crate) async fn write(
        &self,
        volume: u64,
        offset: u64,
        data: Bytes,
    ) -> Result<Option<Record>> {
        if data.is_empty() {
            return Ok(None);
        }
        let end = offset + data.len() as u64;
        let aligned = offset.is_multiple_of(BLOCK_BYTES) && end.is_multiple_of(BLOCK_BYTES);
        if aligned {
            let data = if is_aligned(&data) {
                data
            } else {
                copied(&data)
            };
            let record = self
                .write_blocks(volume, offset / BLOCK_BYTES, data, &[])
                .await?;
            return record.map(Some).ok_or_else(|| {
                Error::new(ErrorKind::Io, "an aligned write cannot be out of date")
            });
        }
        let (first, last) = (offset / BLOCK_BYTES, (end - 1) / BLOCK_BYTES);
        let mut blocks = Vec::new();
        if !offset.is_multiple_of(BLOCK_BYTES) {
            blocks.push(first);
        }
        if !end.is_multiple_of(BLOCK_BYTES) && blocks != [last] {
            blocks.push(last);
        }
        let _merging = self.edges.merge(volume, &blocks).await;
        loop {
            let length = usize::try_from((last - first + 1) * BLOCK_BYTES).unwrap_or(usize::MAX);
            let mut buffer = Buffer::new(length);
            let mut edges = Vec::new();
            for block in &blocks {
                let (merged_from, content) = self.read_current(volume, *block).await?;
                let at = usize::try_from((block - first) * BLOCK_BYTES).unwrap_or(usize::MAX);
                buffer[at..at + BLOCK_SIZE].copy_from_slice(&content);
                edges.push(Edge {
                    block: *block,
                    merged_from,
                });
            }
            let at = usize::try_from(offset % BLOCK_BYTES).unwrap_or(usize::MAX);
            buffer[at..at + data.len()].copy_from_slice(&data);
            if let Some(record) = self
                .write_blocks(volume, first, buffer.freeze(), &edges)
                .await?
            {
                return Ok(Some(record));
            }
        }
    }

    /// Writes whole blocks. `None`: an edge changed meanwhile, nothing was published.
    async fn write_blocks(
        &self,
        volume: u64,
        first: u64,
        data: Bytes,
        edges: &[Edge],
    ) -> Result<Option<Record>> {
        let blocks = u32::try_from(data.len() / BLOCK_SIZE).unwrap_or(u32::MAX);
        let need = Need {
            volume,
            journal_bytes: 32 + data.len() / BLOCK_SIZE * 16,
            data: blocks,
            nodes: self.geometry.nodes_for(blocks.into()),
            spare: u64::from(blocks) / DEADLIST_ENTRIES as u64 + 8,
            urgency: Urgency::Write,
        };
        let mut promise = self.admit(need).await?;
        let crcs: Vec<u32> = data
            .as_chunks::<BLOCK_SIZE>()
            .0
            .iter()
            .map(|b| checksum(b))
            .collect();
        self.write_extents(&mut promise, &data).await?;

        let mut crcs = crcs.into_iter();
        let runs: Vec<Run> = promise
            .extents
            .iter()
            .map(|extent| Run {
                address: extent.address,
                crcs: crcs.by_ref().take(extent.blocks as usize).collect(),
            })
            .collect();
        let make = |state: &mut State, nodes: &NodeSource<'_>| {
            let version = head_of(state, volume)?;
            for edge in edges {
                match slot_at(state, version, edge.block, nodes)? {
                    Err(missing) => return Ok(Made::Missing(missing)),
                    Ok(current) if current != edge.merged_from => return Ok(Made::Stale),
                    Ok(_) => {}
                }
            }
            Ok(Made::Change(Change::Map {
                version,
                first,
                runs: runs.clone(),
            }))
        };
        Ok(
            match self.publish(&mut promise, data.len() as u64, make).await? {
                Published::In(record) => Some(record),
                Published::Stale => None,
            },
        )
    }

    async fn write_extents(&self, promise: &mut Promise<'_>, data: &Bytes) -> Result<()> {
        promise.written = true;
        let mut at = 0;
        let mut writes = Vec::with_capacity(promise.extents.len());
        for extent in &promise.extents {
            let length = extent.blocks as usize * BLOCK_SIZE;
            writes.push(
                self.device
                    .write(extent.address.0, data.slice(at..at + length)),
            );
            at += length;
        }
        let failed = match writes.pop() {
            Some(only) if writes.is_empty() => only.await.err(),
            Some(last) => {
                writes.push(last);
                join_all(writes)
                    .await
                    .into_iter()
                    .find_map(std::result::Result::err)
            }
            None => None,
        };
        match failed {
            None => Ok(()),
            Some(error) => Err(Error::io("writing data", error)),
        }
    }

    /// Blocks below a leaf.
    pub(crate) fn span(&self) -> u64 {
        self.geometry.span(0)
    }

    /// Unmaps the whole blocks inside `[first, end)`; `None` if there is nothing to do.
    pub(crate) async fn unmap(
        &self,
        volume: u64,
        first: u64,
        end: u64,
        urgency: Urgency,
    ) -> Result<Option<Record>> {
        if first >= end {
            return Ok(None);
        }
        // A small range is released leaf by leaf; of a large one the paths to its two ends are
        // copied, once for what stays and once for what is taken out.
        let released = (end - first).min(SMALL_UNMAP_LEAVES * self.span());
        let nodes = 2 * self.geometry.nodes_for(released);
        // What is shared goes to the deadlist.
        let shared = {
            let state = self.state.lock();
            let head = state.version(head_of(&state, volume)?)?;
            if head.parent == 0 {
                0
            } else {
                head.root.count().min(end - first)
            }
        };
        let need = Need {
            volume,
            journal_bytes: 32,
            data: 0,
            nodes,
            spare: shared / DEADLIST_ENTRIES as u64 + 8,
            urgency,
        };
        let mut promise = self.admit(need).await?;
        let make = |state: &mut State, _: &NodeSource<'_>| {
            let version = head_of(state, volume)?;
            if state.version(version)?.root.count() == 0 {
                return Ok(Made::Stale); // all hole already
            }
            Ok(Made::Change(Change::Unmap {
                version,
                first,
                count: end - first,
            }))
        };
        Ok(match self.publish(&mut promise, 0, make).await? {
            Published::In(record) => Some(record),
            Published::Stale => None,
        })
    }

    /// TRIM: gives back the whole blocks inside a byte range. Where space to note it is lacking, it
    /// does nothing and succeeds, as a trim may.
    pub(crate) async fn trim(
        &self,
        volume: u64,
        offset: u64,
        length: u64,
    ) -> Result<Option<Record>> {
        let (first, end) = (
            offset.div_ceil(BLOCK_BYTES),
            (offset + length) / BLOCK_BYTES,
        );
        match self.unmap(volume, first, end, Urgency::Release).await {
            Err(error) if error.kind() == ErrorKind::NoSpace => Ok(None),
            result => result,
        }
    }

    /// Makes a byte range read as zeroes.
    pub(crate) async fn zero(
        &self,
        volume: u64,
        offset: u64,
        length: u64,
        allocate: bool,
    ) -> Result<Option<Record>> {
        let end = offset + length;
        if allocate {
            return self.write_zeroes(volume, offset, end).await;
        }
        let (first, last) = (offset.div_ceil(BLOCK_BYTES), end / BLOCK_BYTES);
        if first > last {
            return self.zero_part(volume, offset, end).await; // inside one block
        }
        let head = self.zero_part(volume, offset, first * BLOCK_BYTES).await?;
        let middle = self.unmap(volume, first, last, Urgency::Write).await?;
        let tail = self.zero_part(volume, last * BLOCK_BYTES, end).await?;
        Ok([head, middle, tail].into_iter().flatten().max())
    }

    async fn write_zeroes(&self, volume: u64, mut at: u64, end: u64) -> Result<Option<Record>> {
        const PIECE: u64 = 1 << 20;
        let mut newest = None;
        while at < end {
            // Pieces end on piece boundaries, so that only the ends are unaligned.
            let stop = end.min(at / PIECE * PIECE + PIECE);
            let zeroes = crate::device::zeroes(usize::try_from(stop - at).unwrap_or(usize::MAX));
            newest = self.write(volume, at, zeroes).await?.max(newest);
            at = stop;
        }
        Ok(newest)
    }

    /// Zeroes a part of one block, unless it is a hole, which reads as zeroes already.
    async fn zero_part(&self, volume: u64, offset: u64, end: u64) -> Result<Option<Record>> {
        if offset >= end {
            return Ok(None);
        }
        let (pointer, _) = self.read_current(volume, offset / BLOCK_BYTES).await?;
        if pointer.is_hole() {
            return Ok(None);
        }
        let zeroes = crate::device::zeroes(usize::try_from(end - offset).unwrap_or(usize::MAX));
        self.write(volume, offset, zeroes).await
    }
}

/// The same bytes in memory that direct I/O takes.
fn copied(data: &Bytes) -> Bytes {
    let mut buffer = Buffer::new(data.len());
    buffer.copy_from_slice(data);
    buffer.freeze()
}
