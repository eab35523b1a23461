//! A deterministic executor: which task runs or which device operation ends next is a function of
//! the seed, and time passes only when nothing else can happen.
use super::simulated::{Cut, Disk, Image, Kind, SimulatedDevice};
use super::{IoFuture, Random};
use crate::runtime::Clock;
use parking_lot::Mutex;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

/// `unix_time` when a simulation begins: 2001-09-09 01:46:40 UTC.
const EPOCH: Duration = Duration::from_secs(1_000_000_000);
/// Steps after which waiting for one result is taken for an endless loop.
const STEPS_MAX: u64 = 100_000_000;

/// A machine with one core, virtual time and simulated devices. A run is a function of its seed.
pub struct Simulation {
    seed: u64,
    world: Arc<Mutex<World>>,
    tasks: RefCell<BTreeMap<usize, Task>>,
    tasks_spawned: Cell<usize>,
}

/// What tasks, devices and clocks share.
#[derive(Debug)]
pub(super) struct World {
    pub(super) random: Random,
    now: Duration,
    /// Woken tasks, in the order of their wake-ups.
    ready: Arc<Mutex<Vec<usize>>>,
    /// Device operations in flight, in the order of their starts.
    pub(super) operations: Vec<Operation>,
    sleepers: BTreeMap<(Duration, u64), Waker>,
    sleeps: u64,
    pub(super) disks: Vec<Disk>,
    started: u64,
    crash_at: Option<u64>,
    crashed: bool,
    /// Of everything that happened, to compare runs.
    digest: u64,
}

/// A device operation in flight.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) disk: usize,
    pub(super) kind: Kind,
    pub(super) reply: Arc<Mutex<super::simulated::Reply>>,
}

impl World {
    /// Starts a device operation; loses power if this is the one to do so at.
    pub(super) fn start(&mut self, operation: Operation) {
        self.started += 1;
        self.operations.push(operation);
        if self.crash_at == Some(self.started) {
            self.crashed = true;
        }
    }

    fn note(&mut self, what: u64) {
        self.digest = Random::new(self.digest ^ what).next_u64();
    }
}

struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
    waker: Arc<TaskWaker>,
}

struct TaskWaker {
    id: usize,
    queued: AtomicBool,
    ready: Arc<Mutex<Vec<usize>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.ready.lock().push(self.id);
        }
    }
}

impl Simulation {
    /// A machine at the start of its time, without devices.
    pub fn new(seed: u64) -> Self {
        let world = World {
            random: Random::new(seed),
            now: Duration::ZERO,
            ready: Arc::default(),
            operations: Vec::new(),
            sleepers: BTreeMap::new(),
            sleeps: 0,
            disks: Vec::new(),
            started: 0,
            crash_at: None,
            crashed: false,
            digest: 0,
        };
        Self {
            seed,
            world: Arc::new(Mutex::new(world)),
            tasks: RefCell::default(),
            tasks_spawned: Cell::new(0),
        }
    }

    /// Attaches a device that holds `image`.
    pub fn device(&self, image: Image) -> Arc<SimulatedDevice> {
        let mut world = self.world.lock();
        let blocks = image.blocks();
        world.disks.push(Disk::new(image));
        let index = world.disks.len() - 1;
        Arc::new(SimulatedDevice::new(self.world.clone(), index, blocks))
    }

    /// The machine's clock.
    pub fn clock(&self) -> Arc<SimulatedClock> {
        Arc::new(SimulatedClock(self.world.clone()))
    }

    /// A number from the simulation's own stream.
    pub fn random(&self) -> u64 {
        self.world.lock().random.next_u64()
    }

    /// Starts a task. It runs when the simulation is run.
    pub fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> JoinCell<T> {
        let cell = JoinCell(Rc::default());
        let slot = cell.0.clone();
        let future = async move {
            let value = future.await;
            let waker = {
                let mut slot = slot.borrow_mut();
                slot.0 = Some(value);
                slot.1.take()
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        };
        let id = self.tasks_spawned.replace(self.tasks_spawned.get() + 1);
        let ready = self.world.lock().ready.clone();
        let waker = Arc::new(TaskWaker {
            id,
            queued: AtomicBool::new(false),
            ready,
        });
        waker.clone().wake();
        self.tasks.borrow_mut().insert(
            id,
            Task {
                future: Box::pin(future),
                waker,
            },
        );
        cell
    }

    /// Runs until `cell` has its result. `None` if the power went, or nothing can happen any more.
    pub fn run_until<T>(&self, cell: &JoinCell<T>) -> Option<T> {
        for _ in 0..STEPS_MAX {
            if let Some(value) = cell.take() {
                return Some(value);
            }
            if !self.step() && !self.pass_time(Duration::MAX) {
                return None;
            }
        }
        assert!(
            self.crashed(),
            "seed {}: no end after {STEPS_MAX} steps",
            self.seed
        );
        None
    }

    /// Runs until all tasks wait for time to pass, or for one another, or the power went.
    pub fn run_until_idle(&self) {
        while self.step() {}
    }

    /// Runs until idle with time passing up to `duration` from now.
    pub fn run_for(&self, duration: Duration) {
        let end = self.world.lock().now.saturating_add(duration);
        while self.step() || self.pass_time(end) {}
        let mut world = self.world.lock();
        if !world.crashed {
            world.now = world.now.max(end);
        }
    }

    /// Loses power when the device operation with this number starts: it is in flight then. The
    /// first of the simulation is 1.
    pub fn crash_at(&self, operation: u64) {
        self.world.lock().crash_at = Some(operation);
    }

    /// Whether the power went.
    pub fn crashed(&self) -> bool {
        self.world.lock().crashed
    }

    /// Device operations started so far.
    pub fn operations(&self) -> u64 {
        self.world.lock().started
    }

    /// Of everything that happened so far: equal for two runs that did the same.
    pub fn digest(&self) -> u64 {
        self.world.lock().digest
    }

    /// Loses power (if it has not gone already) and comes back: all tasks and operations are gone,
    /// and the new device holds what `device` kept. The old device answers no more.
    pub fn power_cut(&self, device: &SimulatedDevice, cut: Cut) -> Arc<SimulatedDevice> {
        self.world.lock().crashed = true;
        let mut random = Random::new(self.random());
        let image = device.surviving(cut, &mut random);
        // A task that is dropped may drop others, or spawn.
        loop {
            let task = self.tasks.borrow_mut().pop_first();
            if task.is_none() {
                break;
            }
        }
        let mut world = self.world.lock();
        let operations = std::mem::take(&mut world.operations);
        let sleepers = std::mem::take(&mut world.sleepers);
        world.ready.lock().clear();
        world.crashed = false;
        world.crash_at = None;
        drop(world);
        drop((operations, sleepers)); // not under the lock: their wakers may run anything
        self.device(image)
    }

    /// Lets one thing happen, time apart. False if nothing can.
    fn step(&self) -> bool {
        let mut world = self.world.lock();
        if world.crashed {
            return false;
        }
        let ready = world.ready.clone();
        let ready_count = ready.lock().len();
        let choices = ready_count + world.operations.len();
        if choices == 0 {
            return false;
        }
        let choice = world.random.index(choices);
        world.note(choice as u64);
        if choice < ready_count {
            drop(world);
            let id = ready.lock().remove(choice);
            self.poll(id);
        } else {
            let operation = world.operations.remove(choice - ready_count);
            let waker = operation.complete(&mut world);
            drop(world);
            waker.into_iter().for_each(Waker::wake);
        }
        true
    }

    fn poll(&self, id: usize) {
        let task = self.tasks.borrow_mut().remove(&id);
        let Some(mut task) = task else { return };
        task.waker.queued.store(false, Ordering::Relaxed);
        let waker = Waker::from(task.waker.clone());
        if task
            .future
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
        {
            self.tasks.borrow_mut().insert(id, task);
        }
    }

    /// Moves the clock to the next sleeper's end, unless that is after `end`. False if none woke.
    fn pass_time(&self, end: Duration) -> bool {
        let mut world = self.world.lock();
        if world.crashed {
            return false;
        }
        let Some(next) = world.sleepers.first_entry() else {
            return false;
        };
        let at = next.key().0;
        if at > end {
            return false;
        }
        let waker = next.remove();
        world.now = world.now.max(at);
        drop(world);
        waker.wake();
        true
    }
}

impl fmt::Debug for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulation")
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

/// The result of a simulated task, once there is one. Can be awaited by another task.
pub struct JoinCell<T>(Rc<RefCell<(Option<T>, Option<Waker>)>>);

impl<T> JoinCell<T> {
    /// Takes the result, if the task has ended.
    pub fn take(&self) -> Option<T> {
        self.0.borrow_mut().0.take()
    }

    /// Waits for the result.
    pub async fn join(self) -> T {
        poll_fn(|context| {
            let value = self.take();
            if value.is_none() {
                self.0.borrow_mut().1 = Some(context.waker().clone());
            }
            value.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

impl<T> fmt::Debug for JoinCell<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinCell").finish_non_exhaustive()
    }
}

/// The virtual clock of a [`Simulation`].
#[derive(Debug)]
pub struct SimulatedClock(Arc<Mutex<World>>);

impl Clock for SimulatedClock {
    fn now(&self) -> Duration {
        self.0.lock().now
    }

    fn sleep(&self, duration: Duration) -> IoFuture<()> {
        let mut world = self.0.lock();
        world.sleeps += 1;
        let key = (world.now.saturating_add(duration), world.sleeps);
        Box::pin(Sleep {
            world: self.0.clone(),
            key,
        })
    }

    fn unix_time(&self) -> Duration {
        EPOCH + self.now()
    }
}

struct Sleep {
    world: Arc<Mutex<World>>,
    key: (Duration, u64),
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut world = self.world.lock();
        if world.now >= self.key.0 {
            return Poll::Ready(());
        }
        let before = world.sleepers.insert(self.key, context.waker().clone());
        drop(world);
        drop(before); // not under the lock: a waker may run anything when it goes
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        let waker = self.world.lock().sleepers.remove(&self.key);
        drop(waker);
    }
}

#[cfg(test)]
mod tests;
