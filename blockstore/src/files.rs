//! Pools in files and on block devices: made, opened, and refused.
use crate::device::{Device, FileDevice, OpenMode, mounted, signature};
use crate::error::{Error, ErrorKind, Result};
use crate::info::Progress;
use crate::init::{format_device, geometry};
use crate::store::InitOptions;
use crate::units::BLOCK_BYTES;
use futures_util::FutureExt as _;
use std::io::Read as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::sync::Arc;

pub(crate) fn init(
    path: &Path,
    options: &InitOptions,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<()> {
    let shown = path.display();
    let is_device = match std::fs::metadata(path) {
        Ok(metadata) => Some(metadata.file_type().is_block_device()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(Error::io(shown, error)),
    };
    if is_device.is_some() && !options.force {
        refuse_what_is_used(path, is_device == Some(true))?;
    }
    let device = match is_device {
        Some(true) => FileDevice::open(path, OpenMode::ReadWrite)?,
        existing => {
            let size = options.size.ok_or_else(|| {
                let message = format!("{shown}: a pool in a file needs a size");
                Error::new(ErrorKind::InvalidArgument, message)
            })?;
            geometry(size, options.journal)?; // before anything is touched
            if existing.is_some() {
                // Locks it first: a pool that is open is not replaced.
                drop(FileDevice::open(path, OpenMode::ReadWrite)?);
                std::fs::remove_file(path).map_err(|error| Error::io(path.display(), error))?;
            }
            FileDevice::create(path, size / BLOCK_BYTES * BLOCK_BYTES, progress)?
        }
    };
    let bytes = device.blocks() * BLOCK_BYTES;
    let size = options.size.unwrap_or(bytes);
    if size > bytes {
        let message = format!("{shown} has {bytes} bytes, not {size}");
        return Err(Error::new(ErrorKind::InvalidArgument, message));
    }
    let geometry = geometry(size, options.journal)?;
    let pool_id = random_id()?;
    // Off the worker threads a device does its work when polled: once is enough.
    let formatted = format_device(&device, geometry, pool_id, progress).now_or_never();
    formatted.unwrap_or_else(|| {
        Err(Error::new(
            ErrorKind::InvalidArgument,
            "a pool cannot be made on a worker thread",
        ))
    })
}

fn refuse_what_is_used(path: &Path, is_device: bool) -> Result<()> {
    let shown = path.display();
    let exists = |what: String| Err(Error::new(ErrorKind::AlreadyExists, what));
    if let Some(place) = mounted(path)? {
        return exists(format!("{shown} is in use ({place}): unmount it first"));
    }
    match signature(path)? {
        Some(found) => exists(format!(
            "{shown} holds {found}; use --force to overwrite it"
        )),
        None if is_device => Ok(()),
        None => exists(format!("{shown} exists; use --force to overwrite it")),
    }
}

fn random_id() -> Result<[u8; 16]> {
    let mut id = [0; 16];
    let random = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut id));
    random.map_err(|error| Error::io("/dev/urandom", error))?;
    Ok(id)
}

pub(crate) fn open(path: &Path) -> Result<Arc<dyn Device>> {
    Ok(Arc::new(FileDevice::open(path, OpenMode::ReadWrite)?))
}
