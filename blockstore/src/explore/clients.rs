//! Clients: every data and control operation, at random, several at once.
use super::model::{Content, Intent, IntentKind, World};
use super::{intending, with_model};
use crate::device::{Random, SimulatedClock};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::Pool;
use crate::read::Target;
use crate::request::Segment;
use crate::runtime::Clock;
use crate::units::{BLOCK_BYTES, Record};
use bytes::Bytes;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// What clients may do, and what may go wrong.
#[derive(Clone, Copy, Debug)]
pub(super) struct Habits {
    pub(super) volumes_max: usize,
    pub(super) snapshots_max: usize,
    /// Blocks of a new volume, at most.
    pub(super) size_max: u64,
    /// Blocks of a write, at most.
    pub(super) write_max: u64,
    /// The device was told to fail.
    pub(super) faults: bool,
    /// Weights: writes, trims and zeroes, reads, flushes, control, waiting.
    pub(super) weights: [u64; 6],
}

/// One client's surroundings.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) pool: Arc<Pool>,
    pub(super) clock: Arc<SimulatedClock>,
    pub(super) habits: Habits,
    /// Clients that have not ended.
    pub(super) alive: Rc<Cell<u32>>,
    pub(super) doing: Rc<Cell<&'static str>>,
}

fn violation(what: String) {
    with_model(|model| model.violations.push(what));
}

fn now() -> World {
    with_model(|model| model.now.clone())
}

/// One of a collection's items.
fn one<T>(random: &mut Random, items: Vec<T>) -> Option<T> {
    if items.is_empty() {
        return None;
    }
    let index = random.index(items.len());
    items.into_iter().nth(index)
}

pub(super) fn bytes_of(segments: Vec<Segment>) -> Vec<u8> {
    let mut all = Vec::new();
    for segment in segments {
        match segment {
            Segment::Data(data) => all.extend_from_slice(&data),
            Segment::Hole(length) => all.resize(all.len() + usize::try_from(length).unwrap(), 0),
        }
    }
    all
}

impl Client {
    pub(super) async fn run(self, mut random: Random, operations: u32) {
        for _ in 0..operations {
            self.step(&mut random).await;
        }
        self.alive.set(self.alive.get() - 1);
    }

    async fn step(&self, random: &mut Random) {
        let total = self.habits.weights.iter().sum();
        let mut draw = random.below(total);
        let mut kind = 0;
        while draw >= self.habits.weights[kind] {
            draw -= self.habits.weights[kind];
            kind += 1;
        }
        match kind {
            0 => self.write(random).await,
            1 => self.unmap(random).await,
            2 => self.read(random).await,
            3 => self.flush().await,
            4 => self.control(random).await,
            _ => self.wait(random).await,
        }
    }

    /// A failure must be one of those that the promise allows here.
    fn judge(&self, what: &str, error: &Error, allowed: &[ErrorKind]) {
        let faulty = [ErrorKind::Io, ErrorKind::Poisoned, ErrorKind::Corrupt];
        let expected = self.habits.faults && faulty.contains(&error.kind());
        if error.kind() == ErrorKind::NoSpace && allowed.contains(&ErrorKind::NoSpace) {
            let status = self.pool.status();
            if status.free > status.usable / 2 && status.free > 2048 * BLOCK_BYTES {
                violation(format!(
                    "{what}: {error:?} with {} of {} free",
                    status.free, status.usable
                ));
            }
        } else if !expected && !allowed.contains(&error.kind()) {
            violation(format!("{what}: {error:?}"));
        }
    }

    fn volume(&self, random: &mut Random) -> Option<(u64, Rc<Content>)> {
        let world = now();
        let live = world.volumes.iter().filter(|(_, volume)| volume.head != 0);
        let id = one(random, live.map(|(id, _)| *id).collect())?;
        Some((id, world.head(id)?.clone()))
    }

    async fn maybe_commit(&self, random: &mut Random, record: Option<Record>) {
        let Some(record) = record.filter(|_| random.chance(1, 5)) else {
            return;
        };
        self.doing.set("fua");
        match self.pool.commit(record).await {
            Ok(()) => with_model(|model| model.acknowledge(record)),
            Err(error) => self.judge("fua", &error, &[]),
        }
    }

    async fn write(&self, random: &mut Random) {
        let Some((volume, content)) = self.volume(random) else {
            return;
        };
        let (offset, length) = self.range(random, content.size, self.habits.write_max);
        let mut data = vec![0; usize::try_from(length).unwrap()];
        random.fill(&mut data);
        let data = Bytes::from(data);
        let kind = IntentKind::Write {
            volume,
            offset,
            data: data.clone(),
        };
        let intent = Intent::new(kind);
        self.doing.set("write");
        match intending(&intent, self.pool.write(volume, offset, data)).await {
            Ok(record) => {
                let published = (intent.published.get() == 1).then(|| intent.record.get());
                if record.is_none() || record != published {
                    violation(format!("a write is in {record:?}, not {published:?}"));
                }
                self.maybe_commit(random, record).await;
            }
            Err(error) => self.judge("write", &error, &[ErrorKind::NoSpace, ErrorKind::Gone]),
        }
    }

    /// A byte range of a volume: mostly small, often on block boundaries.
    fn range(&self, random: &mut Random, size: u64, blocks_max: u64) -> (u64, u64) {
        let blocks = size / BLOCK_BYTES;
        let most = if random.chance(1, 8) { blocks_max } else { 3 };
        let length = (1 + random.below(most)).min(blocks);
        let first = random.below(blocks - length + 1);
        let (mut start, mut end) = (first * BLOCK_BYTES, (first + length) * BLOCK_BYTES);
        if random.chance(2, 5) {
            start += random.below(BLOCK_BYTES);
        }
        if random.chance(2, 5) {
            end -= random.below(BLOCK_BYTES);
        }
        if end <= start {
            (start, end) = (first * BLOCK_BYTES, first * BLOCK_BYTES + 1);
        }
        (start, end - start)
    }

    async fn unmap(&self, random: &mut Random) {
        let Some((volume, content)) = self.volume(random) else {
            return;
        };
        let most = if random.chance(1, 2) {
            content.size / BLOCK_BYTES
        } else {
            8
        };
        let (offset, length) = self.range(random, content.size, most);
        let (offset, length) = if random.chance(1, 10) {
            (0, content.size)
        } else {
            (offset, length)
        };
        let end = offset + length;
        let start = with_model(|model| model.log.len());
        let allowed = [ErrorKind::NoSpace, ErrorKind::Gone];
        if random.chance(1, 2) {
            let intent = Intent::new(IntentKind::Trim {
                volume,
                offset,
                end,
            });
            self.doing.set("trim");
            match intending(&intent, self.pool.trim(volume, offset, length)).await {
                Ok(Some(record)) => {
                    let (low, high) = (offset.next_multiple_of(BLOCK_BYTES), end / BLOCK_BYTES);
                    self.check_zero(&intent, start, volume, low, high * BLOCK_BYTES);
                    self.maybe_commit(random, Some(record)).await;
                }
                Ok(None) => {}
                Err(error) => self.judge("trim", &error, &[ErrorKind::Gone]),
            }
            return;
        }
        let intent = Intent::new(IntentKind::Zero {
            volume,
            offset,
            end,
        });
        let allocate = random.chance(1, 4);
        self.doing.set("zero");
        match intending(&intent, self.pool.zero(volume, offset, length, allocate)).await {
            Ok(record) => {
                self.check_zero(&intent, start, volume, offset, end);
                self.maybe_commit(random, record).await;
            }
            Err(error) => self.judge("zero", &error, &allowed),
        }
    }

    /// A range must read as zeroes now, unless somebody else changed the volume since.
    fn check_zero(&self, intent: &Rc<Intent>, start: usize, volume: u64, low: u64, high: u64) {
        with_model(|model| {
            let foreign =
                |by: &Option<Rc<Intent>>| by.as_ref().is_none_or(|by| !Rc::ptr_eq(by, intent));
            let disturbed = model.log[start..].iter().any(|entry| foreign(&entry.by));
            let Some(content) = model.now.head(volume) else {
                return;
            };
            let zero = low >= high || content.bytes(low, high).iter().all(|byte| *byte == 0);
            if !disturbed && !zero {
                model
                    .violations
                    .push(format!("bytes {low}..{high} were zeroed and are not zero"));
            }
        });
    }

    async fn read(&self, random: &mut Random) {
        if random.chance(1, 4) {
            return self.read_snapshot(random).await;
        }
        let Some((volume, content)) = self.volume(random) else {
            return;
        };
        let (offset, length) = self.range(random, content.size, content.size / BLOCK_BYTES);
        let start = with_model(|model| model.log.len());
        self.doing.set("read");
        match self.pool.read(Target::Volume(volume), offset, length).await {
            Ok(segments) => {
                let read = bytes_of(segments);
                let seen = with_model(|model| model.head_after(start, volume));
                if !seen
                    .iter()
                    .any(|content| content.bytes(offset, offset + length) == read)
                {
                    violation(format!(
                        "wrong bytes read from volume {volume} at {offset}+{length}"
                    ));
                }
            }
            Err(error) => self.judge("read", &error, &[ErrorKind::Gone]),
        }
    }

    async fn read_snapshot(&self, random: &mut Random) {
        let world = now();
        let all = world
            .volumes
            .values()
            .flat_map(|volume| volume.snapshots.values());
        let Some(id) = one(random, all.copied().collect()) else {
            return;
        };
        let content = world.versions[&id].clone();
        self.doing.set("read snapshot");
        match self.pool.read(Target::Version(id), 0, content.size).await {
            Ok(segments) if bytes_of(segments.clone()) == content.bytes(0, content.size) => {}
            Ok(_) => violation(format!("snapshot {id} has changed")),
            Err(error) => self.judge("read of a snapshot", &error, &[ErrorKind::Gone]),
        }
    }

    async fn flush(&self) {
        self.doing.set("flush");
        let newest = with_model(|model| model.newest());
        match self.pool.flush().await {
            Ok(()) => with_model(|model| model.acknowledge(newest)),
            Err(error) => self.judge("flush", &error, &[]),
        }
    }

    async fn wait(&self, random: &mut Random) {
        if random.chance(1, 3) {
            self.pool.want_checkpoint();
        }
        self.doing.set("wait");
        let most = [2, 30, 300, 3000][random.index(4)];
        self.clock
            .sleep(Duration::from_millis(random.below(most)))
            .await;
    }

    async fn control(&self, random: &mut Random) {
        let world = now();
        let volumes: Vec<_> = world.volumes.values().cloned().collect();
        let live: Vec<_> = volumes.iter().filter(|v| v.head != 0).cloned().collect();
        let pairs: Vec<(String, String)> = volumes
            .iter()
            .flat_map(|v| {
                v.snapshots
                    .keys()
                    .map(|name| (v.name.clone(), name.clone()))
            })
            .collect();
        let fresh = random.below(1000);
        let (few_volumes, few_snapshots) = (
            live.len() < self.habits.volumes_max,
            pairs.len() < self.habits.snapshots_max,
        );
        let draw = random.below(22);
        let intent = Intent::new(IntentKind::Control);
        self.doing.set("control");
        let pool = &self.pool;
        let (what, result) = match draw {
            0..3 if few_volumes => {
                let size = (1 + random.below(self.habits.size_max)) * BLOCK_BYTES;
                let name = format!("v{fresh}");
                (
                    "create",
                    intending(&intent, pool.create_volume(&name, size, false)).await,
                )
            }
            3..8 if few_snapshots => {
                let count = 1 + random.index(3);
                let name = format!("s{fresh}");
                let mut names: Vec<_> = live
                    .iter()
                    .map(|v| (v.name.clone(), name.clone()))
                    .collect();
                while names.len() > count {
                    names.remove(random.index(names.len()));
                }
                if names.is_empty() {
                    return;
                }
                (
                    "snapshot",
                    intending(&intent, pool.snapshot(&names)).await.map(drop),
                )
            }
            8..11 if few_volumes => {
                let mut sources: Vec<_> = live.iter().map(|v| v.name.clone()).collect();
                sources.extend(
                    pairs
                        .iter()
                        .map(|(volume, snapshot)| format!("{volume}@{snapshot}")),
                );
                let Some(source) = one(random, sources) else {
                    return;
                };
                let name = format!("c{fresh}");
                (
                    "clone",
                    intending(&intent, pool.clone_volume(&source, &name)).await,
                )
            }
            11..13 => {
                let Some((volume, snapshot)) = one(random, pairs) else {
                    return;
                };
                (
                    "rollback",
                    intending(&intent, pool.rollback(&volume, &snapshot)).await,
                )
            }
            13..17 => {
                let Some((volume, snapshot)) = one(random, pairs) else {
                    return;
                };
                (
                    "delete snapshot",
                    intending(&intent, pool.delete_snapshot(&volume, &snapshot)).await,
                )
            }
            17..19 => {
                let Some(volume) = one(random, live) else {
                    return;
                };
                (
                    "delete",
                    intending(&intent, pool.delete_volume(&volume.name)).await,
                )
            }
            19..21 => {
                let Some(volume) = one(random, live) else {
                    return;
                };
                let size = world.versions[&volume.head].size + random.below(20) * BLOCK_BYTES;
                (
                    "resize",
                    intending(&intent, pool.resize_volume(&volume.name, size)).await,
                )
            }
            21 => {
                let Some(volume) = one(random, volumes) else {
                    return;
                };
                let name = format!("r{fresh}");
                (
                    "rename",
                    intending(&intent, pool.rename_volume(&volume.name, &name)).await,
                )
            }
            _ => return,
        };
        self.judge_control(what, &intent, result);
    }

    fn judge_control(&self, what: &str, intent: &Intent, result: Result<()>) {
        let frees = matches!(what, "delete" | "delete snapshot" | "rename");
        match result {
            Ok(()) if intent.published.get() == 0 => violation(format!("{what} left no record")),
            Ok(()) => with_model(|model| model.acknowledge(intent.record.get())),
            Err(error) => {
                let mut allowed = vec![
                    ErrorKind::NotFound,
                    ErrorKind::AlreadyExists,
                    ErrorKind::InvalidArgument,
                ];
                if !frees {
                    allowed.push(ErrorKind::NoSpace);
                }
                self.judge(what, &error, &allowed);
            }
        }
    }

    /// Deletes everything.
    pub(super) async fn delete_all(self) {
        self.doing.set("delete all");
        for volume in now().volumes.values() {
            for snapshot in volume.snapshots.keys() {
                let intent = Intent::new(IntentKind::Control);
                let result =
                    intending(&intent, self.pool.delete_snapshot(&volume.name, snapshot)).await;
                self.judge_control("delete snapshot", &intent, result);
            }
            if volume.head != 0 {
                let intent = Intent::new(IntentKind::Control);
                let result = intending(&intent, self.pool.delete_volume(&volume.name)).await;
                self.judge_control("delete", &intent, result);
            }
        }
        self.alive.set(self.alive.get() - 1);
    }

    /// Reads everything and compares it with the model.
    pub(super) async fn compare_all(self) {
        self.doing.set("compare");
        let world = now();
        let (volumes, versions) = {
            let state = self.pool.state.lock();
            let shown = |kind| kind != crate::versions::Kind::Ghost;
            let volumes: Vec<_> = state
                .volumes
                .iter()
                .map(|(id, v)| (*id, v.name.clone(), v.head, v.snapshots.clone()))
                .collect();
            let versions: Vec<_> = state
                .versions
                .iter()
                .filter(|(_, v)| shown(v.kind))
                .map(|(id, v)| (*id, v.size))
                .collect();
            (volumes, versions)
        };
        let expected: Vec<_> = world
            .volumes
            .iter()
            .map(|(id, v)| (*id, v.name.clone(), v.head, v.snapshots.clone()))
            .collect();
        if volumes != expected {
            violation(format!("volumes are {volumes:?}, should be {expected:?}"));
        }
        let sizes: Vec<_> = world.versions.iter().map(|(id, v)| (*id, v.size)).collect();
        if versions != sizes {
            violation(format!("versions are {versions:?}, should be {sizes:?}"));
        }
        for (id, content) in &world.versions {
            let read = self.pool.read(Target::Version(*id), 0, content.size).await;
            match read.map(bytes_of) {
                Ok(read) => {
                    let right = content.bytes(0, content.size);
                    if let Some(at) = (0..right.len()).find(|at| read.get(*at) != right.get(*at)) {
                        violation(format!(
                            "version {id} differs at byte {at} (block {})",
                            at / 4096
                        ));
                    }
                }
                Err(error) => violation(format!("version {id}: {error:?}")),
            }
        }
        self.alive.set(self.alive.get() - 1);
    }
}
