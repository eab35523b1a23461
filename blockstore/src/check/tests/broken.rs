//! Pools that break one rule, with every checksum right: the checker names the rule.
//!
//! The state in memory is spoiled before a checkpoint writes it, as a mistake in the engine would.
use super::super::offline::check_device;
use super::super::verify;
use super::{GEOMETRY, formatted};
use crate::device::Device;
use crate::format::pointer::Packed;
use crate::pool::Pool;
use crate::runtime::{Runtime, SystemClock};
use crate::state::State;
use crate::store::Options;
use crate::units::{Address, BLOCK_BYTES, Record};
use crate::versions::{Deadlist, Job, Kind, Output, Version};
use std::sync::Arc;

/// A pool with two volumes, a snapshot, a clone, and something in each deadlist.
async fn fill(pool: &Pool) {
    let write = async |name: &str, first: u64, blocks: u64| {
        let id = pool.state.lock().live_volume(name).unwrap().0;
        let data = vec![1; usize::try_from(blocks * BLOCK_BYTES).unwrap()];
        pool.write(id, first * BLOCK_BYTES, data.into())
            .await
            .unwrap();
    };
    pool.create_volume("a", 400 * BLOCK_BYTES, false)
        .await
        .unwrap();
    pool.create_volume("b", 400 * BLOCK_BYTES, false)
        .await
        .unwrap();
    write("a", 0, 30).await;
    pool.snapshot(&[("a".to_owned(), "s".to_owned())])
        .await
        .unwrap();
    write("a", 10, 3).await;
    pool.clone_volume("a@s", "c").await.unwrap();
    write("c", 20, 3).await;
    write("b", 5, 3).await;
    pool.checkpoint().await.unwrap();
}

/// Spoils a pool and checks it, both as it is open and from its device.
fn problems(spoil: fn(&mut State)) -> Vec<String> {
    let device: Arc<dyn Device> = formatted(GEOMETRY);
    let runtime = Runtime::start_without_ring(1, "test").unwrap();
    let opened = Arc::clone(&device);
    let checked = runtime.handles()[0].spawn(async move {
        let clock = Arc::new(SystemClock::new());
        let pool = Pool::open(opened, clock, Options::default()).await?;
        fill(&pool).await;
        assert_eq!(
            verify(&pool, &mut |_| {}).await.problems,
            Vec::<String>::new()
        );
        {
            let mut state = pool.state.lock();
            state.allocator.stock_metadata(9).unwrap();
            spoil(&mut state);
            let ids: Vec<u64> = (1..state.next_id).collect();
            state.changed.extend(ids);
        }
        pool.checkpoint().await?;
        crate::Result::Ok(verify(&pool, &mut |_| {}).await.problems)
    });
    let problems = checked.wait().unwrap();
    let report = check_device(&device, &mut |_| {}).unwrap();
    assert!(
        !report.problems.is_empty(),
        "seen in the open pool only: {problems:?}"
    );
    problems
}

fn version<'a>(state: &'a mut State, name: &str) -> &'a mut Version {
    let id = match name {
        "a@s" => state.snapshot_id("a", "s").unwrap(),
        name => state.live_volume(name).unwrap().1,
    };
    state.versions.get_mut(&id).unwrap()
}

#[track_caller]
fn expect(spoil: fn(&mut State), words: &[&str]) {
    let problems = problems(spoil);
    let said = |line: &String| words.iter().all(|word| line.contains(word));
    assert!(
        problems.iter().any(said),
        "{words:?} is not said: {problems:#?}"
    );
}

#[test]
fn blocks_without_an_owner_or_with_two_are_told() {
    expect(
        |state| assert_ne!(state.allocator.take_metadata(0), Address(0)),
        &["I2", "nobody's: leaked"],
    );
    expect(
        |state| {
            let address = root_address(version(state, "b"));
            state.allocator.free_gated(address);
        },
        &["I2", "not marked as in use"],
    );
    expect(
        |state| {
            let root = version(state, "b").root.clone();
            version(state, "a").root = root;
        },
        &["I1", "two owners"],
    );
}

fn root_address(version: &Version) -> Address {
    match version.root.as_child() {
        crate::mapping::Child::Memory(node) => node.header.address,
        crate::mapping::Child::Stored(stored) => stored.address,
        crate::mapping::Child::Hole => Address(0),
    }
}

#[test]
fn counters_that_drifted_are_told() {
    expect(
        |state| version(state, "a").own += 1,
        &["I2", "volume a has", "to itself"],
    );
    expect(
        |state| version(state, "c").dead_own += 99,
        &["I10", "volume c", "counts"],
    );
}

#[test]
fn deadlists_that_name_too_much_or_too_little_are_told() {
    expect(
        |state| {
            let entry = Packed::new(Address(GEOMETRY.base() + 9), 0, Record(1), 0);
            version(state, "a").dead.append(entry);
        },
        &["I10", "volume a", "deadlist"],
    );
    expect(
        |state| version(state, "a").dead = Deadlist::default(),
        &["I10", "volume a"],
    );
    expect(
        |state| {
            let entry = Packed::new(Address(GEOMETRY.base() + 9), 0, Record(1 << 40), 0);
            version(state, "a").dead.append(entry);
        },
        &["I10", "names", "cut at"],
    );
}

#[test]
fn cuts_that_make_shared_what_is_not_are_told() {
    expect(
        |state| version(state, "a").cut = Record(1 << 30),
        &["I4", "volume a"],
    );
    expect(
        |state| version(state, "c").cut = Record(1),
        &["I9", "snapshot a@s"],
    );
    expect(
        |state| version(state, "a").cut = Record(0),
        &["its parent at"],
    );
    expect(
        |state| {
            let own = state.live_volume("b").unwrap().1;
            version(state, "a").parent = own;
        },
        &["has a head for its parent"],
    );
    expect(
        |state| version(state, "a@s").cut = Record(1),
        &["from nothing"],
    );
}

#[test]
fn entries_that_do_not_fit_one_another_are_told() {
    expect(
        |state| version(state, "a").size = 2 * BLOCK_BYTES,
        &["volume a", "beyond its end"],
    );
    expect(
        |state| version(state, "a").size = 0,
        &["volume a has 0 bytes"],
    );
    expect(
        |state| version(state, "b").kind = Kind::Ghost,
        &["is not its head"],
    );
    expect(
        |state| version(state, "b").kind = Kind::Ghost,
        &["was not taken out"],
    );
    expect(
        |state| version(state, "a@s").name = "x/y".to_owned(),
        &["is not a name"],
    );
    expect(
        |state| version(state, "a@s").volume = 77,
        &["has no volume"],
    );
    expect(
        |state| {
            let id = state.volume_id("b").unwrap();
            state.volumes.get_mut(&id).unwrap().name = "a".to_owned();
        },
        &["two volumes are named"],
    );
    expect(
        |state| {
            let id = state.volume_id("b").unwrap();
            state.volumes.get_mut(&id).unwrap().head = 0;
        },
        &["is deleted and has no snapshot"],
    );
}

#[test]
fn jobs_that_pass_blocks_on_to_nowhere_are_told() {
    expect(
        |state| add_filter(state, Output::Version(999)),
        &["passes blocks on to", "999"],
    );
    expect(
        |state| {
            let next = state.next_id;
            add_filter(state, Output::Job(next));
        },
        &["in a circle"],
    );
}

fn add_filter(state: &mut State, output: Output) {
    let id = state.fresh_id();
    let list = Deadlist::default();
    let cut = Record(1);
    state.jobs.insert(id, Job::Filter { cut, list, output });
}
