//! DATA PATH IN: read, write, zero, trim and flush a byte range of one volume.
use crate::runtime::Pending;
use crate::*;
use bytes::Bytes;

/// An open volume or snapshot. Clones are one handle; it closes when the last is dropped.
#[derive(Clone, Debug)]
pub struct Volume {}

impl Volume {
    /// The name it was opened by: `VOLUME` or `VOLUME@SNAPSHOT`.
    pub fn name(&self) -> &str {
        unimplemented!()
    }
    /// Size in bytes, now: it can grow while the handle is open.
    pub fn size(&self) -> u64 {
        unimplemented!()
    }
    /// Writes are refused.
    pub fn read_only(&self) -> bool {
        unimplemented!()
    }
    /// Does one request, on the worker thread that polls it. Must be polled to its end.
    pub async fn execute(&self, _request: Request) -> Result<Reply> {
        unimplemented!()
    }
    /// Extents covering `offset` to at least one byte and at most `offset + length`, at most
    /// `extents_max` of them. On a worker thread; must be polled to its end.
    pub async fn extents(&self, _offset: u64, _length: u64, _max: usize) -> Result<Vec<Extent>> {
        unimplemented!()
    }
    /// Extents (as [`Self::extents`], covering the range without gaps) where `allocated` means: the
    /// content may differ from snapshot `since` of the same volume.
    pub async fn dirty_since(
        &self,
        _since: &str,
        _offset: u64,
        _length: u64,
        _max: usize,
    ) -> Result<Vec<Extent>> {
        unimplemented!()
    }
    /// Reads `length` bytes at `offset`.
    pub fn read(&self, _offset: u64, _length: u64) -> Pending<Result<Bytes>> {
        unimplemented!()
    }
    /// Writes `data` at `offset`.
    pub fn write(&self, _offset: u64, _data: impl Into<Bytes>) -> Pending<Result<()>> {
        unimplemented!()
    }
    /// Makes a range read as zeroes.
    pub fn zero(&self, _offset: u64, _length: u64) -> Pending<Result<()>> {
        unimplemented!()
    }
    /// Gives a range's space back.
    pub fn trim(&self, _offset: u64, _length: u64) -> Pending<Result<()>> {
        unimplemented!()
    }
    /// Makes everything that was answered durable.
    pub fn flush(&self) -> Pending<Result<()>> {
        unimplemented!()
    }
}
