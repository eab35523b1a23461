//! Whatever is damaged, what is read is right or an error, nothing panics or hangs, and `check`
//! says what is wrong: silent corruption is the one failure that a store must not have.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]
mod image;
mod places;
mod world;

use blockstore::device::Random;
use blockstore::{ErrorKind, Options, Store};
use image::{BLOCK, Held, Image};
use places::{Kind, Place, Places};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Once, mpsc};
use std::time::Duration;
use world::{Content, World, assert_lost, empty, is, read_everything};

/// Cases for each image.
const CASES: usize = 80;
/// What no case takes, however slow the machine is.
const HANG: Duration = Duration::from_mins(1);

/// A pool as it is on its device, and what it holds.
struct Pool {
    image: Image,
    /// All that it may turn out to hold if acknowledged changes are lost; the last one is right.
    history: Vec<Content>,
}

/// A pool that power failed on, with a journal to replay, and one that was closed in the middle of
/// background deletions.
fn pools() -> [Pool; 2] {
    let mut world = World::open(empty(), Content::new());
    world.create("a");
    world.create("b");
    world.write("a", 0, 60, 1);
    world.write("a", 600, 20, 20);
    world.write("a", 70_000, 3, 1); // a high tree
    world.snapshot("a", "one");
    world.write("a", 10, 20, 1);
    world.write("b", 5, 40, 1);
    world.clone("a@one", "c");
    world.write("c", 30, 10, 1);
    world.snapshot("a", "two");
    world.write("a", 0, 15, 1);
    world.trim("a", 600, 100);
    world.clone("b", "d");
    world.write("d", 10, 5, 1);
    world.store.close().wait().unwrap();

    let mut world = World::open(world.device.image(), world.content);
    world.write("a", 100, 20, 1);
    world.snapshot("b", "three");
    world.write("b", 0, 12, 1);
    world.trim("a", 105, 5);
    world.create("e");
    for first in 0..8 {
        world.write("e", first * 3, 6, 1);
    }
    let crashed = Pool {
        image: world.device.image(),
        history: world.history.clone(),
    };

    world.write("e", 300, 250, 253); // leaves enough for a deletion that takes its time
    world.snapshot("e", "gone");
    world.write("e", 300, 1, 1);
    world.delete("a@one");
    world.delete("e@gone");
    world.delete("e");
    world.store.close().wait().unwrap();
    let closed = Pool {
        image: world.device.image(),
        history: vec![world.content],
    };
    [crashed, closed]
}

/// How blocks are damaged.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Flip,
    Zero,
    /// Exchanged with blocks of another place.
    Swap,
}

struct Case {
    place: Place,
    damage: Damage,
    both: bool,
    image: Image,
    /// Of the blocks that were changed.
    kinds: Vec<Kind>,
}

/// A random case, unless it changes nothing.
fn case(pool: &Pool, places: &Places<'_>, random: &mut Random) -> Option<Case> {
    let mut kinds: Vec<Kind> = places.found.iter().map(|place| place.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let mut pick = || {
        let kind = kinds[random.index(kinds.len())];
        let of_kind: Vec<&Place> = places
            .found
            .iter()
            .filter(|place| place.kind == kind)
            .collect();
        of_kind[random.index(of_kind.len())].clone()
    };
    let (place, other) = (pick(), pick());
    let damage = [Damage::Flip, Damage::Zero, Damage::Swap][random.index(3)];
    let both = !place.twin.is_empty() && random.chance(1, 3);
    let mut image = pool.image.clone();
    let within = random.index(place.blocks.len());
    let length = (place.length - within * BLOCK).min(BLOCK);
    let mut targets = vec![place.blocks[within]];
    match (both, place.twin.get(within)) {
        (true, Some(twin)) => targets.push(*twin),
        (false, Some(twin)) if random.chance(1, 2) => targets = vec![*twin],
        _ => {}
    }
    let mut kinds = vec![place.kind];
    for target in targets {
        let mut block = image.read(target, 1);
        match damage {
            Damage::Flip => block[random.index(length)] ^= 1 << random.below(8),
            Damage::Zero => block.fill(0),
            Damage::Swap => {
                let with = other.blocks[random.index(other.blocks.len())];
                let found = image.read(with, 1);
                image.write(with, &block);
                block = found;
                kinds.push(other.kind);
            }
        }
        image.write(target, &block);
    }
    let same = |at: &u64| image.read(*at, 1) == pool.image.read(*at, 1);
    let untouched = place.blocks.iter().chain(&place.twin).all(same);
    (!untouched).then_some(Case {
        place,
        damage,
        both,
        image,
        kinds,
    })
}

impl Case {
    fn touches(&self, kind: Kind) -> bool {
        self.kinds.contains(&kind)
    }

    /// Both copies of a superblock were hit at once: the one before is taken for the newest, as it
    /// is if power fails while a superblock is written for the first time.
    fn loses_superblock(&self) -> bool {
        self.kinds == [Kind::Superblock; 2]
    }

    /// Opens the pool and reads everything.
    fn read(&self, pool: &Pool) {
        let store = match Store::open_device(Held::new(self.image.clone()), &Options::default()) {
            Ok(store) => store,
            Err(error) => return assert_lost(&error),
        };
        let last = pool.history.len() - 1;
        let found = read_everything(&store, &pool.history[last]);
        let journal = self.touches(Kind::DurableRecord) || self.touches(Kind::LastRecord);
        let refuses = store.status().refuses_changes.is_some();
        // One change is one record here, and only damage to the last one may look like a torn tail.
        let allowed = match (journal, refuses) {
            (true, true) => 0,
            (true, false) if self.touches(Kind::DurableRecord) => last,
            (true, false) => last - 1,
            (false, _) if self.loses_superblock() => 0,
            (false, _) => last,
        };
        let matching = (allowed..=last)
            .rev()
            .find_map(|at| is(&found, &pool.history[at]));
        let Some(lost) = matching else {
            let differs: Vec<_> = found
                .iter()
                .filter(|(name, blocks)| {
                    let one = [((*name).clone(), (*blocks).clone())].into_iter().collect();
                    let expected = pool.history[last].get(*name).cloned().unwrap_or_default();
                    is(&one, &[((*name).clone(), expected)].into_iter().collect()).is_none()
                })
                .map(|(name, _)| name)
                .collect();
            panic!("the pool holds what it never held: {differs:?}, refuses: {refuses}");
        };
        let has_twin = matches!(self.damage, Damage::Flip | Damage::Zero)
            && (self.place.kind == Kind::Superblock || !self.place.twin.is_empty() && !self.both);
        assert!(
            !has_twin || lost == 0,
            "{lost} blocks are lost although there is a twin"
        );
    }

    /// Checks the pool. It must say something if what was damaged is in use.
    fn check(&self, closed: bool, path: &Path) {
        self.image.store(path);
        let report = match Store::check(path, &mut |_| {}) {
            Ok(report) => report,
            Err(error) => return assert_lost(&error),
        };
        let kept = matches!(
            self.place.kind,
            Kind::Table
                | Kind::Bitmap
                | Kind::CatalogueNode
                | Kind::CatalogueBlock
                | Kind::DurableRecord
        );
        let untold = self.loses_superblock();
        if closed && !untold || kept && matches!(self.damage, Damage::Flip | Damage::Zero) {
            assert!(!report.problems.is_empty(), "nothing was found");
        }
    }
}

/// Panics of any thread, workers included.
fn panics() -> &'static AtomicU64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            COUNT.fetch_add(1, Ordering::Relaxed);
            before(info);
        }));
    });
    &COUNT
}

/// Runs a case on a thread of its own, so that a hang is seen.
fn run(case: Case, pool: &Pool, closed: bool, path: PathBuf) {
    let history = pool.history.clone();
    let what = format!(
        "{:?} of {:?}, both copies: {}",
        case.damage, case.place, case.both
    );
    let (sender, receiver) = mpsc::channel();
    let pool = Pool {
        image: pool.image.clone(),
        history,
    };
    let thread = std::thread::spawn(move || {
        case.read(&pool);
        case.check(closed, &path);
        sender.send(()).unwrap();
    });
    match receiver.recv_timeout(HANG) {
        Ok(()) => thread.join().unwrap(),
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{what}: it hangs"),
        Err(mpsc::RecvTimeoutError::Disconnected) => panic!("{what}: failed"),
    }
    assert_eq!(
        panics().load(Ordering::Relaxed),
        0,
        "{what}: something panicked"
    );
}

#[test]
fn damage_anywhere_is_an_error_and_is_reported() {
    let time = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let seed = u64::try_from(time.as_nanos() & u128::from(u64::MAX)).unwrap();
    println!("seed {seed}");
    let mut random = Random::new(seed);
    panics();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("damaged.pool");
    for (pool, closed) in pools().into_iter().zip([false, true]) {
        pool.image.store(&path);
        let report = Store::check(&path, &mut |_| {}).unwrap();
        assert_eq!(report.problems, Vec::<String>::new());
        let places = Places::find(&pool.image);
        assert_eq!(places.clean, closed);
        assert!(!closed || places.jobs > 0, "no deletion is left to do");
        for _ in 0..CASES {
            if let Some(case) = case(&pool, &places, &mut random) {
                run(case, &pool, closed, path.clone());
            }
        }
    }
}

#[test]
fn a_pool_cut_short_is_refused_untouched_and_a_longer_one_is_as_good() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("cut.pool");
    let [_, closed] = pools();
    closed.image.store(&path);
    let whole = std::fs::metadata(&path).unwrap().len();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    for length in [whole - 4096, whole / 2, 20 << 20, 8192, 4096, 100, 0] {
        file.set_len(length).unwrap();
        let before = std::fs::read(&path).unwrap();
        let errors = [
            Store::open(&path, &Options::default()).unwrap_err(),
            Store::check(&path, &mut |_| {}).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{length}: {error}");
        }
        assert!(
            std::fs::read(&path).unwrap() == before,
            "{length}: it was changed"
        );
    }
    closed.image.store(&path);
    file.set_len(whole + 12_345).unwrap();
    let report = Store::check(&path, &mut |_| {}).unwrap();
    assert_eq!(report.problems, Vec::<String>::new());
    let store = Store::open(&path, &Options::default()).unwrap();
    let found = read_everything(&store, &closed.history[0]);
    assert_eq!(is(&found, &closed.history[0]), Some(0));
}
