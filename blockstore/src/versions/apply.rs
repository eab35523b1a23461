//! Changes take effect here, the same way when they are made and when they are replayed.
use super::ground::VersionGround;
use super::{Deadlist, Job, Kind, Output, Version, VolumeState};
use crate::allocator::Extent;
use crate::cache::NodeSource;
use crate::error::{Error, ErrorKind, Result};
use crate::format::pointer::{NodeRef, Packed};
use crate::format::record::{Change, Cut, Run};
use crate::mapping::{self, Root};
use crate::state::State;
use crate::units::{Address, Record};

/// Leaves up to which an unmap releases block by block at once; beyond, a job does it.
pub(crate) const SMALL_UNMAP_LEAVES: u64 = 4;

fn impossible(what: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("a journal record cannot be applied: {what}"),
    )
}

impl State {
    /// A version's root and its ground, for a change of record `now`.
    pub(crate) fn ground<'a>(
        &'a mut self,
        id: u64,
        now: Record,
        nodes: &'a NodeSource<'a>,
    ) -> Result<(&'a mut Root, VersionGround<'a>)> {
        let parent = self.version(id)?.parent;
        let parent_cut = self.parent_cut(parent);
        let Self {
            geometry,
            allocator,
            versions,
            dirty_nodes,
            dead_new,
            frozen,
            ..
        } = self;
        let version = versions.get_mut(&id);
        let version = version.ok_or_else(|| impossible(format!("no version {id}")))?;
        let ground = VersionGround {
            geometry: *geometry,
            nodes,
            allocator,
            dirty_nodes,
            dead_new,
            owner: id,
            now,
            frozen: *frozen,
            cut: version.cut,
            parent_cut,
            own: &mut version.own,
            dead: &mut version.dead,
            dead_own: &mut version.dead_own,
        };
        Ok((&mut version.root, ground))
    }

    /// Whether an unmap releases at once what it unmaps.
    fn unmap_is_small(&self, count: u64) -> bool {
        count <= SMALL_UNMAP_LEAVES * self.geometry.span(0)
    }

    /// A node that must be loaded before `change` can be applied.
    pub(crate) fn missing(
        &mut self,
        change: &Change,
        nodes: &NodeSource<'_>,
    ) -> Result<Option<NodeRef>> {
        let small = matches!(change, Change::Unmap { count, .. } if self.unmap_is_small(*count));
        match change {
            Change::Map {
                version,
                first,
                runs,
            } => {
                let count = runs.iter().map(|run| run.crcs.len() as u64).sum();
                let (root, ground) = self.ground(*version, Record(0), nodes)?;
                Ok(mapping::missing_for_range(root, &ground, *first, count))
            }
            Change::Unmap {
                version,
                first,
                count,
            } => {
                let (root, ground) = self.ground(*version, Record(0), nodes)?;
                if small {
                    return Ok(mapping::missing_for_range(root, &ground, *first, *count));
                }
                let last = first + count.saturating_sub(1);
                Ok(mapping::missing_at(root, &ground, *first)
                    .or_else(|| mapping::missing_at(root, &ground, last)))
            }
            _ => Ok(None),
        }
    }

    /// Applies one change of record `now`; what it needs is loaded, claimed and in stock.
    pub(crate) fn apply(
        &mut self,
        change: &Change,
        now: Record,
        nodes: &NodeSource<'_>,
    ) -> Result<()> {
        match change {
            Change::Map {
                version,
                first,
                runs,
            } => self.apply_map(*version, *first, runs, now, nodes),
            Change::Unmap {
                version,
                first,
                count,
            } => self.apply_unmap(*version, *first, *count, now, nodes),
            Change::CreateVolume {
                volume,
                head,
                name,
                size,
                reserved,
                created,
            } => {
                self.add_volume(*volume, *head, name, "", *created, *reserved)?;
                let version = Version::head(*volume, *size, *created);
                self.add_version(*head, version);
                Ok(())
            }
            Change::Clone {
                volume,
                head,
                source,
                ghost,
                name,
                origin,
                created,
            } => {
                let parent = self.clone_parent(*source, *ghost, now, *created)?;
                self.add_volume(*volume, *head, name, origin, *created, false)?;
                self.add_child(*head, *volume, parent, now, *created)
            }
            Change::Snapshot { cuts, created } => cuts
                .iter()
                .try_for_each(|cut| self.apply_cut(cut, now, *created)),
            Change::Resize { volume, size } => {
                let head = self.head_of(*volume)?;
                self.version_mut(head)?.size = *size;
                Ok(())
            }
            Change::Rename { volume, name } => self.apply_rename(*volume, name),
            Change::Rollback {
                volume,
                snapshot,
                head,
                created,
            } => self.apply_rollback(*volume, *snapshot, *head, now, *created),
            Change::DeleteVolume { volume } => {
                let head = self.head_of(*volume)?;
                self.version_mut(head)?.kind = Kind::Ghost;
                self.volume_mut(*volume)?.head = 0;
                self.forget_empty_volume(*volume);
                Ok(())
            }
            Change::DeleteSnapshot { version } => self.apply_delete_snapshot(*version),
            Change::Reap { version } => self.reap(*version),
        }
    }

    fn apply_map(
        &mut self,
        version: u64,
        first: u64,
        runs: &[Run],
        now: Record,
        nodes: &NodeSource<'_>,
    ) -> Result<()> {
        self.changed.insert(version);
        let (root, mut ground) = self.ground(version, now, nodes)?;
        let mut data = Vec::new();
        for Run { address, crcs } in runs {
            let blocks = u32::try_from(crcs.len()).unwrap_or(u32::MAX);
            ground.publish(Extent {
                address: *address,
                blocks,
            });
            let slot = |(address, crc): (u64, &u32)| Packed::new(Address(address), 0, now, *crc);
            data.extend((address.0..).zip(crcs).map(slot));
        }
        mapping::map(root, &mut ground, first, &data);
        Ok(())
    }

    fn apply_unmap(
        &mut self,
        version: u64,
        first: u64,
        count: u64,
        now: Record,
        nodes: &NodeSource<'_>,
    ) -> Result<()> {
        self.changed.insert(version);
        let small = self.unmap_is_small(count);
        let (root, mut ground) = self.ground(version, now, nodes)?;
        if small {
            mapping::clear(root, &mut ground, first, count);
            return Ok(());
        }
        let detached = mapping::detach(root, &mut ground, first, count);
        let cut = ground.cut;
        if detached.count() > 0 {
            let output = Output::Version(version);
            self.add_job(Job::Walk {
                root: detached,
                cut,
                cursor: first,
                output,
            });
        }
        Ok(())
    }

    pub(super) fn add_job(&mut self, job: Job) {
        let id = self.fresh_id();
        self.job_debt += job.debt();
        self.jobs.insert(id, job);
        self.changed.insert(id);
    }

    fn add_volume(
        &mut self,
        id: u64,
        head: u64,
        name: &str,
        origin: &str,
        created: u64,
        reserved: bool,
    ) -> Result<()> {
        if self.names.contains_key(name) {
            return Err(impossible(format!("the name {name:?} is taken")));
        }
        let volume = VolumeState {
            name: name.to_owned(),
            origin: origin.to_owned(),
            head,
            created,
            reserved,
            snapshots: std::collections::BTreeMap::new(),
            writers: 0,
        };
        self.names.insert(name.to_owned(), id);
        if reserved {
            self.reserving.insert(id);
        }
        self.volumes.insert(id, volume);
        self.changed.insert(id);
        self.next_id = self.next_id.max(id + 1);
        Ok(())
    }

    fn add_version(&mut self, id: u64, version: Version) {
        if let Some(parent) = self.versions.get_mut(&version.parent) {
            parent.children.push(id);
        }
        self.versions.insert(id, version);
        self.changed.insert(id);
        self.next_id = self.next_id.max(id + 1);
    }

    /// A new head under `parent`, with its content.
    fn add_child(
        &mut self,
        id: u64,
        volume: u64,
        parent: u64,
        cut: Record,
        now: u64,
    ) -> Result<()> {
        let Version { root, size, .. } = self.version(parent)?;
        let mut head = Version::head(volume, *size, now);
        (head.root, head.parent, head.cut) = (root.clone(), parent, cut);
        self.add_version(id, head);
        Ok(())
    }

    /// The version that a clone is put under: a snapshot itself; for a head, a ghost cut from it.
    fn clone_parent(&mut self, source: u64, ghost: u64, cut: Record, created: u64) -> Result<u64> {
        if self.version(source)?.kind != Kind::Head {
            return Ok(source);
        }
        self.cut_head(source, ghost, cut, created)?;
        Ok(ghost)
    }

    /// Puts a new version, a ghost to begin with, between a head and its parent: it takes the
    /// head's past, and the head begins anew under it.
    fn cut_head(&mut self, head: u64, id: u64, cut: Record, created: u64) -> Result<()> {
        let version = self.version_mut(head)?;
        if version.kind != Kind::Head {
            return Err(impossible(format!("version {head} is no head")));
        }
        let past = Version {
            kind: Kind::Ghost,
            created,
            name: String::new(),
            children: Vec::new(),
            dead: std::mem::take(&mut version.dead),
            ..version.clone()
        };
        (version.parent, version.cut) = (id, cut);
        (version.own, version.dead_own) = (0, 0);
        if let Some(parent) = self.versions.get_mut(&past.parent) {
            parent.children.retain(|child| *child != head);
        }
        self.add_version(id, past);
        self.version_mut(id)?.children.push(head);
        self.redirect(Output::Version(head), Output::Version(id));
        Ok(())
    }

    fn apply_cut(&mut self, cut: &Cut, now: Record, created: u64) -> Result<()> {
        self.cut_head(cut.head, cut.version, now, created)?;
        let snapshot = self.version_mut(cut.version)?;
        snapshot.kind = Kind::Snapshot;
        snapshot.name.clone_from(&cut.name);
        let volume = snapshot.volume;
        self.volume_mut(volume)?
            .snapshots
            .insert(cut.name.clone(), cut.version);
        self.snapshots += 1;
        Ok(())
    }

    fn apply_rename(&mut self, id: u64, name: &str) -> Result<()> {
        let volume = self.volume_mut(id)?;
        let old = std::mem::replace(&mut volume.name, name.to_owned());
        self.names.remove(&old);
        self.names.insert(name.to_owned(), id);
        Ok(())
    }

    fn apply_rollback(
        &mut self,
        volume: u64,
        snapshot: u64,
        head: u64,
        now: Record,
        created: u64,
    ) -> Result<()> {
        let old = self.head_of(volume)?;
        let old_size = self.version(old)?.size;
        self.add_child(head, volume, snapshot, now, created)?;
        let version = self.version_mut(head)?;
        version.size = version.size.max(old_size);
        self.volume_mut(volume)?.head = head;
        self.version_mut(old)?.kind = Kind::Ghost;
        Ok(())
    }

    fn apply_delete_snapshot(&mut self, id: u64) -> Result<()> {
        let version = self.version_mut(id)?;
        version.kind = Kind::Ghost;
        let (name, volume) = (std::mem::take(&mut version.name), version.volume);
        self.volume_mut(volume)?.snapshots.remove(&name);
        self.snapshots -= 1;
        self.forget_empty_volume(volume);
        Ok(())
    }

    /// The name of a deleted volume is free once its last snapshot is gone.
    fn forget_empty_volume(&mut self, id: u64) {
        if let Some(volume) = self.volumes.get(&id)
            && volume.head == 0
            && volume.snapshots.is_empty()
        {
            self.names.remove(&volume.name);
            self.reserving.remove(&id);
            self.volumes.remove(&id);
            self.changed.insert(id);
        }
    }

    fn head_of(&self, volume: u64) -> Result<u64> {
        let head = self.volumes.get(&volume).map_or(0, |volume| volume.head);
        if head == 0 {
            return Err(impossible(format!("volume {volume} has no head")));
        }
        Ok(head)
    }

    fn volume_mut(&mut self, id: u64) -> Result<&mut VolumeState> {
        self.changed.insert(id);
        self.volumes
            .get_mut(&id)
            .ok_or_else(|| impossible(format!("no volume {id}")))
    }

    pub(super) fn version_mut(&mut self, id: u64) -> Result<&mut Version> {
        self.changed.insert(id);
        self.versions
            .get_mut(&id)
            .ok_or_else(|| impossible(format!("no version {id}")))
    }
}

impl Version {
    fn head(volume: u64, size: u64, created: u64) -> Self {
        Self {
            kind: Kind::Head,
            volume,
            name: String::new(),
            size,
            created,
            root: Root::Empty,
            parent: 0,
            cut: Record(0),
            children: Vec::new(),
            own: 0,
            dead: Deadlist::default(),
            dead_own: 0,
        }
    }
}
