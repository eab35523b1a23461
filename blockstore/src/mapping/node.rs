//! One mapping node in memory: its slots, and the children that changed with it; no I/O.
use crate::format::checksum;
use crate::format::node::{NodeHeader, decode, encode};
use crate::format::pointer::{NodeRef, Packed};
use std::sync::{Arc, OnceLock};

/// A node. Children in memory win over what their slots say.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) header: NodeHeader,
    count: u64,
    slots: Vec<Packed>,
    /// Empty, or one place for each child.
    children: Vec<Option<Arc<Self>>>,
    /// The node as written; set once by the checkpoint that wrote it.
    written: OnceLock<Written>,
}

/// What a parent says of a node as it was written: what a job had freed by then is not in it.
#[derive(Clone, Copy, Debug)]
struct Written {
    crc: u32,
    count: u64,
}

/// What a slot of a node above the leaves leads to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Child<'a> {
    Hole,
    Memory(&'a Arc<Node>),
    Stored(NodeRef),
}

impl Child<'_> {
    /// Data blocks below.
    pub(crate) fn count(&self) -> u64 {
        match self {
            Self::Hole => 0,
            Self::Memory(node) => node.count,
            Self::Stored(stored) => stored.count,
        }
    }
}

impl Node {
    pub(crate) fn empty(header: NodeHeader, fanout: u32) -> Self {
        let slots = vec![Packed::HOLE; fanout as usize];
        Self {
            header,
            count: 0,
            slots,
            children: Vec::new(),
            written: OnceLock::new(),
        }
    }

    /// The node that `expected` points to, out of a block whose CRC was verified.
    pub(crate) fn from_block(block: &[u8], expected: &NodeRef, fanout: u32) -> Option<Self> {
        let (header, slots) = decode(block, expected, fanout as usize)?;
        let (crc, count) = (expected.crc, expected.count);
        let written = OnceLock::from(Written { crc, count });
        let node = Self {
            header,
            count,
            slots,
            children: Vec::new(),
            written,
        };
        (node.counted() == count).then_some(node)
    }

    /// Data blocks mapped below.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    fn counted(&self) -> u64 {
        if self.header.level == 0 {
            self.slots.iter().filter(|slot| !slot.is_hole()).count() as u64
        } else {
            (0..self.children_len())
                .map(|index| self.child(index).count())
                .sum()
        }
    }

    /// The same content as another node, to be changed.
    pub(crate) fn copy_as(&self, header: NodeHeader) -> Self {
        Self {
            header,
            written: OnceLock::new(),
            ..self.clone()
        }
    }

    /// Lets go of the children in memory that are written, here and below: they are found on disk,
    /// or in the cache. Nodes that are shared, or being read, stay as they are for now.
    pub(crate) fn forget_written(&mut self) {
        self.forget_written_children();
        for child in self.children.iter_mut().flatten() {
            if let Some(child) = Arc::get_mut(child) {
                child.forget_written();
            }
        }
    }

    /// The node without its children in memory, all of which must be written: for the cache.
    pub(crate) fn stripped(&self) -> Self {
        let mut copy = self.clone();
        copy.forget_written_children();
        copy
    }

    fn forget_written_children(&mut self) {
        for index in 0..self.children.len() {
            let stored = self.children[index]
                .as_ref()
                .and_then(|child| child.stored());
            if let Some(stored) = stored {
                self.set_stored(index, Some(stored));
            }
        }
        if self.children.iter().all(Option::is_none) {
            self.children = Vec::new();
        }
    }

    /// The pointer to this node, once it is written.
    pub(crate) fn stored(&self) -> Option<NodeRef> {
        let NodeHeader {
            level,
            birth,
            address,
            twin,
            ..
        } = self.header;
        let Written { crc, count } = *self.written.get()?;
        Some(NodeRef {
            address,
            twin,
            birth,
            crc,
            level,
            count,
        })
    }

    /// Children there can be.
    pub(crate) fn children_len(&self) -> usize {
        if self.header.level >= 2 {
            self.slots.len() / 2
        } else {
            self.slots.len()
        }
    }

    /// The child in memory at `index`.
    pub(crate) fn child_in_memory(&self, index: usize) -> Option<&Arc<Self>> {
        self.children.get(index)?.as_ref()
    }

    /// What is at `index` of a node above the leaves.
    pub(crate) fn child(&self, index: usize) -> Child<'_> {
        if let Some(child) = self.child_in_memory(index) {
            return Child::Memory(child);
        }
        self.stored_child(index).map_or(Child::Hole, Child::Stored)
    }

    fn stored_child(&self, index: usize) -> Option<NodeRef> {
        let level = self.header.level;
        assert!(level > 0, "a leaf has no child nodes");
        if level == 1 {
            NodeRef::from_leaf_slot(self.slots[index])
        } else {
            NodeRef::from_pair_slots(level - 1, self.slots[2 * index], self.slots[2 * index + 1])
        }
    }

    fn set_stored(&mut self, index: usize, stored: Option<NodeRef>) {
        if let Some(child) = self.children.get_mut(index) {
            *child = None;
        }
        if self.header.level == 1 {
            self.slots[index] = stored.map_or(Packed::HOLE, NodeRef::leaf_slot);
        } else {
            let pair = stored.map_or([Packed::HOLE; 2], NodeRef::pair_slots);
            self.slots[2 * index..2 * index + 2].copy_from_slice(&pair);
        }
    }

    /// Puts a child in place, `None` for a hole, and counts anew.
    pub(crate) fn set_child(&mut self, index: usize, child: Option<Child<'_>>) {
        let before = self.child(index).count();
        match child.unwrap_or(Child::Hole) {
            Child::Hole => self.set_stored(index, None),
            Child::Stored(stored) => self.set_stored(index, Some(stored)),
            Child::Memory(node) => {
                self.set_stored(index, None);
                if self.children.is_empty() {
                    self.children = vec![None; self.children_len()];
                }
                self.children[index] = Some(Arc::clone(node));
            }
        }
        self.count = self.count - before + self.child(index).count();
    }

    /// Takes the child out to change it; `set_child` must put it back. The count still has it.
    pub(crate) fn take_child(&mut self, index: usize) -> Option<Arc<Self>> {
        let child = self.children.get_mut(index)?.take()?;
        self.count -= child.count;
        Some(child)
    }

    /// What a leaf maps at `index`.
    pub(crate) fn slot(&self, index: usize) -> Packed {
        assert!(self.header.level == 0, "only leaves map data");
        self.slots[index]
    }

    /// Maps data at `index` of a leaf, or unmaps it; returns what was there.
    pub(crate) fn set_slot(&mut self, index: usize, slot: Packed) -> Packed {
        assert!(self.header.level == 0, "only leaves map data");
        let before = std::mem::replace(&mut self.slots[index], slot);
        self.count = self.count - u64::from(!before.is_hole()) + u64::from(!slot.is_hole());
        before
    }

    /// The node's bytes, which the caller writes. All children in memory must be written, or be
    /// `pruned` (then a hole is: what a job has freed already is not the disk's any more).
    pub(crate) fn write(&self, pruned: impl Fn(usize) -> bool) -> Vec<u8> {
        let mut flat = self.clone_slots();
        for index in 0..self.children.len() {
            if !pruned(index)
                && let Some(child) = self.child_in_memory(index)
            {
                let stored = child.stored();
                assert!(stored.is_some(), "a parent is written after its children");
                flat.set_stored(index, stored);
            }
        }
        if self.header.level > 0 {
            let freed = (0..self.children_len()).filter(|index| pruned(*index));
            freed.for_each(|index| flat.set_stored(index, None));
        }
        let bytes = encode(&self.header, &flat.slots);
        let (crc, count) = (checksum(&bytes), flat.counted());
        let first = self.written.set(Written { crc, count });
        assert!(first.is_ok(), "{} was written twice", self.header.address);
        bytes
    }

    fn clone_slots(&self) -> Self {
        Self {
            header: self.header,
            count: self.count,
            slots: self.slots.clone(),
            children: Vec::new(),
            written: OnceLock::new(),
        }
    }

    pub(crate) fn is_written(&self) -> bool {
        self.written.get().is_some()
    }
}
