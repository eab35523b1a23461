//! Mapping nodes that are on disk, kept in memory up to a cap.
use crate::format::pointer::NodeRef;
use crate::mapping::Node;
use quick_cache::sync::Cache;
use std::cell::RefCell;
use std::sync::Arc;

/// Bytes that a node takes in memory, about.
const NODE_BYTES: u64 = 4400;

/// Nodes by address, birth and CRC: an address that is used again never finds its former node, not
/// even within the same record.
#[derive(Debug)]
pub(crate) struct NodeCache(Cache<(u64, u64, u32), Arc<Node>>);

fn key(stored: &NodeRef) -> (u64, u64, u32) {
    (stored.address.0, stored.birth.0, stored.crc)
}

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
        if !node.is_written() {
            // A job freed it before it was: its address, and even its birth, may be another's now.
            return;
        }
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

/// Where one change finds unchanged nodes: those just loaded for it, then the cache.
///
/// What was found once is found again: the cache may evict at any moment, also between a change's
/// making sure that its path is in memory and its being applied.
#[derive(Debug)]
pub(crate) struct NodeSource<'a> {
    cache: &'a NodeCache,
    loaded: &'a [Arc<Node>],
    found: RefCell<Vec<Arc<Node>>>,
}

impl<'a> NodeSource<'a> {
    pub(crate) fn new(cache: &'a NodeCache, loaded: &'a [Arc<Node>]) -> Self {
        let found = RefCell::default();
        Self {
            cache,
            loaded,
            found,
        }
    }

    /// All that was loaded or found, for a change to come.
    pub(crate) fn into_nodes(self) -> Vec<Arc<Node>> {
        let mut nodes = self.found.into_inner();
        nodes.extend_from_slice(self.loaded);
        nodes
    }

    pub(crate) fn find(&self, stored: &NodeRef) -> Option<Arc<Node>> {
        let wanted = |node: &&Arc<Node>| {
            node.stored()
                .is_some_and(|found| key(&found) == key(stored))
        };
        let mut found = self.found.borrow_mut();
        let known = self.loaded.iter().chain(&*found).find(wanted).cloned();
        known.or_else(|| {
            let node = self.cache.find(stored)?;
            found.push(Arc::clone(&node));
            Some(node)
        })
    }
}
