//! The scrub: reads and verifies everything once, in the background, and mends what has a twin.
//!
//! Each version is walked for what was born after its cut, so that shared blocks are read once. The
//! cursor is a version and a block; it survives a stop, not a restart.
use crate::cache::NodeSource;
use crate::device::Buffer;
use crate::error::{Error, ErrorKind, Result};
use crate::format::checksum;
use crate::format::pointer::{NodeRef, Packed};
use crate::info::ScrubStatus;
use crate::limits::SCRUB_FINDINGS_MAX;
use crate::mapping::{Node, Path, path_to};
use crate::pool::Pool;
use crate::readers::Reading;
use crate::state::State;
use crate::units::{Address, BLOCK_SIZE};
use std::sync::Arc;
use std::time::Duration;

/// How long the scrub rests after each leaf's worth of data: at most about 1 GB/s is read.
const REST: Duration = Duration::from_millis(1);

/// Where the scrub is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scrub {
    pub(crate) status: ScrubStatus,
    version: u64,
    block: u64,
}

/// What one step verifies.
struct Work {
    nodes: Vec<NodeRef>,
    data: Vec<Packed>,
    what: String,
    next: u64,
}

impl State {
    /// Starts the scrub, or lets it go on from where it stopped.
    pub(crate) fn start_scrub(&mut self) -> Result<()> {
        if self.scrub.status.running {
            return Err(Error::new(ErrorKind::Busy, "a scrub is running already"));
        }
        let used = self.allocator.used();
        let scrub = &mut self.scrub;
        if (scrub.version, scrub.block) == (0, 0) {
            scrub.status.blocks_done = 0;
            scrub.status.findings.clear();
        }
        scrub.status.blocks_total = used;
        scrub.status.running = true;
        Ok(())
    }

    /// What is at the cursor; `Ok(None)` at the end of a version.
    fn scrub_work(
        &self,
        id: u64,
        block: u64,
        nodes: &NodeSource<'_>,
    ) -> std::result::Result<Option<Work>, NodeRef> {
        let Some(version) = self.versions.get(&id) else {
            return Ok(None);
        };
        let cut = version.cut;
        let path = path_to(&version.root, &self.geometry, nodes, block, |birth| {
            birth <= cut
        })?;
        let Some(Path { nodes: path, end }) = path else {
            return Ok(None);
        };
        // A node is verified when the cursor comes to its first block, unless it is only in memory.
        let first_visit = |node: &&Arc<Node>| node.header.first == block;
        let stored = path
            .iter()
            .filter(first_visit)
            .filter_map(|node| node.stored())
            .collect();
        let leaf = path.last().filter(|node| node.header.level == 0);
        let slots = leaf.map_or(Vec::new(), |leaf| {
            (0..leaf.children_len())
                .map(|index| leaf.slot(index))
                .collect()
        });
        let own = |slot: &Packed| !slot.is_hole() && slot.birth() > cut;
        Ok(Some(Work {
            nodes: stored,
            data: slots.into_iter().filter(own).collect(),
            what: format!("{} at blocks {block} to {}", self.title(id), end - 1),
            next: end,
        }))
    }

    /// A version as its users call it.
    pub(crate) fn title(&self, id: u64) -> String {
        let Some(version) = self.versions.get(&id) else {
            return format!("version {id}");
        };
        let volume = self
            .volumes
            .get(&version.volume)
            .map_or("a deleted volume", |v| &v.name);
        match version.kind {
            crate::versions::Kind::Head => format!("volume {volume}"),
            crate::versions::Kind::Snapshot => format!("snapshot {volume}@{}", version.name),
            crate::versions::Kind::Ghost => format!("a deleted snapshot of {volume}"),
        }
    }

    fn advance_scrub(&mut self, version: u64, block: u64) {
        (self.scrub.version, self.scrub.block) = (version, block);
    }
}

impl Pool {
    /// Scrubs while it is told to, until the pool closes.
    pub(crate) async fn run_scrub(self: Arc<Self>) {
        loop {
            let work = self.scrub_work.listen();
            let (closing, running) = {
                let state = self.state.lock();
                (state.closing, state.scrub.status.running)
            };
            if closing {
                return;
            }
            if running {
                self.scrub_step().await;
                self.clock.sleep(REST).await;
            } else {
                work.await;
            }
        }
    }

    async fn scrub_step(&self) {
        let mut loaded: Vec<Arc<Node>> = Vec::new();
        loop {
            let (found, reading, id) = {
                let mut state = self.state.lock();
                let Scrub { version, block, .. } = state.scrub;
                let Some(id) = state.versions.range(version..).next().map(|(id, _)| *id) else {
                    state.advance_scrub(0, 0);
                    state.scrub.status.running = false;
                    state.scrub.status.rounds += 1;
                    return;
                };
                let block = if id == version { block } else { 0 };
                let nodes = NodeSource::new(&self.cache, &loaded);
                match state.scrub_work(id, block, &nodes) {
                    Ok(None) => {
                        state.advance_scrub(id + 1, 0);
                        continue;
                    }
                    Ok(Some(work)) => (Ok(work), state.readers.begin(), id),
                    Err(missing) => (Err((missing, block)), state.readers.begin(), id),
                }
            };
            match found {
                Ok(work) => {
                    let next = work.next;
                    self.verify(work, &reading).await;
                    self.state.lock().advance_scrub(id, next);
                    return;
                }
                Err((missing, block)) => match self.load_node(&missing, &reading).await {
                    Ok(node) => loaded.push(node),
                    Err(error) => {
                        // Both copies are lost: what is below cannot be found.
                        let mut state = self.state.lock();
                        let title = state.title(id);
                        let span = state.geometry.span(missing.level);
                        state.note_damage(format!("{title}, from block {block}: {error}"));
                        state.advance_scrub(id, (block / span + 1) * span);
                        return;
                    }
                },
            }
        }
    }

    async fn verify(&self, work: Work, _reading: &Reading) {
        let Work {
            nodes, data, what, ..
        } = work;
        let mut done = 0;
        for node in nodes {
            done += 1 + u64::from(node.twin != Address(0));
            self.verify_node(&node, &what).await;
        }
        let adjacent = |a: &Packed, b: &Packed| a.address().0 + 1 == b.address().0;
        for run in data.chunk_by(adjacent) {
            done += run.len() as u64;
            let Some(start) = run.first().map(|slot| slot.address()) else {
                continue;
            };
            let buffer = Buffer::new(run.len() * BLOCK_SIZE);
            let (buffer, read) = self.device.read(start.0, buffer).await;
            for (slot, block) in run.iter().zip(buffer.as_chunks::<BLOCK_SIZE>().0) {
                let why = match &read {
                    Err(error) => error.to_string(),
                    Ok(()) if checksum(block) != slot.crc() => "checksum mismatch".to_owned(),
                    Ok(()) => continue,
                };
                let mut state = self.state.lock();
                state.note_damage(format!("{what}: data {}: {why}", slot.address()));
            }
        }
        self.state.lock().scrub.status.blocks_done += done;
    }

    /// Verifies both copies of a node, and writes a bad one anew from the good one.
    async fn verify_node(&self, node: &NodeRef, what: &str) {
        let first = self.read_block(node.address, node.crc).await;
        if node.twin == Address(0) {
            if let Err(error) = first {
                self.state
                    .lock()
                    .note_damage(format!("{what}: mapping leaf {error}"));
            }
            return;
        }
        let second = self.read_block(node.twin, node.crc).await;
        let (good, bad, error) = match (first, second) {
            (Ok(_), Ok(_)) => return,
            (Ok(good), Err(error)) => (good, node.twin, error),
            (Err(error), Ok(good)) => (good, node.address, error),
            (Err(error), Err(_)) => {
                self.state
                    .lock()
                    .note_damage(format!("{what}: mapping node, both copies: {error}"));
                return;
            }
        };
        let mended = match self.device.write(bad.0, good.freeze()).await {
            Ok(()) => "mended from its twin".to_owned(),
            Err(failure) => format!("and cannot be mended: {failure}"),
        };
        self.state
            .lock()
            .note_damage(format!("{what}: mapping node {error}; {mended}"));
    }
}

impl State {
    fn note_damage(&mut self, finding: String) {
        tracing::error!("scrub: {finding}");
        self.checksum_errors += 1;
        if self.scrub.status.findings.len() < SCRUB_FINDINGS_MAX {
            self.scrub.status.findings.push(finding);
        }
    }
}
