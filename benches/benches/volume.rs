//! What one operation through the crate costs, without a server: one at a time, from a thread of
//! its own, so hand-over to the worker is part of it.
#![expect(clippy::unwrap_used, reason = "a benchmark stops at the first error")]
use benches::Bench;
use criterion::{Criterion, criterion_group, criterion_main};
use std::cell::Cell;

const BLOCK: u64 = 4096;
const VOLUME: u64 = 256 << 20;

fn volume(criterion: &mut Criterion) {
    let bench = Bench::new("volume", 2 << 30, VOLUME).unwrap();
    // A full-period generator over the volume's 65 536 blocks.
    let state = Cell::new(1);
    let next = || {
        state.set((state.get() * 5 + 3) % (VOLUME / BLOCK));
        state.get() * BLOCK
    };
    let block = vec![0xa5; 4096];
    criterion.bench_function("write 4 KiB, random", |b| {
        b.iter(|| bench.volume.write(next(), block.clone()).wait().unwrap());
    });
    criterion.bench_function("read 4 KiB, random", |b| {
        b.iter(|| bench.volume.read(next(), BLOCK).wait().unwrap());
    });
    criterion.bench_function("write 4 KiB, random, and flush", |b| {
        b.iter(|| {
            bench.volume.write(next(), block.clone()).wait().unwrap();
            bench.volume.flush().wait().unwrap();
        });
    });
    criterion.bench_function("cut a snapshot after a write, and delete it", |b| {
        b.iter(|| {
            bench.volume.write(next(), block.clone()).wait().unwrap();
            bench.store.snapshot(&[("bench", "s")]).wait().unwrap();
            bench.store.delete_snapshot("bench", "s").wait().unwrap();
        });
    });
}

criterion_group!(benches, volume);
criterion_main!(benches);
