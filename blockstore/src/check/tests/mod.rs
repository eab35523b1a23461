//! The checker against pools that live through everything: it must find nothing.
mod broken;

use super::offline::check_device;
use super::verify;
use crate::device::{Device, MemoryDevice, Random};
use crate::error::{ErrorKind, Result};
use crate::format::geometry::Geometry;
use crate::init::format_device;
use crate::pool::Pool;
use crate::runtime::{Runtime, SystemClock};
use crate::store::Options;
use crate::units::BLOCK_BYTES;
use std::sync::Arc;

/// Small nodes, so that trees are high; small regions, so that there are many.
const GEOMETRY: Geometry = Geometry {
    blocks: 24_576,
    fanout: 8,
    region_blocks: 1024,
    journal_blocks: 1024,
};
/// Blocks of a volume.
const BLOCKS: u64 = 600;

fn formatted(geometry: Geometry) -> Arc<dyn Device> {
    let device = Arc::new(MemoryDevice::new(geometry.blocks));
    let runtime = Runtime::start_without_ring(1, "test").unwrap();
    let below = Arc::clone(&device);
    let done = runtime.handles()[0]
        .spawn(async move { format_device(&*below, geometry, [7; 16], &mut |_| {}).await });
    done.wait().unwrap();
    device
}

/// Some operation on some of four volumes; whatever it is about need not exist.
async fn operate(pool: &Pool, random: &mut Random) -> Result<()> {
    let volume = format!("v{}", random.below(4));
    let snapshot = format!("s{}", random.below(6));
    let named = || (volume.clone(), snapshot.clone());
    let id = pool.state.lock().live_volume(&volume).map(|(id, _)| id);
    let at = random.below(BLOCKS - 1);
    let blocks = 1 + random.below((BLOCKS - at).min(40));
    match random.below(24) {
        0 => {
            pool.create_volume(&volume, BLOCKS * BLOCK_BYTES, false)
                .await
        }
        1 => {
            let source = format!("{volume}@{snapshot}");
            pool.clone_volume(&source, &format!("v{}", random.below(4)))
                .await
        }
        2 => {
            pool.clone_volume(&volume, &format!("v{}", random.below(4)))
                .await
        }
        3..=5 => pool.snapshot(&[named()]).await.map(drop),
        6 => pool.delete_snapshot(&volume, &snapshot).await,
        7 => pool.rollback(&volume, &snapshot).await,
        8 if random.below(3) == 0 => pool.delete_volume(&volume).await,
        9 => pool.checkpoint().await,
        10 => pool.flush().await,
        11..=13 => pool
            .trim(id?, at * BLOCK_BYTES, blocks * BLOCK_BYTES)
            .await
            .map(drop),
        14 => pool.trim(id?, 0, BLOCKS / 2 * BLOCK_BYTES).await.map(drop),
        _ => {
            let length = usize::try_from(blocks * BLOCK_BYTES).unwrap();
            let data = vec![u8::try_from(random.below(256)).unwrap(); length];
            pool.write(id?, at * BLOCK_BYTES, data.into())
                .await
                .map(drop)
        }
    }
}

/// Runs operations, checks the open pool, and lets go of it as a crash would.
fn live(device: &Arc<dyn Device>, seed: u64, operations: u64) {
    let runtime = Runtime::start_without_ring(1, "test").unwrap();
    let worker = &runtime.handles()[0];
    let clock = Arc::new(SystemClock::new());
    let opening = Pool::open(Arc::clone(device), clock, Options::default());
    let pool = worker.spawn(opening).wait().unwrap();
    drop(worker.spawn(Arc::clone(&pool).run_jobs()));
    let done = worker.spawn(async move {
        let mut random = Random::new(seed);
        for _ in 0..operations {
            match operate(&pool, &mut random).await {
                Err(error) if error.kind() == ErrorKind::Corrupt => return Err(error),
                _ => {}
            }
        }
        pool.checkpoint().await?;
        let report = verify(&pool, &mut |_| {}).await;
        assert_eq!(report.problems, Vec::<String>::new(), "seed {seed}");
        for _ in 0..random.below(30) {
            drop(operate(&pool, &mut random).await);
        }
        Ok(())
    });
    done.wait().unwrap();
}

#[test]
fn nothing_is_found_in_pools_that_lived_through_everything() {
    let random = &mut Random::new(fresh_seed());
    for _ in 0..12 {
        let seed = random.next_u64();
        println!("seed {seed}");
        let device = formatted(GEOMETRY);
        for life in 0..4 {
            live(&device, seed ^ life, 120);
            let report = check_device(&device, &mut |_| {}).unwrap();
            assert_eq!(
                report.problems,
                Vec::<String>::new(),
                "seed {seed}, life {life}"
            );
        }
    }
}

fn fresh_seed() -> u64 {
    let time = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    u64::try_from(time.as_nanos() & u128::from(u64::MAX)).unwrap()
}
