//! The NBD server of one store: listens, gives each client to a worker, and stops in order.
use crate::clients::Clients;
use crate::limits::Limits;
use crate::listen::{Listener, Listeners};
use crate::nbd;
use crate::socket::{Socket, readable};
use blockstore::Store;
use blockstore::runtime::{Handle, Pending, ring, sleep, yield_now};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

pub use crate::listen::Listen;

/// How to serve.
#[derive(Clone, Debug, Default)]
pub struct ServeOptions {
    /// Where to listen.
    pub listen: Vec<Listen>,
    /// Listen on TCP beyond the loopback although nothing is encrypted or authenticated.
    pub insecure_tcp: bool,
    /// What clients may use.
    pub limits: Limits,
}

/// A running server. Dropped without [`Self::shutdown`], it stops too, but nobody waits for it.
#[derive(Debug)]
pub struct Server {
    listeners: Listeners,
    accepting: Vec<Pending<()>>,
    dispatch: Arc<Dispatch>,
}

/// Where new clients go.
#[derive(Debug)]
struct Dispatch {
    store: Store,
    workers: Vec<Handle>,
    next: AtomicUsize,
    clients: Arc<Clients>,
}

impl Server {
    /// Listens on all addresses, or on none if one of them fails.
    ///
    /// # Errors
    /// The address cannot be bound, another server answers there, or it is TCP beyond the loopback.
    pub fn start(store: &Store, options: ServeOptions) -> io::Result<Self> {
        check_rings(store)?;
        let mut listeners = Listeners::default();
        for listen in &options.listen {
            listeners
                .0
                .push(Arc::new(Listener::bind(listen, options.insecure_tcp)?));
        }
        let dispatch = Arc::new(Dispatch {
            store: store.clone(),
            workers: store.workers().to_vec(),
            next: AtomicUsize::new(0),
            clients: Clients::new(options.limits),
        });
        let mut accepting = Vec::new();
        for listener in &listeners.0 {
            let (listener, dispatch) = (listener.clone(), dispatch.clone());
            let worker = dispatch.worker().clone();
            accepting.push(worker.spawn(accept(listener, dispatch)));
        }
        let clients = dispatch.clients.clone();
        drop(
            dispatch
                .worker()
                .spawn(async move { clients.watch().await }),
        );
        Ok(Self {
            listeners,
            accepting,
            dispatch,
        })
    }

    /// The NBD URI of an export at every address; the empty name is the default export.
    pub fn uris(&self, export: &str) -> Vec<String> {
        self.listeners
            .0
            .iter()
            .map(|listener| listener.uri(export))
            .collect()
    }

    /// Clients connected now.
    pub fn connections(&self) -> usize {
        self.dispatch.clients.count()
    }

    /// Stops accepting, removes unix sockets, finishes what is in flight, answers further commands
    /// with `ESHUTDOWN`, and hangs up, all within [`Limits::drain`] and a second. Not for worker
    /// threads.
    pub fn shutdown(mut self) {
        self.stop().wait();
    }

    /// Stops accepting, and starts to end what goes on.
    fn stop(&mut self) -> Pending<()> {
        self.dispatch.clients.stop();
        drop(std::mem::take(&mut self.listeners));
        let accepting = std::mem::take(&mut self.accepting);
        let clients = self.dispatch.clients.clone();
        self.dispatch.worker().spawn(async move {
            for accepting in accepting {
                accepting.await;
            }
            clients.drain().await;
        })
    }
}

/// Sockets are driven by the workers' rings: without them nothing can be served.
fn check_rings(store: &Store) -> io::Result<()> {
    let ask = |worker: &Handle| worker.spawn(async { Some(ring::available()) }).wait();
    if store
        .workers()
        .iter()
        .all(|worker| ask(worker) == Some(true))
    {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "io_uring is not available here, and serving needs it: allow it (sysctl \
         kernel.io_uring_disabled=0, or the container's seccomp profile)",
    ))
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.dispatch.clients.stopping() {
            drop(self.stop());
        }
    }
}

impl Dispatch {
    /// The next worker, each in turn.
    fn worker(&self) -> &Handle {
        let turn = self.next.fetch_add(1, Relaxed);
        &self.workers[turn % self.workers.len()]
    }

    /// Starts to serve a client, or hangs up if there are too many.
    fn seat(&self, stream: OwnedFd) -> Option<()> {
        let seat = self.clients.admit(Socket::new(stream))?;
        let store = self.store.clone();
        self.worker().spawn_with(move || nbd::serve(seat, store));
        Some(())
    }
}

/// Accepts clients until the server stops. On a worker thread.
async fn accept(listener: Arc<Listener>, dispatch: Arc<Dispatch>) {
    const PAUSE: Duration = Duration::from_millis(100);
    let mut refused = false;
    while !dispatch.clients.stopping() {
        match listener.accept() {
            Ok(stream) => {
                let seated = dispatch.seat(stream).is_some();
                if !seated && !refused {
                    let max = dispatch.clients.limits.connections;
                    tracing::warn!("{max} clients are connected: hanging up on further ones");
                }
                refused = !seated;
                // However fast clients come, those who are here go on.
                yield_now().await;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // What fails here fails in `accept` too, which says why.
                drop(readable(&listener).await);
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(_) if dispatch.clients.stopping() => return,
            Err(error) => {
                // Out of file descriptors or memory: clients that leave give some back.
                tracing::warn!("cannot accept a client: {error}");
                sleep(PAUSE).await;
            }
        }
    }
}
