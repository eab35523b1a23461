//! Answers the control API from the store, on a thread of its own.
use blockstore::{Error, Result, Store};
use std::pin::Pin;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_stream::{Iter, iter};
use tonic::{Request, Response, Status};

use super::client::DaemonInfo;
use super::convert::status;
use super::proto::control_server::{Control, ControlServer};
use super::socket::ControlSocket;
use super::{MESSAGE_BYTES_MAX, PAGE_ROWS_MAX, proto};

/// Between two answers of a scrub status that is followed.
const SCRUB_INTERVAL: Duration = Duration::from_millis(250);
/// How long open streams may delay the end.
const STOP_DEADLINE: Duration = Duration::from_secs(1);
/// Extents in one page of a difference.
const DIFF_EXTENTS_MAX: usize = 4096;

/// Tells about the process whenever somebody asks for the status.
pub type DaemonFacts = Box<dyn Fn() -> DaemonInfo + Send + Sync>;

/// A running control API. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    /// Dropped to stop the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts answering on `socket`, which is removed when the server stops.
    pub fn start(socket: ControlSocket, store: Store, facts: DaemonFacts) -> Result<Self> {
        let failed = |e| Error::io("start of the control API", e);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let incoming = {
            let _context = runtime.enter();
            let listener = socket.listener().map_err(failed)?;
            UnixListenerStream::new(tokio::net::UnixListener::from_std(listener).map_err(failed)?)
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let (end, ended) = oneshot::channel::<()>();
        let service = ControlServer::new(Service { store, facts })
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let run = async move {
            let serving = tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming_shutdown(incoming, async move {
                    drop(stopped.await);
                    drop(end);
                });
            let deadline = async {
                drop(ended.await);
                tokio::time::sleep(STOP_DEADLINE).await;
            };
            tokio::select! {
                result = serving => {
                    if let Err(e) = result {
                        tracing::error!("the control API ended: {e}");
                    }
                }
                () = deadline => {}
            }
            drop(socket);
        };
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || runtime.block_on(run))
            .map_err(failed)?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Stops accepting, lets answers under way finish for at most a second, and removes the socket.
    pub fn stop(&mut self) {
        self.stop = None;
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            tracing::error!("the control API's thread panicked");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// One method per call of `control.proto`: take the message apart, ask the store, answer.
struct Service {
    store: Store,
    facts: DaemonFacts,
}

/// What a call answers.
type Answer<T> = std::result::Result<Response<T>, Status>;
/// A list in pages.
type Pages<P> = Iter<std::vec::IntoIter<std::result::Result<P, Status>>>;
/// An answer that goes on.
type Stream<T> = Pin<Box<ReceiverStream<std::result::Result<T, Status>>>>;

fn answer<T: Into<M>, M>(result: Result<T>) -> Answer<M> {
    result
        .map(|value| Response::new(value.into()))
        .map_err(|e| status(&e))
}

/// `rows` cut into pages of at most [`PAGE_ROWS_MAX`].
fn pages<T: Into<M>, M, P>(rows: Vec<T>, page: impl Fn(Vec<M>) -> P) -> Response<Pages<P>> {
    let mut rows = rows.into_iter().map(Into::into);
    let mut all = Vec::new();
    loop {
        let some: Vec<M> = rows.by_ref().take(PAGE_ROWS_MAX).collect();
        if some.is_empty() {
            return Response::new(iter(all));
        }
        all.push(Ok(page(some)));
    }
}

#[tonic::async_trait]
impl Control for Service {
    type ListVolumesStream = Pages<proto::VolumePage>;
    type ListSnapshotsStream = Pages<proto::SnapshotPage>;
    type DiffStream = Stream<proto::DiffPage>;
    type ScrubStatusStream = Stream<proto::Scrub>;

    async fn create_volume(
        &self,
        request: Request<proto::CreateVolumeRequest>,
    ) -> Answer<proto::Volume> {
        let asked = request.into_inner();
        answer(
            self.store
                .create_volume(&asked.name, asked.size, asked.reserve)
                .await,
        )
    }

    async fn clone_volume(
        &self,
        request: Request<proto::CloneVolumeRequest>,
    ) -> Answer<proto::Volume> {
        let asked = request.into_inner();
        answer(self.store.clone_volume(&asked.source, &asked.name).await)
    }

    async fn list_volumes(
        &self,
        _request: Request<proto::ListVolumesRequest>,
    ) -> Answer<Self::ListVolumesStream> {
        Ok(pages(self.store.volumes(), |volumes| proto::VolumePage {
            volumes,
        }))
    }

    async fn show_volume(
        &self,
        request: Request<proto::ShowVolumeRequest>,
    ) -> Answer<proto::Volume> {
        answer(self.store.volume(&request.into_inner().name))
    }

    async fn resize_volume(
        &self,
        request: Request<proto::ResizeVolumeRequest>,
    ) -> Answer<proto::Volume> {
        let asked = request.into_inner();
        answer(self.store.resize_volume(&asked.name, asked.size).await)
    }

    async fn rename_volume(
        &self,
        request: Request<proto::RenameVolumeRequest>,
    ) -> Answer<proto::Volume> {
        let asked = request.into_inner();
        answer(self.store.rename_volume(&asked.name, &asked.new_name).await)
    }

    async fn rollback(&self, request: Request<proto::RollbackRequest>) -> Answer<proto::Volume> {
        let asked = request.into_inner();
        answer(self.store.rollback(&asked.volume, &asked.snapshot).await)
    }

    async fn delete_volume(
        &self,
        request: Request<proto::DeleteVolumeRequest>,
    ) -> Answer<proto::DeleteVolumeResponse> {
        let done = self.store.delete_volume(&request.into_inner().name).await;
        answer(done.map(|()| proto::DeleteVolumeResponse {}))
    }

    async fn create_snapshots(
        &self,
        request: Request<proto::CreateSnapshotsRequest>,
    ) -> Answer<proto::CreateSnapshotsResponse> {
        let asked = request.into_inner().snapshots;
        let names: Vec<_> = asked
            .iter()
            .map(|s| (s.volume.as_str(), s.name.as_str()))
            .collect();
        let cut = self.store.snapshot(&names).await;
        answer(cut.map(|cut| proto::CreateSnapshotsResponse {
            snapshots: cut.into_iter().map(Into::into).collect(),
        }))
    }

    async fn list_snapshots(
        &self,
        request: Request<proto::ListSnapshotsRequest>,
    ) -> Answer<Self::ListSnapshotsStream> {
        let found = self.store.snapshots(request.into_inner().volume.as_deref());
        let found = found.map_err(|e| status(&e))?;
        Ok(pages(found, |snapshots| proto::SnapshotPage { snapshots }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<proto::DeleteSnapshotRequest>,
    ) -> Answer<proto::DeleteSnapshotResponse> {
        let asked = request.into_inner();
        let done = self.store.delete_snapshot(&asked.volume, &asked.name).await;
        answer(done.map(|()| proto::DeleteSnapshotResponse {}))
    }

    async fn diff(&self, request: Request<proto::DiffRequest>) -> Answer<Self::DiffStream> {
        let proto::DiffRequest { from, to } = request.into_inner();
        let from_size = from
            .as_deref()
            .map_or(Ok(0), |from| size_of(&self.store, from));
        let to_size = size_of(&self.store, &to);
        let total = from_size
            .and_then(|from| Ok(from.max(to_size?)))
            .map_err(|e| status(&e))?;
        let (sender, receiver) = mpsc::channel(2);
        let store = self.store.clone();
        tokio::spawn(async move {
            let mut next = Some(0);
            while let Some(offset) = next {
                let page = store
                    .diff(from.as_deref(), &to, offset, DIFF_EXTENTS_MAX)
                    .await;
                next = page.as_ref().ok().and_then(|(_, next)| *next);
                let page = page
                    .map_err(|e| status(&e))
                    .map(|(extents, next)| proto::DiffPage {
                        extents: extents.into_iter().map(Into::into).collect(),
                        done: next.unwrap_or(total),
                        total,
                    });
                // It fails when the client is gone; there is nobody to go on for.
                if sender.send(page).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn status(
        &self,
        _request: Request<proto::StatusRequest>,
    ) -> Answer<proto::StatusResponse> {
        Ok(Response::new(proto::StatusResponse {
            pool: Some(self.store.status().into()),
            daemon: Some((self.facts)().into()),
        }))
    }

    async fn scrub_start(
        &self,
        _request: Request<proto::ScrubStartRequest>,
    ) -> Answer<proto::ScrubStartResponse> {
        answer(
            self.store
                .scrub_start()
                .map(|()| proto::ScrubStartResponse {}),
        )
    }

    async fn scrub_stop(
        &self,
        _request: Request<proto::ScrubStopRequest>,
    ) -> Answer<proto::ScrubStopResponse> {
        self.store.scrub_stop();
        Ok(Response::new(proto::ScrubStopResponse {}))
    }

    async fn scrub_status(
        &self,
        request: Request<proto::ScrubStatusRequest>,
    ) -> Answer<Self::ScrubStatusStream> {
        let follow = request.into_inner().follow;
        let (sender, receiver) = mpsc::channel(1);
        let store = self.store.clone();
        tokio::spawn(async move {
            loop {
                let scrub = store.status().scrub;
                let last = !follow || !scrub.running;
                if sender.send(Ok(scrub.into())).await.is_err() || last {
                    return;
                }
                tokio::time::sleep(SCRUB_INTERVAL).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Size of a volume or snapshot.
fn size_of(store: &Store, source: &str) -> Result<u64> {
    let Some((volume, snapshot)) = source.split_once('@') else {
        return Ok(store.volume(source)?.usage.logical);
    };
    let snapshots = store.snapshots(Some(volume))?;
    // A snapshot that does not exist is an error of the comparison's own, with the store's words.
    let found = snapshots.into_iter().find(|found| found.name == snapshot);
    Ok(found.map_or(0, |found| found.usage.logical))
}
