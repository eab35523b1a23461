//! One mapping node in memory: its slots, and the children that changed with it; no I/O.
use crate::format::checksum;
use crate::format::node::{NodeHeader, decode, encode};
use crate::format::pointer::{NodeRef, Packed};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// A node. Children in memory win over what their slots say.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) header: NodeHeader,
    count: u64,
    slots: Vec<Packed>,
    /// Empty, or one place for each child.
    children: Vec<Option<Arc<Self>>>,
    /// The CRC of the node as written, and the data blocks below it on disk; set once by the
    /// checkpoint that wrote it.
    written: OnceLock<(u32, u64)>,
    /// That write has ended: the node can be read.
    landed: OnceLock<()>,
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

    /// Whether both are the very same node (or both holes): nothing below can differ.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }

    fn identity(&self) -> Option<(u64, u64)> {
        match self {
            Self::Hole => None,
            Self::Memory(node) => Some((node.header.address.0, node.header.birth.0)),
            Self::Stored(stored) => Some((stored.address.0, stored.birth.0)),
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
            landed: OnceLock::new(),
        }
    }

    /// The node that `expected` points to, out of a block whose CRC was verified.
    pub(crate) fn from_block(block: &[u8], expected: &NodeRef, fanout: u32) -> Option<Self> {
        let (header, slots) = decode(block, expected, fanout as usize)?;
        let written = OnceLock::from((expected.crc, expected.count));
        let node = Self {
            header,
            count: expected.count,
            slots,
            children: Vec::new(),
            written,
            landed: OnceLock::from(()),
        };
        (node.counted() == expected.count).then_some(node)
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

    /// The same content as another node, to be changed. Children that are written by now need not
    /// stay in memory on its account, but for those in `keep`.
    pub(crate) fn copy_as(&self, header: NodeHeader, keep: &Range<usize>) -> Self {
        let mut copy = Self {
            header,
            written: OnceLock::new(),
            landed: OnceLock::new(),
            ..self.clone()
        };
        copy.forget_written_children(keep);
        copy
    }

    /// The node without its children in memory, all of which must be written: for the cache.
    pub(crate) fn stripped(&self) -> Self {
        let mut copy = self.clone();
        copy.forget_written_children(&(0..0));
        copy
    }

    fn forget_written_children(&mut self, keep: &Range<usize>) {
        for index in (0..self.children.len()).filter(|index| !keep.contains(index)) {
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

    /// The pointer to this node, once it can be read from the disk.
    pub(crate) fn stored(&self) -> Option<NodeRef> {
        self.landed.get().and_then(|()| self.pointer())
    }

    /// The pointer to this node, once its bytes are made; their write may not have ended.
    fn pointer(&self) -> Option<NodeRef> {
        let NodeHeader {
            level,
            birth,
            address,
            twin,
            ..
        } = self.header;
        let (crc, count) = *self.written.get()?;
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

    /// The node's bytes, which the caller is about to write; all children in memory must be
    /// written, or be `pruned` (then a hole is written and not counted: what a job has freed already
    /// is not the disk's any more).
    pub(crate) fn write(&self, pruned: impl Fn(usize) -> bool) -> Vec<u8> {
        if self.header.level == 0 {
            let bytes = encode(&self.header, &self.slots);
            self.set_written(&bytes, self.count);
            return bytes;
        }
        let mut flat = Self {
            children: Vec::new(),
            written: OnceLock::new(),
            landed: OnceLock::new(),
            ..self.clone_slots()
        };
        for index in 0..self.children_len() {
            if pruned(index) {
                flat.set_stored(index, None);
            } else if let Some(child) = self.child_in_memory(index) {
                let stored = child.pointer();
                assert!(stored.is_some(), "a parent is written after its children");
                flat.set_stored(index, stored);
            }
        }
        let bytes = encode(&self.header, &flat.slots);
        self.set_written(&bytes, flat.counted());
        bytes
    }

    fn clone_slots(&self) -> Self {
        Self {
            header: self.header,
            count: self.count,
            slots: self.slots.clone(),
            children: Vec::new(),
            written: OnceLock::new(),
            landed: OnceLock::new(),
        }
    }

    fn set_written(&self, bytes: &[u8], count: u64) {
        let first = self.written.set((checksum(bytes), count));
        assert!(first.is_ok(), "{} was written twice", self.header.address);
    }

    /// Notes that the write of its bytes has ended.
    pub(crate) fn set_landed(&self) {
        let first = self.landed.set(());
        assert!(first.is_ok(), "{} landed twice", self.header.address);
    }

    /// Its bytes are made, and those of all below.
    pub(crate) fn is_written(&self) -> bool {
        self.written.get().is_some()
    }
}
