//! What the pool must hold: plain volumes of blocks, changed in the order of publication.
use crate::format::checksum;
use crate::format::record::{Change, Run};
use crate::units::{BLOCK_BYTES, BLOCK_SIZE, Record};
use bytes::Bytes;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// What a client asks for, so that what is published can be compared with it.
#[derive(Debug)]
pub(super) struct Intent {
    pub(super) kind: IntentKind,
    /// The last record that something of it was published in, and how often.
    pub(super) record: Cell<Record>,
    pub(super) published: Cell<u32>,
}

#[derive(Debug)]
pub(super) enum IntentKind {
    Write {
        volume: u64,
        offset: u64,
        data: Bytes,
    },
    Zero {
        volume: u64,
        offset: u64,
        end: u64,
    },
    Trim {
        volume: u64,
        offset: u64,
        end: u64,
    },
    Control,
}

impl Intent {
    pub(super) fn new(kind: IntentKind) -> Rc<Self> {
        Rc::new(Self {
            kind,
            record: Cell::default(),
            published: Cell::default(),
        })
    }
}

/// The content of one version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) size: u64,
    /// Blocks that are not zero, or were written as zeroes.
    pub(super) blocks: BTreeMap<u64, Bytes>,
}

impl Content {
    pub(super) fn block(&self, block: u64) -> Bytes {
        let found = self.blocks.get(&block).cloned();
        found.unwrap_or_else(|| crate::device::zeroes(BLOCK_SIZE))
    }

    /// Bytes `offset..end`.
    pub(super) fn bytes(&self, offset: u64, end: u64) -> Vec<u8> {
        let mut all = Vec::new();
        let first = offset / BLOCK_BYTES;
        for block in first..end.div_ceil(BLOCK_BYTES) {
            all.extend_from_slice(&self.block(block));
        }
        let skip = usize::try_from(offset - first * BLOCK_BYTES).unwrap();
        let length = usize::try_from(end - offset).unwrap();
        all[skip..skip + length].to_vec()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct VolumeModel {
    pub(super) name: String,
    pub(super) head: u64,
    pub(super) snapshots: BTreeMap<String, u64>,
}

/// All volumes and versions at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct World {
    pub(super) volumes: BTreeMap<u64, VolumeModel>,
    pub(super) versions: BTreeMap<u64, Rc<Content>>,
}

/// A published change, as the model understands it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) record: Record,
    pub(super) effect: Effect,
    pub(super) by: Option<Rc<Intent>>,
}

#[derive(Debug)]
pub(super) enum Effect {
    Map {
        version: u64,
        first: u64,
        blocks: Vec<Bytes>,
    },
    Unmap {
        version: u64,
        first: u64,
        end: u64,
    },
    Other(Change),
}

impl World {
    pub(super) fn head(&self, volume: u64) -> Option<&Rc<Content>> {
        self.versions.get(&self.volumes.get(&volume)?.head)
    }

    fn content(&mut self, version: u64) -> Result<&mut Content, String> {
        let content = self.versions.get_mut(&version);
        content
            .map(Rc::make_mut)
            .ok_or_else(|| format!("version {version} is not in the model"))
    }

    fn volume(&mut self, volume: u64) -> Result<&mut VolumeModel, String> {
        let found = self.volumes.get_mut(&volume);
        found.ok_or_else(|| format!("volume {volume} is not in the model"))
    }

    fn copy(&mut self, from: u64, to: u64) -> Result<(), String> {
        let content = self.versions.get(&from).cloned();
        let content = content.ok_or_else(|| format!("version {from} is copied but not there"))?;
        self.versions.insert(to, content);
        Ok(())
    }

    fn forget_empty(&mut self, volume: u64) {
        if self
            .volumes
            .get(&volume)
            .is_some_and(|v| v.head == 0 && v.snapshots.is_empty())
        {
            self.volumes.remove(&volume);
        }
    }

    pub(super) fn apply(&mut self, effect: &Effect) -> Result<(), String> {
        match effect {
            Effect::Map {
                version,
                first,
                blocks,
            } => {
                let content = self.content(*version)?;
                content
                    .blocks
                    .extend((*first..).zip(blocks.iter().cloned()));
            }
            Effect::Unmap {
                version,
                first,
                end,
            } => {
                let content = self.content(*version)?;
                content
                    .blocks
                    .retain(|block, _| block < first || block >= end);
            }
            Effect::Other(change) => self.control(change)?,
        }
        Ok(())
    }

    fn control(&mut self, change: &Change) -> Result<(), String> {
        match change {
            Change::Map { .. } | Change::Unmap { .. } | Change::Reap { .. } => {}
            Change::CreateVolume {
                volume,
                head,
                name,
                size,
                ..
            } => {
                let content = Content {
                    size: *size,
                    ..Content::default()
                };
                self.versions.insert(*head, Rc::new(content));
                self.add(*volume, *head, name);
            }
            Change::Clone {
                volume,
                head,
                source,
                name,
                ..
            } => {
                self.copy(*source, *head)?;
                self.add(*volume, *head, name);
            }
            Change::Snapshot { cuts, .. } => {
                for cut in cuts {
                    self.copy(cut.head, cut.version)?;
                    let owner = self.volumes.values_mut().find(|v| v.head == cut.head);
                    let owner = owner.ok_or_else(|| format!("{} is no head", cut.head))?;
                    owner.snapshots.insert(cut.name.clone(), cut.version);
                }
            }
            Change::Resize { volume, size } => {
                let head = self.volume(*volume)?.head;
                self.content(head)?.size = *size;
            }
            Change::Rename { volume, name } => self.volume(*volume)?.name.clone_from(name),
            Change::Rollback {
                volume,
                snapshot,
                head,
                ..
            } => {
                self.copy(*snapshot, *head)?;
                let old = std::mem::replace(&mut self.volume(*volume)?.head, *head);
                let old = self.versions.remove(&old).ok_or("no old head")?;
                let content = self.content(*head)?;
                content.size = content.size.max(old.size);
            }
            Change::DeleteVolume { volume } => {
                let head = std::mem::take(&mut self.volume(*volume)?.head);
                self.versions.remove(&head);
                self.forget_empty(*volume);
            }
            Change::DeleteSnapshot { version } => {
                self.versions.remove(version);
                for volume in self.volumes.values_mut() {
                    volume.snapshots.retain(|_, id| id != version);
                }
                let all: Vec<u64> = self.volumes.keys().copied().collect();
                all.into_iter().for_each(|id| self.forget_empty(id));
            }
        }
        Ok(())
    }

    fn add(&mut self, volume: u64, head: u64, name: &str) {
        let name = name.to_owned();
        self.volumes.insert(
            volume,
            VolumeModel {
                name,
                head,
                snapshots: BTreeMap::new(),
            },
        );
    }
}

/// What may and must be there after a crash now.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    /// The state at record `base_record`, and what came after it.
    base: World,
    base_record: Record,
    pub(super) log: Vec<Rc<Entry>>,
    pub(super) now: World,
    /// Every record up to here was acknowledged as durable.
    pub(super) floor: Record,
    pub(super) violations: Vec<String>,
}

impl Model {
    /// A change was published.
    pub(super) fn publish(&mut self, record: Record, changes: &[Change], by: Option<&Rc<Intent>>) {
        if record < self.newest() {
            self.violations
                .push(format!("{record} after {}", self.newest()));
        }
        for change in changes {
            let effect = match self.effect(change, by) {
                Ok(effect) => effect,
                Err(why) => {
                    self.violations.push(format!("{record}: {why}"));
                    continue;
                }
            };
            if let Err(why) = self.now.apply(&effect) {
                self.violations.push(format!("{record}: {why}"));
            }
            if let Some(by) = by {
                by.record.set(record);
                by.published.set(by.published.get() + 1);
            }
            self.log.push(Rc::new(Entry {
                record,
                effect,
                by: by.cloned(),
            }));
        }
    }

    /// The record of the newest change.
    pub(super) fn newest(&self) -> Record {
        self.log
            .last()
            .map_or(self.base_record, |entry| entry.record)
    }

    fn effect(&self, change: &Change, by: Option<&Rc<Intent>>) -> Result<Effect, String> {
        match change {
            Change::Map {
                version,
                first,
                runs,
            } => self.map_effect(*version, *first, runs, by),
            Change::Unmap {
                version,
                first,
                count,
            } => {
                let (volume, offset, end) = match by.map(|by| &by.kind) {
                    Some(
                        IntentKind::Zero {
                            volume,
                            offset,
                            end,
                        }
                        | IntentKind::Trim {
                            volume,
                            offset,
                            end,
                        },
                    ) => (*volume, *offset, *end),
                    _ => return Err("an unmap that nobody asked for".to_owned()),
                };
                let stop = first + count;
                if first * BLOCK_BYTES < offset || stop * BLOCK_BYTES > end {
                    return Err(format!("unmap {first}..{stop} of bytes {offset}..{end}"));
                }
                self.check_head(*version, volume)?;
                Ok(Effect::Unmap {
                    version: *version,
                    first: *first,
                    end: stop,
                })
            }
            other => Ok(Effect::Other(other.clone())),
        }
    }

    fn check_head(&self, version: u64, volume: u64) -> Result<(), String> {
        let head = self
            .now
            .volumes
            .get(&volume)
            .map_or(0, |volume| volume.head);
        if head == version {
            return Ok(());
        }
        Err(format!(
            "version {version} is changed, but {head} is the head of volume {volume}"
        ))
    }

    fn map_effect(
        &self,
        version: u64,
        first: u64,
        runs: &[Run],
        by: Option<&Rc<Intent>>,
    ) -> Result<Effect, String> {
        let (volume, offset, end, data) = match by.map(|by| &by.kind) {
            Some(IntentKind::Write {
                volume,
                offset,
                data,
            }) => (*volume, *offset, offset + data.len() as u64, Some(data)),
            Some(IntentKind::Zero {
                volume,
                offset,
                end,
            }) => (*volume, *offset, *end, None),
            _ => return Err("a mapping that nobody asked for".to_owned()),
        };
        self.check_head(version, volume)?;
        let content = self.now.versions.get(&version).ok_or("no such version")?;
        let crcs: Vec<u32> = runs
            .iter()
            .flat_map(|run| run.crcs.iter().copied())
            .collect();
        let stop = first + crcs.len() as u64;
        let whole = (offset / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
        if data.is_some() && (first, stop) != whole {
            return Err(format!(
                "blocks {first}..{stop} mapped for bytes {offset}..{end}"
            ));
        }
        let mut blocks = Vec::new();
        for (block, crc) in (first..).zip(&crcs) {
            let mut bytes = content.block(block).to_vec();
            let start = block * BLOCK_BYTES;
            let (low, high) = (offset.max(start), end.min(start + BLOCK_BYTES));
            if low >= high {
                return Err(format!("block {block} mapped for bytes {offset}..{end}"));
            }
            let at = |byte: u64, from: u64| usize::try_from(byte - from).unwrap();
            let place = &mut bytes[at(low, start)..at(high, start)];
            match data {
                Some(data) => place.copy_from_slice(&data[at(low, offset)..at(high, offset)]),
                None => place.fill(0),
            }
            if checksum(&bytes) != *crc {
                return Err(format!(
                    "block {block} of version {version} is published with other bytes than \
                     were written and were there"
                ));
            }
            blocks.push(bytes.into());
        }
        Ok(Effect::Map {
            version,
            first,
            blocks,
        })
    }

    /// Every change published so far was acknowledged as durable.
    pub(super) fn acknowledge(&mut self, record: Record) {
        self.floor = self.floor.max(record);
    }

    /// The power went, and a recovery accepted everything up to `last`.
    pub(super) fn recovered(&mut self, last: Record) {
        if last < self.floor {
            self.violations.push(format!(
                "recovered up to {last}, but {} was acknowledged",
                self.floor
            ));
        }
        let entries = std::mem::take(&mut self.log);
        for entry in entries.iter().filter(|entry| entry.record <= last) {
            if let Err(why) = self.base.apply(&entry.effect) {
                self.violations.push(why);
            }
        }
        self.now = self.base.clone();
        self.base_record = last;
        self.floor = last;
    }

    /// Forgets how the state up to `record`, which is durable, came about.
    pub(super) fn head_after(&self, start: usize, volume: u64) -> Vec<Rc<Content>> {
        let mut world = self.base.clone();
        let mut seen = Vec::new();
        for (index, entry) in self.log.iter().enumerate() {
            if index >= start {
                seen.extend(world.head(volume).cloned());
            }
            world.apply(&entry.effect).unwrap();
        }
        seen.extend(world.head(volume).cloned());
        seen
    }
}
