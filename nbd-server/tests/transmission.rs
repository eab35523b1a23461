//! Every command through a real socket: what it does, what it answers, and that an error leaves the
//! session usable.
mod client;

use client::{Body, SIZE, Served, pattern, request};
use std::collections::HashSet;

const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const REQ_ONE: u16 = 8;
const FAST_ZERO: u16 = 16;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZERO: u16 = 6;
const STATUS: u16 = 7;

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;
const ENOTSUP: u32 = 95;
const ESHUTDOWN: u32 = 108;

#[test]
fn what_is_written_is_read_at_any_alignment_and_size() {
    let served = Served::new();
    let mut wire = served.client("vol", &[]);
    let mut expected = vec![0; 4 << 20];
    let ranges = [
        (0, 1),
        (1, 4095),
        (4095, 2),
        (8192, 4096),
        (12_288 + 512, 512),
        (20_000, 30_000),
        (65_000, 70_000),
        (200_001, 262_143),
        (1 << 20, 1 << 20),
        ((2 << 20) - 1, (1 << 20) + 2),
    ];
    for (seed, (offset, length)) in (1..).zip(ranges) {
        let data = pattern(seed, length);
        assert_eq!(wire.write(0, u64::try_from(offset).unwrap(), &data), 0);
        expected[offset..offset + length].copy_from_slice(&data);
    }
    assert!(wire.read(0, 4 << 20) == expected);
    for (offset, length) in ranges {
        let read = wire.read(
            u64::try_from(offset).unwrap(),
            u32::try_from(length).unwrap(),
        );
        assert!(
            read == expected[offset..offset + length],
            "{length} at {offset}"
        );
    }
}

#[test]
fn the_largest_write_and_read_work_and_one_byte_more_does_not() {
    let served = Served::new();
    let mut wire = served.client("vol", &[]);
    let data = pattern(1, 32 << 20);
    assert_eq!(wire.write(FUA, 4096, &data), 0);
    assert!(wire.read(4096, 32 << 20) == data);
    assert_eq!(wire.call(0, READ, 0, (32 << 20) + 1), EINVAL);
    assert_eq!(wire.call(DF, READ, 0, (32 << 20) + 1), EOVERFLOW);
    wire.command(0, WRITE, 1, 0, (32 << 20) + 1);
    wire.expect_end();
}

#[test]
fn a_simple_read_carries_all_bytes() {
    let served = Served::new();
    let mut wire = served.simple_client("vol");
    assert_eq!(wire.write(0, 4096, b"abc"), 0);
    wire.command(0, READ, 7, 4094, 6);
    assert_eq!(wire.answer(6).body, Body::Data(0, b"\0\0abc\0".to_vec()));
    wire.command(0, READ, 8, SIZE, 1);
    assert_eq!(wire.answer(1).body, Body::Simple(EINVAL));
    wire.command(0, READ, 9, 0, 0);
    assert_eq!(wire.answer(0).body, Body::Simple(0));
}

#[test]
fn a_structured_read_shows_holes_unless_df() {
    let served = Served::new();
    let mut wire = served.client("vol", &[]);
    let data = pattern(1, 8192);
    assert_eq!(wire.write(0, 8192, &data), 0);
    let sparse = [
        Body::Hole(0, 8192),
        Body::Data(8192, data.clone()),
        Body::Hole(16384, 4096),
    ];
    assert_eq!(wire.chunks(0, READ, 0, 20480), sparse);
    let whole = [vec![0; 8192], data, vec![0; 4096]].concat();
    assert_eq!(wire.chunks(DF, READ, 0, 20480), [Body::Data(0, whole)]);
    assert_eq!(
        wire.chunks(DF, READ, 1 << 20, 4096),
        [Body::Hole(1 << 20, 4096)]
    );
    assert_eq!(wire.chunks(0, READ, 0, 0), [Body::Nothing]);
}

#[test]
fn trim_and_zero_make_holes_and_no_hole_keeps_space() {
    let served = Served::new();
    let mut wire = served.client("vol", &["base:allocation"]);
    assert_eq!(wire.write(0, 0, &pattern(1, 65536)), 0);
    assert_eq!(wire.call(0, TRIM, 0, 8192), 0);
    assert_eq!(wire.call(FUA, ZERO, 16384, 8192), 0);
    assert_eq!(wire.call(FAST_ZERO, ZERO, 32768, 4096), 0);
    assert_eq!(wire.call(NO_HOLE, ZERO, 49152, 4096), 0);
    assert_eq!(wire.call(NO_HOLE | FAST_ZERO, ZERO, 0, 4096), ENOTSUP);
    assert_eq!(wire.call(FAST_ZERO, ZERO, 61440, 100), ENOTSUP);
    let status = wire.chunks(0, STATUS, 0, 65536);
    let [Body::Status(0, extents)] = &status[..] else {
        panic!("{status:?}")
    };
    let expected = [
        (8192, 3),
        (8192, 0),
        (8192, 3),
        (8192, 0),
        (4096, 3),
        (28672, 0),
    ];
    assert_eq!(extents[..], expected);
    assert!(wire.read(16384, 8192).iter().all(|byte| *byte == 0));
    assert!(wire.read(49152, 4096).iter().all(|byte| *byte == 0));
    assert_eq!(wire.read(61440, 100), pattern(1, 65536)[61440..61540]);
}

#[test]
fn zeroing_parts_of_blocks_leaves_their_neighbours() {
    let served = Served::new();
    let mut wire = served.client("vol", &[]);
    let mut expected = pattern(1, 16384);
    assert_eq!(wire.write(0, 0, &expected), 0);
    assert_eq!(wire.call(0, ZERO, 100, 13_000), 0);
    expected[100..13_100].fill(0);
    assert!(wire.read(0, 16384) == expected);
}

#[test]
fn block_status_answers_every_context_in_any_range() {
    let served = Served::new();
    let mut writer = served.client("vol", &[]);
    assert_eq!(writer.write(0, 0, &pattern(1, 8192)), 0);
    served.store.snapshot(&[("vol", "one")]).wait().unwrap();
    assert_eq!(writer.write(0, 4096, &pattern(2, 8192)), 0);
    let contexts = [
        "base:allocation",
        "qemu:dirty-bitmap:one",
        "x-basalt:dirty-since:one",
    ];
    let mut wire = served.client("vol", &contexts);
    let dirty = vec![(4096, 0), (8192, 1), (4096, 0)];
    let expected = [
        Body::Status(0, vec![(12288, 0), (4096, 3)]),
        Body::Status(1, dirty.clone()),
        Body::Status(2, dirty),
    ];
    assert_eq!(wire.chunks(0, STATUS, 0, 16384), expected);
    let expected = [
        Body::Status(0, vec![(11288, 0)]),
        Body::Status(1, vec![(3096, 0)]),
        Body::Status(2, vec![(3096, 0)]),
    ];
    assert_eq!(wire.chunks(REQ_ONE, STATUS, 1000, 15384), expected);
    let last = wire.chunks(0, STATUS, SIZE - 1, 1);
    assert_eq!(last[0], Body::Status(0, vec![(1, 3)]));
}

#[test]
fn block_status_refuses_what_leaves_the_export() {
    let served = Served::new();
    let mut wire = served.client("vol", &["base:allocation"]);
    let ranges = [
        (0, u32::MAX),
        (0, u32::try_from(SIZE + 1).unwrap()),
        (SIZE, 1),
        (u64::MAX, u32::MAX),
        (u64::MAX - 1, 1),
        (1, u32::try_from(SIZE).unwrap()),
        (0, 0),
    ];
    for (offset, length) in ranges {
        assert_eq!(
            wire.call(0, STATUS, offset, length),
            EINVAL,
            "{length} at {offset}"
        );
    }
    let mut without = served.client("vol", &[]);
    assert_eq!(without.call(0, STATUS, 0, 4096), EINVAL);
}

#[test]
fn a_snapshot_does_not_change_and_its_writers_lose_no_step() {
    let served = Served::new();
    let mut wire = served.client("vol", &[]);
    let old = pattern(1, 65536);
    assert_eq!(wire.write(0, 0, &old), 0);
    served.store.snapshot(&[("vol", "one")]).wait().unwrap();
    assert_eq!(wire.write(0, 0, &pattern(2, 65536)), 0);
    let mut snapshot = served.client("vol@one", &[]);
    assert_eq!(snapshot.write(0, 0, &pattern(3, 65536)), EPERM);
    assert_eq!(snapshot.call(0, TRIM, 0, 4096), EPERM);
    assert_eq!(snapshot.call(0, ZERO, SIZE, 4096), EPERM);
    assert_eq!(snapshot.call(0, FLUSH, 0, 0), 0);
    assert!(snapshot.read(0, 65536) == old);
}

#[test]
fn a_refused_write_is_consumed_and_the_next_command_understood() {
    let served = Served::new();
    let mut wire = served.client("vol", &[]);
    for (flags, offset, errno) in [
        (0, SIZE - 1, ENOSPC),
        (0, u64::MAX, ENOSPC),
        (64, 0, EINVAL),
    ] {
        for length in [2, 4096, 70_000, 3 << 20] {
            // A payload that looks like commands.
            let payload = request(0, DISC, 1, 0, 0).repeat(length / 28 + 1);
            assert_eq!(wire.write(flags, offset, &payload[..length]), errno);
            assert_eq!(wire.call(0, FLUSH, 0, 0), 0);
        }
    }
}

#[test]
fn every_other_rule_is_an_errno() {
    let served = Served::new();
    let mut wire = served.client("vol", &[]);
    let table = [
        (0, READ, SIZE, 1, EINVAL),
        (0, READ, SIZE - 1, 2, EINVAL),
        (0, READ, u64::MAX, u32::MAX, EINVAL),
        (0, TRIM, SIZE, 1, EINVAL),
        (0, CACHE, SIZE, 1, EINVAL),
        (0, ZERO, SIZE, 1, ENOSPC),
        (0, FLUSH, 0, 1, EINVAL),
        (0, 8, 0, 0, EINVAL),
        (0, 0xffff, 0, 0, EINVAL),
        (NO_HOLE, TRIM, 0, 4096, EINVAL),
        (REQ_ONE, READ, 0, 4096, EINVAL),
        (0x8000, FLUSH, 0, 0, EINVAL),
        (FUA, FLUSH, 0, 0, 0),
        (FUA, CACHE, 0, 4096, 0),
        (0, TRIM, 0, 0, 0),
        (0, ZERO, SIZE, 0, 0),
        (0, WRITE, 0, 0, 0),
        (0, CACHE, 0, u32::try_from(SIZE).unwrap(), 0),
        (0, TRIM, 0, u32::try_from(SIZE).unwrap(), 0),
    ];
    for (flags, kind, offset, length, errno) in table {
        let answer = wire.call(flags, kind, offset, length);
        assert_eq!(
            answer, errno,
            "command {kind}, flags {flags}, {length} at {offset}"
        );
    }
}

#[test]
fn many_commands_at_once_are_each_answered_once() {
    let served = Served::new();
    let mut wire = served.client("vol", &[]);
    // Twice as many as the server runs at once; their answers fit into the socket's buffer.
    let data = pattern(1, 256 * 4096);
    let mut session = Vec::new();
    for (cookie, block) in (0..).zip(data.chunks(4096)) {
        session.extend(request(0, WRITE, cookie, cookie * 4096, 4096));
        session.extend(block);
    }
    wire.send(&session);
    let answers: HashSet<u64> = (0..256)
        .map(|_| {
            let answer = wire.answer(0);
            assert_eq!(answer.body, Body::Simple(0));
            answer.cookie
        })
        .collect();
    assert_eq!(answers.len(), 256);
    let mut session = Vec::new();
    for cookie in 0..256 {
        session.extend(request(0, READ, cookie, cookie * 4096, 4096));
    }
    wire.send(&session);
    let mut seen = HashSet::new();
    for _ in 0..256 {
        let answer = wire.answer(0);
        let at = usize::try_from(answer.cookie).unwrap() * 4096;
        let expected = data[at..at + 4096].to_vec();
        assert!(answer.body == Body::Data(answer.cookie * 4096, expected));
        assert!(seen.insert(answer.cookie));
    }
}

#[test]
fn clients_see_each_others_writes_and_a_flush_is_for_all() {
    let served = Served::new();
    let mut clients: Vec<_> = (0..8).map(|_| served.client("vol", &[])).collect();
    served.until_connected(8);
    for (n, wire) in (0_u64..).zip(&mut clients) {
        assert_eq!(wire.write(0, n * 100, &pattern(n, 100)), 0);
    }
    assert_eq!(clients[3].call(0, FLUSH, 0, 0), 0);
    let expected: Vec<u8> = (0..8).flat_map(|n| pattern(n, 100)).collect();
    for wire in &mut clients {
        assert_eq!(wire.read(0, 800), expected);
    }
}

#[test]
fn disconnect_finishes_what_was_asked_for() {
    let served = Served::new();
    let mut wire = served.client("vol", &[]);
    let mut session = Vec::new();
    for cookie in 0..100 {
        session.extend(request(0, WRITE, cookie, cookie * 4096, 4096));
        session.extend(pattern(cookie, 4096));
    }
    session.extend(request(0, DISC, 0, 0, 0));
    wire.send(&session);
    let cookies: HashSet<u64> = (0..100).map(|_| wire.answer(0).cookie).collect();
    assert_eq!(cookies.len(), 100);
    wire.expect_end();
    let mut wire = served.client("vol", &[]);
    for n in 0..100 {
        assert!(wire.read(n * 4096, 4096) == pattern(n, 4096));
    }
}

#[test]
fn shutdown_answers_what_is_in_flight_and_hangs_up_on_idle_clients() {
    let mut served = Served::new();
    let mut idle = served.client("vol", &[]);
    let mut busy = served.client("vol", &[]);
    let haggling = &mut served.connect();
    haggling.greet(3);
    let data = pattern(1, 1 << 20);
    let mut session = Vec::new();
    for cookie in 0..16 {
        session.extend(request(FUA, WRITE, cookie, cookie << 20, 1 << 20));
        session.extend(&data);
    }
    busy.send(&session);
    served.until_connected(3);
    let path = served.path();
    let server = served.server.take().unwrap();
    let stopping = std::thread::spawn(move || server.shutdown());
    let mut answers = Vec::new();
    for cookie in 0..16 {
        let answer = busy.answer(0);
        // In flight before the shutdown, or refused because of it: each answered.
        assert!(matches!(
            answer.body,
            Body::Simple(0) | Body::Error(ESHUTDOWN)
        ));
        answers.push(answer.cookie);
        assert!(answers.len() == cookie + 1);
    }
    busy.expect_end();
    idle.expect_end();
    haggling.expect_end();
    stopping.join().unwrap();
    assert!(!path.exists());
    let unique: HashSet<u64> = answers.into_iter().collect();
    assert_eq!(unique.len(), 16);
}
