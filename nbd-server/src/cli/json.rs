//! The JSON that `--json` prints: these field names are a contract, sizes are bytes.
use blockstore::{CheckReport, Extent, PoolStatus, ScrubStatus, SnapshotInfo, VolumeInfo};
use serde::Serialize;
use std::time::SystemTime;

use crate::control::client::DaemonInfo;

/// `volume list` is an array of these; `create`, `clone`, `resize`, `rename` and `rollback` print
/// the volume as it is now.
#[derive(Debug, Serialize)]
pub(super) struct Volume<'a> {
    name: &'a str,
    /// Never reused; survives rename and rollback.
    id: u64,
    size: u64,
    /// Data mapped, shared or not.
    used: u64,
    /// What deleting it would give back now.
    exclusive: u64,
    created: String,
    reserved: bool,
    /// Deleted, but its name is taken until its last snapshot is deleted.
    deleted: bool,
    /// What it was cloned from, or null.
    origin: Option<&'a str>,
    snapshot_count: u64,
    /// Open handles that may write.
    writers: u64,
}

/// `volume show`: the volume, and its snapshots.
#[derive(Debug, Serialize)]
pub(super) struct VolumeAndSnapshots<'a> {
    #[serde(flatten)]
    volume: Volume<'a>,
    snapshots: Vec<Snapshot<'a>>,
}

/// `snapshot list` and `snapshot create` print an array of these.
#[derive(Debug, Serialize)]
pub(super) struct Snapshot<'a> {
    volume: &'a str,
    /// Without the volume's.
    name: &'a str,
    id: u64,
    size: u64,
    used: u64,
    exclusive: u64,
    created: String,
}

/// `snapshot diff` prints an array of these.
#[derive(Debug, Serialize)]
pub(super) struct Range {
    offset: u64,
    length: u64,
    /// `data` or `hole`.
    r#type: &'static str,
}

/// `status`.
#[derive(Debug, Serialize)]
pub(super) struct Status<'a> {
    pool: Pool<'a>,
    scrub: Scrub<'a>,
    daemon: Daemon<'a>,
}

/// See [`PoolStatus`] for what each figure counts.
#[derive(Debug, Serialize)]
struct Pool<'a> {
    path: &'a str,
    /// 32 hexadecimal digits.
    id: String,
    size: u64,
    usable: u64,
    used: u64,
    gated: u64,
    free: u64,
    reserved: u64,
    ghost: u64,
    provisioned: u64,
    volumes: u64,
    snapshots: u64,
    jobs: u64,
    journal_size: u64,
    journal_used: u64,
    dirty: u64,
    checkpoints: u64,
    epoch: u64,
    flushes: u64,
    checksum_errors: u64,
    /// Why the pool refuses changes, or null.
    refuses_changes: Option<&'a str>,
    backend: &'a str,
}

/// `scrub status`.
#[derive(Debug, Serialize)]
pub(super) struct Scrub<'a> {
    running: bool,
    blocks_done: u64,
    blocks_total: u64,
    rounds: u64,
    findings: &'a [String],
}

#[derive(Debug, Serialize)]
struct Daemon<'a> {
    version: &'a str,
    pid: u32,
    started: String,
    uris: &'a [String],
    connections: u64,
}

/// `check`.
#[derive(Debug, Serialize)]
pub(super) struct Check<'a> {
    clean: bool,
    problems: &'a [String],
    volumes: u64,
    snapshots: u64,
    blocks: u64,
}

/// `init`.
#[derive(Debug, Serialize)]
pub(super) struct Made<'a> {
    pub pool: &'a str,
    pub size: u64,
}

/// `serve`, once it serves: one line.
#[derive(Debug, Serialize)]
pub(super) struct Serving<'a> {
    pub pool: &'a str,
    pub volumes: u64,
    /// Of each volume, if there are few; else one with the name `NAME` for each address.
    pub uris: &'a [String],
    pub control: &'a str,
}

/// `volume delete` and `snapshot delete`.
#[derive(Debug, Serialize)]
pub(super) struct Deleted<'a> {
    pub deleted: &'a str,
}

/// A time in UTC as RFC 3339 writes it; a time before 1970 is the first second of that year.
pub(super) fn time(time: SystemTime) -> String {
    let time = time.max(SystemTime::UNIX_EPOCH);
    humantime::format_rfc3339_millis(time).to_string()
}

impl<'a> From<&'a VolumeInfo> for Volume<'a> {
    fn from(volume: &'a VolumeInfo) -> Self {
        Self {
            name: &volume.name,
            id: volume.id.0,
            size: volume.usage.logical,
            used: volume.usage.used,
            exclusive: volume.usage.exclusive,
            created: time(volume.created),
            reserved: volume.reserved,
            deleted: volume.deleted,
            origin: volume.origin.as_deref(),
            snapshot_count: volume.snapshots,
            writers: volume.writers,
        }
    }
}

impl<'a> VolumeAndSnapshots<'a> {
    pub(super) fn new(volume: &'a VolumeInfo, snapshots: &'a [SnapshotInfo]) -> Self {
        Self {
            volume: volume.into(),
            snapshots: snapshots.iter().map(Snapshot::from).collect(),
        }
    }
}

impl<'a> From<&'a SnapshotInfo> for Snapshot<'a> {
    fn from(snapshot: &'a SnapshotInfo) -> Self {
        Self {
            volume: &snapshot.volume,
            name: &snapshot.name,
            id: snapshot.id.0,
            size: snapshot.usage.logical,
            used: snapshot.usage.used,
            exclusive: snapshot.usage.exclusive,
            created: time(snapshot.created),
        }
    }
}

impl From<&Extent> for Range {
    fn from(extent: &Extent) -> Self {
        Self {
            offset: extent.offset,
            length: extent.length,
            r#type: content(extent),
        }
    }
}

/// What an extent holds: `data` or `hole`.
pub(super) fn content(extent: &Extent) -> &'static str {
    if extent.allocated { "data" } else { "hole" }
}

impl<'a> Status<'a> {
    pub(super) fn new(pool: &'a PoolStatus, daemon: &'a DaemonInfo) -> Self {
        Self {
            pool: Pool {
                path: &daemon.pool_path,
                id: pool_id(pool),
                size: pool.size,
                usable: pool.usable,
                used: pool.used,
                gated: pool.gated,
                free: pool.free,
                reserved: pool.reserved,
                ghost: pool.ghost,
                provisioned: pool.provisioned,
                volumes: pool.volumes,
                snapshots: pool.snapshots,
                jobs: pool.jobs,
                journal_size: pool.journal_size,
                journal_used: pool.journal_used,
                dirty: pool.dirty,
                checkpoints: pool.checkpoints,
                epoch: pool.epoch,
                flushes: pool.flushes,
                checksum_errors: pool.checksum_errors,
                refuses_changes: pool.refuses_changes.as_deref(),
                backend: &pool.backend,
            },
            scrub: (&pool.scrub).into(),
            daemon: Daemon {
                version: &daemon.version,
                pid: daemon.pid,
                started: time(daemon.started),
                uris: &daemon.uris,
                connections: daemon.connections,
            },
        }
    }
}

/// The pool's id as 32 hexadecimal digits.
pub(super) fn pool_id(pool: &PoolStatus) -> String {
    format!("{:032x}", u128::from_be_bytes(pool.pool_id))
}

impl<'a> From<&'a ScrubStatus> for Scrub<'a> {
    fn from(scrub: &'a ScrubStatus) -> Self {
        Self {
            running: scrub.running,
            blocks_done: scrub.blocks_done,
            blocks_total: scrub.blocks_total,
            rounds: scrub.rounds,
            findings: &scrub.findings,
        }
    }
}

impl<'a> From<&'a CheckReport> for Check<'a> {
    fn from(report: &'a CheckReport) -> Self {
        Self {
            clean: report.problems.is_empty(),
            problems: &report.problems,
            volumes: report.volumes,
            snapshots: report.snapshots,
            blocks: report.blocks,
        }
    }
}
