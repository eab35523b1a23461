//! Who has which block: one bit for each block that was found to have an owner.
use crate::allocator::Bitmap;
use crate::format::geometry::Geometry;
use crate::units::Address;
use std::ops::Range;

/// How a claim went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// The block has its first owner.
    First,
    /// It had one already.
    Again,
    /// It is in no region, or in a region's own bitmap.
    Outside,
}

/// The blocks that have an owner. Regions without any take no memory.
#[derive(Debug)]
pub(super) struct Owners {
    geometry: Geometry,
    regions: Vec<Option<Bitmap>>,
    count: u64,
}

/// Where a stored bitmap and the owners found differ; addresses.
#[derive(Debug, Default)]
pub(super) struct Difference {
    /// In use according to the bitmap, but nobody's.
    pub(super) leaked: Vec<Range<u64>>,
    /// Somebody's, but free according to the bitmap.
    pub(super) missing: Vec<Range<u64>>,
}

impl Owners {
    pub(super) fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            regions: vec![None; geometry.regions()],
            count: 0,
        }
    }

    /// Blocks that have an owner.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn claim(&mut self, address: Address) -> Claim {
        let Some((region, block)) = self.geometry.locate(address) else {
            return Claim::Outside;
        };
        let bits = self.geometry.region_blocks;
        let bitmap = self.regions[region].get_or_insert_with(|| Bitmap::new(bits));
        if bitmap.get(block) {
            return Claim::Again;
        }
        bitmap.set(block..block + 1);
        self.count += 1;
        Claim::First
    }

    /// Compares a region's owners with its bitmap as stored.
    pub(super) fn compare(&self, region: usize, stored: &Bitmap) -> Difference {
        let none = Bitmap::new(self.geometry.region_blocks);
        let owned = self.regions[region].as_ref().unwrap_or(&none);
        if owned == stored {
            return Difference::default();
        }
        let start = self.geometry.region_start(region);
        Difference {
            leaked: beyond(stored, owned, start),
            missing: beyond(owned, stored, start),
        }
    }
}

/// Runs of bits that are set in `one` and clear in `other`, as addresses from `start` on.
fn beyond(one: &Bitmap, other: &Bitmap, start: u64) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for bit in one
        .set_runs()
        .flatten()
        .filter(|bit| !other.get(*bit))
        .map(u64::from)
    {
        match runs.last_mut() {
            Some(run) if run.end == start + bit => run.end += 1,
            _ => runs.push(start + bit..start + bit + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaks_and_missing_bits_are_told_apart_as_runs() {
        let geometry = Geometry {
            blocks: 8192,
            fanout: 4,
            region_blocks: 256,
            journal_blocks: 512,
        };
        let mut owners = Owners::new(geometry);
        let base = geometry.base();
        assert_eq!(owners.claim(Address(base)), Claim::Outside);
        assert_eq!(owners.claim(Address(8192)), Claim::Outside);
        for block in [2, 3, 4, 70] {
            assert_eq!(owners.claim(Address(base + block)), Claim::First);
        }
        assert_eq!(owners.claim(Address(base + 3)), Claim::Again);
        assert_eq!(owners.count(), 4);
        let mut stored = Bitmap::new(256);
        stored.set(3..4);
        stored.set(63..66);
        stored.set(70..72);
        let difference = owners.compare(0, &stored);
        let run = |from: u64, to: u64| base + from..base + to;
        assert_eq!(difference.leaked, [run(63, 66), run(71, 72)]);
        assert_eq!(difference.missing, [run(2, 3), run(4, 5)]);
        assert!(owners.compare(1, &Bitmap::new(256)).leaked.is_empty());
    }
}
