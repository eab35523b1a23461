//! A device on a file or block device.
use super::transfer::Transfer;
use super::{Buffer, Device, IoFuture, check_range, lock, zeroes};
use crate::{BLOCK_BYTES, BLOCK_SIZE, Error, ErrorKind, Progress, Result};
use bytes::Bytes;
use rustix::fs::{FallocateFlags, FileType, Mode, OFlags};
use rustix::fs::{fallocate, fcntl_getfl, fcntl_setfl, fstatfs, open, stat};
use rustix::io::Errno;
use std::fs::{self, File};
use std::future::ready;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Space is asked of the file system in pieces of this size, so that progress can be shown.
const ALLOCATE_BYTES: u64 = 1 << 30;
/// File system type of tmpfs (`TMPFS_MAGIC` in linux/magic.h).
const TMPFS: i64 = 0x0102_1994;

/// How to open a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// To read and write it, alone.
    ReadWrite,
    /// To read it, together with other readers.
    ReadOnly,
}

/// A pool's file or block device, locked, open for direct I/O where its file system takes it.
///
/// On a worker thread with a ring, I/O goes through the ring; otherwise it blocks.
#[derive(Debug)]
pub struct FileDevice {
    transfer: Transfer,
    blocks: u64,
}

impl FileDevice {
    /// Opens what is there.
    ///
    /// # Errors
    /// `NotFound`; `Busy` if another process, or this one, has it open and one of the two writes;
    /// `InvalidArgument` if it is neither file nor block device; `Io`.
    pub fn open(path: &Path, mode: OpenMode) -> Result<Self> {
        let failed =
            |error: Errno| Error::io(format!("cannot open {}", path.display()), error.into());
        let kind = FileType::from_raw_mode(stat(path).map_err(failed)?.st_mode);
        if !matches!(kind, FileType::RegularFile | FileType::BlockDevice) {
            let context = format!("{} is neither a file nor a block device", path.display());
            return Err(Error::new(ErrorKind::InvalidArgument, context));
        }
        let mut flags = OFlags::CLOEXEC;
        flags |= if mode == OpenMode::ReadWrite {
            OFlags::RDWR
        } else {
            OFlags::RDONLY
        };
        if kind == FileType::BlockDevice && mode == OpenMode::ReadWrite {
            flags |= OFlags::EXCL; // refuses a device that is mounted or has holders
        }
        let file = match open(path, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::BUSY) => return Err(in_use(path)),
            Err(error) => return Err(failed(error)),
        };
        lock::take(&file, path, mode == OpenMode::ReadOnly)?;
        let size = (&file).seek(SeekFrom::End(0));
        let size =
            size.map_err(|error| Error::io(format!("cannot size {}", path.display()), error))?;
        Self::of(file, path, size)
    }

    /// Makes a new file of `bytes`, a multiple of a block, with all its space allocated. Calls
    /// `progress` with bytes.
    ///
    /// # Errors
    /// `AlreadyExists`; `NoSpace`; `InvalidArgument` for a size that is no multiple; `Io`. No file
    /// is left behind.
    pub fn create(path: &Path, bytes: u64, progress: &mut dyn FnMut(Progress)) -> Result<Self> {
        if bytes == 0 || !bytes.is_multiple_of(BLOCK_BYTES) {
            let context = format!("size {bytes} is not a positive multiple of {BLOCK_BYTES} bytes");
            return Err(Error::new(ErrorKind::InvalidArgument, context));
        }
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::new(
                ErrorKind::NoSpace,
                format!("no space for {bytes} bytes in {}", path.display()),
            ),
            _ => Error::io(format!("cannot create {}", path.display()), error),
        };
        // A pool holds other people's data: only its owner may read it.
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file =
            open(path, flags, Mode::RUSR | Mode::WUSR).map_err(|error| failed(error.into()))?;
        let file = File::from(file);
        let made = lock::take(&file, path, false).and_then(|()| {
            allocate(&file, bytes, progress).map_err(failed)?;
            file.sync_all()
                .and_then(|()| sync_parent(path))
                .map_err(failed)?;
            Self::of(file, path, bytes)
        });
        if made.is_err()
            && let Err(error) = fs::remove_file(path)
        {
            tracing::warn!(%error, path = %path.display(), "could not remove an unfinished pool");
        }
        made
    }

    fn of(file: File, path: &Path, size: u64) -> Result<Self> {
        let failed = |error| Error::io(format!("cannot prepare {}", path.display()), error);
        let direct = set_direct(&file).map_err(failed)?;
        let in_memory = fstatfs(&file).is_ok_and(|system| system.f_type == TMPFS);
        let transfer = Transfer::new(file, direct, in_memory);
        Ok(Self {
            transfer,
            blocks: size / BLOCK_BYTES,
        })
    }

    /// The open file, to hand its lock to another process.
    pub fn file(&self) -> &File {
        self.transfer.file()
    }
}

impl Device for FileDevice {
    fn blocks(&self) -> u64 {
        self.blocks
    }

    fn read(&self, address: u64, buffer: Buffer) -> IoFuture<(Buffer, io::Result<()>)> {
        match check_range(self.blocks, address, buffer.len()) {
            Ok(()) => Box::pin(self.transfer.clone().read(address * BLOCK_BYTES, buffer)),
            Err(error) => Box::pin(ready((buffer, Err(error)))),
        }
    }

    fn write(&self, address: u64, data: Bytes) -> IoFuture<io::Result<()>> {
        match check_range(self.blocks, address, data.len()) {
            Ok(()) => Box::pin(self.transfer.clone().write(address * BLOCK_BYTES, data)),
            Err(error) => Box::pin(ready(Err(error))),
        }
    }

    fn flush(&self) -> IoFuture<io::Result<()>> {
        Box::pin(self.transfer.clone().flush())
    }

    fn backend(&self) -> &'static str {
        if self.transfer.used_ring() {
            "io_uring"
        } else {
            "blocking"
        }
    }
}

/// Why a block device cannot be opened alone.
fn in_use(path: &Path) -> Error {
    let holder = File::open(path).ok().as_ref().and_then(lock::holder);
    if holder.is_some() {
        return lock::busy(path, holder);
    }
    let by = match super::mounted(path) {
        Ok(Some(by)) => by,
        Ok(None) | Err(_) => "in use".to_owned(),
    };
    Error::new(
        ErrorKind::Busy,
        format!("device {} is {by}", path.display()),
    )
}

/// Turns direct I/O on, and off again if an aligned read does not work with it. False if it is off.
fn set_direct(file: &File) -> io::Result<bool> {
    let flags = fcntl_getfl(file)?;
    match fcntl_setfl(file, flags | OFlags::DIRECT) {
        Ok(()) => {}
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    match file.read_at(&mut Buffer::new(BLOCK_SIZE), 0) {
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
            fcntl_setfl(file, flags)?;
            Ok(false)
        }
        // Another error means that block 0 is damaged: that is for its reader to say.
        Ok(_) | Err(_) => Ok(true),
    }
}

/// Allocates the file's space, by writing zeroes where the file system cannot do it otherwise.
fn allocate(file: &File, bytes: u64, progress: &mut dyn FnMut(Progress)) -> io::Result<()> {
    let mut done = 0;
    while done < bytes {
        progress(Progress { done, total: bytes });
        let piece = ALLOCATE_BYTES.min(bytes - done);
        match fallocate(file, FallocateFlags::empty(), done, piece) {
            Ok(()) => done += piece,
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP) => {
                let zeroes = zeroes(usize::try_from(piece).unwrap_or(usize::MAX).min(1 << 20));
                file.write_all_at(&zeroes, done)?;
                done += zeroes.len() as u64;
            }
            Err(error) => return Err(error.into()),
        }
    }
    progress(Progress { done, total: bytes });
    Ok(())
}

/// Makes the file's name durable.
fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests;
