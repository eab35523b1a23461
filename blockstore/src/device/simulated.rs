//! A device that lives in a simulation: it can lose power keeping any subset of what was not
//! flushed, fail, and rot.
//!
//! A write is seen by reads when it completes. It is durable when a flush that began after that has
//! completed; until then, and while it is in flight, any subset of its sectors may survive.
use super::simulation::{Operation, World};
use super::sparse::Sparse;
use super::{Buffer, Device, IoFuture, Random, check_range};
use crate::{BLOCK_BYTES, BLOCK_SIZE};
use bytes::Bytes;
use parking_lot::Mutex;
use rustix::io::Errno;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// What a disk writes as a whole or not at all.
const SECTOR: usize = 512;
const SECTORS_PER_BLOCK: u64 = BLOCK_BYTES / SECTOR as u64;

/// The content of a device. A copy is cheap and independent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    blocks: u64,
    content: Sparse,
}

impl Image {
    /// So many blocks of zeroes.
    pub fn new(blocks: u64) -> Self {
        Self {
            blocks,
            content: Sparse::default(),
        }
    }

    /// How many blocks.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The content of a block.
    pub fn block(&self, address: u64) -> Vec<u8> {
        let mut block = vec![0; BLOCK_SIZE];
        self.content.read(address, &mut block);
        block
    }

    /// Changes a block in place.
    pub fn change(&mut self, address: u64, change: impl FnOnce(&mut [u8])) {
        self.content.change(address, change);
    }
}

/// What survives a loss of power of the writes that were not flushed. They are counted in the order
/// of their completion, those in flight last, in the order of their starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// None of them.
    Nothing,
    /// All of them.
    Everything,
    /// All but one.
    Without(usize),
    /// One alone.
    Only(usize),
    /// The first so many.
    First(usize),
    /// The last so many: the disk wrote in reverse.
    Last(usize),
    /// Those whose bit is set; for the first 64.
    Subset(u64),
    /// All before this one, and some sectors of it, but neither none nor all.
    Torn(usize),
    /// Any subset of them, each as a whole.
    Writes,
    /// Any subset of their sectors.
    Sectors,
}

/// What goes wrong with an operation of a device; the first of its kind there has number 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This read fails with EIO.
    Read(u64),
    /// This write fails with EIO, and nothing is written.
    Write(u64),
    /// This flush fails with EIO, and makes nothing durable.
    Flush(u64),
}

/// Operations of a device, counted when they start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Flushes.
    pub flushes: u64,
}

#[derive(Clone, Debug)]
struct Write {
    address: u64,
    data: Bytes,
}

/// The state of a device.
#[derive(Debug)]
pub(super) struct Disk {
    durable: Image,
    visible: Sparse,
    /// Completed but not durable, in the order of completion.
    unflushed: Vec<Write>,
    /// Writes that were in `unflushed` and have become durable.
    flushed: u64,
    counts: Counts,
    faults: Vec<Fault>,
}

impl Disk {
    pub(super) fn new(image: Image) -> Self {
        Self {
            visible: image.content.clone(),
            durable: image,
            unflushed: Vec::new(),
            flushed: 0,
            counts: Counts::default(),
            faults: Vec::new(),
        }
    }

    /// Whether the operation that has just been counted is to fail.
    fn fails(&self, kind: &Kind) -> bool {
        self.faults.contains(&match kind {
            Kind::Read { .. } => Fault::Read(self.counts.reads),
            Kind::Write(_) => Fault::Write(self.counts.writes),
            Kind::Flush { .. } => Fault::Flush(self.counts.flushes),
        })
    }
}

#[derive(Debug)]
pub(super) enum Kind {
    Read {
        address: u64,
        buffer: Option<Buffer>,
    },
    Write(WriteKind),
    /// Makes the writes durable that completed before it began: so many since the disk was new.
    Flush {
        through: u64,
    },
}

/// A write in flight.
#[derive(Debug)]
pub(super) struct WriteKind(Write);

/// Where the outcome of an operation goes.
#[derive(Debug, Default)]
pub(super) struct Reply {
    fails: bool,
    outcome: Option<(Option<Buffer>, io::Result<()>)>,
    waker: Option<Waker>,
}

impl Operation {
    /// Does it. Returns whom to wake.
    pub(super) fn complete(self, world: &mut World) -> Option<Waker> {
        let disk = &mut world.disks[self.disk];
        let mut reply = self.reply.lock();
        let fails = reply.fails;
        let mut buffer = None;
        match self.kind {
            Kind::Read {
                address,
                buffer: taken,
            } => {
                buffer = taken;
                if let Some(buffer) = buffer.as_mut().filter(|_| !fails) {
                    disk.visible.read(address, buffer);
                }
            }
            Kind::Write(WriteKind(write)) if !fails => {
                disk.visible.write(write.address, &write.data);
                disk.unflushed.push(write);
            }
            Kind::Flush { through } if !fails => {
                let count = usize::try_from(through.saturating_sub(disk.flushed)).unwrap_or(0);
                for write in disk.unflushed.drain(..count) {
                    disk.durable.content.write(write.address, &write.data);
                }
                disk.flushed = disk.flushed.max(through);
            }
            Kind::Write(_) | Kind::Flush { .. } => {}
        }
        let result = if fails { Err(Errno::IO.into()) } else { Ok(()) };
        reply.outcome = Some((buffer, result));
        reply.waker.take()
    }
}

/// A device of a [`super::Simulation`]. It works only while that runs.
#[derive(Debug)]
pub struct SimulatedDevice {
    world: Arc<Mutex<World>>,
    disk: usize,
    blocks: u64,
}

impl SimulatedDevice {
    pub(super) fn new(world: Arc<Mutex<World>>, disk: usize, blocks: u64) -> Self {
        Self {
            world,
            disk,
            blocks,
        }
    }

    /// Makes an operation go wrong.
    pub fn fail(&self, fault: Fault) {
        self.world.lock().disks[self.disk].faults.push(fault);
    }

    /// Forgets the faults that have not come yet.
    pub fn heal(&self) {
        self.world.lock().disks[self.disk].faults.clear();
    }

    /// Flips the bits of `mask` in one byte of a block, for good.
    pub fn flip(&self, address: u64, byte: usize, mask: u8) {
        let disk = &mut self.world.lock().disks[self.disk];
        disk.visible.change(address, |block| block[byte] ^= mask);
        disk.durable.change(address, |block| block[byte] ^= mask);
    }

    /// Operations started so far.
    pub fn counts(&self) -> Counts {
        self.world.lock().disks[self.disk].counts
    }

    /// How many writes a loss of power would decide about now.
    pub fn unflushed(&self) -> usize {
        self.undecided().len()
    }

    /// What a loss of power would leave now. The device goes on.
    pub fn surviving(&self, cut: Cut, random: &mut Random) -> Image {
        let writes = self.undecided();
        let mut image = self.world.lock().disks[self.disk].durable.clone();
        for (index, write) in writes.iter().enumerate() {
            let whole = match cut {
                Cut::Nothing => false,
                Cut::Everything => true,
                Cut::Without(one) => index != one,
                Cut::Only(one) => index == one,
                Cut::First(count) | Cut::Torn(count) => index < count,
                Cut::Last(count) => index + count >= writes.len(),
                Cut::Subset(mask) => index < 64 && mask >> index & 1 == 1,
                Cut::Writes => random.chance(1, 2),
                Cut::Sectors => {
                    image.tear(write, |_| random.chance(1, 2));
                    continue;
                }
            };
            if whole {
                image.content.write(write.address, &write.data);
            } else if cut == Cut::Torn(index) {
                image.tear_in_part(write, random);
            }
        }
        image
    }

    /// Writes that are not durable, those in flight last.
    fn undecided(&self) -> Vec<Write> {
        let world = self.world.lock();
        let mut writes = world.disks[self.disk].unflushed.clone();
        let in_flight = world
            .operations
            .iter()
            .filter(|operation| operation.disk == self.disk);
        writes.extend(in_flight.filter_map(|operation| match &operation.kind {
            Kind::Write(WriteKind(write)) => Some(write.clone()),
            Kind::Read { .. } | Kind::Flush { .. } => None,
        }));
        writes
    }

    fn start(&self, kind: Kind) -> Started {
        Started {
            world: self.world.clone(),
            disk: self.disk,
            kind: Some(kind),
            reply: Arc::default(),
        }
    }
}

impl Image {
    /// Writes the sectors, counted from the start of the write, that `survives` accepts.
    fn tear(&mut self, write: &Write, mut survives: impl FnMut(u64) -> bool) {
        for (sector, data) in (0..).zip(write.data.chunks_exact(SECTOR)) {
            if survives(sector) {
                let start = usize::try_from(sector % SECTORS_PER_BLOCK).unwrap_or(0) * SECTOR;
                self.change(write.address + sector / SECTORS_PER_BLOCK, |block| {
                    block[start..start + SECTOR].copy_from_slice(data);
                });
            }
        }
    }

    /// Writes neither none nor all of the sectors: one does, another does not, the rest may.
    fn tear_in_part(&mut self, write: &Write, random: &mut Random) {
        let sectors = (write.data.len() / SECTOR) as u64;
        let lives = random.below(sectors);
        let dies = (lives + 1 + random.below(sectors - 1)) % sectors;
        self.tear(write, |sector| {
            sector == lives || sector != dies && random.chance(1, 2)
        });
    }
}

impl Device for SimulatedDevice {
    fn blocks(&self) -> u64 {
        self.blocks
    }

    fn read(&self, address: u64, buffer: Buffer) -> IoFuture<(Buffer, io::Result<()>)> {
        if let Err(error) = check_range(self.blocks, address, buffer.len()) {
            return Box::pin(std::future::ready((buffer, Err(error))));
        }
        let started = self.start(Kind::Read {
            address,
            buffer: Some(buffer),
        });
        Box::pin(async move {
            let (buffer, result) = started.await;
            (buffer.unwrap_or_else(|| Buffer::new(0)), result)
        })
    }

    fn write(&self, address: u64, data: Bytes) -> IoFuture<io::Result<()>> {
        if let Err(error) = check_range(self.blocks, address, data.len()) {
            return Box::pin(std::future::ready(Err(error)));
        }
        let started = self.start(Kind::Write(WriteKind(Write { address, data })));
        Box::pin(async move { started.await.1 })
    }

    fn flush(&self) -> IoFuture<io::Result<()>> {
        let started = self.start(Kind::Flush { through: 0 });
        Box::pin(async move { started.await.1 })
    }

    fn backend(&self) -> &'static str {
        "simulated"
    }
}

/// An operation, which starts when first polled and goes on when this is dropped.
struct Started {
    world: Arc<Mutex<World>>,
    disk: usize,
    kind: Option<Kind>,
    reply: Arc<Mutex<Reply>>,
}

impl Future for Started {
    type Output = (Option<Buffer>, io::Result<()>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(mut kind) = self.kind.take() {
            let mut world = self.world.lock();
            let disk = &mut world.disks[self.disk];
            match &mut kind {
                Kind::Read { .. } => disk.counts.reads += 1,
                Kind::Write(_) => disk.counts.writes += 1,
                Kind::Flush { through } => {
                    disk.counts.flushes += 1;
                    *through = disk.flushed + disk.unflushed.len() as u64;
                }
            }
            let fails = disk.fails(&kind);
            let waker = Some(context.waker().clone());
            *self.reply.lock() = Reply {
                fails,
                outcome: None,
                waker,
            };
            world.start(Operation {
                disk: self.disk,
                kind,
                reply: self.reply.clone(),
            });
            return Poll::Pending;
        }
        let mut reply = self.reply.lock();
        if let Some(outcome) = reply.outcome.take() {
            return Poll::Ready(outcome);
        }
        let before = reply.waker.replace(context.waker().clone());
        drop(reply);
        drop(before); // not under the lock: a waker may run anything when it goes
        Poll::Pending
    }
}
