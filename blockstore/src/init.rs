//! Making a pool: fixed structures written out, so that nothing of an older one is believed.
use crate::device::{Buffer, Device, zeroes};
use crate::error::{Error, ErrorKind, Result};
use crate::format::checksum;
use crate::format::geometry::{Geometry, JOURNAL_START, SLOTS};
use crate::format::superblock::{self, Superblock, TableBlock};
use crate::format::table;
use crate::info::Progress;
use crate::limits::{POOL_BYTES_MAX, POOL_BYTES_MIN};
use crate::units::{BLOCK_BYTES, BLOCK_SIZE, Record};

/// Blocks of zeroes written at once.
const PIECE_BLOCKS: u64 = 256;

/// The usual geometry for a pool of `bytes`. `InvalidArgument` if there is none.
pub(crate) fn geometry(bytes: u64, journal: Option<u64>) -> Result<Geometry> {
    let why = if bytes < POOL_BYTES_MIN {
        format!("a pool needs at least {POOL_BYTES_MIN} bytes (64 MiB)")
    } else if bytes > POOL_BYTES_MAX {
        format!("a pool has at most {POOL_BYTES_MAX} bytes (256 TiB)")
    } else {
        let geometry = Geometry::of_pool(bytes / BLOCK_BYTES, journal.map(|j| j / BLOCK_BYTES));
        if geometry.is_sound() && geometry.usable() >= geometry.blocks / 4 {
            return Ok(geometry);
        }
        format!(
            "a journal of {} bytes leaves no room",
            geometry.journal_blocks * BLOCK_BYTES
        )
    };
    Err(Error::new(
        ErrorKind::InvalidArgument,
        format!("{bytes} bytes: {why}"),
    ))
}

/// Writes an empty pool.
pub(crate) async fn format_device(
    device: &dyn Device,
    geometry: Geometry,
    pool_id: [u8; 16],
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<()> {
    let failed = |error| Error::io("writing the new pool", error);
    for slot in SLOTS {
        device
            .write(slot, zeroes(superblock::BYTES))
            .await
            .map_err(failed)?;
    }
    device.flush().await.map_err(failed)?;
    // A journal of holes would cost its file system a commit with every flush.
    let (start, end) = (JOURNAL_START, geometry.base());
    for at in (start..end).step_by(usize::try_from(PIECE_BLOCKS).unwrap_or(1)) {
        let blocks = PIECE_BLOCKS.min(end - at);
        let length = usize::try_from(blocks * BLOCK_BYTES).unwrap_or_default();
        device.write(at, zeroes(length)).await.map_err(failed)?;
        let (done, total) = (
            (at + blocks - start) * BLOCK_BYTES,
            (end - start) * BLOCK_BYTES,
        );
        progress(Progress { done, total });
    }
    let block = table::encode(&[]);
    for index in 0..geometry.table_blocks() {
        let mut buffer = Buffer::new(BLOCK_SIZE);
        buffer.copy_from_slice(&block);
        let place = Geometry::table_place(index, 0);
        device.write(place, buffer.freeze()).await.map_err(failed)?;
    }
    device.flush().await.map_err(failed)?;
    let mut superblock = Superblock {
        pool_id,
        geometry,
        generation: 0,
        clean: true,
        epoch: 0,
        epoch_first: Record(1),
        epoch_previous: 0,
        checkpoints: 0,
        replay_first: Record(1),
        replay_position: 0,
        replay_previous: 0,
        catalogue: None,
        next_id: 1,
        table: vec![
            TableBlock {
                place: 0,
                crc: checksum(&block)
            };
            geometry.table_blocks()
        ],
    };
    for (slot, start) in (0u32..).zip(SLOTS) {
        superblock.generation = u64::from(slot % 2);
        let mut buffer = Buffer::new(superblock::BYTES);
        buffer.copy_from_slice(&superblock.encode(slot));
        device.write(start, buffer.freeze()).await.map_err(failed)?;
    }
    device.flush().await.map_err(failed)
}
