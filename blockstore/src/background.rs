//! What runs besides requests: checkpoints, commits that nobody asked for, jobs, the scrub.
use crate::pool::Pool;
use crate::publish::UNCOMMITTED_BYTES_MAX;
use crate::state::State;
use crate::units::Record;
use futures_util::future::{Either, select};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

/// A change becomes durable after this time although nobody asked for it.
const COMMIT_AFTER: Duration = Duration::from_secs(1);
/// How often idleness is looked for.
const TICK: Duration = Duration::from_millis(200);
/// A pool idle for so many ticks takes a checkpoint, if there is anything to take.
const IDLE_TICKS: u32 = 5;

/// A background task: ends once the pool closes.
pub(crate) type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Pool {
    /// Everything that must run while the pool is open.
    pub(crate) fn background(self: &Arc<Self>) -> Vec<Task> {
        vec![
            Box::pin(Arc::clone(self).run_checkpoints()),
            Box::pin(Arc::clone(self).run_commits()),
            Box::pin(Arc::clone(self).run_jobs()),
            Box::pin(Arc::clone(self).run_scrub()),
        ]
    }

    /// Tells the background to end.
    pub(crate) fn stop_background(&self) {
        self.state.lock().closing = true;
        for event in [
            &self.checkpoint_work,
            &self.commit_work,
            &self.job_work,
            &self.scrub_work,
            &self.room,
        ] {
            event.notify(usize::MAX);
        }
    }

    async fn run_checkpoints(self: Arc<Self>) {
        loop {
            let work = self.checkpoint_work.listen();
            let due = {
                let state = self.state.lock();
                if state.closing {
                    return;
                }
                state.refusal.is_none() && state.checkpoint_is_due(self.options.dirty_nodes_max())
            };
            if !due {
                work.await;
            } else if self.checkpoint().await.is_err() {
                // It was logged, and the pool refuses changes from now on.
                work.await;
            }
        }
    }

    async fn run_commits(self: Arc<Self>) {
        let mut newest = self.state.lock().journal.newest();
        let mut quiet = 0;
        let mut committed_at = self.clock.now();
        loop {
            let work = self.commit_work.listen();
            let now = {
                let state = self.state.lock();
                if state.closing {
                    return;
                }
                state.journal.newest()
            };
            if self.wants_commit(now, self.clock.now().saturating_sub(committed_at)) {
                // A failure poisons the pool, which is how others learn of it.
                self.commit(now)
                    .await
                    .unwrap_or_else(|error| tracing::debug!("{error}"));
                committed_at = self.clock.now();
            }
            match select(work, pin!(self.clock.sleep(TICK))).await {
                Either::Left(_) => quiet = 0,
                Either::Right(_) => quiet = self.idle_tick(&mut newest, quiet).await,
            }
        }
    }

    fn wants_commit(&self, now: Record, waited: Duration) -> bool {
        let state = self.state.lock();
        let journal = &state.journal;
        state.refusal.is_none()
            && journal.durable < now
            && (waited >= COMMIT_AFTER
                || journal.has_sealed()
                || journal.uncommitted_bytes > UNCOMMITTED_BYTES_MAX)
    }

    /// Counts ticks without a change; does what an idle pool does.
    async fn idle_tick(&self, newest: &mut Record, quiet: u32) -> u32 {
        let (now, idle_work) = {
            let state = self.state.lock();
            (state.journal.newest(), state.has_idle_work())
        };
        if now != std::mem::replace(newest, now) {
            return 0;
        }
        self.tell_durable()
            .await
            .unwrap_or_else(|error| tracing::debug!("{error}"));
        *newest = self.state.lock().journal.newest();
        if quiet + 1 == IDLE_TICKS && idle_work {
            self.want_checkpoint();
        }
        quiet.saturating_add(1).min(IDLE_TICKS + 1)
    }
}

impl State {
    /// A checkpoint would free blocks, or shorten the next recovery.
    fn has_idle_work(&self) -> bool {
        self.refusal.is_none()
            && (self.allocator.gated() > 0 || self.dirty_nodes > 0 || !self.changed.is_empty())
    }
}
