//! Finding leaves, and what must be loaded to find them.
use super::Root;
use super::change::Ground;
use super::node::{Child, Node};
use crate::cache::NodeSource;
use crate::format::geometry::Geometry;
use crate::format::pointer::NodeRef;
use crate::units::Record;
use std::sync::Arc;

/// Where the path to a block ends.
#[derive(Debug)]
pub(crate) enum Leaf {
    /// In a hole that goes on to block `end`, exclusive (`u64::MAX` beyond the root's reach).
    Hole { end: u64 },
    /// At a leaf.
    Node(Arc<Node>),
}

/// The leaf of `block`, or the node to load first.
pub(crate) fn leaf_at(root: &Root, ground: &impl Ground, block: u64) -> Result<Leaf, NodeRef> {
    let geometry = ground.geometry();
    if block >= root.span(geometry) {
        return Ok(Leaf::Hole { end: u64::MAX });
    }
    let Some(mut node) = resolve(root.as_child(), ground)? else {
        return Ok(Leaf::Hole { end: u64::MAX });
    };
    while node.header.level > 0 {
        let span = geometry.span(node.header.level - 1);
        let at = (block - node.header.first) / span;
        let child = node.child(usize::try_from(at).unwrap_or(usize::MAX));
        node = match resolve(child, ground)? {
            Some(child) => child,
            None => {
                return Ok(Leaf::Hole {
                    end: node.header.first + (at + 1) * span,
                });
            }
        };
    }
    Ok(Leaf::Node(node))
}

/// The node to load before `block`'s path can be changed, if any.
pub(crate) fn missing_at(root: &Root, ground: &impl Ground, block: u64) -> Option<NodeRef> {
    leaf_at(root, ground, block).err()
}

/// The node to load before every leaf of a range can be changed, if any.
pub(crate) fn missing_for_range(
    root: &Root,
    ground: &impl Ground,
    first: u64,
    count: u64,
) -> Option<NodeRef> {
    let end = first + count;
    let mut block = first;
    while block < end {
        match leaf_at(root, ground, block) {
            Err(stored) => return Some(stored),
            Ok(Leaf::Hole { end: u64::MAX }) => return None,
            Ok(Leaf::Hole { end }) => block = end,
            Ok(Leaf::Node(leaf)) => block = leaf.header.first + ground.geometry().span(0),
        }
    }
    None
}

/// The nodes from the root towards a block, and where what is there ends.
#[derive(Debug)]
pub(crate) struct Path {
    /// The last one is a leaf, unless the block is in a hole or under a node that was skipped.
    pub(crate) nodes: Vec<Arc<Node>>,
    /// First block beyond the leaf, hole or skipped node.
    pub(crate) end: u64,
}

/// The path to `block`, stopping above nodes whose birth is to be skipped; `None` beyond the root's
/// reach. `Err`: the node to load first.
pub(crate) fn path_to(
    root: &Root,
    geometry: &Geometry,
    nodes: &NodeSource<'_>,
    block: u64,
    skip: impl Fn(Record) -> bool,
) -> Result<Option<Path>, NodeRef> {
    let mut end = root.span(geometry);
    if block >= end {
        return Ok(None);
    }
    let resolve = |child: Child<'_>| match child {
        Child::Hole => Ok(None),
        Child::Memory(node) => Ok((!skip(node.header.birth)).then(|| Arc::clone(node))),
        Child::Stored(stored) if skip(stored.birth) => Ok(None),
        Child::Stored(stored) => nodes.find(&stored).map(Some).ok_or(stored),
    };
    let mut path: Vec<Arc<Node>> = Vec::new();
    let mut found = resolve(root.as_child())?;
    while let Some(node) = found {
        path.push(Arc::clone(&node));
        if node.header.level == 0 {
            break;
        }
        let span = geometry.span(node.header.level - 1);
        let at = (block - node.header.first) / span;
        end = node.header.first + (at + 1) * span;
        found = resolve(node.child(usize::try_from(at).unwrap_or(usize::MAX)))?;
    }
    Ok(Some(Path { nodes: path, end }))
}

fn resolve(child: Child<'_>, ground: &impl Ground) -> Result<Option<Arc<Node>>, NodeRef> {
    match child {
        Child::Hole => Ok(None),
        Child::Memory(node) => Ok(Some(Arc::clone(node))),
        Child::Stored(stored) => ground.find(&stored).map(Some).ok_or(stored),
    }
}
