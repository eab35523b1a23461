//! Background deletion: trees and lists are taken apart in bounded steps.
//!
//! A step happens within one hold of the lock and is not journalled: what it frees, what it passes
//! on and how far the job is are frozen together by the next checkpoint. After a crash the job goes
//! on from the last checkpoint, and nothing that it freed since can have been used again (I7).
use crate::cache::NodeSource;
use crate::error::Result;
use crate::format::pointer::{NodeRef, Packed};
use crate::mapping::{Node, Path, path_to};
use crate::pool::Pool;
use crate::state::State;
use crate::units::{Address, Record};
use crate::versions::{Job, Output};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Steps between two rests, each of one leaf or list block.
const STEPS: u32 = 64;
/// How long a job rests, so that clients are served: about 100 000 leaves a minute are taken apart.
const REST: Duration = Duration::from_millis(20);
/// List entries of a step.
const ENTRIES: usize = 512;

/// Blocks that the next checkpoint may need because of a step: deadlist blocks for its entries, and
/// the catalogue blocks of the job and of a version or two.
const STEP_BLOCKS: u64 = 32;

/// How a step went.
#[derive(Debug)]
enum Step {
    Done,
    Finished,
    /// It must wait: for a checkpoint to write its list, or for what feeds it.
    Blocked,
    Load(NodeRef),
    Read(Packed),
}

impl Pool {
    /// Takes jobs apart until the pool closes.
    pub(crate) async fn run_jobs(self: Arc<Self>) {
        let mut steps = 0;
        let mut stopped = BTreeSet::new();
        loop {
            let work = self.job_work.listen();
            let (ids, closing, hurry) = {
                let mut state = self.state.lock();
                state.count_job_debt();
                let hurry = state.waiting_for_space > 0;
                let ids = state.jobs.keys().filter(|id| !stopped.contains(*id));
                (ids.copied().collect::<Vec<_>>(), state.closing, hurry)
            };
            if closing {
                return;
            }
            let mut moved = false;
            for id in ids {
                match self.step_job(id).await {
                    Ok(stepped) => moved |= stepped,
                    Err(error) => {
                        // Damage: its space stays in use, and `check` names it.
                        tracing::error!("background deletion {id} stops: {error}");
                        stopped.insert(id);
                    }
                }
                steps += 1;
                if steps >= STEPS && !hurry {
                    steps = 0;
                    self.clock.sleep(REST).await;
                }
                if self.state.lock().closing {
                    return;
                }
            }
            if !moved {
                work.await;
            }
        }
    }

    /// One step of a job; false if it has to wait.
    async fn step_job(&self, id: u64) -> Result<bool> {
        let mut loaded: Vec<Arc<Node>> = Vec::new();
        loop {
            let (step, reading) = {
                let mut state = self.state.lock();
                if state.check_writable().is_err() {
                    return Ok(false);
                }
                if state.left_for_jobs() < STEP_BLOCKS {
                    state.checkpoint_wanted |= state.checkpoint_gives_space();
                    self.wake_checkpoint(&state);
                    return Ok(false);
                }
                let nodes = NodeSource::new(&self.cache, &loaded);
                let step = match state.jobs.get(&id) {
                    None => return Ok(false),
                    Some(Job::Walk { .. }) => state.step_walk(id, &nodes),
                    Some(Job::Filter { .. }) => state.step_filter(id),
                };
                self.wake_checkpoint(&state);
                (step, state.readers.begin())
            };
            match step {
                Step::Done => return Ok(true),
                Step::Blocked => return Ok(false),
                Step::Finished => {
                    self.want_checkpoint(); // what it freed becomes free
                    return Ok(true);
                }
                Step::Load(stored) => loaded.push(self.load_node(&stored, &reading).await?),
                Step::Read(chain) => {
                    let block = self.read_list_block(chain).await?;
                    let mut state = self.state.lock();
                    state.filter_block(id, chain, block.previous, &block.entries);
                    return Ok(true);
                }
            }
        }
    }
}

impl State {
    /// Frees or passes on one leaf's worth at a walk's cursor.
    fn step_walk(&mut self, id: u64, nodes: &NodeSource<'_>) -> Step {
        let Some(Job::Walk {
            root,
            cut,
            cursor,
            output,
        }) = self.jobs.get(&id)
        else {
            return Step::Blocked;
        };
        let (cut, cursor, output) = (*cut, *cursor, *output);
        let end = root.span(&self.geometry);
        let skip_shared = output == Output::Discard;
        let skip = |birth| skip_shared && birth <= cut;
        let path = match path_to(root, &self.geometry, nodes, cursor, skip) {
            Ok(path) => path,
            Err(missing) => return Step::Load(missing),
        };
        self.changed.insert(id);
        let Some(Path {
            nodes: path,
            end: next,
        }) = path
        else {
            self.jobs.remove(&id);
            return Step::Finished;
        };
        if let Some(leaf) = path.last().filter(|node| node.header.level == 0) {
            let from = usize::try_from(cursor - leaf.header.first).unwrap_or(usize::MAX);
            for index in from..leaf.children_len() {
                let slot = leaf.slot(index);
                if !slot.is_hole() {
                    self.let_go(slot.address(), slot.birth(), false, cut, output);
                }
            }
        }
        for node in path.iter().rev() {
            let header = &node.header;
            if header.first + self.geometry.span(header.level) > next {
                break;
            }
            if header.birth > cut && header.birth > self.frozen {
                self.dirty_nodes -= 1;
            }
            self.let_go(header.address, header.birth, true, cut, output);
            if header.level > 0 {
                self.let_go(header.twin, header.birth, true, cut, output);
            }
        }
        if let Some(Job::Walk { cursor, .. }) = self.jobs.get_mut(&id) {
            *cursor = next;
        }
        if next >= end {
            self.jobs.remove(&id);
            return Step::Finished;
        }
        Step::Done
    }

    fn let_go(&mut self, address: Address, birth: Record, node: bool, cut: Record, to: Output) {
        if birth > cut {
            self.job_frees(address, birth, node);
            self.job_counts_off(to);
        } else {
            self.job_passes(Packed::new(address, 0, birth, 0), to);
        }
    }

    fn step_filter(&mut self, id: u64) -> Step {
        let fed = self.is_fed(id);
        let Some(Job::Filter { list, cut, output }) = self.jobs.get_mut(&id) else {
            return Step::Blocked;
        };
        let (cut, output) = (*cut, *output);
        let entries = list.pop_new(ENTRIES);
        if !entries.is_empty() {
            self.changed.insert(id);
            self.filter_entries(&entries, cut, output);
            return Step::Done;
        }
        match list.chain() {
            Some(chain) if !chain.is_hole() => Step::Read(chain),
            Some(_) if !fed => {
                assert!(list.is_empty(), "a list's count is not what it held");
                self.jobs.remove(&id);
                self.changed.insert(id);
                Step::Finished
            }
            _ => Step::Blocked,
        }
    }

    fn filter_entries(&mut self, entries: &[Packed], cut: Record, output: Output) {
        for entry in entries {
            if entry.birth() > cut {
                // Nodes and data alike: the list does not tell them apart, so none is free at once.
                self.job_frees(entry.address(), entry.birth(), false);
                self.job_counts_off(output);
            } else {
                self.job_passes(*entry, output);
            }
        }
    }

    /// The last block of a filter's chain was read: consumes it, unless a checkpoint has put
    /// another behind it meanwhile.
    fn filter_block(&mut self, id: u64, chain: Packed, previous: Packed, entries: &[Packed]) {
        let Some(Job::Filter { list, cut, output }) = self.jobs.get_mut(&id) else {
            return;
        };
        if list.chain() != Some(chain) {
            return;
        }
        list.shorten(previous, entries.len());
        let (cut, output) = (*cut, *output);
        self.changed.insert(id);
        self.filter_entries(entries, cut, output);
        self.allocator.free_gated(chain.address());
    }
}
