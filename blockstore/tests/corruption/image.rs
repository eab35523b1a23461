//! A device in memory whose content can be copied at any moment, damaged, and put into a file.
use blockstore::device::{Buffer, Device, IoFuture};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fs::File;
use std::future::ready;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

pub(crate) const BLOCK: usize = 4096;

/// The content of a pool; blocks of zeroes are left out.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) blocks: u64,
    content: BTreeMap<u64, Bytes>,
}

impl Image {
    pub(crate) fn load(path: &Path) -> Self {
        let mut file = File::open(path).unwrap();
        let blocks = file.metadata().unwrap().len() / BLOCK as u64;
        let mut image = Self {
            blocks,
            content: BTreeMap::new(),
        };
        let mut block = [0; BLOCK];
        for address in 0..blocks {
            file.read_exact(&mut block).unwrap();
            image.write(address, &block);
        }
        image
    }

    /// Makes a file of it.
    pub(crate) fn store(&self, path: &Path) {
        let file = File::create(path).unwrap();
        file.set_len(self.blocks * BLOCK as u64).unwrap();
        for (address, block) in &self.content {
            file.write_all_at(block, address * BLOCK as u64).unwrap();
        }
    }

    pub(crate) fn read(&self, address: u64, count: u64) -> Vec<u8> {
        let mut data = vec![0; usize::try_from(count).unwrap() * BLOCK];
        for (address, place) in (address..).zip(data.chunks_mut(BLOCK)) {
            if let Some(block) = self.content.get(&address) {
                place.copy_from_slice(block);
            }
        }
        data
    }

    pub(crate) fn write(&mut self, address: u64, data: &[u8]) {
        for (address, block) in (address..).zip(data.chunks(BLOCK)) {
            if block.iter().any(|byte| *byte != 0) {
                self.content.insert(address, Bytes::copy_from_slice(block));
            } else {
                self.content.remove(&address);
            }
        }
    }
}

/// A device on an image.
#[derive(Debug)]
pub(crate) struct Held(Mutex<Image>);

impl Held {
    pub(crate) fn new(image: Image) -> Arc<Self> {
        Arc::new(Self(Mutex::new(image)))
    }

    /// What would be there if power failed now.
    pub(crate) fn image(&self) -> Image {
        self.0.lock().unwrap().clone()
    }
}

impl Device for Held {
    fn blocks(&self) -> u64 {
        self.0.lock().unwrap().blocks
    }

    fn read(&self, address: u64, mut buffer: Buffer) -> IoFuture<(Buffer, std::io::Result<()>)> {
        let count = (buffer.len() / BLOCK) as u64;
        let image = self.0.lock().unwrap();
        let result = if address
            .checked_add(count)
            .is_some_and(|end| end <= image.blocks)
        {
            buffer.copy_from_slice(&image.read(address, count));
            Ok(())
        } else {
            Err(std::io::ErrorKind::InvalidInput.into())
        };
        Box::pin(ready((buffer, result)))
    }

    fn write(&self, address: u64, data: Bytes) -> IoFuture<std::io::Result<()>> {
        self.0.lock().unwrap().write(address, &data);
        Box::pin(ready(Ok(())))
    }

    fn flush(&self) -> IoFuture<std::io::Result<()>> {
        Box::pin(ready(Ok(())))
    }

    fn backend(&self) -> &'static str {
        "held"
    }
}
