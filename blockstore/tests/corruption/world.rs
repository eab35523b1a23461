//! A pool with everything in it, and what every volume and snapshot of it holds.
use crate::image::{BLOCK, Held, Image};
use blockstore::{Access, Error, ErrorKind, InitOptions, Options, Store};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Blocks of each volume.
pub(crate) const BLOCKS: u64 = 80_000;
/// Blocks read at once; where nothing was ever written, nothing is read.
const CHUNK: u64 = 63;

/// For each volume and snapshot: the tag that each block is filled with, holes left out.
pub(crate) type Content = BTreeMap<String, BTreeMap<u64, u64>>;

/// A block filled with a tag.
fn filled(tag: u64) -> Vec<u8> {
    tag.to_le_bytes().repeat(BLOCK / 8)
}

/// What a block was filled with; panics if it is no such block.
fn tag_of(block: &[u8]) -> u64 {
    let tag = u64::from_le_bytes(block[..8].try_into().unwrap());
    assert!(
        block == filled(tag),
        "a block of something that was never written"
    );
    tag
}

pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) device: Arc<Held>,
    pub(crate) content: Content,
    /// The content after each change.
    pub(crate) history: Vec<Content>,
    tag: u64,
}

/// A new pool.
pub(crate) fn empty() -> Image {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("empty.pool");
    let options = InitOptions {
        size: Some(64 << 20),
        ..InitOptions::default()
    };
    Store::init(&path, &options, &mut |_| {}).unwrap();
    Image::load(&path)
}

impl World {
    pub(crate) fn open(image: Image, content: Content) -> Self {
        let device = Held::new(image);
        let options = Options::default();
        let store = Store::open_device(device.clone(), &options).unwrap();
        let history = vec![content.clone()];
        Self {
            store,
            device,
            content,
            history,
            tag: 1 << 32,
        }
    }

    fn changed(&mut self) {
        self.history.push(self.content.clone());
    }

    pub(crate) fn create(&mut self, name: &str) {
        let size = BLOCKS * BLOCK as u64;
        self.store.create_volume(name, size, false).wait().unwrap();
        self.content.insert(name.to_owned(), BTreeMap::new());
        self.changed();
    }

    /// Fills blocks `first`, `first + step`, …, and flushes.
    pub(crate) fn write(&mut self, name: &str, first: u64, count: u64, step: u64) {
        let volume = self.store.open_volume(name, Access::Write).unwrap();
        for block in (first..)
            .step_by(usize::try_from(step).unwrap())
            .take(usize::try_from(count).unwrap())
        {
            self.tag += 1;
            volume
                .write(block * BLOCK as u64, filled(self.tag))
                .wait()
                .unwrap();
            self.content.get_mut(name).unwrap().insert(block, self.tag);
        }
        volume.flush().wait().unwrap();
        self.changed();
    }

    pub(crate) fn trim(&mut self, name: &str, first: u64, count: u64) {
        let volume = self.store.open_volume(name, Access::Write).unwrap();
        volume
            .trim(first * BLOCK as u64, count * BLOCK as u64)
            .wait()
            .unwrap();
        volume.flush().wait().unwrap();
        let blocks = self.content.get_mut(name).unwrap();
        blocks.retain(|block, _| !(first..first + count).contains(block));
        self.changed();
    }

    pub(crate) fn snapshot(&mut self, volume: &str, name: &str) {
        self.store.snapshot(&[(volume, name)]).wait().unwrap();
        let blocks = self.content[volume].clone();
        self.content.insert(format!("{volume}@{name}"), blocks);
        self.changed();
    }

    pub(crate) fn clone(&mut self, source: &str, name: &str) {
        self.store.clone_volume(source, name).wait().unwrap();
        self.content
            .insert(name.to_owned(), self.content[source].clone());
        self.changed();
    }

    pub(crate) fn delete(&mut self, name: &str) {
        let deleted = match name.split_once('@') {
            Some((volume, snapshot)) => self.store.delete_snapshot(volume, snapshot),
            None => self.store.delete_volume(name),
        };
        deleted.wait().unwrap();
        self.content.remove(name);
        self.changed();
    }
}

/// What was found in a pool: for each volume and snapshot, its blocks, `None` if it is lost.
pub(crate) type Found = BTreeMap<String, BTreeMap<u64, Option<u64>>>;

/// Reads every block that was ever written. Errors must say that data is lost.
pub(crate) fn read_everything(store: &Store, written: &Content) -> Found {
    let mut names: Vec<String> = store
        .volumes()
        .into_iter()
        .filter(|v| !v.deleted)
        .map(|v| v.name)
        .collect();
    let snapshots = store.snapshots(None).unwrap();
    names.extend(
        snapshots
            .into_iter()
            .map(|s| format!("{}@{}", s.volume, s.name)),
    );
    let mut blocks: Vec<u64> = written
        .values()
        .flat_map(|blocks| blocks.keys().copied())
        .collect();
    blocks.sort_unstable();
    blocks.dedup();
    let read = |name: String| {
        let volume = store.open_volume(&name, Access::Read).unwrap();
        let mut found = BTreeMap::new();
        for chunk in blocks.chunk_by(|a, b| a / CHUNK == b / CHUNK) {
            let (first, last) = (chunk[0], chunk[chunk.len() - 1]);
            let length = (last + 1 - first) * BLOCK as u64;
            match volume.read(first * BLOCK as u64, length).wait() {
                Ok(data) => {
                    let tags = (first..).zip(data.chunks(BLOCK).map(tag_of));
                    found.extend(
                        tags.filter(|(_, tag)| *tag != 0)
                            .map(|(at, tag)| (at, Some(tag))),
                    );
                }
                Err(error) => {
                    assert_lost(&error);
                    found.extend(chunk.iter().filter_map(|at| read_one(&volume, *at)));
                }
            }
        }
        (name, found)
    };
    names.into_iter().map(read).collect()
}

fn read_one(volume: &blockstore::Volume, block: u64) -> Option<(u64, Option<u64>)> {
    match volume.read(block * BLOCK as u64, BLOCK as u64).wait() {
        Ok(data) => Some(tag_of(&data))
            .filter(|tag| *tag != 0)
            .map(|tag| (block, Some(tag))),
        Err(error) => {
            assert_lost(&error);
            Some((block, None))
        }
    }
}

pub(crate) fn assert_lost(error: &Error) {
    let lost = matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Io);
    assert!(lost, "{error:?} does not say that something is damaged");
}

/// Whether what was found is `content`, lost blocks apart. Blocks lost are counted.
pub(crate) fn is(found: &Found, content: &Content) -> Option<usize> {
    let mut lost = 0;
    if !found.keys().eq(content.keys()) {
        return None;
    }
    for (blocks, expected) in found.values().zip(content.values()) {
        let known: BTreeMap<u64, u64> = blocks
            .iter()
            .filter_map(|(at, tag)| Some((*at, (*tag)?)))
            .collect();
        let missing = blocks.values().filter(|tag| tag.is_none()).count();
        let mut rest = expected.clone();
        rest.retain(|at, _| blocks.get(at) != Some(&None));
        if known != rest {
            return None;
        }
        lost += missing;
    }
    Some(lost)
}
