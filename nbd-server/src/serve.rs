//! Starts and stops the NBD listeners (stand-in until the real one lands).
use blockstore::Store;
use std::path::PathBuf;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A unix socket, created 0600.
    Unix(PathBuf),
    /// `HOST:PORT`.
    Tcp(String),
}

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("tcp", address)) => Ok(Self::Tcp(address.into())),
            _ => Err(format!(
                "address {text:?} is neither unix:PATH nor tcp:HOST:PORT"
            )),
        }
    }
}

/// How to serve.
#[derive(Clone, Debug, Default)]
pub struct ServeOptions {
    /// Where to listen.
    pub listen: Vec<Listen>,
    /// Listen on TCP beyond the loopback.
    pub insecure_tcp: bool,
    /// Limits.
    pub limits: (),
}

/// Running listeners.
#[derive(Debug)]
pub struct Server {
    options: ServeOptions,
}

impl Server {
    /// Starts listening.
    pub fn start(_store: &Store, options: ServeOptions) -> std::io::Result<Self> {
        Ok(Self { options })
    }
    /// Where it listens.
    pub fn uris(&self, export: &str) -> Vec<String> {
        vec![format!("{export}{:?}", self.options)]
    }
    /// Connections now.
    pub fn connections(&self) -> usize {
        0
    }
    /// Stops accepting, finishes what is in flight, and returns.
    pub fn shutdown(self) {}
}
