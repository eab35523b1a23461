//! Every maximum, with compile-time proof that they agree.
use crate::units::{BLOCK_BYTES, BLOCK_SIZE};

/// Bytes of the largest volume: 64 TiB.
pub const VOLUME_BYTES_MAX: u64 = 64 << 40;
/// Bytes of the largest pool: 256 TiB.
pub const POOL_BYTES_MAX: u64 = 256 << 40;
/// Bytes of the smallest pool: fixed structures, the smallest journal, and room to work.
pub const POOL_BYTES_MIN: u64 = 64 << 20;
/// Volumes in one pool.
pub const VOLUMES_MAX: usize = 10_000;
/// Snapshots in one pool.
pub const SNAPSHOTS_MAX: u64 = 100_000;
/// Bytes of the longest name of a volume or snapshot.
pub const NAME_BYTES_MAX: usize = 128;
/// Bytes of the largest request.
pub const REQUEST_BYTES_MAX: u64 = 32 << 20;
/// Snapshots in one group, so that their record fits the journal's kept-back part.
pub const GROUP_MAX: usize = 2_000;
/// Lines of damage that a scrub remembers.
pub const SCRUB_FINDINGS_MAX: usize = 1_000;

/// Slots in a mapping node.
pub(crate) const FANOUT: u32 = 252;
/// Blocks in a region: 1 GiB.
pub(crate) const REGION_BLOCKS: u32 = 1 << 18;
/// Regions in the largest pool.
pub(crate) const REGIONS_MAX: usize = 1 << 18;
/// Entries of one block of the region table.
pub(crate) const TABLE_ENTRIES: usize = 256;
/// Blocks of the region table of the largest pool.
pub(crate) const TABLE_BLOCKS: usize = 1024;
/// Highest level of a mapping node.
pub(crate) const LEVEL_MAX: u8 = 12;
/// Blocks of the smallest and largest journal that `init` makes.
pub(crate) const JOURNAL_BLOCKS: std::ops::RangeInclusive<u64> = 1024..=(1 << 18);
/// Bytes of body at which an open record is sealed.
pub(crate) const RECORD_BYTES_SEAL: usize = 256 << 10;
/// Bytes of the largest record: a seal's worth and one largest change.
pub(crate) const RECORD_BYTES_MAX: usize = 512 << 10;
/// Blocks of the journal kept back for control records, `durable` records and the checkpoint: no
/// write takes them, and half of them no trim either.
pub(crate) const JOURNAL_KEPT_BACK: u64 = 2 * (RECORD_BYTES_MAX as u64 / BLOCK_BYTES) + 16;
/// Blocks of the smallest journal that works.
pub(crate) const JOURNAL_BLOCKS_MIN: u64 = 512;
/// Blocks that one data request may span: a largest request with two unaligned edges.
pub(crate) const REQUEST_BLOCKS_MAX: u64 = REQUEST_BYTES_MAX / BLOCK_BYTES + 1;
/// Entries in a catalogue block.
pub(crate) const CATALOGUE_ENTRIES: u64 = 8;
/// Bytes of a catalogue entry.
pub(crate) const CATALOGUE_ENTRY_BYTES: usize = 512;
/// Entries in a block of a deadlist.
pub(crate) const DEADLIST_ENTRIES: usize = 252;

const _: () = {
    assert!(
        64 + FANOUT as usize * 16 == BLOCK_SIZE,
        "header and slots fill a node"
    );
    assert!(
        64 + DEADLIST_ENTRIES * 16 == BLOCK_SIZE,
        "header and entries fill a deadlist block"
    );
    assert!(
        TABLE_BLOCKS * TABLE_ENTRIES == REGIONS_MAX,
        "the table covers the largest pool"
    );
    assert!(TABLE_ENTRIES * 16 == BLOCK_SIZE);
    assert!(REGIONS_MAX as u64 * REGION_BLOCKS as u64 * BLOCK_BYTES >= POOL_BYTES_MAX);
    assert!(
        POOL_BYTES_MAX / BLOCK_BYTES < 1 << 44,
        "addresses have 44 bits"
    );
    // Five levels reach the largest volume: two of fanout 252, three of 126.
    assert!(252 * 252 * 126 * 126 * 126 >= VOLUME_BYTES_MAX / BLOCK_BYTES);
    // The worst change: every block of a largest request in a run of its own.
    assert!(64 + REQUEST_BLOCKS_MAX * 16 + RECORD_BYTES_SEAL as u64 <= RECORD_BYTES_MAX as u64);
    assert!(
        (FANOUT as usize) < 256,
        "a leaf's count of blocks fits its pointer's flags"
    );
    assert!(CATALOGUE_ENTRY_BYTES as u64 * CATALOGUE_ENTRIES == BLOCK_BYTES);
    // A group's names fit one record.
    assert!(GROUP_MAX * (NAME_BYTES_MAX + 18) + 64 < RECORD_BYTES_MAX);
    assert!(JOURNAL_KEPT_BACK < JOURNAL_BLOCKS_MIN * 3 / 5);
};
