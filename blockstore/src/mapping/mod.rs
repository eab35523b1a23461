//! Where a volume's blocks are: look up, copy on write, share with snapshots.
//!
//! A mapping is a radix tree of [`Node`]s over volume blocks. Nodes that changed since the last
//! checkpoint are in memory, held by their parents; all others are on disk and found in a cache.
//! Nothing here does I/O: where a node is not in memory, the answer is the [`NodeRef`] to load.
//!
//! # Invariants
//! * A changed node's parent is changed: every path from a root meets memory, then disk.
//! * A node gets its birth and address when it becomes dirty, never when it is written; otherwise a
//!   node dirtied before a cut and written after it would look unshared.
//! * A node is changed in place only if no checkpoint froze it and no version shares it; both are
//!   told by its birth alone ([`Ground::in_place`]).
mod change;
mod node;
mod visit;

#[cfg(test)]
mod tests;

pub(crate) use change::{Ground, clear, detach, map};
pub(crate) use node::{Child, Node};
pub(crate) use visit::{Leaf, Path, leaf_at, missing_at, missing_for_range, path_to};

use crate::format::geometry::Geometry;
use crate::format::pointer::NodeRef;
use std::sync::Arc;

/// The root of a mapping. Its level says how far it reaches; blocks beyond are holes.
#[derive(Clone, Debug, Default)]
pub(crate) enum Root {
    /// Nothing is mapped.
    #[default]
    Empty,
    /// Unchanged since it was written.
    Stored(NodeRef),
    /// Changed, or not yet forgotten.
    Memory(Arc<Node>),
}

impl Root {
    pub(crate) fn from_stored(stored: Option<NodeRef>) -> Self {
        stored.map_or(Self::Empty, Self::Stored)
    }

    /// Data blocks mapped.
    pub(crate) fn count(&self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Stored(stored) => stored.count,
            Self::Memory(node) => node.count(),
        }
    }

    pub(crate) fn level(&self) -> Option<u8> {
        match self {
            Self::Empty => None,
            Self::Stored(stored) => Some(stored.level),
            Self::Memory(node) => Some(node.header.level),
        }
    }

    /// Blocks that the root reaches.
    pub(crate) fn span(&self, geometry: &Geometry) -> u64 {
        self.level().map_or(0, |level| geometry.span(level))
    }

    /// The root as a parent would hold it.
    pub(crate) fn as_child(&self) -> Child<'_> {
        match self {
            Self::Empty => Child::Hole,
            Self::Stored(stored) => Child::Stored(*stored),
            Self::Memory(node) => Child::Memory(node),
        }
    }
}
