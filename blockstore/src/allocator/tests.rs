//! The allocator against sets of numbers: what is claimed, used, gated, and on disk.
//!
//! The model keeps a set for each state of a block, and a "disk" of bitmaps that a pretended
//! checkpoint writes. Whatever is done in whatever order, no block is ever handed out that anybody
//! has, nothing is free before its checkpoint has settled, and the written bitmaps are exactly what
//! was frozen.
use super::{Allocator, Bitmap, Extent, Log, Short, apply};
use crate::device::Random;
use crate::format::geometry::Geometry;
use crate::format::table::RegionEntry;
use crate::units::Address;
use std::collections::{BTreeMap, BTreeSet};

/// Six regions, the last of them short.
const GEOMETRY: Geometry = Geometry {
    blocks: 4128 + 512 + 5 * 256 + 100,
    fanout: 4,
    region_blocks: 256,
    journal_blocks: 512,
};

type Blocks = BTreeSet<u64>;

/// A checkpoint on its way: what it froze, and the blocks that are free once it has settled.
struct Checkpoint {
    log: Log,
    used: Blocks,
    freed: Blocks,
}

struct World {
    allocator: Allocator,
    disk: Vec<(RegionEntry, Bitmap)>,
    claimed: Vec<Extent>,
    used: Blocks,
    /// Used, and not frozen yet: these alone may be freed at once.
    young: Blocks,
    gated: Blocks,
    checkpoint: Option<Checkpoint>,
    random: Random,
}

fn blocks(extent: Extent) -> impl Iterator<Item = u64> {
    extent.address.0..extent.address.0 + u64::from(extent.blocks)
}

impl World {
    fn new(seed: u64) -> Self {
        let entries = vec![RegionEntry::default(); GEOMETRY.regions()];
        let empty = (RegionEntry::default(), Bitmap::new(GEOMETRY.region_blocks));
        Self {
            allocator: Allocator::new(GEOMETRY, &entries),
            disk: vec![empty; GEOMETRY.regions()],
            claimed: Vec::new(),
            used: Blocks::new(),
            young: Blocks::new(),
            gated: Blocks::new(),
            checkpoint: None,
            random: Random::new(seed),
        }
    }

    fn load(&mut self, region: usize) {
        assert!(!self.allocator.is_loaded(region), "asked for what is there");
        self.allocator.load(region, &self.disk[region].1);
    }

    /// Tries until it is done or nothing is free.
    fn attempt<T>(
        &mut self,
        mut claim: impl FnMut(&mut Allocator) -> Result<T, Short>,
    ) -> Option<T> {
        loop {
            match claim(&mut self.allocator) {
                Ok(value) => return Some(value),
                Err(Short::Load(region)) => self.load(region),
                Err(Short::Full) => return None,
            }
        }
    }

    /// Nobody has a block that is handed out.
    fn is_new(&self, extent: Extent) {
        for block in blocks(extent) {
            assert!(
                GEOMETRY.locate(Address(block)).is_some(),
                "{block} is in no region"
            );
            assert!(!self.used.contains(&block), "{block} is used");
            assert!(!self.gated.contains(&block), "{block} is gated");
            let freed = self.checkpoint.as_ref().map(|checkpoint| &checkpoint.freed);
            assert!(
                freed.is_none_or(|freed| !freed.contains(&block)),
                "{block} is not settled"
            );
            let claimed = self
                .claimed
                .iter()
                .any(|claimed| blocks(*claimed).any(|b| b == block));
            assert!(!claimed, "{block} is claimed");
        }
    }

    fn claim_data(&mut self) {
        let (volume, count) = (self.random.below(5), 1 + self.random.below(60));
        let count = u32::try_from(count).unwrap();
        let free = self.allocator.free();
        let Some(extents) = self.attempt(|allocator| allocator.claim_data(volume, count)) else {
            let sizes = self.claimed.iter().map(|extent| u64::from(extent.blocks));
            let taken = sizes.sum::<u64>() + self.allocator.stocked.iter().sum::<u64>();
            assert!(
                free - taken < u64::from(count),
                "full, with {free} free, {taken} taken"
            );
            return;
        };
        assert_eq!(
            extents.iter().map(|extent| extent.blocks).sum::<u32>(),
            count
        );
        for extent in extents {
            self.is_new(extent);
            self.claimed.push(extent);
        }
    }

    fn end_claim(&mut self) {
        if self.claimed.is_empty() {
            return;
        }
        let index = self.random.index(self.claimed.len());
        let extent = self.claimed.swap_remove(index);
        match self.random.below(5) {
            0 => self.allocator.unclaim(extent),
            1 => {
                self.allocator.abandon(extent);
                self.gated.extend(blocks(extent));
            }
            _ => {
                self.allocator.publish(extent);
                self.used.extend(blocks(extent));
                self.young.extend(blocks(extent));
            }
        }
    }

    fn take_metadata(&mut self) {
        if self
            .attempt(|allocator| allocator.stock_metadata(3))
            .is_none()
        {
            return;
        }
        for copy in [0, 1, 0] {
            let address = self.allocator.take_metadata(copy);
            self.is_new(Extent { address, blocks: 1 });
            self.used.insert(address.0);
            self.young.insert(address.0);
        }
    }

    fn any(&mut self, of: fn(&Self) -> &Blocks) -> Option<u64> {
        let count = of(self).len();
        if count == 0 {
            return None;
        }
        let index = self.random.index(count);
        of(self).iter().nth(index).copied()
    }

    fn free(&mut self) {
        let Some(block) = self.any(|world| &world.used) else {
            return;
        };
        self.used.remove(&block);
        self.young.remove(&block);
        self.gated.insert(block);
        self.allocator.free_gated(Address(block));
    }

    fn free_young(&mut self) {
        let Some(block) = self.any(|world| &world.young) else {
            return;
        };
        self.used.remove(&block);
        self.young.remove(&block);
        self.allocator.free_now(Address(block));
        // While a checkpoint is on its way it waits like any other.
        if self.checkpoint.is_some() {
            self.gated.insert(block);
        }
    }

    /// Claims a given block, as recovery does, if it is free for sure.
    fn claim_this(&mut self) {
        let region = self.random.index(GEOMETRY.regions());
        let start = GEOMETRY.region_start(region);
        let block = start + self.random.below(u64::from(GEOMETRY.region_len(region)));
        let claimed = self.attempt(|allocator| allocator.claim_this(Address(block)));
        if claimed.is_some() {
            let (address, blocks) = (Address(block), 1);
            self.is_new(Extent { address, blocks });
            self.claimed.push(Extent { address, blocks });
        }
    }

    fn freeze(&mut self) {
        if self.checkpoint.is_some() {
            return;
        }
        let mut log = self.allocator.freeze();
        self.young.clear();
        let mut freed = std::mem::take(&mut self.gated);
        let mut used = self.used.clone();
        // What a checkpoint takes and frees for itself belongs to it, whatever comes in between.
        if self
            .attempt(|allocator| allocator.stock_metadata(2))
            .is_some()
        {
            let mut taken = Vec::new();
            let old = self.any(|world| &world.used);
            self.allocator.freeze_more(&mut log, |allocator| {
                taken.push(allocator.take_metadata(0));
                taken.push(allocator.take_metadata(1));
                if let Some(block) = old {
                    allocator.free_gated(Address(block));
                }
            });
            for address in taken {
                let blocks = 1;
                assert!(!used.contains(&address.0) && !freed.contains(&address.0));
                assert!(!self.claimed.contains(&Extent { address, blocks }));
                self.used.insert(address.0);
                used.insert(address.0);
            }
            if let Some(block) = old {
                self.used.remove(&block);
                used.remove(&block);
                freed.insert(block);
            }
        }
        self.checkpoint = Some(Checkpoint { log, used, freed });
    }

    /// The checkpoint's bitmaps are written; then it settles.
    fn settle(&mut self) {
        let Some(Checkpoint { log, used, .. }) = self.checkpoint.take() else {
            return;
        };
        for (region, deltas) in log {
            if !self.allocator.is_loaded(region) {
                self.load(region);
            }
            let (entry, bitmap) = &mut self.disk[region];
            apply(bitmap, &deltas);
            entry.used = bitmap.count();
            entry.place ^= 1;
            let entry = *entry;
            self.allocator.settle(region, entry, &deltas);
        }
        self.allocator.settled();
        let written = self
            .disk
            .iter()
            .enumerate()
            .flat_map(|(region, (_, bitmap))| {
                let start = GEOMETRY.region_start(region);
                bitmap
                    .set_runs()
                    .flatten()
                    .map(move |bit| start + u64::from(bit))
            });
        assert!(written.eq(used), "the bitmaps are not what was frozen");
    }

    fn check(&self) {
        let allocator = &self.allocator;
        assert_eq!(allocator.used(), self.used.len() as u64);
        let freed = self
            .checkpoint
            .as_ref()
            .map_or(0, |checkpoint| checkpoint.freed.len());
        assert_eq!(allocator.gated(), (self.gated.len() + freed) as u64);
        assert_eq!(
            allocator.used() + allocator.gated() + allocator.free(),
            allocator.usable()
        );
    }
}

fn live(seed: u64) {
    println!("seed {seed}");
    let mut world = World::new(seed);
    // Lives differ in how full they get.
    let freeing = 1 + world.random.below(6);
    for _ in 0..2500 {
        match world.random.below(14 + freeing) {
            0..=3 => world.claim_data(),
            4..=7 => world.end_claim(),
            8 => world.take_metadata(),
            9 => world.freeze(),
            10 => world.settle(),
            11 => {
                let keep = world.random.index(3);
                world.allocator.evict(keep);
            }
            12 => world.claim_this(),
            13 => world.free_young(),
            _ => (0..world.random.below(30)).for_each(|_| world.free()),
        }
        world.check();
    }
}

#[test]
fn no_block_is_ever_handed_out_that_anybody_has() {
    let time = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let seed = u64::try_from(time.as_nanos() & u128::from(u64::MAX)).unwrap();
    let mut random = Random::new(seed);
    for _ in 0..8 {
        live(random.next_u64());
    }
}

#[test]
fn everything_can_be_claimed_and_comes_back() {
    let mut world = World::new(1);
    let mut claimed = BTreeMap::new();
    while let Some(extents) = world.attempt(|allocator| allocator.claim_data(1, 1)) {
        for extent in extents {
            assert!(claimed.insert(extent.address.0, extent).is_none());
        }
    }
    assert_eq!(claimed.len() as u64, world.allocator.usable());
    for extent in claimed.into_values() {
        world.allocator.publish(extent);
        world.used.insert(extent.address.0);
    }
    assert_eq!(world.allocator.free(), 0);
    while !world.used.is_empty() {
        world.free();
    }
    assert_eq!(
        world.attempt(|allocator| allocator.claim_data(1, 1)),
        None,
        "I7"
    );
    world.freeze();
    assert_eq!(
        world.attempt(|allocator| allocator.claim_data(1, 1)),
        None,
        "I7"
    );
    world.settle();
    assert_eq!(world.allocator.free(), world.allocator.usable());
    assert!(
        world
            .attempt(|allocator| allocator.claim_data(1, 200))
            .is_some()
    );
}

#[test]
fn twins_lie_in_another_region_as_long_as_there_is_one() {
    let mut world = World::new(1);
    world
        .attempt(|allocator| allocator.stock_metadata(50))
        .unwrap();
    let region = |address| GEOMETRY.locate(address).map(|(region, _)| region);
    for _ in 0..50 {
        let first = world.allocator.take_metadata(0);
        let second = world.allocator.take_metadata(1);
        assert_ne!(region(first), region(second));
    }
}

#[test]
fn evicted_bitmaps_come_back_with_what_is_gated_still_unavailable() {
    let mut world = World::new(1);
    let extents = world
        .attempt(|allocator| allocator.claim_data(1, 100))
        .unwrap();
    for extent in extents {
        world.allocator.publish(extent);
        world.used.extend(blocks(extent));
    }
    world.allocator.give_points_back();
    world.freeze();
    world.settle();
    world.free();
    world.allocator.evict(0);
    let gated = *world.gated.first().unwrap();
    let again = world.attempt(|allocator| allocator.claim_this(Address(gated)));
    assert_eq!(again, None);
    assert!(!world.allocator.freeze().is_empty());
}
