//! Versions of volumes, what they share, and how deleting them gives space back.
//!
//! Every version has at most one parent and the cut at which it left it. A block or node is shared
//! if its birth is at or before the cut of the version that leads to it. Releasing an unshared one
//! frees it; releasing a shared one appends it to the version's deadlist. There are no reference
//! counts anywhere.
//!
//! # Invariants
//! * I4: a snapshot's tree never changes: [`ground::VersionGround`] copies what is shared.
//! * I9: a node born at or before a cut of its lineage holds nothing born after that cut.
//! * I10: a deadlist entry's block is referenced by an ancestor and by no newer version on the same
//!   branch; what a job has not reached yet counts as the job's.
mod apply;
mod deadlist;
mod feed;
pub(crate) mod ground;
mod reap;

pub(crate) use apply::SMALL_UNMAP_LEAVES;
pub(crate) use deadlist::{Deadlist, FrozenDeadlist};

pub(crate) use crate::format::entry::{Kind, Output};
use crate::limits::DEADLIST_ENTRIES;
use crate::mapping::Root;
use crate::units::Record;
use std::collections::BTreeMap;

/// A volume: a name, and the versions under it.
#[derive(Clone, Debug)]
pub(crate) struct VolumeState {
    pub(crate) name: String,
    pub(crate) origin: String,
    /// The head's id; 0 once the volume is deleted and only its snapshots remain.
    pub(crate) head: u64,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) reserved: bool,
    pub(crate) snapshots: BTreeMap<String, u64>,
    /// Open handles that may write.
    pub(crate) writers: u64,
}

/// One content of a volume.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    pub(crate) kind: Kind,
    pub(crate) volume: u64,
    pub(crate) name: String,
    /// Bytes.
    pub(crate) size: u64,
    pub(crate) created: u64,
    pub(crate) root: Root,
    /// 0: none.
    pub(crate) parent: u64,
    pub(crate) cut: Record,
    pub(crate) children: Vec<u64>,
    /// Blocks of the tree, nodes' copies included, born after the cut; and what jobs still have
    /// to free of what was the version's, or its former parent's, own.
    pub(crate) own: u64,
    pub(crate) dead: Deadlist,
    /// Entries of the deadlist born after the parent's own cut: what deleting the parent frees. At
    /// least: when the parent takes over an older cut, what that adds is not known without a walk.
    pub(crate) dead_own: u64,
}

/// Work that goes on in the background, in bounded steps.
#[derive(Clone, Debug)]
pub(crate) enum Job {
    /// Frees a tree that no version leads to: what was born after `cut` is freed, the rest is
    /// passed on. Everything before block `cursor` is done.
    Walk {
        root: Root,
        cut: Record,
        cursor: u64,
        output: Output,
    },
    /// Frees the entries born after `cut` and passes the others on.
    Filter {
        cut: Record,
        list: Deadlist,
        output: Output,
    },
}

impl Job {
    pub(crate) fn output(&self) -> Output {
        match self {
            Self::Walk { output, .. } | Self::Filter { output, .. } => *output,
        }
    }

    /// Deadlist blocks that it may fill.
    pub(crate) fn debt(&self) -> u64 {
        if self.output() == Output::Discard {
            return 0;
        }
        let entries = match self {
            Self::Walk { cut: Record(0), .. } => return 0, // nothing is shared
            Self::Walk { root, .. } => root.count(),
            Self::Filter { list, .. } => list.count(),
        };
        entries / DEADLIST_ENTRIES as u64 + 1
    }

    pub(crate) fn set_output(&mut self, to: Output) {
        match self {
            Self::Walk { output, .. } | Self::Filter { output, .. } => *output = to,
        }
    }
}
