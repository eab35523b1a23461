//! Where the server listens: how an address is written, checked, bound and shown.
use crate::limits::BACKLOG;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType};
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// An address to listen on: `unix:PATH` or `tcp:HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A unix socket, created with mode 0600.
    Unix(PathBuf),
    /// `HOST:PORT`, resolved when the server starts; port 0 is any free one.
    Tcp(String),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("address {text:?} is neither unix:PATH nor tcp:HOST:PORT");
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("tcp", address)) => {
                let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
                if host.is_empty() || port.parse::<u16>().is_err() {
                    return Err(wrong());
                }
                Ok(Self::Tcp(address.to_owned()))
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// A bound socket.
#[derive(Debug)]
pub(crate) enum Listener {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener, SocketAddr),
}

impl Listener {
    /// Binds an address. TCP beyond the loopback is refused unless `insecure_tcp`.
    pub(crate) fn bind(listen: &Listen, insecure_tcp: bool) -> io::Result<Self> {
        match listen {
            Listen::Unix(path) => bind_unix(path),
            Listen::Tcp(address) => bind_tcp(address, insecure_tcp),
        }
        .map_err(|error| io::Error::new(error.kind(), format!("listen on {listen}: {error}")))
    }

    /// The next client, or `WouldBlock`.
    pub(crate) fn accept(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Unix(listener, _) => listener.accept().map(|(stream, _)| stream.into()),
            Self::Tcp(listener, _) => listener.accept().map(|(stream, _)| stream.into()),
        }
    }

    /// The NBD URI of an export here, by the rules of the NBD project's `doc/uri.md`.
    pub(crate) fn uri(&self, export: &str) -> String {
        let export = percent_encoded(export.as_bytes(), b"/@:");
        match self {
            Self::Unix(_, path) => {
                let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                let path = percent_encoded(path.as_os_str().as_encoded_bytes(), b"/");
                format!("nbd+unix:///{export}?socket={path}")
            }
            Self::Tcp(_, address) => format!("nbd://{address}/{export}"),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(listener, _) => listener.as_fd(),
            Self::Tcp(listener, _) => listener.as_fd(),
        }
    }
}

/// Bound sockets. When dropped they stop listening, and unix sockets' paths are removed.
#[derive(Debug, Default)]
pub(crate) struct Listeners(pub(crate) Vec<Arc<Listener>>);

impl Drop for Listeners {
    fn drop(&mut self) {
        for listener in &self.0 {
            if let Listener::Unix(_, path) = &**listener {
                // If it is gone already, somebody else removed it.
                drop(std::fs::remove_file(path));
            }
            // Wakes who waits for a client, although it holds the socket open.
            let _ = rustix::net::shutdown(&**listener, Shutdown::Both);
        }
    }
}

fn bind_tcp(address: &str, insecure: bool) -> io::Result<Listener> {
    let addresses: Vec<SocketAddr> = address.to_socket_addrs()?.collect();
    if !insecure && let Some(far) = addresses.iter().find(|a| !a.ip().is_loopback()) {
        let why = format!(
            "{} is not a loopback address, and without TLS everybody who reaches it could read and \
             write every volume",
            far.ip()
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    let listener = TcpListener::bind(addresses.as_slice())?;
    listener.set_nonblocking(true)?;
    let bound = listener.local_addr()?;
    Ok(Listener::Tcp(listener, bound))
}

fn bind_unix(path: &Path) -> io::Result<Listener> {
    remove_stale(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // The mode that the path gets, without a moment in which it has another.
    rustix::fs::fchmod(&fd, Mode::RUSR | Mode::WUSR)?;
    let address = SocketAddrUnix::new(path).map_err(|error| match error {
        Errno::NAMETOOLONG => io::Error::new(
            io::ErrorKind::InvalidInput,
            "a unix socket's path may have at most 107 bytes",
        ),
        error => error.into(),
    })?;
    rustix::net::bind(&fd, &address)?;
    rustix::net::listen(&fd, BACKLOG)?;
    Ok(Listener::Unix(fd.into(), path.to_owned()))
}

/// Removes a socket that a dead server left behind. Anything else at that path stays.
fn remove_stale(path: &Path) -> io::Result<()> {
    let is_socket = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type().is_socket(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !is_socket {
        let why = "there is something else than a socket at that path";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another server answers there",
        )),
    }
}

/// RFC 3986: everything but unreserved characters and `kept` is escaped.
fn percent_encoded(bytes: &[u8], kept: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || kept.contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push('%');
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from(b"0123456789ABCDEF"[usize::from(digit)]));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn addresses_are_parsed_and_shown_alike() {
        for text in [
            "unix:/run/x.sock",
            "unix:a:b",
            "tcp:localhost:0",
            "tcp:[::1]:10809",
        ] {
            assert_eq!(
                text.parse::<Listen>().map(|l| l.to_string()),
                Ok(text.to_owned())
            );
        }
        for text in [
            "",
            "unix:",
            "tcp:",
            "tcp:1",
            "tcp::1",
            "tcp:h:70000",
            "udp:h:1",
            "/run/x",
        ] {
            assert!(text.parse::<Listen>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_unix_socket_is_for_its_owner_and_goes_with_the_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a b.sock");
        let listener = Listener::bind(&Listen::Unix(path.clone()), false).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let uri = listener.uri("vol@a b/ü");
        let path_text = path.to_str().unwrap().replace(' ', "%20");
        assert_eq!(
            uri,
            format!("nbd+unix:///vol@a%20b/%C3%BC?socket={path_text}")
        );
        drop(Listeners(vec![Arc::new(listener)]));
        assert!(!path.exists());
        assert!(UnixStream::connect(&path).is_err());
    }

    #[test]
    fn only_a_socket_that_nobody_answers_on_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listen = Listen::Unix(path.clone());
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a dead server's socket");
        let alive = Listener::bind(&listen, false).unwrap();
        let error = Listener::bind(&listen, false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(Listeners(vec![Arc::new(alive)]));
        std::fs::write(&path, "precious").unwrap();
        let error = Listener::bind(&listen, false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn tcp_beyond_the_loopback_needs_the_flag() {
        let far = Listen::Tcp("0.0.0.0:0".to_owned());
        let error = Listener::bind(&far, false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(Listener::bind(&far, true).is_ok());
        let near = Listener::bind(&Listen::Tcp("127.0.0.1:0".to_owned()), false).unwrap();
        assert!(near.uri("v").starts_with("nbd://127.0.0.1:"));
        assert!(!near.uri("v").contains(":0/"));
    }
}
