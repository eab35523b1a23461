//! Everything of an open pool that is in memory and changes, behind one short lock.
use crate::allocator::Allocator;
use crate::error::{Error, ErrorKind, Result};
use crate::format::geometry::Geometry;
use crate::journal::Journal;
use crate::readers::Readers;
use crate::scrub::Scrub;
use crate::units::{BLOCK_BYTES, Record};
use crate::versions::{Job, Version, VolumeState};
use std::collections::{BTreeMap, BTreeSet};

/// The state. Every change of it that must survive goes through [`State::apply`].
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) geometry: Geometry,
    pub(crate) allocator: Allocator,
    pub(crate) journal: Journal,
    pub(crate) readers: Readers,
    pub(crate) scrub: Scrub,

    pub(crate) volumes: BTreeMap<u64, VolumeState>,
    pub(crate) names: BTreeMap<String, u64>,
    pub(crate) versions: BTreeMap<u64, Version>,
    pub(crate) jobs: BTreeMap<u64, Job>,
    pub(crate) snapshots: u64,
    /// Volumes with a reservation.
    pub(crate) reserving: BTreeSet<u64>,
    pub(crate) next_id: u64,
    /// Ids whose catalogue entry is not what the last checkpoint froze.
    pub(crate) changed: BTreeSet<u64>,

    /// The last record that a checkpoint froze.
    pub(crate) frozen: Record,
    /// Nodes changed since, and nodes frozen but not yet written.
    pub(crate) dirty_nodes: u64,
    pub(crate) frozen_nodes: u64,
    /// Blocks promised to changes that were admitted and are not published yet.
    pub(crate) promised_data: u64,
    pub(crate) promised_nodes: u64,

    /// Why changes are refused: a failed flush or ordering write, damage, or the end.
    pub(crate) refusal: Option<Error>,
    pub(crate) closing: bool,
    pub(crate) checkpoint_wanted: bool,
    pub(crate) checkpoints: u64,
    /// Changes that wait for space: jobs do not rest while there are any.
    pub(crate) waiting_for_space: u64,
    pub(crate) checksum_errors: u64,
}

impl State {
    /// Errors once changes are refused.
    pub(crate) fn check_writable(&self) -> Result<()> {
        self.refusal.clone().map_or(Ok(()), Err)
    }

    /// The version, or `Gone`.
    pub(crate) fn version(&self, id: u64) -> Result<&Version> {
        self.versions
            .get(&id)
            .ok_or_else(|| Error::new(ErrorKind::Gone, format!("version {id} is deleted")))
    }

    /// The cut of a version's parent from its own parent; 0 without one.
    pub(crate) fn parent_cut(&self, parent: u64) -> Record {
        self.versions
            .get(&parent)
            .map_or(Record(0), |version| version.cut)
    }

    pub(crate) fn fresh_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    /// Blocks that reserved volumes may still ask for: what they do not have to themselves yet.
    pub(crate) fn reserved(&self) -> u64 {
        self.reserved_beside(0)
    }

    /// The same without what `volume` has reserved, which is its own to use.
    pub(crate) fn reserved_beside(&self, volume: u64) -> u64 {
        let others = self.reserving.iter().filter(|id| **id != volume);
        others.map(|id| self.reserved_for(*id)).sum()
    }

    fn reserved_for(&self, volume: u64) -> u64 {
        let head = self
            .volumes
            .get(&volume)
            .and_then(|volume| self.versions.get(&volume.head));
        head.map_or(0, |head| {
            head.size.div_ceil(BLOCK_BYTES).saturating_sub(head.own)
        })
    }

    /// What the next checkpoint itself will need: catalogue blocks and paths, deadlist blocks.
    pub(crate) fn checkpoint_debt(&self) -> u64 {
        // An entry's block, its catalogue leaf, and a last deadlist block, for each changed entry;
        // the upper catalogue nodes, twice, are at most as many again as leaves, plus a path.
        self.changed.len() as u64 * 4 + 32 + self.dead_entries() / 128
    }

    fn dead_entries(&self) -> u64 {
        // Every new deadlist entry came with a freed-or-shared block of some record since the
        // freeze; the log and the journal bound them far better than a walk of all lists would.
        self.journal.changes_since_freeze()
    }
}
