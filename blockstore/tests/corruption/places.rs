//! Where everything is in an image of a pool, found as FORMAT.md describes it and not by the store.
use crate::image::{BLOCK, Image};

/// What a place holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Superblock,
    Table,
    Bitmap,
    CatalogueNode,
    CatalogueBlock,
    Leaf,
    /// Above the leaves.
    Node,
    Data,
    Deadlist,
    /// A node that only a background deletion leads to.
    JobNode,
    /// A record that a later one says was flushed.
    DurableRecord,
    /// The last record.
    LastRecord,
}

/// Blocks that hold one thing, and those that hold its copy.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) kind: Kind,
    pub(crate) blocks: Vec<u64>,
    pub(crate) twin: Vec<u64>,
    /// Bytes that mean something: a record ends with padding that nobody reads.
    pub(crate) length: usize,
}

pub(crate) struct Places<'a> {
    image: &'a Image,
    pub(crate) found: Vec<Place>,
    pub(crate) jobs: usize,
    pub(crate) clean: bool,
}

fn field(bytes: &[u8], at: usize, length: usize) -> u64 {
    let bytes = &bytes[at..at + length];
    bytes
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn root(bytes: &[u8], at: usize) -> Pointer {
    Pointer {
        address: field(bytes, at, 8),
        twin: field(bytes, at + 8, 8),
        birth: field(bytes, at + 16, 8),
        level: field(bytes, at + 36, 4),
    }
}

#[derive(Clone, Copy)]
struct Pointer {
    address: u64,
    twin: u64,
    birth: u64,
    level: u64,
}

const ADDRESS: u64 = (1 << 44) - 1;

impl Pointer {
    fn slot(bytes: &[u8], at: usize) -> Self {
        let (low, high) = (field(bytes, at, 8), field(bytes, at + 8, 8));
        Self {
            address: low & ADDRESS,
            twin: 0,
            birth: low >> 52 | (high & 0xffff_ffff) << 12,
            level: 0,
        }
    }
}

/// What a tree's blocks are called.
#[derive(Clone, Copy)]
struct Names {
    leaf: Kind,
    node: Kind,
    data: Option<Kind>,
}

impl<'a> Places<'a> {
    pub(crate) fn find(image: &'a Image) -> Self {
        let mut places = Self {
            image,
            found: Vec::new(),
            jobs: 0,
            clean: false,
        };
        let slots = [0, 16, 4096, 4112];
        let heads = slots.map(|slot| image.read(slot, 2));
        let newest = heads.iter().max_by_key(|head| field(head, 32, 8)).unwrap();
        places.clean = field(newest, 64, 8) & 1 == 1;
        for slot in slots {
            let twin = Vec::new();
            places.add(Kind::Superblock, vec![slot, slot + 1], twin);
        }
        let (blocks, journal) = (field(newest, 72, 8), field(newest, 80, 8));
        let base = 4128 + journal;
        for region in 0..(blocks - base).div_ceil(1 << 18) {
            let (index, within) = (region / 256, usize::try_from(region % 256).unwrap() * 16);
            let place = newest[512 + usize::try_from(index / 8).unwrap()] >> (index % 8) & 1;
            let table = 64 + u64::from(place) * 1024 + index;
            if within == 0 {
                places.add(Kind::Table, vec![table], Vec::new());
            }
            let entry = field(&image.read(table, 1), within + 8, 8);
            let bitmap = base + region * (1 << 18) + entry * 8;
            places.add(Kind::Bitmap, (bitmap..bitmap + 8).collect(), Vec::new());
        }
        places.catalogue(root(newest, 152));
        places.journal(newest, journal);
        places
    }

    fn add(&mut self, kind: Kind, blocks: Vec<u64>, twin: Vec<u64>) {
        let length = blocks.len() * BLOCK;
        self.found.push(Place {
            kind,
            blocks,
            twin,
            length,
        });
    }

    fn tree(&mut self, pointer: Pointer, cut: u64, names: Names, data: &mut Vec<u64>) {
        if pointer.address == 0 || pointer.birth <= cut {
            return;
        }
        let kind = if pointer.level == 0 {
            names.leaf
        } else {
            names.node
        };
        let twin = Some(pointer.twin).filter(|twin| *twin != 0);
        self.add(kind, vec![pointer.address], twin.into_iter().collect());
        let bytes = self.image.read(pointer.address, 1);
        if pointer.level == 0 {
            for at in (64..BLOCK).step_by(16) {
                let slot = Pointer::slot(&bytes, at);
                if slot.address != 0 && slot.birth > cut {
                    data.push(slot.address);
                    let kind = names.data.into_iter();
                    kind.for_each(|kind| self.add(kind, vec![slot.address], Vec::new()));
                }
            }
            return;
        }
        for at in (64..BLOCK).step_by(if pointer.level == 1 { 16 } else { 32 }) {
            let mut child = Pointer::slot(&bytes, at);
            child.level = pointer.level - 1;
            if pointer.level > 1 {
                child.twin = Pointer::slot(&bytes, at + 16).address;
            }
            self.tree(child, cut, names, data);
        }
    }

    fn catalogue(&mut self, root_pointer: Pointer) {
        let names = Names {
            leaf: Kind::CatalogueNode,
            node: Kind::CatalogueNode,
            data: Some(Kind::CatalogueBlock),
        };
        let mut blocks = Vec::new();
        self.tree(root_pointer, 0, names, &mut blocks);
        for block in blocks {
            let bytes = self.image.read(block, 1);
            for entry in bytes.chunks(512) {
                self.entry(entry);
            }
        }
    }

    fn entry(&mut self, entry: &[u8]) {
        let versions = Names {
            leaf: Kind::Leaf,
            node: Kind::Node,
            data: Some(Kind::Data),
        };
        let jobs = Names {
            leaf: Kind::JobNode,
            node: Kind::JobNode,
            data: None,
        };
        match field(entry, 8, 8) {
            2..=4 => {
                self.tree(
                    root(entry, 96),
                    field(entry, 48, 8),
                    versions,
                    &mut Vec::new(),
                );
                self.chain(Pointer::slot(entry, 80).address);
            }
            5 => {
                self.jobs += 1;
                // Only the top: what lies before the cursor is not the job's any more.
                let top = root(entry, 48);
                if top.birth > field(entry, 16, 8) {
                    self.add(jobs.node, vec![top.address], vec![top.twin]);
                }
            }
            6 => {
                self.jobs += 1;
                self.chain(Pointer::slot(entry, 48).address);
            }
            _ => {}
        }
    }

    fn chain(&mut self, mut address: u64) {
        while address != 0 {
            self.add(Kind::Deadlist, vec![address], Vec::new());
            address = Pointer::slot(&self.image.read(address, 1), 8).address;
        }
    }

    fn journal(&mut self, superblock: &[u8], ring: u64) {
        if self.clean {
            return;
        }
        let (mut number, mut position) = (field(superblock, 120, 8), field(superblock, 128, 8));
        let kind = Kind::DurableRecord;
        loop {
            let header = self.image.read(4128 + position % ring, 1);
            let ends = &header[..8] != b"BASALTJR" || field(&header, 32, 8) != number;
            if ends || field(&header, 24, 8) > field(superblock, 96, 8) {
                break;
            }
            let length = 64 + usize::try_from(field(&header, 52, 4)).unwrap();
            let blocks = length.div_ceil(BLOCK) as u64;
            let places = (position..position + blocks).map(|at| 4128 + at % ring);
            self.found.push(Place {
                kind,
                blocks: places.collect(),
                twin: Vec::new(),
                length,
            });
            (number, position) = (number + 1, position + blocks);
        }
        if let Some(last) = self.found.last_mut() {
            assert!(last.kind == kind, "there is no journal");
            last.kind = Kind::LastRecord;
        }
    }
}
