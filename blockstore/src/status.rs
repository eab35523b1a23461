//! What the pool, its volumes and snapshots are at this moment, as plain data.
use crate::control::Name;
use crate::error::Result;
use crate::info::{PoolStatus, SnapshotInfo, Usage, VolumeInfo};
use crate::pool::Pool;
use crate::state::State;
use crate::units::{BLOCK_BYTES, VersionId, VolumeId};
use crate::versions::{Kind, Version, VolumeState};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

impl State {
    fn usage(&self, version: &Version) -> Usage {
        let exclusive = match version.children.as_slice() {
            [] => version.own,
            [only] => self.versions.get(only).map_or(0, |child| child.dead_own),
            _ => 0, // it would become a ghost, and give nothing back
        };
        Usage {
            logical: version.size,
            used: version.root.count() * BLOCK_BYTES,
            exclusive: exclusive * BLOCK_BYTES,
        }
    }

    fn volume_info(&self, id: u64, volume: &VolumeState) -> VolumeInfo {
        let head = self.versions.get(&volume.head);
        VolumeInfo {
            id: VolumeId(id),
            name: volume.name.clone(),
            created: at(volume.created),
            reserved: volume.reserved,
            deleted: volume.head == 0,
            origin: (!volume.origin.is_empty()).then(|| volume.origin.clone()),
            usage: head.map_or_else(Usage::default, |head| self.usage(head)),
            snapshots: volume.snapshots.len() as u64,
            writers: volume.writers,
        }
    }

    fn snapshot_info(&self, volume: &VolumeState, id: u64) -> Option<SnapshotInfo> {
        let version = self.versions.get(&id)?;
        Some(SnapshotInfo {
            id: VersionId(id),
            volume: volume.name.clone(),
            name: version.name.clone(),
            created: at(version.created),
            usage: self.usage(version),
        })
    }

    /// All volumes, by name.
    pub(crate) fn volume_infos(&self) -> Vec<VolumeInfo> {
        let volume = |id: &u64| Some(self.volume_info(*id, self.volumes.get(id)?));
        self.names.values().filter_map(volume).collect()
    }

    pub(crate) fn volume_info_named(&self, name: &str) -> Result<VolumeInfo> {
        let id = self.volume_id(name)?;
        Ok(self.volume_info(id, &self.volumes[&id]))
    }

    /// The snapshots of one volume or of all, oldest first.
    pub(crate) fn snapshot_infos(&self, volume: Option<&str>) -> Result<Vec<SnapshotInfo>> {
        let of = match volume {
            Some(name) => vec![&self.volumes[&self.volume_id(name)?]],
            None => self.volumes.values().collect(),
        };
        let mut infos: Vec<SnapshotInfo> = of
            .into_iter()
            .flat_map(|v| {
                v.snapshots
                    .values()
                    .filter_map(|id| self.snapshot_info(v, *id))
            })
            .collect();
        infos.sort_unstable_by_key(|info| info.id);
        Ok(infos)
    }

    /// Snapshots by id, in the order given.
    pub(crate) fn snapshots_by_id(&self, ids: &[u64]) -> Vec<SnapshotInfo> {
        let info = |id: &u64| {
            let volume = self.volumes.get(&self.versions.get(id)?.volume)?;
            self.snapshot_info(volume, *id)
        };
        ids.iter().filter_map(info).collect()
    }

    /// Blocks that ghosts hold at most: what every one of their children has found dead.
    fn ghost_blocks(&self) -> u64 {
        let ghosts = self
            .versions
            .values()
            .filter(|version| version.kind == Kind::Ghost);
        let held = |ghost: &Version| {
            let children = ghost.children.iter().filter_map(|id| self.versions.get(id));
            children.map(|child| child.dead_own).min().unwrap_or(0)
        };
        ghosts.map(held).sum()
    }
}

impl Pool {
    /// The pool at this moment.
    pub(crate) fn status(&self) -> PoolStatus {
        let state = self.state.lock();
        let bytes = |blocks: u64| blocks * BLOCK_BYTES;
        let allocator = &state.allocator;
        PoolStatus {
            pool_id: self.id,
            size: bytes(state.geometry.blocks),
            usable: bytes(allocator.usable()),
            used: bytes(allocator.used()),
            gated: bytes(allocator.gated()),
            free: bytes(allocator.free()),
            reserved: bytes(state.reserved()),
            ghost: bytes(state.ghost_blocks()),
            provisioned: state.provisioned(),
            volumes: state
                .volumes
                .values()
                .filter(|volume| volume.head != 0)
                .count() as u64,
            snapshots: state.snapshots,
            jobs: state.jobs.len() as u64,
            journal_size: bytes(state.journal.ring_blocks()),
            journal_used: bytes(state.journal.used_blocks()),
            dirty: bytes(state.dirty_nodes + state.frozen_nodes),
            checkpoints: state.checkpoints,
            epoch: self.superblock.lock().epoch,
            flushes: self.flushes.load(Ordering::Relaxed),
            checksum_errors: state.checksum_errors,
            refuses_changes: state.refusal.as_ref().map(ToString::to_string),
            backend: self.device.backend().to_owned(),
            scrub: state.scrub.status.clone(),
        }
    }

    /// What a `VOLUME` or `VOLUME@SNAPSHOT` stands for.
    pub(crate) fn target(&self, name: &str) -> Result<crate::read::Target> {
        let state = self.state.lock();
        let parsed = Name::parse(name);
        match parsed.snapshot {
            Some(_) => Ok(crate::read::Target::Version(state.version_named(parsed)?)),
            None => Ok(crate::read::Target::Volume(
                state.live_volume(parsed.volume)?.0,
            )),
        }
    }
}
