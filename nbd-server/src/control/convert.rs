//! Store types to messages and back, and the one table of error codes.
use blockstore::{
    Error, ErrorKind, Extent, PoolStatus, Result, ScrubStatus, SnapshotInfo, Usage, VersionId,
    VolumeId, VolumeInfo,
};
use std::error::Error as _;
use std::time::SystemTime;
use tonic::{Code, Status};

use super::client::DaemonInfo;
use super::proto;

/// Which gRPC code stands for which kind of store error, both ways. The comments of
/// `control.proto` repeat it for clients in other languages. `FAILED_PRECONDITION` is the code of
/// "in use", as in gRPC's own example of a directory that is not empty.
const CODES: [(ErrorKind, Code); 11] = [
    (ErrorKind::NotFound, Code::NotFound),
    (ErrorKind::AlreadyExists, Code::AlreadyExists),
    (ErrorKind::InvalidArgument, Code::InvalidArgument),
    (ErrorKind::NoSpace, Code::ResourceExhausted),
    (ErrorKind::ReadOnly, Code::PermissionDenied),
    (ErrorKind::Busy, Code::FailedPrecondition),
    (ErrorKind::Corrupt, Code::DataLoss),
    (ErrorKind::Io, Code::Internal),
    (ErrorKind::Poisoned, Code::Aborted),
    (ErrorKind::Unsupported, Code::Unimplemented),
    (ErrorKind::Gone, Code::Unavailable),
];

/// A store error as the daemon answers it; its message is unchanged.
pub fn status(error: &Error) -> Status {
    let code = CODES.iter().find(|(kind, _)| *kind == error.kind());
    Status::new(
        code.map_or(Code::Unknown, |(_, code)| *code),
        error.to_string(),
    )
}

/// An answer of the daemon as the store error it was. Without an answer, because the connection
/// failed, it is `Gone`; a code that no store error has is `Io`.
pub fn error(status: &Status) -> Error {
    if let Some(mut cause) = status.source() {
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        return Error::new(
            ErrorKind::Gone,
            format!("the daemon does not answer: {cause}"),
        );
    }
    let kind = CODES.iter().find(|(_, code)| *code == status.code());
    Error::new(
        kind.map_or(ErrorKind::Io, |(kind, _)| *kind),
        status.message(),
    )
}

/// A field that every daemon sends is missing.
fn missing(field: &str) -> Error {
    Error::new(ErrorKind::Io, format!("the daemon's answer lacks {field}"))
}

fn time(timestamp: Option<prost_types::Timestamp>) -> Result<SystemTime> {
    let timestamp = timestamp.ok_or_else(|| missing("a time"))?;
    SystemTime::try_from(timestamp).map_err(|_| missing("a valid time"))
}

impl From<Usage> for proto::Usage {
    fn from(usage: Usage) -> Self {
        Self {
            logical: usage.logical,
            used: usage.used,
            exclusive: usage.exclusive,
        }
    }
}

impl From<proto::Usage> for Usage {
    fn from(usage: proto::Usage) -> Self {
        Self {
            logical: usage.logical,
            used: usage.used,
            exclusive: usage.exclusive,
        }
    }
}

impl From<VolumeInfo> for proto::Volume {
    fn from(volume: VolumeInfo) -> Self {
        Self {
            id: volume.id.0,
            name: volume.name,
            created: Some(volume.created.into()),
            reserved: volume.reserved,
            deleted: volume.deleted,
            origin: volume.origin,
            usage: Some(volume.usage.into()),
            snapshots: volume.snapshots,
            writers: volume.writers,
        }
    }
}

impl TryFrom<proto::Volume> for VolumeInfo {
    type Error = Error;

    fn try_from(volume: proto::Volume) -> Result<Self> {
        Ok(Self {
            id: VolumeId(volume.id),
            name: volume.name,
            created: time(volume.created)?,
            reserved: volume.reserved,
            deleted: volume.deleted,
            origin: volume.origin,
            usage: volume
                .usage
                .ok_or_else(|| missing("a volume's usage"))?
                .into(),
            snapshots: volume.snapshots,
            writers: volume.writers,
        })
    }
}

impl From<SnapshotInfo> for proto::Snapshot {
    fn from(snapshot: SnapshotInfo) -> Self {
        Self {
            id: snapshot.id.0,
            volume: snapshot.volume,
            name: snapshot.name,
            created: Some(snapshot.created.into()),
            usage: Some(snapshot.usage.into()),
        }
    }
}

impl TryFrom<proto::Snapshot> for SnapshotInfo {
    type Error = Error;

    fn try_from(snapshot: proto::Snapshot) -> Result<Self> {
        Ok(Self {
            id: VersionId(snapshot.id),
            volume: snapshot.volume,
            name: snapshot.name,
            created: time(snapshot.created)?,
            usage: snapshot
                .usage
                .ok_or_else(|| missing("a snapshot's usage"))?
                .into(),
        })
    }
}

impl From<Extent> for proto::Extent {
    fn from(extent: Extent) -> Self {
        Self {
            offset: extent.offset,
            length: extent.length,
            allocated: extent.allocated,
        }
    }
}

impl From<proto::Extent> for Extent {
    fn from(extent: proto::Extent) -> Self {
        Self {
            offset: extent.offset,
            length: extent.length,
            allocated: extent.allocated,
        }
    }
}

impl From<ScrubStatus> for proto::Scrub {
    fn from(scrub: ScrubStatus) -> Self {
        Self {
            running: scrub.running,
            blocks_done: scrub.blocks_done,
            blocks_total: scrub.blocks_total,
            rounds: scrub.rounds,
            findings: scrub.findings,
        }
    }
}

impl From<proto::Scrub> for ScrubStatus {
    fn from(scrub: proto::Scrub) -> Self {
        Self {
            running: scrub.running,
            blocks_done: scrub.blocks_done,
            blocks_total: scrub.blocks_total,
            rounds: scrub.rounds,
            findings: scrub.findings,
        }
    }
}

impl From<PoolStatus> for proto::Pool {
    fn from(pool: PoolStatus) -> Self {
        Self {
            pool_id: pool.pool_id.to_vec(),
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
            refuses_changes: pool.refuses_changes,
            backend: pool.backend,
            scrub: Some(pool.scrub.into()),
        }
    }
}

impl TryFrom<proto::Pool> for PoolStatus {
    type Error = Error;

    fn try_from(pool: proto::Pool) -> Result<Self> {
        Ok(Self {
            pool_id: pool
                .pool_id
                .try_into()
                .map_err(|_| missing("a pool id of 16 bytes"))?,
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
            refuses_changes: pool.refuses_changes,
            backend: pool.backend,
            scrub: pool.scrub.ok_or_else(|| missing("the scrub"))?.into(),
        })
    }
}

impl From<DaemonInfo> for proto::Daemon {
    fn from(daemon: DaemonInfo) -> Self {
        Self {
            version: daemon.version,
            pid: daemon.pid,
            started: Some(daemon.started.into()),
            pool_path: daemon.pool_path,
            uris: daemon.uris,
            connections: daemon.connections,
        }
    }
}

impl TryFrom<proto::Daemon> for DaemonInfo {
    type Error = Error;

    fn try_from(daemon: proto::Daemon) -> Result<Self> {
        Ok(Self {
            version: daemon.version,
            pid: daemon.pid,
            started: time(daemon.started)?,
            pool_path: daemon.pool_path,
            uris: daemon.uris,
            connections: daemon.connections,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_kind_of_error_survives_the_way_there_and_back() {
        for (kind, code) in CODES {
            let sent = status(&Error::new(kind, "volume \"ü\": 7 blocks"));
            assert_eq!(sent.code(), code);
            let received = error(&sent);
            assert_eq!(received.kind(), kind);
            assert_eq!(received.to_string(), "volume \"ü\": 7 blocks");
        }
        let codes: std::collections::HashSet<_> = CODES.iter().map(|row| row.1 as i32).collect();
        assert_eq!(codes.len(), CODES.len(), "a code stands for two kinds");
    }

    #[test]
    fn a_code_that_no_store_error_has_is_io() {
        assert_eq!(
            error(&Status::deadline_exceeded("late")).kind(),
            ErrorKind::Io
        );
    }

    #[test]
    fn a_volume_survives_the_way_there_and_back() {
        let volume = VolumeInfo {
            id: VolumeId(7),
            name: "données".into(),
            created: SystemTime::UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789),
            reserved: true,
            deleted: false,
            origin: Some("gold@v1".into()),
            usage: Usage {
                logical: 3,
                used: 2,
                exclusive: 1,
            },
            snapshots: 4,
            writers: 5,
        };
        let back = VolumeInfo::try_from(proto::Volume::from(volume.clone())).unwrap();
        assert_eq!(back, volume);
    }

    #[test]
    fn an_answer_without_a_time_is_an_error() {
        let error = VolumeInfo::try_from(proto::Volume::default()).unwrap_err();
        assert_eq!(error.to_string(), "the daemon's answer lacks a time");
    }
}
