//! What `serve` does, in order: make or open the pool, make volumes, listen, answer; and back.
use blockstore::{Error, ErrorKind, InitOptions, Options, Progress, Result, Store};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crate::config::{Settings, VolumeSize};
use crate::control::SOCKET_DEFAULT;
use crate::control::client::DaemonInfo;
use crate::control::server::Server as ControlServer;
use crate::control::socket::ControlSocket;
use crate::serve::{Listen, ServeOptions, Server};

/// What to serve, and where.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    /// The pool's file or device, absolute.
    pub pool: PathBuf,
    /// Everything else; `settings.pool` is not looked at.
    pub settings: Settings,
}

impl DaemonOptions {
    /// Serves `pool` as `settings` say.
    ///
    /// # Errors
    /// `InvalidArgument` if the path is empty.
    pub fn new(pool: &Path, settings: Settings) -> Result<Self> {
        let pool = std::path::absolute(pool).map_err(|e| {
            Error::new(
                ErrorKind::InvalidArgument,
                format!("pool {:?}: {e}", pool.display()),
            )
        })?;
        Ok(Self { pool, settings })
    }
}

/// Which step of the start failed, so that whoever reports it knows what to advise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Making the pool.
    Create,
    /// Opening the pool.
    Open,
    /// Making the volumes.
    Volumes,
    /// Listening for NBD clients.
    Listen,
    /// Listening on the control socket.
    Control,
}

/// Why a daemon did not start.
#[derive(Clone, Debug)]
pub struct StartError {
    /// The step that failed.
    pub step: Step,
    /// Why.
    pub error: Error,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for StartError {}

/// Says which step an error belongs to.
fn at(step: Step) -> impl Fn(Error) -> StartError {
    move |error| StartError { step, error }
}

/// A pool that is being served. [`Self::stop`] it: only that reports what went wrong at the end.
#[derive(Debug)]
pub struct Daemon {
    store: Store,
    server: Arc<Server>,
    control: ControlServer,
    control_path: PathBuf,
}

impl Daemon {
    /// Starts everything; when this returns, clients can connect.
    ///
    /// `progress` hears of the making of the pool, if it is made.
    pub fn start(
        options: &DaemonOptions,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> std::result::Result<Self, StartError> {
        let DaemonOptions { pool, settings } = options;
        let bind = || control_socket(pool, settings).map_err(at(Step::Control));
        let mut socket = None;
        if let Some(size) = settings.create
            && !exists(pool).map_err(at(Step::Create))?
        {
            // Nothing is made that could not be served.
            socket = Some(bind()?);
            create_pool(pool, size.0, progress).map_err(at(Step::Create))?;
        }
        let store = Store::open(pool, &store_options(settings)).map_err(at(Step::Open))?;
        create_volumes(&store, settings).map_err(at(Step::Volumes))?;
        let socket = socket.map_or_else(bind, Ok)?;
        let control_path = socket.path().to_path_buf();
        let server = listen(&store, pool, settings).map_err(at(Step::Listen))?;
        let server = Arc::new(server);
        let facts = facts(pool, Arc::clone(&server));
        let control = ControlServer::start(socket, store.clone(), Box::new(facts));
        let control = control.map_err(at(Step::Control))?;
        tracing::info!(
            "serving {} on {}",
            pool.display(),
            server.uris("").join(" ")
        );
        Ok(Self {
            store,
            server,
            control,
            control_path,
        })
    }

    /// Where NBD clients find an export: a URI for each address. The empty name is the only volume.
    pub fn uris(&self, export: &str) -> Vec<String> {
        self.server.uris(export)
    }

    /// Where the control API answers.
    pub fn control_path(&self) -> &Path {
        &self.control_path
    }

    /// The open pool.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Stops in order: no new operations, no new requests, those in flight are finished, everything
    /// is durable, the pool is let go.
    pub fn stop(mut self) -> Result<()> {
        self.control.stop();
        // The control API was the only other one that looked at it.
        if let Some(server) = Arc::into_inner(self.server) {
            server.shutdown();
        }
        self.store.close().wait()
    }
}

fn exists(pool: &Path) -> Result<bool> {
    pool.try_exists()
        .map_err(|e| Error::io(format!("pool {}", pool.display()), e))
}

fn create_pool(pool: &Path, size: u64, progress: &mut (dyn FnMut(Progress) + Send)) -> Result<()> {
    tracing::info!(
        "making pool {} of {}",
        pool.display(),
        crate::size::human(size)
    );
    let options = InitOptions {
        size: Some(size),
        ..InitOptions::default()
    };
    Store::init(pool, &options, progress)
}

fn store_options(settings: &Settings) -> Options {
    let processors = || std::thread::available_parallelism().map_or(1, usize::from);
    Options {
        workers: settings.workers.map_or_else(processors, usize::from),
        overcommit: settings.overcommit,
        ..Options::default()
    }
}

fn create_volumes(store: &Store, settings: &Settings) -> Result<()> {
    for VolumeSize { name, size } in &settings.volume {
        let exists = match store.volume(name) {
            Ok(found) => !found.deleted,
            Err(e) if e.kind() == ErrorKind::NotFound => false,
            Err(e) => return Err(e),
        };
        if !exists {
            let made = store.create_volume(name, size.0, false).wait();
            made.map_err(|e| Error::new(e.kind(), format!("volume {name:?}: {e}")))?;
            tracing::info!("made volume {name:?} of {size}");
        }
    }
    Ok(())
}

/// `pool` with `suffix` behind its name.
fn beside(pool: &Path, suffix: &str) -> PathBuf {
    let mut path = pool.as_os_str().to_os_string();
    path.push(suffix);
    path.into()
}

/// The socket that was asked for; else, for root, the one where every client looks, if it can be
/// had; else one beside the pool.
fn control_socket(pool: &Path, settings: &Settings) -> Result<ControlSocket> {
    if let Some(path) = &settings.control {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        return ControlSocket::bind(&path);
    }
    let path = beside(pool, ".control.sock");
    if !rustix::process::geteuid().is_root() {
        return ControlSocket::bind(&path);
    }
    let wanted = Path::new(SOCKET_DEFAULT);
    let folder = wanted.parent().map_or(Ok(()), std::fs::create_dir_all);
    let folder = folder.map_err(|e| Error::io(format!("control socket {}", wanted.display()), e));
    folder
        .and_then(|()| ControlSocket::bind(wanted))
        .or_else(|e| {
            tracing::warn!("{e}; using {} instead", path.display());
            ControlSocket::bind(&path)
        })
}

fn listen(store: &Store, pool: &Path, settings: &Settings) -> Result<Server> {
    let mut options = ServeOptions {
        listen: settings.listen.clone(),
        insecure_tcp: settings.i_know_this_network_can_read_and_write_my_data,
        ..ServeOptions::default()
    };
    if options.listen.is_empty() {
        options.listen.push(Listen::Unix(beside(pool, ".sock")));
    }
    let tcp = options
        .listen
        .iter()
        .any(|listen| matches!(listen, Listen::Tcp(_)));
    let refusable = tcp && !options.insecure_tcp;
    Server::start(store, options).map_err(|e| {
        let kind = match e.kind() {
            io::ErrorKind::PermissionDenied if refusable => ErrorKind::InvalidArgument,
            io::ErrorKind::AddrInUse => ErrorKind::Busy,
            _ => ErrorKind::Io,
        };
        Error::new(kind, e.to_string())
    })
}

/// What the status tells about this process.
fn facts(pool: &Path, server: Arc<Server>) -> impl Fn() -> DaemonInfo + Send + Sync + 'static {
    let started = SystemTime::now();
    let pool_path = pool.display().to_string();
    move || DaemonInfo {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        started,
        pool_path: pool_path.clone(),
        uris: server.uris(""),
        connections: u64::try_from(server.connections()).unwrap_or(u64::MAX),
    }
}
