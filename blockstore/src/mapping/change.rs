//! Copy on write: map, unmap and detach ranges, all of whose paths are in memory.
use super::node::{Child, Node};
use super::{Root, visit};
use crate::format::geometry::Geometry;
use crate::format::node::NodeHeader;
use crate::format::pointer::{NodeRef, Packed};
use std::sync::Arc;

/// What a change of a mapping needs from its surroundings.
pub(crate) trait Ground {
    fn geometry(&self) -> &Geometry;
    /// An unchanged node, if it is in memory.
    fn find(&self, stored: &NodeRef) -> Option<Arc<Node>>;
    /// A header with fresh addresses and the current birth.
    fn new_node(&mut self, level: u8, first: u64) -> NodeHeader;
    /// Neither frozen by a checkpoint nor shared.
    fn in_place(&self, node: &NodeHeader) -> bool;
    /// The mapping does not lead to this node any more.
    fn release_node(&mut self, node: &NodeHeader);
    /// The mapping does not lead to this data block any more.
    fn release_data(&mut self, data: Packed);
}

/// Maps `data` from volume block `first` on; what was there is released.
pub(crate) fn map(root: &mut Root, ground: &mut impl Ground, first: u64, data: &[Packed]) {
    assert!(!data.is_empty(), "mapping nothing");
    let end = first + data.len() as u64;
    let mut node = reach(root, ground, end);
    map_in(writable(ground, &mut node), ground, first, data);
    *root = Root::Memory(node);
}

fn map_in(node: &mut Node, ground: &mut impl Ground, first: u64, data: &[Packed]) {
    let NodeHeader {
        level,
        first: start,
        ..
    } = node.header;
    if level == 0 {
        for (block, slot) in (first..).zip(data) {
            let before = node.set_slot(index(block - start), *slot);
            if !before.is_hole() {
                ground.release_data(before);
            }
        }
        return;
    }
    let span = ground.geometry().span(level - 1);
    let mut done = 0;
    while done < data.len() {
        let block = first + done as u64;
        let at = index((block - start) / span);
        let child_start = start + at as u64 * span;
        let here = (data.len() - done).min(index(child_start + span - block));
        let mut child = change_child(node, ground, at, child_start);
        map_in(
            writable(ground, &mut child),
            ground,
            block,
            &data[done..done + here],
        );
        node.set_child(at, Some(Child::Memory(&child)));
        done += here;
    }
}

/// Unmaps a range, releasing block by block: for ranges whose every leaf is in memory.
pub(crate) fn clear(root: &mut Root, ground: &mut impl Ground, first: u64, count: u64) {
    let end = (first + count).min(root.span(ground.geometry()));
    if !any_mapped(root, ground, first, end) {
        return;
    }
    let Some(mut node) = in_memory(std::mem::take(root), ground) else {
        return;
    };
    clear_in(writable(ground, &mut node), ground, first, end);
    if node.count() == 0 {
        ground.release_node(&node.header);
    } else {
        *root = Root::Memory(node);
    }
}

fn any_mapped(root: &Root, ground: &impl Ground, first: u64, end: u64) -> bool {
    let mut block = first;
    while block < end {
        match visit::leaf_at(root, ground, block) {
            Ok(visit::Leaf::Hole { end }) => block = end,
            Ok(visit::Leaf::Node(leaf)) => {
                let start = leaf.header.first;
                let stop = end.min(start + ground.geometry().span(0));
                if (block..stop).any(|block| !leaf.slot(index(block - start)).is_hole()) {
                    return true;
                }
                block = stop;
            }
            Err(stored) => unreachable!("{} was not loaded before an unmap", stored.address),
        }
    }
    false
}

fn clear_in(node: &mut Node, ground: &mut impl Ground, first: u64, end: u64) {
    let NodeHeader {
        level,
        first: start,
        ..
    } = node.header;
    if level == 0 {
        for block in first..end {
            let before = node.set_slot(index(block - start), Packed::HOLE);
            if !before.is_hole() {
                ground.release_data(before);
            }
        }
        return;
    }
    let span = ground.geometry().span(level - 1);
    for at in index((first - start) / span)..index((end - start).div_ceil(span)) {
        if matches!(node.child(at), Child::Hole) {
            continue;
        }
        let child_start = start + at as u64 * span;
        let (low, high) = (first.max(child_start), end.min(child_start + span));
        let mut child = change_child(node, ground, at, child_start);
        if (low, high) == (child_start, child_start + span) {
            release_all(&child, ground);
            node.set_child(at, None);
            continue;
        }
        clear_in(writable(ground, &mut child), ground, low, high);
        if child.count() == 0 {
            ground.release_node(&child.header);
        }
        node.set_child(at, (child.count() > 0).then_some(Child::Memory(&child)));
    }
}

/// Releases what a detached tree, all in memory, holds.
fn release_all(node: &Arc<Node>, ground: &mut impl Ground) {
    for at in 0..node.children_len() {
        if node.header.level == 0 {
            let slot = node.slot(at);
            if !slot.is_hole() {
                ground.release_data(slot);
            }
        } else if let Child::Memory(child) = node.child(at) {
            release_all(child, ground);
        } else if let Child::Stored(stored) = node.child(at) {
            release_all(&loaded(ground, &stored), ground);
        }
    }
    ground.release_node(&node.header);
}

/// Takes a range out of the mapping as a tree of its own, at a cost that does not depend on the
/// range's size: only the paths to its two ends must be in memory.
pub(crate) fn detach(root: &mut Root, ground: &mut impl Ground, first: u64, count: u64) -> Root {
    let end = (first + count).min(root.span(ground.geometry()));
    if first >= end {
        return Root::Empty;
    }
    if first == 0 && end == root.span(ground.geometry()) {
        return std::mem::take(root);
    }
    take(root, ground, first, end).map_or(Root::Empty, Root::Memory)
}

fn take(root: &mut Root, ground: &mut impl Ground, first: u64, end: u64) -> Option<Arc<Node>> {
    let mut node = in_memory(std::mem::take(root), ground)?;
    let taken = take_in(writable(ground, &mut node), ground, first, end);
    if node.count() == 0 {
        ground.release_node(&node.header);
    } else {
        *root = Root::Memory(node);
    }
    taken
}

fn take_in(node: &mut Node, ground: &mut impl Ground, first: u64, end: u64) -> Option<Arc<Node>> {
    let NodeHeader {
        level,
        first: start,
        ..
    } = node.header;
    let fanout = ground.geometry().fanout;
    let mut taken = Node::empty(ground.new_node(level, start), fanout);
    let span = if level == 0 {
        1
    } else {
        ground.geometry().span(level - 1)
    };
    let (from, to) = ((first - start) / span, (end - start).div_ceil(span));
    for at in index(from)..index(to) {
        if level == 0 {
            taken.set_slot(at, node.set_slot(at, Packed::HOLE));
            continue;
        }
        let child_start = start + at as u64 * span;
        let covered = first <= child_start && child_start + span <= end;
        match node.child(at) {
            Child::Hole => {}
            Child::Memory(child) if covered => {
                let child = Arc::clone(child);
                taken.set_child(at, Some(Child::Memory(&child)));
                node.set_child(at, None);
            }
            Child::Stored(stored) if covered => {
                taken.set_child(at, Some(Child::Stored(stored)));
                node.set_child(at, None);
            }
            Child::Memory(_) | Child::Stored(_) => {
                let mut child = change_child(node, ground, at, child_start);
                let (low, high) = (first.max(child_start), end.min(child_start + span));
                let part = take_in(writable(ground, &mut child), ground, low, high);
                taken.set_child(at, part.as_ref().map(Child::Memory));
                if child.count() == 0 {
                    ground.release_node(&child.header);
                    node.set_child(at, None);
                } else {
                    node.set_child(at, Some(Child::Memory(&child)));
                }
            }
        }
    }
    if taken.count() == 0 {
        ground.release_node(&taken.header);
        return None;
    }
    Some(Arc::new(taken))
}

/// The root as a node in memory that reaches `end`, with levels put on top as needed.
fn reach(root: &mut Root, ground: &mut impl Ground, end: u64) -> Arc<Node> {
    let fanout = ground.geometry().fanout;
    let mut level = 0;
    while ground.geometry().span(level) < end {
        level += 1;
    }
    let old = std::mem::take(root);
    if old.level().is_some_and(|old_level| old_level >= level) {
        if let Some(node) = in_memory(old, ground) {
            return node;
        }
        unreachable!("a root with a level is a node");
    }
    // A root that is put under new ones is not changed itself, so it need not be in memory.
    let from = old.level().map_or(level, |old_level| old_level + 1);
    let mut top = old;
    for level in from..=level {
        let mut node = Node::empty(ground.new_node(level, 0), fanout);
        if level > 0 {
            node.set_child(0, Some(top.as_child()));
        }
        top = Root::Memory(Arc::new(node));
    }
    reach(&mut top, ground, end)
}

/// The root's node; `None` for an empty root.
fn in_memory(root: Root, ground: &impl Ground) -> Option<Arc<Node>> {
    match root {
        Root::Empty => None,
        Root::Memory(node) => Some(node),
        Root::Stored(stored) => Some(loaded(ground, &stored)),
    }
}

/// The child at `at`, taken out of its parent (or made), to be changed and put back.
fn change_child(node: &mut Node, ground: &mut impl Ground, at: usize, start: u64) -> Arc<Node> {
    if let Some(child) = node.take_child(at) {
        return child;
    }
    match node.child(at) {
        Child::Stored(stored) => loaded(ground, &stored),
        Child::Hole | Child::Memory(_) => {
            let level = node.header.level - 1;
            let fanout = ground.geometry().fanout;
            Arc::new(Node::empty(ground.new_node(level, start), fanout))
        }
    }
}

/// A node that the caller has made sure of with [`visit::missing_for_range`].
fn loaded(ground: &impl Ground, stored: &NodeRef) -> Arc<Node> {
    ground.find(stored).unwrap_or_else(|| {
        unreachable!("{} was not loaded before a change", stored.address);
    })
}

/// The node for changing: itself, or its copy if it is frozen or shared.
fn writable<'a>(ground: &mut impl Ground, node: &'a mut Arc<Node>) -> &'a mut Node {
    if !ground.in_place(&node.header) {
        let header = ground.new_node(node.header.level, node.header.first);
        let copy = node.copy_as(header);
        ground.release_node(&node.header);
        *node = Arc::new(copy);
    }
    Arc::make_mut(node)
}

fn index(number: u64) -> usize {
    let index = usize::try_from(number);
    assert!(index.is_ok(), "{number} is no index");
    index.unwrap_or_default()
}
