//! The catalogue: a copy-on-write tree of entry blocks, changed by checkpoints alone.
//!
//! It has the shape of a volume's mapping: entry `id` is in block `id / 8`. All entries are read
//! when the pool is opened and kept in memory, about 300 bytes each: 110 000 of them are 33 MB, and
//! every look-up, listing and rule is then a plain one. Reading on demand would save that memory
//! and cost an await in each of them.
use super::freeze::{FrozenEntry, encode_entry};
use crate::allocator::{Allocator, Log};
use crate::cache::NodeSource;
use crate::error::{Error, ErrorKind, Result};
use crate::format::checksum;
use crate::format::entry::Entry;
use crate::format::geometry::Geometry;
use crate::format::node::NodeHeader;
use crate::format::pointer::{NodeRef, Packed};
use crate::limits::{CATALOGUE_ENTRIES, CATALOGUE_ENTRY_BYTES};
use crate::mapping::{self, Ground, Leaf, Node, Root};
use crate::pool::Pool;
use crate::units::{Address, BLOCK_SIZE, Record};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The catalogue's mapping while a checkpoint changes it.
struct CatalogueGround<'a> {
    geometry: Geometry,
    nodes: &'a NodeSource<'a>,
    allocator: &'a mut Allocator,
    now: Record,
    /// Nodes made by this checkpoint: two may freeze the same record, so births do not tell.
    fresh: &'a mut BTreeSet<u64>,
}

impl Ground for CatalogueGround<'_> {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn find(&self, stored: &NodeRef) -> Option<Arc<Node>> {
        self.nodes.find(stored)
    }

    fn new_node(&mut self, level: u8, first: u64) -> NodeHeader {
        let address = self.allocator.take_metadata(0);
        let twin = if level > 0 {
            self.allocator.take_metadata(1)
        } else {
            Address(0)
        };
        self.fresh.insert(address.0);
        NodeHeader {
            level,
            owner: 0,
            first,
            birth: self.now,
            address,
            twin,
        }
    }

    fn in_place(&self, node: &NodeHeader) -> bool {
        self.fresh.contains(&node.address.0)
    }

    fn release_node(&mut self, node: &NodeHeader) {
        // Fresh ones were never written, but wait like the others: it is simpler, and rare.
        self.allocator.free_gated(node.address);
        if node.level > 0 {
            self.allocator.free_gated(node.twin);
        }
    }

    fn release_data(&mut self, data: Packed) {
        self.allocator.free_gated(data.address());
    }
}

impl Pool {
    /// Puts the frozen entries into the catalogue; its new root.
    pub(super) async fn write_catalogue(
        &self,
        entries: &[FrozenEntry],
        record: Record,
        log: &mut Log,
    ) -> Result<Option<NodeRef>> {
        let mut root = Root::from_stored(self.superblock.lock().catalogue);
        let mut fresh = BTreeSet::new();
        let mut batch = Vec::new();
        for group in entries.chunk_by(|a, b| a.id / CATALOGUE_ENTRIES == b.id / CATALOGUE_ENTRIES) {
            let Some(index) = group.first().map(|entry| entry.id / CATALOGUE_ENTRIES) else {
                continue;
            };
            let (old, loaded) = self.catalogue_slot(&root, index).await?;
            let block = self.patched(old, group).await?;
            let used = block.iter().any(|byte| *byte != 0);
            let crc = checksum(&block);
            let geometry = self.state.lock().geometry;
            let mut address = Address(0);
            self.allocate_frozen(log, 1 + 16, |allocator| {
                if used {
                    address = allocator.take_metadata(0);
                }
                let nodes = NodeSource::new(&self.cache, &loaded);
                let (nodes, fresh) = (&nodes, &mut fresh);
                let mut ground = CatalogueGround {
                    geometry,
                    nodes,
                    allocator,
                    now: record,
                    fresh,
                };
                if used {
                    let pointer = Packed::new(address, 0, record, crc);
                    mapping::map(&mut root, &mut ground, index, &[pointer]);
                } else {
                    mapping::clear(&mut root, &mut ground, index, 1);
                }
            })
            .await?;
            if used {
                batch.push((address, block));
            }
        }
        self.write_batch(batch).await?;
        match root {
            Root::Empty => Ok(None),
            Root::Stored(stored) => Ok(Some(stored)),
            Root::Memory(node) => {
                self.write_mapping(&node).await?;
                self.cache.keep_tree(&node);
                Ok(node.stored())
            }
        }
    }

    /// The pointer to a catalogue block, and the nodes on the way to it.
    async fn catalogue_slot(&self, root: &Root, index: u64) -> Result<(Packed, Vec<Arc<Node>>)> {
        let mut loaded = Vec::new();
        loop {
            let (missing, reading) = {
                let mut state = self.state.lock();
                let nodes = NodeSource::new(&self.cache, &loaded);
                let (geometry, fresh) = (state.geometry, &mut BTreeSet::new());
                let allocator = &mut state.allocator;
                let ground = CatalogueGround {
                    geometry,
                    nodes: &nodes,
                    allocator,
                    now: Record(0),
                    fresh,
                };
                match mapping::leaf_at(root, &ground, index) {
                    Ok(Leaf::Hole { .. }) => return Ok((Packed::HOLE, nodes.into_nodes())),
                    Ok(Leaf::Node(leaf)) => {
                        let at = usize::try_from(index - leaf.header.first).unwrap_or(usize::MAX);
                        return Ok((leaf.slot(at), nodes.into_nodes()));
                    }
                    Err(missing) => (missing, state.readers.begin()),
                }
            };
            loaded.push(self.load_node(&missing, &reading).await?);
        }
    }

    /// An entry block with some of its entries replaced.
    async fn patched(&self, old: Packed, group: &[FrozenEntry]) -> Result<Vec<u8>> {
        let mut block = vec![0; BLOCK_SIZE];
        if !old.is_hole() {
            block.copy_from_slice(&self.read_block(old.address(), old.crc()).await?);
        }
        for entry in group {
            let at = usize::try_from(entry.id % CATALOGUE_ENTRIES).unwrap_or_default();
            let place = at * CATALOGUE_ENTRY_BYTES..(at + 1) * CATALOGUE_ENTRY_BYTES;
            block[place].copy_from_slice(&encode_entry(entry));
        }
        Ok(block)
    }
}

/// Reads all entries of a catalogue, calling `take` for each.
pub(crate) async fn read_catalogue(
    pool: &Pool,
    root: Option<NodeRef>,
    mut take: impl FnMut(u64, Entry) -> Result<()>,
) -> Result<()> {
    let damaged = |what: String| Error::new(ErrorKind::Corrupt, format!("the catalogue: {what}"));
    let mut nodes: Vec<NodeRef> = root.into_iter().collect();
    while let Some(stored) = nodes.pop() {
        let reading = pool.state.lock().readers.begin();
        let node = pool.load_node(&stored, &reading).await?;
        if node.header.level > 0 {
            for index in (0..node.children_len()).rev() {
                if let mapping::Child::Stored(child) = node.child(index) {
                    nodes.push(child);
                }
            }
            continue;
        }
        for index in 0..node.children_len() {
            let slot = node.slot(index);
            if slot.is_hole() {
                continue;
            }
            let block = pool.read_block(slot.address(), slot.crc()).await?;
            for bytes in block.chunks(CATALOGUE_ENTRY_BYTES) {
                let entry = Entry::decode(bytes);
                let entry =
                    entry.ok_or_else(|| damaged(format!("{} is damaged", slot.address())))?;
                if let Some((id, entry)) = entry {
                    take(id, entry)?;
                }
            }
        }
    }
    Ok(())
}
