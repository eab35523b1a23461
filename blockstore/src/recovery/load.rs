//! What the newest superblock refers to, brought into memory.
use crate::allocator::Allocator;
use crate::checkpoint::read_catalogue;
use crate::device::{Buffer, Device};
use crate::error::{Error, ErrorKind, Result};
use crate::format::checksum;
use crate::format::entry::{Entry, Kind, VersionEntry};
use crate::format::geometry::{Geometry, SLOTS};
use crate::format::superblock::{self, Superblock};
use crate::format::table::{RegionEntry, decode};
use crate::journal::{Journal, Mark};
use crate::mapping::Root;
use crate::pool::Pool;
use crate::readers::Readers;
use crate::state::State;
use crate::units::{BLOCK_BYTES, BLOCK_SIZE, Record};
use crate::versions::{Deadlist, Job, Version, VolumeState};
use std::collections::{BTreeMap, BTreeSet};

/// The valid superblock of the highest generation.
pub(crate) async fn read_superblock(device: &dyn Device) -> Result<Superblock> {
    let mut newest: Option<Superblock> = None;
    let mut why = None;
    for (slot, start) in (0u32..).zip(SLOTS) {
        if start + 2 > device.blocks() {
            continue;
        }
        let (buffer, read) = device.read(start, Buffer::new(superblock::BYTES)).await;
        let decoded = read
            .map_err(|error| Error::io(format!("reading superblock {slot}"), error))
            .and_then(|()| Superblock::decode(&buffer, slot));
        match decoded {
            Ok(found)
                if newest
                    .as_ref()
                    .is_none_or(|n| n.generation < found.generation) =>
            {
                newest = Some(found);
            }
            Ok(_) => {}
            Err(error) => {
                // What says most about why the pool cannot be opened.
                let tells_more = error.kind() == ErrorKind::Unsupported;
                if why.is_none() || tells_more {
                    why = Some(error);
                }
            }
        }
    }
    let Some(newest) = newest else {
        return Err(why
            .unwrap_or_else(|| Error::new(ErrorKind::Corrupt, "too small to hold a Basalt pool")));
    };
    let (needs, has) = (newest.geometry.blocks, device.blocks());
    if has < needs {
        let (needs, has) = (needs * BLOCK_BYTES, has * BLOCK_BYTES);
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "the pool is truncated: it has {needs} bytes, of which {has} are there; nothing \
                 was changed: restore the rest"
            ),
        ));
    }
    Ok(newest)
}

async fn read_table(device: &dyn Device, superblock: &Superblock) -> Result<Vec<RegionEntry>> {
    let mut entries = Vec::new();
    for (index, block) in superblock.table.iter().enumerate() {
        let start = Geometry::table_place(index, block.place);
        let (buffer, read) = device.read(start, Buffer::new(BLOCK_SIZE)).await;
        read.map_err(|error| Error::io(format!("reading region table block {index}"), error))?;
        let decoded = (checksum(&buffer) == block.crc)
            .then(|| decode(&buffer))
            .flatten();
        entries.extend(decoded.ok_or_else(|| {
            Error::new(
                ErrorKind::Corrupt,
                format!("region table block {index} is damaged"),
            )
        })?);
    }
    let room = |region: usize| {
        let overhead = superblock.geometry.bitmap_blocks() * 2;
        u64::from(superblock.geometry.region_len(region)).saturating_sub(overhead)
    };
    entries.truncate(superblock.geometry.regions());
    if entries
        .iter()
        .enumerate()
        .any(|(region, entry)| u64::from(entry.used) > room(region))
    {
        return Err(Error::new(
            ErrorKind::Corrupt,
            "the region table counts more than there is",
        ));
    }
    Ok(entries)
}

/// The state of a checkpoint, without its catalogue.
pub(super) async fn empty_state(device: &dyn Device, superblock: &Superblock) -> Result<State> {
    let table = read_table(device, superblock).await?;
    let geometry = superblock.geometry;
    let mark = Mark {
        first: superblock.replay_first,
        position: superblock.replay_position,
        previous: superblock.replay_previous,
    };
    let ring = geometry.journal_blocks;
    Ok(State {
        geometry,
        allocator: Allocator::new(geometry, &table),
        journal: Journal::new(
            superblock.pool_id,
            superblock.epoch,
            ring,
            mark.position,
            mark,
        ),
        readers: Readers::default(),
        scrub: crate::scrub::Scrub::default(),
        volumes: BTreeMap::new(),
        names: BTreeMap::new(),
        versions: BTreeMap::new(),
        jobs: BTreeMap::new(),
        snapshots: 0,
        reserving: BTreeSet::new(),
        next_id: superblock.next_id,
        changed: BTreeSet::new(),
        frozen: Record(superblock.replay_first.0.saturating_sub(1)),
        dirty_nodes: 0,
        frozen_nodes: 0,
        dead_new: 0,
        frozen_debt: 0,
        job_debt: 0,
        promised_data: 0,
        promised_nodes: 0,
        refusal: None,
        closing: false,
        checkpoint_wanted: false,
        checkpoints: superblock.checkpoints,
        waiting_for_space: 0,
        checksum_errors: 0,
    })
}

impl Pool {
    pub(super) async fn load_catalogue(&self, superblock: &Superblock) -> Result<()> {
        read_catalogue(self, superblock.catalogue, |id, entry| {
            self.state.lock().load_entry(id, entry);
            Ok(())
        })
        .await?;
        self.state.lock().link_entries()
    }
}

impl State {
    fn load_entry(&mut self, id: u64, entry: Entry) {
        match entry {
            Entry::Volume {
                name,
                origin,
                head,
                created,
                reserved,
            } => {
                self.names.insert(name.clone(), id);
                if reserved {
                    self.reserving.insert(id);
                }
                let snapshots = BTreeMap::new();
                let volume = VolumeState {
                    name,
                    origin,
                    head,
                    created,
                    reserved,
                    snapshots,
                    writers: 0,
                };
                self.volumes.insert(id, volume);
            }
            Entry::Version(entry) => {
                self.versions.insert(id, loaded_version(entry));
            }
            Entry::Walk {
                root,
                cut,
                cursor,
                output,
            } => {
                let root = Root::from_stored(root);
                self.jobs.insert(
                    id,
                    Job::Walk {
                        root,
                        cut,
                        cursor,
                        output,
                    },
                );
            }
            Entry::Filter {
                cut,
                chain,
                count,
                output,
            } => {
                let list = Deadlist::from_stored(chain, count);
                self.jobs.insert(id, Job::Filter { cut, list, output });
            }
        }
    }

    /// What entries say of each other, the other way round.
    fn link_entries(&mut self) -> Result<()> {
        let damaged =
            |what: String| Error::new(ErrorKind::Corrupt, format!("the catalogue: {what}"));
        let links: Vec<_> = self
            .versions
            .iter()
            .map(|(id, v)| (*id, v.parent, v.volume, v.kind, v.name.clone()))
            .collect();
        for (id, parent, volume, kind, name) in links {
            if parent != 0 {
                let parent = self.versions.get_mut(&parent);
                let parent =
                    parent.ok_or_else(|| damaged(format!("version {id} has no parent")))?;
                parent.children.push(id);
            }
            if kind == Kind::Snapshot {
                let volume = self.volumes.get_mut(&volume);
                let volume =
                    volume.ok_or_else(|| damaged(format!("snapshot {id} has no volume")))?;
                volume.snapshots.insert(name, id);
                self.snapshots += 1;
            }
        }
        let headless = self
            .volumes
            .iter()
            .find(|(_, volume)| volume.head != 0 && !self.versions.contains_key(&volume.head));
        headless.map_or(Ok(()), |(id, _)| {
            Err(damaged(format!("volume {id} has lost its head")))
        })
    }
}

fn loaded_version(entry: VersionEntry) -> Version {
    Version {
        kind: entry.kind,
        volume: entry.volume,
        name: entry.name,
        size: entry.size,
        created: entry.created,
        root: Root::from_stored(entry.root),
        parent: entry.parent,
        cut: entry.cut,
        children: Vec::new(),
        own: entry.own,
        dead: Deadlist::from_stored(entry.chain, entry.dead),
        dead_own: entry.dead_own,
    }
}
