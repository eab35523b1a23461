//! Deadlists: chains of blocks, what they name, and the sums by which they are compared.
use super::Checker;
use crate::format::deadlist::DeadlistBlock;
use crate::format::pointer::Packed;
use crate::units::{Address, Record};

/// Blocks as a count and a hash that does not depend on their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bag {
    pub(super) count: u64,
    sum: u64,
}

impl Bag {
    pub(super) fn add(&mut self, address: Address, birth: Record) {
        self.count += 1;
        self.sum = self.sum.wrapping_add(mix(mix(address.0) ^ birth.0));
    }

    pub(super) fn join(&mut self, other: Self) {
        self.count += other.count;
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

/// The finaliser of `SplitMix64`: every bit of the input changes half of the output's.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

impl Checker<'_> {
    /// Reads a chain from its last block to its first, and claims its blocks; false if a part of it
    /// is lost. `title` names it.
    pub(super) async fn read_chain(
        &mut self,
        title: &str,
        chain: Packed,
        count: u64,
        mut take: impl FnMut(&mut Self, Packed),
    ) -> bool {
        let mut left = chain;
        let mut found = 0;
        while !left.is_hole() {
            // A chain that leads back to itself ends here: its block has an owner already.
            if !self.claim(left.address(), || title.to_owned()) {
                return false;
            }
            let read = self.source.block(left.address(), left.crc()).await;
            self.count_blocks(1);
            let block = read.and_then(|bytes| {
                let wrong = || format!("{} is no block of a deadlist", left.address());
                DeadlistBlock::decode(&bytes).ok_or_else(wrong)
            });
            let block = match block {
                Ok(block) => block,
                Err(why) => {
                    self.problem(format!("I3: {title}: {why}"));
                    return false;
                }
            };
            if left.birth() > self.newest {
                self.problem(format!("I9: {title}: {} is of the future", left.address()));
            }
            found += block.entries.len() as u64;
            for entry in block.entries {
                take(self, entry);
            }
            left = block.previous;
        }
        if found != count {
            self.problem(format!(
                "I10: {title} has {found} entries, and counts {count}"
            ));
        }
        true
    }

    /// Reads the deadlist of every version.
    pub(super) async fn check_lists(&mut self) {
        let lists: Vec<_> = self
            .catalogue
            .versions
            .iter()
            .map(|(id, version)| (*id, version.chain, version.dead, version.cut))
            .collect();
        for (id, chain, count, cut) in lists {
            let title = format!("the deadlist of {}", self.catalogue.title(id));
            let parent = self
                .catalogue
                .versions
                .get(&id)
                .map_or(0, |version| version.parent);
            let parent_cut = self
                .catalogue
                .versions
                .get(&parent)
                .map_or(Record(0), |p| p.cut);
            let mut bag = Bag::default();
            let mut owned_by_parent = 0;
            let whole = self
                .read_chain(&title, chain, count, |checker, entry| {
                    bag.add(entry.address(), entry.birth());
                    owned_by_parent += u64::from(entry.birth() > parent_cut);
                    if entry.birth() > cut || entry.birth() == Record(0) {
                        checker.problem(format!("I10: {title} names {entry:?}, cut at {cut}"));
                    }
                })
                .await;
            let counted = self.catalogue.versions.get(&id).map_or(0, |v| v.dead_own);
            if whole && counted > owned_by_parent {
                self.problem(format!(
                    "I10: {title} names {owned_by_parent} blocks of its parent's own, and counts \
                     {counted}"
                ));
            }
            if whole {
                self.dead.insert(id, bag);
            }
        }
    }
}
