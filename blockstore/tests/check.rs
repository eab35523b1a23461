//! `Store::check` as its users see it: it changes nothing, refuses what is open, and names what is
//! damaged so that somebody can act on it.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]
use blockstore::{Access, ErrorKind, InitOptions, Options, Progress, Store};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use tempfile::TempDir;

const BLOCK: u64 = 4096;

/// A pool with a volume, a snapshot of it and a clone.
fn pool() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("test.pool");
    let options = InitOptions {
        size: Some(64 << 20),
        ..InitOptions::default()
    };
    Store::init(&path, &options, &mut |_| {}).unwrap();
    let store = Store::open(&path, &Options::default()).unwrap();
    store.create_volume("data", 1 << 30, false).wait().unwrap();
    write(&store, 0, 0x11);
    store.snapshot(&[("data", "monday")]).wait().unwrap();
    store.clone_volume("data@monday", "copy").wait().unwrap();
    write(&store, 3000, 0x22);
    store.close().wait().unwrap();
    (dir, path)
}

/// Fills 100 blocks and flushes.
fn write(store: &Store, block: u64, fill: u8) {
    let data = store.open_volume("data", Access::Write).unwrap();
    let length = usize::try_from(100 * BLOCK).unwrap();
    data.write(block * BLOCK, vec![fill; length])
        .wait()
        .unwrap();
    data.flush().wait().unwrap();
}

fn problems(path: &std::path::Path) -> Vec<String> {
    Store::check(path, &mut |_| {}).unwrap().problems
}

/// The first block of the file that is filled with `fill`.
fn find(path: &std::path::Path, fill: u8) -> u64 {
    let content = std::fs::read(path).unwrap();
    let mut blocks = content.chunks(4096);
    let index = blocks.position(|block| block.iter().all(|byte| *byte == fill));
    index.unwrap() as u64
}

fn flip(path: &std::path::Path, block: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, block * BLOCK + 99).unwrap();
    byte[0] ^= 0x40;
    file.write_all_at(&byte, block * BLOCK + 99).unwrap();
}

#[test]
fn a_clean_pool_is_counted_and_left_as_it_is() {
    let (_dir, path) = pool();
    let before = std::fs::read(&path).unwrap();
    let mut told: Vec<Progress> = Vec::new();
    let report = Store::check(&path, &mut |progress| told.push(progress)).unwrap();
    assert_eq!(report.problems, Vec::<String>::new());
    assert_eq!((report.volumes, report.snapshots), (2, 1));
    assert!(report.blocks > 200, "{report:?}");
    assert!(told.is_sorted_by_key(|progress| progress.done));
    let last = told.last().unwrap();
    assert_eq!((last.done, last.total), (report.blocks, report.blocks));
    assert!(
        std::fs::read(&path).unwrap() == before,
        "the pool was changed"
    );
}

#[test]
fn a_pool_that_power_failed_on_is_checked_as_it_would_be_recovered_and_left_as_it_is() {
    let (dir, path) = pool();
    let store = Store::open(&path, &Options::default()).unwrap();
    write(&store, 10, 0x33);
    store.snapshot(&[("data", "tuesday")]).wait().unwrap();
    let crashed = dir.path().join("crashed.pool");
    std::fs::copy(&path, &crashed).unwrap();
    drop(store);
    let before = std::fs::read(&crashed).unwrap();
    let report = Store::check(&crashed, &mut |_| {}).unwrap();
    assert_eq!(report.problems, Vec::<String>::new());
    assert_eq!((report.volumes, report.snapshots), (2, 2));
    assert!(
        std::fs::read(&crashed).unwrap() == before,
        "the pool was changed"
    );
}

#[test]
fn an_open_pool_is_refused_and_the_process_named() {
    let (_dir, path) = pool();
    let store = Store::open(&path, &Options::default()).unwrap();
    let error = Store::check(&path, &mut |_| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    let pid = std::process::id().to_string();
    assert!(error.to_string().contains(&pid), "{error}");
    drop(store);
    assert_eq!(problems(&path), Vec::<String>::new());
}

#[test]
fn what_is_no_pool_is_refused() {
    let (dir, path) = pool();
    let missing = dir.path().join("missing");
    let error = Store::check(&missing, &mut |_| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    std::fs::write(&path, vec![7; 1 << 20]).unwrap();
    let error = Store::check(&path, &mut |_| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[test]
fn damaged_data_is_named_by_its_owner_block_and_address() {
    let (_dir, path) = pool();
    // The snapshot owns what the clone and the volume share with it.
    let address = find(&path, 0x11);
    flip(&path, address + 7);
    let found = problems(&path);
    assert_eq!(found.len(), 1, "{found:?}");
    let line = format!(
        "snapshot data@monday: block 7, block@{}: checksum mismatch",
        address + 7
    );
    assert!(found[0].contains(&line), "{found:?}");
    flip(&path, address + 7);
    let address = find(&path, 0x22);
    flip(&path, address);
    let found = problems(&path);
    let line = format!("volume data: block 3000, block@{address}: checksum mismatch");
    assert!(found[0].contains(&line), "{found:?}");
}

#[test]
fn a_damaged_superblock_copy_of_a_closed_pool_is_told() {
    let (_dir, path) = pool();
    for (slot, start) in [0, 16, 4096, 4112].into_iter().enumerate() {
        flip(&path, start);
        let found = problems(&path);
        assert!(
            found[0].contains(&format!("superblock {slot}")),
            "{found:?}"
        );
        flip(&path, start);
    }
    assert_eq!(problems(&path), Vec::<String>::new());
}

#[test]
fn a_catalogue_that_is_lost_is_a_problem_and_not_the_end_of_the_check() {
    let (_dir, path) = pool();
    let content = std::fs::read(&path).unwrap();
    // A catalogue block begins with an entry; the one that holds ids 0 to 7 has a gap, then id 1.
    let is_catalogue = |block: &[u8]| {
        block[..512].iter().all(|byte| *byte == 0) && block[512..520] == 1u64.to_le_bytes()
    };
    let blocks: Vec<usize> = content
        .chunks(4096)
        .enumerate()
        .skip(4128)
        .filter(|(_, block)| is_catalogue(block))
        .map(|(address, _)| address)
        .collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        flip(&path, block as u64);
    }
    let found = problems(&path);
    assert!(found[0].contains("cannot be recovered"), "{found:?}");
    assert!(
        found.iter().any(|line| line.contains("catalogue block 0")),
        "{found:?}"
    );
    assert!(
        found.iter().any(|line| line.contains("nobody's: leaked")),
        "{found:?}"
    );
}
