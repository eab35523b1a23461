//! Admission: a change is let in once all it may need is promised to it.
//!
//! A change is promised room in the journal, fresh blocks for its data, and the worst case of
//! mapping nodes, before it begins; so that publishing it, later and without I/O, cannot fail for
//! want of anything. Nobody waits here while holding a reader's gate.
use crate::allocator::{Extent, Short};
use crate::checkpoint::read_bitmap;
use crate::error::{Error, ErrorKind, Result};
use crate::journal::Journal;
use crate::pool::Pool;
use crate::state::State;
use event_listener::EventListener;
use std::time::Duration;

/// Blocks that a write leaves free, at least and at most; a 32nd of the pool in between.
const SLOP_BLOCKS: std::ops::RangeInclusive<u64> = 512..=1 << 20;
/// Checkpoints that a change waits for space before it fails.
const SHORTAGES_MAX: u32 = 16;
/// Fill of the journal, in thousandths, from which on writers are slowed down.
const FILL_SLOW: u64 = 700;
/// The longest time that slowing a write takes.
const SLOW_MAX: Duration = Duration::from_millis(10);

/// Who asks, which says how much of the last space it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// A write: stops at the whole reserve.
    Write,
    /// A trim, which gives space back: may use three quarters of the reserve.
    Release,
    /// A deletion: may use all of it, and waits for the checkpoint that refills it.
    Delete,
}

/// What a change may need.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    /// The volume, for its write point and reservation.
    pub(crate) volume: u64,
    /// Bytes of the change as encoded.
    pub(crate) journal_bytes: usize,
    pub(crate) data: u32,
    /// Mapping nodes, at worst.
    pub(crate) nodes: u64,
    /// Blocks that the next checkpoint may need for it: deadlist and catalogue blocks.
    pub(crate) spare: u64,
    pub(crate) urgency: Urgency,
}

/// What an admitted change was promised; given back when it is published or dropped.
#[derive(Debug)]
pub(crate) struct Promise<'a> {
    pool: &'a Pool,
    journal: u64,
    data: u64,
    nodes: u64,
    /// Blocks claimed for the data; whoever publishes or gives them back takes them out.
    pub(crate) extents: Vec<Extent>,
    /// A write to them may have begun.
    pub(crate) written: bool,
}

impl Promise<'_> {
    /// Settles the promise within the lock that publishes the change.
    pub(crate) fn redeem(&mut self, state: &mut State) {
        state.journal.unpromise(std::mem::take(&mut self.journal));
        state.promised_data -= std::mem::take(&mut self.data);
        state.promised_nodes -= std::mem::take(&mut self.nodes);
        self.extents.clear();
    }
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        if self.journal + self.data + self.nodes == 0 && self.extents.is_empty() {
            return;
        }
        let mut state = self.pool.state.lock();
        for extent in std::mem::take(&mut self.extents) {
            if self.written {
                state.allocator.abandon(extent);
            } else {
                state.allocator.unclaim(extent);
            }
        }
        self.redeem(&mut state);
    }
}

/// Why a change is not let in yet.
enum Wait {
    Load(usize),
    /// For a moment, as the journal is this full, in thousandths.
    Slow(u64),
    /// Until a checkpoint made room in journal or memory.
    Room,
    Space,
}

/// One attempt to be let in.
enum Attempt<'a> {
    Admitted(Promise<'a>),
    /// The listener hears of room that is made from now on.
    Wait(Wait, EventListener),
}

impl State {
    fn slop(&self) -> u64 {
        (self.allocator.usable() / 32).clamp(*SLOP_BLOCKS.start(), *SLOP_BLOCKS.end())
    }

    /// Blocks that a change of this urgency for this volume may still take.
    pub(crate) fn available(&self, urgency: Urgency, volume: u64) -> u64 {
        let kept = match urgency {
            Urgency::Write => self.slop() + self.reserved_beside(volume),
            Urgency::Release => self.slop() / 4,
            Urgency::Delete => return self.left_for_jobs(),
        };
        self.left_for_jobs().saturating_sub(self.job_debt + kept)
    }

    /// Blocks that are neither used nor spoken for, down to the last: deletions and their jobs draw
    /// on them, and wait for a checkpoint when they run out.
    pub(crate) fn left_for_jobs(&self) -> u64 {
        let promised = self.promised_data + self.promised_nodes * 2;
        let debt = self.checkpoint_debt() + self.frozen_debt;
        self.allocator.free().saturating_sub(promised + debt)
    }

    fn try_admit(&mut self, need: &Need, dirty_max: u64) -> std::result::Result<Vec<Extent>, Wait> {
        if self.dirty_nodes + self.frozen_nodes + self.promised_nodes > dirty_max
            && need.urgency == Urgency::Write
        {
            return Err(Wait::Room);
        }
        // A node may need two copies.
        let blocks = u64::from(need.data) + need.nodes * 2 + need.spare;
        if self.available(need.urgency, need.volume) < blocks {
            return Err(Wait::Space);
        }
        let wait = |short| match short {
            Short::Load(region) => Wait::Load(region),
            Short::Full => Wait::Space,
        };
        self.allocator
            .stock_metadata(self.promised_nodes + need.nodes)
            .map_err(wait)?;
        let journal = Journal::need(need.journal_bytes);
        if !self
            .journal
            .promise(journal, need.urgency != Urgency::Write)
        {
            return Err(Wait::Room);
        }
        let claimed = self
            .allocator
            .claim_data(need.volume, need.data)
            .map_err(wait);
        if claimed.is_err() {
            self.journal.unpromise(journal);
        } else {
            self.promised_data += u64::from(need.data) + need.spare;
            self.promised_nodes += need.nodes;
        }
        claimed
    }

    /// Whether space may come back without anybody deleting more.
    fn space_is_coming(&self) -> bool {
        self.checkpoint_gives_space() || !self.jobs.is_empty()
    }

    /// A checkpoint frees blocks, or does not need all that is set aside for it.
    pub(crate) fn checkpoint_gives_space(&self) -> bool {
        self.allocator.gated() > 0 || !self.changed.is_empty() || self.frozen_debt > 0
    }
}

impl Pool {
    /// Lets a change in, waiting for room and, within bounds, for space. `NoSpace` if there is
    /// none.
    pub(crate) async fn admit(&self, need: Need) -> Result<Promise<'_>> {
        let mut shortages = 0;
        let mut slowed = need.urgency != Urgency::Write;
        loop {
            let (wait, room) = match self.attempt(&need, shortages, slowed)? {
                Attempt::Admitted(promise) => return Ok(promise),
                Attempt::Wait(wait, room) => (wait, room),
            };
            match wait {
                Wait::Load(region) => self.load_region(region).await?,
                Wait::Slow(fill) => {
                    slowed = true;
                    self.slow_down(fill).await;
                }
                Wait::Room => {
                    self.want_checkpoint();
                    room.await;
                }
                Wait::Space => {
                    shortages += 1;
                    self.want_checkpoint();
                    self.job_work.notify(usize::MAX);
                    room.await;
                    self.state.lock().waiting_for_space -= 1;
                }
            }
        }
    }

    fn attempt(&self, need: &Need, shortages: u32, slowed: bool) -> Result<Attempt<'_>> {
        let mut state = self.state.lock();
        state.check_writable()?;
        let fill = state.journal.fill();
        if fill > FILL_SLOW && !slowed {
            return Ok(Attempt::Wait(Wait::Slow(fill), self.room.listen()));
        }
        let wait = match state.try_admit(need, self.options.dirty_nodes_max()) {
            Err(wait) => wait,
            Ok(extents) => {
                return Ok(Attempt::Admitted(Promise {
                    pool: self,
                    journal: Journal::need(need.journal_bytes),
                    data: u64::from(need.data) + need.spare,
                    nodes: need.nodes,
                    extents,
                    written: false,
                }));
            }
        };
        if matches!(wait, Wait::Space) {
            if shortages == SHORTAGES_MAX || !state.space_is_coming() {
                let message = "the pool is full: delete volumes or snapshots, or trim";
                return Err(Error::new(ErrorKind::NoSpace, message));
            }
            state.waiting_for_space += 1;
        }
        Ok(Attempt::Wait(wait, self.room.listen()))
    }

    /// Slows a write in proportion to how full the journal is, so that nobody hits its end hard.
    async fn slow_down(&self, fill: u64) {
        self.want_checkpoint();
        let part = u32::try_from((fill.min(1000) - FILL_SLOW) * 100 / (1000 - FILL_SLOW));
        self.clock.sleep(SLOW_MAX * part.unwrap_or(100) / 100).await;
    }

    /// Makes a region's bitmap available to the allocator.
    pub(crate) async fn load_region(&self, region: usize) -> Result<()> {
        loop {
            let (entry, geometry) = {
                let state = self.state.lock();
                if state.allocator.is_loaded(region) {
                    return Ok(());
                }
                (state.allocator.entry(region), state.geometry)
            };
            let bitmap = read_bitmap(&*self.device, &geometry, region, entry).await;
            let mut state = self.state.lock();
            if state.allocator.entry(region) != entry {
                continue; // a checkpoint wrote another copy meanwhile
            }
            state.allocator.load(region, &bitmap?);
            return Ok(());
        }
    }
}
