//! From a device to an open pool: newest superblock, catalogue, journal, new epoch.
//!
//! # Order
//! 1. The newest valid superblock, its region table, its catalogue.
//! 2. Unless the pool was closed: the journal's accepted records ([`scan`]), every address they
//!    name marked as claimed *before* any is applied (applying dirties nodes, which allocates), and
//!    then applied in order.
//! 3. The device is flushed: an accepted tail may still be volatile.
//! 4. A superblock with the next epoch, which records the first record it will accept and the hash
//!    before it; a flush. Only then is the pool served, so that a second crash cannot replay what
//!    this recovery cut off.
mod load;
mod replay;
mod scan;

pub(crate) use load::read_superblock;

use crate::cache::NodeCache;
use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::format::superblock::Superblock;
use crate::journal::{Journal, Mark};
use crate::pool::Pool;
use crate::runtime::Clock;
use crate::store::Options;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

impl Pool {
    /// Opens the pool on a device. If damage forbids changes, it is open for reading only, and its
    /// state says why.
    pub(crate) async fn open(
        device: Arc<dyn Device>,
        clock: Arc<dyn Clock>,
        options: Options,
    ) -> Result<Arc<Self>> {
        let superblock = read_superblock(&*device).await?;
        let pool = Self::unrecovered(device, clock, options, superblock.clone()).await?;
        pool.load_catalogue(&superblock).await?;
        let mark = Mark {
            first: superblock.replay_first,
            position: superblock.replay_position,
            previous: superblock.replay_previous,
        };
        let (mark, damage) = if superblock.clean {
            (mark, None)
        } else {
            let found = pool.scan_journal(&superblock).await?;
            let damage = found.damage.clone();
            (pool.replay(found).await?, damage)
        };
        pool.begin_epoch(superblock, mark, damage).await?;
        Ok(Arc::new(pool))
    }

    async fn unrecovered(
        device: Arc<dyn Device>,
        clock: Arc<dyn Clock>,
        options: Options,
        superblock: Superblock,
    ) -> Result<Self> {
        let state = load::empty_state(&*device, &superblock).await?;
        Ok(Self {
            device,
            clock,
            state: Mutex::new(state),
            cache: NodeCache::new(options.cache_bytes_max),
            options,
            id: superblock.pool_id,
            geometry: superblock.geometry,
            flushes: AtomicU64::new(0),
            committed: event_listener::Event::new(),
            room: event_listener::Event::new(),
            checkpoint_work: event_listener::Event::new(),
            job_work: event_listener::Event::new(),
            scrub_work: event_listener::Event::new(),
            commit_work: event_listener::Event::new(),
            edges: crate::edges::Edges::default(),
            superblock: Mutex::new(superblock),
        })
    }

    async fn begin_epoch(
        &self,
        mut superblock: Superblock,
        mark: Mark,
        damage: Option<String>,
    ) -> Result<()> {
        let ring = superblock.geometry.journal_blocks;
        let epoch = superblock.epoch + 1;
        let tail = superblock.replay_position;
        self.state.lock().journal = Journal::new(self.id, epoch, ring, tail, mark);
        if let Some(damage) = damage {
            tracing::error!("{damage}; the pool is open for reading only");
            self.state.lock().refusal = Some(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "{damage}; the pool is open for reading only: copy what is needed out of it"
                ),
            ));
            return Ok(());
        }
        self.flush_device().await?;
        superblock.generation += 1;
        superblock.clean = false;
        superblock.epoch = epoch;
        superblock.epoch_first = mark.first;
        superblock.epoch_previous = mark.previous;
        self.write_superblock(&superblock).await?;
        *self.superblock.lock() = superblock;
        Ok(())
    }

    /// Says in the superblock that there is nothing to replay: the last act of an orderly close.
    pub(crate) async fn write_clean(&self) -> Result<()> {
        let mut superblock = self.superblock.lock().clone();
        superblock.generation += 1;
        superblock.clean = true;
        self.write_superblock(&superblock).await
    }
}
