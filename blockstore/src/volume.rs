//! DATA PATH IN: read, write, zero, trim and flush a byte range of one volume.
use crate::error::{Error, ErrorKind, Result};
use crate::extents::Class;
use crate::info::Extent;
use crate::limits::REQUEST_BYTES_MAX;
use crate::read::Target;
use crate::request::{Reply, Request, Segment};
use crate::runtime::Pending;
use crate::store::Store;
use bytes::{Bytes, BytesMut};
use std::sync::Arc;

/// An open volume or snapshot. Clones are one handle; it closes when the last is dropped.
///
/// The methods that return [`Pending`] start at once, on a worker thread, and go on whether or not
/// they are awaited. `execute`, `extents` and `dirty_since` are for code that runs on a worker
/// itself, and must be polled to their end.
#[derive(Clone, Debug)]
pub struct Volume(Arc<Open>);

#[derive(Debug)]
struct Open {
    store: Store,
    target: Target,
    name: String,
    read_only: bool,
}

impl Drop for Open {
    fn drop(&mut self) {
        if let (Target::Volume(id), false) = (self.target, self.read_only) {
            let mut state = self.store.pool().state.lock();
            if let Some(volume) = state.volumes.get_mut(&id) {
                volume.writers -= 1;
            }
        }
    }
}

impl Volume {
    /// The caller has counted the writer, if it is one.
    pub(crate) fn open(store: Store, target: Target, name: &str, read_only: bool) -> Self {
        Self(Arc::new(Open {
            store,
            target,
            name: name.to_owned(),
            read_only,
        }))
    }

    /// The name it was opened by: `VOLUME` or `VOLUME@SNAPSHOT`.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Size in bytes, now: it can grow while the handle is open. 0 once the volume is deleted.
    pub fn size(&self) -> u64 {
        let state = self.0.store.pool().state.lock();
        let version = self.0.target.version(&state).ok();
        version
            .and_then(|id| state.versions.get(&id))
            .map_or(0, |version| version.size)
    }

    /// Writes are refused.
    pub fn read_only(&self) -> bool {
        self.0.read_only
    }

    /// Does one request, on the worker thread that polls it. Must be polled to its end.
    ///
    /// `InvalidArgument`: the range is outside the volume or longer than a request may be (trims
    /// and zeroes excepted); `ReadOnly`; `NoSpace`; `Io`, `Corrupt`; `Poisoned`; `Gone`.
    pub async fn execute(&self, request: Request) -> Result<Reply> {
        let pool = self.0.store.pool();
        let volume = self.check(&request)?;
        let (record, fua) = match request {
            Request::Read { offset, length } => {
                return Ok(Reply::Data(pool.read(self.0.target, offset, length).await?));
            }
            Request::Flush => {
                pool.flush().await?;
                return Ok(Reply::Done);
            }
            Request::Write { offset, data, fua } => (pool.write(volume, offset, data).await?, fua),
            Request::Zero {
                offset,
                length,
                allocate,
                fua,
            } => (pool.zero(volume, offset, length, allocate).await?, fua),
            Request::Trim {
                offset,
                length,
                fua,
            } => (pool.trim(volume, offset, length).await?, fua),
        };
        if fua && let Some(record) = record {
            pool.commit(record).await?;
        }
        Ok(Reply::Done)
    }

    /// The volume's id for a request that is in order; 0 where none is needed.
    fn check(&self, request: &Request) -> Result<u64> {
        let (offset, length, changes) = match request {
            Request::Read { offset, length } => (*offset, *length, false),
            Request::Write { offset, data, .. } => (*offset, data.len() as u64, true),
            Request::Zero { offset, length, .. } | Request::Trim { offset, length, .. } => {
                (*offset, *length, true)
            }
            Request::Flush => return Ok(0),
        };
        let Open {
            target,
            name,
            read_only,
            ..
        } = &*self.0;
        let carries_data = matches!(request, Request::Read { .. } | Request::Write { .. });
        if carries_data && length > REQUEST_BYTES_MAX {
            let message = format!("a request of {length} bytes is more than {REQUEST_BYTES_MAX}");
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        let size = {
            let state = self.0.store.pool().state.lock();
            state.version(target.version(&state)?)?.size
        };
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("{name}: bytes {offset}+{length} are outside of its {size}"),
            ));
        }
        match target {
            Target::Volume(id) if !(changes && *read_only) => Ok(*id),
            Target::Version(_) if !changes => Ok(0),
            _ => Err(Error::new(
                ErrorKind::ReadOnly,
                format!("{name} is open for reading only"),
            )),
        }
    }

    /// Extents covering `offset` to at least one byte and at most `offset + length`, at most
    /// `extents_max` of them. On a worker thread; must be polled to its end.
    pub async fn extents(
        &self,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> Result<Vec<Extent>> {
        let end = offset.saturating_add(length).min(self.size());
        let is_data = |class| class == Class::Data;
        self.0
            .store
            .pool()
            .extents(None, self.0.target, offset..end, extents_max, is_data)
            .await
    }

    /// Extents (as [`Self::extents`], covering the range without gaps) where `allocated` means: the
    /// content may differ from snapshot `since` of the same volume.
    pub async fn dirty_since(
        &self,
        since: &str,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> Result<Vec<Extent>> {
        let end = offset.saturating_add(length).min(self.size());
        let pool = self.0.store.pool();
        let from = {
            let state = pool.state.lock();
            let volume = self.0.name.split('@').next().unwrap_or_default();
            Target::Version(state.snapshot_id(volume, since)?)
        };
        let changed = |class| class != Class::Same;
        pool.extents(Some(from), self.0.target, offset..end, extents_max, changed)
            .await
    }

    /// Reads `length` bytes at `offset`.
    pub fn read(&self, offset: u64, length: u64) -> Pending<Result<Bytes>> {
        let this = self.clone();
        self.0.store.spawn(async move {
            match this.execute(Request::Read { offset, length }).await? {
                Reply::Data(segments) => Ok(joined(segments)),
                Reply::Done => Ok(Bytes::new()),
            }
        })
    }

    /// Writes `data` at `offset`.
    pub fn write(&self, offset: u64, data: impl Into<Bytes>) -> Pending<Result<()>> {
        self.start(Request::Write {
            offset,
            data: data.into(),
            fua: false,
        })
    }

    /// Makes a range read as zeroes.
    pub fn zero(&self, offset: u64, length: u64) -> Pending<Result<()>> {
        self.start(Request::Zero {
            offset,
            length,
            allocate: false,
            fua: false,
        })
    }

    /// Gives a range's space back.
    pub fn trim(&self, offset: u64, length: u64) -> Pending<Result<()>> {
        self.start(Request::Trim {
            offset,
            length,
            fua: false,
        })
    }

    /// Makes everything that was answered durable.
    pub fn flush(&self) -> Pending<Result<()>> {
        self.start(Request::Flush)
    }

    fn start(&self, request: Request) -> Pending<Result<()>> {
        let this = self.clone();
        self.0
            .store
            .spawn(async move { this.execute(request).await.map(drop) })
    }
}

fn joined(mut segments: Vec<Segment>) -> Bytes {
    if segments.len() == 1
        && let Some(Segment::Data(data)) = segments.pop_if(|s| matches!(s, Segment::Data(_)))
    {
        return data;
    }
    let length: u64 = segments.iter().map(Segment::length).sum();
    let mut all = BytesMut::with_capacity(usize::try_from(length).unwrap_or_default());
    for segment in segments {
        match segment {
            Segment::Data(data) => all.extend_from_slice(&data),
            Segment::Hole(length) => {
                let end = all.len() + usize::try_from(length).unwrap_or_default();
                all.resize(end, 0);
            }
        }
    }
    all.freeze()
}
