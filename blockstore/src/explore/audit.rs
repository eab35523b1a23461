//! Every rule of the structures, on a pool at rest: who owns each block, what is counted, what is
//! shared with whom.
use crate::allocator::Bitmap;
use crate::device::Image;
use crate::format::checksum;
use crate::format::deadlist::DeadlistBlock;
use crate::format::pointer::{NodeRef, Packed};
use crate::limits::CATALOGUE_ENTRY_BYTES;
use crate::mapping::{Child, Node, Root};
use crate::pool::Pool;
use crate::state::State;
use crate::units::{Address, BLOCK_SIZE, Record};
use crate::versions::{Deadlist, Job, Output};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A block that a tree leads to.
struct Item {
    address: Address,
    birth: Record,
    node: bool,
}

struct Audit<'a> {
    state: &'a State,
    image: &'a Image,
    owners: BTreeMap<u64, String>,
    problems: Vec<String>,
}

/// What is wrong with a pool on which nothing happens; `image` is what its device holds.
pub(super) fn audit(pool: &Pool, image: &Image) -> Vec<String> {
    let state = pool.state.lock();
    let mut audit = Audit {
        state: &state,
        image,
        owners: BTreeMap::new(),
        problems: Vec::new(),
    };
    let trees = audit.versions();
    audit.lists(&trees);
    audit.jobs(&trees);
    audit.catalogue(pool.superblock.lock().catalogue);
    audit.shared(&trees);
    audit.allocator();
    audit.problems
}

type Trees = BTreeMap<u64, Vec<Item>>;

impl Audit<'_> {
    fn problem(&mut self, what: String) {
        if self.problems.len() < 20 {
            self.problems.push(what);
        }
    }

    fn own(&mut self, address: Address, owner: &str) {
        if let Some(before) = self.owners.insert(address.0, owner.to_owned()) {
            self.problem(format!("I1: {address} is owned by {before} and by {owner}"));
        }
    }

    fn load(&mut self, stored: &NodeRef, who: &str) -> Option<Arc<Node>> {
        let block = self.image.block(stored.address.0);
        if checksum(&block) != stored.crc {
            self.problem(format!("I3: {who}: node {stored:?} does not verify"));
            return None;
        }
        if stored.twin != Address(0) && self.image.block(stored.twin.0) != block {
            self.problem(format!("I3: {who}: the twin of node {stored:?} differs"));
        }
        let node = Node::from_block(&block, stored, self.state.geometry.fanout);
        if node.is_none() {
            self.problem(format!("I3: {who}: {stored:?} is another node"));
        }
        node.map(Arc::new)
    }

    /// What a tree holds from block `from` on.
    fn tree(&mut self, root: &Root, cuts: &[Record], from: u64, who: &str) -> Vec<Item> {
        let mut items = Vec::new();
        let above = Record(0);
        self.walk(root.as_child(), cuts, above, from, who, &mut items);
        items
    }

    fn walk(
        &mut self,
        child: Child<'_>,
        cuts: &[Record],
        above: Record,
        from: u64,
        who: &str,
        items: &mut Vec<Item>,
    ) {
        let node = match child {
            Child::Hole => return,
            Child::Memory(node) => {
                if let Some(stored) = node.stored() {
                    self.load(&stored, who);
                }
                Arc::clone(node)
            }
            Child::Stored(stored) => match self.load(&stored, who) {
                Some(node) => node,
                None => return,
            },
        };
        let header = node.header;
        let i9 = |audit: &mut Self, above: Record, birth: Record| {
            if above > Record(0) && cuts.iter().any(|cut| above <= *cut && birth > *cut) {
                audit.problem(format!(
                    "I9: {who}: born {above} holds what is born {birth}"
                ));
            }
        };
        i9(self, above, header.birth);
        let (birth, copies) = (header.birth, [header.address, header.twin]);
        for address in copies.into_iter().filter(|copy| *copy != Address(0)) {
            items.push(Item {
                address,
                birth,
                node: true,
            });
        }
        let mut count = 0;
        for index in 0..node.children_len() {
            if header.level > 0 {
                count += node.child(index).count();
                let span = self.state.geometry.span(header.level - 1);
                if header.first + (index as u64 + 1) * span > from {
                    self.walk(node.child(index), cuts, header.birth, from, who, items);
                }
                continue;
            }
            let slot = node.slot(index);
            if slot.is_hole() {
                continue;
            }
            count += 1;
            let end = header.first + index as u64 + 1;
            if end <= from {
                continue;
            }
            i9(self, header.birth, slot.birth());
            let block = self.image.block(slot.address().0);
            if checksum(&block) != slot.crc() {
                self.problem(format!("I3: {who}: data {slot:?} does not verify"));
            }
            items.push(Item {
                address: slot.address(),
                birth: slot.birth(),
                node: false,
            });
        }
        if count != node.count() {
            self.problem(format!("{who}: {:?} counts {count}", node.header));
        }
    }

    fn lineage(&self, mut id: u64) -> Vec<Record> {
        let mut cuts = Vec::new();
        while let Some(version) = self.state.versions.get(&id) {
            cuts.push(version.cut);
            id = version.parent;
        }
        cuts
    }

    fn versions(&mut self) -> Trees {
        let mut trees = Trees::new();
        let state = self.state;
        for (id, version) in &state.versions {
            let who = format!("version {id}");
            let items = self.tree(&version.root, &self.lineage(*id), 0, &who);
            let mine: Vec<_> = items
                .iter()
                .filter(|item| item.birth > version.cut)
                .collect();
            for item in &mine {
                self.own(item.address, &who);
            }
            if !self.is_fed(*id) && mine.len() as u64 != version.own {
                self.problem(format!(
                    "{who} counts {} own, has {}",
                    version.own,
                    mine.len()
                ));
            }
            let ghost = version.kind == crate::versions::Kind::Ghost;
            if ghost && version.children.len() <= 1 {
                self.problem(format!("{who} is deleted and not needed, but there"));
            }
            for child in &version.children {
                if state
                    .versions
                    .get(child)
                    .is_none_or(|child| child.parent != *id)
                {
                    self.problem(format!("{who} has child {child}, which says otherwise"));
                }
            }
            trees.insert(*id, items);
        }
        trees
    }

    /// Whether a job still changes a version's counters.
    fn is_fed(&self, version: u64) -> bool {
        let jobs = self.state.jobs.values();
        jobs.map(|job| self.final_output(job.output()).0)
            .any(|output| output == Output::Version(version))
    }

    /// Where a job's blocks go in the end, and the lowest cut on the way.
    fn final_output(&self, mut output: Output) -> (Output, Record) {
        let mut cut = Record(u64::MAX);
        while let Output::Job(id) = output {
            match self.state.jobs.get(&id) {
                Some(Job::Filter {
                    cut: next,
                    output: to,
                    ..
                }) => {
                    (cut, output) = (cut.min(*next), *to);
                }
                _ => return (Output::Discard, cut),
            }
        }
        (output, cut)
    }

    fn entries(&mut self, list: &Deadlist, who: &str) -> Vec<Packed> {
        let mut entries = list.new_entries_slice().to_vec();
        let mut chain = list.chain().unwrap_or_default();
        while !chain.is_hole() {
            let block = self.image.block(chain.address().0);
            self.own(chain.address(), who);
            let decoded = (checksum(&block) == chain.crc())
                .then(|| DeadlistBlock::decode(&block))
                .flatten();
            let Some(decoded) = decoded else {
                self.problem(format!("I3: {who}: {chain:?} does not verify"));
                break;
            };
            entries.extend(decoded.entries);
            chain = decoded.previous;
        }
        if entries.len() as u64 != list.count() {
            self.problem(format!(
                "{who} counts {}, has {}",
                list.count(),
                entries.len()
            ));
        }
        entries
    }

    fn lists(&mut self, trees: &Trees) {
        let state = self.state;
        for (id, version) in &state.versions {
            let who = format!("the deadlist of version {id}");
            let entries = self.entries(&version.dead, &who);
            let parent_cut = state.parent_cut(version.parent);
            let own = entries
                .iter()
                .filter(|entry| entry.birth() > parent_cut)
                .count() as u64;
            if !self.is_fed(*id) && own < version.dead_own {
                self.problem(format!("{who} counts {} own, has {own}", version.dead_own));
            }
            let addresses = |id: &u64| -> BTreeSet<u64> {
                trees.get(id).map_or(BTreeSet::new(), |items| {
                    items.iter().map(|item| item.address.0).collect()
                })
            };
            let (parent, own) = (addresses(&version.parent), addresses(id));
            let mut once = BTreeSet::new();
            for entry in entries {
                let address = entry.address().0;
                let young = entry.birth() > version.cut;
                if young || !parent.contains(&address) || own.contains(&address) {
                    self.problem(format!("I10: {who}: {entry:?}"));
                }
                if !once.insert(address) {
                    self.problem(format!("I10: {who}: {entry:?} twice"));
                }
            }
        }
    }

    fn jobs(&mut self, trees: &Trees) {
        let state = self.state;
        for (id, job) in &state.jobs {
            let who = format!("job {id}");
            let (to, lower) = self.final_output(job.output());
            let (cut, blocks) = match job {
                Job::Walk {
                    root, cut, cursor, ..
                } => {
                    let items = self.tree(root, &[], *cursor, &who);
                    (
                        *cut,
                        items
                            .iter()
                            .map(|item| (item.address, item.birth))
                            .collect(),
                    )
                }
                Job::Filter { cut, list, .. } => {
                    let entries = self.entries(list, &who);
                    let pair = |entry: &Packed| (entry.address(), entry.birth());
                    (*cut, entries.iter().map(pair).collect::<Vec<_>>())
                }
            };
            let parent = match to {
                Output::Version(version) => match state.versions.get(&version) {
                    Some(version) => Some(version.parent),
                    None => {
                        self.problem(format!("{who} feeds version {version}, which is gone"));
                        None
                    }
                },
                _ => None,
            };
            let kept: BTreeSet<u64> = parent
                .and_then(|id| trees.get(&id))
                .map_or(BTreeSet::new(), |items| {
                    items.iter().map(|i| i.address.0).collect()
                });
            for (address, birth) in blocks {
                if birth > cut.min(lower) {
                    self.own(address, &who);
                } else if parent.is_some() && !kept.contains(&address.0) {
                    self.problem(format!("I10: {who} passes on {address} of {birth}"));
                }
            }
        }
    }

    fn catalogue(&mut self, root: Option<NodeRef>) {
        for item in self.tree(&Root::from_stored(root), &[], 0, "the catalogue") {
            self.own(item.address, "the catalogue");
            if !item.node {
                let block = self.image.block(item.address.0);
                for bytes in block.chunks(CATALOGUE_ENTRY_BYTES) {
                    if crate::format::entry::Entry::decode(bytes).is_none() {
                        self.problem(format!("{} is no catalogue block", item.address));
                    }
                }
            }
        }
    }

    /// What a version shares must be owned by one of its ancestors.
    fn shared(&mut self, trees: &Trees) {
        let mut lost = Vec::new();
        for (id, items) in trees {
            let version = &self.state.versions[id];
            let parent: BTreeSet<u64> =
                trees.get(&version.parent).map_or(BTreeSet::new(), |items| {
                    items.iter().map(|i| i.address.0).collect()
                });
            for item in items.iter().filter(|item| item.birth <= version.cut) {
                if !parent.contains(&item.address.0) || !self.owners.contains_key(&item.address.0) {
                    lost.push(format!("version {id} shares {} with nobody", item.address));
                }
            }
        }
        lost.into_iter().for_each(|what| self.problem(what));
    }

    fn allocator(&mut self) {
        let geometry = self.state.geometry;
        let bytes = usize::try_from(geometry.bitmap_blocks()).unwrap() * BLOCK_SIZE;
        let stored = |region: usize| {
            let entry = self.state.allocator.entry(region);
            let start = geometry.bitmap_place(region, entry.place);
            let blocks = start..start + geometry.bitmap_blocks();
            let all: Vec<u8> = blocks.flat_map(|block| self.image.block(block)).collect();
            let fresh = entry == crate::format::table::RegionEntry::default();
            assert!(
                fresh || checksum(&all[..bytes]) == entry.crc,
                "bitmap {region}"
            );
            Bitmap::from_bytes(&all, geometry.region_blocks)
        };
        let (used, mut problems) = self.state.allocator.audit(stored);
        for address in &used {
            if !self.owners.contains_key(address) {
                problems.push(format!("leak: block@{address} is used by nobody"));
            }
        }
        for (address, owner) in &self.owners {
            if !used.contains(address) {
                problems.push(format!("block@{address} of {owner} is not marked as used"));
            }
        }
        problems.into_iter().for_each(|what| self.problem(what));
    }
}
