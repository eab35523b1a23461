//! A pool that was made by version 1 of the format opens with all it held: pools outlive programs.
//!
//! `golden/version-1.pool.txt` holds the image: a line for each block that is not zero, its address
//! and what is in it, as runs of hexadecimal bytes (`*N` repeats the byte before N times more). It
//! was made once by `describe`, below, and is never made anew: a format that cannot open it is
//! another format. To make the image of a new version, change `FILE`, run this test, which writes
//! the image of a missing file and fails, and commit what it wrote.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]
use blockstore::{Access, InitOptions, Options, Store};
use std::fmt::Write;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const FILE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/golden/version-1.pool.txt"
);
const BLOCK: usize = 4096;
const POOL_BYTES: u64 = 64 << 20;

/// Byte offset of a block.
const fn at(block: u64) -> u64 {
    block * BLOCK as u64
}

/// Makes the pool, as a crash would leave it behind: with a journal to replay.
fn make(path: &Path) -> Vec<u8> {
    let init = InitOptions {
        size: Some(POOL_BYTES),
        ..InitOptions::default()
    };
    Store::init(path, &init, &mut |_| {}).unwrap();
    let store = Store::open(path, &Options::default()).unwrap();
    store.create_volume("data", 1 << 30, false).wait().unwrap();
    store
        .create_volume("reserved", 1 << 20, true)
        .wait()
        .unwrap();
    let write = |store: &Store, name: &str, block: u64, count: usize, fill: u8| {
        let volume = store.open_volume(name, Access::Write).unwrap();
        volume
            .write(at(block), vec![fill; count * BLOCK])
            .wait()
            .unwrap();
        volume.flush().wait().unwrap();
    };
    write(&store, "data", 0, 20, 1);
    write(&store, "data", 70_000, 2, 2);
    store
        .snapshot(&[("data", "monday"), ("reserved", "empty")])
        .wait()
        .unwrap();
    write(&store, "data", 10, 5, 3);
    store.clone_volume("data@monday", "copy").wait().unwrap();
    write(&store, "copy", 1, 2, 4);
    store.snapshot(&[("data", "tuesday")]).wait().unwrap();
    write(&store, "data", 70_000, 1, 5);
    store.close().wait().unwrap();
    drop(store);
    let store = Store::open(path, &Options::default()).unwrap();
    write(&store, "data", 300, 3, 6);
    let data = store.open_volume("data", Access::Write).unwrap();
    data.trim(at(12), at(4)).wait().unwrap();
    data.flush().wait().unwrap();
    store.snapshot(&[("data", "wednesday")]).wait().unwrap();
    store.rename_volume("copy", "cöpy").wait().unwrap();
    store.resize_volume("cöpy", 2 << 30).wait().unwrap();
    // As it is now: the store is still open.
    std::fs::read(path).unwrap()
}

/// First block, number of blocks, and the byte that they are filled with.
type Run = (u64, u64, u8);

/// What the pool holds: volumes and snapshots with their sizes and runs; the rest are holes.
const CONTENT: [(&str, u64, &[Run]); 6] = [
    (
        "data",
        1 << 30,
        &[
            (0, 10, 1),
            (10, 2, 3),
            (16, 4, 1),
            (300, 3, 6),
            (70_000, 1, 5),
            (70_001, 1, 2),
        ],
    ),
    ("data@monday", 1 << 30, &[(0, 20, 1), (70_000, 2, 2)]),
    (
        "data@tuesday",
        1 << 30,
        &[(0, 10, 1), (10, 5, 3), (15, 5, 1), (70_000, 2, 2)],
    ),
    (
        "cöpy",
        2 << 30,
        &[(0, 1, 1), (1, 2, 4), (3, 17, 1), (70_000, 2, 2)],
    ),
    ("reserved", 1 << 20, &[]),
    ("reserved@empty", 1 << 20, &[]),
];

fn check_content(store: &Store) {
    let names: Vec<String> = store
        .volumes()
        .into_iter()
        .map(|volume| volume.name)
        .collect();
    assert_eq!(names, ["cöpy", "data", "reserved"]);
    let snapshots = store.snapshots(None).unwrap();
    let names: Vec<String> = snapshots.into_iter().map(|s| s.name).collect();
    assert_eq!(names, ["monday", "empty", "tuesday", "wednesday"]);
    let info = store.volume("cöpy").unwrap();
    assert_eq!(
        (info.origin.as_deref(), info.reserved),
        (Some("data@monday"), false)
    );
    assert!(store.volume("reserved").unwrap().reserved);
    for (name, size, runs) in CONTENT {
        let volume = store.open_volume(name, Access::Read).unwrap();
        assert_eq!(volume.size(), size, "{name}");
        let mut expected = vec![0; 400 * BLOCK];
        for (first, count, fill) in runs.iter().filter(|(first, ..)| *first < 400) {
            let range =
                usize::try_from(at(*first)).unwrap()..usize::try_from(at(first + count)).unwrap();
            expected[range].fill(*fill);
        }
        let length = expected.len().min(usize::try_from(size).unwrap());
        let data = volume.read(0, length as u64).wait().unwrap();
        assert!(data == expected[..length], "{name}");
        for (first, count, fill) in runs.iter().filter(|(first, ..)| *first >= 400) {
            let data = volume.read(at(*first), at(*count)).wait().unwrap();
            assert!(
                data.iter().all(|byte| byte == fill),
                "{name} from block {first}"
            );
        }
        let (allocated, rest) = store.diff(None, name, 0, 1000).wait().unwrap();
        assert_eq!(rest, None);
        let blocks: u64 = runs.iter().map(|(_, count, _)| at(*count)).sum();
        assert_eq!(
            allocated.iter().map(|extent| extent.length).sum::<u64>(),
            blocks,
            "{name}"
        );
    }
}

/// The image as text.
fn describe(image: &[u8]) -> String {
    let mut text = String::new();
    for (address, block) in image.chunks(BLOCK).enumerate() {
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        write!(text, "{address} ").unwrap();
        for run in block.chunk_by(|a, b| a == b) {
            write!(text, "{:02x}", run[0]).unwrap();
            if run.len() > 4 {
                write!(text, "*{} ", run.len() - 1).unwrap();
            } else {
                (1..run.len()).for_each(|_| write!(text, "{:02x}", run[0]).unwrap());
            }
        }
        text.push('\n');
    }
    text
}

/// Makes a pool out of the text.
fn restore(text: &str, path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(POOL_BYTES).unwrap();
    for line in text.lines() {
        let (address, rest) = line.split_once(' ').unwrap();
        let mut block: Vec<u8> = Vec::new();
        let mut rest = rest;
        while !rest.is_empty() {
            if let Some(run) = rest.strip_prefix('*') {
                let (count, after) = run.split_once(' ').unwrap();
                let last = *block.last().unwrap();
                block.resize(block.len() + count.parse::<usize>().unwrap(), last);
                rest = after;
            } else {
                block.push(u8::from_str_radix(&rest[..2], 16).unwrap());
                rest = &rest[2..];
            }
        }
        assert_eq!(block.len(), BLOCK, "block {address}");
        file.write_all_at(&block, at(address.parse().unwrap()))
            .unwrap();
    }
}

#[test]
fn a_pool_of_version_1_opens_with_all_it_held() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("golden.pool");
    let Ok(text) = std::fs::read_to_string(FILE) else {
        std::fs::write(FILE, describe(&make(&path))).unwrap();
        unreachable!("{FILE} was missing and is made: look at it, and commit it");
    };
    restore(&text, &path);
    let report = Store::check(&path, &mut |_| {}).unwrap();
    assert_eq!(report.problems, Vec::<String>::new());
    assert_eq!((report.volumes, report.snapshots), (3, 4));
    let store = Store::open(&path, &Options::default()).unwrap();
    check_content(&store);
    // It can be written to, and is whole afterwards.
    store.rollback("data", "monday").wait().unwrap();
    store.delete_snapshot("data", "tuesday").wait().unwrap();
    store.close().wait().unwrap();
    drop(store);
    let report = Store::check(&path, &mut |_| {}).unwrap();
    assert_eq!(report.problems, Vec::<String>::new());
}

#[test]
fn a_pool_made_today_holds_the_same() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("today.pool");
    let image = make(&path);
    let text = describe(&image);
    assert!(
        text.len() < 200_000,
        "{} bytes are too many to keep",
        text.len()
    );
    let copy = dir.path().join("copy.pool");
    restore(&text, &copy);
    assert!(
        std::fs::read(&copy).unwrap() == image,
        "the text is not the image"
    );
    let store = Store::open(&copy, &Options::default()).unwrap();
    check_content(&store);
}
