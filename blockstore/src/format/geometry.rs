//! Where the fixed structures of a pool are, and how its regions and nodes are shaped.
use crate::limits::{
    FANOUT, JOURNAL_BLOCKS, JOURNAL_BLOCKS_MIN, LEVEL_MAX, REGION_BLOCKS, REGIONS_MAX,
    TABLE_BLOCKS, VOLUME_BYTES_MAX,
};
use crate::units::{Address, BLOCK_BYTES};

/// Blocks of a superblock slot.
pub(crate) const SLOT_BLOCKS: u64 = 2;
/// First block of each superblock slot: generations alternate between slots {0, 2} and {1, 3}, so
/// that the two copies of a generation are 16 MiB apart.
pub(crate) const SLOTS: [u64; 4] = [0, 16, 4096, 4112];
/// First block of the region table's places.
const TABLE_START: u64 = 64;
/// First block of the journal.
const JOURNAL_START: u64 = 4128;

/// The shape of a pool, fixed when it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Blocks of the pool.
    pub(crate) blocks: u64,
    /// Slots in a node; even, at least 4.
    pub(crate) fanout: u32,
    /// Blocks in a region; a multiple of 64.
    pub(crate) region_blocks: u32,
    /// Blocks of the journal.
    pub(crate) journal_blocks: u64,
}

impl Geometry {
    /// The usual shape for a pool of `blocks`; the journal takes a 64th of it, within limits.
    pub(crate) fn of_pool(blocks: u64, journal_blocks: Option<u64>) -> Self {
        let journal = journal_blocks.unwrap_or(blocks / 64);
        Self {
            blocks,
            fanout: FANOUT,
            region_blocks: REGION_BLOCKS,
            journal_blocks: journal.clamp(*JOURNAL_BLOCKS.start(), *JOURNAL_BLOCKS.end()),
        }
    }

    /// Whether the numbers make a pool at all: what a superblock says is not trusted before.
    pub(crate) fn is_sound(&self) -> bool {
        (4..=FANOUT).contains(&self.fanout)
            && self.fanout.is_multiple_of(2)
            && (64..=REGION_BLOCKS).contains(&self.region_blocks)
            && self.region_blocks.is_multiple_of(64)
            && (JOURNAL_BLOCKS_MIN..=*JOURNAL_BLOCKS.end()).contains(&self.journal_blocks)
            && self.blocks < 1 << 44
            && self.blocks > self.base() + self.bitmap_blocks() * 2
            && (self.blocks - self.base()).div_ceil(self.region_blocks.into()) <= REGIONS_MAX as u64
    }

    pub(crate) fn journal_start(&self) -> u64 {
        JOURNAL_START
    }

    /// First block of the first region.
    pub(crate) fn base(&self) -> u64 {
        JOURNAL_START + self.journal_blocks
    }

    /// Blocks of one copy of a region's bitmap.
    pub(crate) fn bitmap_blocks(&self) -> u64 {
        u64::from(self.region_blocks.div_ceil(8 * 4096))
    }

    pub(crate) fn regions(&self) -> usize {
        let span = u64::from(self.region_blocks);
        let count = usize::try_from((self.blocks - self.base()) / span).unwrap_or(usize::MAX);
        // A last region too small for its own bitmaps is left out.
        let rest = (self.blocks - self.base()) % span;
        count + usize::from(rest > self.bitmap_blocks() * 2)
    }

    pub(crate) fn region_start(&self, region: usize) -> u64 {
        self.base() + region as u64 * u64::from(self.region_blocks)
    }

    /// Blocks of a region that exist: the last may be cut short.
    pub(crate) fn region_len(&self, region: usize) -> u32 {
        let left = self.blocks - self.region_start(region);
        u32::try_from(left)
            .unwrap_or(u32::MAX)
            .min(self.region_blocks)
    }

    /// Where a region's bitmap is, in each of its two places.
    pub(crate) fn bitmap_place(&self, region: usize, place: u8) -> u64 {
        self.region_start(region) + u64::from(place) * self.bitmap_blocks()
    }

    /// Region and block within it of an address; `None` for the fixed structures or past the end.
    pub(crate) fn locate(&self, address: Address) -> Option<(usize, u32)> {
        let offset = address.0.checked_sub(self.base())?;
        let span = u64::from(self.region_blocks);
        let region = usize::try_from(offset / span).ok()?;
        let within = u32::try_from(offset % span).ok()?;
        (region < self.regions()
            && within < self.region_len(region)
            && u64::from(within) >= self.bitmap_blocks() * 2)
            .then_some((region, within))
    }

    /// Where block `index` of the region table is, in each of its two places.
    pub(crate) fn table_place(&self, index: usize, place: u8) -> u64 {
        TABLE_START + u64::from(place) * TABLE_BLOCKS as u64 + index as u64
    }

    /// Blocks of the region table in use.
    pub(crate) fn table_blocks(&self) -> usize {
        self.regions().div_ceil(crate::limits::TABLE_ENTRIES)
    }

    /// Blocks that volumes and metadata can use.
    pub(crate) fn usable(&self) -> u64 {
        let overhead = self.bitmap_blocks() * 2;
        (0..self.regions())
            .map(|r| u64::from(self.region_len(r)) - overhead)
            .sum()
    }

    /// Children of a node of `level`: pointers above level 1 take two slots.
    pub(crate) fn children(&self, level: u8) -> u64 {
        u64::from(if level >= 2 {
            self.fanout / 2
        } else {
            self.fanout
        })
    }

    /// Nodes that changing a range of `blocks` may touch, at worst.
    pub(crate) fn nodes_for(&self, blocks: u64) -> u64 {
        let mut nodes = 0;
        for level in 0..=LEVEL_MAX {
            let span = self.span(level);
            nodes += blocks / span + 2;
            if span >= VOLUME_BYTES_MAX / BLOCK_BYTES {
                break;
            }
        }
        nodes
    }

    /// Volume blocks below a node of `level`.
    pub(crate) fn span(&self, level: u8) -> u64 {
        (0..=level).fold(1u64, |span, l| span.saturating_mul(self.children(l)))
    }
}

const _: () = {
    assert!(TABLE_START + 2 * TABLE_BLOCKS as u64 <= SLOTS[2]);
    assert!(SLOTS[1] + SLOT_BLOCKS <= TABLE_START);
    assert!(SLOTS[3] + SLOT_BLOCKS <= JOURNAL_START);
};
