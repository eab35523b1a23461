//! The mapping against a map of numbers, and against what it may release when.
//!
//! A volume is changed, cut and written at random, with small nodes and with the usual ones. The
//! ground keeps every address that was handed out and not released: at any time it must be exactly
//! what the volume and its snapshots lead to, and what was found dead is what the newest snapshot
//! has and the volume has not.
use super::{
    Child, Ground, Leaf, Node, Root, clear, detach, leaf_at, map, missing_at, missing_for_range,
};
use crate::device::Random;
use crate::format::geometry::Geometry;
use crate::format::node::NodeHeader;
use crate::format::pointer::{NodeRef, Packed};
use crate::units::{Address, Record};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Blocks of the volume.
const BLOCKS: u64 = 1200;

/// Addresses, nodes on "disk", and which of them are in memory.
struct World {
    geometry: Geometry,
    next: u64,
    now: Record,
    /// The last record that was frozen, and the newest snapshot's.
    frozen: Record,
    cut: Record,
    /// Handed out and not released.
    used: BTreeSet<u64>,
    /// Released although a snapshot has it.
    dead: BTreeSet<u64>,
    disk: BTreeMap<u64, Arc<Node>>,
    loaded: BTreeSet<u64>,
}

impl World {
    fn new(fanout: u32) -> Self {
        let geometry = Geometry {
            fanout,
            ..Geometry::of_pool(1 << 20, None)
        };
        Self {
            geometry,
            next: 1,
            now: Record(1),
            frozen: Record(0),
            cut: Record(0),
            used: BTreeSet::new(),
            dead: BTreeSet::new(),
            disk: BTreeMap::new(),
            loaded: BTreeSet::new(),
        }
    }

    fn take(&mut self) -> Address {
        self.next += 1;
        assert!(self.used.insert(self.next));
        Address(self.next)
    }

    fn release(&mut self, address: Address, birth: Record) {
        if birth <= self.cut {
            assert!(self.dead.insert(address.0), "{address} is found dead twice");
        } else {
            assert!(self.used.remove(&address.0), "{address} is released twice");
        }
    }

    fn data(&mut self, count: u64) -> Vec<Packed> {
        let now = self.now;
        let slot = |n| Packed::new(self.take(), 0, now, u32::try_from(n).unwrap());
        (0..count).map(slot).collect()
    }

    /// Writes what changed, as a checkpoint does, and forgets it.
    fn write(&mut self, root: &mut Root) {
        self.frozen = self.now;
        self.now.0 += 1;
        if let Root::Memory(node) = root {
            let node = Arc::clone(node);
            self.write_tree(&node);
            *root = Root::from_stored(node.stored());
        }
        self.loaded.clear();
    }

    fn write_tree(&mut self, node: &Arc<Node>) {
        if node.is_written() {
            return;
        }
        for index in 0..node.children_len() {
            if let Some(child) = node.child_in_memory(index) {
                self.write_tree(child);
            }
        }
        let bytes = node.write(|_| false);
        let stored = node.stored().unwrap();
        assert!(stored.birth <= self.frozen);
        let read = Node::from_block(&bytes, &stored, self.geometry.fanout).unwrap();
        self.disk.insert(stored.address.0, Arc::new(read));
    }

    /// Brings into memory what a range of a mapping needs.
    fn load(&mut self, missing: impl Fn(&Self) -> Option<NodeRef>) {
        while let Some(stored) = missing(self) {
            assert!(self.loaded.insert(stored.address.0), "it was there already");
        }
    }

    /// Every address that a tree leads to, with its birth.
    fn reach(&self, root: &Root) -> BTreeMap<u64, Record> {
        let mut found = BTreeMap::new();
        self.reach_child(root.as_child(), &mut found);
        found
    }

    fn reach_child(&self, child: Child<'_>, found: &mut BTreeMap<u64, Record>) {
        let node = match child {
            Child::Hole => return,
            Child::Memory(node) => Arc::clone(node),
            Child::Stored(stored) => Arc::clone(&self.disk[&stored.address.0]),
        };
        let NodeHeader {
            address,
            twin,
            birth,
            level,
            ..
        } = node.header;
        assert!(found.insert(address.0, birth).is_none());
        assert_eq!(twin == Address(0), level == 0);
        if level > 0 {
            assert!(found.insert(twin.0, birth).is_none());
        }
        let mut count = 0;
        for index in 0..node.children_len() {
            if level > 0 {
                count += node.child(index).count();
                self.reach_child(node.child(index), found);
            } else if !node.slot(index).is_hole() {
                count += 1;
                let slot = node.slot(index);
                assert!(found.insert(slot.address().0, slot.birth()).is_none());
            }
        }
        assert_eq!(node.count(), count);
    }
}

impl Ground for World {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn find(&self, stored: &NodeRef) -> Option<Arc<Node>> {
        let loaded = self.loaded.contains(&stored.address.0);
        loaded.then(|| Arc::clone(&self.disk[&stored.address.0]))
    }

    fn new_node(&mut self, level: u8, first: u64) -> NodeHeader {
        let address = self.take();
        let twin = if level > 0 { self.take() } else { Address(0) };
        NodeHeader {
            level,
            owner: 1,
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
        self.release(node.address, node.birth);
        if node.level > 0 {
            self.release(node.twin, node.birth);
        }
    }

    fn release_data(&mut self, data: Packed) {
        self.release(data.address(), data.birth());
    }
}

/// A volume, its snapshots, and what each of them maps.
struct Volume {
    world: World,
    root: Root,
    blocks: BTreeMap<u64, Packed>,
    snapshots: Vec<(Root, BTreeMap<u64, Packed>)>,
    /// What snapshots have that the newest one has not.
    older: BTreeSet<u64>,
}

impl Volume {
    fn new(fanout: u32) -> Self {
        Self {
            world: World::new(fanout),
            root: Root::Empty,
            blocks: BTreeMap::new(),
            snapshots: Vec::new(),
            older: BTreeSet::new(),
        }
    }

    fn map(&mut self, first: u64, count: u64) {
        let root = self.root.clone();
        self.world
            .load(|world| missing_for_range(&root, world, first, count));
        drop(root); // a tree held twice would be copied instead of changed
        let data = self.world.data(count);
        map(&mut self.root, &mut self.world, first, &data);
        self.blocks.extend((first..).zip(data));
    }

    fn clear(&mut self, first: u64, count: u64) {
        let root = self.root.clone();
        self.world
            .load(|world| missing_for_range(&root, world, first, count));
        drop(root);
        clear(&mut self.root, &mut self.world, first, count);
        self.blocks
            .retain(|block, _| !(first..first + count).contains(block));
    }

    /// Takes a range out, and lets go of all that it led to, as a job does.
    fn detach(&mut self, first: u64, count: u64) {
        let root = self.root.clone();
        let last = first + count - 1;
        self.world.load(|world| {
            missing_at(&root, world, first).or_else(|| missing_at(&root, world, last))
        });
        drop(root);
        let taken = detach(&mut self.root, &mut self.world, first, count);
        let range = first..first + count;
        let gone = self.blocks.range(range.clone()).count() as u64;
        assert_eq!(taken.count(), gone);
        self.blocks.retain(|block, _| !range.contains(block));
        for (address, birth) in self.world.reach(&taken) {
            self.world.release(Address(address), birth);
        }
    }

    fn snapshot(&mut self) {
        self.world.cut = self.world.now;
        self.world.now.0 += 1;
        self.older.append(&mut self.world.dead);
        self.snapshots
            .push((self.root.clone(), self.blocks.clone()));
    }

    /// Everything is as the model says, and every address has its owner.
    fn check(&self) {
        assert_eq!(self.root.count(), self.blocks.len() as u64);
        let reached = self.world.reach(&self.root);
        let mut used: BTreeSet<u64> = reached.keys().copied().collect();
        if let Some((newest, _)) = self.snapshots.last() {
            let snapshot = self.world.reach(newest);
            let cut = self.world.cut;
            assert!(snapshot.values().all(|birth| *birth <= cut), "I9, I4");
            let dead = snapshot
                .keys()
                .filter(|address| !reached.contains_key(address));
            assert!(dead.eq(&self.world.dead), "I10");
            used.extend(snapshot.keys());
        }
        used.extend(&self.older);
        assert!(used == self.world.used, "I1, I2");
    }

    fn check_content(&self) {
        check_lookups(&self.world, &self.root, &self.blocks);
        for (root, blocks) in &self.snapshots {
            check_lookups(&self.world, root, blocks);
        }
    }
}

/// Looks up every block, loading as it goes.
fn check_lookups(world: &World, root: &Root, blocks: &BTreeMap<u64, Packed>) {
    let mut found = BTreeMap::new();
    let mut block = 0;
    let mut world = Reader {
        world,
        loaded: BTreeSet::new(),
    };
    while block < BLOCKS + 100 {
        match leaf_at(root, &world, block) {
            Err(stored) => assert!(world.loaded.insert(stored.address.0)),
            Ok(Leaf::Hole { end }) => {
                assert!(end > block);
                block = end;
            }
            Ok(Leaf::Node(leaf)) => {
                for (index, at) in (0..leaf.children_len()).zip(leaf.header.first..) {
                    if at >= block && !leaf.slot(index).is_hole() {
                        found.insert(at, leaf.slot(index));
                    }
                }
                block = leaf.header.first + world.geometry().span(0);
            }
        }
    }
    assert!(found == *blocks);
}

/// A ground that only finds what it was told to load.
struct Reader<'a> {
    world: &'a World,
    loaded: BTreeSet<u64>,
}

impl Ground for Reader<'_> {
    fn geometry(&self) -> &Geometry {
        &self.world.geometry
    }

    fn find(&self, stored: &NodeRef) -> Option<Arc<Node>> {
        let loaded = self.loaded.contains(&stored.address.0);
        loaded.then(|| Arc::clone(&self.world.disk[&stored.address.0]))
    }

    fn new_node(&mut self, _: u8, _: u64) -> NodeHeader {
        unreachable!("looking up changes nothing")
    }

    fn in_place(&self, _: &NodeHeader) -> bool {
        false
    }

    fn release_node(&mut self, _: &NodeHeader) {}

    fn release_data(&mut self, _: Packed) {}
}

fn live(fanout: u32, seed: u64) {
    println!("fanout {fanout}, seed {seed}");
    let mut random = Random::new(seed);
    let mut volume = Volume::new(fanout);
    // Some lives stay low, so that trees grow later.
    let reach = [20, 300, BLOCKS][random.index(3)];
    for step in 0..120 {
        let within = if step < 50 { reach } else { BLOCKS };
        let first = random.below(within);
        let longest = if random.chance(1, 4) { within } else { 9 };
        let count = 1 + random.below((within - first).min(longest));
        match random.below(12) {
            0..=4 => volume.map(first, count),
            5 | 6 => volume.clear(first, count.min(4 * u64::from(fanout))),
            7 => volume.detach(first, count),
            8 if random.chance(1, 3) => volume.detach(0, 1 << 40),
            9 => volume.snapshot(),
            10 => {
                volume.world.write(&mut volume.root);
                for (root, _) in &mut volume.snapshots {
                    volume.world.write(root);
                }
            }
            _ => volume.world.now.0 += 1,
        }
        volume.check();
    }
    volume.check_content();
}

#[test]
fn mappings_with_small_nodes_are_what_a_map_of_numbers_is() {
    let mut random = Random::new(fresh_seed());
    for fanout in [4, 6, 8, 4] {
        live(fanout, random.next_u64());
    }
}

#[test]
fn mappings_with_the_usual_nodes_are_what_a_map_of_numbers_is() {
    let mut random = Random::new(fresh_seed());
    for _ in 0..3 {
        live(252, random.next_u64());
    }
}

#[test]
fn growing_costs_a_node_for_each_new_level_and_copies_nothing() {
    let mut volume = Volume::new(4);
    volume.map(0, 4);
    volume.world.write(&mut volume.root);
    assert_eq!(volume.world.used.len(), 4 + 1);
    // Levels 1 to 3 with their twins, and a path of three to the new leaf.
    volume.map(40, 1);
    assert_eq!(volume.root.level(), Some(3));
    assert_eq!(volume.world.used.len(), 5 + 1 + 3 * 2 + 2 * 2 + 1);
    assert!(
        volume.world.loaded.is_empty(),
        "the old root need not be read"
    );
    volume.check();
    volume.check_content();
}

#[test]
fn a_node_that_was_not_frozen_is_changed_in_place() {
    let mut volume = Volume::new(252);
    volume.map(0, 300);
    let before = volume.world.next;
    volume.world.now.0 += 1;
    volume.map(10, 1);
    assert_eq!(volume.world.next, before + 1, "only the data block is new");
    volume.snapshot();
    volume.map(10, 1);
    // The data block, the leaf, and the root with its twin.
    assert_eq!(volume.world.next, before + 1 + 4);
    volume.check();
}

fn fresh_seed() -> u64 {
    let time = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    u64::try_from(time.as_nanos() & u128::from(u64::MAX)).unwrap()
}
