//! What can be exported, and under which name.
use crate::clients::Clients;
use blockstore::{Access, Error, ErrorKind, Store, Volume};

/// An export, as the handshake describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Export {
    /// Its full name: `VOLUME` or `VOLUME@SNAPSHOT`.
    pub(crate) name: String,
    /// One line for people.
    pub(crate) description: String,
    /// Bytes.
    pub(crate) size: u64,
    /// Changes are refused.
    pub(crate) read_only: bool,
    /// The snapshots that it can be compared with.
    pub(crate) snapshots: Vec<String>,
}

/// Where the handshake looks names up.
pub(crate) trait Exports {
    /// An export, open for the transmission.
    type Opened;
    /// Name and description of every export.
    fn list(&self) -> Vec<(String, String)>;
    /// The export of that name, or a sentence for people that says why there is none.
    fn find(&self, name: &str) -> Result<Export, String>;
    /// Opens what [`Self::find`] found, or says why it cannot be opened.
    fn open(&self, export: &Export) -> Result<Self::Opened, String>;
    /// The server is stopping.
    fn stopping(&self) -> bool;
}

/// The volumes and snapshots of a store, for the clients of one server.
#[derive(Debug)]
pub(crate) struct StoreExports<'a> {
    pub(crate) store: &'a Store,
    pub(crate) clients: &'a Clients,
}

impl Exports for StoreExports<'_> {
    type Opened = Volume;

    fn list(&self) -> Vec<(String, String)> {
        let volumes = self.store.volumes().into_iter().filter(|v| !v.deleted);
        let volumes = volumes.map(|v| (v.name, describe_volume(v.usage.logical)));
        let snapshots = self.store.snapshots(None).unwrap_or_default().into_iter();
        let snapshots = snapshots.map(|s| {
            let name = format!("{}@{}", s.volume, s.name);
            (name, describe_snapshot(s.usage.logical, &s.volume))
        });
        volumes.chain(snapshots).collect()
    }

    /// The empty name is the only volume, if there is one.
    fn find(&self, name: &str) -> Result<Export, String> {
        let found = match name.split_once('@') {
            Some((volume, snapshot)) => find_snapshot(self.store, volume, snapshot),
            None if name.is_empty() => find_volume(self.store, &only_volume(self.store)?),
            None => find_volume(self.store, name),
        };
        found.map_err(|error| error.to_string())
    }

    fn open(&self, export: &Export) -> Result<Volume, String> {
        let access = if export.read_only {
            Access::Read
        } else {
            Access::Write
        };
        self.store
            .open_volume(&export.name, access)
            .map_err(|error| error.to_string())
    }

    fn stopping(&self) -> bool {
        self.clients.stopping()
    }
}

fn only_volume(store: &Store) -> Result<String, String> {
    let mut volumes = store.volumes();
    volumes.retain(|v| !v.deleted);
    match (volumes.pop(), volumes.len()) {
        (Some(volume), 0) => Ok(volume.name),
        (None, _) => Err("there is no volume to export".to_owned()),
        (Some(_), others) => Err(format!(
            "there are {} volumes: name one of them as the export",
            others + 1
        )),
    }
}

fn find_volume(store: &Store, name: &str) -> Result<Export, Error> {
    let volume = store.volume(name)?;
    if volume.deleted {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("volume {name} is deleted"),
        ));
    }
    let snapshots = store.snapshots(Some(name))?;
    Ok(Export {
        description: describe_volume(volume.usage.logical),
        name: volume.name,
        size: volume.usage.logical,
        read_only: false,
        snapshots: snapshots.into_iter().map(|s| s.name).collect(),
    })
}

/// A snapshot is compared with the older snapshots of its volume: an incremental backup.
fn find_snapshot(store: &Store, volume: &str, name: &str) -> Result<Export, Error> {
    let mut snapshots = store.snapshots(Some(volume))?;
    let Some(index) = snapshots.iter().position(|s| s.name == name) else {
        let context = format!("volume {volume} has no snapshot {name}");
        return Err(Error::new(ErrorKind::NotFound, context));
    };
    let size = snapshots[index].usage.logical;
    snapshots.truncate(index);
    Ok(Export {
        name: format!("{volume}@{name}"),
        description: describe_snapshot(size, volume),
        size,
        read_only: true,
        snapshots: snapshots.into_iter().map(|s| s.name).collect(),
    })
}

fn describe_volume(size: u64) -> String {
    format!("volume of {}", bytes_for_people(size))
}

fn describe_snapshot(size: u64, volume: &str) -> String {
    format!(
        "snapshot of {volume}, {}, read-only",
        bytes_for_people(size)
    )
}

/// The largest unit that divides the size.
fn bytes_for_people(size: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fits = |&&(shift, _): &&(u32, _)| size != 0 && size.is_multiple_of(1 << shift);
    match units.iter().find(fits) {
        Some((shift, unit)) => format!("{} {unit}", size >> shift),
        None => format!("{size} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_exact() {
        assert_eq!(bytes_for_people(0), "0 bytes");
        assert_eq!(bytes_for_people(4096), "4 KiB");
        assert_eq!(bytes_for_people(4097), "4097 bytes");
        assert_eq!(bytes_for_people(3 << 39), "1536 GiB");
        assert_eq!(bytes_for_people(1 << 46), "64 TiB");
    }
}
