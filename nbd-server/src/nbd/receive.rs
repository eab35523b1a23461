//! The incoming stream of one client, cut into headers and payloads.
use super::protocol::REQUEST_BYTES;
use crate::clients::Seat;
use crate::limits::{PROGRESS_BYTES, RECEIVE_BYTES, RECEIVE_BYTES_FIRST, STRAIGHT_BYTES};
use blockstore::device::Buffer;
use bytes::Bytes;
use std::rc::Rc;

/// The stream ended, or was ended: there is nobody to tell.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Gone;

/// Received bytes, and the client they come from.
#[derive(Debug)]
pub(super) struct Receiver {
    client: Rc<Seat>,
    /// `None` only while the kernel has it.
    buffer: Option<Buffer>,
    /// The bytes in `buffer` that were received and not taken.
    start: usize,
    end: usize,
    /// The buffer was too small for what there was.
    full: bool,
    /// The last payload was large, so the next may be too: do not receive it with its header.
    frugal: bool,
}

impl Receiver {
    pub(super) fn new(client: Rc<Seat>) -> Self {
        let buffer = Some(Buffer::new(RECEIVE_BYTES_FIRST));
        Self {
            client,
            buffer,
            start: 0,
            end: 0,
            full: false,
            frugal: false,
        }
    }

    /// What was received and not taken.
    pub(super) fn bytes(&self) -> &[u8] {
        self.buffer
            .as_ref()
            .map_or(&[], |buffer| &buffer[self.start..self.end])
    }

    /// Takes bytes that [`Self::bytes`] showed.
    pub(super) fn take(&mut self, count: usize) {
        assert!(
            count <= self.end - self.start,
            "more was taken than received"
        );
        self.start += count;
    }

    /// Receives at least one more byte.
    pub(super) async fn more(&mut self) -> Result<(), Gone> {
        self.more_up_to(usize::MAX).await
    }

    async fn more_up_to(&mut self, limit: usize) -> Result<(), Gone> {
        let mut buffer = self.buffer.take().ok_or(Gone)?;
        buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        // Most clients of an idle server never need more than the first buffer.
        if self.full && buffer.len() < RECEIVE_BYTES {
            let mut larger = Buffer::new(RECEIVE_BYTES);
            larger[..self.end].copy_from_slice(&buffer[..self.end]);
            buffer = larger;
        }
        assert!(
            self.end < buffer.len(),
            "a header or option is longer than the buffer"
        );
        let part = self.end..buffer.len().min(self.end.saturating_add(limit));
        let (result, buffer) = self.client.socket.receive(buffer, part).await;
        let count = result.unwrap_or(0);
        self.end += count;
        self.full = self.end == buffer.len();
        self.buffer = Some(buffer);
        self.client.incoming.moved();
        if count == 0 { Err(Gone) } else { Ok(()) }
    }

    /// The next command's header.
    pub(super) async fn header(&mut self) -> Result<[u8; REQUEST_BYTES], Gone> {
        let frugal = std::mem::take(&mut self.frugal);
        loop {
            if let Some(header) = self.bytes().first_chunk() {
                let header = *header;
                self.take(REQUEST_BYTES);
                return Ok(header);
            }
            let missing = REQUEST_BYTES - self.bytes().len();
            self.more_up_to(if frugal { missing } else { usize::MAX })
                .await?;
        }
    }

    /// The next `length` bytes, in block-aligned memory.
    pub(super) async fn payload(&mut self, length: usize) -> Result<Bytes, Gone> {
        let mut payload = Buffer::new(length);
        let mut filled = self.copy_to(&mut payload);
        self.frugal = length >= STRAIGHT_BYTES;
        if filled < length {
            self.client.incoming.waits(true);
            while filled < length && length - filled < STRAIGHT_BYTES {
                self.more().await?;
                filled += self.copy_to(&mut payload[filled..]);
            }
            while filled < length {
                let part = filled..length.min(filled + PROGRESS_BYTES);
                let wanted = part.len();
                let (result, returned) = self.client.socket.receive_all(payload, part).await;
                payload = returned;
                if result.unwrap_or(0) < wanted {
                    return Err(Gone);
                }
                self.client.incoming.moved();
                filled += wanted;
            }
            self.client.incoming.waits(false);
        }
        Ok(payload.freeze())
    }

    /// Throws the next `length` bytes away.
    pub(super) async fn skip(&mut self, mut length: usize) -> Result<(), Gone> {
        self.client.incoming.waits(true);
        loop {
            let part = length.min(self.bytes().len());
            self.take(part);
            length -= part;
            if length == 0 {
                break;
            }
            self.more().await?;
        }
        self.client.incoming.waits(false);
        Ok(())
    }

    fn copy_to(&mut self, target: &mut [u8]) -> usize {
        let part = target.len().min(self.bytes().len());
        target[..part].copy_from_slice(&self.bytes()[..part]);
        self.take(part);
        part
    }
}
