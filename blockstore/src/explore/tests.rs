//! Exploring fresh seeds, and replaying one.
use super::clients::Habits;
use super::run::{Plan, Tally, explore};
use crate::device::Random;
use crate::format::geometry::Geometry;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime};

/// What a seed explores follows from the seed.
fn plan(seed: u64) -> Plan {
    let mut random = Random::new(seed ^ 0x5eed);
    let fanout = if random.chance(1, 2) { 4 } else { 6 };
    let region_blocks = [256, 512, 1024, 4096][random.index(4)];
    let tight = random.chance(1, 4);
    let usable = if tight {
        650 + random.below(900)
    } else {
        3000 + random.below(3000)
    };
    let journal_blocks = if random.chance(1, 2) { 512 } else { 600 };
    let geometry = Geometry {
        blocks: 4128 + journal_blocks + usable,
        fanout,
        region_blocks,
        journal_blocks,
    };
    let faults = random.chance(1, 5);
    let habits = Habits {
        volumes_max: if tight {
            1 + random.index(40)
        } else {
            1 + random.index(5)
        },
        snapshots_max: if tight {
            2 + random.index(60)
        } else {
            2 + random.index(10)
        },
        size_max: if tight {
            300
        } else {
            [16, 64, 300][random.index(3)]
        },
        write_max: [4, 8, 40][random.index(3)],
        faults,
        weights: [
            20 + random.below(60),
            5 + random.below(30),
            5 + random.below(10),
            1 + random.below(20),
            5 + random.below(40),
            5 + random.below(20),
        ],
    };
    Plan {
        geometry,
        habits,
        clients: 1 + random.below(5),
        operations: if tight {
            150
        } else {
            10 + u32::try_from(random.below(50)).unwrap()
        },
        crash_span: if tight {
            6000
        } else {
            [50, 300, 1500][random.index(3)]
        },
        cuts: 6,
        faults,
        dirty_bytes_max: if random.chance(1, 8) {
            1 << 20
        } else {
            256 << 20
        },
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}

fn try_seed(seed: u64) -> Result<Tally, String> {
    catch_unwind(AssertUnwindSafe(|| explore(seed, &plan(seed)))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default()
    })
}

fn run_seed(seed: u64) -> Tally {
    try_seed(seed).unwrap_or_else(|why| {
        panic!(
            "seed {seed}: {why}\nreplay: BASALT_SEED={seed} cargo test -p blockstore --release \
             explore:: -- --nocapture"
        )
    })
}

#[test]
fn whatever_survives_a_crash_keeps_the_promise() {
    if let Some(seed) = number("BASALT_SEED") {
        println!("{:#?}", plan(seed));
        println!("{:?}", run_seed(seed));
        return;
    }
    let seconds = number("BASALT_EXPLORE_SECONDS").unwrap_or(20);
    let fresh = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let mut seeds = Random::new(u64::try_from(fresh.as_nanos()).unwrap());
    let (start, mut total, mut count) = (Instant::now(), Tally::default(), 0);
    let mut failures = std::collections::BTreeMap::<String, (u64, u64)>::new();
    while start.elapsed() < Duration::from_secs(seconds) {
        let seed = seeds.next_u64() >> 16;
        let gather = std::env::var_os("BASALT_GATHER").is_some();
        let tally = if gather {
            try_seed(seed).unwrap_or_else(|why| {
                let key: String = why
                    .chars()
                    .filter(|c| !c.is_ascii_digit())
                    .take(150)
                    .collect();
                failures.entry(key).or_insert((0, seed)).0 += 1;
                Tally::default()
            })
        } else {
            run_seed(seed)
        };
        total.recoveries += tally.recoveries;
        total.drained += tally.drained;
        count += 1;
    }
    println!(
        "{} crash-recoveries ({} drained to the end) of {count} seeds in {:.1} s",
        total.recoveries,
        total.drained,
        start.elapsed().as_secs_f64()
    );
    for (what, (times, seed)) in &failures {
        println!("{times} times, e.g. seed {seed}: {what}");
    }
    assert!(
        failures.is_empty(),
        "{} kinds of violations",
        failures.len()
    );
}

#[test]
fn a_full_pool_refuses_writes_and_nothing_else() {
    for seed in 0..number("BASALT_FULL_SEEDS").unwrap_or(4) {
        println!("seed {seed}");
        super::full::fill_a_pool(seed);
    }
}
