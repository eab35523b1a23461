//! Calls a running daemon: the command line's and the CSI adapter's side of the control API.
use blockstore::{
    Error, Extent, PoolStatus, Progress, Result, ScrubStatus, SnapshotInfo, VolumeInfo,
};
use std::io;
use std::path::Path;
use std::time::SystemTime;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use super::proto::control_client::ControlClient;
use super::{MESSAGE_BYTES_MAX, convert, proto};

/// A connection to a daemon's control socket. Clones share it; it reconnects by itself when the
/// daemon was restarted. Errors are the store's own; `Gone` also means that the daemon went away.
#[derive(Clone, Debug)]
pub struct Client {
    inner: ControlClient<Channel>,
}

/// The process that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonInfo {
    /// Its version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// When it started.
    pub started: SystemTime,
    /// The pool's file or device, absolute.
    pub pool_path: String,
    /// Where it listens for NBD clients, as URIs without an export name.
    pub uris: Vec<String>,
    /// NBD connections now.
    pub connections: u64,
}

#[expect(clippy::needless_pass_by_value, reason = "takes what `map_err` gives")]
fn received(status: Status) -> Error {
    convert::error(&status)
}

impl Client {
    /// Connects to the daemon that listens on the unix socket `path`.
    ///
    /// # Errors
    /// What `connect(2)` says, when nobody can be reached there.
    pub async fn connect(path: &Path) -> io::Result<Self> {
        // The channel connects when it is first used; its error would not be the system's own.
        drop(UnixStream::connect(path).await?);
        let path = path.to_str().ok_or(io::ErrorKind::InvalidFilename)?;
        let endpoint = Endpoint::from_shared(format!("unix://{path}")).map_err(io::Error::other)?;
        let inner = ControlClient::new(endpoint.connect_lazy())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Self { inner })
    }

    /// [`blockstore::Store::create_volume`].
    pub async fn create_volume(
        &mut self,
        name: &str,
        size: u64,
        reserve: bool,
    ) -> Result<VolumeInfo> {
        let request = proto::CreateVolumeRequest {
            name: name.into(),
            size,
            reserve,
        };
        self.inner
            .create_volume(request)
            .await
            .map_err(received)?
            .into_inner()
            .try_into()
    }

    /// [`blockstore::Store::clone_volume`].
    pub async fn clone_volume(&mut self, source: &str, name: &str) -> Result<VolumeInfo> {
        let request = proto::CloneVolumeRequest {
            source: source.into(),
            name: name.into(),
        };
        self.inner
            .clone_volume(request)
            .await
            .map_err(received)?
            .into_inner()
            .try_into()
    }

    /// [`blockstore::Store::volumes`].
    pub async fn volumes(&mut self) -> Result<Vec<VolumeInfo>> {
        let answer = self.inner.list_volumes(proto::ListVolumesRequest {}).await;
        let mut pages = answer.map_err(received)?.into_inner();
        let mut volumes = Vec::new();
        while let Some(page) = pages.message().await.map_err(received)? {
            for volume in page.volumes {
                volumes.push(volume.try_into()?);
            }
        }
        Ok(volumes)
    }

    /// [`blockstore::Store::volume`].
    pub async fn volume(&mut self, name: &str) -> Result<VolumeInfo> {
        let request = proto::ShowVolumeRequest { name: name.into() };
        self.inner
            .show_volume(request)
            .await
            .map_err(received)?
            .into_inner()
            .try_into()
    }

    /// [`blockstore::Store::resize_volume`].
    pub async fn resize_volume(&mut self, name: &str, size: u64) -> Result<VolumeInfo> {
        let request = proto::ResizeVolumeRequest {
            name: name.into(),
            size,
        };
        self.inner
            .resize_volume(request)
            .await
            .map_err(received)?
            .into_inner()
            .try_into()
    }

    /// [`blockstore::Store::rename_volume`].
    pub async fn rename_volume(&mut self, name: &str, new: &str) -> Result<VolumeInfo> {
        let request = proto::RenameVolumeRequest {
            name: name.into(),
            new_name: new.into(),
        };
        self.inner
            .rename_volume(request)
            .await
            .map_err(received)?
            .into_inner()
            .try_into()
    }

    /// [`blockstore::Store::rollback`].
    pub async fn rollback(&mut self, volume: &str, snapshot: &str) -> Result<VolumeInfo> {
        let request = proto::RollbackRequest {
            volume: volume.into(),
            snapshot: snapshot.into(),
        };
        self.inner
            .rollback(request)
            .await
            .map_err(received)?
            .into_inner()
            .try_into()
    }

    /// [`blockstore::Store::delete_volume`].
    pub async fn delete_volume(&mut self, name: &str) -> Result<()> {
        let request = proto::DeleteVolumeRequest { name: name.into() };
        self.inner
            .delete_volume(request)
            .await
            .map_err(received)
            .map(drop)
    }

    /// [`blockstore::Store::snapshot`]: `(volume, name)` pairs, all cut at one instant.
    pub async fn snapshot(&mut self, names: &[(&str, &str)]) -> Result<Vec<SnapshotInfo>> {
        let name = |(volume, name): &(&str, &str)| proto::SnapshotName {
            volume: (*volume).into(),
            name: (*name).into(),
        };
        let snapshots = names.iter().map(name).collect();
        let request = proto::CreateSnapshotsRequest { snapshots };
        let answer = self
            .inner
            .create_snapshots(request)
            .await
            .map_err(received)?;
        answer
            .into_inner()
            .snapshots
            .into_iter()
            .map(SnapshotInfo::try_from)
            .collect()
    }

    /// [`blockstore::Store::snapshots`].
    pub async fn snapshots(&mut self, volume: Option<&str>) -> Result<Vec<SnapshotInfo>> {
        let request = proto::ListSnapshotsRequest {
            volume: volume.map(Into::into),
        };
        let answer = self.inner.list_snapshots(request).await;
        let mut pages = answer.map_err(received)?.into_inner();
        let mut snapshots = Vec::new();
        while let Some(page) = pages.message().await.map_err(received)? {
            for snapshot in page.snapshots {
                snapshots.push(snapshot.try_into()?);
            }
        }
        Ok(snapshots)
    }

    /// [`blockstore::Store::delete_snapshot`].
    pub async fn delete_snapshot(&mut self, volume: &str, name: &str) -> Result<()> {
        let request = proto::DeleteSnapshotRequest {
            volume: volume.into(),
            name: name.into(),
        };
        self.inner
            .delete_snapshot(request)
            .await
            .map_err(received)
            .map(drop)
    }

    /// What differs between two versions; without `from`, what is allocated in `to`.
    pub async fn diff(&mut self, from: Option<&str>, to: &str) -> Result<Diff> {
        let request = proto::DiffRequest {
            from: from.map(Into::into),
            to: to.into(),
        };
        let pages = self
            .inner
            .diff(request)
            .await
            .map_err(received)?
            .into_inner();
        Ok(Diff { pages })
    }

    /// The pool and the daemon at this moment.
    pub async fn status(&mut self) -> Result<(PoolStatus, DaemonInfo)> {
        let answer = self
            .inner
            .status(proto::StatusRequest {})
            .await
            .map_err(received)?;
        let proto::StatusResponse { pool, daemon } = answer.into_inner();
        Ok((
            pool.unwrap_or_default().try_into()?,
            daemon.unwrap_or_default().try_into()?,
        ))
    }

    /// [`blockstore::Store::scrub_start`].
    pub async fn scrub_start(&mut self) -> Result<()> {
        self.inner
            .scrub_start(proto::ScrubStartRequest {})
            .await
            .map_err(received)
            .map(drop)
    }

    /// [`blockstore::Store::scrub_stop`].
    pub async fn scrub_stop(&mut self) -> Result<()> {
        self.inner
            .scrub_stop(proto::ScrubStopRequest {})
            .await
            .map_err(received)
            .map(drop)
    }

    /// How far the scrub is; with `follow`, again and again until it ends.
    pub async fn scrub_status(&mut self, follow: bool) -> Result<Scrub> {
        let request = proto::ScrubStatusRequest { follow };
        let states = self
            .inner
            .scrub_status(request)
            .await
            .map_err(received)?
            .into_inner();
        Ok(Scrub { states })
    }
}

/// The extents of a [`Client::diff`], as they arrive.
#[derive(Debug)]
pub struct Diff {
    pages: Streaming<proto::DiffPage>,
}

impl Diff {
    /// The next extents, and how far the comparison is; `None` when it is complete.
    pub async fn next(&mut self) -> Result<Option<(Vec<Extent>, Progress)>> {
        let page = self.pages.message().await.map_err(received)?;
        Ok(page.map(|page| {
            let extents = page.extents.into_iter().map(Extent::from).collect();
            (
                extents,
                Progress {
                    done: page.done,
                    total: page.total,
                },
            )
        }))
    }
}

/// The states of a [`Client::scrub_status`], as they arrive.
#[derive(Debug)]
pub struct Scrub {
    states: Streaming<proto::Scrub>,
}

impl Scrub {
    /// The next state; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<ScrubStatus>> {
        Ok(self
            .states
            .message()
            .await
            .map_err(received)?
            .map(ScrubStatus::from))
    }
}
