//! What changing one version's mapping needs: fresh nodes, and the rule of sharing.
use super::Deadlist;
use crate::allocator::{Allocator, Extent};
use crate::cache::NodeSource;
use crate::format::geometry::Geometry;
use crate::format::node::NodeHeader;
use crate::format::pointer::{NodeRef, Packed};
use crate::mapping::{Ground, Node};
use crate::units::{Address, Record};
use std::sync::Arc;

/// A version while its mapping changes. Borrowed from the state, field by field.
#[derive(Debug)]
pub(crate) struct VersionGround<'a> {
    pub(crate) geometry: Geometry,
    pub(crate) nodes: &'a NodeSource<'a>,
    pub(crate) allocator: &'a mut Allocator,
    pub(crate) dirty_nodes: &'a mut u64,
    pub(crate) dead_new: &'a mut u64,
    pub(crate) owner: u64,
    /// The record being applied: births.
    pub(crate) now: Record,
    /// The last record that a checkpoint froze.
    pub(crate) frozen: Record,
    pub(crate) cut: Record,
    /// The parent's own cut.
    pub(crate) parent_cut: Record,
    pub(crate) own: &'a mut u64,
    pub(crate) dead: &'a mut Deadlist,
    pub(crate) dead_own: &'a mut u64,
}

impl VersionGround<'_> {
    /// Takes data blocks, already written, into the version.
    pub(crate) fn publish(&mut self, extent: Extent) {
        self.allocator.publish(extent);
        *self.own += u64::from(extent.blocks);
    }

    fn release(&mut self, address: Address, birth: Record, is_node: bool) {
        if birth <= self.cut {
            self.dead.append(Packed::new(address, 0, birth, 0));
            *self.dead_new += 1;
            *self.dead_own += u64::from(birth > self.parent_cut);
            return;
        }
        *self.own -= 1;
        if is_node && birth > self.frozen {
            // Never frozen and named by no record: nothing on disk can lead to it.
            self.allocator.free_now(address);
        } else {
            self.allocator.free_gated(address);
        }
    }
}

impl Ground for VersionGround<'_> {
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
        *self.own += 1 + u64::from(level > 0);
        *self.dirty_nodes += 1;
        NodeHeader {
            level,
            owner: self.owner,
            first,
            birth: self.now,
            address,
            twin,
        }
    }

    fn in_place(&self, node: &NodeHeader) -> bool {
        node.birth > self.frozen && node.birth > self.cut
    }

    fn release_node(&mut self, node: &NodeHeader) {
        if node.birth > self.frozen && node.birth > self.cut {
            *self.dirty_nodes -= 1;
        }
        self.release(node.address, node.birth, true);
        if node.level > 0 {
            self.release(node.twin, node.birth, true);
        }
    }

    fn release_data(&mut self, data: Packed) {
        self.release(data.address(), data.birth(), false);
    }
}
