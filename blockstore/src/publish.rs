//! Publishing: an admitted change enters the journal and takes effect, at one instant, without I/O.
use crate::admit::Promise;
use crate::cache::NodeSource;
use crate::error::Result;
use crate::format::record::Change;
use crate::journal;
use crate::mapping::Node;
use crate::pool::Pool;
use crate::state::State;
use crate::units::Record;
use std::sync::Arc;

/// Bytes of data after which a commit happens although nobody asked for one.
pub(crate) const UNCOMMITTED_BYTES_MAX: u64 = 256 << 20;
/// Entries of the allocator's log after which a checkpoint is due.
const LOG_LEN_MAX: usize = 2 << 20;

impl State {
    /// Appends changes, encoded as `bytes`, to the open record and applies them: together, so that
    /// the order of the journal is the order in which changes took effect.
    pub(crate) fn enter(
        &mut self,
        changes: &[Change],
        bytes: &[u8],
        data_bytes: u64,
        nodes: &NodeSource<'_>,
    ) -> Result<Record> {
        self.journal.make_room(bytes.len());
        let now = self.journal.open_record();
        for change in changes {
            self.apply(change, now, nodes)?;
        }
        self.journal.append(bytes, data_bytes);
        #[cfg(test)]
        crate::explore::published(now, changes);
        if self.journal.is_large() {
            self.journal.seal();
        }
        Ok(now)
    }

    /// Whether the checkpointer should run.
    pub(crate) fn checkpoint_is_due(&self, dirty_max: u64) -> bool {
        let gated = self.allocator.gated();
        let gated_max = (self.allocator.usable() / 20)
            .min(self.allocator.free() / 2)
            .max(1024);
        self.checkpoint_wanted
            || self.journal.fill() > 500
            || self.dirty_nodes > dirty_max / 2
            || gated > gated_max
            || self.allocator.log_len() > LOG_LEN_MAX
    }
}

/// How publishing went.
#[derive(Debug)]
pub(crate) enum Published {
    /// It is in this record.
    In(Record),
    /// What it was based on is not current any more.
    Stale,
}

impl Pool {
    /// Publishes one change, made anew under the lock by `make` (`None`: it is stale), loading what
    /// its path needs first. The promise is redeemed only if it is published.
    pub(crate) async fn publish(
        &self,
        promise: &mut Promise<'_>,
        data_bytes: u64,
        mut make: impl FnMut(&mut State, &NodeSource<'_>) -> Result<Made>,
    ) -> Result<Published> {
        let mut loaded: Vec<Arc<Node>> = Vec::new();
        loop {
            let (missing, reading) = {
                let mut state = self.state.lock();
                state.check_writable()?;
                let nodes = NodeSource::new(&self.cache, &loaded);
                let change = match make(&mut state, &nodes)? {
                    Made::Stale => return Ok(Published::Stale),
                    Made::Missing(missing) => Err(missing),
                    Made::Change(change) => state.missing(&change, &nodes)?.map_or(Ok(change), Err),
                };
                match change {
                    Err(missing) => (missing, state.readers.begin()),
                    Ok(change) => {
                        let changes = [change];
                        let bytes = journal::encode(&changes);
                        promise.redeem(&mut state);
                        let record = state.enter(&changes, &bytes, data_bytes, &nodes)?;
                        self.wake(&state);
                        return Ok(Published::In(record));
                    }
                }
            };
            loaded.push(self.load_node(&missing, &reading).await?);
        }
    }

    /// Wakes whoever has work after a change.
    pub(crate) fn wake(&self, state: &State) {
        self.wake_checkpoint(state);
        if state.journal.uncommitted_bytes > UNCOMMITTED_BYTES_MAX || state.journal.has_sealed() {
            self.commit_work.notify(usize::MAX);
        }
        if !state.jobs.is_empty() {
            self.job_work.notify(usize::MAX);
        }
    }

    /// Wakes the checkpointer if a checkpoint is due.
    pub(crate) fn wake_checkpoint(&self, state: &State) {
        if state.checkpoint_is_due(self.options.dirty_nodes_max()) {
            self.checkpoint_work.notify(usize::MAX);
        }
    }
}

/// What a caller of [`Pool::publish`] makes under the lock.
#[derive(Debug)]
pub(crate) enum Made {
    Change(Change),
    /// This node is needed to tell.
    Missing(crate::format::pointer::NodeRef),
    Stale,
}
