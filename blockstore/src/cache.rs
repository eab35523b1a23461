//! Mapping nodes that are on disk, kept in memory up to a cap.
use crate::format::pointer::NodeRef;
use crate::mapping::Node;
use quick_cache::sync::Cache;
use std::sync::Arc;

/// Bytes that a node takes in memory, about.
const NODE_BYTES: u64 = 4400;

/// Nodes by address, birth and checksum: an address that is used again never finds its former node,
/// not even in the catalogue, where two checkpoints of one record give the same birth.
#[derive(Debug)]
pub(crate) struct NodeCache(Cache<(u64, u64, u32), Arc<Node>>);

impl NodeCache {
    /// Keeps about so many bytes of nodes.
    pub(crate) fn new(bytes: u64) -> Self {
        let nodes = usize::try_from((bytes / NODE_BYTES).max(64)).unwrap_or(usize::MAX);
        Self(Cache::new(nodes))
    }

    pub(crate) fn find(&self, stored: &NodeRef) -> Option<Arc<Node>> {
        self.0.get(&key(stored))
    }

    /// Takes a node that is written, without children in memory.
    pub(crate) fn keep(&self, node: Arc<Node>) {
        if let Some(stored) = node.stored() {
            self.0.insert(key(&stored), node);
        }
    }

    /// Takes all nodes of a written tree that are in memory only because it changed.
    pub(crate) fn keep_tree(&self, node: &Arc<Node>) {
        let mut plain = true;
        for index in 0..node.children_len() {
            if let Some(child) = node.child_in_memory(index) {
                plain = false;
                self.keep_tree(child);
            }
        }
        self.keep(if plain {
            Arc::clone(node)
        } else {
            Arc::new(node.stripped())
        });
    }
}

fn key(stored: &NodeRef) -> (u64, u64, u32) {
    (stored.address.0, stored.birth.0, stored.crc)
}

/// Where a change finds unchanged nodes: those just loaded for it, then the cache.
#[derive(Debug)]
pub(crate) struct NodeSource<'a> {
    pub(crate) cache: &'a NodeCache,
    pub(crate) loaded: &'a [Arc<Node>],
}

impl NodeSource<'_> {
    pub(crate) fn find(&self, stored: &NodeRef) -> Option<Arc<Node>> {
        let wanted = |node: &&Arc<Node>| {
            node.header.address == stored.address && node.header.birth == stored.birth
        };
        self.loaded
            .iter()
            .find(wanted)
            .cloned()
            .or_else(|| self.cache.find(stored))
    }
}
