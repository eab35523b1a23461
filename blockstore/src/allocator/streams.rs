//! Where the next blocks come from: streams through regions, a chunk for each volume, and a stock
//! for metadata, which is taken without I/O.
use super::{Allocator, Extent, Short};
use crate::units::Address;

/// Blocks of the largest chunk of a volume: 1 MiB, so that its data stays together and random
/// writes land in order.
const CHUNK_BLOCKS: u64 = 256;
/// Volumes with a chunk of their own; the least recently used gives its back.
const POINTS_MAX: usize = 256;
/// Blocks by which the metadata stock is filled.
const STOCK_BLOCKS: u64 = 256;

/// A place that moves through a region, and from region to region.
#[derive(Debug)]
pub(super) struct Stream {
    region: usize,
    cursor: u32,
}

impl Stream {
    pub(super) fn at(region: usize, cursor: u32) -> Self {
        Self { region, cursor }
    }
}

/// A volume's write point: what is left of its chunk.
#[derive(Debug)]
pub(super) struct Point {
    left: Extent,
    used_at: u64,
}

impl Allocator {
    /// Claims `blocks` for data of `volume`, in as few extents as there are.
    pub(crate) fn claim_data(&mut self, volume: u64, blocks: u32) -> Result<Vec<Extent>, Short> {
        let mut extents = Vec::new();
        let mut needed = blocks;
        while needed > 0 {
            match self.claim_piece(volume, needed) {
                Ok(piece) => {
                    needed -= piece.blocks;
                    extents.push(piece);
                }
                Err(short) => {
                    for extent in extents {
                        self.unclaim(extent);
                    }
                    return Err(short);
                }
            }
        }
        Ok(extents)
    }

    fn claim_piece(&mut self, volume: u64, needed: u32) -> Result<Extent, Short> {
        self.tick += 1;
        let tick = self.tick;
        if let Some(point) = self.points.get_mut(&volume) {
            point.used_at = tick;
            let piece = Extent {
                blocks: needed.min(point.left.blocks),
                ..point.left
            };
            point.left.address.0 += u64::from(piece.blocks);
            point.left.blocks -= piece.blocks;
            if point.left.blocks == 0 {
                self.points.remove(&volume);
            }
            return Ok(piece);
        }
        if self.points.len() >= POINTS_MAX {
            self.drop_oldest_point();
        }
        // Less is set aside for each volume as space runs short.
        let chunk = (self.free() / (64 * (self.points.len() as u64 + 1))).clamp(1, CHUNK_BLOCKS);
        let want = u64::from(needed).max(chunk);
        let mut run = self.claim_run(Which::Data, want);
        if run == Err(Short::Full) && !self.points.is_empty() {
            self.give_points_back();
            run = self.claim_run(Which::Data, want);
        }
        let run = run?;
        let piece = Extent {
            blocks: needed.min(run.blocks),
            ..run
        };
        if run.blocks > piece.blocks {
            let address = Address(run.address.0 + u64::from(piece.blocks));
            let left = Extent {
                address,
                blocks: run.blocks - piece.blocks,
            };
            self.points.insert(
                volume,
                Point {
                    left,
                    used_at: tick,
                },
            );
        }
        Ok(piece)
    }

    fn drop_oldest_point(&mut self) {
        let oldest = self.points.iter().min_by_key(|(_, point)| point.used_at);
        if let Some(volume) = oldest.map(|(volume, _)| *volume)
            && let Some(point) = self.points.remove(&volume)
        {
            self.unclaim(point.left);
        }
    }

    /// Gives back what volumes have set aside but not used.
    pub(crate) fn give_points_back(&mut self) {
        while let Some((_, point)) = self.points.pop_first() {
            self.unclaim(point.left);
        }
    }

    /// Makes sure that `take_metadata` can be called for `blocks` blocks of each copy.
    pub(crate) fn stock_metadata(&mut self, blocks: u64) -> Result<(), Short> {
        for copy in [0, 1] {
            while self.stocked[copy] < blocks {
                let want = (self.free() / 64).clamp(1, STOCK_BLOCKS);
                let mut run = self.claim_run(Which::Metadata(copy), want);
                if run == Err(Short::Full) && !self.points.is_empty() {
                    self.give_points_back();
                    run = self.claim_run(Which::Metadata(copy), want);
                }
                let run = run?;
                self.stocked[copy] += u64::from(run.blocks);
                self.stock[copy].push(run);
            }
        }
        Ok(())
    }

    /// A block out of the stock, published. `copy`: 0, or 1 for a twin, which lies far from it.
    pub(crate) fn take_metadata(&mut self, copy: usize) -> Address {
        let run = self.stock[copy].last_mut();
        let run = run.unwrap_or_else(|| unreachable!("the metadata stock was not filled"));
        let address = run.address;
        run.address.0 += 1;
        run.blocks -= 1;
        if run.blocks == 0 {
            self.stock[copy].pop();
        }
        self.stocked[copy] -= 1;
        self.publish(Extent { address, blocks: 1 });
        address
    }

    fn stream(&mut self, which: Which) -> &mut Stream {
        match which {
            Which::Data => &mut self.data,
            Which::Metadata(copy) => &mut self.metadata[copy],
        }
    }

    fn claim_run(&mut self, which: Which, want: u64) -> Result<Extent, Short> {
        let want = u32::try_from(want).unwrap_or(u32::MAX);
        loop {
            let Stream { region, cursor } = *self.stream(which);
            if self.regions[region].free > 0 && cursor < self.geometry.region_blocks {
                if !self.is_loaded(region) {
                    return Err(Short::Load(region));
                }
                if let Some(run) = self.bitmap(region).clear_run(cursor, want) {
                    let blocks = run.end - run.start;
                    self.stream(which).cursor = run.end;
                    self.bitmap(region).set(run.clone());
                    self.regions[region].free -= blocks;
                    self.regions[region].outstanding += blocks;
                    let address = self.geometry.region_start(region) + u64::from(run.start);
                    return Ok(Extent {
                        address: Address(address),
                        blocks,
                    });
                }
            }
            *self.stream(which) = Stream::at(self.emptiest(which)?, 0);
        }
    }

    /// The region with most room; for twins another than the first copies' if there is one.
    fn emptiest(&self, which: Which) -> Result<usize, Short> {
        let avoid = (which == Which::Metadata(1)).then_some(self.metadata[0].region);
        let free = |index: usize| {
            let free = self.regions[index].free;
            (Some(index) != avoid && free > 0, free)
        };
        let best = (0..self.regions.len()).max_by_key(|index| (free(*index), usize::MAX - index));
        best.filter(|index| self.regions[*index].free > 0)
            .ok_or(Short::Full)
    }
}

/// Whose stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    Data,
    Metadata(usize),
}
