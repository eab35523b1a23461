//! Everything of an open pool that is in memory and changes, behind one short lock.
use crate::allocator::Allocator;
use crate::error::{Error, ErrorKind, Result};
use crate::format::geometry::Geometry;
use crate::journal::Journal;
use crate::limits::{CATALOGUE_ENTRIES, DEADLIST_ENTRIES, LEVEL_MAX};
use crate::readers::Readers;
use crate::scrub::Scrub;
use crate::units::{BLOCK_BYTES, Record};
use crate::versions::{Job, Version, VolumeState};
use std::collections::{BTreeMap, BTreeSet};

/// Blocks by which a checkpoint fills its stock of metadata blocks, of both copies, beyond need.
const DEBT_SLACK: u64 = 2 * 17;

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
    /// Entries appended to deadlists since the last freeze.
    pub(crate) dead_new: u64,
    /// What the checkpoint in progress may still need.
    pub(crate) frozen_debt: u64,
    /// Deadlist blocks that the jobs there are may still fill.
    pub(crate) job_debt: u64,
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
        head.map_or(0, |head| reservation(head.size).saturating_sub(head.own))
    }

    /// What the next checkpoint itself will need at most: deadlist blocks, of which the last of
    /// each list is not full, catalogue blocks, and the catalogue's nodes above them.
    pub(crate) fn checkpoint_debt(&self) -> u64 {
        let changed = self.changed.len() as u64;
        let lists = self.dead_new / DEADLIST_ENTRIES as u64 + self.dead_new.min(changed);
        let all_blocks = self.next_id / CATALOGUE_ENTRIES + 1;
        let blocks = changed.min(all_blocks);
        let mut nodes = 0;
        for level in 0..=LEVEL_MAX {
            let span = self.geometry.span(level);
            nodes += blocks.min(all_blocks / span + 1) * if level > 0 { 2 } else { 1 };
            if span >= all_blocks {
                break;
            }
        }
        lists + blocks + nodes + DEBT_SLACK
    }

    /// Counts anew what jobs may still append to deadlists.
    pub(crate) fn count_job_debt(&mut self) {
        self.job_debt = self.jobs.values().map(Job::debt).sum();
    }
}

/// Blocks to set aside for a volume of so many bytes: its data, its mapping at the usual fanout
/// (a leaf for 252 blocks, and the few nodes above, twice), and what one write asks for beyond.
pub(crate) fn reservation(bytes: u64) -> u64 {
    let blocks = bytes.div_ceil(BLOCK_BYTES);
    blocks + blocks / 200 + 256
}
