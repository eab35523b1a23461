//! A pool that is full: writes that need space fail, and nothing else does.
use super::clients::{Client, Habits};
use super::model::{Intent, IntentKind};
use super::run::{End, Machine, Plan, empty_pool, fail_on_violations};
use super::{MODEL, intending, with_model};
use crate::device::Random;
use crate::error::ErrorKind;
use crate::format::geometry::Geometry;
use crate::units::BLOCK_BYTES;
use bytes::Bytes;
use std::rc::Rc;

fn plan(usable: u64, fanout: u32) -> Plan {
    let habits = Habits {
        volumes_max: 8,
        snapshots_max: 20,
        size_max: 300,
        write_max: 8,
        faults: false,
        weights: [10, 10, 10, 5, 10, 5],
    };
    Plan {
        geometry: Geometry {
            blocks: 4128 + 512 + usable,
            fanout,
            region_blocks: 512,
            journal_blocks: 512,
        },
        habits,
        clients: 3,
        operations: 30,
        crash_span: 1000,
        cuts: 1,
        faults: false,
        dirty_bytes_max: 256 << 20,
    }
}

impl Client {
    async fn create_until_refused(&self, prefix: &str, most: u32) -> u32 {
        for number in 0..most {
            let intent = Intent::new(IntentKind::Control);
            let name = format!("{prefix}{number}");
            let create = self.pool.create_volume(&name, 400 * BLOCK_BYTES, false);
            if let Err(error) = intending(&intent, create).await {
                assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
                return number;
            }
        }
        most
    }

    /// Writes single random blocks all over until there is no space, or all are written.
    async fn fill(&self, random: &mut Random) {
        let volumes: Vec<u64> = with_model(|model| model.now.volumes.keys().copied().collect());
        for _ in 0..4000 {
            let volume = volumes[random.index(volumes.len())];
            let offset = random.below(400) * BLOCK_BYTES;
            let mut data = vec![0; 4096];
            random.fill(&mut data);
            let data = Bytes::from(data);
            let kind = IntentKind::Write {
                volume,
                offset,
                data: data.clone(),
            };
            let write = self.pool.write(volume, offset, data);
            if let Err(error) = intending(&Intent::new(kind), write).await {
                assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
                return;
            }
        }
    }

    async fn snapshot_until_refused(&self, prefix: &str, most: u32) -> u32 {
        for number in 0..most {
            let live = with_model(|model| {
                let volumes = model.now.volumes.values();
                volumes
                    .map(|volume| (volume.name.clone(), format!("{prefix}{number}")))
                    .collect::<Vec<_>>()
            });
            let intent = Intent::new(IntentKind::Control);
            if let Err(error) = intending(&intent, self.pool.snapshot(&live[..4])).await {
                assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
                return number;
            }
        }
        most
    }

    async fn trim_all(&self) {
        let heads: Vec<(u64, u64)> = with_model(|model| {
            let world = &model.now;
            world
                .volumes
                .keys()
                .map(|id| (*id, world.head(*id).unwrap().size))
                .collect()
        });
        for (volume, end) in heads {
            let kind = IntentKind::Trim {
                volume,
                offset: 0,
                end,
            };
            let trimmed = intending(&Intent::new(kind), self.pool.trim(volume, 0, end)).await;
            trimmed.unwrap();
            self.pool.flush().await.unwrap();
        }
    }

    async fn live_through_a_full_pool(self, mut random: Random) {
        let volumes = 4 + random.below(8);
        self.create_until_refused("v", u32::try_from(volumes).unwrap())
            .await;
        self.fill(&mut random).await;
        self.pool.flush().await.unwrap();
        for round in ["a", "b", "c"] {
            self.snapshot_until_refused(round, 100).await;
            self.fill(&mut random).await;
            self.trim_all().await;
            self.fill(&mut random).await;
        }
        self.create_until_refused("w", 2000).await;
        self.trim_all().await;
        self.pool.flush().await.unwrap();
        self.alive.set(self.alive.get() - 1);
    }
}

pub(super) fn fill_a_pool(seed: u64) {
    let mut random = Random::new(seed);
    MODEL.set(None);
    let fanout = if random.chance(1, 2) { 4 } else { 6 };
    let plan = plan(900 + random.below(3000), fanout);
    let image = empty_pool(plan.geometry);
    let Ok(machine) = Machine::open(image, random.next_u64(), &plan, None, None) else {
        panic!("no crash was asked for");
    };
    machine.simulation.crash_at(u64::MAX);
    machine.start_background();
    let alive = Rc::default();
    let client = machine.client(plan.habits, &alive);
    let doing = client.doing.clone();
    drop(
        machine
            .simulation
            .spawn(client.live_through_a_full_pool(random)),
    );
    assert_eq!(machine.drive(&alive, &[doing]), End::Done);
    machine.compare(&plan);
    fail_on_violations();
    machine.drain(&plan);
}
