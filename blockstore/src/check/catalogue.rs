//! The catalogue: its tree, its entries, and what they say of one another.
use super::Checker;
use crate::control::check_name;
use crate::format::entry::{Entry, Kind, Output, VersionEntry};
use crate::format::pointer::{NodeRef, Packed};
use crate::limits::{
    CATALOGUE_ENTRIES, CATALOGUE_ENTRY_BYTES, SNAPSHOTS_MAX, VOLUME_BYTES_MAX, VOLUMES_MAX,
};
use crate::mapping::Child;
use crate::units::{Address, Record};
use std::collections::{BTreeMap, BTreeSet};

/// A volume's entry.
#[derive(Debug)]
pub(super) struct VolumeEntry {
    pub(super) name: String,
    pub(super) head: u64,
}

/// What a job has to work on.
#[derive(Debug, Clone, Copy)]
pub(super) enum Work {
    Walk { root: Option<NodeRef>, cursor: u64 },
    Filter { chain: Packed, count: u64 },
}

/// A job's entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct JobEntry {
    pub(super) cut: Record,
    pub(super) output: Output,
    pub(super) work: Work,
}

/// All entries, by id.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    pub(super) volumes: BTreeMap<u64, VolumeEntry>,
    pub(super) versions: BTreeMap<u64, VersionEntry>,
    pub(super) jobs: BTreeMap<u64, JobEntry>,
    pub(super) children: BTreeMap<u64, Vec<u64>>,
}

impl Catalogue {
    /// Volumes and snapshots.
    pub(super) fn totals(&self) -> (u64, u64) {
        let kinds = self.versions.values().map(|version| version.kind);
        let snapshots = kinds.filter(|kind| *kind == Kind::Snapshot).count();
        (self.volumes.len() as u64, snapshots as u64)
    }

    /// A version as its users call it.
    pub(super) fn title(&self, id: u64) -> String {
        let Some(version) = self.versions.get(&id) else {
            return format!("version {id}");
        };
        let volume = self.volumes.get(&version.volume);
        let volume = volume.map_or("(deleted)", |volume| &volume.name);
        match version.kind {
            Kind::Head => format!("volume {volume}"),
            Kind::Snapshot => format!("snapshot {volume}@{}", version.name),
            Kind::Ghost => format!("deleted version {id} of volume {volume}"),
        }
    }

    /// The lowest cut of its children: when the version was frozen last.
    pub(super) fn frozen_at(&self, id: u64) -> Option<Record> {
        let children = self.children.get(&id)?.iter();
        let cut = |child| Some(self.versions.get(child)?.cut);
        children.filter_map(cut).min()
    }

    fn insert(&mut self, id: u64, entry: Entry) {
        let (job, work) = match entry {
            Entry::Volume { name, head, .. } => {
                self.volumes.insert(id, VolumeEntry { name, head });
                return;
            }
            Entry::Version(version) => {
                self.children.entry(version.parent).or_default().push(id);
                self.versions.insert(id, version);
                return;
            }
            Entry::Walk {
                root,
                cut,
                cursor,
                output,
            } => ((cut, output), Work::Walk { root, cursor }),
            Entry::Filter {
                cut,
                chain,
                count,
                output,
            } => ((cut, output), Work::Filter { chain, count }),
        };
        let (cut, output) = job;
        self.jobs.insert(id, JobEntry { cut, output, work });
    }
}

impl Checker<'_> {
    /// Reads the catalogue's tree and entries, and claims their blocks.
    pub(super) async fn read_catalogue(&mut self) {
        let mut nodes: Vec<(NodeRef, u64)> = self
            .superblock
            .catalogue
            .map(|root| (root, 0))
            .into_iter()
            .collect();
        while let Some((stored, first)) = nodes.pop() {
            let whose = || "the catalogue's tree".to_owned();
            let has_twin = stored.twin != Address(0);
            if !self.claim(stored.address, whose) || has_twin && !self.claim(stored.twin, whose) {
                continue;
            }
            let found = self.source.node(&stored, true).await;
            self.count_blocks(1 + u64::from(has_twin));
            for why in found.bad {
                self.problem(format!("I3: catalogue node: {why}"));
            }
            let Some(node) = found.node else { continue };
            if node.header.first != first || has_twin != (stored.level > 0) {
                self.problem(format!(
                    "I3: catalogue node {} is of another place",
                    stored.address
                ));
                continue;
            }
            for index in 0..node.children_len() {
                let at = index as u64;
                let birth = if node.header.level == 0 {
                    let slot = node.slot(index);
                    self.read_entries(slot, first + at).await;
                    slot.birth()
                } else if let Child::Stored(child) = node.child(index) {
                    nodes.push((
                        child,
                        first + at * self.superblock.geometry.span(child.level),
                    ));
                    child.birth
                } else {
                    continue;
                };
                if birth > stored.birth {
                    let address = stored.address;
                    self.problem(format!(
                        "I9: catalogue node {address} is older than its content"
                    ));
                }
            }
        }
        if self
            .superblock
            .catalogue
            .is_some_and(|root| root.birth > self.newest)
        {
            self.problem("I9: the catalogue is of the future".to_owned());
        }
    }

    async fn read_entries(&mut self, slot: Packed, index: u64) {
        if slot.is_hole() || !self.claim(slot.address(), || format!("catalogue block {index}")) {
            return;
        }
        let block = self.source.block(slot.address(), slot.crc()).await;
        self.count_blocks(1);
        let block = match block {
            Ok(block) => block,
            Err(why) => return self.problem(format!("I3: catalogue block {index}: {why}")),
        };
        for (at, bytes) in (0..).zip(block.chunks(CATALOGUE_ENTRY_BYTES)) {
            let expected = index * CATALOGUE_ENTRIES + at;
            match Entry::decode(bytes) {
                Some(None) => {}
                Some(Some((id, entry))) if id == expected => self.catalogue.insert(id, entry),
                Some(Some((id, _))) => {
                    self.problem(format!(
                        "catalogue: entry {id} is in the place of {expected}"
                    ));
                }
                None => self.problem(format!("catalogue: entry {expected} is damaged")),
            }
        }
    }

    /// Verifies what entries say of one another.
    pub(super) fn check_relations(&mut self) {
        let mut lines = Vec::new();
        let catalogue = &self.catalogue;
        catalogue.check_volumes(&mut lines);
        catalogue.check_versions(&mut lines);
        catalogue.check_outputs(&mut lines);
        let volumes = catalogue.volumes.keys().next_back();
        let versions = catalogue.versions.keys().next_back();
        let newest = volumes.max(versions).max(catalogue.jobs.keys().next_back());
        if newest.is_some_and(|id| *id >= self.superblock.next_id) {
            lines.push(format!(
                "the next id, {}, is taken",
                self.superblock.next_id
            ));
        }
        for line in lines {
            self.problem(format!("catalogue: {line}"));
        }
    }
}

impl Catalogue {
    fn check_volumes(&self, lines: &mut Vec<String>) {
        let mut names = BTreeSet::new();
        for (id, volume) in &self.volumes {
            let name = &volume.name;
            if !names.insert(name) {
                lines.push(format!(
                    "two volumes are named {name:?}; one is volume {id}"
                ));
            }
            if let Err(error) = check_name(name) {
                lines.push(format!("volume {id}: {error}"));
            }
            let head = self.versions.get(&volume.head);
            let is_head = |head: &VersionEntry| head.kind == Kind::Head && head.volume == *id;
            if volume.head == 0 {
                let mut versions = self.versions.values();
                if !versions.any(|v| v.volume == *id && v.kind == Kind::Snapshot) {
                    lines.push(format!("volume {name} is deleted and has no snapshot"));
                }
            } else if !head.is_some_and(is_head) {
                lines.push(format!(
                    "volume {name}: version {} is not its head",
                    volume.head
                ));
            }
        }
        if self.volumes.len() > VOLUMES_MAX {
            lines.push(format!("{} volumes are too many", self.volumes.len()));
        }
        if self.totals().1 > SNAPSHOTS_MAX {
            lines.push(format!("{} snapshots are too many", self.totals().1));
        }
    }

    fn check_versions(&self, lines: &mut Vec<String>) {
        let mut names = BTreeSet::new();
        for (id, version) in &self.versions {
            let title = self.title(*id);
            let volume = self.volumes.get(&version.volume);
            match version.kind {
                Kind::Head if volume.is_none_or(|volume| volume.head != *id) => {
                    lines.push(format!("version {id} is a head, but not its volume's"));
                }
                Kind::Snapshot if volume.is_none() => lines.push(format!("{title} has no volume")),
                Kind::Snapshot if !names.insert((version.volume, &version.name)) => {
                    lines.push(format!("{title} is there twice"));
                }
                Kind::Snapshot => {
                    let wrong = check_name(&version.name).err();
                    lines.extend(wrong.map(|error| format!("version {id}: {error}")));
                }
                Kind::Ghost if self.children.get(id).is_none_or(|c| c.len() <= 1) => {
                    lines.push(format!(
                        "{title} is nobody's any more, and was not taken out"
                    ));
                }
                Kind::Head | Kind::Ghost => {}
            }
            if version.size == 0 || version.size > VOLUME_BYTES_MAX {
                lines.push(format!("{title} has {} bytes", version.size));
            }
            lines.extend(
                self.parent_problem(version)
                    .map(|why| format!("{title} {why}")),
            );
        }
    }

    fn parent_problem(&self, version: &VersionEntry) -> Option<String> {
        if version.parent == 0 {
            return (version.cut.0 != 0)
                .then(|| format!("was cut at {} from nothing", version.cut));
        }
        let Some(parent) = self.versions.get(&version.parent) else {
            return Some(format!("has no parent, {}", version.parent));
        };
        // Cuts rise from parent to child, so there can be no circle.
        if version.cut <= parent.cut {
            return Some(format!(
                "was cut at {}, its parent at {}",
                version.cut, parent.cut
            ));
        }
        (parent.kind == Kind::Head).then(|| "has a head for its parent".to_owned())
    }

    fn check_outputs(&self, lines: &mut Vec<String>) {
        for (id, job) in &self.jobs {
            let fits = match job.output {
                Output::Discard => true,
                Output::Version(version) => self.versions.contains_key(&version),
                Output::Job(other) => self
                    .jobs
                    .get(&other)
                    .is_some_and(|other| matches!(other.work, Work::Filter { .. })),
            };
            if !fits {
                lines.push(format!("job {id} passes blocks on to {:?}", job.output));
            }
        }
    }
}
