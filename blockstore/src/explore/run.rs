//! One seed: clients, a crash, every recovery of what may survive, and again.
use super::audit::audit;
use super::clients::{Client, Habits};
use super::model::Model;
use super::{MODEL, with_model};
use crate::device::{Cut, Fault, Image, Random, SimulatedDevice, Simulation};
use crate::format::geometry::Geometry;
use crate::init::format_device;
use crate::pool::Pool;
use crate::store::Options;
use crate::units::Record;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Virtual time after which unfinished clients are taken for hanging.
const PATIENCE: u32 = 6000;
const TICK: Duration = Duration::from_millis(100);
/// Device operations after which a run is taken for a livelock.
const OPERATIONS_MAX: u64 = 300_000;

/// What a seed explores.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) geometry: Geometry,
    pub(super) habits: Habits,
    pub(super) clients: u64,
    pub(super) operations: u32,
    /// The first loss of power is at one of so many device operations.
    pub(super) crash_span: u64,
    /// Images tried of each crash.
    pub(super) cuts: usize,
    pub(super) faults: bool,
    /// Journal cap etc. of the pool.
    pub(super) dirty_bytes_max: u64,
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) recoveries: u64,
    pub(super) drained: u64,
}

/// New pools by the numbers of their geometry.
type Empty = BTreeMap<(u64, u32, u32, u64), Image>;

thread_local! {
    static EMPTY: RefCell<Empty> = const { RefCell::new(BTreeMap::new()) };
}

/// A newly made pool.
pub(super) fn empty_pool(geometry: Geometry) -> Image {
    let key = (
        geometry.blocks,
        geometry.fanout,
        geometry.region_blocks,
        geometry.journal_blocks,
    );
    let cached = EMPTY.with_borrow(|cache| cache.get(&key).cloned());
    cached.unwrap_or_else(|| {
        let simulation = Simulation::new(1);
        let device = simulation.device(Image::new(geometry.blocks));
        let target = device.clone();
        let made = simulation
            .spawn(async move { format_device(&*target, geometry, [7; 16], &mut |_| {}).await });
        simulation.run_until(&made).unwrap().unwrap();
        let image = device.surviving(Cut::Everything, &mut Random::new(0));
        EMPTY.with_borrow_mut(|cache| cache.insert(key, image.clone()));
        image
    })
}

/// An open pool in a simulation of its own.
pub(super) struct Machine {
    pub(super) simulation: Simulation,
    pub(super) device: Arc<SimulatedDevice>,
    pub(super) pool: Arc<Pool>,
}

/// How driving a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Done,
    Crashed,
}

impl Machine {
    /// Opens a pool. `Err`: the device as it was when the power went meanwhile.
    pub(super) fn open(
        image: Image,
        seed: u64,
        plan: &Plan,
        crash_at: Option<u64>,
        fault: Option<Fault>,
    ) -> Result<Self, (Arc<SimulatedDevice>, Simulation)> {
        let simulation = Simulation::new(seed);
        let device = simulation.device(image);
        if let Some(fault) = fault {
            device.fail(fault);
        }
        let options = Options {
            dirty_bytes_max: plan.dirty_bytes_max,
            ..Options::default()
        };
        let opened = simulation.spawn(Pool::open(device.clone(), simulation.clock(), options));
        simulation.crash_at(crash_at.unwrap_or(OPERATIONS_MAX));
        let Some(result) = simulation.run_until(&opened) else {
            assert!(
                simulation.crashed() && crash_at.is_some(),
                "opening the pool hangs"
            );
            return Err((device, simulation));
        };
        let pool = match result {
            Ok(pool) => pool,
            Err(_) if fault.is_some() => return Err((device, simulation)),
            Err(error) => panic!("the pool cannot be opened: {error:?}"),
        };
        simulation.crash_at(simulation.operations() + OPERATIONS_MAX);
        device.heal();
        Ok(Self {
            simulation,
            device,
            pool,
        })
    }

    /// Compares what was recovered with the model, and audits it.
    fn check_recovered(&self) {
        if let Some(refusal) = &self.pool.state.lock().refusal {
            panic!("the recovered pool refuses changes: {refusal:?}");
        }
        let last = Record(self.pool.superblock.lock().epoch_first.0 - 1);
        with_model(|model| model.recovered(last));
        self.audit();
    }

    pub(super) fn audit(&self) {
        let image = self.device.surviving(Cut::Everything, &mut Random::new(0));
        let problems = audit(&self.pool, &image);
        with_model(|model| model.violations.extend(problems));
        fail_on_violations();
    }

    pub(super) fn start_background(&self) {
        for task in self.pool.background() {
            drop(self.simulation.spawn(task));
        }
    }

    pub(super) fn client(&self, habits: Habits, alive: &Rc<Cell<u32>>) -> Client {
        alive.set(alive.get() + 1);
        Client {
            pool: self.pool.clone(),
            clock: self.simulation.clock(),
            habits,
            alive: alive.clone(),
            doing: Rc::default(),
        }
    }

    pub(super) fn compare(&self, plan: &Plan) {
        let alive = Rc::default();
        let client = self.client(plan.habits, &alive);
        drop(self.simulation.spawn(client.compare_all()));
        assert_eq!(self.drive(&alive, &[]), End::Done);
    }

    /// Runs until no client is left, or the power goes.
    pub(super) fn drive(&self, alive: &Cell<u32>, doing: &[Rc<Cell<&'static str>>]) -> End {
        for _ in 0..PATIENCE {
            fail_on_violations();
            if alive.get() == 0 {
                return End::Done;
            }
            if self.simulation.crashed() {
                let doing: Vec<_> = doing.iter().map(|doing| doing.get()).collect();
                assert!(
                    self.simulation.operations() < OPERATIONS_MAX,
                    "livelock: {OPERATIONS_MAX} device operations; clients: {doing:?}"
                );
                return End::Crashed;
            }
            self.simulation.run_for(TICK);
        }
        let doing: Vec<_> = doing.iter().map(|doing| doing.get()).collect();
        panic!(
            "hang: {} clients did not end: {doing:?}, {:?}",
            alive.get(),
            self.pool.status()
        );
    }

    /// Clients at work until they end or the power goes.
    pub(super) fn work(
        &self,
        random: &mut Random,
        plan: &Plan,
        clients: u64,
        operations: u32,
    ) -> End {
        let alive = Rc::default();
        let mut doing = Vec::new();
        for _ in 0..clients {
            let client = self.client(plan.habits, &alive);
            doing.push(client.doing.clone());
            let own = Random::new(random.next_u64());
            drop(self.simulation.spawn(client.run(own, operations)));
        }
        self.drive(&alive, &doing)
    }

    /// Deletes all; all space must come back.
    pub(super) fn drain(&self, plan: &Plan) {
        let alive = Rc::default();
        drop(
            self.simulation
                .spawn(self.client(plan.habits, &alive).delete_all()),
        );
        assert_eq!(self.drive(&alive, &[]), End::Done);
        let mut status = self.pool.status();
        for _ in 0..600 {
            status = self.pool.status();
            assert_eq!(
                status.used + status.gated + status.free,
                status.usable,
                "I2"
            );
            fail_on_violations();
            if status.used + status.gated + status.jobs == 0 {
                break;
            }
            self.simulation.run_for(TICK);
        }
        if status.used + status.gated + status.jobs > 0 {
            self.audit();
            panic!("all is deleted, but space does not come back: {status:?}");
        }
        self.audit();
        let (before, checkpoints) = (self.simulation.operations(), status.checkpoints);
        self.simulation.run_for(Duration::from_mins(2));
        let operations = self.simulation.operations() - before;
        let checkpoints = self.pool.status().checkpoints - checkpoints;
        assert!(
            operations < 100 && checkpoints < 4,
            "an idle pool does {operations} operations and {checkpoints} checkpoints"
        );
        self.audit();
    }
}

pub(super) fn fail_on_violations() {
    let violations = with_model(|model| std::mem::take(&mut model.violations));
    assert!(violations.is_empty(), "{violations:#?}");
}

fn some_cut(random: &mut Random, writes: usize) -> Cut {
    if writes == 0 {
        return Cut::Nothing;
    }
    let one = random.index(writes);
    match random.below(11) {
        0 => Cut::Nothing,
        1 => Cut::Everything,
        2 => Cut::Without(one),
        3 => Cut::Only(one),
        4 => Cut::First(one),
        5 => Cut::Last(one),
        6 => Cut::Torn(one),
        7 => Cut::Writes,
        8 => Cut::Sectors,
        _ => Cut::Subset(random.next_u64()),
    }
}

/// Explores one seed. Panics on a violation.
pub(super) fn explore(seed: u64, plan: &Plan) -> Tally {
    let mut random = Random::new(seed);
    let mut tally = Tally::default();
    MODEL.set(Some(Model::default()));
    let image = empty_pool(plan.geometry);
    let Ok(machine) = Machine::open(image, random.next_u64(), plan, None, None) else {
        panic!("no crash was asked for");
    };
    machine.check_recovered();
    machine.start_background();
    if plan.faults {
        inject(&machine.device, &mut random);
    } else {
        let at = machine.simulation.operations() + 1 + random.below(plan.crash_span);
        machine.simulation.crash_at(at);
    }
    if machine.work(&mut random, plan, plan.clients, plan.operations) == End::Done {
        machine
            .simulation
            .run_for(Duration::from_millis(random.below(3000)));
    }
    fail_on_violations();
    let plan = &Plan {
        habits: Habits {
            faults: false,
            ..plan.habits
        },
        ..*plan
    };
    let model = with_model(|model| model.clone());
    for _ in 0..plan.cuts {
        MODEL.set(Some(model.clone()));
        let image = survivor(&machine.device, &mut random);
        recover(image, &mut random, plan, 0, &mut tally);
    }
    tally
}

fn survivor(device: &SimulatedDevice, random: &mut Random) -> Image {
    let cut = some_cut(random, device.unflushed());
    device.surviving(cut, random)
}

fn inject(device: &SimulatedDevice, random: &mut Random) {
    let counts = device.counts();
    for _ in 0..=random.below(3) {
        device.fail(match random.below(4) {
            0 => Fault::Read(counts.reads + 1 + random.below(100)),
            1 => Fault::Flush(counts.flushes + 1 + random.below(20)),
            _ => Fault::Write(counts.writes + 1 + random.below(200)),
        });
    }
}

/// Recovers an image, perhaps with the power going meanwhile, checks it, and goes on with it.
fn recover(mut image: Image, random: &mut Random, plan: &Plan, depth: u32, tally: &mut Tally) {
    let machine = loop {
        let crash_at = random.chance(1, 4).then(|| 1 + random.below(60));
        let fault = random.chance(1, 6).then(|| match random.below(8) {
            0 => Fault::Flush(1 + random.below(3)),
            1 => Fault::Write(1 + random.below(6)),
            _ => Fault::Read(1 + random.below(40)),
        });
        match Machine::open(image, random.next_u64(), plan, crash_at, fault) {
            Ok(machine) => break machine,
            Err((device, _)) => image = survivor(&device, random),
        }
    };
    tally.recoveries += 1;
    machine.check_recovered();
    machine.compare(plan);
    fail_on_violations();
    if depth >= 2 || random.chance(1, 2) {
        if random.chance(1, 6) {
            machine.start_background();
            machine.drain(plan);
            tally.drained += 1;
        }
        return;
    }
    machine.start_background();
    let span = [10, 40, 200][random.index(3)];
    machine
        .simulation
        .crash_at(machine.simulation.operations() + 1 + random.below(span));
    let operations = 1 + plan.operations / 4;
    if machine.work(random, plan, plan.clients, operations) == End::Done {
        machine
            .simulation
            .run_for(Duration::from_millis(random.below(2000)));
    }
    fail_on_violations();
    recover(
        survivor(&machine.device, random),
        random,
        plan,
        depth + 1,
        tally,
    );
}
