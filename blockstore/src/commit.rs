//! Group commit: one record and one device flush make every change so far durable.
//!
//! One commit is in flight; what arrives meanwhile gathers for the next. Whoever finds none in
//! flight leads it, for all volumes; the others wait for it to end.
use crate::error::{Error, ErrorKind, Result};
use crate::format::geometry::JOURNAL_START;
use crate::journal::Sealed;
use crate::pool::Pool;
use crate::units::{BLOCK_BYTES, BLOCK_SIZE, Record};

/// Ends a commit that its leader did not: it was dropped half-way, and nobody can tell what landed.
struct Lead<'a> {
    pool: &'a Pool,
    ended: bool,
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let abandoned = std::io::Error::other("the operation was dropped before its end");
            self.pool.poison("a commit", &abandoned);
        }
    }
}

impl Pool {
    /// FLUSH: makes every change published so far durable.
    pub(crate) async fn flush(&self) -> Result<()> {
        let newest = self.state.lock().journal.newest();
        self.commit(newest).await
    }

    /// Waits until record `want` is durable, and sees to it.
    pub(crate) async fn commit(&self, want: Record) -> Result<()> {
        loop {
            let ended = {
                let mut state = self.state.lock();
                if state.journal.durable >= want {
                    return Ok(());
                }
                state.check_writable()?;
                if state.journal.committing {
                    Some(self.committed.listen())
                } else {
                    state.journal.committing = true;
                    None
                }
            };
            match ended {
                Some(ended) => ended.await,
                None => self.lead_commit().await?,
            }
        }
    }

    async fn lead_commit(&self) -> Result<()> {
        let mut lead = Lead {
            pool: self,
            ended: false,
        };
        let batch = {
            let mut state = self.state.lock();
            state.journal.seal();
            state.journal.take_sealed()
        };
        let flushed = match self.write_records(&batch).await {
            Ok(()) => self.flush_device().await,
            Err(error) => Err(error),
        };
        lead.ended = true;
        flushed?;
        {
            let mut state = self.state.lock();
            state.journal.durable = state.journal.written;
            state.journal.committing = false;
        }
        self.committed.notify(usize::MAX);
        Ok(())
    }

    /// Writes sealed records, which lie one after another in the ring.
    async fn write_records(&self, batch: &[Sealed]) -> Result<()> {
        let Some(first) = batch.first() else {
            return Ok(());
        };
        let (start, ring) = {
            let state = self.state.lock();
            (JOURNAL_START, state.journal.ring_blocks())
        };
        let mut bytes = batch
            .iter()
            .flat_map(|record| &record.bytes)
            .copied()
            .collect::<Vec<_>>();
        let place = first.position % ring;
        let room = usize::try_from((ring - place) * BLOCK_BYTES).unwrap_or(usize::MAX);
        let wrapped = bytes.split_off(bytes.len().min(room));
        self.write_ordered("a journal write", start + place, bytes)
            .await?;
        if !wrapped.is_empty() {
            assert!(
                wrapped.len().is_multiple_of(BLOCK_SIZE),
                "records are whole blocks"
            );
            self.write_ordered("a journal write", start, wrapped)
                .await?;
        }
        if let Some(last) = batch.last() {
            self.state.lock().journal.written = last.number;
        }
        Ok(())
    }

    /// Writes a record that tells which one is durable, if none has yet: afterwards damage to the
    /// last record with changes is told from a torn tail. It is not flushed.
    pub(crate) async fn tell_durable(&self) -> Result<()> {
        let batch = {
            let mut state = self.state.lock();
            if state.journal.committing || state.refusal.is_some() {
                return Ok(());
            }
            if !state.journal.seal_durable() {
                return Ok(());
            }
            state.journal.committing = true;
            state.journal.take_sealed()
        };
        let mut lead = Lead {
            pool: self,
            ended: false,
        };
        let written = self.write_records(&batch).await;
        lead.ended = true;
        self.state.lock().journal.committing = false;
        self.committed.notify(usize::MAX);
        written
    }
}

/// The error of a pool that was closed.
pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Gone, "the store is closed")
}
