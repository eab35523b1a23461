//! The checkpoint: everything changed since the last one reaches its place, and the journal's tail
//! moves, while writers go on.
//!
//! # Order
//! 1. *Freeze* at the last record's boundary, under the lock, without I/O ([`freeze`]).
//! 2. The frozen record is committed; nodes, deadlists, catalogue, bitmaps and region table are
//!    written, in that order of computation, each to blocks that no durable state refers to.
//! 3. One device flush: I8, a superblock references only what is durable.
//! 4. The superblock, twice; a flush.
//! 5. The tail moves; once the readers of before the freeze are done, freed blocks are free.
//!
//! The checkpoint never waits for writers. What it needs itself was charged to the changes that
//! made it necessary (`State::checkpoint_debt`).
mod bitmaps;
mod catalogue;
mod freeze;
mod lists;
mod nodes;

pub(crate) use bitmaps::read_bitmap;
pub(crate) use catalogue::read_catalogue;
use freeze::Frozen;

use crate::allocator::{Allocator, Log, Short};
use crate::error::{Error, ErrorKind, Result};
use crate::format::geometry::SLOTS;
use crate::format::superblock::Superblock;
use crate::mapping::Root;
use crate::pool::Pool;

impl Pool {
    /// Takes a checkpoint; only one runs at a time, in the checkpointer's task. Any failure poisons
    /// the pool, for what was freed and frozen cannot be taken back.
    pub(crate) async fn checkpoint(&self) -> Result<()> {
        let result = self.checkpoint_steps().await;
        if let Err(error) = &result {
            let message = std::io::Error::other(error.to_string());
            self.poison("a checkpoint", &message);
        }
        self.room.notify(usize::MAX);
        self.job_work.notify(usize::MAX);
        result
    }

    async fn checkpoint_steps(&self) -> Result<()> {
        let (frozen, departed) = self.freeze()?;
        self.commit(frozen.record).await?;
        let Frozen {
            record,
            mark,
            next_id,
            entries,
            mut log,
        } = frozen;

        self.write_nodes(&entries).await?;
        self.write_lists(&entries, record, &mut log).await?;
        let catalogue = self.write_catalogue(&entries, record, &mut log).await?;
        let settled = self.write_bitmaps(&log).await?;

        let mut superblock = self.superblock.lock().clone();
        self.write_table(&mut superblock, &settled).await?;
        superblock.generation += 1;
        superblock.checkpoints += 1;
        superblock.clean = false;
        superblock.replay_first = mark.first;
        superblock.replay_position = mark.position;
        superblock.replay_previous = mark.previous;
        superblock.catalogue = catalogue;
        superblock.next_id = next_id;
        self.flush_device().await?;
        self.write_superblock(&superblock).await?;

        // Everything frozen is durable: what was kept in memory for it may go.
        for entry in &entries {
            if let Some(Root::Memory(node)) = entry.root() {
                self.cache.keep_tree(node);
            }
        }
        {
            let mut state = self.state.lock();
            state.journal.move_tail(mark);
            state.frozen_nodes = 0;
            state.checkpoints = superblock.checkpoints;
            for entry in &entries {
                state.forget_root(entry);
            }
        }
        *self.superblock.lock() = superblock;
        self.room.notify(usize::MAX);

        departed.wait().await;
        let mut state = self.state.lock();
        for (region, entry) in settled {
            let deltas = log.remove(&region).unwrap_or_default();
            state.allocator.settle(region, entry, &deltas);
        }
        state.allocator.settled();
        state.frozen_debt = 0;
        state.allocator.evict(self.options.bitmaps_max());
        Ok(())
    }

    /// Writes a generation of the superblock to its two slots, and makes it durable.
    pub(crate) async fn write_superblock(&self, superblock: &Superblock) -> Result<()> {
        let pair = u32::try_from(superblock.generation % 2).unwrap_or_default();
        for slot in [pair, pair + 2] {
            let bytes = superblock.encode(slot);
            self.write_ordered("a superblock write", SLOTS[slot as usize], bytes)
                .await?;
        }
        self.flush_device().await
    }

    /// Makes a change of the allocator that belongs to the frozen state, after filling the stock of
    /// metadata blocks up to `blocks`.
    async fn allocate_frozen(
        &self,
        log: &mut Log,
        blocks: u64,
        mut change: impl FnMut(&mut Allocator),
    ) -> Result<()> {
        loop {
            let short = {
                let mut state = self.state.lock();
                let promised = state.promised_nodes;
                match state.allocator.stock_metadata(promised + blocks) {
                    Ok(()) => {
                        state
                            .allocator
                            .freeze_more(log, |allocator| change(allocator));
                        return Ok(());
                    }
                    Err(short) => short,
                }
            };
            match short {
                Short::Load(region) => self.load_region(region).await?,
                Short::Full => {
                    let message = "no block is left for the checkpoint itself";
                    return Err(Error::new(ErrorKind::NoSpace, message));
                }
            }
        }
    }
}
