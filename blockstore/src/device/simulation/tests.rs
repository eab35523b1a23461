//! The simulation: the same seed does the same; what was flushed survives, what was not may.
use super::*;
use crate::device::{Buffer, Device, Fault};
use bytes::Bytes;

fn block(byte: u8) -> Bytes {
    vec![byte; 4096].into()
}

/// Several tasks writing, reading, flushing and sleeping; returns the order of their steps.
fn busy_run(seed: u64) -> (Vec<(u8, u64)>, u64) {
    let simulation = Simulation::new(seed);
    let device = simulation.device(Image::new(64));
    let clock = simulation.clock();
    let order = Rc::new(RefCell::new(Vec::new()));
    for task in 0..5_u8 {
        let (device, clock, order) = (device.clone(), clock.clone(), order.clone());
        drop(simulation.spawn(async move {
            for step in 0..10_u64 {
                device
                    .write(u64::from(task) * 10 + step, block(task))
                    .await
                    .unwrap();
                order.borrow_mut().push((task, step));
                if step % 3 == 0 {
                    clock
                        .sleep(Duration::from_millis(u64::from(task) + step))
                        .await;
                    device.flush().await.unwrap();
                }
            }
        }));
    }
    simulation.run_for(Duration::from_secs(1));
    let order = order.borrow().clone();
    (order, simulation.digest())
}

#[test]
fn the_same_seed_does_the_same_and_another_does_not() {
    let (order, digest) = busy_run(7);
    assert_eq!(order.len(), 50);
    assert_eq!((order.clone(), digest), busy_run(7));
    assert_ne!(order, busy_run(8).0);
}

#[test]
fn time_passes_only_when_nothing_else_happens() {
    let simulation = Simulation::new(1);
    let clock = simulation.clock();
    let inside = clock.clone();
    let cell = simulation.spawn(async move {
        inside.sleep(Duration::from_hours(1)).await;
        inside.now()
    });
    simulation.run_until_idle();
    assert_eq!((cell.take(), clock.now()), (None, Duration::ZERO));
    assert_eq!(simulation.run_until(&cell), Some(Duration::from_hours(1)));
    let waiting = simulation.spawn(std::future::pending::<()>());
    assert_eq!(simulation.run_until(&waiting), None, "nothing can happen");
}

#[test]
fn a_task_can_wait_for_another() {
    let simulation = Simulation::new(3);
    let device = simulation.device(Image::new(1));
    let first = simulation.spawn(async move { device.flush().await.is_ok() });
    let second = simulation.spawn(async move { first.join().await });
    assert_eq!(simulation.run_until(&second), Some(true));
}

/// A device where block 0 was flushed as 1, and then blocks 0 to 2 were written as 2 but not
/// flushed, in that order.
fn half_flushed() -> (Simulation, Arc<SimulatedDevice>) {
    let simulation = Simulation::new(11);
    let device = simulation.device(Image::new(4));
    let inside = device.clone();
    let cell = simulation.spawn(async move {
        inside.write(0, block(1)).await?;
        inside.flush().await?;
        for address in 0..3 {
            inside.write(address, block(2)).await?;
        }
        std::io::Result::Ok(())
    });
    simulation.run_until(&cell).unwrap().unwrap();
    (simulation, device)
}

#[test]
fn what_was_flushed_survives_and_the_rest_as_the_cut_says() {
    let (_simulation, device) = half_flushed();
    assert_eq!(device.unflushed(), 3);
    let mut random = Random::new(5);
    let mut left = |cut| -> Vec<u8> {
        let image = device.surviving(cut, &mut random);
        (0..4).map(|address| image.block(address)[0]).collect()
    };
    assert_eq!(left(Cut::Nothing), [1, 0, 0, 0]);
    assert_eq!(left(Cut::Everything), [2, 2, 2, 0]);
    assert_eq!(left(Cut::Without(1)), [2, 0, 2, 0]);
    assert_eq!(left(Cut::Only(1)), [1, 2, 0, 0]);
    assert_eq!(left(Cut::First(2)), [2, 2, 0, 0]);
    assert_eq!(left(Cut::Last(2)), [1, 2, 2, 0]);
    assert_eq!(left(Cut::Subset(0b101)), [2, 0, 2, 0]);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..200 {
        let kept = left(Cut::Writes);
        assert!(matches!(kept[..], [1 | 2, 0 | 2, 0 | 2, 0]), "{kept:?}");
        seen.insert(kept);
    }
    assert_eq!(seen.len(), 8, "not every subset occurs");
}

#[test]
fn a_torn_write_is_old_and_new_by_sectors() {
    let (_simulation, device) = half_flushed();
    let mut random = Random::new(6);
    for _ in 0..50 {
        let image = device.surviving(Cut::Torn(0), &mut random);
        let sectors: Vec<u8> = image.block(0).chunks(512).map(|sector| sector[0]).collect();
        assert!(sectors.contains(&1) && sectors.contains(&2), "{sectors:?}");
        assert_eq!(image.block(1), [0; 4096]);
        let image = device.surviving(Cut::Sectors, &mut random);
        assert!(image.block(0).iter().all(|byte| matches!(byte, 1 | 2)));
    }
}

#[test]
fn after_a_power_cut_the_old_tasks_are_gone() {
    let (simulation, device) = half_flushed();
    let dropped = Rc::new(());
    let held = dropped.clone();
    let inside = device.clone();
    drop(simulation.spawn(async move {
        inside.flush().await.unwrap();
        drop(held);
    }));
    let device = simulation.power_cut(&device, Cut::Nothing);
    assert_eq!(Rc::strong_count(&dropped), 1);
    let read = simulation.spawn(async move { device.read(0, Buffer::new(4096)).await });
    let (buffer, result) = simulation.run_until(&read).unwrap();
    result.unwrap();
    assert_eq!(buffer[..], [1; 4096]);
}

#[test]
fn a_crash_at_an_operation_leaves_it_in_flight() {
    for crash_at in 1..=4 {
        let simulation = Simulation::new(crash_at);
        let device = simulation.device(Image::new(8));
        let inside = device.clone();
        simulation.crash_at(crash_at);
        let cell = simulation.spawn(async move {
            for address in 0..4 {
                inside.write(address, block(9)).await.unwrap();
            }
        });
        assert_eq!(simulation.run_until(&cell), None);
        assert!(simulation.crashed());
        assert_eq!(simulation.operations(), crash_at);
        assert_eq!(device.unflushed() as u64, crash_at);
        let image = device.surviving(Cut::Everything, &mut Random::new(1));
        assert_eq!(image.block(crash_at - 1), [9; 4096]);
        assert_eq!(image.block(crash_at), [0; 4096]);
    }
}

#[test]
fn a_flush_covers_only_what_completed_before_it_began() {
    // Flush and write at once: in some orders the flush begins first and may end last.
    for seed in 0..50 {
        let simulation = Simulation::new(seed);
        let device = simulation.device(Image::new(2));
        let (one, two) = (device.clone(), device.clone());
        let flush = simulation.spawn(async move { one.flush().await });
        simulation.crash_at(u64::MAX);
        while device.counts().flushes == 0 {
            simulation.step();
        }
        let write = simulation.spawn(async move { two.write(0, block(1)).await });
        simulation.run_until(&write).unwrap().unwrap();
        simulation.run_until_idle();
        drop(flush);
        assert_eq!(
            device.unflushed(),
            1,
            "seed {seed}: a later write was made durable"
        );
    }
}

#[test]
fn faults_hit_the_operation_they_name() {
    let simulation = Simulation::new(2);
    let device = simulation.device(Image::new(2));
    device.fail(Fault::Write(2));
    device.fail(Fault::Flush(1));
    device.fail(Fault::Read(1));
    let inside = device.clone();
    let cell = simulation.spawn(async move {
        let mut outcomes = Vec::new();
        outcomes.push(inside.write(0, block(1)).await.is_ok());
        outcomes.push(inside.write(1, block(1)).await.is_ok());
        outcomes.push(inside.flush().await.is_ok());
        outcomes.push(inside.flush().await.is_ok());
        outcomes.push(inside.read(0, Buffer::new(8192)).await.1.is_ok());
        let (buffer, result) = inside.read(0, Buffer::new(8192)).await;
        outcomes.push(result.is_ok() && buffer[0] == 1 && buffer[4096] == 0);
        outcomes
    });
    let outcomes = simulation.run_until(&cell).unwrap();
    assert_eq!(outcomes, [true, false, false, true, false, true]);
    device.flip(0, 5, 0x80);
    let image = device.surviving(Cut::Nothing, &mut Random::new(0));
    assert_eq!(image.block(0)[4..7], [1, 0x81, 1]);
}
