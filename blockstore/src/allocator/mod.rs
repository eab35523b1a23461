//! Which blocks of the pool are free: claim them, publish them, free them behind gates.
//!
//! # States of a block
//! ```text
//! free ──claim──▶ claimed ──publish──▶ used ──free_gated──▶ gated ──settle──▶ free
//!                    │ unclaim, abandon   │ free_now: never frozen, straight to free
//! ```
//! *Used* is what the published state refers to; its changes since the last freeze are kept as a
//! log for each region, and the bitmap on disk is exactly the frozen state's. Claimed and gated
//! blocks exist in memory only: after a crash they are free.
//!
//! # Invariants
//! * I1: no block is claimed while claimed, used or gated (`Bitmap::set` asserts it).
//! * I2: used + gated + free = usable, where free includes what is claimed.
//! * I7: a freed block is claimed again only after a checkpoint frozen after the free is durable,
//!   and every reader that began before that freeze is done; `settle` is called then, and not
//!   before.
#[cfg(test)]
mod audit;
mod bitmap;
mod streams;

#[cfg(test)]
mod tests;

pub(crate) use bitmap::Bitmap;

use crate::format::geometry::Geometry;
use crate::format::table::RegionEntry;
use crate::units::Address;
use std::collections::BTreeMap;
use streams::{Point, Stream};

/// Why nothing was claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Short {
    /// This region's bitmap must be loaded first.
    Load(usize),
    /// There is no free block.
    Full,
}

/// Adjacent blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) address: Address,
    pub(crate) blocks: u32,
}

/// A change of what is used, within one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delta {
    start: u32,
    blocks: u32,
    kind: DeltaKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DeltaKind {
    Used,
    Gated,
    /// Freed at once: may have been used again since.
    Freed,
    /// Claimed and written, but never published: free after the next checkpoint.
    Abandoned,
}

/// What changed in each region since the last freeze, in order.
pub(crate) type Log = BTreeMap<usize, Vec<Delta>>;

#[derive(Debug)]
struct Region {
    entry: RegionEntry,
    /// Blocks that can be claimed.
    free: u32,
    /// Claimed and neither published nor given back.
    outstanding: u32,
    /// Set: not to be claimed.
    unavailable: Option<Bitmap>,
    /// A checkpoint works on it.
    settling: bool,
}

/// The allocator of a pool.
#[derive(Debug)]
pub(crate) struct Allocator {
    geometry: Geometry,
    regions: Vec<Region>,
    usable: u64,
    used: u64,
    gated: u64,
    log: Log,
    log_len: usize,
    /// A checkpoint is in progress.
    freezing: bool,
    data: Stream,
    metadata: [Stream; 2],
    stock: [Vec<Extent>; 2],
    stocked: [u64; 2],
    points: BTreeMap<u64, Point>,
    tick: u64,
}

impl Allocator {
    pub(crate) fn new(geometry: Geometry, entries: &[RegionEntry]) -> Self {
        let overhead = geometry.bitmap_blocks() * 2;
        let region = |(index, entry): (usize, &RegionEntry)| {
            let len = geometry.region_len(index);
            let room = len.saturating_sub(u32::try_from(overhead).unwrap_or(u32::MAX));
            Region {
                entry: *entry,
                free: room.saturating_sub(entry.used),
                outstanding: 0,
                unavailable: None,
                settling: false,
            }
        };
        let last = geometry.regions() - 1;
        Self {
            geometry,
            regions: entries
                .iter()
                .take(geometry.regions())
                .enumerate()
                .map(region)
                .collect(),
            usable: geometry.usable(),
            used: entries
                .iter()
                .take(geometry.regions())
                .map(|e| u64::from(e.used))
                .sum(),
            gated: 0,
            log: Log::new(),
            log_len: 0,
            freezing: false,
            data: Stream::at(0, 0),
            metadata: [
                Stream::at(0, 0),
                Stream::at(last, geometry.region_len(last) / 2),
            ],
            stock: [Vec::new(), Vec::new()],
            stocked: [0; 2],
            points: BTreeMap::new(),
            tick: 0,
        }
    }

    pub(crate) fn usable(&self) -> u64 {
        self.usable
    }

    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// Freed blocks, and abandoned ones, that wait for a checkpoint.
    pub(crate) fn gated(&self) -> u64 {
        self.gated
    }

    /// Blocks neither used nor gated.
    pub(crate) fn free(&self) -> u64 {
        self.usable - self.used - self.gated
    }

    /// Entries of the log: memory, and work for the next checkpoint.
    pub(crate) fn log_len(&self) -> usize {
        self.log_len
    }

    pub(crate) fn entry(&self, region: usize) -> RegionEntry {
        self.regions[region].entry
    }

    pub(crate) fn is_loaded(&self, region: usize) -> bool {
        self.regions[region].unavailable.is_some()
    }

    /// Takes a region's bitmap as stored. Does nothing if it is there already.
    pub(crate) fn load(&mut self, region: usize, stored: &Bitmap) {
        let len = self.geometry.region_len(region);
        let overhead = u32::try_from(self.geometry.bitmap_blocks() * 2).unwrap_or(u32::MAX);
        let slot = &mut self.regions[region];
        if slot.unavailable.is_none() {
            let mut unavailable = stored.clone();
            unavailable.cover(0..overhead);
            unavailable.cover(len..stored.bits());
            slot.unavailable = Some(unavailable);
        }
    }

    fn bitmap(&mut self, region: usize) -> &mut Bitmap {
        let bitmap = self.regions[region].unavailable.as_mut();
        bitmap.unwrap_or_else(|| unreachable!("region {region} is not loaded"))
    }

    fn place(&self, address: Address) -> (usize, u32) {
        self.geometry
            .locate(address)
            .unwrap_or_else(|| unreachable!("{address} is in no region"))
    }

    /// Claims one given block: recovery finds in the journal what was claimed before.
    pub(crate) fn claim_this(&mut self, address: Address) -> Result<(), Short> {
        let (region, block) = self.geometry.locate(address).ok_or(Short::Full)?;
        if !self.is_loaded(region) {
            return Err(Short::Load(region));
        }
        if self.bitmap(region).get(block) {
            return Err(Short::Full);
        }
        self.bitmap(region).set(block..block + 1);
        self.regions[region].free -= 1;
        self.regions[region].outstanding += 1;
        Ok(())
    }

    /// Gives claimed blocks back that nothing was written to.
    pub(crate) fn unclaim(&mut self, extent: Extent) {
        let (region, start) = self.place(extent.address);
        self.bitmap(region).clear(start..start + extent.blocks);
        self.regions[region].free += extent.blocks;
        self.regions[region].outstanding -= extent.blocks;
    }

    /// Gives claimed blocks back that may have been written: I6 keeps them until a flush.
    pub(crate) fn abandon(&mut self, extent: Extent) {
        let (region, start) = self.place(extent.address);
        self.regions[region].outstanding -= extent.blocks;
        self.gated += u64::from(extent.blocks);
        self.note(region, start, extent.blocks, DeltaKind::Abandoned);
    }

    /// Claimed blocks become used.
    pub(crate) fn publish(&mut self, extent: Extent) {
        let (region, start) = self.place(extent.address);
        self.regions[region].outstanding -= extent.blocks;
        self.used += u64::from(extent.blocks);
        self.note(region, start, extent.blocks, DeltaKind::Used);
    }

    /// A used block becomes free once the next checkpoint is durable.
    pub(crate) fn free_gated(&mut self, address: Address) {
        let (region, start) = self.place(address);
        self.used -= 1;
        self.gated += 1;
        self.note(region, start, 1, DeltaKind::Gated);
    }

    /// A used block that no checkpoint froze and no record names becomes free at once; but behind
    /// the gate while a checkpoint is in progress, which might take it for itself: then its use by
    /// the frozen state would come before its former one in the order of the logs.
    pub(crate) fn free_now(&mut self, address: Address) {
        let (region, start) = self.place(address);
        if self.freezing {
            return self.free_gated(address);
        }
        self.used -= 1;
        self.bitmap(region).clear(start..start + 1);
        self.regions[region].free += 1;
        self.note(region, start, 1, DeltaKind::Freed);
    }

    fn note(&mut self, region: usize, start: u32, blocks: u32, kind: DeltaKind) {
        push(
            self.log.entry(region).or_default(),
            Delta {
                start,
                blocks,
                kind,
            },
            &mut self.log_len,
        );
    }

    /// The changes since the last freeze, to be written as bitmaps.
    pub(crate) fn freeze(&mut self) -> Log {
        self.log_len = 0;
        self.freezing = true;
        let log = std::mem::take(&mut self.log);
        for region in log.keys() {
            self.regions[*region].settling = true;
        }
        log
    }

    /// Moves what changed since the freeze for the checkpoint's own sake over to it.
    pub(crate) fn freeze_more(&mut self, log: &mut Log, mut change: impl FnMut(&mut Self)) {
        let later = std::mem::take(&mut self.log);
        let later_len = std::mem::take(&mut self.log_len);
        change(self);
        let own = std::mem::replace(&mut self.log, later);
        self.log_len = later_len;
        for (region, deltas) in own {
            self.regions[region].settling = true;
            let list = log.entry(region).or_default();
            for delta in deltas {
                push(list, delta, &mut 0);
            }
        }
    }

    /// The checkpoint with this log is durable, and nobody reads what it freed: the region's new
    /// entry holds, and freed blocks can be claimed.
    pub(crate) fn settle(&mut self, region: usize, entry: RegionEntry, deltas: &[Delta]) {
        self.regions[region].entry = entry;
        self.regions[region].settling = false;
        for delta in deltas {
            if !matches!(delta.kind, DeltaKind::Gated | DeltaKind::Abandoned) {
                continue;
            }
            self.bitmap(region)
                .clear(delta.start..delta.start + delta.blocks);
            self.regions[region].free += delta.blocks;
            self.gated -= u64::from(delta.blocks);
        }
    }

    /// Every region that a checkpoint froze is settled.
    pub(crate) fn settled(&mut self) {
        self.freezing = false;
    }

    /// Forgets bitmaps that say no more than the disk does, down to `keep`.
    pub(crate) fn evict(&mut self, keep: usize) {
        let mut loaded = self
            .regions
            .iter()
            .filter(|r| r.unavailable.is_some())
            .count();
        for (index, region) in self.regions.iter_mut().enumerate() {
            let busy = region.outstanding > 0 || region.settling || self.log.contains_key(&index);
            if loaded > keep && region.unavailable.is_some() && !busy {
                region.unavailable = None;
                loaded -= 1;
            }
        }
    }
}

fn push(list: &mut Vec<Delta>, delta: Delta, len: &mut usize) {
    if let Some(last) = list.last_mut()
        && last.kind == delta.kind
        && last.start + last.blocks == delta.start
    {
        last.blocks += delta.blocks;
        return;
    }
    list.push(delta);
    *len += 1;
}

/// The frozen bitmap, out of the one before and what changed.
pub(crate) fn apply(bitmap: &mut Bitmap, deltas: &[Delta]) {
    for delta in deltas {
        let range = delta.start..delta.start + delta.blocks;
        match delta.kind {
            DeltaKind::Used => bitmap.set(range),
            DeltaKind::Gated | DeltaKind::Freed => bitmap.clear(range),
            DeltaKind::Abandoned => {}
        }
    }
}
