//! The control socket: made for its owner alone, taken over only from the dead, removed at the end.
use blockstore::{Error, ErrorKind, Result};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 128;

/// A listening unix socket that only its owner can open. It is removed when dropped, unless
/// somebody else's is in its place by then.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket file.
    identity: (u64, u64),
}

impl ControlSocket {
    /// Listens at `path`, replacing a socket that nobody listens on any more.
    ///
    /// # Errors
    /// `Busy` if a daemon answers there, `AlreadyExists` if it is not a socket, `Io`.
    pub fn bind(path: &Path) -> Result<Self> {
        refuse_occupied(path)?;
        let failed = |e: rustix::io::Errno| io_error(path, e.into());
        // Nobody can connect before it is its owner's alone: it starts listening after the chmod,
        // and gets its name last.
        let temporary = path.with_file_name(format!(".basalt-{}", std::process::id()));
        let address = SocketAddrUnix::new(&temporary).map_err(failed)?;
        SocketAddrUnix::new(path).map_err(failed)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(failed)?;
        match fs::remove_file(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_error(path, e)),
            _ => rustix::net::bind(&socket, &address).map_err(failed)?,
        }
        let placed = fs::set_permissions(&temporary, Permissions::from_mode(0o600))
            .and_then(|()| rustix::net::listen(&socket, BACKLOG).map_err(io::Error::from))
            .and_then(|()| fs::metadata(&temporary))
            .and_then(|metadata| fs::rename(&temporary, path).map(|()| metadata));
        match placed {
            Ok(metadata) => Ok(Self {
                listener: socket.into(),
                path: path.into(),
                identity: (metadata.dev(), metadata.ino()),
            }),
            Err(e) => {
                drop(fs::remove_file(&temporary));
                Err(io_error(path, e))
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Another descriptor of the listening socket; it does not block.
    pub(super) fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if ours {
            drop(fs::remove_file(&self.path));
        }
    }
}

/// Fails unless `path` is free, or a socket whose listener is gone.
fn refuse_occupied(path: &Path) -> Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io_error(path, e)),
    };
    if !metadata.file_type().is_socket() {
        let context = format!(
            "control socket {}: a file that is no socket is there",
            path.display()
        );
        return Err(Error::new(ErrorKind::AlreadyExists, context));
    }
    match UnixStream::connect(path) {
        Ok(_) => {
            let context = format!("control socket {}: a daemon answers there", path.display());
            Err(Error::new(ErrorKind::Busy, context))
        }
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(e) => Err(io_error(path, e)),
    }
}

fn io_error(path: &Path, source: io::Error) -> Error {
    Error::io(format_args!("control socket {}", path.display()), source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_owner_may_open_it_and_it_is_removed_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let socket = ControlSocket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            0,
            "something is left behind"
        );
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "the stale socket is gone");
        let live = ControlSocket::bind(&path).unwrap();
        let error = ControlSocket::bind(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        UnixStream::connect(live.path()).unwrap();
    }

    #[test]
    fn a_file_in_its_place_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        fs::write(&path, "precious").unwrap();
        let error = ControlSocket::bind(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn somebody_elses_socket_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let socket = ControlSocket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        drop(socket);
        UnixStream::connect(&path).unwrap();
        drop(other);
    }
}
