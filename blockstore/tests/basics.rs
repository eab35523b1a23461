//! A pool in a file keeps what was written, through snapshots, clones, rollback and reopening.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]
use blockstore::{Access, InitOptions, Options, Store};
use std::path::PathBuf;

fn pool(bytes: u64) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("test.pool");
    let options = InitOptions {
        size: Some(bytes),
        ..InitOptions::default()
    };
    Store::init(&path, &options, &mut |_| {}).unwrap();
    (dir, path)
}

#[test]
fn what_was_written_reads_back_at_any_alignment_and_after_reopening() {
    let (_dir, path) = pool(64 << 20);
    let store = Store::open(&path, &Options::default()).unwrap();
    store.create_volume("a", 1 << 30, false).wait().unwrap();
    let a = store.open_volume("a", Access::Write).unwrap();
    let mut model = vec![0u8; 1 << 20];
    for (offset, length, fill) in [
        (0, 4096, 1),
        (100, 50, 2),
        (4000, 5000, 3),
        (12_288, 65_536, 4),
        (777_777, 33_333, 5),
    ] {
        a.write(offset, vec![fill; length]).wait().unwrap();
        let at = usize::try_from(offset).unwrap();
        model[at..at + length].fill(fill);
    }
    a.zero(4100, 10_000).wait().unwrap();
    model[4100..14_100].fill(0);
    a.trim(16_384, 8192).wait().unwrap();
    model[16_384..16_384 + 8192].fill(0);
    assert_eq!(&a.read(0, 1 << 20).wait().unwrap()[..], &model[..]);
    a.flush().wait().unwrap();
    drop(a);
    store.close().wait().unwrap();
    drop(store);
    let store = Store::open(&path, &Options::default()).unwrap();
    let a = store.open_volume("a", Access::Read).unwrap();
    assert_eq!(&a.read(0, 1 << 20).wait().unwrap()[..], &model[..]);
    assert_eq!(&a.read(3, 70_001).wait().unwrap()[..], &model[3..70_004]);
}

#[test]
fn deleting_everything_in_any_order_frees_everything() {
    let (_dir, path) = pool(64 << 20);
    let store = Store::open(&path, &Options::default()).unwrap();
    let empty = store.status();
    store.create_volume("a", 1 << 30, false).wait().unwrap();
    let write = |name: &str, block: u64, fill: u8| {
        let volume = store.open_volume(name, Access::Write).unwrap();
        volume
            .write(block * 4096, vec![fill; 40 * 4096])
            .wait()
            .unwrap();
    };
    write("a", 0, 1);
    store.snapshot(&[("a", "one")]).wait().unwrap();
    write("a", 20, 2);
    store.snapshot(&[("a", "two")]).wait().unwrap();
    write("a", 300, 3);
    store.clone_volume("a@one", "b").wait().unwrap();
    write("b", 10, 4);
    store.clone_volume("b", "c").wait().unwrap();
    write("c", 0, 5);
    write("b", 30, 6);
    store.rollback("a", "one").wait().unwrap();
    write("a", 100, 7);
    store.delete_snapshot("a", "one").wait().unwrap();
    store.delete_volume("b").wait().unwrap();
    let c = store.open_volume("c", Access::Read).unwrap();
    let expected = |block: u64| {
        if block < 40 {
            5
        } else if block < 50 {
            4
        } else {
            0
        }
    };
    for block in 0..60 {
        let data = c.read(block * 4096, 4096).wait().unwrap();
        assert!(
            data.iter().all(|byte| *byte == expected(block)),
            "block {block}"
        );
    }
    drop(c);
    store.delete_volume("a").wait().unwrap();
    store.delete_volume("c").wait().unwrap();
    store.delete_snapshot("a", "two").wait().unwrap();
    assert_eq!(store.volumes(), []);
    let mut status = store.status();
    for _ in 0..1000 {
        status = store.status();
        assert_eq!(status.used + status.gated + status.free, status.usable);
        if status.jobs == 0 && status.gated == 0 && status.used == empty.used {
            break;
        }
        store.open_volume("none", Access::Read).unwrap_err();
        std::thread::park_timeout(std::time::Duration::from_millis(10));
    }
    assert_eq!((status.used, status.gated, status.jobs), (empty.used, 0, 0));
}
