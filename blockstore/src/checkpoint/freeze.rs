//! The freeze: what a checkpoint will write, taken at one instant.
use crate::allocator::Log;
use crate::error::Result;
use crate::format::entry::{Entry, Output, VersionEntry};
use crate::format::pointer::Packed;
use crate::journal::Mark;
use crate::mapping::Root;
use crate::pool::Pool;
use crate::readers::Departed;
use crate::state::State;
use crate::units::Record;
use crate::versions::{Deadlist, FrozenDeadlist, Job, Version, VolumeState};
use std::sync::Arc;

/// The frozen state: what differs from the last checkpoint's.
#[derive(Debug)]
pub(crate) struct Frozen {
    /// The last record that is in it.
    pub(crate) record: Record,
    pub(crate) mark: Mark,
    pub(crate) next_id: u64,
    pub(crate) entries: Vec<FrozenEntry>,
    pub(crate) log: Log,
}

/// A catalogue entry that changed; `content` is `None` if it is gone.
#[derive(Debug)]
pub(crate) struct FrozenEntry {
    pub(crate) id: u64,
    pub(crate) content: Option<Content>,
}

/// The new content of an entry.
#[derive(Debug)]
pub(crate) enum Content {
    Volume {
        name: String,
        origin: String,
        head: u64,
        created: u64,
        reserved: bool,
    },
    Version {
        entry: VersionEntry,
        root: Root,
        list: Chain,
    },
    Walk {
        root: Root,
        cut: Record,
        cursor: u64,
        output: Output,
    },
    Filter {
        cut: Record,
        list: Chain,
        count: u64,
        output: Output,
    },
}

/// A deadlist's chain: as it is on disk, or as it must be written.
#[derive(Debug, Clone)]
pub(crate) enum Chain {
    Stored(Packed),
    New(Arc<FrozenDeadlist>),
}

impl Chain {
    fn freeze(list: &mut Deadlist) -> Self {
        let stored = list.chain();
        match list.freeze() {
            Some(frozen) => Self::New(frozen),
            None => Self::Stored(stored.unwrap_or_default()),
        }
    }

    /// The chain's last block, once written.
    pub(crate) fn written(&self) -> Packed {
        match self {
            Self::Stored(chain) => *chain,
            Self::New(frozen) => frozen.written.get().copied().unwrap_or_default(),
        }
    }
}

impl FrozenEntry {
    /// The mapping under it.
    pub(crate) fn root(&self) -> Option<&Root> {
        match self.content.as_ref()? {
            Content::Version { root, .. } | Content::Walk { root, .. } => Some(root),
            Content::Volume { .. } | Content::Filter { .. } => None,
        }
    }

    /// The list under it that must be written.
    pub(crate) fn new_list(&self) -> Option<&Arc<FrozenDeadlist>> {
        match self.content.as_ref()? {
            Content::Version {
                list: Chain::New(list),
                ..
            }
            | Content::Filter {
                list: Chain::New(list),
                ..
            } => Some(list),
            _ => None,
        }
    }
}

/// The 512 bytes of an entry all of whose nodes and lists are written.
pub(crate) fn encode_entry(entry: &FrozenEntry) -> Vec<u8> {
    let stored = |root: &Root| match root {
        Root::Empty => None,
        Root::Stored(stored) => Some(*stored),
        Root::Memory(node) => node.stored(),
    };
    let content = match &entry.content {
        None => return vec![0; crate::limits::CATALOGUE_ENTRY_BYTES],
        Some(Content::Volume {
            name,
            origin,
            head,
            created,
            reserved,
        }) => Entry::Volume {
            name: name.clone(),
            origin: origin.clone(),
            head: *head,
            created: *created,
            reserved: *reserved,
        },
        Some(Content::Version { entry, root, list }) => Entry::Version(VersionEntry {
            root: stored(root),
            chain: list.written(),
            ..entry.clone()
        }),
        Some(Content::Walk {
            root,
            cut,
            cursor,
            output,
        }) => Entry::Walk {
            root: stored(root),
            cut: *cut,
            cursor: *cursor,
            output: *output,
        },
        Some(Content::Filter {
            cut,
            list,
            count,
            output,
        }) => Entry::Filter {
            cut: *cut,
            chain: list.written(),
            count: *count,
            output: *output,
        },
    };
    content.encode(entry.id)
}

impl Pool {
    /// Freezes the state at the last record's boundary.
    pub(super) fn freeze(&self) -> Result<(Frozen, Departed)> {
        let mut state = self.state.lock();
        state.check_writable()?;
        state.journal.seal();
        let record = state.journal.last_sealed();
        state.frozen_debt = state.checkpoint_debt();
        state.dead_new = 0;
        let changed = std::mem::take(&mut state.changed);
        let entries = changed
            .into_iter()
            .map(|id| state.freeze_entry(id))
            .collect();
        state.frozen = record;
        state.frozen_nodes += std::mem::take(&mut state.dirty_nodes);
        state.checkpoint_wanted = false;
        let frozen = Frozen {
            record,
            mark: state.journal.freeze(),
            next_id: state.next_id,
            entries,
            log: state.allocator.freeze(),
        };
        Ok((frozen, state.readers.turn()))
    }
}

impl State {
    fn freeze_entry(&mut self, id: u64) -> FrozenEntry {
        let content = if let Some(volume) = self.volumes.get(&id) {
            Some(freeze_volume(volume))
        } else if let Some(version) = self.versions.get_mut(&id) {
            Some(freeze_version(version))
        } else {
            self.jobs.get_mut(&id).map(freeze_job)
        };
        FrozenEntry { id, content }
    }

    /// What was frozen and is not changed since is found on disk from now on.
    pub(super) fn forget_root(&mut self, entry: &FrozenEntry) {
        let Some(Root::Memory(frozen)) = entry.root() else {
            return;
        };
        let root = match (
            self.versions.get_mut(&entry.id),
            self.jobs.get_mut(&entry.id),
        ) {
            (Some(version), _) => &mut version.root,
            (None, Some(Job::Walk { root, .. })) => root,
            _ => return,
        };
        let Root::Memory(node) = root else { return };
        if let Some(stored) = node.stored().filter(|_| Arc::ptr_eq(node, frozen)) {
            *root = Root::Stored(stored);
        } else if let Some(changed) = Arc::get_mut(node) {
            changed.forget_written();
        }
    }
}

fn freeze_volume(volume: &VolumeState) -> Content {
    Content::Volume {
        name: volume.name.clone(),
        origin: volume.origin.clone(),
        head: volume.head,
        created: volume.created,
        reserved: volume.reserved,
    }
}

fn freeze_version(version: &mut Version) -> Content {
    let entry = VersionEntry {
        kind: version.kind,
        volume: version.volume,
        name: version.name.clone(),
        size: version.size,
        created: version.created,
        root: None,
        parent: version.parent,
        cut: version.cut,
        own: version.own,
        dead_own: version.dead_own,
        chain: Packed::HOLE,
        dead: version.dead.count(),
    };
    let list = Chain::freeze(&mut version.dead);
    Content::Version {
        entry,
        root: version.root.clone(),
        list,
    }
}

fn freeze_job(job: &mut Job) -> Content {
    match job {
        Job::Walk {
            root,
            cut,
            cursor,
            output,
        } => Content::Walk {
            root: root.clone(),
            cut: *cut,
            cursor: *cursor,
            output: *output,
        },
        Job::Filter { cut, list, output } => Content::Filter {
            cut: *cut,
            count: list.count(),
            list: Chain::freeze(list),
            output: *output,
        },
    }
}
