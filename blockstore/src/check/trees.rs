//! The tree of a version, walked together with its parent's.
//!
//! Where both have the same pointer, what is below is shared, and was or will be verified where it
//! belongs. Where they differ, the version's side must be its own, and the parent's side is what
//! the version has found dead. So a walk costs what the two differ by.
use super::Checker;
use super::lists::Bag;
use super::reading::{Data, Found, READS};
use crate::format::pointer::{NodeRef, Packed};
use crate::mapping::{Child, Node};
use crate::units::{Address, BLOCK_BYTES, Record};
use futures_util::future::join_all;

/// Data blocks gathered before they are read.
const DATA_BATCH: usize = 8192;

/// A place of the tree, as the parent and the version have it, if they differ there.
#[derive(Clone, Copy, Debug)]
struct Place {
    parents: Option<NodeRef>,
    own: Option<NodeRef>,
    level: u8,
    first: u64,
}

/// The nodes of a place; `None` where there is none, or one of a lower level.
struct Nodes {
    parents: Option<Node>,
    own: Option<Node>,
}

/// A version, as found so far.
struct Walk {
    id: u64,
    title: String,
    cut: Record,
    /// Nothing in it is born later.
    newest: Record,
    /// Blocks of the volume.
    size: u64,
    own: u64,
    /// What the parent has and the version has not.
    dead: Bag,
    /// Nothing is lost, so that sums can be compared.
    whole: bool,
    data: Vec<Data>,
}

impl Checker<'_> {
    /// Walks a version's tree, and compares it with its counters and deadlist.
    pub(super) async fn check_version(&mut self, id: u64) {
        let Some(version) = self.catalogue.versions.get(&id).cloned() else {
            return;
        };
        let mut walk = Walk {
            id,
            title: self.catalogue.title(id),
            cut: version.cut,
            newest: self
                .catalogue
                .frozen_at(id)
                .unwrap_or(self.newest)
                .min(self.newest),
            size: version.size.div_ceil(BLOCK_BYTES),
            own: 0,
            dead: Bag::default(),
            whole: true,
            data: Vec::new(),
        };
        let parent = self.catalogue.versions.get(&version.parent);
        let parents = parent.and_then(|parent| parent.root);
        let levels = [parents, version.root].into_iter().flatten();
        let level = levels.map(|root| root.level).max().unwrap_or(0);
        let top = Place {
            parents,
            own: version.root,
            level,
            first: 0,
        };
        let mut stack = Vec::new();
        self.visit(top, &mut walk, &mut stack);
        while !stack.is_empty() {
            let batch = stack.split_off(stack.len().saturating_sub(READS));
            self.walk_places(batch, &mut walk, &mut stack).await;
            if walk.data.len() >= DATA_BATCH {
                self.verify_data(&mut walk).await;
            }
        }
        self.verify_data(&mut walk).await;
        self.compare(&walk, version.own);
    }

    /// Takes note of a pair of pointers; if there is something below, it is put on the stack.
    fn visit(&mut self, place: Place, walk: &mut Walk, stack: &mut Vec<Place>) {
        let Place {
            parents, mut own, ..
        } = place;
        if parents == own {
            if let Some(own) = own.filter(|own| own.birth > walk.cut) {
                self.problem(format!(
                    "I4: {}: {}, born at {}, is its parent's too, cut at {}",
                    walk.title, own.address, own.birth, walk.cut
                ));
            }
            return;
        }
        if let Some(node) = own
            && node.level == place.level
            && !self.claim_node(&node, place.first, walk)
        {
            own = None;
            walk.whole = false;
        }
        if let Some(node) = parents
            && node.level == place.level
        {
            let twin = Some(node.twin).filter(|twin| *twin != Address(0));
            for address in [Some(node.address), twin].into_iter().flatten() {
                walk.dead.add(address, node.birth);
            }
        }
        // A parent that names more blocks than there are has a circle in it.
        if walk.dead.count > self.blocks_total {
            if walk.whole {
                self.problem(format!("I1: the parent of {} has blocks twice", walk.title));
            }
            walk.whole = false;
            stack.clear();
            return;
        }
        if parents.is_some() || own.is_some() {
            stack.push(Place { own, ..place });
        }
    }

    /// Claims the copies of a node of the version's own.
    fn claim_node(&mut self, node: &NodeRef, first: u64, walk: &mut Walk) -> bool {
        let title = &walk.title;
        let wrong = if node.birth <= walk.cut {
            format!(
                "I4: {title}: the node of block {first}, {}, is not what its parent has",
                node.address
            )
        } else if node.birth > walk.newest {
            format!(
                "I9: {title}: the node of block {first}, {}, is born at {}, after {}",
                node.address, node.birth, walk.newest
            )
        } else if (node.twin != Address(0)) != (node.level > 0) {
            format!(
                "I3: {title}: the node of block {first}, {}, has a wrong twin",
                node.address
            )
        } else {
            let whose = || format!("{title}, the node of block {first}");
            if !self.claim(node.address, whose) {
                return false;
            }
            walk.own += 1;
            if node.level > 0 {
                walk.own += 1;
                return self.claim(node.twin, whose);
            }
            return true;
        };
        self.problem(wrong);
        false
    }

    /// Reads the nodes of some places, and visits what is below.
    async fn walk_places(&mut self, places: Vec<Place>, walk: &mut Walk, stack: &mut Vec<Place>) {
        let source = self.source.clone();
        let read = places.iter().map(async |place| {
            let here = |stored: Option<NodeRef>| stored.filter(|s| s.level == place.level);
            let own = match here(place.own) {
                Some(stored) => Some(source.node(&stored, true).await),
                None => None,
            };
            let parents = match here(place.parents) {
                Some(stored) => Some(source.node(&stored, false).await),
                None => None,
            };
            (own, parents)
        });
        for (place, (own, parents)) in places.iter().zip(join_all(read).await) {
            let title = walk.title.clone();
            let own = own.and_then(|found| self.take_node(place, found, walk, Some(title)));
            let parents = parents.and_then(|found| self.take_node(place, found, walk, None));
            let nodes = Nodes { parents, own };
            if place.level == 0 {
                self.visit_leaves(place, &nodes, walk);
            } else {
                self.visit_children(place, &nodes, walk, stack);
            }
        }
    }

    /// The node that was read. With a title its problems are told; a parent's were told elsewhere.
    fn take_node(
        &mut self,
        place: &Place,
        found: Found,
        walk: &mut Walk,
        title: Option<String>,
    ) -> Option<Node> {
        let node = found.node.filter(|node| node.header.first == place.first);
        if let Some(title) = title {
            let lost = if node.is_some() {
                ""
            } else {
                "; what is below is lost"
            };
            let end = place
                .first
                .saturating_add(self.superblock.geometry.span(place.level));
            for why in &found.bad {
                let first = place.first;
                self.problem(format!(
                    "I3: {title}: the node of blocks {first} to {end}: {why}{lost}"
                ));
            }
            if node.is_none() && found.bad.is_empty() {
                self.problem(format!(
                    "I3: {title}: the node of block {} is of another place",
                    place.first
                ));
            }
            let copies = 1 + u64::from(place.level > 0);
            self.count_blocks(copies);
        }
        walk.whole &= node.is_some();
        node
    }

    fn visit_children(
        &mut self,
        place: &Place,
        nodes: &Nodes,
        walk: &mut Walk,
        stack: &mut Vec<Place>,
    ) {
        let geometry = self.superblock.geometry;
        let level = place.level - 1;
        for index in 0..geometry.children(place.level) {
            let child = |stored: Option<NodeRef>, node: &Option<Node>| match (stored, node) {
                // A tree that reaches less far is all in the first child of a larger one.
                (Some(stored), _) if stored.level < place.level => {
                    Some(stored).filter(|_| index == 0)
                }
                (_, Some(node)) => stored_child(node, index),
                _ => None,
            };
            let below = Place {
                parents: child(place.parents, &nodes.parents),
                own: child(place.own, &nodes.own),
                level,
                first: place
                    .first
                    .saturating_add(index.saturating_mul(geometry.span(level))),
            };
            self.visit(below, walk, stack);
        }
    }

    fn visit_leaves(&mut self, place: &Place, nodes: &Nodes, walk: &mut Walk) {
        let slots = u64::from(self.superblock.geometry.fanout);
        for (index, block) in (0..).zip(place.first..place.first + slots) {
            let slot =
                |node: &Option<Node>| node.as_ref().map_or(Packed::HOLE, |node| node.slot(index));
            let (parents, own) = (slot(&nodes.parents), slot(&nodes.own));
            if !own.is_hole() && block >= walk.size {
                self.problem(format!(
                    "I3: {}: block {block} is beyond its end",
                    walk.title
                ));
            }
            if parents == own {
                if own.birth() > walk.cut {
                    self.problem(format!(
                        "I4: {}: block {block}, {own:?}, is its parent's too, cut at {}",
                        walk.title, walk.cut
                    ));
                }
                continue;
            }
            if !parents.is_hole() {
                walk.dead.add(parents.address(), parents.birth());
            }
            if !own.is_hole() {
                self.claim_data(own, block, walk);
            }
        }
    }

    fn claim_data(&mut self, slot: Packed, block: u64, walk: &mut Walk) {
        let title = &walk.title;
        if slot.birth() <= walk.cut {
            self.problem(format!(
                "I4: {title}: block {block}, {slot:?}, is not what its parent has"
            ));
            walk.whole = false;
        } else if slot.birth() > walk.newest {
            let newest = walk.newest;
            self.problem(format!(
                "I9: {title}: block {block}, {slot:?}, is born after {newest}"
            ));
        } else if slot.flags() != 0 {
            self.problem(format!(
                "I3: {title}: block {block}, {slot:?}, has unknown flags"
            ));
        } else if self.claim(slot.address(), || format!("{title}, block {block}")) {
            walk.own += 1;
            walk.data.push(Data { slot, block });
        }
    }

    async fn verify_data(&mut self, walk: &mut Walk) {
        let data = std::mem::take(&mut walk.data);
        let blocks = data.len() as u64;
        let source = self.source.clone();
        for (Data { slot, block }, why) in source.verify_data(data).await {
            let (title, address) = (&walk.title, slot.address());
            self.problem(format!("I3: {title}: block {block}, {address}: {why}"));
        }
        self.count_blocks(blocks);
    }

    fn compare(&mut self, walk: &Walk, counted: u64) {
        if !walk.whole {
            return; // what is lost was told, and would be told again here
        }
        let own = walk.own + self.own.get(&walk.id).copied().unwrap_or(0);
        if own != counted {
            self.problem(format!(
                "I2: {} has {own} blocks to itself, and counts {counted}",
                walk.title
            ));
        }
        let Some(dead) = self.dead.get(&walk.id).copied() else {
            return;
        };
        if dead != walk.dead {
            self.problem(format!(
                "I10: {}: {} blocks of its parent's are not its own, its deadlist names {}{}",
                walk.title,
                walk.dead.count,
                dead.count,
                if dead.count == walk.dead.count {
                    " others"
                } else {
                    ""
                }
            ));
        }
    }
}

fn stored_child(node: &Node, index: u64) -> Option<NodeRef> {
    match node.child(usize::try_from(index).ok()?) {
        Child::Stored(stored) => Some(stored),
        Child::Hole | Child::Memory(_) => None,
    }
}
